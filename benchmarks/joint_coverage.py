"""Where the joint confidence region of (λ, β) holds the population's pair: one round, items drawn anew.

python benchmarks/joint_coverage.py [--replications 400] [--resampled 100]

Losses and certainties are those of type_one_error.py. γ lies a share t of the way from γ_min to E_Q[C] of
the worst case without γ, both of the population: t near 0 is near γ_min, where λ and β diverge, t near 1 is
where β reaches 0. A replication in which γ is infeasible or the cap slack has no region and counts as none.
"""

import argparse
import os

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

from functools import cache

import numpy as np

from klball import RoundScores, solve_dual, solve_rounds
from klball.comparison.items import bootstrap
from klball.comparison.joint import JointRegion, bootstrap_regions, delta_regions
from table import Row, row
from type_one_error import SHAPES, scores_of

LOSSES = ("normal", "gamma")
RADII = (0.05, 0.5, 1.0)
PLACES = (0.02, 0.1, 0.5, 0.9, 0.98)
SIZES = (300, 1_000, 3_000)
RESAMPLED = (1_000, PLACES[1:-1])  # items and places of the bootstrap's rows


@cache
def population(shape: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """g, C and masses on a grid of the two normal variables that `scores_of` draws."""
    u, z = np.meshgrid(np.linspace(-9, 9, 2_401), np.linspace(-7, 7, 141))
    mass = np.exp(-(u**2 + z**2) / 2)
    return (-SHAPES[shape](u)).ravel(), (12 + 0.7 * u + 0.7 * z).ravel(), mass.ravel()


@cache
def truth(shape: str, epsilon: float, place: float) -> tuple[float, float, float]:
    """γ and the population's (λ, β)."""
    g, c, mass = population(shape)
    least = solve_dual(loss=-c, epsilon=epsilon, base_weights=mass).worst_case
    free = solve_dual(g, c, epsilon=epsilon, base_weights=mass)
    gamma = least + place * (free.certainty - least)
    s = solve_dual(g, c, epsilon=epsilon, gamma=gamma, base_weights=mass)
    return float(gamma), s.lambda_, s.beta


def regions(shape: str, epsilon: float, gamma: float, n: int, rng, resamples: int) -> list[JointRegion]:
    g, c = scores_of(shape, rng.normal(size=(1, 1, n)), rng)
    ones = np.ones_like(g)
    scores = RoundScores(["a"], ["1"], [str(i) for i in range(n)], g, c, g, ones, ones, left_out={})
    solutions = solve_rounds(scores, epsilon=epsilon, gamma=gamma)
    found = delta_regions(scores, solutions)
    if resamples:
        found += bootstrap_regions(bootstrap(scores, solutions, resamples=resamples))
    return found


def coverage(shape: str, epsilon: float, place: float, n: int, replications: int, resamples: int) -> dict:
    """Per method the share that holds the truth, among all and among those with a region; the median ESS."""
    gamma, lambda_, beta = truth(shape, epsilon, place)
    rng = np.random.default_rng(n)
    held: dict[str, list[float]] = {}
    ess = []
    for _ in range(replications):
        for region in regions(shape, epsilon, gamma, n, rng, resamples):
            inside = np.nan if region.degenerate else float(region.distance(lambda_, beta) <= region.radius)
            held.setdefault(region.method, []).append(inside)
            ess.append(region.ess)
    found = {"ess": float(np.median(ess))}
    for method, values in held.items():
        known = [v for v in values if np.isfinite(v)]
        among = float(np.mean(known)) if known else float("nan")
        found[method] = (float(np.nansum(values)) / len(values), among, len(known) / len(values))
    return found


def measure(quick: bool) -> list[Row]:
    """Coverage where a region exists, over shapes, by place of γ and radius."""
    n, replications = (300, 30) if quick else (3_000, 200)
    rows = []
    for epsilon in RADII[:1] if quick else RADII:
        for place in PLACES:
            found = [coverage(shape, epsilon, place, n, replications, 0)["delta"][1] for shape in LOSSES]
            case = f"ε = {epsilon:g}, n = {n:,}, γ at {place:g} of its range"
            rows.append(row("joint_coverage", case, "share of ellipses that hold (λ, β)", found))
    return rows


def main() -> None:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replications", type=int, default=400)
    parser.add_argument(
        "--resampled", type=int, default=0, help="replications of the bootstrap, of 200 draws"
    )
    options = parser.parse_args()
    print(
        "| losses | ε | γ at | n | ESS | has a region | delta | bootstrap has | bootstrap |\n|" + "---|" * 9
    )
    for shape in LOSSES:
        for epsilon in RADII:
            for place in PLACES:
                for n in SIZES:
                    found = coverage(shape, epsilon, place, n, options.replications, 0)
                    _, among, share = found["delta"]
                    cells = [f"{found['ess']:.3g}", f"{share:.3f}", f"{among:.3f}"]
                    if options.resampled and n == RESAMPLED[0] and place in RESAMPLED[1]:
                        again = coverage(shape, epsilon, place, n, options.resampled, 200)["bootstrap"]
                        cells += [f"{again[2]:.2f}", f"{again[1]:.2f}"]
                    print(f"| {shape} | {epsilon:g} | {place:g} | {n:,} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
