"""Rounds on disk: what is refused, what a flipped bit does, what a kill leaves."""

import csv
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from klball.commands.paraphrase import main
from klball.data.paraphrase.quality import Reply
from klball.data.paraphrase.rounds import holds_word_for_word, read_rounds, write_rounds
from klball.files import HOST
from test_paraphrase import samples


def accepted(folder):
    return [row["accepted"] for row in read_rounds(folder / "rounds.parquet").acceptance()]


def test_template_rounds_accept_everything(tmp_path):
    arguments = ["--dataset_name", "word-problems", "--max_rows", "40", "--rounds", "99"]
    main([*arguments, "--output_dir", str(tmp_path)], prog="klball paraphrase")
    assert accepted(tmp_path) == [40] * 99
    about = read_rounds(tmp_path / "rounds.parquet").about
    assert about["maker"] == "templates" and about["rows"] == 40 and "klball" in about["libraries"]


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("prompt", pa.array([None, "b"])),
        ("prompt", pa.array([1, 2])),
        ("prompt", pa.array([b"a", b"b"])),
        ("answer", pa.array([["a"], ["b"]])),
        ("answer", pa.array(["a", None])),
        ("original", pa.array([None, None], pa.string())),
        ("sample_id", pa.array([0, 1])),
        ("round", pa.array(["1", "1"])),
        ("round", pa.array([1.0, 1.0])),
        ("accepted", pa.array([1, 0])),
        ("conversation", pa.array([{"a": 1}, None])),
    ],
)
def test_rounds_of_other_types_are_refused(column, values, tmp_path):
    path = tmp_path / "rounds.parquet"
    settings = {"rounds": 1, "maker": {"maker": "test"}}
    write_rounds(path, samples("a", "b"), "question-answer", lambda _: [Reply("x"), Reply("y")], **settings)
    table = pq.read_table(path)
    place = table.schema.get_field_index(column)
    changed = table.set_column(place, column, values).replace_schema_metadata(table.schema.metadata)
    pq.write_table(changed, path)
    with pytest.raises(ValueError, match=column) as caught:
        read_rounds(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changed",
    [
        {"accepted": False},
        {"reason": "empty"},
        {"accepted": False, "reason": "banana", "prompt": "a"},
        {"accepted": False, "reason": "empty"},
    ],
)
def test_rows_that_contradict_themselves_are_refused(changed, tmp_path):
    path = tmp_path / "rounds.parquet"
    settings = {"rounds": 1, "maker": {"maker": "test"}}
    write_rounds(path, samples("a", "b"), "question-answer", lambda _: [Reply("x"), Reply("y")], **settings)
    table = pq.read_table(path)
    rows = table.to_pylist()
    rows[0] |= changed
    pq.write_table(pa.Table.from_pylist(rows, table.schema), path)
    with pytest.raises(ValueError, match=r"row 0 says accepted = .* a rejected one the original"):
        read_rounds(path)


def test_what_a_claim_speaks_of_is_what_was_compared(tmp_path):
    """Round 1 frames, round 2 rewords; of the second sample nothing was accepted."""
    path = tmp_path / "rounds.parquet"
    replies = {1: [Reply("Please. a?"), Reply("")], 2: [Reply("other words?"), Reply("")]}
    settings = {"rounds": 2, "maker": {"maker": "test"}}
    rounds = write_rounds(path, samples("a?", "b?"), "question-answer", replies.__getitem__, **settings)
    assert rounds.like_these(2).startswith("rounds like these 2, 50 %")
    first = replace(rounds, number=1)
    assert first.rounds == [1] and first.like_these(1).startswith("framings like these 1")
    assert [row["share"] for row in first.acceptance()] == [0.5]
    assert [row["share"] for row in replace(rounds, samples=1).acceptance()] == [1.0, 1.0]


@pytest.mark.parametrize("metadata", [b"", b"[]", b"{}", b'{"layout": "x"}', b"\xff", b"[" * 100_000])
def test_rounds_of_damaged_provenance_are_refused(metadata, tmp_path):
    path = tmp_path / "rounds.parquet"
    settings = {"rounds": 1, "maker": {"maker": "test"}}
    write_rounds(path, samples("a"), "question-answer", lambda _: [Reply("x")], **settings)
    pq.write_table(pq.read_table(path).replace_schema_metadata({b"klball": metadata}), path)
    with pytest.raises(ValueError, match="provenance"):
        read_rounds(path)


def test_a_flipped_bit_never_changes_a_round(tmp_path):
    path = tmp_path / "rounds.parquet"
    settings = {"rounds": 1, "maker": {"maker": "test"}}
    write_rounds(path, samples("a"), "question-answer", lambda _: [Reply("another wording")], **settings)
    whole, expected = path.read_bytes(), pq.read_table(path).to_pylist()
    end = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    noticed = 0
    for place in range(4, end, 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
        try:
            assert read_rounds(path).table(1).to_pylist() == expected
        except ValueError as error:
            noticed += 1
            assert "rounds.parquet" in str(error) and "\n" not in str(error)
    assert noticed > (end // 7) / 2


@pytest.mark.parametrize(
    ("original", "prompt", "held"),
    [
        ("Name a bird.", "Answer this:\n\nName a bird.", True),
        ("Name a bird.", "Name a bird. Thanks.", True),
        ("  Name a bird.\n", "Please:\nName a bird.", True),
        ("Name a bird.", "Give the name of a bird.", False),
        ("Name a bird.", "Name a bird.", False),
        ("art", "Start now", False),
        ("art", "Draw art now", True),
        ("?", "What is it?", True),
        ("", "anything", False),
    ],
)
def test_holding_the_original_word_for_word(original, prompt, held):
    assert holds_word_for_word(original, prompt) == held


def test_prompts_that_are_only_framed_are_said_to_be(data, tmp_path, capsys):
    arguments = ["--rounds", "3", "--output_dir", str(tmp_path / "out")]
    main(["--dataset_name", str(data), *arguments], prog="klball paraphrase")
    assert "36 of 36 accepted prompts (100.0%) hold the original word for word" in capsys.readouterr().out
    rounds = read_rounds(tmp_path / "out" / "rounds.parquet")
    assert rounds.about["only_framed"] == 12 and "framings like these 3" in rounds.like_these(3)
    with (tmp_path / "out" / "acceptance.csv").open() as file:
        assert [row["word for word"] for row in csv.DictReader(file)] == ["12"] * 3
    arguments[-1] = str(tmp_path / "known")
    main(["--dataset_name", "word-problems", "--max_rows", "9", *arguments], prog="klball paraphrase")
    assert "word for word" not in capsys.readouterr().out
    rounds = read_rounds(tmp_path / "known" / "rounds.parquet")
    assert rounds.about["only_framed"] == 0 and rounds.like_these(3) == "rephrasings like these 3"


@pytest.mark.parametrize("at", [1, 3])
def test_another_job_may_make_the_same_rounds_first(at, tmp_path):
    """It removes the parts that both have written."""
    own, path = samples("one thing", "another"), tmp_path / "rounds.parquet"
    replies = lambda round_: [Reply(f"In other words {round_}: {s.prompt}") for s in own]  # noqa: E731

    def overtaken(round_):
        if round_ == at:
            write_rounds(path, own, "question-answer", replies, rounds=3, maker={"maker": "x"})
        return replies(round_)

    found = write_rounds(path, own, "question-answer", overtaken, rounds=3, maker={"maker": "x"})
    assert found.rounds == [1, 2, 3] and [p.name for p in tmp_path.iterdir()] == [path.name]


def test_parts_that_a_kill_left_go_away(data, tmp_path):
    tmp_path /= "out"
    arguments = ["--dataset_name", str(data), "--rounds", "3", "--output_dir", str(tmp_path)]
    main(arguments, prog="klball paraphrase")
    (tmp_path / "rounds.parquet.parts-0123456789abcdef").mkdir()
    (tmp_path / f".rounds.parquet.{HOST}-99999999").write_text("cut")
    main(arguments, prog="klball paraphrase")
    assert {p.name for p in tmp_path.iterdir()} == {"rounds.parquet", "acceptance.csv", "run.json"}
