"""What a radius costs on the mean and buys in the tail: one model against another on the same rows."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from klball.scores.perplexity import exp_or_inf
from klball.scores.tails import CVAR, cvar, mean_interval, paired_cvar, paired_interval

FEW_IN_GROUP = 10  # rows: the mean of fewer says little of a group
MEASURES = ("mean", "cvar", "hardest_1pct", "worst_group")

Numbers = tuple[float, float, float, float]  # log of the value, of its ratio, and of the ratio's bounds


def frontier_row(
    loss: np.ndarray, plain: np.ndarray, hard: np.ndarray, groups: Sequence[str] | None = None
) -> dict[str, Any]:
    """The measures of a model with losses [n], and their ratios to those of `plain`, paired, 95 % intervals.

    All are perplexities, exp of a mean loss: `mean` of all rows; `cvar`, each model's own worst 5 %;
    `hardest_1pct`, the rows `hard`, chosen by a third model; `worst_group`, the group with the largest mean,
    each model's own, among those of at least 10 rows. Columns NAME, NAME_ratio, NAME_low and NAME_high; NaN
    where there is none.
    """
    found: dict[str, Numbers] = {
        "mean": _of_mean(loss, plain),
        "cvar": _of_tail(loss, plain),
        "hardest_1pct": _of_mean(loss[hard], plain[hard]),
    }
    row: dict[str, Any] = {}
    if groups is not None:
        found["worst_group"], row["group"] = _of_groups(loss, plain, groups)
    for name, numbers in found.items():
        parts = ("", "_ratio", "_low", "_high")
        row |= {f"{name}{part}": exp_or_inf(x) for part, x in zip(parts, numbers, strict=True)}
    return row


def _of_mean(loss: np.ndarray, plain: np.ndarray) -> Numbers:
    difference = loss - plain
    return float(loss.mean()), float(difference.mean()), *mean_interval(difference)


def _of_tail(loss: np.ndarray, plain: np.ndarray) -> Numbers:
    difference, effect = paired_cvar(loss, plain, CVAR)
    return cvar(loss, CVAR), difference, *paired_interval(effect, CVAR, difference)


def _of_groups(loss: np.ndarray, plain: np.ndarray, groups: Sequence[str]) -> tuple[Numbers, str]:
    """The worst groups of the two models may be two: the rows of both decide."""
    names = np.array(groups)
    judged = groups_judged(groups)
    if not judged:
        return (math.nan, math.nan, math.nan, math.nan), ""
    value, worst, own = _worst(loss, names, judged)
    before, other_worst, other = _worst(plain, names, judged)
    least = min(int((names == name).sum()) for name in (worst, other_worst))
    bounds = paired_interval(own - other, least / len(loss), value - before)
    return (value, value - before, *bounds), worst


def _worst(loss: np.ndarray, names: np.ndarray, judged: Sequence[str]) -> tuple[float, str, np.ndarray]:
    """The largest mean of a group, its name, and the influence of every row on that mean."""
    means = {name: float(loss[names == name].mean()) for name in judged}
    worst = max(judged, key=lambda name: means[name])
    inside = names == worst
    return means[worst], worst, np.where(inside, (loss - means[worst]) * len(loss) / inside.sum(), 0.0)


def groups_judged(groups: Sequence[str]) -> list[str]:
    """The groups with enough rows to be the worst."""
    names, counts = np.unique(np.array(groups), return_counts=True)
    return [str(name) for name, count in zip(names, counts, strict=True) if count >= FEW_IN_GROUP]
