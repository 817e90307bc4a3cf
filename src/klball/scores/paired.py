"""Two models on the same rows: how far apart they are, with paired intervals."""

import math
from collections.abc import Mapping
from itertools import combinations
from typing import Any

import numpy as np

from klball.scores.tails import (
    CVAR,
    difference,
    mean_of,
    paired_cvar,
    paired_interval,
    tail_size,
    varied_interval,
)

LOSS, WORST = "loss", "worst 5 %"

Interval = tuple[float, float, float]  # value, low, high
Parts = Mapping[str, np.ndarray | None]  # name → places of its rows; None for each model's own worst 5 %


def mean_difference(values: np.ndarray, base: np.ndarray) -> Interval:
    """mean(values − base), with the t interval of 95 % over rows; NaN bounds of few or equal differences."""
    of_rows = difference(values, base)
    return mean_of(of_rows), *varied_interval(of_rows)


def cvar_difference(loss: np.ndarray, base: np.ndarray, level: float) -> Interval:
    """CVaR_level(loss) − CVaR_level(base), each model's own worst rows; NaN bounds of few or equal losses."""
    value, effect = paired_cvar(loss, base, level)
    return value, *(paired_interval(effect, level, value) if np.ptp(effect) else (math.nan, math.nan))


def differences(
    of_model: Mapping[str, Mapping[str, np.ndarray]], parts: Parts, unit: str
) -> list[dict[str, Any]]:
    """Rows model, against, metric, part, `unit`, difference, low, high of every pair, later less earlier.

    of_model[model][metric]: values [n], of the same rows for all models. `unit` counts the rows of a part.
    Own worst rows are of the metric "loss" alone.
    """
    rows = []
    for base, model in combinations(of_model, 2):
        for metric, values in of_model[model].items():
            for part, chosen in parts.items():
                other = of_model[base].get(metric)
                if other is None or (chosen is None and metric != LOSS):
                    continue
                if chosen is None:
                    count, found = tail_size(CVAR, len(values)), cvar_difference(values, other, CVAR)
                else:
                    count, found = len(chosen), mean_difference(values[chosen], other[chosen])
                numbers = dict(zip(("difference", "low", "high"), found, strict=True))
                pair = {"model": model, "against": base, "metric": metric, "part": part}
                rows.append({**pair, unit: count, **numbers})
    return rows
