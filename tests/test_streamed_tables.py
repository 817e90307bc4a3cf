"""Score tables streamed from Parquet: as in memory, by the command, and over two processes."""

import json
import math
import os
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from klball import cli, solve_dual
from klball.adversary.streaming import StreamedSolution, solve_dual_streamed
from klball.scores.parquet import stream_scores, top_weighted
from test_streaming import assert_same, losses


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
