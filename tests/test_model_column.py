"""Tables of several models, as leaderboards, scripts and spreadsheets keep them: `--model_column(s)`."""

import numpy as np
import pandas as pd
import pytest

from klball.cli import main


@pytest.fixture
def table(tmp_path, monkeypatch):
    """60 items of three models in one file, mixed, which every table of a model alone was cut from."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    items, langs = list(range(60)), ["fr", "de", "de"] * 20
    of_model = [
        {"who": m, "item": items, "lang": langs, "points": rng.normal(k, size=60)}
        for k, m in enumerate("abc")
    ]
    rows = pd.concat(map(pd.DataFrame, of_model)).sample(frac=1, random_state=0)
    rows.to_csv("all.csv", index=False)
    for model, own in rows.groupby("who"):
        own.drop(columns="who").to_csv(f"{model}.csv", index=False)
    return rows


def refused(capsys, *words):
    with pytest.raises(SystemExit) as stopped:
        main([*map(str, words)])
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and "Traceback" not in said
    return " ".join(said.split())


@pytest.mark.parametrize("command", ["evaluate", "compare"])
@pytest.mark.parametrize("files", [["all.csv"], ["ab.csv", "c-alone.csv"], ["all.parquet"]])
def test_one_table_gives_what_a_file_a_model_gives(command, files, table):
    order = list(dict.fromkeys(table["who"])) if files[0].startswith("all") else ["a", "b", "c"]
    table.to_parquet("all.parquet", index=False)
    table[table["who"] != "c"].sort_values("who").to_csv("ab.csv", index=False)
    table[table["who"] == "c"].to_csv("c-alone.csv", index=False)
    words = ["--group", "lang", *(["--resamples", "40"] if command == "compare" else [])]
    main([command, "--scores", *files, "--model_column", "who", *words, "--output_dir", "one"])
    main([command, "--scores", *(f"{m}={m}.csv" for m in order), *words, "--output_dir", "split"])
    name = "scores.csv" if command == "evaluate" else "groups.csv"
    one, split = (pd.read_csv(f"{folder}/{name}") for folder in ("one", "split"))
    pd.testing.assert_frame_equal(one, split)  # the order of items too does not matter
    assert set(one["model"]) == {"a", "b", "c"}


@pytest.mark.parametrize(
    ("command", "words", "said"),
    [
        ("evaluate", ["x=all.csv", "--model_column", "who"], "models are called as there: give all.csv"),
        ("evaluate", ["all.csv", "a-too.csv", "--model_column", "who"], "'a' of column who is in two of"),
        ("evaluate", ["all.csv", "--model_column", "model"], "has no column 'model' for --model_column"),
        ("evaluate", ["all.csv"], "of several models (in evaluate and compare) --model_column COLUMN"),
        ("evaluate", ["all.csv", "--model_column", "who", "--reference", "d"], "'d' is not among the scores"),
        ("evaluate", ["all.csv", "--model_column", "who", "--id", "none"], "of several models need ids"),
        ("evaluate", ["bare.csv", "--model_column", "who"], "items of several models need ids"),
        ("evaluate", ["gap.csv", "--model_column", "who"], "gap.csv, row 2 (counted from 1), who: the mod"),
        ("evaluate", ["nan.csv", "--model_column", "who"], "nan.csv, row 3 (counted from 1), points: NaN"),
        ("evaluate", ["twice.csv", "--model_column", "who"], "twice.csv, rows 2 and 4 (counted from 1) both"),
        ("evaluate", ["odd.csv", "--model_column", "who"], "cannot be a label"),
        ("compare", ["a-too.csv", "--model_column", "who"], "needs two models, and who names 'a' alone"),
    ],
)
def test_tables_whose_models_cannot_be_told_are_refused(command, words, said, table, capsys, tmp_path):
    table[table["who"] == "a"].to_csv("a-too.csv", index=False)
    (tmp_path / "bare.csv").write_text("who,points\na,1\nb,2\n")
    (tmp_path / "gap.csv").write_text("who,item,points\na,1,1\n,1,2\n")
    (tmp_path / "nan.csv").write_text("who,item,points\na,1,1\nb,1,2\na,2,nan\n")
    (tmp_path / "twice.csv").write_text("who,item,points\na,1,1\nb,1,2\na,2,3\nb,1,2\n")
    (tmp_path / "odd.csv").write_text('who,item,points\na,1,1\n"b\x1b",1,2\n')
    assert said in refused(capsys, command, "--scores", *words, "--output_dir", "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["--model_column", "--model_columns"])
def test_without_scores_it_is_refused(option, capsys):
    assert f"{option} has no effect without --scores" in refused(capsys, "compare", option, "who")


@pytest.mark.parametrize("command", ["evaluate", "compare"])
@pytest.mark.parametrize("right", [False, True])
def test_a_column_a_model_gives_what_a_file_a_model_gives(command, right, table):
    """Spreadsheets call columns after models, and so no score; those of right and wrong may say so."""
    table["score" if not right else "acc"] = table["points"] > 1 if right else table.pop("points")
    name = table.columns[-1]
    for model, own in table.groupby("who"):
        own.drop(columns="who").to_csv(f"{model}.csv", index=False)
    wide = table.pivot(index=["item", "lang"], columns="who", values=name).reset_index()
    wide.rename(columns={m: f"{m} {name}" for m in "abc"}).to_csv("wide.csv", index=False)
    words = ["--group", "lang", *(["--resamples", "40"] if command == "compare" else [])]
    columns = [f"{m}={m} {name}" for m in "abc"]
    main([command, "--scores", "wide.csv", "--model_columns", *columns, *words, "--output_dir", "one"])
    own = [f"{m}={m}.csv" for m in "abc"]
    main([command, "--scores", *own, "--score", name, *words, "--output_dir", "split"])
    file = "scores.csv" if command == "evaluate" else "groups.csv"
    one, split = (pd.read_csv(f"{folder}/{file}") for folder in ("one", "split"))
    pd.testing.assert_frame_equal(one, split)
    assert set(one["model"]) == {"a", "b", "c"}


@pytest.mark.parametrize(
    ("command", "words", "said"),
    [
        ("evaluate", ["x=wide.csv", "--model_columns", "a"], "models are called as there: give wide.csv"),
        ("evaluate", ["wide.csv", "all.csv", "--model_columns", "a"], "are of one table, not of wide.csv"),
        ("evaluate", ["wide.csv", "--model_columns", "a", "d"], "d"),
        ("evaluate", ["wide.csv", "--model_columns", "a", "a"], "labels repeat in a, a"),
        ("evaluate", ["wide.csv", "--model_columns", "a", "--score", "b"], "--score has no effect with"),
        ("evaluate", ["wide.csv", "--model_columns", "a", "a loss"], "--lower_is_better"),
        ("evaluate", ["wide.csv"], "evaluate and compare, --model_columns a b"),
        ("compare", ["wide.csv", "--model_columns", "a"], "two models, and --model_columns names 'a' alone"),
        ("compare", ["wide.csv"], "a --model_column, or --model_columns"),
    ],
)
def test_columns_of_models_that_cannot_be_read_are_refused(
    command, words, said, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for name in ("wide.csv", "all.csv"):
        (tmp_path / name).write_text("item,a,b,a loss\nx,1,2,1\ny,2,3,2\n")
    assert said in refused(capsys, command, "--scores", *words, "--output_dir", "out")
    assert not (tmp_path / "out").exists()
