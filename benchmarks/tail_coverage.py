"""How often the 95 % intervals of tails cover: klball.scores.perplexity on simulated losses.

python benchmarks/tail_coverage.py [--replications 1000]

Two models share .8 of the variance of a latent normal difficulty; losses are normal, gamma(2),
lognormal(.5), lognormal(.7), or t with 5 degrees of freedom. The truth is that of 4 million samples.
Columns: values of the second model, then its ratio to the first; `old` is the percentile bootstrap of
200 resamples that was used before. Tails of fewer than 4 samples have no interval: at least 301 for 1 %.
"""

import argparse
from collections.abc import Callable

import numpy as np
from scipy import stats

from klball.scores.perplexity import _of_cvar, _of_hardest, _of_own
from klball.scores.tails import CVAR_LEVELS, HARDEST, cvar, hardest

SHAPES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "normal": lambda z: 8 + z,
    "gamma(2)": lambda z: stats.gamma(2).ppf(stats.norm.cdf(z)),
    "lognormal(.5)": lambda z: np.exp(0.5 * z),
    "lognormal(.7)": lambda z: np.exp(0.7 * z),
    "t(5)": lambda z: 8 + stats.t(5).ppf(stats.norm.cdf(z)),
}
METRICS = ("cvar_0.01", "cvar_0.05", "cvar_0.1", "cvar_0.25", "own_hardest_1pct", "hardest_1pct")
COMMON = 0.8


def losses(shape: str, size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The same samples' losses under the reference and under another model, a tenth worse."""
    item, *own = rng.normal(size=(3, size))
    first, second = (np.sqrt(COMMON) * item + np.sqrt(1 - COMMON) * z for z in own)
    return SHAPES[shape](first), 1.1 * SHAPES[shape](second)


def numbers(base: np.ndarray, other: np.ndarray) -> dict[str, tuple[float, ...]]:
    """The report's numbers of every tail metric."""
    found = {f"cvar_{level:g}": _of_cvar(-other, -base, level) for level in CVAR_LEVELS}
    hard = _of_hardest(-other, -base, hardest(-base))
    return {**found, "own_hardest_1pct": _of_own(-other, -base, HARDEST), "hardest_1pct": hard}


def truth(shape: str) -> dict[str, tuple[float, float]]:
    """(value, ratio) in a large sample."""
    base, other = losses(shape, 4_000_000, np.random.default_rng(0))
    found = {}
    for level in CVAR_LEVELS:
        found[f"cvar_{level:g}"] = (cvar(other, level), cvar(other, level) / cvar(base, level))
    found["own_hardest_1pct"] = tuple(
        np.exp([cvar(other, HARDEST), cvar(other, HARDEST) - cvar(base, HARDEST)])
    )
    hard = np.argpartition(-base, len(base) // 100)[: len(base) // 100]
    found["hardest_1pct"] = tuple(np.exp([other[hard].mean(), (other - base)[hard].mean()]))
    return found


def coverage(shape: str, n: int, replications: int, seed: int = 1) -> dict[str, tuple[float, float]]:
    """Per metric the share of intervals of the value, and of the ratio, that hold the truth."""
    rng, true = np.random.default_rng(seed), truth(shape)
    held = dict.fromkeys(METRICS, np.zeros(2))
    for _ in range(replications):
        found = numbers(*losses(shape, n, rng))
        for name in METRICS:
            _, low, high, _, ratio_low, ratio_high = found[name]
            value, ratio = true[name]
            held[name] = held[name] + [low <= value <= high, ratio_low <= ratio <= ratio_high]
    return {name: tuple((held[name] / replications).tolist()) for name in METRICS}


def bootstrapped(shape: str, n: int, level: float, replications: int, resamples: int = 200) -> float:
    """What the percentile bootstrap of a CVaR covers."""
    rng, (true, _) = np.random.default_rng(1), truth(shape)[f"cvar_{level:g}"]
    held = 0
    for _ in range(replications):
        _, loss = losses(shape, n, rng)
        draws = [cvar(loss[rng.integers(0, n, n)], level) for _ in range(resamples)]
        low, high = np.quantile(draws, (0.025, 0.975))
        held += bool(low <= true <= high)
    return held / replications


def main() -> None:
    """Print the tables as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replications", type=int, default=1_000)
    parser.add_argument("--sizes", type=int, nargs="+", default=[400, 1_319, 3_200])
    options = parser.parse_args()
    heads = [*METRICS, *(f"ratio of {name}" for name in METRICS), "old cvar_0.01", "old cvar_0.05"]
    print("| n | losses | " + " | ".join(heads) + " |\n|" + "---|" * (len(heads) + 2))
    for n in options.sizes:
        for shape in SHAPES:
            found = coverage(shape, n, options.replications)
            cells = [f"{found[name][part]:.3f}" for part in (0, 1) for name in METRICS]
            few = options.replications // 5
            cells += [f"{bootstrapped(shape, n, level, few):.2f}" for level in (0.01, 0.05)]
            print(f"| {n:,} | {shape} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
