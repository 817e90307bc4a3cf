r"""Safeguarded Newton iterations on the moments of the tilted data, for all rounds of a batch at once.

With q ∝ f·exp(−ax − by), A(a,b) = log Z and V the covariance of (x, y) under q:

    ∂KL/∂a = a·Var(x) + b·Cov(x,y),   ∂E[y]/∂a = −Cov(x,y),   ∂E[y]/∂b = −Var(y)
"""

import math

import numpy as np

from klball.robust.blocks import row_means
from klball.robust.tilting import Moments, Numbers, Tilting

LONGEST_STEP = 1.5  # in log a
MANY = 200_000  # samples from which a first guess on part of them pays
THINNING = 64  # one sample in so many gives it, good to a per cent or so
GUESSED = 1e-4  # such an error of a guess is nothing beside that of the part it comes from
MOST_PASSES = 200
LARGE = 1.0  # a radius at which part of the samples knows too little of the tail to say how log a bends
FAR_OFF = 4e-3  # a first step of log a that leaves too much for one of Newton's
MARGIN = 30  # of the estimated error of a quartic
CLOSED = 1e-12  # a gap that needs no further pass, in units of the range of x
EXACT = 1e-11  # a relative error of a that needs none
SETTLED = 1e-6  # a Newton step shorter than this leaves an error of about its square


def radius_tilt(
    tilting: Tilting,
    epsilon: float | Numbers,
    pending: Numbers,
    start: Numbers | None = None,
    exact: float = EXACT,
) -> Numbers:
    """a with KL = ε for the `pending` rounds, whose ball must bind; b = 0. Shape [rounds].

    `exact` is the relative error that will do.

    Newton on log KL in log a: exact in one step where KL ∝ a², and bracketed everywhere, because
    KL grows with a. After a guess from part of many samples the first step knows how log a bends too, and
    the second is of fourth order where that saves a pass.
    """
    a, part = (start, None) if start is not None else _first_guess(tilting, epsilon, pending)
    low, high = np.zeros_like(a), np.full_like(a, math.inf)
    before, third = None, part is not None and np.max(epsilon) >= LARGE
    for _ in range(MOST_PASSES):
        moments = tilting.moments(a, third=True) if third else tilting.moments(a)
        below = moments.kl < epsilon
        low, high = np.where(below, a, low), np.where(below, high, a)
        step = log_step(moments, a, epsilon)
        error, far = step**2, bool((np.abs(step) > FAR_OFF)[pending].any())
        if third and before is not None:
            step, error = _fourth_order_step(before, (a, moments), step, epsilon)
        elif part is not None and before is None:
            step = _bent(step, _bend(moments if third else part.moments(a, third=True), a))
        settled = (error < exact) & (error * a * moments.var_x < CLOSED * exact / EXACT)
        before, third = (a, moments), part is not None and before is None and far
        proposal = a * np.exp(step)
        inside = (proposal > low) & (proposal < high)
        if not inside.all():
            proposal = np.where(inside, proposal, _well_inside(a, low, high))
        a = np.where(pending, proposal, a)
        pending = pending & ~(inside & settled) & (high - low > 1e-15 * low)
        if not pending.any():
            break
    return a


def _well_inside(a: Numbers, low: Numbers, high: Numbers) -> Numbers:
    """A point of the bracket to go on from; one step beyond `a` where that side is open."""
    middle = np.sqrt(low) * np.sqrt(np.minimum(high, 1e300))
    middle = np.where(np.isinf(high), a * math.exp(LONGEST_STEP), middle)
    return np.where(low == 0, a / math.exp(LONGEST_STEP), middle)


def _first_guess(
    tilting: Tilting, epsilon: float | Numbers, pending: Numbers
) -> tuple[Numbers, Tilting | None]:
    """From part of the samples where there are many, and that part; else from their spread."""
    n = tilting.x.shape[1]
    if n >= MANY and tilting.cap is None:
        part = tilting.thinned(THINNING)
        at_zero = part.mass_at_zero()
        if np.isfinite(at_zero).all():  # not if all base weight lies elsewhere
            binding = np.minimum(epsilon, -0.9 * np.log(at_zero))  # a part has no larger radius
            return radius_tilt(part, binding, pending, exact=GUESSED), part
    mean, square = (row_means(values, tilting.base) for values in (tilting.x, tilting.x.square()))
    return np.where(pending, _normal_radius(np.maximum(square - mean**2, 0.0), epsilon), 1.0), None


def _normal_radius(var_x: Numbers, epsilon: float | Numbers) -> Numbers:
    """√(2ε)/sd is a for normal scores; skewed losses need less at large radii."""
    normal = np.sqrt(2 * epsilon)
    return normal / (1 + normal / 2) / np.maximum(np.sqrt(var_x), 1e-150)


def normal_tilt(moments: Moments, epsilon: float, gamma: Numbers) -> tuple[Numbers, Numbers]:
    """(a, b) near KL = ε and E[y] = γ, for a start, from the moments at (0, 0); all [rounds].

    Exact for normal scores, whose tilt moves the means by −V(a, b) at KL = ½(a, b)V(a, b)ᵀ, but shortened,
    since skewed losses need less at large radii. Where γ does not bind or is out of reach, b = 0.
    """
    var_y = np.maximum(moments.var_y, 1e-300)
    excess = moments.mean_y - gamma
    left = 2 * epsilon - excess**2 / var_y
    rest = np.maximum(moments.var_x - moments.cov_xy**2 / var_y, 1e-12 * moments.var_x)
    a = np.sqrt(np.maximum(left, 0.0) / np.maximum(rest, 1e-300))
    b = (excess - moments.cov_xy * a) / var_y
    binds = (left > 0) & (b > 0)
    shortened = 1 + math.sqrt(epsilon / 8)
    radius = _normal_radius(moments.var_x, epsilon)
    return np.where(binds, a / shortened, radius), np.where(binds, b / shortened, 0.0)


@np.errstate(divide="ignore")  # an infinite KL
def log_step(moments: Moments, a: Numbers, epsilon: float | Numbers) -> Numbers:
    """The Newton step of log a towards KL = ε at b = 0."""
    slope = a**2 * moments.var_x
    usable = (moments.kl > 0) & (slope > 0)  # elsewhere a long step, which the bracket corrects
    kl = np.where(usable, moments.kl, 1.0)
    step = np.where(usable, kl * np.log(epsilon / kl) / np.where(usable, slope, 1.0), LONGEST_STEP)
    return np.clip(step, -LONGEST_STEP, LONGEST_STEP)


def _slope(moments: Moments, a: Numbers) -> Numbers:
    """d log KL/d log a."""
    return a**2 * moments.var_x / moments.kl


@np.errstate(all="ignore")  # where all scores are equal
def _bend(moments: Moments, a: Numbers) -> Numbers:
    """(d² log a/d(log KL)²)·(d log KL/d log a)², from third moments."""
    assert moments.third_x is not None
    return _slope(moments, a) - 2 + a * moments.third_x / moments.var_x


def _bent(step: Numbers, bend: Numbers) -> Numbers:
    """Newton's step of log a to second order, where that is a correction."""
    correction = bend * step / 2
    return np.where(np.abs(correction) < 0.5, step * (1 + correction), step)


@np.errstate(all="ignore")  # those steps are not taken
def _fourth_order_step(
    before: tuple[Numbers, Moments], here: tuple[Numbers, Moments], newton: Numbers, epsilon: float | Numbers
) -> tuple[Numbers, Numbers]:
    """The step of log a by the quartic in log KL through two passes, their slopes and the bend `here`.

    And about its relative error: the cube of Newton's step times the square of the step before, with a
    margin. Far from the answer Newton's step is the safer.
    """
    (a1, m1), (a0, m0) = before, here
    slope = 1 / _slope(m0, a0)
    curve = _bend(m0, a0) * slope**2
    apart, h, y = np.log(a1 / a0), np.log(m1.kl / m0.kl), np.log(epsilon / m0.kl)
    rest = apart - slope * h - curve * h**2 / 2
    tilt = (1 / _slope(m1, a1) - slope - curve * h) * h
    step = y * (slope + y * (curve / 2 + y / h**3 * (4 * rest - tilt + y / h * (tilt - 3 * rest))))
    close = (np.abs(y) < np.abs(h) / 2) & (np.abs(apart) < 0.5)
    error = np.where(close, MARGIN * np.abs(newton) ** 3 * apart**2, newton**2)
    return np.where(close, step, newton), error


def joint_tilt(
    tilting: Tilting, epsilon: float, gamma: Numbers, a: Numbers, b: Numbers, passes: int
) -> tuple[Numbers, Numbers, Numbers]:
    """(a, b, solved) with KL = ε and E[y] = γ, from about the a of the radius alone and b = 0; all [rounds].

    The root-finding direction δ solves V δ = (−(KL − ε + b·(E[y] − γ))/a, E[y] − γ). It descends the
    dual value D(a,b) = (ε + bγ + A)/a, since ∇D = −Vδ/a, so backtracking on D makes it safe. Rounds in
    which no b > 0 is called for are left alone, unsolved.
    """
    moments = tilting.moments(a, b)
    value = _dual_value(moments, a, b, epsilon, gamma)
    direction, slope = _direction(moments, a, b, epsilon, gamma)
    length = np.ones_like(a)
    solved = np.zeros_like(a, dtype=bool)
    idle = (b == 0) & ((moments.mean_y <= gamma) | (moments.kl < epsilon / 100))
    for used in range(passes):
        if idle.all():
            break
        new_a = np.where(idle, a, a + length * direction[0])
        new_b = np.where(idle, b, b + length * direction[1])
        moments = tilting.moments(new_a, new_b)
        new_value = _dual_value(moments, new_a, new_b, epsilon, gamma)
        error = _error(moments, epsilon, gamma) / np.minimum(new_a, 1)  # the gap is error/a
        descends = new_value <= value + 1e-4 * length * slope + 1e-13 * np.abs(value)
        taken = (descends | (error < 1e-6)) & ~idle
        a, b = np.where(taken, new_a, a), np.where(taken, new_b, b)
        value = np.where(taken, new_value, value)
        new_direction, new_slope = _direction(moments, a, b, epsilon, gamma)
        direction = np.where(taken, new_direction, direction)
        slope = np.where(taken, new_slope, slope)
        length = np.where(taken, 1.0, length / 4)
        finished = taken & (error < SETTLED)
        a, b = np.where(finished, a + direction[0], a), np.where(finished, b + direction[1], b)
        solved, idle = solved | finished, idle | finished
        if 0.5 < idle.mean() < 1:  # stragglers need not drag the others along
            rest = ~idle
            part = tilting.rounds(rest)
            a[rest], b[rest], solved[rest] = joint_tilt(
                part, epsilon, gamma[rest], a[rest], b[rest], passes - used - 1
            )
            tilting.num_passes += part.num_passes
            break
    return a, b, solved


def nested_tilt(tilting: Tilting, epsilon: float, gamma: float, a: float) -> tuple[Numbers, Numbers]:
    """(a, b) of one round by nested bracketing, slower than `joint_tilt` but never lost.

    On the curve b(a) where E[y] = γ, or b = 0 where that is slack, KL grows with a.
    """
    low, high, b = 0.0, math.inf, 0.0
    for _ in range(200):
        b, moments = _onto_curve(tilting, a, b, gamma)
        kl, var_y = float(moments.kl[0]), float(moments.var_y[0])
        low, high = (a, high) if kl < epsilon else (low, a)
        explained = float(moments.cov_xy[0]) ** 2 / var_y if b > 0 and var_y > 0 else 0.0
        slope = a**2 * (float(moments.var_x[0]) - explained)
        step = (epsilon - kl) / slope if slope > 0 else math.inf
        if abs(step) < 1e-14 or abs(kl - epsilon) < 1e-15 or high - low < 1e-15 * low:
            break
        a = _bracketed(a, step, low, high)
    return np.array([a]), np.array([b])


def _onto_curve(tilting: Tilting, a: float, b: float, gamma: float) -> tuple[float, Moments]:
    """The b ≥ 0 with E[y] = γ at this a, and the moments there."""
    at = np.array([a])
    moments = tilting.moments(at, np.zeros(1))
    if float(moments.mean_y[0]) <= gamma:
        return 0.0, moments
    low, high, b = 0.0, math.inf, b or 1.0
    for _ in range(200):
        moments = tilting.moments(at, np.array([b]))
        excess, slope = float(moments.mean_y[0]) - gamma, b * float(moments.var_y[0])
        low, high = (b, high) if excess > 0 else (low, b)
        step = excess / slope if slope > 0 else math.inf
        if abs(step) < 1e-14 or excess == 0 or high - low < 1e-15 * low:
            break
        b = _bracketed(b, step, low, high)
    return b, moments


def _bracketed(value: float, log_step: float, low: float, high: float) -> float:
    """value·e^step where that lies in (low, high), else a point well inside."""
    step = max(-LONGEST_STEP, min(LONGEST_STEP, log_step))
    proposal = value * math.exp(step)
    if low < proposal < high:
        return proposal
    if math.isinf(high):
        return value * math.exp(LONGEST_STEP)
    return math.sqrt(low * high) if low > 0 else high / math.exp(LONGEST_STEP)


def _error(moments: Moments, epsilon: float, gamma: Numbers) -> Numbers:
    kl_error = np.abs(moments.kl - epsilon) / min(epsilon, 1.0)
    return np.maximum(kl_error, np.abs(moments.mean_y - gamma))


def _dual_value(moments: Moments, a: Numbers, b: Numbers, epsilon: float, gamma: Numbers) -> Numbers:
    log_z = -(moments.kl + a * moments.mean_x + b * moments.mean_y)
    return (epsilon + b * gamma + log_z) / a


def joint_step(moments: Moments, a: Numbers, b: Numbers, epsilon: float, gamma: Numbers) -> Numbers:
    """The step in (a, b), shape [2, rounds], towards KL = ε and E[y] = γ."""
    return _direction(moments, a, b, epsilon, gamma)[0]


@np.errstate(over="ignore")  # a step out of all proportion to a is shrunk to none
def _direction(
    moments: Moments, a: Numbers, b: Numbers, epsilon: float, gamma: Numbers
) -> tuple[Numbers, Numbers]:
    """The step in (a, b), shape [2, rounds], kept inside a > 0, b ≥ 0, and the slope of D along it."""
    excess = moments.mean_y - gamma
    right = np.stack((-(moments.kl - epsilon + b * excess) / a, excess))
    ridge = 1e-14
    var_x, var_y = moments.var_x * (1 + ridge) + 1e-300, moments.var_y * (1 + ridge) + 1e-300
    determinant = np.maximum(var_x * var_y - moments.cov_xy**2, ridge * var_x * var_y + 1e-300)
    step = np.stack(
        (
            var_y * right[0] - moments.cov_xy * right[1],
            var_x * right[1] - moments.cov_xy * right[0],
        )
    )
    step = step / determinant
    stuck = (b == 0) & (step[1] <= 0)
    shrink = np.maximum(-step[0] / (0.9 * a), step[0] / (math.exp(LONGEST_STEP) * a))
    shrink = np.maximum(shrink, np.where(b > 0, -step[1] / np.where(b > 0, 0.9 * b, 1.0), 0.0))
    step = step / np.maximum(np.where(stuck, 1.0, np.nan_to_num(shrink, nan=1.0)), 1.0)
    only_b = np.stack((np.zeros_like(a), excess / var_y))
    step = np.where(stuck, only_b, step)
    return step, -(right * step).sum(0) / a
