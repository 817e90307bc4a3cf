r"""Safeguarded Newton iterations on the moments of the tilted data, for all rounds of a batch at once.

With q ∝ f·exp(−ax − by), A(a,b) = log Z and V the covariance of (x, y) under q:

    ∂KL/∂a = a·Var(x) + b·Cov(x,y),   ∂E[y]/∂a = −Cov(x,y),   ∂E[y]/∂b = −Var(y)
"""

import math

import torch
from torch import Tensor

from klball.robust.tilting import Moments, Tilting

LONGEST_STEP = 3.0  # in log a
THIN_ABOVE = 16_384  # samples from which a first guess on a part of them pays
SETTLED = 3e-7  # a Newton step shorter than this leaves an error of about its square


def radius_tilt(tilting: Tilting, epsilon: Tensor, pending: Tensor) -> Tensor:
    """a with KL = ε for the `pending` rounds, whose ball must bind; b = 0. Shape [rounds].

    Newton on log KL in log a: exact in one step where KL ∝ a², and bracketed everywhere, because
    KL grows with a.
    """
    n = tilting.x.shape[1]
    if n > THIN_ABOVE and tilting.cap is None:
        stride = min(16, n // (THIN_ABOVE // 2))
        a = radius_tilt(tilting.thinned(stride), epsilon, pending)
    else:
        sd = tilting.moments(torch.zeros_like(epsilon)).var_x.sqrt()
        a = torch.where(pending, (2 * epsilon).sqrt() / sd.clamp(min=1e-150), 1.0)
    low, high = torch.zeros_like(a), torch.full_like(a, math.inf)
    for _ in range(200):
        moments = tilting.moments(a)
        below = moments.kl < epsilon
        low, high = torch.where(below, a, low), torch.where(below, high, a)
        step = _log_step(moments, a, epsilon)
        proposal = a * step.exp()
        inside = (proposal > low) & (proposal < high)
        middle = (low * high).sqrt()
        middle = torch.where(high.isinf(), a * math.exp(LONGEST_STEP), middle)
        middle = torch.where(low == 0, a / math.exp(LONGEST_STEP), middle)
        a = torch.where(pending, torch.where(inside, proposal, middle), a)
        pending = pending & ~(inside & (step.abs() < SETTLED)) & (high - low > 1e-15 * low)
        if not bool(pending.any()):
            break
    return a


def _log_step(moments: Moments, a: Tensor, epsilon: Tensor) -> Tensor:
    slope = a**2 * moments.var_x
    ratio = moments.kl * (epsilon / moments.kl).log() / slope
    step = torch.where((moments.kl > 0) & (slope > 0), ratio, LONGEST_STEP)  # no slope: bisect
    return step.nan_to_num(nan=0.0).clamp(-LONGEST_STEP, LONGEST_STEP)


def joint_tilt(
    tilting: Tilting, epsilon: Tensor, gamma: Tensor, a: Tensor, passes: int
) -> tuple[Tensor, Tensor, Tensor]:
    """(a, b, solved) with KL = ε and E[y] = γ, from the a of the radius alone; all [rounds].

    The root-finding direction δ solves V δ = (−(KL − ε + b·(E[y] − γ))/a, E[y] − γ). It descends the
    dual value D(a,b) = (ε + bγ + A)/a, since ∇D = −Vδ/a, so backtracking on D makes it safe.
    """
    b = torch.zeros_like(a)
    moments = tilting.moments(a, b)
    value = _dual_value(moments, a, b, epsilon, gamma)
    direction, slope = _direction(moments, a, b, epsilon, gamma)
    length = torch.ones_like(a)
    solved = torch.zeros_like(a, dtype=torch.bool)
    for _ in range(passes):
        new_a, new_b = a + length * direction[0], b + length * direction[1]
        new_a, new_b = torch.where(solved, a, new_a), torch.where(solved, b, new_b)
        moments = tilting.moments(new_a, new_b)
        new_value = _dual_value(moments, new_a, new_b, epsilon, gamma)
        error = _error(moments, epsilon, gamma) / new_a.clamp(max=1)  # the gap is error/a
        descends = new_value <= value + 1e-4 * length * slope + 1e-13 * value.abs()
        taken = (descends | (error < 1e-6)) & ~solved
        a, b = torch.where(taken, new_a, a), torch.where(taken, new_b, b)
        value = torch.where(taken, new_value, value)
        new_direction, new_slope = _direction(moments, a, b, epsilon, gamma)
        direction = torch.where(taken, new_direction, direction)
        slope = torch.where(taken, new_slope, slope)
        length = torch.where(taken, 1.0, length / 4)
        finished = taken & (error < SETTLED)
        a, b = torch.where(finished, a + direction[0], a), torch.where(finished, b + direction[1], b)
        solved = solved | finished
        if bool(solved.all()):
            break
    return a, b, solved


def nested_tilt(tilting: Tilting, epsilon: float, gamma: float, a: float) -> tuple[Tensor, Tensor]:
    """(a, b) of one round by nested bracketing, slower than `joint_tilt` but never lost.

    On the curve b(a) where E[y] = γ, or b = 0 where that is slack, KL grows with a.
    """
    low, high, b = 0.0, math.inf, 0.0
    for _ in range(200):
        b, moments = _onto_curve(tilting, a, b, gamma)
        kl, var_y = float(moments.kl), float(moments.var_y)
        low, high = (a, high) if kl < epsilon else (low, a)
        explained = float(moments.cov_xy) ** 2 / var_y if b > 0 and var_y > 0 else 0.0
        slope = a**2 * (float(moments.var_x) - explained)
        step = (epsilon - kl) / slope if slope > 0 else math.inf
        if abs(step) < 1e-14 or abs(kl - epsilon) < 1e-15 or high - low < 1e-15 * low:
            break
        a = _bracketed(a, step, low, high)
    return tilting.x.new_tensor([a]), tilting.x.new_tensor([b])


def _onto_curve(tilting: Tilting, a: float, b: float, gamma: float) -> tuple[float, Moments]:
    """The b ≥ 0 with E[y] = γ at this a, and the moments there."""
    at = tilting.x.new_tensor([a])
    moments = tilting.moments(at, torch.zeros_like(at))
    if float(moments.mean_y) <= gamma:
        return 0.0, moments
    low, high, b = 0.0, math.inf, b or 1.0
    for _ in range(200):
        moments = tilting.moments(at, tilting.x.new_tensor([b]))
        excess, slope = float(moments.mean_y) - gamma, b * float(moments.var_y)
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


def _error(moments: Moments, epsilon: Tensor, gamma: Tensor) -> Tensor:
    kl_error = (moments.kl - epsilon).abs() / epsilon.clamp(max=1)
    return torch.maximum(kl_error, (moments.mean_y - gamma).abs())


def _dual_value(moments: Moments, a: Tensor, b: Tensor, epsilon: Tensor, gamma: Tensor) -> Tensor:
    log_z = -(moments.kl + a * moments.mean_x + b * moments.mean_y)
    return (epsilon + b * gamma + log_z) / a


def _direction(
    moments: Moments, a: Tensor, b: Tensor, epsilon: Tensor, gamma: Tensor
) -> tuple[Tensor, Tensor]:
    """The step in (a, b), shape [2, rounds], kept inside a > 0, b ≥ 0, and the slope of D along it."""
    excess = moments.mean_y - gamma
    right = torch.stack((-(moments.kl - epsilon + b * excess) / a, excess))
    ridge = 1e-14
    var_x, var_y = moments.var_x * (1 + ridge) + 1e-300, moments.var_y * (1 + ridge) + 1e-300
    determinant = var_x * var_y - moments.cov_xy**2
    step = torch.stack(
        (
            var_y * right[0] - moments.cov_xy * right[1],
            var_x * right[1] - moments.cov_xy * right[0],
        )
    ) / determinant.clamp(min=ridge * var_x * var_y)
    shrink = torch.maximum(-step[0] / (0.9 * a), step[0] / (math.exp(LONGEST_STEP) * a))
    shrink = torch.maximum(shrink, -step[1] / (0.9 * b))
    stuck = (b == 0) & (step[1] <= 0)
    shrink = torch.where(stuck, 1.0, shrink).nan_to_num(nan=1.0).clamp(min=1.0)
    step = step / shrink
    only_b = torch.stack((torch.zeros_like(a), excess / var_y))
    step = torch.where(stuck, only_b, step)
    return step, -(right * step).sum(0) / a
