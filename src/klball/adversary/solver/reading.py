"""Data read chunk by chunk, tilted as `Tilting` tilts scores in memory (mathematics.md, "Passes over data").

Sums over chunks, parts and processes add up in their order.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch.distributed

from klball.adversary.solver.tilting import (
    Moments,
    Numbers,
    Scores,
    Tilting,
    chunked,
    merged,
    moments_of,
    space_for,
    tilted_sums,
)

Chunk = tuple[np.ndarray, np.ndarray | None]  # g and C of some rows, float32 or float64
Part = Callable[[], Iterable[Chunk]]  # a share of the data, read anew at every call

SAMPLE = 1 << 20  # rows, at the most, that say where to look: λ is good to about a per mille
SHARE = 1 << 16  # of them from one part
SAMPLED_PARTS = 64


@dataclass
class Survey:
    """What every row has to say once: counts and sums, extremes, and the ties at the smallest g."""

    rows: int = 0
    rows_with_c: int = 0
    bad_g: int = 0
    bad_c: int = 0
    sum_x: float = 0.0
    least_g: float = math.inf
    most_g: float = -math.inf
    least_c: float = math.inf
    most_c: float = -math.inf
    ties: int = 0
    ties_y: float = 0.0  # Σ y over those

    def add(self, other: "Survey") -> None:
        if other.least_g <= self.least_g:
            kept = other.least_g == self.least_g
            self.ties, self.ties_y = other.ties + kept * self.ties, other.ties_y + kept * self.ties_y
        for name in ("rows", "rows_with_c", "bad_g", "bad_c", "sum_x"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.least_g, self.least_c = min(self.least_g, other.least_g), min(self.least_c, other.least_c)
        self.most_g, self.most_c = max(self.most_g, other.most_g), max(self.most_c, other.most_c)


def _survey_of(g: Numbers, c: Numbers | None, x: Numbers, y: Numbers | None) -> Survey:
    tied = g == g.min()
    found = Survey(rows=len(g), sum_x=float(x.sum()), least_g=float(g.min()), most_g=float(g.max()))
    found.ties, check = int(tied.sum()), found.sum_x
    if c is not None and y is not None:
        found.rows_with_c, found.ties_y, check = len(g), float(y[tied].sum()), check + float(y.sum())
        found.least_c, found.most_c = float(c.min()), float(c.max())
    if not math.isfinite(check):
        found.bad_g = int(np.count_nonzero(~np.isfinite(g)))
        found.bad_c = 0 if c is None else int(np.count_nonzero(~np.isfinite(c)))
    return found


class Data:
    """The data in the units of its sample, x = (g − g0)/width and likewise y, for Newton's iterations."""

    def __init__(self, parts: Sequence[Part], sample: tuple[Numbers, Numbers | None], sharded: bool):
        self.parts, self.sample, self.sharded = parts, sample, sharded
        (self.g0, self.width), (self.c0, self.c_width) = (
            (0.0, 1.0) if values is None else (float(np.median(values)), float(np.ptp(values)) or 1.0)
            for values in sample
        )
        self.num_passes, self.space, self.memory = 0, space_for([]), np.empty((2, 0))
        self.last: tuple[float, float, Moments] | None = None
        self.survey: Survey | None = None

    def sampled(self) -> Tilting:
        g, c = self.sample
        x, y = self._units(g, c)
        return Tilting(
            Scores(x - x.min() if y is None else x.copy(), None if y is None else y.copy(), None, None)
        )

    @np.errstate(over="ignore", invalid="ignore")  # scores that are no numbers are counted
    def moments(self, a: Any, b: Any = 0.0) -> Moments:
        """One pass at a tilt, of which the first is a survey too."""
        a, b = float(np.squeeze(a)), float(np.squeeze(b))
        if self.last is not None and self.last[:2] == (a, b):
            return self.last[2]
        self.num_passes += 1
        survey = Survey()
        sums = (self._sums(part, a, b, survey if self.survey is None else None) for part in self.parts)
        found = [merged(np.array(own).T) for own in sums if own]
        if self.sharded:
            everyone = _everyones((found, survey))
            found, survey = [own for theirs, _ in everyone for own in theirs], Survey()
            for _, other in everyone:
                survey.add(other)
        self.survey = self.survey or survey
        total = merged(np.array(found).T) if found else np.full(9, math.nan)
        if not total[1] > 0:
            return Moments(*[math.nan] * len(Moments._fields))
        self.last = a, b, moments_of(total.tolist(), math.log(self.survey.rows), a, b)
        return self.last[2]

    def _sums(self, part: Part, a: float, b: float, survey: Survey | None) -> list[Numbers]:
        """The sums of the pieces of a part."""
        found: list[Numbers] = []
        for g, c in part():
            if c is not None and len(c) != len(g):
                raise ValueError(f"a chunk has {len(g)} log-likelihoods and {len(c)} certainties")
            if not len(g):
                continue
            x, y = self._units(g, c)
            if survey is not None:
                survey.add(_survey_of(g, c, x, y))
            chunks = chunked(x, y, None)
            if self.space.shape[1] < chunks[0][0].size:
                self.space = space_for(chunks)
            sums = (tilted_sums(chunk, a, b, self.space, shifted=True) for chunk in chunks)
            found += [row for own in sums for row in own.reshape(9, -1).T]
        return found

    def _units(self, g: Numbers, c: Numbers | None) -> tuple[Numbers, Numbers | None]:
        """x and y, in memory that the next call takes again."""
        if self.memory.shape[1] < len(g):
            self.memory = np.empty((2, len(g)))
        x, y = self.memory[:, : len(g)]
        for values, out, origin, width in ((g, x, self.g0, self.width), (c, y, self.c0, self.c_width)):
            if values is not None:
                np.subtract(values, origin, dtype=np.float64, out=out)
                np.divide(out, width, out=out) if width < 1e-290 else np.multiply(out, 1 / width, out=out)
        return x, None if c is None else y


def _everyones(values: Any) -> list[Any]:
    """What all processes have, in rank order, to the bit; the same list everywhere."""
    gathered: list[Any] = [values] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, values)
    return gathered


def sample_of(parts: Sequence[Part], sharded: bool) -> tuple[Numbers, Numbers | None]:
    """Finite scores from evenly spaced parts of all processes, the same everywhere."""
    processes = torch.distributed.get_world_size() if sharded else 1
    spread = np.unique(np.linspace(0, len(parts) - 1, min(len(parts), SAMPLED_PARTS)).round().astype(int))
    share = min(math.ceil(SAMPLE / processes / max(len(spread), 1)), SHARE)
    taken = [rows for index in spread.tolist() for rows in _first_rows(parts[index], share)]
    if sharded:
        taken = [rows for own in _everyones(taken) for rows in own]
    if not any(rows.size for rows in taken):
        raise ValueError("there are no rows")
    if len({len(rows) for rows in taken}) > 1:
        raise ValueError("some chunks have a certainty and others have none")
    both = np.concatenate(taken, axis=1)
    finite = np.isfinite(both).all(axis=0)
    both = both[:, finite] if finite.any() else np.zeros((len(both), 1))  # a pass will count what is wrong
    return both[0], both[1] if len(both) == 2 else None


def _first_rows(part: Part, rows: int) -> Iterator[Numbers]:
    """About the first `rows` rows, thinned where the first chunk has many more."""
    for g, c in part():
        stride = max(1, len(g) // rows)
        taken = np.stack(
            [column[::stride][:rows].astype(np.float64) for column in (g, c) if column is not None]
        )
        yield taken
        rows -= taken.shape[1]
        if rows <= 0:
            return
