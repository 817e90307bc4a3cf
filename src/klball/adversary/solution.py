"""What a set answers: weights of the scored units, density of fresh scores (mathematics.md, "Tilts")."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from klball.adversary.answers import DualSolution
from klball.shown import Shown

Scores = Mapping[str, Tensor]
"""By name, each [n]: "score" (larger is better) and, where the set needs it, "certainty". For `density`
also "unit" (the positions of the scored units among the n, −1 for one that is not) and "base" (their base
weights f)."""


SUMMARY = ("status", "worst_case", "kl", "ess")


class Solution(Protocol):
    """The adversary's answer Q to the scores it was asked about."""

    @property
    def weights(self) -> Tensor | None:
        """q, [n], float64, sums to 1; None where a warm solve did not build it."""
        ...

    @property
    def kl(self) -> float:
        """KL(Q‖F), nats."""
        ...

    @property
    def ess(self) -> float:
        """Effective sample size 1/Σq²."""
        ...

    @property
    def worst_case(self) -> float:
        """E_Q of the score."""
        ...

    @property
    def status(self) -> str:
        """optimal, or which limit the answer lies at: point_mass, capped, …"""
        ...

    @property
    def start(self) -> Tensor | None:
        """What the next `solve` may start from, kept in checkpoints; None: it solves afresh."""
        ...

    @property
    def scales(self) -> Mapping[str, float]:
        """How far all scores of a name have to move together before weights follow: λ of a tilt, λ/β for C.

        In general −1 / (the change of E_F[density] with the score). Drift is measured against it.
        """
        ...

    def density(self, scores: Scores) -> Tensor:
        """q/f of units by their fresh scores, like scores["score"], on its device, no synchronisation."""
        ...


@dataclass(frozen=True, repr=False)
class TiltSolution(Shown):
    """The answer in a KL ball: q/f = min(c, exp((μ − g − βC)/λ)); where λ is 0 or ∞, the weights' own.

    sign: −1 where the direction is optimistic; `dual` is then the solution for −g.
    """

    shows = SUMMARY

    dual: DualSolution[Tensor | None]
    cap: float | None = None
    sign: float = 1.0

    @property
    def weights(self) -> Tensor | None:
        return self.dual.weights

    @property
    def kl(self) -> float:
        return self.dual.kl

    @property
    def ess(self) -> float:
        return self.dual.ess

    @property
    def worst_case(self) -> float:
        return self.sign * self.dual.worst_case

    @property
    def scales(self) -> Mapping[str, float]:
        lambda_, beta = self.dual.lambda_, self.dual.beta
        return {"score": lambda_, "certainty": lambda_ / beta if beta > 0 else math.inf}

    @property
    def status(self) -> str:
        return self.dual.status

    @property
    def start(self) -> Tensor | None:
        """(λ, β)."""
        multipliers = (self.dual.lambda_, self.dual.beta)
        return torch.tensor(multipliers, dtype=torch.float64) if self.is_tilt else None

    @property
    def is_tilt(self) -> bool:
        """Whether the density is a formula."""
        return 0 < self.dual.lambda_ < math.inf and math.isfinite(self.dual.mu)

    def density(self, scores: Scores) -> Tensor:
        g, base = scores["score"], scores["base"]
        if not self.is_tilt:
            return own_density(self.weights, scores, torch.ones_like(g))
        exponent = self.dual.mu - self.sign * g
        if self.dual.beta > 0:
            exponent = exponent - self.dual.beta * scores["certainty"]
        density = (exponent / self.dual.lambda_).exp()
        if self.cap is not None:
            density = density.clamp(max=self.cap)
        # no q exceeds 1, however far a score has moved since the multipliers were solved
        return torch.minimum(density, 1 / base)


@dataclass(frozen=True, repr=False)
class DensitySolution(Shown):
    """An answer whose density is a function of sign·score; where that `steps`, the weights' own."""

    shows = SUMMARY

    weights: Tensor
    kl: float
    ess: float
    worst_case: float
    status: str
    function: Callable[[Tensor], Tensor]
    scale: float
    sign: float = 1.0
    steps: bool = False
    start: None = None

    @property
    def scales(self) -> Mapping[str, float]:
        return {"score": self.scale}

    def density(self, scores: Scores) -> Tensor:
        fresh = torch.minimum(self.function(self.sign * scores["score"]), 1 / scores["base"])
        return own_density(self.weights, scores, fresh) if self.steps else fresh


def own_density(weights: Tensor | None, scores: Scores, outside: Tensor) -> Tensor:
    """q/f of the scored units themselves, where a step would let rounding of a fresh score decide.

    outside: that of units which were not among the n, (B).
    """
    assert weights is not None
    unit, kept = scores["unit"], weights.to(outside.dtype).to(outside.device)
    return torch.where(unit < 0, outside, kept[unit.clamp(min=0)] / scores["base"])
