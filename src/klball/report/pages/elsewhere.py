"""The report of `klball evaluate --scores`: models side by side on items that somebody else scored."""

import math
from pathlib import Path
from typing import Any

from klball.adversary.dual import solve_dual
from klball.comparison.calibration import LEAST_ESS
from klball.comparison.elsewhere import RoundsElsewhere
from klball.comparison.plain_words import AVERAGE, Side, plain_line
from klball.comparison.rounds import RoundScores
from klball.report.charts import profile_charts
from klball.report.interactive import intervals, plot
from klball.report.page import Page, Part, Plot, Section, Table, write_page
from klball.report.pages.parts import (
    EACH,
    REPORT_FILE,
    counted,
    interval,
    provenance_section,
    sample_rows,
    samples_section,
)
from klball.scores.elsewhere.report import GROUP, ItemReport
from klball.scores.measure import Measure
from klball.scores.tails import FEW
from klball.shown import in_words

VERDICT_AT = 0.1  # the radius of the worst case that sentences name
MOST_DRAWN = 60  # groups, those of the largest differences
WEIGHED_AT = 0.5  # the radius of the weights in the sample table


def write_items_page(report: ItemReport, scores: RoundScores, rounds: RoundsElsewhere, folder: Path) -> None:
    """report.html."""
    measure, n = report.measure, len(scores.sample_ids)
    unit = measure.title
    parts: list[Part] = [_values(report, scores.models, unit)]
    if len(scores.models) > 1:
        parts.append(_differences(report, unit))
    parts.append(plot(profile_charts(report.profiles, report.profiles[0].data, measure)[0]))
    kept = {"kept": n, **scores.left_out}
    counts = f"{counted(len(scores.models), 'model')} on {counted(n, 'item')}"
    page = Page(
        title=f"Robustness report: {measure.noun}",
        subtitle=f"{counts}; reference: {report.reference}",
        headline=item_lines(report),
        verdict=_verdict(report, scores.models),
        sections=[
            Section(f"{measure.noun.capitalize()}, {measure.better} is better", parts),
            _samples(scores, rounds),
            Section("Data quality", [Table("Items", [kept], note="What one model lacks leaves for all.")]),
            provenance_section(folder, rounds.about),
        ],
    )
    write_page(page, folder / REPORT_FILE)


def _verdict(report: ItemReport, models: list[str]) -> list[str]:
    """A sentence a model: mean and worst 5 % (of right and wrong, which has no tail, the worst case)."""
    measure, said = report.measure, []
    for model in models:
        mean, tail = (report.row_of[model, name] for name in ("mean", "cvar_0.05"))
        rows = counted(tail["items"]) + (", descriptive" if tail["items"] < FEW else "")
        few = " (descriptive)" if mean["items"] < LEAST_ESS else ""
        if not report.has_tail:
            worst, base = (_worst(report, name) for name in (model, report.reference))
            alone = model == report.reference
            than = "" if alone else f" ({report.reference}: {base:.3g})"
            change = "" if alone else f"; the difference to {report.reference}: {_says(measure, mean)}{few}"
            said.append(
                f"{model}: the mean {measure.noun} is {mean['value']:.3g}{change}. In the worst case within "
                f"ε = {VERDICT_AT:g} nats of these items it is {worst:.3g}{than}."
            )
        elif len(models) == 1:
            said.append(
                f"{model} has a mean {measure.noun} of {mean['value']:.4g} and one of {tail['value']:.4g} on "
                f"its worst 5 % ({rows}; unit: {measure.unit})."
            )
        elif model != report.reference:
            said.append(
                f"Against {report.reference}, the {measure.noun} of {model} is {_says(measure, mean)} on "
                f"average{few} and {_says(measure, tail)} on the worst 5 % of each ({rows})."
            )
    return said


def item_lines(report: ItemReport) -> list[str]:
    """Every model against the reference in a line. The worst case of right and wrong has no test here."""
    measure, lines = report.measure, []
    models = dict.fromkeys(row["model"] for row in report.rows)
    for model in models:
        if model != report.reference:
            mean, tail = (report.row_of[model, name] for name in ("mean", "cvar_0.05"))
            sides = [_side(measure, AVERAGE, mean, LEAST_ESS)]
            if report.has_tail:
                sides.insert(0, _side(measure, "on the worst 5 %", tail, FEW))
            alone = ", by this pair's own 95 % interval" if len(models) > 2 else ""
            scope = f"for items like these {mean['items']}{alone}"
            lines.append(plain_line(model, report.reference, sides, scope))
    return lines


def _side(measure: Measure, where: str, row: dict[str, Any], least: float) -> Side:
    """A difference to the reference in the source's own numbers."""
    value, low, high = row["difference"], row["difference_low"], row["difference_high"]
    if row["items"] < least:
        return Side(where, None)
    clear = value != 0 and not low <= 0 <= high  # no interval: each and every item says so
    higher = 1 if value > 0 else -1
    return Side(where, (-higher if measure.loss else higher) if clear else 0, measure.amount(abs(value)))


def _worst(report: ItemReport, model: str) -> float:
    point = next(p for p in report.profiles if (p.model, p.epsilon) == (model, VERDICT_AT))
    return report.measure.own(-point.robust_loss)


def _says(measure: Any, row: dict[str, Any]) -> str:
    value, low, high = row["difference"], row["difference_low"], row["difference_high"]
    if value == 0:
        return "the same"
    size = f"{measure.amount(abs(value))} {'higher' if value > 0 else 'lower'}"
    if math.isnan(low):
        return f"{size} (no interval)"
    bounds = f"95 % interval {low:.3g} to {high:.3g}".replace("-", "−")
    return f"not clearly different ({size}, {bounds})" if low <= 0 <= high else f"{size} ({bounds})"


def title_of(name: str) -> str:
    """What a mean is over, for tables; groups are called as they are."""
    if name.startswith(GROUP):
        return name
    return "reference's hardest 1 %" if name == "hardest_1pct" else in_words(name)


def _values(report: ItemReport, models: list[str], unit: str) -> Table:
    names = dict.fromkeys(row["name"] for row in report.rows)
    body = []
    for name in names:
        found = {model: report.row_of[model, name] for model in models}
        cells = {f"of {m}": interval(r["value"], r["low"], r["high"]) for m, r in found.items()}
        body.append({"mean of": title_of(name), "items": found[models[0]]["items"], **cells})
    return Table(
        f"Values: {unit}",
        body,
        {"mean of": "mean of", "items": "items", **{f"of {m}": m for m in models}},
        "95 % intervals over items. Worst 1 % and so on: each model's own; hardest 1 %: "
        f"the same items for all. Tails of fewer than {FEW} items are descriptive.",
    )


def _differences(report: ItemReport, unit: str) -> Plot:
    keys = ("difference", "difference_low", "difference_high")
    series: dict[str, dict[str, tuple[float, float, float]]] = {}
    others = [row for row in report.rows if row["model"] != report.reference]
    of_groups = [row for row in others if row["name"].startswith(GROUP)]
    largest = sorted(of_groups, key=lambda row: -abs(row["difference"]))
    left = [*dict.fromkeys(row["name"] for row in largest)][MOST_DRAWN:]
    fewer = f" Of the groups the {MOST_DRAWN} of the largest differences are drawn." if left else ""
    hidden = set(left)
    for row in others:
        if row["name"] not in hidden:
            series.setdefault(row["model"], {})[title_of(row["name"])] = tuple(row[key] for key in keys)  # pyright: ignore[reportArgumentType]
    return Plot(
        f"Difference to {report.reference}",
        intervals(series, f"difference to {report.reference}: {unit}", reference=0.0),
        f"Dots with 95 % intervals, paired over items; the numbers are in scores.csv.{fewer} {EACH}",
    )


def _samples(scores: RoundScores, rounds: RoundsElsewhere) -> Section:
    rows: list[dict[str, Any]] = []
    noun = scores.measure.noun
    for m, model in enumerate(scores.models):
        own = scores.log_likelihood[m, 0]
        weights = solve_dual(loss=-own, epsilon=WEIGHED_AT).weights
        found = sample_rows(scores.sample_ids, own, weights, noun, model=model)
        rows += [{**row, noun: scores.measure.own(row[noun])} for row in found]
    texts = rounds.texts({row["sample_id"] for row in rows})
    return samples_section(
        "Hardest and top-weighted items",
        [{**row, **texts.get(row["sample_id"], {})} for row in rows],
        f"Weights are those of the worst case at ε = {WEIGHED_AT:g}; 1 is an even share.",
        group="model",
    )
