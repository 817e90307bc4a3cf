"""Token objectives: token log-probabilities → token losses, pure functions of shape (B, T) → (B, T).

What they give at a position that is not an answer token is not used.
"""

import math
from collections.abc import Callable

from torch import Tensor

Objective = Callable[[Tensor], Tensor]


def nll(log_probs: Tensor) -> Tensor:
    """Negative log-likelihood: −log p_t. Supervised fine-tuning as usual."""
    return -log_probs


def dft(log_probs: Tensor) -> Tensor:
    """Dynamic fine-tuning: −sg(p_t)·log p_t, whose gradient is that of −p_t.

    Equivalent: `-(log_probs.exp().detach() * log_probs)`. Source: Wu et al., arXiv 2508.05629.
    """
    return -log_probs.exp().detach() * log_probs


def dft_sequence(log_probs: Tensor) -> Tensor:
    """The trajectory form of DFT: −sg(K(y|x))·log K(y|x), spread over the tokens of each row.

    Known to be unstable: beyond about 100 nats a row's gradient underflows to nothing.
    """
    return -log_probs.sum(-1, keepdim=True).exp().detach() * log_probs


def psft(log_probs: Tensor, old_log_probs: Tensor, clip: float = 0.28) -> Tensor:
    """Proximal fine-tuning: −min(r, clip(r, 1−c, 1+c)) with r = p_t/p_t^old; gradient −r·1[r ≤ 1+c]·∇log p.

    Equivalent: `-(log_probs - old_log_probs).exp().clamp(max=1 + clip)`, but clipped before it is
    exponentiated: ratios that overflow then have gradient 0, not NaN. The lower clip can never act.
    Source: Zhu et al., arXiv 2508.17784.
    """
    return -(log_probs - old_log_probs).clamp(max=math.log1p(clip)).exp()


OBJECTIVES: dict[str, Objective] = {"nll": nll, "dft": dft, "dft-sequence": dft_sequence}
PROXIMAL = "psft"  # the one that also needs old log-probabilities


def objective_named(name: str) -> Objective:
    """The objective of that name. Raises ValueError naming the ones there are."""
    if name not in OBJECTIVES:
        raise ValueError(f"no objective {name!r}; there are {', '.join(OBJECTIVES)}")
    return OBJECTIVES[name]
