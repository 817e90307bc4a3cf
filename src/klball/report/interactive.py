"""Plotly figures for the HTML report: colour-blind-safe, told apart by marker and dash as well.

Black, the grid's grey and the darkest blue stand for the page's own colours, light or dark (page.js).
"""

import re
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
import plotly.graph_objects as go

from klball.report.charts import FULL_COLOUR, Chart, HeatMap
from klball.report.figures import COLOURS
from klball.report.page import Plot

INK, GRID = "#000000", "#dddddd"
DASHES = ("solid", "dash", "dashdot", "dot", "longdash", "longdashdot", "8px 2px 2px 2px")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "x")
AXIS = {"gridcolor": GRID, "zerolinecolor": GRID, "linecolor": INK, "automargin": True, "ticks": "outside"}


def plot(chart: Chart) -> Plot:
    """A chart as a part of a page."""
    figure = _figure(chart.x_title, chart.y_title)
    x_name, y_name = (_plain(re.split("[,:]", title)[0]) for title in (chart.x_title, chart.y_title))
    x_text = "" if chart.ticks else f"{x_name} %{{x:.4g}}<br>"
    for series, style in zip(chart.series, _styles(), strict=False):
        name, colour = _plain(series.name), style["color"]
        labels = [_plain(label) for label in series.labels]
        figure.add_scatter(
            x=series.x,
            y=series.y,
            name=name,
            legendgroup=name,
            mode="lines+markers" if chart.joined else "markers",
            line={"color": colour, "dash": style["dash"], "width": 2},
            marker={"color": colour, "symbol": style["symbol"] + "-open" * series.hollow, "size": 8},
            error_x=_errors(series.x_error, colour),
            error_y=_errors(series.y_error, colour),
            text=labels,
            hovertemplate=f"{'%{text}<br>' if labels else ''}{x_text}{y_name} %{{y:.4g}}",
        )
        if series.outline is not None:
            figure.add_scatter(
                x=series.outline[0],
                y=series.outline[1],
                legendgroup=name,
                showlegend=False,
                mode="lines",
                line={"color": colour, "dash": style["dash"], "width": 2},
                hoverinfo="skip",
            )
    if chart.ticks:
        figure.update_xaxes(type="log", tickvals=list(chart.ticks), ticktext=list(chart.ticks.values()))
    if chart.logarithmic:
        figure.update_yaxes(type="log")
    if chart.even:
        figure.add_hline(y=0, line={"color": INK, "width": 1, "dash": "dot"})
        figure.update_xaxes(rangemode="tozero")
    figure.update_layout(showlegend=True)  # of one name too
    return Plot(chart.title, figure, chart.description(), chart.note)


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
        zeroline=False,
    )
    free = 0.5 - 0.3 * (1 - 1 / max(1, len(series)))  # above the dots of a row, for its name on a phone
    figure.update_layout(height=180 + 18 * len(rows) * (1 + len(series)), meta={"room": free})
    return figure


def heat_map(chart: HeatMap) -> Plot:
    """A heat map with its numbers in the cells, as a part of a page."""
    figure, names, cells = _figure("", ""), [_plain(name) for name in chart.names], chart.cells()
    empty = [(y, x) for y, x in np.argwhere(np.isnan(chart.matrix)).tolist()]
    filled = [["" if (y, x) in empty else text for x, text in enumerate(row)] for y, row in enumerate(cells)]
    figure.add_heatmap(
        z=chart.matrix,
        x=names,
        y=names,
        text=filled,
        texttemplate="%{text}",
        colorscale="Cividis",
        zmin=0,
        zmax=FULL_COLOUR,
        colorbar={"title": {"text": f"{chart.value}<br>({FULL_COLOUR:g}+: full)"}, "thickness": 12},
        xgap=2,
        ygap=2,
        hovertemplate=f"%{{x}} and %{{y}}<br>{chart.value} = %{{z:.4g}}",
        hoverongaps=False,
    )
    figure.add_scatter(
        x=[names[x] for _, x in empty],
        y=[names[y] for y, _ in empty],
        text=[cells[y][x] for y, x in empty],
        mode="text",
        textfont={"color": INK},  # in a cell without a colour a heat map's own text would not be the page's
        hoverinfo="skip",
        showlegend=False,
    )
    names_only = {"type": "category", "showgrid": False, "ticks": ""}  # a model may be called 0.05
    figure.update_xaxes(names_only)
    figure.update_yaxes(names_only, autorange="reversed")
    figure.update_layout(height=240 + 44 * len(names), hovermode="closest")
    return Plot(chart.title, figure, f"Heat map. {chart.reading}.", chart.note)


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
        zeroline=False,
    )
    figure.update_layout(height=200 + 70 * len(pairs), meta={"room": 0.26})
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
        margin={"l": 10, "r": 10, "t": 34, "b": 10},  # above lies the toolbar
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        hoverlabel={"namelength": -1},
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": INK, "activecolor": COLOURS[6]},
    )
    figure.update_xaxes(title={"text": _plain(x_title), "standoff": 12}, **AXIS)
    figure.update_yaxes(title={"text": _plain(y_title), "standoff": 8}, **AXIS)
    return figure


def _bars(value: np.ndarray, low: np.ndarray, high: np.ndarray, colour: str) -> dict[str, Any] | None:
    """Error bars from interval bounds; none where a bound is NaN."""
    return _errors(np.nan_to_num(np.array([value - low, high - value])), colour)


def _errors(distances: np.ndarray | None, colour: str) -> dict[str, Any] | None:
    """Error bars from distances [2, n] below and above."""
    if distances is None:
        return None
    below, above = distances
    return {"symmetric": False, "array": above, "arrayminus": below, "color": colour}


def _plain(text: str) -> str:
    """A text in which plotly sees no tags."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _styles() -> Any:
    parts = zip(cycle(COLOURS), cycle(DASHES), cycle(SYMBOLS), strict=False)
    return ({"color": c, "dash": d, "symbol": s} for c, d, s in parts)
