"""Data read chunk by chunk, tilted as `Tilting` tilts scores in memory (mathematics.md, "Passes over data").

Sums over chunks, parts and processes add up in their order.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch.distributed

from klball.adversary.solver import tilting
from klball.adversary.solver.tilting import PIECE, Moments, Numbers, Piece, Scores, Tilting, merged

Chunk = tuple[np.ndarray, np.ndarray | None]  # g and C of some rows, float32 or float64
Part = Callable[[], Iterable[Chunk]]  # a share of the data, read anew at every call

SAMPLE = 1 << 20  # rows, at the most, that say where to look: λ is good to about a per mille
SHARE = 1 << 16  # of them from one part
SAMPLED_PARTS = 64


class Survey(NamedTuple):
    """What every row has to say once: counts, a sum, the ties at the smallest g and Σ y there, extremes."""

    rows: float
    rows_with_c: float
    bad_g: float
    bad_c: float
    sum_x: float
    ties: float
    ties_y: float
    least_g: float
    least_c: float
    most_g: float
    most_c: float

    def check(self) -> None:
        """Raise ValueError if a score is no number, or some rows have no certainty."""
        columns = {"log_likelihood": self.bad_g, "certainty": self.bad_c}
        if counts := " and ".join(f"{name} has {bad:.0f}" for name, bad in columns.items() if bad):
            raise ValueError(f"{counts} missing, NaN or infinite values; drop or repair those samples first")
        if self.rows_with_c not in (0, self.rows):
            raise ValueError("some chunks have a certainty and others have none")


def _survey_of(g: Numbers, c: Numbers | None, x: Numbers, y: Numbers | None) -> Survey:
    tied, n, sum_x = g == g.min(), len(g), float(x.sum())
    bad_g = 0 if math.isfinite(sum_x) else n - int(np.isfinite(g).sum())
    with_c, bad_c, ties_y, least_c, most_c = 0, 0, 0.0, math.inf, -math.inf
    if c is not None and y is not None:
        bad_c = 0 if math.isfinite(y.sum()) else n - int(np.isfinite(c).sum())
        with_c, ties_y, least_c, most_c = n, y[tied].sum(), c.min(), c.max()
    ties = int(np.count_nonzero(tied))
    return Survey(n, with_c, bad_g, bad_c, sum_x, ties, ties_y, g.min(), least_c, g.max(), most_c)


def _joined(surveys: Sequence[Survey]) -> Survey:
    rows = np.array(surveys).reshape(-1, len(Survey._fields))
    ties = rows[rows[:, 7] == rows[:, 7].min(initial=math.inf), 5:7].sum(0)
    least, most = rows[:, 7:9].min(0, initial=math.inf), rows[:, 9:].max(0, initial=-math.inf)
    return Survey(*np.concatenate((rows[:, :5].sum(0), ties, least, most)).tolist())


class Data:
    """The data in the units of its sample, x = (g − g0)/width and likewise y, for Newton's iterations."""

    def __init__(self, parts: Sequence[Part], sample: tuple[Numbers, Numbers | None], sharded: bool):
        self.parts, self.sample, self.sharded = parts, sample, sharded
        (self.g0, self.width), (self.c0, self.c_width) = (
            (0.0, 1.0) if values is None else (float(np.median(values)), float(np.ptp(values)) or 1.0)
            for values in sample
        )
        self.num_passes = 0
        self.last: tuple[float, float, Moments] | None = None
        self.survey: Survey | None = None

    def sampled(self) -> Tilting:
        x, y = self._units(*self.sample)
        return Tilting(Scores(x - x.min() if y is None else x, y, None, None))

    def moments(self, a: Any, b: Any = 0.0) -> Moments:
        """One pass at a tilt, of which the first is a survey too."""
        a, b = float(np.squeeze(a)), float(np.squeeze(b))
        if self.last is not None and self.last[:2] == (a, b):
            return self.last[2]
        self.num_passes += 1
        surveys: list[Survey] = []
        own = [merged(sums) for part in self.parts if (sums := self._sums(part, a, b, surveys))]
        survey = _joined(surveys)
        if self.sharded:
            everyone = _everyones((own, survey))
            own = [sums for theirs, _ in everyone for sums in theirs]
            survey = _joined([theirs for _, theirs in everyone])
        self.survey = self.survey or survey
        total = merged(own) if own else np.full(9, math.nan)
        if not total[2] > 0:
            return Moments(*[math.nan] * len(Moments._fields))
        self.last = a, b, tilting.moments_of(total.tolist(), math.log(self.survey.rows), a, b)
        return self.last[2]

    def _sums(self, part: Part, a: float, b: float, surveys: list[Survey]) -> list[Numbers]:
        """The sums of the pieces of a part."""
        found = []
        for g, c in _chunks(part):
            for start in range(0, len(g), PIECE):
                own = g[start : start + PIECE], None if c is None else c[start : start + PIECE]
                x, y = self._units(*own)
                if self.survey is None:
                    surveys.append(_survey_of(*own, x, y))
                piece = Piece(slice(start, None), x, y)
                found.append(tilting.sums_of(piece, *tilting.exponentials(piece, a, b), 2 if b else 3))
        return found

    def _units(self, g: Numbers, c: Numbers | None) -> tuple[Numbers, Numbers | None]:
        x = _scaled(g, self.g0, self.width)
        return x, None if c is None else _scaled(c, self.c0, self.c_width)


def certainties(part: Part) -> Iterator[Chunk]:
    """C in the place of g."""
    return ((c, None) for _, c in _chunks(part) if c is not None)


def _chunks(part: Part) -> Iterator[Chunk]:
    for chunk in part():
        if not (isinstance(chunk, tuple | list | np.ndarray) and len(chunk) == 2):
            raise ValueError(
                "a chunk must be a pair of arrays, (log_likelihood, certainty) or (log_likelihood, None)"
            )
        for name, values in zip(("log_likelihood", "certainty"), chunk, strict=True):
            usable = isinstance(values, np.ndarray) and values.ndim == 1 and values.dtype.kind in "fiu"
            if not (usable or (values is None and name == "certainty")):
                raise ValueError(
                    f"{name} of a chunk must be a NumPy array [rows] of floats, not {_kind(values)}"
                )
        g, c = chunk
        if c is not None and len(c) != len(g):
            raise ValueError(f"a chunk has {len(g)} log-likelihoods and {len(c)} certainties")
        yield g, c


def _kind(values: Any) -> str:
    if isinstance(values, np.ndarray):
        return f"{list(values.shape)} of {values.dtype.name}"
    return type(values).__name__


def _scaled(values: Numbers, origin: float, width: float) -> Numbers:
    x = np.subtract(values, origin, dtype=np.float64)
    return np.divide(x, width, out=x) if width < 1e-290 else np.multiply(x, 1 / width, out=x)


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
    for g, c in _chunks(part):
        stride = max(1, len(g) // rows)
        columns = [column for column in (g, c) if column is not None]
        taken = np.stack([column[::stride][:rows].astype(np.float64) for column in columns])
        yield taken
        rows -= taken.shape[1]
        if rows <= 0:
            return
