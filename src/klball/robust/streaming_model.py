r"""What a sample says about data that is read in passes, and how a pass corrects it.

With A = log Z and the sample's A_S, the model

    Â(a,b) = A_S(a,b) + the Taylor series of (A − A_S) at the tilt of the last pass

is exact there to third order, and errs in the fourth by no more than the sample does.
"""

import copy
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from klball.robust.dual import SMALLEST_RANGE
from klball.robust.newton import LONGEST_STEP
from klball.robust.streaming_sums import Part, Sums, Tilt, everyones, sum_parts
from klball.robust.tilting import LOG2_E, Moments, Numbers

SAMPLE = 1 << 20  # rows, at the most, that say where to look: λ is good to about a per mille
FIRST = 8  # one in so many of them says where to look in the sample,
FEW = 1 << 17  # where it has more than this
SHARES = 8  # of the sample, for threads
SAMPLED_PARTS = 16  # so many, or one in so many: the sample must cost less than the pass that it saves
LARGEST_SHARE = 1 << 16  # rows of one part
MARGIN = 4  # by which a term of a series may be larger than the two before it say


def sample_of(parts: Sequence[Part], threads: int, sharded: bool) -> tuple[Numbers, Numbers | None]:
    """Finite scores from evenly spaced parts of all processes, the same everywhere."""
    processes = torch.distributed.get_world_size() if sharded else 1
    count = min(len(parts), max(SAMPLED_PARTS, len(parts) // SAMPLED_PARTS))
    spread = np.linspace(0, len(parts) - 1, count).round().astype(int).tolist()
    share = min(math.ceil(SAMPLE / processes / max(count, 1)), LARGEST_SHARE)
    with ThreadPoolExecutor(threads) as pool:
        taken = [rows for some in pool.map(lambda i: _first_rows(parts[i], share), spread) for rows in some]
    for i in sorted(set(range(len(parts))) - set(spread)):  # where that is few: more of them, or all
        if (left := math.ceil(min(SAMPLE, FEW) / processes) - sum(rows.shape[1] for rows in taken)) <= 0:
            break
        taken += _first_rows(parts[i], min(left, share))
    everything = [rows for own in everyones(taken) for rows in own] if sharded else taken
    if not any(rows.size for rows in everything):
        raise ValueError("there are no rows")
    if len({len(rows) for rows in everything}) > 1:
        raise ValueError("some chunks have a certainty and others have none")
    both = np.concatenate(everything, axis=1)
    finite = np.isfinite(both).all(axis=0)
    if not finite.any():  # the first pass will count what is wrong
        both = np.zeros((len(both), 1))
    elif not finite.all():
        both = both[:, finite]
    return both[0], both[1] if len(both) == 2 else None


def _first_rows(part: Part, rows: int) -> list[Numbers]:
    """About the first `rows` rows, thinned where the first chunk has many more."""
    taken: list[Numbers] = []
    for g, c in part():
        stride = max(1, len(g) // rows)
        columns = (g,) if c is None else (g, c)
        taken.append(np.stack([column[::stride][:rows].astype(np.float64) for column in columns]))
        rows -= taken[-1].shape[1]
        if rows <= 0:
            break
    return taken


@dataclass(frozen=True)
class At:
    """What a pass at the tilt (a, b) found; `third` [2, 2, 2] has the third central moments."""

    a: float
    b: float
    moments: Moments
    third: Numbers
    sums: Sums


class Data:
    """The data in the units of its sample, x = (g − mean)/range and likewise y, for Newton's iterations."""

    def __init__(
        self,
        parts: Sequence[Part],
        sample: tuple[Numbers, Numbers | None],
        bound: bool,
        threads: int,
        sharded: bool,
    ):
        self.parts, self.sample, self.bound = parts, sample, bound
        self.threads, self.sharded = threads, sharded
        g, c = sample
        self.origin = float(g.mean()), 0.0 if c is None else float(c.mean())
        self.extremes = _extremes(g), (0.0, 0.0) if c is None else _extremes(c)
        self.scale = _range(*self.extremes[0]), _range(*self.extremes[1])
        self.num_passes = 0

    def sampled(self, stride: int = 1) -> "Data":
        """The sample alone, or one in `stride` of its rows, in the same units."""
        g, c = self.sample
        shares = [slice(start * stride, None, stride * SHARES) for start in range(min(SHARES, len(g)))]
        chunks = [(g[own], None if c is None else c[own]) for own in shares]
        sample = copy.copy(self)
        sample.parts = [lambda chunk=chunk: [chunk] for chunk in chunks if len(chunk[0])]
        sample.sharded, sample.num_passes = False, 0
        return sample

    def at(self, a: float, b: float) -> At:
        """One pass at the tilt (a, b), with all that it can find."""
        sums = self._sums(a, b, survey=True)
        moments = self._moments(sums, a, b)
        return At(a, b, moments, self._third(sums, moments), sums)

    def moments(self, a: Numbers, b: Numbers | None = None) -> Moments:
        """One pass as Newton's iterations ask for it; all [1]."""
        here = float(a[0]), 0.0 if b is None else float(b[0])
        return self._moments(self._sums(*here, survey=False), *here)

    @np.errstate(over="ignore", invalid="ignore")  # Newton's iterations turn back from tilts that overflow
    def _sums(self, a: float, b: float, survey: bool) -> Sums:
        self.num_passes += 1
        tilt = Tilt(
            a=a / self.scale[0],
            b=b / self.scale[1],
            origin=self.origin,
            bound=self.bound,
            survey=survey,
            least_g=self.extremes[0][0],
        )
        return sum_parts(self.parts, tilt, self.threads, self.sharded)

    def _moments(self, sums: Sums, a: float, b: float) -> Moments:
        if not sums.w > 0:  # only bad rows, or an overflow
            return Moments(*(np.full(1, math.nan) for _ in range(6)))
        sx, sy = self.scale
        mean_x, mean_y = sums.wx / sums.w / sx, sums.wy / sums.w / sy
        kl = math.log(sums.rows / sums.w) - sums.shift / LOG2_E - a * mean_x - b * mean_y
        var_x = sums.wxx / sums.w / sx**2 - mean_x**2
        cov = sums.wxy / sums.w / sx / sy - mean_x * mean_y
        var_y = sums.wyy / sums.w / sy**2 - mean_y**2
        return Moments(*(np.array([v]) for v in (kl, mean_x, mean_y, max(var_x, 0.0), cov, max(var_y, 0.0))))

    def _third(self, sums: Sums, moments: Moments) -> Numbers:
        """E[(z − m)(z − m)(z − m)] for z = (x, y)."""
        s, (sx, sy) = sums, self.scale
        third = np.empty((2, 2, 2))
        for k, value in enumerate((s.wxxx / sx**3, s.wxxy / sx**2 / sy, s.wxyy / sx / sy**2, s.wyyy / sy**3)):
            third[np.indices((2, 2, 2)).sum(axis=0) == k] = value / s.w if s.w > 0 else math.nan
        m = _means(moments)
        mixed = np.multiply.outer(m, _covariances(moments))
        for axis in range(3):
            third -= np.moveaxis(mixed, 0, axis)
        return third - np.multiply.outer(m, np.multiply.outer(m, m))


def _extremes(scores: Numbers) -> tuple[float, float]:
    return float(scores.min()), float(scores.max())


def _range(low: float, high: float) -> float:
    return high - low if high - low > SMALLEST_RANGE else 1.0


class Model:
    """The sample, corrected to agree with the data at the tilt of a pass."""

    def __init__(self, sample: Data, full: At):
        self.sample, self.full = sample, full
        there = sample.at(full.a, full.b)
        self.log_z = log_z_at(full.moments, full.a, full.b) - log_z_at(there.moments, full.a, full.b)
        self.mean = _means(full.moments) - _means(there.moments)
        self.covariance = _covariances(full.moments) - _covariances(there.moments)
        self.third = full.third - there.third

    @np.errstate(over="ignore", invalid="ignore")
    def moments(self, a: Numbers, b: Numbers | None = None) -> Moments:
        b = np.zeros(1) if b is None else b
        sampled, d = self.sample.moments(a, b), self._away(float(a[0]), float(b[0]))
        bent = self.third @ d
        mean = _means(sampled) + self.mean - (self.covariance - bent / 2) @ d
        (xx, xy), (_, yy) = _covariances(sampled) + self.covariance - bent
        log_z = log_z_at(sampled, a, b) + self.log_z - d @ (self.mean - (self.covariance / 2 - bent / 6) @ d)
        kl = -log_z[0] - a[0] * mean[0] - b[0] * mean[1]
        return Moments(*np.array([kl, *mean, max(xx, 0.0), xy, max(yy, 0.0)])[:, None])

    @np.errstate(over="ignore", invalid="ignore")
    def error(self, a: float, b: float, width: Numbers) -> float:
        """About the error of the means, in units of the ranges; `width` has those in units of the sample's.

        The terms of the series shrink by the spread of the exponents and their skewness, here with a margin.
        Since one term may vanish by chance, the last two must say that the next is small.
        """
        d = self._away(a, b)
        square = float(d @ _covariances(self.full.moments) @ d)
        skew = abs(float(self.full.third @ d @ d @ d)) / max(square, 1e-300)
        ratio = MARGIN * max(math.sqrt(max(square, 0.0)), skew)
        second, third = self.covariance @ d, self.third @ d @ d / 2
        errors = np.maximum(np.abs(third) * ratio, np.abs(second) * ratio * ratio)
        return float((errors / np.where(width > 0, width, 1.0)).max())

    def ess(self, a: float, b: float, log_z: float) -> float:
        """(Σw)²/Σw², of which the second is a normaliser too, that of the doubled tilt."""
        s, d = self.full.sums, self._away(a, b)
        if not d.any():
            return s.w**2 / s.ww
        there, here = (
            self.sample.moments(np.array([2 * u]), np.array([2 * v]))
            for u, v in ((self.full.a, self.full.b), (a, b))
        )
        mean = np.array([s.wwx, s.wwy]) / s.ww / self.sample.scale - _means(there)
        squares = math.log(s.ww / s.rows) + 2 * s.shift / LOG2_E - 2 * float(mean @ d)
        squares += float(
            (log_z_at(here, 2 * a, 2 * b) - log_z_at(there, 2 * self.full.a, 2 * self.full.b))[0]
        )
        return s.rows * math.exp(2 * log_z - squares)

    def _away(self, a: float, b: float) -> Numbers:
        return np.array([a - self.full.a, b - self.full.b])


def _means(m: Moments) -> Numbers:
    return np.array([m.mean_x[0], m.mean_y[0]])


def _covariances(m: Moments) -> Numbers:
    return np.array([[m.var_x[0], m.cov_xy[0]], [m.cov_xy[0], m.var_y[0]]])


@np.errstate(over="ignore", invalid="ignore")  # a tilt without bounds
def log_z_at(moments: Moments, a: Any, b: Any) -> Numbers:
    return -(moments.kl + a * moments.mean_x + b * moments.mean_y)


def towards(at: At, a: float, b: float) -> tuple[float, float]:
    """The proposed tilt, or a point on the way where that is too far for the model to know."""
    share = min(1.0, LONGEST_STEP / max(abs(math.log(a / at.a)), 1e-300))
    return at.a * (a / at.a) ** share, at.b + share * (b - at.b)
