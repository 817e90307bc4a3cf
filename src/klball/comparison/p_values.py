"""P-values that neither underflow nor turn into NaN, and their correction for many pairs, in logarithms."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from scipy import stats

SMALLEST_P = 0.001  # that sentences spell out; the tables have −log10 p
FDistribution: Any = stats.make_distribution(stats.f)
Row = TypeVar("Row", bound=Any)  # a dataclass


@dataclass(frozen=True)
class PValue:
    """−log10 of a p-value with its statistic; `degenerate` says why there is none (then both are NaN)."""

    statistic: float
    minus_log10_p: float
    degenerate: str = ""


def degenerate(reason: str) -> PValue:
    """No p-value, for this reason."""
    return PValue(np.nan, np.nan, reason)


def p_in_words(minus_log10_p: float) -> str:
    """ "p = 0.023", "p < 0.001"."""
    p = 10**-minus_log10_p
    return f"p = {p:.3f}" if p >= SMALLEST_P else f"p < {SMALLEST_P}"


def p_of_f(statistic: float, df_between: float, df_within: float) -> float:
    """−log10 P(F ≥ statistic); for a two-sided t with ν degrees of freedom, F = t² with (1, ν).

    scipy.stats.f.logsf returns −∞ from about 1e−320 on; the logccdf of the new distributions does not.
    """
    with np.errstate(divide="ignore"):
        log_p = float(FDistribution(dfn=df_between, dfd=df_within).logccdf(statistic))
    return max(0.0, -log_p / np.log(10))


def p_of_z(z: float) -> float:
    """−log10 of the two-sided p-value of a standard normal statistic."""
    return max(0.0, -float(np.log(2) + stats.norm.logsf(abs(z))) / np.log(10))


def holm(minus_log10_p: Sequence[float]) -> np.ndarray:
    """Holm's step-down adjustment, −log10: p₍ₖ₎ ↦ max_{j≤k} (m − j + 1)·p₍ⱼ₎, at most 1.

    NaN (degenerate) entries stay NaN and are not counted in m.
    """
    return _adjusted(minus_log10_p, _holm_sorted)


def benjamini_hochberg(minus_log10_p: Sequence[float]) -> np.ndarray:
    """Benjamini and Hochberg's adjustment, −log10: p₍ₖ₎ ↦ min_{j≥k} (m/j)·p₍ⱼ₎, at most 1."""
    return _adjusted(minus_log10_p, _hochberg_sorted)


def corrected(rows: Sequence[Row]) -> list[Row]:
    """Rows with the two adjustments of their `minus_log10_p` over all of them."""
    plain = [row.minus_log10_p for row in rows]
    adjusted = zip(rows, holm(plain), benjamini_hochberg(plain), strict=True)
    return [replace(row, minus_log10_holm=float(h), minus_log10_bh=float(bh)) for row, h, bh in adjusted]


def _holm_sorted(descending: np.ndarray) -> np.ndarray:
    m = len(descending)
    return np.minimum.accumulate(descending - np.log10(np.arange(m, 0, -1)))


def _hochberg_sorted(descending: np.ndarray) -> np.ndarray:
    m = len(descending)
    scaled = descending - np.log10(m / np.arange(1, m + 1))
    return np.maximum.accumulate(scaled[::-1])[::-1]


def _adjusted(minus_log10_p: Sequence[float], rule: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    values = np.array(minus_log10_p, dtype=float)
    tested = np.flatnonzero(~np.isnan(values))
    order = tested[np.argsort(-values[tested], kind="stable")]
    values[order] = np.maximum(rule(values[order]), 0.0)
    return values
