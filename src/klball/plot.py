"""Results as matplotlib figures, drawn as in the reports."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset
from matplotlib.figure import Figure

from klball.adversary.dual import RobustProfile, robust_profile
from klball.comparison.analysis import Comparison
from klball.report.charts import frontier_chart, mean_profile_charts, profile_charts
from klball.report.figures import drawn
from klball.scores.elsewhere.item_scores import Scores
from klball.scores.frontier import frontier_row
from klball.scores.measure import PER_TOKEN
from klball.scores.perplexity import RADII, common_rows, profile_points
from klball.scores.tables import SCHEMA

__all__ = ["comparison", "frontier", "profile"]


def profile(models: Any, *, data: str = "your data", epsilons: Sequence[float] = RADII) -> Figure:
    """ε ↦ worst case and effective sample size, a line a model.

    Args:
        models: One model, or name → model, each as a score table, `klball.Scores`, log-likelihoods [n] in
            nats per token, or a `klball.RobustProfile`, which has radii of its own.
        data: What the scores are of, for the titles.
        epsilons: Radii, nats.

    Raises:
        ValueError: Models whose scores are not of one unit, or cannot be solved.
    """
    named = models if isinstance(models, Mapping) else {"model": models}
    named = {str(name): model for name, model in named.items()}
    if not named:
        raise ValueError("there is no model to draw")
    measures = {m.measure if isinstance(m, Scores) else PER_TOKEN for m in named.values()}
    if len(measures) != 1:
        units = ", ".join(sorted(m.title for m in measures))
        raise ValueError(f"a figure has one unit, and these models have: {units}")
    found = {name: _profile_of(name, model, epsilons) for name, model in named.items()}
    points = [point for name, own in found.items() for point in profile_points(data, name, own)]
    return drawn(*profile_charts(points, data, *measures))


def frontier(tables: Mapping[str, Dataset]) -> Figure:
    """What each model costs on the mean and buys in its worst 5 %, against the first of them.

    In per cent of perplexity, with paired 95 % intervals over the rows that every model holds uncut.

    Args:
        tables: Name → score table, of the same rows.

    Raises:
        ValueError: Fewer than two tables, or tables of other rows.
    """
    if not isinstance(tables, Mapping) or len(tables) < 2:
        raise ValueError("a frontier needs the score tables of two models or more, the plain one first")
    columns, _ = common_rows("these rows", {name: _table(name, table) for name, table in tables.items()})
    losses = {name: -own["log_likelihood"] for name, own in columns.items()}
    plain = next(iter(losses.values()))
    every = np.arange(len(plain))
    rows = [{"arm": name, "share": 1.0, **frontier_row(own, plain, every)} for name, own in losses.items()]
    return drawn(frontier_chart(rows, "cvar", "perplexity of the worst 5 %"))


def comparison(compared: Comparison) -> Figure:
    """`profile` of the models of a `klball.compare_scores`, means over rounds."""
    return drawn(*mean_profile_charts(compared))


def _profile_of(name: str, model: Any, epsilons: Sequence[float]) -> RobustProfile:
    if isinstance(model, RobustProfile):
        return model
    if isinstance(model, Scores):
        return model.profile(epsilons)
    if isinstance(model, Dataset):
        model = [g for g in _table(name, model)["log_likelihood"] if g is not None]
    return robust_profile(model, epsilons)


def _table(name: str, table: Any) -> Dataset:
    if not isinstance(table, Dataset) or not {*SCHEMA.names} <= {*table.column_names}:
        raise ValueError(f"{name} is no score table, such as klball.score and klball.read_scores return")
    return table
