"""The commands as a user runs them: results, resumption after a kill, and one line for bad input."""

import csv
import html
import json
import logging
import shlex
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import klball
from klball import cli
from klball.commands.solve import main as solve_main
from klball.terminal import quieten

TRAIN = shlex.split("""
    --dataset_name DATA --per_device_train_batch_size 4 --max_steps 8 --save_steps 2 --logging_steps 1
    --learning_rate 0.01 --use_peft --lora_r 4 --lora_dropout 0.1 --lora_target_modules q_proj v_proj
    --gradient_checkpointing false --report_to none --disable_tqdm true --rescore_steps 3
""")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    rows = [{"question": f"What is {i}?", "answer": "the value of " + "a key " * (i % 7)} for i in range(20)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(*arguments, **more):
    command = [sys.executable, "-m", "klball", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **more)


def train_arguments(data, folder):
    return ["train", *(str(data) if a == "DATA" else a for a in TRAIN), "--output_dir", str(folder)]


def weights(folder):
    return load_file(folder / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def uninterrupted(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    done = run(*train_arguments(data, folder))
    assert done.returncode == 0, done.stderr
    return folder


def test_train_writes_model_history_and_top_samples(uninterrupted):
    import pyarrow.parquet as pq

    history = pq.read_table(uninterrupted / "history.parquet").to_pylist()
    assert [row["step"] for row in history] == list(range(1, 9))
    logged = {
        "lambda",
        "beta",
        "kl",
        "ess_ratio",
        "max_weight",
        "mean_weight",
        "robust_loss",
        "plain_loss",
        "entropy",
    }
    assert logged <= set(history[0])
    assert all(row["kl"] == pytest.approx(0.05) for row in history)
    top = list(csv.DictReader((uninterrupted / "top_weighted.csv").open()))
    assert len(top) == 20 and [float(t["n_q"]) for t in top] == sorted(
        (float(t["n_q"]) for t in top), reverse=True
    )
    assert sum(float(t["n_q"]) for t in top) == pytest.approx(20)
    assert top[0]["prompt"].startswith("What is ")


def test_killed_in_a_checkpoint_and_run_again_gives_the_same_weights(uninterrupted, data, tmp_path, capsys):
    """SIGKILL as soon as checkpoint 4 begins to appear: the half-written folder must not count."""
    folder = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-m", "klball", *train_arguments(data, folder)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not (folder / "checkpoint-4").exists() and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (folder / "top_weighted.csv").exists()
    cli.main(train_arguments(data, folder))
    expected, again = weights(uninterrupted), weights(folder)
    assert all((expected[name] == again[name]).all() for name in expected)
    read = [(f / "history.parquet").read_bytes() for f in (uninterrupted, folder)]
    assert read[0] == read[1]
    capsys.readouterr()
    cli.main(train_arguments(data, folder))
    assert "already holds this run" in capsys.readouterr().out


def test_other_settings_in_the_same_folder_are_refused(uninterrupted, data, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main([*train_arguments(data, uninterrupted), "--epsilon", "0.2"])
    assert caught.value.code == 2 and "other settings: epsilon 0.05 → 0.2" in capsys.readouterr().err


def test_score_solve_and_evaluate(data, tmp_path, capsys):
    scores = tmp_path / "scores"
    cli.main(["score", "--dataset_name", str(data), "--output_dir", str(scores)])
    table, _ = klball.read_scores(scores / "scores.parquet")
    expected = klball.solve_dual(table["log_likelihood"], epsilon=0.2)
    capsys.readouterr()
    cli.main(["solve", "--scores", str(scores / "scores.parquet"), "--epsilon", "0.2", "--json"])
    printed = json.loads(capsys.readouterr().out)
    assert printed["lambda_"] == pytest.approx(expected.lambda_, rel=1e-12)
    assert printed["ess"] == pytest.approx(expected.ess, rel=1e-12)
    assert len(printed["top"]) == 10 and printed["top"][0]["n_q"] == pytest.approx(
        20 * expected.weights.max()
    )
    report = tmp_path / "report"
    cli.main(
        [
            "evaluate",
            "--models",
            "a=klball/tiny",
            "b=klball/tiny",
            "--datasets",
            str(data),
            "--output_dir",
            str(report),
        ]
    )
    rows = list(csv.DictReader((report / "metrics.csv").open()))
    values = {(row["model"], row["name"]): float(row["value"]) for row in rows}
    g = np.array(table["log_likelihood"])
    assert values["a", "perplexity_sample"] == pytest.approx(np.exp(-g.mean()))
    assert values["b", "hardest_1pct"] == pytest.approx(np.exp(-g.min()))
    assert {float(row["ratio"]) for row in rows} == {1.0}
    assert list(report.glob("profile-*.svg")) and list(report.glob("profile-*.png"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fly"], "no command 'fly'"),
        (["score", "--dataset_name", "none.jsonl"], "no data file"),
        (["score", "--model_name_or_path", "no-owner/no-model"], "could not load model 'no-owner/no-model'"),
        (["solve", "--scores", "none.parquet"], "there is no none.parquet"),
        (["solve", "--scores", __file__], "test_commands.py, line "),
        (["evaluate", "--models", "a=x", "a=y"], "labels repeat"),
        (["evaluate", "--reference", "other"], "not among the models"),
        (["reproduce", "--preset", "huge"], "--preset must be one of tiny, paper"),
        (["reproduce", "--num_jobs", "2", "--job_index", "2"], "--job_index must be between 0 and 1, not 2"),
        (["reproduce", "--epsilons", "-1"], "--epsilons must be 0 or more"),
        (
            ["reproduce", "--experiment", "objectives", "--own_samples", "1", "--output_dir", "OUT"],
            "at least 2",
        ),
        (["reproduce", "--preset=paper", "--output_dir", "OUT"], "could not load data set 'HuggingFaceH4/"),
        (
            ["reproduce", "--preset=paper", "--experiment=objectives", "--output_dir", "OUT"],
            "could not load data set 'AI-MO/",
        ),
        (
            ["reproduce", "--preset", "paper", "--ood_name", "objectives", "--output_dir", "OUT"],
            "could not load data set 'HuggingFaceH4/",
        ),
        (["scan", "--own_tokens", "0"], "--own_tokens must be at least 1"),
        (["scan", "--models", "a/b/c", "d/b/c"], "two would be called 'b-c'"),
        (["scan", "--ood_names", "test"], "two would be called 'test'"),
        (
            ["reproduce", "--preset", "paper", "--output_dir", "OUT"],
            "could not load data set 'HuggingFaceH4/",
        ),
        (["train", "--config", "none.yaml"], "--config needs a YAML file"),
        (["train", "--dataset_streaming", "--output_dir", "OUT"], "streaming"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_two(arguments, message, capsys, tmp_path):
    with pytest.raises(SystemExit) as caught:
        cli.main([str(tmp_path / "out") if a == "OUT" else a for a in arguments])
    error = capsys.readouterr().err
    assert caught.value.code == 2 and message in error and error.strip().count("\n") == 0


def test_help_does_not_load_torch():
    code = "import sys, klball.cli; klball.cli.main(['--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


@pytest.mark.slow
def test_reproduce_is_resumable_and_complete(tmp_path):
    """The whole experiment in small, killed once between arms."""
    small = ["reproduce", "--train_rows", "64", "--test_rows", "100", "--ood_rows", "20", "--static", "true"]
    small += ["--epsilons", "0", "0.05", "--seeds", "2", "--output_dir", tmp_path / "out"]
    process = subprocess.Popen([sys.executable, "-m", "klball", *map(str, small)], stderr=subprocess.DEVNULL)
    while not (tmp_path / "out/seed-0/eps-0.05/run.json").exists():
        time.sleep(0.05)
    process.kill()
    process.wait()
    done = run(*small)
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader((tmp_path / "out/summary.csv").open()))
    assert [row["arm"] for row in rows] == ["base", "SFT (ε = 0)", "ε = 0.05", "ε = 0.05, static"]
    assert len(list((tmp_path / "out/figures").glob("*.svg"))) == 4
    columns = list(rows[0])
    assert columns.index("worst_5pct") < columns.index("hardest_1pct")  # which are one row of 100
    page = html.unescape((tmp_path / "out/report.html").read_text())
    assert "on the test set's worst 5 % (CVaR; descriptive: 5 rows; the hardest 1 % are 1 row)" in page
    assert "on test the hardest 1 % are 1 row, too few to judge by" in " ".join(done.stdout.split())


@pytest.mark.slow
@pytest.mark.parametrize("experiment", ["robustness", "objectives"])
def test_jobs_that_share_a_folder_end_with_the_tables_of_one(experiment, tmp_path):
    small = ["reproduce", "--experiment", experiment, "--train_rows", "48", "--test_rows", "40"]
    small += ["--ood_rows", "10", "--epsilons", "0", "0.05"]
    if experiment == "objectives":
        small += ["--own_prompts", "4", "--own_samples", "2", "--own_tokens", "8"]
    for job in ("0", "1"):
        done = run(*small, "--output_dir", tmp_path / "shared", "--num_jobs", "2", "--job_index", job)
        assert done.returncode == 0, done.stderr
        assert ("arms are other" in done.stdout) == (job == "0")
        assert (tmp_path / "shared" / "finals.csv").exists() == (job == "1")
    assert run(*small, "--output_dir", tmp_path / "alone").returncode == 0
    finals = [(tmp_path / folder / "finals.csv").read_bytes() for folder in ("shared", "alone")]
    assert finals[0] == finals[1]


@pytest.mark.slow
def test_head_to_head_killed_and_run_again_is_the_uninterrupted_one(tmp_path):
    small = ["reproduce", "--experiment", "objectives", "--train_rows", "48", "--test_rows", "40"]
    small += ["--ood_rows", "10", "--own_prompts", "4", "--own_samples", "2", "--own_tokens", "8"]
    killed = [*small, "--output_dir", str(tmp_path / "killed")]
    process = subprocess.Popen([sys.executable, "-m", "klball", *killed], stderr=subprocess.DEVNULL)
    while not (tmp_path / "killed/seed-0/psft/run.json").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert not (tmp_path / "killed/finals.csv").exists()
    for folder in ("killed", "whole"):
        done = run(*small, "--output_dir", tmp_path / folder)
        assert done.returncode == 0, done.stderr
    finals = [(tmp_path / folder / "finals.csv").read_bytes() for folder in ("killed", "whole")]
    assert finals[0] == finals[1] and finals[0].count(b"\n") == 10
    assert len(list((tmp_path / "whole/figures").glob("*.svg"))) == 2


@pytest.mark.parametrize(("processes", "steps"), [(1, 8), (4, 2), (64, 2)])
def test_steps_of_an_arm_do_not_multiply_with_the_processes(processes, steps, monkeypatch):
    from klball.studies import arms

    monkeypatch.setattr(arms, "PartialState", lambda cpu: SimpleNamespace(num_processes=processes))
    options = arms.Options(per_device_train_batch_size=4, gradient_accumulation_steps=2, num_train_epochs=2)
    assert arms.num_steps(30, options) == steps


def test_a_local_file_is_split_without_overlap(data):
    from klball.studies.arms import Options, data_of

    parts = data_of(Options(dataset_name=str(data), test_rows=4, ood_rows=3))
    train, test = ({row["question"] for row in parts[name]} for name in ("train", "test"))
    assert len(test) == 4 and len(train) == 16 and not train & test and len(parts["ood"]) == 3


def test_the_same_message_is_shown_a_few_times_only(capsys):
    quieten()
    for cut in range(5):
        logging.getLogger("klball.scores.scorer").warning("%d rows were cut", cut)
    logging.getLogger("klball.scores.scorer").warning("something else")
    shown = " ".join(capsys.readouterr().err.split())
    assert "2 rows were cut (more like this are not shown)" in shown and "something else" in shown
    assert "3 rows were cut" not in shown


def test_tables_of_several_models_are_no_one_set(data, tmp_path, tokenizer):
    from klball.models.loading import load_model
    from klball.scores.tables import score

    rows = [{"question": f"What about {k}?", "answer": f"It is {k}."} for k in range(3)]
    model, _ = load_model("klball/tiny")
    score(model, tokenizer, rows, output=tmp_path / "scores" / "a.parquet")
    with torch.no_grad():
        model.lm_head.weight.mul_(1.5)
    score(model, tokenizer, rows, output=tmp_path / "scores" / "b.parquet")
    for streamed in ("false", "true"):
        with pytest.raises(ValueError, match="tables of 2 models"):
            solve_main(["--scores", str(tmp_path / "scores"), "--streamed", streamed], "klball solve")
