"""The mean of a worst share of the samples, with intervals, where few samples decide.

A bootstrap of the m samples in a tail is too sure: at α = 1 % and n = 400 its 95 % intervals covered .71.
Coverage of what is here: docs/lab-notes.md, benchmarks/tail_coverage.py.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

LEVEL = 0.05
HARDEST, CVAR = 0.01, 0.05  # the shares that reports speak of
CVAR_LEVELS = (0.01, 0.05, 0.1, 0.25)
FEW = 20  # samples in a tail: the mean of fewer is descriptive, and the hardest 1 % are not judged by
LEAST = 4  # samples: the coverage of fewer was not measured, and a perplexity of three had ± twice itself


ROUNDING = 1e-12  # relative: sums in another order differ by less


def difference(values: np.ndarray, base: np.ndarray) -> np.ndarray:
    """values − base, 0 where rounding alone parts them."""
    found = values - base
    return np.where(np.abs(found) <= ROUNDING * (np.abs(values) + np.abs(base)), 0.0, found)


def mean_of(differences: np.ndarray) -> float:
    """Their mean, 0 where they cancel but for rounding."""
    value = float(differences.mean())
    return value if abs(value) > ROUNDING * float(np.abs(differences).mean()) else 0.0


def tail_size(share: float, n: int) -> int:
    """m = ⌈share · n⌉ samples, at least one."""
    return max(1, math.ceil(share * n - 1e-9))


def few_hardest(rows: int) -> bool:
    """Whether the hardest 1 % of so many samples are too few to judge by: the worst 5 % then come first."""
    return tail_size(HARDEST, rows) < FEW


def cvar(loss: np.ndarray, level: float) -> float:
    """Mean loss of the worst `level` of the samples; the boundary sample counts in part."""
    mass = level * len(loss)
    taken = np.diff(np.minimum(np.arange(1, len(loss) + 1), mass), prepend=0.0)
    return float(taken @ np.sort(loss)[::-1]) / mass


def hardest(log_likelihood: np.ndarray | Sequence[float]) -> np.ndarray:
    """Row indices of the 1 % lowest log-likelihoods, at least one."""
    g = np.asarray(log_likelihood, dtype=float)
    return np.argsort(g, kind="stable")[: tail_size(HARDEST, len(g))]


def tail_interval(worst: np.ndarray, edge: float, share: float, value: float) -> tuple[float, float]:
    """A 95 % interval of the mean loss of the worst `share`, whose estimate is `value`; NaN for m < LEAST.

    worst: the losses of the m samples in the tail; edge: the loss where it begins, v.

    The wider, on each side, of two. One is value ± t_{m−1} · se, se² = (s² + (1 − α)(value − v)²)/m, with s
    the standard deviation of the m. The other is that of an exponential tail, v + 2m·e/χ²_{2m}(1 − p) with
    e = value − v, its distance from `value` joined with the spread of v, z·e/√m, as the root of the sum
    of squares.
    """
    m = len(worst)
    if m < LEAST:
        return math.nan, math.nan
    excess = max(value - edge, 0.0)
    se = math.sqrt((worst.var(ddof=1) + (1 - share) * excess**2) / m)
    by_t = float(stats.t.ppf(1 - LEVEL / 2, m - 1)) * se
    spread = float(stats.norm.ppf(1 - LEVEL / 2)) * excess / math.sqrt(m)
    upper, lower = (2 * m / stats.chi2.ppf(p, 2 * m) - 1 for p in (LEVEL / 2, 1 - LEVEL / 2))
    low, high = (max(by_t, math.hypot(side * excess, spread)) for side in (lower, upper))
    return value - low, value + high


def own_tail(loss: np.ndarray, level: float, value: float) -> tuple[float, float]:
    """The interval of the mean of the worst `level`, whose edge is the next loss; NaN if they are equal."""
    m = tail_size(level, len(loss))
    ordered = np.sort(loss)[::-1]
    edge = ordered[min(m, len(loss) - 1)]
    if ordered[0] == edge:
        return math.nan, math.nan
    return tail_interval(ordered[:m], edge, level, value)


def influence(loss: np.ndarray, share: float) -> np.ndarray:
    """Influence of each sample on the mean of the worst share α: ((x − v)⁺ − mean)/α, v the quantile."""
    m = tail_size(share, len(loss))
    quantile = np.sort(loss)[::-1][min(m, len(loss) - 1)]
    over = np.maximum(loss - quantile, 0.0)
    return (over - over.mean()) / share


def paired_cvar(loss: np.ndarray, base: np.ndarray, share: float) -> tuple[float, np.ndarray]:
    """CVaR_α(loss) − CVaR_α(base), each of its own worst rows, and the influence of every row on it, [n]."""
    tails = (np.array(cvar(one, share)) for one in (loss, base))
    return float(difference(*tails)), difference(influence(loss, share), influence(base, share))


def paired_interval(effect: np.ndarray, share: float, value: float) -> tuple[float, float]:
    """value ± t_{m−1} · se of a difference whose sample influences are `effect` [n]; NaN for m < LEAST.

    se² = Σ effect² / n² · m/(m − 1): m samples decide.
    """
    n = len(effect)
    m = tail_size(share, n)
    if m < LEAST:
        return math.nan, math.nan
    se = math.sqrt((effect**2).sum() * m / (m - 1)) / n
    half = float(stats.t.ppf(1 - LEVEL / 2, m - 1)) * se
    return value - half, value + half


def mean_interval(values: np.ndarray, least: int = LEAST) -> tuple[float, float]:
    """The t interval of a mean; NaN for fewer than `least` values, which are two or more."""
    n = len(values)
    if n < least:
        return math.nan, math.nan
    half = float(stats.t.ppf(1 - LEVEL / 2, n - 1) * values.std(ddof=1)) / math.sqrt(n)
    return float(values.mean()) - half, float(values.mean()) + half


def varied_interval(values: np.ndarray) -> tuple[float, float]:
    """`mean_interval`; none of equal values either, whose spread is not known."""
    return mean_interval(values) if np.ptp(values) else (math.nan, math.nan)


def own_mean_interval(values: np.ndarray) -> tuple[float, float]:
    """Of a model's own mean: of zeros and ones Clopper and Pearson's, else `varied_interval`.

    Near 0 and 1 a t interval of zeros and ones covers less than it says: .85 at n = 300 and a mean of .99.
    """
    if len(values) < LEAST or not np.isin(values, (0.0, 1.0)).all():
        return varied_interval(values)
    found = stats.binomtest(int(values.sum()), len(values)).proportion_ci(1 - LEVEL)
    return float(found.low), float(found.high)


def largest(values: np.ndarray, count: int) -> np.ndarray:
    """The places of the `count` largest values, largest first, ties in order; of many without sorting all."""
    count = min(count, len(values))
    if count <= 0:
        return np.array([], dtype=int)
    large = np.flatnonzero(values >= np.partition(values, -count)[-count])
    return large[np.argsort(-values[large], kind="stable")][:count]


def heaviest(
    ids: Any, weights: np.ndarray, values: Sequence[float] | np.ndarray, name: str, count: int
) -> list[dict[str, Any]]:
    """The samples of largest weight q [n], the largest first: sample_id, n_q = n·q, and their `name`.

    ids: indexable, [n], of what `str` makes a name.
    """
    n = len(weights)
    return [
        {"sample_id": str(ids[i]), "n_q": float(n * weights[i]), name: float(values[i])}
        for i in largest(weights, count).tolist()
    ]
