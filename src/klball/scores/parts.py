"""A table made batch by batch: written in parts that a killed run finds again, shared out over processes."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from accelerate import PartialState

from klball.files import finished_part, json_digest, parts_folder, read_table, remove_parts, write_table

BATCHES_PER_PART = 16
TABLES_FILE = "tables.csv"  # which table of a cache is of which model and data

PLACES = {"model", "revision"}  # where a model was found; the hash of its weights says which it is

Batches = list[list[int]]
Progress = Callable[[int, int], None]  # rows done, rows in all


class Cache:
    """A folder of tables, each named by what it was made from: nothing else is taken for it, or refused.

    `last` is the file of the table that was asked for last.
    """

    def __init__(self, folder: Path):
        self.folder = self.last = folder

    def path(self, about: Mapping[str, Any]) -> Path:
        """Of the table of this provenance, wherever its model lies."""
        self.last = self.folder / f"{json_digest(made_from(about))}.parquet"
        return self.last


def made_from(about: Mapping[str, Any]) -> dict[str, Any]:
    """A provenance without `PLACES`."""
    return {key: value for key, value in about.items() if key not in PLACES}


def table_in_parts(
    batches: Batches,
    part_of: Callable[[Batches], pa.Table],
    whole: Callable[[Sequence[pa.Table]], pa.Table],
    about: Mapping[str, Any],
    output: Path | None,
    progress: Progress | None = None,
    alone: bool = False,
) -> pa.Table:
    """`whole` of the parts that `part_of` makes of some batches each; at `output`, too, if there is one.

    about: what the parts are made from, so that no other table takes them. alone: this process shares no
    table with others. Raises ValueError for several processes without a file to share.
    """
    parts = [batches[i : i + BATCHES_PER_PART] for i in range(0, len(batches), BATCHES_PER_PART)]
    folder = None if output is None else parts_folder(output, about)
    state = PartialState(cpu=not torch.accelerator.is_available())
    processes, process = (1, 0) if alone else (state.num_processes, state.process_index)
    if folder is None and processes > 1:
        raise ValueError("scoring with several processes needs an `output` file that they share")
    total = sum(map(len, batches))
    tables = []
    done = 0
    if progress is not None:
        progress(0, total)
    for index, part in enumerate(parts):
        if index % processes == process:
            tables.append(_part(part, part_of, folder, index))
        done += sum(map(len, part))
        if progress is not None:
            progress(done, total)
    if folder is None or output is None:
        return whole(tables)
    if processes > 1:
        state.wait_for_everyone()
    if process == 0:
        own = tables if processes == 1 else [None] * len(parts)
        write_table(whole([_read_back(folder, index, table) for index, table in enumerate(own)]), output)
        remove_parts(output)
    if processes > 1:
        state.wait_for_everyone()
    return read_table(output)


def _path(folder: Path, index: int) -> Path:
    return folder / f"{index:06d}.parquet"


def _read_back(folder: Path, index: int, own: pa.Table | None) -> pa.Table:
    """A part as every run reads it, to the byte; `own` where another run has just removed the parts."""
    try:
        return read_table(_path(folder, index))
    except ValueError:
        if own is None:
            raise
        return own


def _part(
    batches: Batches, part_of: Callable[[Batches], pa.Table], folder: Path | None, index: int
) -> pa.Table:
    if folder is None:
        return part_of(batches)
    if (finished := finished_part(_path(folder, index))) is not None:
        return finished
    table = part_of(batches)
    with suppress(FileNotFoundError):  # another run that made the same table has just finished it
        write_table(table, _path(folder, index))
    return table
