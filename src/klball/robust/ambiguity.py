"""Ambiguity sets: what the adversary may do with the weights of the data."""

import math
from dataclasses import dataclass
from typing import Any

from klball.robust.dual import DualSolution, solve_dual


@dataclass(frozen=True)
class Empirical:
    """{F}: the adversary may do nothing; weights are the base weights. Plain averaging."""

    epsilon: float = 0.0
    gamma: None = None
    max_weight: None = None

    def solve(self, log_likelihood: Any, certainty: Any = None, base_weights: Any = None) -> DualSolution:
        """`solve_dual` at ε = 0."""
        return solve_dual(log_likelihood, certainty, epsilon=0.0, base_weights=base_weights)


@dataclass(frozen=True)
class KLBall:
    """{Q : KL(Q‖F) ≤ ε, q_i ≤ c·f_i}; ε in nats, c = `max_weight` or no cap.

    Raises ValueError for a negative or non-finite ε, or a cap below 1.
    """

    epsilon: float
    max_weight: float | None = None
    gamma: None = None

    def __post_init__(self) -> None:
        _check(self.epsilon, None, self.max_weight)

    def solve(self, log_likelihood: Any, certainty: Any = None, base_weights: Any = None) -> DualSolution:
        """`solve_dual` in this ball; certainty, if given, is only reported."""
        return solve_dual(
            log_likelihood,
            certainty,
            epsilon=self.epsilon,
            base_weights=base_weights,
            max_weight=self.max_weight,
        )


@dataclass(frozen=True)
class CertaintyKLBall:
    """{Q : KL(Q‖F) ≤ ε, E_Q[C] ≤ γ, q_i ≤ c·f_i}; ε and γ in nats.

    Raises ValueError for a negative or non-finite ε, a non-finite γ, or a cap below 1.
    """

    epsilon: float
    gamma: float
    max_weight: float | None = None

    def __post_init__(self) -> None:
        _check(self.epsilon, self.gamma, self.max_weight)

    def solve(self, log_likelihood: Any, certainty: Any = None, base_weights: Any = None) -> DualSolution:
        """`solve_dual` with both constraints. Raises InfeasibleError where no Q meets them."""
        return solve_dual(
            log_likelihood,
            certainty,
            epsilon=self.epsilon,
            gamma=self.gamma,
            base_weights=base_weights,
            max_weight=self.max_weight,
        )


AmbiguitySet = Empirical | KLBall | CertaintyKLBall


def ambiguity_set(
    epsilon: float, gamma: float | None = None, max_weight: float | None = None
) -> AmbiguitySet:
    """The set that these parameters describe: `Empirical` at ε = 0 without γ, else a ball."""
    _check(epsilon, gamma, max_weight)
    if gamma is not None:
        return CertaintyKLBall(epsilon, gamma, max_weight)
    return KLBall(epsilon, max_weight) if epsilon > 0 else Empirical()


def _check(epsilon: float, gamma: float | None, max_weight: float | None) -> None:
    if not (math.isfinite(epsilon) and epsilon >= 0):
        raise ValueError(f"epsilon must be a finite number of nats, 0 or more, not {epsilon}")
    if gamma is not None and not math.isfinite(gamma):
        raise ValueError(f"gamma must be a finite number of nats, not {gamma}; leave it out for no bound")
    if max_weight is not None and not (math.isfinite(max_weight) and max_weight >= 1):
        raise ValueError(f"max_weight must be finite and at least 1 (the mean weight), not {max_weight}")
