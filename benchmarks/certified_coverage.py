"""How often bounds on the population's worst case hold, and how far below it they lie.

python benchmarks/certified_coverage.py [--replications 400]

Populations of scores in [0, 1]; sample sizes and radii that give effective sample sizes from 2 to 1,000.
`certified` is klball.certified_worst_case; `delta` the one-sided delta method with t of ESS − 1 degrees of
freedom; samples for which it has none (λ = 0, or ESS ≤ 2) count neither way. The others were tried for
`certified`: DKW's band, an empirical Bernstein bound (Maurer & Pontil) on E exp(−s/λ) with a union over eight
λ, and a mixture of bets (Waudby-Smith & Ramdas) on all λ at once. The truth is that of a million quantiles;
the coverage of coins is exact, a sum over their samples.
"""

import argparse
import math
import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import cache
from itertools import pairwise

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import numpy as np
from scipy import stats
from scipy.optimize import brentq

from klball import certified_worst_case, solve_dual
from klball.scores.certified import worst_mean
from table import Row, row

DELTA = 0.05
QUANTILES = (np.arange(1_000_000) + 0.5) / 1_000_000
POPULATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {  # quantile functions
    "coin, .7": lambda u: 1.0 * (u >= 0.3),
    "coin, .98": lambda u: 1.0 * (u >= 0.02),
    "0, ½, 1": lambda u: np.where(u < 0.05, 0.0, np.where(u < 0.3, 0.5, 1.0)),
    "beta(8, 2)": lambda u: stats.beta(8, 2).ppf(u),
    "beta(.5, .5)": lambda u: stats.beta(0.5, 0.5).ppf(u),
    "5 % near 0": lambda u: np.where(u < 0.05, u, 0.8 + 0.2 * (u - 0.05) / 0.95),
}
SIZES = (10, 30, 100, 300, 1_000, 3_000)
RADII = (0.05, 0.5, 2.0)
EDGES = (1, 3, 10, 30, 100, 300, 1_000)  # of ESS, for the summary
LAMBDAS = 2.0 ** -np.arange(8)  # times 1/√(8ε), above which λ cannot be (mathematics.md)


@cache
def truth(population: str, epsilon: float) -> float:
    """The population's worst case."""
    return worst_mean(POPULATIONS[population](QUANTILES), epsilon)


def certified(scores: np.ndarray, epsilon: float) -> float:
    return certified_worst_case(scores, epsilon).lower


def delta(scores: np.ndarray, epsilon: float) -> float:
    """E_Q[s] − t·se, with influences λ(1 − n·q)."""
    n, top = len(scores), scores.max()
    s = solve_dual(scores - top, epsilon=epsilon)
    if s.ess <= 2 or s.lambda_ == 0:
        return math.nan
    se = s.lambda_ * math.sqrt(((s.weights * n - 1) ** 2).sum() / (n * (n - 1)))
    return s.worst_case + top - float(stats.t.ppf(1 - DELTA, s.ess - 1)) * se


def dkw(scores: np.ndarray, epsilon: float) -> float:
    """The worst case once √(log(1/δ)/2n) of the mass is moved from the top to 0."""
    n = len(scores)
    edge = np.minimum(1.0, np.arange(n + 1) / n + math.sqrt(math.log(1 / DELTA) / (2 * n)))
    return worst_mean(np.append(0.0, np.sort(scores)), epsilon, np.diff(edge, prepend=0.0))


def bernstein(scores: np.ndarray, epsilon: float) -> float:
    """max over λ of −λ log(upper bound of E exp(−s/λ)) − λε."""
    n, best = len(scores), 0.0
    log_term = math.log(2 * len(LAMBDAS) / DELTA)
    for lambda_ in LAMBDAS / math.sqrt(8 * epsilon):
        y = np.exp(-scores / lambda_)
        width = 1 - math.exp(-1 / lambda_)
        spread = math.sqrt(2 * y.var(ddof=1) * log_term / n) + 7 * width * log_term / (3 * (n - 1))
        best = max(best, -lambda_ * math.log(min(1.0, y.mean() + spread)) - lambda_ * epsilon)
    return best


def betting(scores: np.ndarray, epsilon: float) -> float:
    """The least v that no bet refutes: if V ≤ v, E[1 − exp(−s/λ)] ≤ 1 − exp(−ε − v/λ) for every λ.

    So Π(1 − η + η(1 − e^(−s/λ))/(1 − e^(−ε−v/λ))) has mean ≤ 1, and so has its mean over λ and η.
    """
    lambdas = LAMBDAS / math.sqrt(8 * epsilon)
    stakes = 2.0 ** -np.arange(math.ceil(math.log2(len(scores)) / 2) + 1)[:, None]
    values, counts = np.unique(scores, return_counts=True)
    gains = -np.expm1(-values / lambdas[:, None])

    def log_wealth(v: float) -> float:
        ratio = gains / -np.expm1(-epsilon - v / lambdas)[:, None]
        with np.errstate(divide="ignore"):
            logs = np.log(1 - stakes + stakes * ratio[:, None]) @ counts
        return logs.max() + math.log(np.exp(logs - logs.max()).mean()) - math.log(1 / DELTA)

    return 0.0 if log_wealth(0.0) <= 0 else brentq(log_wealth, 0.0, 1.0)


METHODS = {f.__name__: f for f in (certified, delta, dkw, bernstein, betting)}


def coverage(population: str, n: int, epsilon: float, replications: int) -> dict[str, tuple[float, float]]:
    """Per method the share of bounds that hold, and the median distance to the truth; "ess" → its median."""
    true = truth(population, epsilon)
    bounds: dict[str, list[float]] = {name: [] for name in METHODS}
    ess, chances = [], []
    for scores, chance in samples(population, n, replications):
        chances.append(chance)
        ess.append(solve_dual(scores - scores.max(), epsilon=epsilon).ess)
        for name, method in METHODS.items():
            bounds[name].append(method(scores, epsilon))
    found = {}
    for name, values in bounds.items():
        known = np.isfinite(values) * np.array(chances)
        held = float((np.array(values) <= true + 1e-9) @ known / known.sum()) if known.any() else math.nan
        found[name] = (held, true - median(values, chances))
    return {**found, "ess": (median(ess, chances), true)}


def samples(population: str, n: int, replications: int) -> Iterator[tuple[np.ndarray, float]]:
    """Samples with their chances: of a coin every one that matters, of others as many as asked for."""
    if population.startswith("coin"):
        hits = np.arange(n + 1)
        chances = stats.binom.pmf(hits, n, POPULATIONS[population](QUANTILES).mean())
        for k in hits[chances > 1e-7].tolist():
            yield np.repeat([1.0, 0.0], [k, n - k]), float(chances[k])
        return
    rng = np.random.default_rng(n)
    for _ in range(replications):
        yield POPULATIONS[population](rng.random(n)), 1.0


def median(values: list[float], chances: list[float]) -> float:
    """That of a weighted sample; no number counts as the least."""
    order = np.argsort(np.nan_to_num(values, nan=-np.inf))
    place = np.searchsorted(np.cumsum(np.array(chances)[order]), sum(chances) / 2)
    return float(np.array(values)[order][place])


def measure(quick: bool) -> list[Row]:
    """By radius the least coverage over populations and sizes."""
    rows = []
    sizes, replications = ((30, 300), 40) if quick else ((10, 100, 1_000), 200)
    for epsilon in RADII:
        found = [coverage(p, n, epsilon, replications) for p in POPULATIONS for n in sizes]
        for name, target in (("certified", "≥ 0.95"), ("delta", "")):
            least = min(of[name][0] for of in found if math.isfinite(of[name][0]))
            case = f"ε = {epsilon:g}, {name}, n from {sizes[0]} to {sizes[-1]:,}"
            rows.append(row("certified_coverage", case, "least share of bounds that hold", [least], target))
    return rows


def main() -> None:
    """Print the table as Markdown: coverage, then the median distance below the truth."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replications", type=int, default=400)
    options = parser.parse_args()
    by_ess = defaultdict(list)
    print(f"| scores | ε | n | ESS | truth | {' | '.join(METHODS)} |\n|" + "---|" * (5 + len(METHODS)))
    for population in POPULATIONS:
        for epsilon in RADII:
            for n in SIZES:
                found = coverage(population, n, epsilon, options.replications)
                ess, true = found.pop("ess")
                by_ess[max(edge for edge in EDGES if edge <= ess)].append(found)
                cells = [f"{held:.3f}, {distance:.3f}" for held, distance in found.values()]
                print(
                    f"| {population} | {epsilon:g} | {n:,} | {ess:.3g} | {true:.3f} | {' | '.join(cells)} |",
                    flush=True,
                )
    print(f"\n| ESS | settings | {' | '.join(METHODS)} |\n|" + "---|" * (2 + len(METHODS)))
    for low, high in pairwise((*EDGES, math.inf)):
        cells = []
        for name in METHODS:
            found = [of[name] for of in by_ess[low] if math.isfinite(sum(of[name]))]
            held, distance = zip(*found, strict=True) if found else ([math.nan], [math.nan])
            cells.append(f"{min(held):.3f} – {max(held):.3f}, {np.median(distance):.3f}")
        print(f"| {low:g} to {high:g} | {len(by_ess[low])} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
