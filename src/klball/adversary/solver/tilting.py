r"""Exponential tilts of scores and their moments: all the solver asks of data (mathematics.md, "Tilts").

    q_i = f_i · min(c, exp(μ − a·x_i − b·y_i)),   Σ q_i = 1,   a = 1/λ, b = β/λ          (c = ∞: no cap)

Scores are [n] with numbers for tilts, or [rounds, n] with arrays [rounds]. Data that is read in passes only
needs the same `moments`: sums of parts add up.
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

Numbers = np.ndarray
Chunk = tuple[np.ndarray, np.ndarray | None, np.ndarray | None]  # x, y, log f
Tilt = Any  # a number, or one for every round: [rounds]

PIECE = 1 << 13  # BLAS divides dot products of more than 10,000 terms over its threads
ROWS = 4  # pieces that stay in the cache from the first operation on them to the last
MANY = 1 << 16  # samples from which a start from a part of them pays
THINNING, RUN = 16, 8  # one run of samples that share a cache line in so many
FAR = 600.0  # exponents within this need no care
BARELY = 1e-15  # of mass: nothing


class Moments(NamedTuple):
    """Of q: KL(q‖f), means, covariances over the samples below the cap, effective sample size, and μ.

    third_x: E[(x − mean)³] at b = 0, else 0.
    """

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
    """x and y (or None) with base weights (None: 1/n) and a cap (or None).

    x and y are 0 where digits are needed: with a cap at the quantile 1/c, where it begins to bind; else in
    the middle, or at the smallest x where there is no y.
    """

    x: Numbers
    y: Numbers | None
    base: Numbers | None
    cap: float | None

    def rounds(self, chosen: Any) -> "Scores":
        """Some of the rounds, or with an index one of them."""
        x, y, base = (None if part is None else part[chosen] for part in (self.x, self.y, self.base))
        assert x is not None
        return Scores(x, y, base, self.cap)

    def f(self) -> Numbers:
        """The base weights, written out."""
        return np.full(self.x.shape, 1 / self.x.shape[-1]) if self.base is None else self.base


class Tilting:
    """Scores, ready to be tilted; it counts its passes."""

    def __init__(self, scores: Scores):
        self.scores = scores
        with np.errstate(divide="ignore"):
            self.log_f = None if scores.base is None else np.log(scores.base)
        self._chunks = chunked(scores.x, scores.y, self.log_f)
        self._space = space_for(self._chunks)
        self.num_passes = 0
        self.last: tuple[Tilt, Tilt, Moments] | None = None  # the tilt of the last pass, and what it found

    def rounds(self, chosen: Any) -> "Tilting":
        return Tilting(self.scores.rounds(chosen))

    def thinned(self) -> "Tilting | None":
        """One in `THINNING` samples of many, for a start; None if no base weight is there."""
        s = self.scores
        x, y, base = (None if v is None else _one_in(v) for v in (s.x, s.y, s.base))
        assert x is not None
        if base is not None:
            if not (total := base.sum(-1, keepdims=True)).all():
                return None
            base = base / total
        if s.cap is None and y is None:
            x -= x.min(-1, keepdims=True)
        return Tilting(Scores(x, y, base, s.cap))

    def moments(self, a: Tilt, b: Tilt = 0.0) -> Moments:
        self.num_passes += 1
        if self.scores.cap is not None:
            found = self._capped(a, b)[1]
        else:
            total = self._total([tilted_sums(chunk, a, b, self._space) for chunk in self._chunks])
            found = moments_of(total, self._log_n(), a, b)
        self.last = a, b, found
        return found

    def weights(self, a: Tilt, b: Tilt = 0.0, overwrite: bool = False) -> tuple[Numbers, Moments]:
        """q itself, its means, KL and μ; `overwrite` puts q where x was: fresh memory costs a pass."""
        self.num_passes += 1
        if self.scores.cap is not None:
            return self._capped(a, b)
        q = self.scores.x if overwrite else np.empty(self.scores.x.shape)
        places, parts = chunks_of(q), []
        for chunk, place in zip(self._chunks, places, strict=True):
            parts.append(tilted_sums(chunk, a, b, self._space, out=place))
        total = self._total(parts)
        for part, place in zip(parts, places, strict=True):
            np.multiply(place, _column(np.exp(part[0] - total[0]) / total[1]), out=place)
        return q, moments_of(total, self._log_n(), a, b)

    def _total(self, parts: list[Numbers]) -> Any:
        """[9, rounds], or nine numbers where there is no such axis."""
        single, many = self.scores.x.ndim == 1, _rounds(self.scores.x) > 1
        total = parts[0]
        if len(parts) > 1 or total.ndim > self.scores.x.ndim:
            total = merged(np.stack(parts, -1) if many else np.concatenate(parts, -1))
            total = total if single or many else total[:, None]
        return total.tolist() if single else total

    def _log_n(self) -> float:
        return math.log(self.scores.x.shape[-1]) if self.log_f is None else 0.0

    def _capped(self, a: Tilt, b: Tilt) -> tuple[Numbers, Moments]:
        """q and its moments; the exponents of samples far beyond the cap do not matter, and are cut."""
        s, cap = self.scores, self.scores.cap
        assert cap is not None
        e = exponents((s.x, s.y, None), a, b)
        level = _level(e, s.f(), cap) if np.any(b) and not np.abs(e).max() < FAR else np.zeros(e.shape[:-1])
        w = np.exp(np.minimum(e - _column(level), FAR + 100))
        scale = self._scale(w, a, b, level)
        q = np.minimum(w, _column(cap / scale))
        q *= _column(scale) / e.shape[-1] if s.base is None else _column(scale) * s.base
        mu = np.log(scale) - level
        return q, _free_moments(q, q * (w < _column(cap / scale)), e, mu, s, cap)

    def _scale(self, w: Numbers, a: Tilt, b: Tilt, level: Numbers) -> Tilt:
        """M with Σ f·min(c, M·w) = 1, which is concave in M: from below, Newton's steps do not overshoot.

        It starts from where the last pass would put it, which may be above.
        """
        s, cap = self.scores, self.scores.cap
        f = 1 / w.shape[-1] if s.base is None else s.base

        def newton(scale: Tilt) -> Tilt:
            over = w >= _column(cap / scale)
            rest = np.where(over, 0.0, w)  # no difference of sums, of which one may be out of all proportion
            if s.base is None:
                full, mass = np.count_nonzero(over, axis=-1) * f, np.einsum("...i->...", rest) * f
            else:
                full, mass = (over * f).sum(-1), dot(rest, f)
            left = 1 - cap * full
            usable = (left > BARELY) & (mass > 0)
            return np.where(usable, left / np.where(usable, mass, 1.0), 0.0)

        lowest = 1 / (w.mean(-1) if s.base is None else dot(w, f))
        scale = lowest
        if self.last is not None:
            at_a, at_b, m = self.last
            with np.errstate(over="ignore"):
                guess = np.exp(m.mu + m.mean_x * (a - at_a) + m.mean_y * (b - at_b) + level)
            if np.isfinite(guess).all() and (guess > lowest).all():
                scale = np.maximum(newton(guess), lowest)
        while True:
            better = newton(scale)
            if not (better > scale * (1 + 1e-15)).any():
                return scale
            scale = np.maximum(scale, better)


def _free_moments(q: Numbers, inner: Numbers, e: Numbers, mu: Tilt, s: Scores, cap: float) -> Moments:
    """Moments of q, of which `inner` lies below the cap."""
    mass = inner.sum(-1)
    safe = np.where(mass > 0, mass, 1.0)
    zero = np.zeros_like(mass)
    dx = s.x - _column(dot(inner, s.x) / safe)
    mean_y = cov = var_y = zero
    if s.y is not None:
        dy = s.y - _column(dot(inner, s.y) / safe)
        inner_y = inner * dy
        mean_y, cov, var_y = dot(q, s.y), dot(inner_y, dx), dot(inner_y, dy)
    kl = math.log(cap) * (q.sum(-1) - mass) + mu * mass + dot(inner, e)
    return Moments(
        kl=np.maximum(kl, 0.0),
        mean_x=dot(q, s.x),
        mean_y=mean_y,
        var_x=dot(inner * dx, dx),
        third_x=dot(inner * dx * dx, dx),
        cov_xy=cov,
        var_y=var_y,
        ess=1 / dot(q, q),
        mu=mu,
    )


def exponents(
    chunk: Chunk, a: Tilt, b: Tilt, out: Numbers | None = None, spare: Numbers | None = None
) -> Numbers:
    """log f − ax − by, into memory that is there: fresh memory costs more than the arithmetic."""
    x, y, log_f = chunk
    e = np.multiply(x, -_column(a), out=out)
    if y is not None and np.any(b):
        e -= np.multiply(y, _column(b), out=spare)
    if log_f is not None:
        e += log_f
    return e


def space_for(chunks: list[Chunk]) -> Numbers:
    """Memory for `tilted_sums` of any of these."""
    return np.empty((2, max((chunk[0].size for chunk in chunks), default=0)))


def tilted_sums(
    chunk: Chunk, a: Tilt, b: Tilt, space: Numbers, *, shifted: bool = False, out: Numbers | None = None
) -> Numbers:
    """[shift, Σ w·(1, w, x, x², x³, y, xy, y²)], w = f·exp(−ax − by − shift), one column a row.

    With `out` it is w that is wanted: it goes there, and only the first moments are taken.

    The shift keeps w in range; where min x = 0 and nothing else weighs in, it needs none unless `shifted`.
    x³ is there only at b = 0.
    """
    x, y, log_f = chunk
    w, wx = (part[: x.size].reshape(x.shape) for part in space)
    exponents(chunk, a, b, w, wx)
    sums = np.zeros((9, *w.shape[:-1]))
    if shifted or log_f is not None or y is not None:
        sums[0] = shift = w.max(-1)
        w -= _column(shift)
    np.exp(w, out=w)
    sums[1] = np.einsum("...i->...", w)  # faster than NumPy's own sum
    sums[2], sums[3] = np.vecdot(w, w), np.vecdot(w, x)
    if y is not None:
        sums[6] = np.vecdot(w, y)
    if out is not None:  # then the means will do
        out[...] = w  # last: x may be there
        return sums
    np.multiply(w, x, out=wx)
    sums[4] = np.vecdot(wx, x)
    if y is not None:
        sums[7] = np.vecdot(wx, y)
    if y is None or not np.any(b):
        sums[5] = np.vecdot(np.multiply(wx, x, out=wx), x)
    if y is not None:
        sums[8] = np.vecdot(np.multiply(w, y, out=wx), y)
    return sums


def chunks_of(values: Numbers) -> list[Numbers]:
    """Views that stay in the cache, in rows too short for BLAS to divide: of one long round, its pieces."""
    n = values.shape[-1]
    if n <= PIECE:
        return [values]
    if _rounds(values) > 1:
        return [values[:, start : start + PIECE] for start in range(0, n, PIECE)]
    flat, whole = values.reshape(-1), n // PIECE * PIECE
    ends = [*range(0, whole, ROWS * PIECE), whole]
    pieces = [flat[start:end].reshape(-1, PIECE) for start, end in pairwise(ends)]
    return [*pieces, flat[None, whole:]] if whole < n else pieces


def chunked(x: Numbers, y: Numbers | None, log_f: Numbers | None) -> list[Chunk]:
    xs = chunks_of(x)
    ys, fs = ([None] * len(xs) if v is None else chunks_of(v) for v in (y, log_f))
    return list(zip(xs, ys, fs, strict=True))


def _one_in(values: Numbers) -> Numbers:
    length = RUN * THINNING
    whole = values.shape[-1] // length * length
    runs = values[..., :whole].reshape(*values.shape[:-1], -1, length)[..., :RUN]
    return runs.reshape(*values.shape[:-1], -1).copy()


def _rounds(values: Numbers) -> int:
    return len(values) if values.ndim > 1 else 1


def merged(sums: Numbers) -> Numbers:
    """The sums of several pieces (the last axis), brought to the largest of their scales."""
    top = sums[0].max(-1)
    scale = np.exp(sums[0] - top[..., None])
    total = np.vecdot(sums, scale)
    total[0], total[2] = top, np.vecdot(sums[2], scale * scale)
    return total


def moments_of(sums: Any, log_n: float, a: Tilt, b: Tilt) -> Moments:
    """From the sums of `tilted_sums`, numbers or [9, rounds]; `log_n` is log n where they lack f = 1/n."""
    shift, z, ww, wx, wxx, wxxx, wy, wxy, wyy = sums
    log, floored = (math.log, max) if isinstance(z, float) else (np.log, np.maximum)
    mean_x, mean_y, xx = wx / z, wy / z, wxx / z
    mu = log_n - log(z) - shift
    return Moments(
        kl=floored(mu - a * mean_x - b * mean_y, 0.0),
        mean_x=mean_x,
        mean_y=mean_y,
        var_x=floored(xx - mean_x * mean_x, 0.0),
        third_x=wxxx / z - mean_x * (3 * xx - 2 * mean_x * mean_x),
        cov_xy=wxy / z - mean_x * mean_y,
        var_y=floored(wyy / z - mean_y * mean_y, 0.0),
        ess=z * z / ww,
        mu=mu,
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


def _level(e: Numbers, f: Numbers, cap: float) -> Numbers:
    """The exponent at which the cap begins to bind, for every round."""
    rows = zip(e.reshape(-1, e.shape[-1]), f.reshape(-1, e.shape[-1]), strict=True)
    return np.array([-quantile(-own, base, cap) for own, base in rows]).reshape(e.shape[:-1])


def _column(values: Tilt) -> Tilt:
    """One number a round, against its samples."""
    return values[..., None] if isinstance(values, np.ndarray) else values
