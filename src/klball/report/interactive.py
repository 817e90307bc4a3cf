"""Plotly figures for the HTML report: colour-blind-safe, told apart by marker and dash as well.

Black, the grid's grey and the darkest blue stand for the page's own colours, light or dark (page.js).
"""

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
import plotly.graph_objects as go

from klball.report.ellipse import clipped, covariance_ellipse
from klball.report.figures import COLOURS
from klball.report.paper import FULL_COLOUR

INK, GRID = "#000000", "#dddddd"
DASHES = ("solid", "dash", "dashdot", "dot", "longdash", "longdashdot", "8px 2px 2px 2px")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "x")
AXIS = {"gridcolor": GRID, "zerolinecolor": GRID, "linecolor": INK, "automargin": True, "ticks": "outside"}
TICKS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10)

Series = tuple[Sequence[float] | np.ndarray, Sequence[float] | np.ndarray]  # x, y


def lines(series: Mapping[str, Series], x_title: str, y_title: str, hover: str = "") -> go.Figure:
    """One line a name; `hover` is a plotly template of %{x} and %{y}."""
    figure = _figure(x_title, y_title)
    for (name, (x, y)), style in zip(series.items(), _styles(), strict=False):
        figure.add_scatter(
            x=x,
            y=y,
            name=_plain(name),
            mode="lines+markers",
            line={"color": style["color"], "dash": style["dash"], "width": 2},
            marker={"color": style["color"], "symbol": style["symbol"], "size": 7},
            hovertemplate=hover or f"{x_title} %{{x:.4g}}<br>%{{y:.4g}}",
        )
    return figure


def profiles(series: Mapping[str, Series], y_title: str) -> go.Figure:
    """Robust profiles ε ↦ L_ε on a logarithmic axis of ε, with ε = 0 to its left."""
    radii = sorted({e for x, _ in series.values() for e in x})
    positive = [e for e in radii if e > 0]
    least = positive[0] / 3 if positive else 1.0
    placed = {name: ([max(e, least) for e in x], y) for name, (x, y) in series.items()}
    figure = lines(placed, "radius ε, nats", y_title)
    for name, (x, _) in series.items():
        hover = {"customdata": list(x), "hovertemplate": "ε = %{customdata:.3g}<br>%{y:.4g}"}
        figure.update_traces(hover, selector={"name": _plain(name)})
    ticks = [t for t in TICKS if positive and positive[0] <= t <= positive[-1]]
    labels = {**({least: "0"} if 0 in radii else {}), **{t: f"{t:g}" for t in ticks}}
    figure.update_xaxes(type="log", tickvals=list(labels), ticktext=list(labels.values()))
    return figure


def intervals(
    series: Mapping[str, Mapping[str, tuple[float, float, float]]], x_title: str, reference: float
) -> go.Figure:
    """Dots with intervals: series[name][row] = (value, low, high); NaN bounds for none.

    Rows lie under each other, the names of one row close together; a line marks `reference`.
    """
    rows = list(dict.fromkeys(row for values in series.values() for row in values))
    figure = _figure(_plain(x_title), "")
    for index, ((name, values), style) in enumerate(zip(series.items(), _styles(), strict=False)):
        own = [row for row in rows if row in values]
        shift = 0.6 * ((index + 0.5) / len(series) - 0.5)
        value, low, high = np.array([values[row] for row in own], dtype=float).T
        figure.add_scatter(
            x=value,
            y=[rows.index(row) + shift for row in own],
            name=_plain(name),
            mode="markers",
            marker={"color": style["color"], "symbol": style["symbol"], "size": 9},
            error_x=_bars(value, low, high, style["color"]),
            customdata=np.stack([low, high], axis=1),
            text=[_plain(row) for row in own],
            hovertemplate="%{text}: %{x:.4g}<br>95 % interval %{customdata[0]:.4g} to %{customdata[1]:.4g}",
        )
    figure.add_vline(x=reference, line={"color": INK, "width": 1, "dash": "dot"})
    figure.update_yaxes(
        tickvals=list(range(len(rows))),
        ticktext=[_plain(row) for row in rows],
        range=[len(rows) - 0.5, -0.5],
        showgrid=False,
    )
    figure.update_layout(height=180 + 18 * len(rows) * (1 + len(series)))
    return figure


def gain_against_forgetting(summary: Sequence[Mapping[str, Any]]) -> go.Figure:
    """Every method a point (rows arm, gain, forgetting and their _sd); robust ones are open."""
    figure = _figure(
        "forgetting: KL(π₀‖π) on answers of the base, nats/token", "gain on the task, nats/token"
    )
    points = [row for row in summary if row["arm"] != "base"]  # which is the origin
    for row, style in zip(points, _styles(), strict=False):
        open_ = "-open" if row["arm"].startswith("robust") else ""
        figure.add_scatter(
            x=[row["forgetting"]],
            y=[row["gain"]],
            name=_plain(row["arm"]),
            mode="markers",
            marker={"color": style["color"], "symbol": style["symbol"] + open_, "size": 12},
            error_x={"array": [row["forgetting_sd"]], "color": style["color"]},
            error_y={"array": [row["gain_sd"]], "color": style["color"]},
            hovertemplate="forgetting %{x:.4g}<br>gain %{y:.4g}",
        )
    figure.add_hline(y=0, line={"color": INK, "width": 1, "dash": "dot"})
    figure.update_xaxes(rangemode="tozero")
    return figure


def multipliers(pairs: Mapping[str, tuple[np.ndarray, np.ndarray, Sequence[str]]]) -> go.Figure:
    """(λ, β) of every round, and an ellipse per model that would hold 95 % of normal pairs.

    pairs[model] = (λ, β, names of the rounds), finite values only.
    """
    figure = _figure("λ, nats per nat of radius", "β")
    for (name, (x, y, rounds)), style in zip(pairs.items(), _styles(), strict=False):
        figure.add_scatter(
            x=x,
            y=y,
            name=_plain(name),
            legendgroup=_plain(name),
            mode="markers",
            marker={"color": style["color"], "symbol": style["symbol"], "size": 7, "opacity": 0.75},
            text=[_plain(label) for label in rounds],
            hovertemplate="round %{text}<br>λ = %{x:.4g}<br>β = %{y:.4g}",
        )
        if len(x) > 2:
            edge = clipped(covariance_ellipse(x, y))
            figure.add_scatter(
                x=edge[0],
                y=edge[1],
                legendgroup=_plain(name),
                showlegend=False,
                mode="lines",
                line={"color": style["color"], "dash": style["dash"], "width": 2},
                hoverinfo="skip",
            )
    return figure


def heat_map(matrix: np.ndarray, names: Sequence[str], title: str) -> go.Figure:
    """A symmetric matrix [models, models] with its numbers in the cells; a dash where there is none."""
    figure = _figure("", "")
    shown = [["" if np.isnan(value) else f"{value:.3g}" for value in row] for row in matrix]
    figure.add_heatmap(
        z=matrix,
        x=[_plain(name) for name in names],
        y=[_plain(name) for name in names],
        text=shown,
        texttemplate="%{text}",
        colorscale="Cividis",
        zmin=0,
        zmax=FULL_COLOUR,
        colorbar={"title": {"text": f"{title}<br>({FULL_COLOUR:g}+: full)"}, "thickness": 12},
        xgap=2,
        ygap=2,
        hovertemplate=f"%{{x}} and %{{y}}<br>{title} = %{{z:.4g}}",
        hoverongaps=False,
    )
    empty = [(_plain(names[x]), _plain(names[y])) for y, x in np.argwhere(np.isnan(matrix)).tolist()]
    figure.add_scatter(
        x=[x for x, _ in empty],
        y=[y for _, y in empty],
        text="–",
        mode="text",
        textfont={"color": INK},
        hoverinfo="skip",
        showlegend=False,
    )
    figure.update_xaxes(showgrid=False, ticks="")
    figure.update_yaxes(showgrid=False, ticks="", autorange="reversed")
    figure.update_layout(height=240 + 44 * len(names), hovermode="closest")
    return figure


def paired_differences(
    differences: Mapping[str, tuple[np.ndarray, Sequence[str]]],
    means: Mapping[str, tuple[float, float, float]],
    x_title: str,
) -> go.Figure:
    """A strip a pair of models: every round's difference, and below it the mean with its 95 % interval."""
    figure = _figure(x_title, "")
    for row, (pair, (values, rounds)) in enumerate(differences.items()):
        spread = 0.12 * np.cos(np.arange(len(values)) * 2.4)  # apart, and the same every time
        figure.add_scatter(
            x=values,
            y=row - 0.12 + spread,
            name="a round",
            showlegend=row == 0,
            mode="markers",
            marker={"color": COLOURS[1], "symbol": "circle", "size": 6, "opacity": 0.6},
            text=[_plain(label) for label in rounds],
            meta=_plain(pair),
            hovertemplate="%{meta}<br>round %{text}: %{x:.4g}<extra></extra>",
        )
        mean, low, high = means[pair]
        figure.add_scatter(
            x=[mean],
            y=[row + 0.24],
            name="mean, 95 % interval",
            showlegend=row == 0,
            mode="markers",
            marker={"color": INK, "symbol": "diamond", "size": 10},
            error_x=_bars(np.array([mean]), np.array([low]), np.array([high]), INK),
            meta=_plain(pair),
            hovertemplate=f"%{{meta}}<br>mean %{{x:.4g}} [{low:.4g}, {high:.4g}]<extra></extra>",
        )
    figure.add_vline(x=0, line={"color": INK, "width": 1, "dash": "dot"})
    pairs = list(differences)
    figure.update_yaxes(
        tickvals=list(range(len(pairs))),
        ticktext=[_plain(pair).replace(" − ", "<br>− ") for pair in pairs],
        range=[len(pairs) - 0.4, -0.6],
        showgrid=False,
    )
    figure.update_layout(height=200 + 70 * len(pairs))
    return figure


def _figure(x_title: str, y_title: str) -> go.Figure:
    figure = go.Figure()
    figure.update_layout(
        template=None,
        autosize=True,
        height=420,
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"color": INK, "size": 13, "family": "system-ui, sans-serif"},
        margin={"l": 10, "r": 10, "t": 10, "b": 10},
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        hoverlabel={"namelength": -1},
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": INK, "activecolor": COLOURS[6]},
    )
    figure.update_xaxes(title={"text": _plain(x_title), "standoff": 12}, **AXIS)
    figure.update_yaxes(title={"text": _plain(y_title), "standoff": 8}, **AXIS)
    return figure


def _bars(value: np.ndarray, low: np.ndarray, high: np.ndarray, colour: str) -> dict[str, Any]:
    """Error bars from interval bounds; none where a bound is NaN."""
    return {
        "symmetric": False,
        "array": np.nan_to_num(high - value),
        "arrayminus": np.nan_to_num(value - low),
        "color": colour,
    }


def _plain(text: str) -> str:
    """A text in which plotly sees no tags."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _styles() -> Any:
    parts = zip(cycle(COLOURS), cycle(DASHES), cycle(SYMBOLS), strict=False)
    return ({"color": c, "dash": d, "symbol": s} for c, d, s in parts)
