"""The streamed dual against the dual in memory, a conic solver, and itself over two processes."""

import json
import math
import os
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from klball import InfeasibleError, cli, solve_dual
from klball.adversary.solver import reading
from klball.adversary.streaming import StreamedSolution, solve_dual_streamed
from klball.scores.parquet import stream_scores, top_weighted
from test_dual import conic_optimum

FIELDS = ("kl", "certainty", "worst_case", "dual_value", "lambda_", "beta", "mu", "ess")


def chunked(g, c, size, chunks_per_part=1):
    def part(start):
        def chunks():
            for i in range(start, min(start + size * chunks_per_part, len(g)), size):
                yield g[i : i + size], None if c is None else c[i : i + size]

        return chunks

    return [part(start) for start in range(0, len(g), size * chunks_per_part)]


def assert_same(streamed, exact, g, c=None, rtol=1e-9):
    assert streamed.status == exact.status
    width = max(np.ptp(g), 1e-300)
    for name in ("worst_case", "dual_value"):
        assert abs(getattr(streamed, name) - getattr(exact, name)) <= 1e-11 * width + 4e-16 * np.abs(g).max()
    for name in FIELDS:
        expected = getattr(exact, name)
        if expected is None or (name == "certainty" and c is None):
            continue
        near = 5e-5 if name == "ess" else rtol
        close = pytest.approx(expected, rel=near, abs=1e-11 * width, nan_ok=True)
        assert getattr(streamed, name) == close, name
    assert streamed.gap <= 1e-10
    n_q = streamed.density(g, c)
    np.testing.assert_allclose(n_q, exact.weights * len(g), rtol=1e-7, atol=1e-9)


def losses(kind, n, rng):
    g = {
        "gamma": lambda: -rng.gamma(2, 1, n),
        "sorted": lambda: np.sort(-rng.gamma(2, 1, n)),  # a sample of its row groups is a caricature
        "offset": lambda: -1e6 - rng.gamma(2, 1, n),
        "heavy": lambda: rng.standard_t(2, n),
        "ties": lambda: rng.integers(0, 4, n).astype(float),
    }[kind]()
    return g, 15 - 0.8 * (g - g.mean()) / g.std() + 0.8 * rng.normal(size=n)


@pytest.mark.parametrize("kind", ["gamma", "sorted", "offset", "heavy", "ties"])
@pytest.mark.parametrize("sample", [60, 1 << 17])
def test_agrees_with_the_dual_in_memory(monkeypatch, kind, sample):
    monkeypatch.setattr(reading, "SAMPLE", sample)
    rng = np.random.default_rng(7)
    n = 1_500
    g, c = losses(kind, n, rng)
    for epsilon in (0.05, 0.5, 2.0):
        alone = solve_dual(g, c, epsilon=epsilon)
        least = solve_dual(loss=-c, epsilon=epsilon).worst_case
        for gamma in (None, alone.certainty + 0.1, (least + alone.certainty) / 2):
            exact = solve_dual(g, c, epsilon=epsilon, gamma=gamma)
            size = int(rng.choice([7, 100, 1_000, 5_000]))
            parts = chunked(g, c, size, chunks_per_part=int(rng.choice([1, 3])))
            assert_same(solve_dual_streamed(parts, epsilon=epsilon, gamma=gamma), exact, g, c)


def test_few_passes_where_the_sample_is_a_part_of_the_data():
    rng = np.random.default_rng(1)
    g, c = losses("gamma", 600_000, rng)
    alone = solve_dual(g, c, epsilon=0.05)
    parts = chunked(g, c, 20_000)
    for gamma in (None, alone.certainty + 0.1, alone.certainty - 0.1):
        exact = solve_dual(g, c, epsilon=0.05, gamma=gamma)
        streamed = solve_dual_streamed(parts, epsilon=0.05, gamma=gamma)
        assert streamed.num_passes <= 3
        assert_same(streamed, exact, g, c)


@pytest.mark.parametrize("kind", ["lognormal", "heavy"])
def test_a_model_that_does_not_converge_is_left_early(monkeypatch, kind):
    monkeypatch.setattr(reading, "SAMPLE", 5_000)
    rng = np.random.default_rng(3)
    g = -np.exp(rng.normal(size=100_000)) if kind == "lognormal" else rng.standard_t(2, 100_000)
    for epsilon in (0.05, 0.3):
        streamed = solve_dual_streamed(chunked(g, None, 10_000), epsilon=epsilon)
        assert streamed.num_passes <= 12
        assert_same(streamed, solve_dual(g, epsilon=epsilon), g)


def test_certificate_is_that_of_the_weights():
    rng = np.random.default_rng(2)
    g, c = losses("gamma", 400_000, rng)
    s = solve_dual_streamed(chunked(g, c, 30_000), epsilon=0.3, gamma=14.9)
    n_q = s.density(g, c)
    assert s.beta > 0
    assert n_q.mean() == pytest.approx(1, abs=1e-11)
    assert (n_q * np.log(n_q)).mean() == pytest.approx(0.3, abs=1e-10)
    assert (n_q * c).mean() == pytest.approx(14.9, abs=1e-10)
    assert s.worst_case == pytest.approx((n_q * g).mean(), abs=1e-10)
    assert s.ess == pytest.approx(len(g) / (n_q**2).mean(), rel=1e-8)
    assert s.mean == pytest.approx(g.mean(), abs=1e-12)


@pytest.mark.parametrize("gamma", [None, 0.2])
def test_agrees_with_a_conic_solver(monkeypatch, gamma):
    monkeypatch.setattr(reading, "SAMPLE", 20)
    rng = np.random.default_rng(3)
    g, c = rng.normal(size=80), rng.normal(size=80)
    c -= g / 2
    s = solve_dual_streamed(chunked(g, c, 9), epsilon=0.4, gamma=gamma)
    oracle = conic_optimum(g, c, np.full(80, 1 / 80), 0.4, gamma, None)
    assert s.worst_case == pytest.approx(oracle.value, abs=1e-6)
    assert (s.beta > 0) == (gamma is not None)


def test_chunks_change_the_answer_by_rounding_only():
    g, c = losses("gamma", 30_000, np.random.default_rng(4))
    exact = solve_dual(g, c, epsilon=0.2, gamma=14.8)
    for size, per_part in ((1_000, 2), (30_000, 1), (77, 5)):
        parts = chunked(g, c, size, chunks_per_part=per_part)
        assert_same(solve_dual_streamed(parts, epsilon=0.2, gamma=14.8), exact, g, c)


def test_float32_columns_are_summed_in_float64():
    g, c = (v.astype(np.float32) for v in losses("offset", 3_000, np.random.default_rng(5)))
    exact = solve_dual(g, c, epsilon=0.1)
    assert_same(solve_dual_streamed(chunked(g, c, 500), epsilon=0.1), exact, g.astype(float), c)


def test_radius_zero_and_equal_scores_and_point_masses(monkeypatch):
    g, c = losses("ties", 1_000, np.random.default_rng(6))
    parts = chunked(g, c, 90)
    for epsilon in (0.0, 1.5, 20.0):  # log(n/m) is about log 4
        exact = solve_dual(g, c, epsilon=epsilon)
        assert exact.status == ("optimal" if epsilon == 0 else "point_mass")
        assert_same(solve_dual_streamed(parts, epsilon=epsilon), exact, g, c)
    equal = np.full(50, -1.25)
    assert_same(
        solve_dual_streamed(chunked(equal, None, 8), epsilon=0.3), solve_dual(equal, epsilon=0.3), equal
    )
    monkeypatch.setattr(reading, "SAMPLE", 20)
    lowest = g.copy()
    lowest[[500, 700, 900]] = -8.5, -9.0, -8.7  # a point mass that only the full pass can see
    assert_same(
        solve_dual_streamed(chunked(lowest, c, 90), epsilon=7), solve_dual(lowest, c, epsilon=7), lowest
    )


def test_a_sample_of_equal_scores_says_nothing(monkeypatch):
    monkeypatch.setattr(reading, "SAMPLE", 16)
    g = -np.random.default_rng(8).gamma(2, 1, 1_600)
    g[::100] = -2.0
    streamed = solve_dual_streamed(chunked(g, None, 100), epsilon=0.1)
    assert_same(streamed, solve_dual(g, epsilon=0.1), g)


@pytest.mark.parametrize("outlier", [-1e5, 1e5])
def test_an_outlier_beyond_the_range_of_exponentials(monkeypatch, outlier):
    monkeypatch.setattr(reading, "SAMPLE", 50)
    g, c = losses("gamma", 1_000, np.random.default_rng(11))
    g[777] = outlier
    parts = chunked(g, c, 90)
    for epsilon in (0.05, 1.0):
        exact = solve_dual(g, c, epsilon=epsilon)
        assert_same(solve_dual_streamed(parts, epsilon=epsilon), exact, g, c, rtol=1e-8)


def test_an_outlier_above_does_not_hide_an_inexact_lambda(monkeypatch):
    monkeypatch.setattr(reading, "SAMPLE", 20_000)
    g = np.random.default_rng(12).normal(size=400_000)
    g[7] = 1e9  # in units of this range any gap is closed
    for epsilon in (0.05, 3.0):
        streamed = solve_dual_streamed(chunked(g, None, 20_000), epsilon=epsilon)
        assert streamed.lambda_ == pytest.approx(solve_dual(g, epsilon=epsilon).lambda_, rel=1e-9)


@pytest.mark.parametrize("sample", [40, 1 << 17])
def test_infeasible_names_gamma_min(monkeypatch, sample):
    monkeypatch.setattr(reading, "SAMPLE", sample)
    g, c = losses("gamma", 2_000, np.random.default_rng(9))
    least = solve_dual(loss=-c, epsilon=0.05).worst_case
    parts = chunked(g, c, 128)
    for gamma in (least - 0.5, least - 1e-3):
        with pytest.raises(InfeasibleError, match="γ_min") as error:
            solve_dual_streamed(parts, epsilon=0.05, gamma=gamma)
        assert error.value.gamma_min == pytest.approx(least, abs=1e-10)
    near = least + 0.02 * (c.mean() - least)
    assert_same(
        solve_dual_streamed(parts, epsilon=0.05, gamma=near), solve_dual(g, c, epsilon=0.05, gamma=near), g, c
    )
    with pytest.raises(InfeasibleError):
        solve_dual_streamed(parts, epsilon=0, gamma=float(c.mean()) - 1e-3)


def test_degenerate_multipliers_are_refused():
    parts = chunked(np.array([0.0, 1.0]), np.array([2.0, 0.0]), 1)
    with pytest.raises(ValueError, match="in memory"):  # a vertex: λ = 0, β = ½
        solve_dual_streamed(parts, epsilon=5, gamma=1)


@pytest.mark.parametrize(
    ("g", "c", "settings", "message"),
    [
        ([1.0, math.nan, math.inf], [0.0, 0.0, 0.0], {}, "log_likelihood has 2 missing, NaN or infinite"),
        ([1.0, 2.0, 3.0], [0.0, -math.inf, math.nan], {}, "certainty has 2 missing, NaN or infinite"),
        ([math.nan] * 3, [0.0, 0.0, 0.0], {}, "log_likelihood has 3"),
        ([1.0, 2.0], None, {"gamma": 1.0}, "pass certainty"),
        ([1.0, 2.0], None, {"epsilon": -1.0}, "epsilon must be"),
        ([1.0, 2.0], [0.0], {}, "shape|2 log-likelihoods"),
        ([], None, {}, "no rows"),
    ],
)
def test_bad_input_is_one_clear_line(g, c, settings, message):
    columns = np.array(g), None if c is None else np.array(c)
    with pytest.raises(ValueError, match=message):
        solve_dual_streamed([lambda: [columns]], **{"epsilon": 0.1, **settings})


def test_one_bad_score_in_a_later_chunk_is_found(monkeypatch):
    monkeypatch.setattr(reading, "SAMPLE", 10)
    for column in (0, 1):
        for bad in (math.nan, math.inf, -math.inf):
            data = list(losses("gamma", 900, np.random.default_rng(0)))
            data[column][777] = bad
            with pytest.raises(ValueError, match="has 1 missing"):
                solve_dual_streamed(chunked(*data, 100), epsilon=0.1)


def test_some_chunks_without_certainty_are_refused(monkeypatch):
    monkeypatch.setattr(reading, "SAMPLE", 1)
    parts = [*chunked(np.arange(9.0), np.arange(9.0), 3), *chunked(np.arange(3.0), None, 3)]
    with pytest.raises(ValueError, match="some chunks have a certainty"):
        solve_dual_streamed(parts, epsilon=0.1)


# --- Parquet ----------------------------------------------------------------------------------


def write_scores(path, g, c, rows_per_group=100, first=0):
    table = pa.table(
        {
            "sample_id": [f"s{first + i}" for i in range(len(g))],
            "log_likelihood": g,
            "certainty": c,
            **{name: np.zeros(len(g)) for name in ("entropy", "sum_log_prob", "num_tokens", "num_bytes")},
            "truncated": np.zeros(len(g), bool),
        }
    )
    pq.write_table(table, path, row_group_size=rows_per_group)


@pytest.fixture
def scores(tmp_path):
    """Two files with unscored rows in the first, and the scores of the others."""
    g, c = losses("gamma", 2_000, np.random.default_rng(10))
    g[5], c[5] = np.nan, np.nan
    as_null = [pa.array(values[:1_200], from_pandas=True) for values in (g, c)]  # NaN to null
    write_scores(tmp_path / "a.parquet", *as_null)
    write_scores(tmp_path / "b.parquet", g[1_200:], c[1_200:], rows_per_group=333, first=1_200)
    return tmp_path, np.delete(g, 5), np.delete(c, 5)


def test_a_folder_of_tables_and_its_top_weighted_samples(scores):
    folder, g, c = scores
    exact = solve_dual(g, c, epsilon=0.3, gamma=14.9)
    (folder / "run.json").write_text("{}")
    unfinished = folder / "c.parquet.parts-0123"
    unfinished.mkdir()
    write_scores(unfinished / "part-0.parquet", g, c)
    parts = stream_scores(folder)
    assert len(parts) == 15
    streamed = solve_dual_streamed(parts, epsilon=0.3, gamma=14.9)
    assert_same(streamed, exact, g, c)
    order = np.argsort(-exact.weights, kind="stable")[:12]
    ids = np.delete([f"s{i}" for i in range(2_000)], 5)
    top = top_weighted(parts, streamed, 12)
    assert [row["sample_id"] for row in top] == ids[order].tolist()
    assert [row["n_q"] for row in top] == pytest.approx(exact.weights[order] * len(g))
    listed = stream_scores([str(folder / "a.parquet"), str(folder / "b.parquet")])
    assert solve_dual_streamed(listed, epsilon=0.3, gamma=14.9) == streamed


@pytest.mark.parametrize("epsilon", ["0.2", "0", "50"])
def test_command_prints_the_same_streamed_and_in_memory(scores, capsys, epsilon):
    folder, _, _ = scores
    (folder / "run.json").write_text("{}")  # klball score leaves one there
    printed = []
    for streamed in ("true", "false"):
        cli.main(["solve", "--scores", str(folder), "--epsilon", epsilon, "--json", "--streamed", streamed])
        printed.append(json.loads(capsys.readouterr().out))
    ours, exact = printed
    assert ours["rows_left_out"] == 1 and ours["n"] == 1_999
    assert [row["sample_id"] for row in ours["top"]] == [row["sample_id"] for row in exact["top"]]
    assert ours.keys() == exact.keys()
    assert ours["certified"] is exact["certified"] is None
    for name in set(ours) - {"top", "gap", "certified"}:
        is_text = isinstance(exact[name], str)  # a status, or infinity
        assert ours[name] == (exact[name] if is_text else pytest.approx(exact[name], rel=1e-9)), name


def test_tables_that_cannot_be_streamed(scores, tmp_path):
    folder, g, c = scores
    pq.write_table(pa.table({"log_likelihood": g}), tmp_path / "c.txt")
    with pytest.raises(ValueError, match="lacks certainty"):
        stream_scores(str(tmp_path / "c.txt"))
    assert stream_scores(str(tmp_path / "c.txt"), certainty=False)[0].num_rows == len(g)
    with pytest.raises(ValueError, match=r"there is no .*none\.parquet"):
        stream_scores(tmp_path / "none.parquet")
    (tmp_path / "e.parquet").write_text("text")
    with pytest.raises(ValueError, match="not a readable"):
        stream_scores(tmp_path / "e.parquet")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no \.parquet files"):
        stream_scores(tmp_path / "empty")
    with pytest.raises(SystemExit) as stopped:
        cli.main(["solve", "--scores", str(folder), "--streamed", "true", "--max_weight", "3"])
    assert stopped.value.code == 2
    holes = pa.array([None if i == 7 else float(v) for i, v in enumerate(c)])
    pq.write_table(pa.table({"log_likelihood": g, "certainty": holes}), tmp_path / "d.txt")
    with pytest.raises(ValueError, match="certainty has 1 missing"):
        solve_dual_streamed(stream_scores(str(tmp_path / "d.txt")), epsilon=0.1)


SHARD = """
import sys, torch.distributed as dist
from klball.scores.parquet import stream_scores
from klball.adversary.solver import reading
from klball.adversary.streaming import solve_dual_streamed
folder, rendezvous, rank, size = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
reading.SAMPLE = 200
dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=size)
parts = stream_scores(folder, sharded=True)
for gamma in (None, 14.9):
    print(vars(solve_dual_streamed(parts, epsilon=0.3, gamma=gamma, sharded=True)))
try:
    solve_dual_streamed(parts, epsilon=0.3, gamma=10.0, sharded=True)
except ValueError as error:
    print(error)
"""


def test_two_processes_agree_to_the_bit_and_with_one(scores, tmp_path_factory):
    folder, g, c = scores
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    rendezvous = tmp_path_factory.mktemp("processes") / "rendezvous"
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", SHARD, str(folder), str(rendezvous), str(rank), "2"],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    first, second = (worker.communicate(timeout=120)[0] for worker in workers)
    assert first == second
    names = {"nan": math.nan, "inf": math.inf}
    *solutions, infeasible = first.splitlines()
    for line, gamma in zip(solutions, (None, 14.9), strict=True):
        assert_same(StreamedSolution(**eval(line, names)), solve_dual(g, c, epsilon=0.3, gamma=gamma), g, c)
    assert infeasible.startswith("infeasible")


@pytest.mark.parametrize(
    ("chunk", "message"),
    [
        (([-1.0, -2.0], None), "log_likelihood of a chunk must be a NumPy array .* not list"),
        ((-np.ones((1, 3)), None), r"not \[1, 3\] of float64"),
        ((-np.ones(3), [1.0, 2.0, 3.0]), "certainty of a chunk must be a NumPy array .* not list"),
        ((-np.ones(3), np.ones(2)), "a chunk has 3 log-likelihoods and 2 certainties"),
        ((None, None), "log_likelihood of a chunk must be a NumPy array .* not NoneType"),
        (-np.ones(3), "a chunk must be a pair of arrays"),
    ],
)
def test_a_chunk_of_another_kind_is_one_line(chunk, message):
    with pytest.raises(ValueError, match=message):
        solve_dual_streamed([lambda: [chunk]], epsilon=0.1)


def test_a_chunk_may_be_one_array_of_both_columns():
    g, c = -np.arange(9.0), np.linspace(0.0, 1.0, 9)
    both = solve_dual_streamed([lambda: [np.stack([g, c])]], epsilon=0.1)
    assert both == solve_dual_streamed([lambda: [(g, c)]], epsilon=0.1) and both.certainty > 0.5


def test_a_part_that_can_be_read_once_only_is_told_so():
    once = iter([(-np.arange(9.0), None)])
    with pytest.raises(ValueError, match="each must return a new iterable at every call"):
        solve_dual_streamed([lambda: once], epsilon=0.1)
