"""Files that are whole or absent, and names for them."""

import hashlib
import os
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LONGEST = 80  # characters of a label in a file name; 255 bytes is what file systems take
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
