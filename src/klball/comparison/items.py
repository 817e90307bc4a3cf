"""Inference over the items of the data set: delta-method standard errors and a bootstrap of the dual.

Rounds are held fixed here, and the same items are drawn for every model and round, so that
differences are paired. One round is enough.
"""

import math
from dataclasses import dataclass, replace
from itertools import combinations
from numbers import Integral
from typing import Any

import numpy as np
from scipy import stats

from klball.adversary.dual import solve_dual
from klball.comparison.hypothesis_tests import QUANTITIES
from klball.comparison.p_values import corrected, p_of_f
from klball.comparison.rounds import RoundScores, RoundSolutions
from klball.scores.parts import Progress
from klball.scores.tails import difference, mean_of

LEVEL = 0.05
LEAST_RESAMPLES = 40
MOST_LOST = 0.01  # share of infeasible resamples beyond which quantiles mean little
ELEMENTS = 2_000_000  # scores solved at once
NO_SPREAD = "no spread over items: the same value whatever items are drawn (β where the cap is slack)"


@dataclass(frozen=True)
class ItemInference:
    """A quantity averaged over rounds, of one model (model_b = "") or the difference a − b of two.

    value with standard error and 95 % interval over items; −log10 p of a difference of 0, plain and
    adjusted over pairs (NaN for one model). ess: the smallest of the rounds and models involved.
    lost: bootstrap resamples without a solution. `degenerate`: why there is no interval (NaN then).
    """

    model_a: str
    model_b: str
    quantity: str
    method: str
    rounds: int
    ess: float
    value: float
    se: float = math.nan
    low: float = math.nan
    high: float = math.nan
    minus_log10_p: float = math.nan
    minus_log10_holm: float = math.nan
    minus_log10_bh: float = math.nan
    lost: int = 0
    degenerate: str = ""


def influence(scores: RoundScores, solutions: RoundSolutions) -> dict[str, np.ndarray]:
    """Influence of every item on worst_case, λ and β of its model and round, [models, rounds, n] each.

    With r = n·q and ℓ = log r the stationarity conditions KL(Q‖F) = ε and E_Q[C] = γ have influence
    (r(ℓ − ε − 1) + 1, r(C − γ)); minus the inverse of their Jacobian in a = 1/λ, b = β/λ,

        (aV_gg + bV_gC, aV_gC + bV_CC; −V_gC, −V_CC),   V the covariance under Q,

    turns it into that of (a, b), and λ = 1/a, β = b/a. L_ε has λ(r − 1) by the envelope theorem. At
    β = 0 the cap is slack and only KL = ε counts: β has influence 0. NaN unless 0 < λ < ∞ and β < ∞.
    """
    lam = np.where(solutions.usable() & (solutions.lambda_ > 0), solutions.lambda_, np.nan)[..., None]
    beta = np.where(np.isnan(lam), np.nan, solutions.beta[..., None])
    g = scores.log_likelihood
    c = np.zeros_like(g) if scores.certainty is None else scores.certainty
    exponent = -(g + beta * c) / lam
    exponent -= exponent.max(axis=2, keepdims=True)
    q = np.exp(exponent)
    total = q.sum(axis=2, keepdims=True)
    q /= total
    r = q * solutions.n
    log_r = exponent + np.log(solutions.n / total)  # not log(r): an item may weigh nothing
    dg, dc = g - (q * g).sum(axis=2, keepdims=True), c - (q * c).sum(axis=2, keepdims=True)
    vgg, vgc, vcc = (
        (q * left * right).sum(axis=2, keepdims=True) for left, right in ((dg, dg), (dg, dc), (dc, dc))
    )
    a, b = 1 / lam, beta / lam
    of_kl = r * (log_r - solutions.epsilon - 1) + 1
    bound = beta > 0
    of_cap = np.where(bound, r * dc, 0.0)
    # with the cap slack: δa = −IF/(a·V_gg), δb = 0
    determinant = np.where(bound, a * (vgc**2 - vgg * vcc), np.nan)
    delta_a = np.where(bound, (vcc * of_kl + (a * vgc + b * vcc) * of_cap) / determinant, -of_kl / (a * vgg))
    delta_b = np.where(bound, -(vgc * of_kl + (a * vgg + b * vgc) * of_cap) / determinant, 0.0)
    return {
        "worst_case": -lam * (r - 1),
        "lambda_": -(lam**2) * delta_a,
        "beta": lam * delta_b - beta * lam * delta_a,
    }


def delta_inference(scores: RoundScores, solutions: RoundSolutions) -> list[ItemInference]:
    """Models and pairs by the delta method: se = sd(Σ_rounds influence / rounds)/√n, paired over items.

    Intervals and p-values use t with least ESS − 1 degrees of freedom, since that many items count.
    """
    of_item = influence(scores, solutions)
    results = []
    for quantity in QUANTITIES:
        values = getattr(solutions, quantity)
        singles = [
            _delta(solutions, quantity, (m,), values[m], of_item[quantity][m])
            for m in range(len(solutions.models))
        ]
        pairs = [
            _delta(
                solutions,
                quantity,
                (a, b),
                difference(values[a], values[b]),
                difference(of_item[quantity][a], of_item[quantity][b]),
            )
            for a, b in combinations(range(len(solutions.models)), 2)
        ]
        results += singles + corrected(pairs)
    return results


def _delta(
    solutions: RoundSolutions, quantity: str, who: tuple[int, ...], values: np.ndarray, effect: np.ndarray
) -> ItemInference:
    rounds = solutions.usable()[list(who)].all(axis=0)
    plain = _plain(solutions, quantity, "delta", who, values[rounds])
    if plain.degenerate:
        return plain
    effect = effect[rounds]
    unbound = int(np.isnan(effect).any(axis=1).sum())
    if unbound:
        where = "" if len(effect) == 1 else f" in {unbound} of {len(effect)} rounds"
        return replace(plain, degenerate=f"the worst case is the least score of all (λ = 0){where}")
    if plain.ess <= 2:
        return replace(plain, degenerate=f"ESS = {plain.ess:.2g}")
    se = math.sqrt((effect.mean(axis=0) ** 2).sum() / (solutions.n * (solutions.n - 1)))
    if se == 0:
        return replace(plain, degenerate=NO_SPREAD)
    half = float(stats.t.ppf(1 - LEVEL / 2, plain.ess - 1)) * se
    p = p_of_f((plain.value / se) ** 2, 1, plain.ess - 1) if len(who) == 2 else math.nan
    low, high = plain.value - half, plain.value + half
    return replace(plain, se=se, low=low, high=high, minus_log10_p=p)


def _plain(
    solutions: RoundSolutions, quantity: str, method: str, who: tuple[int, ...], values: np.ndarray
) -> ItemInference:
    """The mean over rounds with no interval yet."""
    names = [*(solutions.models[m] for m in who), ""]
    mean = mean_of(values) if len(values) else math.nan
    reason = "" if len(values) else "no usable round"
    return ItemInference(
        model_a=names[0],
        model_b=names[1],
        quantity=quantity,
        method=method,
        rounds=len(values),
        ess=solutions.least_ess(*who),
        value=mean,
        degenerate=reason,
    )


@dataclass(frozen=True)
class Bootstrap:
    """Draws [resamples, models, rounds] of each quantity; NaN where a resample is infeasible."""

    solutions: RoundSolutions
    draws: dict[str, np.ndarray]

    def inference(self) -> list[ItemInference]:
        """Models and pairs with percentile intervals of the mean over rounds.

        A resample in which a round is infeasible is lost to that model or pair and counted; beyond 1 %
        there is no interval. No p-value: 0 outside the interval rejects at level .05.
        """
        models = range(len(self.solutions.models))
        who: list[tuple[int, ...]] = [*((m,) for m in models), *combinations(models, 2)]
        return [self._percentile(quantity, pair) for quantity in QUANTITIES for pair in who]

    def _percentile(self, quantity: str, who: tuple[int, ...]) -> ItemInference:
        rounds = self.solutions.usable()[list(who)].all(axis=0)
        values, draws = getattr(self.solutions, quantity)[:, rounds], self.draws[quantity][:, :, rounds]
        first, *other = who
        value, draw = values[first], draws[:, first]
        if other:
            value, draw = value - values[other[0]], draw - draws[:, other[0]]
        plain = _plain(self.solutions, quantity, "bootstrap", who, value)
        if plain.degenerate:
            return plain
        means = draw.mean(axis=1)
        kept = means[np.isfinite(means)]
        lost = len(means) - len(kept)
        if lost > MOST_LOST * len(means):
            reason = f"{lost} of {len(means)} resamples are infeasible"
            return replace(plain, lost=lost, degenerate=reason)
        if len(kept) < LEAST_RESAMPLES:
            return replace(plain, lost=lost, degenerate=f"{len(kept)} resamples are too few for an interval")
        if np.ptp(kept) == 0:
            return replace(plain, lost=lost, degenerate=NO_SPREAD)
        low, high = np.quantile(kept, (LEVEL / 2, 1 - LEVEL / 2))
        return replace(plain, se=float(kept.std(ddof=1)), low=float(low), high=float(high), lost=lost)


def check_resamples(resamples: Any) -> None:
    """Raise ValueError for numbers of resamples of which no 95 % interval can be made."""
    if not (isinstance(resamples, Integral) and (resamples == 0 or int(resamples) >= LEAST_RESAMPLES)):
        raise ValueError(
            f"resamples must be 0 for none, or a whole number from {LEAST_RESAMPLES} on, as the tails of a "
            f"95 % interval need, not {resamples!r}"
        )


def bootstrap(
    scores: RoundScores,
    solutions: RoundSolutions,
    *,
    resamples: int,
    seed: int = 0,
    progress: Progress | None = None,
) -> Bootstrap:
    """Draw n items with replacement, the same for all models and rounds, and solve every dual anew.

    γ stays that of `solutions`. `progress` is called with (resamples done, resamples in all).
    """
    n = solutions.n
    g = scores.log_likelihood.reshape(-1, n)
    c = None if scores.certainty is None else scores.certainty.reshape(-1, n)
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples)
    size = max(1, ELEMENTS // g.size)
    draws: dict[str, list[np.ndarray]] = {name: [] for name in QUANTITIES}
    for start in range(0, resamples, size):
        some = counts[start : start + size]
        k = len(some)
        s = solve_dual(
            loss=-np.tile(g, (k, 1)),
            certainty=None if c is None else np.tile(c, (k, 1)),
            epsilon=solutions.epsilon,
            gamma=solutions.gamma,
            base_weights=np.repeat(some, len(g), axis=0),
            throw=False,
        )
        infeasible = np.array(s.status) == "infeasible"
        for name in QUANTITIES:
            values = np.where(infeasible, np.nan, getattr(s, name))
            draws[name].append(values.reshape(k, *scores.log_likelihood.shape[:2]))
        if progress is not None:
            progress(start + k, resamples)
    return Bootstrap(solutions, {name: np.concatenate(parts) for name, parts in draws.items()})
