"""Where exceptions end: which of them is an answer to the user, and which a fault of klball."""

import dis
import errno
import os
import re
from collections.abc import Iterator
from types import TracebackType

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FULL_WORDS = (  # the last two are torch.save's
    *("No space left on device", "Disk quota exceeded", "File too large"),
    *("PytorchStreamWriter failed", "enforce fail at inline_container"),
)
CONFIGURABLE = ("trl", "transformers", "peft", "accelerate")
NETWORK = ("huggingface_hub", "httpx", "httpx2", "httpcore")  # offline, no token, no such repository
MEMORY = ("MemoryError", "OutOfMemoryError")
PACKAGE = re.compile(r"\b(bitsandbytes|tensorboard|wandb|liger[-_]kernel|deepspeed|flash_attn|vllm)\b", re.I)
NOT_THERE = (
    *("not installed", "to be installed", "is required", "pip install"),
    *("No module named", "not available"),
)
METRIC = "metric_for_best_model"  # whether there is such a metric shows after an evaluation only


def answer(error: BaseException) -> str | None:
    """The line that answers the user, or None where klball itself (or what it calls) is at fault.

    A refusal is a ValueError or OSError of a `raise` statement of klball's own; the system's (a missing
    file, a full disk), a missing package, and what a library refuses in a constructor are answers too.
    """
    chain = list(_chain(error))
    for one in chain:
        if _disk_is_full(one):
            what = first_line(one)
            return f"the disk is full: {what}: make room and run the same command again; it continues"
        if type(one).__name__ in MEMORY:
            return f"out of memory: {first_line(one)}: smaller batches or shorter rows need less"
    return _missing_package(chain) or (first_line(error) if _is_answer(error) else None)


def _is_answer(error: BaseException) -> bool:
    if type(error).__module__.split(".")[0] in NETWORK:
        return True
    if isinstance(error, OSError):
        return error.errno is not None or _raised_by_klball(error)
    if isinstance(error, ValueError):
        return _raised_by_klball(error) or _refused_by_constructor(error)
    return isinstance(error, KeyError) and METRIC in str(error)


def interrupted(error: BaseException) -> bool:
    """Whether a Ctrl-C is behind it, though a library may have wrapped it."""
    return any(isinstance(one, KeyboardInterrupt) for one in _chain(error))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        yield error
        seen.add(id(error))
        error = error.__cause__ or error.__context__


def first_line(error: BaseException) -> str:
    """The first line of what an exception says that is not blank, or its name if it says nothing."""
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)


def _disk_is_full(error: BaseException) -> bool:
    full = isinstance(error, OSError) and error.errno in FULL
    return full or any(words in str(error) for words in FULL_WORDS)


def _missing_package(chain: list[BaseException]) -> str | None:
    """`ImportError`, or another exception whose words say that a package is missing."""
    for error in chain:
        name = getattr(error, "name", None) or ""
        if isinstance(error, ImportError) and name.split(".")[0] == "klball":
            return None
        if isinstance(error, ModuleNotFoundError) and name:
            package = name.split(".")[0].replace("_", "-")
            return f"{package} is not there: pip install {package}"
        found = PACKAGE.search(str(error))
        if found and (isinstance(error, ImportError) or any(words in str(error) for words in NOT_THERE)):
            package = found.group(1).replace("_", "-").lower()
            return f"{package} is not there: pip install {package} ({first_line(error)})"
    return None


def _frames(error: BaseException) -> Iterator[TracebackType]:
    part = error.__traceback__
    while part is not None:
        yield part
        part = part.tb_next


def _module(part: TracebackType) -> str:
    return part.tb_frame.f_globals.get("__name__", "").split(".")[0]


def _raised_by_klball(error: BaseException) -> bool:
    """Whether a `raise` statement of klball made it, and not, say, `int("x")` on one of its lines."""
    *_, last = [None, *_frames(error)]
    if last is None or _module(last) != "klball":
        return False
    return dis.opname[last.tb_frame.f_code.co_code[last.tb_lasti]] == "RAISE_VARARGS"


def _refused_by_constructor(error: BaseException) -> bool:
    """Whether a library raised it while it built something from settings: such as PEFT's unknown modules."""
    frames = list(_frames(error))
    own = max((i for i, part in enumerate(frames) if _module(part) == "klball"), default=-1)
    outside = [part for part in frames[own + 1 :] if _module(part) in CONFIGURABLE]
    return any(part.tb_frame.f_code.co_name in ("__init__", "__post_init__") for part in outside)


def wants_traceback() -> bool:
    """KLBALL_TRACEBACK shows where any error came from."""
    return bool(os.environ.get("KLBALL_TRACEBACK"))
