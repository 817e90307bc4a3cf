"""A forward over pairs of answers: log-ratios to the reference, and what a step keeps of them for the log."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from torch import Tensor

from klball.data.rows import IGNORED
from klball.models.loading import causal_lm
from klball.models.modes import evaluating
from klball.objectives.pairs import LogRatios
from klball.training.batches import INDEX

REFERENCE = ("ref_chosen_logps", "ref_rejected_logps")  # of a batch, where they were computed before
OF_A_TOKEN = 2.0  # sd of a log-probability's rounding in units of the machine epsilon, as measured in bf16
NOT_THE_MODELS = ("completion_mask", INDEX, *REFERENCE)


class Answers(NamedTuple):
    """Of 2B sequences, all chosen answers first: log-probabilities (2B), and columns (B) for the log."""

    log_probs: Tensor
    columns: dict[str, Tensor]


def answers(model: Any, inputs: Mapping[str, Any]) -> Answers:
    """Log-probabilities of the answers summed over their tokens, nats, with gradient."""
    given = {name: value for name, value in inputs.items() if name not in NOT_THE_MODELS}
    labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, IGNORED)
    outputs = model(**given, labels=labels, use_cache=False, fused_lm_head=True)
    log_probs = outputs.log_probs.sum(1)
    sums = {
        "num_inputs": inputs["attention_mask"].sum(1),
        "tokens": outputs.label_mask.sum(1),
        "log_prob": log_probs.detach(),
        "entropy": outputs.entropy.detach().sum(1),
        "logits": outputs.mean_logits.detach().sum(1),
        "is_top1": (outputs.is_top1 & outputs.label_mask).sum(1),
    }
    columns: dict[str, Tensor] = {}
    for name, values in sums.items():
        columns[f"chosen_{name}"], columns[f"rejected_{name}"] = values.chunk(2)
    columns["num_inputs"] = columns.pop("chosen_num_inputs") + columns.pop("rejected_num_inputs")
    return Answers(log_probs, columns)


def reference(trainer: Any, inputs: Mapping[str, Any]) -> Tensor:
    """The reference's log-probabilities, (2B): computed before, by a model, or without the adapter."""
    if REFERENCE[0] in inputs:
        return torch.cat([inputs[name] for name in REFERENCE])
    if trainer.ref_model is None and not isinstance(trainer.model, PeftModel):
        raise ValueError(
            "precompute_ref_log_probs leaves no reference for other rows: give them as eval_dataset"
        )
    given = {name: value for name, value in inputs.items() if name != INDEX}
    if trainer.ref_model is not None:
        return torch.cat(trainer.compute_ref_log_probs(trainer.ref_model, given))
    with evaluating(trainer.model):  # else dropout and NEFTune would disturb the reference
        return torch.cat(trainer.compute_ref_log_probs(trainer.model, given))


def rounding(model: Any, accelerator: Any, tokens: float) -> float:
    """How far a log-ratio over so many tokens may lie from that of exact arithmetic, nats: four sd.

    Once weights have moved at all, every token rounds anew, whatever the shapes of the batches. The model's
    dtype is that of its embeddings: what an adapter rounds is as small as what it adds.
    """
    embeddings: Any = causal_lm(model).get_input_embeddings()
    kinds = {embeddings.weight.dtype}
    device = accelerator.device.type
    with accelerator.autocast():
        if torch.is_autocast_enabled(device):
            kinds.add(torch.get_autocast_dtype(device))
    return 4 * OF_A_TOKEN * max(torch.finfo(kind).eps for kind in kinds) * math.sqrt(tokens)


def log_ratios(log_probs: Tensor, reference: Tensor, inputs: Mapping[str, Any]) -> LogRatios:
    """Of both answers of every pair, with their tokens."""
    chosen, rejected = (log_probs - reference).chunk(2)
    return LogRatios(chosen, rejected, *inputs["completion_mask"].sum(1).chunk(2))


def ratio_columns(ratios: LogRatios) -> dict[str, Tensor]:
    """For `pair_metrics`."""
    return {"chosen_ratio": ratios.chosen.detach(), "rejected_ratio": ratios.rejected.detach()}


def pair_metrics(columns: Mapping[str, Tensor], beta: float) -> dict[str, float]:
    """By TRL's names, means over pairs or their tokens."""
    chosen, rejected = beta * columns["chosen_ratio"], beta * columns["rejected_ratio"]
    chosen_tokens, rejected_tokens = columns["chosen_tokens"].sum(), columns["rejected_tokens"].sum()
    entropy = columns["chosen_entropy"].sum() + columns["rejected_entropy"].sum()
    return {
        "rewards/chosen": float(chosen.mean()),
        "rewards/rejected": float(rejected.mean()),
        "rewards/margins": float((chosen - rejected).mean()),
        "rewards/accuracies": float((chosen > rejected).double().mean()),
        "logps/chosen": float(columns["chosen_log_prob"].mean()),
        "logps/rejected": float(columns["rejected_log_prob"].mean()),
        "logits/chosen": float(columns["chosen_logits"].sum() / chosen_tokens),
        "logits/rejected": float(columns["rejected_logits"].sum() / rejected_tokens),
        "entropy": float(entropy / (chosen_tokens + rejected_tokens)),
        "mean_token_accuracy": float(columns["chosen_is_top1"].sum() / chosen_tokens),
    }
