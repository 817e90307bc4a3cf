"""What the figures show, described once: `figures` draws it as SVG and PNG, `interactive` for a page."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from klball.comparison.analysis import Comparison
from klball.comparison.joint import JointRegion
from klball.report.ellipse import clipped, covariance_ellipse, ellipse
from klball.scores.measure import PER_TOKEN, Measure
from klball.scores.perplexity import ProfilePoint

FULL_COLOUR = 4.0  # −log10 p with the last colour of a heat map, whatever the others are
TICKS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10)
FEWEST_ROUNDS = 10  # of which a covariance is told
WINDOW = 10  # optimizer steps of which entropies are averaged
Numbers = Sequence[float] | np.ndarray
Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Series:
    """The points (n) of one name.

    x_error, y_error: distances [2, n] below and above. labels: names of the points. outline: a closed curve
    [2, k] around them. hollow: open marks.
    """

    name: str
    x: Numbers
    y: Numbers
    x_error: np.ndarray | None = None
    y_error: np.ndarray | None = None
    labels: Sequence[str] = ()
    outline: np.ndarray | None = None
    hollow: bool = False


@dataclass(frozen=True)
class Chart:
    """Series over one pair of axes; `note` is printed below them.

    joined: lines through the points, with a band where y alone has errors. ticks: x → label, of a logarithmic
    axis. even: a line at y = 0, from x = 0 on.
    """

    title: str
    x_title: str
    y_title: str
    series: Sequence[Series]
    note: str = ""
    joined: bool = True
    ticks: Mapping[float, str] = field(default_factory=dict)
    logarithmic: bool = False
    even: bool = False

    def description(self) -> str:
        """What is read aloud in its place."""
        parts = []
        for s in self.series:
            ends = "" if not len(s.x) else f"{s.y[0]:.4g} at first, {s.y[-1]:.4g} at last"
            mean = "" if not len(s.x) else f"{np.mean(s.x):.3g} and {np.mean(s.y):.3g}"
            parts.append(f"{s.name}: {(ends if self.joined else mean) or 'nothing'}")
        kind = "Line chart" if self.joined else "Scatter plot"
        return f"{kind} of {self.x_title}, and {self.y_title}. {'; '.join(parts)}."


@dataclass(frozen=True)
class HeatMap:
    """A symmetric matrix [n, n] of numbers between `names`; NaN where there is none, drawn as a dash.

    value: what the numbers are; those of FULL_COLOUR and more share the last colour. reading: what is read
    aloud in its place.
    """

    title: str
    value: str
    names: Sequence[str]
    matrix: np.ndarray
    reading: str = ""
    note: str = ""

    def cells(self) -> list[list[str]]:
        """What stands in the cells."""
        return [["–" if np.isnan(value) else f"{value:.3g}" for value in row] for row in self.matrix]


def profile_charts(points: Sequence[ProfilePoint], data: str, measure: Measure = PER_TOKEN) -> list[Chart]:
    """ε ↦ worst case of all models on one data set, and ε ↦ effective sample size."""
    own = [p for p in points if p.data == data]
    place = places(p.epsilon for p in own)
    usual = {x: f"{e:g}" for e, x in place.items() if e in (0, *TICKS)}
    ticks = usual if len(usual) > 2 else {x: f"{e:g}" for e, x in place.items()}
    worst, sign = measure.profile
    values = {"robust_loss": (worst, sign), "ess": ("effective sample size", 1)}
    titles = (f"Robust profile on {data}", f"Effective sample size on {data}")
    note = "The value when an adversary may re-weight the samples within radius ε. Flatter is more even."
    charts = []
    for (value, (y_title, sign)), title in zip(values.items(), titles, strict=True):
        series = []
        for model in dict.fromkeys(p.model for p in own):
            curve = [(p.epsilon, sign * getattr(p, value) + 0.0) for p in own if p.model == model]
            x, y, labels = zip(*((place[e], v, f"ε = {e:.3g}") for e, v in curve), strict=True)
            series.append(Series(model, x, y, labels=labels))
        charts.append(Chart(title, "radius ε, nats", y_title, series, note, ticks=ticks))
    loss, ess = charts
    return [loss, replace(ess, note="", logarithmic=True)]


def mean_profile_charts(compared: Comparison) -> list[Chart]:
    """`profile_charts` of compared models, means over rounds."""
    points = [
        ProfilePoint("all rounds", p["model"], p["epsilon"], p["robust_loss"], p["lambda"], p["ess"])
        for p in compared.profiles
    ]
    return profile_charts(points, "all rounds", compared.scores.measure)


def places(radii: Iterable[float]) -> dict[float, float]:
    """Radius → where it lies on a logarithmic axis, 0 to the left of the others."""
    ordered = sorted({*radii})
    least = min((e / 3 for e in ordered if e > 0), default=1.0)
    return {e: max(e, least) for e in ordered}


def curve_chart(title: str, rows: Rows, column: str) -> Chart:
    """A measure over training (rows arm, seed, step, `column`): means over seeds, and where they all lie."""
    arms = dict.fromkeys(row["arm"] for row in rows)
    series = [_means(arm, [r for r in rows if r["arm"] == arm], "step", column) for arm in arms]
    return Chart(title, "optimizer step", "perplexity", series, "Means over seeds, from least to most.")


def radius_chart(rows: Rows, column: str) -> Chart:
    """A measure at the end by ε (rows kind, seed, epsilon, `column`), of live and static arms."""
    trained = [row for row in rows if row["kind"] in ("live", "static")]
    place = places(row["epsilon"] for row in trained)
    ticks = {x: f"{e:g}" for e, x in place.items()}
    series = []
    for kind in dict.fromkeys(row["kind"] for row in trained):
        own = [{**r, "at": place[r["epsilon"]]} for r in trained if r["kind"] == kind]
        series.append(replace(_means(f"all ε, {kind}", own, "at", column), hollow=kind == "static"))
    return Chart("At the end", "radius ε, nats", "perplexity", series, ticks=ticks)


def _means(name: str, rows: Rows, x: str, column: str) -> Series:
    """Means over seeds of a column, and the distances to their least and their most."""
    places = sorted({row[x] for row in rows})
    values = [[row[column] for row in rows if row[x] == place] for place in places]
    means = np.array([sum(found) / len(found) for found in values])
    error = np.array([means - [*map(min, values)], [*map(max, values)] - means])
    return Series(name, places, means, y_error=error if any(len(found) > 1 for found in values) else None)


def entropy_chart(curves: Mapping[str, Sequence[Any]]) -> Chart:
    """Mean token entropy of the training batches; curves: per method one table (step, entropy) a seed."""
    series = [Series(name, *_smoothed_entropy(tables)) for name, tables in curves.items()]
    title = "Token entropy of training answers"
    return Chart(title, "optimizer step", "entropy, nats", series, f"Means of {WINDOW} steps, over seeds.")


def _smoothed_entropy(tables: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Centres of windows of steps and the mean entropy in each, over the tables of all seeds."""
    runs = np.array([table["entropy"].to_numpy() for table in tables])
    steps = tables[0]["step"].to_numpy()
    width = max(1, min(WINDOW, len(steps)))
    kept = len(steps) // width * width
    smooth = runs[:, :kept].reshape(len(runs), -1, width).mean(axis=(0, 2))
    return steps[:kept].reshape(-1, width).mean(axis=1), smooth


def gain_chart(summary: Rows) -> Chart:
    """Every method a point: what it gained on the task and what it forgot; robust ones are open.

    summary: rows arm, gain, forgetting, and where seeds spread gain_sd and forgetting_sd.
    """

    def spread(row: Mapping[str, Any], name: str) -> np.ndarray | None:
        return np.full((2, 1), row[f"{name}_sd"]) if row.get(f"{name}_sd") else None

    return Chart(
        "Gain on the task against forgetting",
        "forgetting: KL(π₀‖π), nats/token",
        "gain on the task, nats/token",
        [
            Series(
                row["arm"],
                [row["forgetting"]],
                [row["gain"]],
                x_error=spread(row, "forgetting"),
                y_error=spread(row, "gain"),
                hollow=row["arm"].startswith("robust"),
            )
            for row in summary
            if row["arm"] != "base"  # which is the origin
        ],
        "Up and to the left is better; the base model, on whose answers forgetting is measured, is the "
        "origin; open marks are robust; bars are one sd over seeds.",
        joined=False,
        even=True,
    )


def frontier_chart(rows: Rows, tail: str, tail_name: str) -> Chart:
    """What each arm costs on the mean and buys in the tail, against the first (ε = 0), which is the origin.

    rows: of `klball.scores.frontier.frontier_row`, with arm and share, the part of its steps that it had.
    """

    def percent(row: Mapping[str, Any], name: str) -> tuple[float, np.ndarray]:
        value, low, high = (100 * (row[f"{name}_{part}"] - 1) for part in ("ratio", "low", "high"))
        return value, np.nan_to_num(np.array([[value - low], [high - value]]))

    plain, *others = rows
    series = [Series(plain["arm"], [0.0], [0.0])]
    for row in others:
        (x, x_error), (y, y_error) = percent(row, "mean"), percent(row, tail)
        hollow = row["share"] < 1
        series.append(Series(row["arm"], [x], [y], x_error, y_error, hollow=hollow))
    return Chart(
        "What robustness costs and buys",
        f"perplexity on all rows against {plain['arm']}, %",
        f"{tail_name} against {plain['arm']}, %",
        series,
        "Down, the tail is better; to the left, the mean. Bars: paired 95 % intervals over held-out rows. "
        f"Open marks: dropped before the end, and compared with {plain['arm']} at the same step.",
        joined=False,
    )


def multipliers_chart(pairs: Mapping[str, tuple[np.ndarray, np.ndarray, Sequence[str]]]) -> Chart:
    """(λ, β) of every round, and of enough rounds an ellipse per model that would hold 95 % of normal pairs.

    pairs[model] = (λ, β, names of the rounds), finite values only.
    """
    return Chart(
        "λ and β of every round",
        "λ, nats per nat of radius",
        "β",
        [
            Series(
                model,
                x,
                y,
                labels=[f"round {name}" for name in rounds],
                outline=clipped(covariance_ellipse(x, y)) if len(x) >= FEWEST_ROUNDS else None,
            )
            for model, (x, y, rounds) in pairs.items()
        ],
        f"Ellipses, of {FEWEST_ROUNDS} rounds or more, would hold 95 % of the rounds were they normal.",
        joined=False,
    )


def regions_chart(regions: Sequence[JointRegion]) -> Chart:
    """95 % confidence regions of (λ, β) over items, an ellipse a model."""
    return Chart(
        "Confidence regions of (λ, β) over items",
        "λ, nats per nat of radius",
        "β",
        [
            Series(
                r.model,
                [r.lambda_],
                [r.beta],
                outline=clipped(ellipse(np.array([r.lambda_, r.beta]), r.matrix, r.radius)),
            )
            for r in regions
        ],
        "By the delta method, rounds held fixed; 95 % in the limit of many items.",
        joined=False,
    )
