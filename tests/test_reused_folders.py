"""A folder of results holds those of its last run, as a new folder would: not what another run left there."""

import pytest

from klball.cli import main
from klball.commands.earlier import comparison_before, remove_unwritten
from klball.files import whole_file
from small_runs import write_rows
from test_elsewhere_commands import folder
from test_pair_scores import table_of

__all__ = ["folder"]
CACHES = ("scores", "tables.csv", "answers", "rounds.parquet")  # whose tables are used again


def results(place):
    return {
        str(path.relative_to(place))
        for path in place.rglob("*")
        if path.relative_to(place).parts[0] not in CACHES
    }


def assert_as_in_new_folders(commands, tmp_path):
    """Both what is there and what is not; what is nobody's stays."""
    (tmp_path / "used" / "figures").mkdir(parents=True)
    mine = {"figures", "figures/mine.svg", "mine.csv"}
    for name in ("figures/mine.svg", "mine.csv"):
        (tmp_path / "used" / name).write_text("mine")
    for k, words in enumerate(commands):
        for place in (tmp_path / "used", tmp_path / f"new-{k}"):
            main([*map(str, words), "--output_dir", str(place)])
        assert results(tmp_path / "used") == results(tmp_path / f"new-{k}") | mine, words


@pytest.fixture
def rows(tmp_path):
    write_rows(tmp_path / "rows.jsonl", [{"question": f"Is it {i}?", "answer": f"{i}."} for i in range(6)])
    return tmp_path / "rows.jsonl"


@pytest.mark.slow
def test_an_evaluation_in_a_used_folder(folder, rows, tmp_path):
    pairs = [table_of(tmp_path / f"{m}.parquet", [0.5, -0.5, 1.0, -1.0, 0.2], ["x"] * 5) for m in "ab"]
    models = ("--models", "klball/tiny", "--datasets")
    scores = [
        ("--scores", *(f"{m}={folder}/{name.format(m)}" for m in "ab"))
        for name in ("{}.csv", "own-{}.parquet")
    ]
    ways = [
        (*scores[0], "--lower_is_better"),
        scores[1],
        scores[1][:2],
        ("--pair_scores", f"a={pairs[0]}", f"b={pairs[1]}"),
        ("--pair_scores", f"a={pairs[0]}"),
        (*models, f"one={rows}"),
        (*models, f"two={rows}"),
        (*models, rows, "--generate", "--reward", "exact", "--max_new_tokens", "2"),
        (*scores[0][:2], "--lower_is_better"),
    ]
    assert_as_in_new_folders([("evaluate", *words) for words in ways], tmp_path)


@pytest.mark.slow
def test_a_refused_evaluation_leaves_the_report_before(rows, tmp_path):
    words = [
        "evaluate",
        "--models",
        "klball/tiny",
        "--datasets",
        str(rows),
        "--output_dir",
        str(tmp_path / "o"),
    ]
    main(words)
    before = {path: path.read_bytes() for path in (tmp_path / "o").iterdir() if path.is_file()}
    with pytest.raises(SystemExit):
        main([*words, "--max_length", "1"])
    assert before == {path: path.read_bytes() for path in before}


def test_files_that_no_comparison_wrote_stay_and_so_do_another_jobs(tmp_path):
    old, new = tmp_path / "wide" / "rounds.csv", tmp_path / "asked" / "rounds.csv"
    for path in (old, new):
        path.parent.mkdir()
        path.write_text("mine")
    assert comparison_before(tmp_path, "klball compare") == {}
    (tmp_path / "run.json").write_text('{"command": "klball compare", "options": {"scores": []}}')
    before = comparison_before(tmp_path, "klball compare")
    assert {*before} == {old, new}
    with whole_file(new) as temporary:  # as another job does
        temporary.write_text("new")
    remove_unwritten(before)
    assert new.read_text() == "new" and not old.parent.exists()


@pytest.mark.slow
def test_a_comparison_in_a_used_folder(folder, rows, tmp_path):
    own, elsewhere = (
        ("--scores", *(f"{m}={folder}/{name.format(m)}" for m in "ab"))
        for name in ("own-{}.parquet", "{}.jsonl")
    )
    models = ("--models", "a=klball/tiny", "b=klball/tiny", "--dataset_name", rows, "--rounds", "3")
    ways = [models, own, (*elsewhere, "--group", "lang"), (*elsewhere, "--score", "correct"), own, models]
    assert_as_in_new_folders([("compare", *words, "--resamples", "40") for words in ways], tmp_path)
