"""What `solve`, `evaluate` and `compare` do with per-item results that klball did not score."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from klball.commands.certified import bounds_elsewhere, certified_elsewhere, record
from klball.commands.earlier import remove_evaluation
from klball.commands.labels import labelled, refuse_control
from klball.commands.options import refuse_ignored
from klball.commands.ratios import write_ratios
from klball.comparison.elsewhere import RoundsElsewhere, group_report
from klball.comparison.rounds import RoundScores, round_scores
from klball.files import write_csv, write_run
from klball.report.figures import plot_profiles
from klball.report.pages.elsewhere import item_lines, title_of, write_items_page
from klball.report.pages.evaluation import plain_lines, write_evaluation_page
from klball.report.pages.parts import counted, few_in_words, interval
from klball.report.pages.tables import write_report
from klball.scores.certified import certified_worst_case, limit, percent
from klball.scores.elsewhere.item_scores import ONE_ROUND, Scores
from klball.scores.elsewhere.reading import scores_by_column, scores_by_model, scores_from
from klball.scores.elsewhere.report import GROUP, ItemReport, coded, item_report
from klball.scores.elsewhere.source import listed
from klball.scores.kinds import are_scores
from klball.scores.measure import Measure
from klball.scores.own import refuse_other_answers
from klball.scores.parquet import score_files
from klball.scores.perplexity import robustness_report
from klball.scores.tables import read_scores
from klball.scores.tails import heaviest
from klball.terminal import MOST_ROWS, is_main, say, say_verdicts, show_table

COLUMNS = ("score", "id", "group", "round", "cluster", "lower_is_better")
OF_SEVERAL = ("model_column", "model_columns")
Certified = dict[tuple[str, float], float]
OwnTables = dict[tuple[str, str], tuple[Dataset, dict[str, Any]]]
SHOWN_RADII = (0.01, 0.05, 0.1, 0.2, 0.5, 1.0)


def columns_of(options: Any) -> dict[str, Any]:
    """The keywords of `scores_from`."""
    return {name: getattr(options, name) for name in COLUMNS}


def asks_for_columns(options: Any) -> bool:
    """Whether any of its options is given."""
    return any(value is not None for value in columns_of(options).values())


def own_tables(options: Any, paths: Mapping[str, str]) -> OwnTables | None:
    """(Model, round) → table and provenance, of klball's own tables by their ids and files; None for others.

    Raises ValueError for tables of different data.
    """
    asked = (options.id, options.round, options.model_column, options.model_columns or None)
    if any(column is not None for column in asked) or not all(map(are_scores, paths.values())):
        return None
    tables = {(m, r): read_scores(file) for m, path in paths.items() for r, file in _own_rounds(path).items()}
    for label in dict.fromkeys(r for _, r in tables):
        refuse_other_answers({m: table for (m, r), table in tables.items() if r == label})
    return tables


def _own_rounds(path: str) -> dict[str, str]:
    """Round → score table, called by its place in the folder; of one file "all"."""
    files = score_files(path)
    if len(files) == 1:
        return {ONE_ROUND: files[0]}
    return {str(Path(file).relative_to(path).with_suffix("")): file for file in files}


def read_models(options: Any) -> dict[str, Scores]:
    """The scores of every model; what was chosen unasked is said once for all that have it in common."""
    paths, columns = labelled(options.scores), columns_of(options)
    if options.model_columns:
        refuse_ignored(options, ("score", "model_column"), "with --model_columns")
        models = _columns_of_models(paths, labelled(options.model_columns), columns)
    elif options.model_column is not None:
        models = _by_column(paths, options.model_column, columns)
    else:
        models = {label: scores_from(path, **columns) for label, path in paths.items()}
    said: dict[str, list[str]] = {}
    for label, own in models.items():
        for note in own.notes:
            said.setdefault(note, []).append(label)
    for note, labels in said.items():
        say(f"{'' if len(labels) == len(models) else ', '.join(labels) + ': '}{note}")
    return models


def _columns_of_models(
    paths: Mapping[str, str], models: Mapping[str, str], columns: Mapping[str, Any]
) -> dict[str, Scores]:
    """The scores of models that have a column each, in one table."""
    table, *others = _unlabelled(paths, "--model_columns")
    if others:
        raise ValueError(f"--model_columns are of one table, not of {listed([table, *others])}")
    return scores_by_column(table, models, **{k: v for k, v in columns.items() if k != "score"})


def _unlabelled(paths: Mapping[str, str], option: str) -> list[str]:
    for label, path in paths.items():
        if label != path:
            raise ValueError(f"{label}={path}: with {option} models are called as there: give {path}")
    return list(paths)


def _by_column(paths: Mapping[str, str], column: str, columns: Mapping[str, Any]) -> dict[str, Scores]:
    """The scores of every model that a column of the files names."""
    models: dict[str, Scores] = {}
    for path in _unlabelled(paths, "--model_column"):
        found = scores_by_model(path, column, **columns)
        if twice := next(iter({*models} & {*found}), None):
            raise ValueError(f"{twice!r} of column {column} is in two of --scores: put them into one folder")
        models |= found
    refuse_control(models)
    return models


def lost(scores: RoundScores) -> str:
    """What left all models, for a sentence."""
    return ", ".join(f"{count} {why}" for why, count in scores.left_out.items() if count) or "none"


# --- solve --------------------------------------------------------------------------------------


def solve_elsewhere(
    options: Any,
) -> tuple[dict[str, Any], list[dict[str, Any]], tuple[dict[str, Any] | None, str]]:
    """Of one file: the solution in the source's own numbers, the top-weighted items, and what is certain."""
    read = scores_from(options.scores, **columns_of(options))
    scores = read.per_cluster()
    if not options.json:
        for note in scores.notes:
            say(note)
    solution = scores.solve(options.epsilon, options.max_weight)
    own = scores.measure.own
    mean = float(scores.values.mean())
    summary = {
        **{"score": scores.name, "unit": scores.measure.unit, "status": solution.status},
        **{"lambda_": solution.lambda_, "kl": solution.kl, "mean": own(mean)},
        **{"worst_case": own(solution.worst_case), "dual_value": own(solution.dual_value)},
        **{"gap": solution.gap, "ess": solution.ess, "n": len(scores), "rows_left_out": len(scores.lacking)},
    }
    values = [own(value) for value in scores.values.tolist()]
    top = heaviest(scores.sample_ids, solution.weights, values, scores.name, options.top)
    if options.json:
        summary["notes"] = list(scores.notes)
    if scores.groups is not None:
        summary["groups"] = _groups(scores, solution.weights)
    certified, sentence = certified_elsewhere(scores, options)
    return summary, top, (record(certified, scores.measure.loss), sentence)


def _groups(scores: Scores, weights: np.ndarray) -> list[dict[str, Any]]:
    """A row a group: items, mean score, share f, its weight q in the worst case, q/f."""
    names, of = coded(scores.groups or [])
    items = np.bincount(of)
    means, shares, sums = np.bincount(of, scores.values) / items, items / len(of), np.bincount(of, weights)
    columns = (names, items.tolist(), means.tolist(), shares.tolist(), sums.tolist())
    return [
        {"group": name, "items": n, "mean": scores.measure.own(mean), "f": f, "q": q, "q_f": q / f}
        for name, n, mean, f, q in zip(*columns, strict=True)
    ]


def show_solved(summary: dict[str, Any], title: str) -> None:
    """The groups' table and the answer in a sentence."""
    if groups := summary.get("groups"):
        header = ("group", "items", f"mean ({summary['unit']})", "share f", "weight q", "q/f")
        if len(groups) > MOST_ROWS:  # those that it is made of
            groups = sorted(groups, key=lambda row: -row["q_f"])
        body = [tuple(row.values()) for row in groups]
        show_table(f"groups in the worst case, {title}", header, body, "--json true prints them all")


# --- evaluate -----------------------------------------------------------------------------------


def evaluate_elsewhere(options: Any, prog: str) -> None:
    """`klball evaluate --scores`: means, tails, groups and worst cases of results that are there."""
    paths = labelled(options.scores)
    folder = Path(options.output_dir)
    own = own_tables(options, paths)
    if own is not None and not asks_for_columns(options) and all(Path(p).is_file() for p in paths.values()):
        refuse_ignored(options, ("confidence", "bounds"), "on log-likelihoods, which are in nats")
        tables = {label: table for (label, _), (table, _) in own.items()}
        reference = _reference(options, tables)
        if is_main():
            found = robustness_report({"scores": tables}, reference)
            remove_evaluation(folder, prog)
            write_run(folder, options, prog)
            say_verdicts(plain_lines(found))
            write_report(found, folder)
            write_ratios(found, folder)
            about = {label: told for (label, _), (_, told) in own.items()}
            write_evaluation_page(found, {"scores": tables}, {}, about, folder)
            say(f"everything is in {folder}")
        return
    models = read_models(options)
    reference = _reference(options, models)
    per_item = {label: own.per_item() for label, own in models.items()}
    aligned = round_scores(per_item)
    of_model = {label: aligned.log_likelihood[m, 0] for m, label in enumerate(aligned.models)}
    report = item_report(of_model, aligned.measure, reference, aligned.groups)
    least = _certified(of_model, aligned.measure, options)
    if not is_main():
        return
    remove_evaluation(folder, prog)
    write_run(folder, options, prog)
    write_csv(folder / "scores.csv", report.records())
    write_csv(folder / "profiles.csv", [_point(point, aligned, least) for point in report.profiles])
    plot_profiles(report.profiles, folder, aligned.measure)
    rounds = RoundsElsewhere(per_item)
    write_items_page(report, aligned, rounds, folder)
    say_verdicts(item_lines(report))
    show_items(report, aligned, least, options.confidence, folder)


def _reference(options: Any, models: Iterable[str]) -> str:
    labels = list(models)
    if options.reference not in (None, *labels):
        raise ValueError(f"--reference {options.reference!r} is not among the scores {listed(labels)}")
    return options.reference or labels[0]


def _certified(of_model: Mapping[str, np.ndarray], measure: Measure, options: Any) -> Certified:
    """Limits of the population's worst case by model and shown radius; none of scores without bounds."""
    bounds = bounds_elsewhere(measure, options)
    if bounds is None:
        refuse_ignored(
            options, ("confidence",), f"without --bounds: {measure.noun} has none that klball knows"
        )
        return {}
    return {
        (model, e): certified_worst_case(values, e, bounds, options.confidence).lower
        for model, values in of_model.items()
        for e in SHOWN_RADII
    }


def _point(point: Any, scores: RoundScores, least: Certified) -> dict[str, Any]:
    own, limit = scores.measure.own, least.get((point.model, point.epsilon))
    return {
        "model": point.model,
        "epsilon": point.epsilon,
        "worst_case": own(-point.robust_loss),
        **({"certified": "" if limit is None else own(limit)} if least else {}),
        "lambda": point.lambda_,
        "ess": point.ess,
    }


def show_items(
    report: ItemReport, scores: RoundScores, least: Certified, confidence: float, folder: Path
) -> None:
    """Values, differences to the reference, and the worst case of some radii."""
    models = list(dict.fromkeys(row["model"] for row in report.rows))
    unit, own = report.measure.title, report.measure.own
    n, better = len(scores.sample_ids), report.measure.better
    say(f"{counted(n, 'item')}; left out for all: {lost(scores)}; {better} is better")
    body = _cells(report, models, ("value", "low", "high"))
    rest = f"{folder / 'scores.csv'} has them all"
    show_table(f"{unit}: value [95 % interval]", ("mean of", "items", *models), body, rest)
    if report.has_tail and (few := few_in_words(n, "item")):
        say(few)
    others = [model for model in models if model != report.reference]
    if others:
        title = f"difference to {report.reference} on the same items, {unit}"
        show_table(title, ("mean of", "items", *others), _differences(report, others), rest)
    for k, base in enumerate(others[:-1]):  # every pair at once
        later = others[k + 1 :]
        of_model = {model: scores.log_likelihood[scores.models.index(model), 0] for model in (base, *later)}
        own_report = item_report(of_model, report.measure, base, scores.groups)
        left_out = title_of("hardest_1pct")  # base's own
        body = [row for row in _differences(own_report, later) if row[0] != left_out]
        title = f"difference to {base} on the same items, {unit}"
        show_table(title, ("mean of", "items", *later), body, f"--reference {base} writes them all")
    worst = {(p.model, p.epsilon): p for p in report.profiles}
    loss = report.measure.loss

    def of_population(model: str, e: float) -> tuple[str, ...]:
        shown = limit(own(least[model, e]), least=not loss) if least else ""
        return (f"{'≤' if loss else '≥'} {shown}",) if least else ()

    body = [
        (
            f"{e:g}",
            *(
                x
                for m in models
                for x in (own(-worst[m, e].robust_loss), *of_population(m, e), worst[m, e].ess)
            ),
        )
        for e in SHOWN_RADII
    ]
    more = [f"of the population, {percent(confidence)}"] if least else []
    header = ("ε", *(x for m in models for x in (m, *more, f"{m}: ESS")))
    show_table(f"worst-case {unit}, within ε nats of these items", header, body)
    say(f"everything is in {folder}")


def _differences(report: ItemReport, models: list[str]) -> list[tuple[Any, ...]]:
    """Of each model to the report's reference."""
    return _cells(report, models, ("difference", "difference_low", "difference_high"))


def _cells(report: ItemReport, models: list[str], keys: Sequence[str]) -> list[tuple[Any, ...]]:
    """A row a metric: its name, its items, and a number of each model with its interval."""
    return [
        (
            title_of(rows[0]["name"]),
            rows[0]["items"],
            *(str(interval(*(row[key] for key in keys))) for row in rows),
        )
        for rows in _by_name(report, models)
    ]


def show_groups(scores: RoundScores, folder: Path) -> None:
    """What a comparison adds where items have groups: means of each, and differences to the first model."""
    report = group_report(scores)
    if report is None:
        return
    write_csv(folder / "groups.csv", report.records())
    body = []
    for rows in _by_name(report, scores.models):
        of_models = [row["value"] for row in rows]
        differences = [
            interval(row["difference"], row["difference_low"], row["difference_high"]) for row in rows[1:]
        ]
        body.append((rows[0]["name"], rows[0]["items"], *of_models, *map(str, differences)))
    header = (*scores.models, *(f"{model} − {scores.models[0]}" for model in scores.models[1:]))
    title = f"groups, mean {scores.measure.title}; differences with 95 % intervals over these items"
    show_table(title, ("", "items", *header), body, f"{folder / 'groups.csv'} has them all")


def _by_name(report: ItemReport, models: list[str]) -> list[list[dict[str, Any]]]:
    """The models' rows of every name; many groups with the worst ones first, whoever is bad at them."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in report.rows:
        if row["model"] in models:
            found.setdefault(row["name"], []).append(row)
    if len(found) <= MOST_ROWS:
        return list(found.values())
    sign = -1 if report.measure.loss else 1

    def worst(rows: list[dict[str, Any]]) -> tuple[bool, float]:
        grouped = rows[0]["name"].startswith(GROUP)
        return grouped, min(sign * row["value"] for row in rows) if grouped else 0.0

    return sorted(found.values(), key=worst)
