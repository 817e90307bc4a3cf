"""Whether a model reads from left to right: one that sees the answer would score it as known."""

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled

from klball.models.modes import evaluating


@torch.no_grad()
def refuse_looking_ahead(name: str, logits_of: Callable[[Tensor], Tensor], ids: Tensor) -> None:
    """Raise ValueError if another last token moves the logits (1, L, V) of those before it, ids (1, L)."""
    if ids.shape[1] < 2:
        return
    other = ids.clone()
    other[:, -1] = (ids[:, -1] == 0).long()
    before, after = (logits_of(one)[:, :-1] for one in (ids, other))
    tolerance = 1e-4 if before.dtype in (torch.float32, torch.float64) else 1e-2  # experts' noise
    if bool(((before - after).abs() > tolerance * before.abs().max()).any()):
        raise ValueError(
            f"{name} sees the tokens that it is to predict, as encoders do: take a causal language model, or "
            "set what makes it one in its config.json (is_decoder, of XLM causal)"
        )


def refuse_encoder(model: PreTrainedModel) -> None:
    """Raise ValueError if it is one of those models that read both ways unless `is_decoder` is set."""
    scattered = model.device.type == "meta" or is_deepspeed_zero3_enabled()
    predicts = model.get_output_embeddings() is not None
    if scattered or not predicts or getattr(model.config, "is_decoder", None) is not False:
        return
    ids = torch.arange(4, device=model.device)[None]
    with evaluating(model):
        refuse_looking_ahead(type(model).__name__, lambda ids: model(input_ids=ids).logits, ids)
