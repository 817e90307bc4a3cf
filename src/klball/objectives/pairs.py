"""Pair losses: how much better a model finds the chosen of two answers → one loss a pair, (B) → (B).

Each is a pure function of the log-ratios log π(y|x) − log π_ref(y|x) of both answers, in nats, summed over
their tokens. Losses that only exist for a batch (`aot` sorts it), or are no function of these (`sft`), have
no place here: the adversary weighs pairs one by one.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


class LogRatios(NamedTuple):
    """Of both answers of B pairs: log π − log π_ref (B), nats, and their tokens (B)."""

    chosen: Tensor
    rejected: Tensor
    chosen_tokens: Tensor
    rejected_tokens: Tensor

    @property
    def margin(self) -> Tensor:
        """Δ, the difference of the two, (B)."""
        return self.chosen - self.rejected

    @property
    def mean_margin(self) -> Tensor:
        """Δ̄, the difference of the two per token, (B)."""
        chosen, rejected = self.chosen_tokens.clamp(min=1), self.rejected_tokens.clamp(min=1)
        return self.chosen / chosen - self.rejected / rejected


PairLoss = Callable[[LogRatios, float, float], Tensor]


def sigmoid(ratios: LogRatios, beta: float, flip_rate: float = 0.0) -> Tensor:
    """DPO: −log σ(βΔ). Source: Rafailov et al., arXiv 2305.18290."""
    return -logsigmoid(beta * ratios.margin)


def sigmoid_norm(ratios: LogRatios, beta: float, flip_rate: float = 0.0) -> Tensor:
    """DPO per token: −log σ(βΔ̄)."""
    return -logsigmoid(beta * ratios.mean_margin)


def hinge(ratios: LogRatios, beta: float, flip_rate: float = 0.0) -> Tensor:
    """SLiC: max(0, 1 − βΔ). Source: Zhao et al., arXiv 2305.10425."""
    return (1 - beta * ratios.margin).clamp(min=0.0)


def ipo(ratios: LogRatios, beta: float, flip_rate: float = 0.0) -> Tensor:
    """IPO: (Δ̄ − 1/(2β))², least at Δ̄ = 1/(2β). Source: Azar et al., arXiv 2310.12036; per token, as TRL."""
    return (ratios.mean_margin - 1 / (2 * beta)) ** 2


def robust(ratios: LogRatios, beta: float, flip_rate: float = 0.0) -> Tensor:
    """rDPO: ((1−e)·ℓ(Δ) − e·ℓ(−Δ))/(1−2e), ℓ that of `sigmoid`, e the flip rate.

    If labels are flipped with probability e, its mean is the clean ℓ. Source: Chowdhury et al.,
    arXiv 2403.00409.
    """
    kept, flipped = -logsigmoid(beta * ratios.margin), -logsigmoid(-beta * ratios.margin)
    return ((1 - flip_rate) * kept - flip_rate * flipped) / (1 - 2 * flip_rate)


def apo_zero(ratios: LogRatios, beta: float, flip_rate: float = 0.0) -> Tensor:
    """APO, both answers about as good as the model's: σ(−βr_w) + σ(βr_l). Source: arXiv 2408.06266."""
    return torch.sigmoid(-beta * ratios.chosen) + torch.sigmoid(beta * ratios.rejected)


def apo_down(ratios: LogRatios, beta: float, flip_rate: float = 0.0) -> Tensor:
    """APO, both answers worse than the model's: σ(βr_w) + σ(−βΔ). Source: arXiv 2408.06266."""
    return torch.sigmoid(beta * ratios.chosen) + torch.sigmoid(-beta * ratios.margin)


PAIR_LOSSES: dict[str, PairLoss] = {
    loss.__name__: loss for loss in (sigmoid, sigmoid_norm, hinge, ipo, robust, apo_zero, apo_down)
}


def bradley_terry(chosen: Tensor, rejected: Tensor, margin: Tensor | None, centring: float) -> Tensor:
    """A reward model's loss: −log σ(r_w − r_l − m) + c·(r_w + r_l)², (B)."""
    difference = chosen - rejected if margin is None else chosen - rejected - margin
    losses = -logsigmoid(difference)
    return losses + centring * (chosen + rejected) ** 2 if centring else losses


def no_preference_radius(flip_rate: float) -> float:
    """ε₀(η) = −½ log(4η(1−η)), nats: from this radius of a KL ball over pairs on nothing is learnt.

    With a share η of labels flipped, the worst case in the ball takes q ≥ ½ of the weight for them, so that
    the best margin is 0 (derived for one feature: docs/mathematics.md). Infinite at η = 0.
    Raises ValueError for a rate outside [0, ½].
    """
    try:
        share = math.nan if isinstance(flip_rate, str) else float(flip_rate)
    except (TypeError, ValueError, RuntimeError):
        share = math.nan
    if not 0 <= share <= 0.5:
        raise ValueError(f"flip_rate must be a share from 0 to 0.5, not {flip_rate!r}")
    return math.inf if share == 0 else 0.5 * math.log(1 / (4 * share * (1 - share)))
