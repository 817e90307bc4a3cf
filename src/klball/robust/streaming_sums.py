r"""Sums over data that is read anew in every pass: what the streamed dual solver asks of a chunk.

For a tilt (a, b) and an origin (g₀, C₀), with x = g − g₀ and y = C − C₀, every block of rows gives

    Σ w·(1, x, x², y, xy, y²)  and  Σ w²·(1, x, y),    w = 2^(−(a·x + b·y)·log₂e − shift)

and a survey Σ w·(x³, x²y, xy², y³) too. Blocks, parts and processes are merged in their order, so threads do
not change a bit of the result.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch.distributed

from klball.robust.tilting import LOG2_E, Numbers

Chunk = tuple[np.ndarray, np.ndarray | None]  # g and C of some rows, float32 or float64
Part = Callable[[], Iterable[Chunk]]  # a share of the data, read anew at every call

ROWS, COLUMNS = 8, 8_192  # of a block; threads wait for the interpreter's lock if blocks are shorter


class Sums(NamedTuple):
    """The sums of some rows, as plain numbers; `shift` is in units of log 2."""

    shift: float
    w: float = 0.0
    wx: float = 0.0
    wxx: float = 0.0
    wy: float = 0.0
    wxy: float = 0.0
    wyy: float = 0.0
    ww: float = 0.0
    wwx: float = 0.0
    wwy: float = 0.0
    rows: float = 0.0
    rows_with_c: float = 0.0
    bad_g: float = 0.0
    bad_c: float = 0.0
    # only from a survey
    wxxx: float = 0.0
    wxxy: float = 0.0
    wxyy: float = 0.0
    wyyy: float = 0.0
    sum_x: float = 0.0
    least_g: float = math.inf
    most_g: float = -math.inf
    ties: float = 0.0  # rows with g = least_g
    ties_y: float = 0.0  # Σ y over those
    least_c: float = math.inf
    most_c: float = -math.inf


COUNTS = ("rows", "rows_with_c", "bad_g", "bad_c", "sum_x")
WEIGHTED = ("w", "wx", "wxx", "wy", "wxy", "wyy", "wxxx", "wxxy", "wxyy", "wyyy")
SQUARED = ("ww", "wwx", "wwy")


@dataclass(frozen=True)
class Tilt:
    """Where the sums are taken."""

    a: float
    b: float
    origin: tuple[float, float]
    bound: bool = True  # whether E[C] is bounded: its own variance matters only then
    survey: bool = False  # third moments too, extremes, and ties where g is `least_g` or less
    least_g: float = math.inf


def sum_parts(parts: Sequence[Part], tilt: Tilt, threads: int, sharded: bool = False) -> Sums:
    """One pass over all parts, and over those of the other processes if the data is `sharded`."""
    if threads == 1 or len(parts) == 1:
        merged = merge([_sum_part(part, tilt) for part in parts])
    else:
        with ThreadPoolExecutor(threads) as pool:
            merged = merge(list(pool.map(lambda part: _sum_part(part, tilt), parts)))
    return merge([Sums(*row) for row in everyones(np.array(merged))]) if sharded else merged


def everyones(values: Any) -> list[Any]:
    """What all processes have, in rank order, to the bit; the same list everywhere."""
    gathered: list[Any] = [values] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, values)
    return gathered


def merge(sums: Sequence[Sums]) -> Sums:
    """The sums over several sets of rows, brought to the largest of their scales."""
    if not sums:
        return Sums(0.0)
    columns = Sums(*np.array(sums).T)
    top = float(np.max(columns.shift))
    scale = np.exp2(columns.shift - top)
    total = {name: float(np.sum(getattr(columns, name))) for name in COUNTS}
    total |= {name: float(scale @ getattr(columns, name)) for name in WEIGHTED}
    total |= {name: float(scale**2 @ getattr(columns, name)) for name in SQUARED}
    lowest = columns.least_g == np.min(columns.least_g)
    return Sums(
        shift=top,
        **total,
        least_g=float(np.min(columns.least_g)),
        most_g=float(np.max(columns.most_g)),
        ties=float(np.sum(columns.ties, where=lowest)),
        ties_y=float(np.sum(columns.ties_y, where=lowest)),
        least_c=float(np.min(columns.least_c)),
        most_c=float(np.max(columns.most_c)),
    )


def _sum_part(part: Part, tilt: Tilt) -> Sums:
    space = np.empty((6, ROWS, COLUMNS))
    return merge([_sum_block(g, c, tilt, space) for g, c in _blocks(part())])


def _blocks(chunks: Iterable[Chunk]) -> Iterator[Chunk]:
    """The rows as [≤ ROWS, ≤ COLUMNS] arrays."""
    for g, c in chunks:
        if c is not None and len(c) != len(g):
            raise ValueError(f"a chunk has {len(g)} log-likelihoods and {len(c)} certainties")
        start = 0
        while start < len(g):
            rows = ROWS if len(g) - start >= ROWS * COLUMNS else 1
            size = min(rows * COLUMNS, len(g) - start)
            chosen = slice(start, start + size)
            yield g[chosen].reshape(rows, -1), None if c is None else c[chosen].reshape(rows, -1)
            start += size


def _sum_block(g: np.ndarray, c: np.ndarray | None, tilt: Tilt, space: Numbers) -> Sums:
    own = space[:, : g.shape[0], : g.shape[1]]
    sums = _weighted(g, c, tilt, own)
    if not math.isfinite(sum(sums[:10])):  # an overflow, or scores that are no numbers
        bad_g = int(np.count_nonzero(~np.isfinite(g)))
        bad_c = 0 if c is None else int(np.count_nonzero(~np.isfinite(c)))
        if bad_g or bad_c:
            return Sums(0.0, rows=g.size, bad_g=bad_g, bad_c=bad_c)
        sums = _weighted(g, c, tilt, own, rescaled=True)
    return sums._replace(**_survey(g, c, tilt, own)) if tilt.survey else sums


@np.errstate(over="ignore", invalid="ignore")  # the caller looks at the sums
def _weighted(
    g: np.ndarray, c: np.ndarray | None, tilt: Tilt, space: Numbers, rescaled: bool = False
) -> Sums:
    """The sums of one block; `rescaled` takes its own largest exponent for the shift."""
    x, y, w, wx, wy, extra = space
    shift = _weights(g, c, tilt, space, rescaled)
    np.multiply(w, x, out=wx)
    sums = dict(w=_sum(w), wx=_sum(wx), wxx=_dot(wx, x), ww=_dot(w, w), wwx=_dot(w, wx), rows=g.size)
    if c is not None:
        np.multiply(w, y, out=wy)
        sums |= dict(wy=_sum(wy), wxy=_dot(wx, y), wwy=_dot(w, wy), rows_with_c=g.size)
        if tilt.bound:
            sums |= dict(wyy=_dot(wy, y))
    if tilt.survey:
        wxx = np.multiply(wx, x, out=extra)
        sums |= dict(wxxx=_dot(wxx, x), wxxy=0.0 if c is None else _dot(wxx, y))
        if c is not None and tilt.bound:
            wyy = np.multiply(wy, y, out=extra)
            sums |= dict(wxyy=_dot(wyy, x), wyyy=_dot(wyy, y))
    return Sums(shift, **{name: float(value) for name, value in sums.items()})


def _weights(g: np.ndarray, c: np.ndarray | None, tilt: Tilt, space: Numbers, rescaled: bool) -> float:
    """x, y and w into the first of the buffers; the shift of w."""
    x, y, w, *_, extra = space
    np.subtract(g, tilt.origin[0], out=x, dtype=np.float64)
    np.multiply(x, -LOG2_E * tilt.a, out=w)
    if c is not None:
        np.subtract(c, tilt.origin[1], out=y, dtype=np.float64)
        if tilt.b != 0:
            w += np.multiply(y, -LOG2_E * tilt.b, out=extra)
    shift = float(w.max()) if rescaled else 0.0
    if shift != 0:
        w -= shift
    np.exp2(w, out=w)
    return shift


def _sum(values: Numbers) -> float:
    """Σ values; einsum is a third faster than NumPy's own sum."""
    return float(np.einsum("ij->i", values).sum())


def _dot(left: Numbers, right: Numbers) -> float:
    """Σ left·right; unlike BLAS, einsum leaves the interpreter's lock to other threads."""
    return float(np.einsum("ij,ij->i", left, right).sum())


def _survey(g: np.ndarray, c: np.ndarray | None, tilt: Tilt, space: Numbers) -> dict[str, float]:
    """Extremes, and the rows at the smallest g; `space` is as `_weighted` left it."""
    x, y, *_ = space
    found = dict(sum_x=_sum(x), least_g=float(g.min()), most_g=float(g.max()))
    if found["least_g"] <= tilt.least_g:
        tied = g == found["least_g"]
        found |= dict(ties=float(np.count_nonzero(tied)), ties_y=float(y.sum(where=tied)))
    return found if c is None else found | dict(least_c=float(c.min()), most_c=float(c.max()))
