"""Trimming: the hardest share of the data is left out as doubtful, and the adversary has the rest.

Mathematics: mathematics.md, "Other balls, and the other direction".
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from klball.adversary import inputs
from klball.adversary.dual import InfeasibleError
from klball.adversary.sets import AmbiguitySet
from klball.adversary.solution import SUMMARY, Scores, Solution
from klball.shown import Shown


@dataclass(frozen=True)
class Trimmed:
    """`inner` over what is left of F when the lowest scores, of base mass alpha, have been taken out.

    With F′ the rest and f′ = f·kept/(1 − α), where the unit at the edge keeps a part of its mass: Q in the
    inner set around F′, so q/f = kept/(1 − α) · q/f′. Source: Zhai et al., DORO, arXiv 2106.06142.

    Args:
        inner: The set over the rest: `KLBall(epsilon)`, `Empirical()` for trimming alone.
        alpha: The share left out, at least 0 and below 1.

    Raises:
        ValueError: An alpha that is no such share.
    """

    inner: AmbiguitySet
    alpha: float
    needs: ClassVar[tuple[str, ...]] = ("score",)

    def __post_init__(self) -> None:
        needs = ("score", *(name for name in self.inner.needs if name != "score"))
        object.__setattr__(self, "needs", needs)  # its own, as what the inner set needs is
        if not (inputs.is_finite(self.alpha) and 0 <= self.alpha < 1):
            raise ValueError(f"alpha must be a share of the data, at least 0 and below 1, not {self.alpha!r}")
        object.__setattr__(self, "alpha", float(self.alpha))

    def solve(
        self, scores: Scores, base_weights: Tensor | None = None, *, start: Tensor | None = None
    ) -> "TrimmedSolution":
        """Sorts by the score, then asks the inner set."""
        of_name = {name: inputs.named(scores, name) for name in self.needs}
        g = of_name["score"]
        f = inputs.base_of(base_weights, g)
        kept = _kept(g, f, self.alpha)
        there = kept > 0
        rest = f * kept / (f * kept).sum()
        inner = self.inner.solve({name: values[there] for name, values in of_name.items()}, rest[there])
        assert inner.weights is not None  # solved afresh
        weights = torch.zeros_like(g)
        weights[there] = inner.weights
        edge = float(g[kept < 1].max()) if bool((kept < 1).any()) else -math.inf
        return TrimmedSolution(inner, weights, kept, f, self.alpha, edge)

    def relaxed(self, error: InfeasibleError) -> "Trimmed":
        return replace(self, inner=self.inner.relaxed(error))

    def scaled(self, share: float) -> "Trimmed":
        return Trimmed(self.inner.scaled(share), share * self.alpha)

    def summary(self, solution: "TrimmedSolution") -> dict[str, float]:
        return self.inner.summary(solution.inner)


@dataclass(frozen=True, repr=False)
class TrimmedSolution(Shown):
    """kept: the share of its base weight that a unit keeps, [n]: 0, 1, or between at the edge.

    Which units are left out is decided by the scores that were solved for, not by fresh ones: at the edge
    rounding would decide. A unit that was not among them is left out up to the `edge`.
    """

    shows = SUMMARY

    inner: Solution
    weights: Tensor
    kept: Tensor
    base: Tensor
    alpha: float
    edge: float
    start: None = None

    @property
    def kl(self) -> float:
        there = self.weights > 0
        return float((self.weights[there] * (self.weights[there] / self.base[there]).log()).sum())

    @property
    def ess(self) -> float:
        return 1 / float((self.weights**2).sum())

    @property
    def worst_case(self) -> float:
        return self.inner.worst_case

    @property
    def status(self) -> str:
        return self.inner.status

    @property
    def scales(self) -> Mapping[str, float]:
        return self.inner.scales

    def density(self, scores: Scores) -> Tensor:
        g, unit = scores["score"], scores["unit"]
        inside, place = unit >= 0, unit.clamp(min=0)
        own = self.kept.to(g.dtype).to(g.device)[place]
        kept = torch.where(inside, own, (g > self.edge).to(g.dtype))
        factor = kept / (1 - self.alpha)
        position = ((self.kept > 0).cumsum(0) - 1).clamp(min=0).to(g.device)[place]
        position = torch.where(inside, position, -1)
        base = torch.where(kept > 0, scores["base"] * factor, 1.0)
        inner: dict[str, Any] = {**scores, "unit": position, "base": base}
        return torch.where(kept > 0, factor * self.inner.density(inner), 0.0)


def _kept(g: Tensor, f: Tensor, alpha: float) -> Tensor:
    """The share of its mass that each unit keeps, [n]; equal scores at the edge lose the same share."""
    levels, level = g.unique(return_inverse=True)
    mass = torch.zeros_like(levels).index_add(0, level, f)
    before = mass.cumsum(0) - mass
    lost = (alpha - before).clamp(min=0.0)
    share = torch.where(mass > 0, 1 - torch.minimum(lost / mass, torch.ones_like(mass)), 1.0)
    return share[level]
