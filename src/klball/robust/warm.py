"""The dual once more on scores that have hardly changed: from its last multipliers, without the weights."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from klball.robust.blocks import Numbers, block_dots, block_sums, each_block, row_extremes
from klball.robust.dual import DualSolution
from klball.robust.newton import joint_step, log_step
from klball.robust.tilting import LOG2_E, Moments

MOST_PASSES = 4  # then a solution from scratch is as cheap
SETTLED = 2e-5  # a change of tilt times the range of scores: squared, nothing
CLOSED = 1e-10  # the largest gap that counts, in units of the range of g
FEASIBLE = 1e-9  # how far from ε the radius may be: at a tiny λ any gap is closed


@np.errstate(all="ignore")  # a start that is far off may overflow: it closes no gap
def resolve(
    g: Tensor,
    c: Tensor | None,
    base: Tensor | None,
    *,
    epsilon: float,
    gamma: float | None,
    start: tuple[float, float],
) -> DualSolution | None:
    """`solve_dual` from the multipliers (λ, β) near the answer, λ in (0, ∞); None where that does not do.

    Newton steps, each from one pass over the scores [n] (float64, contiguous) that copies none of them; the
    last and short one needs no pass to know its moments (`ess` is left as it was, within 4e-5 of itself).
    `weights` is None. A closed gap proves the answer. Where β stays 0 the constraint E_Q[C] ≤ γ is seen to
    be slack, and None also means that β has to become, or cease to be, positive.
    """
    (x0, x_range), (y0, y_range) = _least_and_range(g), (0.0, 0.0) if c is None else _least_and_range(c)
    if not x_range > 0:
        return None
    bound = None if gamma is None else np.array([gamma - y0])
    a, b = np.array([1 / start[0]]), np.array([start[1] / start[0]])
    for used in range(1, MOST_PASSES + 1):
        moments, ess = _pass(g, c, base, (x0, y0), a, b)
        step = _step(moments, a, b, epsilon, bound)
        move = float(np.abs(step[0, 0]) * x_range + np.abs(step[1, 0]) * y_range)
        if not math.isfinite(move) or b[0] + step[1, 0] < 0:
            return None
        if move <= SETTLED:
            moments = _carried(moments, a, b, step)
        a, b = a + step[0], b + step[1]
        if move <= SETTLED:
            excess = np.zeros(1) if bound is None else moments.mean_y - bound
            gap = float((np.abs(moments.kl - epsilon) + b * np.abs(excess))[0] / (a[0] * x_range))
            closed = gap <= CLOSED and abs(moments.kl[0] - epsilon) <= FEASIBLE * max(1.0, epsilon)
            if not closed or (b[0] == 0 and excess[0] > 0):
                return None
            solution = _solution(moments, ess, a, b, (x0, y0), gap, used)
            return solution if c is not None else replace(solution, certainty=None)
    return None


def _least_and_range(scores: Tensor) -> tuple[float, float]:
    low, high = (float(v[0]) for v in row_extremes(scores[None])[:2])
    return low, high - low


def _step(moments: Moments, a: Numbers, b: Numbers, epsilon: float, bound: Numbers | None) -> Numbers:
    """Newton's step of (a, b), [2, 1]; b = 0 stays."""
    if bound is not None and b[0] > 0:
        return joint_step(moments, a, b, epsilon, bound)
    return np.stack((a * np.expm1(log_step(moments, a, epsilon)), np.zeros(1)))


def _carried(m: Moments, a: Numbers, b: Numbers, step: Numbers) -> Moments:
    """The moments a short step away, log Z to second order and the means to first: no pass is needed."""
    da, db = step
    mean_x = m.mean_x - m.var_x * da - m.cov_xy * db
    mean_y = m.mean_y - m.cov_xy * da - m.var_y * db
    # log Z there: half of the change of the means along the step is its second-order term
    log_z = -(m.kl + a * m.mean_x + b * m.mean_y)
    log_z = log_z - (m.mean_x + mean_x) / 2 * da - (m.mean_y + mean_y) / 2 * db
    return replace(m, kl=-log_z - (a + da) * mean_x - (b + db) * mean_y, mean_x=mean_x, mean_y=mean_y)


def _pass(
    g: Tensor, c: Tensor | None, base: Tensor | None, origin: tuple[float, float], a: Any, b: Any
) -> tuple[Moments, float]:
    """Moments of x = g − min g and y = C − min C at the tilts (a, b), and the effective sample size.

    x, y ≥ 0, so that no exponent is positive.
    """
    slope, price = -LOG2_E * float(a[0]), -LOG2_E * float(b[0])

    def sums(_: slice, own: Numbers, certainty: Numbers | None, f: Numbers | None, space: Numbers) -> Numbers:
        w, x, wx, y, wy = space
        np.subtract(own, origin[0], out=x)
        np.multiply(x, slope, out=w)
        if certainty is not None:
            np.subtract(certainty, origin[1], out=y)
            w += np.multiply(y, price, out=wy)
        np.exp2(w, out=w)
        if f is not None:
            w *= f
        np.multiply(w, x, out=wx)
        parts = [block_sums(w), block_dots(w, w), block_sums(wx), block_dots(wx, x)]
        if certainty is None:
            return np.concatenate([*parts, np.zeros(3)])
        np.multiply(w, y, out=wy)
        return np.concatenate([*parts, block_sums(wy), block_dots(wx, y), block_dots(wy, y)])

    parts = each_block(sums, *(None if v is None else v[None] for v in (g, c, base)), buffers=5)
    total = np.sum(parts, axis=0)
    z, squares = total[0], total[1]
    mean_x, xx, mean_y, xy, yy = (total[k : k + 1] / z for k in range(2, 7))
    log_z = math.log(z if base is not None else z / len(g)) if z > 0 else math.nan
    kl = -log_z - a * mean_x - b * mean_y
    moments = Moments(kl, mean_x, mean_y, xx - mean_x**2, xy - mean_x * mean_y, yy - mean_y**2)
    return moments, float(z * z / squares) if squares > 0 else math.nan


def _solution(
    moments: Moments, ess: float, a: Any, b: Any, origin: tuple[float, float], gap: float, passes: int
) -> DualSolution:
    lambda_, beta = 1 / float(a[0]), float(b[0] / a[0])
    kl, mean_x, mean_y = float(moments.kl[0]), float(moments.mean_x[0]), float(moments.mean_y[0])
    worst = origin[0] + mean_x
    return DualSolution(
        lambda_=lambda_,
        beta=beta,
        weights=None,
        kl=kl,
        certainty=origin[1] + mean_y,
        worst_case=worst,
        dual_value=worst,  # to within the gap
        gap=gap,
        ess=ess,
        mu=lambda_ * kl + worst + beta * (origin[1] + mean_y),
        gamma_min=math.nan,
        status="optimal",
        num_passes=passes,
    )
