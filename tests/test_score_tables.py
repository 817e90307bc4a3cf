"""Tables of scores as people keep them: ids in several columns, units, names, archives."""

import json
import zipfile

import pandas as pd
import pytest

import klball
from klball.comparison.rounds import round_scores

ROWS = [{"task": t, "item": i, "x": float(k)} for t in ("p", "q") for k, i in enumerate("abc")]


def test_ids_of_several_columns(tmp_path):
    with pytest.raises(ValueError, match=r"both have item 'a': name the columns .* --id task,id"):
        klball.scores_from(ROWS)
    scores = klball.scores_from(ROWS, id="task, item", group="task")
    assert scores.sample_ids == ["p/a", "p/b", "p/c", "q/a", "q/b", "q/c"] and scores.name == "x"
    with pytest.raises(ValueError, match="no column 'lang' for --id"):
        klball.scores_from(ROWS, id="lang,item")


def test_files_whose_items_are_numbered_anew_are_no_rounds(tmp_path):
    for name, count in (("math", 3), ("code", 2)):
        pd.DataFrame({"id": range(count), "x": 1.0}).to_csv(tmp_path / f"{name}.csv", index=False)
    with pytest.raises(ValueError, match=r"share 2 of their 3 items.*--id file,id"):
        klball.scores_from(tmp_path)
    scores = klball.scores_from(tmp_path, id="file,id", group="file")
    assert scores.sample_ids == ["code/0", "code/1", "math/0", "math/1", "math/2"]
    assert scores.groups == ["code"] * 2 + ["math"] * 3 and scores.round_names == ["all"]
    assert klball.scores_from(tmp_path / "math.csv", id="file,id").sample_ids[0] == "math/0"


def test_shares_beside_percentages_are_refused():
    share = klball.scores_from([{"id": i, "accuracy": float(i == "a")} for i in "abc"])
    percent = klball.scores_from([{"id": i, "accuracy": 100.0 * (i == "a")} for i in "abc"])
    none = klball.scores_from([{"id": i, "accuracy": 0.0} for i in "abc"])
    with pytest.raises(ValueError, match="1 of 'a' and 100 of 'b': write shares or percentages"):
        round_scores({"a": share, "b": percent})
    for models in ({"a": share, "b": none}, {"a": percent, "b": none}):
        assert len(round_scores(models).sample_ids) == 3
    points = {
        m: klball.scores_from([{"id": i, "score": v} for i in "abc"]) for m, v in (("a", 1.0), ("b", 9.0))
    }
    assert len(round_scores(points).sample_ids) == 3


@pytest.mark.parametrize(
    "name", ["cross-entropy", "Cross entropy", "crossEntropy", "bits-per-byte", "bits per token", "logloss"]
)
def test_a_loss_is_one_however_its_words_are_joined(name):
    with pytest.raises(ValueError, match="less is better"):
        klball.scores_from([{"id": "a", name: 1.0}, {"id": "b", name: 2.0}])


@pytest.mark.parametrize("name", ["train_trial_index", "epoch", "seed", "tstamp", "num_effective_few_shots"])
def test_what_counts_or_dates_is_no_score_unasked(name):
    rows = [{"key": "a", name: 1, "stats": "x"}, {"key": "b", name: 2, "stats": "y"}]
    with pytest.raises(ValueError, match=r"no numeric column .* could be the score.*stats"):
        klball.scores_from(rows)
    assert klball.scores_from(rows, score=name).values.tolist() == [1, 2]


@pytest.mark.parametrize("header", ["", "Unnamed: 0"])
def test_a_first_column_without_a_name_is_the_index(header, tmp_path):
    (tmp_path / "x.csv").write_text(f"{header},score\n7,1.5\n3,2.5\n")
    scores = klball.scores_from(tmp_path / "x.csv")
    assert scores.sample_ids == ["7", "3"] and not scores.numbered and scores.values.tolist() == [1.5, 2.5]
    (tmp_path / "y.csv").write_text(f"{header},id,score\n7,a,1.5\n3,b,2.5\n")
    assert klball.scores_from(tmp_path / "y.csv", score="score").sample_ids == ["a", "b"]


def test_ids_are_the_same_however_they_are_written(tmp_path):
    (tmp_path / "a.csv").write_text("id,x\n0.0,1\n1.0,2\n")
    (tmp_path / "b.csv").write_text("id,x\n0,1\n1,2\n")
    assert klball.scores_from(tmp_path / "a.csv").sample_ids == ["0", "1"]
    (tmp_path / "c.csv").write_text("id,x\n0.0,1\n1.5,2\n")
    assert klball.scores_from(tmp_path / "c.csv").sample_ids == ["0.0", "1.5"]
    composed, apart = (klball.scores_from([{"id": i, "x": 1.0}]) for i in ("\u00e9", "e\u0301"))
    assert composed.sample_ids == apart.sample_ids


def test_what_is_nested_has_names_with_points(tmp_path):
    rows = [{"id": i, "metric": {"acc": float(k), "f1": 0.5}} for k, i in enumerate("ab")]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pd.DataFrame(rows).to_parquet(tmp_path / "x.parquet")
    for name in ("x.jsonl", "x.parquet"):
        with pytest.raises(ValueError, match=r"several numeric columns \(metric.acc, metric.f1\)"):
            klball.scores_from(tmp_path / name)
        assert klball.scores_from(tmp_path / name, score="metric.acc").values.tolist() == [0, 1]


def test_an_archive_is_no_log(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("x.csv", "id,x\na,1\n")
    with pytest.raises(ValueError, match="zip archive or a spreadsheet: unpack it"):
        klball.scores_from(tmp_path / "x.zip")


def test_a_number_in_quotes_is_called_so():
    with pytest.raises(ValueError, match=r"'0.5' is no number.*without quotes"):
        klball.scores_from([{"id": "a", "f1": "0.5"}], score="f1")
