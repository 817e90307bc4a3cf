"""The streamed dual over Parquet: solve time in readings of its two columns, passes, and peak memory.

Page cache warm; the reading has torch's number of threads, the solving one. Memory is the peak of a
fresh process less that of one that imports the same modules and solves nothing.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from klball.adversary.streaming import solve_dual_streamed
from klball.scores.parquet import stream_scores
from table import Row, row, table

COLUMNS = ["log_likelihood", "certainty"]
ROW_GROUP = 1 << 20
LARGEST = 10**8
CASES = ((0.05, None), (0.05, 15.1), (0.5, None))  # (ε, γ); at 0.05 E_Q[C] is about 15.25: γ binds

PEAK = """
import sys
from klball.scores.parquet import stream_scores
from klball.adversary.streaming import solve_dual_streamed
if sys.argv[1]:
    solve_dual_streamed(stream_scores(sys.argv[1]), epsilon=.05, gamma=15.1)
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(int(peak.split()[1]) / 1024)
"""


def write_scores(path: Path, rows: int) -> None:
    """Gamma-shaped losses and a certainty that grows with them; one row group in memory at a time."""
    rng = np.random.default_rng(0)
    schema = pa.schema([(name, pa.float64()) for name in COLUMNS])
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, rows, ROW_GROUP):
            g = -rng.gamma(2, 1, min(ROW_GROUP, rows - start))
            c = 15 - 0.3 * (g + 2) + 0.8 * rng.normal(size=len(g))
            writer.write_table(pa.table([g, c], schema=schema))


def read_row_groups(path: Path, threads: int) -> None:
    """Each thread decodes whole row groups of the two columns."""

    def read(index: int) -> None:
        with pq.ParquetFile(path) as file:
            file.read_row_group(index, columns=COLUMNS, use_threads=False)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(read, range(pq.read_metadata(path).num_row_groups)))


def read_batches(path: Path, threads: int) -> None:
    """Each thread decodes row groups batch by batch: what the solver reads, and nothing else."""
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda part: sum(1 for _ in part()), stream_scores(path)))


def measured(functions: Sequence[Callable[[], object]], repeats: int) -> tuple[np.ndarray, np.ndarray]:
    """Wall and CPU seconds [repeats, functions], run in turn."""
    wall, cpu = (np.empty((repeats, len(functions))) for _ in range(2))
    for repeat in range(repeats):
        for k, function in enumerate(functions):
            began, used = time.perf_counter(), time.process_time()
            function()
            wall[repeat, k], cpu[repeat, k] = time.perf_counter() - began, time.process_time() - used
    return wall, cpu


def solving(path: Path, rows: int, repeats: int, threads: int) -> list[Row]:
    """Against the faster way of reading the columns, repeat by repeat."""
    parts = stream_scores(path)
    solves = [partial(solve_dual_streamed, parts, epsilon=epsilon, gamma=gamma) for epsilon, gamma in CASES]
    passes = [solve().num_passes for solve in solves]
    readers = [partial(read, path, threads) for read in (read_row_groups, read_batches)]
    wall, cpu = measured([*readers, *solves], repeats)
    rows_out = []
    for k, (epsilon, gamma) in enumerate(CASES):
        label = f"{rows:.0e} rows, ε = {epsilon}" + ("" if gamma is None else f", γ = {gamma} binds")
        for name, seconds in (("wall", wall), ("CPU", cpu)):
            ratio = seconds[:, 2 + k] / seconds[:, :2].min(axis=1)
            target = "≤ 4" if rows == LARGEST and name == "wall" else ""
            rows_out.append(row("streaming", label, f"{name} time / reading the columns", ratio, target))
        rows_out.append(row("streaming", label, "full passes", [passes[k]], "≤ 3"))
    return rows_out


def peak(path: str) -> float:
    """MiB at the most, in a fresh process."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", PEAK, path]
    return float(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)


def measure(quick: bool) -> list[Row]:
    """1e6, 1e7 and 1e8 rows; `quick` leaves the last out."""
    threads = torch.get_num_threads()
    rows_out, nothing = [], peak("")
    for rows, repeats in ((10**6, 7), (10**7, 5)) if quick else ((10**6, 7), (10**7, 5), (LARGEST, 3)):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "scores.parquet"
            write_scores(path, rows)
            rows_out += solving(path, rows, repeats, threads)
            extra = peak(str(path)) - nothing
            rows_out.append(row("streaming", f"{rows:.0e} rows", "peak memory over imports, MiB", [extra]))
    return rows_out


def main() -> None:
    """Print the table; `--quick` leaves out 1e8 rows."""
    print(table(measure("--quick" in sys.argv[1:])))


if __name__ == "__main__":
    main()
