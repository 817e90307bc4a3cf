"""The one line that a verdict begins with, and the differences of means that it speaks of."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

import klball
from klball import solve_dual
from klball.comparison.analysis import compare_scores
from klball.comparison.averages import MeanDifference, mean_differences
from klball.comparison.calibration import LEAST_ESS, MOST_ERROR
from klball.comparison.elsewhere import RoundsElsewhere
from klball.comparison.plain_words import Side, plain_line
from klball.comparison.rounds import largest_epsilon_with_ess
from klball.report.pages.comparison import comparison_page
from simulated_rounds import simulated

UNITS = ("0.2 nats per token", "0.01 nats per token")


@pytest.mark.parametrize(
    ("hard", "average", "line"),
    [
        (1, -1, "b is better than a on hard prompts (by {}), but worse on average (by {}), SCOPE."),
        (-1, 1, "b is worse than a on hard prompts (by {}), but better on average (by {}), SCOPE."),
        (1, 1, "b is better than a on hard prompts (by {}) and on average (by {}), SCOPE."),
        (-1, 0, "b is worse than a on hard prompts (by {}) and not clearly different on average, SCOPE."),
        (0, 1, "b is not clearly different from a on hard prompts and better on average (by {1}), SCOPE."),
        (0, 0, "b is not clearly different from a on hard prompts or on average, SCOPE."),
        (
            None,
            1,
            "b is better than a on average (by {1}), SCOPE. Nothing can be said on hard prompts: the data do "
            "not suffice.",
        ),
        (
            1,
            None,
            "b is better than a on hard prompts (by {}), SCOPE. Nothing can be said on average: the data do "
            "not suffice.",
        ),
        (None, None, "Whether b is better than a cannot be told: the data do not suffice."),
    ],
)
def test_a_line_says_who_is_better_where_and_by_how_much(hard, average, line):
    sides = Side("on hard prompts", hard, UNITS[0]), Side("on average", average, UNITS[1])
    assert plain_line("b", "a", sides, "SCOPE") == line.format(*UNITS)


def scores(columns, **flags):
    """Models of one column, rows an item, or an item and round."""
    read = {model: klball.scores_from(values, id="id", **flags) for model, values in columns.items()}
    return klball.round_scores(read)


def of_items(values, name="judge"):
    return {"id": [str(i) for i in range(len(values))], name: values}


def of_tokens(*models):
    """The same of log-likelihoods, which are asked at two radii."""
    g = np.stack(models)[:, None]
    return replace(simulated(len(g), rounds=1, n=g.shape[-1]), log_likelihood=g, sum_log_prob=g)


def test_better_on_hard_items_and_worse_on_average(tmp_path):
    """The worst items of a gain .3, all others lose .05."""
    rng = np.random.default_rng(0)
    a = rng.normal(size=2_000)
    b = np.where(a < -1.0, a + 0.3, a - 0.1) + 0.1 * rng.normal(size=2_000)
    found = klball.compare_scores(scores({"a": of_items(a), "b": of_items(b)}), 0.5)
    (line,) = found.lines()
    by = found.asked.solutions.worst_case[1, 0] - found.asked.solutions.worst_case[0, 0]
    loss = a.mean() - b.mean()
    assert by > 0 and loss > 0
    sizes = [f"(by {size:.3g} points of judge)" for size in (by, loss)]
    assert line == (
        f"b is better than a on each model's own hard items {sizes[0]}, but worse on average {sizes[1]}, for "
        "items like these 2000."
    )
    (average,) = found.on_average()
    low, high = stats.ttest_rel(a, b).confidence_interval()
    assert f"a has a higher judge than b, by {loss:.3g} points of judge (over 2000 items: 95 %" in average
    assert f"interval of a − b: {low:.3g} to {high:.3g}, Holm p < 0.001" in average
    lost = {"a": of_items(-a, "loss"), "b": of_items(-b, "loss")}
    as_loss = klball.compare_scores(scores(lost, lower_is_better=True), 0.5)
    assert as_loss.lines() == [line.replace("points of judge", "points of loss")]
    assert f"a has a lower loss than b, by {loss:.3g} points of loss" in as_loss.on_average()[0]
    page = comparison_page(found, RoundsElsewhere({}), tmp_path)
    assert page.headline == [line] and page.verdict[-1] == average


def test_a_claim_over_rounds_is_on_these_items_only():
    """Items differ much more than rounds do: nothing is said of other items."""
    rng = np.random.default_rng(1)
    g, effect = rng.normal(size=300), 0.02 + 0.6 * rng.normal(size=300)
    effect += 0.02 - effect.mean()

    def rounds(shift):
        noise = 0.05 * rng.normal(size=(20, 300))
        values = (g + shift + noise).ravel()
        return {"id": [str(i) for i in range(300)] * 20, "seed": np.repeat(range(20), 300), "judge": values}

    found = klball.compare_scores(scores({"a": rounds(0), "b": rounds(effect)}, round="seed"), 0.01)
    claims = {analysis.verdicts[0].claim for analysis in found.analyses()}
    (line,) = found.lines()
    assert claims == {"rounds"} and line.endswith("on these 300 items only.")
    assert (
        "on average (by 0.0" in line and "(over 20 rounds, on these items only: 95 %" in found.on_average()[0]
    )


def test_undecided_over_rounds_says_nothing_of_other_items():
    """A heavy tail: at an effective sample size of 40 no test over items holds."""
    rng = np.random.default_rng(1)
    n, rounds = 90, 8
    g = -np.exp(rng.normal(size=n))
    ids, seeds = [str(i) for i in range(n)] * rounds, np.repeat(range(rounds), n)
    columns = {
        model: {"id": ids, "seed": seeds, "judge": (g + 0.3 * rng.normal(size=(rounds, n))).ravel()}
        for model in "ab"
    }
    found = klball.compare_scores(scores(columns, round="seed"), 0.2)
    (verdict,) = found.asked.verdicts
    assert verdict.claim == "undecided" and not verdict.over_items
    assert found.lines()[0].endswith("on these 90 items only.")


def test_contrary_claims_of_two_radii_are_both_said_and_the_one_asked_for_leads():
    z = np.random.default_rng(5).normal(size=1_000)
    found = klball.compare_scores(scores({"a": of_items(-5 + z), "b": of_items(-4.85 + 1.3 * z)}), 0.05)
    assert found.wide is None  # at .05 there is enough, and of scores from elsewhere nothing else is asked
    found = klball.compare_scores(of_tokens(-5 + z, -4.85 + 1.3 * z), 0.05)
    (line,) = found.lines()
    by = [float(np.diff(a.solutions.worst_case[:, 0])[0]) for a in (found.asked, found.wide)]
    assert by[0] > 0 > by[1]
    assert line.startswith(
        f"m1 is better than m0 on each model's own hard prompts (by {by[0]:.3g} nats per token)"
    )
    radius = found.wide.solutions.epsilon
    assert line.endswith(f"At ε = {radius:.3g} it is the other way round (by {-by[1]:.3g} nats per token).")


def test_a_line_of_another_radius_than_asked_names_it():
    z, noise = np.random.default_rng(6).normal(size=(2, 1_000))
    found = klball.compare_scores(of_tokens(z, z + 0.3 + 0.1 * noise), 3.0)
    assert found.asked.verdicts[0].claim == "descriptive" and found.wide is not None
    assert f"own hard prompts at ε = {found.wide.solutions.epsilon:.3g} (by" in found.lines()[0]


def test_the_line_is_one_test_not_the_better_of_two():
    """Whichever of two radii is significant would err in .085 where each errs in .05."""
    rng, wide = np.random.default_rng(7), 0
    for _ in range(20):
        found = klball.compare_scores(of_tokens(*(rng.normal(size=400) + rng.normal(size=(2, 400)))), 0.1)
        (pair,) = found._pairs
        assert pair.solutions is found.asked.solutions and found.wide is not None
        wide += found.wide.judged(pair.models).claims and not pair.claims
    assert wide > 0


def test_with_several_pairs_claims_come_first_and_p_values_are_corrected():
    rng = np.random.default_rng(2)
    a = rng.normal(size=500)
    models = {"a": a, "b": a + 0.03 * rng.normal(size=500), "c": a + 0.2 + 0.1 * rng.normal(size=500)}
    of_models = scores({name: of_items(values) for name, values in models.items()})
    found = klball.compare_scores(of_models, 0.05)
    first, second, third = found.lines()
    assert first.startswith("c is better than a on") and second.startswith("c is better than b on")
    assert third.startswith("b is not clearly different from a")
    differences = [d for d in mean_differences(of_models) if d.over == "items"]
    p = [stats.ttest_rel(models[d.model_a], models[d.model_b]).pvalue for d in differences]
    holm = 10 ** -np.array([d.minus_log10_holm for d in differences])
    assert 10 ** -np.array([d.minus_log10_p for d in differences]) == pytest.approx(p, rel=1e-6)
    assert holm[0] == pytest.approx(p[0]) and max(holm[1:]) < 1e-6  # the largest of three is not raised


@pytest.mark.parametrize("shape", ["gamma", "lognormal", "exchangeable", "accuracy"])
def test_the_mean_of_thirty_items_may_support_a_claim(shape):
    """Type I error of the paired t at level .05, as benchmarks/type_one_error.py measures the others."""
    rng = np.random.default_rng(3)
    n = (20_000, int(LEAST_ESS))
    a = rng.gamma(2, size=n) if shape == "gamma" else rng.lognormal(0, 0.5, size=n)
    if shape == "exchangeable":
        d = a - rng.lognormal(0, 0.5, size=n)
    elif shape == "accuracy":
        d = (rng.random(n) < 0.8).astype(float) - (rng.random(n) < 0.8)
    else:  # b is less spread around the same mean
        mean = 2.0 if shape == "gamma" else np.exp(0.125)
        d = 0.5 * (a - mean) + 0.2 * rng.normal(size=n)
    with np.errstate(all="ignore"):
        t = d.mean(axis=1) / d.std(axis=1, ddof=1) * np.sqrt(n[1])
    assert (np.abs(t) > stats.t.ppf(0.975, n[1] - 1)).mean() <= MOST_ERROR


@pytest.mark.parametrize(
    ("over", "count", "value", "holm", "better"),
    [
        ("items", 29, -1.0, 9.0, None),
        ("items", 30, -1.0, 9.0, 1),
        ("items", 30, 1.0, 9.0, -1),
        ("items", 30, -1.0, 1.2, 0),
        ("rounds", 2, -1.0, 9.0, None),
        ("rounds", 20, -1.0, 9.0, 1),
    ],
)
def test_means_are_judged_where_enough_is_drawn(over, count, value, holm, better):
    difference = MeanDifference("a", "b", over, count, value, value - 1, value + 1, holm, holm)
    assert difference.better == better


def test_equal_models_are_the_same():
    a = np.random.default_rng(4).normal(size=200)
    found = klball.compare_scores(scores({"a": of_items(a), "b": of_items(a)}), 0.05)
    assert found.on_average() == ["On average a and b have the same judge."]
    assert "b is better" not in found.lines()[0] and "worse" not in found.lines()[0]


def test_a_line_without_the_bound_on_the_certainty_says_so():
    """The radius is the one asked for, and the line does not speak of what was asked for."""
    scores = simulated(n=400)
    epsilon = largest_epsilon_with_ess(scores)
    least = max(solve_dual(loss=-c, epsilon=epsilon).worst_case for own in scores.certainty for c in own)
    found = compare_scores(scores, epsilon, float(least) - 1e-3)  # one round cannot keep it
    (line,) = found.lines()
    assert found.wide is not None and found.wide.solutions.epsilon == epsilon
    assert "own hard prompts without γ" in line
    assert " without γ" not in compare_scores(scores, epsilon).lines()[0]
