"""Worst cases that sorting solves: CVaR and the modified χ² ball.

Derived in mathematics.md, "Other balls, and the other direction".

Both maximise E_Q[loss], loss = −score, over densities w = q/f with 0 ≤ w ≤ c and E_F[w] = 1.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray

BISECTIONS = 200  # of a bracket in float64: until its ends are neighbours


@dataclass(frozen=True)
class StepDensity:
    """w = height where the score is below `threshold`, `tie` where it equals it, 0 above: CVaR's optimum."""

    threshold: float
    height: float
    tie: float

    def __call__(self, score: Tensor) -> Tensor:
        """w of fresh scores, elementwise."""
        below = (score < self.threshold).to(score.dtype) * self.height
        return torch.where(score == self.threshold, self.tie, below)


@dataclass(frozen=True)
class LinearDensity:
    """w = min(cap, slope·(zero − score)₊): the optimum of the modified χ² ball; cap may be infinite."""

    zero: float
    slope: float
    cap: float

    def __call__(self, score: Tensor) -> Tensor:
        """w of fresh scores, elementwise."""
        return ((self.zero - score).clamp(min=0.0) * self.slope).clamp(max=self.cap)


def tail(score: Array, base: Array, height: float) -> StepDensity:
    """The density that gives the smallest scores weight `height` until E_F[w] = 1.

    score [n], base [n] (f, sums to 1), height ≥ 1: CVaR at level 1/height.
    """
    order = np.argsort(score, kind="stable")
    mass = np.cumsum(base[order])
    last = int(np.searchsorted(mass, min(1 / height, mass[-1])))  # the sum may lack a bit of 1
    threshold = score[order[last]]
    below, tied = float(base[score < threshold].sum()), float(base[score == threshold].sum())
    return StepDensity(float(threshold), height, min((1 - height * below) / tied, height))


def linear(score: Array, base: Array, radius: float, cap: float) -> tuple[LinearDensity | StepDensity, bool]:
    """The density of the worst case in {w : E_F[(w − 1)²] ≤ radius, 0 ≤ w ≤ cap}, and whether the ball binds.

    score [n], base [n] (f, sums to 1). Where it does not bind: `tail` at the cap, or all weight on the
    smallest scores.
    """
    steepest = tail(score, base, min(cap, 1 / float(base[score == score.min()].sum())))
    if second_moment(steepest, score, base) <= 1 + radius:
        return steepest, False
    order = np.argsort(-score, kind="stable")  # losses from small to large
    problem = _Sorted(-(score[order] - score.max()), base[order], cap)
    low, high = 0.0, 1.0
    while problem.second_moment(high) <= 1 + radius:
        low, high = high, 2 * high
    for _ in range(BISECTIONS):
        slope = 0.5 * (low + high)
        if slope in (low, high):
            break
        if problem.second_moment(slope) <= 1 + radius:
            low = slope
        else:
            high = slope
    zero, slope = problem.polished(low, 1 + radius)
    return LinearDensity(float(score.max() - zero), slope, cap), True


def second_moment(density: StepDensity | LinearDensity, score: Array, base: Array) -> float:
    """E_F[w²] = 1 + χ²(Q‖F)."""
    w = density(torch.from_numpy(score)).numpy()
    return float(base @ w**2)


class _Sorted:
    """Prefix sums over the losses in ascending order, so that a slope costs two searches, not a pass."""

    def __init__(self, loss: Array, base: Array, cap: float):
        self.loss, self.cap = loss, cap
        powers = (base, base * loss, base * loss**2)
        self.sums = [np.concatenate([[0.0], np.cumsum(p)]) for p in powers]

    def parts(self, zero: float, slope: float) -> tuple[float, float, float, float]:
        """Σf, Σf·loss, Σf·loss² where 0 < w < cap, and Σf where w = cap; w = slope·(loss − zero)."""
        first = int(np.searchsorted(self.loss, zero, side="right"))
        last = len(self.loss)
        if math.isfinite(self.cap):
            last = max(first, int(np.searchsorted(self.loss, zero + self.cap / slope, side="left")))
        inside = [float(s[last] - s[first]) for s in self.sums]
        return inside[0], inside[1], inside[2], float(self.sums[0][-1] - self.sums[0][last])

    def zero(self, slope: float) -> float:
        """Where w reaches 0, by E_F[w] = 1, which falls as it rises."""
        low, high = float(self.loss[0]) - 1 / slope, float(self.loss[-1])
        for _ in range(BISECTIONS):
            middle = 0.5 * (low + high)
            if middle in (low, high):
                break
            f, first, _, capped = self.parts(middle, slope)
            if slope * (first - middle * f) + self.cap_mass(capped) >= 1:
                low = middle
            else:
                high = middle
        return low

    def cap_mass(self, capped: float) -> float:
        return self.cap * capped if capped > 0 else 0.0

    def second_moment(self, slope: float) -> float:
        zero = self.zero(slope)
        f, first, second, capped = self.parts(zero, slope)
        capped_square = self.cap**2 * capped if capped > 0 else 0.0
        return slope**2 * (second - 2 * zero * first + zero**2 * f) + capped_square

    def polished(self, slope: float, moment: float) -> tuple[float, float]:
        """(zero, slope) from the two equations on the samples that bisection found inside.

        With mean m and variance v of their losses and w = a + b·(loss − m): f·a is the mass left to them,
        f·(a² + b²v) their share of the second moment.
        """
        zero = self.zero(slope)
        f, first, second, capped = self.parts(zero, slope)
        capped_square = self.cap**2 * capped if capped > 0 else 0.0
        if f <= 0:
            return zero, slope
        mean = first / f
        variance = second / f - mean**2
        level = (1 - self.cap_mass(capped)) / f
        square = (moment - capped_square) / f - level**2
        if not (variance > 0 and square > 0):
            return zero, slope
        better = math.sqrt(square / variance)
        return mean - level / better, better
