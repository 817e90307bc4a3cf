"""Arrays [rounds, n] worked on block by block, on torch's number of threads, without depending on it.

NumPy works on a block, because torch would divide it over threads of its own: those wait for one another
in every call, which can cost more than the arithmetic, and add up in an order that depends on their
number. Here whole blocks go to threads, and what they leave is combined in the order of the blocks. A block
is as long as it is because threads that ask for the interpreter's lock too often wait for it. Sums over
long blocks come in pieces, for accuracy, and because BLAS would divide them. Arrays are contiguous float64.
"""

import math
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import accumulate, pairwise
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

PIECE = 9_984  # BLAS divides dot products of more than 10,000 terms over its threads
BLOCK = 16 * PIECE
CHUNK = 128 * PIECE  # for what is done with a single call
PARALLEL = 1 << 18  # elements from which waking threads pays

Numbers = np.ndarray  # one number a round: [rounds]; small enough that NumPy's overhead matters least
T = TypeVar("T")

_own = threading.local()


def each_block(work: Callable[..., T], *arrays: Tensor | None, buffers: int = 0) -> list[T]:
    """`work(rows, *blocks, space)` for every block of the arrays; results in the order of `block_rows`.

    `rows` is the slice of the rounds that a block holds, `space` memory for [buffers, *block] that is
    kept, since fresh memory costs more than the arithmetic done in it; without `buffers` there is none.
    """
    (rounds, n), rows = _shape(arrays), block_rows(_shape(arrays))
    cuts = [[None] * len(rows) if array is None else _cut(array) for array in arrays]

    def some(numbers: Sequence[int]) -> list[T]:
        shape, space, done = (0, 0), (), []
        for k in numbers:
            blocks = [cut[k] for cut in cuts]
            if buffers and (needed := _shape(blocks)) != shape:
                shape, space = needed, (_space(needed, buffers),)
            done.append(work(rows[k], *blocks, *space))
        return done

    if rounds * n < PARALLEL or n <= PIECE:  # for many short rounds the calls between blocks cost too much
        return some(range(len(rows)))
    length = min(2, math.ceil(len(rows) / (2 * torch.get_num_threads())))
    stretches = [range(k, min(k + length, len(rows))) for k in range(0, len(rows), length)]
    return [result for part in in_threads(some, stretches) for result in part]


def block_rows(shape: tuple[int, int]) -> list[slice]:
    """Which rounds each block holds: several whole rounds where they fit, else part of one."""
    rounds, n = shape
    if n > PIECE:
        return [slice(r, r + 1) for r in range(rounds) for _ in _widths(n)]
    size = BLOCK // n
    return [slice(r, min(r + size, rounds)) for r in range(0, rounds, size)]


def _cut(array: Tensor) -> list[Numbers]:
    values, n = array.numpy(), array.shape[1]
    if n <= PIECE:
        return [values[rows] for rows in block_rows(values.shape)]
    ends = list(accumulate(_widths(n), initial=0))
    return [values[r : r + 1, start:end] for r in range(len(values)) for start, end in pairwise(ends)]


def _widths(n: int) -> list[int]:
    """Of the blocks of one long round."""
    return [BLOCK] * (n // BLOCK) + [n % BLOCK] * (n % BLOCK > 0)


def _shape(arrays: Sequence[Any]) -> tuple[int, int]:
    first = next(array for array in arrays if array is not None)
    return first.shape[0], first.shape[1]


def in_threads(work: Callable[[Any], T], pieces: Sequence[Any]) -> list[T]:
    """`work` of every piece, in their order, on torch's number of threads, of which the caller's is one."""
    helpers = min(torch.get_num_threads(), len(pieces)) - 1
    if helpers < 1:
        return [work(piece) for piece in pieces]
    numbers = iter(range(len(pieces)))  # shared: whoever is ready takes the next

    def some() -> list[tuple[int, T]]:
        return [(k, work(pieces[k])) for k in numbers]

    futures = [_pool(helpers).submit(some) for _ in range(helpers)]
    done = some()
    for future in futures:
        done += future.result()
    return [result for _, result in sorted(done, key=lambda pair: pair[0])]


@cache
def _pool(helpers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(helpers, thread_name_prefix="klball")


os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not survive a fork


def _space(shape: tuple[int, int], buffers: int) -> Numbers:
    """This thread's own memory, [buffers, *shape]."""
    if not hasattr(_own, "memory"):
        _own.memory = np.empty((5, BLOCK))
    return _own.memory[:buffers, : shape[0] * shape[1]].reshape(-1, *shape)


def empty_like(x: Tensor) -> Tensor:
    """Memory of that shape, whatever is in it.

    NumPy asks for huge pages, without which page faults outweigh the arithmetic; one thread takes all of
    the faults here, because threads that have them at the same time wait for each other.
    """
    memory = np.empty(x.shape)
    memory.reshape(-1)[:: 4096 // memory.itemsize] = 0.0
    return torch.from_numpy(memory)


def block_dots(left: Numbers, right: Numbers) -> Numbers:
    """Σ_i left·right of every row of a block [rows, n]."""
    n = left.shape[1]
    if n <= PIECE:
        return np.vecdot(left, right)
    whole = n // PIECE * PIECE
    both = left[0, :whole].reshape(-1, PIECE), right[0, :whole].reshape(-1, PIECE)
    # vecdot is the faster, but it holds the interpreter's lock, which matters where threads are at work
    dots = np.vecdot(*both) if n < BLOCK else np.einsum("ij,ij->i", *both)
    return np.array([dots.sum() + np.vecdot(left[0, whole:], right[0, whole:])])


def block_sums(values: Numbers) -> Numbers:
    """Σ_i of every row of a block [rows, n]; einsum is a third faster than NumPy's own sum."""
    n = values.shape[1]
    if n <= PIECE:
        return np.einsum("ij->i", values)
    whole = n // PIECE * PIECE
    parts = np.einsum("ij->i", values[0, :whole].reshape(-1, PIECE))
    return np.array([parts.sum() + values[0, whole:].sum()])


def row_extremes(x: Tensor) -> tuple[Numbers, Numbers, Numbers]:
    """The smallest and the largest of every row, NaN where one is NaN, and a bound on the number of ties.

    Only blocks with the same smallest can hold ties; a row within one block has the bound n. All [rounds].
    """
    least, most, ties = (np.full(len(x), start) for start in (math.inf, -math.inf, 0.0))
    rows = block_rows((x.shape[0], x.shape[1]))
    found = each_block(lambda _, block: (block.min(axis=1), block.max(axis=1), block.shape[1]), x)
    for own, (low, high, _) in zip(rows, found, strict=True):
        least[own], most[own] = np.minimum(least[own], low), np.maximum(most[own], high)
    for own, (low, _, size) in zip(rows, found, strict=True):
        ties[own] += np.where(low == least[own], size, 0)
    return least, most, ties


def row_sums(x: Tensor) -> Numbers:
    """Σ_i x of every row, [rounds]."""
    return _chunked(block_sums, x).sum(axis=1)


def row_dots(left: Tensor, right: Tensor) -> Numbers:
    """Σ_i left·right of every row, [rounds]."""
    return _chunked(block_dots, left, right).sum(axis=1)


def row_means(x: Tensor, base: Tensor | None) -> Numbers:
    """E_f[x] of every row, [rounds]."""
    return row_sums(x) / x.shape[1] if base is None else row_dots(x, base)


def _chunked(reduce: Callable[..., Numbers], *arrays: Tensor) -> Numbers:
    """`reduce(*chunks)` of every chunk of every round, [rounds, chunks]."""
    rounds, n = arrays[0].shape
    data = [array.numpy() for array in arrays]
    if n <= PIECE or (rounds == 1 and n <= CHUNK):
        return reduce(*data)[:, None]
    places = [(slice(r, r + 1), slice(c, c + CHUNK)) for r in range(rounds) for c in range(0, n, CHUNK)]
    parts = in_threads(lambda place: reduce(*(array[place] for array in data)), places)
    return np.concatenate(parts).reshape(rounds, -1)
