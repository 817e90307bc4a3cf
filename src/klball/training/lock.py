"""One run at a time in a folder."""

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from accelerate.utils import broadcast_object_list

from klball.terminal import is_main

logger = logging.getLogger(__name__)

LOCK_FILE = "_training.lock"  # uploads to the Hub leave out what begins so
_held: set[int] = set()  # file descriptors


class InUseError(ValueError):
    """Another run is training in the folder."""


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keeps other runs out of a folder. Raises InUseError, in all processes of this run, if one trains there.

    The system lets go of the lock when the main process ends in whatever way; the file of one that was killed
    stays until the run is asked for again.
    """
    refusal = None
    with ExitStack() as held:
        if is_main():
            try:
                held.enter_context(_locked(folder))
            except InUseError as error:
                refusal = str(error)
        (refusal,) = broadcast_object_list([refusal])
        if refusal is not None:
            raise InUseError(refusal)
        yield


def remove_left(folder: Path) -> None:
    """Remove the lock's file of a killed run; not while a run trains there, nor on a read-only disk."""
    if (folder / LOCK_FILE).exists():
        with suppress(InUseError, OSError), _locked(folder):
            pass


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK_FILE
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    _held.add(file)
    try:
        _lock(file, folder)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)  # while nobody else can have locked it
    finally:
        _held.discard(file)
        os.close(file)


def _lock(file: int, folder: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        taken = os.fstat(file).st_nlink == 0  # it was another run's until now
    except BlockingIOError:
        taken = True
    except OSError as error:
        taken = False
        logger.warning("%s cannot be locked (%s): begin no second run there", folder, error.strerror)
    if taken:
        raise InUseError(f"another run is training in {folder}: wait for it, or choose another --output_dir")


def _let_go() -> None:
    """Workers that are forked would keep the lock for as long as they outlive a killed run."""
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_let_go)
