"""Files as rows: every text as it stands there, every fault one line; sources, splits and ids."""

import bz2
import gzip
import json
import os
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict

from klball.data.encoding import encode
from klball.data.readers import dataset_of
from klball.data.rows import load_rows, to_trl_format, with_sample_ids

ROWS = [{"question": f"Name {k}.", "answer": f"It is {k}."} for k in range(8)]


def write(path, content):
    if isinstance(content, list):
        content = "".join(json.dumps(row) + "\n" for row in content)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def answers(name, **more):
    return to_trl_format(load_rows(name, **more), conversational=False)["completion"][:]


# --- texts arrive as they are -----------------------------------------------------------------

SPELLINGS = ["0", "0.0", "42", "-7", "1e5", "1E+05", "1.50", "0.1", "12345678901234567890", "true", "false"]
STRINGS = [
    "0042",
    "None",
    "NA",
    "null",
    "nan",
    "Na",
    "",
    " x ",
    "2024-01-05",
    "2024-02-06T10:00:00",
    "12",
    "\u2028",
]
STRINGS += ["[/INST]", "a\tb", "line\nbreak", '"quoted"', "ünïcode 🙂", "\ufeffmark", "\x00", "{'a': 1}"]


@pytest.mark.parametrize("layout", ["lines", "array", "nested spaces"])
def test_json_numbers_are_text_as_written(layout, tmp_path):
    rows = [f'{{"id": {k}.50, "question": "q", "answer": {text}}}' for k, text in enumerate(SPELLINGS)]
    text = {"lines": "\n".join(rows), "array": f"[{','.join(rows)}]", "nested spaces": "\n\n ".join(rows)}
    dataset = load_rows(write(tmp_path / "d.json", text[layout]))
    assert to_trl_format(dataset, False)["completion"][:] == SPELLINGS
    assert dataset["sample_id"][:] == [f"{k}.50" for k in range(len(SPELLINGS))]


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "tsv", "parquet"])
def test_strings_come_back_byte_for_byte(suffix, tmp_path):
    path = tmp_path / f"d.{suffix}"
    frame = pd.DataFrame(
        {"id": [f"0{k}" for k in range(len(STRINGS))], "question": STRINGS, "answer": STRINGS}
    )
    if suffix == "jsonl":
        write(path, frame.to_dict("records"))
    elif suffix == "parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path, sep="," if suffix == "csv" else "\t", index=False)
    dataset = load_rows(str(path))
    rendered = to_trl_format(dataset, False)
    assert rendered["completion"][:] == STRINGS
    assert rendered["prompt"][:] == [text + "\n" for text in STRINGS]
    assert dataset["sample_id"][:] == frame["id"].tolist()


@pytest.mark.parametrize("value", [0, False, 0.0, 7, 2.5, True])
def test_typed_columns_become_their_spelling(value):
    rows = Dataset.from_dict({"question": ["q"], "answer": [value]})
    assert to_trl_format(rows, False)["completion"][:] == [json.dumps(value)]


@pytest.mark.parametrize(
    "turns",
    [
        [
            {"role": "user", "content": "a"},
            {"role": "assistant", "tool_calls": [{"f": {"x": 1}}, {"f": {"y": 2.5}}]},
        ],
        [{"content": "order", "role": "user"}, {"role": "assistant", "content": "kept"}],
        [{"role": "user", "content": "1"}, {"role": "assistant", "content": "42", "extra": [1, "1", None]}],
    ],
)
def test_conversations_come_back_with_their_keys_numbers_and_order(turns, tmp_path):
    """Arrow's structs would fill up keys, reorder them, and turn 1 beside 2.5 into 1.0."""
    other = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    given = [turns, other, turns]
    path = write(tmp_path / "d.jsonl", [{"messages": m} for m in given])
    for dataset in (load_rows(path), load_rows(path).map(lambda row: row)):
        assert json.dumps(dataset["messages"][:]) == json.dumps(given)


def test_numbers_that_a_mixed_column_would_round_are_refused():
    call = {"role": "assistant", "tool_calls": [{"at": 59.9138681234567}]}
    rows = [{"messages": [{"role": "user", "content": "q"}, call]}]
    with pytest.raises(ValueError, match=r"row 1 .*messages: a number with more than 10 decimals"):
        dataset_of(rows)
    dataset_of([{"messages": [], "meta": {"a": 0.12345678901234}}, {"messages": [], "meta": {"b": 1}}])


def test_the_same_file_with_other_content_gives_the_new_rows(tmp_path):
    path = tmp_path / "d.parquet"
    for text in ("old", "new"):
        pq.write_table(pa.table({"text": [text]}), path)
        os.utime(path, (1, 1))
        assert load_rows(str(path))["text"][:] == [text]
    for suffix in ("csv", "jsonl"):
        for text in ("old", "new"):
            name = write(tmp_path / f"d.{suffix}", f"text\n{text}\n" if suffix == "csv" else [{"text": text}])
            os.utime(name, (1, 1))
            assert load_rows(name)["text"][:] == [text]


# --- files and formats ------------------------------------------------------------------------


def compressed(content, how):
    if how == "zst":
        sink = pa.BufferOutputStream()
        with pa.CompressedOutputStream(sink, "zstd") as stream:
            stream.write(content)
        return sink.getvalue().to_pybytes()
    return {"gz": gzip.compress, "bz2": bz2.compress}[how](content)


@pytest.mark.parametrize(
    "name",
    [
        *(
            "d.jsonl",
            "D.JSONL",
            "d.ndjson",
            "d.json",
            "d.csv",
            "d.tsv",
            "d.Csv",
            "d.v2.jsonl",
            "d.parquet",
            "d.PARQUET",
        ),
        *("d.jsonl.gz", "d.json.gz", "d.csv.gz", "d.jsonl.zst", "d.jsonl.bz2", "D.JSONL.GZ", "d.parquet.gz"),
    ],
)
def test_readable_suffixes(name, tmp_path):
    lower = name.lower()
    frame = pd.DataFrame(ROWS)
    if ".parquet" in lower:
        content = frame.to_parquet()
    elif ".csv" in lower or ".tsv" in lower:
        content = frame.to_csv(
            index=False, sep="\t" if ".tsv" in lower else ",", lineterminator="\r\n"
        ).encode()
    else:
        content = b"\xef\xbb\xbf" + "\r\n\r\n".join(map(json.dumps, ROWS)).encode()
    how = lower.rsplit(".", 1)[-1]
    path = write(tmp_path / name, compressed(content, how) if how in ("gz", "zst", "bz2") else content)
    assert answers(path) == [row["answer"] for row in ROWS]


def test_text_files_are_one_row_a_line(tmp_path):
    path = write(tmp_path / "d.txt", "one line\r\n\n two lines \nNA")
    assert load_rows(path)["text"][:] == ["one line", " two lines ", "NA"]


def test_patterns_take_files_in_order(tmp_path, monkeypatch):
    for k in range(3):
        write(tmp_path / "data" / f"part-{k}.jsonl", ROWS[k : k + 1])
    monkeypatch.chdir(tmp_path)
    for pattern in ("data/*.jsonl", str(tmp_path / "data/part-[0-9].jsonl"), "*/part-?.jsonl"):
        assert answers(pattern) == [row["answer"] for row in ROWS[:3]]
    with pytest.raises(ValueError, match="no data file"):
        load_rows("data/*.csv")


def test_unusual_parquet_types_are_plain_text(tmp_path):
    column = pa.array(["a", "b", "a"])
    for kind in (column.dictionary_encode(), column.cast(pa.large_string()), column.cast(pa.string_view())):
        pq.write_table(pa.table({"text": kind}), tmp_path / "d.parquet")
        assert to_trl_format(load_rows(str(tmp_path / "d.parquet")), False)["text"][:] == ["a", "b", "a"]


BAD_FILES = {
    "cut.jsonl": ('{"question": "a", "answer": "b"}\n{"question": "c", "ans', "line 2: not JSON"),
    "bombs.jsonl": ("[" * 100_000 + "]" * 100_000, "nested too deeply"),
    "bomb.jsonl": (
        '{"question": "a", "answer": ' + "[" * 100_000 + "]" * 100_000 + "}",
        "line 1: .*too deeply",
    ),
    "deep.jsonl": ('{"messages": ' + "[" * 900 + "]" * 900 + "}", "too deeply"),
    "list.jsonl": ('{"text": "a"}\n[1]\n', "line 2: a row is an object"),
    "scalars.json": ('[{"text": "a"}, 5]', "row 2: a row is an object with named columns, not int"),
    "array.json": ('[{"text": "a"}, ', "not JSON"),
    "digits.jsonl": ('{"text": 1' + "0" * 5_000 + "}", "line 1: "),
    "half.jsonl": ('{"text": "a"}\n{"text": "\\ud83d"}', "row 2 .*text: half of a two-part character"),
    "halves.jsonl": ('{"messages": [{"a": 1}]}\n{"messages": ["\\ud83d"]}', "row 2 .*messages: half of a"),
    "latin.jsonl": ('{"text": "a"}\n{"text": "é"}'.encode("latin-1"), "line 2: not UTF-8"),
    "wide.csv": ("text,n\na,1\n".encode("utf-16"), "UTF-16"),
    "ragged.csv": ("question,answer\na,b\nc\n", "line 3: 1 cells, but the header has 2"),
    "quotes.csv": ('question,answer\na,"b\nc,d\n', "line 3: "),
    "bare.csv": ("0.989,1\n3.116,0\n", "has no header, its first line is 0.989,1: put"),
    "twice.csv": ("text,text\na,b\n", "two columns called 'text'"),
    "header.csv": ("question,answer\n", "has no rows"),
    "blank.jsonl": ("\n\n", "has no rows"),
    "empty.jsonl": ("", "is empty"),
    "x.parquet": ("not a table", "could not read"),
    "x.jsonl.gz": (gzip.compress(b'{"text": "a"}' * 99)[:-9], "could not read"),
    "plain.jsonl.gz": ('{"text": "a"}', "could not read"),
    "x.zst": ("x", "no data file that klball reads: those end in .jsonl"),
    "x.docx": ("x", "no data file that klball reads: those end in .jsonl"),
    "noend": ("x", "no data file that klball reads: those end in .jsonl"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_are_one_line(name, tmp_path):
    content, message = BAD_FILES[name]
    with pytest.raises(ValueError, match=message) as caught:
        load_rows(write(tmp_path / name, content))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["none.jsonl", "./none", "/none/at/all", "~/none.csv", "none/*.jsonl", "a/b.jsonl.gz"]
)
def test_missing_files_are_not_looked_for_on_the_hub(name, monkeypatch):
    monkeypatch.setattr("klball.data.sources.load_dataset", None)
    with pytest.raises(ValueError, match=r"no data file|no file or folder"):
        load_rows(name)


# --- splits -----------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("klball.data.folders.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def sources(tmp_path):
    """The same rows as every kind of source: with splits and without."""
    rows = [{"id": f"r{k}", **row} for k, row in enumerate(ROWS)]
    whole, parts = Dataset.from_list(rows), {"train": rows[:6], "test": rows[6:]}
    whole.save_to_disk(tmp_path / "saved")
    DatasetDict({name: Dataset.from_list(part) for name, part in parts.items()}).save_to_disk(
        tmp_path / "both"
    )
    for name, part in parts.items():
        write(tmp_path / "folder" / f"{name}.jsonl", part)
        write(tmp_path / "deep" / name / "shard-0.jsonl", part)
    write(tmp_path / "folder" / "README.md", "not data")
    write(tmp_path / "one" / "some.csv", pd.DataFrame(rows).to_csv(index=False))
    write(tmp_path / "file.jsonl", rows)
    return tmp_path


def ids(path, *arguments, **more):
    return [int(i.removeprefix("r")) for i in load_rows(str(path), *arguments, **more)["sample_id"]]


@pytest.mark.parametrize("name", ["file.jsonl", "saved", "file.*"])
@pytest.mark.parametrize(
    ("split", "expected"),
    [
        *((None, range(8)), ("train", range(8)), ("train[:2]", [0, 1]), ("train[-2:]", [6, 7])),
        *(("train[50%:]", range(4, 8)), ("train[:25%]+train[75%:]", [0, 1, 6, 7])),
    ],
)
def test_slices_of_one_table(sources, name, split, expected):
    assert ids(sources / name, split, default="test") == list(expected)


@pytest.mark.parametrize("name", ["folder", "deep", "both"])
@pytest.mark.parametrize(
    ("split", "default", "expected"),
    [
        *(
            (None, "train", range(6)),
            (None, "test", [6, 7]),
            ("test", "train", [6, 7]),
            ("train[4:]", "test", [4, 5]),
        ),
        ("train[:1]+test[1:]", "train", [0, 7]),
    ],
)
def test_splits_of_folders(sources, name, split, default, expected):
    assert ids(sources / name, split, default=default) == list(expected)


@pytest.mark.parametrize("name", ["saved", "both"])
def test_nothing_is_written_beside_saved_data(name, sources, tokenizer):
    """Their disk may be read-only; processes look for what one of them has made of the rows."""
    before = {*sources.joinpath(name).rglob("*")}
    made, again = (encode(load_rows(str(sources / name)), tokenizer) for _ in range(2))
    assert {*sources.joinpath(name).rglob("*")} == before
    assert made.cache_files and made.to_list() == again.to_list()
    for rows in (made, again):
        assert all(Path(file["filename"]).is_relative_to(sources / "cache") for file in rows.cache_files)


def test_a_folder_with_one_split_needs_no_name(sources):
    assert ids(sources / "one", default="test") == list(range(8))


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("file.jsonl", ("test",), "one table, which has no split 'test'"),
        ("file.jsonl", ("validation[:2]",), "no split 'validation'"),
        ("file.jsonl", ("train[2",), "is no split"),
        ("file.jsonl", ("train[a:b]",), "no slice|is no split"),
        ("file.jsonl", ("train[8:]",), "has no rows"),
        ("file.jsonl", (None, "german"), "no configurations"),
        ("folder", ("validation",), "no split 'validation'; there are train, test"),
        ("folder", (None, "german"), "no configurations"),
        ("both", ("dev",), "no split 'dev'; there are train, test"),
        ("saved", ("test",), "no split 'test'"),
        ("one", ("test",), "no split 'test'; there are train"),
    ],
)
def test_splits_that_are_not_there(sources, name, arguments, message):
    with pytest.raises(ValueError, match=message):
        load_rows(str(sources / name), *arguments)


def test_built_in_data_are_sliced_too():
    whole = load_rows("word-problems", "test")
    assert load_rows("word-problems", "test[5:7]")["sample_id"][:] == whole["sample_id"][5:7]
    assert load_rows("word-problems", default="test")["sample_id"][:] == whole["sample_id"][:]
    for arguments in (("dev",), (None, "german")):
        with pytest.raises(ValueError, match=r"split|configurations"):
            load_rows("word-problems", *arguments)


def test_damaged_and_empty_folders(tmp_path):
    write(tmp_path / "saved" / "state.json", "{")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="could not read"):
        load_rows(str(tmp_path / "saved"))
    with pytest.raises(ValueError, match="holds no data files"):
        load_rows(str(tmp_path / "empty"))


# --- ids --------------------------------------------------------------------------------------


def test_rows_are_numbered_before_they_are_cut_or_shuffled(tmp_path):
    path = write(tmp_path / "d.jsonl", ROWS)
    whole = load_rows(path)["sample_id"][:]
    assert [i.split("-")[0] for i in whole] == [str(k) for k in range(8)]
    assert load_rows(path, "train[3:5]")["sample_id"][:] == whole[3:5]
    assert sorted(with_sample_ids(load_rows(path).shuffle(seed=0))["sample_id"]) == sorted(whole)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["a", "b", "a"], "rows 1 and 3 .*'a'.*--id_column"),
        (["a", None, "b"], "row 2 .*id is missing.*--id_column"),
        (["a", "", "b"], "row 2 .*id is missing"),
        ([1.0, float("nan"), 2.0], "row 2 .*id is missing"),
        ([{"k": 1}, {"k": 2}, {"k": 3}], "row 1 .*an object"),
        ([["a"], ["b"], ["c"]], "row 1 .*a list"),
    ],
)
def test_bad_ids_name_their_rows_and_the_way_out(values, message):
    dataset = Dataset.from_dict({"id": values, "text": ["x", "y", "z"]})
    with pytest.raises(ValueError, match=message) as caught:
        with_sample_ids(dataset)
    assert "\n" not in str(caught.value)
    assert with_sample_ids(dataset, "none")["sample_id"][0].startswith("0-")


def test_the_column_of_ids_can_be_named(tmp_path):
    rows = [{"id": "same", "uuid": f"u{k}", **row} for k, row in enumerate(ROWS)]
    path = write(tmp_path / "d.jsonl", rows)
    assert load_rows(path, id_column="uuid")["sample_id"][:] == [f"u{k}" for k in range(8)]
    assert with_sample_ids(load_rows(path, id_column="uuid"))["sample_id"][0] == "u0"
    with pytest.raises(ValueError, match="no column 'key' to take ids from; there are id, uuid"):
        load_rows(path, id_column="key")
