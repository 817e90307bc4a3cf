"""The reports of `klball reproduce`: robust radii, and the head-to-head of token objectives."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset

from klball.report.charts import Chart, gain_chart
from klball.report.interactive import intervals, plot
from klball.report.page import Page, Part, Plot, Section, Table, write_page
from klball.report.pages.evaluation import (
    Tables,
    evaluation_sections,
    few_rows,
    quality_section,
    weighed_samples,
)
from klball.report.pages.parts import (
    BASE,
    REPORT_FILE,
    change,
    few_in_words,
    means_table,
    provenance_section,
    ran_on,
    says,
)
from klball.scores.perplexity import RobustnessReport, common_rows

Rows = Sequence[dict[str, Any]]
Measures = Mapping[str, str]  # column → title


def write_robustness_page(
    summary: Rows,
    finals: Rows,
    curves: Sequence[Chart],
    measures: Measures,
    report: RobustnessReport,
    tables: Tables,
    rows: Mapping[str, Dataset],
    about: Mapping[str, Any],
    folder: Path,
) -> None:
    """report.html of the robustness experiment; `report` and `tables` are those of the first seed."""
    seeds = len({row["seed"] for row in finals})
    models = list(dict.fromkeys(metric.model for metric in report.metrics))
    page = Page(
        title="What robust fine-tuning costs and buys",
        subtitle=f"{len(summary) - 1} arms at equal budget, {seeds} seed(s){ran_on(folder)}",
        verdict=_robustness_verdict(summary, measures, seeds, report),
        sections=[
            Section("Change against SFT", _change_parts(summary, measures, seeds)),
            Section("Values over seeds", [_values(summary, measures)]),
            Section("Over training", [plot(curve) for curve in curves]),
            *evaluation_sections(report, models, "seed 0"),
            weighed_samples(tables, rows),
            quality_section(report.rows),
            provenance_section(folder, about),
        ],
    )
    write_page(page, folder / REPORT_FILE)


def _ratio(row: Mapping[str, Any], column: str) -> tuple[float, float, float]:
    return row[f"{column}_ratio"], row[f"{column}_ratio_low"], row[f"{column}_ratio_high"]


def _compared(summary: Rows, measures: Measures) -> list[dict[str, Any]]:
    """The arms that have a ratio to plain SFT."""
    column = next(iter(measures))
    return [row for row in summary if row[f"{column}_ratio"] == row[f"{column}_ratio"]]


def _robustness_verdict(summary: Rows, measures: Measures, seeds: int, report: RobustnessReport) -> list[str]:
    few = few_rows(report, "test") if "test" in report.rows else ""
    left_out = "hardest_1pct" if few else "worst_5pct"  # one tail is enough for a sentence
    sentences = []
    for row in _compared(summary, measures):
        parts = [
            f"{says(*_ratio(row, column))} on {_where(column)}{few if column == 'worst_5pct' else ''}"
            for column in measures
            if column != left_out
        ]
        sentences.append(f"{row['arm']} against SFT: perplexity is {', '.join(parts[:-1])} and {parts[-1]}.")
    if seeds == 1:
        sentences.append("One seed: differences between arms have no interval over seeds.")
    return sentences or ["There is no arm to compare with SFT."]


def _where(column: str) -> str:
    names = {
        "whole": "the whole test set",
        "out_of_domain": "other data",
        "hardest_1pct": "the test set's hardest 1 %",
        "worst_5pct": "the test set's worst 5 %",
        "worst_group": "the test set's worst group",
    }
    return names[column]


def _change_parts(summary: Rows, measures: Measures, seeds: int) -> list[Part]:
    compared = _compared(summary, measures)
    if not compared:
        return []
    rows = [{"arm": r["arm"], **{c: change(*_ratio(r, c)) for c in measures}} for r in compared]
    over = "paired 95 % t interval over seeds" if seeds > 1 else "one seed, so no interval"
    table = Table("Change of perplexity", rows, {"arm": "arm", **measures}, f"Below 0 is better; {over}.")
    series = {r["arm"]: {_where(c): _ratio(r, c) for c in measures} for r in compared}
    dots = Plot(
        "Ratio to SFT",
        intervals(series, "perplexity relative to SFT (below 1 is better)", reference=1.0),
        "Dots with intervals for every arm; the numbers are in the table above.",
    )
    return [table, dots]


def _values(summary: Rows, measures: Measures) -> Table:
    note = "Mean ± sd over seeds."
    return means_table("Perplexity at the end", summary, ("arm",), note, measures, measures)


def write_objectives_page(
    summary: Rows,
    entropy: Chart,
    seeds: int,
    base: Tables,
    rows: Mapping[str, Dataset],
    about: Mapping[str, Any],
    folder: Path,
) -> None:
    """report.html of the head-to-head; summary: rows arm, each measure and its _sd; base: its tables."""
    counts = {data: common_rows(data, dict(of_model))[1] for data, of_model in base.items()}
    note = f" Of the test rows {few}." if (few := few_in_words(counts["test"]["kept"])) else ""
    page = Page(
        title="Token objectives: what each gains and forgets",
        subtitle=f"{len(summary) - 1} methods at equal budget, {seeds} seed(s){ran_on(folder)}",
        verdict=[
            *gain_verdict(summary),
            f"These are means over {seeds} seeds." if seeds > 1 else "One seed: chance is not ruled out.",
        ],
        sections=[
            Section(
                "Gain against forgetting",
                [
                    plot(gain_chart(summary)),
                    means_table(
                        "All measures",
                        summary,
                        ("arm",),
                        "Mean ± sd over seeds; nats per token, but for the hardest 1 % and the worst 5 % "
                        f"(perplexities), distinct 2 and self bleu.{note}",
                    ),
                ],
            ),
            Section("Over training", [plot(entropy)]),
            weighed_samples(base, rows),
            quality_section(counts),
            provenance_section(folder, about),
        ],
    )
    write_page(page, folder / REPORT_FILE)


def gain_verdict(summary: Rows) -> list[str]:
    """Who gains most, who forgets least, and which methods no other beats in both."""
    trained = [row for row in summary if row["arm"] != BASE]
    best = max(trained, key=lambda row: row["gain"])
    mild = min(trained, key=lambda row: row["forgetting"])
    free = [
        row["arm"]
        for row in trained
        if not any(o["gain"] > row["gain"] and o["forgetting"] < row["forgetting"] for o in trained)
    ]
    return [
        f"{best['arm']} gains most on the task: {best['gain']:.3g} nats per token, forgetting "
        f"{best['forgetting']:.3g} (KL from the base on its own answers).",
        f"{mild['arm']} forgets least: {mild['forgetting']:.3g} nats per token, gaining {mild['gain']:.3g}.",
        f"No other method both gains more and forgets less than {', '.join(free)}.",
    ]
