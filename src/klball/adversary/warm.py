"""The dual once more on scores that have hardly changed: from its last multipliers, without the weights.

See mathematics.md, "Warm starts".
"""

import numpy as np
from torch import Tensor

from klball.adversary.answers import DualSolution
from klball.adversary.problem import Units, standardised
from klball.adversary.solver.newton import NEAR, joint_tilt, moments_at
from klball.adversary.solver.rounds import Ball, closed, of_moments, on_surface
from klball.adversary.solver.tilting import Numbers, Scores, Tilting

MOST_PASSES = 12  # then a solution from scratch is as cheap


@np.errstate(all="ignore")  # a start that is far off may overflow: it closes no gap
def resolve(
    g: Tensor,
    c: Tensor | None,
    base: Tensor | None,
    *,
    epsilon: float,
    gamma: float | None,
    start: tuple[float, float],
    max_weight: float | None = None,
) -> DualSolution[None] | None:
    """`solve_dual` from the multipliers (λ, β) near the answer, λ in (0, ∞); None where that does not do.

    The scores are [n], float64 and finite, and `base` sums to one. `weights` is None. The last and short step
    needs no pass, so `ess` may be off by 2e-5 of itself. A closed gap proves the answer. Where β stays 0 the
    constraint E_Q[C] ≤ γ is seen to be slack; None also means that β has to become, or cease to be, positive.
    """
    f = None if base is None else base.numpy()
    x, g0, width = _units(g, f, max_weight)
    y, c0, c_width = (None, 0.0, 1.0) if c is None else _units(c, f, max_weight)
    if x.min() == x.max() or epsilon == 0:
        return None
    tilting = Tilting(Scores(x, y, f, max_weight))
    ball = Ball(epsilon, None if gamma is None else (gamma - c0) / c_width)
    a, b = width / start[0], start[1] * c_width / start[0]
    near = NEAR if max_weight is None else 0.0
    if gamma is not None and b > 0:
        tilt = np.array([ball.gamma]), np.array([a]), np.array([b])
        a, b, solved = (each.item() for each in joint_tilt(tilting, epsilon, *tilt, passes=MOST_PASSES))
        if not (solved and a > 0 and b > 0):
            return None
        answer = of_moments(None, moments_at(tilting, a, b, near), a, b, ball, tilting)
    else:
        at = lambda a: of_moments(None, moments_at(tilting, a, 0.0, near), a, 0.0, ball, tilting)  # noqa: E731
        answer = on_surface(tilting, epsilon, a, at)
    if not closed(answer, ball) or answer.passes > MOST_PASSES:
        return None
    return Units(g0, width, c0, c_width).solution(answer, None, c is not None, gamma is not None)


def _units(values: Tensor, base: Numbers | None, cap: float | None) -> tuple[Numbers, float, float]:
    g = values.numpy()
    return standardised(g, (float(g.min()), float(g.max())), base, cap, middle=False)
