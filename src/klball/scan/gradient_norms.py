"""Exact per-sample gradient norms in the LM head, by autograd."""

from typing import Any

import torch
from datasets import Dataset
from torch import Tensor

from klball.data.rows import IGNORED
from klball.models.loading import causal_lm
from klball.models.modes import in_evaluation
from klball.objectives.tokens import plain_objectives
from klball.scores.parts import Progress


@in_evaluation
def head_gradient_norms(
    model: torch.nn.Module, encoded: Dataset, progress: Progress | None = None
) -> dict[str, list[float]]:
    """For every objective, ‖∂/∂W (1/T) Σ_t ℓ_t‖ of each row, W the weight of the LM head.

    Where the head is tied to the embeddings, the part that reaches W through the embeddings is left
    out: the backbone is not differentiated.
    """
    inner = causal_lm(model)
    head: Any = inner.get_output_embeddings()
    weight: Tensor = head.weight
    required = weight.requires_grad
    weight.requires_grad_(True)
    frozen = [p for p in inner.parameters() if p is not weight and p.requires_grad]
    for parameter in frozen:  # no graph through the backbone
        parameter.requires_grad_(False)
    norms: dict[str, list[float]] = {name: [] for name in plain_objectives()}
    try:
        for done, row in enumerate(encoded.to_list(), start=1):
            log_probs = _log_probs(inner, head, row)
            for name, objective in plain_objectives().items():
                loss = objective(log_probs[None]).sum() / len(log_probs)
                (gradient,) = torch.autograd.grad(loss, weight, retain_graph=True)
                norms[name].append(float(gradient.norm()))
            if progress is not None:
                progress(done, len(encoded))
    finally:
        weight.requires_grad_(required)
        for parameter in frozen:
            parameter.requires_grad_(True)
    return norms


def _log_probs(model: Any, head: Any, row: dict[str, list[int]]) -> Tensor:
    """log p_t of the answer tokens, differentiable in the head alone."""
    ids = torch.tensor([row["input_ids"]], device=head.weight.device)
    labels = torch.tensor(row["labels"][1:], device=head.weight.device)
    answered = labels != IGNORED
    # the model's own path from hidden states to logits, scale and soft-cap included, cut off below
    hook = head.register_forward_pre_hook(lambda module, args: (args[0].detach(),))
    try:
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1][answered]
    finally:
        hook.remove()
    return logits.float().log_softmax(-1).gather(-1, labels[answered][:, None])[:, 0]
