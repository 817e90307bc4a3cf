"""The prepared training samples: what preparation cut, and their answer tokens."""

import logging
import math

import torch
from datasets import Dataset
from torch import Tensor

from klball.data.formats import IGNORED

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


def num_answer_tokens(samples: Dataset, name: str = "train_dataset") -> Tensor:
    """T_i of every sample, [n] in float64. Raises ValueError without labels, or if a row has no answer."""
    if "labels" not in samples.column_names:
        raise ValueError(f"{name} has no `labels`: leave out skip_prepare_dataset, or add them")
    counts = torch.tensor(
        [sum(label != IGNORED for label in row[1:]) for row in samples["labels"]], dtype=torch.float64
    )
    if bool((counts == 0).any()):
        raise ValueError(f"{name}: {int((counts == 0).sum())} rows have no answer token; drop them")
    return counts
