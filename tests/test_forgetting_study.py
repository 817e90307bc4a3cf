"""The forgetting experiment: its methods, what is compared at equal accuracy, and what it says came out."""

import csv
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest

from klball.cli import main
from klball.commands.reproduce import _parse
from klball.data.builtin import load_builtin
from klball.data.readers import dataset_of
from klball.data.rows import load_rows
from klball.report.pages.forgetting import equal_verdict
from klball.studies import forgetting, forgetting_summary
from klball.studies.arms import Options, kept
from klball.studies.forgetting_measures import MEASURES
from klball.studies.forgetting_summary import (
    at_equal_accuracy,
    common_accuracy,
    crossing,
    fitted,
    kl_fits,
    point_of,
    r_squared,
)
from klball.studies.summary import means
from klball.training.rl.rewards import LastNumber
from small_runs import write_rows

OPTIONS = Options(experiment="forgetting", epsilons=[0.0, 0.1], per_device_train_batch_size=4, points=3)


REACHED = (("SFT", 3, 0.0047), ("GRPO", 2, 0.0009), ("RLHF", 0, math.nan))  # name, seeds, forgetting


def test_every_method_is_a_configuration_that_sees_as_many_prompts_a_step(tmp_path):
    methods = forgetting.methods_of(OPTIONS, "reward-model")
    assert len({method.folder for method in methods}) == len({m.label for m in methods}) == len(methods) == 8
    for method in methods:
        config = forgetting.config_of(method, tmp_path, 10, 0, OPTIONS)
        assert (config.max_steps, config.save_steps) == (10, 4)
        prompts = config.per_device_train_batch_size * config.gradient_accumulation_steps
        prompts //= getattr(config, "num_generations", 1)
        assert prompts == OPTIONS.per_device_train_batch_size
    assert [m.label for m in methods if m.own] == ["SFT on own correct answers"]
    radii = [m.settings["radius"] for m in methods if "radius" in m.settings]
    assert radii == [0.0, 0.1, 0.0]
    plain = forgetting.methods_of(Options(epsilons=[0.0]), "reward-model")
    assert len(plain) == 7 and not any("robust" in m.label for m in plain)


def test_a_task_without_numbers_is_refused_before_any_training(tmp_path):
    rows = [{"question": f"What is {i}?", "answer": "3" if i < 9 else "many"} for i in range(10)]
    write_rows(tmp_path / "task.jsonl", rows)
    options = Options(experiment="forgetting", dataset_name=str(tmp_path / "task.jsonl"), test_rows=2)
    with pytest.raises(
        ValueError, match=r"task.jsonl: row .*: the reward needs numbers in column 'answer', not 'many'"
    ):
        forgetting.task_data(options)


def test_a_start_that_answers_nothing_right_is_refused_before_other_arms(tmp_path, monkeypatch):
    class Start:
        def __init__(self, *args):
            pass

        def measures(self, *args):
            return {}

    def wrong(model, tokenizer, prompts, reward, *, samples, **rest):
        answers = {"samples": ["none"] * samples, "rewards": [0.0] * (samples + 1)}
        return dataset_of([{"sample_id": name, **answers} for name in prompts["sample_id"]])

    stubs = {"load": lambda *args: (None, Start), "answer_table": wrong, "Reference": Start}
    stubs |= {name: lambda *args: "a-folder" for name in ("start_of", "reward_model_of")}
    for name, stub in stubs.items():
        monkeypatch.setattr(forgetting, name, stub)
    Start.chat_template = None
    options = replace(
        OPTIONS, train_rows=64, dataset_name="word-problems:level=1,count=80", num_train_epochs=2
    )
    with pytest.raises(ValueError, match=r"answers none of \d+ prompts right.*raise --start_steps"):
        next(forgetting.run(options, tmp_path))
    assert not any(tmp_path.iterdir())  # no arm


@pytest.mark.parametrize("preset", ["tiny", "paper"])
def test_a_preset_is_understood(preset, tmp_path):
    options = _parse(["--experiment", "forgetting", "--preset", preset], "klball reproduce")
    for method in forgetting.methods_of(options, "reward-model"):
        config = forgetting.config_of(method, tmp_path, 40, 0, options)
        assert config.save_steps == 10 and config.learning_rate > 0


def test_the_start_is_half_of_the_task_and_has_none_of_the_arms_rows(tmp_path):
    docs = [{"id": f"d{i}", "question": f"What is {i}?", "answer": "A number."} for i in range(20)]
    write_rows(tmp_path / "docs.jsonl", docs)
    task = "word-problems:level=1,count=60"
    options = Options(
        experiment="forgetting",
        dataset_name=task,
        # answered otherwise, a problem has another id, but is the same problem
        start_names=[f"{task},hasty=1", "word-problems:level=2,count=60", str(tmp_path / "docs.jsonl")],
        ood_name=str(tmp_path / "docs.jsonl"),
        train_rows=30,
        start_steps=4,
        per_device_train_batch_size=10,
    )
    data = forgetting.task_data(options)
    rows = forgetting.start_rows(options, data["train"])
    problems = {row["question"] for row in load_builtin(task, "train")}
    assert len(rows) == 40 and not {*rows["question"]} & {*data["train"]["question"]}
    assert sum(question in problems for question in rows["question"]) == 20
    assert not {*data["hard"]["question"]} & problems


def test_a_robust_arm_that_would_not_differ_is_refused_before_anything_is_trained(tmp_path):
    options = Options(
        **dict(experiment="forgetting", dataset_name="word-problems:level=1", epsilons=[0.1]),
        **dict(train_rows=32, test_rows=4, ood_rows=4),
    )
    with pytest.raises(ValueError, match=r"robust GRPO, ε = 0\.1: the adversary would have no effect"):
        next(forgetting.run(options, tmp_path))
    assert not [*tmp_path.iterdir()]


def test_a_start_of_other_columns_is_refused(tmp_path):
    write_rows(tmp_path / "rows.jsonl", [{"prompt": "a", "completion": "b"}])
    options = Options(start_names=["word-problems", str(tmp_path / "rows.jsonl")])
    with pytest.raises(ValueError, match=r"--start_names: .* has other columns than word-problems"):
        forgetting.start_rows(options, load_rows("word-problems"))


@pytest.mark.parametrize(
    "settings",
    ["level=3", "level=0.5", "level=-1", "count=0", "count=2.5", "count=30000", "hasty=-0.1", "hasty=2"],
)
def test_word_problems_that_do_not_exist_are_refused(settings):
    with pytest.raises(ValueError, match=f"word-problems: {settings.partition('=')[0]} must be"):
        load_rows(f"word-problems:{settings}")


def test_levels_share_no_kind_of_problem_and_leave_the_data_as_it_was():
    easy, hard = (load_builtin(f"word-problems:level={level}", "test") for level in (1, 2))
    assert all("equally" in row["question"] for row in easy)
    assert not any("equally" in row["question"] for row in hard)
    assert load_builtin("word-problems", "test") == load_builtin("word-problems:level=0", "test")


def test_hasty_answers_are_those_without_the_last_step_and_never_right():
    plain = load_builtin("word-problems:count=600", "train")
    shares = (0.3, 0.6, 1)
    found = {share: load_builtin(f"word-problems:count=600,hasty={share}", "train") for share in shares}
    for row, hasty in zip(plain, found[1], strict=True):
        assert hasty["question"] == row["question"] and hasty["id"] != row["id"]
        steps, answer = hasty["answer"].rsplit(". The answer is ", 1)
        assert row["answer"].startswith(f"{steps}. ") and answer[:-1] in steps
    told = {"answer": [row["answer"] for row in plain], "completion_finished": [True] * 600}
    completions = [row["answer"] for row in found[1]]
    assert not any(LastNumber()(prompts=None, completions=completions, completion_ids=None, **told))
    changed = {share: {i for i, row in enumerate(rows) if row != plain[i]} for share, rows in found.items()}
    assert changed[0.3] < changed[0.6] < changed[1] and 140 < len(changed[0.3]) < 220


def points(slopes, seeds=(0, 1), kl=lambda forgetting, slope: forgetting):
    """Methods that climb from .2 by .1 a budget and forget `slope` nats for each unit of accuracy."""
    found = []
    for seed in seeds:
        found.append({**point_of("start", seed, 0, 0), **dict.fromkeys(MEASURES, 0.0), "accuracy": 0.2})
        for method, (slope, best) in slopes.items():
            for point in (1, 2, 3):
                accuracy = 0.2 + (best - 0.2) * point / 3
                lost = (slope + 0.01 * seed) * (accuracy - 0.2)
                row = {**dict.fromkeys(MEASURES, 0.0), "accuracy": accuracy, "forgetting": lost}
                kls = {name: kl(lost, slope) for name in forgetting_summary.KLS}
                found.append({**point_of(method, seed, point, 40 * point), **row, **kls})
    return found


SLOPES = {"SFT": (2.0, 0.8), "GRPO": (0.5, 0.6), "DFT": (1.0, 0.5), "RLHF": (0.3, 0.2)}


def test_a_crossing_is_that_of_linear_interpolation():
    curve = [{"accuracy": a, "forgetting": f} for a, f in ((0.2, 0.0), (0.35, 0.4), (0.3, 0.6), (0.9, 0.7))]
    for target in (0.21, 0.3, 0.35):
        expected = np.interp(target, [0.2, 0.35], [0.0, 0.4])
        assert crossing(curve, target, ["forgetting"])["forgetting"] == pytest.approx(expected)
    assert crossing(curve, 0.6, ["forgetting"])["forgetting"] == pytest.approx(0.65)
    assert crossing(curve, 0.95, ["forgetting"]) is None
    assert crossing(curve, 0.2, ["forgetting"]) is None  # the start is not above itself


def test_methods_are_compared_at_an_accuracy_that_most_reach():
    summary = means(points(SLOPES), ("method", "point"), ("prompts", *MEASURES))
    assert common_accuracy(summary) == pytest.approx(0.5)  # three of four
    few = {"SFT": (2.0, 0.8), "GRPO": (0.5, 0.6), "DFT": (1.0, 0.1), "RLHF": (0.3, 0.2)}
    summary = means(points(few), ("method", "point"), ("prompts", *MEASURES))
    assert common_accuracy(summary) == pytest.approx(0.6)  # only two rose
    none = dict.fromkeys(SLOPES, (1.0, 0.1)) | {"SFT": (2.0, 0.8)}
    assert common_accuracy(means(points(none), ("method", "point"), ("prompts", *MEASURES))) is None


@pytest.mark.parametrize(("best", "said"), [(0.0, "None answered a single"), (0.1, "most accurate was SFT")])
def test_nobody_is_called_the_most_accurate_where_nothing_is_right(best, said):
    rows = [{"method": name, "accuracy": value} for name, value in (("start", 0.2), ("SFT", best))]
    (sentence,) = equal_verdict(rows, [], None)
    assert said in sentence


def test_a_mean_over_fewer_seeds_is_said_to_be_one():
    found = [{"method": n, "reached": k, "forgetting": f, "less": 1, "both": 1} for n, k, f in REACHED]
    (sentence, *_) = equal_verdict([{"method": "start", "accuracy": 0.0}], found, 0.5)
    assert "from least to most, GRPO 0.0009 (in 2 of 3 seeds), SFT 0.0047 nats" in sentence


def test_forgetting_at_equal_accuracy_is_the_slope_times_the_gain():
    rows = {row["method"]: row for row in at_equal_accuracy(points(SLOPES), 0.5)}
    for method in ("SFT", "GRPO", "DFT"):
        slope, best = SLOPES[method]
        assert rows[method]["forgetting"] == pytest.approx((slope + 0.005) * 0.3)
        assert rows[method]["accuracy"] == pytest.approx(0.5)
        assert rows[method]["prompts"] == pytest.approx(120 * 0.3 / (best - 0.2))
        assert rows[method]["forgetting_sd"] == pytest.approx(0.01 * 0.3 / math.sqrt(2))
    assert [rows[name]["less"] for name in ("SFT", "GRPO", "DFT")] == [0, 2, 2]
    assert rows["RLHF"]["reached"] == rows["RLHF"]["both"] == 0 and math.isnan(rows["RLHF"]["forgetting"])


def test_fits_are_those_of_least_squares_through_the_start():
    rng = np.random.default_rng(0)
    x, y = rng.uniform(0, 2, 40), rng.normal(1, 1, 40)
    assert np.allclose(fitted(x, y, 1), x * (x @ y) / (x @ x))
    system = np.array([[x @ x, x @ x**2], [x @ x**2, x**2 @ x**2]])
    b, c = np.linalg.solve(system, [x @ y, x**2 @ y])
    assert np.allclose(fitted(x, y, 2), b * x + c * x**2)
    fit = fitted(x, y, 2)
    assert r_squared(y, fit) == pytest.approx(1 - np.mean((y - fit) ** 2) / np.var(y))
    assert math.isnan(r_squared(np.ones(3), np.ones(3)))


def test_one_curve_and_a_curve_for_each_method_are_told_apart():
    for row in kl_fits(points(SLOPES, kl=lambda lost, slope: lost)):
        assert row["line"] == row["quadratic"] == row["lines"] == pytest.approx(1.0)
    (apart, *_) = kl_fits(points(SLOPES, kl=lambda lost, slope: lost / slope))
    assert apart["lines"] > 0.99 > apart["quadratic"] > apart["line"] - 1e-9
    above = {name: slope for name, (slope, _) in SLOPES.items()}
    assert (apart["off"] > 0) == (above[apart["furthest"]] > 0.5)


@pytest.mark.parametrize(
    ("slopes", "kl", "said"),
    [
        (
            SLOPES,
            lambda lost, slope: lost,
            [
                "At accuracy 0.500 (the start has 0.200), forgetting is, from least to most, GRPO 0.15",
                "GRPO forgot less than SFT there (0.15 against 0.6; in 1 of 1 seed(s) less)",
                "Never that accurate: RLHF.",
                "the points lie on one curve",
                "One seed: chance is not ruled out.",
            ],
        ),
        (
            SLOPES | {"SFT": (0.1, 0.8)},
            lambda lost, slope: lost / slope,
            [
                "from least to most, SFT 0.03, GRPO 0.15",
                "GRPO forgot more than SFT there (0.15 against 0.03; in 0 of 1 seed(s) less)",
                "the methods lie on curves of their own",
            ],
        ),
        (
            dict.fromkeys(SLOPES, (0.0, 0.15)),
            lambda lost, slope: lost,
            ["Not half of the methods got above the start's accuracy of 0.200", "Nothing was forgotten"],
        ),
    ],
)
def test_the_report_says_what_came_out_whoever_wins(slopes, kl, said, tmp_path, capsys, monkeypatch):
    drawn = []
    monkeypatch.setattr(forgetting_summary, "draw", lambda path, chart: drawn.append((path.name, chart)))
    forgetting_summary.report(points(slopes, seeds=(0,), kl=kl), tmp_path)
    page = " ".join((tmp_path / "report.html").read_text().replace("&#39;", "'").split())
    for sentence in said:
        assert sentence in page
    assert "2509.04259" in page and "2510.18874" in page
    assert "does KL explain forgetting?" in capsys.readouterr().out
    names = [f"{name}-against-forgetting" for name in ("accuracy", "kl-task", "kl-other")]
    assert [name for name, _ in drawn] == names
    for _, chart in drawn:  # a curve a method, from the start on
        assert [(s.name, len(s.x), s.hollow, s.y_error) for s in chart.series] == [
            (name, 4, name in ("GRPO", "RLHF"), None) for name in slopes
        ]
    with (tmp_path / "points.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 13


def test_curves_have_their_spread_over_seeds_at_the_end():
    """Here accuracy is the same in both seeds, and RLHF does not move."""
    summary = means(points(SLOPES), ("method", "point"), ("prompts", "forgetting", "accuracy"))
    *moved, still = forgetting_summary.accuracy_chart(summary).series
    assert still.name == "RLHF" and still.x_error is still.y_error is None
    for series in moved:
        slope, best = SLOPES[series.name]
        spread = np.std([slope * (best - 0.2), (slope + 0.01) * (best - 0.2)], ddof=1)
        assert series.x_error == pytest.approx(np.array([[np.nan] * 3 + [spread]] * 2), nan_ok=True)
        assert series.y_error == pytest.approx(np.array([[np.nan] * 3 + [0.0]] * 2), nan_ok=True)


def test_what_was_measured_is_kept_until_it_is_asked_of_something_else(tmp_path, caplog):
    made = []

    def make():
        made.append(1)
        return {"x": float(len(made))}

    assert kept(tmp_path / "a.json", {"model": "a"}, make) == {"x": 1.0}
    assert kept(tmp_path / "a.json", {"model": "a"}, make) == {"x": 1.0} and not caplog.records
    assert kept(tmp_path / "a.json", {"model": "b"}, make) == {"x": 2.0}
    assert "was made from something else" in caplog.text


def small(root, folder):
    """The command over problems that need no arithmetic: the number is in the question."""
    for name, offset in (("task", 0), ("hard", 20), ("start", 40)):
        numbers = range(offset, offset + 12)
        rows = [{"question": f"Say {i % 10}, {name}!", "answer": f"{i % 10}"} for i in numbers]
        write_rows(root / f"{name}.jsonl", [{**row, "id": f"{name}-{i}"} for i, row in enumerate(rows)])
    pairs = [{"prompt": f"Say {i}!", "chosen": f"{i}", "rejected": "no"} for i in range(12)]
    write_rows(root / "pairs.jsonl", pairs)
    words = f"""
        --model_name_or_path klball/tiny --dataset_name {root}/task.jsonl --test_rows 3 --train_rows 8
        --hard_name {root}/hard.jsonl --ood_name stdlib-docs --ood_rows 4 --pairs_name {root}/pairs.jsonl
        --start_names {root}/start.jsonl --start_steps 30 --start_learning_rate 0.002 --epsilons 0.1
        --learning_rate 0.0005 --rl_learning_rate 0.0005 --beta 0.05 --num_generations 4 --points 2
        --num_train_epochs 2
        --max_completion_length 6 --per_device_train_batch_size 4 --lora_r 0 --dtype float32 --max_length 256
        --own_prompts 3 --own_samples 2 --own_tokens 6
    """
    (root / "recipe.yaml").write_text("experiment: forgetting\n")
    main(["reproduce", "--config", str(root / "recipe.yaml"), *words.split(), "--output_dir", str(folder)])


@pytest.mark.slow
def test_the_experiment_is_resumed_and_trains_no_finished_arm_again(tmp_path, capsys):
    folder = tmp_path / "out"
    small(tmp_path, folder)
    assert "seed 0:" in capsys.readouterr().out
    with (folder / "points.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 1 + 2 * 8 and all(math.isfinite(float(row["kl_task"])) for row in rows)
    assert [float(rows[0][name]) for name in ("forgetting", "kl_task", "reverse_kl_other")] == [0, 0, 0]
    own = [row for row in rows if row["method"] == "SFT on own correct answers"]
    assert {row["prompts"] for row in rows if row["method"] == "GRPO"} == {"8", "16"} and int(
        own[-1]["prompts"]
    ) == 16
    written = {path: path.stat().st_mtime_ns for path in folder.glob("seed-0/*/model.safetensors")}
    assert len(written) == 8
    shutil.rmtree(folder / "seed-0" / "grpo")  # killed before it was measured
    shutil.rmtree(folder / "measures" / "seed-0" / "grpo")
    small(tmp_path, folder)
    after = {path: path.stat().st_mtime_ns for path in written}
    assert [path.parent.name for path in written if after[path] != written[path]] == ["grpo"]
    with (folder / "points.csv").open() as file:
        for before, again in zip(rows, csv.DictReader(file), strict=True):
            if before["method"] == "GRPO":  # trained anew: to the last bits, which memory may change
                same = {k: float(v) for k, v in before.items() if k != "method"}
                assert {k: float(again[k]) for k in same} == pytest.approx(same, rel=1e-3, abs=1e-4)
            else:
                assert again == before
