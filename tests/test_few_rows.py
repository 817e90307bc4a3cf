"""What rests on too few rows has no interval, wherever it is printed or written: its rows are counted."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
from datasets import Dataset
from scipy import stats
from scipy.special import log_expit

from klball.commands import ratios
from klball.data.ids import places_of
from klball.report.pages import tables
from klball.report.pages.parts import sample_rows
from klball.scores.accuracy import columns_of, pair_differences, pair_report
from klball.scores.answers import answer_differences, answer_report
from klball.scores.elsewhere.report import item_report
from klball.scores.frontier import frontier_row
from klball.scores.measure import Measure
from klball.scores.paired import cvar_difference
from klball.scores.perplexity import robustness_report
from klball.scores.tails import LEAST, largest, own_tail
from klball.studies.arms import Arm
from klball.studies.summary import summarise
from klball.training import weights as weights_of
from test_perplexity import table

N = 40  # the worst 5 % are two rows, the hardest 1 % are one
RNG = np.random.default_rng(0)
LOSS, OTHER = RNG.gamma(2.0, size=(2, N))
SIDES = np.where(np.arange(N) < 2, "two", "many")  # groups


def pair_columns(n=N, seed=0):
    margin = np.random.default_rng(seed).normal(0.5, 1, n)
    return columns_of(
        Dataset.from_dict(
            {
                **{"sample_id": [str(i) for i in range(n)], "margin": margin, "loss": -log_expit(margin)},
                **{"accuracy": margin > 0, "group": np.resize(SIDES, n), "truncated": [False] * n},
            }
        )
    )[0]


def reports():
    """(report, part, rows that decide, low, high) of every number with an interval."""
    row = frontier_row(LOSS, OTHER, np.arange(1))
    for name, rows in (("mean", N), ("cvar", 2), ("hardest_1pct", 1)):
        yield "tune", name, rows, row[f"{name}_low"], row[f"{name}_high"]
    pairs = {"a": pair_columns(), "b": pair_columns(seed=1)}
    for row in (*pair_report(pairs["a"]), *pair_differences(pairs, "a")):
        if "worst ε" not in row["part"]:
            yield "pairs", f"{row['metric']} {row['part']}", row["pairs"], row["low"], row["high"]
    answers = {"a": {"reward": LOSS}, "b": {"reward": OTHER}}
    for row in (*answer_report(answers["a"], [*SIDES]), *answer_differences(answers, [*SIDES])):
        if "worst ε" not in row["part"]:
            yield "answers", row["part"], row["prompts"], row["low"], row["high"]
    items = item_report({"a": -LOSS, "b": -OTHER}, Measure("loss", "nats", True), "a", [*SIDES])
    for row in items.rows:
        yield "items", row["name"], row["items"], row["low"], row["high"]
        if row["model"] == "b":
            yield "items", row["name"], row["items"], row["difference_low"], row["difference_high"]


def test_no_report_has_an_interval_of_few_rows_and_all_have_others():
    found = list(reports())
    assert {rows for *_, rows, _, _ in found} >= {1, 2, N}
    for report, part, rows, low, high in found:
        assert math.isnan(low) == math.isnan(high) == (rows < LEAST), (report, part, rows)


def test_one_small_group_takes_the_interval_from_the_worst_group():
    models = {"a": table(-LOSS, np.ones(N)), "b": table(-OTHER, np.ones(N))}
    for groups, none in ((SIDES, True), (np.arange(N) % 2, False)):
        metric = robustness_report({"d": models}, "a", 200, {"d": groups.tolist()}).value(
            "d", "b", "worst_group"
        )
        bounds = (metric.low, metric.high, metric.ratio_low, metric.ratio_high)
        assert [math.isnan(x) for x in bounds] == [none] * 4 and metric.value > 1


@pytest.fixture
def report():
    return robustness_report({"d": {"a": table(-LOSS, np.ones(N)), "b": table(-OTHER, np.ones(N))}}, "a", 200)


def test_the_rows_are_counted_where_the_interval_would_stand(report, tmp_path, monkeypatch):
    printed = []
    for module in (tables, ratios):
        monkeypatch.setattr(module, "show_table", lambda title, header, body: printed.extend(body))
    monkeypatch.setattr(tables, "plot_profiles", lambda *_: None)
    tables.write_report(report, tmp_path)
    ratios.write_ratios(report, tmp_path)
    assert [row[0] for row in printed] == ["a", "b", "b / a"]
    for row in printed:
        counted = [next((n for n in (1, 2) if cell.endswith(f"({n} row{'s' * (n > 1)})")), 0) for cell in row]
        assert counted == [0, 0, 0, 0, 2, 1, 1], row  # model, three means, worst 5 %, hardest 1 % twice
        assert all(
            ("±" in cell or "[" in cell) == (n == 0) for cell, n in zip(row[1:], counted[1:], strict=True)
        )


def test_a_ratio_over_seeds_counts_them_too(report):
    arms = [Arm("plain", "p", {"epsilon": 0.0}), Arm("ball", "b", {"epsilon": 0.1})]
    finals = [
        {"arm": arm, "seed": seed, "tail": 9 + seed + len(arm), "mean": 3 + seed + len(arm) / 9}
        for arm in ("base", "plain", "ball")
        for seed in (0, 1)
    ]
    measures = {"tail": ("d", "worst_5pct", ""), "mean": ("d", "perplexity_sample", "")}
    row = summarise(finals, {0: report, 1: report}, arms, measures, "base")[-1]
    assert row["tail_text"].endswith("% (2 rows)") and math.isnan(row["tail_ratio_low"])
    assert row["mean_text"].endswith("]") and row["mean_ratio_low"] < row["mean_ratio_high"]


# --- pairs of models ----------------------------------------------------------------------------


def test_differences_are_paired_over_rows_and_between_all_models():
    pairs = {name: pair_columns(400, seed) for seed, name in enumerate("abc")}
    found = {(r["model"], r["against"], r["metric"], r["part"]): r for r in pair_differences(pairs, "b")}
    assert {key[:2] for key in found} == {("b", "a"), ("c", "a"), ("c", "b")}
    assert len(found) == 3 * (4 + 5)  # the worst 5 % are of the loss alone
    hard = np.argsort(-pairs["b"]["loss"], kind="stable")[:4]
    for metric in ("accuracy", "loss"):
        one, other = (pairs[name][metric].astype(float) for name in "ca")
        row = found["c", "a", metric, "all"]
        low, high = stats.ttest_rel(one, other).confidence_interval()
        assert (row["low"], row["high"], row["pairs"]) == (pytest.approx(low), pytest.approx(high), 400)
        assert row["difference"] == pytest.approx(one.mean() - other.mean())
        assert found["c", "a", metric, "hardest 1 %"]["difference"] == pytest.approx(
            (one - other)[hard].mean()
        )
    one, other = pairs["c"]["loss"], pairs["a"]["loss"]
    row = found["c", "a", "loss", "worst 5 %"]
    worst = [np.sort(loss)[-20:].mean() for loss in (one, other)]
    assert row["difference"] == pytest.approx(worst[0] - worst[1]) and row["pairs"] == 20
    assert row["low"] < row["difference"] < row["high"]
    back = cvar_difference(other, one, 0.05)
    assert back == pytest.approx((-row["difference"], -row["high"], -row["low"]))
    assert pair_differences({"a": pairs["a"]}, "a") == []


# --- the heaviest of many -----------------------------------------------------------------------


@pytest.mark.parametrize("count", [-1, 0, 1, 5, 300, 1000])
def test_the_largest_are_those_of_a_stable_sort(count):
    values = np.random.default_rng(1).integers(0, 20, 300) / 7
    assert largest(values, count).tolist() == np.argsort(-values, kind="stable")[: max(count, 0)].tolist()


class Counted(list):
    """Ids of which only those that are shown may be asked for."""

    def __iter__(self):
        raise AssertionError("all of them")


def test_the_shown_samples_alone_become_python_objects(monkeypatch):
    n = 5_000
    ids = [f"s{i // 2}" for i in range(n)]  # two units a sample
    weights = np.random.default_rng(2).permutation(n) / n
    assert sample_rows(Counted(ids), -weights, weights)[0]["sample_id"] == ids[int(weights.argmax())]
    known = np.arange(n) % 3 > 0
    score = [float(x) if seen else None for x, seen in zip(weights, known, strict=True)]
    units = Dataset.from_dict({"sample_id": ids, "n_q": weights, "loss": score})
    rows = Dataset.from_dict({"sample_id": ids[::-2], "prompt": ids[::-2]}).with_format("numpy")
    trainer = SimpleNamespace(
        sample_weights=lambda: units,
        entry=("loss", -1),
        texts_of=lambda row, unit: {"prompt": row["prompt"], "unit": unit},
    )
    monkeypatch.setattr(Dataset, "__iter__", lambda _: pytest.fail("all of them"))
    top = weights_of._top_weighted(trainer, rows, ())
    order = [i for i in np.argsort(-weights) if known[i]][:20]
    assert [(r["sample_id"], r["prompt"], r["unit"]) for r in top] == [(ids[i], ids[i], i % 2) for i in order]
    assert places_of(units, {"s3", "s0", "nowhere"}) == {"s0": 0, "s3": 6}


@pytest.mark.parametrize("rows", [40, 400])
def test_equal_losses_have_a_worst_share_without_an_interval(rows):
    assert all(map(math.isnan, own_tail(np.full(rows, 0.7), 0.05, 0.7)))
    low, high = own_tail(np.linspace(0, 1, 400), 0.05, 0.975)
    assert low < 0.975 < high
