"""What an optimizer step keeps of its samples for the log, and the metrics that the rows add up to."""

from collections.abc import Mapping

from torch import Tensor

from klball.training.returned import distinct
from klball.training.sft.forward import BatchScores, token_sums


def columns_of(scores: BatchScores, num_inputs: Tensor, more: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One micro-batch, (B) each: sums over the answer tokens of a sample; more: values a token, (B, T−1)."""
    own = {"log_prob": scores.log_probs, "entropy": scores.entropy, "is_top1": scores.is_top1}
    tokens = distinct(own, more)
    sums = {name: token_sums(values.masked_fill(~scores.mask, 0)) for name, values in tokens.items()}
    return distinct({"num_inputs": num_inputs, "num_tokens": scores.num_tokens}, sums)


def metrics_of(columns: Mapping[str, Tensor]) -> dict[str, float]:
    """What every logging step reports of the samples it trained on."""
    log_prob, tokens = columns["log_prob"], columns["num_tokens"]
    return {
        "plain_loss": float(-(log_prob / tokens).mean()),
        "nll": -float(log_prob.sum() / tokens.sum()),
        "entropy": float(columns["entropy"].sum() / tokens.sum()),
        "mean_token_accuracy": float(columns["is_top1"].sum() / tokens.sum()),
    }
