"""The adversary's optima at λ = 0, where weights are no longer exponential tilts (mathematics.md, "Faces").

They form a face of the simplex cut by the weight cap: some samples sit at the cap, the rest of the mass lies
on samples tied in what is minimised, and there the smallest KL divergence settles the remaining freedom.
"""

import math
from dataclasses import dataclass

import numpy as np

from klball.adversary.solver.newton import bracketed
from klball.adversary.solver.tilting import Numbers, Scores, Tilting, dot, quantile

TIE = 1e-12  # of the range of the scores
MET = 1e-11  # of the range of y: so close to γ is there


@dataclass(frozen=True)
class Face:
    """All optima of min E_q[z], q ≤ cap·f: `full` samples at the cap, `mass` to share over `tied`."""

    full: Numbers
    tied: Numbers
    mass: float
    base: Numbers
    cap: float

    def tied_base(self) -> Numbers:
        """The base weights of the tied samples, summing to one."""
        return self.base[self.tied] / self.base[self.tied].sum()

    def tied_cap(self) -> float | None:
        """The cap as a multiple of `tied_base`."""
        if math.isinf(self.cap):
            return None
        return max(self.cap * float(self.base[self.tied].sum()) / self.mass, 1.0)

    def fixed_kl(self) -> float:
        """The part of KL(q‖f) that no sharing of `mass` can change."""
        full_mass = float(self.base[self.full].sum())
        at_cap = self.cap * full_mass * math.log(self.cap) if full_mass else 0.0
        return max(at_cap + self.mass * math.log(self.mass / float(self.base[self.tied].sum())), 0.0)

    def weights(self, share: Numbers) -> Numbers:
        """q of shape [n], with `share` (summing to one) the distribution over the tied samples."""
        q = np.zeros_like(self.base)
        if self.full.any():
            q[self.full] = self.cap * self.base[self.full]
        q[self.tied] = self.mass * share
        return q

    def meets_cap(self) -> bool:
        """Whether some weight sits at the cap, where all are nearest to the base."""
        limit = self.cap * float(self.base[self.tied].sum())
        return bool(self.full.any()) or self.mass >= limit * (1 - TIE)

    def nearest(self) -> Numbers:
        """The weights on the face that are closest to the base."""
        return self.weights(self.tied_base())


def face_of(z: Numbers, scores: Scores, tolerance: float = 0.0) -> Face:
    """The face of minimisers of E_q[z]; `tolerance` is what counts as a tie."""
    base, cap = scores.f(), scores.cap
    usable = base > 0
    if cap is None:
        least = z.min() if scores.base is None else z[usable].min()
        tied = usable & (z <= least + tolerance)
        return Face(np.zeros_like(tied), tied, 1.0, base, math.inf)
    level = quantile(z, scores.base, cap)
    full = usable & (z < level - tolerance)
    tied = usable & (z >= level - tolerance) & (z <= level + tolerance)
    most = cap * float(base[tied].sum())  # the rest may exceed it by a bit of 1
    mass = min(1.0, most, max(1 - cap * float(base[full].sum()), 1e-300))
    return Face(full, tied, mass, base, cap)


def vertex(scores: Scores, gamma: float) -> tuple[float, Numbers]:
    """min E_q[x] subject to E_q[y] ≤ γ alone: its multiplier β and its solution nearest the base.

    The optimum lies on an edge of the set of reachable (E y, E x); the edge over γ is found by
    replacing its ends until no minimiser of x + βy lies below it. Each β comes from two extreme points,
    not from a bisection. Where the edge's ties are finer than `TIE`, its ends are mixed.
    """
    x, y = scores.x, scores.y
    assert y is not None
    free = face_of(x, scores)
    over = free.nearest()  # the end with E y > γ
    if dot(over, y) <= gamma:  # the constraint binds inside the ball only
        return 0.0, over
    under = face_of(y, scores).nearest()  # the end with E y ≤ γ
    lowest = _share_to(free, y, gamma)
    if lowest is not None:  # among the minimisers of E x
        return 0.0, lowest
    ends = [(float(dot(q, y)), float(dot(q, x))) for q in (over, under)]
    while True:
        (y0, x0), (y1, x1) = ends
        beta = max(0.0, (x1 - x0) / (y0 - y1))
        face = face_of(x + beta * y, scores, TIE * (1 + beta))
        q = face.nearest()
        mean_y, mean_x = float(dot(q, y)), float(dot(q, x))
        if mean_x + beta * mean_y >= x0 + beta * y0 - TIE * (1 + beta):
            break
        if mean_y > gamma:
            over, ends[0] = q, (mean_y, mean_x)
        else:
            under, ends[1] = q, (mean_y, mean_x)
    shared = _share_to(face, y, gamma)
    if shared is not None:
        return beta, shared
    part = (gamma - y1) / (y0 - y1)
    return beta, part * over + (1 - part) * under


def _share_to(face: Face, y: Numbers, gamma: float) -> Numbers | None:
    """The point of the face with E_q[y] = γ and the smallest KL, a tilt of the tied samples by y; or None."""
    fixed = face.cap * float(dot(face.base[face.full], y[face.full])) if face.full.any() else 0.0
    share = _tilt_to(y[face.tied], face.tied_base(), face.tied_cap(), (gamma - fixed) / face.mass)
    if share is None:
        return None
    q = face.weights(share)
    return q if abs(float(dot(q, y)) - gamma) <= MET else None


def _tilt_to(y: Numbers, base: Numbers, cap: float | None, target: float) -> Numbers | None:
    """Weights f·min(cap, e^(μ−ηy)) with mean `target` of y, by a bracket of η of either sign."""
    spread = float(np.ptp(y))
    if spread == 0 or not y.min() < target < y.max():
        return None
    sign = 1.0 if dot(base, y) > target else -1.0
    z = sign * (y - target)
    origin = z.min() if cap is None else quantile(z, base, cap)
    tilting = Tilting(Scores((z - origin) / spread, None, base, cap))
    wanted = -origin / spread

    def look(eta: float) -> tuple[bool, float, float]:
        m = tilting.moments(eta)
        step = (m.mean_x - wanted) / max(eta * m.var_x, 1e-300)
        return m.mean_x > wanted, step, abs(step)

    return tilting.weights(bracketed(look, 1.0, settled=1e-14))[0]
