"""Log-probability, self-certainty and entropy of tokens, from hidden states and the LM head.

The logits (N, V) are never held: tiles of them are folded into running statistics, in float32 or
better whatever the model's dtype. For training, with gradients, TRL's fused head does this job.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

TOKENS_PER_TILE = 1_024
LOGITS_PER_TILE = 8_192


@dataclass(frozen=True)
class LMHead:
    """logits = softcap·tanh(z/softcap), or z without a soft-cap, with z = scale·(h Wᵀ + bias)."""

    weight: Tensor  # (V, H)
    bias: Tensor | None = None  # (V)
    scale: float = 1.0
    softcap: float | None = None

    def logits(self, hidden: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """Logits start..stop of hidden states (N, H), in float32 or better. No gradient."""
        weight = self.weight[start:stop]
        accurate = torch.promote_types(weight.dtype, torch.float32)
        if hidden.is_cuda and weight.dtype in (torch.bfloat16, torch.float16):
            z = torch.mm(hidden, weight.T, out_dtype=torch.float32)
        elif hidden.dtype == weight.dtype == torch.bfloat16:
            with _bf16_products():
                z = hidden.float() @ weight.float().T
        elif accurate == torch.float32 and _onednn(hidden):
            z = functional.linear(hidden.float().to_mkldnn(), weight.float()).to_dense()
        else:
            z = hidden.to(accurate) @ weight.to(accurate).T
        if self.bias is not None:
            z = z + self.bias[start:stop].to(accurate)
        return self.transform(z)

    def label_logits(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """The logit of each label only, (N), in float32 or better."""
        accurate = torch.promote_types(self.weight.dtype, torch.float32)
        z = (hidden.to(accurate) * self.weight[labels].to(accurate)).sum(-1)
        if self.bias is not None:
            z = z + self.bias[labels].to(accurate)
        return self.transform(z)

    def transform(self, z: Tensor) -> Tensor:
        """Scale and soft-cap."""
        z = z if self.scale == 1 else z * self.scale  # a tile is large: no copy for nothing
        return z if self.softcap is None else self.softcap * torch.tanh(z / self.softcap)


def _onednn(hidden: Tensor) -> bool:
    """Whether oneDNN can multiply these: MKL, which `@` calls, leaves half of AVX-512 idle on AMD."""
    here = hidden.device.type == "cpu" and torch.backends.mkldnn.is_available()
    return here and not torch.is_autocast_enabled("cpu")  # which knows no tensors of that layout


@contextmanager
def _bf16_products() -> Iterator[None]:
    """Multiply float32 copies of bf16 numbers as bf16 where the CPU can: exact, summed in float32, faster."""
    settings: Any = torch.backends.mkldnn.matmul  # pyright: ignore[reportAttributeAccessIssue]
    before = settings.fp32_precision
    settings.fp32_precision = "bf16"
    try:
        yield
    finally:
        settings.fp32_precision = before


class NonFiniteLogitError(ValueError):
    """The model gave a NaN or infinite logit."""


@dataclass(frozen=True)
class TokenScores:
    """Nats, each (N): log p_t, C_t = KL(U‖p) ≥ 0, and the entropy H_t."""

    log_prob: Tensor
    certainty: Tensor
    entropy: Tensor


def token_scores(hidden: Tensor, head: LMHead, labels: Tensor) -> TokenScores:
    """Scores of the labels (N) at hidden states (N, H); the same, without the (N, V) tensor, as

        z = head.logits(hidden)
        log_prob = z.log_softmax(-1).gather(-1, labels[:, None])[:, 0]
        certainty = z.logsumexp(-1) - z.mean(-1) - math.log(V)
        entropy = -(z.softmax(-1) * z.log_softmax(-1)).sum(-1)

    Units: nats. No gradient. Raises NonFiniteLogitError where a logit is not finite (C would be infinite).
    Self-certainty: Kang et al., arXiv 2502.18581.
    """
    tiles = [
        _one_tile(hidden[i : i + TOKENS_PER_TILE], head, labels[i : i + TOKENS_PER_TILE])
        for i in range(0, max(len(hidden), 1), TOKENS_PER_TILE)
    ]
    columns = (torch.cat(column) for column in zip(*tiles, strict=True))
    return _checked(TokenScores(*columns))


def scores_from_logits(logits: Tensor, labels: Tensor) -> TokenScores:
    """The same scores from logits (N, V) at hand, for heads that are not a plain projection."""
    z = logits.to(torch.promote_types(logits.dtype, torch.float32))
    log_z = z.logsumexp(-1)
    log_prob = z.gather(-1, labels[:, None])[:, 0] - log_z
    certainty = log_z - z.mean(-1) - math.log(z.shape[-1])
    entropy = log_z - ((z - log_z[:, None]).exp() * z).sum(-1)
    return _checked(TokenScores(log_prob, certainty.clamp(min=0), entropy.clamp(min=0)))


@torch.no_grad()
def _one_tile(hidden: Tensor, head: LMHead, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Online over the vocabulary: the running maximum m, Σ e^(z−m), Σ z e^(z−m), Σ z."""
    size = head.weight.shape[0]
    top = total = weighted = plain = torch.zeros(())
    for start in range(0, size, LOGITS_PER_TILE):
        z = head.logits(hidden, start, start + LOGITS_PER_TILE)  # (n, tile)
        tile_top = z.amax(-1)
        new_top = tile_top if start == 0 else torch.maximum(top, tile_top)
        exponentials = (z - new_top[:, None]).exp_()
        rescale = 0.0 if start == 0 else (top - new_top).exp()
        total = total * rescale + exponentials.sum(-1)
        weighted = weighted * rescale + exponentials.mul_(z).sum(-1)
        plain = plain + z.sum(-1)
        top = new_top
        del z, exponentials  # before there is room for the next tile
    log_z = top + total.log()
    log_prob = head.label_logits(hidden, labels) - log_z
    certainty = log_z - plain / size - math.log(size)
    entropy = log_z - weighted / total
    # rounding may leave the smallest of these a hair on the wrong side of zero
    return log_prob.clamp(max=0), certainty.clamp(min=0), entropy.clamp(min=0)


def _checked(scores: TokenScores) -> TokenScores:
    if not bool(torch.isfinite(scores.certainty).all() & torch.isfinite(scores.log_prob).all()):
        raise NonFiniteLogitError(
            "the model gave a NaN or infinite logit, so certainty and log-likelihood are undefined; "
            "score with --dtype float32, or remove what masks logits with −inf"
        )
    return scores
