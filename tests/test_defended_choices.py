"""What a comparison may say before sceptics: nothing that its numbers do not hold."""

import logging
import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import klball
from klball.comparison.averages import mean_differences
from klball.comparison.elsewhere import RoundsElsewhere, group_report
from klball.comparison.rounds import round_scores
from klball.comparison.verdicts import HEAVY
from klball.report.charts import profile_charts
from klball.report.figures import draw
from klball.report.pages.comparison import comparison_page
from klball.report.pages.elsewhere import item_lines
from klball.scores.accuracy import pair_report
from klball.scores.answers import answer_report
from klball.scores.elsewhere.reading import scores_by_column
from klball.scores.elsewhere.report import item_report
from klball.scores.measure import PER_TOKEN, accuracy, points
from klball.scores.perplexity import ProfilePoint
from klball.scores.tails import own_mean_interval


def read(columns, **flags):
    """Models of their own columns, with ids unless they have some."""
    n = len(next(iter(next(iter(columns.values())).values())))
    ids = {"id": [str(i) for i in range(n)]}
    return {model: klball.scores_from({**ids, **own}, **flags) for model, own in columns.items()}


# --- right and wrong --------------------------------------------------------------------------------


def test_of_right_and_wrong_nothing_is_said_of_hard_items(tmp_path):
    """The worst case follows from the accuracy: on the items that are hard tuned is the worse one."""
    rng = np.random.default_rng(0)
    hard = np.arange(1_000) < 200
    base = rng.random(1_000) < np.where(hard, 0.5, 0.7)
    tuned = rng.random(1_000) < np.where(hard, 0.3, 0.9)
    groups = np.where(hard, "hard", "easy")
    columns = {m: {"correct": 1.0 * v, "kind": groups} for m, v in (("base", base), ("tuned", tuned))}
    scores = round_scores(read(columns, score="correct", group="kind"))
    found = klball.compare_scores(scores, 0.1)
    (line,) = found.lines()
    assert line.startswith("tuned is better than base on average (by ") and "hard" not in line
    report = group_report(scores)
    assert report is not None and {row["name"] for row in report.rows} == {"group hard", "group easy"}
    page = comparison_page(found, RoundsElsewhere({}), tmp_path)
    (section,) = [section for section in page.sections if section.title == "Groups"]
    (table,) = section.parts
    by_group = {row["group"]: row for row in table.rows}
    assert str(by_group["hard"]["difference of tuned"]).startswith("−0.") and by_group["hard"]["items"] == 200
    assert [*table.columns.values()] == ["group", "items", "base", "tuned", "tuned − base"]


@pytest.mark.parametrize("loss", [False, True])
def test_of_right_and_wrong_by_any_name_there_is_no_tail(loss):
    values = {"a": np.arange(400) % 10 > 0, "b": np.arange(400) % 20 > 0}
    sign = -1.0 if loss else 1.0
    of_models = {model: sign * (own != loss) for model, own in values.items()}
    report = item_report(of_models, points("win", loss), "a")
    assert not report.has_tail and "worst 5 %" not in item_lines(report)[0]
    assert item_report({"a": np.arange(9.0), "b": np.ones(9)}, points("win"), "a").has_tail


def test_zeros_and_ones_called_no_more_than_a_score_are_right_and_wrong():
    for name in ("score", "Result"):
        for values in ([1, 0, 1], [True, False, True]):
            assert klball.scores_from({name: values}, id="none").measure == accuracy(name)
    assert klball.scores_from({"score": [1, 0, 0.5]}, id="none").measure == points("score")
    assert klball.scores_from({"win": [1, 0, 1]}, id="none").measure == points("win")


@pytest.mark.parametrize(("right", "n"), [(297, 300), (300, 300), (0, 5), (1, 4)])
def test_the_interval_of_an_accuracy_holds_near_one(right, n):
    """Clopper and Pearson's, by the beta quantiles."""
    values = 1.0 * (np.arange(n) < right)
    low = stats.beta.ppf(0.025, right, n - right + 1) if right else 0.0
    high = stats.beta.ppf(0.975, right + 1, n - right) if right < n else 1.0
    assert own_mean_interval(values) == pytest.approx((low, high))
    (row,) = [r for r in item_report({"a": values}, accuracy("x"), "a").rows if r["name"] == "mean"]
    (wrong,) = [r for r in item_report({"a": -values}, points("y", True), "a").rows if r["name"] == "mean"]
    (answer, *_) = answer_report({"accuracy": values})
    margin = np.where(values > 0, 1.0, -1.0)
    columns = {"loss": 2 - margin, "accuracy": values, "margin": margin, "group": np.full(n, None)}
    (pair,) = [r for r in pair_report(columns) if (r["metric"], r["part"]) == ("accuracy", "all")]
    for found in (row, wrong, answer, pair):
        assert (found["low"], found["high"]) == pytest.approx((low, high))


# --- rounding -----------------------------------------------------------------------------------------


def test_rounding_decides_nothing():
    """The same three scores in another order have another sum."""
    n = 60
    ids, seeds = [str(i) for i in range(n)] * 3, np.repeat(["1", "2", "3"], n)
    columns = {
        model: {"id": ids, "seed": seeds, "judge": np.repeat(own, n) + np.tile(np.arange(n) / 7, 3)}
        for model, own in (("a", (0.1, 0.2, 0.3)), ("b", (0.3, 0.2, 0.1)))
    }
    models = {m: klball.scores_from(own, score="judge", round="seed") for m, own in columns.items()}
    per_item = round_scores({m: own.per_item() for m, own in models.items()})
    a, b = per_item.log_likelihood[:, 0]
    assert (a != b).any() and np.allclose(a, b)
    (line,) = item_lines(item_report({"a": a, "b": b}, points("judge"), "a"))
    assert line.startswith("b is not clearly different from a on average")
    found = klball.compare_scores(per_item, 0.1)
    assert found.on_average() == ["On average a and b have the same judge."]
    assert "have the same worst-case judge" in found.said()[0][1]
    assert [d.value for d in mean_differences(round_scores(models))] == [0.0, 0.0]


# --- what cannot be told, and what is not decided -------------------------------------------------------


def test_a_tail_too_heavy_for_its_test_is_not_called_few_data():
    """Perplexities' tails are no better at any number of items; a smaller radius is."""
    rng = np.random.default_rng(1)
    loss = np.exp(rng.normal(size=2_000))
    columns = {"a": {"cost": loss}, "b": {"cost": loss * 1.2}}
    scores = round_scores(read(columns, lower_is_better=True))
    found = klball.compare_scores(scores, 0.2)
    assert found.asked.solutions.least_ess() > 100 and found.asked.verdicts[0].claim == "descriptive"
    assert f"own hard items: {HEAVY}." in found.lines()[0] and HEAVY in found.said()[0][1]
    assert "do not suffice" not in found.lines()[0]
    normal = klball.compare_scores(round_scores(read({m: {"judge": rng.normal(size=40)} for m in "ab"})), 0.1)
    assert normal.asked.solutions.least_ess() > 30 and "items: the data do not suffice" in normal.lines()[0]
    few = klball.compare_scores(
        replace(scores, sample_ids=scores.sample_ids[:20], log_likelihood=scores.log_likelihood[:, :, :20]),
        0.2,
    )
    assert "do not suffice" in few.lines()[0] and "there are only 20 items" in few.caution()


def test_means_say_when_they_are_undecided_or_of_too_few():
    rng = np.random.default_rng(2)
    for n, shift, begins in ((300, 0.0, "Undecided: on"), (300, 1.0, "On"), (20, 1.0, "Descriptive: on")):
        columns = {"a": {"judge": rng.normal(size=n)}, "b": {"judge": rng.normal(size=n) + shift}}
        (_, *_, said) = klball.compare_scores(round_scores(read(columns)), 0.1).on_average()[-1:] * 2
        assert said.startswith(f"{begins} average ")


# --- what is read ---------------------------------------------------------------------------------------


def test_the_column_of_ids_is_named_where_there_are_several_and_mispaired_items_are_refused():
    n = 40
    order = np.random.default_rng(3).permutation(n)
    rows = {"id": [str(i) for i in range(n)], "question_id": [f"q{i}" for i in range(n)]}
    rows |= {"prompt": [f"question {i}" for i in range(n)], "score": np.arange(n) / 3}
    turned = {
        "id": rows["id"],
        **{k: [rows[k][i] for i in order] for k in ("question_id", "prompt", "score")},
    }
    a, b = (klball.scores_from(own, score="score") for own in (rows, turned))
    assert a.notes == ("items are told apart by column id (there is question_id: --id)",)
    with pytest.raises(ValueError, match=r"item '0' is 'question 0' of 'a' and 'question .* with --id"):
        round_scores({"a": a, "b": b})
    named = {
        m: klball.scores_from(o, score="score", id="question_id") for m, o in (("a", rows), ("b", turned))
    }
    assert not named["a"].notes and np.ptp(round_scores(named).log_likelihood, axis=0).max() == 0
    other = {**rows, "prompt": [f"Asked kindly: question {i}" for i in range(n)]}  # another template
    round_scores({"a": a, "b": klball.scores_from(other, score="score")})


def test_shares_beside_percentages_are_seen_by_any_way_in(caplog):
    share = np.linspace(0.1, 0.9, 30)
    table = {
        "id": [str(i) for i in range(30)],
        "acc_a": share,
        "acc_b": 100 * share,
        "x": share,
        "y": 2 * share,
    }
    with pytest.raises(ValueError, match="write shares or percentages for all"):
        scores_by_column(table, {"a": "acc_a", "b": "acc_b"})
    scores_by_column(table, {"a": "x", "b": "y"})
    with caplog.at_level(logging.WARNING):
        read_ = read({"a": {"wer": share}, "b": {"wer": 3 * share}}, lower_is_better=True)
        round_scores(read_)
        assert not caplog.records
        round_scores(read({"a": {"wer": share}, "b": {"wer": 100 * share}}, lower_is_better=True))
    assert "0.9 of 'a' and 90 of 'b': are these shares beside percentages?" in caplog.text


def test_a_file_in_utf_16_is_called_so(tmp_path):
    path = tmp_path / "scores.csv"
    path.write_text("id,score\n1,2\n", encoding="utf-16")
    with pytest.raises(ValueError, match="is in UTF-16: save it as UTF-8"):
        klball.scores_from(path)


def test_a_name_that_no_font_has_is_no_stream_of_warnings(tmp_path):
    points_ = [ProfilePoint("d", "模型 🚀", e, 1.0 + e, 1.0, 10.0) for e in (0.1, 0.2)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw(tmp_path / "profile", profile_charts(points_, "d", PER_TOKEN)[0])
    assert (tmp_path / "profile.png").exists()


# --- clusters -------------------------------------------------------------------------------------------


def clustered(rng, passages=40, questions=10, spread=0.7):
    """Two equal models whose scores hang together within a passage."""
    n = passages * questions
    of = np.repeat([f"p{k}" for k in range(passages)], questions)
    base = rng.normal(size=n)
    own = lambda: base + np.repeat(spread * rng.normal(size=passages), questions) + rng.normal(size=n)  # noqa: E731
    return {model: {"id": [str(i) for i in range(n)], "passage": of, "judge": own()} for model in "ab"}


def test_a_cluster_is_one_item_its_mean():
    rng = np.random.default_rng(4)
    columns = clustered(rng, 6, 3)
    frames = {
        m: pd.DataFrame(own).assign(kind=[p in ("p1", "p2") for p in own["passage"]])
        for m, own in columns.items()
    }
    frames["b"] = frames["b"].sample(frac=1, random_state=0).iloc[1:]  # another order, and one item short
    gone = set(frames["a"]["id"]) - set(frames["b"]["id"])
    settings = {"score": "judge", "id": "id", "cluster": "passage", "group": "kind"}
    models = {m: klball.scores_from(frame, **settings) for m, frame in frames.items()}
    found = round_scores(models)
    assert found.sample_ids == [f"p{k}" for k in range(6)] and found.left_out["missing"] == 1
    assert found.groups == ["False", "True", "True", "False", "False", "False"]
    for m, (_, frame) in enumerate(frames.items()):
        means = frame[~frame["id"].isin(gone)].groupby("passage")["judge"].mean()
        assert found.log_likelihood[m, 0] == pytest.approx(means[found.sample_ids].to_numpy())
    own = frames["a"].groupby("passage")["judge"].mean()
    solution = klball.solve_dual(loss=-own.to_numpy(), epsilon=0.1)
    assert models["a"].solve(0.1).worst_case == pytest.approx(solution.worst_case)
    alone = models["a"].per_cluster()
    assert alone.sample_ids == found.sample_ids and alone.solve(0.1).worst_case == solution.worst_case
    assert models["a"].profile([0.1]).robust_loss == pytest.approx([-solution.worst_case])
    assert "the mean of a cluster, by column passage, counts as one item" in models["a"].notes
    with pytest.raises(ValueError, match="cluster 'p0' has two groups"):
        round_scores({m: klball.scores_from(f, **{**settings, "group": "id"}) for m, f in frames.items()})
    twice = {**columns["a"], "id": ["same"] * 18, "seed": list(range(18))}
    with pytest.raises(ValueError, match="item 'same' has two clusters, 'p0' and 'p1'"):
        klball.scores_from(twice, score="judge", cluster="passage", round="seed")


def test_equal_models_are_seldom_told_apart_where_clusters_are_named():
    """Without the column .36 of such comparisons call one of them better."""
    rng, claims = np.random.default_rng(5), {True: 0, False: 0}
    for _ in range(60):
        columns = clustered(rng)
        for named in claims:
            flags = {"score": "judge", "cluster": "passage" if named else None}
            (over_items, _) = mean_differences(
                round_scores({m: klball.scores_from(own, **flags) for m, own in columns.items()})
            )
            claims[named] += bool(over_items.better)
    assert claims[True] <= 7  # of 60: P(more at .05) = .01
    assert claims[False] >= 14
