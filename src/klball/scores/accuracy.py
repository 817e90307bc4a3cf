"""Pair tables → accuracy and loss: on everything, on the hardest 1 %, by group, at the worst in a ball."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset

from klball.adversary.dual import robust_profile
from klball.scores.certified import certified_worst_case
from klball.scores.paired import LOSS, Parts, differences
from klball.scores.paired import WORST as WORST_ROWS
from klball.scores.perplexity import RADII
from klball.scores.tails import CVAR, cvar, few_hardest, hardest, own_mean_interval, own_tail, tail_size

METRICS = ("accuracy", LOSS)
WORST = 0.05  # nats, of the worst case that is reported beside the profile

Columns = dict[str, np.ndarray]


def columns_of(table: Dataset) -> tuple[Columns, int]:
    """loss, margin, accuracy (½ for a tie) and group of the scored pairs, and how many are not scored."""
    rows = table.data.table
    kept = rows.filter(rows["loss"].is_valid())
    if not len(kept):
        raise ValueError("the pair table has no pair with a loss: nothing to evaluate")
    numbers = {name: kept[name].to_numpy().astype(float) for name in ("loss", "margin")}
    for name, values in numbers.items():
        if (bad := np.flatnonzero(~np.isfinite(values))).size:
            sample = kept["sample_id"][int(bad[0])].as_py()
            raise ValueError(f"the pair {sample!r} has the {name} {values[bad[0]]}: not a finite number")
    margin = numbers["margin"]
    columns: Columns = {
        "sample_id": np.array(kept["sample_id"].to_pylist()),
        **numbers,
        "accuracy": np.where(margin == 0, 0.5, margin > 0),
        "group": np.array(
            [None if name is None else str(name) for name in kept["group"].to_pylist()], dtype=object
        ),
    }
    return columns, len(rows) - len(kept)


def columns_in_common(tables: Mapping[str, Dataset]) -> tuple[dict[str, Columns], dict[str, int]]:
    """`columns_of` every table, of the pairs that all have a loss of, and how many each has none of.

    Raises ValueError for tables of other pairs, or with other groups.
    """
    first = next(iter(tables))
    for name, what in (
        ("sample_id", "are of other pairs: score the same rows"),
        ("group", "have other groups"),
    ):
        for label, table in tables.items():
            if table[name][:] != tables[first][name][:]:
                raise ValueError(f"the pair tables of {first!r} and {label!r} {what}")
    found = {label: columns_of(table) for label, table in tables.items()}
    scored = [np.array(table.data.table["loss"].is_valid()) for table in tables.values()]
    everywhere = np.logical_and.reduce(scored)
    if not everywhere.any():
        raise ValueError("no pair has a loss in every table: nothing to compare")
    columns = {
        label: {name: values[everywhere[own]] for name, values in columns.items()}
        for own, (label, (columns, _)) in zip(scored, found.items(), strict=True)
    }
    return columns, {label: lost for label, (_, lost) in found.items()}


def pair_report(
    columns: Columns, reference: Columns | None = None, confidence: float = 0.95
) -> list[dict[str, Any]]:
    """Rows metric, part, pairs, value, low, high (95 % intervals of means), certified; NaN for none.

    part: "all", "worst 5 %" (CVaR, of its own losses), "hardest 1 %" (by the reference's losses, or its own),
    the former first where the latter are few, "group NAME", "worst ε". Sources of
    the worst case: the loss over the pairs, the accuracy over them. certified: the bound of
    `certified_worst_case` on the accuracy.
    """
    n, rows = len(columns["loss"]), []
    for metric in METRICS:
        for part, chosen in _parts(columns, reference or columns).items():
            if chosen is not None:
                values = columns[metric][chosen].astype(float)
                rows.append(_row(metric, part, len(values), float(values.mean()), *own_mean_interval(values)))
            elif metric == LOSS:
                rows.append(_worst(columns["loss"]))
    profile = robust_profile(-columns["loss"], RADII)
    for epsilon, loss in zip(profile.epsilon, profile.robust_loss, strict=True):
        rows.append(_row("loss", f"worst ε = {epsilon:g}", n, float(loss)))
        found = certified_worst_case(columns["accuracy"], epsilon, confidence=confidence)
        worst = _row("accuracy", f"worst ε = {epsilon:g}", n, found.worst_case)
        rows.append({**worst, "certified": found.lower})
    return rows


def pair_differences(columns: Mapping[str, Columns], reference: str) -> list[dict[str, Any]]:
    """`klball.scores.paired.differences` of accuracy and loss, of all models on the same pairs."""
    values = {
        label: {metric: own[metric].astype(float) for metric in METRICS} for label, own in columns.items()
    }
    return differences(values, _parts(columns[reference], columns[reference]), "pairs")


def _parts(columns: Columns, chooser: Columns) -> Parts:
    """Those of `pair_report`, in its order."""
    n = len(columns["loss"])
    tails: dict[str, np.ndarray | None] = {"hardest 1 %": hardest(-chooser["loss"]), WORST_ROWS: None}
    if few_hardest(n):
        tails = dict(reversed(tails.items()))
    groups = {name for name in columns["group"].tolist() if name is not None}
    of_groups = {f"group {name}": np.flatnonzero(columns["group"] == name) for name in sorted(groups)}
    return {"all": np.arange(n), **tails, **of_groups}


def _worst(loss: np.ndarray) -> dict[str, Any]:
    """The mean of the largest losses."""
    value = cvar(loss, CVAR)
    return _row("loss", WORST_ROWS, tail_size(CVAR, len(loss)), value, *own_tail(loss, CVAR, value))


def _row(
    metric: str, part: str, pairs: int, value: float, low: float = math.nan, high: float = math.nan
) -> dict[str, Any]:
    numbers = {"value": value, "low": low, "high": high, "certified": math.nan}
    return {"metric": metric, "part": part, "pairs": pairs, **numbers}


def value_of(rows: Sequence[dict[str, Any]], metric: str, part: str) -> float:
    """One number of `pair_report`."""
    return next(row["value"] for row in rows if (row["metric"], row["part"]) == (metric, part))


def worst_group(rows: Sequence[dict[str, Any]]) -> float:
    """The least accuracy of a group; NaN without groups."""
    of_groups = (r["value"] for r in rows if r["metric"] == "accuracy" and r["part"].startswith("group "))
    return min(of_groups, default=math.nan)
