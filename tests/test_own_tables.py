"""klball's own score tables: rounds of the same samples, ids and scores without meaning, other data."""

import json
import warnings

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

import klball
from klball.files import with_provenance
from klball.scores.perplexity import robustness_report
from test_elsewhere_commands import refused, run

N = 150
NAN, INF = float("nan"), float("inf")
BAD = [
    ("log_likelihood", NAN, "log_likelihood is nan"),
    ("log_likelihood", -INF, "log_likelihood is -inf"),
    ("certainty", INF, "certainty is inf"),
    ("entropy", NAN, "entropy is nan"),
    ("sum_log_prob", NAN, "sum_log_prob is nan"),
    ("sum_log_prob", None, "sum_log_prob is missing"),
    ("num_tokens", None, "num_tokens is missing"),
    ("num_bytes", None, "num_bytes is missing"),
]


def columns(seed=0, ids=None, bytes_per_token=4):
    rng = np.random.default_rng(seed)
    g, tokens = -rng.gamma(2, 1, N), rng.integers(1, 9, N)
    return {
        "sample_id": [str(i) for i in range(N)] if ids is None else ids,
        **{"log_likelihood": g.tolist(), "certainty": (10 + rng.random(N)).tolist()},
        **{"entropy": rng.random(N).tolist(), "sum_log_prob": (g * tokens).tolist()},
        "num_tokens": tokens.tolist(),
        "num_bytes": np.full(N, 3 * bytes_per_token).tolist(),
        "truncated": [False] * N,
    }


def write(path, own, about=None):
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table(own).replace_schema_metadata(with_provenance(about or {})), path)
    return path


@pytest.fixture
def rounds(tmp_path):
    """Three rounds of the same samples, the second in another order, a score missing in the last."""
    own = [columns(seed) for seed in range(3)]
    own[2]["log_likelihood"][7] = None
    order = np.random.default_rng(9).permutation(N)
    own[1] = {name: [values[i] for i in order] for name, values in own[1].items()}
    for k, of_round in enumerate(own):
        write(tmp_path / "rounds" / f"round-{k}.parquet", of_round)
    return tmp_path / "rounds"


def means_of(folder, name):
    tables = [pq.read_table(path).to_pydict() for path in sorted(folder.iterdir())]
    of_id = [dict(zip(own["sample_id"], own[name], strict=True)) for own in tables]
    return np.array([np.mean([own[i] for own in of_id]) for i in map(str, range(N)) if i != "7"])


# --- rounds -----------------------------------------------------------------------------------------


def test_solve_takes_means_over_rounds(rounds, capsys):
    """Not three times as many samples, which would certify what three looks at each do not."""
    words = ("solve", "--scores", rounds, "--gamma", "12", "--bounds", "-40", "0")
    said = json.loads(run(capsys, *words, "--json", "true"))
    g, c = means_of(rounds, "log_likelihood"), means_of(rounds, "certainty")
    exact = klball.solve_dual(g, c, epsilon=0.05, gamma=12)
    assert (said["n"], said["rows_left_out"], said["rounds"]) == (N - 1, 1, 3)
    assert said["worst_case"] == pytest.approx(exact.worst_case)
    assert said["mean_log_likelihood"] == said["certified"]["mean"] == pytest.approx(g.mean())
    assert said["certified"]["n"] == N - 1
    assert "scores are means over 3 rounds" in " ".join(run(capsys, *words).split())


def test_tables_of_no_sample_twice_are_parts_of_one(tmp_path, capsys):
    for k in range(2):
        write(tmp_path / "parts" / f"{k}.parquet", columns(k, [f"{k}-{i}" for i in range(N)]))
    for streamed in ("false", "true"):
        words = ("solve", "--scores", tmp_path / "parts", "--json", "true", "--streamed", streamed)
        said = json.loads(run(capsys, *words))
        assert said["n"] == 2 * N and "rounds" not in said


def test_tables_that_share_some_samples_are_refused(tmp_path, capsys):
    a = write(tmp_path / "both" / "a.parquet", columns(0))
    b = write(tmp_path / "both" / "b.parquet", columns(1, ["3", *(f"b{i}" for i in range(N - 1))]))
    for more in ((), ("--bounds", "-40", "0")):
        said = refused(capsys, "solve", "--scores", tmp_path / "both", *more)
        assert f"{a} and {b} both have sample_id '3'" in said and "give one table" in said


def test_rounds_are_not_streamed(rounds, tmp_path, capsys):
    said = refused(capsys, "solve", "--scores", rounds, "--streamed", "true")
    assert "round-0.parquet and" in said and "round-1.parquet" in said and "leave --streamed out" in said
    one = write(tmp_path / "one" / "t.parquet", columns(0, ["0"] * N))
    assert f"{one}: sample_id '0' is there twice" in refused(capsys, "solve", "--scores", one, "--streamed")


def test_other_data_with_the_same_ids_are_no_rounds(rounds, tmp_path, capsys):
    """As of two files whose rows are numbered from 0: means over both would be of nothing."""
    other = write(rounds / "round-9.parquet", columns(5, bytes_per_token=5))
    said = refused(capsys, "solve", "--scores", rounds)
    assert "the answer to sample_id '0' has 12 bytes in" in said and f"15 bytes in {other}" in said
    cut = columns(5, bytes_per_token=5) | {"truncated": [True] * N}  # which may have lost any number of bytes
    write(other, cut)
    assert json.loads(run(capsys, "solve", "--scores", rounds, "--json", "true"))["rounds"] == 4
    write(rounds / "round-0.parquet", cut)  # answers that are cut in the first are whole in two others
    write(other, columns(5, bytes_per_token=5))
    assert "15 bytes in" in refused(capsys, "solve", "--scores", rounds)


def test_a_sample_that_is_cut_in_every_round_is_one(tmp_path, capsys):
    for k in range(3):
        write(tmp_path / "r" / f"{k}.parquet", columns(k) | {"truncated": [i < 5 + k for i in range(N)]})
    assert json.loads(run(capsys, "solve", "--scores", tmp_path / "r", "--json", "true"))["rows_cut"] == 7
    assert "7 of the samples are cut" in run(capsys, "solve", "--scores", tmp_path / "r")
    one = run(capsys, "solve", "--scores", tmp_path / "r/0.parquet", "--json", "true", "--streamed", "true")
    assert json.loads(one)["rows_cut"] == 5


def test_ids_are_all_texts_or_all_numbers(tmp_path, capsys):
    write(tmp_path / "r" / "a.parquet", columns(0))
    write(tmp_path / "r" / "b.parquet", columns(1, list(range(N, 2 * N))))
    for more in ((), ("--streamed", "true"), ("--bounds", "-40", "0")):
        said = refused(capsys, "solve", "--scores", tmp_path / "r", *more)
        assert "a.parquet" in said and "b.parquet" in said


@pytest.mark.parametrize(("flag", "said"), [(None, "truncated is missing"), ("no", "truncated is string")])
@pytest.mark.parametrize("streamed", ["true", "false"])
def test_a_flag_that_is_none_is_named(flag, said, streamed, tmp_path, capsys):
    path = write(
        tmp_path / "t" / "a.parquet",
        columns(0) | {"truncated": [flag, *(["no"] * (N - 1) if flag else [False] * (N - 1))]},
    )
    assert said in refused(capsys, "solve", "--scores", path, "--streamed", streamed)


def test_a_refused_comparison_leaves_the_report_before(tmp_path, capsys):
    own = [f"{name}={write(tmp_path / 't' / name, columns(seed))}" for seed, name in enumerate("ab")]
    words = ("compare", "--scores", *own, "--resamples", "0", "--output_dir", tmp_path / "o")
    run(capsys, *words, "--gamma", "10.6")
    before = {path: path.read_bytes() for path in (tmp_path / "o").rglob("*") if path.is_file()}
    refused(capsys, *words, "--gamma", "3")
    assert before == {path: path.read_bytes() for path in (tmp_path / "o").rglob("*") if path.is_file()}


# --- ids and scores ---------------------------------------------------------------------------------


def commands(path, other, output):
    both = ("--scores", f"a={path}", f"b={other}", "--output_dir", output)
    return [("solve", "--scores", path), ("evaluate", *both), ("compare", *both)]


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        (["0"] * N, ", rows 1 and 2 (counted from 1) both have sample_id '0'"),
        ([*map(str, range(N - 1)), "5"], f", rows 6 and {N} (counted from 1) both have sample_id '5'"),
        (["0", None, *map(str, range(2, N))], ", row 2 (counted from 1) has no sample_id"),
    ],
)
def test_an_id_that_repeats_or_is_missing_is_named_with_its_file(ids, said, tmp_path, capsys):
    path, other = (write(tmp_path / "t" / f"{k}.parquet", columns(k, ids)) for k in range(2))
    for words in commands(path, other, tmp_path / "out"):
        assert f"{path}{said}" in refused(capsys, *words), words[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("name", "value", "said"), BAD)
def test_a_score_that_is_no_number_is_named_with_file_row_and_column(name, value, said, tmp_path, capsys):
    """Before any statistics, which would warn of it in words of NumPy."""
    own = columns()
    own[name][4] = value
    path, other = write(tmp_path / "t" / "a.parquet", own), write(tmp_path / "t" / "b.parquet", columns(1))
    for words in commands(path, other, tmp_path / "out"):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = refused(capsys, *words)
        assert f"{path}, row 5 (counted from 1), sample_id '4': {said}" in found, words[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("name", "value", "said"), [*BAD, ("log_likelihood", None, "is missing")])
def test_a_report_in_python_names_the_model(name, value, said):
    own = columns()
    own[name][4] = value
    tables = {"d": {"m": Dataset.from_dict(columns(1)), "k": Dataset.from_dict(own)}}
    with pytest.raises(ValueError, match=f"of 'k' on 'd', row 5 .*, sample_id '4': .*{said}"):
        robustness_report(tables, "m")
    with pytest.raises(ValueError, match=r"of 'm' on 'd', rows 1 and 2 .* both have sample_id '0'"):
        robustness_report({"d": {"m": Dataset.from_dict(columns(0, ["0"] * N))}}, "m")


def test_rows_that_lost_their_answer_have_no_score(tmp_path, capsys):
    """Cut to nothing or without a token, they leave, and are counted."""
    own = columns()
    for row, truncated in ((3, True), (8, False)):
        for name in ("log_likelihood", "certainty", "entropy", "sum_log_prob"):
            own[name][row] = None
        own["num_tokens"][row], own["truncated"][row] = 0, truncated
    path, other = write(tmp_path / "t" / "a.parquet", own), write(tmp_path / "t" / "b.parquet", columns(1))
    solved, evaluated, compared = commands(path, other, tmp_path / "out")
    assert json.loads(run(capsys, *solved, "--json", "true"))["rows_left_out"] == 2
    assert "1 cut, 1 without answer" in " ".join(run(capsys, *evaluated).split())
    compared = (*compared[:-1], tmp_path / "compared", "--resamples", "0")
    assert "1 truncated, 1 unscored" in " ".join(run(capsys, *compared).split())


# --- other data -------------------------------------------------------------------------------------


@pytest.mark.parametrize("folders", [False, True])
def test_tables_of_other_data_are_not_paired_by_their_ids(folders, tmp_path, capsys):
    for model, size in (("a", 4), ("b", 5)):
        for k in range(3 if folders else 1):
            write(tmp_path / model / f"{k}.parquet", columns(k, bytes_per_token=size), {"tokenizer": "one"})
    places = [tmp_path / model if folders else tmp_path / model / "0.parquet" for model in "ab"]
    for words in commands(places[0], places[1], tmp_path / "out")[1:]:
        for more in ((), ("--score", "log_likelihood")):
            said = refused(capsys, *words, *more)
            assert "the answer to sample_id '0' has 12 bytes in the table of 'a' and 15 bytes in" in said
    assert not (tmp_path / "out").exists()


def test_tables_that_do_not_say_their_tokenizer_may_be_cut_differently(tmp_path, capsys, caplog):
    a = write(tmp_path / "t" / "a.parquet", columns(0))
    b = write(tmp_path / "t" / "b.parquet", columns(1, bytes_per_token=5))
    run(capsys, *commands(a, b, tmp_path / "o")[1])
    assert "and 15 bytes in the table of 'b': of different data, or" in caplog.text


def test_bytes_differ_where_tokens_are_cut_differently_or_models_wrote_the_answers(tmp_path, capsys):
    a = write(tmp_path / "t" / "a.parquet", columns(0), {"tokenizer": "one"})
    b = write(tmp_path / "t" / "b.parquet", columns(1, bytes_per_token=5), {"tokenizer": "another"})
    _, evaluated, compared = commands(a, b, tmp_path / "o")
    more = {"finished": [True] * N, "rewards": [[-1.0]] * N}
    run(capsys, *evaluated)
    run(capsys, *compared[:-1], tmp_path / "p", "--resamples", "0")
    answers = [
        write(tmp_path / "w" / f"{k}.parquet", {**columns(k, bytes_per_token=4 + k), **more})
        for k in range(2)
    ]
    run(capsys, *commands(answers[0], answers[1], tmp_path / "q")[1])
    own = columns(1, bytes_per_token=5)
    own["truncated"] = [True] * (N - 1) + [False]
    own["num_bytes"][-1] = 12
    cut = write(tmp_path / "t" / "c.parquet", own)
    run(capsys, *commands(write(tmp_path / "t" / "d.parquet", columns(0)), cut, tmp_path / "r")[1])
