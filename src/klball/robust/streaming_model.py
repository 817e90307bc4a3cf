r"""What a sample says about data that is read in passes, and how a pass corrects it.

With A = log Z and the sample's A_S, the model

    Â(a,b) = A_S(a,b) + value, gradient and Hessian of (A − A_S) at the tilt of the last pass

is exact there to second order, and errs in the third by no more than the sample does.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from klball.robust.dual import SMALLEST_RANGE
from klball.robust.newton import LONGEST_STEP
from klball.robust.streaming_sums import Part, Sums, Tilt, everyones, sum_parts
from klball.robust.tilting import LOG2_E, Moments, Numbers

SAMPLE = 1 << 17  # rows that say where to look: λ is good to about a per cent
SAMPLED_PARTS = 16
FAR = 200  # powers of two that sums of squares have room for, so that no shift is needed


def sample_of(parts: Sequence[Part], sharded: bool) -> tuple[Numbers, Numbers | None]:
    """Finite scores from evenly spaced parts of all processes, the same everywhere."""
    processes = torch.distributed.get_world_size() if sharded else 1
    wanted = math.ceil(SAMPLE / processes)
    spread = np.linspace(0, len(parts) - 1, min(len(parts), SAMPLED_PARTS)).round().astype(int).tolist()
    taken: list[Numbers] = []
    for i in dict.fromkeys((*spread, *range(len(parts)))):  # small parts: more of them, or all
        if (left := wanted - sum(rows.shape[1] for rows in taken)) <= 0:
            break
        taken += _first_rows(parts[i], min(left, math.ceil(wanted / len(spread))))
    everything = [rows for own in everyones(taken) for rows in own] if sharded else taken
    if not any(rows.size for rows in everything):
        raise ValueError("there are no rows")
    if len({len(rows) for rows in everything}) > 1:
        raise ValueError("some chunks have a certainty and others have none")
    both = np.concatenate(everything, axis=1)
    both = both[:, np.isfinite(both).all(axis=0)]
    if both.shape[1] == 0:  # the first pass will count what is wrong
        both = np.zeros((len(both), 1))
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
    """What a pass at the tilt (a, b) found."""

    a: float
    b: float
    moments: Moments
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
        self.scale = _range(g), 1.0 if c is None else _range(c)
        self.num_passes = 0

    def sampled(self) -> "Data":
        """The sample alone, in the same units."""
        g, c = self.sample
        return Data([lambda: [(g, c)]], self.sample, self.bound, 1, False)

    @np.errstate(over="ignore", invalid="ignore")  # Newton's iterations turn back from tilts that overflow
    def at(self, a: float, b: float, survey: bool = False) -> At:
        """One pass at the tilt (a, b)."""
        self.num_passes += 1
        raw_a, raw_b = a / self.scale[0], b / self.scale[1]
        tilt = Tilt(
            a=raw_a,
            b=raw_b,
            shift=self._largest_exponent(raw_a, raw_b),
            origin=self.origin,
            bound=self.bound,
            survey=survey,
            least_g=float(self.sample[0].min()),
        )
        sums = sum_parts(self.parts, tilt, self.threads, self.sharded)
        return At(a, b, self._moments(sums, a, b), sums)

    def moments(self, a: Numbers, b: Numbers | None = None) -> Moments:
        """The same as Newton's iterations ask for it; all [1]."""
        return self.at(float(a[0]), 0.0 if b is None else float(b[0])).moments

    def _largest_exponent(self, a: float, b: float) -> float:
        """Over the sample, in units of log 2: near enough to that of all data."""
        g, c = self.sample
        exponents = (self.origin[0] - g) * a
        if c is not None and b != 0:
            exponents += (self.origin[1] - c) * b
        largest = LOG2_E * float(exponents.max())
        return largest if FAR < abs(largest) < math.inf else 0.0

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


def _range(scores: Numbers) -> float:
    width = float(np.ptp(scores))
    return width if width > SMALLEST_RANGE else 1.0


class Model:
    """The sample, corrected to agree with the data to second order at the tilt of a pass."""

    def __init__(self, sample: Data, full: At):
        self.sample, self.full = sample, full
        self.there = sample.at(full.a, full.b).moments

    def moments(self, a: Numbers, b: Numbers | None = None) -> Moments:
        b = np.zeros(1) if b is None else b
        s, f, s0 = self.sample.moments(a, b), self.full.moments, self.there
        da, db = a - self.full.a, b - self.full.b
        x, y = f.mean_x - s0.mean_x, f.mean_y - s0.mean_y
        xx, xy, yy = f.var_x - s0.var_x, f.cov_xy - s0.cov_xy, f.var_y - s0.var_y
        log_z = (
            log_z_at(s, a, b) + log_z_at(f, self.full.a, self.full.b) - log_z_at(s0, self.full.a, self.full.b)
        )
        log_z = log_z - x * da - y * db + (xx * da**2 + 2 * xy * da * db + yy * db**2) / 2
        mean_x = s.mean_x + x - xx * da - xy * db
        mean_y = s.mean_y + y - xy * da - yy * db
        return Moments(
            kl=-log_z - a * mean_x - b * mean_y,
            mean_x=mean_x,
            mean_y=mean_y,
            var_x=np.maximum(s.var_x + xx, 0.0),
            cov_xy=s.cov_xy + xy,
            var_y=np.maximum(s.var_y + yy, 0.0),
        )


def log_z_at(moments: Moments, a: Any, b: Any) -> Numbers:
    return -(moments.kl + a * moments.mean_x + b * moments.mean_y)


def towards(at: At, a: float, b: float) -> tuple[float, float]:
    """The proposed tilt, or a point on the way where that is too far for the model to know."""
    share = min(1.0, LONGEST_STEP / max(abs(math.log(a / at.a)), 1e-300))
    return at.a * (a / at.a) ** share, at.b + share * (b - at.b)
