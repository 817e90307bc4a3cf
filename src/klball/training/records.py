"""What an optimizer step keeps of its samples, a row each, and the metrics that the rows add up to."""

from collections.abc import Sequence

import torch
from torch import Tensor

from klball.training.sft.forward import BatchScores, token_sums

COLUMNS = ("index", "keep", "log_likelihood", "certainty", "density", "num_inputs", "num_tokens")
SUMS = ("log_prob", "entropy", "is_top1")  # over the answer tokens of a sample
RATIOS = ("ratio", "clipped")  # the same, for PSFT only


def sample_rows(
    index: Tensor,
    keep: Tensor,
    log_likelihood: Tensor,
    certainty: Tensor | None,
    density: Tensor,
    num_inputs: Tensor,
    scores: BatchScores,
    ratios: Sequence[Tensor],
) -> Tensor:
    """One micro-batch in float64 on the CPU, a row for each sample, for `named_columns`."""
    certainty = torch.zeros_like(log_likelihood) if certainty is None else certainty
    columns = [index, keep, log_likelihood, certainty, density, num_inputs, scores.num_tokens]
    columns += [token_sums(v) for v in (scores.log_probs, scores.entropy, scores.is_top1)]
    return torch.stack([column.cpu().double() for column in [*columns, *ratios]], dim=1)


def named_columns(rows: Tensor) -> dict[str, Tensor]:
    """The columns of `sample_rows` by name."""
    names = (*COLUMNS, *SUMS, *RATIOS)[: rows.shape[1]]
    return dict(zip(names, rows.unbind(1), strict=True))


def step_metrics(columns: dict[str, Tensor]) -> dict[str, float]:
    """What every logging step reports of the samples it trained on."""
    log_prob, tokens = columns["log_prob"], columns["num_tokens"]

    def per_token(name: str) -> float:
        return float(columns[name].sum() / tokens.sum())

    metrics = {
        "mean_weight": float(columns["density"].mean()),
        "max_weight": float(columns["density"].max()),
        "plain_loss": float(-(log_prob / tokens).mean()),
        "nll": -per_token("log_prob"),
        "entropy": per_token("entropy"),
        "mean_token_accuracy": per_token("is_top1"),
    }
    if "ratio" in columns:
        metrics |= {"ratio": per_token("ratio"), "clip_fraction": per_token("clipped")}
    return metrics
