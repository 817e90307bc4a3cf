"""Kill a command at every write under its folder, run it again, and compare with an undisturbed run.

    python tests/kills.py FOLDER STRIDE COMMAND [ARGUMENTS…]

prints one JSON line: how many kills, at how many writes, and which ended otherwise. Writes are Python's
(open, rename, remove, mkdir, as the interpreter's audit events) and those of safetensors, torch and Arrow
before, in the middle of and after each file. Every run is a fork of one process that has all imports.
"""

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import safetensors.torch
import torch

import klball.commands.train  # noqa: F401  (imported once, before the forks)
from klball import cli

WRITES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir"}


class Events:
    """Counts the writes under a folder; at number `fatal` the process is killed."""

    def __init__(self, folder: Path, fatal: int):
        self.folder, self.fatal, self.count = str(folder), fatal, 0

    def happen(self) -> None:
        self.count += 1
        if self.count == self.fatal:
            os.kill(os.getpid(), signal.SIGKILL)

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        writes = event in WRITES or (event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR))
        if writes and str(arguments[0]).startswith(self.folder):
            self.happen()

    def around(self, module: Any, name: str, position: int) -> None:
        """Three events for each file that a library writes: before it, when half is there, after it."""
        write: Callable[..., Any] = getattr(module, name)

        def watched(*arguments: Any, **more: Any) -> Any:
            path = Path(str(arguments[position]))
            if not str(path).startswith(self.folder):
                return write(*arguments, **more)
            self.happen()
            result = write(*arguments, **more)
            if self.count + 1 == self.fatal:
                os.truncate(path, path.stat().st_size // 2)
            self.happen()
            self.happen()
            return result

        setattr(module, name, watched)


def run(arguments: list[str], folder: Path, fatal: int = 0) -> int:
    """Events of a whole run, or of one killed at event `fatal`: 0."""
    counted, report = os.pipe()
    pid = os.fork()
    if pid == 0:
        silence = os.open(os.devnull, os.O_WRONLY)
        log = os.open(str(folder.parent / "log.txt"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(silence, 1), os.dup2(log, 2)
        events = Events(folder, fatal)
        events.around(safetensors.torch, "serialize_file", 1)
        events.around(torch, "save", 1)
        events.around(pq, "write_table", 1)
        sys.addaudithook(events.audit)
        try:
            cli.main(arguments)
            os.write(report, str(events.count).encode())
        finally:
            os._exit(0)
    os.close(report)
    count = int(os.read(counted, 99) or 0)
    os.close(counted), os.waitpid(pid, 0)
    return count


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def main(folder: Path, stride: int, arguments: list[str]) -> dict[str, Any]:
    """Kill at every `stride`-th write."""
    torch.set_num_threads(1)
    assert not folder.exists()
    total = run(arguments, folder)
    expected = contents(folder)
    others: dict[str, list[str]] = {}
    kills = range(1, total + 1, stride)
    for fatal in kills:
        shutil.rmtree(folder, ignore_errors=True)
        assert run(arguments, folder, fatal) == 0, f"event {fatal} did not kill"
        found = contents(folder) if run(arguments, folder) else {}
        names = {*expected, *found}
        if differ := sorted(n for n in names if expected.get(n) != found.get(n)):
            others[str(fatal)] = differ
        print(f"killed at write {fatal} of {total}: {differ or 'identical'}", file=sys.stderr, flush=True)
    return {"writes": total, "kills": len(kills), "identical": len(kills) - len(others), "others": others}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])))
