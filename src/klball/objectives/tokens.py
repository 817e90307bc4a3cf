"""Token objectives: token log-probabilities → token losses, pure functions of shape (B, T) → (B, T).

What they give at a position that is not an answer token is not used. An objective of your own is any such
function; one that needs more says so in an attribute `needs`, and is called with it by name (`NEEDS`).

`columns(log_probs, **needed)`, if it has that method, gives values a token (B, T) by name, of which rows
keep the sums over their answer; `metrics(columns)` turns a step's rows (those sums, `log_prob`, `num_tokens`)
into numbers for the log.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor

Objective = Callable[..., Tensor]
NEEDS = {  # what an objective may ask for beside log p_t, each (B, T), nats
    "entropy": "of the next-token distribution, with gradient",
    "certainty": "self-certainty KL(U‖p_t), with gradient",
    "old_log_probs": "log p_t of the model some steps ago",
    "reference_log_probs": "log p_t of the model before training",
}
UNDERFLOW = -100  # nats: beyond it the gradient is nothing


def nll(log_probs: Tensor) -> Tensor:
    """Negative log-likelihood: −log p_t. Supervised fine-tuning as usual."""
    return -log_probs


def dft(log_probs: Tensor) -> Tensor:
    """Dynamic fine-tuning: −sg(p_t)·log p_t, whose gradient is that of −p_t.

    Equivalent: `-(log_probs.exp().detach() * log_probs)`. Source: Wu et al., arXiv 2508.05629.
    """
    return -log_probs.exp().detach() * log_probs


class SequenceDFT:
    """The trajectory form of DFT: −sg(K(y|x))·log K(y|x), spread over the tokens of each row.

    Known to be unstable: beyond about 100 nats a row's gradient underflows to nothing.
    """

    def __call__(self, log_probs: Tensor) -> Tensor:
        return -log_probs.sum(-1, keepdim=True).exp().detach() * log_probs

    def metrics(self, columns: Mapping[str, Tensor]) -> dict[str, float]:
        """The share of rows without a gradient."""
        return {"underflow_fraction": float((columns["log_prob"] < UNDERFLOW).double().mean())}


@dataclass(frozen=True)
class Proximal:
    """Proximal fine-tuning, `psft`, with the clip c of `psft_clip`."""

    clip: float = 0.28
    needs: ClassVar[tuple[str, ...]] = ("old_log_probs",)

    def __call__(self, log_probs: Tensor, old_log_probs: Tensor) -> Tensor:
        return psft(log_probs, old_log_probs, self.clip)

    def configured(self, settings: Any) -> "Proximal":
        """With the clip of a configuration."""
        return replace(self, clip=settings.psft_clip)

    def columns(self, log_probs: Tensor, old_log_probs: Tensor) -> dict[str, Tensor]:
        """The ratios r_t, and which of them are above 1 + c."""
        ratio = (log_probs - old_log_probs).exp()
        return {"ratio": ratio, "clipped": ratio > 1 + self.clip}

    def metrics(self, columns: Mapping[str, Tensor]) -> dict[str, float]:
        """Means over the answer tokens."""
        tokens = columns["num_tokens"].sum()
        named = {"ratio": "ratio", "clip_fraction": "clipped"}
        return {title: float(columns[name].sum() / tokens) for title, name in named.items()}


def psft(log_probs: Tensor, old_log_probs: Tensor, clip: float = 0.28) -> Tensor:
    """Proximal fine-tuning: −min(r, clip(r, 1−c, 1+c)) with r = p_t/p_t^old; gradient −r·1[r ≤ 1+c]·∇log p.

    Equivalent: `-(log_probs - old_log_probs).exp().clamp(max=1 + clip)`, but clipped before it is
    exponentiated: ratios that overflow then have gradient 0, not NaN. The lower clip can never act.
    Source: Zhu et al., arXiv 2508.17784.
    """
    return -(log_probs - old_log_probs).clamp(max=math.log1p(clip)).exp()


OBJECTIVES: dict[str, Objective] = {"nll": nll, "dft": dft, "dft-sequence": SequenceDFT(), "psft": Proximal()}


def needs_of(objective: Objective | None) -> tuple[str, ...]:
    """What it needs besides the log-probabilities; names of `NEEDS`. Raises ValueError for no such names."""
    needs = getattr(objective, "needs", ())
    if isinstance(needs, str) or not all(isinstance(name, str) for name in needs):
        raise ValueError(f"needs must be a tuple of names, not {needs!r:.60}")
    return tuple(needs)


def plain_objectives() -> dict[str, Objective]:
    """The objectives that need nothing else."""
    return {name: objective for name, objective in OBJECTIVES.items() if not needs_of(objective)}


def objective_named(name: str, settings: Any = None) -> Objective:
    """The objective of that name, with its own settings. Raises ValueError naming the ones there are."""
    if name not in OBJECTIVES:
        raise ValueError(f"no objective {name!r}; there are {', '.join(OBJECTIVES)}")
    objective = OBJECTIVES[name]
    configured = getattr(objective, "configured", None)
    return objective if configured is None or settings is None else configured(settings)
