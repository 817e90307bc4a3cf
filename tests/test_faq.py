"""What docs/faq.md says that klball prints, it prints."""

import csv
import json
import shlex
from pathlib import Path

import numpy as np
import pytest

import klball
from klball import cli
from klball.commands.flag_names import refuse_unknown
from test_plot import G, table

FAQ = " ".join((Path(__file__).parents[1] / "docs" / "faq.md").read_text(encoding="utf-8").split())
TRAIN = ["train", "--dataset_name", "rows.jsonl", "--per_device_train_batch_size", "8", "--max_steps", "1"]
TRAIN += ["--use_peft", "--report_to", "none"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"question": f"What is {i}?", "answer": f"It is {i}."} for i in range(24)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def refused(words, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main([*TRAIN, *words])
    assert caught.value.code == 2
    return " ".join(capsys.readouterr().err.split()).removeprefix("klball: error: ")


def test_refusals_of_train(capsys):
    assert f'"{refused(["--eval_strategy", "steps", "--output_dir", "a"], capsys)}"' in FAQ
    said = refused(["--load_in_4bit", "true", "--output_dir", "a"], capsys)
    assert '"--load_in_4bit needs the package bitsandbytes and an accelerator"' in FAQ
    assert said.startswith("--load_in_4bit needs the package bitsandbytes and an accelerator")


def test_a_folder_holds_one_run(capsys):
    cli.main([*TRAIN, "--output_dir", "run"])
    shown = capsys.readouterr()
    assert '"scoring 24 rows before the first step"' in FAQ
    assert "scoring 24 rows before the first step" in " ".join(shown.err.split())
    with Path("run/top_weighted.csv").open() as file:
        assert {"n_q", "prompt", "answer"} <= {*next(csv.DictReader(file))}
    cli.main([*TRAIN, "--output_dir", "run", "--logging_steps", "1"])
    said = capsys.readouterr().out
    assert "already holds this run, finished" in said and "already holds this run, finished" in FAQ
    other = refused(["--output_dir", "run", "--learning_rate", "1e-3"], capsys)
    assert f'"{other.removeprefix("run ")}"' in FAQ


@pytest.mark.slow
def test_too_large_a_radius(capsys):
    cli.main([*TRAIN, "--output_dir", "run", "--epsilon", "4"])
    said, warning = " ".join(capsys.readouterr().err.split()), "lets all weight lie on 1 of 24 samples"
    assert warning in said and warning in FAQ


def test_losses_are_no_log_likelihoods(capsys):
    with pytest.raises(ValueError, match="look like losses") as caught:
        klball.solve_dual([2.3, 1.2, 4.5], epsilon=0.1)
    assert f'"{caught.value}"' in FAQ
    Path("losses.csv").write_text("id,loss\n" + "".join(f"q{i},{1 + i % 7}\n" for i in range(40)))
    assert "klball solve --scores losses.csv --lower_is_better" in FAQ
    cli.main(shlex.split("solve --scores losses.csv --lower_is_better --json"))
    top = json.loads(capsys.readouterr().out)["top"]
    assert top[0]["loss"] == 7


def test_few_items_have_no_comparison():
    rng = np.random.default_rng(0)
    tables = {(m, r): table(G[:40] + rng.normal(0, 0.1, 40)) for m in "ab" for r in "123"}
    caution = klball.compare_scores(klball.round_scores(tables), epsilon=0.1).caution()
    assert f'"{caution.partition(" At ")[0]}"' in FAQ


def test_a_typo_is_told():
    with pytest.raises(ValueError, match="--epsilonn") as caught:
        refuse_unknown(cli.COMMANDS["train"][0], ["--epsilonn", "1"])
    assert f'"{caught.value}"' in FAQ
