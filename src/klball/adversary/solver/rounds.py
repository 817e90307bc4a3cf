"""One problem in units of its scores: what binds, and the answer (mathematics.md, "Which constraints bind").

minimise E_q[x]  over  KL(q‖f) ≤ ε,  E_q[y] ≤ γ,  q ≤ c·f
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from klball.adversary.solver import newton
from klball.adversary.solver.faces import face_of, vertex
from klball.adversary.solver.tilting import Moments, Numbers, Scores, Tilt, Tilting, dot, quantile

CLOSED = 1e-11  # a gap that ends the search, in units of the range of x
FEASIBLE = 1e-11  # an excess of E[y] that is none, in units of its range
KINKED = 1e-6  # a step of log a so short leaves an error of about its square at a kink
SMALLEST = 1e-140  # of the range of the scores: the squares of less are nothing
SLACK = 1e-12  # of the range of y: a bound met this closely is met, without a price
FEW = 15  # passes, after which what is left of a batch is solved one by one


class Answer(NamedTuple):
    """One round: a = 1/λ, β, q, and what holds of this very q; below the cap log(q/f) = mu − a·(x + βy).

    gap: E_q[x] − h. least_y: the smallest E[y] in the ball, where it had to be found. Of rounds together:
    arrays [rounds], weights [rounds, n].
    """

    a: Tilt
    beta: Tilt
    weights: Numbers | None
    kl: Tilt
    mean_x: Tilt
    mean_y: Tilt
    ess: Tilt
    mu: Tilt
    gap: Tilt
    status: Any
    passes: int
    least_y: Tilt = math.nan


@dataclass(frozen=True)
class Ball:
    """Radius ε, and the bound γ on E[y] or None, which rounding of y blurs by `blur`; [rounds] of rounds."""

    epsilon: float
    gamma: Any = None
    blur: Any = 0.0

    def round(self, r: int) -> "Ball":
        return self if self.gamma is None else Ball(self.epsilon, float(self.gamma[r]), float(self.blur[r]))

    def met(self, mean_y: Tilt, slack: float = SLACK) -> Any:
        return self.gamma is None or mean_y <= self.gamma + slack + self.blur


def solve_round(scores: Scores, ball: Ball, overwrite: bool = False) -> Answer:
    """The answer of one round [n]; `overwrite` may put the weights where x was, and then tries once only."""
    if ball.gamma is None:
        return solve_ball(scores, ball.epsilon, overwrite)
    smooth = ball.epsilon > 0 and scores.cap is None
    if smooth and (found := _jointly(scores, ball)) is not None:
        return found
    free = solve_ball(scores, ball.epsilon)
    if ball.met(free.mean_y):
        return free
    if 0 < free.a < math.inf and (found := _jointly(scores, ball, free.a)) is not None:
        return found._replace(passes=free.passes + found.passes)
    assert scores.y is not None
    floor = scores.y.min() if scores.cap is None else 0.0
    least = solve_ball(Scores(scores.y - floor, None, scores.base, scores.cap), ball.epsilon)
    least_y, passes = least.mean_x + floor, free.passes + least.passes
    if not ball.met(least_y):
        nan = math.nan
        return Answer(nan, nan, None, nan, nan, nan, nan, nan, nan, "infeasible", passes, least_y)
    if ball.gamma <= least_y + SLACK + ball.blur:
        found = _boundary(scores, ball, least)
    else:
        found = _by_vertex(scores, ball)
        if found is None:
            tilting = Tilting(scores)
            found = tilted(tilting, *newton.nested_tilt(tilting, ball.epsilon, ball.gamma, 1.0), ball)
    return found._replace(least_y=least_y, passes=passes + found.passes)


def _jointly(scores: Scores, ball: Ball, alone: float | None = None) -> Answer | None:
    """The tilt with KL = ε and E[y] = γ, if some β > 0 gives that; from the a at β = 0, or afresh."""
    tilting, gamma = Tilting(scores), np.array([ball.gamma])
    if alone is None:
        start, passes = newton.joint_start(tilting, ball.epsilon, gamma), FEW
    else:
        start, passes = (np.array([alone]), np.zeros(1)), newton.JOINT_PASSES
    a, b, solved = (v.item() for v in newton.joint_tilt(tilting, ball.epsilon, gamma, *start, passes))
    if not (solved and 0 < a < math.inf and 0 < b < math.inf):
        return None
    found = tilted(tilting, a, b, ball)
    return found if closed(found, ball) else None


def solve_together(scores: Scores, ball: Ball) -> Answer:
    """The answers of rounds [rounds, n]: tilts found together, and alone where those do not prove it."""
    tilting, rounds = Tilting(scores), len(scores.x)
    a, b, found = np.zeros(rounds), np.zeros(rounds), np.zeros(rounds, dtype=bool)
    if ball.gamma is not None:
        start = newton.joint_start(tilting, ball.epsilon, ball.gamma)
        a, b, found = newton.joint_tilt(tilting, ball.epsilon, ball.gamma, *start, FEW)
        found &= (a > 0) & (b > 0) & np.isfinite(a + b)
    rest = ~found
    if rest.any():
        a[rest], found[rest] = newton.radii(Tilting(scores.each(lambda v: v[rest])), ball.epsilon)
        b[rest] = 0.0
    a, b = np.where(found, a, 1.0), np.where(found, b, 0.0)
    answers = of_moments(*tilting.weights(a, b), a, b, ball, tilting)
    status, least_y = np.full(rounds, "optimal", dtype=object), np.full(rounds, math.nan)
    answers = answers._replace(status=status, least_y=least_y)
    for r in np.flatnonzero(~(found & closed(answers, ball))).tolist():
        alone = solve_round(untied(scores.each(lambda v, r=r: v[r])), ball.round(r))
        for own, value in zip(answers, alone, strict=True):
            if isinstance(own, np.ndarray):
                own[r] = math.nan if value is None else value
    return answers


def untied(scores: Scores) -> Scores:
    """Where scores that differ by less than any square can tell are equal."""
    x, y = (None if v is None else np.where(np.abs(v) < SMALLEST, 0.0, v) for v in (scores.x, scores.y))
    return replace(scores, x=x, y=y)


def solve_ball(scores: Scores, epsilon: float, overwrite: bool = False) -> Answer:
    """Without a bound on E[y]; `overwrite` may put the weights where x was, and then tries once only."""
    if epsilon == 0:
        return _at(scores, scores.f(), "optimal", a=0.0, gap=0.0)
    tied = scores.x == scores.x.min()
    mass = np.count_nonzero(tied) / len(tied) if scores.base is None else scores.base[tied].sum()
    if scores.cap is not None or mass > 0.999 * math.exp(-epsilon):  # else the ball binds
        face = face_of(scores.x, scores)
        if epsilon >= face.fixed_kl() - 1e-14:
            status = "capped" if face.meets_cap() else "point_mass"
            return _at(scores, face.nearest(), status, a=math.inf, gap=0.0)
    tilting, ball = Tilting(scores), Ball(epsilon)
    start = newton.radius_start(tilting, epsilon)
    if overwrite and scores.cap is None:
        a = newton.radius_tilt(tilting, epsilon, start)
        return of_moments(*tilting.weights(a, overwrite=True), a, 0.0, ball, tilting)
    return on_surface(tilting, epsilon, start, lambda a: tilted(tilting, a, 0.0, ball))


def on_surface(tilting: Tilting, epsilon: float, start: float, answer: Callable[[float], Answer]) -> Answer:
    """The answer at the a with KL = ε; with more care where KL bends much, or a cap puts kinks in it."""
    smooth = tilting.scores.cap is None
    a = newton.radius_tilt(tilting, epsilon, start, newton.SETTLED if smooth else KINKED, smooth)
    found = answer(a)
    if not closed(found, Ball(epsilon)):
        found = answer(newton.radius_tilt(tilting, epsilon, a, settled=1e-12, smooth=False))
    return found


def tilted(tilting: Tilting, a: float, b: float, ball: Ball) -> Answer:
    return of_moments(*tilting.weights(a, b), a, b, ball, tilting)


def of_moments(q: Numbers | None, m: Moments, a: Tilt, b: Tilt, ball: Ball, tilting: Tilting) -> Answer:
    """The answer at a tilt; its gap is what complementary slackness lacks."""
    lacking = ball.epsilon - m.kl
    if ball.gamma is not None:
        lacking += b * (ball.gamma - m.mean_y)
    s, status = tilting.scores, "optimal"
    if s.cap is not None and (m.mu - a * s.x - (0.0 if s.y is None else b * s.y)).max() >= math.log(s.cap):
        status = "capped"
    gap, passes = abs(lacking) / a, tilting.num_passes
    return Answer(a, b / a, q, m.kl, m.mean_x, m.mean_y, m.ess, m.mu, gap, status, passes)


def closed(answer: Answer, ball: Ball) -> Any:
    """Whether the answer proves itself: its gap, and that q lies in the ball and meets γ."""
    within = abs(answer.kl - ball.epsilon) <= 1e-10 * ball.epsilon + 1e-14
    return (answer.gap <= CLOSED) & within & ball.met(answer.mean_y, FEASIBLE)


def _by_vertex(scores: Scores, ball: Ball) -> Answer | None:
    """The optimum on an edge of the data, if it lies in the ball."""
    assert ball.gamma is not None and scores.y is not None
    beta, q = vertex(scores, ball.gamma)
    answer = _at(scores, q, "vertex", a=math.inf, gap=0.0, beta=beta)
    if answer.kl > ball.epsilon + 1e-12:
        return None
    z = scores.x + beta * scores.y
    least = float(dot(face_of(z, scores).nearest(), z)) - beta * ball.gamma
    return answer._replace(gap=abs(answer.mean_x - least))


def _boundary(scores: Scores, ball: Ball, least: Answer) -> Answer:
    """γ = γ_min: the weights that attain it; where y has ties there, the worst x among them."""
    assert scores.y is not None and least.weights is not None
    if not math.isinf(least.a):
        return _at(scores, least.weights, "boundary", a=0.0, gap=0.0, beta=math.inf)
    face = face_of(scores.y, scores)
    radius = max(0.0, (ball.epsilon - face.fixed_kl()) / face.mass)
    x, base, cap = scores.x[face.tied], face.tied_base(), face.tied_cap()
    unit, origin = float(np.ptp(x)) or 1.0, x.min() if cap is None else quantile(x, base, cap)
    inner = solve_ball(Scores((x - origin) / unit, None, base, cap), radius)
    assert inner.weights is not None
    q = face.weights(inner.weights)
    return _at(scores, q, "boundary", a=inner.a / unit, gap=inner.gap, beta=math.inf)


def _at(scores: Scores, q: Numbers, status: str, *, a: float, gap: float, beta: float = 0.0) -> Answer:
    """What holds of weights that are no tilts."""
    kl, mean_x = float(divergence(q, scores.f())), float(dot(q, scores.x))
    mean_y = 0.0 if scores.y is None else float(dot(q, scores.y))
    return Answer(a, beta, q, kl, mean_x, mean_y, float(1 / dot(q, q)), math.nan, gap, status, 1)


def divergence(q: Numbers, f: Any) -> Any:
    """KL(q‖f) of every round, in nats, with 0 log 0 = 0."""
    terms = q * (np.log(q) - np.log(f))
    return np.maximum(np.where(q > 0, terms, 0.0).sum(-1), 0.0)
