"""Per-item results of other tools: the same numbers from every format, or one line that says why not."""

import gzip
import json

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import klball
from klball.comparison.elsewhere import RoundsElsewhere
from klball.comparison.rounds import round_scores

ACC = [1.0, 0.0, 1.0, 1.0]
IDS = ["a", "b", "c", "d"]
ROWS = [{"id": i, "acc": x, "lang": "en"} for i, x in zip(IDS, ACC, strict=True)]
COLUMNS = {"id": IDS, "acc": ACC, "lang": ["en"] * 4}


def separated(rows, delimiter=","):
    lines = [delimiter.join(map(str, row.values())) for row in rows]
    return "\n".join([delimiter.join(rows[0]), *lines]) + "\n"


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


FILES = {
    "x.csv": separated(ROWS),
    "x.tsv": separated(ROWS, "\t"),
    "semicolons.csv": separated(ROWS, ";"),
    "x.jsonl": lines(ROWS),
    "x.json": json.dumps(ROWS),
    "tabs.txt": separated(ROWS, "\t"),
    "rows": lines(ROWS),
    "bom.csv": "\ufeff" + separated(ROWS).replace("\n", "\r\n"),
    "spaces.csv": separated(ROWS, " , "),
    "quotes.tsv": separated([{**row, "lang": '"say ""1\t2"""'} for row in ROWS], "\t"),
    "truth.csv": separated([{**row, "acc": bool(row["acc"])} for row in ROWS]),
}


@pytest.mark.parametrize("name", FILES)
def test_every_text_format_is_known_by_its_content(name, tmp_path):
    (tmp_path / name).write_bytes(FILES[name].encode())
    assert_is_acc(klball.scores_from(tmp_path / name))


def assert_is_acc(scores):
    assert scores.sample_ids == IDS and scores.values.tolist() == ACC and len(scores) == 4
    assert (scores.measure.noun, scores.measure.unit, scores.name) == ("accuracy", "accuracy", "acc")


def test_packed_files_and_parquet_whatever_they_are_called(tmp_path):
    with gzip.open(tmp_path / "x.csv.gz", "wt") as file:
        file.write(FILES["x.csv"])
    pq.write_table(pa.table(COLUMNS), tmp_path / "table")
    for name in ("x.csv.gz", "table"):
        assert_is_acc(klball.scores_from(tmp_path / name))


def polars_frame():
    return pytest.importorskip("polars").DataFrame(COLUMNS)


@pytest.mark.parametrize(
    "make",
    [
        lambda: pd.DataFrame(COLUMNS),
        lambda: pd.DataFrame(COLUMNS).set_index("id"),
        lambda: pd.DataFrame(COLUMNS, index=IDS).drop(columns="id"),
        lambda: [{**row, "acc": np.float32(row["acc"])} for row in ROWS],
        lambda: [{**row, "acc": np.bool_(row["acc"])} for row in ROWS],
        lambda: pd.concat([pd.DataFrame(COLUMNS)[2:], pd.DataFrame(COLUMNS)[:2]]).sort_index()[::1],
        lambda: pd.DataFrame({**COLUMNS, "lang": pd.Categorical(COLUMNS["lang"])}),
        polars_frame,
        lambda: datasets.Dataset.from_dict(COLUMNS),
        lambda: datasets.Dataset.from_list([*ROWS, *ROWS]).select(range(4)),
        lambda: pa.table(COLUMNS),
        lambda: COLUMNS,
        lambda: ROWS,
    ],
)
def test_frames_and_rows_in_python(make):
    assert_is_acc(klball.scores_from(make()))


@pytest.mark.parametrize(
    "given",
    [3, None, b"x", [], [1, 2], {"a": [1], "b": [1, 2]}, np.ones(3), pd.Series([0.5])],
    ids=lambda x: repr(x)[:12],
)
def test_what_holds_no_rows_is_refused(given):
    with pytest.raises(ValueError, match=r"must|no rows|named columns|as a table"):
        klball.scores_from(given)


@pytest.mark.parametrize(
    "words", [{"score": 3}, {"id": 0}, {"group": ["lang"]}, {"round": True}, {"lower_is_better": "false"}]
)
def test_arguments_of_another_type_are_refused(words):
    with pytest.raises(ValueError, match=rf"{next(iter(words))} must be"):
        klball.scores_from(ROWS, **words)


# --- cells --------------------------------------------------------------------------------------------

CELLS = {  # what stands in the third row → what the refusal says
    "NaN": (float("nan"), "missing|NaN"),
    "infinite": (float("inf"), "missing|inf"),
    "missing": (None, "missing"),
    "text": ("abc", "'abc' is no number"),
    "a number as text": ("0.5", "'0.5' is no number"),
    "true among numbers": (True, "True among numbers"),
    "a list": ([1.0], "a list is no number"),
    "too large": (1e305, "no difference of scores can hold"),
    "longer than a float": (10**400, "no difference|inf"),
}


@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize("form", ["rows", "jsonl", "pandas"])
def test_a_bad_cell_is_named_by_row_and_column(kind, form, tmp_path):
    value, said = CELLS[kind]
    rows = [{"id": i, "x": x} for i, x in zip(IDS, [1.5, 2.5, value, 3.5], strict=True)]
    given = rows
    if form == "jsonl":
        (tmp_path / "x.jsonl").write_text(lines(rows))
        given = tmp_path / "x.jsonl"
    elif form == "pandas":
        given = pd.DataFrame(rows, dtype=object)
    with pytest.raises(ValueError, match=rf"row 3 \(counted from 1\), x: .*({said})") as refused:
        klball.scores_from(given, score="x")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "cell", ["", "NA", "nan", "inf", "1,5", "1_000", "0x10", "true", "1e400", "--1", "½"]
)
def test_a_bad_cell_of_a_csv_file(cell, tmp_path):
    cells = [1, 2, f'"{cell}"', 3]
    (tmp_path / "x.csv").write_text("id,x\n" + "".join(f"{i},{x}\n" for i, x in zip(IDS, cells, strict=True)))
    with pytest.raises(ValueError, match=r"x\.csv, row 3 \(counted from 1\), x: "):
        klball.scores_from(tmp_path / "x.csv", score="x")


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        (["a", "b", "a"], r"rows 1 and 3 \(counted from 1\) both have id 'a'.*--round COLUMN"),
        (["a", None, "c"], r"row 2 \(counted from 1\), id: the id is missing"),
        (["a", "", "c"], r"row 2 \(counted from 1\), id: the id is missing"),
        (["a", ["b"], "c"], r"row 2 \(counted from 1\), id: the id is a list"),
        ([1.0, 2.0, float("nan")], r"row 3 \(counted from 1\), id: the id is missing"),
    ],
)
def test_ids_that_repeat_or_are_missing(ids, said):
    rows = [{"id": i, "x": 1.0} for i in ids]
    with pytest.raises(ValueError, match=said):
        klball.scores_from(rows)
    assert len(klball.scores_from(rows, id="none")) == 3


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x.csv", "id,x\n", "no rows below its header"),
        ("x.tsv", 'id\tx\na\t"1\n', "line 2: a cell that begins with .* never ends"),
        ("x.csv", "id,x\na,1,2\n", "line 2: 3 cells, but the header has 2"),
        ("x.csv", "0.989\n3.116\n1e-3\n", "no header, its first line is 0.989: put the columns' names above"),
        ("x.csv", "-.5;1\n.5;2\n", "no header, its first line is -.5;1"),
        ("x.csv", "x,x\n1,2\n", "two columns called 'x'"),
        ("x.jsonl", '{"id": 1, "x": 2}\n{"id": \n', "line 2: not JSON"),
        ("x.json", '{\n"a": 1,\n"b": [1, 2]\n}', "is one JSON object"),
        ("results.json", '{"results": {}, "configs": {}}', "totals of lm-eval.*--log_samples"),
        ("x.parquet", "PAR1junk", "not a readable Parquet file"),
        ("x.csv", "", "is empty"),
        ("x.bin", "\0\0\0\0", "is binary"),
    ],
)
def test_files_that_hold_no_scores(name, content, said, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=said):
        klball.scores_from(tmp_path / name)


# --- rounds and groups --------------------------------------------------------------------------------


def test_rounds_by_column_are_means_for_one_answer():
    rows = [{"id": i, "x": float(k * 10 + r), "seed": r} for k, i in enumerate("abc") for r in (1, 2)]
    with pytest.raises(ValueError, match="--round COLUMN"):
        klball.scores_from(rows, score="x")
    scores = klball.scores_from(rows, score="x", round="seed")
    assert scores.round_names == ["1", "2"] and scores.of_round("2") == {"a": 2.0, "b": 12.0, "c": 22.0}
    one = klball.scores_from(rows[:-1], score="x", round="seed").per_item()
    assert one.sample_ids == ["a", "b"] and one.values.tolist() == [1.5, 11.5]
    assert one.lacking == {"c": "missing"} and "means over 2 rounds" in one.notes[-1]


@pytest.mark.parametrize("shared", [True, False])
def test_files_of_a_folder_are_rounds_where_they_score_the_same_items(shared, tmp_path):
    for k in range(2):
        rows = [{"id": f"{i}" if shared else f"{k}{i}", "x": k + 0.5} for i in "abc"]
        (tmp_path / f"seed-{k}.csv").write_text(separated(rows))
    (tmp_path / "run.json").write_text("{}")  # of a command of klball
    scores = klball.scores_from(tmp_path)
    assert scores.round_names == (["seed-0", "seed-1"] if shared else ["all"]) and len(scores) == 6
    assert any("every file is a round" in note for note in scores.notes) is shared
    assert klball.scores_from(tmp_path, round="file").round_names == ["seed-0", "seed-1"]


def test_an_item_has_one_group():
    rows = [{"id": "a", "x": 1.0, "g": g, "r": g} for g in "pq"]
    scores = klball.scores_from(rows, group="g", round="r")
    with pytest.raises(ValueError, match=r"item 'a' has two groups, 'p' and 'q'"):
        scores.per_item()


def test_items_that_one_model_lacks_leave_for_all():
    a = klball.scores_from([{"id": i, "x": 1.0, "g": i > "b"} for i in "abcde"], score="x", group="g")
    b = klball.scores_from([{"id": i, "x": 2.0} for i in "edcz"])
    scores = round_scores({"a": a, "b": b})
    assert scores.sample_ids == ["c", "d", "e"] and scores.left_out["missing"] == 3
    assert scores.groups == ["True"] * 3 and scores.log_likelihood[:, 0].tolist() == [[1.0] * 3, [2.0] * 3]
    with pytest.raises(ValueError, match=r"ids are such as 'a', 'q'.*--id"):
        round_scores({"a": a, "b": klball.scores_from([{"id": "q", "x": 1.0}])})
    with pytest.raises(ValueError, match="compare the same score"):
        round_scores({"a": a, "b": klball.scores_from([{"id": "a", "y": 1.0}])})
    loss = klball.scores_from([{"id": "a", "x": 1.0}], lower_is_better=True)
    with pytest.raises(ValueError, match="compare the same score"):
        round_scores({"a": a, "b": loss})
    assert RoundsElsewhere({"a": klball.scores_from([{"id": 1, "x": 2.0, "question": "why?"}])}).texts(
        {"1"}
    ) == {"1": {"prompt": "why?"}}
    rows = [{"id": i, "x": 1.0, "r": r} for i in "ab" for r in (1, 2)]
    seeds, part = (klball.scores_from(some, score="x", round="r") for some in (rows, rows[:3]))
    for pair in ({"a": seeds, "b": part}, {"a": seeds.per_item(), "b": part.per_item()}):
        found = round_scores(pair)
        assert found.sample_ids == ["a"] and found.left_out == {"missing": 1}
    with pytest.raises(ValueError, match="'a' has 2, 'b' has 1"):
        round_scores({"a": seeds, "b": b})


def test_files_without_ids_are_no_rounds_unless_said_so(tmp_path):
    """Row k of one is no item of the other: two parts of one data set were averaged."""
    for k in range(2):
        (tmp_path / f"part-{k}.csv").write_text(separated([{"x": i + k} for i in range(3 - k)]))
    for words in ({}, {"id": "none"}):
        with pytest.raises(ValueError, match=r"have no ids, so nothing tells .* --round file"):
            klball.scores_from(tmp_path, **words)
    scores = klball.scores_from(tmp_path, id="none", round="file")
    assert scores.round_names == ["part-0", "part-1"] and scores.sample_ids == ["1", "2", "3", "1", "2"]


def test_numbers_of_rows_count_those_without_a_score(tmp_path):
    """Else every row behind a cut one would be paired with its neighbour."""
    rows = {
        "sample_id": ["a", "b", "c", "d"],
        "log_likelihood": [-1.0, -2.0, None, -4.0],
        "certainty": [1.0] * 4,
        "entropy": [1.0] * 4,
        "sum_log_prob": [-1.0] * 4,
        "num_tokens": [1] * 4,
        "num_bytes": [1] * 4,
    }
    cut = klball.scores_from(pa.table({**rows, "truncated": [True, False, False, False]}), id="none")
    assert cut.sample_ids == ["2", "4"] and cut.lacking == {"1": "truncated", "3": "unscored"}
    whole = [-1.0, -2.0, -3.0, -4.0]
    table = pa.table({**rows, "log_likelihood": whole, "truncated": [False] * 4})
    scores = round_scores({"cut": cut, "whole": klball.scores_from(table, id="none")})
    assert np.array_equal(scores.log_likelihood[0], scores.log_likelihood[1])
    assert {why: count for why, count in scores.left_out.items() if count} == {"truncated": 1, "unscored": 1}


def test_models_that_contradict_each_other_on_an_items_group_are_refused():
    def of(own, **more):
        rows = [{"id": "a", "x": 1.0, "g": own}, {"id": "b", "x": 2.0, "g": "y"}]
        return klball.scores_from(rows, **more)

    grouped = dict(score="x", group="g")
    assert round_scores({"a": of("x", **grouped), "b": of("x", **grouped)}).groups == ["x", "y"]
    with pytest.raises(ValueError, match="item 'a' is in group 'z' by 'b', before in 'x'"):
        round_scores({"a": of("x", **grouped), "b": of("z", **grouped)})
    assert round_scores({"a": of("x", score="x"), "b": of("z", **grouped)}).groups == ["z", "y"]
