"""Files that are whole or absent, digests and names for them, and what a file or folder was made from."""

import csv
import dataclasses
import glob
import hashlib
import json
import logging
import math
import os
import platform
import re
import shutil
import sys
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from klball import __version__
from klball.boundary import first_line

logger = logging.getLogger(__name__)

LONGEST = 160  # bytes of a label in a file name; file systems take 255
LONGEST_CELL = 2**31 - 1  # Python's own limit is 131,072 characters
FORMULA = ("=", "+", "-", "@", "\t", "\r")
RUN_FILE = "run.json"
LIBRARIES = ("klball", "torch", "transformers", "trl", "peft", "accelerate", "datasets", "tokenizers")
PROVENANCE = "klball"  # a key of a Parquet file's metadata
BLOCK = 1 << 22  # bytes
ABANDONED = 7 * 24 * 3600  # seconds without a write


def digest(content: str | bytes, length: int = 16) -> str:
    """SHA-256 of a text or of bytes: its first `length` hexadecimal digits."""
    encoded = content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content
    return hashlib.sha256(encoded).hexdigest()[:length]


def json_digest(value: Any, length: int = 16) -> str:
    """`digest` of a value's JSON, whatever the order of its keys."""
    return digest(json.dumps(value, sort_keys=True, default=str), length)


def combined(parts: Iterable[Any]) -> str:
    """One fast hash (XXH3, 16 hexadecimal digits) of many bytes, in their order."""
    hashed = xxhash.xxh3_128()
    for part in parts:
        hashed.update(part)
    return hashed.hexdigest()[:16]


def file_digest(path: Path) -> str:
    """`combined` of a file's bytes."""
    with path.open("rb") as file:
        return combined(iter(lambda: file.read(BLOCK), b""))


def _here() -> str:
    """Where a process id means something: on this machine since it was started, and in this container."""
    try:
        started = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
        return digest(f"{platform.node()} {started} {os.readlink('/proc/self/ns/pid')}", 8)
    except OSError:  # no /proc
        return digest(platform.node(), 8)


HOST = _here()


@contextmanager
def whole_file(path: Path, suffix: str = "") -> Iterator[Path]:
    """A temporary name to write to, which becomes `path` at the end, or is removed on an error.

    `suffix` ends the temporary name, for writers that choose their format by it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_stale(path)
    temporary = path.with_name(f".{path.name}.{HOST}-{os.getpid()}{suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_stale(path: Path) -> None:
    """Remove what killed processes left of `path`; those elsewhere may still be writing, but not for days."""
    left = re.compile(rf"\.{re.escape(path.name)}\.(?:([0-9a-f]{{8}})-)?(\d+)(?:\.\w+)?")
    if not path.parent.is_dir():
        return
    for entry in os.scandir(path.parent):
        match = left.fullmatch(entry.name)
        if match is not None and _is_dead(entry.path, match[1] == HOST, int(match[2])):
            Path(entry.path).unlink(missing_ok=True)


def _is_dead(temporary: str, here: bool, process: int) -> bool:
    if here:
        return not _runs(process)
    with suppress(FileNotFoundError):
        return time.time() - os.stat(temporary).st_mtime > ABANDONED
    return False


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # somebody else's
        return True
    return True


def file_name(label: str) -> str:
    """A label as the name of a file: itself where it can be one, else made so, with a hash beside it."""
    plain = re.sub(r"[^\w.=-]+", "_", label).encode()[:LONGEST].decode(errors="ignore").lstrip(".")
    if plain == label:
        return plain
    return f"{plain}-{digest(label, 8)}"


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file whole or not at all."""
    write_text(path, json.dumps(content, indent=2, sort_keys=True, default=str) + "\n")


def read_json_object(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object. Raises ValueError naming the file if it does not."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no JSON object but {type(content).__name__}")
    return content


def write_table(table: pa.Table, path: Path, about: Mapping[str, Any] | None = None) -> None:
    """Write a Parquet file whole or not at all, with the provenance `about` in its schema."""
    if about is not None:
        table = table.replace_schema_metadata(with_provenance(about))
    with whole_file(path) as temporary:
        pq.write_table(table, temporary, write_page_checksum=True)


@contextmanager
def readable(path: str | Path, otherwise: str = "") -> Iterator[None]:
    """Turns what Arrow raises about a file into a ValueError that says what to do.

    `otherwise`: what to do with a file that is no Parquet file, even by its name.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise ValueError(f"there is no {path}") from error
    except (OSError, pa.ArrowException) as error:
        said = first_line(error)
        if Path(path).suffix != ".parquet" and "magic bytes" in said:
            said = f"is not a readable Parquet file. {otherwise}".strip()
        elif "CRC" in said:
            said = f"is damaged ({said}): remove it and make it again"
        else:
            said = f"is not a readable Parquet file: {said}"
        raise ValueError(f"{path} {said}") from error


def read_table(path: str | Path, otherwise: str = "", **part: Any) -> pa.Table:
    """A Parquet file, or `columns` or `filters` of it, its pages' checksums verified; see `readable`."""
    with readable(path, otherwise):
        return without_views(pq.read_table(path, page_checksum_verification=True, **part))


def without_views(table: Any) -> Any:
    """Strings in place of views of strings, which Arrow cannot filter."""
    plain = [pa.string() if pa.types.is_string_view(field.type) else field.type for field in table.schema]
    fields = [field.with_type(kind) for field, kind in zip(table.schema, plain, strict=True)]
    return table.cast(pa.schema(fields, table.schema.metadata))


def finished_part(path: Path) -> pa.Table | None:
    """A part that was written before; None, and a warning, where it is damaged."""
    if not path.exists():
        return None
    try:
        return read_table(path)
    except ValueError:
        logger.warning("%s is damaged and made again", path)
        return None


def without_nan(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows for a file in which no number is an empty cell: None for NaN."""
    return [
        {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()} for row in rows
    ]


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Rows of equal keys, in the first one's order, as CSV; NaN is an empty cell, and a text that a
    spreadsheet would run as a formula gets a `'` before it."""
    names = list(rows[0]) if rows else []
    assert all(row.keys() == rows[0].keys() for row in rows)
    with whole_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(map(_disarmed, names))
        writer.writerows([_disarmed(row[name]) for name in names] for row in without_nan(rows))


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a file of `write_csv`, as texts, without the `'` that it put before some."""
    csv.field_size_limit(LONGEST_CELL)
    with path.open(newline="", encoding="utf-8") as file:
        names, *rows = csv.reader(file)
    names = [*map(_armed, names)]
    return [dict(zip(names, map(_armed, row), strict=True)) for row in rows]


def _armed(text: str) -> str:
    return text[1:] if text.startswith("'") and _disarmed(text[1:]) == text else text


def _disarmed(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    text = value.lstrip("'")  # what has one already gets another, for `read_csv` to take off
    return f"'{value}" if text.startswith(FORMULA) and not _is_plain_number(text) else value


def _is_plain_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def with_provenance(about: Mapping[str, Any]) -> dict[str, str]:
    """The metadata of a Parquet schema that says what the file was made from."""
    return {PROVENANCE: json.dumps(about, sort_keys=True, default=str)}


def provenance_in(path: str | Path, schema: pa.Schema) -> dict[str, Any]:
    """What a Parquet file says it was made from; empty if it says nothing. ValueError for a damaged one."""
    try:
        about = json.loads((schema.metadata or {}).get(PROVENANCE.encode(), b"{}"))
    except (ValueError, RecursionError):
        about = None
    if not isinstance(about, dict):
        raise ValueError(f"{path} is damaged: its provenance is no JSON; remove it and make it again")
    return about


def differences(
    recorded: Mapping[str, Any], wanted: Mapping[str, Any], but: Collection[str] = ()
) -> list[str]:
    """The keys, `but` left out, under which two provenances differ once both are JSON."""
    wanted = json.loads(json.dumps(wanted, default=str))
    keys = {*recorded, *wanted} - {*but}
    return sorted(key for key in keys if recorded.get(key) != wanted.get(key))


def refuse_other(
    path: Path, recorded: Mapping[str, Any], wanted: Mapping[str, Any], but: Collection[str] = ()
) -> None:
    """Raise ValueError naming the `differences` if a finished file was made from something else."""
    if changed := differences(recorded, wanted, but):
        raise ValueError(
            f"{path} was made from something else (different: {', '.join(changed)}); "
            "remove it or choose another output"
        )


def parts_folder(path: Path, about: Mapping[str, Any]) -> Path:
    """Where the parts of a file wait for each other; by its provenance, so that no other file takes them."""
    return path.with_name(f"{path.name}.parts-{json_digest(about)}")


def remove_parts(path: Path) -> None:
    """Remove the parts of a file that is finished, and what a kill left of it."""
    remove_stale(path)
    for folder in path.parent.glob(f"{glob.escape(path.name)}.parts-*"):
        shutil.rmtree(folder, ignore_errors=True)


def refuse_foreign_folder(folder: Path, name: str) -> None:
    """Raise ValueError for a file, or where another command's results are, whose run.json would be lost."""
    if folder.is_file():
        raise ValueError(f"{folder} is a file, not a folder: choose another --output_dir")
    try:
        recorded = read_json_object(folder / RUN_FILE)
    except ValueError:
        return
    holder = recorded.get("command", name)
    if holder != name:
        raise ValueError(f"{folder} holds the results of `{holder}`: choose another --output_dir")


def write_run(folder: Path, options: Any, name: str, **more: Any) -> None:
    """The resolved options and the versions of the libraries, beside the results; more: further sections."""
    refuse_foreign_folder(folder, name)
    content = {
        "command": name,
        "options": {k: without_secrets(v) for k, v in dataclasses.asdict(options).items()},
        **more,
        "versions": versions(),
    }
    write_json(folder / RUN_FILE, content)


def versions(*libraries: str) -> dict[str, str]:
    """The installed versions of these libraries; of none, of Python and all that results depend on."""
    if libraries:
        return {library: __version__ if library == "klball" else version(library) for library in libraries}
    return {"python": sys.version.split()[0], **versions(*LIBRARIES)}


def without_secrets(value: Any) -> Any:
    """A URL without its user, password and query; everything else as it is."""
    if not isinstance(value, str) or "://" not in value:
        return value
    try:
        parts = urlsplit(value)
    except ValueError:  # such as http://[::1
        return "***"
    host = parts.netloc.rpartition("@")[2]
    hidden = f"***@{host}" if "@" in parts.netloc else host
    return urlunsplit((parts.scheme, hidden, parts.path, "***" if parts.query else "", parts.fragment))


def name_of(what: str, name: Any) -> str:
    """A name or a path as text. Raises ValueError for anything else."""
    if not isinstance(name, str | Path):
        raise ValueError(f"{what} is given by its name or path, not by {type(name).__name__}")
    return str(name)
