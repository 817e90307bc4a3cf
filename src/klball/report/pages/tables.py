"""The tables of a robustness report, on screen and on disk."""

import dataclasses
import math
from pathlib import Path

from klball.files import write_csv
from klball.report.figures import plot_profiles
from klball.report.pages.parts import counted
from klball.scores.perplexity import Metric, RobustnessReport, decided_by
from klball.terminal import show_table

SHOWN = {  # metric → column of the printed table
    **{"perplexity_token": "ppl, token", "perplexity_sample": "ppl, sample", "bits_per_byte": "bits/byte"},
    **{"hardest_1pct": "hardest 1%", "own_hardest_1pct": "own 1%", "cvar_0.05": "CVaR 5%"},
}


def write_report(report: RobustnessReport, folder: Path) -> None:
    """Print the tables (± half a 95 % interval); write the CSV files and the figures."""
    for data, counts in report.rows.items():
        hard = counted(decided_by("hardest_1pct", counts["kept"]))
        dropped = f"{counts['truncated']} cut, {counts['unscored']} without answer: left out for all models"
        title = f"{data}: {counted(counts['kept'])} ({dropped}); hardest 1 % = {hard} by {report.reference}"
        body = []
        for model in dict.fromkeys(m.model for m in report.metrics):
            metrics = [report.value(data, model, name) for name in SHOWN]
            body.append([model, *(_with_half(m) for m in metrics)])
        show_table(title, ("model", *SHOWN.values()), body)
    write_csv(folder / "metrics.csv", report.records())
    write_csv(folder / "profiles.csv", [dataclasses.asdict(point) for point in report.profiles])
    plot_profiles(report.profiles, folder)


def _with_half(metric: Metric) -> str:
    """A number ± half its interval, where there is one."""
    if not math.isfinite(metric.value):
        return "–"
    half = (metric.high - metric.low) / 2
    return f"{metric.value:.4g}" + (f" ±{half:.2g}" if math.isfinite(half) else "")
