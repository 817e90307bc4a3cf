"""`klball evaluate`: tables are found by what they are of, and every pair of models is compared at once."""

import csv
import json
import shutil
from itertools import combinations

import pytest

from conftest import small_qwen
from klball import cli
from klball.commands import evaluate as command
from klball.report.pages.parts import EACH
from klball.scores.scorer import Scorer
from small_runs import write_rows


@pytest.fixture
def folder(tmp_path, tokenizer):
    """Two models and two files of rows."""
    for seed, name in enumerate("xy"):
        small_qwen(len(tokenizer), seed).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    for name, word in (("rows", "key"), ("more", "file")):
        made = [{"question": f"What is {i}?", "answer": f"the {word} {i} " * (1 + i % 3)} for i in range(12)]
        write_rows(tmp_path / f"{name}.jsonl", made)
    return tmp_path


@pytest.fixture
def batches(monkeypatch):
    """How many were scored since it was last asked."""
    counted = []
    score = Scorer.score
    monkeypatch.setattr(Scorer, "score", lambda self, rows: counted.append(rows) or score(self, rows))

    def asked():
        count = len(counted)
        counted.clear()
        return count

    return asked


@pytest.fixture
def tables(monkeypatch):
    """The tables of the last evaluation, by model, in place of its report."""
    found = {}
    monkeypatch.setattr(command, "robustness_report", lambda tables, reference: found.update(tables["d"]))
    for name in ("plain_lines", "say_verdicts", "write_report", "write_ratios", "write_evaluation_page"):
        monkeypatch.setattr(command, name, lambda *given: None)
    return found


def evaluate(folder, *models, data="rows", more=()):
    names = [f"{label}={folder / name}" for label, name in (model.split("=") for model in models)]
    words = ["--models", *names, "--datasets", f"d={folder / data}.jsonl", *more]
    cli.main(["evaluate", *words, "--output_dir", str(folder / "out")])


def scores_of(tables, folder, model, **more):
    evaluate(folder, model, **more)
    return tables[model.partition("=")[0]]["log_likelihood"][:]


def test_a_table_is_known_by_what_was_scored(folder, batches, tables):
    x = scores_of(tables, folder, "m=x")
    assert batches() > 0
    assert scores_of(tables, folder, "m=x") == x and batches() == 0
    assert scores_of(tables, folder, "other=x") == x and batches() == 0  # another label
    shutil.copytree(folder / "x", folder / "copy")
    assert scores_of(tables, folder, "m=copy") == x and batches() == 0  # another place
    y = scores_of(tables, folder, "m=y")  # another model under the same label
    assert y != x and batches() > 0
    shutil.rmtree(folder / "copy")
    shutil.copytree(folder / "y", folder / "copy")  # and at the same place
    assert scores_of(tables, folder, "m=copy") == y and batches() == 0
    assert len(list((folder / "out" / "scores").glob("*.parquet"))) == 2


@pytest.mark.parametrize(
    ("data", "more"),
    [
        ("more", ()),
        pytest.param("rows", ("--max_rows", "7"), marks=pytest.mark.slow),
        pytest.param("rows", ("--max_length", "20"), marks=pytest.mark.slow),
        ("rows", ("--dtype", "float64")),
        pytest.param("rows", ("--id_column", "question"), marks=pytest.mark.slow),
    ],
)
def test_other_data_and_settings_are_scored_anew(data, more, folder, batches, tables):
    first = scores_of(tables, folder, "m=x")
    batches()
    if data == "more":  # other rows under the same name
        (folder / "more.jsonl").replace(folder / "rows.jsonl")
    second = scores_of(tables, folder, "m=x", more=more)
    assert batches() > 0 and (second != first or "--id_column" in more)
    evaluate(folder, "m=x", more=more)
    assert batches() == 0


def test_every_pair_is_printed_with_its_ratio(folder, capsys):
    evaluate(folder, "a=x", "b=y", "c=x")
    with (folder / "out" / "tables.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["model"], row["data"]) for row in rows] == [("a", "d"), ("b", "d"), ("c", "d")]
    files = [row["file"] for row in rows]
    assert files[0] == files[2] != files[1]
    assert all((folder / "out" / "scores" / name).is_file() for name in files)
    page = (folder / "out" / "report.html").read_text()
    assert all(str(folder / name) in page for name in "xy") and EACH in page
    said = capsys.readouterr().out
    with (folder / "out" / "ratios.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(dict.fromkeys((r["against"], r["model"]) for r in rows)) == list(combinations("abc", 2))
    lines = [line for line in said.splitlines() if " / " in line and line.startswith("│")]
    assert [line.split()[1:4] for line in lines] == [[b, "/", a] for a, b in combinations("abc", 2)]
    ratio = next(r for r in rows if (r["against"], r["model"], r["name"]) == ("b", "c", "perplexity_sample"))
    assert f"{float(ratio['ratio']):.4g}" in said
    assert float(ratio["low"]) < float(ratio["ratio"]) < float(ratio["high"])
    evaluate(folder, "a=x")
    assert not (folder / "out" / "ratios.csv").exists()  # of a run with more models


def test_answers_are_known_by_what_was_asked(folder, monkeypatch):
    write_rows(folder / "asked.jsonl", [{"question": f"What is {i}?", "answer": str(i)} for i in range(4)])
    loaded = []
    load = command.load
    monkeypatch.setattr("klball.commands.answers.load", lambda *given: loaded.append(1) or load(*given))
    made = []
    for model, more in (("x", ()), ("y", ()), ("x", ()), ("x", ("--max_new_tokens", "3"))):
        asked = ["--generate", "true", "--reward", "exact", "--max_new_tokens", "4", *more]
        words = ["--models", f"m={folder / model}", "--datasets", f"d={folder / 'asked.jsonl'}", *asked]
        cli.main(["evaluate", *words, "--output_dir", str(folder / "a")])
        made.append(len(list((folder / "a" / "answers").glob("*.parquet"))))
    assert made == [1, 2, 2, 3]
    run = json.loads((folder / "a" / "run.json").read_text())
    assert run["command"] == "klball evaluate"
