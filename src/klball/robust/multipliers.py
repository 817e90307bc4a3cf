"""From standardised scores to tilts and weights: which constraints bind, and the solution where they do.

All tensors are float64 with one row a round: x = (g − min g)/range, y = (C − min C)/range.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from klball.robust.faces import Face, face_of, least_kl, vertex
from klball.robust.newton import joint_tilt, nested_tilt, radius_tilt
from klball.robust.tilting import Tilting, kl_divergence

SLACK = 1e-12  # in units of the range of C: a constraint met this closely is met
JOINT_PASSES = 60


@dataclass
class Rounds:
    """The answer for every round: tilts a = 1/λ and b = β/λ, β itself, weights and status.

    Below the cap log(q/f) = mu − ax − by, wherever 0 < a < ∞.
    """

    a: Tensor
    b: Tensor
    beta: Tensor
    weights: Tensor
    mu: Tensor
    kl: Tensor
    status: list[str]
    passes: int


def base_row(base: Tensor | None, like: Tensor, row: int) -> Tensor:
    """The base weights of one round, [n]."""
    return torch.full_like(like[row], 1 / like.shape[1]) if base is None else base[row]


def solve_ball(x: Tensor, base: Tensor | None, cap: float | None, epsilon: float) -> Rounds:
    """min E_q[x] over KL(q‖f) ≤ ε, q ≤ cap·f."""
    tilting = Tilting(x, None, base, cap)
    faces = {} if epsilon == 0 else _loose_faces(tilting, epsilon)
    a = x.new_zeros(x.shape[0])
    pending = torch.ones_like(a, dtype=torch.bool)
    pending[list(faces)] = False
    if epsilon > 0 and bool(pending.any()):
        a = torch.where(pending, radius_tilt(tilting, torch.full_like(a, epsilon), pending), a)
    weights, mu, kl = tilting.weights(a, None)
    status = [_tilt_status(weights[r], base_row(base, x, r), cap) for r in range(len(a))]
    for r, face in faces.items():
        weights[r] = least_kl(face)
        kl[r] = kl_divergence(weights[r], face.base)
        a[r] = math.inf
        status[r] = "point_mass" if cap is None else "capped"
    zero = torch.zeros_like(a)
    return Rounds(a, zero, zero.clone(), weights, mu, kl, status, tilting.num_passes)


def _loose_faces(tilting: Tilting, epsilon: float) -> dict[int, Face]:
    """The rounds in which the ball does not bind, with the minimisers of E[x] there."""
    x, base, cap = tilting.x, tilting.base, tilting.cap
    candidates = range(x.shape[0])
    if cap is None:
        tied = x == 0
        mass = tied.double().mean(dim=1) if base is None else (base * tied).sum(dim=1)
        candidates = (epsilon >= -mass.log() - 1e-14).nonzero().flatten().tolist()
    faces = {r: face_of(x[r], base_row(base, x, r), cap) for r in candidates}
    return {r: face for r, face in faces.items() if epsilon >= face.fixed_kl() - 1e-14}


def _tilt_status(weights: Tensor, base: Tensor, cap: float | None) -> str:
    if cap is None:
        return "optimal"
    at_cap = (weights >= cap * base * (1 - 1e-12)) & (weights > 0)
    return "capped" if bool(at_cap.any()) else "optimal"


def add_certainty(
    rounds: Rounds,
    x: Tensor,
    y: Tensor,
    base: Tensor | None,
    cap: float | None,
    epsilon: float,
    gamma: Tensor,
    slack: Tensor,
) -> Tensor:
    """Re-solve, in place, the rounds that violate E[y] ≤ γ; returns the least E[y] in the ball."""
    least = torch.full_like(gamma, math.nan)
    index = (torch.linalg.vecdot(rounds.weights, y) > gamma + slack).nonzero().flatten()
    if len(index) == 0:
        return least
    part = _Part(x[index], y[index], None if base is None else base[index], cap, epsilon)
    extreme = solve_ball(part.y, part.base, cap, epsilon)
    least[index] = torch.linalg.vecdot(extreme.weights, part.y)
    excess = gamma - least
    solved = _solve_jointly(rounds, part, gamma, index, excess[index] > slack[index])
    for k in (~solved).nonzero().flatten().tolist():
        r = int(index[k])
        if excess[r] > slack[r]:
            _put_vertex_or_nested(rounds, part, k, r, float(gamma[r]))
        elif excess[r] >= -slack[r]:
            _put_boundary(rounds, part, k, r, extreme)
        else:
            for field in (rounds.a, rounds.b, rounds.beta, rounds.mu, rounds.kl, rounds.weights):
                field[r] = math.nan
            rounds.status[r] = "infeasible"
    rounds.passes += extreme.passes
    return least


@dataclass(frozen=True)
class _Part:
    """The rounds in which the certainty constraint binds."""

    x: Tensor
    y: Tensor
    base: Tensor | None
    cap: float | None
    epsilon: float

    def base_row(self, k: int) -> Tensor:
        return base_row(self.base, self.x, k)


def _solve_jointly(rounds: Rounds, part: _Part, gamma: Tensor, index: Tensor, interior: Tensor) -> Tensor:
    """KL = ε and E[y] = γ together, for the `interior` rounds; returns where it succeeded."""
    solved = torch.zeros_like(interior)
    start = rounds.a[index]
    k = (interior & start.isfinite() & (start > 0)).nonzero().flatten()
    if len(k) == 0:
        return solved
    base = None if part.base is None else part.base[k]
    tilting = Tilting(part.x[k], part.y[k], base, part.cap)
    epsilon = torch.full_like(start[k], part.epsilon)
    a, b, converged = joint_tilt(tilting, epsilon, gamma[index[k]], start[k], JOINT_PASSES)
    weights, mu, kl = tilting.weights(a, b)
    rounds.passes += tilting.num_passes
    k, rows = k[converged], index[k[converged]]
    rounds.a[rows], rounds.b[rows], rounds.beta[rows] = a[converged], b[converged], (b / a)[converged]
    rounds.weights[rows], rounds.mu[rows], rounds.kl[rows] = (
        weights[converged],
        mu[converged],
        kl[converged],
    )
    for position, r in zip(k.tolist(), rows.tolist(), strict=True):
        rounds.status[r] = _tilt_status(rounds.weights[r], part.base_row(position), part.cap)
    solved[k] = True
    return solved


def _put_vertex_or_nested(rounds: Rounds, part: _Part, k: int, r: int, gamma: float) -> None:
    """Where the joint iteration gave up: the ball is slack (a vertex), or brackets must find it."""
    found = vertex(part.x[k], part.y[k], part.base_row(k), part.cap, gamma)
    if found.kl <= part.epsilon + 1e-12:
        rounds.a[r], rounds.b[r], rounds.beta[r] = math.inf, math.nan, found.beta
        rounds.weights[r], rounds.mu[r], rounds.kl[r] = found.weights, math.nan, found.kl
        rounds.status[r] = "vertex"
        return
    base = None if part.base is None else part.base[k : k + 1]
    tilting = Tilting(part.x[k : k + 1], part.y[k : k + 1], base, part.cap)
    a, b = nested_tilt(tilting, part.epsilon, gamma, a=1.0)
    weights, mu, kl = tilting.weights(a, b)
    rounds.passes += tilting.num_passes
    rounds.a[r], rounds.b[r], rounds.beta[r] = a[0], b[0], b[0] / a[0]
    rounds.weights[r], rounds.mu[r], rounds.kl[r] = weights[0], mu[0], kl[0]
    rounds.status[r] = _tilt_status(weights[0], part.base_row(k), part.cap)


def _put_boundary(rounds: Rounds, part: _Part, k: int, r: int, extreme: Rounds) -> None:
    """γ = γ_min: the weights that attain it; where y has ties there, the worst x among them."""
    rounds.a[r], rounds.b[r], rounds.beta[r] = 0.0, extreme.a[k], math.inf
    rounds.mu[r], rounds.kl[r], rounds.weights[r] = math.nan, extreme.kl[k], extreme.weights[k]
    rounds.status[r] = "boundary"
    if not extreme.a[k].isinf():
        return
    face = face_of(part.y[k], part.base_row(k), part.cap)
    radius = max(0.0, (part.epsilon - face.fixed_kl()) / face.mass)
    x = part.x[k][face.tied]
    cap = None if math.isinf(face.cap) else face.tied_cap()
    inner = solve_ball((x - x.min())[None], face.tied_base()[None], cap, radius)
    rounds.weights[r] = face.weights(inner.weights[0])
    rounds.a[r] = inner.a[0]
    rounds.kl[r] = kl_divergence(rounds.weights[r], face.base)
