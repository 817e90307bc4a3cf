"""From standardised scores to tilts and weights: which constraints bind, and the solution where they do.

All tensors are float64 with one row a round: x = (g − min g)/range, y = (C − min C)/range.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from klball.robust.faces import Face, face_of, least_kl, vertex
from klball.robust.newton import joint_tilt, nested_tilt, radius_tilt
from klball.robust.tilting import Numbers, Tilted, Tilting, kl_divergence, row_dots, row_means

SLACK = 1e-12  # in units of the range of C: a constraint met this closely is met
JOINT_PASSES = 40
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
    x: Tensor, base: Tensor | None, cap: float | None, epsilon: float, overwrite: bool = False
) -> Rounds:
    """min E_q[x] over KL(q‖f) ≤ ε, q ≤ cap·f; `overwrite` lets the weights take the place of x."""
    tilting = Tilting(x, None, base, cap)
    faces = {} if epsilon == 0 else _loose_faces(tilting, epsilon)
    a = np.zeros(x.shape[0])
    pending = np.ones(x.shape[0], dtype=bool)
    pending[list(faces)] = False
    if epsilon > 0 and pending.any():
        a = np.where(pending, radius_tilt(tilting, epsilon, pending), a)
    tilted = tilting.tilted(a, None, overwrite)
    weights = tilted.weights
    kl, mean_x = tilted.kl + 0.0, tilted.mean_x  # + 0.0 turns −0 into 0
    status = [_tilt_status(weights[r], base, r, cap) for r in range(len(a))]
    for r, (face, least) in faces.items():
        weights[r] = least_kl(face)
        kl[r], mean_x[r] = float(kl_divergence(weights[r], face.base)), least
        a[r] = math.inf
        status[r] = "point_mass" if cap is None else "capped"
    return Rounds(a, np.zeros_like(a), weights, tilted.mu, kl, mean_x, status, tilting.num_passes)


def _loose_faces(tilting: Tilting, epsilon: float) -> dict[int, tuple[Face, float]]:
    """The rounds in which the ball does not bind: the minimisers of E[x], and that minimum."""
    x, base, cap = tilting.x, tilting.base, tilting.cap
    candidates = range(x.shape[0])
    if cap is None:
        # x lies in [0, 1], so a mass of e^−ε at 0 would leave no larger a mean than this
        mean = row_means(x, base)
        candidates = np.flatnonzero(mean <= 1 - math.exp(-epsilon) + 1e-9).tolist()
        needed = math.exp(-epsilon - 1e-9)
        candidates = [r for r in candidates if base is not None or _share_of_zeros(x[r]) >= needed]
    faces = {r: face_of(x[r], base_row(base, x, r), cap) for r in candidates}
    loose = {r: face for r, face in faces.items() if epsilon >= face.fixed_kl() - 1e-14}
    return {r: (face, float(least_kl(face) @ x[r])) for r, face in loose.items()}


def _share_of_zeros(x: Tensor) -> float:
    return 1 - int(torch.count_nonzero(x)) / len(x)


def _tilt_status(weights: Tensor, base: Tensor | None, row: int, cap: float | None) -> str:
    if cap is None:
        return "optimal"
    own = 1 / len(weights) if base is None else base[row]
    at_cap = (weights >= cap * own * (1 - 1e-12)) & (weights > 0)
    return "capped" if bool(at_cap.any()) else "optimal"


def add_certainty(
    rounds: Rounds,
    x: Tensor,
    y: Tensor,
    base: Tensor | None,
    cap: float | None,
    epsilon: float,
    gamma: Numbers,
    slack: Numbers,
) -> Numbers:
    """Re-solve, in place, the rounds that violate E[y] ≤ γ; returns the least E[y] in
    the ball where it had to be known, else NaN."""
    least = np.full_like(gamma, math.nan)
    index = np.flatnonzero(row_dots(rounds.weights, y) > gamma + slack)
    if len(index) == 0:
        return least
    part = _Part(x[index], y[index], None if base is None else base[index], base, cap, epsilon)
    solved = _solve_jointly(rounds, part, gamma, index)
    for k in np.flatnonzero(~solved).tolist():
        r = int(index[k])
        extreme = solve_ball(part.y[k : k + 1], part.base_of(k), cap, epsilon)
        rounds.passes += extreme.passes
        least[r] = extreme.mean_x[0]
        if gamma[r] > least[r] + slack[r]:
            _put_vertex_or_nested(rounds, part, k, r, float(gamma[r]))
        elif gamma[r] >= least[r] - slack[r]:
            _put_boundary(rounds, part, k, r, extreme)
        else:
            for field in (rounds.a, rounds.beta, rounds.mu, rounds.kl, rounds.mean_x):
                field[r] = math.nan
            rounds.weights[r] = math.nan
            rounds.status[r] = "infeasible"
    return least


@dataclass(frozen=True)
class _Part:
    """The rounds in which the certainty constraint binds."""

    x: Tensor
    y: Tensor
    base: Tensor | None
    whole_base: Tensor | None  # of all rounds
    cap: float | None
    epsilon: float

    def base_row(self, k: int) -> Tensor:
        return base_row(self.base, self.x, k)

    def base_of(self, k: int) -> Tensor | None:
        return None if self.base is None else self.base[k : k + 1]


def _solve_jointly(rounds: Rounds, part: _Part, gamma: Numbers, index: Numbers) -> Numbers:
    """KL = ε and E[y] = γ together; returns for which rounds of the part it succeeded."""
    solved = np.zeros(len(index), dtype=bool)
    start = rounds.a[index]
    k = np.flatnonzero(np.isfinite(start) & (start > 0))
    if len(k) == 0:
        return solved
    tilting = Tilting(part.x, part.y, part.base, part.cap)
    tilting = tilting if len(k) == len(index) else tilting.rounds(k)
    zero = np.zeros(len(k))
    a, b, converged = joint_tilt(tilting, part.epsilon, gamma[index[k]], start[k], zero, JOINT_PASSES)
    tilted = tilting.tilted(a, b)
    rounds.passes += tilting.num_passes
    rows = index[k]
    error = np.abs(tilted.kl - part.epsilon) + b * np.abs(row_dots(tilted.weights, part.y[k]) - gamma[rows])
    # an infeasible problem can drive the iteration anywhere: only a closed gap counts
    converged &= (a > 0) & (b >= 0) & (error <= CLOSED * a)
    _put_tilted(rounds, part, tilted, rows[converged], np.flatnonzero(converged), a, b)
    solved[k[converged]] = True
    return solved


def _put_tilted(
    rounds: Rounds, part: _Part, tilted: Tilted, rows: Numbers, i: Numbers, a: Numbers, b: Numbers
) -> None:
    """Rows i of `tilted` are the answers of these rounds."""
    rounds.a[rows], rounds.beta[rows] = a[i], b[i] / a[i]
    rounds.weights[rows], rounds.mu[rows] = tilted.weights[i], tilted.mu[i]
    rounds.kl[rows], rounds.mean_x[rows] = tilted.kl[i], tilted.mean_x[i]
    for r in rows.tolist():
        rounds.status[r] = _tilt_status(rounds.weights[r], part.whole_base, r, part.cap)


def _put_vertex_or_nested(rounds: Rounds, part: _Part, k: int, r: int, gamma: float) -> None:
    """Where the joint iteration gave up: the ball is slack (a vertex), or brackets must find it."""
    found = vertex(part.x[k], part.y[k], part.base_row(k), part.cap, gamma)
    if found.kl <= part.epsilon + 1e-12:
        _put_face(rounds, part, k, r, found.weights, "vertex")
        rounds.a[r], rounds.beta[r] = math.inf, found.beta
        return
    tilting = Tilting(part.x[k : k + 1], part.y[k : k + 1], part.base_of(k), part.cap)
    a, b = nested_tilt(tilting, part.epsilon, gamma, a=1.0)
    _put_tilted(rounds, part, tilting.tilted(a, b), np.array([r]), np.array([0]), a, b)
    rounds.passes += tilting.num_passes


def _put_face(rounds: Rounds, part: _Part, k: int, r: int, weights: Tensor, status: str) -> None:
    rounds.weights[r], rounds.status[r] = weights, status
    rounds.mu[r] = math.nan
    rounds.kl[r] = float(kl_divergence(weights, part.base_row(k)))
    rounds.mean_x[r] = float(weights @ part.x[k])


def _put_boundary(rounds: Rounds, part: _Part, k: int, r: int, extreme: Rounds) -> None:
    """γ = γ_min: the weights that attain it; where y has ties there, the worst x among them."""
    weights, a = extreme.weights[0], 0.0
    if math.isinf(extreme.a[0]):
        face = face_of(part.y[k], part.base_row(k), part.cap)
        radius = max(0.0, (part.epsilon - face.fixed_kl()) / face.mass)
        x = part.x[k][face.tied]
        cap = None if math.isinf(face.cap) else face.tied_cap()
        inner = solve_ball((x - x.min())[None], face.tied_base()[None], cap, radius)
        weights, a = face.weights(inner.weights[0]), float(inner.a[0])
    _put_face(rounds, part, k, r, weights, "boundary")
    rounds.a[r], rounds.beta[r] = a, math.inf
