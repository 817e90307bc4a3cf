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
STEEPEST = 1e140  # slope, whose square is still a number


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
    """w = min(cap, slope·(zero − d)₊), d = (score − least)/width: the optimum of the modified χ² ball.

    d of the scores that were solved for is 0 at the least and 1 at the greatest; cap may be infinite.
    """

    least: float
    width: float
    zero: float
    slope: float
    cap: float

    def __call__(self, score: Tensor) -> Tensor:
        """w of fresh scores, elementwise."""
        distance = (score - self.least) / self.width
        return ((self.zero - distance).clamp(min=0.0) * self.slope).clamp(max=self.cap)


def tail(score: Array, base: Array, height: float) -> StepDensity:
    """The density that gives the smallest scores weight `height` until E_F[w] = 1.

    score [n], base [n] (f, sums to 1), height ≥ 1: CVaR at level 1/height.
    """
    score, base = score[base > 0], base[base > 0]
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
    score, base = score[base > 0], base[base > 0]
    least, width = float(score.min()), float(np.ptp(score))
    steepest = tail(score, base, min(cap, 1 / float(base[score == least].sum())))
    if chi_square(steepest, score, base) <= radius:
        return steepest, False
    distance = (score - least) / width
    order = np.argsort(distance, kind="stable")
    problem = _Sorted(distance[order], base[order], cap)
    low, high = 0.0, 1.0
    while problem.chi_square(high) <= radius and high < STEEPEST:
        low, high = high, 2 * high
    for _ in range(BISECTIONS):
        slope = 0.5 * (low + high)
        if slope in (low, high):
            break
        if problem.chi_square(slope) <= radius:
            low = slope
        else:
            high = slope
    return LinearDensity(least, width, *problem.polished(low, radius), cap), True


def chi_square(density: StepDensity | LinearDensity, score: Array, base: Array) -> float:
    """χ²(Q‖F) = E_F[(w − 1)²]."""
    w = density(torch.from_numpy(score)).numpy()
    return float(base @ (w - 1) ** 2)


class _Sorted:
    """Prefix sums over the distances from the worst score, ascending: a slope costs two searches, not a pass.

    They begin at the worst, so that what a few samples near to it add up to is not lost in all the others.
    """

    def __init__(self, distance: Array, base: Array, cap: float):
        self.distance, self.base, self.cap = distance, base, cap
        powers = (base, base * distance, base * distance**2)
        self.sums = [np.concatenate([[0.0], np.cumsum(p)]) for p in powers]

    def inside(self, zero: float, slope: float) -> slice:
        """Where 0 < w < cap; before it w is the cap, behind it 0. w = slope·(zero − distance)."""
        last = int(np.searchsorted(self.distance, zero, side="left"))
        if math.isinf(self.cap):
            return slice(0, last)
        first = int(np.searchsorted(self.distance, zero - self.cap / slope, side="right"))
        return slice(min(first, last), last)

    def parts(self, zero: float, slope: float) -> tuple[float, float, float, float, float]:
        """Σf, Σf·d, Σf·d² where 0 < w < cap, Σf where w = cap, Σf where w = 0."""
        at = self.inside(zero, slope)
        f, first, second = (float(s[at.stop] - s[at.start]) for s in self.sums)
        mass = self.sums[0]
        return f, first, second, float(mass[at.start]), float(mass[-1] - mass[at.stop])

    def zero(self, slope: float) -> float:
        """Where w reaches 0, by E_F[w] = 1, which rises with it."""
        low, high = 0.0, float(self.distance[-1]) + 1 / slope
        for _ in range(BISECTIONS):
            middle = 0.5 * (low + high)
            if middle in (low, high):
                break
            f, first, _, capped, _ = self.parts(middle, slope)
            if slope * (middle * f - first) + self.of_cap(capped) >= 1:
                high = middle
            else:
                low = middle
        return high

    def of_cap(self, capped: float, power: int = 1, less: float = 0.0) -> float:
        """(cap − less)^power·Σf where w = cap."""
        return (self.cap - less) ** power * capped if capped > 0 else 0.0

    def chi_square(self, slope: float) -> float:
        zero = self.zero(slope)
        f, first, second, capped, nothing = self.parts(zero, slope)
        above = slope * zero - 1
        square = above**2 * f - 2 * above * slope * first + slope**2 * second
        return square + self.of_cap(capped, 2, less=1.0) + nothing

    def polished(self, slope: float, radius: float) -> tuple[float, float]:
        """(zero, slope) from the two equations on the samples that bisection found inside.

        With mean m and variance v of their distances and w = a − b·(d − m): f·a is the mass left to them,
        f·((a − 1)² + b²v) their share of χ².
        """
        zero = self.zero(slope)
        _, _, _, capped, nothing = self.parts(zero, slope)
        at = self.inside(zero, slope)
        base, distance = self.base[at], self.distance[at]
        f = float(base.sum())
        if f <= 0:
            return zero, slope
        mean = float(base @ distance) / f
        variance = float(base @ (distance - mean) ** 2) / f
        level = (1 - self.of_cap(capped)) / f
        square = (radius - self.of_cap(capped, 2, less=1.0) - nothing) / f - (level - 1) ** 2
        if not (variance > 0 and square > 0):
            return zero, slope
        better = math.sqrt(square / variance)
        return mean + level / better, better
