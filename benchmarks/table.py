"""What every benchmark shares: interleaved timing, and rows that print as one table."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Row:
    """One measured number: median (low – high) over repeats, and the target it is held against."""

    benchmark: str
    case: str
    measure: str
    median: float
    low: float
    high: float
    target: str = ""


def row(benchmark: str, case: str, measure: str, values: Sequence[float], target: str = "") -> Row:
    """A row from the repeats of one measurement."""
    return Row(
        *(benchmark, case, measure, float(np.median(values)), float(min(values)), float(max(values)), target)
    )


def interleaved(functions: Sequence[Callable[[], Any]], repeats: int) -> np.ndarray:
    """Seconds [repeats, functions], run in turn so that the machine's mood is shared."""
    seconds = np.empty((repeats, len(functions)))
    for repeat in range(repeats):
        for k, function in enumerate(functions):
            began = time.perf_counter()
            function()
            seconds[repeat, k] = time.perf_counter() - began
    return seconds


def verdict(r: Row) -> str:
    """Whether the median keeps a target such as "≤ 1.03": met, missed, or nothing without a target."""
    if not r.target:
        return ""
    sign, bound = r.target.split()
    keeps = {"≤": r.median <= float(bound), "≥": r.median >= float(bound)}
    return "met" if keeps[sign] else "missed"


def table(rows: Sequence[Row]) -> str:
    """Markdown, one line a row."""
    lines = ["| benchmark | case | measure | median (range) | target | |", "|---|---|---|---|---|---|"]
    for r in rows:
        spread = f"{r.median:.3g}" if r.low == r.high else f"{r.median:.3g} ({r.low:.3g} – {r.high:.3g})"
        lines.append(f"| {r.benchmark} | {r.case} | {r.measure} | {spread} | {r.target} | {verdict(r)} |")
    return "\n".join(lines)
