"""What commands print of certified worst cases: a sentence of scores, a cell of a report."""

import math
from dataclasses import asdict
from typing import Any

import numpy as np

from klball.commands.options import refuse_ignored
from klball.report.pages.parts import interval
from klball.scores.accuracy import columns_of
from klball.scores.certified import CertifiedWorstCase, certified_worst_case, limit, percent
from klball.scores.elsewhere.item_scores import Scores
from klball.scores.kinds import ANSWERED, PAIRED
from klball.scores.measure import ACCURACY, Measure
from klball.scores.pairs import read_pairs
from klball.scores.tables import read_items

Bounds = tuple[float, float]
SHARES: Bounds = (0.0, 1.0)


def given_bounds(options: Any, known: str = "") -> Bounds | None:
    """--bounds as two numbers, None for none; refused where they are `known`, in words."""
    if known:
        refuse_ignored(options, ("bounds",), known)
    if not options.bounds:
        return None
    if len(options.bounds) != 2:
        raise ValueError(f"--bounds needs two numbers, LOW HIGH, not {len(options.bounds)}")
    low, high = options.bounds
    return low, high


def certified_of(kind: str, options: Any) -> tuple[CertifiedWorstCase | None, str]:
    """The certified worst case of the table that `klball solve` is asked about, and its sentence."""
    if kind == PAIRED:
        given_bounds(options, "on a pair table, whose accuracies are 0, ½ or 1")
        values = columns_of(read_pairs(options.scores)[0])[0]["accuracy"]
        return certified(values, "accuracy", "pairs", options.epsilon, SHARES, options)
    if kind == ANSWERED:
        values = _column(options.scores)
        right_or_wrong = bool(np.isin(values, SHARES).all())
        bounds = given_bounds(options)
        name = "accuracy" if right_or_wrong and bounds is None else "the reward"
        bounds = SHARES if right_or_wrong and bounds is None else bounds
        return certified(values, name, "prompts", options.epsilon, bounds, options)
    bounds = given_bounds(
        options, "with --streamed true: a bound needs the scores in memory" if options.streamed else ""
    )
    values = np.array([]) if bounds is None else _column(options.scores)
    return certified(values, "the log-likelihood", "rows", options.epsilon, bounds, options)


def certified_elsewhere(scores: Scores, options: Any) -> tuple[CertifiedWorstCase | None, str]:
    """The same of results of another tool."""
    measure = scores.measure
    bounds = bounds_elsewhere(measure, options)
    return certified(scores.values, measure.noun, "items", options.epsilon, bounds, options, measure.loss)


def bounds_elsewhere(measure: Measure, options: Any) -> Bounds | None:
    """Of scores of which larger is better; --bounds are of the source's own numbers."""
    if measure.unit == ACCURACY:
        given_bounds(options, "on accuracies, which are from 0 to 1")
        return SHARES
    bounds = given_bounds(options)
    return (-bounds[1], -bounds[0]) if bounds is not None and measure.loss else bounds


def record(found: CertifiedWorstCase | None, loss: bool = False) -> dict[str, Any] | None:
    """For JSON; of a loss in its own numbers, with `upper` for `lower`."""
    if found is None:
        return None
    given = asdict(found)
    if loss:
        low, high = given.pop("bounds")
        own = {"mean": -given["mean"], "worst_case": -given["worst_case"], "bounds": (-high, -low)}
        given = {"upper": -given.pop("lower"), **given, **own}
    return given


def _column(path: str) -> np.ndarray:
    return read_items(path)[0]["log_likelihood"].drop_null().to_numpy()


def certified(
    values: np.ndarray,
    name: str,
    rows: str,
    epsilon: float,
    bounds: Bounds | None,
    options: Any,
    loss: bool = False,
) -> tuple[CertifiedWorstCase | None, str]:
    """The certified worst case of scores, and its sentence, or why there is none.

    name, rows: what the scores measure, and of what; options: of `Certifying`; loss: they are minus one.
    """
    if bounds is None:
        refuse_ignored(options, ("confidence",), f"without --bounds: {name} has none that klball knows")
        return None, (
            f"{name} has no bounds that klball knows, so nothing is certain beyond these {rows}: give "
            "--bounds LOW HIGH if you know some"
        )
    found = certified_worst_case(values, epsilon, bounds, options.confidence)
    return found, found.sentence(name, rows, loss)


def cell(row: dict[str, Any]) -> str:
    """A value of a report with its interval; of a worst case what it is at least, where that is certified."""
    text = str(interval(row["value"], row["low"], row["high"]))
    return text if math.isnan(row["certified"]) else f"{text} (≥ {limit(row['certified'])})"


def certain(confidence: float) -> str:
    """What a table's title says of such cells."""
    return f"(≥ bound of the population's worst case, {percent(confidence)} confidence)"
