"""The ledger of prompts: mean rewards over the last completions, shrunk towards what they share."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from klball.adversary.solution import Solution
from klball.training.ledger import Ledger


class RewardLedger(Ledger):
    """Mean rewards p̂ of n prompts, each seen through its last G completions only.

        p̃ = (G p̂ + κ m)/(G + κ)           m the mean of p̂, G the prompt's own completions that got a reward
        κ = mean σ² / (Var p̂ − mean σ²/G)   where it is estimated: the variance within prompts over that
                                           between them, each known without bias; ∞ where none is left

    Noise makes prompts look worse than they are where they look bad: E_Q[p̂] is below E_Q[p], and E_Q[p̃] is
    not, whence λ falls by G/(G + κ). With one G for all, shrinking maps scores affinely, and the weights of
    a ball stay as they are; but at κ = ∞, where prompts do not differ beyond noise, all weigh the same.

    shrinkage: κ, in completions; None: estimated.
    """

    def __init__(self, size: int, shrinkage: float | None = None):
        super().__init__(size)
        self.shrinkage = shrinkage
        self.drift.visits = 1  # no scoring of all comes first, so the first gap is drift, and no offset
        self.count = torch.zeros(size, dtype=torch.float64)  # G
        self.variance = torch.zeros(size, dtype=torch.float64)  # σ², of a completion

    @property
    def kappa(self) -> float:
        """κ as it is now."""
        if self.shrinkage is not None:
            return self.shrinkage
        seen = self.known & (self.count > 1)
        if int(seen.sum()) < 2:
            return math.inf
        within, counts = self.variance[seen], self.count[seen]
        between = float(self.entries["score"][seen].var() - (within / counts).mean())
        if between <= 0:
            return math.inf
        return float(within.mean()) / between

    def scores(self) -> dict[str, Tensor]:
        """The shrunken mean rewards, the drift's shift included; of unknown prompts, without meaning."""
        rewards = super().scores()["score"]
        if not bool(self.known.any()):
            return {"score": rewards}
        kappa, mean = self.kappa, rewards[self.known].mean()
        kept = torch.zeros_like(rewards) if math.isinf(kappa) else self.count / (self.count + kappa)
        return {"score": torch.where(self.known, mean + kept * (rewards - mean), mean)}

    def record(self, index: Tensor, fresh: Mapping[str, Tensor], solution: Solution | None) -> None:
        """Enter the mean rewards ("score"), variances ("variance") and counts ("count") of prompts."""
        super().record(index, fresh, solution)
        self.count[index] = fresh["count"].double()
        self.variance[index] = fresh["variance"].double()

    def tensors(self) -> dict[str, Tensor]:
        return {**super().tensors(), "count": self.count, "variance": self.variance}

    def load(self, tensors: Mapping[str, Any]) -> None:
        super().load(tensors)
        self.count, self.variance = tensors["count"], tensors["variance"]


def group_statistics(rewards: Tensor) -> dict[str, Tensor]:
    """Mean, variance and count of the rewards of each prompt's completions, NaN where one got none.

    rewards: (prompts, G). Returns "score", "variance" (0 where all are the same) and "count", (prompts)
    each; a prompt without any reward has the count 0 and the score 0.
    """
    there = ~rewards.isnan()
    count = there.sum(1)
    filled = rewards.double().nan_to_num(0.0)
    mean = filled.sum(1) / count.clamp(min=1)
    square = ((filled - mean[:, None]) ** 2 * there).sum(1) / (count - 1).clamp(min=1)
    low = rewards.nan_to_num(math.inf).amin(1)
    high = torch.where(there, rewards, -math.inf).amax(1)
    return {"score": mean, "variance": square.masked_fill(high <= low, 0.0), "count": count}
