r"""Safeguarded Newton iterations on the moments of tilted scores (mathematics.md, "Newton's steps").

With q ∝ f·exp(−ax − by) and V the covariance of (x, y) under q, over the samples below the cap:

    ∂KL/∂a = a·Var(x) + b·Cov(x,y),   ∂E[y]/∂a = −Cov(x,y),   ∂E[y]/∂b = −Var(y)

`tilting` is anything with `moments(a, b)`: scores in memory, or read in passes.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from klball.adversary.solver.tilting import MANY, Moments, Numbers, Tilting

LONGEST_STEP = 1.5  # in log a
SETTLED = 3e-11  # of log a: an error so small leaves KL right to 1e-10
NEAR = 1e-5  # standard deviations of the exponent, by which a step needs no pass
ROUGHLY = 1e-4  # and so small that of a start
JOINT_PASSES = 40
MOST_PASSES = 300


def bracketed(look: Callable[[float], tuple[bool, float, float]], value: float, settled: float) -> float:
    """Where something that grows with a positive value crosses its target.

    `look(value)` says whether it is still below, the step of log value that Newton would take, and the error
    that this may leave. A step out of the bracket, and now and then one that only crawls, is replaced by one
    well inside.
    """
    low, high = 0.0, math.inf
    for used in range(MOST_PASSES):
        below, step, error = look(value)
        low, high = (value, high) if below else (low, value)
        longest = LONGEST_STEP * (1 + used / 4)
        proposal = value * math.exp(max(-longest, min(longest, step)))
        if error < settled and low <= proposal <= high:
            return proposal
        if low >= high * (1 - 1e-15):
            break
        if not low < proposal < high or (used % 4 == 3 and used > 8 and high < math.inf):
            middle = math.sqrt(low) * math.sqrt(high) if low > 0 else high / math.exp(longest)
            proposal = middle if high < math.inf else value * math.exp(longest)
        value = proposal
    return value


def radius_tilt(
    tilting: Any, epsilon: float, a: float, settled: float = SETTLED, smooth: bool = True
) -> float:
    """a with KL = ε at b = 0, from a start; the ball must bind. At kinks of KL a step may err by itself."""

    def look(a: float) -> tuple[bool, float, float]:
        m = tilting.moments(a)
        step, error = log_step(m, a, epsilon)
        return m.kl < epsilon, step, error if smooth else abs(step)

    return bracketed(look, a, settled)


def log_step(m: Moments, a: float, epsilon: float) -> tuple[float, float]:
    """The step of log a towards KL = ε at b = 0, of log KL and to second order, and its likely error."""
    slope = a * a * m.var_x
    if not (0 < m.kl < math.inf and slope > 1e-300):
        return (math.inf if m.kl < epsilon else -math.inf), math.inf
    step = m.kl * math.log(epsilon / m.kl) / slope
    power, skew = slope / m.kl - 2, a * m.third_x / m.var_x
    bent = (power + skew) * step / 2
    if abs(bent) < 0.5:
        step *= 1 + bent
    return step, step * step * abs(step) * (power * power + skew * skew)


def radii(tilting: Tilting, epsilon: float) -> tuple[Numbers, Numbers]:
    """a with KL = ε of all rounds at once, by the same steps without a bracket, and in which they settled."""
    a = _small_radius(tilting.moments(*np.zeros((2, len(tilting.scores.x)))), epsilon)
    settled = np.zeros(len(a), dtype=bool)
    for _ in range(8):
        m = tilting.moments(a, np.zeros_like(a))
        slope = a * a * m.var_x
        step = m.kl * np.log(epsilon / m.kl) / slope
        power, skew = slope / m.kl - 2, a * m.third_x / m.var_x
        bent = (power + skew) * step / 2
        step = np.clip(np.where(np.abs(bent) < 0.5, step * (1 + bent), step), -LONGEST_STEP, LONGEST_STEP)
        a, settled = a * np.exp(step), np.abs(step) ** 3 * (power**2 + skew**2) < SETTLED
        if settled.all():
            break
    return a, settled & (a > 0) & np.isfinite(a)


def moments_at(tilting: Any, a: float, b: float, near: float = NEAR) -> Moments:
    """The moments at a tilt that iterations ended at; by Taylor's series, if the last pass was near enough.

    With a cap there is no such series: `near` = 0.
    """
    at_a, at_b, m = tilting.last
    if (a, b) == (at_a, at_b):
        return m
    da, db = a - at_a, b - at_b
    first_x, first_y = m.var_x * da + m.cov_xy * db, m.cov_xy * da + m.var_y * db
    spread = da * first_x + db * first_y
    if not 0 <= spread < near**2:
        return tilting.moments(a, b)
    third = m.third_x * da * da / 2 if b == 0 else 0.0
    mean_x, mean_y = m.mean_x - first_x + third, m.mean_y - first_y
    mu = m.mu + m.mean_x * da + m.mean_y * db - spread / 2 + third * da / 3
    return m._replace(kl=max(mu - a * mean_x - b * mean_y, 0.0), mean_x=mean_x, mean_y=mean_y, mu=mu)


def radius_start(tilting: Tilting, epsilon: float) -> float:
    """a near KL = ε, from a part of many samples; else by the moments at a = 0."""
    n = len(tilting.scores.x)
    if n >= MANY and (part := tilting.thinned()) is not None:
        binding = min(epsilon, 0.9 * math.log(len(part.scores.x)))
        start = radius_tilt(part, binding, radius_start(part, binding), ROUGHLY)
        tilting.last = part.last if tilting.scores.cap is not None else None  # it knows about where μ is
        return start if 0 < start < math.inf else 1.0
    return _small_radius(tilting.moments(0.0), epsilon)


def _small_radius(m: Moments, epsilon: float) -> Any:
    """a where KL ≈ ½a²V − ⅓a³T reaches ε, with V and T the second and third central moment of x at a = 0."""
    normal = (2 * epsilon / (m.var_x + 1e-30)) ** 0.5
    bent = normal * m.third_x / (3 * m.var_x + 1e-30)
    return normal * (1 + 0.999 * bent / (1 + abs(bent)))


def joint_start(tilting: Tilting, epsilon: float, gamma: Numbers) -> tuple[Numbers, Numbers]:
    """(a, b) near KL = ε and E[y] = γ, as for normal scores or from a part of many; [rounds].

    Where γ does not bind or is out of reach, b = 0.
    """
    if tilting.single and len(tilting.scores.x) >= MANY and (part := tilting.thinned()) is not None:
        a, b, solved = joint_tilt(part, epsilon, gamma, *joint_start(part, epsilon, gamma))
        if solved.all() and np.isfinite(a + b).all():
            return a, b
    m = tilting.moments(np.zeros_like(gamma), np.zeros_like(gamma))
    var_y = np.maximum(m.var_y, 1e-300)
    excess = m.mean_y - gamma
    left = 2 * epsilon - excess**2 / var_y
    rest = np.maximum(m.var_x - m.cov_xy**2 / var_y, 1e-12 * m.var_x)
    a = np.sqrt(np.maximum(left, 0.0) / np.maximum(rest, 1e-300))
    b = (excess - m.cov_xy * a) / var_y
    binds = (left > 0) & (b > 0)
    shortened = 1 + math.sqrt(epsilon / 8)
    a = np.where(binds, a / shortened, _small_radius(m, epsilon))
    return a, np.where(binds, b / shortened, 0.0)


def joint_tilt(
    tilting: Any,
    epsilon: float,
    gamma: Numbers,
    a: Numbers,
    b: Numbers,
    passes: int = JOINT_PASSES,
    enough: float = 1e-6,
) -> tuple[Numbers, Numbers, Numbers]:
    """(a, b, solved) with KL = ε and E[y] = γ, from a start; all [rounds].

    Backtracking on the convex dual value D = (ε + bγ + log Z)/a, which the direction descends. Rounds in
    which no b > 0 is called for are left alone, unsolved. An error below `enough` is squared by a last step.
    """
    new_a, new_b, value, slope = a, b, np.full_like(a, math.inf), np.zeros_like(a)
    direction, length = np.zeros((2, len(a))), np.ones_like(a)
    solved = idle = np.zeros_like(a, dtype=bool)
    for used in range(passes):
        m = tilting.moments(new_a, new_b)
        if used == 0:
            idle = (b == 0) & ((m.mean_y <= gamma) | (m.kl < epsilon / 100))
        new_value = (epsilon + new_b * gamma - (m.kl + new_a * m.mean_x + new_b * m.mean_y)) / new_a
        kl_error = np.abs(m.kl - epsilon) / min(epsilon, 1.0)
        error = np.maximum(kl_error, np.abs(m.mean_y - gamma)) / np.minimum(new_a, 1)  # the gap is error/a
        descends = new_value <= value + 1e-4 * length * slope + 1e-13 * np.abs(value)
        taken = (descends | (error < enough)) & ~idle
        a, b = np.where(taken, new_a, a), np.where(taken, new_b, b)
        value = np.where(taken, new_value, value)
        new_direction, new_slope = joint_step(m, a, b, epsilon, gamma)
        direction, slope = np.where(taken, new_direction, direction), np.where(taken, new_slope, slope)
        length = np.where(taken, 1.0, length / 4)
        finished = taken & (error < enough) & (b > 0)
        a, b = np.where(finished, a + direction[0], a), np.where(finished, b + direction[1], b)
        solved, idle = solved | finished, idle | finished
        if idle.all():
            break
        if idle.mean() > 0.5:  # stragglers need not drag the others along
            rest = ~idle
            part = Tilting(tilting.scores.each(lambda values, rest=rest: values[rest]))
            left = (part, epsilon, gamma[rest], a[rest], b[rest], passes - used - 1, enough)
            a[rest], b[rest], solved[rest] = joint_tilt(*left)
            tilting.num_passes += part.num_passes
            break
        new_a = np.where(idle, a, a + length * direction[0])
        new_b = np.where(idle, b, b + length * direction[1])
    return a, b, solved


def joint_step(m: Moments, a: Numbers, b: Numbers, epsilon: float, gamma: Numbers) -> tuple[Numbers, Numbers]:
    """The step in (a, b), shape [2, rounds], kept inside a > 0, b ≥ 0, and the slope of D along it."""
    excess = m.mean_y - gamma
    right = np.stack((-(m.kl - epsilon + b * excess) / a, excess))
    ridge = 1e-14
    var_x, var_y = m.var_x * (1 + ridge) + 1e-300, m.var_y * (1 + ridge) + 1e-300
    determinant = np.maximum(var_x * var_y - m.cov_xy**2, ridge * var_x * var_y + 1e-300)
    step = np.stack((var_y * right[0] - m.cov_xy * right[1], var_x * right[1] - m.cov_xy * right[0]))
    step = step / determinant
    stuck = (b == 0) & (step[1] <= 0)
    shrink = np.maximum(-step[0] / (0.9 * a), step[0] / (math.exp(LONGEST_STEP) * a))
    shrink = np.maximum(shrink, np.where(b > 0, -step[1] / np.where(b > 0, 0.9 * b, 1.0), 0.0))
    step = step / np.maximum(np.where(stuck, 1.0, np.nan_to_num(shrink, nan=1.0)), 1.0)
    step = np.where(stuck, np.stack((np.zeros_like(a), excess / var_y)), step)
    return step, -(right * step).sum(0) / a


def nested_tilt(tilting: Tilting, epsilon: float, gamma: float, a: float) -> tuple[float, float]:
    """(a, b) of one round by brackets in brackets, slower than `joint_tilt` but never lost."""
    b, m = 0.0, tilting.moments(a)

    def onto_curve(a: float) -> None:
        nonlocal b, m
        m = tilting.moments(a)
        if m.mean_y <= gamma:
            b = 0.0
            return

        def look(b: float) -> tuple[bool, float, float]:
            m = tilting.moments(a, b)
            step = _over(m.mean_y - gamma, b * m.var_y)
            return m.mean_y > gamma, step, abs(step)

        b = bracketed(look, b or 1.0, settled=1e-14)
        m = tilting.moments(a, b)

    def look(a: float) -> tuple[bool, float, float]:
        onto_curve(a)
        explained = m.cov_xy**2 / m.var_y if b > 0 and m.var_y > 0 else 0.0
        step = _over(epsilon - m.kl, a * a * (m.var_x - explained))
        return m.kl < epsilon, step, abs(step)

    a = bracketed(look, a, settled=1e-14)
    onto_curve(a)
    return a, b


def _over(missing: float, slope: float) -> float:
    return missing / slope if slope > 1e-300 else math.inf
