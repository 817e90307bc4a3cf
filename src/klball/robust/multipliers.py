"""From standardised scores to tilts and weights: which constraints bind, and the solution where they do.

All tensors are float64 with one row a round: x = (g − min g)/range, y = (C − min C)/range.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from klball.robust.blocks import Numbers, row_dots, row_means
from klball.robust.faces import Face, face_of, least_kl, vertex
from klball.robust.newton import joint_tilt, nested_tilt, normal_tilt, radius_tilt
from klball.robust.tilting import Tilted, Tilting, kl_divergence

SLACK = 1e-12  # in units of the range of C: a constraint met this closely is met
JOINT_PASSES = 40
GUESSED_PASSES = 15  # from a guess, before the exact radius is asked for
CLOSED = 1e-11  # the largest gap, in units of the range of g, that ends the joint iteration


@dataclass
class Rounds:
    """The answer for every round: tilt a = 1/λ, β, weights and status.

    Below the cap log(q/f) = mu − a·(x + βy), wherever 0 < a < ∞.
    """

    a: Numbers
    beta: Numbers
    weights: Tensor
    mu: Numbers
    kl: Numbers
    mean_x: Numbers
    status: list[str]
    passes: int


def base_row(base: Tensor | None, like: Tensor, row: int) -> Tensor:
    """The base weights of one round, [n]."""
    return torch.full_like(like[row], 1 / like.shape[1]) if base is None else base[row]


def solve_ball(
    x: Tensor,
    base: Tensor | None,
    cap: float | None,
    epsilon: float,
    ties: Numbers | None = None,
    overwrite: bool = False,
) -> Rounds:
    """min E_q[x] over KL(q‖f) ≤ ε, q ≤ cap·f; `overwrite` lets the weights take the place of x.

    `ties` bounds the number of samples at x = 0, [rounds], where one is known.
    """
    tilting = Tilting(x, None, base, cap)
    faces = {} if epsilon == 0 else _loose_faces(tilting, epsilon, ties)
    a = np.zeros(x.shape[0])
    pending = np.ones(x.shape[0], dtype=bool)
    pending[list(faces)] = False
    if epsilon > 0 and pending.any():
        a = np.where(pending, radius_tilt(tilting, epsilon, pending), a)
    tilted = tilting.tilted(a, None, overwrite)
    weights = tilted.weights
    kl, mean_x = tilted.kl + 0.0, tilted.mean_x  # + 0.0 turns −0 into 0
    status = _tilt_status(weights, base, cap)
    for r, (face, least) in faces.items():
        weights[r] = least_kl(face)
        kl[r], mean_x[r] = float(kl_divergence(weights[r], face.base)), least
        a[r] = math.inf
        status[r] = "point_mass" if cap is None else "capped"
    return Rounds(a, np.zeros_like(a), weights, tilted.mu, kl, mean_x, status, tilting.num_passes)


def _loose_faces(tilting: Tilting, epsilon: float, ties: Numbers | None) -> dict[int, tuple[Face, float]]:
    """The rounds in which the ball does not bind: the minimisers of E[x], and that minimum."""
    x, base, cap = tilting.x, tilting.base, tilting.cap
    candidates = range(x.shape[0])
    needed = math.exp(-epsilon - 1e-9)
    if cap is None and base is None and ties is not None and (ties < needed * x.shape[1]).all():
        return {}
    if cap is None:
        # x lies in [0, 1], so a mass of e^−ε at 0 would leave no larger a mean than this
        mean = row_means(x, base)
        candidates = np.flatnonzero(mean <= 1 - math.exp(-epsilon) + 1e-9).tolist()
        candidates = [r for r in candidates if base is not None or _share_of_zeros(x[r]) >= needed]
    faces = {r: face_of(x[r], base_row(base, x, r), cap) for r in candidates}
    loose = {r: face for r, face in faces.items() if epsilon >= face.fixed_kl() - 1e-14}
    return {r: (face, float(least_kl(face) @ x[r])) for r, face in loose.items()}


def _share_of_zeros(x: Tensor) -> float:
    return 1 - int(torch.count_nonzero(x)) / len(x)


def _tilt_status(weights: Tensor, base: Tensor | None, cap: float | None) -> list[str]:
    """Of every round: whether some weight sits at the cap."""
    if cap is None:
        return ["optimal"] * len(weights)
    own = 1 / weights.shape[1] if base is None else base
    at_cap = ((weights >= cap * own * (1 - 1e-12)) & (weights > 0)).any(dim=1)
    return ["capped" if capped else "optimal" for capped in at_cap.tolist()]


def solve_both(
    x: Tensor,
    y: Tensor,
    base: Tensor | None,
    cap: float | None,
    epsilon: float,
    gamma: Numbers,
    slack: Numbers,
) -> tuple[Rounds, Numbers]:
    """min E_q[x] over KL(q‖f) ≤ ε, E_q[y] ≤ γ, q ≤ cap·f; and the least E[y] in the ball of the rounds
    where it had to be known, else NaN.

    A closed gap proves an answer with β > 0 however it was found: the joint iteration starts from a guess,
    and the radius is solved for only in the rounds that this leaves.
    """
    part = _Part(x, y, base, cap, epsilon)
    if epsilon == 0 or cap is not None:  # a cap often leaves the ball slack, and kinks the equations
        return _radius_first(part, gamma, slack)
    rounds, solved = _solve_jointly(part, gamma, None, GUESSED_PASSES)
    if rounds is None:
        return _radius_first(part, gamma, slack)
    least, rest = np.full_like(gamma, math.nan), np.flatnonzero(~solved)
    if len(rest):
        others, least[rest] = _radius_first(part.rounds(rest), gamma[rest], slack[rest])
        _put(rounds, rest, others, np.arange(len(rest)))
        rounds.passes += others.passes
    return rounds, least


def _radius_first(part: "_Part", gamma: Numbers, slack: Numbers) -> tuple[Rounds, Numbers]:
    """The same by solving for the radius alone, then again the rounds that violate E[y] ≤ γ."""
    rounds = solve_ball(part.x, part.base, part.cap, part.epsilon)
    least = np.full_like(gamma, math.nan)
    violated = row_dots(rounds.weights, part.y) > gamma + slack
    index = np.flatnonzero(violated & np.isfinite(rounds.a) & (rounds.a > 0))
    if len(index):
        joint, solved = _solve_jointly(part.rounds(index), gamma[index], rounds.a[index], JOINT_PASSES)
        if joint is not None:
            _put(rounds, index[solved], joint, np.flatnonzero(solved))
            rounds.passes += joint.passes
            violated[index[solved]] = False
    for r in np.flatnonzero(violated).tolist():
        extreme = solve_ball(part.y[r : r + 1], part.base_of(r), part.cap, part.epsilon)
        rounds.passes += extreme.passes
        least[r] = extreme.mean_x[0]
        if gamma[r] > least[r] + slack[r]:
            _put_vertex_or_nested(rounds, part, r, float(gamma[r]))
        elif gamma[r] >= least[r] - slack[r]:
            _put_boundary(rounds, part, r, extreme)
        else:
            for field in (rounds.a, rounds.beta, rounds.mu, rounds.kl, rounds.mean_x):
                field[r] = math.nan
            rounds.weights[r] = math.nan
            rounds.status[r] = "infeasible"
    return rounds, least


@dataclass(frozen=True)
class _Part:
    """Some of the rounds, and what holds for them all."""

    x: Tensor
    y: Tensor
    base: Tensor | None
    cap: float | None
    epsilon: float

    def rounds(self, chosen: Numbers) -> "_Part":
        if len(chosen) == len(self.x):
            return self
        base = None if self.base is None else self.base[chosen]
        return _Part(self.x[chosen], self.y[chosen], base, self.cap, self.epsilon)

    def base_row(self, r: int) -> Tensor:
        return base_row(self.base, self.x, r)

    def base_of(self, r: int) -> Tensor | None:
        return None if self.base is None else self.base[r : r + 1]


def _solve_jointly(
    part: _Part, gamma: Numbers, radius: Numbers | None, passes: int
) -> tuple[Rounds | None, Numbers]:
    """KL = ε and E[y] = γ together, and for which rounds it succeeded; None if for none.

    It starts from the a of the `radius` alone, or from a guess.
    """
    tilting = Tilting(part.x, part.y, part.base, part.cap)
    nothing = np.zeros_like(gamma)
    if radius is None:
        a, b = normal_tilt(tilting.moments(nothing, nothing), part.epsilon, gamma)
    else:
        a, b = radius, nothing
    a, b, converged = joint_tilt(tilting, part.epsilon, gamma, a, b, passes)
    if not converged.any():
        return None, converged
    tilted = tilting.tilted(a, b)
    error = np.abs(tilted.kl - part.epsilon) + b * np.abs(row_dots(tilted.weights, part.y) - gamma)
    # an infeasible problem can drive the iteration anywhere: only a closed gap counts
    converged &= (a > 0) & (b >= 0) & (error <= CLOSED * a)
    return _as_rounds(part, tilted, a, b, tilting.num_passes), converged


def _as_rounds(part: _Part, tilted: Tilted, a: Numbers, b: Numbers, passes: int) -> Rounds:
    status = _tilt_status(tilted.weights, part.base, part.cap)
    return Rounds(a, b / a, tilted.weights, tilted.mu, tilted.kl, tilted.mean_x, status, passes)


def _put(rounds: Rounds, rows: Numbers, answers: Rounds, chosen: Numbers) -> None:
    """The chosen ones of `answers` are the answers of these rows."""
    for name in ("a", "beta", "weights", "mu", "kl", "mean_x"):
        getattr(rounds, name)[rows] = getattr(answers, name)[chosen]
    for r, k in zip(rows.tolist(), chosen.tolist(), strict=True):
        rounds.status[r] = answers.status[k]


def _put_vertex_or_nested(rounds: Rounds, part: _Part, r: int, gamma: float) -> None:
    """Where the joint iteration gave up: the ball is slack (a vertex), or brackets must find it."""
    found = vertex(part.x[r], part.y[r], part.base_row(r), part.cap, gamma)
    if found.kl <= part.epsilon + 1e-12:
        _put_face(rounds, part, r, found.weights, "vertex")
        rounds.a[r], rounds.beta[r] = math.inf, found.beta
        return
    tilting = Tilting(part.x[r : r + 1], part.y[r : r + 1], part.base_of(r), part.cap)
    a, b = nested_tilt(tilting, part.epsilon, gamma, a=1.0)
    nested = _as_rounds(part.rounds(np.array([r])), tilting.tilted(a, b), a, b, tilting.num_passes)
    _put(rounds, np.array([r]), nested, np.array([0]))
    rounds.passes += tilting.num_passes


def _put_face(rounds: Rounds, part: _Part, r: int, weights: Tensor, status: str) -> None:
    rounds.weights[r], rounds.status[r] = weights, status
    rounds.mu[r] = math.nan
    rounds.kl[r] = float(kl_divergence(weights, part.base_row(r)))
    rounds.mean_x[r] = float(weights @ part.x[r])


def _put_boundary(rounds: Rounds, part: _Part, r: int, extreme: Rounds) -> None:
    """γ = γ_min: the weights that attain it; where y has ties there, the worst x among them."""
    weights, a = extreme.weights[0], 0.0
    if math.isinf(extreme.a[0]):
        face = face_of(part.y[r], part.base_row(r), part.cap)
        radius = max(0.0, (part.epsilon - face.fixed_kl()) / face.mass)
        x = part.x[r][face.tied]
        cap = None if math.isinf(face.cap) else face.tied_cap()
        inner = solve_ball((x - x.min())[None], face.tied_base()[None], cap, radius)
        weights, a = face.weights(inner.weights[0]), float(inner.a[0])
    _put_face(rounds, part, r, weights, "boundary")
    rounds.a[r], rounds.beta[r] = a, math.inf
