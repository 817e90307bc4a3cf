"""The streamed dual against the dual in memory and a conic solver, and what is no chunk of scores."""

import math

import numpy as np
import pytest

from klball import InfeasibleError, solve_dual
from klball.adversary.solver import reading
from klball.adversary.streaming import solve_dual_streamed
from test_dual import conic_optimum

FIELDS = ("kl", "certainty", "worst_case", "dual_value", "lambda_", "beta", "mu", "ess")


def chunked(g, c, size, chunks_per_part=1):
    def part(start):
        def chunks():
            for i in range(start, min(start + size * chunks_per_part, len(g)), size):
                yield g[i : i + size], None if c is None else c[i : i + size]

        return chunks

    return [part(start) for start in range(0, len(g), size * chunks_per_part)]


def assert_same(streamed, exact, g, c=None, rtol=1e-9):
    assert streamed.status == exact.status
    width = max(np.ptp(g), 1e-300)
    for name in ("worst_case", "dual_value"):
        assert abs(getattr(streamed, name) - getattr(exact, name)) <= 1e-11 * width + 4e-16 * np.abs(g).max()
    for name in FIELDS:
        expected = getattr(exact, name)
        if expected is None or (name == "certainty" and c is None):
            continue
        near = 5e-5 if name == "ess" else rtol
        close = pytest.approx(expected, rel=near, abs=1e-11 * width, nan_ok=True)
        assert getattr(streamed, name) == close, name
    assert streamed.gap <= 1e-10
    n_q = streamed.density(g, c)
    np.testing.assert_allclose(n_q, exact.weights * len(g), rtol=1e-7, atol=1e-9)


def losses(kind, n, rng):
    g = {
        "gamma": lambda: -rng.gamma(2, 1, n),
        "sorted": lambda: np.sort(-rng.gamma(2, 1, n)),  # a sample of its row groups is a caricature
        "offset": lambda: -1e6 - rng.gamma(2, 1, n),
        "heavy": lambda: rng.standard_t(2, n),
        "ties": lambda: rng.integers(0, 4, n).astype(float),
    }[kind]()
    return g, 15 - 0.8 * (g - g.mean()) / g.std() + 0.8 * rng.normal(size=n)


@pytest.mark.parametrize("kind", ["gamma", "sorted", "offset", "heavy", "ties"])
@pytest.mark.parametrize("sample", [60, 1 << 17])
def test_agrees_with_the_dual_in_memory(monkeypatch, kind, sample):
    monkeypatch.setattr(reading, "SAMPLE", sample)
    rng = np.random.default_rng(7)
    n = 1_500
    g, c = losses(kind, n, rng)
    for epsilon in (0.05, 0.5, 2.0):
        alone = solve_dual(g, c, epsilon=epsilon)
        least = solve_dual(loss=-c, epsilon=epsilon).worst_case
        for gamma in (None, alone.certainty + 0.1, (least + alone.certainty) / 2):
            exact = solve_dual(g, c, epsilon=epsilon, gamma=gamma)
            size = int(rng.choice([7, 100, 1_000, 5_000]))
            parts = chunked(g, c, size, chunks_per_part=int(rng.choice([1, 3])))
            assert_same(solve_dual_streamed(parts, epsilon=epsilon, gamma=gamma), exact, g, c)


def test_few_passes_where_the_sample_is_a_part_of_the_data():
    rng = np.random.default_rng(1)
    g, c = losses("gamma", 600_000, rng)
    alone = solve_dual(g, c, epsilon=0.05)
    parts = chunked(g, c, 20_000)
    for gamma in (None, alone.certainty + 0.1, alone.certainty - 0.1):
        exact = solve_dual(g, c, epsilon=0.05, gamma=gamma)
        streamed = solve_dual_streamed(parts, epsilon=0.05, gamma=gamma)
        assert streamed.num_passes <= 3
        assert_same(streamed, exact, g, c)


@pytest.mark.parametrize("kind", ["lognormal", "heavy"])
def test_a_model_that_does_not_converge_is_left_early(monkeypatch, kind):
    monkeypatch.setattr(reading, "SAMPLE", 5_000)
    rng = np.random.default_rng(3)
    g = -np.exp(rng.normal(size=100_000)) if kind == "lognormal" else rng.standard_t(2, 100_000)
    for epsilon in (0.05, 0.3):
        streamed = solve_dual_streamed(chunked(g, None, 10_000), epsilon=epsilon)
        assert streamed.num_passes <= 12
        assert_same(streamed, solve_dual(g, epsilon=epsilon), g)


def test_certificate_is_that_of_the_weights():
    rng = np.random.default_rng(2)
    g, c = losses("gamma", 400_000, rng)
    s = solve_dual_streamed(chunked(g, c, 30_000), epsilon=0.3, gamma=14.9)
    n_q = s.density(g, c)
    assert s.beta > 0
    assert n_q.mean() == pytest.approx(1, abs=1e-11)
    assert (n_q * np.log(n_q)).mean() == pytest.approx(0.3, abs=1e-10)
    assert (n_q * c).mean() == pytest.approx(14.9, abs=1e-10)
    assert s.worst_case == pytest.approx((n_q * g).mean(), abs=1e-10)
    assert s.ess == pytest.approx(len(g) / (n_q**2).mean(), rel=1e-8)
    assert s.mean == pytest.approx(g.mean(), abs=1e-12)


@pytest.mark.parametrize("gamma", [None, 0.2])
def test_agrees_with_a_conic_solver(monkeypatch, gamma):
    monkeypatch.setattr(reading, "SAMPLE", 20)
    rng = np.random.default_rng(3)
    g, c = rng.normal(size=80), rng.normal(size=80)
    c -= g / 2
    s = solve_dual_streamed(chunked(g, c, 9), epsilon=0.4, gamma=gamma)
    oracle = conic_optimum(g, c, np.full(80, 1 / 80), 0.4, gamma, None)
    assert s.worst_case == pytest.approx(oracle.value, abs=1e-6)
    assert (s.beta > 0) == (gamma is not None)


def test_chunks_change_the_answer_by_rounding_only():
    g, c = losses("gamma", 30_000, np.random.default_rng(4))
    exact = solve_dual(g, c, epsilon=0.2, gamma=14.8)
    for size, per_part in ((1_000, 2), (30_000, 1), (77, 5)):
        parts = chunked(g, c, size, chunks_per_part=per_part)
        assert_same(solve_dual_streamed(parts, epsilon=0.2, gamma=14.8), exact, g, c)


def test_float32_columns_are_summed_in_float64():
    g, c = (v.astype(np.float32) for v in losses("offset", 3_000, np.random.default_rng(5)))
    exact = solve_dual(g, c, epsilon=0.1)
    assert_same(solve_dual_streamed(chunked(g, c, 500), epsilon=0.1), exact, g.astype(float), c)


def test_radius_zero_and_equal_scores_and_point_masses(monkeypatch):
    g, c = losses("ties", 1_000, np.random.default_rng(6))
    parts = chunked(g, c, 90)
    for epsilon in (0.0, 1.5, 20.0):  # log(n/m) is about log 4
        exact = solve_dual(g, c, epsilon=epsilon)
        assert exact.status == ("optimal" if epsilon == 0 else "point_mass")
        assert_same(solve_dual_streamed(parts, epsilon=epsilon), exact, g, c)
    equal = np.full(50, -1.25)
    assert_same(
        solve_dual_streamed(chunked(equal, None, 8), epsilon=0.3), solve_dual(equal, epsilon=0.3), equal
    )
    monkeypatch.setattr(reading, "SAMPLE", 20)
    lowest = g.copy()
    lowest[[500, 700, 900]] = -8.5, -9.0, -8.7  # a point mass that only the full pass can see
    assert_same(
        solve_dual_streamed(chunked(lowest, c, 90), epsilon=7), solve_dual(lowest, c, epsilon=7), lowest
    )


def test_a_sample_of_equal_scores_says_nothing(monkeypatch):
    monkeypatch.setattr(reading, "SAMPLE", 16)
    g = -np.random.default_rng(8).gamma(2, 1, 1_600)
    g[::100] = -2.0
    streamed = solve_dual_streamed(chunked(g, None, 100), epsilon=0.1)
    assert_same(streamed, solve_dual(g, epsilon=0.1), g)


@pytest.mark.parametrize("outlier", [-1e5, 1e5])
def test_an_outlier_beyond_the_range_of_exponentials(monkeypatch, outlier):
    monkeypatch.setattr(reading, "SAMPLE", 50)
    g, c = losses("gamma", 1_000, np.random.default_rng(11))
    g[777] = outlier
    parts = chunked(g, c, 90)
    for epsilon in (0.05, 1.0):
        exact = solve_dual(g, c, epsilon=epsilon)
        assert_same(solve_dual_streamed(parts, epsilon=epsilon), exact, g, c, rtol=1e-8)


def test_an_outlier_above_does_not_hide_an_inexact_lambda(monkeypatch):
    monkeypatch.setattr(reading, "SAMPLE", 20_000)
    g = np.random.default_rng(12).normal(size=400_000)
    g[7] = 1e9  # in units of this range any gap is closed
    for epsilon in (0.05, 3.0):
        streamed = solve_dual_streamed(chunked(g, None, 20_000), epsilon=epsilon)
        assert streamed.lambda_ == pytest.approx(solve_dual(g, epsilon=epsilon).lambda_, rel=1e-9)


@pytest.mark.parametrize("sample", [40, 1 << 17])
def test_infeasible_names_gamma_min(monkeypatch, sample):
    monkeypatch.setattr(reading, "SAMPLE", sample)
    g, c = losses("gamma", 2_000, np.random.default_rng(9))
    least = solve_dual(loss=-c, epsilon=0.05).worst_case
    parts = chunked(g, c, 128)
    for gamma in (least - 0.5, least - 1e-3):
        with pytest.raises(InfeasibleError, match="γ_min") as error:
            solve_dual_streamed(parts, epsilon=0.05, gamma=gamma)
        assert error.value.gamma_min == pytest.approx(least, abs=1e-10)
    near = least + 0.02 * (c.mean() - least)
    assert_same(
        solve_dual_streamed(parts, epsilon=0.05, gamma=near), solve_dual(g, c, epsilon=0.05, gamma=near), g, c
    )
    with pytest.raises(InfeasibleError):
        solve_dual_streamed(parts, epsilon=0, gamma=float(c.mean()) - 1e-3)


def test_degenerate_multipliers_are_refused():
    parts = chunked(np.array([0.0, 1.0]), np.array([2.0, 0.0]), 1)
    with pytest.raises(ValueError, match="in memory"):  # a vertex: λ = 0, β = ½
        solve_dual_streamed(parts, epsilon=5, gamma=1)


@pytest.mark.parametrize(
    ("g", "c", "settings", "message"),
    [
        ([1.0, math.nan, math.inf], [0.0, 0.0, 0.0], {}, "log_likelihood has 2 missing, NaN or infinite"),
        ([1.0, 2.0, 3.0], [0.0, -math.inf, math.nan], {}, "certainty has 2 missing, NaN or infinite"),
        ([math.nan] * 3, [0.0, 0.0, 0.0], {}, "log_likelihood has 3"),
        ([1.0, 2.0], None, {"gamma": 1.0}, "pass certainty"),
        ([1.0, 2.0], None, {"epsilon": -1.0}, "epsilon must be"),
        ([1.0, 2.0], [0.0], {}, "shape|2 log-likelihoods"),
        ([], None, {}, "no rows"),
    ],
)
def test_bad_input_is_one_clear_line(g, c, settings, message):
    columns = np.array(g), None if c is None else np.array(c)
    with pytest.raises(ValueError, match=message):
        solve_dual_streamed([lambda: [columns]], **{"epsilon": 0.1, **settings})


def test_one_bad_score_in_a_later_chunk_is_found(monkeypatch):
    monkeypatch.setattr(reading, "SAMPLE", 10)
    for column in (0, 1):
        for bad in (math.nan, math.inf, -math.inf):
            data = list(losses("gamma", 900, np.random.default_rng(0)))
            data[column][777] = bad
            with pytest.raises(ValueError, match="has 1 missing"):
                solve_dual_streamed(chunked(*data, 100), epsilon=0.1)


def test_some_chunks_without_certainty_are_refused(monkeypatch):
    monkeypatch.setattr(reading, "SAMPLE", 1)
    parts = [*chunked(np.arange(9.0), np.arange(9.0), 3), *chunked(np.arange(3.0), None, 3)]
    with pytest.raises(ValueError, match="some chunks have a certainty"):
        solve_dual_streamed(parts, epsilon=0.1)


@pytest.mark.parametrize(
    ("chunk", "message"),
    [
        (([-1.0, -2.0], None), "log_likelihood of a chunk must be a NumPy array .* not list"),
        ((-np.ones((1, 3)), None), r"not \[1, 3\] of float64"),
        ((-np.ones(3), [1.0, 2.0, 3.0]), "certainty of a chunk must be a NumPy array .* not list"),
        ((-np.ones(3), np.ones(2)), "a chunk has 3 log-likelihoods and 2 certainties"),
        ((None, None), "log_likelihood of a chunk must be a NumPy array .* not NoneType"),
        (-np.ones(3), "a chunk must be a pair of arrays"),
    ],
)
def test_a_chunk_of_another_kind_is_one_line(chunk, message):
    with pytest.raises(ValueError, match=message):
        solve_dual_streamed([lambda: [chunk]], epsilon=0.1)


def test_a_chunk_may_be_one_array_of_both_columns():
    g, c = -np.arange(9.0), np.linspace(0.0, 1.0, 9)
    both = solve_dual_streamed([lambda: [np.stack([g, c])]], epsilon=0.1)
    assert both == solve_dual_streamed([lambda: [(g, c)]], epsilon=0.1) and both.certainty > 0.5


def test_a_part_that_can_be_read_once_only_is_told_so():
    once = iter([(-np.arange(9.0), None)])
    with pytest.raises(ValueError, match="each must return a new iterable at every call"):
        solve_dual_streamed([lambda: once], epsilon=0.1)
