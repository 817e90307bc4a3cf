"""Clones of Hub data sets: their card says which files are of which configuration and split."""

import json

import pytest

from klball import load_rows
from klball.cli import main

CARD = """---
configs:
- config_name: main
  data_files:
  - split: train
    path: main/train-*
  - split: test
    path: [main/test-0.jsonl, main/test-1.jsonl]
- config_name: socratic
  data_files: socratic/*.jsonl
- config_name: folder
  data_dir: main
---
# Words
"""


@pytest.fixture
def clone(tmp_path):
    for name in ("main/train-0", "main/test-0", "main/test-1", "socratic/all"):
        path = tmp_path / f"{name}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"question": name, "answer": "a"}) + "\n")
    (tmp_path / "README.md").write_text(CARD)
    return tmp_path


@pytest.mark.parametrize(
    ("split", "config", "questions"),
    [
        (None, "main", ["main/train-0"]),
        ("test", "main", ["main/test-0", "main/test-1"]),
        (None, "socratic", ["socratic/all"]),
        ("test", "folder", ["main/test-0", "main/test-1"]),
    ],
)
def test_a_configuration_is_its_files(clone, split, config, questions):
    assert load_rows(clone, split, config)["question"][:] == questions


def test_the_default_one_needs_no_name(clone):
    (clone / "README.md").write_text(CARD.replace("name: socratic", "name: socratic\n  default: true"))
    assert load_rows(clone)["question"][:] == ["socratic/all"]


def test_a_card_without_configurations_says_nothing(clone):
    for text in ("# Words\n", "---\nlicense: mit\n---\n", "---\n"):
        (clone / "README.md").write_text(text)
        assert load_rows(clone)["question"][:] == ["main/train-0"]  # by the names of the files


@pytest.mark.parametrize(
    ("config", "before", "after", "message"),
    [
        (None, "", "", "configurations main, socratic, folder, and none by default: choose one"),
        ("german", "", "", "configurations main, socratic, folder, and no 'german'"),
        ("socratic", "socratic/", "russian/", "names russian/.*and there is no such file"),
        ("folder", "data_dir: main", "data_dir: mine", "holds no data files"),
        ("main", "data_dir: main", "sep: ';'", None),
        ("folder", "data_dir: main", "sep: ';'", "does not read sep of the configuration 'folder'"),
        ("main", "configs:", "configs: [", "could not read .*README.md"),
        ("main", "path: main/train-*", "pfad: main/train-*", "README.md: Expected data_files"),
    ],
)
def test_what_a_card_cannot_mean(clone, config, before, after, message):
    (clone / "README.md").write_text(CARD.replace(before, after) if before else CARD)
    if message is None:
        load_rows(clone, config=config)
        return
    with pytest.raises(ValueError, match=message) as caught:
        load_rows(clone, config=config)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("before", ["\ufeff", "\n\n", ""])
def test_a_card_may_begin_with_anything_blank(before, clone):
    (clone / "README.md").write_text(before + CARD, encoding="utf-8")
    assert load_rows(clone, config="socratic")["question"][:] == ["socratic/all"]


@pytest.mark.parametrize(
    ("before", "after", "config", "message"),
    [
        ("data_dir: main", "data_dir: 3", "folder", "README.md: "),
        (
            "data_files: socratic/*.jsonl",
            "data_files: hf://datasets/a/b.jsonl",
            "socratic",
            "README.md names hf",
        ),
        ("name: folder", "name: 2024", "2024", None),
        ("data_files: socratic/*.jsonl", "data_files:", "socratic", None),
        ("data_dir: main", "data_dir:", "folder", None),
    ],
)
def test_values_of_other_types(before, after, config, message, clone):
    (clone / "README.md").write_text(CARD.replace(before, after))
    if message is None:
        load_rows(clone, config=config)
        return
    with pytest.raises(ValueError, match=message):
        load_rows(clone, config=config)


def test_the_command_line_chooses_it(clone, tmp_path, capsys):
    scoring = ["score", "--model_name_or_path", "klball/tiny", "--dataset_name", str(clone)]
    with pytest.raises(SystemExit):
        main([*scoring, "--output_dir", str(tmp_path / "scores")])
    assert "choose one" in capsys.readouterr().err
    main([*scoring, "--output_dir", str(tmp_path / "scores"), "--dataset_config", "socratic"])
    assert (tmp_path / "scores" / "scores.parquet").is_file()
