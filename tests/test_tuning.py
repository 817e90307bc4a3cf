"""A radius for the user's own data: the rule of choice, what halving costs, intervals, and resumption."""

import csv
import json
import math
import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from klball import Empirical, RobustSFTConfig
from klball.cli import main
from klball.commands import tune as command
from klball.data.splitting import prompts_of
from klball.report.charts import frontier_chart
from klball.report.pages.tuning import TuningResults, frontier_table, verdict
from klball.scores.frontier import frontier_row
from klball.scores.perplexity import hardest
from klball.studies import tuning, tuning_report
from klball.studies.tuning import PLAIN, arms_of
from klball.studies.tuning_choice import Rung, chosen, cost_of, kept, rungs_of
from klball.studies.tuning_report import plan
from klball.training.stages import last_step
from small_runs import PEFT, SETTINGS, write_rows

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


# --- the command ------------------------------------------------------------------------------


@pytest.fixture
def asked(root, tmp_path, monkeypatch):
    """The study that some arguments ask for."""
    rows = [{"question": f"What is {i % 20}?", "answer": f"{i}", "source": "ab"[i % 2]} for i in range(40)]
    write_rows(tmp_path / "rows.jsonl", rows)
    write_rows(tmp_path / "others.jsonl", [{"question": "More?", "answer": "No."}])
    found = []

    class StoppedError(Exception):
        pass

    def stop(study):
        found.append(study)
        raise StoppedError

    def run(*arguments):
        monkeypatch.setattr(command, "tune", stop)
        words = [
            "--dataset_name",
            str(tmp_path / "rows.jsonl"),
            "--output_dir",
            str(tmp_path / "out"),
            *arguments,
        ]
        with pytest.raises(StoppedError):
            command.main(words, "klball tune")
        return found[-1]

    run.others = str(tmp_path / "others.jsonl")
    return run


def test_rows_are_held_out_by_their_prompts(asked):
    study = asked("--eval_fraction", "0.3", "--test_fraction", "0.2")
    parts = [set(prompts_of(rows)) for rows in (study.train, study.held_out, study.test)]
    assert [len(rows) for rows in (study.train, study.held_out, study.test)] == [20, 12, 8]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 20
    assert "compared on 12 held out" in plan(study) and "held out are 1 row: no gain" in plan(study)
    given = asked("--eval_dataset", asked.others)
    assert (len(given.train), len(given.held_out), given.test) == (40, 1, None)


REFUSALS = [
    (["--epsilon", "0.1"], "--epsilons has the radii"),
    (["--max_weight", "2"], "--caps has the caps"),
    (["--eval_strategy", "epoch"], "compared on held-out rows after training"),
    (["--load_best_model_at_end", "true", "--eval_strategy", "steps"], "after training"),
    (["--resume_from_checkpoint", "true"], "goes on where it was"),
    (["--save_total_limit", "1"], "goes on from its checkpoints"),
    (["--ambiguity", "cvar", "--alpha", "0.2"], "no radius to tune"),
    (["--epsilons", "0"], "nothing to compare"),
    (["--epsilons", "0.1", "0.1"], "has 0.1 twice"),
    (["--caps", "0.5"], "caps must be at least 1"),
    (["--max_cost", "-1"], "max_cost must be 0 or more"),
    (["--eval_fraction", "1.0"], "must be a share above 0 and below 1"),
    (["--eval_fraction", "0.6", "--test_fraction", "0.5"], "leave no row to train on"),
    (["--eval_dataset", "x.jsonl", "--eval_fraction", "0.3"], "has no effect with rows of their own"),
    (["--group_column", "nothing"], "no column 'nothing'"),
    (["--group_column", "source", "--eval_fraction", "0.1"], "no group of 'source' has 10 held-out rows"),
    (["--lora_r", "3"], "has no effect without --use_peft"),
    (["--dataset_train_split", "x"], "has no split 'x'"),
]


@pytest.mark.parametrize(("arguments", "words"), REFUSALS)
def test_what_cannot_be_tuned_is_refused(arguments, words, tmp_path, capsys):
    rows = [{"question": f"What is {i}?", "answer": f"{i}", "source": "ab"[i % 2]} for i in range(40)]
    write_rows(tmp_path / "rows.jsonl", rows)
    given = ["tune", "--dataset_name", str(tmp_path / "rows.jsonl"), "--output_dir", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as caught:
        main([*given, *arguments])
    error = capsys.readouterr().err.strip()
    assert caught.value.code == 2 and words in error and error.count("\n") == 0


# --- whole runs -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many(root):
    rows = [{"question": f"What is {i}?", "answer": "the value of " + "a key " * (i % 7)} for i in range(48)]
    write_rows(root / "many.jsonl", rows)
    return root


def words_of(root, folder):
    words = [
        "--model_name_or_path",
        str(root / "model"),
        "--dataset_name",
        str(root / "many.jsonl"),
        *SETTINGS,
    ]
    words[words.index("--save_steps") : words.index("--save_steps") + 2] = []
    return [*words, *PEFT, "--epsilons", "0.05", "0.2", "--output_dir", str(folder)]


def run(root, folder, *more):
    command.main([*words_of(root, folder), *more], "klball tune")


def steps_trained(monkeypatch):
    """Arms and the steps that they train, as they train them."""
    taken = []
    original = tuning.Steps.on_step_end

    def count(self, args, state, control, **kwargs):
        taken.append((Path(args.output_dir).name, state.global_step))
        return original(self, args, state, control, **kwargs)

    monkeypatch.setattr(tuning.Steps, "on_step_end", count)
    return taken


@pytest.mark.slow
def test_a_radius_is_chosen_and_nothing_is_trained_twice(many, tmp_path, monkeypatch):
    taken = steps_trained(monkeypatch)
    run(many, tmp_path / "a", "--test_fraction", "0.2")
    choice = json.loads((tmp_path / "a" / "choice.json").read_text())
    rungs = list(csv.DictReader((tmp_path / "a" / "rungs.csv").open()))
    finalist = next(row["arm"] for row in rungs if row["share"] == "1.0" and row["arm"] != PLAIN)
    kept_folder = f"eps-{finalist.rpartition(' ')[2]}"
    assert sorted(taken) == sorted(
        [(name, step) for name in ("eps-0", "eps-0.05", "eps-0.2") for step in (1, 2)]
        + [(name, step) for name in ("eps-0", kept_folder) for step in (3, 4)]
    )
    told = json.loads((tmp_path / "a" / "arms" / kept_folder / "run.json").read_text())
    assert told["arm"] == finalist and finalist == f"ε = {told['training']['epsilon']:g}"
    assert choice["runs"] == 2.5 and Path(choice["model"], "adapter_model.safetensors").exists()
    for name in ("report.html", "figures/frontier.png", "figures/frontier.svg", "frontier.csv", "run.json"):
        assert (tmp_path / "a" / name).stat().st_size
    taken.clear()
    run(many, tmp_path / "a", "--test_fraction", "0.2")
    assert taken == [] and json.loads((tmp_path / "a" / "choice.json").read_text()) == choice
    run(many, tmp_path / "a", "--test_fraction", "0.2", "--halving", "false")  # the dropped arm goes on
    assert len(taken) == 2 and {step for _, step in taken} == {3, 4}


@pytest.mark.slow
def test_two_processes_tune_as_one_does(many, tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    done = subprocess.run(
        [
            *(*launch, "-m", "klball", "tune", *words_of(many, tmp_path / "two")),
            *("--per_device_train_batch_size", "2", "--lora_dropout", "0"),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3_000:]
    assert done.stdout.count("runs, ") == 1
    refused = words_of(many, tmp_path / "refused")
    refused[refused.index("q_proj") : refused.index("v_proj") + 1] = ["nothere"]
    stopped = subprocess.run(
        [*launch, "-m", "klball", "tune", *refused],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert stopped.returncode and "klball: error" in stopped.stderr and not (tmp_path / "refused").exists()
    run(many, tmp_path / "one", "--lora_dropout", "0")  # which each process draws for itself
    one, two = (
        list(csv.DictReader((tmp_path / name / "rungs.csv").open(newline=""))) for name in ("one", "two")
    )
    assert [row["arm"] for row in one] == [row["arm"] for row in two] and len(one) == 5
    for a, b in zip(one, two, strict=True):
        for name in ("mean", "cvar", "mean_ratio", "cvar_ratio"):
            assert float(a[name]) == pytest.approx(float(b[name]), rel=1e-5)


@pytest.mark.slow
def test_arms_of_halving_are_beginnings_of_whole_runs_also_after_a_kill(many, tmp_path, monkeypatch):
    run(many, tmp_path / "whole", "--halving", "false")
    killed = KeyboardInterrupt
    taken = steps_trained(monkeypatch)
    watched = tuning.Steps.on_step_end

    def kill(self, args, state, control, **kwargs):
        if len(taken) == 4:  # in the second arm, at its second step
            raise killed
        return watched(self, args, state, control, **kwargs)

    monkeypatch.setattr(tuning.Steps, "on_step_end", kill)
    with pytest.raises(KeyboardInterrupt):
        run(many, tmp_path / "halved")
    monkeypatch.setattr(tuning.Steps, "on_step_end", watched)
    run(many, tmp_path / "halved")
    assert [name for name, _ in taken].count("eps-0") == 4  # the first arm's steps were not taken again
    for path in (tmp_path / "halved" / "arms").iterdir():
        model = path / "adapter_model.safetensors"
        if model.exists():
            assert model.read_bytes() == (tmp_path / "whole" / "arms" / path.name / model.name).read_bytes()
    shutil.rmtree(tmp_path / "halved" / "arms" / "eps-0" / "checkpoint-2")
    with pytest.raises(ValueError, match="was trained without a stop"):
        run(many, tmp_path / "halved")


def test_texts_of_another_column_are_refused(tmp_path, capsys):
    """What scores the arms reads `text`, or another format that the rows have, and never that column."""
    write_rows(tmp_path / "rows.jsonl", [{"body": f"Row {i} says so."} for i in range(40)])
    words = ["tune", "--dataset_name", str(tmp_path / "rows.jsonl"), "--dataset_text_field", "body"]
    with pytest.raises(SystemExit, match="2"):
        main([*words, "--max_steps", "2", *PEFT, "--output_dir", str(tmp_path / "out")])
    assert "tune reads texts of the column 'text' alone: rename it" in " ".join(
        capsys.readouterr().err.split()
    )
