"""How far a fine-tuned model has moved from the one it started from, where nothing asked it to."""

import math

import torch
from datasets import Dataset

from klball.models.modes import in_evaluation
from klball.scores.scorer import Scorer, batches_by_length, rows_of


@in_evaluation
@torch.no_grad()
def forgetting(base: torch.nn.Module, model: torch.nn.Module, samples: Dataset) -> float:
    """Token mean of KL(π₀(·|x, y_<t) ‖ π(·|x, y_<t)) over answers y sampled from π₀, nats.

    Exact over the vocabulary at each position; the forward divergence of sequences per token.
    samples: encoded rows of `sample_answers(base, …)`. Raises ValueError for different vocabularies and
    for a divergence that is not finite.
    """
    scorers = [Scorer(m, samples[0]["input_ids"]) for m in (base, model)]
    sizes = [scorer.num_logits() for scorer in scorers]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"the models have {sizes[0]} and {sizes[1]} logits: forgetting is defined for one vocabulary"
        )
    total, tokens = 0.0, 0
    for batch in batches_by_length([len(ids) for ids in samples["input_ids"]]):
        rows = rows_of(samples, batch)
        for p, q in zip(*(scorer.log_distributions(rows) for scorer in scorers), strict=True):
            total += float((p.exp() * (p - q.to(p.device))).sum(-1).double().sum())
            tokens += len(p)
    if not math.isfinite(total):
        raise ValueError("forgetting is not finite: a model gives −inf or NaN logits")
    return total / tokens
