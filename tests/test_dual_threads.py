"""Threads change nothing but the time: every number of the dual is the same, bit for bit."""

import os
import threading

import numpy as np
import pytest
import torch

from klball import solve_dual
from klball.robust.blocks import BLOCK, CHUNK, PIECE, each_block, row_dots, row_extremes, row_means, row_sums

SIZES = ((1, 1), (3, 7), (2, PIECE), (2, PIECE + 1), (1, BLOCK + 5), (1, CHUNK + PIECE + 3), (40, 9_000))


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("shape", SIZES)
def test_sums_over_rows(shape):
    rng = np.random.default_rng(0)
    x, f = rng.normal(size=shape), rng.random(shape)
    a, b = torch.from_numpy(x), torch.from_numpy(f)
    assert row_sums(a) == pytest.approx(x.sum(1), rel=1e-12, abs=1e-12)
    assert row_dots(a, b) == pytest.approx((x * f).sum(1), rel=1e-12, abs=1e-12)
    assert row_means(a, None) == pytest.approx(x.mean(1), rel=1e-12, abs=1e-12)
    low, high, ties = row_extremes(a)
    assert (low == x.min(1)).all() and (high == x.max(1)).all()
    assert (ties >= 1).all() and (ties <= min(shape[1], BLOCK)).all()
    tied = torch.from_numpy(np.floor(x))
    assert (row_extremes(tied)[2] >= (tied == tied.amin(1, keepdim=True)).sum(1).numpy()).all()


@pytest.mark.parametrize("shape", SIZES)
def test_blocks_cover_the_array_once(shape):
    x = torch.zeros(shape, dtype=torch.float64)
    each_block(lambda rows, block: np.add(block, 1, out=block), x)
    assert bool((x == 1).all())


CASES = {
    "ball": (400_000, {"epsilon": 0.05}),
    "large radius": (400_000, {"epsilon": 3.0}),
    "base weights": (300_000, {"epsilon": 0.3, "base_weights": True}),
    "certainty": (300_000, {"epsilon": 0.3, "gamma": 14.4}),
}


@pytest.mark.parametrize("name", CASES)
def test_the_number_of_threads_changes_no_bit(name, threads):
    n, arguments = CASES[name]
    rng = np.random.default_rng(1)
    g = torch.from_numpy(-rng.gamma(2, 1, n))
    c = 14 - 0.5 * g + torch.from_numpy(rng.normal(size=n))
    arguments = dict(arguments)
    if "base_weights" in arguments:
        arguments["base_weights"] = torch.from_numpy(rng.random(n))
    solutions = []
    for count in (1, 2, 3):
        threads(count)
        solutions.append(solve_dual(g, c, **arguments))
    assert solutions[0].gap < 1e-9
    for other in solutions[1:]:
        for field in ("lambda_", "beta", "mu", "kl", "worst_case", "certainty", "ess"):
            assert getattr(other, field) == getattr(solutions[0], field), field
        assert torch.equal(other.weights, solutions[0].weights)


def test_groups_of_rounds_change_no_bit(threads):
    rng = np.random.default_rng(2)
    g = rng.normal(size=(200, 1_000))
    c = 14 - 0.7 * g + rng.normal(size=g.shape)
    threads(1)
    one = solve_dual(g, c, epsilon=0.5, gamma=14.2)
    threads(2)
    two = solve_dual(g, c, epsilon=0.5, gamma=14.2)
    for field in ("lambda_", "beta", "worst_case", "weights"):
        assert (getattr(one, field) == getattr(two, field)).all(), field


def test_small_problems_wake_no_thread(threads):
    threads(2)
    before = threading.active_count()
    solve_dual(np.random.default_rng(3).normal(size=1_000), epsilon=0.1)
    assert threading.active_count() == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:This process")
def test_a_forked_process_has_threads_of_its_own(threads):
    threads(2)
    g = -np.random.default_rng(4).gamma(2, 1, 300_000)
    expected = solve_dual(g, epsilon=0.1).lambda_
    child = os.fork()
    if child == 0:
        os._exit(0 if solve_dual(g, epsilon=0.1).lambda_ == expected else 1)
    assert os.waitpid(child, 0)[1] == 0
