"""One id for every row, the same in every table, and the group of every row."""

import math
from collections.abc import Collection
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from klball.data.texts import found, refusal
from klball.files import combined, json_digest

NUMBERED = "none"  # the id_column that asks for row numbers


def with_sample_ids(dataset: Dataset, id_column: str | None = None) -> Dataset:
    """The data set with a string column `sample_id`.

    id_column: where the ids are; None: `sample_id`, else `id`, else the row's index and content hash;
    "none": index and hash whatever the columns.
    Raises ValueError for ids that repeat or are missing, with their rows.
    """
    if len(dataset) == 0:
        raise ValueError("the data set has no rows")
    columns = dataset.column_names
    if id_column is None:
        id_column = next((name for name in ("sample_id", "id") if name in columns), NUMBERED)
    elif id_column not in (*columns, NUMBERED):
        raise ValueError(f"no column {id_column!r} to take ids from; there are {', '.join(columns)}")
    if id_column == NUMBERED:
        rows = dataset.remove_columns("sample_id") if "sample_id" in columns else dataset
        ids = [f"{index}-{json_digest(row, 8)}" for index, row in enumerate(rows)]
    else:
        ids = [_text_of(value, row, id_column) for row, value in enumerate(dataset[id_column])]
        _refuse_repeated(ids, id_column)
    if "sample_id" in columns:
        dataset = dataset.remove_columns("sample_id")
    return dataset.add_column("sample_id", ids)


def refuse_no_group(rows: Dataset, column: str | None) -> None:
    """Raise ValueError if there is no such column; None is none that is asked for."""
    if column is not None and column not in rows.column_names:
        there = ", ".join(name for name in rows.column_names if name != "sample_id")
        raise ValueError(f"group_column: the data have no column {column!r}; there are {there}")


def group_names(rows: Dataset, column: str) -> list[str | int]:
    """The group of every row. Raises ValueError without the column, or for a row without a value."""
    refuse_no_group(rows, column)
    groups = rows[column][:]
    for row, group in enumerate(groups):
        if isinstance(group, bool) or not isinstance(group, str | int):
            raise ValueError(
                f"group_column: row {row + 1} has {group!r:.40} in {column!r}, not a text or a whole number"
            )
    return groups


def _text_of(value: Any, row: int, column: str) -> str:
    missing = value is None or value == "" or (isinstance(value, float) and math.isnan(value))
    if not missing and isinstance(value, str | int | float):
        return str(value).lower() if isinstance(value, bool) else str(value)
    what = "is missing" if missing else f"is {found(value)}"
    raise refusal(row, column, f"the id {what}: {_remedy(column)}")


def _refuse_repeated(ids: list[str], column: str) -> None:
    first: dict[str, int] = {}
    for row, sample_id in enumerate(ids):
        if sample_id in first:
            raise ValueError(
                f"sample ids repeat: rows {first[sample_id] + 1} and {row + 1} (counted from 1) both have "
                f"{column} {sample_id!r}: {_remedy(column)}"
            )
        first[sample_id] = row


def _remedy(column: str) -> str:
    return (
        "correct it, name another column with --id_column, or number the rows with --id_column none "
        f"(in Python: remove_columns({column!r}))"
    )


def ids_of(rows: Dataset) -> pa.ChunkedArray:
    """The column `sample_id`, in Arrow."""
    table: Any = rows.select_columns("sample_id").with_format("arrow")[:]
    return table["sample_id"].cast(pa.string())


def order_of(rows: Dataset) -> str:
    """One hash of the rows' ids in their order."""
    return combined("\0".join([*part.to_pylist(), ""]).encode() for part in ids_of(rows).chunks)


def places_of(rows: Dataset, ids: Collection[str]) -> dict[str, int]:
    """The first row of each of these samples, without a list of all."""
    column = ids_of(rows)
    found = np.flatnonzero(pc.is_in(column, value_set=pa.array([*ids], pa.string())).to_numpy())  # pyright: ignore[reportAttributeAccessIssue]
    return {column[i].as_py(): i for i in reversed(found.tolist())}
