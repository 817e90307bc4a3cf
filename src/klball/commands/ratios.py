"""Ratios and differences of every pair of models, on screen and on disk."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from klball.files import write_csv
from klball.report.pages.parts import interval
from klball.report.pages.tables import SHOWN, tails_in_order
from klball.scores.perplexity import RobustnessReport, decided_by, plain_rows
from klball.terminal import show_table


def write_ratios(report: RobustnessReport, folder: Path) -> None:
    """A table a data set, a row a pair; `ratios.csv` has all metrics. Nothing for one model."""
    if not report.ratios:
        return
    write_csv(folder / "ratios.csv", plain_rows(report.ratios))
    for data, counts in report.rows.items():
        pairs: dict[str, dict[str, str]] = {}
        for found in report.ratios:
            if found.data == data:
                rows = decided_by(found.name, counts["kept"])
                cell = str(interval(found.ratio, found.low, found.high, rows))
                pairs.setdefault(f"{found.model} / {found.against}", {})[found.name] = cell
        names = tails_in_order(SHOWN, counts["kept"])
        body = [(pair, *(cells[name] for name in names)) for pair, cells in pairs.items()]
        title = f"{data}: ratios on the same rows [95 % interval, paired]; below 1 the first is better"
        show_table(title, ("pair", *names.values()), body)


def write_differences(found: Sequence[dict[str, Any]], unit: str, folder: Path) -> None:
    """A table a model that others are compared with, of each data set; and `differences.csv`.

    found: rows of `klball.scores.paired.differences`, with their `data` where there are several; none for
    one model.
    """
    if not found:
        return
    write_csv(folder / "differences.csv", found)
    for data, base in dict.fromkeys((row.get("data"), row["against"]) for row in found):
        models, cells = [], {}
        for row in (row for row in found if (row.get("data"), row["against"]) == (data, base)):
            models.append(row["model"])
            key = (row["metric"], row["part"], row[unit])
            cells.setdefault(key, []).append(str(interval(row["difference"], row["low"], row["high"])))
        where = "" if data is None else f"{data}: "
        title = f"{where}difference to {base} on the same {unit} [95 % interval, paired]"
        header = ("metric", f"{unit} of", unit, *dict.fromkeys(models))
        show_table(title, header, [(*key, *values) for key, values in cells.items()])
