r"""The worst re-weighting of scored samples inside a Kullback–Leibler ball (mathematics.md, "The problem").

    minimise E_Q[g]  subject to  KL(Q‖F) ≤ ε,  E_Q[C] ≤ γ,  q ≤ c·f

through its dual, maximise over λ ≥ 0, β ≥ 0:  h(λ,β) = −λε − βγ − λ log Σ f_i exp(−(g_i + βC_i)/λ).
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Required, TypedDict, Unpack, overload

import numpy as np
import torch
from torch import Tensor

from klball.adversary import inputs
from klball.adversary.answers import DualSolution, DualSolutions, InfeasibleError
from klball.adversary.inputs import Array
from klball.adversary.problem import Problem
from klball.shown import Shown

__all__ = [
    "DualSolution",
    "DualSolutions",
    "InfeasibleError",
    "RobustProfile",
    "robust_profile",
    "solve_dual",
]

Row = Sequence[float] | np.ndarray[tuple[int], np.dtype[Any]]  # Any: of whatever kind of number
Rows = Sequence[Sequence[float]] | np.ndarray[tuple[int, int], np.dtype[Any]]


class Bounds(TypedDict, total=False):
    """The keywords of `solve_dual`, whatever the scores are."""

    epsilon: Required[float]
    gamma: float | None
    base_weights: Array | None
    max_weight: float | None
    throw: bool


@overload
def solve_dual(
    log_likelihood: Row, certainty: Array | None = None, **bounds: Unpack[Bounds]
) -> DualSolution[np.ndarray]: ...
@overload
def solve_dual(
    *, loss: Row, certainty: Array | None = None, **bounds: Unpack[Bounds]
) -> DualSolution[np.ndarray]: ...
@overload
def solve_dual(
    log_likelihood: Rows, certainty: Array | None = None, **bounds: Unpack[Bounds]
) -> DualSolutions[np.ndarray]: ...
@overload
def solve_dual(
    *, loss: Rows, certainty: Array | None = None, **bounds: Unpack[Bounds]
) -> DualSolutions[np.ndarray]: ...
@overload
def solve_dual(
    log_likelihood: Tensor, certainty: Array | None = None, **bounds: Unpack[Bounds]
) -> DualSolution[Tensor]: ...
@overload
def solve_dual(
    *, loss: Tensor, certainty: Array | None = None, **bounds: Unpack[Bounds]
) -> DualSolution[Tensor]: ...
@overload
def solve_dual(
    log_likelihood: Array | None = None,
    certainty: Array | None = None,
    *,
    loss: Array | None = None,
    **bounds: Unpack[Bounds],
) -> DualSolution[Any]: ...


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

    Args:
        log_likelihood: g, nats, [n], or [rounds, n] for `DualSolutions`. Type checkers see how many
            dimensions nested lists and arrays of two dimensions have; a tensor or array that does not
            say is taken to be [n].
        certainty: C, nats, the same shape, needed by gamma.
        loss: −g, instead of log_likelihood.
        epsilon: Radius of the ball, nats.
        gamma: Upper bound on E_Q[C], nats.
        base_weights: f, [n] or like g, normalised here; None: 1/n.
        max_weight: c ≥ 1, a bound on q_i/f_i.
        throw: False returns status "infeasible" and NaN multipliers instead of raising.

    Raises:
        ValueError: Malformed input, log-likelihoods that are all positive among it.
        InfeasibleError: No Q qualifies; it names γ_min.

    Source: F. Deng, "Robust SFT" (slides); Hu & Hong (2013) for the dual of KL-constrained DRO.
    """
    g = inputs.log_likelihoods(log_likelihood, loss)
    extremes = inputs.least_and_most("log_likelihood" if loss is None else "loss", g)
    if loss is None:
        inputs.refuse_losses(extremes[0])
    c = inputs.matching("certainty", certainty, g)
    c_extremes = None if c is None else inputs.least_and_most("certainty", c)
    limits = inputs.parameters(epsilon, gamma, max_weight, c)
    base = inputs.base_weights(base_weights, g)
    problem = Problem(g, extremes, c, c_extremes, base, *limits)
    answer, units = problem.solve()
    if throw:
        problem.refuse_infeasible(answer, units)
    like = torch.from_numpy if isinstance(log_likelihood if loss is None else loss, Tensor) else np.asarray
    weights = like(np.full(len(g), math.nan) if answer.weights is None else answer.weights)
    of = answer, weights, c is not None, gamma is not None
    return units.solution(*of) if g.ndim == 1 else units.solutions(*of, like)


@dataclass(frozen=True, repr=False)
class RobustProfile(Shown):
    """ε ↦ (L_ε, λ, ESS): lists of the same length as `epsilon`. L_ε = −E_Q[g], and dL_ε/dε = λ."""

    epsilon: list[float]
    robust_loss: list[float]
    lambda_: list[float]
    ess: list[float]


def robust_profile(
    log_likelihood: Array | None = None,
    epsilons: Iterable[float] | None = None,
    *,
    loss: Array | None = None,
    base_weights: Array | None = None,
    max_weight: float | None = None,
) -> RobustProfile:
    """The worst-case loss L_ε of one set of scores [n] for each radius, with λ and ESS.

    L_ε = max {E_Q[−g] : KL(Q‖F) ≤ ε} is increasing and concave in ε with slope λ.

    Args:
        log_likelihood: g, nats, [n].
        epsilons: The radii, nats.
        loss: −g, instead of log_likelihood.
        base_weights: f, [n], normalised here; None: 1/n.
        max_weight: c ≥ 1, a bound on q_i/f_i.

    Raises:
        ValueError: As in `solve_dual`.
    """
    several: Any = epsilons if np.iterable(epsilons) and not isinstance(epsilons, str) else ()
    if not (radii := list(several)):
        raise ValueError(f"epsilons must be a list of radii, not {repr(epsilons)[:40]}")
    if inputs.log_likelihoods(log_likelihood, loss).ndim != 1:
        raise ValueError("a profile is of one set of scores: pass [n], not [rounds, n]")
    solutions = [
        solve_dual(log_likelihood, loss=loss, epsilon=e, base_weights=base_weights, max_weight=max_weight)
        for e in radii
    ]
    return RobustProfile(
        epsilon=[float(e) for e in radii],
        robust_loss=[-s.worst_case for s in solutions],
        lambda_=[s.lambda_ for s in solutions],
        ess=[s.ess for s in solutions],
    )
