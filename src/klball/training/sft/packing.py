"""Packs: whole samples side by side in one row, and the check that a model keeps them apart."""

from collections.abc import Callable
from typing import Any

import torch
from accelerate.utils import send_to_device
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel
from trl import pack_dataset

from klball.models.loading import causal_lm
from klball.models.modes import evaluating
from klball.training.batches import INDEX
from klball.training.sft.config import RobustSFTConfig
from klball.training.sft.forward import SampleForward

PROBE_TOKENS = 64
CROSSING = 0.1  # of the effect that a neighbour has when nothing keeps it apart


def packed(samples: Dataset, args: RobustSFTConfig) -> Dataset:
    """Rows of at most `max_length` tokens, filled best fit first with whole samples, always the same way.

    Columns input_ids, labels and the index of every token's sample, side by side, and the samples'
    `seq_lengths`. Raises ValueError if a sample is longer than a pack.
    """
    assert args.max_length is not None
    too_long = sum(len(ids) > args.max_length for ids in samples["input_ids"])
    if too_long:
        raise ValueError(
            f"{too_long} rows are longer than max_length = {args.max_length}: packing would cut them; leave "
            "out skip_prepare_dataset, which counts what it cuts"
        )
    tokens = samples.select_columns(["input_ids", "labels", INDEX]).map(
        _with_index_of_every_token, num_proc=args.dataset_num_proc, desc="Numbering tokens"
    )
    packs = pack_dataset(tokens, args.max_length, "bfd", {"num_proc": args.dataset_num_proc})
    return packs.shuffle(seed=args.seed) if args.shuffle_dataset else packs


def _with_index_of_every_token(row: dict[str, Any]) -> dict[str, Any]:
    return {INDEX: [row[INDEX]] * len(row["input_ids"])}


@torch.no_grad()
def refuse_crossing_attention(
    model: PreTrainedModel, forward: SampleForward, collator: Callable[..., dict[str, Any]], samples: Dataset
) -> None:
    """Raise ValueError if the scores of a sample depend on its neighbour in a pack.

    Packed samples are told apart by `position_ids` alone, which not every model and attention heeds. So
    one sample is scored alone, behind another in a pack, and as the continuation of that other: the
    pack has to be near the first, in units of the distance of the last.
    """
    neighbour, own = ((ids * 2)[:PROBE_TOKENS] for ids in (samples[0]["input_ids"], samples[-1]["input_ids"]))

    def last_scores(*rows: list[int]) -> Tensor:
        examples = [{"input_ids": ids, "labels": ids, INDEX: k} for k, ids in enumerate(rows)]
        batch: Any = send_to_device(collator(examples), model.device)
        scores = forward(model, batch)
        return scores.log_probs[-1][scores.mask[-1]][1 - len(own) :].double()

    with evaluating(model):
        alone, behind = last_scores(own), last_scores(neighbour, own)
        continuing = last_scores(neighbour + own)
    if (behind - alone).norm() > CROSSING * (continuing - alone).norm():
        model = causal_lm(model)
        attention = model.config._attn_implementation
        raise ValueError(
            f"{type(model).__name__} with attn_implementation={attention!r} lets packed samples meet"
            ": use sdpa, eager, flex or flash attention, or set packing=False and padding_free=False"
        )
