"""Columns of a source → numbers, ids and labels, or one line that says which cell is in the way."""

import math
import re
from collections.abc import Iterable
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from klball.adversary.inputs import LARGEST
from klball.data.ids import NUMBERED
from klball.data.texts import found
from klball.scores.elsewhere.source import Column, Source, is_there, listed

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
WHOLE = re.compile(r"\d+\.0")
FILE = "file"
TRUTH = {"true": 1.0, "false": 0.0}
REPAIR = "drop or repair that row"
FIRST = 100  # values that tell what a column holds


def numbers(source: Source, name: str) -> np.ndarray:
    """A column as float64 [rows]; true and false are 1 and 0 where there is nothing else.

    Raises ValueError naming row and column for what is missing, NaN, infinite, text or of mixed types.
    """
    column = source.column(name, "score")
    if isinstance(column, pa.ChunkedArray):
        values = _of_arrow(source, name, column)
    else:
        values = _of_list(source, name, column)
    bad = np.flatnonzero(~(np.abs(values) <= LARGEST))
    if len(bad):
        value = values[bad[0]]
        what = "NaN" if math.isnan(value) else f"{value:g}, which no difference of scores can hold"
        raise source.refusal(int(bad[0]), name, f"{what}: {REPAIR}")
    return values


def is_numeric(source: Source, name: str) -> bool:
    """Whether a column could be a score: by its type or, of text and lists, by half of its first values."""
    column = source.columns[name]
    if isinstance(column, pa.ChunkedArray):
        kind = column.type
        if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
            return True
        if pa.types.is_decimal(kind):
            return True
        if not source.written:
            return False
    kinds = [kind for value in _scalars(column, FIRST) if (kind := _kind(source, value)) != "missing"]
    return 0 < len(kinds) <= 2 * sum(kind in ("number", "bool") for kind in kinds)


def beginnings(source: Source) -> str:
    """Columns with their first values, for a refusal."""
    first = {name: next(iter(_scalars(column, 1)), None) for name, column in source.columns.items()}
    shown = (f"{name} ({value[:20]!r})" if isinstance(value, str) else name for name, value in first.items())
    return listed(shown)


def texts(source: Source, name: str, option: str) -> list[str]:
    """A column of ids or labels as text. Raises ValueError for a missing one, a list or an object."""
    column = source.column(name, option)
    values = column.to_pylist() if isinstance(column, pa.ChunkedArray) else list(column)
    whole = all(x.is_integer() for x in values if isinstance(x, float))  # pandas' ids beside a missing one
    if source.written and all(isinstance(x, str) and WHOLE.fullmatch(x.strip()) for x in values):
        values = [x.strip().partition(".")[0] for x in values]  # the same, written to a file
    return [_text(source, name, option, row, value, whole) for row, value in enumerate(values)]


def ids_in(source: Source, name: str) -> list[str]:
    """Ids in a column, or in several with commas between them, joined: "task,id"; "file" is the file's name.

    In Unicode's composed form, which not every tool writes.
    """
    if name in source.columns or "," not in name:
        return [normalize("NFC", text) for text in texts(source, name, "id")]
    label = source.label or Path(source.where).stem
    parts = [
        [label] * source.rows if part == FILE and part not in source.columns else ids_in(source, part)
        for part in (part.strip() for part in name.split(","))
    ]
    return ["/".join(of_row) for of_row in zip(*parts, strict=True)]


def scored(source: Source, names: Iterable[str], id_column: str | None) -> Source:
    """Without the rows that lack one of these scores, where the tool may leave one out."""
    if not source.gaps:
        return source
    of_row = zip(*(source.columns[name] for name in names if name), strict=True)
    kept = [row for row, values in enumerate(of_row) if all(is_there(value) for value in values)]
    if len(kept) in (0, source.rows):
        return source
    gone = sorted({*range(source.rows)} - {*kept})
    items = ids_in(source, source.id if id_column in (None, NUMBERED) else id_column)
    return replace(
        source.of_rows(kept),
        lacking={**source.lacking, **dict.fromkeys((items[row] for row in gone), "unscored")},
        lost={**source.lost, **dict.fromkeys((source.number(row) - 1 for row in gone), "unscored")},
    )


def _text(source: Source, name: str, option: str, row: int, value: Any, whole: bool) -> str:
    value = value.strip() if isinstance(value, str) and source.written else value
    if isinstance(value, str) and value != "":
        return value
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        raise source.refusal(row, name, f"the {option} is missing: {REPAIR}, or name another --{option}")
    if isinstance(value, list | dict | bytes):
        raise source.refusal(row, name, f"the {option} is {found(value)}: name another --{option}")
    return str(int(value)) if isinstance(value, float) and whole else str(value)


def _scalars(column: Column, most: int) -> list[Any]:
    some = column[:most]
    return some.to_pylist() if isinstance(some, pa.ChunkedArray) else list(some)


def _of_arrow(source: Source, name: str, column: pa.ChunkedArray) -> np.ndarray:
    kind = column.type
    if pa.types.is_dictionary(kind):
        column, kind = column.cast(kind.value_type), kind.value_type
    if pa.types.is_boolean(kind):
        column = column.cast(pa.int8())
    elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
        return _of_list(source, name, column.to_pylist())
    if column.null_count:
        row = int(pc.index(column.is_null(), True).as_py())
        raise source.refusal(row, name, f"the score is missing: {REPAIR}")
    return column.cast(pa.float64(), safe=False).to_numpy()


def _of_list(source: Source, name: str, values: Any) -> np.ndarray:
    truths = {"bool"} == {_kind(source, value) for value in values}
    converted = np.empty(len(values))
    for row, value in enumerate(values):
        kind = _kind(source, value)
        if kind == "missing":
            raise source.refusal(row, name, f"the score is missing: {REPAIR}")
        if kind == "number" or (kind == "bool" and truths):
            text = value.strip().lower() if isinstance(value, str) else value
            converted[row] = _float(TRUTH.get(text, text) if isinstance(text, str) else text)
        elif kind == "bool":
            raise source.refusal(row, name, f"{value} among numbers: write 1 or 0")
        elif isinstance(value, str):
            quoted = "; write numbers without quotes" if NUMBER.fullmatch(value.strip()) else ""
            raise source.refusal(row, name, f"the text {value[:40]!r} is no number: {REPAIR}{quoted}")
        else:
            raise source.refusal(row, name, f"{found(value)} is no number: {REPAIR}")
    return converted


def _float(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _kind(source: Source, value: Any) -> str:
    if value is None or value == "":
        return "missing"
    if isinstance(value, bool | np.bool_):
        return "bool"
    if isinstance(value, int | float | Decimal | np.number):
        return "number"
    if source.written and isinstance(value, str):
        text = value.strip()
        if text.lower() in TRUTH:
            return "bool"
        if NUMBER.fullmatch(text) or text.lower().lstrip("+-") in ("nan", "inf", "infinity"):
            return "number"
    return "other"
