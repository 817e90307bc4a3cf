"""What a refused command leaves behind: nothing that it had not finished."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from accelerate import PartialState

from klball.files import RUN_FILE
from klball.terminal import is_main
from klball.training.lock import InUseError


@contextmanager
def no_leftovers(folder: Path) -> Iterator[None]:
    """On an error, undo the folders and run.json that the block made, unless it made other files too.

    Libraries make the output folder before they look at all settings, and a run.json alone would refuse the
    next try for having other settings.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    before = {*folder.rglob("*")} if folder.is_dir() else set()
    run = folder / RUN_FILE
    recorded = run.read_bytes() if run in before else None
    processes = PartialState(cpu=not torch.accelerator.is_available())
    processes.wait_for_everyone()  # until all have seen what was there
    try:
        yield
    except InUseError:  # what has come since is the other run's
        raise
    except Exception:
        made = [path for path in folder.rglob("*") if path not in before]
        files = [path for path in made if not path.is_dir()]
        if is_main() and all(path.name == RUN_FILE for path in files):
            if recorded is not None:  # what is there was made with those settings
                run.write_bytes(recorded)
            for path in files:
                path.unlink(missing_ok=True)
            for path in (*sorted(made, reverse=True), *missing):
                with suppress(OSError):  # it is no folder, or somebody else's files are in it
                    path.rmdir()
        raise
