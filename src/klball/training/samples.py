"""Training samples of any family: their positions, and scores of theirs that went wrong."""

from typing import Any

from datasets import Dataset
from torch import Tensor

from klball.data.ids import group_names
from klball.training.batches import INDEX


def numbered(samples: Dataset) -> Dataset:
    """The samples with their positions, in place of a column of the user's with that name."""
    if INDEX in samples.column_names:
        samples = samples.remove_columns(INDEX)
    return samples.add_column(INDEX, list(range(len(samples))))


def groups_of(samples: Dataset, column: str | None) -> list[Any] | None:
    """The group of every sample, as `group_names`. Raises ValueError also where all are of one."""
    if column is None:
        return None
    if column == INDEX:
        raise ValueError(f"group_column: {INDEX!r} is klball's own name for positions: rename the column")
    groups = group_names(samples, column)
    if len(set(groups)) == 1:
        raise ValueError(
            f"group_column: all rows have {groups[0]!r:.40} in {column!r}: one group leaves nothing to weigh"
        )
    return groups


def refuse_nonfinite(samples: Dataset, index: Tensor, scores: dict[str, Tensor], step: int) -> None:
    """Raise ValueError naming the first sample with a score that is NaN or infinite."""
    for name, values in scores.items():
        if bool(values.isfinite().all()):
            continue
        row = int(index[~values.isfinite()][0])
        sample = repr(samples[row]["sample_id"]) if "sample_id" in samples.column_names else f"row {row + 1}"
        raise ValueError(
            f"{name} of sample {sample} is not finite at step {step}: "
            "lower learning_rate, or train in float32 (--bf16 false)"
        )
