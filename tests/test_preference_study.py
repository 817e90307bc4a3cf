"""The preference experiment: its arms, its prediction, and a report of outcomes whose answer is known."""

import csv
import dataclasses
import math

import numpy as np
import pytest
from scipy.stats import entropy

from klball.data.builtin import load_builtin
from klball.files import write_csv
from klball.objectives.pairs import no_preference_radius
from klball.studies import preference, preference_summary
from klball.studies.arms import Options
from klball.studies.beliefs import _majority_pairs, distances, js_distance
from klball.studies.preference_summary import Outcome, predicted_share, stopping_radii
from klball.training.weights import WEIGHTS_FILE

OPTIONS = Options(experiment="preference", epsilons=[0.0, 0.05, 0.1, 0.2, 0.5], flips=[0.0, 0.2, 0.3])


def test_arms_cross_flips_radii_directions_and_units_and_have_folders_of_their_own():
    arms = preference.arms_of(OPTIONS)
    assert len({arm.folder for arm in arms}) == len(arms)
    for flip in OPTIONS.flips:
        own = [arm for arm in arms if arm.flip == flip and arm.kind != "comparator"]
        assert {arm.kind for arm in own} == {"plain", "pairs", "optimistic", "groups"}
        assert [arm.epsilon for arm in own if arm.kind == "pairs"] == [0.05, 0.1, 0.2, 0.5]
    compared = [arm for arm in arms if arm.kind == "comparator"]
    assert {arm.flip for arm in compared} == {0.2} and len(compared) == 7


@pytest.mark.parametrize("flips", [[0.0], [0.1], [0.2]])
@pytest.mark.parametrize("epsilons", [[0.0], [0.0, 0.05], [0.1, 0.2]])
def test_every_arm_is_a_configuration(flips, epsilons, tmp_path):
    options = Options(experiment="preference", epsilons=epsilons, flips=flips)
    for arm in preference.arms_of(options):
        settings = {**preference.run_settings(tmp_path, 4, 0, options), **arm.settings}
        assert preference.RobustDPOConfig(**settings).epsilon == arm.epsilon


@pytest.mark.parametrize("flip", [0.05, 0.1, 0.2, 0.3, 0.45])
def test_the_predicted_margin_is_that_of_the_solved_problem(flip):
    """One feature, all pairs alike but for their label: the minimax margin by a grid."""
    limit = no_preference_radius(flip)
    assert predicted_share(flip, 0.0) == pytest.approx(1.0)
    assert predicted_share(flip, limit * 1.001) == 0.0 < predicted_share(flip, limit * 0.98)
    epsilon = limit / 3
    q = np.linspace(flip, 0.5, 200_001)[1:-1]
    kl = q * np.log(q / flip) + (1 - q) * np.log((1 - q) / (1 - flip))
    most = q[kl <= epsilon].max()
    margin = np.linspace(0, 4, 4001)
    worst = most * np.logaddexp(0, margin) + (1 - most) * np.logaddexp(0, -margin)
    plain = flip * np.logaddexp(0, margin) + (1 - flip) * np.logaddexp(0, -margin)
    assert predicted_share(flip, epsilon) == pytest.approx(
        margin[worst.argmin()] / margin[plain.argmin()], abs=2e-3
    )


def outcomes():
    """Margins as the theory has them, and accuracies that fall with the radius."""
    found = []
    for flip in (0.2, 0.3):
        for epsilon in (0.0, 0.05, 0.1, 0.2, 0.4):
            margin = predicted_share(flip, epsilon)
            kind = "pairs" if epsilon else "plain"
            found += [
                Outcome(
                    f"{kind} {epsilon:g}",
                    kind,
                    flip,
                    epsilon,
                    seed,
                    300,
                    0.5 + margin / 4,
                    0.5,
                    0.9,
                    0.4,
                    margin,
                    0.6,
                    0.1,
                    0.9,
                )
                for seed in (0, 1)
            ]
    return found


def test_the_radius_at_which_learning_stops_is_found_between_those_tried():
    for row in stopping_radii(outcomes()):
        assert row["predicted"] == no_preference_radius(row["flip"])
        tried = [0.0, 0.05, 0.1, 0.2, 0.4]
        above = next(e for e in tried if predicted_share(row["flip"], e) < 0.1)
        assert tried[tried.index(above) - 1] < row["measured"] <= above
    always = [o for o in outcomes() if o.epsilon < 0.04 or o.epsilon == 0.05]
    assert all(
        math.isinf(row["measured"]) and row["text"].startswith("no ε up to 0.05")
        for row in stopping_radii(always)
    )


def test_of_the_heaviest_pairs_the_flipped_are_counted(tmp_path):
    write_csv(tmp_path / WEIGHTS_FILE, [{"n_q": 2.0, "flipped": k != 1} for k in range(4)])
    assert preference_summary._top_flipped(tmp_path) == 0.75


def test_where_plain_dpo_learns_nothing_no_radius_stops_it(tmp_path):
    idle = [dataclasses.replace(outcome, margin=-outcome.margin - 0.1) for outcome in outcomes()]
    for row in stopping_radii(idle):
        assert math.isnan(row["measured"]) and row["text"] == ", ".join(
            ["no ε: plain DPO learnt nothing"] * 2
        )


def test_the_report_says_where_learning_stopped(tmp_path, capsys):
    beliefs = [
        {
            "arm": arm,
            "seed": 0,
            "js_distance": js,
            "minority_js": js,
            "minority_share": 0.5,
            "minority_target": 0.9,
        }
        for arm, js in (("SFT", 0.2), ("GDPO", 0.1))
    ]
    preference_summary.report(outcomes(), beliefs, tmp_path)
    told = capsys.readouterr().out
    assert "where learning stops" in told and "0.2231" in told
    page = (tmp_path / "report.html").read_text()
    assert "With 20% of the labels flipped" in page and "GDPO comes nearest to the shares of beliefs" in page
    with (tmp_path / "stops.csv").open() as file:
        assert [float(row["flip"]) for row in csv.DictReader(file)] == [0.2, 0.3]
    assert (tmp_path / "figures" / "radius.svg").exists()


def test_the_chart_of_margins_holds_the_measured_ones_against_the_theory():
    """Margins as the theory has them lie on its line, which is drawn once."""
    seeds = [dataclasses.replace(o, margin=o.margin * (1 + 0.1 * o.seed)) for o in outcomes()]
    *measured, theory = preference_summary.margin_chart(preference_summary.summarise(seeds)).series
    assert [series.name for series in (*measured, theory)] == ["flips 0.2", "flips 0.3", "one feature"]
    line = dict(zip(theory.x, theory.y, strict=True))
    most = measured[-1]
    assert [line[x] for x in most.x] == pytest.approx(list(most.y)) and line[1.0] == 0.0
    assert most.y_error[0] == pytest.approx(np.array(most.y) * np.std([1, 1.1], ddof=1) / 1.05)
    radii = [epsilon / no_preference_radius(0.3) for epsilon in (0.05, 0.1, 0.2, 0.4)]
    assert list(most.x[1:]) == pytest.approx(radii) and 0 < most.x[0] < min(measured[0].x[1:])


def test_without_flips_there_are_no_margins_to_predict(tmp_path):
    clean = [dataclasses.replace(o, flip=0.0) for o in outcomes() if o.flip == 0.2]
    chart = preference_summary.margin_chart(preference_summary.summarise(clean))
    assert not chart.series
    preference_summary.report(clean, [], tmp_path)


def test_distances_are_zero_at_p_star_and_know_the_minority():
    test = load_builtin("beliefs", "test")[:40]
    exact = [np.log(row["p_star"]) - 3.0 for row in test]
    assert distances(test, exact)["js_distance"] == pytest.approx(0.0, abs=1e-7)
    assert distances(test, exact)["minority_share"] == pytest.approx(
        distances(test, exact)["minority_target"]
    )
    flat = [np.zeros(len(row["p_star"])) for row in test]
    assert distances(test, flat)["minority_share"] < distances(test, flat)["minority_target"]
    p, q = np.array([0.2, 0.8, 0.0]), np.array([0.5, 0.25, 0.25])
    middle = (p + q) / 2
    assert js_distance(p, q) == pytest.approx(math.sqrt((entropy(p, middle) + entropy(q, middle)) / 2))


def test_dpo_prefers_what_more_of_the_group_believe():
    rows = load_builtin("beliefs", "train")
    for row, pair in zip(rows, _majority_pairs(rows), strict=True):
        chosen, rejected = (pair[name][0]["content"].split("\n")[0] for name in ("chosen", "rejected"))
        share = dict(zip(row["beliefs"], row["p_star"], strict=True))
        assert share[chosen] >= share[rejected] and chosen != rejected
        assert row["belief"] in (chosen, rejected)
