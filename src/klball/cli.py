"""The command line: parse, call one function, print. Heavy imports wait until a command is chosen."""

import ctypes
import io
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from types import FrameType

from klball.boundary import answer, interrupted, wants_traceback
from klball.plain_text import visible

COMMANDS = {  # name → (module with a class `Options`, an `EXAMPLE` and a function `main`, what it does)
    "reproduce": (
        "klball.commands.reproduce",
        "whole experiments, from nothing to figures: robustness, objectives, preference, forgetting",
    ),
    "train": ("klball.commands.train", "one robust training run: SFT, a reward model, DPO, GDPO or GRPO"),
    "tune": (
        "klball.commands.tune",
        "a radius for your data: radii at equal budget, their cost and gain, a choice",
    ),
    "score": ("klball.commands.score", "model × data → score table"),
    "solve": ("klball.commands.solve", "score table → λ, β, effective sample size, top-weighted samples"),
    "scan": ("klball.commands.scan", "implicit rewards, gradient shares, forgetting, entropy, diversity"),
    "paraphrase": ("klball.commands.paraphrase", "data → rounds of rephrased prompts"),
    "compare": ("klball.commands.compare", "models × rounds → worst cases, (λ, β), tests, verdicts"),
    "evaluate": ("klball.commands.evaluate", "the robustness report of one or more models"),
}


LONGEST_LINE = 560  # characters
FAULT = "klball: this is a fault of klball, not of your input: please report it with the lines below"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; a bad argument or input ends with one line on stderr and exit code 2.

    An exception that is no answer to the user keeps its traceback, behind a line that asks for a report:
    exit code 1. Ctrl-C: 130.
    """
    _open_closed()
    for stream in (sys.stdout, sys.stderr):  # a terminal without Greek letters must not lose a result
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    heard: list[int] = []
    try:
        with _listening(heard):
            _run(list(sys.argv[1:] if arguments is None else arguments), heard)
            _go_on_unless(heard)
        _refuse_unread()
    except BrokenPipeError:  # `klball ... | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except (Exception, KeyboardInterrupt) as error:
        if heard or interrupted(error):
            print("\ninterrupted; run the same command again to continue", file=sys.stderr)
            sys.exit(130)
        line = answer(error)
        if wants_traceback():
            raise
        if line is not None:
            _fail(line)
        print(FAULT, file=sys.stderr)
        traceback.print_exception(error)
        sys.exit(1)


def _open_closed() -> None:
    """Closed streams (`>&-`, as of daemons) lead nowhere; else the next file would be taken for one."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115


def _refuse_unread() -> None:
    """Raise BrokenPipeError where a pipe broke and the command went on for its files."""
    terminal = sys.modules.get("klball.terminal")
    if terminal is not None and terminal.console.quiet:
        raise BrokenPipeError


@contextmanager
def _listening(heard: list[int]) -> Iterator[None]:
    """Notes a Ctrl-C: compiled modules make an ImportError of one that comes while they are loaded."""

    def hear(number: int, frame: FrameType | None) -> None:
        heard.append(number)
        raise KeyboardInterrupt

    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # else somebody else listens
    ours = ours and threading.current_thread() is threading.main_thread()
    if ours:
        signal.signal(signal.SIGINT, hear)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _run(arguments: list[str], heard: list[int]) -> None:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return
    name, *rest = arguments
    if name == "--version":
        from klball import __version__

        print(__version__)
        return
    if name not in COMMANDS:
        raise ValueError(f"no command {name!r}; there are {', '.join(COMMANDS)}")
    prepare_process()
    _set_environment(rest)
    from klball.commands.flag_names import refuse_unknown

    refuse_unknown(COMMANDS[name][0], rest)
    command = import_module(COMMANDS[name][0])
    _go_on_unless(heard)
    command.main(rest, prog=f"klball {name}")


def _go_on_unless(heard: list[int]) -> None:
    """Raise KeyboardInterrupt again where an import caught it and went on."""
    if heard:
        raise KeyboardInterrupt


def _set_environment(arguments: list[str]) -> None:
    """A recipe's section `env`: libraries read most of it while they are imported, so it comes first."""
    from klball.commands.recipe import read_recipe, split_config

    path, _ = split_config(arguments)
    if path is not None:
        os.environ.update(read_recipe(path)[1])


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {what}" for name, (_, what) in COMMANDS.items()]
    return "\n".join(
        [
            "klball: robust post-training of language models",
            "",
            "usage: klball COMMAND [--config recipe.yaml] [options]",
            "",
            *lines,
            "",
            "`klball COMMAND --help` lists a command's options.",
        ]
    )


def _fail(message: str) -> None:
    line = visible(message, one_line=True)
    if len(line) > LONGEST_LINE:  # it quotes an endless name
        line = f"{line[: LONGEST_LINE - 100]} … {line[-90:]}"
    print(f"klball: error: {line}", file=sys.stderr)
    sys.exit(2)


def prepare_process() -> None:
    """Settings that must be in place before PyTorch is loaded."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if sys.platform == "linux":
        # glibc hands every large freed tensor back to the kernel and faults it in again: on CPU that took
        # half the time of a training step. Keep what was freed (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD).
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            libc.mallopt(-1, 2**31 - 1)
            libc.mallopt(-3, 2**31 - 1)
