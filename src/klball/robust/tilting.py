r"""Moments of a data set under exponential tilting: all that the dual solver ever asks of the data.

For tilts (a, b) = (1/λ, β/λ) the adversary's weights are

    q_i = f_i · min(c, exp(μ − a·x_i − b·y_i)),   Σ q_i = 1          (c = ∞: plain tilting)

One pass over the data gives the normaliser, the means of x and y under q, and their covariances
over the samples below the cap, which are the derivatives of the means. Sums over blocks are all
that leaves a pass, so data that is sharded or larger than memory needs only another `Tilting`.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

BLOCK = 1 << 16  # elements worked on at once: a few float64 blocks stay in a core's cache

LOG2_E = 1 / math.log(2)  # e^t = 2^(t·log2 e), and exp2 needs a third of the time of torch.exp

Numbers = np.ndarray  # one number a round: [rounds]; small enough that NumPy's overhead matters least


@dataclass(frozen=True)
class Moments:
    """Statistics of q, each of shape [rounds]; covariances are those of the uncapped samples."""

    kl: Numbers
    mean_x: Numbers
    mean_y: Numbers
    var_x: Numbers
    cov_xy: Numbers
    var_y: Numbers


@dataclass(frozen=True)
class Tilted:
    """q of shape [rounds, n], and μ, KL(q‖f) and E_q[x] computed from this very q."""

    weights: Tensor
    mu: Numbers
    kl: Numbers
    mean_x: Numbers


class Tilting:
    """Data x ≥ 0 and y ≥ 0 of shape [rounds, n] with base weights f, ready to be tilted.

    `y` may be None (then b must be None), `base` None means 1/n, `cap` None means no cap.
    """

    def __init__(self, x: Tensor, y: Tensor | None, base: Tensor | None, cap: float | None):
        self.x, self.y, self.base, self.cap = x, y, base, cap
        self.num_passes = 0
        self._space: Tensor | None = None

    def thinned(self, stride: int) -> "Tilting":
        """Every `stride`-th sample, for a first guess at a fraction of the cost."""
        x = self.x[:, ::stride].contiguous()
        x[:, 0] = 0.0  # keep the adversary's favourite, min x = 0, which decides large tilts
        base = None
        if self.base is not None:
            base = self.base[:, ::stride].contiguous()
            base = base / base.sum(dim=1, keepdim=True)
        return Tilting(x, None, base, None)

    def rounds(self, chosen: Numbers) -> "Tilting":
        """The chosen rounds alone; `chosen` is a mask or indices."""
        index = torch.from_numpy(chosen)
        parts = (None if part is None else part[index] for part in (self.x, self.y, self.base))
        x, y, base = parts
        assert x is not None
        return Tilting(x, y, base, self.cap)

    def moments(self, a: Numbers, b: Numbers | None = None) -> Moments:
        """One pass at the tilts a, b of shape [rounds]."""
        self.num_passes += 1
        if self.cap is not None:
            return self._capped_moments(a, b)
        sums, shift = self._sums(a, b)
        z = sums[:, 0]
        mean_x, xx, mean_y, xy, yy = (sums[:, 1:] / z[:, None]).T
        kl = -np.log(z) - shift / LOG2_E - a * mean_x
        if b is not None:
            kl = kl - b * mean_y
        return Moments(
            kl=np.maximum(kl, 0.0),
            mean_x=mean_x,
            mean_y=mean_y,
            var_x=np.maximum(xx - mean_x**2, 0.0),
            cov_xy=xy - mean_x * mean_y,
            var_y=np.maximum(yy - mean_y**2, 0.0),
        )

    def tilted(self, a: Numbers, b: Numbers | None, overwrite: bool = False) -> Tilted:
        """The weights themselves; `overwrite` puts them where x was, to spare the memory."""
        self.num_passes += 1
        if self.cap is not None:
            return self._capped(a, b)
        out = self.x if overwrite else empty_like(self.x)
        shift = self._largest_exponents(a, b)
        sums = np.zeros((len(a), 3))
        for rows, columns, (t,) in self._blocks(1):
            x, w = t.copy_(self.x[rows, columns]), out[rows, columns]
            _exponents_into(w, x, self.y, rows, columns, a, b)
            if b is not None:
                w.sub_(torch.from_numpy(shift[rows])[:, None])
            w.exp2_()
            if self.base is not None:
                w.mul_(self.base[rows, columns])
            sums[rows, 0] += _row_sums(w)
            sums[rows, 1] += row_dots(w, x)
            if b is not None and self.y is not None:
                sums[rows, 2] += row_dots(w, self.y[rows, columns])
        out.mul_(torch.from_numpy(1 / sums[:, :1]))
        mean_x, mean_y = sums[:, 1] / sums[:, 0], sums[:, 2] / sums[:, 0]
        z = sums[:, 0] / self.x.shape[1] if self.base is None else sums[:, 0]
        mu = -np.log(z) - shift / LOG2_E
        kl = mu - a * mean_x - (0.0 if b is None else b * mean_y)
        return Tilted(out, mu, np.maximum(kl, 0.0), mean_x)

    def _largest_exponents(self, a: Numbers, b: Numbers | None) -> Numbers:
        """max −ax − by of every round, in units of log 2."""
        top = np.zeros_like(a) if b is None else np.full_like(a, -math.inf)
        if b is not None:  # else min x = 0 makes it zero
            for rows, columns, (w,) in self._blocks(1):
                _exponents_into(w, self.x[rows, columns], self.y, rows, columns, a, b)
                top[rows] = np.maximum(top[rows], w.amax(dim=1).numpy())
        return top

    def _exponents(self, a: Numbers, b: Numbers | None) -> Tensor:
        exponents = self.x * torch.from_numpy(-a)[:, None]
        if b is not None and self.y is not None:
            exponents.addcmul_(self.y, torch.from_numpy(b)[:, None], value=-1)
        return exponents

    def _blocks(self, buffers: int) -> Iterator[tuple[slice, slice, list[Tensor]]]:
        """(rows, columns, buffers of that shape) over all of x."""
        rounds, n = self.x.shape
        columns = min(n, BLOCK)
        rows = max(1, min(rounds, BLOCK // columns))
        if self._space is None:  # kept: fresh memory costs more than the arithmetic done in it
            self._space = self.x.new_empty(2, rows * columns)
        for r in range(0, rounds, rows):
            for c in range(0, n, columns):
                shape = (min(rows, rounds - r), min(columns, n - c))
                size = shape[0] * shape[1]
                views = [self._space[k, :size].view(shape) for k in range(buffers)]
                yield slice(r, r + shape[0]), slice(c, c + shape[1]), views

    def _sums(self, a: Numbers, b: Numbers | None) -> tuple[Numbers, Numbers]:
        """Σ f·w·(1, x, x², y, xy, y²) with w = e^(−ax−by)/2^shift, and the shift that keeps w in range."""
        sums = np.zeros((len(a), 6))
        # with b absent min x = 0 makes the largest exponent zero
        shift = np.zeros_like(a) if b is None else np.full_like(a, -math.inf)
        for rows, columns, (w, t) in self._blocks(2):
            x = self.x[rows, columns]
            _exponents_into(w, x, self.y, rows, columns, a, b)
            if b is not None:
                top = np.maximum(shift[rows], w.amax(dim=1).numpy())
                sums[rows] *= np.exp2(shift[rows] - top)[:, None]
                w.sub_(torch.from_numpy(top)[:, None])
                shift[rows] = top
            w.exp2_()
            if self.base is not None:
                w.mul_(self.base[rows, columns])
            torch.mul(w, x, out=t)
            sums[rows, 0] += _row_sums(w)
            sums[rows, 1] += _row_sums(t)
            sums[rows, 2] += row_dots(t, x)
            if b is not None and self.y is not None:
                y = self.y[rows, columns]
                sums[rows, 4] += row_dots(t, y)
                torch.mul(w, y, out=t)
                sums[rows, 3] += _row_sums(t)
                sums[rows, 5] += row_dots(t, y)
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


def _exponents_into(
    w: Tensor, x: Tensor, y: Tensor | None, rows: slice, columns: slice, a: Numbers, b: Numbers | None
) -> None:
    """w = (−ax − by)·log2 e for one block; a plain number is the faster factor where there is one row."""
    if len(a) == 1:
        torch.mul(x, -LOG2_E * float(a[0]), out=w)
        if b is not None and y is not None:
            w.add_(y[rows, columns], alpha=-LOG2_E * float(b[0]))
        return
    torch.mul(x, torch.from_numpy(-LOG2_E * a[rows])[:, None], out=w)
    if b is not None and y is not None:
        w.addcmul_(y[rows, columns], torch.from_numpy(b[rows])[:, None], value=-LOG2_E)


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


def empty_like(x: Tensor) -> Tensor:
    """Uninitialised memory; NumPy asks for huge pages, without which page faults outweigh the arithmetic."""
    return torch.from_numpy(np.empty(x.shape))


def row_dots(left: Tensor, right: Tensor) -> Numbers:
    """Σ_i left·right of every row, [rounds]."""
    return np.vecdot(left.numpy(), right.numpy())  # BLAS, in half the time of torch's


def row_means(x: Tensor, base: Tensor | None) -> Numbers:
    """E_f[x] of every row, [rounds]."""
    return x.mean(dim=1).numpy() if base is None else row_dots(x, base)


def _row_sums(values: Tensor) -> Numbers | float:
    return float(values.sum()) if values.shape[0] == 1 else values.sum(dim=1).numpy()


def kl_divergence(q: Tensor, base: Tensor) -> Tensor:
    """KL(q‖base) = Σ q log(q / base) over the last dimension, with 0 log 0 = 0, in nats."""
    return torch.special.xlogy(q, q / base.where(base > 0, torch.ones_like(base))).sum(dim=-1).clamp(min=0)
