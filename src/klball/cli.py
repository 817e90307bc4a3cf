"""The command line: parse, call one function, print. Heavy imports wait until a command is chosen."""

import ctypes
import os
import sys
from collections.abc import Sequence
from importlib import import_module

COMMANDS = {  # name → (module with a class `Options` and a function `run`, what it does)
    "reproduce": (
        "klball.experiments.reproduce",
        "whole experiments, from nothing to figures: robustness, objectives",
    ),
    "train": ("klball.experiments.train", "one robust fine-tuning run"),
    "score": ("klball.experiments.score", "model × data → score table"),
    "solve": ("klball.experiments.solve", "score table → λ, β, effective sample size, top-weighted samples"),
    "scan": ("klball.experiments.scan", "implicit rewards, gradient shares, forgetting, entropy, diversity"),
    "paraphrase": ("klball.experiments.paraphrase", "data → rounds of rephrased prompts"),
    "compare": ("klball.experiments.compare", "models × rounds → worst cases, (λ, β), tests, verdicts"),
    "evaluate": ("klball.experiments.evaluate", "the robustness report of one or more models"),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; a bad argument or input ends with one line on stderr and exit code 2."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return
    if arguments[0] == "--version":
        from importlib.metadata import version

        print(version("klball"))
        return
    if arguments[0] not in COMMANDS:
        _fail(f"no command {arguments[0]!r}; there are {', '.join(COMMANDS)}")
    prepare_process()
    command = import_module(COMMANDS[arguments[0]][0])
    try:
        command.main(arguments[1:], prog=f"klball {arguments[0]}")
    except (ValueError, OSError) as error:
        if os.environ.get("KLBALL_TRACEBACK"):
            raise
        _fail(str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__)
    except KeyboardInterrupt:
        print("\ninterrupted; run the same command again to continue", file=sys.stderr)
        sys.exit(130)


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
    print(f"klball: error: {message}", file=sys.stderr)
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
