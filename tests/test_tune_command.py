"""`klball tune` as a user runs it: rows held out, refusals, whole runs, and what a kill leaves."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from klball.cli import main
from klball.commands import tune as command
from klball.data.splitting import prompts_of
from klball.studies import tuning
from klball.studies.tuning import PLAIN
from klball.studies.tuning_report import plan
from small_runs import PEFT, SETTINGS, write_rows

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


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--max_steps", "3"], "25 % of 3 steps is less than one"),
        (
            ["--per_device_train_batch_size", "8", "--num_train_epochs", "1"],
            "25 % of 3 steps is less than one",
        ),  # 24 of 30 rows
        (
            [
                *[
                    "--per_device_train_batch_size",
                    "2",
                    "--gradient_accumulation_steps",
                    "4",
                    "--num_train_epochs",
                    "1",
                ]
            ],
            "of 3 steps",
        ),
        (["--per_device_train_batch_size", "8", "--num_train_epochs", "0.5"], "25 % of 2 steps"),
    ],
)
def test_too_few_steps_for_halving_are_refused_before_anything_is_scored(
    words, said, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(tuning, "scored", lambda *_: pytest.fail("something was scored"))
    write_rows(tmp_path / "rows.jsonl", [{"prompt": f"{i}?", "completion": f" {i}."} for i in range(30)])
    words = ["--dataset_name", str(tmp_path / "rows.jsonl"), *words, *PEFT]
    with pytest.raises(SystemExit, match="2"):
        main(["tune", *words, "--output_dir", str(tmp_path / "out")])
    assert said in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()
