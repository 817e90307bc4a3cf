"""What runs the benchmarks: verdicts, failures, and going on after a kill."""

import csv
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(FOLDER))

from table import Row, row, table, verdict  # noqa: E402

COUNTED = """
from pathlib import Path
from table import row
def measure(quick):
    with Path(__file__).with_name("runs").open("a") as runs:
        runs.write("x")
    return [row("dual", "one case", "ratio", [1.0, 1.5], "≤ 1.2")]
"""


@pytest.mark.parametrize(
    ("target", "expected"),
    [("≤ 1.03", "missed"), ("≤ 1.5", "met"), ("≥ 1.5", "met"), ("≥ 300", "missed"), ("", "")],
)
def test_verdict(target, expected):
    assert verdict(row("b", "c", "m", [1.0, 1.5, 9.0], target)) == expected


def test_a_number_that_is_none_keeps_no_target():
    nothing = Row("b", "c", "m", float("nan"), 0.0, 1.0, "≤ 1")
    assert verdict(nothing) == "missed"


def test_a_target_that_cannot_be_read_is_an_error():
    with pytest.raises((KeyError, ValueError)):
        table([row("b", "c", "m", [1.0], "about 1")])


@pytest.mark.slow
def test_failures_are_told_and_finished_benchmarks_are_kept(tmp_path):
    for name in ("run.py", "table.py"):
        shutil.copy(FOLDER / name, tmp_path)
    (tmp_path / "dual.py").write_text(COUNTED)
    (tmp_path / "ledger.py").write_text("def measure(quick):\n    raise OSError('out of space')\n")

    def bench(*names):
        command = [sys.executable, "run.py", "--output_dir", "out", "--only", *names]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    first = bench("ledger", "dual")
    assert first.returncode == 1 and "failed: ledger" in first.stderr
    assert "OSError: out of space" in first.stdout
    rows = list(csv.DictReader((tmp_path / "out" / "benchmarks.csv").open(encoding="utf-8")))
    assert [(r["benchmark"], r["median"], r["verdict"]) for r in rows] == [("dual", "1.25", "missed")]
    assert "| dual | one case | ratio | 1.25 (1 – 1.5) | ≤ 1.2 | missed |" in (
        tmp_path / "out" / "benchmarks.md"
    ).read_text(encoding="utf-8")
    assert bench("dual").returncode == 0
    assert (tmp_path / "runs").read_text() == "x"
    (tmp_path / "dual.py").write_text(COUNTED.replace("1.5", "1.1"))
    assert bench("dual").returncode == 0
    assert (tmp_path / "runs").read_text() == "xx"
