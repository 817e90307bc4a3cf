"""The experiment's table: every arm's measures over seeds, and their ratios to SFT with intervals."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from klball.report.pages.parts import too_few
from klball.scores.perplexity import RobustnessReport, decided_by
from klball.scores.tails import LEAST, mean_interval
from klball.studies.arms import Arm

Measures = dict[str, tuple[str, str, str]]


def finals_of(
    reports: dict[int, RobustnessReport], arms: Sequence[Arm], measures: Measures, base: str
) -> list[dict[str, Any]]:
    """One row per seed and arm with every measure at the end of training; the base model once."""
    rows = [_row(reports[0], base, 0, None, "base", measures)]
    for seed, report in reports.items():
        rows += [_row(report, arm.label, seed, arm.epsilon, arm.kind, measures) for arm in arms]
    return rows


def _row(
    report: RobustnessReport, model: str, seed: int, epsilon: float | None, kind: str, measures: Measures
) -> dict[str, Any]:
    values = {
        column: report.value(data, model, metric).value for column, (data, metric, _) in measures.items()
    }
    return {"arm": model, "seed": seed, "epsilon": epsilon, "kind": kind, **values}


def summarise(
    finals: Sequence[dict[str, Any]],
    reports: dict[int, RobustnessReport],
    arms: Sequence[Arm],
    measures: Measures,
    base: str,
) -> list[dict[str, Any]]:
    """Mean and spread over seeds, and the ratio to ε = 0 with a 95 % interval.

    With several seeds the interval is a t interval of the paired log ratios over seeds; with one seed
    there is none, and the text says so.
    """
    plain = next((arm.label for arm in arms if arm.epsilon == 0 and not arm.variant), None)
    kept = reports[min(reports)].rows
    decided = {
        column: decided_by(metric, kept[data]["kept"]) for column, (data, metric, _) in measures.items()
    }
    over_seeds = {row["arm"]: row for row in means(finals, ("arm",), [*measures])}
    rows = []
    for name in (base, *(arm.label for arm in arms)):
        row: dict[str, Any] = {"arm": name}
        for column in measures:
            row |= {part: over_seeds[name][part] for part in (column, f"{column}_sd")}
            values, ratio = _values(finals, name, column), None
            if plain is not None and name not in (base, plain):
                ratio = ratio_interval(values, _values(finals, plain, column))
                if decided[column] < LEAST:
                    ratio = (ratio[0], math.nan, math.nan)
            for part, value in zip(("", "_low", "_high"), ratio or (math.nan,) * 3, strict=True):
                row[f"{column}_ratio{part}"] = value
            row[f"{column}_text"] = _text(
                row[column], row[f"{column}_sd"], len(values), ratio, decided[column]
            )
        rows.append(row)
    return rows


def ratio_interval(values: np.ndarray, reference: np.ndarray) -> tuple[float, float, float]:
    """exp of the mean paired log ratio over seeds with its 95 % t interval; NaN bounds for one seed."""
    logs = np.log(values / reference)
    low, high = np.exp(mean_interval(logs, least=2))
    return float(np.exp(logs.mean())), float(low), float(high)


def _values(finals: Sequence[dict[str, Any]], name: str, column: str) -> np.ndarray:
    return np.array([row[column] for row in finals if row["arm"] == name])


def _text(mean: float, sd: float, seeds: int, ratio: tuple[float, float, float] | None, rows: int) -> str:
    text = f"{mean:.2f}" + (f" ± {sd:.2f}" if seeds > 1 else "")
    if ratio is None:
        return text
    percent = [f"{100 * (part - 1):+.1f}" for part in ratio]
    interval = f" [{percent[1]}, {percent[2]}]" if not math.isnan(ratio[1]) else too_few(rows)
    return f"{text}\n{percent[0]} %{interval}"


def means(
    rows: Sequence[dict[str, Any]], keys: Sequence[str], measures: Sequence[str]
) -> list[dict[str, Any]]:
    """By `keys`, the mean of every measure over the rows, and its standard deviation as `_sd`, 0 for one."""
    found = []
    for key in dict.fromkeys(tuple(row[k] for k in keys) for row in rows):
        own = [row for row in rows if tuple(row[k] for k in keys) == key]
        made: dict[str, Any] = dict(zip(keys, key, strict=True))
        for name in measures:
            values = np.array([row[name] for row in own], dtype=float)
            made[name] = float(values.mean())
            made[f"{name}_sd"] = float(values.std(ddof=1)) if len(values) > 1 else 0.0
        found.append(made)
    return found
