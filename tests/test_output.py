"""What commands show and write: texts as they are, progress in log files, folders of one command each."""

import csv
import io
import json
import math
import sys
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors.torch import save_file

from klball import cli, terminal
from klball.commands.labels import labelled, refuse_repeated
from klball.files import file_name, read_csv, without_secrets, write_csv, write_run
from klball.models.loading import TINY, load_model
from klball.plain_text import visible
from klball.scores.tables import score
from klball.terminal import progress_bar, say, show_table

MARKUP = (
    *("[INST] hello [/INST]", "[/b]", "[red]", "dict[str]", "[a-z]", ":smile:", "[/path/to/x]", "[bold]x"),
    *("[link=file:///x]y[/link]", "\\[x]", "[[x]]", "[@click=x]y[/]", "{braces}", "[", "]", "100 %"),
)
CONTROL = (
    "\x1b[2J",
    "\x1b]0;title\x07",
    "\x1b]8;;http://x\x1b\\",
    "\x9b2J",
    "\x00",
    "\x08",
    "\x7f",
    "\x85",
    "\udc80",
)
BLANK = ("", " ", "\t", "\u00a0")


@pytest.mark.parametrize("text", MARKUP)
def test_texts_are_shown_as_they_are(text, capsys):
    say(text)
    show_table(text, (text, text), [(text, 1), (1.5, text)])
    with progress_bar(text, text) as progress:
        progress(1, 2)
    shown = capsys.readouterr().out
    assert shown.count(text) == 6


def test_a_bar_on_a_terminal_shows_texts_as_they_are(monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress_bar("[/INST] a[red] \x1b[2J", "[rows]") as progress:
        progress(1, 2)
    assert "[/INST] a[red] ␛[2J" in terminal.getvalue() and "[rows]" in terminal.getvalue()


def test_what_is_finished_already_draws_no_bar(monkeypatch, tmp_path):
    """A cached table shows nothing; one to be made is shown before its first part is."""
    rows = Dataset.from_list([{"prompt": "Add 1 and 1.", "completion": " 2"}] * 2)
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)

    def scored():
        model, tokenizer = load_model(TINY)
        with progress_bar("base on test") as progress:
            score(model, tokenizer, rows, output=tmp_path / "scores.parquet", progress=progress)

    scored()
    assert "base on test" in terminal.getvalue() and "2/2" in terminal.getvalue()
    terminal.seek(0)
    terminal.truncate()
    scored()
    assert "base on test" not in terminal.getvalue()


@pytest.mark.parametrize("text", CONTROL)
def test_no_control_sequence_of_data_reaches_the_terminal(text, capsys):
    say(f"a{text}b\nc")
    show_table(f"a{text}b", (f"h{text}",), [(f"a{text}b",)])
    shown = capsys.readouterr().out
    assert not set(shown) & set(text) & {chr(i) for i in (*range(32), *range(127, 160))}
    assert visible(text) in shown and "\nc\n" in shown


@pytest.mark.parametrize("text", BLANK)
def test_blank_cells_are_shown(text, capsys):
    show_table("t", ("a", "b"), [(text, 1), ("x", 2)])
    assert "x" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("cell", "written"),
    [
        *((f"{sign}cmd|' /C calc'!A0", f"'{sign}cmd|' /C calc'!A0") for sign in "=+-@\t\r"),
        *((number, number) for number in ("-1", "+2.5", "-1e-3", "-inf")),
        ("- a list item", "'- a list item"),
        ("a=b", "a=b"),
        (-1.5, "-1.5"),
        (None, ""),
        ("—", "—"),
    ],
)
def test_a_spreadsheet_runs_no_cell(cell, written, tmp_path):
    write_csv(tmp_path / "t.csv", [{"id": cell, str(cell): "x"}])
    with (tmp_path / "t.csv").open(newline="", encoding="utf-8") as file:
        header, row = csv.reader(file)
    assert (
        row == [written, "x"] and header[1] in (written, str(cell)) and not header[1].startswith(("=", "@"))
    )


def test_a_cell_stands_below_its_name_whatever_the_order_of_its_row(tmp_path):
    write_csv(tmp_path / "t.csv", [{"a": 1, "b": 2}, {"b": 4, "a": 3}])
    assert (tmp_path / "t.csv").read_text().split() == ["a,b", "1,2", "3,4"]
    with pytest.raises(AssertionError):
        write_csv(tmp_path / "t.csv", [{"a": 1}, {"b": 2}])


def test_no_number_is_an_empty_cell(tmp_path):
    write_csv(tmp_path / "t.csv", [{"a": math.nan, "b": np.float64("nan"), "c": math.inf, "d": None}])
    assert (tmp_path / "t.csv").read_text().splitlines()[1] == ",,inf,"


def test_a_table_without_rows_is_an_empty_file(tmp_path):
    write_csv(tmp_path / "t.csv", [])
    assert (tmp_path / "t.csv").read_text().strip() == ""


def test_progress_reaches_a_log_file(monkeypatch, capsys):
    clock = [0.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: clock[0])
    with progress_bar("scoring", "rows") as progress:
        for done in range(1, 4_001):
            clock[0] += 0.02  # 80 s in all
            progress(done, 4_000)
    lines = capsys.readouterr().err.splitlines()
    assert lines[2] == "scoring: 1,200 of 4,000 rows" and len(lines) == 10
    with progress_bar("scoring", "rows") as progress:
        for done in range(1, 11):
            clock[0] += 10
            progress(done, 1_000)
    assert capsys.readouterr().err.splitlines()[0] == "scoring: 3 of 1,000 rows"
    with progress_bar("short") as progress:
        for done in range(1, 11):
            clock[0] += 0.01
            progress(done, 10)
    assert capsys.readouterr().err == ""


@dataclass
class Options:
    """As of a command."""

    base_url: str | None = None


def test_a_folder_belongs_to_one_command(tmp_path):
    write_run(tmp_path, Options(), "klball score")
    write_run(tmp_path, Options(), "klball score")
    with pytest.raises(ValueError, match="holds the results of `klball score`"):
        write_run(tmp_path, Options(), "klball scan")


@pytest.mark.parametrize("name", [name for name in cli.COMMANDS if name not in ("train", "solve")])
def test_no_command_works_in_the_folder_of_a_training_run(name, tmp_path, capsys):
    content = json.dumps({"command": "klball train", "data": {}, "model": {}, "training": {}, "versions": {}})
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(SystemExit) as caught:
        cli.main([name, "--output_dir", str(tmp_path)])
    error = capsys.readouterr().err
    assert caught.value.code == 2 and "holds the results of `klball train`" in error
    assert (tmp_path / "run.json").read_text() == content


def test_training_does_not_work_in_the_folder_of_another_command(tmp_path, capsys):
    write_run(tmp_path, Options(), "klball score")
    with pytest.raises(SystemExit):
        cli.main(["train", "--output_dir", str(tmp_path)])
    assert "holds the results of `klball score`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("url", "kept"),
    [
        ("http://user:pass@host:8000/v1", "http://***@host:8000/v1"),
        ("http://token@host/v1", "http://***@host/v1"),
        ("http://host/v1?key=secret", "http://host/v1?***"),
        ("http://host:8000/v1", "http://host:8000/v1"),
        ("http://u:p@[::1]:8000/v1", "http://***@[::1]:8000/v1"),
        ("http://[::1/v1?key=secret", "***"),  # no URL at all
        ("rows.jsonl", "rows.jsonl"),
        (None, None),
    ],
)
def test_no_password_is_written_down(url, kept, tmp_path):
    assert without_secrets(url) == kept == without_secrets(kept)
    write_run(tmp_path, Options(url), "klball paraphrase")
    assert json.loads((tmp_path / "run.json").read_text())["options"]["base_url"] == kept


@pytest.mark.parametrize("label", ["", " ", "\0", "a\0b", "\x1b[2J", "a\nb"])
def test_a_label_that_cannot_be_shown_is_refused(label):
    with pytest.raises(ValueError, match=r"label|LABEL=NAME"):
        labelled([f"{label}=klball/tiny"])


@pytest.mark.parametrize(
    "label",
    [
        "../x",
        "../..",
        "..",
        ".",
        "/",
        "/etc/passwd",
        "a/../b",
        "m[/1]",
        "~",
        "a b",
        "日本",
        "C:\\x",
        "é" * 101,
        "𠀀" * 100,
    ],
)
def test_a_label_never_leaves_its_folder(label, tmp_path):
    path = tmp_path / f"{file_name(label)}.parquet"
    path.write_text("x")
    assert path.resolve().parent == tmp_path.resolve()


@pytest.mark.parametrize("labels", [("a b", "a_b"), ("a/b", "a_b"), ("a", "a/"), (".", "..")])
def test_two_labels_do_not_share_a_file(labels):
    assert len({*map(file_name, labels)}) == 2


@pytest.mark.parametrize("labels", [("a", "a"), ("base",)])
def test_two_labels_are_not_one(labels):
    with pytest.raises(ValueError, match="two would be called"):
        refuse_repeated(labels, taken=["base"])


@pytest.mark.parametrize(
    ("arguments", "missing"),
    [
        (["evaluate", "--models", "klball/tiny", "b=nowhere/model", "--datasets", "DATA"], "nowhere/model"),
        (["evaluate", "--models", "klball/tiny", "b=ADAPTER", "--datasets", "DATA"], "ADAPTER"),
        (
            ["compare", "--models", "klball/tiny", "b=nowhere/model", "--dataset_name", "DATA"],
            "nowhere/model",
        ),
        (["scan", "--dataset_name", "DATA", "--models", "nowhere/model"], "nowhere/model"),
    ],
)
def test_all_models_are_looked_for_before_the_first_row_is_scored(
    arguments, missing, data, tmp_path, monkeypatch, capsys
):
    """ADAPTER: one whose base model is not there."""
    from klball.commands import compare, evaluate, scan

    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(
        '{"base_model_name_or_path": "nowhere/base", "peft_type": "LORA"}'
    )
    save_file({"lora": torch.zeros(1)}, adapter / "adapter_model.safetensors")
    for module in (compare, evaluate, scan):
        for name in ("score", "load_model", "load_on_device"):
            monkeypatch.setattr(module, name, None, raising=False)
    known = {"DATA": str(data), "b=ADAPTER": f"b={adapter}", "ADAPTER": str(adapter)}
    arguments = [known.get(word, word) for word in arguments]
    with pytest.raises(SystemExit) as caught:
        cli.main([*arguments, "--output_dir", str(tmp_path / "out")])
    assert (
        caught.value.code == 2
        and f"could not load model '{known.get(missing, missing)}'" in capsys.readouterr().err
    )


def test_what_was_written_as_csv_is_read_as_it_was(tmp_path):
    """Texts that a spreadsheet would run, and those longer than Python's own limit of a cell."""
    texts = [
        "=SUM(A5)",
        "- an item",
        "-1.5",
        "'tis",
        "'-x' is a flag",
        "'=A1'",
        "'-1",
        "@x",
        "a, b",
        "two\nlines",
        "x" * 150_000,
        "",
    ]
    write_csv(tmp_path / "a.csv", [{"text": text, "-n": str(k)} for k, text in enumerate(texts)])
    assert "'=SUM" in (tmp_path / "a.csv").read_text()
    assert read_csv(tmp_path / "a.csv") == [{"text": text, "-n": str(k)} for k, text in enumerate(texts)]
    write_csv(tmp_path / "none.csv", [])
    assert read_csv(tmp_path / "none.csv") == []
