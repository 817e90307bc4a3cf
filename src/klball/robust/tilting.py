r"""Moments of a data set under exponential tilting: all that the dual solver ever asks of the data.

For tilts (a, b) = (1/λ, β/λ) the adversary's weights are

    q_i = f_i · min(c, exp(μ − a·x_i − b·y_i)),   Σ q_i = 1          (c = ∞: plain tilting)

One pass over the data gives the normaliser, the means of x and y under q, and their covariances
over the samples below the cap, which are the derivatives of the means. Sums over blocks are all
that leaves a pass, so data that is sharded or larger than memory needs only another `Tilting`.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 1 << 15  # elements worked on at once: three float64 blocks stay in a core's cache


@dataclass(frozen=True)
class Moments:
    """Statistics of q, each of shape [rounds]; covariances are those of the uncapped samples."""

    mu: Tensor
    kl: Tensor
    mean_x: Tensor
    mean_y: Tensor
    var_x: Tensor
    cov_xy: Tensor
    var_y: Tensor
    capped: Tensor  # share of the base mass that sits at the cap


class Tilting:
    """Data x ≥ 0 and y ≥ 0 of shape [rounds, n] with base weights f, ready to be tilted.

    `y` may be None (then b must be 0), `base` None means 1/n, `cap` None means no cap.
    """

    def __init__(self, x: Tensor, y: Tensor | None, base: Tensor | None, cap: float | None):
        self.x, self.y, self.base, self.cap = x, y, base, cap
        self.num_passes = 0

    def thinned(self, stride: int) -> "Tilting":
        """Every `stride`-th sample, for a first guess at a fraction of the cost."""
        x = self.x[:, ::stride].contiguous()
        # the largest losses decide where the tilt ends up: keep the adversary's favourite sample
        x[:, 0] = self.x.amin(dim=1)
        base = None
        if self.base is not None:
            base = self.base[:, ::stride].contiguous()
            base = base / base.sum(dim=1, keepdim=True)
        return Tilting(x, None, base, None)

    def moments(self, a: Tensor, b: Tensor | None = None) -> Moments:
        """One pass at the tilts a, b of shape [rounds]."""
        self.num_passes += 1
        if self.cap is not None:
            return self._capped_moments(a, b)
        sums, shift = self._sums(a, b)
        z = sums[:, 0]
        mean_x, xx = sums[:, 1] / z, sums[:, 2] / z
        mean_y, xy, yy = sums[:, 3] / z, sums[:, 4] / z, sums[:, 5] / z
        mu = -(z.log() + shift)
        kl = mu - a * mean_x
        if b is not None:
            kl = kl - b * mean_y
        return Moments(
            mu=mu,
            kl=kl.clamp(min=0),
            mean_x=mean_x,
            mean_y=mean_y,
            var_x=(xx - mean_x**2).clamp(min=0),
            cov_xy=xy - mean_x * mean_y,
            var_y=(yy - mean_y**2).clamp(min=0),
            capped=torch.zeros_like(z),
        )

    def weights(self, a: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """q of shape [rounds, n], μ and KL(q‖f), the last two computed from this very q."""
        self.num_passes += 1
        exponents = self._exponents(a, b)
        base = self.base if self.base is not None else 1 / self.x.shape[1]
        if self.cap is not None:
            full_base = base if isinstance(base, Tensor) else torch.full_like(self.x, base)
            mu, _ = fill(exponents, full_base, self.cap)
            density = exponents.add_(mu[:, None]).exp_().clamp_(max=self.cap)
            q = density * full_base
            return q, mu, kl_divergence(q, full_base)
        shift = exponents.amax(dim=1) if b is not None else torch.zeros_like(a)
        q = exponents.sub_(shift[:, None]).exp_().mul_(base)
        z = q.sum(dim=1)
        q.div_(z[:, None])
        mu = -(z.log() + shift)
        kl = mu - a * _row_dots(q, self.x)
        if b is not None and self.y is not None:
            kl -= b * _row_dots(q, self.y)
        return q, mu, kl.clamp(min=0) + 0.0  # turns −0 into 0

    def _exponents(self, a: Tensor, b: Tensor | None) -> Tensor:
        exponents = self.x * -a[:, None]
        if b is not None and self.y is not None:
            exponents.addcmul_(self.y, b[:, None], value=-1)
        return exponents

    def _sums(self, a: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor]:
        """Σ f·e^(−ax−by−shift) · (1, x, x², y, xy, y²), and the shift that keeps it in range."""
        rounds, n = self.x.shape
        sums = self.x.new_zeros(rounds, 6)
        shift = self.x.new_full((rounds,), -math.inf)
        columns = min(n, BLOCK)
        rows = max(1, BLOCK // columns)
        buffers = self.x.new_empty(2, rows * columns)
        for r in range(0, rounds, rows):
            rs = slice(r, min(r + rows, rounds))
            for c in range(0, n, columns):
                self._add_block(rs, slice(c, min(c + columns, n)), a, b, sums, shift, buffers)
        return (sums / n if self.base is None else sums), shift

    def _add_block(
        self,
        rows: slice,
        columns: slice,
        a: Tensor,
        b: Tensor | None,
        sums: Tensor,
        shift: Tensor,
        buffers: Tensor,
    ) -> None:
        x = self.x[rows, columns]
        w, t = (buffer[: x.numel()].view(x.shape) for buffer in buffers)
        torch.mul(x, -a[rows, None], out=w)
        if b is not None and self.y is not None:
            w.addcmul_(self.y[rows, columns], b[rows, None], value=-1)
            top = torch.maximum(shift[rows], w.amax(dim=1))
            sums[rows] *= torch.exp(shift[rows] - top)[:, None]
            w.sub_(top[:, None])
            shift[rows] = top
        else:
            shift[rows] = 0.0  # min x = 0, so no exponent is positive and the largest is zero
        w.exp_()
        if self.base is not None:
            w.mul_(self.base[rows, columns])
        block = sums[rows]
        block[:, 0] += w.sum(dim=1)
        torch.mul(w, x, out=t)
        block[:, 1] += t.sum(dim=1)
        block[:, 2] += _row_dots(t, x)
        if self.y is not None:
            y = self.y[rows, columns]
            block[:, 4] += _row_dots(t, y)
            torch.mul(w, y, out=t)
            block[:, 3] += t.sum(dim=1)
            block[:, 5] += _row_dots(t, y)

    def _capped_moments(self, a: Tensor, b: Tensor | None) -> Moments:
        exponents = self._exponents(a, b)
        base = self.base if self.base is not None else torch.full_like(self.x, 1 / self.x.shape[1])
        assert self.cap is not None
        mu, free = fill(exponents, base, self.cap)
        log_density = (exponents + mu[:, None]).clamp(max=math.log(self.cap))
        q = base * log_density.exp()
        kl = kl_divergence(q, base)
        q_free = q * free
        mass = q_free.sum(dim=1).clamp(min=torch.finfo(q.dtype).tiny)
        y = self.y if self.y is not None else torch.zeros_like(self.x)
        dx = self.x - ((q_free * self.x).sum(dim=1) / mass)[:, None]
        dy = y - ((q_free * y).sum(dim=1) / mass)[:, None]
        return Moments(
            mu=mu,
            kl=kl,
            mean_x=(q * self.x).sum(dim=1),
            mean_y=(q * y).sum(dim=1),
            var_x=(q_free * dx * dx).sum(dim=1),
            cov_xy=(q_free * dx * dy).sum(dim=1),
            var_y=(q_free * dy * dy).sum(dim=1),
            capped=(base * ~free).sum(dim=1),
        )


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


def _row_dots(left: Tensor, right: Tensor) -> Tensor:
    if left.shape[0] == 1:
        return torch.dot(left[0], right[0])[None]
    return torch.linalg.vecdot(left, right)


def kl_divergence(q: Tensor, base: Tensor) -> Tensor:
    """KL(q‖base) = Σ q log(q / base) over the last dimension, with 0 log 0 = 0, in nats."""
    return torch.special.xlogy(q, q / base.where(base > 0, torch.ones_like(base))).sum(dim=-1).clamp(min=0)
