"""Files that are whole or absent, names for them, and what a folder of results was made from."""

import csv
import dataclasses
import hashlib
import json
import os
import platform
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

LONGEST = 80  # characters of a label in a file name; 255 bytes is what file systems take
FORMULA = ("=", "+", "-", "@", "\t", "\r")
RUN_FILE = "run.json"
TRAIN = "klball train"  # its run.json names no command
LIBRARIES = ("klball", "torch", "transformers", "trl", "peft", "accelerate", "datasets", "tokenizers")
HOST = hashlib.sha256(platform.node().encode()).hexdigest()[:8]  # a process id means something here alone


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
    """Remove what killed processes of this machine left of `path`; those of others may still be writing."""
    left = re.compile(rf"\.{re.escape(path.name)}\.(?:{HOST}-)?(\d+)(?:\.\w+)?")
    if not path.parent.is_dir():
        return
    for entry in os.scandir(path.parent):
        match = left.fullmatch(entry.name)
        if match is not None and not _runs(int(match[1])):
            Path(entry.path).unlink(missing_ok=True)


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
    plain = re.sub(r"[^\w.=-]+", "_", label)[:LONGEST].lstrip(".")
    if plain == label:
        return plain
    return f"{plain}-{hashlib.sha256(label.encode('utf-8', 'surrogateescape')).hexdigest()[:8]}"


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Rows of equal keys as CSV; a text that a spreadsheet would run as a formula gets a `'` before it."""
    with whole_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(map(_disarmed, rows[0] if rows else ()))
        writer.writerows(map(_disarmed, row.values()) for row in rows)


def _disarmed(value: Any) -> Any:
    if isinstance(value, str) and value.startswith(FORMULA) and not _is_plain_number(value):
        return f"'{value}"
    return value


def _is_plain_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def refuse_foreign_folder(folder: Path, name: str) -> None:
    """Raise ValueError if the folder holds the results of another command, whose run.json would be lost."""
    try:
        recorded = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return
    if not isinstance(recorded, dict):
        return
    holder = recorded.get("command", TRAIN if "training" in recorded else name)
    if holder != name:
        raise ValueError(f"{folder} holds the results of `{holder}`: choose another --output_dir")


def write_run(folder: Path, options: Any, name: str) -> None:
    """The resolved options and the versions of the libraries, beside the results."""
    refuse_foreign_folder(folder, name)
    content = {
        "command": name,
        "options": {k: without_secrets(v) for k, v in dataclasses.asdict(options).items()},
        "versions": versions(),
    }
    write_text(folder / RUN_FILE, json.dumps(content, indent=2, sort_keys=True, default=str) + "\n")


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that results depend on."""
    return {"python": sys.version.split()[0], **{library: version(library) for library in LIBRARIES}}


def without_secrets(value: Any) -> Any:
    """A URL without its user, password and query; everything else as it is."""
    if not isinstance(value, str) or "://" not in value:
        return value
    parts = urlsplit(value)
    host = parts.netloc.rpartition("@")[2]
    hidden = f"***@{host}" if "@" in parts.netloc else host
    return urlunsplit((parts.scheme, hidden, parts.path, "***" if parts.query else "", parts.fragment))
