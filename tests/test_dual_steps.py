"""The steps of the dual solver one by one: moments, Taylor series, and what they say of their own error."""

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from scipy.special import logsumexp, softmax

from klball import solve_dual
from klball.robust import newton
from klball.robust.blocks import BLOCK, PIECE, block_dots, block_sums
from klball.robust.streaming_model import Data, Model
from klball.robust.tilting import Tilting


def scores(kind, n, rng):
    g = {
        "gamma": lambda: -rng.gamma(2, 1, n),
        "normal": lambda: rng.normal(size=n),
        "mixture": lambda: -np.where(rng.random(n) < 0.01, 5 + rng.gamma(2, 2, n), rng.gamma(1, 0.5, n)),
        "uniform": lambda: rng.random(n),
    }[kind]()
    return g, 15 - 0.8 * (g - g.mean()) / g.std() + 0.8 * rng.normal(size=n)


def statistics(x, y, a, b):
    """log Z, means, covariances and third central moments under q ∝ exp(−ax − by), directly."""
    z = np.stack((x, y))
    exponents = -a * x - b * y
    q = softmax(exponents)
    mean = z @ q
    d = z - mean[:, None]
    covariance = (q * d) @ d.T
    third = np.einsum("n,in,jn,kn->ijk", q, d, d, d)
    return logsumexp(exponents) - np.log(len(x)), mean, covariance, third


def data_of(g, c, share, parts=7):
    """All rows in parts, and a sample of the first `share` of them."""
    rows = np.array_split(np.arange(len(g)), parts)
    sample = g[: int(share * len(g))], c[: int(share * len(g))]
    return Data([lambda own=own: [(g[own], c[own])] for own in rows], sample, True, 1, False)


def in_units(data, g, c):
    return (g - data.origin[0]) / data.scale[0], (c - data.origin[1]) / data.scale[1]


@pytest.mark.parametrize("tilt", [(0.0, 0.0), (3.0, 0.0), (4.0, 1.5), (900.0, 700.0)])
def test_a_pass_finds_three_moments(tilt):
    g, c = scores("gamma", 3_000, np.random.default_rng(0))
    data = data_of(g, c, 0.1)
    at = data.at(*tilt)
    log_z, mean, covariance, third = statistics(*in_units(data, g, c), *tilt)
    m = at.moments
    kl = -log_z - np.dot(tilt, mean)
    assert m.kl[0] == pytest.approx(kl, abs=1e-12 * max(1.0, *tilt))
    assert np.array([m.mean_x[0], m.mean_y[0]]) == pytest.approx(mean, abs=1e-13)
    found = np.array([[m.var_x[0], m.cov_xy[0]], [m.cov_xy[0], m.var_y[0]]])
    assert found == pytest.approx(covariance, rel=1e-9, abs=1e-14)
    assert at.third == pytest.approx(third, rel=1e-6, abs=1e-14)


@pytest.mark.parametrize("kind", ["gamma", "normal", "mixture", "uniform"])
def test_the_model_errs_in_the_fourth_order_and_says_so(kind):
    g, c = scores(kind, 200_000, np.random.default_rng(1))
    data = data_of(g, c, 0.1)
    x, y = in_units(data, g, c)
    a, b = 2.0, 0.5
    model = Model(data.sampled(), data.at(a, b))
    errors = []
    for step in (0.4, 0.2):
        there = a + step, b - step / 2
        log_z, mean, covariance, _ = statistics(x, y, *there)
        m = model.moments(*(np.array([t]) for t in there))
        off = np.array([m.mean_x[0], m.mean_y[0]]) - mean
        errors.append(np.abs(off).max())
        assert m.kl[0] == pytest.approx(-log_z - np.dot(there, mean), abs=10 * errors[-1])
        assert m.var_x[0] == pytest.approx(covariance[0, 0], abs=30 * errors[-1] / step)
        assert errors[-1] <= model.error(*there, np.ones(2)), (kind, step)
    assert errors[1] < errors[0] / 5  # (1/2)³ but for the next order


def test_the_effective_sample_size_of_the_model():
    g, c = scores("gamma", 200_000, np.random.default_rng(2))
    data = data_of(g, c, 0.2)
    x, y = in_units(data, g, c)
    model = Model(data.sampled(), data.at(2.0, 0.5))
    for there in ((2.0, 0.5), (2.05, 0.48)):
        exponents = -there[0] * x - there[1] * y
        ess = 1 / (softmax(exponents) ** 2).sum()
        log_z = logsumexp(exponents) - np.log(len(x))
        assert model.ess(*there, log_z) == pytest.approx(ess, rel=1e-12 if there[0] == 2.0 else 1e-5)


@pytest.mark.parametrize("kind", ["gamma", "normal", "mixture", "uniform"])
@pytest.mark.parametrize("epsilon", [0.05, 0.5, 2.0])
def test_the_fourth_order_step_is_as_exact_as_it_says(kind, epsilon):
    g, _ = scores(kind, 20_000, np.random.default_rng(3))
    x = (g - g.min()) / np.ptp(g)
    tilting = Tilting(torch.from_numpy(x)[None], None, None, None)

    def excess(log_a):
        a = np.exp(log_a)
        log_z, mean, *_ = statistics(x, np.zeros_like(x), a, 0.0)
        return -log_z - a * mean[0] - epsilon

    root = brentq(excess, -3, 8, xtol=1e-14)
    before = np.exp(np.array([root + 0.08]))
    for offset in (3e-3, -3e-3):
        here = np.exp(np.array([root + offset]))
        m = tilting.moments(here, third=True)
        assert m.third_x is not None
        direct = statistics(x, np.zeros_like(x), here[0], 0.0)[3][0, 0, 0]
        assert m.third_x[0] == pytest.approx(direct, rel=1e-9, abs=1e-14)
        step = newton.log_step(m, here, epsilon)
        bent = newton._bent(step, newton._bend(m, here))
        fourth, error = newton._fourth_order_step((before, tilting.moments(before)), (here, m), step, epsilon)
        left = [abs(float(s[0]) + offset) for s in (step, bent, fourth)]
        assert left[0] > 20 * left[1] > 20 * left[2]
        assert left[2] <= error[0]


@pytest.mark.parametrize("epsilon", [0.02, 1.5, 4.0])
@pytest.mark.parametrize("kind", ["gamma", "normal", "uniform"])
def test_many_samples_take_few_passes_and_weights_sum_to_one(kind, epsilon):
    g, _ = scores(kind, 400_000, np.random.default_rng(4))
    solution = solve_dual(g, epsilon=epsilon)
    q = solution.weights
    assert solution.num_passes <= 4
    assert q.sum() == pytest.approx(1, abs=2e-14)
    assert (q * np.log(q * len(q))).sum() == pytest.approx(epsilon, abs=1e-10)
    assert solution.gap < 2e-12


def test_weights_sum_to_one_wherever_the_last_pass_was():
    x = torch.from_numpy(np.random.default_rng(5).random((3, 5_000)))
    for move in (0.0, 1e-4, 9e-3, 5.0):
        tilting = Tilting(x, None, None, None)
        a = np.array([1.0, 30.0, 400.0])
        tilting.moments(a)
        weights = tilting.tilted(a + move, None).weights.numpy()
        assert weights.sum(axis=1) == pytest.approx(1, abs=2e-14)
        assert weights == pytest.approx(
            softmax(-(a + move)[:, None] * x.numpy(), axis=1), rel=1e-11, abs=1e-300
        )


def test_a_pass_knows_log_z_near_its_tilt():
    x = np.random.default_rng(7).gamma(2, 0.05, 20_000).clip(max=1)
    tilting = Tilting(torch.from_numpy(x)[None], None, None, None)
    a = np.array([15.0])
    for third, move, error in ((True, 3e-3, 1e-14), (False, 1e-4, 1e-14), (True, 8e-3, 1e-12)):
        tilting.moments(a, third=third)
        assert tilting._known is not None
        log_z, near = tilting._known.log_z_near(a + move, np.zeros(1))
        assert near[0]
        assert log_z[0] == pytest.approx(logsumexp(-(a + move) * x) - np.log(len(x)), abs=error)


@pytest.mark.parametrize("shape", [(4, 900), (1, PIECE), (1, PIECE + 1), (1, BLOCK - 3), (1, BLOCK)])
def test_sums_and_dots_of_a_block(shape):
    left, right = np.random.default_rng(6).normal(size=(2, *shape))
    exact = left.astype(np.longdouble), right.astype(np.longdouble)
    assert block_sums(left) == pytest.approx(exact[0].sum(axis=1).astype(float), abs=1e-11)
    assert block_dots(left, right) == pytest.approx(
        (exact[0] * exact[1]).sum(axis=1).astype(float), abs=1e-11
    )


def test_a_part_of_many_samples_that_holds_the_smallest_or_no_base_weight():
    rng = np.random.default_rng(1)
    g = -rng.gamma(2, 1, 200_000)
    lowest = g.argmin()
    g[[3, lowest]] = g[[lowest, 3]]  # in the part it counts 64 times too much
    for epsilon in (8.2, 11.0):
        solution = solve_dual(g, epsilon=epsilon)
        assert solution.kl == pytest.approx(epsilon, abs=1e-9)
        assert solution.num_passes <= 20 and solution.gap < 2e-12
    f = np.zeros(len(g))
    f[8:512] = 1.0  # none of these rows is in the part
    solution, few = solve_dual(g, epsilon=0.5, base_weights=f), solve_dual(g[8:512], epsilon=0.5)
    assert solution.lambda_ == pytest.approx(few.lambda_, rel=1e-9)
    assert solve_dual(-3e-293 * rng.random(200_000), epsilon=0.5).status == "point_mass"


def test_an_open_gap_is_no_answer(monkeypatch):
    monkeypatch.setattr(newton, "MOST_PASSES", 1)
    g = np.random.default_rng(2).normal(size=300)
    with pytest.raises(ValueError, match=r"^no multipliers were found that close the gap"):
        solve_dual(g, epsilon=3.0)
    many = np.zeros((5, 300_000))  # solved in groups of three
    many[3, 0] = 1.0
    many[3, 1:] = np.random.default_rng(3).random(299_999)
    with pytest.raises(ValueError, match=r"^round 3: "):
        solve_dual(many, epsilon=3.0)
