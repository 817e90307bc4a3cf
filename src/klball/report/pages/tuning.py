"""The report of `klball tune`: what every radius costs and buys on held-out rows, and which was chosen."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset

from klball.report.charts import Chart, frontier_chart
from klball.report.interactive import plot
from klball.report.page import Cell, Page, Section, Table, number, write_page
from klball.report.pages.evaluation import weighed_samples
from klball.report.pages.parts import REPORT_FILE, change, counted, provenance_section, ran_on, says
from klball.scores.frontier import FEW_IN_GROUP
from klball.scores.tails import CVAR, FEW, HARDEST, LEAST, tail_size

NAMES = {
    "mean": "perplexity of all rows",
    "cvar": "worst 5 %",
    "hardest_1pct": "hardest 1 %",
    "worst_group": "worst group",
}
OF_TAILS = {"cvar": "perplexity of the worst 5 %", "worst_group": "perplexity of the worst group"}
ONE_RUN = "Intervals are paired, over rows, of one training run each: another seed is not in them."

Row = Mapping[str, Any]


@dataclass(frozen=True)
class TuningResults:
    """What was compared and chosen.

    rows: of `frontier_row`, with arm, kind, epsilon, share and rows, each arm at its last rung, ε = 0 first;
    rungs: those of all rungs. chosen: one of the rows, None for ε = 0. missed: rows that were dropped though
    they met both conditions. cost: in whole runs. model: the folder of the chosen one. unjudged: groups with
    too few held-out rows. test: the row of the chosen arm on rows that chose nothing. tables, held_out: score
    tables of what is compared in texts, and their rows.
    """

    rows: Sequence[Row]
    rungs: Sequence[Row]
    chosen: Row | None
    missed: Sequence[Row]
    tail: str
    max_cost: float
    cost: float
    model: str
    unjudged: Sequence[str] = ()
    test: Row | None = None
    tables: Mapping[str, Dataset] = field(default_factory=dict)
    held_out: Dataset | None = None

    def chart(self) -> Chart:
        """The frontier."""
        return frontier_chart(self.rows, self.tail, OF_TAILS[self.tail])


def verdict(results: TuningResults) -> list[str]:
    """What was chosen and why, and what its figures are worth."""
    rows, chosen = results.rows[1:], results.chosen
    limit = f"{100 * results.max_cost:g} %"
    if chosen is not None:
        sentences = [
            f"{chosen['arm']}: on {counted(chosen['rows'])} held out, against ε = 0, "
            f"{_against(chosen, results)}; up to {limit} higher was allowed."
        ]
    else:
        sentences = [_why_not(rows, results, limit)]
    sentences += [
        f"{row['arm']} met both conditions when it was dropped at {100 * row['share']:g} % of the steps: "
        f"--epsilons 0 {row['epsilon']:g} trains it to the end."
        for row in results.missed
    ]
    if chosen is not None and results.test is None:
        sentences.append(
            "The held-out rows chose the arm, so its figures on them are optimistic: for others hold a test "
            "part apart with --test_fraction, or run klball evaluate on other rows."
        )
    if chosen is not None and results.test is not None:
        sentences.append(
            "The held-out rows chose the arm, so its figures on them are optimistic. On "
            f"{counted(results.test['rows'])} that chose nothing, {_against(results.test, results)}."
        )
    if results.unjudged:
        sentences.append(
            f"Not judged, with fewer than {FEW_IN_GROUP} held-out rows: {', '.join(results.unjudged)}; hold "
            "out more with --eval_fraction."
        )
    worst = tail_size(CVAR, min(row["rows"] for row in rows))
    if results.tail == "cvar" and worst < FEW:
        sentences.append(f"The worst 5 % are {counted(worst)} only: hold out more for a choice to rely on.")
    return [*sentences, ONE_RUN, f"The model, trained to the end: {results.model}"]


def _why_not(rows: Sequence[Row], results: TuningResults, limit: str) -> str:
    worst = tail_size(CVAR, min(row["rows"] for row in rows))
    if results.tail == "cvar" and worst < LEAST:
        return f"ε = 0, for want of rows: on a worst 5 % of {counted(worst)} no gain can be told from noise."
    costly = [row for row in rows if not row["mean_ratio"] <= 1 + results.max_cost]
    noise = len(rows) - len(costly) - len(results.missed)
    why = [f"{_arms(len(costly), 'cost')} more than {limit} on the mean"] * bool(costly)
    why += [f"{_arms(noise, 'gain')} no more than noise in the {OF_TAILS[results.tail]}"] * bool(noise)
    counts = f"of {counted(len(rows), 'arm')} {' and '.join(why)}"
    dear = [row for row in costly if row[f"{results.tail}_high"] < 1]
    if not dear:
        return f"ε = 0: robustness buys nothing here: {counts}."
    cheapest = min(dear, key=lambda row: row["mean_ratio"])
    return (
        f"ε = 0: what robustness buys here costs too much: {counts}. The cheapest that gains is "
        f"{cheapest['arm']}: {_against(cheapest, results)}; --max_cost says what it may cost."
    )


def _arms(count: int, does: str) -> str:
    return f"{count} {does}{'s' * (count == 1)}"


def _against(row: Row, results: TuningResults) -> str:
    tail, mean = (says(*_ratios(row, name)) for name in (results.tail, "mean"))
    return f"the {OF_TAILS[results.tail]} is {tail}, and that of all rows is {mean}"


def _ratios(row: Row, name: str) -> tuple[float, float, float]:
    return row[f"{name}_ratio"], row[f"{name}_low"], row[f"{name}_high"]


def frontier_table(rows: Sequence[Row], title: str = "Frontier") -> Table:
    """Changes against ε = 0, and its values; rows of tails are counted, too few of the hardest left out."""
    held_out = min((row["rows"] for row in rows), default=0)
    worst, hard = tail_size(CVAR, held_out), tail_size(HARDEST, held_out)
    names = {
        **NAMES,
        "cvar": f"worst 5 % ({counted(worst)})",
        "hardest_1pct": f"hardest 1 % ({counted(hard)})",
    }
    note = "Perplexity at ε = 0, and its change against that at the same step [paired 95 % interval]."
    if worst < LEAST:
        note += f" Fewer than {LEAST} rows have no interval."
    if hard < FEW:
        del names["hardest_1pct"]
        note += (
            f" The hardest 1 % are {counted(hard)}, too few to judge by: the worst 5 % stand in their place."
        )
    if not any("worst_group_ratio" in row for row in rows):
        del names["worst_group"]
    shown = [
        {
            "arm": row["arm"],
            "share": Cell(row["share"], f"{100 * row['share']:g} %"),
            **{name: _cell(row, name) for name in names},
            **({"group": row["group"]} if "group" in row else {}),
        }
        for row in rows
    ]
    more = {"group": "which group"} if any("group" in row for row in rows) else {}
    return Table(title, shown, {"arm": "arm", "share": "steps", **names, **more}, note)


def _cell(row: Row, name: str) -> Cell:
    if row["epsilon"] == 0:
        return Cell(row[name], number(row[name]))
    return change(*_ratios(row, name))


def write_tuning_page(results: TuningResults, about: Mapping[str, Any], folder: Path) -> None:
    """report.html of a tuned radius."""
    sections = [Section("Cost and gain", [plot(results.chart()), frontier_table(results.rows)])]
    if len(results.rungs) > len(results.rows):
        sections.append(Section("Rung by rung", [frontier_table(results.rungs, "All rungs")]))
    if results.held_out is not None:
        sections.append(
            weighed_samples({"held-out rows": results.tables}, {"held-out rows": results.held_out})
        )
    page = Page(
        title="A radius for these data",
        subtitle=f"{len(results.rows)} arms at equal budget, {results.cost:g} runs in all{ran_on(folder)}",
        verdict=verdict(results),
        sections=[*sections, provenance_section(folder, about)],
    )
    write_page(page, folder / REPORT_FILE)
