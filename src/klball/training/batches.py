"""Training batches that know which samples they hold."""

from typing import Any

import torch

INDEX = "sample_index"  # the position of a sample in the training data


class WithIndex:
    """A collator that passes the sample index on beside what TRL's collator emits."""

    def __init__(self, collator: Any):
        self.collator = collator

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = self.collator(examples)
        if INDEX in examples[0]:
            batch[INDEX] = torch.tensor([example[INDEX] for example in examples])
        return batch
