"""Score tables larger than memory: Parquet files read row group by row group, as often as needed."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch.distributed

from klball import files
from klball.adversary.streaming import Chunk, StreamedSolution
from klball.files import without_views
from klball.scores.own import check_column, refuse_other_ids
from klball.scores.tails import largest

G, C = "log_likelihood", "certainty"
ELSEWHERE = "Scores from elsewhere: klball.scores_from, or klball solve without --streamed"
readable = partial(files.readable, otherwise=ELSEWHERE)
FIRST = 1_000  # rows of a table by whose ids rounds are recognised
BATCH = 1 << 16  # rows decoded at once
BUFFER = 1 << 20  # bytes of a column read at once, however large its row groups are


@dataclass(frozen=True)
class RowGroup:
    """One row group of a score table: called, it reads its (g, C) anew, without the rows that have no g."""

    path: str
    index: int
    metadata: pq.FileMetaData
    columns: tuple[str, ...]

    def __call__(self) -> Iterator[Chunk]:
        for batch in self.batches(self.columns):
            scored = batch.filter(batch[G].is_valid()) if batch[G].null_count else batch
            g, *c = (column.to_numpy(zero_copy_only=False) for column in scored.columns)
            yield g, c[0] if c else None

    @property
    def num_rows(self) -> int:
        return self.metadata.row_group(self.index).num_rows

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """All rows, some columns of them, in the order of `columns`."""
        left = self.num_rows
        options: Any = {"buffer_size": BUFFER, "pre_buffer": False, "page_checksum_verification": True}
        with readable(self.path), pq.ParquetFile(self.path, metadata=self.metadata, **options) as file:
            for batch in file.iter_batches(BATCH, [self.index], list(columns), use_threads=False):
                left -= len(batch)
                yield without_views(batch.select(list(columns)))
        if left:  # what a page's header says is in no checksum
            raise ValueError(f"{self.path} is damaged (rows are lost): remove it and make it again")


def stream_scores(
    scores: str | Path | Sequence[str], *, certainty: bool = True, sharded: bool = False
) -> list[RowGroup]:
    """The parts of a score table for `solve_dual_streamed`: a Parquet file, a folder with some, or a list.

    Rows without a log-likelihood (truncated to nothing) are left out.

    Args:
        scores: The table or tables.
        certainty: Read that column beside log_likelihood.
        sharded: This process's share of the row groups.

    Raises:
        ValueError: A file is no score table.
    """
    columns = (G, C) if certainty else (G,)
    parts = []
    for path in score_files(scores):
        with readable(path):
            metadata = pq.read_metadata(path)
        check_columns(path, metadata.schema.to_arrow_schema(), columns)
        parts += [RowGroup(path, index, metadata, columns) for index in range(metadata.num_row_groups)]
    if sharded:
        return parts[torch.distributed.get_rank() :: torch.distributed.get_world_size()]
    return parts


def score_files(scores: str | Path | Sequence[str]) -> list[str]:
    """A folder stands for its .parquet files, at any depth, without the parts of tables being written."""
    if not isinstance(scores, str | Path):
        return list(scores)
    if not Path(scores).exists():
        raise ValueError(f"there is no {scores}")
    if not Path(scores).is_dir():
        return [str(scores)]
    found = (path.relative_to(scores) for path in Path(scores).rglob("*.parquet"))
    whole = sorted(path for path in found if not any(".parts-" in name for name in path.parts))
    if not whole:
        raise ValueError(f"{scores} has no .parquet files")
    return [str(Path(scores) / path) for path in whole]


def refuse_rounds(scores: str | Path | Sequence[str]) -> None:
    """Raise ValueError for tables of the same samples, whose means need them in memory.

    Of each table the first ids are looked at, in which rounds agree: all of them would cost a reading more.
    """
    file_of: dict[Any, str] = {}
    first_ids = {path: _first_ids(path) for path in score_files(scores)}
    refuse_other_ids({path: batch.schema for path, batch in first_ids.items()})
    for path, batch in first_ids.items():
        for sample_id in batch["sample_id"].to_pylist():
            if sample_id in file_of:
                files = " and ".join(dict.fromkeys((file_of[sample_id], path)))
                raise ValueError(
                    f"{files}: sample_id {sample_id!r} is there twice, and streamed scores are of one item "
                    "each: leave --streamed out, which takes means over rounds, or give one of the tables"
                )
            file_of[sample_id] = path


def _first_ids(path: str) -> pa.Table:
    with readable(path), pq.ParquetFile(path) as file:
        check_columns(path, file.schema_arrow, ("sample_id",))
        batches = islice(file.iter_batches(FIRST, columns=["sample_id"]), 1)
        return pa.Table.from_batches(batches, pa.schema([file.schema_arrow.field("sample_id")]))


def num_cut(parts: Sequence[RowGroup]) -> int:
    """Rows whose answer lost its end. Raises ValueError where that is not known of all."""
    return sum(_cut(part.path, batch) for part in parts for batch in part.batches(("truncated",)))


def _cut(path: str, batch: pa.RecordBatch) -> int:
    flags = batch["truncated"]
    if flags.null_count or not pa.types.is_boolean(flags.type):
        check_column(files.read_table(path, columns=["sample_id", "truncated"]), "truncated", path)
    return flags.cast("bool").true_count


def top_weighted(parts: Sequence[RowGroup], solution: StreamedSolution, count: int) -> list[dict[str, Any]]:
    """The samples of largest weight, sample_id, n_q = n·q and log_likelihood, found in one more pass."""
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        found = pool.map(lambda part: _top_of(part, solution, count), parts)
        candidates = [(*row, number) for number, rows in enumerate(found) for row in rows]
    best = sorted(candidates, key=lambda row: (-row[0], row[3], row[1]))[:count]
    ids = {number: _sample_ids(parts[number], [r[1] for r in best if r[3] == number]) for *_, number in best}
    return [{"sample_id": ids[number][row], "n_q": n_q, "log_likelihood": g} for n_q, row, g, number in best]


def _top_of(part: RowGroup, solution: StreamedSolution, count: int) -> list[tuple[float, int, float]]:
    """(n·q, row, g) of a part's largest weights; rows are counted among those that have a g."""
    check_columns(part.path, part.metadata.schema.to_arrow_schema(), ("sample_id",))
    best: list[tuple[float, int, float]] = []
    start = 0
    for g, c in part():
        n_q = solution.density(g, c)
        best += [(float(n_q[i]), start + int(i), float(g[i])) for i in largest(n_q, count)]
        best = sorted(best, key=lambda row: (-row[0], row[1]))[:count]
        start += len(g)
    return best


def _sample_ids(part: RowGroup, rows: list[int]) -> dict[int, Any]:
    ids: dict[int, Any] = {}
    start = 0
    for batch in part.batches(("sample_id", G)):
        scored = batch.filter(batch[G].is_valid())
        ids |= {
            row: scored["sample_id"][row - start].as_py() for row in rows if 0 <= row - start < len(scored)
        }
        start += len(scored)
    return ids


def check_columns(path: str | Path, schema: pa.Schema, columns: Sequence[str]) -> None:
    """Raise ValueError unless a table has these columns, its scores as floating-point numbers."""
    missing = [name for name in columns if name not in schema.names]
    if missing:
        raise ValueError(f"{path} is not a score table: it lacks {', '.join(missing)}. {ELSEWHERE}")
    if repeated := [name for name in columns if schema.names.count(name) > 1]:
        raise ValueError(f"{path} is not a score table: it has {repeated[0]} twice")
    for name in set(columns) & {G, C}:
        if not pa.types.is_floating(schema.field(name).type):
            raise ValueError(f"{path}: {name} is {schema.field(name).type}, not a floating-point column")
