"""The comparison over rounds against formulas written out, enumeration, cvxpy, mpmath and Monte Carlo."""

import itertools
import math
import re
from dataclasses import replace

import cvxpy as cp
import mpmath
import numpy as np
import pytest
from datasets import Dataset
from scipy import stats
from statsmodels.stats.multitest import multipletests

from klball import solve_dual
from klball.comparison import hypothesis_tests as ht
from klball.comparison.analysis import compare_scores
from klball.comparison.effects import effect_sizes, hodges_lehmann, rounds_needed, spreads
from klball.comparison.items import delta_inference
from klball.comparison.p_values import benjamini_hochberg, holm, p_of_f, p_of_z
from klball.comparison.rounds import (
    largest_epsilon_with_ess,
    propose_gamma,
    round_scores,
    solve_rounds,
)
from klball.comparison.verdicts import verdicts
from simulated_rounds import simulated


def table(ids, g, c, truncated=None, num_bytes=None):
    return Dataset.from_dict(
        {
            "sample_id": ids,
            "log_likelihood": g,
            "certainty": c,
            "entropy": c,
            "sum_log_prob": [None if x is None else 2 * x for x in g],
            "num_tokens": [2] * len(ids),
            "num_bytes": num_bytes or [8] * len(ids),
            "truncated": truncated or [False] * len(ids),
        }
    )


# --- score tables → scores ---------------------------------------------------------------------


def test_tables_are_aligned_by_id_and_lose_rows_together():
    ids = ["a", "b", "c", "d", "e", "f"]
    tables = {
        ("m", "1"): table(ids, [-1.0, -2, None, -4, -5, -6], [1.0] * 6, [False, True, True, *[False] * 3]),
        ("m", "2"): table(ids[::-1], [-60.0, -50, -40, -30, -20, -10], [2.0] * 6),
        ("k", "1"): table(ids[1:], [-2.5, -3.5, -4.5, -5.5, float("nan")], [3.0] * 5),
        ("k", "2"): table(ids, [-1.0, -2, -3, -4, -5, -6], [4.0] * 6, num_bytes=[8, 8, 8, 0, 8, 8]),
    }
    scores = round_scores(tables)
    assert (scores.models, scores.rounds, scores.sample_ids) == (["m", "k"], ["1", "2"], ["e"])
    assert scores.left_out == {"missing": 1, "truncated": 2, "unscored": 1, "no_bytes": 1}
    assert scores.log_likelihood[..., 0].tolist() == [[-5, -50], [-5.5, -5]]
    assert scores.per_byte().log_likelihood[..., 0].tolist() == [[-1.25, -12.5], [-1.375, -1.25]]


def test_incomplete_or_ambiguous_tables_are_refused():
    good = table(["a", "b"], [-1.0, -2], [1.0, 1])
    with pytest.raises(ValueError, match="no score table of 'k' in round '2'"):
        round_scores({("m", "1"): good, ("m", "2"): good, ("k", "1"): good})
    with pytest.raises(ValueError, match="repeats a sample_id"):
        round_scores({("m", "1"): table(["a", "a"], [-1.0, -2], [1.0, 1])})
    with pytest.raises(ValueError, match="no row can be scored"):
        round_scores({("m", "1"): good, ("k", "1"): table(["x"], [-1.0], [1.0])})


# --- scores → (λ, β) ---------------------------------------------------------------------------


def test_one_round_agrees_with_the_conic_solver():
    scores = simulated()
    s = solve_rounds(scores, epsilon=0.3, gamma="auto")
    g, c = scores.log_likelihood[1, 2], scores.certainty[1, 2]
    q = cp.Variable(len(g), nonneg=True)
    ball = cp.sum(cp.kl_div(q, np.full(len(g), 1 / len(g)))) <= 0.3
    cap = c @ q <= s.gamma
    value = cp.Problem(cp.Minimize(g @ q), [cp.sum(q) == 1, ball, cap]).solve(solver=cp.CLARABEL)
    assert s.worst_case[1, 2] == pytest.approx(value, abs=1e-6)
    assert s.lambda_[1, 2] == pytest.approx(float(ball.dual_value), rel=1e-4)
    assert s.beta[1, 2] == pytest.approx(float(cap.dual_value), rel=1e-4) and s.beta.min() > 0
    assert s.ess[1, 2] == pytest.approx(1 / (q.value**2).sum(), rel=1e-4)
    least = cp.Problem(cp.Minimize(c @ q), [cp.sum(q) == 1, ball]).solve(solver=cp.CLARABEL)
    assert s.gamma_margin[1, 2] == pytest.approx(s.gamma - least, abs=1e-5)
    assert s.mean_log_likelihood[1, 2] == pytest.approx(g.mean())


def test_bytes_are_solved_in_their_own_right():
    scores = simulated()
    s = solve_rounds(scores.per_byte(), epsilon=0.3)
    byte = scores.sum_log_prob[1, 0] / scores.num_bytes[1, 0]
    assert s.worst_case[1, 0] == pytest.approx(solve_dual(byte, epsilon=0.3).worst_case)
    assert np.isinf(s.gamma_margin).all()


def test_proposed_gamma_is_feasible_for_all():
    scores = simulated(models=3)
    high = replace(scores, certainty=scores.certainty + np.array([0.0, 3.0, 1.0])[:, None, None])
    gamma = propose_gamma(high, 3.0)
    least = [[solve_dual(loss=-c, epsilon=3.0).worst_case for c in model] for model in high.certainty]
    m, r = np.unravel_index(np.argmax(least), (3, 4))
    free = solve_dual(high.log_likelihood[m, r], epsilon=3.0).weights @ high.certainty[m, r]
    assert gamma == pytest.approx((least[m][r] + free) / 2) and m == 1
    s = solve_rounds(high, epsilon=3.0, gamma="auto")
    assert s.usable().all() and s.beta[m, r] > 0 and s.gamma == gamma


def test_infeasible_rounds_stay_visible_and_leave_their_pairs_only():
    scores = simulated(models=3, rounds=5)
    scores.certainty[1, 3] += 50
    s = solve_rounds(scores, epsilon=0.1, gamma=float(scores.certainty[0].mean() + 1))
    assert s.status[1, 3] == "infeasible" and math.isnan(s.worst_case[1, 3]) and s.gamma_margin[1, 3] < 0
    assert s.status.shape == (3, 5) and (s.status == "infeasible").sum() == 1
    assert s.pair_rounds(0, 1).tolist() == [True, True, True, False, True] and s.pair_rounds(0, 2).all()
    rounds = {(t.model_a, t.model_b): t.rounds for t in ht.pairwise_tests(s)}
    assert rounds == {("m0", "m1"): 4, ("m0", "m2"): 5, ("m1", "m2"): 4}
    found = verdicts(s, ht.pairwise_tests(s), effect_sizes(s), delta_inference(scores, s))
    assert [v.claim == "descriptive" for v in found] == [True, False, True]
    assert "1 of 5 rounds are infeasible" in found[0].sentence


def test_a_bound_on_the_certainty_that_no_round_can_keep_is_refused():
    scores = simulated(rounds=3, n=120)
    lost = solve_rounds(scores, epsilon=0.1, gamma=-5.0)
    assert not lost.usable().any() and math.isnan(lost.least_ess()) and math.isnan(lost.least_ess(0))
    with pytest.raises(ValueError, match=r"gamma = -5 is below .* every model and round") as raised:
        compare_scores(scores, 0.1, -5.0)
    said = float(re.search(r"from (\S+) on all of them", str(raised.value))[1])
    least = float(np.nanmax(lost.gamma - lost.gamma_margin))
    assert least <= said < least * 1.001 and solve_rounds(scores, epsilon=0.1, gamma=said).usable().all()


def test_a_tie_has_no_leader():
    scores = simulated(models=1, rounds=6)
    twice = {name: np.repeat(getattr(scores, name), 2, axis=0) for name in ("log_likelihood", "certainty")}
    same = replace(simulated(models=2, rounds=6), **twice)
    s = solve_rounds(same, epsilon=0.1)
    (found,) = verdicts(s, ht.pairwise_tests(s), effect_sizes(s), delta_inference(same, s))
    assert "λ does not tell them apart; β does not tell them apart" in found.source_reading


def test_largest_radius_keeps_a_hundred_effective_samples():
    scores = simulated(n=400)
    epsilon = largest_epsilon_with_ess(scores, radii=(0.05, 0.2, 0.5, 1.0, 3.0))
    assert epsilon is not None and 0.05 < epsilon < 3
    wider = {0.2: 0.5, 0.5: 1.0, 1.0: 3.0}[epsilon]
    ess = [
        [solve_dual(g, epsilon=e).ess for g in scores.log_likelihood.reshape(-1, 400)]
        for e in (epsilon, wider)
    ]
    assert min(ess[0]) >= 100 > min(ess[1])
    assert largest_epsilon_with_ess(simulated(n=99)) is None


# --- p-values ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("f", "d1", "d2"), [(3.0, 2, 97), (1e6, 2, 195), (1e8, 1, 300.5), (1e-9, 1, 9), (1e9, 2, 2000)]
)
def test_tiny_p_values_against_mpmath(f, d1, d2):
    mpmath.mp.dps = 40
    x = mpmath.mpf(d2) / (d2 + d1 * mpmath.mpf(f))
    exact = -mpmath.log10(mpmath.betainc(mpmath.mpf(d2) / 2, mpmath.mpf(d1) / 2, 0, x, regularized=True))
    assert p_of_f(f, d1, d2) == pytest.approx(float(exact), rel=1e-9, abs=1e-12)


def test_normal_p_value_and_its_far_tail():
    assert p_of_z(-1.959964) == pytest.approx(-math.log10(0.05), abs=1e-6)
    mpmath.mp.dps = 40
    assert p_of_z(60) == pytest.approx(float(-mpmath.log10(mpmath.erfc(60 / mpmath.sqrt(2)))), rel=1e-12)


def test_corrections_agree_with_statsmodels_and_do_not_underflow():
    p = np.random.default_rng(0).random(12) ** 4
    for rule, method in ((holm, "holm"), (benjamini_hochberg, "fdr_bh")):
        assert np.allclose(10 ** -rule(-np.log10(p)), multipletests(p, method=method)[1])
        adjusted = rule([500.0, math.nan, 400.0, 0.1])
        assert math.isnan(adjusted[1]) and 0 <= adjusted[3] <= 0.1
        assert adjusted[0] == pytest.approx(500 - math.log10(3))


def samples(n=9, seed=1):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 2)) @ np.array([[1, 0.4], [0, 0.3]]) + 1
    return x, x + 0.8 * rng.normal(size=(n, 2)) + 0.4


def p_of(found):
    return 10.0**-found.minus_log10_p


def test_t_tests_are_their_formulas():
    x, y = (v[:, 0] for v in samples())
    n, d = len(x), x - y
    t = d.mean() / (d.std(ddof=1) / math.sqrt(n))
    assert ht.paired_t(x, y).statistic == pytest.approx(t)
    assert p_of(ht.paired_t(x, y)) == pytest.approx(2 * stats.t.sf(abs(t), n - 1))
    vx, vy = x.var(ddof=1) / n, y.var(ddof=1) / n
    df = (vx + vy) ** 2 / ((vx**2 + vy**2) / (n - 1))
    t = (x.mean() - y.mean()) / math.sqrt(vx + vy)
    assert ht.welch_t(x, y).statistic == pytest.approx(t)
    assert p_of(ht.welch_t(x, y)) == pytest.approx(2 * stats.t.sf(abs(t), df))


def test_hotelling_is_its_formula():
    x, y = samples()
    n = len(x)
    d = x - y
    t2 = n * d.mean(0) @ np.linalg.solve(np.cov(d.T), d.mean(0))
    f = (n - 2) / (2 * (n - 1)) * t2
    assert ht.paired_hotelling(x, y).statistic == pytest.approx(f)
    assert p_of(ht.paired_hotelling(x, y)) == pytest.approx(stats.f.sf(f, 2, n - 2))
    pooled, delta = (np.cov(x.T) + np.cov(y.T)) / 2, x.mean(0) - y.mean(0)
    f = (2 * n - 3) / (2 * (2 * n - 2)) * (n / 2) * delta @ np.linalg.solve(pooled, delta)
    assert ht.hotelling(x, y).statistic == pytest.approx(f)
    assert p_of(ht.hotelling(x, y)) == pytest.approx(stats.f.sf(f, 2, 2 * n - 3))


def test_rank_and_permutation_tests_by_enumeration():
    x, y = (v[:6, 0] for v in samples())
    d = x - y
    flips = np.array(list(itertools.product([-1, 1], repeat=6)))
    means = np.abs((flips * d).mean(axis=1))
    assert p_of(ht.sign_flip(x, y)) == pytest.approx((means >= abs(d.mean()) - 1e-12).mean())
    ranks = stats.rankdata(np.abs(d))
    sums = (np.where(flips > 0, ranks, 0)).sum(axis=1)
    w = ranks[d > 0].sum()
    assert p_of(ht.wilcoxon(x, y)) == pytest.approx(min(1, 2 * min((sums <= w).mean(), (sums >= w).mean())))
    pool = stats.rankdata(np.concatenate([x, y]))
    sums = np.array([pool[list(chosen)].sum() for chosen in itertools.combinations(range(12), 6)])
    u = pool[:6].sum()
    assert p_of(ht.mann_whitney(x, y)) == pytest.approx(
        min(1, 2 * min((sums <= u).mean(), (sums >= u).mean()))
    )


def test_underflowing_rank_tests_have_a_number():
    x, y = np.random.default_rng(0).normal(size=(2, 3_000))
    for test in (ht.wilcoxon, ht.mann_whitney):
        assert 320 < test(x + 100, y).minus_log10_p < 1_500


def test_p_values_of_clearly_different_models_are_not_zero():
    s = solve_rounds(simulated(models=3, rounds=60, shift=40.0), epsilon=0.2)
    s.lambda_[2] += 1e6
    matrix = ht.p_matrix(ht.pairwise_tests(s), "welch_t", "worst_case", s.models)
    assert np.array_equal(matrix, matrix.T, equal_nan=True) and np.isnan(np.diag(matrix)).all()
    assert np.isfinite(matrix[~np.eye(3, dtype=bool)]).all()
    extreme = next(
        t for t in ht.pairwise_tests(s) if (t.test, t.quantity, t.model_b) == ("welch_t", "lambda_", "m2")
    )
    assert extreme.minus_log10_p > 250 and extreme.minus_log10_holm > 250


@pytest.mark.parametrize("test", [*ht.SCALAR_TESTS.values()])
def test_scalar_degenerate_samples_are_named(test):
    x = np.arange(5.0)
    paired = test in (ht.paired_t, ht.wilcoxon, ht.sign_flip)
    cases = [(np.zeros(5), np.zeros(5), "zero in every round"), (x[:1], x[:1], "1 usable round,")]
    cases.append(
        (x + 3, x, "differences are constant") if paired else (np.ones(5), np.full(5, 2.0), "constant")
    )
    for a, b, reason in cases:
        result = test(a, b)
        assert (
            reason in result.degenerate and math.isnan(result.minus_log10_p) and math.isnan(result.statistic)
        )


@pytest.mark.parametrize("test", [*ht.VECTOR_TESTS.values()])
def test_vector_degenerate_samples_are_named(test):
    x, y = samples()
    zero = np.array([1.0, 0.0])
    assert "λ or β is zero" in test(x * zero, y * zero).degenerate
    collinear = np.array([[1.0, 2.0], [0.0, 0.0]])
    assert "singular" in test(x @ collinear, y @ collinear).degenerate
    assert "2 usable rounds, 3 needed" in test(x[:2], y[:2]).degenerate


# --- effects -----------------------------------------------------------------------------------


def test_effects_are_their_formulas():
    s = solve_rounds(simulated(rounds=12), epsilon=0.3)
    effect = next(e for e in effect_sizes(s) if e.quantity == "lambda_")
    d = s.lambda_[0] - s.lambda_[1]
    low, high = stats.t.interval(0.95, 11, d.mean(), stats.sem(d))
    assert (effect.mean, effect.mean_low, effect.mean_high) == pytest.approx((d.mean(), low, high))
    assert effect.cohen_dz == pytest.approx(d.mean() / d.std(ddof=1))
    walsh = [(a + b) / 2 for a, b in itertools.combinations_with_replacement(d, 2)]
    assert effect.hodges_lehmann == pytest.approx(np.median(walsh))
    spread = next(x for x in spreads(s) if (x.model, x.quantity) == ("m1", "worst_case"))
    assert spread.worst_round == f"r{s.worst_case[1].argmin()}" and spread.low == s.worst_case[1].min()
    assert spread.sd == pytest.approx(s.worst_case[1].std(ddof=1))


def test_hodges_lehmann_interval_covers():
    rng = np.random.default_rng(0)
    found = np.array([hodges_lehmann(rng.standard_t(3, 25)) for _ in range(1_000)])
    assert 0.93 < ((found[:, 1] <= 0) & (found[:, 2] >= 0)).mean() < 0.97


@pytest.mark.parametrize("n", [2, 5, 6, 7, 9, 12])
def test_hodges_lehmann_intervals_of_few_rounds_cover_by_enumeration(n):
    """Over all signs of differences whose median is 0; below six even the widest covers less than 95 %."""
    size = np.random.default_rng(n).exponential(size=n)
    found = np.array([hodges_lehmann(size * signs) for signs in itertools.product((-1, 1), repeat=n)])
    if n < 6:
        assert np.isnan(found[:, 1:]).all() and 1 - 2 ** (1 - n) < 0.95
    else:
        covered = ((found[:, 1] <= 0) & (found[:, 2] >= 0)).mean()
        assert 0.95 <= covered <= 0.98


@pytest.mark.parametrize("dz", [0.02, 0.3, -0.8, 2.0])
def test_rounds_needed_reach_the_power(dz):
    def power(n):
        cut = stats.t.ppf(0.975, n - 1)
        return stats.nct.sf(cut, n - 1, abs(dz) * math.sqrt(n)) + stats.nct.cdf(
            -cut, n - 1, abs(dz) * math.sqrt(n)
        )

    n = rounds_needed(dz)
    assert power(n) >= 0.8 - 1e-6 and (power(n - 1) < 0.8 or n <= 5)
    assert rounds_needed(0.0) == math.inf and rounds_needed(50.0) <= 3
