"""Inference over items and verdicts: finite differences, Monte Carlo, resampled data, stored errors."""

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from klball import solve_dual
from klball.comparison import calibration
from klball.comparison import hypothesis_tests as ht
from klball.comparison.calibration import measured_settings, supports_over_items, supports_over_rounds, tail
from klball.comparison.effects import effect_sizes
from klball.comparison.items import bootstrap, delta_inference, influence
from klball.comparison.rounds import (
    RoundScores,
    propose_gamma,
    solve_rounds,
)
from klball.comparison.verdicts import verdicts
from simulated_rounds import simulated

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
def test_influence_does_not_depend_on_the_order_of_items_that_weigh_nothing(gamma):
    scores = simulated(models=1, rounds=1, n=60)
    scores.log_likelihood[0, 0, 0] = 1_000.0  # its weight is below what a float holds
    turned = replace(
        scores, log_likelihood=scores.log_likelihood[..., ::-1], certainty=scores.certainty[..., ::-1]
    )
    of_item, of_turned = (influence(x, solve_rounds(x, epsilon=0.5, gamma=gamma)) for x in (scores, turned))
    for name, effect in of_item.items():
        assert np.isfinite(effect).all()
        assert effect[0, 0] == pytest.approx(of_turned[name][0, 0, ::-1], rel=1e-6, abs=1e-9)


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
    assert all("(λ = 0) in 4 of 4 rounds" in i.degenerate and math.isnan(i.se) for i in found)
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


def test_few_resamples_make_no_interval_and_say_so():
    scores = simulated(rounds=1, n=40)
    s = solve_rounds(scores, epsilon=0.3)
    for count in (1, 2, 39):
        for found in bootstrap(scores, s, resamples=count).inference():
            assert found.degenerate == f"{count} resamples are too few for an interval" and math.isnan(
                found.low
            )
    kept = [i for i in bootstrap(scores, s, resamples=40).inference() if i.quantity == "worst_case"]
    assert all(math.isfinite(i.low) for i in kept)


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
    some = verdict_of(simulated(rounds=20, n=400, shift=50.0), 0.5)  # p over items is tiny, and void
    assert some.claim == "rounds" and "on these 400 items only" in some.sentence and "ESS = " in some.sentence
    assert "over rephrasings like these (" in some.sentence
    small = verdict_of(simulated(rounds=20, n=100, shift=50.0), 3.0)  # however sure the rounds are
    assert small.claim == "descriptive" and small.sentence.startswith("Descriptive: ESS = ")
    assert "on these 100 items (95 % interval" in small.sentence and " p " not in small.sentence
    lone = verdict_of(simulated(rounds=1, n=100, shift=0.5), 3.0)
    assert lone.claim == "descriptive" and "Descriptive: ESS = " in lone.sentence
    same = simulated(rounds=20, n=400, seed=6)
    undecided = verdict_of(same, 0.05)
    assert undecided.claim == "undecided" and "rounds would settle it" in undecided.sentence


@pytest.mark.parametrize(("n", "epsilon"), [(400, 0.05), (400, 1.0), (100, 3.0)])
@pytest.mark.parametrize("shift", [-0.5, 0.5, 0.01, -0.01])
def test_a_sentence_has_one_sign_and_one_format_of_p(n, epsilon, shift):
    """The interval is that of the difference which the sentence names, whichever model is ahead."""
    scores = simulated(rounds=20, n=n, shift=shift)
    verdict = verdict_of(scores, epsilon)
    s = solve_rounds(scores, epsilon=epsilon)
    (effect,) = [e for e in effect_sizes(s) if e.quantity == "worst_case"]
    higher, lower = ("m0", "m1") if effect.mean > 0 else ("m1", "m0")
    assert f"{higher} has a higher worst-case log-likelihood than {lower}" in verdict.sentence
    assert f"by {abs(effect.mean):.3g} nats" in verdict.sentence
    found = re.findall(r"95 % interval of (\w+) − (\w+): ([−\d.e]+) to ([−\d.e]+)", verdict.sentence)
    assert found and {pair[:2] for pair in found} == {(higher, lower)}
    for *_, low, high in found:
        bounds = [float(x.replace("−", "-")) for x in (low, high)]
        assert bounds[0] <= bounds[1] and bounds[1] > 0
    for p in re.findall(r" p [=<] [\d.]+", verdict.sentence):
        assert re.fullmatch(r" p (= 0\.\d{3}|< 0\.001)", p)


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
