"""The report of `klball evaluate`: models side by side on every data set."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from klball.adversary.dual import solve_dual
from klball.adversary.upweighting import radius_in_words
from klball.comparison.calibration import LEAST_ESS
from klball.comparison.plain_words import AVERAGE, Side, plain_line
from klball.report.charts import profile_charts
from klball.report.interactive import intervals, plot
from klball.report.page import Page, Part, Plot, Section, Table, write_page
from klball.report.pages.parts import (
    EACH,
    REPORT_FILE,
    change,
    counted,
    interval,
    provenance_section,
    sample_rows,
    samples_section,
    says,
    with_texts,
)
from klball.report.pages.tables import tails_in_order
from klball.scores.accuracy import WORST
from klball.scores.own import usable
from klball.scores.perplexity import Metric, RobustnessReport, decided_by
from klball.scores.tails import FEW, LEAST, few_hardest

TAILS = (
    f"Tails of fewer than {FEW} rows are descriptive, and fewer than {LEAST} have no interval. Where the "
    f"hardest 1 % are fewer than {FEW}, the worst 5 % (CVaR) come first. On rows that the reference chose "
    "any other model looks better by chance alone, so no verdict rests on them."
)
OF_EACH = " of each"  # of a tail that two models chose
WEIGHED_AT = 0.5  # the radius of the weights in the sample table
COMPARED = {
    "perplexity_sample": "perplexity, mean over samples",
    "perplexity_token": "perplexity, mean over tokens",
    "hardest_1pct": "hardest 1 % (chosen by the reference)",
    "own_hardest_1pct": "hardest 1 % (each its own)",
    "worst_5pct": "worst 5 % (CVaR, each its own)",
}

Tables = Mapping[str, Mapping[str, Dataset]]  # data → model → score table


def write_evaluation_page(
    report: RobustnessReport,
    tables: Tables,
    rows: Mapping[str, Dataset],
    about: Mapping[str, Any],
    folder: Path,
) -> None:
    """report.html of models on data sets; `rows` are the data sets themselves, for the texts, if there."""
    models = list(dict.fromkeys(metric.model for metric in report.metrics))
    page = Page(
        title="Robustness report",
        subtitle=f"{counted(len(models), 'model')} on {_data_of(report)}; reference: {report.reference}",
        headline=plain_lines(report),
        verdict=_verdict(report, models),
        sections=[
            *evaluation_sections(report, models),
            weighed_samples(tables, rows),
            quality_section(report.rows),
            provenance_section(folder, about),
        ],
    )
    write_page(page, folder / REPORT_FILE)


def _data_of(report: RobustnessReport) -> str:
    return ", ".join(f"{data} ({counted(counts['kept'])})" for data, counts in report.rows.items())


def evaluation_sections(report: RobustnessReport, models: list[str], note: str = "") -> list[Section]:
    """Per data set: changes against the reference, the numbers, and the robust profile."""
    suffix = f", {note}" if note else ""
    sections = []
    for data in report.rows:
        parts: list[Part] = []
        others = [model for model in models if model != report.reference]
        if others:
            parts += [_effects_table(report, data, others), _effects_plot(report, data, others)]
        parts += [_metrics_table(report, data, models), plot(profile_charts(report.profiles, data)[0])]
        parts.append(_all_metrics(report, data))
        sections.append(Section(f"On {data}{suffix}", parts, f"{radius_in_words(WORST)}."))
    return sections


def quality_section(rows: Mapping[str, Mapping[str, int]]) -> Section:
    """Rows kept and lost on every data set."""
    table = Table(
        "Rows kept and left out",
        [{"data": data, **counts} for data, counts in rows.items()],
        {"data": "data set", "kept": "kept", "truncated": "truncated", "unscored": "without an answer token"},
        "A row that one model had to cut or could not score is left out for all models.",
    )
    return Section("Data quality", [table])


def weighed_samples(tables: Tables, rows: Mapping[str, Dataset]) -> Section:
    """The hardest and top-weighted samples of every model on every data set."""
    shown: list[dict[str, Any]] = []
    for data, of_model in tables.items():
        keep = _common(of_model)
        own: list[dict[str, Any]] = []
        for model, table in of_model.items():
            g = np.array(table["log_likelihood"][:], dtype=float)[keep]
            ids = table.select_columns("sample_id").select(keep)
            weights = solve_dual(g, epsilon=WEIGHED_AT).weights
            own += sample_rows(ids["sample_id"], g, weights, model=f"{model} on {data}")
        shown += with_texts(own, rows[data]) if data in rows else own
    return samples_section(
        "Hardest and top-weighted samples",
        shown,
        f"Weights are those of the worst case; 1 is an even share. {radius_in_words(WEIGHED_AT)}. Without a "
        "bound on certainty they rise as the log-likelihood falls. Look here for mislabelled answers.",
        group="model",
    )


def _common(of_model: Mapping[str, Dataset]) -> np.ndarray:
    """Rows that every model holds uncut, as the report keeps them."""
    return np.flatnonzero(np.logical_and.reduce([usable(table) for table in of_model.values()]))


def plain_lines(report: RobustnessReport) -> list[str]:
    """Every model against the reference on every data set, in a line each."""
    lines = []
    for data, counts in report.rows.items():
        kept, (tail, where) = counts["kept"], _tail(counts["kept"])
        for model in dict.fromkeys(metric.model for metric in report.metrics):
            if model != report.reference:
                hard, whole = (report.value(data, model, name) for name in (tail, "perplexity_sample"))
                sides = (
                    _side(f"on the {where}", hard, decided_by(tail, kept) >= FEW),
                    _side(AVERAGE, whole, kept >= LEAST_ESS),
                )
                lines.append(
                    plain_line(model, report.reference, sides, f"for rows like these {kept} of {data}")
                )
    return lines


def _side(where: str, metric: Metric, enough: bool) -> Side:
    """A ratio of perplexities to the reference's: below 1 is better."""
    by = f"{abs(100 * (metric.ratio - 1)):.1f} % of perplexity"
    if not enough or math.isnan(metric.ratio_low):
        return Side(where, None)
    clear = not metric.ratio_low <= 1 <= metric.ratio_high
    return Side(where, (1 if metric.ratio < 1 else -1) if clear else 0, by)


def _tail(rows: int) -> tuple[str, str]:
    """The metric of hard rows that is judged by, and what it is called: each model's own.

    Rows that one of two models chose are its bad luck as well: on them the other one looks better by chance.
    """
    if few_hardest(rows):
        return "worst_5pct", "worst 5 %"
    return "own_hardest_1pct", f"hardest 1 %{OF_EACH}"


def _verdict(report: RobustnessReport, models: list[str]) -> list[str]:
    sentences = []
    for data, counts in report.rows.items():
        tail, where = _tail(counts["kept"])
        few = few_rows(report, data)
        for model in models:
            hard, whole = (report.value(data, model, name) for name in (tail, "perplexity_sample"))
            if model == report.reference:
                if len(models) == 1:
                    sentences.append(
                        f"On {data}, {model} has perplexity {whole.value:.4g} on the whole set and "
                        f"{hard.value:.4g} on its {where.removesuffix(OF_EACH)}{few}."
                    )
                continue
            parts = [says(m.ratio, m.ratio_low, m.ratio_high) for m in (hard, whole)]
            sentences.append(
                f"On {data}, against {report.reference}, the perplexity of {model} is {parts[0]} on the "
                f"{where}{few} and {parts[1]} on the whole set."
            )
    return sentences


def few_rows(report: RobustnessReport, data: str) -> str:
    """How many rows the worst 5 % are, where the hardest 1 % are too few; else ""."""
    kept = report.rows[data]["kept"]
    if not few_hardest(kept):
        return ""
    worst, hard = (decided_by(name, kept) for name in ("worst_5pct", "hardest_1pct"))
    descriptive = "descriptive: " if worst < FEW else ""
    return f" (CVaR; {descriptive}{counted(worst)}; the hardest 1 % are {counted(hard)})"


def _compared(report: RobustnessReport, data: str) -> dict[str, str]:
    """Metric → title with the rows of a tail, the worst 5 % before the hardest 1 % where those are few."""
    kept = report.rows[data]["kept"]
    names = {
        name: title if decided_by(name, kept) == kept else f"{title}: {counted(decided_by(name, kept))}"
        for name, title in COMPARED.items()
    }
    return tails_in_order(names, kept)


def _effects_table(report: RobustnessReport, data: str, others: list[str]) -> Table:
    rows, names = [], _compared(report, data)
    for model in others:
        metrics = {name: report.value(data, model, name) for name in names}
        cells = {name: change(m.ratio, m.ratio_low, m.ratio_high) for name, m in metrics.items()}
        rows.append({"model": model, **cells})
    return Table(
        f"Change against {report.reference}",
        rows,
        {"model": "model", **names},
        "Ratio to the reference on the same samples, minus 1; paired 95 % interval over samples. Below 0 is "
        f"better. {EACH} {TAILS}",
    )


def _effects_plot(report: RobustnessReport, data: str, others: list[str]) -> Plot:
    series = {}
    for model in others:
        found = {label: report.value(data, model, name) for name, label in _compared(report, data).items()}
        series[model] = {label: (m.ratio, m.ratio_low, m.ratio_high) for label, m in found.items()}
    return Plot(
        f"Ratio to {report.reference} on {data}",
        intervals(series, f"ratio to {report.reference} (below 1 is better)", reference=1.0),
        "Dots with 95 % intervals; the numbers are in the table above.",
    )


def _metrics_table(report: RobustnessReport, data: str, models: list[str]) -> Table:
    names = {**_compared(report, data), "bits_per_byte": "bits per byte"}
    rows = []
    for model in models:
        metrics = {name: report.value(data, model, name) for name in names}
        rows.append({"model": model, **{k: interval(m.value, m.low, m.high) for k, m in metrics.items()}})
    return Table("Values", rows, {"model": "model", **names}, f"95 % intervals over samples. {TAILS}")


def _all_metrics(report: RobustnessReport, data: str) -> Table:
    rows = [row for row in report.records() if row["data"] == data]
    return Table("All metrics", rows, note="The rows of metrics.csv.")
