"""The robustness experiment: what robust fine-tuning costs and buys.

Base model, SFT (ε = 0), robust SFT at each radius and variants of it, at equal budget; perplexity on the
whole test set, on its hardest 1 % (chosen by the base model), on each model's own worst 5 % and worst group,
and out of domain, over training and by ε.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from torch import Tensor

from klball.data.ids import group_names
from klball.files import write_csv
from klball.report.charts import curve_chart, radius_chart
from klball.report.figures import draw
from klball.report.pages.parts import BASE, counted
from klball.report.pages.reproduction import write_robustness_page
from klball.report.pages.tables import tails_in_order, write_report
from klball.scores.perplexity import RESAMPLES, RobustnessReport, decided_by, robustness_report
from klball.shown import in_words
from klball.studies.arms import (
    Arm,
    Options,
    Tables,
    data_of,
    provenance_of,
    refuse_unusable,
    run_arm,
    score_model,
)
from klball.studies.head_to_head import LOWER
from klball.studies.jobs import others_have_arms
from klball.studies.summary import Measures, finals_of, summarise
from klball.terminal import is_main, show_table

MEASURES = {  # column → (data set, metric of the report, title)
    "whole": ("test", "perplexity_sample", "Perplexity on the whole test set"),
    "hardest_1pct": ("test", "hardest_1pct", "Perplexity on the hardest 1 % (of the base)"),
    "worst_5pct": ("test", "worst_5pct", "Perplexity on the worst 5 % (CVaR, its own)"),
    "out_of_domain": ("ood", "perplexity_sample", "Perplexity out of domain"),
}
VARIANTS: dict[str, tuple[str, Callable[[str], dict[str, Any]]]] = {  # kind → label, settings of its value
    "optimistic": ("optimistic", lambda _: {"direction": "optimistic"}),
    "cap": ("at most {} times", lambda value: {"max_weight": float(value)}),
    "trim": ("hardest {} left out", lambda value: {"trim": float(value)}),
    "group": ("over {}", lambda value: {"group_column": value}),
}
Groups = Mapping[str, Sequence[str | int]]  # data set → the group of every row
WORST_GROUP = ("test", "worst_group", "Perplexity on each model's own worst group")


def run(options: Options, folder: Path) -> Iterator[int]:
    """Train and score what is not there yet; report after every seed, and yield it."""
    data = data_of(options)
    arms = arms_of(options)
    groups = _groups(options, data)
    refuse_unusable(arms, data["train"], folder, options)
    start: dict[str, Tensor] = {}
    if others_have_arms(arms, data, folder, options, start):
        return
    tables = {0: {BASE: score_model(options.model_name_or_path, BASE, data, folder, options)}}
    curves: list[dict[str, Any]] = []
    for seed in range(options.seeds):
        tables.setdefault(seed, {})[BASE] = tables[0][BASE]
        for arm in arms:
            if seed == 0:
                _show_so_far(tables[0], groups)
            tables[seed][arm.label], points = run_arm(arm, seed, data, folder, options, start)
            curves += points
        reached = {s: t for s, t in tables.items() if s <= seed}
        _report(reached, curves, arms, data, groups, folder)
        yield seed


def _show_so_far(of_model: dict[str, Tables], groups: Groups) -> None:
    """The models scored already, while the next one trains: no intervals yet."""
    report = _report_of(of_model, groups, resamples=1)
    measures = measures_of(report)
    values = {
        model: [report.value(data, model, metric).value for data, metric, _ in measures.values()]
        for model in of_model
    }
    show_table(
        "perplexity so far",
        ("model", *map(in_words, measures)),
        [(model, *row) for model, row in values.items()],
    )


def measures_of(report: RobustnessReport) -> Measures:
    """The measures with the rows of their tails, the worst 5 % before the hardest 1 % where those are few."""
    kept = report.rows["test"]["kept"]
    grouped = any(metric.name == "worst_group" for metric in report.metrics)
    known = {**MEASURES, "worst_group": WORST_GROUP} if grouped else MEASURES
    titles = tails_in_order({column: title for column, (_, _, title) in known.items()}, kept)
    found = {}
    for column, title in titles.items():
        data, metric, _ = known[column]
        rows = decided_by(metric, kept)
        of_tail = f": {counted(rows)}" if data == "test" and rows < kept else ""
        found[column] = (data, metric, title + of_tail)
    return found


def _groups(options: Options, data: dict[str, Dataset]) -> Groups:
    """The groups of the test rows, by the column that a variant names; none without one."""
    columns = [value for kind, value in map(_parted, options.variants) if kind == "group"]
    if len({*columns}) > 1:
        raise ValueError(f"--variants: groups of one column at a time, not {' and '.join(columns)}")
    return {"test": group_names(data["test"], columns[0])} if columns else {}


def arms_of(options: Options) -> list[Arm]:
    """SFT and every radius, live and, where asked for, static; then the variants."""
    kinds = ["live", "static"] if options.static else ["live"]
    arms = []
    for epsilon in options.epsilons:
        name = "SFT (ε = 0)" if epsilon == 0 else f"ε = {epsilon:g}"
        for kind in kinds if epsilon > 0 else ["live"]:
            suffix = ("", "") if kind == "live" else (", static", "-static")
            settings = {"epsilon": epsilon, "reweight": kind}
            arms.append(Arm(name + suffix[0], f"eps-{epsilon:g}{suffix[1]}", settings))
    arms += [_variant(text, options) for text in options.variants]
    return arms


def _variant(text: str, options: Options) -> Arm:
    """One more arm, at the middle radius. Raises ValueError for one that is not known or lacks a radius."""
    kind, value = _parted(text)
    if kind == "lower" and not value:
        settings = {"epsilon": 0.0, "learning_rate": options.learning_rate / LOWER}
        return Arm(f"SFT, lr/{LOWER}", "lower", settings, variant=True)
    radii = sorted(epsilon for epsilon in options.epsilons if epsilon > 0)
    if kind not in VARIANTS or bool(value) == (kind == "optimistic"):
        raise ValueError(
            f"--variants {text!r} is not one of lower, optimistic, cap=NUMBER, trim=SHARE, group=COLUMN"
        )
    if not radii:
        raise ValueError(f"--variants {text} needs a radius above 0 among --epsilons")
    epsilon = radii[len(radii) // 2]
    title, settings_of = VARIANTS[kind]
    try:
        settings = {"epsilon": epsilon, **settings_of(value)}
    except ValueError:
        raise ValueError(f"--variants {text!r}: {value!r} is not a number") from None
    label, folder = f"ε = {epsilon:g}, {title.format(value)}", f"eps-{epsilon:g}-{text.replace('=', '-')}"
    return Arm(label, folder, settings, variant=True)


def _parted(text: str) -> tuple[str, str]:
    kind, _, value = text.partition("=")
    return kind, value


def _report(
    tables: dict[int, dict[str, Tables]],
    curves: list[dict[str, Any]],
    arms: list[Arm],
    data: dict[str, Dataset],
    groups: Groups,
    folder: Path,
) -> None:
    if not is_main():
        return
    reports = {seed: _report_of(of_model, groups) for seed, of_model in tables.items()}
    write_report(reports[0], folder)
    measures = measures_of(reports[0])
    finals = finals_of(reports, arms, measures, BASE)
    rows = summarise(finals, reports, arms, measures, BASE)
    write_csv(folder / "finals.csv", finals)
    write_csv(folder / "summary.csv", [{k: v for k, v in row.items() if "text" not in k} for row in rows])
    points = [_curve_point(point, tables[0][BASE], groups) for point in curves]
    start = next(row for row in finals if row["arm"] == BASE)
    variants = {arm.label for arm in arms if arm.variant}
    seeds = range(len(reports))
    points += [{**start, "arm": arm.label, "seed": seed, "step": 0} for arm in arms for seed in seeds]
    write_csv(folder / "curves.csv", [{k: p[k] for k in ("arm", "seed", "step", *measures)} for p in points])
    shown = [point for point in points if point["arm"] not in variants]
    charts = {column: curve_chart(title, shown, column) for column, (_, _, title) in measures.items()}
    for column, chart in charts.items():
        draw(folder / "figures" / column, chart, radius_chart(finals, column))
    header = ("arm", *map(in_words, measures))
    body = [(row["arm"], *(row[f"{column}_text"] for column in measures)) for row in rows]
    of_seeds = "one seed (change against ε = 0)"
    if len(reports) > 1:
        of_seeds = f"{len(reports)} seeds: mean ± sd over them (change against ε = 0 [95 % interval])"
    show_table(f"Perplexity, {of_seeds}", header, body)
    write_robustness_page(
        *(rows, finals, list(charts.values()), {column: title for column, (_, _, title) in measures.items()}),
        *(reports[0], _by_data(tables[0]), data),
        *(provenance_of(folder), folder),
    )


def _by_data(of_model: dict[str, Tables]) -> dict[str, dict[str, Dataset]]:
    return {data: {model: tables[data] for model, tables in of_model.items()} for data in ("test", "ood")}


def _report_of(of_model: dict[str, Tables], groups: Groups, resamples: int = RESAMPLES) -> Any:
    return robustness_report(_by_data(of_model), BASE, resamples, groups)


def _curve_point(point: dict[str, Any], base: Tables, groups: Groups) -> dict[str, Any]:
    report = _report_of({BASE: base, "point": point["tables"]}, groups, 1)  # only values matter here
    values = {
        column: report.value(data, "point", metric).value
        for column, (data, metric, _) in measures_of(report).items()
    }
    return {"arm": point["arm"], "seed": point["seed"], "step": point["step"], **values}
