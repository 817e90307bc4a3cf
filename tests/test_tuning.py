"""A radius for the user's own data: the rule of choice, what halving costs, intervals, and the verdict."""

import math
from dataclasses import replace
from itertools import pairwise, product
from types import SimpleNamespace

import numpy as np
import pytest
from torch.utils.data import DataLoader
from transformers import Trainer

from klball import Empirical, RobustSFTConfig
from klball.report.charts import frontier_chart
from klball.report.pages.tuning import TuningResults, frontier_table, verdict
from klball.scores.frontier import frontier_row
from klball.scores.tails import hardest
from klball.studies import tuning_report
from klball.studies.tuning import PLAIN, arms_of, most_steps
from klball.studies.tuning_choice import Rung, chosen, cost_of, kept, rungs_of
from klball.training.stages import last_step

NAN = math.nan


def arm(epsilon, mean, tail, high, kind="samples", share=1.0):
    """A row of the frontier, by its ratios to ε = 0."""
    row = {"arm": f"ε = {epsilon:g}, {kind}", "kind": kind, "epsilon": epsilon, "share": share, "rows": 400}
    row |= {"mean_ratio": mean, "mean_low": mean - 0.01, "mean_high": mean + 0.01, "mean": 3.0}
    row |= {"cvar_ratio": tail, "cvar_low": tail - 0.1, "cvar_high": high, "cvar": 9.0}
    return row | {
        "hardest_1pct_ratio": tail,
        "hardest_1pct_low": NAN,
        "hardest_1pct_high": NAN,
        "hardest_1pct": 30,
    }


PLAIN_ROW = {**arm(0.0, 1.0, 1.0, 1.0, "plain"), "arm": PLAIN}
TABLES = [  # rows → the radius and kind chosen, None for ε = 0
    ([arm(0.05, 1.002, 0.9, 0.95), arm(0.2, 1.008, 0.8, 0.9), arm(0.5, 1.02, 0.7, 0.8)], (0.2, "samples")),
    ([arm(0.05, 1.002, 0.7, 0.8), arm(0.2, 1.008, 0.9, 0.99)], (0.2, "samples")),  # the largest, not the best
    ([arm(0.05, 1.002, 0.9, 1.01), arm(0.2, 1.02, 0.8, 0.9)], None),  # one within noise, one too dear
    ([arm(0.05, 1.01, 0.9, 0.95)], (0.05, "samples")),  # at the limit
    ([arm(0.05, 0.99, 1.1, 1.2)], None),  # cheap, and worse
    ([arm(0.05, 1.0, 0.9, 1.0)], None),  # an interval that ends at 1
    ([arm(0.05, NAN, 0.9, 0.95), arm(0.1, 1.0, NAN, NAN)], None),
    ([arm(0.05, 1.0, 0.9, NAN), arm(0.02, 1.0, 0.95, 0.99)], (0.02, "samples")),
    ([arm(0.2, 1.0, 0.9, 0.95), arm(0.1, 1.0, 0.8, 0.9, "groups")], (0.1, "groups")),  # kinds do not compare
    ([arm(0.2, 1.0, 0.9, 0.95, "cap 2"), arm(0.2, 1.0, 0.9, 0.95)], (0.2, "cap 2")),  # a tie: the first
    ([], None),
]


@pytest.mark.parametrize(("rows", "wanted"), TABLES)
def test_the_rule_of_choice(rows, wanted):
    found = chosen(rows, "cvar", 0.01)
    assert (None if found is None else (found["epsilon"], found["kind"])) == wanted


def test_the_rule_is_the_largest_radius_that_passes_both_tests():
    """By brute force over all tables of three radii on a grid."""
    points = list(product((0.99, 1.01, 1.011, NAN), (0.99, 1.0, NAN)))
    for three in product(points, repeat=3):
        rows = [arm(e, mean, 0.9, high) for e, (mean, high) in zip((0.05, 0.1, 0.2), three, strict=True)]
        passing = [
            e for e, (mean, high) in zip((0.05, 0.1, 0.2), three, strict=True) if mean <= 1.01 and high < 1
        ]
        found = chosen(rows, "cvar", 0.01)
        assert (0.0 if found is None else found["epsilon"]) == max(passing, default=0.0)


def test_which_arms_go_on():
    rows = [
        arm(0.02, 1.0, 0.99, 1.1),
        arm(0.05, 1.005, 0.9, 1.0),
        arm(0.1, 1.02, 0.7, 0.8),
        arm(0.2, NAN, 0.1, 0.2),
    ]
    rows.append(arm(0.5, 1.015, 0.6, 0.7))
    names = [row["arm"] for row in rows]
    assert kept(rows, 5, "cvar", 0.01) == [names[k] for k in (1, 0, 4, 2, 3)]
    assert kept(rows, 2, "cvar", 0.01) == [names[1], names[0]]
    early = [{**row, "share": 0.5} for row in rows]  # where 2 % are allowed
    assert kept(early, 5, "cvar", 0.01) == [names[k] for k in (4, 2, 1, 0, 3)]


def test_halving_trains_half_as_many_for_twice_as_long():
    assert rungs_of(5, True) == [Rung(0.25, 5), Rung(0.5, 2), Rung(1.0, 1)]
    assert rungs_of(1, True) == [Rung(1.0, 1)] and rungs_of(5, False) == [Rung(1.0, 5)]
    assert cost_of(rungs_of(5, True)) == 6 / 4 + 3 / 4 + 2 / 2  # the default: 3.25 runs
    assert cost_of(rungs_of(5, False)) == 6
    for count in range(1, 40):
        rungs = rungs_of(count, True)
        assert rungs[-1] == Rung(1.0, 1) and rungs[0].challengers == count
        assert all(b.share == 2 * a.share and b.challengers == a.challengers // 2 for a, b in pairwise(rungs))
        ends = [max(rung.share for rung in rungs if rung.challengers > k) for k in range(count)]
        assert cost_of(rungs) == pytest.approx(1 + sum(ends)) and cost_of(rungs) <= 1 + count
    assert [last_step(share, 10) for share in (0.01, 0.25, 0.5, 1.0)] == [1, 3, 5, 10]
    assert 0.07 * 100 > 7 and last_step(0.07, 100) == 7


def test_arms():
    arms = arms_of([0.0, 0.2, 0.05], [2.0], "source")
    assert [(a.kind, a.epsilon) for a in arms] == [
        ("plain", 0.0),
        *product(("samples", "cap 2", "groups"), (0.05, 0.2)),
    ]
    assert len({a.folder for a in arms}) == len(arms) and arms[3].folder == "eps-0.05-cap-2"
    assert all((a.settings["group_column"] == "source") == (a.kind == "groups") for a in arms)


def losses(n=600, seed=0):
    rng = np.random.default_rng(seed)
    plain = rng.gamma(2.0, size=n)
    return plain, np.where(plain > 4, plain - 0.5, plain + 0.02) + 0.1 * rng.normal(size=n)


@pytest.mark.parametrize(
    "given",
    [dict(trim=0.1), dict(max_weight=2.0), dict(direction="optimistic"), dict(gamma=2.0)],
    ids=str,
)
def test_without_a_radius_an_arm_is_plain_whatever_the_others_are(given, tmp_path):
    plain, ball = arms_of([0.1], [], None)
    config = RobustSFTConfig(output_dir=str(tmp_path), epsilon=0.1, use_cpu=True, bf16=False, **given)
    assert replace(config, **plain.settings).ambiguity_set() == Empirical()
    assert replace(config, **ball.settings).ambiguity_set() != Empirical()


def test_what_a_row_of_the_frontier_measures():
    plain, loss = losses()
    hard, groups = hardest(-plain), ["a" if x < 3 else "b" for x in plain[:-3]] + ["few"] * 3
    row = frontier_row(loss, plain, hard, groups)
    worst = np.sort(loss)[-30:]
    assert row["cvar"] == pytest.approx(math.exp(worst.mean()))
    assert row["cvar_ratio"] == pytest.approx(math.exp(worst.mean() - np.sort(plain)[-30:].mean()))
    assert row["mean_ratio"] == pytest.approx(math.exp((loss - plain).mean()))
    assert row["hardest_1pct_ratio"] == pytest.approx(math.exp((loss - plain)[hard].mean()))
    b = np.array(groups) == "b"
    assert row["group"] == "b" and row["worst_group_ratio"] == pytest.approx(
        math.exp((loss - plain)[b].mean())
    )
    for name in ("mean", "cvar", "hardest_1pct", "worst_group"):
        assert row[f"{name}_low"] < row[f"{name}_ratio"] < row[f"{name}_high"]
    same = frontier_row(plain, plain, hard)
    assert same["cvar_ratio"] == same["cvar_high"] == 1.0 and "worst_group" not in same
    assert math.isnan(frontier_row(loss[:15], plain[:15], np.arange(1))["cvar_high"])  # of one row


@pytest.mark.parametrize("name", ["mean", "cvar", "worst_group"])
def test_intervals_of_a_frontier_cover(name):
    """Between two models, over samples from a large population."""
    plain, loss = losses(20_000)
    groups = np.array(["a", "b"])[(np.arange(20_000) % 3 == 0).astype(int)]
    plain[groups == "b"] += 0.3
    loss[groups == "b"] += 0.2
    rows = np.arange(20_000)
    truth = frontier_row(loss, plain, rows[:9], groups.tolist())[f"{name}_ratio"]
    hit, rng = 0, np.random.default_rng(1)
    for _ in range(150):
        part = rng.choice(rows, 500)
        row = frontier_row(loss[part], plain[part], rows[:9], groups[part].tolist())
        hit += row[f"{name}_low"] <= truth <= row[f"{name}_high"]
    assert hit >= 0.9 * 150


def results(rows, best=None, missed=(), **more):
    return TuningResults(
        [PLAIN_ROW, *rows], [PLAIN_ROW, *rows], best, missed, "cvar", 0.01, 3.25, "out/arms/x", **more
    )


def test_what_the_verdict_says():
    good, dear, noisy = arm(0.05, 1.002, 0.8, 0.9), arm(0.2, 1.05, 0.7, 0.8), arm(0.1, 1.0, 0.9, 1.1)
    text = " ".join(verdict(results([good, dear], good)))
    assert "ε = 0.05, samples: on 400 rows held out" in text and "20.0 % lower" in text
    assert "optimistic" in text and "--test_fraction" in text and "out/arms/x" in text
    tested = " ".join(verdict(results([good], good, test={**good, "rows": 77})))
    assert "On 77 rows that chose nothing" in tested and "--test_fraction" not in tested
    worse = arm(0.5, 1.1, 1.2, 1.3)
    text = " ".join(verdict(results([worse, noisy])))
    assert "robustness buys nothing here: of 2 arms 1 costs more than 1 % on the mean and 1 gains no" in text
    text = " ".join(verdict(results([dear, worse, noisy])))
    assert "buys here costs too much: of 3 arms 2 cost" in text and "--max_cost" in text
    assert (
        "The cheapest that gains is ε = 0.2, samples: the perplexity of the worst 5 % is 30.0 % lower" in text
    )
    missed = {**good, "share": 0.25}
    text = " ".join(verdict(results([dear, missed], None, [missed])))
    assert "met both conditions when it was dropped at 25 %" in text and "--epsilons 0 0.05" in text
    assert "fewer than 10 held-out rows: law" in " ".join(verdict(results([good], good, unjudged=["law"])))
    few = {**PLAIN_ROW, "rows": 39}
    table = frontier_table([few, {**good, "rows": 39}])
    assert "hardest_1pct" not in table.headings() and "1 row, too few" in table.note
    assert "worst 5 % (2 rows)" in table.headings().values() and "Fewer than 4 rows have" in table.note
    text = " ".join(verdict(results([{**dear, "rows": 39, "cvar_low": NAN, "cvar_high": NAN}])))
    assert "ε = 0, for want of rows: on a worst 5 % of 2 rows no gain" in text and "buys" not in text
    assert "hardest_1pct" in frontier_table([{**row, "rows": 4000} for row in (PLAIN_ROW, good)]).headings()


def test_no_file_of_another_choice_stays_and_none_says_nan(tmp_path, monkeypatch):
    for name in ("write_tuning_page", "provenance_of"):
        monkeypatch.setattr(tuning_report, name, lambda *given: {})
    good = arm(0.05, 1.002, 0.8, 0.9)
    arms = [SimpleNamespace(label=row["arm"], settings={}) for row in (PLAIN_ROW, good)]
    study = SimpleNamespace(folder=tmp_path, arms=arms)
    tuning_report._write(study, results([good], good, test={**good, "cvar_high": NAN}))
    assert "nan" not in (tmp_path / "test.csv").read_text() + (tmp_path / "frontier.csv").read_text()
    tuning_report._write(study, results([good]))
    assert not (tmp_path / "test.csv").exists()


def test_the_frontier_is_drawn_with_its_intervals():
    chart = frontier_chart([PLAIN_ROW, {**arm(0.05, 1.02, 0.8, 0.9), "share": 0.5}], "cvar", "worst 5 %")
    first, second = chart.series
    assert (first.x[0], first.y[0]) == (0, 0) and second.hollow and not first.hollow
    assert second.x[0] == pytest.approx(2) and second.y[0] == pytest.approx(-20)
    assert second.y_error == pytest.approx(np.array([[10.0], [10.0]]))


@pytest.mark.parametrize("seed", range(5))
def test_steps_are_those_of_the_trainer(seed, tmp_path):
    """The oracle is Transformers' own count, with a loader of the same rows."""
    rng = np.random.default_rng(seed)
    rows, batch, accumulated = (int(rng.integers(1, high)) for high in (60, 9, 5))
    config = RobustSFTConfig(
        output_dir=str(tmp_path),
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulated,
        num_train_epochs=float(rng.choice([0.3, 1.0, 2.5])),
        max_steps=int(rng.choice([-1, 7])),
        bf16=False,
    )
    trainer = SimpleNamespace(
        get_total_train_batch_size=lambda _: batch * accumulated,
        num_examples=lambda _: rows,
        get_sp_size=lambda: 1,
    )
    loader = DataLoader(range(rows), batch_size=batch)
    *_, steps = Trainer.set_initial_training_values(trainer, config, loader)
    study = SimpleNamespace(config=config, train=range(rows))
    assert most_steps(study) == steps
