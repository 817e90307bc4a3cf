"""Type I error and interval coverage of the comparison, measured on models that do not differ.

Two meanings of "do not differ", by what is drawn anew:
  rounds: on fixed items the two models answer every item equally well, and only phrasing varies;
  items:  the models differ on single items, but not on average over the population of items.
`python benchmarks/type_one_error.py --write` stores the result where the verdicts look it up.
"""

import argparse
import json
import os

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

from collections import defaultdict
from collections.abc import Iterator
from functools import cache

import numpy as np
import torch
from scipy import special, stats

from klball import solve_dual
from klball.comparison.calibration import CALIBRATION, LEVEL
from klball.comparison.hypothesis_tests import QUANTITIES, pairwise_tests
from klball.comparison.items import bootstrap, delta_inference
from klball.comparison.rounds import RoundScores, RoundSolutions, solve_rounds
from klball.files import write_text
from klball.terminal import progress_bar, show_table

ROUND_CORRELATION = 0.7  # of the phrasing effects of two models on an item
MODEL_CORRELATION = 0.7  # of two models' skills on an item
PHRASING = 0.2  # share of the (latent) variance that is phrasing
POPULATION = 1_000_000
SHAPES = {
    "normal": lambda u: 2 + 0.5 * u,
    "gamma": lambda u: stats.gamma.isf(special.ndtr(-u), 2),
    "lognormal": lambda u: np.exp(0.7 * u),
}


def latent(rng: np.random.Generator, null: str, rounds: int, n: int) -> np.ndarray:
    """Standard normal difficulty of every item for two models in every round, [2, rounds, n]."""
    skill = mixed(rng.normal(size=(1, 1, n)), rng.normal(size=(2, 1, n)), MODEL_CORRELATION)
    if null == "rounds":
        skill = skill[:1]  # the same items are hard for both
    phrasing = mixed(rng.normal(size=(1, rounds, n)), rng.normal(size=(2, rounds, n)), ROUND_CORRELATION)
    return mixed(skill, phrasing, 1 - PHRASING)


def mixed(common: np.ndarray, own: np.ndarray, share: float) -> np.ndarray:
    """A standard normal with `share` of its variance in common."""
    return np.sqrt(share) * common + np.sqrt(1 - share) * own


def scores_of(shape: str, u: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(g, C): the loss has the shape's distribution; C is higher on hard items, so that its cap binds."""
    return -SHAPES[shape](u), 12 + 0.7 * u + 0.7 * rng.normal(size=u.shape)


@cache
def population(shape: str, epsilon: float, capped: bool) -> tuple[float | None, dict[str, float]]:
    """γ half way between γ_min and the mean of C, and the true values that intervals should cover."""
    rng = np.random.default_rng(1)
    g, c = scores_of(shape, rng.normal(size=POPULATION), rng)
    gamma = (solve_dual(loss=-c, epsilon=epsilon).worst_case + c.mean()) / 2 if capped else None
    s = solve_dual(g, c, epsilon=epsilon, gamma=gamma)
    known = shape != "lognormal"  # whose exponential moments, and so whose worst case, are infinite
    return gamma, {q: getattr(s, q) if known else np.nan for q in QUANTITIES}


def simulated(
    rng: np.random.Generator, null: str, shape: str, epsilon: float, capped: bool, n: int, rounds: int
) -> tuple[RoundScores, RoundSolutions]:
    g, c = scores_of(shape, latent(rng, null, rounds, n), rng)
    ones = np.ones_like(g)
    of_rounds, of_items = ([str(k) for k in range(size)] for size in (rounds, n))
    scores = RoundScores(["a", "b"], of_rounds, of_items, g, c, g, ones, ones, left_out={})
    return scores, solve_rounds(scores, epsilon=epsilon, gamma=population(shape, epsilon, capped)[0])


class Tally:
    """Rejections and coverage of each test and quantity."""

    def __init__(self):
        self.rejected, self.covered = defaultdict(list), defaultdict(list)
        self.ess: list[float] = []

    def add(self, scores: RoundScores, solutions: RoundSolutions, truth: dict[str, float], kind: str) -> None:
        self.ess.append(solutions.least_ess())
        if kind == "tests":
            for t in pairwise_tests(solutions):
                if not t.degenerate:
                    self.rejected[t.test, t.quantity].append(t.p < LEVEL)
            return
        if kind == "delta":
            found = delta_inference(scores, solutions)
        else:
            found = bootstrap(scores, solutions, resamples=200).inference()
        for i in found:
            if i.degenerate:
                continue
            if i.model_b:
                self.rejected[i.method, i.quantity].append(not i.low <= 0 <= i.high)
            elif np.isfinite(truth[i.quantity]):
                self.covered[i.method, i.quantity].append(i.low <= truth[i.quantity] <= i.high)

    def records(self, replications: int, **about) -> Iterator[dict]:
        for (test, quantity), rejected in self.rejected.items():
            if len(rejected) < replications / 2:  # infeasible or slack as a rule: nothing to measure
                continue
            covered = self.covered.get((test, quantity))
            yield dict(
                **about,
                test=test,
                quantity=quantity,
                ess=round(float(np.median(self.ess)), 1),
                error=round(float(np.mean(rejected)), 4),
                coverage=None if covered is None else round(float(np.mean(covered)), 4),
                replications=len(rejected),
                degenerate=replications - len(rejected),
            )


def settings(scale: float) -> list[dict]:
    """What is simulated: (null, kind of test, shape, ε, cap on certainty, n, rounds, replications)."""
    keys = ("null", "kind", "shape", "epsilon", "capped", "n", "rounds", "replications")
    many, some = max(2, round(1_000 * scale)), max(2, round(400 * scale))
    rows: list[tuple] = []
    for shape in SHAPES:
        rows += [("items", "bootstrap", shape, e, False, 300, 1, some) for e in (0.05, 0.5, 3.0)]
        rows += [
            ("items", "delta", shape, epsilon, capped, n, 1, many)
            for epsilon in (0.05, 0.2, 0.5, 1.0, 3.0)
            for n in (100, 300, 1_000, 3_000)
            for capped in (False, True)
        ]
        rows += [("rounds", "tests", shape, e, True, 100, r, many) for e in (0.05, 3.0) for r in (5, 20)]
        rows += [("rounds", "tests", shape, 0.05, True, 100, 99, some)]
    rows += [("items", "tests", "gamma", 0.05, True, 300, r, some) for r in (10, 99)]
    return [dict(zip(keys, row, strict=True)) for row in rows]


def measure(scale: float) -> list[dict]:
    records: list[dict] = []
    todo = settings(scale)
    with progress_bar("Simulating", "settings") as progress:
        for k, s in enumerate(todo):
            rng = np.random.default_rng(k)
            world = {name: s[name] for name in ("shape", "epsilon", "capped")}
            truth, tally = population(**world)[1], Tally()
            for _ in range(s["replications"]):
                scores, solutions = simulated(rng, s["null"], n=s["n"], rounds=s["rounds"], **world)
                tally.add(scores, solutions, truth, s["kind"])
            about = {name: s[name] for name in ("null", "n", "rounds")}
            records += tally.records(s["replications"], **about, **world)
            progress(k + 1, len(todo))
    return records


def show(records: list[dict]) -> None:
    """A row for every setting and test: error at level .05, and coverage of one model's 95 % interval."""
    keys = ("null", "test", "shape", "capped", "epsilon", "n", "rounds", "ess")
    settings_of = defaultdict(dict)
    for r in records:
        settings_of[tuple(r[k] for k in keys)][r["quantity"]] = r
    rows = [(*key, *cells(found)) for key, found in sorted(settings_of.items())]
    numbers = ("error L", "λ", "β", "(λ, β)", "coverage L", "λ", "β", "runs")
    show_table(f"type I error at level {LEVEL} and coverage", (*keys, *numbers), rows)


def cells(found: dict[str, dict]) -> list[str]:
    def column(name: str, quantities: tuple[str, ...]) -> list[str]:
        values = [found[q][name] if q in found else None for q in quantities]
        return ["" if v is None else f"{v:.3f}" for v in values]

    runs = str(min(r["replications"] for r in found.values()))
    return [*column("error", (*QUANTITIES, "lambda_beta")), *column("coverage", QUANTITIES), runs]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"store the result in {CALIBRATION}")
    parser.add_argument("--scale", type=float, default=1.0, help="factor on the number of replications")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = measure(options.scale)
    show(results)
    if options.write:
        write_text(CALIBRATION, "[\n" + ",\n".join(json.dumps(r) for r in results) + "\n]\n")
