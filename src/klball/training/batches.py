"""Training batches that know which samples they hold."""

from itertools import accumulate
from typing import Any

import torch

INDEX = "sample_index"  # the position of a sample in the training data


class WithIndex:
    """A collator that passes the index of every sample on, packed or not, beside what TRL's emits."""

    def __init__(self, collator: Any):
        self.collator = collator

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = self.collator(examples)
        if INDEX in examples[0]:
            batch[INDEX] = torch.tensor([sample for example in examples for sample in _samples(example)])
        return batch


def _samples(example: dict[str, Any]) -> list[int]:
    """The samples of one row, one or several; a pack names the sample of every token."""
    if "seq_lengths" not in example:
        return example[INDEX] if isinstance(example[INDEX], list) else [example[INDEX]]
    starts = accumulate(example["seq_lengths"][:-1], initial=0)
    return [example[INDEX][start] for start in starts]


def input_lengths(batch: dict[str, Any]) -> torch.Tensor:
    """Tokens of every sample of a collated batch, prompts included and padding not, (B)."""
    if "attention_mask" in batch:
        return batch["attention_mask"].sum(1)
    if "cu_seq_lens_q" not in batch:
        raise ValueError("data_collator returns no attention_mask, which says where rows end")
    return batch["cu_seq_lens_q"].diff()[: len(batch[INDEX])]
