"""The comparison over rounds against formulas written out, enumeration, cvxpy, mpmath and Monte Carlo."""

import itertools
import json
import math
from dataclasses import replace

import cvxpy as cp
import mpmath
import numpy as np
import pytest
from datasets import Dataset
from scipy import stats
from statsmodels.stats.multitest import multipletests

from klball import solve_dual
from klball.comparison import calibration
from klball.comparison import hypothesis_tests as ht
from klball.comparison.calibration import measured_settings, supports_over_items, supports_over_rounds, tail
from klball.comparison.effects import effect_sizes, hodges_lehmann, rounds_needed, spreads
from klball.comparison.items import bootstrap, delta_inference, influence
from klball.comparison.p_values import benjamini_hochberg, holm, p_of_f, p_of_z
from klball.comparison.rounds import (
    RoundScores,
    largest_epsilon_with_ess,
    propose_gamma,
    round_scores,
    solve_rounds,
)
from klball.comparison.verdicts import verdicts


def simulated(models=2, rounds=4, n=60, seed=0, shift=0.0) -> RoundScores:
    """Matched rounds; certainty is higher on hard samples, so that a cap on it binds."""
    rng = np.random.default_rng(seed)
    item = rng.normal(size=n)
    g = (
        -np.exp(0.4 * (item + 0.5 * rng.normal(size=(models, rounds, n))))
        - shift * np.arange(models)[:, None, None]
    )
    c = 12 - 0.7 * g + 0.5 * rng.normal(size=g.shape)
    tokens = rng.integers(1, 20, n) * np.ones_like(g)
    labels = [
        [f"{prefix}{k}" for k in range(size)] for prefix, size in (("m", models), ("r", rounds), ("i", n))
    ]
    return RoundScores(*labels, g, c, g * tokens, tokens, 4 * tokens, left_out={})


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
    s = solve_rounds(scores, epsilon=0.3)
    byte = scores.sum_log_prob[1, 0] / scores.num_bytes[1, 0]
    assert s.worst_case_per_byte[1, 0] == pytest.approx(solve_dual(byte, epsilon=0.3).worst_case)
    assert np.allclose(solve_rounds(scores.per_byte(), epsilon=0.3).worst_case, s.worst_case_per_byte)
    assert np.isinf(s.gamma_margin).all()


def test_proposed_gamma_is_feasible_for_all():
    scores = simulated(models=3)
    high = replace(scores, certainty=scores.certainty + np.array([0.0, 3.0, 1.0])[:, None, None])
    gamma = propose_gamma(high, 3.0)
    least = [[solve_dual(c, epsilon=3.0).worst_case for c in model] for model in high.certainty]
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


def test_t_tests_are_their_formulas():
    x, y = (v[:, 0] for v in samples())
    n, d = len(x), x - y
    t = d.mean() / (d.std(ddof=1) / math.sqrt(n))
    assert ht.paired_t(x, y).statistic == pytest.approx(t)
    assert ht.paired_t(x, y).p == pytest.approx(2 * stats.t.sf(abs(t), n - 1))
    vx, vy = x.var(ddof=1) / n, y.var(ddof=1) / n
    df = (vx + vy) ** 2 / ((vx**2 + vy**2) / (n - 1))
    t = (x.mean() - y.mean()) / math.sqrt(vx + vy)
    assert ht.welch_t(x, y).statistic == pytest.approx(t)
    assert ht.welch_t(x, y).p == pytest.approx(2 * stats.t.sf(abs(t), df))


def test_hotelling_is_its_formula():
    x, y = samples()
    n = len(x)
    d = x - y
    t2 = n * d.mean(0) @ np.linalg.solve(np.cov(d.T), d.mean(0))
    f = (n - 2) / (2 * (n - 1)) * t2
    assert ht.paired_hotelling(x, y).statistic == pytest.approx(f)
    assert ht.paired_hotelling(x, y).p == pytest.approx(stats.f.sf(f, 2, n - 2))
    pooled, delta = (np.cov(x.T) + np.cov(y.T)) / 2, x.mean(0) - y.mean(0)
    f = (2 * n - 3) / (2 * (2 * n - 2)) * (n / 2) * delta @ np.linalg.solve(pooled, delta)
    assert ht.hotelling(x, y).statistic == pytest.approx(f)
    assert ht.hotelling(x, y).p == pytest.approx(stats.f.sf(f, 2, 2 * n - 3))


def test_rank_and_permutation_tests_by_enumeration():
    x, y = (v[:6, 0] for v in samples())
    d = x - y
    flips = np.array(list(itertools.product([-1, 1], repeat=6)))
    means = np.abs((flips * d).mean(axis=1))
    assert ht.sign_flip(x, y).p == pytest.approx((means >= abs(d.mean()) - 1e-12).mean())
    ranks = stats.rankdata(np.abs(d))
    sums = (np.where(flips > 0, ranks, 0)).sum(axis=1)
    w = ranks[d > 0].sum()
    assert ht.wilcoxon(x, y).p == pytest.approx(min(1, 2 * min((sums <= w).mean(), (sums >= w).mean())))
    pool = stats.rankdata(np.concatenate([x, y]))
    sums = np.array([pool[list(chosen)].sum() for chosen in itertools.combinations(range(12), 6)])
    u = pool[:6].sum()
    assert ht.mann_whitney(x, y).p == pytest.approx(min(1, 2 * min((sums <= u).mean(), (sums >= u).mean())))


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
    cases = [(np.zeros(5), np.zeros(5), "zero in every round"), (x[:1], x[:1], "1 usable rounds")]
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


# --- inference over items ----------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [None, "auto"])
def test_influence_is_the_derivative_of_the_solution(gamma):
    """Put a little more weight on one item and solve again."""
    scores = simulated(rounds=1)
    s = solve_rounds(scores, epsilon=0.4, gamma=gamma)
    of_item = influence(scores, s)
    step = 1e-6
    for i in (0, 17, int(scores.log_likelihood[1, 0].argmin())):
        moved = []
        for sign in (1, -1):
            f = np.full(s.n, (1 - sign * step) / s.n)
            f[i] += sign * step
            g, c = scores.log_likelihood[1, 0], scores.certainty[1, 0]
            moved.append(solve_dual(g, c, epsilon=0.4, gamma=s.gamma, base_weights=f))
        for name in ("worst_case", "lambda_", "beta"):
            slope = (getattr(moved[0], name) - getattr(moved[1], name)) / (2 * step)
            assert of_item[name][1, 0, i] == pytest.approx(slope, rel=1e-4, abs=1e-5), name
    if gamma is not None:
        assert s.beta[1, 0] > 0 and np.abs(of_item["beta"]).max() > 0


@pytest.mark.parametrize("gamma", [None, "auto"])
def test_delta_errors_against_monte_carlo(gamma):
    rng = np.random.default_rng(0)
    n, draws = 800, 200
    item = rng.normal(size=(draws, 1, n))
    g = -2 + 0.5 * (item + 0.5 * rng.normal(size=(draws, 2, n)))
    c = 12 - 0.7 * g + 0.5 * rng.normal(size=g.shape)
    ones = np.ones((2, 1, n))
    values, errors = [], []
    for k in range(draws):
        gk, ck = g[k][:, None], c[k][:, None]
        if gamma == "auto":
            gamma = propose_gamma(RoundScores(["a", "b"], ["1"], [], gk, ck, gk, ones, ones, {}), 0.2)
        scores = RoundScores(["a", "b"], ["1"], [], gk, ck, gk, ones, ones, {})
        found = delta_inference(scores, solve_rounds(scores, epsilon=0.2, gamma=gamma))
        found = [i for i in found if gamma is not None or i.quantity != "beta"]
        values.append([i.value for i in found])
        errors.append([i.se for i in found])
    assert np.mean(errors, axis=0) == pytest.approx(np.std(values, axis=0), rel=0.15)


def test_delta_averages_rounds_and_pairs_models():
    scores = simulated(rounds=3, n=80)
    s = solve_rounds(scores, epsilon=0.2)
    found = {(i.model_a, i.model_b, i.quantity): i for i in delta_inference(scores, s)}
    difference = found["m0", "m1", "lambda_"]
    per_item = (influence(scores, s)["lambda_"][0] - influence(scores, s)["lambda_"][1]).mean(axis=0)
    assert difference.value == pytest.approx((s.lambda_[0] - s.lambda_[1]).mean())
    assert difference.se == pytest.approx(stats.sem(per_item))
    t = difference.value / difference.se
    assert 10**-difference.minus_log10_p == pytest.approx(2 * stats.t.sf(abs(t), s.least_ess() - 1))
    half = stats.t.ppf(0.975, s.least_ess() - 1) * difference.se
    assert (difference.low, difference.high) == pytest.approx(
        (difference.value - half, difference.value + half)
    )


def test_point_masses_and_slack_caps_have_no_standard_error():
    scores = simulated(n=30)
    found = delta_inference(scores, solve_rounds(scores, epsilon=5.0))
    assert all("λ = 0 in 4 of 4 rounds" in i.degenerate and math.isnan(i.se) for i in found)
    slack = [i for i in delta_inference(scores, solve_rounds(scores, epsilon=0.1)) if i.quantity == "beta"]
    assert all("slack" in i.degenerate for i in slack)


def test_bootstrap_solves_the_drawn_items():
    scores = simulated(models=2, rounds=3, n=50)
    s = solve_rounds(scores, epsilon=0.3, gamma="auto")
    boot = bootstrap(scores, s, resamples=5, seed=3)
    counts = np.random.default_rng(3).multinomial(50, np.full(50, 1 / 50), size=5)
    drawn = np.repeat(np.arange(50), counts[4])
    for m, r in ((0, 0), (1, 2)):
        g, c = scores.log_likelihood[m, r, drawn], scores.certainty[m, r, drawn]
        alone = solve_dual(g, c, epsilon=0.3, gamma=s.gamma, throw=False)
        for name in ("worst_case", "lambda_", "beta"):
            assert boot.draws[name][4, m, r] == pytest.approx(getattr(alone, name), rel=1e-6)


def test_bootstrap_agrees_with_the_delta_method_at_a_small_radius():
    scores = simulated(rounds=2, n=400)
    s = solve_rounds(scores, epsilon=0.05)
    seen = []
    boot = bootstrap(scores, s, resamples=400, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (400, 400)
    by_delta = {(i.model_a, i.model_b, i.quantity): i for i in delta_inference(scores, s)}
    for i in boot.inference():
        if not i.degenerate:
            assert i.se == pytest.approx(by_delta[i.model_a, i.model_b, i.quantity].se, rel=0.2)
            assert i.low < i.value < i.high and i.lost == 0


def test_infeasible_resamples_are_counted_and_leave_no_interval():
    scores = simulated(rounds=1, n=40)
    margin = solve_rounds(scores, epsilon=0.3, gamma="auto")
    tight = float(margin.gamma - margin.gamma_margin.min()) + 1e-3
    s = solve_rounds(scores, epsilon=0.3, gamma=tight)
    found = bootstrap(scores, s, resamples=60).inference()
    pair = next(i for i in found if i.model_b and i.quantity == "lambda_")
    assert pair.lost > 0 and "resamples are infeasible" in pair.degenerate and math.isnan(pair.low)


# --- verdicts ----------------------------------------------------------------------------------


def settings(path, *rows):
    base = dict(n=1000, rounds=1, shape="s", epsilon=0.1, capped=False, test="t", quantity="q")
    base |= dict(coverage=None, replications=9, degenerate=0)
    path.write_text(json.dumps([{**base, **row} for row in rows]))
    return measured_settings(path)


def test_support_needs_a_passed_setting_no_easier_and_no_failure_no_harder(tmp_path, monkeypatch):
    rows = settings(
        tmp_path / "c.json",
        dict(null="items", ess=500.0, epsilon=0.3, error=0.07),  # tail 1.16
        dict(null="items", ess=100.0, epsilon=1.0, error=0.20),  # tail 1.15
        dict(null="items", quantity="uneven", ess=100.0, epsilon=1.0, error=0.05),
        dict(null="items", quantity="uneven", ess=600.0, epsilon=0.3, error=0.08),  # tail .85
        dict(null="rounds", ess=0.0, rounds=10, error=0.07),
    )
    monkeypatch.setattr(calibration, "measured_settings", lambda: rows)

    def over_items(ess, n, epsilon, quantity="q", test="t"):
        return supports_over_items(test, quantity, ess=ess, n=n, epsilon=epsilon)

    assert over_items(500, 1_000, 0.3) and over_items(600, 1_000, 0.3)
    assert not over_items(90, 120, 0.14)  # nothing with so few has passed
    assert not over_items(5_000, 50_000, 0.3)  # many samples, but a heavier tail than any that passed
    assert over_items(300, 1_000, 0.6, "uneven") is False  # an easier setting has failed
    assert over_items(700, 1_000, 0.3, "uneven") is True
    assert supports_over_rounds("t", "q", 10) and not supports_over_rounds("t", "q", 9)
    assert not over_items(1e6, 1_000_000, 0.3, test="other")


def test_tail_is_one_for_normal_scores():
    g = stats.norm.ppf((np.arange(200_000) + 0.5) / 200_000)
    assert tail(solve_dual(g, epsilon=0.3).ess, len(g), 0.3) == pytest.approx(1, abs=0.01)


def test_stored_calibration_lets_no_test_over_rounds_speak_about_items():
    on_items = [s for s in measured_settings() if s.null == "items" and s.test == "paired_t"]
    assert min(s.error for s in on_items) > 0.07 and min(s.error for s in on_items if s.rounds == 99) > 0.4
    assert not supports_over_items("paired_t", "worst_case", ess=999, n=1_000, epsilon=0.01)
    assert not supports_over_items("delta", "worst_case", ess=6, n=300, epsilon=3.0)
    assert not supports_over_items("delta", "worst_case", ess=2.2, n=20, epsilon=3.0)
    assert supports_over_items("delta", "worst_case", ess=900, n=1_000, epsilon=0.05)
    assert not supports_over_items("delta", "worst_case", ess=130, n=1_000, epsilon=0.5)
    assert supports_over_rounds("paired_t", "worst_case", 99)


def verdict_of(scores, epsilon, gamma=None):
    s = solve_rounds(scores, epsilon=epsilon, gamma=gamma)
    return verdicts(s, ht.pairwise_tests(s), effect_sizes(s), delta_inference(scores, s))[0]


def test_verdicts_say_what_holds_and_conditional_on_what():
    far = verdict_of(simulated(rounds=6, n=400, shift=0.3), 0.05)
    assert far.claim == "items" and far.sentence.startswith(
        "m0 has a higher worst-case log-likelihood than m1"
    )
    assert "for items like these 400, averaged over these 6 rounds" in far.sentence
    assert "source's reading (not a claim" in far.source_reading and "more uneven" in far.source_reading
    single = verdict_of(simulated(rounds=1, n=400, shift=0.3), 0.05)
    assert single.claim == "items" and "in this one round" in single.sentence
    small = verdict_of(simulated(rounds=20, n=100, shift=0.5), 3.0)
    assert (
        small.claim == "rounds" and "on these 100 items only" in small.sentence and "ESS = " in small.sentence
    )
    lone = verdict_of(simulated(rounds=1, n=100, shift=0.5), 3.0)
    assert lone.claim == "descriptive" and "Descriptive: ESS = " in lone.sentence
    same = simulated(rounds=20, n=400, seed=6)
    undecided = verdict_of(same, 0.05)
    assert undecided.claim == "undecided" and "rounds would settle it" in undecided.sentence


def test_a_model_compared_with_itself_is_degenerate_everywhere():
    scores = simulated(rounds=6)
    twice = replace(
        scores,
        log_likelihood=scores.log_likelihood[[0, 0]],
        certainty=scores.certainty[[0, 0]],
        sum_log_prob=scores.sum_log_prob[[0, 0]],
    )
    s = solve_rounds(twice, epsilon=0.1)
    assert all(t.degenerate for t in ht.pairwise_tests(s) if t.test in ("paired_t", "wilcoxon", "sign_flip"))
    found = verdicts(s, ht.pairwise_tests(s), effect_sizes(s), delta_inference(twice, s))[0]
    assert found.claim == "descriptive" and "have the same worst-case" in found.sentence
