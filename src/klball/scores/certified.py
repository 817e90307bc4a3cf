"""Worst cases that hold for the population of a sample (mathematics.md, "Certified worst cases")."""

import math
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
from scipy import stats
from scipy.special import gammaln
from torch import Tensor

from klball.adversary import inputs
from klball.adversary.dual import solve_dual
from klball.shown import Shown

SPACING = 0.25  # between the ranks of a band, in standard deviations of a rank
MOST_RANKS = 1_000
LONGEST = 100_000  # scores; beyond them a union bound over the ranks is wide by a fifth, and costs nothing
HALVINGS = 12


@dataclass(frozen=True, repr=False)
class CertifiedWorstCase(Shown):
    """What holds of E_Q[score] for every Q within KL(Q‖P) ≤ ε of the population P.

    Attributes:
        lower: With probability `confidence` or more over the draw of the sample, no such E_Q is below it.
        worst_case: The least E_Q in the ball around the sample itself, without a guarantee.
        mean: Of the sample.
        epsilon: Radius of the ball, nats.
        confidence: 1 − δ.
        bounds: Between which every score of the population lies.
        n: Scores.
        method: "clopper-pearson" for scores that take two values, the bounds; else "band".
    """

    lower: float
    worst_case: float
    mean: float
    epsilon: float
    confidence: float
    bounds: tuple[float, float]
    n: int
    method: Literal["clopper-pearson", "band"]

    def sentence(self, name: str = "the score", rows: str = "prompts", loss: bool = False) -> str:
        """The claim in words; the bound is rounded towards its limit. loss: the scores are minus a loss."""
        low, high = self.bounds
        last = Decimal(1).scaleb(math.floor(math.log10(high - low)) - 3)  # digit, as fine as the bounds allow
        shown = max(Decimal(low), Decimal(self.lower).quantize(last, ROUND_FLOOR)).normalize()
        within = f"on every mix of {rows} within ε = {self.epsilon:g} nats of yours"
        sign, than, side = (-1, "at most", "below") if loss else (1, "at least", "above")
        if shown <= Decimal(low):
            said = f"{self.n} {rows} do not show that {name} is {side} {sign * low:g} {within}"
        else:
            said = f"{name} is {than} {sign * shown:f} {within}"
        return f"with {percent(self.confidence)} confidence, {said}"


def percent(confidence: float) -> str:
    """As a percentage, never rounded up: "95 %", "99.99999 %"."""
    short, exact = Decimal(f"{100 * confidence:g}"), 100 * Decimal(str(float(confidence)))
    return f"{(exact if short > exact else short).normalize():f} %"


def limit(value: float, least: bool = True) -> str:
    """Four digits of a bound, rounded towards its safe side: a least value down, a most value up."""
    rounding = ROUND_FLOOR if least else ROUND_CEILING
    return f"{float(Context(prec=4, rounding=rounding).create_decimal_from_float(value)):.4g}"


def certified_worst_case(
    scores: Any, epsilon: float, bounds: tuple[float, float] = (0.0, 1.0), confidence: float = 0.95
) -> CertifiedWorstCase:
    """A lower confidence bound on the population's worst case, inf { E_Q[s] : KL(Q‖P) ≤ ε }.

    Scores are independent draws from P, one an item; larger is better. The worst case only falls when P is
    replaced by one that is stochastically smaller, P′: the bound is the worst case of a P′ that is smaller
    with probability 1 − δ. Scores that all lie at a bound are taken to do so in the population: P′ then has
    Clopper and Pearson's lower limit for the share of b, and the worst case inverts the Bernoulli divergence.
    Else P′ has the upper edge of a confidence band of the distribution function. Either holds for all ε at
    once, so ε may be chosen after seeing the scores.

    Args:
        scores: s, [n]; numbers, or true and false. Each item once: weighted scores are no such draws.
        epsilon: Radius of the ball, nats.
        bounds: (a, b) with a ≤ s ≤ b for every score that the population could give.
        confidence: 1 − δ, above 0 and below 1.

    Raises:
        ValueError: No scores, NaN, a score out of bounds, or bounds, radius or confidence that mean nothing.
    """
    inputs.radius("epsilon", epsilon)
    low, high = _bounds(bounds)
    if not (inputs.is_finite(confidence) and 0 < confidence < 1):
        raise ValueError(f"confidence must be above 0 and below 1, not {confidence!r}")
    values = _scores(scores, low, high)
    n, delta = len(values), 1 - confidence
    two_valued = bool(np.isin(values, (low, high)).all())
    if two_valued:
        hits = int((values == high).sum())
        share = 0.0 if hits == 0 else float(stats.beta.ppf(delta, hits, n - hits + 1))
        pessimistic = np.array([low, high]), np.array([1 - share, share])
    else:
        ranks, edge = band(n, delta)
        pessimistic = np.append(low, np.sort(values)[ranks - 1]), np.diff(edge, prepend=0.0, append=1.0)
    return CertifiedWorstCase(
        lower=max(low, worst_mean(pessimistic[0], epsilon, pessimistic[1])),
        worst_case=worst_mean(values, epsilon),
        mean=float(values.mean()),
        epsilon=float(epsilon),
        confidence=float(confidence),
        bounds=(low, high),
        n=n,
        method="clopper-pearson" if two_valued else "band",
    )


def worst_mean(scores: np.ndarray, epsilon: float, base_weights: np.ndarray | None = None) -> float:
    """min { E_Q[score] : KL(Q‖F) ≤ ε } over the rows, whatever the scores' sign."""
    loss = -np.asarray(scores, dtype=float)
    return float(solve_dual(loss=loss, epsilon=epsilon, base_weights=base_weights).worst_case)


@lru_cache(maxsize=64)
def band(n: int, delta: float) -> tuple[np.ndarray, np.ndarray]:
    """Ranks k and u_k such that n uniform draws have U_(k) ≤ u_k at all of them with probability ≥ 1 − δ.

    u_k is the 1 − α quantile of U_(k), a Beta(k, n − k + 1), at the largest α, the same for all k, for which
    the probability, computed exactly, allows it (equal local levels, as in the band of Berk and Jones).
    """
    ranks = _ranks(n)
    least, most = math.log(delta / len(ranks)), math.log(delta)  # a union bound is enough; one rank is least

    def edge(log_alpha: float) -> np.ndarray:
        return stats.beta.isf(math.exp(log_alpha), ranks, n - ranks + 1)

    for _ in range(HALVINGS if n <= LONGEST else 0):
        middle = (least + most) / 2
        holds = staying_below(edge(middle), ranks, n) >= 1 - delta
        least, most = (middle, most) if holds else (least, middle)
    return ranks, edge(least)


def _ranks(n: int) -> np.ndarray:
    """Ranks 1 to n, all of them where they are few."""
    spacing = max(SPACING, math.pi * math.sqrt(n) / MOST_RANKS)
    ranks = [1]
    while (k := ranks[-1]) < n:
        ranks.append(min(n, k + max(1, int(spacing * math.sqrt(k * (n - k) / n)))))
    return np.array(ranks)


def staying_below(edge: np.ndarray, ranks: np.ndarray, n: int) -> float:
    """P(U_(k) ≤ u_k for all ranks k) of n uniform draws; edge: u, increasing; too low by rounding only.

    U_(k) ≤ u_k says that at least k draws lie below u_k. The draws are a Poisson process of rate n on [0, 1]
    given that it has n points: its counts are added up from one u_k to the next, and those that are too few
    dropped.
    """
    log_factorial = gammaln(np.arange(n + 1) + 1.0)

    def poisson(counts: np.ndarray, mean: float) -> np.ndarray:
        if mean <= 0:
            return 1.0 * (counts == 0)
        return np.exp(counts * math.log(mean) - mean - log_factorial[counts])

    chance, fewest, reached = np.ones(1), 0, 0.0  # of `fewest`, `fewest` + 1, … draws below `reached`
    for k, u in zip(ranks.tolist(), edge.tolist(), strict=True):
        mean = n * (u - reached)
        new = poisson(np.arange(min(n + 1, int(mean + 9 * math.sqrt(mean) + 25))), mean)
        chance = np.convolve(chance, new)[k - fewest : n - fewest + 1]
        chance = chance[: np.flatnonzero(chance > 1e-16 * chance.max())[-1] + 1]
        fewest, reached = k, u
    rest = n - fewest - np.arange(len(chance))
    return float(chance @ poisson(rest, n * (1 - reached)) / poisson(np.array([n]), n)[0])


def _bounds(bounds: Any) -> tuple[float, float]:
    pair = tuple(bounds) if np.iterable(bounds) and not isinstance(bounds, str) else ()
    if len(pair) != 2 or not all(inputs.is_finite(value) for value in pair) or not pair[0] < pair[1]:
        raise ValueError(f"bounds must be two finite numbers, the lower first, not {repr(bounds)[:40]}")
    return float(pair[0]), float(pair[1])


def _scores(scores: Any, low: float, high: float) -> np.ndarray:
    values = inputs.numbers("scores", _counted(scores))
    if values.ndim != 1:
        raise ValueError(f"scores must be [n], one an item, not {list(values.shape)}")
    inputs.least_and_most("scores", values)
    bad = np.flatnonzero((values < low) | (values > high))
    if len(bad):
        raise ValueError(
            f"{len(bad)} of {len(values)} scores lie outside the bounds {low:g} to {high:g}, which must hold "
            f"for every score there could be; the first is {values[bad[0]]:g} in row {bad[0] + 1}, from 1"
        )
    return values


def _counted(scores: Any) -> Any:
    """True and false as 1 and 0, whatever holds them; all else as it is."""
    if isinstance(scores, Tensor):
        return scores.double() if scores.dtype == torch.bool else scores
    if np.ma.is_masked(scores):
        return scores  # is refused
    array = np.asarray(scores)
    return array.astype(float) if array.dtype == bool else scores
