"""`make bench`: every benchmark in a process of its own, then one table and the figures.

What is finished is kept beside the table, and used again while code, machine and versions stay the same;
remove the folder to measure anew.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import date
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import klball
from klball.files import write_csv, write_text
from klball.terminal import quieten
from table import Row, table, verdict

BENCHMARKS = (
    *("dual", "ledger", "streaming", "scoring", "train_step", "packing", "accelerator"),
    *("certified_coverage", "joint_coverage"),
)
HERE = Path(__file__).parent
SECONDS = 900  # for one benchmark: one that hangs must not take the others with it


def machine() -> dict[str, str]:
    """Where and with what the rows were measured."""
    cores = str(len(os.sched_getaffinity(0)))
    versions = {name: version(name) for name in ("klball", "torch", "transformers", "trl")}
    threads = os.environ.get("OMP_NUM_THREADS", cores)
    return {"processor": processor(), "cores": cores, "threads": threads, **versions}


def processor() -> str:
    """The model name in /proc/cpuinfo."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")


def fingerprint(quick: bool) -> str:
    """Changes with the machine, the library and the benchmarks, but not with this file."""
    digest = hashlib.sha256(json.dumps([machine(), quick]).encode())
    sources = {*Path(klball.__file__).parent.rglob("*.py"), *HERE.glob("*.py")} - {Path(__file__).resolve()}
    for path in sorted(sources):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def measure(name: str, folder: Path, quick: bool) -> None:
    """What a child process does: one benchmark, its figure, and last its rows."""
    key = fingerprint(quick)  # of the code that is about to be imported
    quieten()
    module = import_module(name)
    began = time.perf_counter()
    rows = module.measure(quick)
    seconds = time.perf_counter() - began
    table(rows)  # a target that cannot be read fails here, not at the end of all
    if rows and hasattr(module, "figure"):
        module.figure(rows, folder / name)
    result = dict(fingerprint=key, date=str(date.today()), seconds=seconds, rows=[asdict(r) for r in rows])
    write_text(folder / f"{name}.json", json.dumps(result, indent=1, ensure_ascii=False) + "\n")


def finished(name: str, folder: Path, quick: bool) -> dict[str, Any] | None:
    """The result of a run of this very code on this machine."""
    path = folder / f"{name}.json"
    result = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return result if result.get("fingerprint") == fingerprint(quick) else None


def run(name: str, folder: Path, quick: bool) -> str:
    """One line on the benchmark, measured in a process of its own unless its result is there."""
    result = finished(name, folder, quick)
    source = ", from an earlier run" if result else ""
    log = folder / f"{name}.log"
    if result is None:
        command = [sys.executable, __file__, "--measure", name, "--output_dir", str(folder)]
        with log.open("w") as stream:
            try:
                subprocess.run(
                    [*command, *["--quick"] * quick],
                    stdout=stream,
                    stderr=stream,
                    timeout=SECONDS,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                stream.write(f"stopped after {SECONDS} s\n")
        result = finished(name, folder, quick)
    last = (log.read_text().strip().splitlines() or [""])[-1] if log.is_file() else ""
    if result is None:
        return f"FAILED: {last} (all of it in {log})"
    if not result["rows"]:
        return f"no rows: {last}"
    return f"{len(result['rows'])} rows, {result['seconds']:.0f} s{source}"


def write_tables(results: Sequence[dict[str, Any]], folder: Path) -> None:
    """benchmarks.md and benchmarks.csv: all rows, and where and when they were measured."""
    rows = [(Row(**row), result["date"]) for result in results for row in result["rows"]]
    if not rows:
        return
    described = machine() | {"date": " and ".join(sorted({day for _, day in rows}))}
    heading = "\n".join(f"- {name}: {value}" for name, value in described.items())
    write_text(folder / "benchmarks.md", f"{heading}\n\n{table([row for row, _ in rows])}\n")
    write_csv(
        folder / "benchmarks.csv",
        [{**asdict(row), "verdict": verdict(row), **machine(), "date": day} for row, day in rows],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, default=BENCHMARKS, metavar="NAME")
    parser.add_argument("--quick", action="store_true", help="fewer cases and repeats, to see that all run")
    parser.add_argument("--output_dir", type=Path, help="outputs/bench, or outputs/bench-quick")
    parser.add_argument("--measure", choices=BENCHMARKS, help=argparse.SUPPRESS)  # what a child is asked for
    options = parser.parse_args()
    folder = options.output_dir or Path("outputs", "bench-quick" if options.quick else "bench")
    if options.measure:
        return measure(options.measure, folder, options.quick)
    folder.mkdir(parents=True, exist_ok=True)
    for position, name in enumerate(options.only, start=1):
        print(f"[{position}/{len(options.only)}] {name} … ", end="", flush=True)
        print(run(name, folder, options.quick))
    results = {name: finished(name, folder, options.quick) for name in BENCHMARKS}
    write_tables([result for result in results.values() if result], folder)
    print(f"table: {folder / 'benchmarks.md'}")
    if failed := [name for name in options.only if not results[name]]:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
