"""Tables: CSV, TSV, JSON lines and Parquet files, frames, lists of rows, and klball's own score tables."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from klball.boundary import first_line
from klball.data.readers import COMPRESSIONS, csv_rows, json_rows, suffix_of
from klball.files import read_table
from klball.scores.elsewhere.source import Column, Source
from klball.scores.kinds import ANSWERED, COLUMNS, PAIRED
from klball.scores.measure import PER_TOKEN, Measure, accuracy, points

IDS = (
    *("sample_id", "id", "item_id", "item", "doc_id"),
    *("question_id", "example_id", "prompt_id", "instance_id"),
    *("uid", "key", "qid", "idx", "index"),
)
PROMPTS = ("prompt", "question", "input", "instruction", "text")
ANSWERS = ("answer", "target", "output", "response", "completion")
UNNAMED = "__index_level_"  # what Arrow calls an index of pandas that has no name
WITHOUT_NAME = ("", "Unnamed: 0")  # what pandas calls it in a CSV
INDEX = "index"
DELIMITERS = (",", "\t", ";")
OWN = {"sample_id", "log_likelihood", "certainty", "sum_log_prob", "num_tokens", "truncated"}


def of_text(text: str, path: Path) -> Source:
    """A CSV, TSV or semicolon-separated file, or JSON lines, whatever it is called."""
    if text.lstrip()[:1] in ("{", "["):
        return of_rows(list(json_rows(text, path, as_written=False)), str(path))
    header = text.split("\n", 1)[0]
    delimiter = max(DELIMITERS, key=header.count)
    if suffix_of(path) == ".tsv":
        delimiter = "\t"
    rows = list(csv_rows(text, path, delimiter))
    if not rows:
        raise ValueError(f"{path} has no rows below its header")
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    if next(iter(columns)) in WITHOUT_NAME and not _first(columns, IDS):
        columns = {INDEX: columns.pop(next(iter(columns))), **columns}
    return _table(columns, str(path), written=True)


def of_rows(rows: Sequence[Mapping[str, Any]], where: str) -> Source:
    """Rows as dictionaries; a key that a row lacks is missing there."""
    if not rows:
        raise ValueError(f"{where} has no rows")
    for index, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise ValueError(
                f"{where}: row {index + 1} is {type(row).__name__}, not a row with named columns"
            )
    flat = [_flat(row) for row in rows]
    names = dict.fromkeys(name for row in flat for name in row)
    return _table({name: [row.get(name) for row in flat] for name in names}, where)


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with what is nested in it beside it: `metric.acc`."""
    nested = {
        f"{name}.{key}": value
        for name, own in row.items()
        if isinstance(own, Mapping)
        for key, value in own.items()
    }
    return {**{str(name): value for name, value in row.items()}, **nested}


def of_parquet(path: Path) -> Source:
    """A Parquet file, compressed as a whole or not, whoever wrote it."""
    if path.suffix.lower() in COMPRESSIONS:
        raise ValueError(f"{path}: a Parquet file is compressed inside: unpack it first")
    return of_arrow(read_table(path), str(path))


def of_frame(frame: Any, where: str) -> Source:
    """A `datasets.Dataset`, a pandas or polars frame, or what else gives an Arrow stream."""
    if isinstance(frame, Dataset):
        table = frame.with_format("arrow")[:]
        return of_arrow(table, where)
    try:
        table = pa.table(frame)
    except (pa.ArrowInvalid, pa.ArrowTypeError, TypeError) as error:  # of mixed types: named later
        if not hasattr(frame, "__len__") or not hasattr(frame, "columns"):  # a Series, a lazy frame
            raise ValueError(f"{where} cannot be read as a table: {first_line(error)}") from error
        return _table({str(name): list(frame[name]) for name in frame.columns}, where)
    left = [name for name in table.column_names if not name.startswith(UNNAMED)]
    if not _first(left, IDS) and f"{UNNAMED}0__" in table.column_names:  # labels that pandas aligns rows by
        table = table.rename_columns({f"{UNNAMED}0__": INDEX})
        left.append(INDEX)
    source = of_arrow(table.select(left), where)
    mixed = [n for n in frame.columns if str(frame[n].dtype) == "object"] if hasattr(frame, "iloc") else []
    columns = {**source.columns, **{name: list(frame[name]) for name in mixed if name in source.columns}}
    return replace(source, columns=columns)  # Arrow makes 1.0 of a true among numbers


def of_arrow(table: pa.Table, where: str) -> Source:
    """An Arrow table; klball's own kinds are known by their columns."""
    if not table.num_rows:
        raise ValueError(f"{where} has no rows")
    names = {*table.column_names}
    if len(names) < len(table.column_names):
        raise ValueError(f"{where} has a column twice")
    if names >= COLUMNS[ANSWERED]:
        return _of_answers(table, where)
    if names >= OWN:
        measures = {"log_likelihood": PER_TOKEN, "certainty": Measure("certainty", "nats")}
        return _scored(table, where, measures, "log_likelihood", "truncated")
    if names >= COLUMNS[PAIRED]:
        measures = {"loss": points("loss", loss=True), "margin": points("margin")}
        return _scored(table, where, measures, "loss", "")
    nested = [field.name for field in table.schema if pa.types.is_struct(field.type)]
    flat = table.select(nested).flatten()
    columns = {name: table[name] for name in table.column_names}
    return _table({**{name: flat[name] for name in flat.column_names}, **columns}, where)


def _table(columns: Mapping[str, Column], where: str, written: bool = False) -> Source:
    texts = _first(columns, PROMPTS), _first(columns, ANSWERS)
    return Source(where, columns, written, id=_first(columns, IDS), texts=texts)


def _first(columns: Iterable[str], names: Sequence[str]) -> str:
    """The column with the first of these names, in whatever case; "" for none."""
    lower = {name.lower(): name for name in reversed(list(columns))}
    return next((lower[name] for name in names if name in lower), "")


def _scored(
    table: pa.Table, where: str, measures: Mapping[str, Measure], score: str, truncated: str
) -> Source:
    """The rows with a score that were not cut, and why the others are left out."""
    unscored = np.array(table[score].is_null())
    cut = np.array(table[truncated]) if truncated else np.zeros(len(table), dtype=bool)
    ids = pc.cast(table["sample_id"].filter(pa.array(unscored | cut)), pa.string()).to_pylist()
    why = np.where(cut, "truncated", "unscored")[unscored | cut].tolist()
    if len(ids) == len(table):
        raise ValueError(f"{where}: no row has a score")
    lost = np.flatnonzero(unscored | cut).tolist()
    return replace(
        _own(table.filter(pa.array(~(unscored | cut))), where, measures),
        lacking=dict(zip(ids, why, strict=True)),
        lost=dict(zip(lost, why, strict=True)),
        places=np.flatnonzero(~(unscored | cut)).tolist(),
    )


def _own(table: pa.Table, where: str, measures: Mapping[str, Measure]) -> Source:
    columns = {name: table[name] for name in table.column_names}
    group = "group" if "group" in columns and not table["group"].null_count else ""
    return Source(where, columns, id="sample_id", group=group, measures=measures)


def _of_answers(table: pa.Table, where: str) -> Source:
    """A table of `klball evaluate --generate true`: what it calls log_likelihood is a reward."""
    reward = table["log_likelihood"].to_numpy()
    name = "accuracy" if np.isin(reward, (0.0, 1.0)).all() else "reward"
    sampled = [row[1:] for row in table["rewards"].to_pylist()]
    measures = {name: accuracy(name) if name == "accuracy" else points(name)}
    kept = table.drop_columns(["log_likelihood", "sum_log_prob", "certainty", "entropy"])
    kept = kept.append_column(name, pa.array(reward))
    if all(sampled):
        kept = kept.append_column("mean_reward", pa.array([float(np.mean(row)) for row in sampled]))
        measures["mean_reward"] = points("mean_reward")
    return _own(kept, where, measures)
