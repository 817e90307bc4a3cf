r"""Exponential tilts of scores and their moments: all the solver asks of data (mathematics.md, "Tilts").

    q_i = f_i · min(c, exp(μ − a·x_i − b·y_i)),   Σ q_i = 1,   a = 1/λ, b = β/λ          (c = ∞: no cap)

Scores are [n] with numbers for tilts, or [rounds, n] with arrays [rounds]. Data that is read in passes only
needs the same `moments`: sums of parts add up.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

Numbers = np.ndarray
Tilt = Any  # a number, or one for every round: [rounds]

PIECE = 10_000  # samples that stay in the cache; BLAS divides longer products over its threads
ONES = np.ones(PIECE)  # a dot product is the fastest sum
MANY = 1 << 13  # samples from which a start from a part of them pays
THINNING, RUN = 16, 8  # one run of samples that share a cache line in so many
LEAST, FAR = 1e-250, 280.0  # Σw² below which digits may be lost; an exponent that cannot take it there
FURTHEST = 700.0  # an exponent beyond which is no exponential
BARELY = 1e-15  # of mass: nothing


class Moments(NamedTuple):
    """Of q: KL(q‖f), means, covariances over the samples below the cap, effective sample size, and μ."""

    kl: Tilt
    mean_x: Tilt
    mean_y: Tilt
    var_x: Tilt
    third_x: Tilt
    cov_xy: Tilt
    var_y: Tilt
    ess: Tilt
    mu: Tilt


@dataclass(frozen=True)
class Scores:
    """x and y (or None) with base weights (None: 1/n) and a cap (or None), 0 where digits are needed."""

    x: Numbers
    y: Numbers | None
    base: Numbers | None
    cap: float | None

    def each(self, of: Callable[[Numbers], Numbers]) -> "Scores":
        y, base = (None if part is None else of(part) for part in (self.y, self.base))
        return Scores(of(self.x), y, base, self.cap)

    def f(self) -> Numbers:
        """The base weights, written out."""
        return np.full(self.x.shape, 1 / self.x.shape[-1]) if self.base is None else self.base


class Piece(NamedTuple):
    """Some samples of one round, or some whole rounds."""

    place: slice
    x: Numbers
    y: Numbers | None = None
    log_f: Numbers | None = None


class Tilting:
    """Scores, ready to be tilted; it counts its passes. A cap, and long rounds, only for scores [n]."""

    def __init__(self, scores: Scores):
        self.scores, self.single, n = scores, scores.x.ndim == 1, scores.x.shape[-1]
        self.log_n, log_f = (math.log(n), None) if scores.base is None else (0.0, np.log(scores.base))
        step = PIECE if self.single else max(1, PIECE // n)
        places = [slice(start, start + step) for start in range(0, len(scores.x), step)]
        columns = [[None if of is None else of[own] for own in places] for of in (scores.x, scores.y, log_f)]
        self.pieces = [Piece(*own) for own in zip(places, *columns, strict=True)]
        self.num_passes = 0
        self.last: tuple[Tilt, Tilt, Moments] | None = None  # the tilt of the last pass, and what it found

    def thinned(self) -> "Tilting | None":
        """One in `THINNING` samples of many, for a start; None if no base weight is there."""
        length = RUN * THINNING
        s = self.scores.each(lambda v: v[: len(v) // length * length].reshape(-1, length)[:, :RUN].ravel())
        if s.base is not None and not s.base.sum() > 0:
            return None
        base = None if s.base is None else s.base / s.base.sum()
        return Tilting(Scores(s.x - s.x.min() if s.cap is None and s.y is None else s.x, s.y, base, s.cap))

    def moments(self, a: Tilt, b: Tilt = 0.0) -> Moments:
        self.num_passes += 1
        if self.single and isinstance(a, np.ndarray):
            a, b = a.item(), b.item()
        if self.scores.cap is not None:
            found = self._capped(a, b)[1]
        else:
            order = 3 if self.scores.y is None or not np.any(b) else 2
            parts = [sums_of(piece, *w, order) for piece, w in self._exponentials(a, b)]
            found = moments_of(self._total(parts), self.log_n, a, b)
        self.last = a, b, found
        return found

    def weights(self, a: Tilt, b: Tilt = 0.0, overwrite: bool = False) -> tuple[Numbers, Moments]:
        """q itself, its means, KL and μ; `overwrite` puts q where x was: fresh memory costs a pass."""
        self.num_passes += 1
        if self.scores.cap is not None:
            return self._capped(a, b)
        q, parts = self.scores.x if overwrite else np.empty(self.scores.x.shape), []
        for piece, w in self._exponentials(a, b):
            parts.append(sums_of(piece, *w, 1))
            q[piece.place] = w[0]
        total = self._total(parts)
        for piece, part in zip(self.pieces, parts, strict=True):
            if self.single:
                q[piece.place] *= math.exp(part[0] - total[0]) / total[2]
            else:
                q[piece.place] /= total[2, piece.place, None]
        return q, moments_of(total, self.log_n, a, b)

    def _exponentials(self, a: Tilt, b: Tilt) -> Iterator[tuple[Piece, tuple[Numbers, Tilt, Tilt]]]:
        if self.single:
            yield from ((piece, exponentials(piece, a, b)) for piece in self.pieces)
            return
        far = self.scores.base is not None or not np.max(a + b) < FAR  # x and y are at most 1
        for piece in self.pieces:
            yield piece, exponentials(piece, a[piece.place, None], b[piece.place, None], far)

    def _total(self, parts: list[Numbers]) -> Any:
        """Nine numbers, or [9, rounds]."""
        return merged(parts).tolist() if self.single else np.concatenate(parts).T

    def _capped(self, a: float, b: float) -> tuple[Numbers, Moments]:
        """q and its moments; the exponents of samples far beyond the cap do not matter, and are cut."""
        s, cap = self.scores, self.scores.cap
        assert cap is not None
        y = 0.0 * s.x if s.y is None else s.y
        e = -a * s.x - b * y
        far = bool(b) and not np.abs(e).max() < FURTHEST
        level = -quantile(-e, s.base, cap) if far else 0.0  # where the cap begins to bind
        w = np.exp(np.minimum(e - level, FURTHEST))
        scale = self._scale(w, a, b, level)
        q = np.minimum(w, cap / scale) * (scale / len(e) if s.base is None else scale * s.base)
        inner, mu = np.where(w < cap / scale, q, 0.0), math.log(scale) - level
        mass = float(inner.sum())
        dx, dy = (v - dot(inner, v) / (mass or 1.0) for v in (s.x, y))
        kl = math.log(cap) * (float(q.sum()) - mass) + mu * mass + dot(inner, e)
        means = dot(q, s.x), dot(q, y)
        second = dot(inner, dx * dx), dot(inner, dx**3), dot(inner, dx * dy), dot(inner, dy * dy)
        return q, Moments(*map(float, (max(kl, 0.0), *means, *second, 1 / dot(q, q), mu)))

    def _scale(self, w: Numbers, a: float, b: float, level: float) -> float:
        """M with Σ f·min(c, M·w) = 1, which is concave in M: from below, Newton's steps do not overshoot.

        It starts from where the last pass would put it, which may be above.
        """
        base, cap = self.scores.base, self.scores.cap
        assert cap is not None
        fw = w / len(w) if base is None else base * w

        def newton(scale: float) -> float:
            over = w >= cap / scale
            left = 1 - cap * float(np.count_nonzero(over) / len(w) if base is None else base[over].sum())
            rest = float(np.where(over, 0.0, fw).sum())  # no difference of sums, which may be far apart
            return left / rest if left > BARELY and rest > 0 else 0.0

        scale = lowest = 1 / float(fw.sum())
        if self.last is not None:
            at_a, at_b, m = self.last
            guess = m.mu + m.mean_x * (a - at_a) + m.mean_y * (b - at_b) + level
            if math.log(lowest) < guess < FURTHEST:
                scale = max(newton(math.exp(guess)), lowest)
        while (better := newton(scale)) > scale * (1 + 1e-15):
            scale = better
        return scale


def exponentials(piece: Piece, a: Tilt, b: Tilt, shifted: bool = False) -> tuple[Numbers, Tilt, Tilt]:
    """w = f·exp(−ax − by − shift), the shift, and Σw². Of one round w is shifted only to stay in range."""
    w, shift = piece.x * -a, 0.0
    if piece.y is not None:
        w -= piece.y * b
    if piece.log_f is not None:
        w += piece.log_f
    if shifted:
        shift = w.max(-1)
        w -= shift if w.ndim == 1 else shift[:, None]
    np.exp(w, out=w)
    ww = np.vecdot(w, w)
    if w.ndim == 1 and not shifted and not LEAST < ww < math.inf:
        return exponentials(piece, a, b, shifted=True)
    return w, shift, ww


def sums_of(piece: Piece, w: Numbers, shift: Tilt, ww: Tilt, order: int) -> Numbers:
    """[..., 9]: the shift, Σw² and Σ w·(1, x, x², x³, y, xy, y²) up to that order."""
    sums, x, y = np.zeros((*w.shape[:-1], 9)), piece.x, piece.y
    sums[..., 0], sums[..., 1], sums[..., 2] = shift, ww, np.vecdot(w, ONES[: w.shape[-1]])
    sums[..., 3], sums[..., 6] = np.vecdot(w, x), 0.0 if y is None else np.vecdot(w, y)
    if order > 1:
        wx = w * x
        sums[..., 4] = np.vecdot(wx, x)
        if y is not None:
            sums[..., 7], sums[..., 8] = np.vecdot(wx, y), np.vecdot(w * y, y)
        sums[..., 5] = np.vecdot(np.multiply(wx, x, out=wx), x) if order > 2 else 0.0
    return sums


def merged(sums: Sequence[Numbers]) -> Numbers:
    """The sums of several pieces, brought to the largest of their scales."""
    if len(sums) == 1:
        return sums[0]
    parts = np.array(sums)
    top = parts[:, 0].max()
    scale = np.exp(parts[:, 0] - top)
    total = dot(parts.T, scale)
    total[0], total[1] = top, dot(parts[:, 1], scale * scale)
    return total


def moments_of(sums: Any, log_n: float, a: Tilt, b: Tilt) -> Moments:
    """From `sums_of`, nine numbers or [9, rounds]; `log_n` is log n where they lack f = 1/n."""
    shift, ww, z, wx, wxx, wxxx, wy, wxy, wyy = sums
    log, floored = (math.log, max) if isinstance(z, float) else (np.log, np.maximum)
    mean_x, mean_y, xx = wx / z, wy / z, wxx / z
    mu = log_n - log(z) - shift
    return Moments(
        floored(mu - a * mean_x - b * mean_y, 0.0),
        mean_x,
        mean_y,
        floored(xx - mean_x * mean_x, 0.0),
        wxxx / z - mean_x * (3 * xx - 2 * mean_x * mean_x),
        wxy / z - mean_x * mean_y,
        floored(wyy / z - mean_y * mean_y, 0.0),
        z * z / ww,
        mu,
    )


def dot(left: Numbers, right: Numbers) -> Tilt:
    """Σ_i left·right over long rows, without the threads that BLAS would wake and wait for."""
    return np.einsum("...i,...i->...", left, right)


def quantile(values: Numbers, base: Numbers | None, cap: float) -> float:
    """The value at which the base mass of it and all below reaches 1/cap; [n]."""
    if base is None:
        k = math.ceil(len(values) / cap * (1 - 1e-14)) - 1
        return float(np.partition(values, k)[k])
    order = np.argsort(values)
    reached = np.searchsorted(np.cumsum(base[order]) * cap, 1 - 1e-14)
    return float(values[order[min(int(reached), len(values) - 1)]])
