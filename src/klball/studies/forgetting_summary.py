"""What the forgetting experiment found: measures at equal accuracy, and whether KL explains forgetting."""

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from klball.files import write_csv
from klball.report.charts import Chart, Series
from klball.report.figures import draw
from klball.report.pages.forgetting import write_forgetting_page
from klball.shown import in_words
from klball.studies.arms import START, provenance_of
from klball.studies.forgetting_measures import MEASURES
from klball.studies.summary import means
from klball.terminal import show_table

SHARES = (0.75, 0.5)  # of the methods that are to reach the accuracy they are compared at
PLAIN = "SFT"  # what the others are compared with
SHOWN = ("accuracy", "sampled", "hard_accuracy", "forgetting", "kl_task", "kl_other", "entropy", "distinct_2")
KLS = {
    "kl_task": "KL(π₀‖π), the task's prompts",
    "reverse_kl_task": "KL(π‖π₀), the task's prompts",
    "kl_other": "KL(π₀‖π), other prompts",
    "reverse_kl_other": "KL(π‖π₀), other prompts",
}
Rows = Sequence[dict[str, Any]]


def point_of(method: str, seed: int, point: int, prompts: int) -> dict[str, Any]:
    """Which point a row of measures is of; the start is point 0 of every method."""
    return {"method": method, "seed": seed, "point": point, "prompts": prompts}


def report(points: Rows, folder: Path) -> None:
    """Tables, figures and the page; points: rows of `point_of` with their measures."""
    summary = means(points, ("method", "point"), ("prompts", *MEASURES))
    target = common_accuracy(summary)
    equal = [] if target is None else at_equal_accuracy(points, target)
    fits = kl_fits(points)
    for name, rows in (("points", points), ("summary", summary), ("equal", equal), ("fits", fits)):
        write_csv(folder / f"{name}.csv", list(rows))
    seeds = len({row["seed"] for row in points})
    header = ("method", "prompts", *(in_words(name) for name in SHOWN))
    body = [(row["method"], round(row["prompts"]), *(row[name] for name in SHOWN)) for row in summary]
    show_table(f"every budget, means over {seeds} seed(s); nats per token", header, body)
    if target is not None:
        header = ("method", "seeds there", "prompts", *(in_words(name) for name in SHOWN[2:]))
        body = [(r["method"], r["reached"], *(r[name] for name in ("prompts", *SHOWN[2:]))) for r in equal]
        show_table(f"at accuracy {target:.3f}", header, body)
    header = ("forgetting by", "R² of one line", "of one quadratic", "of a line for each method")
    body = [(row["name"], row["line"], row["quadratic"], row["lines"]) for row in fits]
    show_table("does KL explain forgetting? (fits through the start)", header, body)
    charts = [accuracy_chart(summary), *(kl_chart(summary, name) for name in ("kl_task", "kl_other"))]
    for name, chart in zip(("accuracy", "kl-task", "kl-other"), charts, strict=True):
        draw(folder / "figures" / f"{name}-against-forgetting", chart)
    write_forgetting_page(
        summary, equal, fits, target, charts, seeds, MEASURES, provenance_of(folder), folder
    )


def common_accuracy(summary: Rows) -> float | None:
    """The highest accuracy that three quarters of the methods reach, or else half of them; None if that is
    not above the start's."""
    start = next(row["accuracy"] for row in summary if row["method"] == START)
    methods = dict.fromkeys(row["method"] for row in summary if row["method"] != START)
    best = sorted(
        (max(row["accuracy"] for row in summary if row["method"] == method) for method in methods),
        reverse=True,
    )
    reached = [best[math.ceil(share * len(best)) - 1] for share in SHARES]
    return next((accuracy for accuracy in reached if accuracy > start), None)


def at_equal_accuracy(points: Rows, target: float) -> list[dict[str, Any]]:
    """Every method's measures where its accuracy reaches `target`: means over the seeds that do, NaN if none.

    reached: their number. less: the number of seeds in which it forgot less than SFT, of `both`, in which
    both are there.
    """
    names = ("prompts", *MEASURES)
    found: dict[str, dict[int, dict[str, float]]] = {}
    for method in dict.fromkeys(row["method"] for row in points if row["method"] != START):
        curves = {seed: _curve(points, method, seed) for seed in sorted({row["seed"] for row in points})}
        crossed = {seed: crossing(curve, target, names) for seed, curve in curves.items()}
        found[method] = {seed: values for seed, values in crossed.items() if values is not None}
    rows = []
    for method, of_seed in found.items():
        both = [seed for seed in of_seed if seed in found.get(PLAIN, {})]
        less = sum(of_seed[seed]["forgetting"] < found[PLAIN][seed]["forgetting"] for seed in both)
        nowhere = dict.fromkeys(names, math.nan)
        (mean,) = means(
            [{"method": method, **v} for v in [*of_seed.values()] or [nowhere]], ("method",), names
        )
        rows.append({**mean, "reached": len(of_seed), "less": less, "both": len(both)})
    return rows


def _curve(points: Rows, method: str, seed: int) -> list[dict[str, Any]]:
    own = [row for row in points if row["seed"] == seed and row["method"] in (START, method)]
    return sorted(own, key=lambda row: row["point"])


def crossing(curve: Rows, target: float, names: Sequence[str]) -> dict[str, float] | None:
    """Where a curve first reaches an accuracy above its first one, by straight lines between its points."""
    for before, after in pairwise(curve):
        if before["accuracy"] < target <= after["accuracy"]:
            part = (target - before["accuracy"]) / (after["accuracy"] - before["accuracy"])
            return {name: before[name] + part * (after[name] - before[name]) for name in names}
    return None


def kl_fits(points: Rows) -> list[dict[str, Any]]:
    """For each KL, how much of the forgetting of all points it explains: R² of least squares.

    line, quadratic: one bx, one bx + cx² for all methods; lines: bx with a b for each method. None has a
    constant, since at the start both are 0; so R² = 1 − Σ(y − ŷ)²/Σ(y − ȳ)² can be below 0. furthest: the
    method whose points lie furthest from the one quadratic, `off` nats above it in the mean.
    """
    own = [row for row in points if row["method"] != START]
    y = np.array([row["forgetting"] for row in own])
    methods = np.array([row["method"] for row in own])
    found = []
    for name, text in KLS.items():
        x = np.array([row[name] for row in own])
        one = fitted(x, y, 2)
        each = np.zeros_like(y)
        for method in dict.fromkeys(methods.tolist()):
            each[methods == method] = fitted(x[methods == method], y[methods == method], 1)
        off = {m: float((y - one)[methods == m].mean()) for m in dict.fromkeys(methods.tolist())}
        furthest = max(off, key=lambda method: abs(off[method]))
        rs = {"line": fitted(x, y, 1), "quadratic": one, "lines": each}
        found.append(
            {
                "kl": name,
                "name": text,
                **{key: r_squared(y, values) for key, values in rs.items()},
                **{"furthest": furthest, "off": off[furthest]},
            }
        )
    return found


def fitted(x: np.ndarray, y: np.ndarray, degree: int) -> np.ndarray:
    """ŷ of the least-squares polynomial without a constant, (n)."""
    powers = np.stack([x**k for k in range(1, degree + 1)], axis=1)
    return powers @ np.linalg.lstsq(powers, y)[0]


def r_squared(y: np.ndarray, fit: np.ndarray) -> float:
    """1 − Σ(y − ŷ)²/Σ(y − ȳ)²; NaN for a constant y."""
    total = float(((y - y.mean()) ** 2).sum())
    return 1 - float(((y - fit) ** 2).sum()) / total if total > 0 else math.nan


def accuracy_chart(summary: Rows) -> Chart:
    """A curve for every method: its budgets, from the start on."""
    return Chart(
        "Accuracy against forgetting",
        "forgetting: change of NLL on other data, nats/token",
        "greedy accuracy on held-out problems",
        _series(summary, "forgetting", "accuracy"),
        "A curve a method, from the start through its budgets; up and to the left is better. Open marks: RL. "
        "Bars: one sd over seeds, of the last budget.",
    )


def kl_chart(summary: Rows, name: str) -> Chart:
    """Every budget a point."""
    return Chart(
        "KL against forgetting",
        f"{KLS[name]}, nats/token",
        "forgetting, nats/token",
        _series(summary, name, "forgetting"),
        "A curve a method, from the start, the origin. If KL explains forgetting, all lie on one curve. "
        "Bars: one sd over seeds, of the last budget.",
    )


def _series(summary: Rows, x: str, y: str) -> list[Series]:
    (start,) = (row for row in summary if row["method"] == START)
    series = []
    for method in dict.fromkeys(row["method"] for row in summary if row["method"] != START):
        curve = [start, *(row for row in summary if row["method"] == method)]
        labels = [f"{row['prompts']:.0f} prompts" for row in curve]
        learnt = "GRPO" in method or method == "RLHF"
        places, values = ([row[name] for row in curve] for name in (x, y))
        errors = _at_the_end(curve, x, y)
        series.append(Series(method, places, values, *errors, labels=labels, hollow=learnt))
    return series


def _at_the_end(curve: Rows, *names: str) -> list[np.ndarray]:
    """By name one standard deviation over seeds, [2, n], of the last point; all would hide one another."""
    spreads = [curve[-1][f"{name}_sd"] for name in names]
    return [np.array([[math.nan] * (len(curve) - 1) + [sd]] * 2) for sd in spreads if any(spreads)]
