r"""The worst re-weighting of scored samples inside a Kullback–Leibler ball (mathematics.md, "The problem").

    minimise E_Q[g]  subject to  KL(Q‖F) ≤ ε,  E_Q[C] ≤ γ,  q ≤ c·f

through its dual, maximise over λ ≥ 0, β ≥ 0:  h(λ,β) = −λε − βγ − λ log Σ f_i exp(−(g_i + βC_i)/λ).
What comes back is checked (mathematics.md, "The certificate").
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar, overload

import numpy as np
import torch
from torch import Tensor

from klball.adversary import inputs
from klball.adversary.inputs import Array
from klball.adversary.solver.rounds import (
    Answer,
    Ball,
    closed,
    divergence,
    solve_round,
    solve_together,
    untied,
)
from klball.adversary.solver.tilting import PIECE, Numbers, Scores, quantile

WIDEST_GAP = 1e-9  # of the range of g: a wider one is no answer
TOLERANCE = 1e-9  # of ε and of the range of C, within which a constraint is met
ROUNDING = 1e-12  # of Σq, of a weight at the cap, and of KL
LARGE = 1e3  # exponents of which the sums of a tilt may lose the digits of KL
TYPICAL = 16  # samples of which the middle one is no outlier

Weights = TypeVar("Weights", np.ndarray, Tensor)


class InfeasibleError(ValueError):
    """No distribution in the ball has mean certainty γ or less; `gamma_min` is the smallest there."""

    def __init__(self, message: str, gamma_min: float, mean_certainty: float = math.nan):
        super().__init__(message)
        self.gamma_min, self.mean_certainty = gamma_min, mean_certainty


@dataclass(frozen=True, repr=False)
class DualSolution(Generic[Weights]):
    """A solved problem.

    lambda_, beta: multipliers of the ball (nats of score per nat of radius) and of the certainty cap.
    weights: q, [n], float64, a tensor for a tensor and else an array.
    kl, certainty, worst_case: KL(Q‖F), E_Q[C] (None without C) and E_Q[g] at `weights`.
    dual_value: h at the multipliers. gap: worst_case − dual_value in units of max g − min g.
    ess: effective sample size 1/Σ(q²). mu: q_i = f_i·min(c, exp((mu − g_i − βC_i)/λ)) if λ is in (0, ∞).
    gamma_min: the smallest E_Q[C] in the ball where it had to be found (else NaN; None without gamma).
    `solve_dual(loss=-certainty, epsilon=...).worst_case` is γ_min too.
    status: optimal | point_mass | vertex | boundary | capped | infeasible.
    num_passes: over the scores.
    """

    lambda_: float
    beta: float
    weights: Weights
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
class DualSolutions(Generic[Weights]):
    """A batch of solved problems: what is a number in `DualSolution` is an array [rounds] here.

    weights: [rounds, n]; of infeasible rounds NaN, like their multipliers. status: a list. num_passes: the most
    that any round took. Arrays are tensors where the scores were one.
    """

    lambda_: Weights
    beta: Weights
    weights: Weights
    kl: Weights
    certainty: Weights | None
    worst_case: Weights
    dual_value: Weights
    gap: Weights
    ess: Weights
    mu: Weights
    gamma_min: Weights | None
    status: list[str]
    num_passes: int

    def __repr__(self) -> str:
        counts = ", ".join(f"{self.status.count(name)} {name}" for name in sorted(set(self.status)))
        spans = ", ".join(
            f"{label} {float(values.min()):.4g} … {float(values.max()):.4g}"
            for label, values in (("E_Q[g]", self.worst_case), ("λ", self.lambda_), ("ESS", self.ess))
        )
        return f"DualSolutions({counts}: {spans}, gap at most {float(self.gap.max()):.1g})"


Matrix = np.ndarray[tuple[int, int], np.dtype[Any]]  # of any kind of number


@overload
def solve_dual(
    log_likelihood: Sequence[Sequence[float]] | Matrix,
    certainty: Array | None = None,
    *,
    epsilon: float,
    gamma: float | None = None,
    base_weights: Array | None = None,
    max_weight: float | None = None,
    throw: bool = True,
) -> DualSolutions[np.ndarray]: ...
@overload
def solve_dual(
    log_likelihood: None = None,
    certainty: Array | None = None,
    *,
    loss: Sequence[Sequence[float]] | Matrix,
    epsilon: float,
    gamma: float | None = None,
    base_weights: Array | None = None,
    max_weight: float | None = None,
    throw: bool = True,
) -> DualSolutions[np.ndarray]: ...
@overload
def solve_dual(
    log_likelihood: Tensor,
    certainty: Array | None = None,
    *,
    epsilon: float,
    gamma: float | None = None,
    base_weights: Array | None = None,
    max_weight: float | None = None,
    throw: bool = True,
) -> DualSolution[Tensor]: ...
@overload
def solve_dual(
    log_likelihood: None = None,
    certainty: Array | None = None,
    *,
    loss: Tensor,
    epsilon: float,
    gamma: float | None = None,
    base_weights: Array | None = None,
    max_weight: float | None = None,
    throw: bool = True,
) -> DualSolution[Tensor]: ...
@overload
def solve_dual(
    log_likelihood: Array | None = None,
    certainty: Array | None = None,
    *,
    loss: Array | None = None,
    epsilon: float,
    gamma: float | None = None,
    base_weights: Array | None = None,
    max_weight: float | None = None,
    throw: bool = True,
) -> DualSolution[np.ndarray]: ...


@np.errstate(all="ignore")  # what leaves the range of float64 is looked for
def solve_dual(
    log_likelihood: Array | None = None,
    certainty: Array | None = None,
    *,
    loss: Array | None = None,
    epsilon: float,
    gamma: float | None = None,
    base_weights: Array | None = None,
    max_weight: float | None = None,
    throw: bool = True,
) -> DualSolution[Any] | DualSolutions[Any]:
    """The worst-case weights of a sample of scores, with multipliers and certificate, in float64.

    q_i = f_i·exp(−(g_i + βC_i)/λ)/Z at the (λ, β) that maximise h; at ε = 0, λ = ∞ and q = f; where
    the ball does not bind, λ = 0 and q is uniform on the minimisers of g.

    log_likelihood: g, nats, [n], or [rounds, n] for `DualSolutions`; or else loss: −g. (Type checkers see how
    many dimensions nested lists and arrays of two dimensions have; of a tensor or array that does not say
    they take it to be [n].) certainty: C, nats, the same shape, needed by gamma. epsilon: radius of the ball,
    nats. gamma: upper bound on E_Q[C]. base_weights: f, [n] or like g, normalised here. max_weight: c ≥ 1, a
    bound on q_i/f_i. throw=False returns status "infeasible" and NaN multipliers instead of raising.

    Raises ValueError for malformed input (log-likelihoods that are all positive among it), and
    InfeasibleError (naming γ_min) if no Q qualifies.
    Source: F. Deng, "Robust SFT" (slides); Hu & Hong (2013) for the dual of KL-constrained DRO.
    """
    g = inputs.log_likelihoods(log_likelihood, loss)
    extremes = inputs.scores("log_likelihood" if loss is None else "loss", g)
    if loss is None:
        inputs.refuse_losses(extremes[0])
    c = inputs.matching("certainty", certainty, g)
    c_extremes = None if c is None else inputs.scores("certainty", c)
    inputs.parameters(epsilon, gamma, max_weight, c)
    base = inputs.base_weights(base_weights, g)
    problem = _Problem(g, extremes, c, c_extremes, base, float(epsilon), gamma, max_weight)
    answer, units = problem.solve()
    found = units.in_nats(answer, c is not None, gamma is not None)
    if throw and "infeasible" in (status := [answer.status] if g.ndim == 1 else answer.status):
        _raise_infeasible(np.atleast_1d(found["gamma_min"])[np.array(status) == "infeasible"], problem)
    like = torch.from_numpy if isinstance(log_likelihood if loss is None else loss, Tensor) else np.asarray
    weights = like(np.full(len(g), math.nan) if answer.weights is None else answer.weights)
    if g.ndim == 1:
        return units.solution(answer, weights, c is not None, gamma is not None)
    arrays = {name: None if value is None else like(value) for name, value in found.items()}
    return DualSolutions(**arrays, weights=weights, status=answer.status.tolist(), num_passes=answer.passes)


@dataclass(frozen=True)
class RobustProfile:
    """ε ↦ (L_ε, λ, ESS): lists of the same length as `epsilon`. L_ε = −E_Q[g], and dL_ε/dε = λ."""

    epsilon: list[float]
    robust_loss: list[float]
    lambda_: list[float]
    ess: list[float]


def robust_profile(
    log_likelihood: Array | None = None,
    epsilons: Sequence[float] | None = None,
    *,
    loss: Array | None = None,
    base_weights: Array | None = None,
    max_weight: float | None = None,
) -> RobustProfile:
    """The worst-case loss L_ε of one set of scores [n] for each radius, with λ and ESS.

    L_ε = max {E_Q[−g] : KL(Q‖F) ≤ ε} is increasing and concave in ε with slope λ.
    Raises ValueError like `solve_dual`.
    """
    if epsilons is None or not np.iterable(epsilons) or isinstance(epsilons, str) or not len(epsilons):
        raise ValueError(f"epsilons must be a list of radii, not {repr(epsilons)[:40]}")
    if inputs.log_likelihoods(log_likelihood, loss).ndim != 1:
        raise ValueError("a profile is of one set of scores: pass [n], not [rounds, n]")
    solutions = [
        solve_dual(log_likelihood, loss=loss, epsilon=e, base_weights=base_weights, max_weight=max_weight)
        for e in epsilons
    ]
    return RobustProfile(
        epsilon=[float(e) for e in epsilons],
        robust_loss=[-s.worst_case for s in solutions],
        lambda_=[s.lambda_ for s in solutions],
        ess=[s.ess for s in solutions],
    )


# --- units, and the certificate ---------------------------------------------------------------


@dataclass(frozen=True)
class Units:
    """x = (g − g0)/width and y = (C − c0)/c_width: numbers, or of many rounds arrays [rounds]."""

    g0: Any
    width: Any
    c0: Any = 0.0
    c_width: Any = 1.0

    def in_nats(self, found: Answer, certain: bool, bounded: bool) -> dict[str, Any]:
        """The numbers of a `DualSolution`; h lies below E_Q[g] by the gap."""
        lambda_, beta = np.divide(self.width, found.a), found.beta * self.width / self.c_width
        worst = self.g0 + self.width * found.mean_x
        return dict(
            lambda_=lambda_,
            beta=beta,
            kl=found.kl,
            certainty=self.c0 + self.c_width * found.mean_y if certain else None,
            worst_case=worst,
            dual_value=worst - self.width * found.gap,
            gap=found.gap,
            ess=found.ess,
            mu=lambda_ * found.mu + self.g0 + beta * self.c0,  # NaN where the weights are no tilt
            gamma_min=self.c0 + self.c_width * found.least_y if bounded else None,
        )

    def solution(self, found: Answer, weights: Any, certain: bool, bounded: bool) -> DualSolution[Any]:
        numbers = self.in_nats(found, certain, bounded)
        floats = {name: None if value is None else float(value) for name, value in numbers.items()}
        return DualSolution(**floats, weights=weights, status=found.status, num_passes=found.passes)


def standardised(
    values: Numbers, extremes: tuple[Any, Any], base: Numbers | None, cap: float | None, middle: bool
) -> tuple[Numbers, Any, Any]:
    """Scores in units of their range, their origin, and the range (of every round); weightless ones are 1.

    The origin is where digits are needed: the smallest, near the `middle`, or with a cap where that begins to
    bind (mathematics.md, "Digits").
    """
    low, high = extremes
    single = values.ndim == 1
    used = None if base is None or base.all() else base > 0
    if used is not None:
        low = values.min(-1, where=used, initial=math.inf)
        high = values.max(-1, where=used, initial=-math.inf)
    origin = low
    if cap is not None:
        origin = _rowwise(lambda *own: quantile(*own, cap), values, base)
    elif middle:
        few = values[..., :: max(1, values.shape[-1] // TYPICAL)]
        origin = np.partition(few, few.shape[-1] // 2)[..., few.shape[-1] // 2]
    width = (high - low) or 1.0 if single else np.where(high > low, high - low, 1.0)
    x = values - (origin if single else origin[:, None])
    if (width if single else width.min()) > 1e-290:  # half the time of a division
        x *= 1 / width if single else 1 / width[:, None]
    else:  # whose reciprocal may overflow
        x /= width if single else width[:, None]
    if used is not None:
        x[~used] = 1.0
    return x, origin, width


def _rowwise(of: Any, values: Numbers, base: Numbers | None) -> Any:
    if values.ndim == 1:
        return of(values, base)
    return np.array([of(own, None if base is None else base[r]) for r, own in enumerate(values)])


@dataclass(frozen=True)
class _Problem:
    """Validated scores and base weights, float64 [n] or [rounds, n], their extremes, and the constraints."""

    g: Numbers
    extremes: tuple[Any, Any]
    c: Numbers | None
    c_extremes: tuple[Any, Any] | None
    base: Numbers | None
    epsilon: float
    gamma: float | None
    cap: float | None

    def solve(self) -> tuple[Answer, Units]:
        """The certified answers, in units: of short rounds together, of long ones one by one."""
        if self.g.ndim == 1:
            return self._alone()
        if self.cap is None and self.epsilon > 0 and self.g.shape[1] <= PIECE:
            scores, units = self._in_units()
            ball = self._ball(units)
            answers = solve_together(scores, ball)
            _certify(answers, scores, ball)
            return answers, units
        rounds = [self._round(r)._alone(f"round {r}: ") for r in range(len(self.g))]
        nothing = np.full(self.g.shape[1], math.nan)
        columns = zip(*(answer for answer, _ in rounds), strict=True)
        answers = Answer(*(np.array([nothing if v is None else v for v in column]) for column in columns))
        return answers, Units(*np.array([(u.g0, u.width, u.c0, u.c_width) for _, u in rounds]).T)

    def _round(self, r: int) -> "_Problem":
        of = lambda values: None if values is None else values[r]  # noqa: E731
        extremes, c_extremes = (
            (low[r], high[r]) for low, high in (self.extremes, self.c_extremes or self.extremes)
        )
        return replace(
            self, g=self.g[r], extremes=extremes, c=of(self.c), c_extremes=c_extremes, base=of(self.base)
        )

    def _alone(self, where: str = "") -> tuple[Answer, Units]:
        scores, units = self._in_units()
        ball = self._ball(units)
        answer = solve_round(scores, ball, overwrite=True)
        if 0 < answer.a < math.inf and not closed(answer, ball):
            scores, units = self._in_units()
            answer = solve_round(untied(scores), ball)
        _certify(answer, scores, ball, where)
        return answer, units

    def _in_units(self) -> tuple[Scores, Units]:
        middle = self.gamma is not None
        x, g0, width = standardised(self.g, self.extremes, self.base, self.cap, middle)
        if self.c is None or self.c_extremes is None:
            return Scores(x, None, self.base, self.cap), Units(g0, width)
        y, c0, c_width = standardised(self.c, self.c_extremes, self.base, self.cap, middle)
        return Scores(x, y, self.base, self.cap), Units(g0, width, c0, c_width)

    def _ball(self, units: Units) -> Ball:
        if self.gamma is None:
            return Ball(self.epsilon)
        blur = 4e-16 * np.maximum(np.abs(units.c0), abs(self.gamma)) / units.c_width
        return Ball(self.epsilon, (self.gamma - units.c0) / units.c_width, blur)


def _certify(found: Answer, scores: Scores, ball: Ball, where: str = "") -> None:
    """Raise ValueError unless every q lies in the ball, keeps every bound, and closes the gap."""
    q, kl, price = found.weights, found.kl, found.a * (1 + found.beta)
    if q is None:  # infeasible
        return
    inside = (price > 0) & (price < math.inf)
    f = 1 / q.shape[-1] if scores.base is None else scores.base
    if np.max(price) > LARGE if isinstance(price, np.ndarray) else price > LARGE:
        kl = np.where(price > LARGE, np.maximum(kl, divergence(q, f)), kl)
    kept = {
        "close the gap": found.gap <= WIDEST_GAP,
        "lie in the ball": kl <= ball.epsilon * (1 + TOLERANCE) + ROUNDING,
        "lie on its surface": (found.kl >= ball.epsilon * (1 - TOLERANCE) - ROUNDING) | (inside ^ True),
        "keep the bound on certainty": ball.met(found.mean_y, TOLERANCE),
        "sum to one": abs(q.sum(-1) - 1) <= ROUNDING,
        "keep the cap": scores.cap is None or (q <= scores.cap * f * (1 + ROUNDING)).all(-1),
    }
    if all(holds.all() if isinstance(holds, np.ndarray) else holds for holds in kept.values()):
        return
    bad = {
        what: np.atleast_1d((holds ^ True) & (found.status != "infeasible")) for what, holds in kept.items()
    }
    if not any(rounds.any() for rounds in bad.values()):
        return
    r = min(int(np.argmax(rounds)) for rounds in bad.values() if rounds.any())
    missed = " and ".join(what for what, rounds in bad.items() if rounds[r])
    gap, kl = np.atleast_1d(found.gap)[r], np.atleast_1d(found.kl)[r]
    raise ValueError(
        f"{where if q.ndim == 1 else f'round {r}: '}no multipliers were found that {missed} (the gap is "
        f"{gap:.1e} of the range of the scores, KL {kl}): change epsilon or gamma"
    )


def _raise_infeasible(least: Numbers, problem: _Problem) -> None:
    rounds = len(problem.g)
    where = "" if problem.g.ndim == 1 else f" in {len(least)} of {rounds} rounds"
    cap = "" if problem.cap is None else f" and max_weight = {problem.cap}"
    raise InfeasibleError(
        f"infeasible{where}: with epsilon = {problem.epsilon}{cap} the mean certainty cannot go below "
        f"γ_min = {float(least.max())!r}, but gamma = {problem.gamma}; raise gamma to at least γ_min, or epsilon",
        float(least.max()),
    )
