r"""Moments of a data set under exponential tilting: all that the dual solver ever asks of the data.

For tilts (a, b) = (1/λ, β/λ) the adversary's weights are

    q_i = f_i · min(c, exp(μ − a·x_i − b·y_i)),   Σ q_i = 1          (c = ∞: plain tilting)

One pass over the data gives the normaliser, the means of x and y under q, and their covariances
over the samples below the cap, which are the derivatives of the means. Sums over blocks are all
that leaves a pass, so data that is sharded or larger than memory needs only another `Tilting`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from klball.robust.blocks import (
    Numbers,
    block_dots,
    block_rows,
    block_sums,
    each_block,
    empty_like,
    row_dots,
)

NEAR = 1e-2  # a change of tilt from which the weights may sum to one at once
NORMALISED = 1e-14  # how closely weights sum to one
RUN = 8  # samples of a cache line, which are read together or not at all
LARGEST = 900  # an exponent of 2 that leaves sums in range
LOG2_E = 1 / math.log(2)  # e^t = 2^(t·log2 e), and exp2 needs a third of the time of torch.exp


@dataclass(frozen=True)
class Moments:
    """Statistics of q, each of shape [rounds]; covariances are those of the uncapped samples.

    `third_x` is E[(x − mean)³], where it was asked for.
    """

    kl: Numbers
    mean_x: Numbers
    mean_y: Numbers
    var_x: Numbers
    cov_xy: Numbers
    var_y: Numbers
    third_x: Numbers | None = None


@dataclass(frozen=True)
class Tilted:
    """q of shape [rounds, n], and μ, KL(q‖f) and E_q[x] computed from this very q."""

    weights: Tensor
    mu: Numbers
    kl: Numbers
    mean_x: Numbers


@dataclass(frozen=True)
class _Known:
    """What a pass at the tilts (a, b) found."""

    a: Numbers
    b: Numbers
    log_z: Numbers
    moments: Moments

    def log_z_near(self, a: Numbers, b: Numbers) -> tuple[Numbers, Numbers]:
        """log Z by its Taylor series, and where the tilt has changed so little that this is a good guess."""
        m, da, db = self.moments, a - self.a, b - self.b
        first = -m.mean_x * da - m.mean_y * db
        second = m.var_x * da**2 / 2 + m.cov_xy * da * db + m.var_y * db**2 / 2
        third = 0.0 if m.third_x is None else -m.third_x * da**3 / 6
        return self.log_z + first + second + third, np.abs(da) + np.abs(db) < NEAR  # x and y lie in [0, 1]


class Tilting:
    """Data x ≥ 0 and y ≥ 0 of shape [rounds, n] with base weights f, ready to be tilted.

    `y` may be None (then b must be None), `base` None means 1/n, `cap` None means no cap.
    """

    def __init__(self, x: Tensor, y: Tensor | None, base: Tensor | None, cap: float | None):
        self.x, self.y, self.base, self.cap = x, y, base, cap
        self.num_passes = 0
        self._known: _Known | None = None

    @np.errstate(invalid="ignore")  # no base weight in this part: NaN
    def thinned(self, stride: int) -> "Tilting":
        """One in `stride` samples, for a first guess at a fraction of the cost."""
        x = _one_in(self.x, stride)
        base = np.ones(x.shape) if self.base is None else _one_in(self.base, stride)
        base /= base.sum(axis=1, keepdims=True)
        # min x = 0 decides large tilts: it has to be there, but with no more than its own weight
        x[:, 0], base[:, 0] = 0.0, 1 / self.x.shape[1]
        base /= base.sum(axis=1, keepdims=True)
        return Tilting(torch.from_numpy(x), None, torch.from_numpy(base), None)

    def mass_at_zero(self) -> Numbers:
        """Base weight of x = 0, [rounds]."""
        assert self.base is not None
        return self.base.numpy().sum(axis=1, where=self.x.numpy() == 0)

    def rounds(self, chosen: Numbers) -> "Tilting":
        """The chosen rounds alone; `chosen` is a mask or indices."""
        index = torch.from_numpy(chosen)
        parts = (None if part is None else part[index] for part in (self.x, self.y, self.base))
        x, y, base = parts
        assert x is not None
        return Tilting(x, y, base, self.cap)

    def moments(self, a: Numbers, b: Numbers | None = None, third: bool = False) -> Moments:
        """One pass at the tilts a, b of shape [rounds]; `third` moments only without b and a cap."""
        self.num_passes += 1
        if self.cap is not None:
            return self._capped_moments(a, b)
        sums, shift = self._sums(a, b, third)
        z, (mean_x, xx, *rest) = sums[:, 0], (sums[:, 1:] / sums[:, :1]).T
        log_z = np.log(z) + shift / LOG2_E
        none = np.zeros_like(a)
        mean_y, xy, yy = rest if b is not None else (none, none, none)
        xxx = rest[0] if third else None
        b = none if b is None else b
        moments = Moments(
            kl=np.maximum(-log_z - a * mean_x - b * mean_y, 0.0),
            mean_x=mean_x,
            mean_y=mean_y,
            var_x=np.maximum(xx - mean_x**2, 0.0),
            cov_xy=xy - mean_x * mean_y,
            var_y=np.maximum(yy - mean_y**2, 0.0),
            third_x=None if xxx is None else xxx - 3 * mean_x * xx + 2 * mean_x**3,
        )
        self._known = _Known(a, b, log_z, moments)
        return moments

    def tilted(self, a: Numbers, b: Numbers | None, overwrite: bool = False) -> Tilted:
        """The weights themselves; `overwrite` puts them where x was, to spare the memory."""
        self.num_passes += 1
        if self.cap is not None:
            return self._capped(a, b)
        out = self.x if overwrite else empty_like(self.x)
        shift = np.zeros_like(a)  # without b, min x = 0
        if b is not None and _far(a, b):
            shift = self._largest_exponents(a, b)
        scale = self._guessed_scale(a, b, shift)

        def tilt(
            rows: slice, x: Numbers, y: Numbers | None, base: Numbers | None, q: Numbers, space: Numbers
        ) -> list[Numbers]:
            w = _block_exponents(space, x, y, a[rows], None if b is None else b[rows])
            if b is not None:
                w -= shift[rows, None]
            np.exp2(w, out=w)
            if base is not None:
                w *= base
            parts = [block_sums(w), block_dots(w, x)]
            if y is not None:
                parts += [block_dots(w, y)]
            np.multiply(w, scale[rows, None], out=q)  # last: x may be there
            return parts

        found = each_block(tilt, self.x, self.y, self.base, out, buffers=2)
        sums = _added(self._rows(), found, np.zeros((len(a), 3)))
        total = sums[:, 0] * scale
        if (np.abs(total - 1) > NORMALISED).any():
            each_block(lambda rows, q: np.multiply(q, 1 / total[rows, None], out=q), out)
        mean_x, mean_y = sums[:, 1] / sums[:, 0], sums[:, 2] / sums[:, 0]
        z = sums[:, 0] / self.x.shape[1] if self.base is None else sums[:, 0]
        mu = -np.log(z) - shift / LOG2_E
        kl = mu - a * mean_x - (0.0 if b is None else b * mean_y)
        return Tilted(out, mu, np.maximum(kl, 0.0), mean_x)

    def _guessed_scale(self, a: Numbers, b: Numbers | None, shift: Numbers) -> Numbers:
        """What makes weights sum to one, where the tilts of the last pass were near enough to say; else 1."""
        if self._known is None:
            return np.ones_like(a)
        log_z, near = self._known.log_z_near(a, np.zeros_like(a) if b is None else b)
        log_z = np.where(near, log_z - shift / LOG2_E, 0.0)
        return np.where(near, np.exp(-log_z) / (self.x.shape[1] if self.base is None else 1), 1.0)

    def _largest_exponents(self, a: Numbers, b: Numbers) -> Numbers:
        """max −ax − by of every round, in units of log 2."""

        def largest(rows: slice, x: Numbers, y: Numbers | None, space: Numbers) -> Numbers:
            return _block_exponents(space, x, y, a[rows], b[rows]).max(axis=1)

        top = np.full_like(a, -math.inf)
        for rows, found in zip(self._rows(), each_block(largest, self.x, self.y, buffers=2), strict=True):
            top[rows] = np.maximum(top[rows], found)
        return top

    def _exponents(self, a: Numbers, b: Numbers | None) -> Tensor:
        exponents = self.x * torch.from_numpy(-a)[:, None]
        if b is not None and self.y is not None:
            exponents.addcmul_(self.y, torch.from_numpy(b)[:, None], value=-1)
        return exponents

    def _rows(self) -> list[slice]:
        return block_rows((self.x.shape[0], self.x.shape[1]))

    def _sums(self, a: Numbers, b: Numbers | None, third: bool) -> tuple[Numbers, Numbers]:
        """Σ f·w·(1, x, x²) and, with b, Σ f·w·(y, xy, y²) or `third` Σ f·w·x³, where w = e^(−ax−by)/2^shift.

        The shift keeps w in range where that needs one; with b absent min x = 0 sees to it.
        """

        def sums_of(rows: slice, x: Numbers, y: Numbers | None, base: Numbers | None, space: Numbers) -> Any:
            w = _block_exponents(space, x, y, a[rows], None if b is None else b[rows])
            top = np.zeros(len(w))
            if b is not None and _far(a[rows], b[rows]):
                top = w.max(axis=1)
                w -= top[:, None]
            np.exp2(w, out=w)
            if base is not None:
                w *= base
            wx = np.multiply(w, x, out=space[1])
            parts = [block_sums(w), block_sums(wx)]
            if third:
                wxx = np.multiply(wx, x, out=w)
                return [*parts, block_sums(wxx), block_dots(wxx, x)], top
            parts += [block_dots(wx, x)]
            if b is None or y is None:
                return parts, top
            wy = np.multiply(w, y, out=w)
            return [*parts, block_sums(wy), block_dots(wx, y), block_dots(wy, y)], top

        found, tops = zip(*each_block(sums_of, self.x, self.y, self.base, buffers=2), strict=True)
        shift = np.zeros_like(a)
        if b is not None:
            shift[:] = -math.inf
            for rows, top in zip(self._rows(), tops, strict=True):
                shift[rows] = np.maximum(shift[rows], top)
            scales = [np.exp2(top - shift[rows]) for rows, top in zip(self._rows(), tops, strict=True)]
            found = [np.array(parts) * scale for parts, scale in zip(found, scales, strict=True)]
        sums = _added(self._rows(), found, np.zeros((len(a), 3 + third + 3 * (b is not None))))
        return (sums / self.x.shape[1] if self.base is None else sums), shift

    def _full_base(self) -> Tensor:
        return self.base if self.base is not None else torch.full_like(self.x, 1 / self.x.shape[1])

    def _capped(self, a: Numbers, b: Numbers | None) -> Tilted:
        assert self.cap is not None
        exponents, base = self._exponents(a, b), self._full_base()
        mu, _ = fill(exponents, base, self.cap)
        q = exponents.add_(mu[:, None]).exp_().clamp_(max=self.cap).mul_(base)
        return Tilted(q, mu.numpy(), kl_divergence(q, base).numpy(), row_dots(q, self.x))

    def _capped_moments(self, a: Numbers, b: Numbers | None) -> Moments:
        assert self.cap is not None
        exponents, base = self._exponents(a, b), self._full_base()
        mu, free = fill(exponents, base, self.cap)
        q = base * (exponents + mu[:, None]).clamp(max=math.log(self.cap)).exp()
        q_free = q * free
        mass = q_free.sum(dim=1).clamp(min=torch.finfo(q.dtype).tiny)
        y = self.y if self.y is not None else torch.zeros_like(self.x)
        dx = self.x - ((q_free * self.x).sum(dim=1) / mass)[:, None]
        dy = y - ((q_free * y).sum(dim=1) / mass)[:, None]
        return Moments(
            kl=kl_divergence(q, base).numpy(),
            mean_x=row_dots(q, self.x),
            mean_y=row_dots(q, y),
            var_x=(q_free * dx * dx).sum(dim=1).numpy(),
            cov_xy=(q_free * dx * dy).sum(dim=1).numpy(),
            var_y=(q_free * dy * dy).sum(dim=1).numpy(),
        )


def _added(rows: list[slice], found: Sequence[Any], sums: Numbers) -> Numbers:
    """The statistics [statistics, rows] of every block, added to `sums` [rounds, ≥ statistics]."""
    for own, parts in zip(rows, found, strict=True):
        sums[own, : len(parts)] += np.array(parts).T
    return sums


def _one_in(values: Tensor, stride: int) -> Numbers:
    rounds, n = values.shape
    whole = n - n % (RUN * stride)
    return values.numpy()[:, :whole].reshape(rounds, -1, RUN * stride)[:, :, :RUN].reshape(rounds, -1)


def _far(a: Numbers, b: Numbers) -> bool:
    """Whether all of 2^(−ax − by), x and y in [0, 1], could be out of range."""
    return not LOG2_E * (a + b).max() < LARGEST


def _block_exponents(space: Numbers, x: Numbers, y: Numbers | None, a: Numbers, b: Numbers | None) -> Numbers:
    """(−ax − by)·log2 e of one block, in `space[0]`; `space[1]` is overwritten too."""
    w = np.multiply(x, -LOG2_E * a[:, None], out=space[0])
    if b is not None and y is not None and b.any():
        w += np.multiply(y, -LOG2_E * b[:, None], out=space[1])
    return w


def fill(exponents: Tensor, base: Tensor, cap: float) -> tuple[Tensor, Tensor]:
    """μ with Σ f·min(c, e^(exponent+μ)) = 1, and which samples stay below the cap.

    Capping a sample frees mass that raises the others, so the capped set only grows: a few rounds
    end it.
    """
    usable = base > 0
    free = usable.clone()
    while True:
        full = (base * (usable & ~free)).sum(dim=1)
        left = torch.where(full > 0, 1 - cap * full, 1.0)
        log_z = torch.logsumexp((exponents + base.log()).masked_fill(~free, -math.inf), dim=1)
        # where nothing is left to share out, the smallest μ that keeps all of it capped will do
        mu = left.clamp(min=torch.finfo(base.dtype).tiny).log() - log_z
        above = free & (exponents + mu[:, None] > math.log(cap) + 1e-15) & (left > 1e-15)[:, None]
        if not bool(above.any()):
            lowest = exponents.masked_fill(~usable | free, math.inf).amin(dim=1)
            all_capped = (left <= 1e-15) | ~free.any(dim=1)
            mu = torch.where(all_capped, math.log(cap) - lowest, mu)
            return mu, free & ~all_capped[:, None]
        free &= ~above


def kl_divergence(q: Tensor, base: Tensor) -> Tensor:
    """KL(q‖base) = Σ q log(q / base) over the last dimension, with 0 log 0 = 0, in nats."""
    return torch.special.xlogy(q, q / base.where(base > 0, torch.ones_like(base))).sum(dim=-1).clamp(min=0)
