"""`klball compare` as a user runs it: numbers against cvxpy and SciPy, shared folders, kills, bad input."""

import csv
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from gradient_grid import rows
from klball.cli import main
from klball.files import file_name
from klball.models.loading import load_model
from klball.scores.tables import read_scores
from test_dual import conic_optimum

ROUNDS = 5


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Two models that differ a little, 22 rows, and the arguments that compare them."""
    folder = tmp_path_factory.mktemp("compare")
    rows().to_json(folder / "data.jsonl")
    model, tokenizer = load_model("klball/tiny")
    for parameter in model.model.layers[-1].parameters():
        parameter.data.mul_(1.05)
    model.save_pretrained(folder / "other")
    tokenizer.save_pretrained(folder / "other")
    command = ["compare", "--models", "tiny=klball/tiny", f"other model={folder / 'other'}"]
    command += ["--dataset_name", str(folder / "data.jsonl"), "--rounds", str(ROUNDS), "--resamples", "40"]
    return folder, [*command, "--epsilon", "0.2"]


@pytest.fixture(scope="module")
def whole(base):
    folder, command = base
    main([*command, "--output_dir", str(folder / "whole")])
    return folder / "whole"


def tables(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.csv"))}


def test_numbers_are_those_of_cvxpy_and_scipy(whole):
    recorded = read_csv(whole / "asked" / "rounds.csv")
    assert len(recorded) == 2 * ROUNDS
    own = next(row for row in recorded if (row["model"], row["round"]) == ("tiny", "2"))
    table, _ = read_scores(whole / "scores" / file_name("klball/tiny") / "round-0002.parquet")
    g, c = np.array(table["log_likelihood"]), np.array(table["certainty"])
    even, gamma = np.full(len(g), 1 / len(g)), float(own["gamma"])
    optimum = conic_optimum(g, c, even, 0.2, gamma, None)
    assert float(own["worst_case"]) == pytest.approx(optimum.value, abs=1e-6)
    _, ball, cap = optimum.constraints
    assert float(own["lambda_"]) == pytest.approx(float(ball.dual_value), rel=1e-3)
    assert float(own["beta"]) == pytest.approx(float(cap.dual_value), rel=1e-3, abs=1e-5)
    least = conic_optimum(c, c, even, 0.2, None, None).value
    assert float(own["gamma_margin"]) == pytest.approx(gamma - least, abs=1e-6)
    values = {
        model: np.array([float(r["worst_case"]) for r in recorded if r["model"] == model])
        for model in ("tiny", "other model")
    }
    tests = {(t["test"], t["quantity"]): t for t in read_csv(whole / "asked" / "tests.csv")}
    expected = stats.ttest_rel(values["tiny"], values["other model"])
    assert float(tests["paired_t", "worst_case"]["p"]) == pytest.approx(expected.pvalue, rel=1e-6)
    (profile,) = [
        row for row in read_csv(whole / "profiles.csv") if (row["model"], row["epsilon"]) == ("tiny", "0.0")
    ]
    means = [float(r["mean_log_likelihood"]) for r in recorded if r["model"] == "tiny"]
    assert float(profile["robust_loss"]) == pytest.approx(-np.mean(means))


def test_jobs_divide_the_units_and_a_killed_one_continues(base, whole, capsys):
    folder, command = base
    shared = folder / "shared"
    command = [*command, "--output_dir", str(shared), "--num_jobs", "2"]
    main([*command, "--job_index", "0"])
    assert "5 of 10 tables" in capsys.readouterr().out
    done = {path: path.stat().st_mtime_ns for path in shared.rglob("round-*.parquet")}
    assert len(done) == 5
    victim = sorted(done)[0]  # as if killed before this unit was whole
    victim.unlink()
    main([*command, "--job_index", "1"])
    assert "1 of 10" in capsys.readouterr().out and not (shared / "verdicts.txt").exists()
    main([*command, "--job_index", "0"])
    kept = {path: path.stat().st_mtime_ns for path in done if path != victim}
    assert all(done[path] == time for path, time in kept.items())
    assert tables(shared) == tables(whole)


@pytest.mark.slow
def test_two_processes_divide_the_units(base, whole):
    folder, command = base
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone", "-m"]
    command = [*launch, "klball", *command, "--output_dir", str(folder / "two")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2_000:]
    assert tables(folder / "two") == tables(whole)


def test_other_labels_score_nothing_again(base, whole, tmp_path):
    _, command = base
    shutil.copytree(whole, tmp_path / "out")
    done = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("round-*.parquet")}
    renamed = [argument.replace("tiny=", "the base model=") for argument in command]
    main([*renamed, "--output_dir", str(tmp_path / "out")])
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert "the base model" in (tmp_path / "out" / "verdicts.txt").read_text()


@pytest.mark.parametrize("change", ["weights", "max_length"])
def test_tables_of_another_model_or_length_are_refused_by_every_job(change, base, whole, tmp_path, capsys):
    """Also by a job that has no table of its own to make."""
    folder, command = base
    shutil.copytree(whole, tmp_path / "out")
    shutil.copytree(folder / "other", tmp_path / "kept")
    more = ["--output_dir", str(tmp_path / "out"), "--num_jobs", "40", "--job_index", "39"]
    try:
        if change == "weights":
            load_model("klball/tiny")[0].save_pretrained(folder / "other")
        with pytest.raises(SystemExit) as caught:
            main([*command, *more, *(["--max_length", "30"] if change == "max_length" else [])])
        error = capsys.readouterr().err
        assert caught.value.code == 2 and "made from something else" in error and change in error
    finally:
        shutil.copytree(tmp_path / "kept", folder / "other", dirs_exist_ok=True)
    main([*command, *more])


def test_few_items_and_framed_prompts_are_said(whole):
    """22 items: no claim leads, the dropped comparison is named, and nobody speaks of rephrasings."""
    plain, *lines, average = (whole / "verdicts.txt").read_text().splitlines()
    assert plain.startswith("Whether ") and plain.endswith("cannot be told: the data do not suffice.")
    assert "(over 22 items: 95 % interval" in average
    assert lines[0].startswith("No comparison at an effective sample size of 100 or more: there are only 22")
    assert all("Descriptive: ESS" in line and "framings like these" in line for line in lines[1:])
    assert not any("rephrasing" in line for line in lines)


def without(command, arguments):
    """The command without the options that the arguments give: an option given twice is refused."""
    kept, replaced = [], False
    for word in command:
        replaced = word in arguments if word.startswith("--") else replaced
        kept += [] if replaced else [word]
    return kept


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models", "one=klball/tiny"], "at least two"),
        (["--models", "a=klball/tiny", "a=klball/tiny"], "labels repeat"),
        (["--models", "=klball/tiny", "b=klball/tiny"], "LABEL=NAME"),
        (["--models", "a=klball/tiny", "b=nowhere/at-all"], "could not load model 'nowhere/at-all'"),
        (["--rounds", "2"], "at least 3"),
        (["--gamma", "much"], "gamma"),
        (["--epsilon", "0"], "epsilon"),
        (["--num_jobs", "2", "--job_index", "2"], "job_index"),
        (["--gamma", "nan"], "gamma"),
        (["--rounds_path", "nowhere.parquet"], "--dataset_name has no effect with --rounds_path"),
        (["--rounds_path", "nowhere.parquet", "--dataset_name", "stdlib-docs"], "nowhere.parquet"),
    ],
)
def test_bad_input_is_one_line(base, arguments, message, tmp_path, capsys):
    _, command = base
    with pytest.raises(SystemExit) as caught:
        main([*without(command, arguments), *arguments, "--output_dir", str(tmp_path)])
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert caught.value.code == 2 and message in error


def test_a_model_may_be_called_model(base, tmp_path):
    _, command = base
    command = [word.replace("tiny=", "model=") for word in command]
    main([*command, "--output_dir", str(tmp_path / "out")])
    (matrix, *_) = sorted((tmp_path / "out" / "asked").glob("p-*.csv"))
    rows = read_csv(matrix)
    assert [row[""] for row in rows] == ["model", "other model"] and rows[0]["model"] == "—"
    (text, *_) = sorted((tmp_path / "out" / "latex").glob("p-*.tex"))
    assert text.read_text().count("other model") == 2
