"""The robustness experiment: what robust fine-tuning costs and buys.

Base model, SFT (ε = 0) and robust SFT at each radius, at equal budget; perplexity on the whole test set, on
its hardest 1 % (chosen by the base model), on the worst 5 % of each, and out of domain, over training and by
ε.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset

from klball.files import write_csv
from klball.report.charts import curve_chart, radius_chart
from klball.report.figures import draw
from klball.report.pages.parts import BASE, counted
from klball.report.pages.reproduction import write_robustness_page
from klball.report.pages.tables import tails_in_order, write_report
from klball.scores.perplexity import RESAMPLES, RobustnessReport, decided_by, robustness_report
from klball.studies.arms import Arm, Options, Tables, data_of, provenance_of, run_arm, score_model
from klball.studies.summary import Measures, finals_of, summarise
from klball.terminal import is_main, show_table

MEASURES = {  # column → (data set, metric of the report, title)
    "whole": ("test", "perplexity_sample", "Perplexity on the whole test set"),
    "hardest_1pct": ("test", "hardest_1pct", "Perplexity on the hardest 1 % (chosen by the base model)"),
    "worst_5pct": ("test", "worst_5pct", "Perplexity on the worst 5 % (CVaR, each model's own)"),
    "out_of_domain": ("ood", "perplexity_sample", "Perplexity out of domain"),
}


def run(options: Options, folder: Path) -> Iterator[int]:
    """Train and score what is not there yet; report after every seed, and yield it."""
    data = data_of(options)
    arms = arms_of(options)
    tables = {0: {BASE: score_model(options.model_name_or_path, BASE, data, folder, options)}}
    curves: list[dict[str, Any]] = []
    for seed in range(options.seeds):
        tables.setdefault(seed, {})[BASE] = tables[0][BASE]
        for arm in arms:
            if seed == 0:
                _show_so_far(tables[0])
            tables[seed][arm.label], points = run_arm(arm, seed, data, folder, options)
            curves += points
        reached = {s: t for s, t in tables.items() if s <= seed}
        _report(reached, curves, arms, data, folder)
        yield seed


def _show_so_far(of_model: dict[str, Tables]) -> None:
    """The models scored already, while the next one trains: no intervals yet."""
    report = _report_of(of_model, resamples=1)
    measures = measures_of(report)
    values = {
        model: [report.value(data, model, metric).value for data, metric, _ in measures.values()]
        for model in of_model
    }
    show_table("perplexity so far", ("model", *measures), [(model, *row) for model, row in values.items()])


def measures_of(report: RobustnessReport) -> Measures:
    """The measures with the rows of their tails, the worst 5 % before the hardest 1 % where those are few."""
    kept = report.rows["test"]["kept"]
    titles = tails_in_order({column: title for column, (_, _, title) in MEASURES.items()}, kept)
    found = {}
    for column, title in titles.items():
        data, metric, _ = MEASURES[column]
        rows = decided_by(metric, kept)
        of_tail = f": {counted(rows)}" if data == "test" and rows < kept else ""
        found[column] = (data, metric, title + of_tail)
    return found


def arms_of(options: Options) -> list[Arm]:
    """SFT and every radius, live and, where asked for, static."""
    kinds = ["live", "static"] if options.static else ["live"]
    arms = []
    for epsilon in options.epsilons:
        name = "SFT (ε = 0)" if epsilon == 0 else f"ε = {epsilon:g}"
        for kind in kinds if epsilon > 0 else ["live"]:
            suffix = ("", "") if kind == "live" else (", static", "-static")
            settings = {"epsilon": epsilon, "reweight": kind}
            arms.append(Arm(name + suffix[0], f"eps-{epsilon:g}{suffix[1]}", settings))
    return arms


def _report(
    tables: dict[int, dict[str, Tables]],
    curves: list[dict[str, Any]],
    arms: list[Arm],
    data: dict[str, Dataset],
    folder: Path,
) -> None:
    if not is_main():
        return
    reports = {seed: _report_of(of_model) for seed, of_model in tables.items()}
    write_report(reports[0], folder)
    measures = measures_of(reports[0])
    finals = finals_of(reports, arms, measures, BASE)
    rows = summarise(finals, reports, arms, measures, BASE)
    write_csv(folder / "finals.csv", finals)
    write_csv(folder / "summary.csv", [{k: v for k, v in row.items() if "text" not in k} for row in rows])
    points = [_curve_point(point, tables[0][BASE]) for point in curves]
    start = next(row for row in finals if row["arm"] == BASE)
    seeds = range(len(reports))
    points += [{**start, "arm": arm.label, "seed": seed, "step": 0} for arm in arms for seed in seeds]
    write_csv(folder / "curves.csv", [{k: p[k] for k in ("arm", "seed", "step", *measures)} for p in points])
    charts = {column: curve_chart(title, points, column) for column, (_, _, title) in measures.items()}
    for column, chart in charts.items():
        draw(folder / "figures" / column, chart, radius_chart(finals, column))
    header = ("arm", *(column.replace("_", " ") for column in measures))
    body = [(row["arm"], *(row[f"{column}_text"] for column in measures)) for row in rows]
    title = f"Perplexity, {len(reports)} seed(s): mean ± sd over seeds (change against ε = 0 [95 % interval])"
    show_table(title, header, body)
    write_robustness_page(
        *(rows, finals, list(charts.values()), {column: title for column, (_, _, title) in measures.items()}),
        *(reports[0], _by_data(tables[0]), data),
        *(provenance_of(folder), folder),
    )


def _by_data(of_model: dict[str, Tables]) -> dict[str, dict[str, Dataset]]:
    return {data: {model: tables[data] for model, tables in of_model.items()} for data in ("test", "ood")}


def _report_of(of_model: dict[str, Tables], resamples: int = RESAMPLES) -> Any:
    return robustness_report(_by_data(of_model), BASE, resamples)


def _curve_point(point: dict[str, Any], base: Tables) -> dict[str, Any]:
    report = _report_of({BASE: base, "point": point["tables"]}, resamples=1)  # only values matter here
    values = {
        column: report.value(data, "point", metric).value for column, (data, metric, _) in MEASURES.items()
    }
    return {"arm": point["arm"], "seed": point["seed"], "step": point["step"], **values}
