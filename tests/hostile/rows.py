"""Rows whose values are not what their column promises: every layout × column × kind of value × command."""

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

from .case import EITHER, REFUSED, WORKS, Case, command, jsonl, others

ROW = r"\brows?\b|\bline\b"
LAYOUTS: dict[str, dict[str, Any]] = {
    "question": {"question": "What is {i}?", "answer": "It is {i}."},
    "instruction": {"instruction": "Say {i}.", "input": "In words.", "output": "Number {i}."},
    "prompt": {"prompt": "Count to {i}: ", "completion": "one, two, {i}"},
    "text": {"text": "A story about the number {i}."},
}
MISSING = object()
VALUES: dict[str, Any] = {
    "null": None,
    "missing": MISSING,
    "int": 0,
    "float": 2.5,
    "true": True,
    "strings": ["x"],
    "numbers": [1, 2],
    "dict": {"a": 1},
    "turns": [{"role": "user", "content": "x"}],
    "nan": math.nan,
    "empty": "",
}
NUMBERS, UNCLEAR = ("int", "float"), ("true", "empty")
USER, ASSISTANT = {"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Good day."}


def cases() -> Iterator[Case]:
    """All of them."""
    turn = others()
    for layout, columns in LAYOUTS.items():
        for column in columns:
            for kind in VALUES:
                yield from _plain(layout, column, kind, turn)
    for make in (_chats, _pairs, _conversations, _extra_columns):
        yield from make(turn)


def _rows(layout: str, count: int = 4) -> list[dict[str, Any]]:
    return [{c: text.format(i=i) for c, text in LAYOUTS[layout].items()} for i in range(count)]


def _plain(layout: str, column: str, kind: str, turn: Iterator[str]) -> Iterator[Case]:
    value = VALUES[kind]
    expected = REFUSED
    if column == "input" and kind in ("null", "missing", "nan"):
        expected = WORKS  # most rows of such data have no input
    elif kind in NUMBERS or kind in UNCLEAR:  # a whole column of numbers is written as it was written
        expected = EITHER
    for where in ("one", "all"):
        rows = _rows(layout)
        for row in rows[2:3] if where == "one" else rows:
            row.pop(column) if value is MISSING else row.update({column: value})
        absent = where == "all" and kind == "missing" and layout != "instruction"
        numbers = where == "all" and kind in NUMBERS and layout in ("question", "instruction")
        hints = (column,) if where == "all" and kind == "missing" else (ROW, column)
        wanted = WORKS if numbers else expected
        if layout == "prompt" and kind == "turns":
            hints = (ROW,)
        if kind == "empty" or (layout == "text" and absent):
            hints = ()
        other = next(turn)
        if layout == "text" and other in ("paraphrase", "compare"):
            other = "train"  # text rows have no prompt to rephrase
        for name in ("score", other):
            title = f"{name}: {where} {column} {kind}"
            yield Case(title, "row values", wanted, command(name), _writes(rows), hints=hints)


def _writes(rows: list[Any]) -> Callable[[], Any]:
    return lambda: jsonl(rows)


MESSAGES: dict[str, tuple[Any, str]] = {  # name → (the value of `messages` in one row, expected)
    "null": (None, REFUSED),
    "missing": (MISSING, REFUSED),
    "string": ("Hello?", REFUSED),
    "number": (3, REFUSED),
    "empty list": ([], REFUSED),
    "dict": ({}, REFUSED),
    "a turn without a list": (USER, REFUSED),
    "JSON in a string": ('[{"role": "user", "content": "a"}]', EITHER),
    "strings": (["Hello?", "Good day."], REFUSED),
    "nulls": ([None, None], REFUSED),
    "numbers": ([1, 2], REFUSED),
    "nested": ([[USER, ASSISTANT]], REFUSED),
    "an empty turn": ([USER, {}], REFUSED),
    "no role": ([USER, {"content": "x"}], REFUSED),
    "null role": ([USER, {"role": None, "content": "x"}], REFUSED),
    "numeric role": ([USER, {"role": 1, "content": "x"}], REFUSED),
    "unknown role": ([USER, {"role": "wizard", "content": "x"}], EITHER),
    "empty role": ([USER, {"role": "", "content": "x"}], REFUSED),
    "capital role": ([USER, {"role": "Assistant", "content": "x"}], EITHER),
    "no content": ([USER, {"role": "assistant"}], REFUSED),
    "null content": ([USER, {"role": "assistant", "content": None}], REFUSED),
    "null question": ([{"role": "user", "content": None}, ASSISTANT], REFUSED),
    "numeric content": ([USER, {"role": "assistant", "content": 5}], EITHER),
    "true content": ([USER, {"role": "assistant", "content": True}], EITHER),
    "list content": ([USER, {"role": "assistant", "content": ["a"]}], REFUSED),
    "dict content": ([USER, {"role": "assistant", "content": {"text": "a"}}], REFUSED),
    "empty content": ([USER, {"role": "assistant", "content": ""}], EITHER),
    "text parts": ([USER, {"role": "assistant", "content": [{"type": "text", "text": "a"}]}], EITHER),
    "image part": (
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, ASSISTANT],
        REFUSED,
    ),
    "no answer": ([USER], EITHER),
    "system only": ([{"role": "system", "content": "Be kind."}], EITHER),
    "answer first": ([ASSISTANT, USER, ASSISTANT], EITHER),
    "two users": ([USER, USER, ASSISTANT], EITHER),
    "two answers": ([USER, ASSISTANT, ASSISTANT], EITHER),
    "late system": ([USER, {"role": "system", "content": "Be kind."}, ASSISTANT], EITHER),
    "tool result": ([USER, ASSISTANT, {"role": "tool", "content": "4"}, ASSISTANT], EITHER),
    "empty tool calls": ([USER, {**ASSISTANT, "tool_calls": []}], EITHER),
    "junk tool calls": ([USER, {**ASSISTANT, "tool_calls": "call me"}], EITHER),
    "more keys": ([USER, {**ASSISTANT, "name": "bot", "weight": 1}], EITHER),
}
UNANSWERED = ("no answer", "system only", "unknown role", "capital role")  # no turn to train on
HURT = ("null", "no role", "null content", "list content", "text parts", "empty list")


def _chats(turn: Iterator[str]) -> Iterator[Case]:
    good = [{"messages": [USER, {**ASSISTANT, "content": f"Day {i}."}]} for i in range(4)]
    for kind, (value, expected) in MESSAGES.items():
        for where in ("one", "all"):
            rows = copy.deepcopy(good)
            for row in rows[2:3] if where == "one" else rows:
                row.pop("messages") if value is MISSING else row.update(messages=value)
            wanted = REFUSED if where == "all" and kind in UNANSWERED else expected
            hints = () if where == "all" and kind in ("missing", *UNANSWERED) else (ROW,)
            names = ["score", next(turn)]
            if kind in HURT and where == "one":
                names = ["score", "train", "evaluate", "scan", "paraphrase", "compare"]
            for name in names if where == "one" else ["score"]:
                title = f"{name}: {where} messages {kind}"
                yield Case(title, "row messages", wanted, command(name), _writes(rows), hints=hints)


PAIRS: dict[str, tuple[Any, Any, str]] = {  # name → (prompt, completion, expected)
    "chat and string": ([USER], "Good day.", REFUSED),
    "string and chat": ("Hello?", [ASSISTANT], REFUSED),
    "no turns, answer": ([], [ASSISTANT], EITHER),
    "turns, no answer": ([USER], [], REFUSED),
    "no turns at all": ([], [], REFUSED),
    "answer by the user": ([USER], [USER], EITHER),
    "null prompt": (None, [ASSISTANT], REFUSED),
    "null completion": ([USER], None, REFUSED),
    "completion is a turn": ([USER], ASSISTANT, REFUSED),
    "prompt is a turn": (USER, [ASSISTANT], REFUSED),
    "completion of strings": ([USER], ["Good day."], REFUSED),
    "prompt of strings": (["Hello?"], [ASSISTANT], REFUSED),
    "null turn": ([USER], [None], REFUSED),
    "no role": ([USER], [{"content": "x"}], REFUSED),
    "no content": ([USER], [{"role": "assistant"}], REFUSED),
    "null content": ([USER], [{"role": "assistant", "content": None}], REFUSED),
    "null question": ([{"role": "user", "content": None}], [ASSISTANT], REFUSED),
    "list content": ([USER], [{"role": "assistant", "content": ["x"]}], REFUSED),
    "unknown role": ([{"role": "wizard", "content": "x"}], [ASSISTANT], EITHER),
    "prompt ends in an answer": ([USER, ASSISTANT], [ASSISTANT], EITHER),
}


def _pairs(turn: Iterator[str]) -> Iterator[Case]:
    for kind, (prompt, completion, expected) in PAIRS.items():
        for where in ("one", "all"):
            rows = [{"prompt": [USER], "completion": [ASSISTANT]} for _ in range(4)]
            for row in rows[2:3] if where == "one" else rows:
                row.update(prompt=prompt, completion=completion)
            for name in ("score", next(turn)) if where == "one" else ("score",):
                title = f"{name}: {where} pair {kind}"
                yield Case(title, "row messages", expected, command(name), _writes(rows), hints=(ROW,))


def _conversations(turn: Iterator[str]) -> Iterator[Case]:
    """ShareGPT's `conversations`, which stand for messages."""
    human, bot = {"from": "human", "value": "Hello?"}, {"from": "gpt", "value": "Good day."}
    kinds: dict[str, tuple[Any, str]] = {
        "as it should be": ([human, bot], WORKS),
        "with a system turn": ([{"from": "system", "value": "Be kind."}, human, bot], WORKS),
        "null": (None, REFUSED),
        "empty": ([], REFUSED),
        "string": ("Hello?", REFUSED),
        "no from": ([human, {"value": "x"}], REFUSED),
        "null value": ([human, {"from": "gpt", "value": None}], REFUSED),
        "list value": ([human, {"from": "gpt", "value": ["x"]}], REFUSED),
        "unknown from": ([human, {"from": "wizard", "value": "x"}], REFUSED),
        "keys of messages": ([USER, ASSISTANT], EITHER),
    }
    for kind, (value, expected) in kinds.items():
        rows = [{"conversations": [human, bot]} for _ in range(4)]
        rows[2] = {"conversations": value}
        for name in ("score", "train", "paraphrase"):
            title = f"{name}: conversations {kind}"
            yield Case(title, "row messages", expected, command(name), _writes(rows), hints=(ROW,))


TOOL = {"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": {}}}


def _extra_columns(turn: Iterator[str]) -> Iterator[Case]:
    """Columns beside the messages, and columns that are of no known layout."""
    turns = {"messages": [USER, ASSISTANT]}
    pair = {"question": "What is it?", "answer": "It is that."}
    rows: dict[str, tuple[dict[str, Any], str]] = {
        "tools": ({**turns, "tools": [TOOL]}, WORKS),
        "null tools": ({**turns, "tools": None}, WORKS),
        "no tools": ({**turns, "tools": []}, WORKS),
        "tools in a string": ({**turns, "tools": "[]"}, EITHER),
        "numeric tools": ({**turns, "tools": 3}, REFUSED),
        "tools of strings": ({**turns, "tools": ["add"]}, EITHER),
        "template settings": ({**turns, "chat_template_kwargs": {"enable_thinking": False}}, WORKS),
        "null template settings": ({**turns, "chat_template_kwargs": None}, WORKS),
        "template settings in a string": ({**turns, "chat_template_kwargs": "thinking"}, REFUSED),
        "template settings in a list": ({**turns, "chat_template_kwargs": [1]}, REFUSED),
        "images": ({**turns, "images": ["a.png"]}, REFUSED),
        "image": ({**pair, "image": "a.png"}, EITHER),
        "system column": ({**pair, "system": "Be kind."}, EITHER),
        "history column": ({**pair, "history": [["a", "b"]]}, EITHER),
        "other columns": ({**pair, "source": "web", "score": 3}, WORKS),
        "messages and text": ({**turns, "text": "Hello"}, EITHER),
        "only a question": ({"question": "What?"}, REFUSED),
        "only an answer": ({"answer": "That."}, REFUSED),
        "unknown columns": ({"foo": "a", "bar": "b"}, REFUSED),
        "capital columns": ({"Question": "a", "Answer": "b"}, REFUSED),
        "columns with blanks": ({" question": "a", "answer ": "b"}, REFUSED),
        "an empty column name": ({**pair, "": "x"}, EITHER),
        "a column named sample_index": ({**pair, "sample_index": 7}, EITHER),
        "a column named labels": ({**pair, "labels": "x"}, EITHER),
        "a column named input_ids": ({**pair, "input_ids": "x"}, EITHER),
        "preference rows": ({"prompt": "a", "chosen": "b", "rejected": "c"}, REFUSED),
        "nested rows": ({"row": pair}, REFUSED),
        "no columns": ({}, REFUSED),
    }
    for kind, (row, expected) in rows.items():
        for name in ("score", next(turn)):
            wanted = EITHER if name == "paraphrase" and expected == WORKS else expected
            yield Case(f"{name}: {kind}", "row columns", wanted, command(name), _writes([dict(row)] * 4))
