"""How large a difference over rounds is, and how many rounds would settle an undecided one."""

import math
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy import stats
from statsmodels.stats.power import TTestPower

from klball.comparison.hypothesis_tests import QUANTITIES, values_of, why_degenerate
from klball.comparison.rounds import RoundSolutions
from klball.scores.tails import difference, mean_of

LEVEL = 0.05
POWER = 0.8
EXACT = 50  # so many differences have the exact distribution of their signed ranks, more a normal one


@dataclass(frozen=True)
class Effect:
    """The difference a − b over matched rounds, with 95 % intervals, conditional on the items.

    mean: of the differences, t interval. cohen_dz: mean/sd of the differences. hodges_lehmann: median of
    their Walsh averages, signed-rank interval. rounds_needed: for a paired t at level .05 with power .8,
    were the true effect the observed one (∞ for none). `degenerate`: why intervals and d_z are NaN.
    """

    model_a: str
    model_b: str
    quantity: str
    rounds: int
    mean: float
    hodges_lehmann: float
    mean_low: float = math.nan
    mean_high: float = math.nan
    hodges_lehmann_low: float = math.nan
    hodges_lehmann_high: float = math.nan
    cohen_dz: float = math.nan
    cohen_dz_low: float = math.nan
    cohen_dz_high: float = math.nan
    rounds_needed: float = math.nan
    degenerate: str = ""


@dataclass(frozen=True)
class Spread:
    """One quantity of one model over its usable rounds; `worst_round` has the lowest worst case."""

    model: str
    quantity: str
    rounds: int
    mean: float = math.nan
    median: float = math.nan
    sd: float = math.nan
    low: float = math.nan
    high: float = math.nan
    worst_round: str = ""


def effect_sizes(solutions: RoundSolutions) -> list[Effect]:
    """The effects of all pairs on worst_case, lambda_ and beta."""
    return [
        _effect(solutions, quantity, a, b)
        for quantity in QUANTITIES
        for a, b in combinations(range(len(solutions.models)), 2)
    ]


def spreads(solutions: RoundSolutions) -> list[Spread]:
    """Mean, median, sd (n − 1) and range over rounds, with the worst round; all NaN for no usable round."""
    return [_spread(solutions, q, m) for q in QUANTITIES for m in range(len(solutions.models))]


def _spread(solutions: RoundSolutions, quantity: str, model: int) -> Spread:
    usable = np.flatnonzero(solutions.usable()[model])
    values = values_of(solutions, quantity)[model, usable]
    if len(values) == 0:
        return Spread(solutions.models[model], quantity, 0)
    return Spread(
        model=solutions.models[model],
        quantity=quantity,
        rounds=len(values),
        mean=float(values.mean()),
        median=float(np.median(values)),
        sd=float(values.std(ddof=1)) if len(values) > 1 else math.nan,
        low=float(values.min()),
        high=float(values.max()),
        worst_round=solutions.rounds[usable[solutions.worst_case[model, usable].argmin()]],
    )


def _effect(solutions: RoundSolutions, quantity: str, a: int, b: int) -> Effect:
    rounds = solutions.pair_rounds(a, b)
    x, y = values_of(solutions, quantity)[[a, b]][:, rounds]
    d, n = difference(x, y), len(x)
    who = (solutions.models[a], solutions.models[b], quantity, n)
    if reason := why_degenerate(x, y, paired=True):
        mean, median = (mean_of(d), float(np.median(d))) if n else (math.nan, math.nan)
        return Effect(*who, mean=mean, hodges_lehmann=median, degenerate=reason)
    mean, sd = mean_of(d), float(d.std(ddof=1))
    t = float(stats.t.ppf(1 - LEVEL / 2, n - 1))
    dz, half = mean / sd, t * sd / math.sqrt(n)
    dz_half = t * math.sqrt(1 / n + dz**2 / (2 * n))
    median, median_low, median_high = hodges_lehmann(d)
    return Effect(
        *who,
        mean=mean,
        mean_low=mean - half,
        mean_high=mean + half,
        hodges_lehmann=median,
        hodges_lehmann_low=median_low,
        hodges_lehmann_high=median_high,
        cohen_dz=dz,
        cohen_dz_low=dz - dz_half,
        cohen_dz_high=dz + dz_half,
        rounds_needed=rounds_needed(dz),
    )


def hodges_lehmann(d: np.ndarray) -> tuple[float, float, float]:
    """The median of all (d_i + d_j)/2, i ≤ j, and its interval from the quantile of the signed-rank sum T.

    From the k-th smallest to the k-th largest of them, k the largest with P(T < k) ≤ .025; NaN below six
    differences, of which even the widest interval covers less than 95 %.
    """
    n = len(d)
    i, j = np.triu_indices(n)
    walsh = np.sort((d[i] + d[j]) / 2)
    left = _ranks_left(n)
    if left < 1:
        return float(np.median(walsh)), math.nan, math.nan
    return float(np.median(walsh)), float(walsh[left - 1]), float(walsh[-left])


def _ranks_left(n: int) -> int:
    """The largest k with P(T < k) ≤ .025 for the sum T of the ranks 1 … n with random signs."""
    if n > EXACT:
        sd = math.sqrt(n * (n + 1) * (2 * n + 1) / 24)
        return math.floor(n * (n + 1) / 4 - stats.norm.ppf(1 - LEVEL / 2) * sd) + 1
    chance = np.zeros(n * (n + 1) // 2 + 1)
    chance[0] = 1.0
    for rank in range(1, n + 1):
        with_it = np.roll(chance, rank)
        with_it[:rank] = 0.0
        chance = (chance + with_it) / 2
    return int(np.searchsorted(np.cumsum(chance), LEVEL / 2, side="right"))


def rounds_needed(cohen_dz: float) -> float:
    """Rounds for a two-sided paired t to find this standardised difference with power .8 at level .05."""
    if abs(cohen_dz) < 1e-4:  # beyond a thousand million rounds
        return np.inf
    if abs(cohen_dz) > 5:
        return 3.0
    size = TTestPower().solve_power(effect_size=abs(cohen_dz), alpha=LEVEL, power=POWER)
    return float(np.ceil(np.max(size)))
