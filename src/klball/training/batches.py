"""Training batches that know which samples they hold."""

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch.utils.data import Sampler
from tqdm.auto import tqdm

from klball.scores.scorer import batches_by_length

INDEX = "sample_index"  # the position of a sample in the training data


def batches_of_process(
    lengths: Sequence[int], accelerator: Any, title: str, quiet: bool
) -> Iterator[tuple[list[int], bool]]:
    """This process's batches of rows of these lengths, and whether each counts, with a bar unless quiet.

    A sharded model needs every process in every forward: the last may score a batch for nothing.
    """
    batches = batches_by_length(lengths)
    processes, rank = accelerator.num_processes, accelerator.process_index
    own = [*batches, *batches[-1:] * (-len(batches) % processes)][rank::processes]
    with tqdm(total=len(lengths), desc=title, unit=" rows", leave=False, disable=quiet) as bar:
        for k, batch in enumerate(own):
            yield batch, k * processes + rank < len(batches)
            bar.update(min(len(batch) * processes, len(lengths) - bar.n))


class SharedOrder(Sampler[int]):
    """A sampler that draws from a generator of the epoch's own: one order for all processes and resumptions.

    seed: of the epoch that begins; None: draw from the global generator. Without it one rank's rows would be
    dealt by one order and another's by another, some twice and some never, and a run that goes on in its
    second epoch would skip the beginning of another order than it had.
    """

    def __init__(self, sampler: Any, seed: Callable[[], int | None]):
        self.sampler, self.seed = sampler, seed

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[int]:
        seed = self.seed()
        self.sampler.generator = None if seed is None else torch.Generator().manual_seed(seed)
        return iter(self.sampler)


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
