"""Rows to answer, and tables of pairs that nobody of ours wrote."""

from collections.abc import Iterator
from typing import Any

from .case import DATA, EITHER, REFUSED, WORKS, Case, good_data, good_rows, jsonl
from .families import family_case


def cases() -> Iterator[Case]:
    """All of them."""
    yield from _prompts()
    yield from _tables()


def _prompts() -> Iterator[Case]:
    """Rows of reinforcement learning."""
    turn = {"role": "user", "content": "What is 3?"}
    kinds: dict[str, tuple[list[Any], str]] = {
        "one row": (good_rows(1), WORKS),
        "no rows": ([], REFUSED),
        "empty questions": ([{**row, "question": ""} for row in good_rows()], EITHER),
        "null questions": ([{**row, "question": None} for row in good_rows()], REFUSED),
        "null answers": ([{**row, "answer": None} for row in good_rows()], REFUSED),
        "empty answers": ([{**row, "answer": ""} for row in good_rows()], REFUSED),
        "blank answers": ([{**row, "answer": " "} for row in good_rows()], REFUSED),
        "one answer missing": ([*good_rows(3), {"question": "What?", "answer": None}], REFUSED),
        "numbers for answers": ([{**row, "answer": 3} for row in good_rows()], WORKS),
        "lists for answers": ([{"prompt": [turn], "answer": ["3"]}] * 4, REFUSED),
        "prompts alone": ([{"prompt": [turn]}] * 4, REFUSED),
        "prompts of nothing": ([{"prompt": [], "answer": "3"}] * 4, REFUSED),
        "null prompts": ([{"prompt": None, "answer": "3"}] * 4, REFUSED),
        "prompts of strings": ([{"prompt": ["a"], "answer": "3"}] * 4, REFUSED),
        "prompts of null": ([{"prompt": [None], "answer": "3"}] * 4, REFUSED),
        "turns without content": ([{"prompt": [{"role": "user"}], "answer": "3"}] * 4, REFUSED),
        "turns of nobody": ([{"prompt": [{"content": "x"}], "answer": "3"}] * 4, REFUSED),
        "a wizard's turns": ([{"prompt": [{"role": "wizard", "content": "x"}], "answer": "3"}] * 4, REFUSED),
        "prompts that end in an answer": (
            [{"prompt": [turn, {"role": "assistant", "content": "3"}], "answer": "3"}] * 4,
            REFUSED,
        ),
        "numbers for prompts": ([{"prompt": 3, "answer": "3"}] * 4, EITHER),
        "two kinds of prompts": (
            [{"prompt": [turn], "answer": "3"}, {"prompt": "a", "answer": "3"}],
            REFUSED,
        ),
        "texts": ([{"text": "A story."}] * 4, REFUSED),
        **{
            f"a column {name}": ([{**row, name: "x"} for row in good_rows()], REFUSED)
            for name in ("completion_finished", "completions", "prompts", "completion_ids", "trainer_state")
        },
        "a column sample_index": ([{**row, "sample_index": 3} for row in good_rows()], WORKS),
        "a column environment": ([{**row, "environment": "x"} for row in good_rows()], EITHER),
        "a column image": ([{**row, "image": "x"} for row in good_rows()], EITHER),
        "a column tools": ([{**row, "tools": "[]"} for row in good_rows()], EITHER),
        "one prompt over and over": ([{"prompt": [turn], "answer": "3"}] * 4, WORKS),
    }
    for title, (rows, expected) in kinds.items():
        alone = ("--per_device_train_batch_size", "2") if len(rows) == 1 else ()  # one prompt a batch
        yield family_case("grpo", title, expected, alone, rows=rows)
        arguments = ["evaluate", "--generate", "true", "--reward", "exact", "--datasets", DATA]
        yield Case(
            f"evaluate --generate: {title}",
            "families",
            expected,
            [*arguments, "--max_new_tokens", "2", "--output_dir", "out"],
            lambda rows=rows: jsonl(rows),
        )
    options: dict[str, tuple[tuple[str, ...], str]] = {
        "no reward": (("--reward", ""), REFUSED),
        "two rewards": (("--reward_model", "klball/tiny"), REFUSED),
        "pass@k without samples": (("--pass_at", "2"), REFUSED),
        "pass@k beyond the samples": (("--samples", "2", "--pass_at", "4"), REFUSED),
        "samples": (("--samples", "2", "--pass_at", "1", "2"), WORKS),
        "no tokens": (("--max_new_tokens", "0"), REFUSED),
        "more tokens than there is room": (("--max_new_tokens", "100000"), REFUSED),
        "an unknown column of groups": (("--group_column", "wow"), REFUSED),
        "a reference": (("--reference", "x"), REFUSED),
        "a negative seed": (("--answer_seed=-1",), REFUSED),
    }
    for title, (more, expected) in options.items():
        arguments = ["evaluate", "--generate", "true", "--datasets", DATA, "--output_dir", "out"]
        reward = [] if "--reward" in more else ["--reward", "exact"]
        short = [] if "--max_new_tokens" in more else ["--max_new_tokens", "2"]
        yield Case(
            *(f"evaluate --generate: {title}", "families", expected),
            arguments=[*arguments, *reward, *short, *more],
            prepare=good_data,
        )


PAIR_TABLE: dict[str, Any] = {
    "sample_id": list("abcd"),
    "loss": [0.5, 0.7, 0.9, 1.1],
    "margin": [0.4, 0.1, -0.3, -0.6],
    "accuracy": [True, True, False, False],
    "group": [None] * 4,
    "truncated": [False] * 4,
}


def _tables() -> Iterator[Case]:
    """Pair tables that nobody of ours wrote."""
    nan = float("nan")
    kinds: dict[str, tuple[dict[str, Any], str]] = {
        "as they should be": ({}, WORKS),
        "a loss of NaN": ({"loss": [0.5, nan, 0.9, 1.1]}, REFUSED),
        "an endless loss": ({"loss": [0.5, float("inf"), 0.9, 1.1]}, REFUSED),
        "a loss that is missing": ({"loss": [0.5, None, 0.9, 1.1]}, EITHER),
        "no loss at all": ({"loss": [None] * 4}, REFUSED),
        "losses in words": ({"loss": list("abcd")}, REFUSED),
        "whole losses": ({"loss": [1, 2, 3, 4]}, WORKS),
        "a margin of NaN": ({"margin": [0.4, nan, -0.3, -0.6]}, REFUSED),
        "a margin that is missing": ({"margin": [0.4, None, -0.3, -0.6]}, REFUSED),
        "margins in words": ({"margin": list("abcd")}, REFUSED),
        "numbers for ids": ({"sample_id": [1, 2, 3, 4]}, EITHER),
        "the same id twice": ({"sample_id": list("abca")}, EITHER),
        "a null id": ({"sample_id": ["a", None, "c", "d"]}, EITHER),
        "groups of numbers": ({"group": [1, 2, 1, 2]}, EITHER),
        "no rows": ({name: [] for name in PAIR_TABLE}, REFUSED),
        "one row": ({name: values[:1] for name, values in PAIR_TABLE.items()}, WORKS),
        "no column group": ({"group": None}, REFUSED),
        "no column margin": ({"margin": None}, REFUSED),
    }
    for title, (change, expected) in kinds.items():
        columns = {k: v for k, v in {**PAIR_TABLE, **change}.items() if v is not None}

        def write(columns: dict[str, Any] = columns) -> None:
            import pyarrow as pa
            import pyarrow.parquet as pq

            pq.write_table(pa.table(columns), "p.parquet")

        of_solve = WORKS if title == "the same id twice" and expected == WORKS else expected
        yield Case(
            *(f"solve: pairs, {title}", "families", of_solve),
            arguments=["solve", "--scores", "p.parquet"],
            prepare=write,
        )
        yield Case(
            *(f"evaluate: pairs, {title}", "families", expected),
            arguments=["evaluate", "--pair_scores", "p.parquet", "--output_dir", "out"],
            prepare=write,
        )
    for title, more in (
        ("not there", ["nowhere.parquet"]),
        ("a folder", ["."]),
        ("the same twice", ["a=p.parquet", "a=p.parquet"]),
        ("an unknown reference", ["p.parquet", "--reference", "x"]),
        ("beside models", ["p.parquet", "--models", "klball/tiny"]),
        ("with a reward", ["p.parquet", "--reward", "exact"]),
    ):
        yield Case(
            *(f"evaluate: pairs, {title}", "families", REFUSED),
            arguments=["evaluate", "--pair_scores", *more, "--output_dir", "out"],
            prepare=write,
        )
