"""The adversary's optima at λ = 0 and at β = ∞, where weights are no longer exponential tilts.

Both are faces of the simplex cut by the weight cap: some samples sit at the cap, the rest of the
mass lies on samples tied in what is minimised, and on those the remaining freedom is settled by
the smallest KL divergence. One problem at a time; x, y and f are vectors of shape [n].
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from klball.robust.tilting import fill, kl_divergence

TIE = 1e-12  # of the range of the scores


@dataclass(frozen=True)
class Face:
    """All optima of min E_q[z], q ≤ cap·f: `full` samples at the cap, `mass` to share over `tied`."""

    full: Tensor
    tied: Tensor
    mass: float
    base: Tensor
    cap: float

    def tied_base(self) -> Tensor:
        """The base weights of the tied samples, summing to one."""
        return self.base[self.tied] / self.base[self.tied].sum()

    def tied_cap(self) -> float:
        """The cap as a multiple of `tied_base`."""
        return self.cap * float(self.base[self.tied].sum()) / self.mass

    def fixed_kl(self) -> float:
        """The part of KL(q‖f) that no sharing of `mass` can change."""
        full_mass = float(self.base[self.full].sum())
        at_cap = self.cap * full_mass * math.log(self.cap) if full_mass else 0.0
        return at_cap + self.mass * math.log(self.mass / float(self.base[self.tied].sum()))

    def weights(self, share: Tensor) -> Tensor:
        """q of shape [n], with `share` (summing to one) the distribution over the tied samples."""
        q = torch.zeros_like(self.base)
        if self.full.any():
            q[self.full] = self.cap * self.base[self.full]
        q[self.tied] = self.mass * share
        return q


def face_of(z: Tensor, base: Tensor, cap: float | None, tolerance: float = 0.0) -> Face:
    """The face of minimisers of E_q[z]; `tolerance` is what counts as a tie."""
    usable = base > 0
    if cap is None:
        tied = usable & (z <= z[usable].min() + tolerance)
        return Face(torch.zeros_like(tied), tied, 1.0, base, math.inf)
    order = torch.argsort(z.masked_fill(~usable, math.inf))
    reached = torch.cumsum(base[order], 0) * cap
    last = int(torch.searchsorted(reached, 1 - 1e-14).clamp(max=len(z) - 1))
    level = z[order[last]]
    full = usable & (z < level - tolerance)
    tied = usable & ~full & (z <= level + tolerance)
    mass = min(1.0, max(1 - cap * float(base[full].sum()), 1e-300))
    return Face(full, tied, mass, base, cap)


def least_kl(face: Face) -> Tensor:
    """The weights on the face that are closest to the base."""
    return face.weights(face.tied_base())


@dataclass(frozen=True)
class Vertex:
    beta: float
    weights: Tensor
    kl: float


def vertex(x: Tensor, y: Tensor, base: Tensor, cap: float | None, gamma: float) -> Vertex:
    """min E_q[x] subject to E_q[y] ≤ γ alone: its multiplier β and its solution nearest the base.

    The optimum lies on an edge of the set of reachable (E y, E x); the edge over γ is found by
    replacing its ends until no minimiser of x + βy lies below it. Each β is exact: it comes from
    two extreme points, not from a bisection.
    """
    free = face_of(x, base, cap)
    infeasible = _end(x, y, free)  # the end with E y > γ
    if infeasible[0] <= gamma:  # the constraint binds inside the ball only
        return _on_face(free, y, gamma, 0.0)
    feasible = _end(x, y, face_of(y, base, cap))  # the end with E y ≤ γ
    while True:
        beta = max(0.0, (feasible[1] - infeasible[1]) / (infeasible[0] - feasible[0]))
        face = face_of(x + beta * y, base, cap, TIE * (1 + beta))
        mean_y, mean_x = _end(x, y, face)
        edge = infeasible[1] + beta * infeasible[0]
        if mean_x + beta * mean_y >= edge - TIE * (1 + beta):
            return _on_face(face, y, gamma, beta)
        if mean_y > gamma:
            infeasible = (mean_y, mean_x)
        else:
            feasible = (mean_y, mean_x)


def _end(x: Tensor, y: Tensor, face: Face) -> tuple[float, float]:
    q = least_kl(face)
    return float(q @ y), float(q @ x)


def _on_face(face: Face, y: Tensor, gamma: float, beta: float) -> Vertex:
    """The point of the face with E_q[y] = γ and the smallest KL: a tilt of the tied samples by y."""
    at_cap = least_kl(face).masked_fill(face.tied, 0.0)
    target = (gamma - float(at_cap @ y)) / face.mass
    if beta == 0:  # then E_q[y] ≤ γ is enough
        target = min(target, float(face.tied_base() @ y[face.tied]))
    share = _tilt_to(y[face.tied], face.tied_base(), face.tied_cap(), target)
    weights = face.weights(share)
    return Vertex(beta, weights, float(kl_divergence(weights, face.base)))


def _tilt_to(y: Tensor, base: Tensor, cap: float, target: float) -> Tensor:
    """Weights f·min(cap, e^(μ−ηy)) with mean `target` of y, by bisection on η of either sign."""
    spread = float(y.max() - y.min())
    if spread == 0:
        return base
    y, target = (y - y.min()) / spread, (target - float(y.min())) / spread
    sign = 1.0 if float(base @ y) > target else -1.0
    low, high = 0.0, 1.0
    while sign * (float(_tilt(y, base, cap, sign * high) @ y) - target) > 0 and high < 1e12:
        low, high = high, 4 * high
    while low < (middle := (low + high) / 2) < high:
        short = sign * (float(_tilt(y, base, cap, sign * middle) @ y) - target) > 0
        low, high = (middle, high) if short else (low, middle)
    return _tilt(y, base, cap, sign * high)


def _tilt(y: Tensor, base: Tensor, cap: float, eta: float) -> Tensor:
    exponents = -eta * y[None]
    mu, _ = fill(exponents, base[None], cap)
    return base * (exponents + mu).exp().clamp(max=cap)[0]
