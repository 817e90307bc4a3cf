"""The report of the forgetting experiment: SFT and reinforcement learning at equal accuracy."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from klball.report.charts import Chart
from klball.report.interactive import plot
from klball.report.page import Page, Section, Table, write_page
from klball.report.pages.parts import REPORT_FILE, means_table, provenance_section, ran_on

Rows = Sequence[dict[str, Any]]
START, PLAIN, RL, OWN = "start", "SFT", "GRPO", "SFT on own correct answers"
ANCHORS = (
    "RL's Razor (arXiv 2509.04259) claims that RL forgets less than SFT at equal accuracy on the new task, "
    "and that KL(π₀‖π) on the new task's prompts explains forgetting, whatever the method. Retaining by "
    "Doing (arXiv 2510.18874) claims that RL forgets less because its data are the model's own."
)
SPREAD = 0.05  # of R²: what a line for each method must add to say that one curve is not enough


def write_forgetting_page(
    summary: Rows,
    equal: Rows,
    fits: Rows,
    target: float | None,
    charts: Sequence[Chart],
    seeds: int,
    measures: Sequence[str],
    about: Mapping[str, Any],
    folder: Path,
) -> None:
    """report.html; the rows are those of summary.csv, equal.csv and fits.csv."""
    methods = len({row["method"] for row in summary} - {START})
    page = Page(
        title="Does reinforcement learning forget less?",
        subtitle=f"{methods} methods from one start at equal prompts, {seeds} seed(s){ran_on(folder)}",
        verdict=[
            *equal_verdict(summary, equal, target),
            *razor_verdict(fits),
            *(["One seed: chance is not ruled out."] if seeds == 1 else []),
        ],
        sections=[
            Section(
                "Accuracy against forgetting", [plot(charts[0]), *_equal(equal, target, measures)], ANCHORS
            ),
            Section("KL against forgetting", [*map(plot, charts[1:]), _fits(fits)]),
            Section(
                "Every budget",
                [_values("Means ± sd over seeds", summary, ("method",), measures)],
                "KL and changes of NLL in nats per token. sampled: accuracy at temperature 1 within "
                "--own_tokens. top: what 1 % of the tokens hold of SFT's implicit reward, and of its "
                "gradient, at this model.",
            ),
            provenance_section(folder, about),
        ],
    )
    write_page(page, folder / REPORT_FILE)


def equal_verdict(summary: Rows, equal: Rows, target: float | None) -> list[str]:
    """Who forgot least at one accuracy, SFT against RL there, and who never got there."""
    start = next(row["accuracy"] for row in summary if row["method"] == START)
    if target is None:
        best = max((row for row in summary if row["method"] != START), key=lambda row: row["accuracy"])
        most = f"The most accurate was {best['method']} with {best['accuracy']:.3f}."
        return [
            f"Not half of the methods got above the start's accuracy of {start:.3f}: there is none at which "
            f"to compare them. {most if best['accuracy'] > 0 else 'None answered a single problem right.'}"
        ]
    there = sorted((row for row in equal if row["reached"]), key=lambda row: row["forgetting"])
    ranks = ", ".join(_rank(row, max(row["reached"] for row in there)) for row in there)
    sentences = [
        f"At accuracy {target:.3f} (the start has {start:.3f}), forgetting is, from least to most, {ranks} "
        "nats per token on other data."
    ]
    by_name = {row["method"]: row for row in there}
    for name in (RL, OWN):
        if name in by_name and PLAIN in by_name:
            sentences.append(_against(by_name[name], by_name[PLAIN]))
    if absent := [row["method"] for row in equal if not row["reached"]]:
        sentences.append(f"Never that accurate: {', '.join(absent)}.")
    return sentences


def _rank(row: dict[str, Any], seeds: int) -> str:
    some = "" if row["reached"] == seeds else f" (in {row['reached']} of {seeds} seeds)"
    return f"{row['method']} {row['forgetting']:.2g}{some}"


def _against(row: dict[str, Any], plain: dict[str, Any]) -> str:
    less = row["forgetting"] < plain["forgetting"]
    times = f"in {row['less']} of {row['both']} seed(s) less"
    return (
        f"{row['method']} forgot {'less' if less else 'more'} than {PLAIN} there ({row['forgetting']:.2g} "
        f"against {plain['forgetting']:.2g}; {times})."
    )


def razor_verdict(fits: Rows) -> list[str]:
    """Whether one curve in KL holds for all methods, in words."""
    fit = fits[0]  # the KL of RL's Razor
    if math.isnan(fit["quadratic"]):
        return ["Nothing was forgotten, so there is nothing for KL to explain."]
    enough = fit["lines"] - fit["quadratic"] < SPREAD
    said = "the points lie on one curve" if enough else "the methods lie on curves of their own"
    sentences = [
        f"One quadratic in {fit['name']}, explains R² = {fit['quadratic']:.2f} of the forgetting of all "
        f"methods, one line {fit['line']:.2f}, a line for each method {fit['lines']:.2f}: {said}. "
        f"Furthest from the quadratic is {fit['furthest']}, {abs(fit['off']):.2g} nats "
        f"{'above' if fit['off'] > 0 else 'below'} it."
    ]
    best = max(fits, key=lambda fit: fit["quadratic"])
    if best is not fit:
        sentences.append(f"{best['name']}, explains more: R² = {best['quadratic']:.2f}.")
    return sentences


def _equal(equal: Rows, target: float | None, measures: Sequence[str]) -> list[Table]:
    if target is None:
        return []
    keys = ("method", "reached", "less")
    return [_values(f"Where accuracy reaches {target:.3f}", equal, keys, measures)]


def _values(title: str, rows: Rows, keys: Sequence[str], measures: Sequence[str]) -> Table:
    names = {"reached": "seeds there", "less": "seeds with less forgetting than SFT"}
    return means_table(title, rows, keys, "Nats per token.", ("prompts", *measures), names)


def _fits(fits: Rows) -> Table:
    names = {
        **{"name": "forgetting by", "line": "R² of one line", "quadratic": "of one quadratic"},
        **{
            "lines": "of a line for each method",
            "furthest": "furthest from the quadratic",
            "off": "by, nats",
        },
    }
    return Table("Does KL explain forgetting?", fits, names, "Fits through the start, where both are 0.")
