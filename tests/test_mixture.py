"""Mixtures of TRL's recipes: its rows, read as klball reads one source."""

import random

import pytest
from datasets import Dataset
from trl import DatasetMixtureConfig, get_dataset
from trl.scripts.utils import DatasetConfig

from klball.data.mixture import mixed_rows
from klball.data.rows import load_rows


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, count in (("a", 7), ("b", 12)):
        rows = [{"question": f"{name}{i}", "answer": f" {i}", "more": i} for i in range(count)]
        Dataset.from_list(rows).to_parquet(f"{name}.parquet")
    answers = ("1.50", '"2024-01-02"', "1e5")
    lines = [f'{{"question": "q", "answer": {answer}}}\n' for answer in answers]
    (tmp_path / "n.jsonl").write_text("".join(lines))
    (tmp_path / "c.csv").write_text("question,answer\nx,0042\ny,NA\n")
    (tmp_path / "folder").mkdir()
    for split in ("train", "test"):
        (tmp_path / "folder" / f"{split}.jsonl").write_text(f'{{"question": "{split}", "answer": "a"}}\n')
    return tmp_path


@pytest.mark.parametrize("seed", range(16))
def test_rows_are_those_of_trl(files, seed):
    draw = random.Random(seed)
    parts = [
        DatasetConfig(
            path="parquet",
            data_files=draw.choice([f"{name}.parquet", [f"{name}.parquet"], {"train": f"{name}.parquet"}]),
            split=draw.choice(["train", "train[:5]", "train[50%:]", "train[:2]+train[3:6]"]),
            columns=draw.choice([None, ["question", "answer"]]),
            fraction=draw.choice([0.3, 1, 2.6]) if seed % 2 else None,
        )
        for name in draw.choices("ab", k=3)
    ]
    theirs = get_dataset(DatasetMixtureConfig(datasets=parts))["train"]
    assert mixed_rows(parts).to_list() == theirs.to_list()


def test_texts_stay_as_the_file_has_them(files):
    parts = [DatasetConfig("json", data_files="n.jsonl"), DatasetConfig("csv", data_files="c.csv")]
    assert mixed_rows(parts)["answer"][:] == ["1.50", "2024-01-02", "1e5", "0042", "NA"]
    assert mixed_rows([DatasetConfig("n.jsonl")])["answer"][:] == load_rows("n.jsonl")["answer"][:]


@pytest.mark.parametrize(
    ("part", "questions"),
    [
        ({"path": "folder", "split": "test"}, ["test"]),
        ({"path": "folder", "data_files": "te*.jsonl"}, ["test"]),
        ({"path": ".", "data_dir": "folder", "split": "train+test"}, ["train", "test"]),
        (
            {"path": "json", "data_dir": "folder", "data_files": ["test.jsonl", "train.jsonl"]},
            ["test", "train"],
        ),
        ({"path": "json", "data_files": {"a": "n.jsonl", "b": "folder/test.jsonl"}, "split": "b"}, ["test"]),
    ],
)
def test_sources(files, part, questions):
    assert mixed_rows([DatasetConfig(**part)])["question"][:] == questions


def test_shares_may_be_as_large_as_numbers_go(files):
    parts = [DatasetConfig(f"{name}.parquet", fraction=1e308) for name in "ab"]
    assert len(mixed_rows(parts)) == 14


def test_columns_of_different_types_stand_beside_each_other(files):
    (files / "m.jsonl").write_text('{"question": {"de": [1]}, "answer": ["a", 1], "own": 1}\n')
    rows = mixed_rows([DatasetConfig("m.jsonl"), DatasetConfig("c.csv")])
    assert rows["question"][:] == [{"de": [1]}, "x", "y"] and rows["answer"][0] == ["a", 1]
    assert rows["own"][:] == ["1", None, None]


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"path": ".", "data_dir": "nope"}, "there is no folder nope"),
        ({"path": "json", "data_files": []}, "data_files must name files"),
        ({"path": "json", "data_files": {}}, "data_files must name files"),
        ({"path": "json", "data_files": {"train": None}}, "data_files must name files"),
        ({"path": "json", "data_files": {"train": ["n.jsonl", 3]}}, "data_files must name files"),
        ({"path": "n.jsonl", "columns": ["answer", "answer"]}, "columns are named twice"),
        ({"path": "json"}, r"entry 2 \(json\): json needs data_files"),
        ({"path": "json", "data_files": "no.jsonl"}, r"entry 2 \(no.jsonl\): no data file no.jsonl"),
        ({"path": "json", "data_files": "no*.jsonl"}, "no data file no"),
        ({"path": "json", "data_files": "c.csv"}, "c.csv is no json file by its name"),
        ({"path": "json", "data_files": "n.jsonl", "name": "main"}, "no configurations"),
        ({"path": "json", "data_files": "n.jsonl", "split": "test"}, "no split 'test'; there are train"),
        ({"path": "json", "data_files": "n.jsonl", "split": "train["}, "is no split"),
        ({"path": "json", "data_files": "n.jsonl", "columns": ["prompt"]}, "no column 'prompt'; there are"),
        ({"path": "csv", "data_files": "https://localhost/c.csv"}, "must be local"),
        ({"path": "folder", "split": "dev"}, "no split 'dev'"),
        ({"path": "folder", "name": "german"}, "no configurations"),
        ({"path": "n.jsonl", "fraction": 0.5}, "entry 1 .*give fraction for every entry"),
        ({"path": "n.jsonl", "fraction": -1}, r"entry 2 \(n.jsonl\): fraction must be a number above 0"),
    ],
)
def test_bad_entries_are_named(files, part, message):
    with pytest.raises(ValueError, match=message) as caught:
        mixed_rows([DatasetConfig("a.parquet"), DatasetConfig(**part)])
    assert "\n" not in str(caught.value)
