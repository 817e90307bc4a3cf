"""`klball evaluate --generate true`, and what reads its tables."""

import csv
import json

import numpy as np
import pytest

import klball
from klball.cli import main
from klball.scores.answers import RADII
from klball.scores.tables import read_scores
from small_runs import write_rows
from test_rl_reward_model import small_reward_model

SHORT = ["--generate", "true", "--max_new_tokens", "5"]


@pytest.fixture(scope="module")
def folder(root, tokenizer):
    small_reward_model(tokenizer).save_pretrained(root / "judge")
    tokenizer.save_pretrained(root / "judge")
    rows = [{"question": f"What is {i}?", "answer": str(i), "kind": str(i % 2)} for i in range(6)]
    write_rows(root / "asked.jsonl", rows)
    return root


def evaluate(folder, output, *words):
    models = [f"one={folder / 'model'}", "tiny=klball/tiny"]
    data = str(folder / "asked.jsonl")
    main(["evaluate", *SHORT, "--models", *models, "--datasets", data, "--output_dir", str(output), *words])
    with (output / "answers.csv").open() as file:
        rows = list(csv.DictReader(file))
    return {(row["model"], row["metric"], row["part"]): row["value"] for row in rows}


def test_verifiable_answers_by_group_with_pass_at_k(folder, tmp_path, capsys):
    words = ["--reward", "last-number", "--samples", "2", "--pass_at", "1", "2", "--group_column", "kind"]
    found = evaluate(folder, tmp_path, *words)
    for metric in ("accuracy", "mean_reward", "pass@1", "pass@2", "length", "finished"):
        assert {("one", metric, part) for part in ("all", "group 0", "group 1")} <= set(found)
    assert ("tiny", "accuracy", "worst ε = 0.05") in found
    assert ("tiny", "length", "worst ε = 0.05") not in found
    said = " ".join(capsys.readouterr().out.split())
    assert "one on " in said and "6 prompts do not show that the accuracy is above 0 on every mix" in said
    assert "may count up to 5.5, 2.6 or 1.7 times" in said
    with (tmp_path / "answers.csv").open() as file:
        certified = {r["part"] for r in csv.DictReader(file) if r["metric"] == "accuracy" and r["certified"]}
    assert certified == {f"worst ε = {e:g}" for e in RADII}
    assert "difference to one on the same prompts [95 % interval, paired]" in said
    with (tmp_path / "differences.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {(r["model"], r["against"]) for r in rows} == {("tiny", "one")}
    for row in rows:
        own, other = (float(found[model, row["metric"], row["part"]]) for model in ("tiny", "one"))
        assert float(row["difference"]) == pytest.approx(own - other)
        assert int(row["prompts"]) == (6 if row["part"] == "all" else 3)
    assert {r["metric"] for r in rows} == {m for _, m, part in found if part == "all"}
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "answers").iterdir()}
    assert evaluate(folder, tmp_path, *words) == found  # from the finished tables
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "answers").iterdir()}


def test_tables_of_learnt_rewards_are_solved_and_compared(folder, tmp_path, capsys):
    found = evaluate(folder, tmp_path, "--reward_model", str(folder / "judge"))
    with (tmp_path / "tables.csv").open(newline="") as file:
        labels = {row["file"]: row["model"] for row in csv.DictReader(file)}
    tables = sorted((tmp_path / "answers").iterdir())
    assert [path.name for path in tables] == sorted(labels)
    for path in tables:
        capsys.readouterr()
        main(["solve", "--scores", str(path), "--epsilon", "0.05", "--json", "true"])
        said = json.loads(capsys.readouterr().out)
        label = labels[path.name]
        assert said["worst_case"] == pytest.approx(float(found[label, "reward", "worst ε = 0.05"]))
        assert said["worst_case"] == pytest.approx(said["dual_value"])
        rewards = np.array(read_scores(path)[0]["log_likelihood"][:])
        assert said["mean_reward"] == pytest.approx(rewards.mean())
        assert said["top"][0]["reward"] == pytest.approx(rewards.min())
        assert said["certified"] is None
        bounds = rewards.min() - 1, rewards.max()
        words = ["--json", "true", "--bounds", *map(str, bounds), "--confidence", "0.6"]
        main(["solve", "--scores", str(path), "--epsilon", "0.05", *words])
        found_lower = json.loads(capsys.readouterr().out)["certified"]["lower"]
        assert found_lower == klball.certified_worst_case(rewards, 0.05, bounds, 0.6).lower
    rounds = {(path.name, "1"): read_scores(path)[0] for path in tables}
    scores = klball.round_scores(rounds)
    assert scores.log_likelihood.shape == (2, 1, 6)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "--generate needs --reward"),
        (["--reward", "exact", "--reward_model", "x"], "one of them"),
        (["--reward", "best"], "--reward must be one of"),
        (["--reward", "exact", "--pass_at", "2"], "pass@2 needs at least 2 samples"),
        (["--reward", "choice"], ": row 1 (counted from 1), answer: the reward needs letters A to J"),
        (["--reward", "exact", "--bounds", "0", "2"], "--bounds has no effect with --reward"),
        (["--reward_model", "judge", "--bounds", "0"], "--bounds needs two numbers"),
        (["--reward", "exact", "--max_length", "9"], "--max_length has no effect with --generate"),
        (["--reward", "exact", "--group_column", "sort"], "no column 'sort'"),
        (["--reward_model", "nowhere"], "nowhere"),
        (["--reward_model", "judge", "--confidence", "0.9"], "--confidence has no effect without --bounds"),
        (["--reward_model", "judge", "--samples", "2", "--pass_at", "2"], "--pass_at has no effect with"),
    ],
)
def test_refusals_are_one_line(words, said, folder, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        evaluate(folder, tmp_path, *words)
    assert caught.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert said in error and not (tmp_path / "answers").exists()


def test_solve_refuses_a_certainty_that_was_not_measured(folder, tmp_path, capsys):
    evaluate(folder, tmp_path, "--reward", "exact")
    path = next((tmp_path / "answers").iterdir())
    with pytest.raises(SystemExit):
        main(["solve", "--scores", str(path), "--gamma", "1"])
    assert "--gamma has no effect on a table of answers" in capsys.readouterr().err
