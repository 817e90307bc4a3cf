"""Answers: numbers of one problem, arrays of a batch, a density of passes (mathematics.md, "Statuses")."""

import math
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from klball.shown import Shown

Weights_co = TypeVar("Weights_co", covariant=True)  # an array, a tensor, or None after a warm start


class InfeasibleError(ValueError):
    """No distribution in the ball has mean certainty γ or less; `gamma_min` is the smallest there."""

    def __init__(self, message: str, gamma_min: float, mean_certainty: float = math.nan):
        super().__init__(message)
        self.gamma_min, self.mean_certainty = gamma_min, mean_certainty

    def __reduce__(self) -> tuple[type, tuple[str, float, float]]:
        """So that it comes back from another process, which `args` alone would not let it."""
        return type(self), (str(self), self.gamma_min, self.mean_certainty)


def infeasible(epsilon: str, gamma: float, least: float, where: str = "") -> InfeasibleError:
    """The error that names γ_min, the `least` mean certainty."""
    return InfeasibleError(
        f"infeasible{where}: with epsilon = {epsilon} the mean certainty cannot go below γ_min = {least!r}, "
        f"but gamma = {gamma}; raise gamma to at least γ_min, or epsilon",
        least,
    )


@dataclass(frozen=True, repr=False, eq=False)
class DualSolution(Shown, Generic[Weights_co]):
    """A solved problem.

    Attributes:
        lambda_: Multiplier of the ball, nats of score per nat of radius.
        beta: Multiplier of the bound on the certainty.
        weights: q, [n], float64, a tensor for a tensor and else an array.
        kl: KL(Q‖F), nats.
        certainty: E_Q[C]; None without C.
        worst_case: E_Q[g].
        dual_value: h at the multipliers.
        gap: worst_case − dual_value in units of max g − min g.
        ess: Effective sample size 1/Σ(q²).
        mu: q_i = f_i·min(c, exp((mu − g_i − βC_i)/λ)) if λ is in (0, ∞).
        gamma_min: The smallest E_Q[C] in the ball where it had to be found, else NaN; None without gamma.
            `solve_dual(loss=-certainty, epsilon=...).worst_case` is γ_min too.
        status: optimal | point_mass | vertex | boundary | capped | infeasible.
        num_passes: Over the scores.
    """

    lambda_: float
    beta: float
    weights: Weights_co
    kl: float
    certainty: float | None
    worst_case: float
    dual_value: float
    gap: float
    ess: float
    mu: float
    gamma_min: float | None
    status: str
    num_passes: int

    def __repr__(self) -> str:
        certainty = "" if self.certainty is None else f", E_Q[C] {self.certainty:.6g}"
        return (
            f"DualSolution({self.status}: E_Q[g] {self.worst_case:.6g}{certainty}, KL {self.kl:.4g}, "
            f"λ {self.lambda_:.6g}, β {self.beta:.6g}, ESS {self.ess:.4g}, gap {self.gap:.1g})"
        )


@dataclass(frozen=True, repr=False, eq=False)
class DualSolutions(Shown, Generic[Weights_co]):
    """A batch of solved problems: what is a number in `DualSolution` is an array [rounds] here.

    Arrays are tensors where the scores were one.

    Attributes:
        weights: [rounds, n]; of infeasible rounds NaN, like their multipliers.
        status: A list.
        num_passes: The most that any round took.
    """

    lambda_: Weights_co
    beta: Weights_co
    weights: Weights_co
    kl: Weights_co
    certainty: Weights_co | None
    worst_case: Weights_co
    dual_value: Weights_co
    gap: Weights_co
    ess: Weights_co
    mu: Weights_co
    gamma_min: Weights_co | None
    status: list[str]
    num_passes: int

    def __repr__(self) -> str:
        counts = ", ".join(f"{self.status.count(name)} {name}" for name in sorted(set(self.status)))
        columns = {"E_Q[g]": self.worst_case, "λ": self.lambda_, "ESS": self.ess}
        arrays = {label: np.asarray(values) for label, values in columns.items()}
        spans = ", ".join(f"{label} {v.min():.4g} … {v.max():.4g}" for label, v in arrays.items())
        return f"DualSolutions({counts}: {spans}, gap at most {np.asarray(self.gap).max():.1g})"


@dataclass(frozen=True, repr=False)
class StreamedSolution(Shown):
    """`DualSolution` without the weights, which `density` gives for any of the rows.

    Attributes:
        lambda_: Multiplier of the ball, nats of score per nat of radius.
        beta: Multiplier of the bound on the certainty.
        kl: KL(Q‖F), nats.
        certainty: E_Q[C]; None without C.
        worst_case: E_Q[g].
        dual_value: h at the multipliers.
        gap: |worst_case − dual_value| in units of max g − min g.
        ess: Effective sample size 1/Σ(q²), to about 2e-5 of itself.
        mu: n·q_i = exp((mu − g_i − βC_i)/λ) if λ is in (0, ∞), else NaN.
        mean: E_F[g].
        status: optimal | point_mass.
        num_rows: n.
        num_passes: Full passes over the data.
        tilt: g0, C0, widths, a, b and m of log(n·q) = m − a·(g − g0)/width − b·(C − C0)/width, which
            keeps digits that λ and mu lose to a large offset or a tiny range.
    """

    lambda_: float
    beta: float
    kl: float
    certainty: float | None
    worst_case: float
    dual_value: float
    gap: float
    ess: float
    mu: float
    mean: float
    status: str
    num_rows: int
    num_passes: int
    tilt: tuple[float, ...] = ()

    def density(self, log_likelihood: ArrayLike, certainty: ArrayLike | None = None) -> np.ndarray:
        """n·q of some rows, exp((mu − g − βC)/λ) shaped like `log_likelihood`; C is needed if β > 0."""
        g = np.asarray(log_likelihood, dtype=np.float64)
        if self.status == "point_mass":
            return (g == self.worst_case) * (self.num_rows / self.ess)
        if math.isinf(self.lambda_):
            return np.ones_like(g)
        g0, c0, width, c_width, a, b, m = self.tilt
        exponents = m - a * ((g - g0) / width)
        if b > 0:
            if certainty is None:
                raise ValueError("the weights depend on the certainty: pass it too")
            exponents = exponents - b * ((np.asarray(certainty, dtype=np.float64) - c0) / c_width)
        return np.exp(exponents)
