"""The robustness report against sums written out by hand."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from scipy import stats

from klball.report.pages.tables import _with_half
from klball.scores.perplexity import decided_by, robustness_report, summary_of
from klball.scores.tails import LEAST, hardest, influence, tail_interval
from klball.studies.summary import ratio_interval


def table(g, tokens, num_bytes=None, truncated=None):
    n = len(g)
    return Dataset.from_dict(
        {
            "sample_id": [str(i) for i in range(n)],
            "log_likelihood": [x if t else None for x, t in zip(g, tokens, strict=True)],
            "certainty": [1.0 if t else None for t in tokens],
            "entropy": [2.0 if t else None for t in tokens],
            "sum_log_prob": [x * t if t else None for x, t in zip(g, tokens, strict=True)],
            "num_tokens": list(tokens),
            "num_bytes": num_bytes or [3 * t for t in tokens],
            "truncated": truncated or [False] * n,
        }
    )


@pytest.fixture
def scores():
    rng = np.random.default_rng(0)
    g = -rng.gamma(2, 1, 250)
    return g, rng.integers(1, 30, 250)


def test_each_number_is_its_definition(scores):
    g, tokens = scores
    other = g - 0.1 * np.arange(250) / 250
    report = robustness_report({"d": {"base": table(g, tokens), "tuned": table(other, tokens)}}, "base")
    value = {name: report.value("d", "tuned", name).value for name in {m.name for m in report.metrics}}
    assert value["perplexity_sample"] == pytest.approx(math.exp(-other.mean()))
    assert value["perplexity_token"] == pytest.approx(math.exp(-(other * tokens).sum() / tokens.sum()))
    assert value["bits_per_byte"] == pytest.approx(-(other * tokens).sum() / math.log(2) / (3 * tokens.sum()))
    chosen = np.argsort(g)[:3]  # ⌈1 % of 250⌉, by the base model
    assert value["hardest_1pct"] == pytest.approx(math.exp(-other[chosen].mean()))
    own = np.sort(other)
    assert value["own_hardest_1pct"] == pytest.approx(math.exp(-(own[:2].sum() + 0.5 * own[2]) / 2.5))
    assert value["cvar_0.1"] == pytest.approx(-own[:25].mean())
    ratio = report.value("d", "tuned", "perplexity_sample").ratio
    assert ratio == pytest.approx(math.exp(g.mean() - other.mean()))
    assert report.rows["d"] == {"kept": 250, "truncated": 0, "unscored": 0}


def test_rows_that_one_model_cannot_hold_leave_for_all(scores):
    g, tokens = scores
    cut = [i < 5 for i in range(250)]
    empty = tokens.copy()
    empty[10] = 0
    report = robustness_report({"d": {"a": table(g, empty), "b": table(g, tokens, truncated=cut)}}, "a")
    assert report.rows["d"] == {"kept": 244, "truncated": 5, "unscored": 1}
    kept = np.delete(g, [0, 1, 2, 3, 4, 10])
    for model in ("a", "b"):
        assert report.value("d", model, "perplexity_sample").value == pytest.approx(math.exp(-kept.mean()))


def test_intervals_are_paired_and_cover(scores):
    g, tokens = scores
    report = robustness_report({"d": {"a": table(g, tokens), "b": table(g - 0.2, tokens)}}, "a")
    metric = report.value("d", "b", "perplexity_sample")
    assert (metric.ratio_low, metric.ratio_high) == pytest.approx((math.exp(0.2),) * 2)  # no noise is left
    half = 1.96 * g.std() / math.sqrt(250)
    assert math.log(metric.high / metric.low) == pytest.approx(2 * half, rel=0.15)


def test_tables_of_other_samples_are_refused(scores):
    g, tokens = scores
    with pytest.raises(ValueError, match="other samples"):
        robustness_report({"d": {"a": table(g, tokens), "b": table(g[:-1], tokens[:-1])}}, "a")
    with pytest.raises(ValueError, match="no row"):
        robustness_report({"d": {"a": table(g, tokens, truncated=[True] * 250)}}, "a")


def test_hardest_is_at_least_one():
    assert hardest([3.0, -1.0, 2.0]).tolist() == [1] and len(hardest(np.zeros(201))) == 3


def test_ratio_interval_is_the_t_interval_of_log_ratios():
    values, reference = np.array([10.0, 11.0, 12.0]), np.array([11.0, 11.5, 12.5])
    logs = np.log(values / reference)
    half = 4.302653 * logs.std(ddof=1) / math.sqrt(3)
    expected = (math.exp(logs.mean()), math.exp(logs.mean() - half), math.exp(logs.mean() + half))
    assert ratio_interval(values, reference) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("rows", "without"),
    [
        (1, set()),
        (2, set()),
        (40, {"hardest_1pct", "own_hardest_1pct", "cvar_0.01", "cvar_0.05", "worst_5pct"}),
        (3, set()),
        (60, {"hardest_1pct", "own_hardest_1pct", "cvar_0.01", "cvar_0.05", "worst_5pct"}),
        (61, {"hardest_1pct", "own_hardest_1pct", "cvar_0.01"}),
        (200, {"hardest_1pct", "own_hardest_1pct", "cvar_0.01"}),
    ],
)
def test_fewer_than_four_rows_have_no_interval(rows, without, scores):
    """Neither in the report nor in its records, where it is None; nor does a set of three rows have any."""
    g, tokens = scores[0][:rows], scores[1][:rows]
    report = robustness_report({"d": {"a": table(g, tokens), "b": table(g - 0.1 * g**2, tokens)}}, "a")
    for record in report.records():
        bounds = [record[key] for key in ("low", "high", "ratio_low", "ratio_high")]
        if rows < LEAST or record["name"] in without:
            assert bounds == [None] * 4 and record["value"] is not None
            assert decided_by(record["name"], rows) < LEAST
        else:
            assert None not in bounds
            if record["model"] == "b" and record["name"] not in ("certainty", "entropy"):
                assert record["low"] < record["value"] < record["high"]
                assert record["ratio_low"] < record["ratio"] < record["ratio_high"]


def test_answers_without_bytes_have_no_bits_per_byte(recwarn):
    g, tokens = [-1.0, -2.0, -3.0], [1, 1, 1]
    report = robustness_report({"d": {"a": table(g, tokens, num_bytes=[0, 0, 0])}}, "a")
    assert math.isnan(report.value("d", "a", "bits_per_byte").value) and not recwarn.list
    assert _with_half(report.value("d", "a", "bits_per_byte"), 4) == "–"


def test_a_tails_interval_is_the_wider_of_two():
    """Against both written out with SciPy's distributions."""
    loss = np.sort(np.random.default_rng(3).gamma(2, 1, 400))[::-1]
    value, edge, m = loss[:4].mean(), loss[4], 4
    low, high = tail_interval(loss[:4], edge, 0.01, value)
    se = math.sqrt((loss[:4].var(ddof=1) + 0.99 * (value - edge) ** 2) / m)
    t = stats.t.interval(0.95, m - 1, value, se)
    e = value - edge
    factor = [2 * m / q for q in stats.chi2(2 * m).ppf((0.975, 0.025))]
    spread = stats.norm.ppf(0.975) * e / math.sqrt(m)
    sides = [math.hypot(e * (f - 1), spread) for f in factor]
    assert low == pytest.approx(min(t[0], value - sides[0])) and high == pytest.approx(
        max(t[1], value + sides[1])
    )


def test_influence_is_the_derivative_of_a_tails_mean():
    """Of the mean of the worst share, as one sample gains weight."""
    loss = np.random.default_rng(4).gamma(2, 1, 200)
    order = np.argsort(-loss)

    def weighted(weights):
        taken = np.diff(np.minimum(np.cumsum(weights[order]), 0.05), prepend=0.0)
        return taken @ loss[order] / 0.05

    even, step = np.full(200, 1 / 200), 1e-7
    expected = [
        (weighted((1 - step) * even + step * np.eye(200)[i]) - weighted(even)) / step for i in range(200)
    ]
    assert np.corrcoef(influence(loss, 0.05), expected)[0, 1] > 0.999  # the edge is one-sided at a sample


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["normal", "gamma(2)", "lognormal(.7)"])
def test_intervals_of_tails_cover(shape, monkeypatch):
    """At n = 400, where the percentile bootstrap covered .71 of CVaR 1 % and .84 of CVaR 5 %."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
    from tail_coverage import coverage

    for name, shares in coverage(shape, 400, 300).items():
        assert min(shares) > 0.89, name


def test_every_pair_has_the_ratios_that_it_has_against_a_reference(scores):
    """Paired, on the same resamples; but the hardest 1 % are the report's for all."""
    g, tokens = scores
    rng = np.random.default_rng(1)
    noisy = {name: g + 0.2 * rng.normal(size=len(g)) - 0.1 * k for k, name in enumerate("abc")}
    models = {name: table(own, tokens) for name, own in noisy.items()}
    against = {name: robustness_report({"d": models}, name, resamples=100) for name in "ab"}
    report = robustness_report({"d": models}, "b", resamples=100)
    found = {(r.against, r.model, r.name): (r.ratio, r.low, r.high) for r in report.ratios}
    assert {(a, b) for a, b, _ in found} == {("a", "b"), ("a", "c"), ("b", "c")}
    for (base, model, name), ratio in found.items():
        metric = against[base].value("d", model, name)
        if name != "hardest_1pct" or base == "b":
            expected = (metric.ratio, metric.ratio_low, metric.ratio_high)
            assert ratio == pytest.approx(expected, nan_ok=True)
    rows = hardest(np.array(models["b"]["log_likelihood"]))
    expected = math.exp((noisy["a"] - noisy["c"])[rows].mean())
    assert found["a", "c", "hardest_1pct"][0] == pytest.approx(expected)
    assert not robustness_report({"d": {"a": models["a"]}}, "a", resamples=10).ratios


@pytest.mark.parametrize("rows", [40, 150, 200])
def test_training_logs_the_tail_that_the_report_has(rows):
    g = -np.random.default_rng(0).exponential(size=rows)
    report = robustness_report({"test": {"a": table(g, [3] * rows), "b": table(g - 0.1, [3] * rows)}}, "a")
    own = {metric.model: metric.value for metric in report.metrics if metric.name == "own_hardest_1pct"}
    columns = {"log_likelihood": torch.tensor(g), "sum_log_prob": torch.tensor(3 * g)}
    logged = summary_of({**columns, "num_tokens": torch.full((rows,), 3.0)})
    assert logged["own_hardest_1pct"] == pytest.approx(own["a"])


def test_a_model_that_diverged_has_an_infinite_perplexity():
    scores = {"log_likelihood": torch.tensor([-1.0, -800.0]), "sum_log_prob": torch.tensor([-1.0, -1600.0])}
    logged = summary_of({**scores, "num_tokens": torch.tensor([1.0, 1.0])})
    assert logged["perplexity_token"] == logged["own_hardest_1pct"] == math.inf and logged["loss"] == 800.5
