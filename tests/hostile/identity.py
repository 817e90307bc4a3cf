"""Ids that repeat, are missing or odd, and rows that are tokenised already."""

from collections.abc import Iterator
from typing import Any

from .case import EITHER, REFUSED, WORKS, Case, command, good_rows, jsonl
from .rows import ROW

IDS: dict[str, tuple[list[Any], str]] = {
    "strings": (["a", "b", "c", "d"], WORKS),
    "numbers": ([1, 2, 3, 4], WORKS),
    "large numbers": ([2**62, 2**62 + 1, 2**62 + 2, 2**62 + 3], WORKS),
    "numbers with a gap": ([1, None, 3, 4], EITHER),
    "nulls": ([None] * 4, EITHER),
    "twice": (["a", "a", "b", "c"], EITHER),
    "all the same": (["a"] * 4, EITHER),
    "empty": (["", "b", "c", "d"], EITHER),
    "mixed kinds": ([1, "1", 2, "b"], EITHER),
    "floats": ([1.0, 2.5, 3.0, 4.0], EITHER),
    "bools": ([True, False, True, False], EITHER),
    "lists": ([["a"], ["b"], ["c"], ["d"]], EITHER),
    "dicts": ([{"k": i} for i in range(4)], EITHER),
    "paths": (["../../a", "/etc/passwd", "a/b", ".."], WORKS),
    "brackets": (["[/b]", "[red]", "[[", "[/]"], WORKS),
    "escapes": (["\x1b[2J", "\x1b]0;x\x07", "\x07", "\r"], WORKS),
    "line ends": (["a\nb", "a\r\nb", "\n", "\t"], WORKS),
    "very long": ([c * 3000 for c in "abcd"], WORKS),
    "not normalised": (["\u00e9", "e\u0301", "\ufb01", "fi"], WORKS),
    "dates": ([f"2020-01-0{i}" for i in range(1, 5)], WORKS),
    "leading zeros": (["0042", "042", "42", "1e3"], WORKS),
}


def cases() -> Iterator[Case]:
    """All of them."""
    for kind, (ids, expected) in IDS.items():
        for column in ("id", "sample_id"):
            rows = [{column: i, **row} for i, row in zip(ids, good_rows(), strict=True)]
            for name in ("score", "train") if column == "id" else ("score",):
                known = expected == WORKS and all(isinstance(i, str | int) for i in ids) and name == "score"
                yield Case(
                    f"{name}: {column} {kind}",
                    "row ids",
                    expected,
                    command(name),
                    lambda rows=rows: jsonl(rows),
                    hints=(f"{column}|ids?\\b|twice|repeat|{ROW}",),
                    check=(lambda ids=ids: _kept(ids)) if known else None,
                )
    yield from _tokens()


def _kept(ids: list[Any]) -> str | None:
    """The ids in the score table are those of the data, letter for letter."""
    import pyarrow.parquet as pq

    found = pq.read_table("out/scores.parquet")["sample_id"].to_pylist()
    wanted = [str(i) for i in ids]
    return None if found == wanted else f"ids became {found!r:.200}"


TOKENS: dict[str, tuple[dict[str, Any], str]] = {  # name → (columns of one row, expected)
    "good": ({"input_ids": [5, 6, 7, 8]}, WORKS),
    "with labels": ({"input_ids": [5, 6, 7, 8], "labels": [-100, -100, 7, 8]}, WORKS),
    "with a mask": ({"input_ids": [5, 6, 7, 8], "completion_mask": [0, 0, 1, 1]}, WORKS),
    "with attention_mask": ({"input_ids": [5, 6, 7, 8], "attention_mask": [1, 1, 1, 1]}, EITHER),
    "above the vocabulary": ({"input_ids": [5, 6, 10**6, 8]}, REFUSED),
    "just above the vocabulary": ({"input_ids": [5, 6, 4096, 8]}, REFUSED),
    "beyond 64 bits": ({"input_ids": [5, 2**63 - 1]}, REFUSED),
    "negative": ({"input_ids": [5, -1, 7, 8]}, REFUSED),
    "floats": ({"input_ids": [5.5, 6.0, 7.0]}, REFUSED),
    "strings": ({"input_ids": ["5", "6"]}, REFUSED),
    "a string": ({"input_ids": "5 6 7"}, REFUSED),
    "a number": ({"input_ids": 5}, REFUSED),
    "null": ({"input_ids": None}, REFUSED),
    "nulls": ({"input_ids": [5, None, 7]}, REFUSED),
    "nested": ({"input_ids": [[5, 6], [7]]}, REFUSED),
    "bools": ({"input_ids": [True, False]}, REFUSED),
    "empty": ({"input_ids": []}, REFUSED),
    "one token": ({"input_ids": [5]}, EITHER),
    "labels too short": ({"input_ids": [5, 6, 7, 8], "labels": [7, 8]}, REFUSED),
    "labels too long": ({"input_ids": [5, 6], "labels": [5, 6, 7]}, REFUSED),
    "labels out of range": ({"input_ids": [5, 6, 7], "labels": [-100, 6, 10**6]}, REFUSED),
    "negative labels": ({"input_ids": [5, 6, 7], "labels": [-100, -5, 7]}, REFUSED),
    "other labels": ({"input_ids": [5, 6, 7], "labels": [-100, 9, 9]}, EITHER),
    "null labels": ({"input_ids": [5, 6, 7], "labels": None}, REFUSED),
    "no label": ({"input_ids": [5, 6, 7], "labels": [-100, -100, -100]}, EITHER),
    "mask too short": ({"input_ids": [5, 6, 7], "completion_mask": [1]}, REFUSED),
    "mask of others": ({"input_ids": [5, 6, 7], "completion_mask": [0, 2, "x"]}, REFUSED),
    "labels only": ({"labels": [5, 6, 7]}, REFUSED),
}


def _tokens() -> Iterator[Case]:
    for kind, (row, expected) in TOKENS.items():
        good = dict.fromkeys(row, TOKENS["good"][0]["input_ids"])
        if "completion_mask" in row:
            good["completion_mask"] = [0, 0, 1, 1]
        for where in ("one", "all"):
            rows: list[dict[str, Any]] = [dict(good), dict(good), dict(row), dict(good)]
            rows = rows if where == "one" else [dict(row)] * 4
            wanted = REFUSED if where == "all" and kind in ("no label", "one token") else expected
            hints = () if kind == "labels only" else (f"{ROW}|answer token",)
            for name in ("score", "train") if where == "one" else ("score",):
                yield Case(
                    f"{name}: {where} tokens {kind}",
                    "row tokens",
                    wanted,
                    command(name),
                    lambda rows=rows: jsonl(rows),
                    hints=hints,
                )
    for name in ("evaluate", "scan", "compare", "paraphrase"):
        for kind, where in (("good", EITHER), ("above the vocabulary", REFUSED), ("negative", REFUSED)):
            rows = [TOKENS["good"][0], TOKENS["good"][0], TOKENS[kind][0], TOKENS["good"][0]]
            yield Case(f"{name}: tokens {kind}", "row tokens", where, command(name), lambda r=rows: jsonl(r))
