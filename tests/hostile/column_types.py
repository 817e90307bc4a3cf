"""Parquet columns of every Arrow type where a text, a chat or an id should be."""

from collections.abc import Iterator
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any

from .case import EITHER, REFUSED, WORKS, Case, command, good_rows


def _columns() -> dict[str, tuple[Any, str]]:
    """Kind → (an array of four values, expected as an answer)."""
    import pyarrow as pa

    text = pa.array([f"It is {i}." for i in range(4)])
    return {
        "string": (text, WORKS),
        "large string": (text.cast(pa.large_string()), WORKS),
        "string view": (text.cast(pa.string_view()), EITHER),
        "dictionary": (text.dictionary_encode(), WORKS),
        "int8": (pa.array([0, 1, 2, 3], pa.int8()), WORKS),
        "int64": (pa.array([0, 1, 2, 3]), WORKS),
        "uint64": (pa.array([0, 1, 2, 2**64 - 1], pa.uint64()), WORKS),
        "float32": (pa.array([0.5, 1, 2, 3], pa.float32()), EITHER),
        "float64": (pa.array([0.5, 1, 2, 3]), EITHER),
        "float64 with NaN": (pa.array([0.5, float("nan"), 2, 3]), REFUSED),
        "float64 with inf": (pa.array([0.5, float("inf"), 2, 3]), EITHER),
        "bool": (pa.array([True, False, True, False]), EITHER),
        "null": (pa.nulls(4), REFUSED),
        "string with null": (pa.array(["a", None, "c", "d"]), REFUSED),
        "binary": (pa.array([b"a", b"\xff", b"c", b"d"]), REFUSED),
        "large binary": (pa.array([b"a", b"b", b"c", b"d"], pa.large_binary()), REFUSED),
        "fixed binary": (pa.array([b"ab"] * 4, pa.binary(2)), REFUSED),
        "decimal": (pa.array([Decimal("1.10")] * 4), EITHER),
        "date": (pa.array([date(2020, 1, 1)] * 4), EITHER),
        "timestamp": (pa.array([datetime(2020, 1, 1)] * 4), EITHER),
        "duration": (pa.array([timedelta(1)] * 4), EITHER),
        "list of strings": (pa.array([["a"], ["b"], [], ["d"]]), REFUSED),
        "list of numbers": (pa.array([[1], [2], [3], [4]]), REFUSED),
        "fixed list": (pa.array([[1, 2]] * 4, pa.list_(pa.int64(), 2)), REFUSED),
        "struct": (pa.array([{"a": 1}] * 4), REFUSED),
        "map": (pa.array([[("a", 1)]] * 4, pa.map_(pa.string(), pa.int64())), REFUSED),
    }


KINDS = (  # the names of `_columns`, which needs pyarrow and is called in the child only
    *("string", "large string", "string view", "dictionary", "int8", "int64", "uint64", "float32", "float64"),
    *("float64 with NaN", "float64 with inf", "bool", "null", "string with null", "binary", "large binary"),
    *("fixed binary", "decimal", "date", "timestamp", "duration", "list of strings", "list of numbers"),
    *("fixed list", "struct", "map"),
)
WORKING = ("string", "large string", "dictionary", "int8", "int64", "uint64")
UNCLEAR = (
    "string view",
    "float32",
    "float64",
    "float64 with inf",
    "bool",
    "decimal",
    "date",
    "timestamp",
    "duration",
)


def cases() -> Iterator[Case]:
    """All of them."""
    for kind in KINDS:
        for column in ("question", "answer", "id"):
            expected = WORKS if kind in WORKING else EITHER if kind in UNCLEAR or column == "id" else REFUSED
            if column == "id" and kind != "string":
                expected = EITHER
            for name in ("score", "train") if column != "id" else ("score",):
                yield Case(
                    f"{name}: {column} is {kind}",
                    "column types",
                    expected,
                    command(name, "d.parquet"),
                    lambda kind=kind, column=column: _write(kind, column),
                    hints=(column if column != "id" else r"\bids?\b",),
                    check=_numbers_as_written
                    if (kind, column, name) == ("int64", "answer", "score")
                    else None,
                )
    for kind in ("string", "int64", "list of strings", "struct", "map", "null", "binary"):
        for column in ("messages", "prompt", "text"):
            expected = WORKS if (kind, column) in (("string", "prompt"), ("string", "text")) else REFUSED
            if kind == "int64" and column != "messages":
                expected = EITHER
            yield Case(
                f"train: {column} is {kind}",
                "column types",
                expected,
                command("train", "d.parquet"),
                lambda kind=kind, column=column: _write(kind, column),
                hints=(column,),
            )


def _write(kind: str, column: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    array = _columns()[kind][0]
    texts: dict[str, Any] = {}
    if column in ("question", "answer", "id"):
        texts = {name: [row[name] for row in good_rows()] for name in ("question", "answer")}
    elif column == "prompt":
        texts = {"completion": [row["answer"] for row in good_rows()]}
    pq.write_table(pa.table({**texts, column: array}), "d.parquet")


def _numbers_as_written() -> str | None:
    """The answers 0, 1, 2, 3 are one byte each."""
    import pyarrow.parquet as pq

    sizes = pq.read_table("out/scores.parquet")["num_bytes"].to_pylist()
    return None if sizes == [1, 1, 1, 1] else f"answers of {sizes} bytes"
