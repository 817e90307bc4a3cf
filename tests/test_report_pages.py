"""The pages of the commands: what stands on them is what was computed."""

import json
import re

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset

from klball.commands.paraphrase import template_replies
from klball.comparison.analysis import compare_scores
from klball.data.paraphrase.rounds import write_rounds
from klball.data.paraphrase.samples import samples_of
from klball.files import write_csv, write_table
from klball.report.page import Plot, Table, number, render
from klball.report.pages.comparison import _regions, comparison_page, write_comparison_report
from klball.report.pages.evaluation import COMPARED, _compared, _verdict, plain_lines
from klball.report.pages.parts import change, counted, few_in_words, ran_on, sample_rows, says
from klball.report.pages.reproduction import gain_verdict
from klball.report.pages.training import CURVES, write_training_page
from klball.scores.perplexity import Metric, RobustnessReport, robustness_report
from klball.shown import in_words
from simulated_rounds import simulated


def score_table(g):
    columns = {"sample_id": [str(k) for k in range(len(g))], "log_likelihood": g, "sum_log_prob": g}
    same = {"certainty": 1.0, "entropy": 1.0, "num_tokens": 1, "num_bytes": 1, "truncated": False}
    return Dataset.from_dict({**columns, **{name: [value] * len(g) for name, value in same.items()}})


@pytest.fixture(scope="module")
def rounds(tmp_path_factory):
    rows = Dataset.from_list(
        [{"id": f"i{k}", "question": f"<b>How many</b> is {k}?", "answer": f"It is {k}."} for k in range(60)]
    )
    samples, layout = samples_of(rows)
    maker, replies = template_replies(samples, 4)
    path = tmp_path_factory.mktemp("rounds") / "rounds.parquet"
    return write_rounds(path, samples, layout, replies, rounds=4, maker=maker)


def parts(page, kind, title):
    return [p for s in page.sections for p in s.parts if isinstance(p, kind) and p.title.startswith(title)]


@pytest.mark.parametrize("gamma", [None, "auto", "some rounds infeasible"])
def test_comparison_page(rounds, tmp_path, gamma):
    scores = simulated(models=3, rounds=4, n=60, shift=0.3)
    some = gamma == "some rounds infeasible"
    if some:
        solutions = compare_scores(scores, 0.5, "auto", 0, {}).asked.solutions
        gamma = float(np.median(solutions.gamma - solutions.gamma_margin))
    comparison = compare_scores(scores, 0.5, gamma, 0, {"m0": {"dtype": "float32"}})
    page = comparison_page(comparison, rounds, tmp_path)
    for verdict, sentence in zip(comparison.asked.verdicts, page.verdict[-6:-3], strict=True):
        assert sentence.endswith(verdict.sentence)
    assert page.headline == comparison.lines() and len(page.headline) == 3
    assert page.verdict[-3:] == comparison.on_average()
    (table,) = parts(page, Table, "Worst-case log-likelihood, nats per token: differences")[-1:]
    effects = [e for e in comparison.asked.effects if e.quantity == "worst_case"]
    shown = [row["mean"].value for row in table.rows]
    np.testing.assert_array_equal(shown, [e.mean for e in effects])
    (samples,) = parts(page, Table, "Hardest and top-weighted")
    for row in samples.rows:
        item = int(row["sample_id"][1:])
        model = scores.models.index(row["model"])
        assert row["log_likelihood"] == pytest.approx(scores.log_likelihood[model, :, item].mean())
        assert row["prompt"] == f"<b>How many</b> is {item}?"
    usable = comparison.asked.solutions.usable()
    (status,) = parts(page, Table, "Rounds by status")
    infeasible = [row["infeasible"] for row in status.rows if row["at"] == comparison.asked.name]
    assert (sum(infeasible) > 0) == some
    assert infeasible == (comparison.asked.solutions.status == "infeasible").sum(axis=1).tolist()
    assert len(parts(page, Plot, "λ and β")) == bool((comparison.asked.solutions.beta[usable] > 0).any())
    assert "may count up to 22, 7.6 or 3.3 times" in render(page) and "<b>How" not in render(page)
    write_comparison_report(comparison, rounds, tmp_path)
    names = {path.name for path in (tmp_path / "latex").iterdir()}
    assert {"summary.tex", "effects-asked.tex", "p-welch_t-lambda_.tex"} <= names


@pytest.mark.parametrize(("n", "drawn"), [(4_000, ["m0"]), (60, [])])
def test_regions_are_drawn_where_enough_decides(n, drawn):
    joint = compare_scores(simulated(models=1, rounds=1, n=n), 0.1, "auto", 40).asked
    *figures, table = _regions(joint)
    assert [trace.name for plot in figures for trace in plot.figure.data if trace.mode == "markers"] == drawn
    assert [(row["model"], row["method"]) for row in table.rows] == [(r.model, r.method) for r in joint.joint]
    for row, region in zip(table.rows, joint.joint, strict=True):
        assert row["lambda_se"] == pytest.approx(region.lambda_var**0.5, nan_ok=True)
        assert (region.degenerate == "") == (region.radius > 0)


def test_samples_name_why_they_are_there():
    g = -np.arange(50.0)
    weights = np.linspace(1, 2, 50) / np.linspace(1, 2, 50).sum()
    rows = sample_rows([str(i) for i in range(50)], g, weights, model="m")
    assert [row["why"] for row in rows] == ["hardest and top-weighted"] * 20
    assert rows[0] == {
        **{"model": "m", "why": "hardest and top-weighted", "sample_id": "49"},
        **{"log_likelihood": -49.0, "n_q": pytest.approx(weights[49] * 50)},
    }
    rows = sample_rows([str(i) for i in range(50)], g, weights[::-1], model="m")
    assert len(rows) == 40 and {row["why"] for row in rows} == {"hardest", "top-weighted"}
    assert {r["why"] for r in sample_rows([str(i) for i in range(50)], g, weights * np.nan)} == {"hardest"}


def metric(name, model, ratio, low, high):
    return Metric("data", model, name, 10.0, 9.0, 11.0, ratio, low, high)


def test_no_verdict_rests_on_rows_that_one_of_the_two_models_chose():
    """Models that differ by chance: on one's bad luck the other is better, and was said to be, always."""
    rng, said = np.random.default_rng(0), 0
    for _ in range(20):
        shared = rng.gamma(2, size=2_000)
        tables = {name: score_table(-shared - rng.gamma(2, size=2_000)) for name in "ab"}
        report = robustness_report({"data": tables}, "a", resamples=1)
        (line,) = plain_lines(report)
        said += any(f"{word} than a on the hardest" in line for word in ("better", "worse"))
        assert report.value("data", "b", "hardest_1pct").ratio_high < 1
    assert said <= 3


@pytest.mark.parametrize(
    ("kept", "tail", "line"),
    [
        (20, "worst 5 % (CVaR; descriptive: 1 row; the hardest 1 % are 1 row)", None),
        (100, "worst 5 % (CVaR; descriptive: 5 rows; the hardest 1 % are 1 row)", None),
        (400, "worst 5 % (CVaR; 20 rows; the hardest 1 % are 4 rows)", "worst 5 %"),
        (1901, "hardest 1 % of each", "hardest 1 % of each"),
    ],
)
def test_the_worst_5_percent_come_first_where_the_hardest_1_percent_are_few(kept, tail, line):
    """The rule: fewer than 20 rows; and the worst 5 % of fewer than 20 carry no claim either."""
    others = {"own_hardest_1pct": (0.9, 0.8, 0.95), "worst_5pct": (0.9, 0.8, 0.95)}
    metrics = [
        metric(name, model, *((1.0, 1.0, 1.0) if model == "base" else others.get(name, (1.1, 1.05, 1.2))))
        for name in (*COMPARED, "bits_per_byte")
        for model in ("base", "tuned")
    ]
    report = RobustnessReport("base", metrics, [], {"data": {"kept": kept, "truncated": 0, "unscored": 0}})
    (sentence,) = _verdict(report, ["base", "tuned"])
    assert f"10.0 % lower (95 % interval −20.0 to −5.0 %) on the {tail} and 10.0 % higher" in sentence
    (plain,) = plain_lines(report)
    if line:
        assert plain == (
            f"tuned is better than base on the {line} (by 10.0 % of perplexity), but worse on average (by "
            f"10.0 % of perplexity), for rows like these {kept} of data."
        )
    else:
        assert "Nothing can be said on the worst 5 %" in plain or "cannot be told" in plain
    (alone,) = _verdict(report, ["base"])
    assert alone.endswith(f"and 10 on its {tail.removesuffix(' of each')}.")
    titles = list(_compared(report, "data").values())
    hard = titles.index(f"hardest 1 % (chosen by the reference): {counted(-(-kept // 100))}")
    worst = titles.index(f"worst 5 % (CVaR, each its own): {counted(-(-kept // 20))}")
    assert (worst < hard) == (kept < 1901)
    assert bool(few_in_words(kept)) == (kept < 1901)


def test_what_to_read_where_few_rows_are_hard():
    assert few_in_words(60) == (
        "the hardest 1 % are 1 row, too few to judge by: read the worst 5 % (CVaR, 3 rows, descriptive too)"
    )
    assert few_in_words(500, "pair").endswith("read the worst 5 % (CVaR, 25 pairs)")


def test_ratios_in_words_and_cells():
    assert says(1.05, float("nan"), float("nan")) == "5.0 % higher (no interval)"
    assert says(0.95, 0.9, 1.01).startswith("not clearly different (5.0 % lower")
    assert change(0.9, 0.85, 0.95).text == "−10.0 % [−15.0, −5.0]"
    assert number(-0.000123456) == "−0.0001235"
    assert number(float("-inf")) == "−∞"


def test_gain_verdict_names_the_undominated():
    rows = [
        {"arm": "base", "gain": 0.0, "forgetting": 0.0},
        {"arm": "a", "gain": 0.5, "forgetting": 0.4},
        {"arm": "b", "gain": 0.3, "forgetting": 0.1},
        {"arm": "c", "gain": 0.2, "forgetting": 0.3},
    ]
    best, mild, free = gain_verdict(rows)
    assert best.startswith("a gains most") and mild.startswith("b forgets least")
    assert re.search(r"than a, b\.$", free)


def test_run_options_are_in_the_provenance(tmp_path, rounds):
    (tmp_path / "run.json").write_text(json.dumps({"options": {"epsilon": 0.5}}))
    comparison = compare_scores(simulated(models=2, rounds=4, n=60), 0.5, None, 0, {"m0": {"weights": "abc"}})
    html = render(comparison_page(comparison, rounds, tmp_path))
    for word in ("&#34;epsilon&#34;: 0.5", "&#34;weights&#34;: &#34;abc&#34;", "templates"):
        assert word in html


STEPS = 40
OF_FAMILY = {  # columns of the history → what the page's verdict says of them, and titles of its curves
    "reward": (
        {"plain_loss": 0.5, "accuracy": 0.5, "margin": 0.1, "mean_reward": -1.0},
        ["share of pairs whose chosen answer has the larger reward went from 0.5 to 0.9"],
        ["Loss", "Accuracy"],
    ),
    "dpo": (
        {"plain_loss": 0.5, "rewards/accuracies": 0.5},
        ["share of pairs whose chosen answer has the larger reward went from 0.5 to 0.9"],
        ["Loss", "Accuracy"],
    ),
    "gdpo": (
        {"plain_loss": 0.5, "js_distance": 0.5},
        ["Jensen–Shannon distance to p* went from 0.5 to 0.9"],
        ["Loss", "Distance to p*"],
    ),
    "grpo": (
        {"mean_reward": -0.5, "known_prompts": 1.0},
        ["mean reward went from −0.5 to −0.1"],
        ["Reward"],
    ),
}


@pytest.mark.parametrize("family", OF_FAMILY)
def test_a_training_page_says_what_its_family_learns(family, tmp_path):
    """Ends are means of a tenth of the steps: single ones are noise, here a jump of 100 at both."""
    start, says, curves = OF_FAMILY[family]
    rise = np.repeat([0.0, 0.4], STEPS // 2)
    noise = np.zeros(STEPS)
    noise[[0, -1]], noise[[1, -2]] = 100, -100
    columns = {name: value + rise + noise for name, value in start.items()}
    write_table(pa.table({"step": range(1, STEPS + 1), **columns}), tmp_path / "history.parquet")
    (tmp_path / "run.json").write_text("{}")
    write_training_page(tmp_path, "a run")
    page = (tmp_path / "report.html").read_text()
    for words in says:
        assert f"From the first to the last tenth of the steps the {words}" in page
    titles = [title for title in CURVES if f">{title}</h3>" in page]
    assert titles == curves
    assert ("mean reward went" in page) == (family == "grpo")  # a reward model's has no zero


def test_a_training_page_shows_texts_as_they_are(tmp_path):
    """Not as the CSV file has them, and however long they are."""
    write_table(pa.table({"step": [1], "plain_loss": [0.5]}), tmp_path / "history.parquet")
    (tmp_path / "run.json").write_text("{}")
    row = {"sample_id": "=1", "n_q": 2.0, "prompt": "- an item", "answer": "long " * 30_000}
    write_csv(tmp_path / "top_weighted.csv", [row])
    write_training_page(tmp_path, "a run")
    page = (tmp_path / "report.html").read_text()
    assert "- an item" in page and "&#39;- an item" not in page and "'- an item" not in page


@pytest.mark.parametrize(
    ("run", "said"),
    [
        ({"options": {"model_name_or_path": "m", "dataset_name": "d"}}, "; m on d"),
        ({"options": {"dataset_name": "d", "dataset_config": "c", "rounds_path": None}}, "; d (c)"),
        ({"options": {"dataset_name": None, "rounds_path": "r.parquet"}}, "; r.parquet"),
        (
            {"model": {"model_name_or_path": "m"}, "data": {"datasets": [{"path": "a"}, {"path": "b"}]}},
            "; m on a, b",
        ),
        ({"model": {"model_name_or_path": "m"}, "options": {"dataset_name": "d"}}, "; m on d"),
        ({"options": {"scores": ["a.csv", "b.csv"], "dataset_name": "d"}}, ""),
        ({"options": {"scores": ["a.csv"], "dataset_name": "d"}}, "; a.csv"),
        (None, ""),
    ],
)
def test_pages_say_on_what_they_ran(run, said, tmp_path):
    if run is not None:
        (tmp_path / "run.json").write_text(json.dumps(run))
    assert ran_on(tmp_path) == said


@pytest.mark.parametrize(
    ("column", "said"),
    [
        ("worst_5pct", "worst 5 %"),
        ("own_hardest_1pct", "own hardest 1 %"),
        ("cvar_0.05", "worst 5 %"),
        ("cvar_0.001", "worst 0.1 %"),
        ("mean", "mean"),
        ("num_tokens", "num tokens"),
    ],
)
def test_columns_in_words(column, said):
    assert in_words(column) == said
