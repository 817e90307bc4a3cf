"""The robustness report against sums written out by hand."""

import math

import numpy as np
import pytest
from datasets import Dataset

from klball.evaluation.perplexity import hardest, robustness_report
from klball.experiments.summary import ratio_interval


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
