"""Rows of preference pairs and of beliefs whose values are not what their columns promise."""

import copy
import math
from collections.abc import Callable, Iterator
from itertools import cycle
from typing import Any

from .case import EITHER, REFUSED, WORKS, Case, jsonl
from .fixtures import REWARD_MODEL, belief_rows, family_command, pair_rows, reward_model
from .rows import ASSISTANT, MISSING, ROW, USER

LAYOUTS: dict[str, Callable[[], list[dict[str, Any]]]] = {
    "texts": lambda: [
        {"prompt": f"What is {i}?\n", "chosen": f"It is {i}.", "rejected": f"A key {i}."} for i in range(4)
    ],
    "turns": pair_rows,
    "whole": lambda: [
        {name: [*row["prompt"], *row[name]] for name in ("chosen", "rejected")} for row in pair_rows()
    ],
    "speakers": lambda: [
        {
            name: f"\n\nHuman: What is {i}?\n\nAssistant: {word} {i}."
            for name, word in (("chosen", "It is"), ("rejected", "No"))
        }
        for i in range(4)
    ],
}
VALUES: dict[str, Any] = {
    "null": None,
    "missing": MISSING,
    "a number": 3,
    "NaN": math.nan,
    "true": True,
    "empty": "",
    "blank": " \n ",
    "strings": ["x"],
    "numbers": [1, 2],
    "a dict": {"a": 1},
    "no turns": [],
    "null turns": [None],
    "a turn without content": [{"role": "assistant"}],
    "null content": [{"role": "assistant", "content": None}],
    "empty content": [{"role": "assistant", "content": ""}],
    "no role": [{"content": "x"}],
    "a turn of the user": [USER],
    "a turn of another role": [{"role": "wizard", "content": "x"}],
    "a turn in no list": ASSISTANT,
    "JSON in a string": '[{"role": "assistant", "content": "a"}]',
}
COMMANDS = ("dpo", "reward", "score dpo", "score reward")
EXTRA: dict[str, tuple[dict[str, Any], dict[str, str]]] = {  # a column → its value, {command: expected}
    "weight": ({"weight": 0.5}, {}),
    "sample_weight": ({"sample_weight": 0.5}, {}),
    "score": ({"chosen_score": 9.0, "rejected_score": 1.0}, dict.fromkeys(COMMANDS, WORKS)),
    "label": ({"label": True}, {}),
    "completion": ({"completion": "x"}, {}),
    "messages": ({"messages": [USER, ASSISTANT]}, {}),
    "images": ({"images": ["a"]}, dict.fromkeys(COMMANDS, REFUSED)),
    "tools": ({"tools": []}, {}),
    "ref_chosen_logps": ({"ref_chosen_logps": -1.0, "ref_rejected_logps": -2.0}, {}),
    "input_ids": ({"input_ids": [1, 2]}, {}),
    "chosen_ids": ({"chosen_ids": [1, 2], "rejected_ids": [3]}, {}),
    "sample_index": ({"sample_index": 7}, dict.fromkeys(COMMANDS, WORKS)),
    "margin": (
        {"margin": 0.5},
        {"dpo": REFUSED, "score dpo": REFUSED, "reward": WORKS, "score reward": WORKS},
    ),
    "margin in words": ({"margin": "much"}, dict.fromkeys(COMMANDS, REFUSED)),
    "NaN margin": ({"margin": math.nan}, dict.fromkeys(COMMANDS, REFUSED)),
    "null margin": ({"margin": None}, dict.fromkeys(COMMANDS, REFUSED)),
    "endless margin": ({"margin": math.inf}, dict.fromkeys(COMMANDS, REFUSED)),
    "true margin": ({"margin": True}, dict.fromkeys(COMMANDS, REFUSED)),
    "flipped": ({"flipped": True}, dict.fromkeys(COMMANDS, WORKS)),
}


def cases() -> Iterator[Case]:
    """All of them."""
    yield from _values()
    yield from _whole_rows()
    yield from _extra_columns()
    yield from _beliefs()


def _case(command: str, kind: str, expected: str, rows: list[Any], *more: str, **about: Any) -> Case:
    """One command on rows that are written first."""

    def prepare() -> None:
        jsonl(rows)
        if command == "score reward":
            reward_model()

    return Case(
        f"{command}: {kind}",
        "pair rows",
        expected,
        [*family_command(command), *more],
        prepare,
        fixtures=(REWARD_MODEL,) if command == "score reward" else (),
        **about,
    )


def _changed(rows: list[dict[str, Any]], column: str, value: Any, where: str) -> list[dict[str, Any]]:
    rows = copy.deepcopy(rows)
    for row in rows[2:3] if where == "one" else rows:
        row.pop(column) if value is MISSING else row.update({column: value})
    return rows


def _values() -> Iterator[Case]:
    turn = cycle(COMMANDS)
    for layout, make in LAYOUTS.items():
        for column in [name for name in make()[0] if name != "field"]:
            for kind, value in VALUES.items():
                for where in ("one", "all"):
                    expected = REFUSED
                    if column == "prompt" and kind in (
                        *("empty", "blank", "empty content", "no turns", "missing", "null"),
                    ):
                        expected = EITHER
                    if kind in ("a turn of another role", "a number", "true", "JSON in a string"):
                        expected = EITHER
                    if column == "prompt" and kind in ("a turn of the user",) and layout == "turns":
                        expected = WORKS
                    hints = (column,) if where == "all" else (ROW, "prompt|chosen|rejected")
                    if where == "all" and kind in ("missing", "null", "NaN"):
                        hints = ()
                    rows = _changed(make(), column, value, where)
                    yield _case(next(turn), f"{layout}, {where} {column} {kind}", expected, rows, hints=hints)


def _whole_rows() -> Iterator[Case]:
    same = [{**row, "rejected": row["chosen"]} for row in pair_rows()]
    blank = [{**row, "prompt": ""} for row in LAYOUTS["texts"]()]
    long = [{**row, "prompt": "word " * 300} for row in LAYOUTS["texts"]()]
    kinds: dict[str, tuple[list[Any], dict[str, str]]] = {
        "the same answer twice": (same, dict.fromkeys(COMMANDS, REFUSED)),
        "one row, the same answer twice": (
            [*pair_rows(), same[0]],
            dict.fromkeys(COMMANDS, REFUSED),
        ),
        "empty prompts": (blank, {}),
        "one row": (pair_rows(1), dict.fromkeys(COMMANDS, WORKS)),
        "no rows": ([], dict.fromkeys(COMMANDS, REFUSED)),
        "prompts that fill max_length": (
            long,
            {"dpo": REFUSED, "reward": REFUSED, "score dpo": REFUSED, "score reward": EITHER},
        ),
        "one prompt that fills max_length": ([*LAYOUTS["texts"](), long[0]], dict.fromkeys(COMMANDS, WORKS)),
        "answers begin with the whole prompt": (
            [
                {**row, "chosen": row["prompt"] + row["chosen"], "rejected": row["prompt"] + row["rejected"]}
                for row in LAYOUTS["texts"]()
            ],
            dict.fromkeys(COMMANDS, REFUSED),
        ),
        "one pair over and over": (pair_rows(1) * 4, dict.fromkeys(COMMANDS, WORKS)),
        "an answer begins the other": (
            [{**row, "rejected": row["chosen"] + " No."} for row in LAYOUTS["texts"]()],
            dict.fromkeys(COMMANDS, WORKS),
        ),
        "questions and answers": ([{"question": "a", "answer": "b"}] * 4, dict.fromkeys(COMMANDS, REFUSED)),
        "unpaired": (
            [{"prompt": "a", "completion": "b", "label": True}] * 4,
            dict.fromkeys(COMMANDS, REFUSED),
        ),
        "two kinds of rows": ([*pair_rows(), *LAYOUTS["texts"]()], dict.fromkeys(COMMANDS, REFUSED)),
        "tokens alone": ([{"chosen_ids": [5, 6], "rejected_ids": [7]}] * 4, dict.fromkeys(COMMANDS, REFUSED)),
    }
    for kind, (rows, expected) in kinds.items():
        for command in COMMANDS:
            more = ("--max_length", "40") if "max_length" in kind else ()
            yield _case(command, kind, expected.get(command, EITHER), rows, *more)


def _extra_columns() -> Iterator[Case]:
    for kind, (more, expected) in EXTRA.items():
        for command in COMMANDS:
            rows = [{**row, **more} for row in pair_rows()]
            yield _case(command, f"beside a column {kind}", expected.get(command, EITHER), rows)
            if command != "score reward" and "margin" in kind:
                one = [pair_rows()[0], *rows[1:]]
                yield _case(command, f"all but one row with a column {kind}", REFUSED, one)


BELIEFS: dict[str, tuple[dict[str, Any], str, str]] = {  # kind → (changes of a row, expected, words)
    "as it should be": ({}, WORKS, ""),
    "p* that sums to less": ({"p_star": [0.2, 0.3, 0.1]}, REFUSED, "p_star"),
    "p* that sums to more": ({"p_star": [0.9, 0.9, 0.1]}, REFUSED, "p_star"),
    "p* in percent": ({"p_star": [50, 30, 20]}, REFUSED, "p_star"),
    "negative p*": ({"p_star": [1.2, -0.2, 0.0]}, REFUSED, "p_star"),
    "NaN in p*": ({"p_star": [0.5, math.nan, 0.5]}, REFUSED, "p_star"),
    "inf in p*": ({"p_star": [math.inf, 0.0, 0.0]}, REFUSED, "p_star"),
    "null in p*": ({"p_star": [0.5, None, 0.5]}, REFUSED, "p_star"),
    "words in p*": ({"p_star": ["0.5", "0.3", "0.2"]}, REFUSED, "p_star"),
    "true in p*": ({"p_star": [True, False, False]}, REFUSED, "p_star"),
    "p* of two": ({"p_star": [0.5, 0.5]}, REFUSED, "p_star"),
    "p* of four": ({"p_star": [0.25] * 4}, REFUSED, "p_star"),
    "p* is a number": ({"p_star": 0.5}, REFUSED, "p_star"),
    "p* is a dict": ({"p_star": {"Yes": 0.5, "No": 0.5}}, REFUSED, "p_star"),
    "no p*": ({"p_star": []}, REFUSED, "p_star"),
    "null p*": ({"p_star": None}, REFUSED, "p_star"),
    "all in one": ({"p_star": [1.0, 0.0, 0.0]}, WORKS, ""),
    "one belief": ({"beliefs": ["Yes"], "p_star": [1.0]}, REFUSED, "beliefs"),
    "no beliefs": ({"beliefs": [], "p_star": []}, REFUSED, "beliefs"),
    "null beliefs": ({"beliefs": None}, REFUSED, "beliefs"),
    "beliefs in a text": ({"beliefs": "Yes, No, Never"}, REFUSED, "beliefs"),
    "the same belief twice": ({"beliefs": ["Yes", "Yes", "No"]}, REFUSED, "beliefs"),
    "the same belief but for spaces": ({"beliefs": ["Yes", "Yes ", "No"]}, EITHER, "beliefs"),
    "an empty belief": ({"beliefs": ["Yes", "", "No"]}, REFUSED, "beliefs"),
    "a blank belief": ({"beliefs": ["Yes", " ", "No"]}, REFUSED, "beliefs"),
    "a null belief": ({"beliefs": ["Yes", None, "No"]}, REFUSED, "beliefs"),
    "numeric beliefs": ({"beliefs": [1, 2, 3]}, REFUSED, "beliefs"),
    "a belief that begins another": ({"beliefs": ["Yes", "Yes\nor", "No"]}, REFUSED, "beliefs|belief_end"),
    "an unknown belief named": ({"belief": "Perhaps"}, REFUSED, "belief"),
    "a belief that nobody holds": ({"belief": "Yes", "p_star": [0.0, 0.5, 0.5]}, REFUSED, "belief"),
    "a numeric belief named": ({"belief": 1}, REFUSED, "belief"),
    "a list for a belief": ({"belief": ["Yes"]}, REFUSED, "belief"),
    "an empty belief named": ({"belief": ""}, REFUSED, "belief"),
    "answers without a belief": ({"belief": None}, REFUSED, "belief"),
    "chosen alone": ({"rejected": None}, REFUSED, "chosen|rejected"),
    "no answers": ({"chosen": None, "rejected": None}, WORKS, ""),
    "neither belief nor answers": ({"belief": None, "chosen": None, "rejected": None}, WORKS, ""),
    "the same answer twice": (
        {key: [{"role": "assistant", "content": "the value"}] for key in ("chosen", "rejected")},
        REFUSED,
        "rejected",
    ),
    "an empty answer": ({"chosen": [{"role": "assistant", "content": ""}]}, REFUSED, "chosen"),
    "two turns for an answer": ({"chosen": [USER, ASSISTANT]}, REFUSED, "chosen"),
    "null prompt": ({"prompt": None}, REFUSED, "prompt"),
    "no turns for a prompt": ({"prompt": []}, REFUSED, "prompt"),
    "an empty turn for a prompt": ({"prompt": [{}]}, REFUSED, "prompt"),
    "null content in the prompt": ({"prompt": [{"role": "user", "content": None}]}, REFUSED, "prompt"),
    "a prompt that ends in an answer": ({"prompt": [USER, ASSISTANT]}, EITHER, "prompt"),
    "a number for a prompt": ({"prompt": 3}, REFUSED, "prompt"),
    "null group": ({"group": None}, WORKS, ""),
}


def _beliefs() -> Iterator[Case]:
    for kind, (change, expected, words) in BELIEFS.items():
        for where in ("one", "all"):
            rows = belief_rows()
            for row in rows[2:3] if where == "one" else rows:
                row.update(change)
            hints = (ROW, words) if where == "one" and words else (words,) if words else ()
            some = where == "one" and change.get("chosen", "") is None  # rows without answers beside others
            yield _case("gdpo", f"{where} {kind}", EITHER if some else expected, rows, hints=hints)
    bare = [
        {k: row[k] for k in ("beliefs", "p_star")} | {"prompt": f"About {i}? "}
        for i, row in enumerate(belief_rows())
    ]
    for kind, rows, expected, more in (
        ("texts for prompts", bare, WORKS, ()),
        ("empty texts for prompts", [{**row, "prompt": ""} for row in bare], REFUSED, ()),
        ("prompts that fill max_length", bare, REFUSED, ("--max_length", "3")),
        ("one row", belief_rows()[:1], WORKS, ()),
        ("one row over beliefs that nobody doubts", [{**bare[0], "p_star": [1.0, 0.0, 0.0]}], WORKS, ()),
        ("pairs", pair_rows(), REFUSED, ()),
        ("margins", [{**row, "margin": 0.5} for row in belief_rows()], REFUSED, ()),
        (
            "groups of null",
            [{**row, "group": None} for row in belief_rows()],
            REFUSED,
            ("--group_column", "group"),
        ),
    ):
        yield _case("gdpo", kind, expected, rows, *more)
