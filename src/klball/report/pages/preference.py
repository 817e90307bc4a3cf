"""The report of the preference experiment: noise, radius, groups, other people's weights, and beliefs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from klball.adversary.upweighting import radius_in_words
from klball.report.charts import Chart
from klball.report.interactive import plot
from klball.report.page import Page, Section, Table, write_page
from klball.report.pages.parts import REPORT_FILE, means_table, provenance_section
from klball.scores.accuracy import WORST

Rows = Sequence[dict[str, Any]]
OVER_SEEDS = "Mean ± sd over seeds."


def write_preference_page(
    summary: Rows,
    stops: Rows,
    beliefs: Rows,
    charts: Sequence[Chart],
    seeds: int,
    measures: Sequence[str],
    few: str,
    about: Mapping[str, Any],
    folder: Path,
) -> None:
    """report.html; the rows are those of summary.csv and stops.csv, and means of beliefs.csv over seeds.

    few: of `few_in_words`, for the held-out pairs.
    """
    page = Page(
        title="Preference learning against the worst case",
        subtitle=f"{len(summary)} arms at equal budget, {seeds} seed(s)",
        verdict=[
            *stop_verdict(stops),
            *noise_verdict(summary),
            *beliefs_verdict(beliefs),
            *(["One seed: chance is not ruled out."] if seeds == 1 else []),
        ],
        sections=[
            Section(
                "Radius and flipped labels", [*map(plot, charts), _stops(stops)], f"{radius_in_words(WORST)}."
            ),
            Section(
                "All arms",
                [means_table("Clean held-out pairs", summary, ("flip", "arm"), OVER_SEEDS, measures)],
                "pairs: a pessimistic ball over pairs. optimistic: easy pairs weigh more. groups: a "
                "pessimistic ball over fields. trimmed: the hardest share is left out first. KLDPO and group "
                "EG are pessimistic, Dr. DPO is optimistic." + (f" Of the pairs {few}." if few else ""),
            ),
            Section("Beliefs", [means_table("Held-out questions", beliefs, ("arm",), OVER_SEEDS)]),
            provenance_section(folder, about),
        ],
    )
    write_page(page, folder / REPORT_FILE)


def stop_verdict(stops: Rows) -> list[str]:
    """Prediction against measurement, in a sentence a rate of flips."""
    return [
        f"With {row['flip']:.0%} of the labels flipped, theory has a pessimistic ball over pairs learn "
        f"nothing from ε₀ = {row['predicted']:.3g} on; learning stopped here at {row['text']}."
        for row in stops
        if row["flip"] > 0
    ]


def noise_verdict(summary: Rows) -> list[str]:
    """The best arm at each rate of flips, and plain DPO's accuracy there."""
    sentences = []
    for flip in dict.fromkeys(row["flip"] for row in summary):
        own = [row for row in summary if row["flip"] == flip]
        best = max(own, key=lambda row: row["accuracy"])
        plain = next(row for row in own if row["kind"] == "plain")
        sentences.append(
            f"At {flip:.0%} flips {best['arm']} is most accurate on clean pairs ({best['accuracy']:.3f}); "
            f"plain DPO has {plain['accuracy']:.3f}."
        )
    return sentences


def beliefs_verdict(beliefs: Rows) -> list[str]:
    """Who comes nearest to p*."""
    if not beliefs:
        return []
    best = min(beliefs, key=lambda row: row["js_distance"])
    rest = ", ".join(f"{row['arm']} {row['js_distance']:.3f}" for row in beliefs if row is not best)
    return [
        f"{best['arm']} comes nearest to the shares of beliefs: Jensen–Shannon distance "
        f"{best['js_distance']:.3f} ({rest})."
    ]


def _stops(stops: Rows) -> Table:
    rows = [{"flip": row["flip"], "predicted": row["predicted"], "text": row["text"]} for row in stops]
    names = {"flip": "share of flips η", "predicted": "ε₀(η)", "text": "measured, seed by seed"}
    return Table("Where learning stops", rows, names, "Margin below a tenth of plain DPO's.")
