"""What a hostile input is, what a good answer to it is, and what went wrong with a bad one."""

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

REFUSED, WORKS, EITHER = "refused", "works", "either"
BAR = re.compile(r"\d+%\||examples/s")  # progress that a library draws
LONGEST_LINE = 600  # characters of a refusal
LONGEST_OF_LIBRARIES = 1000  # of a ValueError in Python: Transformers lists its 50 optimizers
MOST_LINES = 12  # of progress and warnings around it
PROBLEM = "problem.txt"  # what `check` found, written beside the case's folder
DATA = "d.jsonl"


def nothing() -> None:
    """No files to write."""


@dataclass(frozen=True)
class Case:
    """One input and the answer it deserves.

    `prepare` writes the input into the working folder. Then either the command line `arguments` runs or
    `call` uses the Python API, where a ValueError is a refusal. REFUSED: exit code 2 and one line that
    matches all `hints`; WORKS: exit code 0, and `check` (run in the folder) finds nothing; EITHER: one of
    the two. `fixtures` are finished folders that have to be there; `environment` is set, and `file_size`
    bytes are the most that a file may have, once the input is written.
    """

    name: str
    group: str
    expected: str
    arguments: Sequence[str] = ()
    prepare: Callable[[], Any] = nothing
    call: Callable[[], Any] | None = None
    hints: Sequence[str] = ()
    check: Callable[[], str | None] | None = None
    fixtures: Sequence[str] = ()
    environment: dict[str, str] = field(default_factory=dict)
    file_size: int | None = None


@dataclass(frozen=True)
class Answer:
    """What a case ended with; `strangers` are files that it left outside its folder."""

    code: int
    out: str
    err: str
    problem: str = ""
    strangers: Sequence[str] = ()
    seconds: float = 0.0


def verdict(case: Case, answer: Answer) -> str:  # noqa: PLR0911
    """What is wrong with an answer; empty if it is a good one."""
    if answer.problem.startswith("prepare:"):
        return answer.problem
    if answer.code < 0:
        return f"killed by signal {-answer.code}"
    if answer.strangers:
        return f"wrote outside its folder: {', '.join(answer.strangers)}"
    bars = "\x1b[A" if case.call is not None else ""  # in Python the libraries' bars move the cursor up
    if "\x1b" in (answer.out + answer.err).replace(bars, ""):
        return "an escape sequence reaches the terminal"
    if "Traceback (most recent call last)" in answer.err:
        return "traceback"
    if answer.code == 0:
        return "accepted" if case.expected == REFUSED else answer.problem
    if case.expected == WORKS:
        return f"exit code {answer.code}"
    return _refusal(case, answer)


def _refusal(case: Case, answer: Answer) -> str:  # noqa: PLR0911
    if answer.code != 2:
        return f"exit code {answer.code}"
    lines = [line for line in answer.err.splitlines() if line.strip() and not BAR.search(line)]
    ours = [line for line in lines if line.startswith("klball: error:")]
    if not ours:
        return "no line `klball: error:`"
    if len(ours) > 1 or lines[-1] != ours[0]:
        return "the error is not one last line"
    if len(lines) > MOST_LINES or any(line.startswith("usage:") for line in lines):
        return "the error drowns in other lines"
    most = LONGEST_LINE if case.call is None else LONGEST_OF_LIBRARIES
    if len(ours[0]) > most:
        return f"the line has {len(ours[0])} characters"
    if not ours[0].removeprefix("klball: error:").strip():
        return "the line says nothing"
    missing = [hint for hint in case.hints if not re.search(hint, ours[0], re.IGNORECASE)]
    return f"the line does not say {missing[0]}" if missing else ""


def fixture(name: str) -> Path:
    """A folder of `fixtures.py`, made before the first case that needs it; copy it, do not change it."""
    return Path(os.environ["HOSTILE_FIXTURES"]) / name


def jsonl(rows: Iterable[Any], name: str = DATA) -> Path:
    """Rows as JSON lines in the working folder."""
    path = Path(name)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def good_rows(count: int = 4) -> list[dict[str, Any]]:
    """Questions and answers with nothing wrong."""
    return [{"question": f"What about the number {i}?", "answer": f"It is {i}."} for i in range(count)]


def good_data() -> Path:
    """`good_rows` in a file."""
    return jsonl(good_rows())


def others() -> Iterator[str]:
    """The commands that read rows as score does, in turn and train most often: no case needs them all."""
    return cycle(("train", "evaluate", "train", "scan", "train", "paraphrase", "train", "compare"))


TRAIN = (
    *("--max_steps", "2", "--per_device_train_batch_size", "2", "--report_to", "none"),
    *("--logging_steps", "1", "--output_dir", "out"),
)
SCAN = ("--max_rows", "4", "--gradient_rows", "2", "--output_dir", "out")
TWO = ("--models", "a=klball/tiny", "b=klball/tiny")
ROUNDS = ("--rounds", "3", "--resamples", "0", "--output_dir", "out")


def command(name: str, data: str = DATA) -> list[str]:
    """The least that a command does with a data file."""
    named = ["--dataset_name", data]
    small = ["--epsilons", "0.05", "--points", "1", "--lora_r", "2", "--num_train_epochs", "0.5"]
    return {
        "score": ["score", *named, "--output_dir", "out"],
        "train": ["train", *named, *TRAIN],
        "solve": ["solve", "--scores", data],
        "evaluate": ["evaluate", "--models", "klball/tiny", "--datasets", data, "--output_dir", "out"],
        "scan": ["scan", *named, *SCAN],
        "paraphrase": ["paraphrase", *named, "--rounds", "2", "--output_dir", "out"],
        "compare": ["compare", *TWO, *named, *ROUNDS],
        "tune": ["tune", *named, "--epsilons", "0.1", *TRAIN],
        "reproduce": ["reproduce", *named, "--ood_name", data, *small, "--output_dir", "out"],
    }[name]
