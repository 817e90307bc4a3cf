"""Where (λ, β) of a model may lie together, over items: the delta method's ellipse, and the bootstrap's.

Rounds are held fixed, as in `klball.comparison.items`. Where the ellipse covers: docs/comparison.md.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from klball.comparison.items import LEVEL, MOST_LOST, Bootstrap, influence
from klball.comparison.rounds import RoundScores, RoundSolutions

LEAST_DECIDING = 30.0  # items, and
LEAST_ERRORS = 4.0  # standard errors between λ, β and 0: with fewer of either the ellipse covers too little


@dataclass(frozen=True)
class JointRegion:
    """A 95 % confidence region of a model's (λ, β), averaged over its usable rounds.

        {p : (p − c)ᵀ S⁻¹ (p − c) ≤ radius²},   c = (lambda_, beta), S = (lambda_var, covariance; ·, beta_var)

    ess: the smallest of the rounds. deciding: of the delta method, how many items the matrix rests on,
    (Σ d²)²/Σ d⁴ with d² = IFᵀ S⁻¹ IF. lost: bootstrap resamples without a solution. `degenerate`: why there
    is none (NaN then).
    """

    model: str
    method: str
    rounds: int
    ess: float
    lambda_: float
    beta: float
    lambda_var: float = math.nan
    beta_var: float = math.nan
    covariance: float = math.nan
    radius: float = math.nan
    deciding: float = math.nan
    lost: int = 0
    degenerate: str = ""

    @property
    def matrix(self) -> np.ndarray:
        """S, [2, 2]."""
        return np.array([[self.lambda_var, self.covariance], [self.covariance, self.beta_var]])

    @property
    def supported(self) -> bool:
        """Whether ellipses of the delta method like this one covered .88 or more in simulation."""
        far = self.lambda_**2 / self.lambda_var, self.beta**2 / self.beta_var
        return self.deciding >= LEAST_DECIDING and min(far) >= LEAST_ERRORS**2

    @property
    def correlation(self) -> float:
        """That of λ and β."""
        return self.covariance / math.sqrt(self.lambda_var * self.beta_var)

    def distance(self, lambda_: float | np.ndarray, beta: float | np.ndarray) -> np.ndarray:
        """√((p − c)ᵀ S⁻¹ (p − c)); the region is where it is at most `radius`."""
        offset = np.array([np.asarray(lambda_) - self.lambda_, np.asarray(beta) - self.beta])
        return np.sqrt((offset * np.tensordot(np.linalg.inv(self.matrix), offset, 1)).sum(axis=0))


def delta_regions(scores: RoundScores, solutions: RoundSolutions) -> list[JointRegion]:
    """By the delta method: S is the covariance of the items' influences on λ and β, divided by n.

    The radius² is that of Hotelling's T² with ν = ESS − 1: 2ν/(ν − 1) · F₂,ν₋₁(.95).
    """
    of_item = influence(scores, solutions)
    regions = []
    for m in range(len(solutions.models)):
        region, usable = _plain(solutions, m, "delta")
        if not region.degenerate:
            effect = np.array([of_item[name][m, usable].mean(axis=0) for name in ("lambda_", "beta")])
            region = _by_delta(region, effect)
        regions.append(region)
    return regions


def _by_delta(region: JointRegion, effect: np.ndarray) -> JointRegion:
    """effect: influences on λ and β, [2, n]."""
    region = _with_matrix(region, np.cov(effect) / effect.shape[1])
    if region.degenerate:
        return region
    freedom = region.ess - 1
    f = float(stats.f.ppf(1 - LEVEL, 2, freedom - 1))
    squares = (effect * np.linalg.solve(region.matrix, effect)).sum(axis=0)
    deciding = float(squares.sum() ** 2 / (squares**2).sum())
    return replace(region, radius=math.sqrt(2 * freedom / (freedom - 1) * f), deciding=deciding)


def bootstrap_regions(resampled: Bootstrap) -> list[JointRegion]:
    """By the bootstrap: S is the covariance of the draws, and the radius holds 95 % of them."""
    regions = []
    for m in range(len(resampled.solutions.models)):
        region, usable = _plain(resampled.solutions, m, "bootstrap")
        if not region.degenerate:
            draws = [resampled.draws[name][:, m, usable].mean(axis=1) for name in ("lambda_", "beta")]
            region = _by_bootstrap(region, np.array(draws))
        regions.append(region)
    return regions


def _by_bootstrap(region: JointRegion, draws: np.ndarray) -> JointRegion:
    """draws: λ and β of the resamples, [2, resamples]."""
    kept = draws[:, np.isfinite(draws).all(axis=0)]
    lost, count = draws.shape[1] - kept.shape[1], draws.shape[1]
    region = replace(region, lost=lost)
    if lost > MOST_LOST * count:
        return replace(region, degenerate=f"{lost} of {count} resamples are infeasible")
    if count - lost < 3:
        return replace(region, degenerate=f"{count - lost} resamples")
    region = _with_matrix(region, np.cov(kept))
    if region.degenerate:
        return region
    return replace(region, radius=float(np.quantile(region.distance(*kept), 1 - LEVEL)))


def _plain(solutions: RoundSolutions, m: int, method: str) -> tuple[JointRegion, np.ndarray]:
    """The averages without a region, why there can be none, and the usable rounds."""
    usable = solutions.usable()[m]
    lambda_, beta = solutions.lambda_[m, usable], solutions.beta[m, usable]
    ess = solutions.least_ess(m)
    count = len(lambda_)
    slack, unbound = int((beta == 0).sum()), int((lambda_ == 0).sum())
    reason = ""
    if count == 0:
        reason = "no usable round"
    elif unbound:
        reason = f"λ = 0 in {unbound} of {count} rounds: the ball is slack"
    elif slack:
        reason = f"β = 0 in {slack} of {count} rounds: the bound on the certainty is slack"
    elif ess <= 2:
        reason = f"ESS = {ess:.2g}"
    means = (float(lambda_.mean()), float(beta.mean())) if count else (math.nan, math.nan)
    return JointRegion(solutions.models[m], method, count, ess, *means, degenerate=reason), usable


def _with_matrix(region: JointRegion, matrix: np.ndarray) -> JointRegion:
    if np.linalg.matrix_rank(matrix) != 2:
        return replace(region, degenerate="λ and β do not vary apart over items")
    (lambda_var, covariance), (_, beta_var) = matrix.tolist()
    return replace(region, lambda_var=lambda_var, beta_var=beta_var, covariance=covariance)
