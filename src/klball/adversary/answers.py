"""What `solve_dual` answers: numbers for one problem, arrays for a batch (mathematics.md, "Statuses")."""

import math
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

Weights_co = TypeVar("Weights_co", covariant=True)  # an array, a tensor, or None after a warm start


class InfeasibleError(ValueError):
    """No distribution in the ball has mean certainty γ or less; `gamma_min` is the smallest there."""

    def __init__(self, message: str, gamma_min: float, mean_certainty: float = math.nan):
        super().__init__(message)
        self.gamma_min, self.mean_certainty = gamma_min, mean_certainty


@dataclass(frozen=True, repr=False)
class DualSolution(Generic[Weights_co]):
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


@dataclass(frozen=True, repr=False)
class DualSolutions(Generic[Weights_co]):
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
