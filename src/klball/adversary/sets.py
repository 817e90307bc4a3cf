"""Ambiguity sets: what the adversary may do with the weights of the data.

A set is a frozen value, and whatever has the attributes of `AmbiguitySet` is one: `docs/extending.md`
writes one that is not shipped. They are derived in mathematics.md, "The
problem" and "Other balls, and the other direction".
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from klball.adversary import inputs
from klball.adversary.answers import InfeasibleError
from klball.adversary.dual import solve_dual
from klball.adversary.solution import DensitySolution, Scores, Solution, TiltSolution
from klball.adversary.sorting import LinearDensity, StepDensity, linear, tail
from klball.adversary.warm import resolve

DIRECTIONS = ("pessimistic", "optimistic")
ROUNDING = 1e-9  # of the sum of weights
NEGLIGIBLE = 1e-28  # radius of χ²: weights differ by its root, which is rounding
RELAXED_MARGIN = 0.01  # of the way from γ_min to the mean certainty


class AmbiguitySet(Protocol):
    """The distributions that the adversary may choose from."""

    needs: ClassVar[tuple[str, ...]]
    """Which scores `solve` and a solution's `density` read: (), ("score",) or ("score", "certainty")."""

    def solve(
        self, scores: Scores, base_weights: Tensor | None = None, *, start: Tensor | None = None
    ) -> Solution:
        """The worst Q for scores [n] in float64; base_weights f, [n], None for 1/n.

        start: that of the solution for scores that differed little, from which a set may continue.
        """
        ...

    def relaxed(self, error: InfeasibleError) -> "AmbiguitySet":
        """The set to use where no Q qualifies; raises `error` if there is none."""
        ...

    def scaled(self, share: float) -> "AmbiguitySet":
        """The set at that share, in [0, 1], of its radius: for a warm-up. 0 leaves the base weights."""
        ...

    def summary(self, solution: Any) -> dict[str, float]:
        """What every logging step reports of a solution, beside KL, ESS and the robust loss."""
        ...


@dataclass(frozen=True)
class Empirical:
    """{F}: the adversary may do nothing; weights are the base weights. Plain averaging."""

    needs: ClassVar[tuple[str, ...]] = ()

    def solve(
        self, scores: Scores, base_weights: Tensor | None = None, *, start: Tensor | None = None
    ) -> Solution:
        """Q = F."""
        g = inputs.named(scores, "score")
        base = inputs.base_of(base_weights, g)
        return _density_solution(g, base, torch.ones_like, 1.0, "optimal", math.inf)

    def relaxed(self, error: InfeasibleError) -> "Empirical":
        raise error

    def scaled(self, share: float) -> "Empirical":
        return self

    def summary(self, solution: Any) -> dict[str, float]:
        return {}


@dataclass(frozen=True)
class KLBall:
    """{Q : KL(Q‖F) ≤ ε, q_i ≤ c·f_i}; ε in nats, c = `max_weight` or no cap.

    Args:
        epsilon: The radius ε.
        max_weight: The cap c, at least 1; None: no cap.
        direction: "pessimistic" minimises E_Q[score], q ∝ f·exp(−g/λ); "optimistic" maximises it.

    Raises:
        ValueError: A negative or non-finite ε, a cap below 1, or another direction.
    """

    epsilon: float
    max_weight: float | None = None
    direction: str = "pessimistic"
    needs: ClassVar[tuple[str, ...]] = ("score",)

    def __post_init__(self) -> None:
        radius, cap = inputs.kl_radius(self.epsilon), inputs.cap(self.max_weight)
        _settle(self, epsilon=radius, max_weight=cap)

    def solve(
        self, scores: Scores, base_weights: Tensor | None = None, *, start: Tensor | None = None
    ) -> TiltSolution:
        """`solve_dual` of the score."""
        return _tilt(self, scores, base_weights, start, None)

    def relaxed(self, error: InfeasibleError) -> "KLBall":
        raise error

    def scaled(self, share: float) -> "KLBall":
        return replace(self, epsilon=share * self.epsilon)

    def summary(self, solution: TiltSolution) -> dict[str, float]:
        return {"lambda": solution.dual.lambda_, "beta": solution.dual.beta}


@dataclass(frozen=True)
class CertaintyKLBall:
    """{Q : KL(Q‖F) ≤ ε, E_Q[C] ≤ γ, q_i ≤ c·f_i}; ε and γ in nats.

    Raises:
        ValueError: A negative or non-finite ε, a non-finite γ, a cap below 1, or a direction that is not
            one of "pessimistic" and "optimistic".
    """

    epsilon: float
    gamma: float
    max_weight: float | None = None
    direction: str = "pessimistic"
    needs: ClassVar[tuple[str, ...]] = ("score", "certainty")

    def __post_init__(self) -> None:
        epsilon, gamma, cap = inputs.parameters(self.epsilon, inputs.bound(self.gamma), self.max_weight)
        _settle(self, epsilon=epsilon, gamma=gamma, max_weight=cap)

    def solve(
        self, scores: Scores, base_weights: Tensor | None = None, *, start: Tensor | None = None
    ) -> TiltSolution:
        """`solve_dual` with both constraints. Raises InfeasibleError where no Q meets them."""
        try:
            return _tilt(self, scores, base_weights, start, self.gamma)
        except InfeasibleError as error:
            c = inputs.named(scores, "certainty")
            error.mean_certainty = float(inputs.base_of(base_weights, c) @ c)
            raise

    def relaxed(self, error: InfeasibleError) -> "CertaintyKLBall":
        """γ a little above γ_min: a hundredth of the way to the mean certainty, which `solve` has noted."""
        if math.isnan(error.mean_certainty):
            raise error
        margin = RELAXED_MARGIN * max(error.mean_certainty - error.gamma_min, 1e-6)
        return replace(self, gamma=error.gamma_min + margin)

    def scaled(self, share: float) -> "CertaintyKLBall":
        return replace(self, epsilon=share * self.epsilon)

    def summary(self, solution: TiltSolution) -> dict[str, float]:
        dual = solution.dual
        assert dual.certainty is not None
        return {"lambda": dual.lambda_, "beta": dual.beta, "certainty": dual.certainty}


@dataclass(frozen=True)
class CVaR:
    """{Q : q_i ≤ f_i/α}: the conditional value at risk, the mean of the worst share α of the data.

    Raises:
        ValueError: An α outside (0, 1], or another direction.
    """

    alpha: float
    direction: str = "pessimistic"
    needs: ClassVar[tuple[str, ...]] = ("score",)

    def __post_init__(self) -> None:
        if not (inputs.is_finite(self.alpha) and 0 < self.alpha <= 1):
            raise ValueError(f"alpha must be a share of the data, above 0 and at most 1, not {self.alpha!r}")
        _settle(self, alpha=float(self.alpha))

    def solve(
        self, scores: Scores, base_weights: Tensor | None = None, *, start: Tensor | None = None
    ) -> DensitySolution:
        """Weight 1/α on the lowest scores until their base mass is α."""
        sign = _sign(self.direction)
        g = inputs.named(scores, "score")
        base = inputs.base_of(base_weights, g)
        density = tail(sign * g.numpy(), base.numpy(), 1 / self.alpha)
        # all scores have to fall by about this much before a share α more of them lies below the threshold
        width = float(g.max() - g.min()) or 1.0
        place = (g - g.min()) / width
        spread = width * float(base @ (place - base @ place) ** 2) ** 0.5
        return _density_solution(g, base, density, sign, "optimal", self.alpha * spread)

    def relaxed(self, error: InfeasibleError) -> "CVaR":
        raise error

    def scaled(self, share: float) -> "CVaR":
        return replace(self, alpha=1 / (1 + share * (1 / self.alpha - 1)))

    def summary(self, solution: DensitySolution) -> dict[str, float]:
        return {}


@dataclass(frozen=True)
class ChiSquareBall:
    """{Q : Σ f_i (q_i/f_i − 1)² ≤ radius, q_i ≤ c·f_i}: the modified χ² ball; c = `max_weight` or no cap.

    The density is (a + b·loss)₊; where the ball binds the effective sample size is n/(1 + radius).
    Source: Ben-Tal et al. (2013); Namkoong & Duchi (2017).

    Raises:
        ValueError: A negative or non-finite radius, a cap below 1, or another direction.
    """

    radius: float
    max_weight: float | None = None
    direction: str = "pessimistic"
    needs: ClassVar[tuple[str, ...]] = ("score",)

    def __post_init__(self) -> None:
        radius, cap = inputs.radius("radius", self.radius), inputs.cap(self.max_weight)
        _settle(self, radius=radius, max_weight=cap)

    def solve(
        self, scores: Scores, base_weights: Tensor | None = None, *, start: Tensor | None = None
    ) -> DensitySolution:
        """Exact, by sorting."""
        sign = _sign(self.direction)
        g = inputs.named(scores, "score")
        base = inputs.base_of(base_weights, g)
        if self.radius <= NEGLIGIBLE:
            return _density_solution(g, base, torch.ones_like, sign, "optimal", math.inf)
        cap = math.inf if self.max_weight is None else self.max_weight
        density, binds = linear(sign * g.numpy(), base.numpy(), self.radius, cap)
        capped = float(density(sign * g)[base > 0].max()) >= cap * (1 - ROUNDING)
        status = "capped" if capped else "optimal" if binds else "point_mass"
        scale = 0.0
        if isinstance(density, LinearDensity):  # w changes by the slope, where it is neither 0 nor the cap
            w = density(sign * g)
            scale = density.width / (density.slope * float(base[(w > 0) & (w < cap)].sum()))
        return _density_solution(g, base, density, sign, status, scale)

    def relaxed(self, error: InfeasibleError) -> "ChiSquareBall":
        raise error

    def scaled(self, share: float) -> "ChiSquareBall":
        return replace(self, radius=share * self.radius)

    def summary(self, solution: DensitySolution) -> dict[str, float]:
        return {}


def _settle(ball: Any, **settings: float | None) -> None:
    """As float64, whatever kind of number was given; and a direction that there is."""
    _sign(ball.direction)
    for name, value in settings.items():
        object.__setattr__(ball, name, value)


def _sign(direction: str) -> float:
    if direction not in DIRECTIONS:
        raise ValueError(f"direction must be one of {', '.join(DIRECTIONS)}, not {direction!r}")
    return 1.0 if direction == "pessimistic" else -1.0


def _tilt(
    ball: KLBall | CertaintyKLBall,
    scores: Scores,
    base_weights: Tensor | None,
    start: Tensor | None,
    gamma: float | None,
) -> TiltSolution:
    """From the last multipliers where that does, else afresh."""
    sign = _sign(ball.direction)
    g = sign * inputs.named(scores, "score")
    c = inputs.named(scores, "certainty") if gamma is not None else None
    limits = {"epsilon": ball.epsilon, "gamma": gamma}
    dual = None
    if start is not None:
        multipliers = (float(start[0]), float(start[1]))
        dual = resolve(g, c, base_weights, **limits, start=multipliers, max_weight=ball.max_weight)
    if dual is None:
        # as losses: a score need not be a log-likelihood, and may be positive
        dual = solve_dual(
            loss=-g, certainty=c, **limits, base_weights=base_weights, max_weight=ball.max_weight
        )
    return TiltSolution(dual, ball.max_weight, sign)


def _density_solution(
    g: Tensor, base: Tensor, density: Callable[[Tensor], Tensor], sign: float, status: str, scale: float
) -> DensitySolution:
    w = density(sign * g.double())
    weights = base * w
    if not abs(float(weights.sum()) - 1) <= ROUNDING:
        total = float(weights.sum())
        raise ValueError(f"no weights were found that sum to one, but to {total}: rescale the scores")
    kl = float((weights * torch.where(w > 0, w, 1.0).log()).sum())
    return DensitySolution(
        weights=weights,
        kl=kl,
        ess=1 / float((weights**2).sum()),
        worst_case=float(weights @ g.double()),
        status=status,
        function=density,
        scale=scale,
        sign=sign,
        steps=isinstance(density, StepDensity),
    )
