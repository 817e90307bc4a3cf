"""Ratios of every pair of models, on screen and on disk."""

from pathlib import Path

from klball.files import write_csv
from klball.report.pages.parts import interval
from klball.report.pages.tables import SHOWN
from klball.scores.perplexity import RobustnessReport, plain_rows
from klball.terminal import show_table


def write_ratios(report: RobustnessReport, folder: Path) -> None:
    """A table a data set, a row a pair; `ratios.csv` has all metrics. Nothing for one model."""
    if not report.ratios:
        return
    write_csv(folder / "ratios.csv", plain_rows(report.ratios))
    for data in report.rows:
        pairs: dict[str, dict[str, str]] = {}
        for found in report.ratios:
            if found.data == data:
                cell = str(interval(found.ratio, found.low, found.high))
                pairs.setdefault(f"{found.model} / {found.against}", {})[found.name] = cell
        body = [(pair, *(cells[name] for name in SHOWN)) for pair, cells in pairs.items()]
        title = f"{data}: ratios on the same rows [95 % interval, paired]; below 1 the first is better"
        show_table(title, ("pair", *SHOWN.values()), body)
