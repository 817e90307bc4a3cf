"""Which of klball's own tables a Parquet file is, by its columns."""

from pathlib import Path

import pyarrow.parquet as pq

from klball.files import readable
from klball.scores.parquet import score_files
from klball.scores.tables import SCHEMA

ANSWERED, PAIRED, SCORED = "answers", "pairs", "scores"
COLUMNS = {  # which tell it from the others
    ANSWERED: {"sample_id", "log_likelihood", "rewards", "finished"},
    PAIRED: {"sample_id", "loss", "margin"},
    SCORED: {*SCHEMA.names},
}


def kind_of(path: str | Path) -> str | None:
    """One of COLUMNS; None of other files, and of folders. Raises ValueError for what is no Parquet file."""
    if Path(path).is_dir():
        return None
    with readable(path):
        names = {*pq.read_schema(path).names}
    return next((kind for kind, own in COLUMNS.items() if own <= names), None)


def are_scores(path: str) -> bool:
    """Whether it is a score table, or a folder of nothing else."""
    try:
        return all(kind_of(file) == SCORED for file in score_files(path))
    except ValueError:
        return False
