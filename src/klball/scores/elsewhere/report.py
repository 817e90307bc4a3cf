"""Scores of items under several models → means, tails, groups and the worst case at every radius."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np

from klball.adversary.dual import robust_profile
from klball.files import without_nan
from klball.scores.measure import ACCURACY, Measure, are_right_or_wrong
from klball.scores.paired import Interval, cvar_difference, mean_difference
from klball.scores.perplexity import RADII, ProfilePoint, profile_points
from klball.scores.tails import (
    CVAR_LEVELS,
    HARDEST,
    cvar,
    few_hardest,
    hardest,
    own_mean_interval,
    own_tail,
    tail_size,
)

GROUP = "group "
NUMBERS = ("value", "low", "high", "difference", "difference_low", "difference_high")
NONE = (math.nan, math.nan, math.nan)


@dataclass(frozen=True)
class ItemReport:
    """Rows model, name, items, value, low, high, difference, difference_low, difference_high.

    Values are the source's own numbers, a loss as a loss; difference is that to the reference on the same
    items. Intervals are of 95 %, over items; NaN where there is none. profiles: robust_loss is minus the
    worst-case score. has_tail: not right or wrong, of which a tail is the mean said again.
    """

    measure: Measure
    reference: str
    rows: list[dict[str, Any]]
    profiles: list[ProfilePoint]
    has_tail: bool = True

    @cached_property
    def row_of(self) -> dict[tuple[str, str], dict[str, Any]]:
        """(Model, name) → row."""
        return {(row["model"], row["name"]): row for row in self.rows}

    def records(self) -> list[dict[str, Any]]:
        """The rows for CSV: None for no number."""
        return without_nan(self.rows)


def item_report(
    scores: Mapping[str, np.ndarray],
    measure: Measure,
    reference: str,
    groups: list[str] | None = None,
) -> ItemReport:
    """The report of scores [n] by model, more being better, on the same items.

    "mean"; "hardest_1pct": the mean of the 1 % lowest of the reference, the same items for every model, left
    out where the edge of that 1 % lies among equal scores; "cvar_α": the mean of each model's own worst
    share α; "group NAME": the mean of a group.
    """
    base = -scores[reference]
    m = tail_size(HARDEST, len(base))
    hard = hardest(-base)
    ordered = np.sort(base)[::-1]
    tied = m < len(base) and ordered[m - 1] == ordered[m]
    of_groups = _places(groups or [])
    rows, mean = [], partial(_mean, measure)
    for model, own in scores.items():
        loss = -own
        found: dict[str, tuple[int, Interval, Interval]] = {"mean": mean(loss, base, np.arange(len(loss)))}
        hardest_ones = {} if tied else {"hardest_1pct": mean(loss, base, hard)}
        worst = {f"cvar_{level:g}": _cvar(loss, base, level) for level in CVAR_LEVELS}
        found |= {**worst, **hardest_ones} if few_hardest(len(base)) else {**hardest_ones, **worst}
        found |= {f"{GROUP}{name}": mean(loss, base, places) for name, places in of_groups.items()}
        for name, (items, value, difference) in found.items():
            shown = _own(measure, value)
            if measure.unit == ACCURACY:
                shown = (shown[0], max(shown[1], 0.0), min(shown[2], 1.0))  # keeps NaN
            against = NONE if model == reference else _own(measure, difference)
            numbers = dict(zip(NUMBERS, (*shown, *against), strict=True))
            rows.append({"model": model, "name": name, "items": items, **numbers})
    of_models = {model: robust_profile(loss=-own, epsilons=RADII) for model, own in scores.items()}
    profiles = [point for model, own in of_models.items() for point in profile_points("scores", model, own)]
    binary = measure.unit == ACCURACY or all(map(are_right_or_wrong, scores.values()))
    return ItemReport(measure, reference, rows, profiles, not binary)


def coded(groups: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """The groups' names, sorted, and of every item the place of its own among them."""
    names = sorted(set(groups))
    place = {name: k for k, name in enumerate(names)}
    return names, np.array([place[name] for name in groups], dtype=int)


def _places(groups: Sequence[str]) -> dict[str, np.ndarray]:
    """The items of every group, by name."""
    names, of = coded(groups)
    parts = np.split(np.argsort(of, kind="stable"), np.cumsum(np.bincount(of))[:-1])
    return dict(zip(names, parts, strict=True)) if names else {}


def _own(measure: Measure, of_loss: Interval) -> Interval:
    """A loss or a difference of losses, with its interval, as the source's own numbers."""
    value, low, high = of_loss
    return (value, low, high) if measure.loss else (0.0 - value, 0.0 - high, 0.0 - low)


def _mean(
    measure: Measure, loss: np.ndarray, base: np.ndarray, rows: np.ndarray
) -> tuple[int, Interval, Interval]:
    numbers = loss[rows] if measure.loss else 0.0 - loss[rows]
    value = _own(measure, (float(numbers.mean()), *own_mean_interval(numbers)))  # back to a loss
    return len(rows), value, mean_difference(loss[rows], base[rows])


def _cvar(loss: np.ndarray, base: np.ndarray, level: float) -> tuple[int, Interval, Interval]:
    value = cvar(loss, level)
    own = (value, *own_tail(loss, level, value))
    return tail_size(level, len(loss)), own, cvar_difference(loss, base, level)
