"""`klball tune`: radii, caps, shares, rows and folders that nothing can be tuned with."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .case import REFUSED, WORKS, Case, command, fixture, good_rows, jsonl
from .flags import _without
from .models import fill, weights

NUMBERS = {  # option → values that are refused
    "--epsilons": ("-0.1", "nan", "inf", "many", "0", ""),
    "--caps": ("0", "-1", "0.5", "nan", "inf", "two"),
    "--max_cost": ("-0.01", "nan", "inf", "cheap"),
    "--eval_fraction": ("0", "1", "-0.2", "1.5", "nan", "a fifth", "0.01"),
    "--test_fraction": ("0", "1", "-0.2", "1.5", "nan", "0.01"),
}
GROUPED = [{**row, "kind": "ab"[i % 2]} for i, row in enumerate(good_rows(12))]


def cases() -> Iterator[Case]:
    """All of them."""
    for option, values in NUMBERS.items():
        for value in values:
            yield _case(f"{option} {value!r}", [option, value], hints=(option,))
    for title, arguments, hints in (
        ("a radius twice", ["--epsilons", "0.1", "0.10"], ("twice",)),
        ("a cap twice", ["--caps", "2", "2.0"], ("twice",)),
        ("a radius of training", ["--epsilon", "0.1"], ("--epsilons",)),
        ("shares that leave nothing", ["--eval_fraction", "0.5", "--test_fraction", "0.5"], ("no row",)),
        ("learning rate NaN", ["--learning_rate", "nan"], ("learning_rate",)),
        ("static weights that warm up", ["--reweight", "static", "--epsilon_warmup", "0.1"], ("static",)),
        ("on_infeasible alone", ["--on_infeasible", "raise"], ("gamma",)),
        ("no such LoRA module", ["--use_peft", "--lora_target_modules", "nothere"], ("nothere",)),
        ("no such model", ["--model_name_or_path", "nowhere"], ("nowhere",)),
        ("halving maybe", ["--halving", "maybe"], ("halving",)),
        ("no column of groups", ["--group_column", "kind"], ("train on", "kind")),
        ("max_length 1", ["--max_length", "1"], ("answer",)),
    ):
        yield _case(title, arguments, hints=hints)
    yield from _rows()
    yield from _folders()
    sick = _with(weights(fill(float("nan"))))
    yield _case("weights of NaN", ["--model_name_or_path", "m"], sick, ("base: .*NaN",))
    yield _case("a loss of NaN", ["--learning_rate", "1e30"], hints=("eps-0", "finite"))
    yield _case("as it should be", ["--halving", "false"], expected=WORKS)


def _rows() -> Iterator[Case]:
    """Rows to choose by that cannot."""
    for title, write, hints in (
        ("no file", lambda: None, ("--eval_dataset", "e.jsonl")),
        ("an empty file", lambda: jsonl([], "e.jsonl"), ("--eval_dataset", "e.jsonl")),
        ("no answers", lambda: jsonl([{"question": "What?"}], "e.jsonl"), ("--eval_dataset", "columns")),
        (
            "an answer of null",
            lambda: jsonl([{"question": "What?", "answer": None}], "e.jsonl"),
            ("--eval_dataset", "row 1"),
        ),
        ("those trained on", lambda: jsonl(good_rows(12), "e.jsonl"), ("also trained on",)),
    ):
        yield _case(f"rows to choose by: {title}", ["--eval_dataset", "e.jsonl"], _with(write), hints)
    grouped = ["--eval_dataset", "e.jsonl", "--group_column", "kind"]
    for title, rows, hints in (
        ("without the groups", good_rows(30)[12:], ("choose by", "kind")),
        ("of one group", [{**GROUPED[0], "question": f"Why {i}?"} for i in range(12)], ("choose by", "one")),
        ("with a group of null", [{**GROUPED[0], "question": "Why?", "kind": None}], ("choose by", "row 1")),
        ("with few of each group", [{**row, "question": "Why?"} for row in GROUPED[:4]], ("10 held-out",)),
    ):
        write = _with(lambda rows=rows: jsonl(rows, "e.jsonl"), GROUPED)
        yield _case(f"rows to choose by: {title}", grouped, write, hints)


def _folders() -> Iterator[Case]:
    """Output folders that hold something else."""
    for name in ("run-lora", "evaluate", "scan"):
        yield _case(
            f"into a folder of {name}",
            [],
            _with(lambda name=name: shutil.copytree(fixture(name) / "out", "out")),
            ("holds the results of",),
            fixtures=(name,),
        )
    yield _case("into a file", [], _with(lambda: Path("out").write_text("mine")), ("out is a file",))


def _case(
    title: str,
    arguments: list[str],
    prepare: Callable[[], Any] | None = None,
    hints: tuple[str, ...] = (),
    expected: str = REFUSED,
    fixtures: tuple[str, ...] = (),
) -> Case:
    words = _without(command("tune"), "--epsilons") if "--epsilons" in arguments else command("tune")
    words = [*words, *arguments]
    return Case(
        f"tune: {title}", "tuning", expected, words, prepare or _with(), hints=hints, fixtures=fixtures
    )


def _with(write: Callable[[], Any] | None = None, rows: Any = None) -> Callable[[], None]:
    """Twelve good rows, and what a case writes besides."""

    def prepare() -> None:
        if write is not None:
            write()
        jsonl(good_rows(12) if rows is None else rows)

    return prepare
