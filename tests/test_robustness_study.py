"""Variants of the robustness study: what they train, what is refused, and their measures."""

import csv
import math

import numpy as np
import pytest
from datasets import Dataset

from klball.commands.options import parse_options
from klball.scores.perplexity import robustness_report
from klball.studies import robustness
from klball.studies.arms import Options
from klball.studies.robustness import _groups, arms_of, measures_of
from klball.training.sft.config import RobustSFTConfig


def options(*variants, epsilons=(0.0, 0.03, 0.05, 0.2)):
    words = ["--epsilons", *map(str, epsilons), *(["--variants", *variants] if variants else [])]
    (parsed,) = parse_options([Options], words, "klball reproduce")
    return parsed


def test_variants_are_at_the_middle_radius_and_each_trains_something_else(tmp_path):
    given = ("lower", "optimistic", "cap=4", "trim=0.1", "group=task")
    arms = arms_of(options(*given))[4:]
    assert [arm.kind for arm in arms] == ["variant"] * 5
    assert [arm.epsilon for arm in arms] == [0, 0.05, 0.05, 0.05, 0.05]
    assert len({arm.folder for arm in arms} | {arm.label for arm in arms}) == 10
    cpu = dict(use_cpu=True, bf16=False)
    sets = [RobustSFTConfig(str(tmp_path), **cpu, **arm.settings).ambiguity_set() for arm in arms]
    assert len(set(map(repr, sets))) == 5
    assert arms[0].settings["learning_rate"] == options().learning_rate / 4
    assert arms[4].settings["group_column"] == "task"


@pytest.mark.parametrize(
    ("variant", "epsilons", "words"),
    [
        ("cup=4", [0.0, 0.1], "is not one of lower, optimistic"),
        ("cap", [0.0, 0.1], "is not one of lower, optimistic"),
        ("lower=3", [0.0, 0.1], "is not one of lower, optimistic"),
        ("optimistic=1", [0.0, 0.1], "is not one of lower, optimistic"),
        ("cap=four", [0.0, 0.1], "'four' is not a number"),
        ("cap=4", [0.0], "needs a radius above 0"),
    ],
)
def test_what_is_no_variant_is_refused(variant, epsilons, words):
    with pytest.raises(ValueError, match=words):
        arms_of(options(variant, epsilons=epsilons))


def table(g, cut=0):
    n = len(g)
    ones = dict.fromkeys(("certainty", "entropy"), [1.0] * n) | dict.fromkeys(
        ("num_tokens", "num_bytes"), [1] * n
    )
    ids = [str(i) for i in range(n)]
    return Dataset.from_dict(
        {
            "sample_id": ids,
            "log_likelihood": g,
            "sum_log_prob": g,
            **ones,
            "truncated": [i < cut for i in range(n)],
        }
    )


def test_the_worst_group_is_each_models_own_and_paired_by_resamples():
    rng = np.random.default_rng(0)
    groups = rng.choice(["a", "b", "c"], 300)
    base = -rng.gamma(2, 1, 300) - (groups == "a")
    other = base + 1.5 * (groups == "a")  # its worst is another
    models = {"base": table(base), "other": table(other)}
    report = robustness_report({"d": models}, "base", 2_000, {"d": list(groups)})
    for name, g in (("base", base), ("other", other)):
        worst = max(math.exp(-g[groups == x].mean()) for x in "abc")
        metric = report.value("d", name, "worst_group")
        assert metric.value == pytest.approx(worst)
        assert metric.low < worst < metric.high
    ratio = report.value("d", "other", "worst_group")
    assert ratio.ratio_low < ratio.ratio < ratio.ratio_high < 1
    own = report.value("d", "other", "worst_5pct").value
    assert own == pytest.approx(math.exp(-np.sort(other)[:15].mean()))
    for given, there in (({"test": list(groups)}, True), ({}, False)):
        measures = measures_of(robustness_report({"test": models}, "base", 1, given))
        assert ("worst_group" in measures) == there


def test_the_report_compares_variants_with_plain_training_and_draws_radii_alone(tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(robustness, "draw", lambda path, *charts: drawn.setdefault(path.name, charts))
    monkeypatch.setattr(robustness, "write_robustness_page", lambda *given: None)
    arms = arms_of(options("lower", "group=task", epsilons=(0.0, 0.1)))
    arms = [arms[2], *arms[:2], arms[3]]  # a variant of ε = 0 first
    rng = np.random.default_rng(1)
    base = -rng.gamma(2, 1, 60)
    tables = {"base": base, **{arm.label: base + 0.1 * k for k, arm in enumerate(arms, start=1)}}
    of_model = {name: {"test": table(g, cut=3), "ood": table(g)} for name, g in tables.items()}
    curves = [{"arm": arm.label, "seed": 0, "step": 1, "tables": of_model[arm.label]} for arm in arms]
    groups = {"test": ["cut"] * 3 + ["a", "b", "c"] * 19}
    robustness._report({0: of_model}, curves, arms, {}, groups, tmp_path)
    rows = {row["arm"]: row for row in csv.DictReader((tmp_path / "summary.csv").open())}
    assert rows["SFT (ε = 0)"]["whole_ratio"] == "" and float(rows["SFT, lr/4"]["whole_ratio"]) > 1
    worst = max(math.exp(-base[3:][k::3].mean()) for k in range(3))
    assert float(rows["base"]["worst_group"]) == pytest.approx(worst)
    over_training, _ = drawn["whole"]
    assert [series.name for series in over_training.series] == ["SFT (ε = 0)", "ε = 0.1"]


def test_groups_of_two_columns_are_refused():
    """Their worst groups would be measured over the first alone."""
    with pytest.raises(ValueError, match="groups of one column at a time, not field and language"):
        _groups(options("group=field", "group=language"), {})
