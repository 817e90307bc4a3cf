"""Do two models differ over rounds? The source's unpaired tests, and the paired ones that fit matched rounds.

Every p-value here treats rounds as the sample and is conditional on the data set's items.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from scipy import stats
from statsmodels.stats.multivariate import test_mvmean, test_mvmean_2indep

from klball.comparison.p_values import PValue, corrected, degenerate, p_of_f, p_of_z
from klball.comparison.rounds import RoundSolutions

QUANTITIES = ("worst_case", "lambda_", "beta")
PAIR = "lambda_beta"
CONSTANT = 1e-12  # a spread below this share of the values is rounding
COLLINEAR = 1e-10  # smallest eigenvalue of a correlation matrix that counts as regular
FLIPS = 9_999


@dataclass(frozen=True)
class PairTest:
    """One test of one pair of models; −log10 p plain, by Holm and by Benjamini–Hochberg over all pairs.

    `rounds` is how many entered. `degenerate` is the reason where there is no p-value (NaN then).
    """

    model_a: str
    model_b: str
    test: str
    quantity: str
    rounds: int
    statistic: float
    minus_log10_p: float
    minus_log10_holm: float
    minus_log10_bh: float
    degenerate: str

    @property
    def p(self) -> float:
        """The plain p-value, 0 where it underflows."""
        return 10.0**-self.minus_log10_p


def pairwise_tests(solutions: RoundSolutions) -> list[PairTest]:
    """Every test on every pair of models, over the rounds that are usable for both.

    Scalar tests run on worst_case, lambda_ and beta, the two Hotelling tests on (λ, β) as "lambda_beta".
    Corrections count the pairs that have a p-value, within each test and quantity.
    """
    families = [(name, test, q) for name, test in SCALAR_TESTS.items() for q in QUANTITIES]
    families += [(name, test, PAIR) for name, test in VECTOR_TESTS.items()]
    return [result for family in families for result in _family(solutions, *family)]


def p_matrix(tests: Sequence[PairTest], test: str, quantity: str, models: Sequence[str]) -> np.ndarray:
    """The symmetric matrix of −log10 p, [models, models]; NaN on the diagonal and where degenerate."""
    matrix = np.full((len(models), len(models)), np.nan)
    for result in tests:
        if (result.test, result.quantity) == (test, quantity):
            i, j = models.index(result.model_a), models.index(result.model_b)
            matrix[i, j] = matrix[j, i] = result.minus_log10_p
    return matrix


def values_of(solutions: RoundSolutions, quantity: str) -> np.ndarray:
    """[models, rounds], or [models, rounds, 2] for the pair (λ, β)."""
    if quantity == PAIR:
        return np.stack([solutions.lambda_, solutions.beta], axis=-1)
    return getattr(solutions, quantity)


Test = Callable[[np.ndarray, np.ndarray], PValue]


def _family(solutions: RoundSolutions, name: str, test: Test, quantity: str) -> list[PairTest]:
    values = values_of(solutions, quantity)
    results = []
    for a, b in combinations(range(len(solutions.models)), 2):
        rounds = solutions.pair_rounds(a, b)
        p = test(values[a, rounds], values[b, rounds])
        pair = (solutions.models[a], solutions.models[b])
        numbers = (p.statistic, p.minus_log10_p, np.nan, np.nan)
        results.append(PairTest(*pair, name, quantity, int(rounds.sum()), *numbers, p.degenerate))
    return corrected(results)


def why_degenerate(x: np.ndarray, y: np.ndarray, *, paired: bool) -> str:
    """Why matched samples [rounds] or [rounds, 2] allow no test: too few, or no spread; "" if they do."""
    columns = 1 if x.ndim == 1 else x.shape[1]
    if len(x) < columns + 1:
        return f"{len(x)} usable round{'s' * (len(x) != 1)}, {columns + 1} needed"
    scale = np.maximum(np.abs(x).max(axis=0), np.abs(y).max(axis=0))
    spread = np.ptp(x - y, axis=0) if paired else np.maximum(np.ptp(x, axis=0), np.ptp(y, axis=0))
    if not np.any(spread <= CONSTANT * scale):
        return ""
    if np.any(scale == 0):
        return (
            "zero in every round" if columns == 1 else "λ or β is zero in every round: test the other alone"
        )
    return "the differences are constant over rounds" if paired else "both samples are constant over rounds"


def _singular(deviations: np.ndarray) -> str:
    correlation = np.corrcoef(deviations, rowvar=False)
    return (
        "" if np.linalg.eigvalsh(correlation)[0] > COLLINEAR else "singular covariance: λ and β are collinear"
    )


def welch_t(x: np.ndarray, y: np.ndarray) -> PValue:
    """The source's test: two-sample t with unequal variances, unpaired. Ignores that rounds match."""
    if reason := why_degenerate(x, y, paired=False):
        return degenerate(reason)
    result: Any = stats.ttest_ind(x, y, equal_var=False)
    return PValue(float(result.statistic), p_of_f(result.statistic**2, 1, float(result.df)))


def paired_t(x: np.ndarray, y: np.ndarray) -> PValue:
    """t = mean(d)/(sd(d)/√n) of the differences d = x − y of matched rounds."""
    if reason := why_degenerate(x, y, paired=True):
        return degenerate(reason)
    result: Any = stats.ttest_rel(x, y)
    return PValue(float(result.statistic), p_of_f(result.statistic**2, 1, len(x) - 1))


def mann_whitney(x: np.ndarray, y: np.ndarray) -> PValue:
    """Unpaired rank test of P(x > y) = ½; statistic U."""
    if reason := why_degenerate(x, y, paired=False):
        return degenerate(reason)
    result: Any = stats.mannwhitneyu(x, y)
    n = len(x)
    z = (result.statistic - n * n / 2) / np.sqrt(n * n * (2 * n + 1) / 12)
    return PValue(float(result.statistic), _minus_log10(result.pvalue, z))


def wilcoxon(x: np.ndarray, y: np.ndarray) -> PValue:
    """Signed-rank test of differences symmetric around 0; statistic min(W⁺, W⁻), zeros dropped."""
    if reason := why_degenerate(x, y, paired=True):
        return degenerate(reason)
    result: Any = stats.wilcoxon(x, y)
    n = int((x != y).sum())
    z = (result.statistic - n * (n + 1) / 4) / np.sqrt(n * (n + 1) * (2 * n + 1) / 24)
    return PValue(float(result.statistic), _minus_log10(result.pvalue, z))


def _minus_log10(p: float, z: float) -> float:
    """Of a rank test: where its p underflows, from the normal limit that SciPy uses there too."""
    return 0.0 - float(np.log10(p)) if p > 0 else p_of_z(z)


def sign_flip(x: np.ndarray, y: np.ndarray) -> PValue:
    """Permutation test of the mean difference: swap the models' names in random rounds.

    Exact over all 2ⁿ swaps where those are fewer than 10,000, else (1 + hits)/(1 + flips) from fixed ones.
    """
    if reason := why_degenerate(x, y, paired=True):
        return degenerate(reason)
    result = stats.permutation_test(
        (x, y),
        lambda u, v, axis: np.mean(u - v, axis=axis),
        permutation_type="samples",
        n_resamples=FLIPS,
        vectorized=True,
        rng=np.random.default_rng(0),
    )
    return PValue(float(result.statistic), 0.0 - float(np.log10(result.pvalue)))


def hotelling(x: np.ndarray, y: np.ndarray) -> PValue:
    """The source's two-sample T² on (λ, β), unpaired, as F = (N−p−1)/(p(N−2))·T² with N = 2n rounds.

    statsmodels pools the two covariance matrices: equal covariances are assumed.
    """
    if reason := why_degenerate(x, y, paired=False):
        return degenerate(reason)
    if reason := _singular(np.concatenate([x - x.mean(axis=0), y - y.mean(axis=0)])):
        return degenerate(reason)
    result: Any = test_mvmean_2indep(x, y)
    return PValue(float(result.statistic), p_of_f(result.statistic, *result.df))


def paired_hotelling(x: np.ndarray, y: np.ndarray) -> PValue:
    """T² = n·d̄ᵀS⁻¹d̄ of the paired differences of (λ, β), as F = (n−p)/(p(n−1))·T²."""
    if reason := why_degenerate(x, y, paired=True):
        return degenerate(reason)
    if reason := _singular(x - y):
        return degenerate(reason)
    result: Any = test_mvmean(x - y)
    return PValue(float(result.statistic), p_of_f(result.statistic, *result.df))


SCALAR_TESTS: dict[str, Test] = {
    "welch_t": welch_t,
    "paired_t": paired_t,
    "mann_whitney": mann_whitney,
    "wilcoxon": wilcoxon,
    "sign_flip": sign_flip,
}
VECTOR_TESTS: dict[str, Test] = {"hotelling": hotelling, "paired_hotelling": paired_hotelling}
