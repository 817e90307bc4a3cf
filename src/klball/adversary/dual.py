r"""The worst re-weighting of scored samples inside a Kullback–Leibler ball, solved exactly.

    minimise E_Q[g]  subject to  KL(Q‖F) ≤ ε,  E_Q[C] ≤ γ,  q ≤ c·f

through its dual, maximise over λ ≥ 0, β ≥ 0:  h(λ,β) = −λε − βγ − λ log Σ f_i exp(−(g_i + βC_i)/λ).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

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
    solve_ball,
    solve_round,
    solve_together,
)
from klball.adversary.solver.tilting import Numbers, Scores, quantile

GROUP = 1 << 16  # elements of rounds started together: they stay in the cache
WIDEST_GAP = 1e-9  # of the range of g: a wider one is no answer
TOLERANCE = 1e-9  # of ε and of the range of C, within which a constraint is met
ROUNDING = 1e-12  # of Σq, of a weight at the cap, and of KL
SMALLEST = 1e-140  # of the range of the scores
LARGE = 1e3  # exponents of which the sums of a tilt may lose the digits of KL


class InfeasibleError(ValueError):
    """No distribution in the ball has mean certainty γ or less; `gamma_min` is the smallest there."""

    def __init__(self, message: str, gamma_min: float, mean_certainty: float = math.nan):
        super().__init__(message)
        self.gamma_min, self.mean_certainty = gamma_min, mean_certainty


@dataclass(frozen=True)
class DualSolution:
    """A solved problem, or a batch of them: scalars become arrays [rounds], `status` a list.

    lambda_, beta: multipliers of the ball (nats of score per nat of radius) and of the certainty cap.
    kl, certainty, worst_case: KL(Q‖F), E_Q[C] (None without C) and E_Q[g] at `weights`.
    dual_value: h at the multipliers. gap: worst_case − dual_value in units of max g − min g.
    ess: effective sample size 1/Σ(q²). mu: q_i = f_i·min(c, exp((mu − g_i − βC_i)/λ)) if λ is in (0, ∞).
    gamma_min: the smallest E_Q[C] in the ball where it had to be found (else NaN; None without gamma).
    `solve_dual(loss=-certainty, epsilon=...).worst_case` is γ_min too.
    status: optimal | point_mass | vertex | boundary | capped | infeasible.
    """

    lambda_: Any
    beta: Any
    weights: Any
    kl: Any
    certainty: Any
    worst_case: Any
    dual_value: Any
    gap: Any
    ess: Any
    mu: Any
    gamma_min: Any
    status: Any
    num_passes: int


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
) -> DualSolution:
    """The worst-case weights of a sample of scores, with multipliers and certificate, in float64.

    q_i = f_i·exp(−(g_i + βC_i)/λ)/Z at the (λ, β) that maximise h; at ε = 0, λ = ∞ and q = f; where
    the ball does not bind, λ = 0 and q is uniform on the minimisers of g.

    log_likelihood: g, nats, [n] or [rounds, n]; or else loss: −g. certainty: C, nats, the same shape,
    needed by gamma. epsilon: radius of the ball, nats. gamma: upper bound on E_Q[C]. base_weights: f, [n]
    or like g, normalised here. max_weight: c ≥ 1, a bound on q_i/f_i. throw=False returns status
    "infeasible" and NaN multipliers instead of raising.

    Raises ValueError for malformed input (log-likelihoods that are all positive among it), and
    InfeasibleError (naming γ_min) if no Q qualifies.
    Source: F. Deng, "Robust SFT" (slides); Hu & Hong (2013) for the dual of KL-constrained DRO.
    """
    given = loss if log_likelihood is None else log_likelihood
    g = inputs.log_likelihoods(log_likelihood, loss)
    single = g.ndim == 1
    g = np.atleast_2d(g)
    extremes = inputs.scores("log_likelihood" if loss is None else "loss", g)
    if loss is None:
        inputs.refuse_losses(extremes[0].min())
    c = inputs.matching("certainty", certainty, g)
    c_extremes = None if c is None else inputs.scores("certainty", c)
    inputs.parameters(epsilon, gamma, max_weight, c)
    base = inputs.base_weights(base_weights, g)
    problem = _Problem(g, extremes, c, c_extremes, base, float(epsilon), gamma, max_weight)
    size = max(1, GROUP // g.shape[1])
    rounds = [
        found for start in range(0, len(g), size) for found in problem.solve(slice(start, start + size))
    ]
    if throw and any(found.status == "infeasible" for found in rounds):
        _raise_infeasible(rounds, problem, single)
    return _like_input(rounds, g.shape, isinstance(given, Tensor), single)


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
        robust_loss=[-float(s.worst_case) for s in solutions],
        lambda_=[float(s.lambda_) for s in solutions],
        ess=[float(s.ess) for s in solutions],
    )


# --- units, and the certificate ---------------------------------------------------------------


@dataclass(frozen=True)
class Units:
    """x = (g − g0)/width and y = (C − c0)/c_width of one round."""

    g0: float
    width: float
    c0: float = 0.0
    c_width: float = 1.0

    def solution(self, found: Answer, gamma: float | None, certain: bool) -> DualSolution:
        """The answer in nats; h lies below E_Q[g] by the gap."""
        lambda_ = math.inf if found.a == 0 else self.width / found.a
        beta = found.beta * self.width / self.c_width if found.beta else 0.0
        worst = self.g0 + self.width * found.mean_x
        inside = 0 < found.a < math.inf and math.isfinite(beta)
        return DualSolution(
            lambda_=lambda_,
            beta=beta,
            weights=found.weights,
            kl=found.kl,
            certainty=self.c0 + self.c_width * found.mean_y if certain else None,
            worst_case=worst,
            dual_value=worst - self.width * found.gap,
            gap=found.gap,
            ess=found.ess,
            mu=lambda_ * found.mu + self.g0 + beta * self.c0 if inside else math.nan,
            gamma_min=None if gamma is None else self.c0 + self.c_width * found.least_y,
            status=found.status,
            num_passes=found.passes,
        )


def standardised(
    values: Numbers, extremes: tuple[Numbers, Numbers], base: Numbers | None, cap: float | None, middle: bool
) -> tuple[Numbers, Numbers, Numbers]:
    """Of every round: scores in units of their range, their origin, and the range; weightless ones are 1.

    The origin is where digits are needed: the smallest, the `middle`, or with a cap where it begins to bind.
    """
    low, high = extremes
    used = None if base is None or base.all() else base > 0
    if used is not None:
        low = values.min(1, where=used, initial=math.inf)
        high = values.max(1, where=used, initial=-math.inf)
    origin = low
    if cap is not None:
        origin = np.array(
            [quantile(own, None if base is None else base[r], cap) for r, own in enumerate(values)]
        )
    elif middle:
        origin = np.partition(values, values.shape[1] // 2)[:, values.shape[1] // 2]
    width = np.where(high > low, high - low, 1.0)
    x = values - origin[:, None]
    if width.min() > 1e-290:
        x *= (1 / width)[:, None]  # half the time of a division, which reciprocals of subnormal ranges need
    else:
        x /= width[:, None]
    if used is not None:
        x[~used] = 1.0
    if x.size <= GROUP:
        _tie(x)
    return x, origin, width


def _tie(x: Numbers) -> None:
    """Scores that differ by less than any square can tell are equal; of many, only where that is needed."""
    x[np.abs(x) < SMALLEST] = 0.0


@dataclass(frozen=True)
class _Problem:
    """Validated scores and base weights, float64 [rounds, n], extremes [rounds], and the constraints."""

    g: Numbers
    extremes: tuple[Numbers, Numbers]
    c: Numbers | None
    c_extremes: tuple[Numbers, Numbers] | None
    base: Numbers | None
    epsilon: float
    gamma: float | None
    cap: float | None

    def solve(self, own: slice) -> list[DualSolution]:
        """The solutions of some rounds; those of a batch, and with γ, start from tilts found together."""
        scores, units = self._in_units(own)
        balls = [Ball(self.epsilon)] * len(units)
        if self.gamma is not None:
            blurs = [4e-16 * max(abs(u.c0), abs(self.gamma)) / u.c_width for u in units]
            gammas = [(self.gamma - u.c0) / u.c_width for u in units]
            balls = [Ball(self.epsilon, *both) for both in zip(gammas, blurs, strict=True)]
        answers = None
        if len(units) == 1 and self.c is None and self.epsilon > 0:
            answers = [solve_ball(scores.rounds(0), self.epsilon, overwrite=True)]
            if 0 < answers[0].a < math.inf and not closed(answers[0], balls[0]):
                answers, (scores, units) = None, self._in_units(own)
                _tie(scores.x)
        if answers is None:
            together = self.cap is None and self.epsilon > 0 and (len(units) > 1 or self.gamma is not None)
            found = solve_together(scores, balls) if together else [None] * len(units)
            answers = [solve_round(scores.rounds(r), ball, found[r]) for r, ball in enumerate(balls)]
        _certify(answers, scores, balls, own.start if len(self.g) > 1 else None)
        certain = self.c is not None
        return [
            unit.solution(answer, self.gamma, certain) for unit, answer in zip(units, answers, strict=True)
        ]

    def _in_units(self, own: slice) -> tuple[Scores, list[Units]]:
        base = None if self.base is None else self.base[own]
        middle = self.gamma is not None
        x, g0, width = standardised(self.g[own], _some(self.extremes, own), base, self.cap, middle)
        if self.c is None or self.c_extremes is None:
            units = [Units(*each) for each in zip(g0.tolist(), width.tolist(), strict=True)]
            return Scores(x, None, base, self.cap), units
        y, *of_c = standardised(self.c[own], _some(self.c_extremes, own), base, self.cap, middle)
        columns = (values.tolist() for values in (g0, width, *of_c))
        return Scores(x, y, base, self.cap), [Units(*each) for each in zip(*columns, strict=True)]


def _some(extremes: tuple[Numbers, Numbers], own: slice) -> tuple[Numbers, Numbers]:
    return extremes[0][own], extremes[1][own]


def _certify(answers: list[Answer], scores: Scores, balls: list[Ball], first: int | None) -> None:
    """Raise ValueError unless every q lies in the ball, keeps every bound, and closes the gap."""
    for r, (found, ball) in enumerate(zip(answers, balls, strict=True)):
        q, kl, inside = found.weights, found.kl, 0 < found.a < math.inf and math.isfinite(found.beta)
        if q is None:  # infeasible
            continue
        f = 1 / len(q) if scores.base is None else scores.base[r]
        if inside and found.a * (1 + found.beta) > LARGE:
            kl = max(kl, divergence(q, f))
        faults = {
            "close the gap": not found.gap <= WIDEST_GAP,
            "lie in the ball": not kl <= ball.epsilon * (1 + TOLERANCE) + ROUNDING,
            "lie on its surface": inside and not found.kl >= ball.epsilon * (1 - TOLERANCE) - ROUNDING,
            "keep the bound on certainty": not ball.met(found.mean_y, TOLERANCE),
            "sum to one": not abs(float(q.sum()) - 1) <= ROUNDING,
            "keep the cap": scores.cap is not None and bool((q > scores.cap * f * (1 + ROUNDING)).any()),
        }
        missed = " and ".join(what for what, fault in faults.items() if fault)
        if missed:
            where = "" if first is None else f"round {first + r}: "
            raise ValueError(
                f"{where}no multipliers were found that {missed} (the gap is {found.gap:.1e} of the range of "
                f"the scores, KL {found.kl}): change epsilon or gamma"
            )


# --- output -----------------------------------------------------------------------------------


def _raise_infeasible(rounds: list[DualSolution], problem: _Problem, single: bool) -> None:
    least = [found.gamma_min for found in rounds if found.status == "infeasible"]
    where = "" if single else f" in {len(least)} of {len(rounds)} rounds"
    cap = "" if problem.cap is None else f" and max_weight = {problem.cap}"
    raise InfeasibleError(
        f"infeasible{where}: with epsilon = {problem.epsilon}{cap} the mean certainty cannot go below "
        f"γ_min = {max(least)!r}, but gamma = {problem.gamma}; raise gamma to at least γ_min, or epsilon",
        max(least),
    )


def _like_input(
    rounds: list[DualSolution], shape: tuple[int, ...], in_torch: bool, single: bool
) -> DualSolution:
    """Torch in, torch out; anything else gives NumPy arrays, and plain numbers for a single problem."""
    like = torch.from_numpy if in_torch else np.asarray
    nothing = np.full(shape[1], math.nan)
    weights = [nothing if found.weights is None else found.weights for found in rounds]
    if single:
        return replace(rounds[0], weights=like(weights[0]))
    columns = {field.name: [getattr(found, field.name) for found in rounds] for field in fields(DualSolution)}
    arrays = {
        name: None if values[0] is None else like(np.array(values))
        for name, values in columns.items()
        if name not in ("weights", "status", "num_passes")
    }
    return DualSolution(
        **arrays,
        weights=like(np.stack(weights)),
        status=columns["status"],
        num_passes=max(columns["num_passes"]),
    )
