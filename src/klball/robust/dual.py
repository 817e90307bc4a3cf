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

from klball.robust.blocks import (
    Numbers,
    each_block,
    empty_like,
    row_dots,
    row_extremes,
    row_sums,
)
from klball.robust.faces import face_of, least_kl
from klball.robust.multipliers import SLACK, Rounds, base_row, solve_ball, solve_both

GROUP = 1 << 20  # elements of rounds solved together: they stay in the shared cache from first pass to last
WIDEST_GAP = 1e-6  # of the range of g: a wider one is no answer
SMALLEST_RANGE = 1e-290  # scores closer than this are equal: 1/range would overflow

Array = Any  # anything array-like: torch, NumPy, Arrow, pandas, a list


class InfeasibleError(ValueError):
    """No distribution in the ball has mean certainty γ or less; `gamma_min` is the smallest there."""

    def __init__(self, message: str, gamma_min: float):
        super().__init__(message)
        self.gamma_min = gamma_min


@dataclass(frozen=True)
class DualSolution:
    """A solved problem, or a batch of them: scalars become arrays [rounds], `status` a list.

    lambda_, beta: multipliers of the ball (nats of score per nat of radius) and of the certainty cap.
    kl, certainty, worst_case: KL(Q‖F), E_Q[C] (None without C) and E_Q[g] at `weights`.
    dual_value: h at the multipliers. gap: worst_case − dual_value in units of max g − min g.
    ess: effective sample size 1/Σ(q²). mu: q_i = f_i·min(c, exp((mu − g_i − βC_i)/λ)) if λ is in (0, ∞).
    gamma_min: the smallest E_Q[C] in the ball where it had to be found (else NaN; None without gamma).
    `solve_dual(certainty, epsilon=...).worst_case` is γ_min too.
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
    log_likelihood: Array,
    certainty: Array | None = None,
    *,
    epsilon: float,
    gamma: float | None = None,
    base_weights: Array | None = None,
    max_weight: float | None = None,
    throw: bool = True,
) -> DualSolution:
    """The worst-case weights of a sample of scores, with multipliers and certificate, in float64.

    q_i = f_i·exp(−(g_i + βC_i)/λ)/Z at the (λ, β) that maximise h; at ε = 0, λ = ∞ and q = f; where
    the ball does not bind, λ = 0 and q is uniform on the minimisers of g.

    log_likelihood: g, nats, [n] or [rounds, n]; certainty: C, nats, the same shape, needed by gamma.
    epsilon: radius of the ball, nats. gamma: upper bound on E_Q[C]. base_weights: f, [n] or like g,
    normalised here. max_weight: c ≥ 1, a bound on q_i/f_i. throw=False returns status "infeasible"
    and NaN multipliers instead of raising.

    Raises ValueError for malformed input and InfeasibleError (naming γ_min) if no Q qualifies.
    Source: F. Deng, "Robust SFT" (slides); Hu & Hong (2013) for the dual of KL-constrained DRO.
    """
    g = _scores("log_likelihood", log_likelihood)
    single = g.dim() == 1
    g = torch.atleast_2d(g)
    extremes = row_extremes(g)
    _check_finite("log_likelihood", g, *extremes[:2])
    c = _matching("certainty", certainty, g)
    check_parameters(epsilon, gamma, max_weight, c)
    problem = _Problem(g, extremes, c, _base(base_weights, g), float(epsilon), gamma, max_weight)
    solution = _solve(problem)
    _check_converged(solution)
    if throw and "infeasible" in solution.status:
        _raise_infeasible(solution, problem, single)
    return _like_input(solution, log_likelihood, single)


@dataclass(frozen=True)
class RobustProfile:
    """ε ↦ (L_ε, λ, ESS): lists of the same length as `epsilon`. L_ε = −E_Q[g], and dL_ε/dε = λ."""

    epsilon: list[float]
    robust_loss: list[float]
    lambda_: list[float]
    ess: list[float]


def robust_profile(
    log_likelihood: Array,
    epsilons: Sequence[float],
    *,
    base_weights: Array | None = None,
    max_weight: float | None = None,
) -> RobustProfile:
    """The worst-case loss L_ε of one set of scores [n] for each radius, with λ and ESS.

    L_ε = max {E_Q[−g] : KL(Q‖F) ≤ ε} is increasing and concave in ε with slope λ.
    Raises ValueError like `solve_dual`.
    """
    solutions = [
        solve_dual(log_likelihood, epsilon=e, base_weights=base_weights, max_weight=max_weight)
        for e in epsilons
    ]
    return RobustProfile(
        epsilon=[float(e) for e in epsilons],
        robust_loss=[-float(s.worst_case) for s in solutions],
        lambda_=[float(s.lambda_) for s in solutions],
        ess=[float(s.ess) for s in solutions],
    )


# --- the certificate --------------------------------------------------------------------------


@dataclass(frozen=True)
class _Problem:
    """Validated scores and base weights, float64 [rounds, n], and the constraints.

    `extremes`: the smallest and the largest g of every round, and how many may be the smallest, [rounds].
    """

    g: Tensor
    extremes: tuple[Numbers, Numbers, Numbers]
    c: Tensor | None
    base: Tensor | None
    epsilon: float
    gamma: float | None
    cap: float | None

    def rounds(self, chosen: slice) -> "_Problem":
        """The same problem for some of the rounds."""
        g, c, base = (None if part is None else part[chosen] for part in (self.g, self.c, self.base))
        assert g is not None
        least, most, ties = (values[chosen] for values in self.extremes)
        return replace(self, g=g, extremes=(least, most, ties), c=c, base=base)


def _solve(problem: _Problem) -> DualSolution:
    """In groups of rounds, one after the other: each pass over one has all threads."""
    rounds, n = problem.g.shape
    size = max(1, GROUP // n)
    if rounds <= size:
        return _solve_together(problem)
    starts = range(0, rounds, size)
    parts = [_solve_together(problem.rounds(slice(start, start + size))) for start in starts]
    return DualSolution(**{field.name: _joined(field.name, parts) for field in fields(DualSolution)})


def _joined(name: str, parts: list[DualSolution]) -> Any:
    values = [getattr(part, name) for part in parts]
    if name == "status":
        return [status for value in values for status in value]
    if name == "num_passes":
        return max(values)
    if values[0] is None:
        return None
    return torch.cat(values) if isinstance(values[0], Tensor) else np.concatenate(values)


def _solve_together(problem: _Problem) -> DualSolution:
    g, c, base, gamma = problem.g, problem.c, problem.base, problem.gamma
    least, most, ties = problem.extremes
    x, g_min, g_range = _standardised(g, base, (least, most))
    c_min, c_range = np.zeros_like(g_min), np.ones_like(g_min)
    gamma_min = None
    if c is None or gamma is None:
        ties = np.where(most - least > SMALLEST_RANGE, ties, g.shape[1])
        rounds = solve_ball(x, base, problem.cap, problem.epsilon, ties, overwrite=True)
    else:
        y, c_min, c_range = _standardised(c, base, row_extremes(c)[:2])
        target = (gamma - c_min) / c_range
        slack = SLACK + 4e-16 * np.maximum(np.abs(c_min), np.abs(c_min + c_range)) / c_range
        rounds, least_y = solve_both(x, y, base, problem.cap, problem.epsilon, target, slack)
        gamma_min = c_min + c_range * least_y
    with np.errstate(divide="ignore", invalid="ignore"):
        lambda_ = g_range / rounds.a  # 0 at a = ∞, ∞ at a = 0
        beta = np.where(rounds.beta == 0, 0.0, rounds.beta * g_range / c_range)
        mu = lambda_ * rounds.mu + g_min + beta * c_min
    mu = np.where((rounds.a > 0) & np.isfinite(rounds.a) & np.isfinite(beta), mu, math.nan)
    # E_Q[x] in [0, 1] keeps digits that E_Q[g] would lose to a large common offset
    worst = g_min + g_range * rounds.mean_x
    dual = _dual_value(problem, rounds, lambda_, beta, mu, worst)
    return DualSolution(
        lambda_=lambda_,
        beta=beta,
        weights=rounds.weights,
        kl=rounds.kl,
        certainty=None if c is None else row_dots(rounds.weights, c),
        worst_case=worst,
        dual_value=dual,
        gap=np.abs(rounds.mean_x - (dual - g_min) / g_range),
        ess=1 / row_dots(rounds.weights, rounds.weights),
        mu=mu,
        gamma_min=gamma_min,
        status=rounds.status,
        num_passes=rounds.passes,
    )


def _check_converged(solution: DualSolution) -> None:
    for r, (gap, status) in enumerate(zip(solution.gap, solution.status, strict=True)):
        if status != "infeasible" and not gap <= WIDEST_GAP:
            where = "" if len(solution.status) == 1 else f"round {r}: "
            raise ValueError(
                f"{where}no multipliers were found that close the gap (it is {gap:.1e} of the range of the "
                "scores): change epsilon or gamma"
            )


def _dual_value(
    problem: _Problem, rounds: Rounds, lambda_: Numbers, beta: Numbers, mu: Numbers, worst: Numbers
) -> Numbers:
    """h(λ, β) of every round; where λ or β is infinite h reaches the primal value in the limit."""
    ordinary = np.isfinite(lambda_) & np.isfinite(beta) & (lambda_ > 0)
    with np.errstate(invalid="ignore"):  # an infinite or missing multiplier: not ordinary
        penalty = np.where(beta > 0, beta * (problem.gamma or 0.0), 0.0)
        dual = np.where(ordinary, mu - lambda_ * problem.epsilon - penalty, worst)
    for r in np.flatnonzero((lambda_ == 0) & np.isfinite(beta)).tolist():
        dual[r] = _least_mean(problem, float(beta[r]), r) - penalty[r]
    if problem.cap is not None:
        for r in np.flatnonzero(ordinary).tolist():
            over = mu[r] - _penalised(problem, float(beta[r]), r) - lambda_[r] * math.log(problem.cap)
            dual[r] -= problem.cap * float(base_row(problem.base, problem.g, r) @ over.clamp(min=0))
    return dual


def _penalised(problem: _Problem, beta: float, r: int) -> Tensor:
    return problem.g[r] if problem.c is None or beta == 0 else problem.g[r] + beta * problem.c[r]


def _least_mean(problem: _Problem, beta: float, r: int) -> Tensor:
    """min E_q[g + βC] over q ≤ c·f: h at λ = 0, but for the term −βγ."""
    z = _penalised(problem, beta, r)
    return least_kl(face_of(z, base_row(problem.base, problem.g, r), problem.cap)) @ z


def _standardised(
    scores: Tensor, base: Tensor | None, extremes: tuple[Numbers, Numbers]
) -> tuple[Tensor, Numbers, Numbers]:
    """((s − min)/range, min, range) a row, over the samples with positive base weight."""
    least, most = extremes
    if base is not None:
        least = scores.masked_fill(base == 0, math.inf).amin(dim=1).numpy()
        most = scores.masked_fill(base == 0, -math.inf).amax(dim=1).numpy()
    differ = most - least > SMALLEST_RANGE
    span = np.where(differ, most - least, 1.0)
    offset, factor = least[:, None], np.where(differ, 1 / span, 0.0)[:, None]
    out = empty_like(scores)

    def standardise(rows: slice, own: Numbers, x: Numbers) -> None:
        np.subtract(own, offset[rows], out=x)
        x *= factor[rows]

    each_block(standardise, scores, out)
    if base is not None:
        out.masked_fill_(base == 0, 1.0)
    return out, least, span


# --- input and output -------------------------------------------------------------------------


def _scores(name: str, values: Array) -> Tensor:
    """The values as a float64 tensor of one or two dimensions."""
    try:
        tensor = (
            values.detach().to(dtype=torch.float64, device="cpu")
            if isinstance(values, Tensor)
            else torch.from_numpy(np.asarray(values, dtype=np.float64))
        )
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} is not an array of numbers: {error}") from None
    if tensor.dim() not in (1, 2) or tensor.numel() == 0:
        raise ValueError(f"{name} must be a non-empty [n] or [rounds, n] array, not {list(tensor.shape)}")
    return tensor.contiguous()


def _check_finite(name: str, tensor: Tensor, *statistics: Numbers) -> None:
    """`statistics` are finite unless a value is not, or they overflowed: look closer only then."""
    if not all(np.isfinite(values).all() for values in statistics):
        bad = int((~tensor.isfinite()).sum())
        if bad:
            raise ValueError(f"{name} has {bad} NaN or infinite values; drop or repair those samples first")


def _matching(name: str, values: Array | None, g: Tensor) -> Tensor | None:
    if values is None:
        return None
    tensor = torch.atleast_2d(_scores(name, values))
    _check_finite(name, tensor, row_sums(tensor))
    if tensor.shape != g.shape:
        raise ValueError(f"{name} has shape {list(tensor.shape)}, log_likelihood {list(g.shape)}")
    return tensor


def _base(values: Array | None, g: Tensor) -> Tensor | None:
    if values is None:
        return None
    base = torch.atleast_2d(_scores("base_weights", values))
    _check_finite("base_weights", base, row_sums(base))
    if base.shape[1] != g.shape[1] or base.shape[0] not in (1, g.shape[0]):
        raise ValueError(f"base_weights has shape {list(base.shape)}, log_likelihood {list(g.shape)}")
    if bool((base < 0).any()) or bool((base.sum(dim=1) == 0).any()):
        raise ValueError("base_weights must not be negative, and not all zero")
    return (base / base.sum(dim=1, keepdim=True)).expand_as(g).contiguous()


def check_parameters(
    epsilon: float, gamma: float | None, max_weight: float | None, certainty: object
) -> None:
    if not (math.isfinite(epsilon) and epsilon >= 0):
        raise ValueError(f"epsilon must be a finite number of nats, 0 or more, not {epsilon}")
    if gamma is not None and not math.isfinite(gamma):
        raise ValueError(f"gamma must be a finite number of nats, not {gamma}; leave it out for no bound")
    if gamma is not None and certainty is None:
        raise ValueError("gamma bounds the mean certainty: pass certainty too")
    if max_weight is not None and not (math.isfinite(max_weight) and max_weight >= 1):
        raise ValueError(f"max_weight must be finite and at least 1 (the mean weight), not {max_weight}")


def _raise_infeasible(solution: DualSolution, problem: _Problem, single: bool) -> None:
    where = [r for r, status in enumerate(solution.status) if status == "infeasible"]
    gamma_min = float(solution.gamma_min[where].max())
    rounds = "" if single else f" in {len(where)} of {len(solution.status)} rounds"
    cap = "" if problem.cap is None else f" and max_weight = {problem.cap}"
    raise InfeasibleError(
        f"infeasible{rounds}: with epsilon = {problem.epsilon}{cap} the mean certainty cannot go below "
        f"γ_min = {gamma_min!r}, but gamma = {problem.gamma}; raise gamma to at least γ_min, or epsilon",
        gamma_min,
    )


def _like_input(solution: DualSolution, values: Array, single: bool) -> DualSolution:
    """Torch in, torch out; anything else gives NumPy arrays, and plain numbers for a single problem."""
    in_torch = isinstance(values, Tensor)
    changes: dict[str, Any] = {}
    for field in fields(solution):
        value = getattr(solution, field.name)
        if field.name == "weights":
            own = value[0] if single else value
            changes["weights"] = own if in_torch else own.numpy()
        elif isinstance(value, np.ndarray):
            if single:
                changes[field.name] = float(value[0])
            elif in_torch:
                changes[field.name] = torch.from_numpy(value)
    if single:
        changes["status"] = solution.status[0]
    return replace(solution, **changes)
