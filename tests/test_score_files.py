"""Score tables on disk: damage, foreign files, what a kill leaves, and what the tables say of their rows."""

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset

import klball
from klball import cli
from klball.data.rows import load_rows
from klball.files import HOST
from klball.scores.parquet import score_files
from klball.scores.tables import read_provenance, read_scores, row_format, warn_of_formats


@pytest.fixture
def table_path(tiny_model, tokenizer, data, tmp_path):
    path = tmp_path / "tables" / "t.parquet"
    klball.score(tiny_model, tokenizer, load_rows(str(data), "train"), output=path)
    return path


@pytest.mark.parametrize("streamed", [False, True])
def test_flipped_bytes_never_change_a_number(streamed, table_path):
    """Whatever byte of the pages is changed: an error in one line, or the very same numbers."""
    whole, group = table_path.read_bytes(), pq.read_metadata(table_path).row_group(0)
    columns = [group.column(i) for i in ((1, 2) if streamed else range(group.num_columns))]

    def read():
        if streamed:
            return [part for rows in klball.stream_scores(table_path) for part in rows()]
        return read_scores(table_path)[0].to_dict()

    expected, noticed, tried = read(), 0, 0
    for column in columns:
        start = column.dictionary_page_offset or column.data_page_offset
        for place in range(start, start + column.total_compressed_size, 3):
            changed = bytearray(whole)
            changed[place] ^= 1 << place % 8
            table_path.write_bytes(changed)
            tried += 1
            try:
                np.testing.assert_equal(read(), expected)
            except ValueError as error:
                assert "t.parquet is " in str(error) and "\n" not in str(error)
                noticed += 1
    assert noticed > tried / 2


def test_a_view_of_strings_is_read_as_strings(table_path):
    table = pq.read_table(table_path)
    pq.write_table(table.set_column(0, "sample_id", table["sample_id"].cast(pa.string_view())), table_path)
    assert read_scores(table_path)[0].to_list() == table.to_pylist()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": torch.nn.Linear(2, 2)}, "Linear is no causal language model"),
        ({"model": 3}, "model must be a loaded model, or the name or path of one, not int '3'"),
        ({"model": "/no/such"}, "/no/such"),
        ({"model": Path("no-such"), "tokenizer": None}, "no-such"),
        ({"dataset": None}, "dataset must be a datasets.Dataset, not NoneType"),
        ({"dataset": "rows.jsonl"}, r"read it with klball.load_rows\('rows.jsonl'\)"),
        ({"dataset": [{"question": "a"}]}, "are of no known format"),
        ({"tokenizer": None}, "tokenizer must be a loaded tokenizer, not NoneType"),
        ({"tokenizer": 3}, "tokenizer must be a loaded tokenizer, not int"),
        ({"tokens_per_batch": float("nan")}, "tokens_per_batch must be a whole number"),
        ({"tokens_per_batch": 0}, "tokens_per_batch must be a whole number"),
        ({"output": 3}, "output must be the path of a file, not 3"),
        ({"dataset": [{"input_ids": [5, 6, 7], "seq_lengths": [2, 1]}]}, "packed already"),
    ],
    ids=str,
)
def test_score_refuses_what_it_cannot_use(change, words, tiny_model, tokenizer):
    given = {"model": tiny_model, "tokenizer": tokenizer, "dataset": [{"question": "a", "answer": "b"}]}
    with pytest.raises(ValueError, match=words) as caught:
        klball.score(**{**given, **change})
    assert "\n" not in str(caught.value)


def test_score_takes_rows_in_a_list(tiny_model, tokenizer):
    assert len(klball.score(tiny_model, tokenizer, [{"question": "a", "answer": "b"}])) == 1


def test_score_takes_the_name_or_path_of_a_model(tokenizer, tmp_path):
    rows = [{"question": "a", "answer": "b"}]
    model, _ = klball.load_model("klball/tiny")
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = klball.score(model, tokenizer, rows).to_list()
    for name in ("klball/tiny", str(tmp_path), tmp_path):
        assert klball.score(name, dataset=rows).to_list() == loaded
    assert klball.score("klball/tiny", tokenizer, rows).to_list() == loaded


def test_a_damaged_provenance_is_one_line(table_path):
    table = pq.read_table(table_path)
    for metadata in (b"{", b"[]", b"\xff", b"[" * 100_000):
        pq.write_table(table.replace_schema_metadata({b"klball": metadata}), table_path)
        for read in (read_scores, read_provenance):
            with pytest.raises(ValueError, match="its provenance is no JSON"):
                read(table_path)


def test_what_a_kill_leaves_goes_away_and_is_never_a_table(tiny_model, tokenizer, data, table_path):
    left = table_path.with_name("t.parquet.parts-0123456789abcdef")
    left.mkdir()
    (left / "000000.parquet").write_bytes(table_path.read_bytes())
    for name in (".t.parquet.0a0a0a0a-1", f".t.parquet.{HOST}-99999999"):
        table_path.with_name(name).write_text("cut")
    os.utime(table_path.with_name(".t.parquet.0a0a0a0a-1"), (0, 0))
    running = table_path.with_name(f".t.parquet.{HOST}-{os.getpid()}")
    elsewhere = table_path.with_name(".t.parquet.0a0a0a0a-99999999")
    for path in (running, elsewhere):
        path.write_text("being written")
    assert score_files(table_path.parent) == [str(table_path)]
    before = table_path.read_bytes()
    klball.score(tiny_model, tokenizer, load_rows(str(data), "train"), output=table_path)
    assert set(table_path.parent.iterdir()) == {table_path, running, elsewhere}
    assert table_path.read_bytes() == before


@pytest.mark.parametrize("streamed", ["false", "true"])
@pytest.mark.parametrize("other", ["lacks", "strings", "csv"])
def test_foreign_files_are_refused_alike(streamed, other, table_path, capsys):
    path = table_path.with_name("u.parquet")
    if other == "lacks":
        pq.write_table(pa.table({"loss": [1.0, 2.0]}), path)
    elif other == "strings":
        table = pq.read_table(table_path)
        pq.write_table(table.set_column(1, "log_likelihood", pa.array(["a"] * len(table))), path)
    else:
        path.with_suffix(".csv").write_text("id,loss\n1,2.5\n")
    scores = path.with_suffix(".csv") if other == "csv" else table_path.parent
    capsys.readouterr()  # the fixture's own bars
    with pytest.raises(SystemExit):
        cli.main(["solve", "--scores", str(scores), "--streamed", streamed])
    (error,) = capsys.readouterr().err.strip().splitlines()
    expected = {
        "lacks": ("u.parquet is not a score table", "these files have no score in common"),
        "strings": ("not a floating-point", "not a floating-point"),
        "csv": ("u.csv is not a readable", "--lower_is_better"),
    }
    assert expected[other][streamed == "false"] in error
    assert "klball.scores_from" in error or other == "strings" or streamed == "false"


@pytest.mark.parametrize(
    ("rows", "kind"),
    [
        ([{"question": "a", "answer": "b"}], "prompt-completion"),
        ([{"prompt": "a", "completion": "b"}], "prompt-completion"),
        ([{"text": "a"}], "text"),
        (
            [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}],
            "messages",
        ),
    ],
)
def test_the_format_of_rows_is_in_the_provenance(rows, kind):
    assert row_format(Dataset.from_list(rows)) == kind


def test_tables_of_both_kinds_of_chat_are_warned_of(caplog):
    caplog.set_level("WARNING", logger="klball")
    warn_of_formats([{"row_format": "messages"}, {"row_format": "text"}, {}])
    assert not caplog.records
    warn_of_formats([{"row_format": "messages"}, {"row_format": "prompt-completion"}])
    assert "end of turn" in caplog.text


def test_evaluate_warns_where_both_kinds_meet(tmp_path, caplog):
    user, answer = {"role": "user", "content": "Which bird?"}, {"role": "assistant", "content": "An owl."}
    Dataset.from_list([{"messages": [user, answer]}] * 2).to_json(tmp_path / "m.jsonl")
    Dataset.from_list([{"prompt": [user], "completion": [answer]}] * 2).to_json(tmp_path / "p.jsonl")
    template = tmp_path / "t.jinja"
    template.write_text(
        "{% for m in messages %}{{ m['role'] }}: {% if m['role'] == 'assistant' %}{% generation %}"
        "{{ m['content'] }}{% endgeneration %}{% else %}{{ m['content'] }}{% endif %}\n{% endfor %}"
    )
    arguments = ["evaluate", "--output_dir", str(tmp_path / "out"), "--chat_template_path", str(template)]
    cli.main([*arguments, "--datasets", *(str(tmp_path / name) for name in ("m.jsonl", "p.jsonl"))])
    assert "end of turn" in caplog.text
