"""The prepared training samples: what preparation cut, their answer tokens, and scores that went wrong."""

import logging
import math

import torch
from datasets import Dataset
from torch import Tensor

from klball.data.formats import IGNORED
from klball.training.batches import INDEX

logger = logging.getLogger(__name__)


def warn_of_cut_rows(name: str, tokenised: Dataset, prepared: Dataset, max_length: int | None) -> None:
    """Count aloud the rows that `max_length` shortens, and those it leaves without an answer.

    Raises ValueError if it leaves none.
    """
    limit = max_length or math.inf
    cut = sum(len(ids) > limit for ids in tokenised["input_ids"])
    dropped = len(tokenised) - len(prepared)
    if cut:
        logger.warning(
            "%s: %d of %d rows are longer than max_length = %s: %d cut, %d dropped (no answer left)",
            *(name, cut, len(tokenised), max_length, cut - dropped, dropped),
        )
    if not len(prepared):
        raise ValueError(f"{name}: no row has an answer token within max_length = {max_length}: raise it")


def numbered(samples: Dataset) -> Dataset:
    """The samples with their positions, in place of a column of the user's with that name."""
    if INDEX in samples.column_names:
        samples = samples.remove_columns(INDEX)
    return samples.add_column(INDEX, list(range(len(samples))))


def num_answer_tokens(samples: Dataset) -> Tensor:
    """T_i of every sample, [n] in float64. Raises ValueError without labels, or if a row has no answer."""
    if "labels" not in samples.column_names:
        raise ValueError("the training data has no `labels`: leave out skip_prepare_dataset, or add them")
    counts = torch.tensor(
        [sum(label != IGNORED for label in row[1:]) for row in samples["labels"]], dtype=torch.float64
    )
    if bool((counts == 0).any()):
        raise ValueError(f"{int((counts == 0).sum())} training rows have no answer token; drop them")
    return counts


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
