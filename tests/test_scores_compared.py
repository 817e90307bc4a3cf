"""What klball makes of scores from elsewhere: worst cases, profiles and verdicts, against closed forms."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from scipy import stats
from scipy.optimize import brentq

import klball
from klball.comparison.averages import MeanDifference
from klball.comparison.effects import effect_sizes
from klball.comparison.rounds import largest_epsilon_with_ess, round_scores
from klball.comparison.verdicts import verdicts
from klball.report.pages.elsewhere import item_lines
from klball.scores.elsewhere.expression import direction
from klball.scores.elsewhere.report import item_report
from klball.scores.measure import accuracy, points


def bernoulli_worst(p, epsilon):
    """The share of ones whose divergence from p is ε."""

    def gap(q):
        return stats.entropy([q, 1 - q], [p, 1 - p]) - epsilon

    return brentq(gap, 1e-12, p)


@pytest.mark.parametrize("epsilon", [0.01, 0.1, 0.5])
def test_the_worst_accuracy_is_the_inverse_of_the_bernoulli_divergence(epsilon):
    scores = klball.scores_from({"correct": [1] * 70 + [0] * 30})
    solution = scores.solve(epsilon)
    assert solution.worst_case == pytest.approx(bernoulli_worst(0.7, epsilon), abs=1e-9)
    profile = scores.profile([0.0, epsilon])
    assert profile.robust_loss == pytest.approx([-0.7, -solution.worst_case])


def test_a_shift_and_a_scale_of_the_score_shift_and_scale_the_worst_case():
    x = np.random.default_rng(1).normal(size=200)
    plain = klball.scores_from({"x": x}).solve(0.2)
    moved = klball.scores_from({"x": x}, score="3*x + 100").solve(0.2)
    assert moved.worst_case == pytest.approx(3 * plain.worst_case + 100)
    np.testing.assert_allclose(moved.weights, plain.weights, atol=1e-12)
    loss = klball.scores_from({"loss": -x}, lower_is_better=True).solve(0.2)
    assert loss.worst_case == pytest.approx(plain.worst_case)


def compared(**columns):
    """Two models on 400 items: the second is better on average."""
    (name, first), second = next(iter(columns.items())), list(columns.values())[1]
    flag = {"lower_is_better": True} if direction(name) < 0 else {}
    models = {
        model: klball.scores_from({name: values}, id="none", **flag)
        for model, values in (("a", first), ("b", second))
    }
    return klball.compare_scores(klball.round_scores(models), 0.1)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("correct", "b has a higher worst-case accuracy (correct) than a at ε = 0.1, by {:.3g} in accuracy"),
        ("judge", "b has a higher worst-case judge than a at ε = 0.1, by {:.3g} points of judge"),
        ("loss", "b has a lower worst-case loss than a at ε = 0.1, by {:.3g} points of loss"),
    ],
)
def test_verdicts_name_what_and_how_much_in_its_unit(name, sentence):
    rng = np.random.default_rng(2)
    first, second = rng.random(400) < 0.6, rng.random(400) < 0.8
    if name == "loss":
        first, second = ~first, ~second
    found = compared(**{name: first.astype(float), "other": second.astype(float)})
    (verdict,) = found.asked.verdicts
    p = [1 - x.mean() if name == "loss" else x.mean() for x in (first, second)]
    size = bernoulli_worst(p[1], 0.1) - bernoulli_worst(p[0], 0.1)
    assert verdict.sentence.startswith(sentence.format(size)) and verdict.claim == "items"
    who = "a − b" if name == "loss" else "b − a"
    low, high = verdict.sentence.split(f"interval of {who}: ")[1].split(",")[0].split(" to ")
    assert 0 < float(low) < size < float(high)
    assert "token" not in verdict.sentence and "log-likelihood" not in verdict.sentence
    assert {row.quantity for row in (*found.asked.tests, *found.asked.items)} == {"worst_case", "lambda_"}
    assert found.wide is None  # an effective sample size of 100 is there


def test_the_largest_radius_is_one_at_which_the_ball_binds():
    acc = {"acc": [1.0] * 600 + [0.0] * 400}
    with pytest.raises(ValueError, match=r"the dict has no column of ids.*--id none"):
        round_scores({m: klball.scores_from(acc) for m in "ab"})
    scores = round_scores({m: klball.scores_from(acc, id="none") for m in "ab"})
    radius = largest_epsilon_with_ess(scores)
    assert radius is not None and radius < -np.log(0.4)
    assert klball.solve_rounds(scores, epsilon=radius).lambda_.min() > 0
    with pytest.raises(ValueError, match="without certainty"):
        klball.solve_rounds(scores, epsilon=0.1, gamma=1.0)
    with pytest.raises(ValueError, match="per byte"):
        scores.per_byte()


def test_where_the_worst_case_is_the_least_score_a_smaller_radius_is_judged_too():
    """6 % right: at ε = 0.1 the worst case is 0 already, and there is no test of it."""
    first = np.arange(300) < 18
    found = compared(correct=1.0 * first, other=1.0 * (np.arange(300) < 120))
    assert found.wide is not None and found.wide.solutions.epsilon == 0.05
    assert "the worst case is the least score of all (λ = 0)" in found.asked.verdicts[0].sentence
    assert found.wide.verdicts[0].claim == "items" and not found.caution()


def test_profiles_of_any_sign_fall_and_are_concave():
    scores = klball.scores_from({"x": np.random.default_rng(3).normal(5, 1, 300)})
    found = -np.array(scores.profile([0.0, 0.1, 0.2, 0.3]).robust_loss)
    steps = [b - a for a, b in pairwise(found)]
    assert found[0] == pytest.approx(scores.values.mean()) and steps[0] < steps[1] < steps[2] < 0


@pytest.mark.parametrize(
    ("n", "said"), [(50, "b is worse than a on average (by 1 in accuracy)"), (29, "cannot")]
)
def test_where_every_item_says_the_same_it_is_said(n, said):
    """Of `evaluate`, as of `compare`: there is no spread, so no interval."""
    models = {"a": np.ones(n), "b": np.zeros(n)}
    (line,) = item_lines(item_report(models, accuracy("correct"), "a"))
    assert said in line


def test_claims_are_by_holm_and_not_by_a_p_value_alone():
    rng = np.random.default_rng(2)
    found = compared(correct=1.0 * (rng.random(400) < 0.6), other=1.0 * (rng.random(400) < 0.8)).asked
    for holm, claim, better in ((9.0, "items", 1), (1.2, "undecided", 0)):
        items = [replace(item, minus_log10_p=9.0, minus_log10_holm=holm) for item in found.items]
        (verdict,) = verdicts(found.solutions, found.tests, effect_sizes(found.solutions), items)
        mean = MeanDifference("a", "b", "items", 400, -0.2, -0.3, -0.1, 9.0, minus_log10_holm=holm)
        assert (verdict.claim, mean.better) == (claim, better)


def test_tails_of_items():
    """Equal scores have no hardest 1 %; shares stay between 0 and 1; differences of tails are paired."""
    right = {"a": 1.0 * (np.arange(400) > 20), "b": 1.0 * (np.arange(400) == 7)}
    rows = {(row["model"], row["name"]): row for row in item_report(right, accuracy("x"), "a").rows}
    low, high = (stats.beta.ppf(p, k, 401 - k) for p, k in ((0.025, 1), (0.975, 2)))  # of 1 in 400
    assert ("a", "hardest_1pct") not in rows
    assert (rows["b", "mean"]["low"], rows["b", "mean"]["high"]) == pytest.approx((low, high))
    rng = np.random.default_rng(0)
    x = rng.normal(size=2_000)
    report = item_report({"a": x, "b": x + 0.01 * rng.normal(size=2_000)}, points("x"), "a")
    rows = {(row["model"], row["name"]): row for row in report.rows}
    (line,) = item_lines(item_report({"a": -x, "b": 1 - x}, points("x", loss=True), "a"))
    assert line.startswith("b is better than a on the worst 5 % (by 1 points of x) and on average (by 1 ")
    tail = rows["b", "cvar_0.05"]
    assert ("a", "hardest_1pct") in rows
    assert 0 < 10 * (tail["difference_high"] - tail["difference_low"]) < tail["high"] - tail["low"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epsilon": 0}, "epsilon must be above 0, not 0: without a ball λ is infinite"),
        ({"epsilon": -1.0}, "epsilon must be a finite number, 0 or more"),
        ({"epsilon": 0.1, "resamples": 1.5}, "or a whole number from 40 on.*, not 1.5"),
        *(
            ({"epsilon": 0.1, "resamples": k}, f"or a whole number from 40 on.*, not {k}")
            for k in (-3, 1, 39)
        ),
    ],
)
def test_a_comparison_without_a_ball_or_with_no_such_resamples_is_refused(settings, message):
    of_models = {name: klball.scores_from({"correct": [1, 0, 1, 1]}, id="none") for name in ("a", "b")}
    with pytest.raises(ValueError, match=message):
        klball.compare_scores(klball.round_scores(of_models), **settings)
