"""The study of a radius from its first rung to its report."""

from collections.abc import Sequence
from typing import Any

from klball.files import write_csv, write_json
from klball.report.figures import draw
from klball.report.page import Table
from klball.report.pages.parts import counted
from klball.report.pages.tuning import TuningResults, frontier_table, verdict, write_tuning_page
from klball.scores.frontier import MEASURES, groups_judged
from klball.scores.own import usable
from klball.scores.tails import CVAR, LEAST, tail_size
from klball.studies.arms import provenance_of
from klball.studies.tuning import (
    BASE,
    HELD_OUT,
    TEST,
    Arm,
    Study,
    compared,
    groups_in,
    refuse_unusable,
    rungs,
    scored,
    whole,
)
from klball.studies.tuning_choice import Rung, chosen, cost_of, gains, is_affordable, rungs_of
from klball.terminal import is_main, say, show_table
from klball.training.samples import groups_of


def tune(study: Study) -> TuningResults:
    """Train, compare and choose; tables after every rung, and at the end all files."""
    refuse_useless_groups(study)
    refuse_unusable(study)
    if is_main():
        say(plan(study))
    found: list[list[dict[str, Any]]] = []
    for rows in rungs(study):
        found.append(rows)
        _show(frontier_table(rows), f"against ε = 0, both at {100 * rows[0]['share']:g} % of their steps")
        if is_main():
            write_csv(study.folder / "rungs.csv", _columns([row for rung in found for row in rung]))
    results = _results(study, found)
    if is_main():
        _write(study, results)
    return results


def refuse_useless_groups(study: Study) -> None:
    """Raise ValueError without the column of the groups, or where none has held-out rows enough."""
    column = study.config.group_column
    for part, rows in (("train on", study.train), ("choose by", study.held_out)):
        try:
            groups_of(rows, column)
        except ValueError as error:
            raise ValueError(f"rows to {part}: {error}") from None
    if column is not None and not groups_judged(groups_in(study.held_out, study)):
        raise ValueError(
            f"no group of {column!r} has 10 held-out rows to be judged by: hold out more with "
            "--eval_fraction, or give more rows to choose by"
        )


def plan(study: Study) -> str:
    """What will be trained, and what it costs in whole runs."""
    steps = rungs_of(len(study.arms) - 1, study.halving)
    parts = [f"{1 + rung.challengers} {_until(rung)}" for rung in steps]
    whole = f" (with --halving false {len(study.arms)})" if len(steps) > 1 else ""
    worst = tail_size(CVAR, len(study.held_out))
    few = f". The worst 5 % of those held out are {counted(worst)}: no gain on so few can be told from noise"
    few = few if study.tail == "cvar" and worst < LEAST else ""
    return (
        f"{len(study.arms)} arms on {len(study.train)} rows, compared on {len(study.held_out)} held out: "
        f"{', '.join(parts)}; {cost_of(steps):g} runs in all{whole}, and arms with ε > 0 score their rows "
        f"again as they train{few}"
    )


def _until(rung: Rung) -> str:
    return "to the end" if rung.share == 1 else f"to {100 * rung.share:g} % of the steps"


def _results(study: Study, found: Sequence[list[dict[str, Any]]]) -> TuningResults:
    last = {row["arm"]: row for rows in found for row in rows}
    best = chosen(found[-1][1:], study.tail, study.max_cost)
    others = [row for row in last.values() if row["epsilon"] > 0]
    met = [row for row in others if is_affordable(row, study.max_cost) and gains(row, study.tail)]
    arm = study.arms[0] if best is None else _named(study, best["arm"])
    pair = dict.fromkeys((study.arms[0].label, arm.label))
    places = {label: whole(study, _named(study, label)) for label in pair}
    tables = {label: scored(study, *place, HELD_OUT) for label, place in places.items()}
    judged = groups_judged(groups_in(study.held_out, study, usable(tables[arm.label])))
    return TuningResults(
        rows=list(last.values()),
        rungs=[row for rows in found for row in rows],
        chosen=best,
        missed=[row for row in met if row["share"] < 1] if best is None else [],
        tail=study.tail,
        max_cost=study.max_cost,
        cost=cost_of(rungs_of(len(study.arms) - 1, study.halving)),
        model=str(study.place_of(arm)),
        unjudged=sorted({*groups_in(study.held_out, study)} - {*judged}),
        test=None if study.test is None or best is None else _tested(study, places),
        tables=tables,
        held_out=study.held_out,
    )


def _named(study: Study, label: str) -> Arm:
    return next(arm for arm in study.arms if arm.label == label)


def _tested(study: Study, places: dict[str, tuple[str, str]]) -> dict[str, Any]:
    """The chosen arm against ε = 0 on the test rows."""
    assert study.test is not None
    base = scored(study, str(study.model.model_name_or_path), BASE, TEST)
    tables = {label: scored(study, *place, TEST) for label, place in places.items()}
    row = compared(study, tables, base, study.test)[-1]
    return {"arm": [*places][-1], "share": 1.0, **row}


def _columns(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of equal keys, for a file."""
    names = dict.fromkeys(name for row in rows for name in row)
    return [{name: row.get(name) for name in names} for row in rows]


def _show(table: Table, title: str) -> None:
    body = [[str(row[name]) for name in table.headings()] for row in table.rows]
    show_table(title, [*table.headings().values()], body)


def _write(study: Study, results: TuningResults) -> None:
    folder = study.folder
    write_csv(folder / "frontier.csv", _columns(list(map(dict, results.rows))))
    (folder / "test.csv").unlink(missing_ok=True)  # of another choice
    if results.test is not None:
        write_csv(folder / "test.csv", [dict(results.test)])
    draw(folder / "figures" / "frontier", results.chart())
    arm = study.arms[0] if results.chosen is None else _named(study, results.chosen["arm"])
    row = results.chosen or results.rows[0]
    choice = {
        **{"arm": arm.label, "model": results.model, "settings": arm.settings, "runs": results.cost},
        **{name: None if row[name] != row[name] else row[name] for name in row if name.startswith(MEASURES)},
        **{"tail": results.tail, "max_cost": results.max_cost},
    }
    write_json(folder / "choice.json", choice)  # which has no NaN
    table = frontier_table(results.rows)
    _show(table, "every arm where it stopped, against ε = 0 there")
    for sentence in (table.note, *verdict(results)):
        say(sentence)
    write_tuning_page(results, provenance_of(folder), folder)
