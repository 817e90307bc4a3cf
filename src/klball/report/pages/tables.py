"""The tables of a robustness report, on screen and on disk."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path

from klball.files import write_csv
from klball.report.figures import plot_profiles
from klball.report.pages.parts import counted, few_in_words, too_few
from klball.scores.perplexity import Metric, RobustnessReport, decided_by
from klball.scores.tails import few_hardest
from klball.terminal import say, show_table

SHOWN = {  # metric → column of the printed table
    **{"perplexity_token": "ppl, token", "perplexity_sample": "ppl, sample", "bits_per_byte": "bits/byte"},
    **{"hardest_1pct": "hardest 1%", "own_hardest_1pct": "own 1%", "worst_5pct": "worst 5% (CVaR)"},
}


def write_report(report: RobustnessReport, folder: Path) -> None:
    """Print the tables (± half a 95 % interval); write the CSV files and the figures."""
    for data, counts in report.rows.items():
        hard = counted(decided_by("hardest_1pct", counts["kept"]))
        dropped = f"{counts['truncated']} cut, {counts['unscored']} without answer: left out for all models"
        title = f"{data}: {counted(counts['kept'])} ({dropped}); hardest 1 % = {hard} by {report.reference}"
        names = tails_in_order(SHOWN, counts["kept"])
        body = []
        for model in dict.fromkeys(m.model for m in report.metrics):
            metrics = [report.value(data, model, name) for name in names]
            body.append([model, *(_with_half(m, decided_by(m.name, counts["kept"])) for m in metrics)])
        show_table(title, ("model", *names.values()), body)
        if few := few_in_words(counts["kept"]):
            say(f"on {data} {few}")
    write_csv(folder / "metrics.csv", report.records())
    write_csv(folder / "profiles.csv", [dataclasses.asdict(point) for point in report.profiles])
    plot_profiles(report.profiles, folder)


def tails_in_order(names: Mapping[str, str], rows: int) -> dict[str, str]:
    """Metric → title, the worst 5 % before the hardest 1 % where those are few."""
    if not few_hardest(rows):
        return dict(names)
    hardest = [name for name in names if "hardest" in name]
    order = [*(name for name in names if name not in hardest), *hardest]
    return {name: names[name] for name in order}


def _with_half(metric: Metric, rows: int) -> str:
    """A number ± half its interval, or the rows that it rests on where they are too few for one."""
    if not math.isfinite(metric.value):
        return "–"
    half = (metric.high - metric.low) / 2
    return f"{metric.value:.4g}" + (f" ±{half:.2g}" if math.isfinite(half) else too_few(rows))
