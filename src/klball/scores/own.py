"""What klball's own score tables must hold before anything is computed from them."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

logger = logging.getLogger(__name__)

SCORES = ("log_likelihood", "certainty", "entropy", "sum_log_prob")
COUNTS = ("num_tokens", "num_bytes", "truncated")
LENGTHS = ("sample_id", "num_bytes", "truncated")
TOKENISED = ("tokenizer", "template", "row_format")


def check_rows(table: pa.Table, where: str) -> None:
    """Raise ValueError, with row and column, for an id that repeats or is missing, or a score without number.

    A row without a log-likelihood, of an answer without a token, needs no other score.
    """
    _check_ids(table["sample_id"], where)
    scored = np.array(table["log_likelihood"].is_valid())
    for name in (*SCORES, *COUNTS):
        check_column(table, name, where, scored | (name in COUNTS))


def check_column(table: pa.Table, name: str, where: str, needed: np.ndarray | bool = True) -> None:
    """Raise ValueError for a column in which a number or flag that is needed is missing or is none."""
    faults = np.flatnonzero(_unusable(table[name], f"{where}: {name}") & needed)
    if faults.size:
        row = int(faults[0])
        raise fault_of(where, row, table["sample_id"][row].as_py(), name, table[name][row].as_py())


def _unusable(column: pa.ChunkedArray, what: str) -> np.ndarray:
    """Where a column is missing, NaN or infinite."""
    if pa.types.is_floating(column.type):
        return ~np.isfinite(column.to_numpy())
    if any(is_kind(column.type) for is_kind in (pa.types.is_integer, pa.types.is_boolean, pa.types.is_null)):
        return np.array(column.is_null())
    raise ValueError(f"{what} is {column.type}, not a column of numbers")


def fault_of(where: str, row: int, sample_id: Any, column: str, found: float | None) -> ValueError:
    """For a score with which nothing can be computed."""
    return ValueError(
        f"{where}, row {row + 1} (counted from 1), sample_id {sample_id!r}: {column} is "
        f"{'missing' if found is None else found}: score the rows again, or take this one out of every table"
    )


def per_item(tables: Mapping[str, pa.Table]) -> tuple[pa.Table, int]:
    """A row a sample, and in how many rounds each is: of tables of the same samples their means.

    tables: by file. A sample without a score in some round has none. Raises ValueError for tables of which
    some samples are the same and some are not.
    """
    ids = {file: {*table["sample_id"].to_pylist()} for file, table in tables.items()}
    first, *others = ids
    parts = pa.concat_tables(tables.values(), promote_options="permissive" if others else "none")
    if len(set().union(*ids.values())) == len(parts):
        return parts, 1
    for file in others:
        if ids[file] != ids[first]:
            raise _half_shared(ids)
    if found := _other_length({file: _lengths(table) for file, table in tables.items()}):
        raise ValueError(f"{found}: they are no rounds of the same samples but other data: give one table")
    means = [(name, "mean", pc.ScalarAggregateOptions(skip_nulls=False)) for name in SCORES[:2]]
    grouped = parts.group_by("sample_id", use_threads=False).aggregate(means)  # in order of appearance
    return grouped.rename_columns(["sample_id", *SCORES[:2]]), len(tables)


def refuse_other_ids(schemas: Mapping[str, pa.Schema]) -> None:
    """Raise ValueError where one table has its ids as texts and another as numbers."""
    kinds = {pa.types.is_integer(schema.field("sample_id").type): file for file, schema in schemas.items()}
    if len(kinds) > 1:
        raise ValueError(
            f"sample_id is a whole number in {kinds[True]} and none in {kinds[False]}: give all tables the "
            "same kind of ids"
        )


def _other_length(tables: Mapping[str, Iterable[Sequence[Any]]]) -> str:
    """Which whole answer has other bytes in another table, "" if none; tables: `LENGTHS` of their rows."""
    known: dict[Any, tuple[int, str]] = {}
    for name, rows in tables.items():
        for sample_id, size, cut in rows:
            before, other = (size, name) if cut else known.setdefault(sample_id, (size, name))
            if size != before:
                sizes = f"{before} bytes in {other} and {size} bytes in {name}"
                return f"the answer to sample_id {sample_id!r} has {sizes}"
    return ""


def _lengths(table: Any) -> Iterable[Sequence[Any]]:
    """Of an Arrow table or a data set."""
    columns = table.select([*LENGTHS]).to_pydict() if isinstance(table, pa.Table) else table
    return zip(*(columns[name] for name in LENGTHS), strict=True)


def _half_shared(ids: Mapping[str, set[Any]]) -> ValueError:
    a, b = next((a, b) for a, b in combinations(ids, 2) if ids[a] & ids[b])
    shared = min(map(str, ids[a] & ids[b]))
    return ValueError(
        f"{a} and {b} both have sample_id {shared!r}, but not all {len(ids)} tables have the same samples: "
        "give one table, or a folder in which all share their samples (rounds) or none do"
    )


def _check_ids(ids: pa.ChunkedArray, where: str) -> None:
    if pa.types.is_nested(ids.type):
        raise ValueError(f"{where}: sample_id is {ids.type}, not a column of ids")
    if ids.null_count:
        row = int(np.flatnonzero(np.array(ids.is_null()))[0])
        raise ValueError(f"{where}, row {row + 1} (counted from 1) has no sample_id: give every row its own")
    series = ids.to_pandas()
    repeated = np.flatnonzero(series.duplicated())
    if repeated.size:
        row = int(repeated[0])
        before = int(np.argmax(series == series[row]))
        raise ValueError(
            f"{where}, rows {before + 1} and {row + 1} (counted from 1) both have sample_id "
            f"{ids[row].as_py()!r}: give every row its own, and every round a file of its own"
        )


def check_answers(table: Dataset, where: str) -> None:
    """`check_rows` of a table in Python, in which every whole answer of a token or more has a score."""
    columns: Any = table.select_columns(["sample_id", *SCORES, *COUNTS]).with_format("arrow")
    rows = columns[:]
    check_rows(rows, where)
    lacking = np.flatnonzero(usable(table) & np.array(rows["log_likelihood"].is_null()))
    if lacking.size:
        row = int(lacking[0])
        raise fault_of(where, row, rows["sample_id"][row].as_py(), "log_likelihood", None)


def usable(table: Dataset) -> np.ndarray:
    """Which rows of a score table have an answer that fits uncut, [n]."""
    return ~np.array(table["truncated"][:], dtype=bool) & (np.array(table["num_tokens"][:]) > 0)


Scored = tuple[Dataset, Mapping[str, Any]]  # a score table and its provenance


def refuse_other_answers(tables: Mapping[str, Scored]) -> None:
    """Raise ValueError where an answer has other bytes in another model's table: they are of different data.

    tables: by model, of one round. Bytes are those of the scored tokens: only tables with the same tokenizer,
    template and format of rows have them in common. Of tables that do not say theirs it is a warning.
    """
    alike: dict[tuple[Any, ...], dict[str, Iterable[Sequence[Any]]]] = {}
    for model, (table, about) in tables.items():
        alike.setdefault(tuple(map(about.get, TOKENISED)), {})[f"the table of {model!r}"] = _lengths(table)
    for (tokenizer, *_), of_models in alike.items():
        found = _other_length(of_models)
        if found and tokenizer:
            raise ValueError(f"{found}: they are of different data: score the same rows")
        if found:
            logger.warning("%s: of different data, or of tokenizers that cut it differently", found)
