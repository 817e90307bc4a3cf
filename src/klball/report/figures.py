"""Figures as SVG and PNG, told apart by line style and marker as well as by colour."""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from io import BytesIO
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure  # without pyplot, which may open windows
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from klball.files import file_name, whole_file
from klball.report.charts import FULL_COLOUR, Chart, HeatMap, gain_chart, profile_charts
from klball.scores.measure import PER_TOKEN, Measure
from klball.scores.perplexity import ProfilePoint

# Okabe–Ito, ordered by lightness so that neighbours differ in grey too
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#777777")
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)), (0, (8, 2)))  # one fewer than colours
LONGEST_NAME, KEPT = 60, 20  # characters, and those of its beginning: paths differ in their ends
MARKERS = "osD^vPX*h"  # one more than colours
MOST_IN_COLUMN = 16  # names of a legend
MOST_NUMBERED = 25  # names of a heat map with its numbers in the cells
STYLE: Any = {
    "font.size": 12,
    "axes.titlesize": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "text.parse_math": False,  # labels are names, which may hold any sign
    "grid.color": "#dddddd",
    "lines.linewidth": 2.0,
    "lines.markersize": 7,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "svg.hashsalt": "klball",
}


def save(figure: Figure, path: Path) -> None:
    """`path` with .svg and .png added, each written whole or not at all."""
    formats: Any = {".svg": {"metadata": {"Date": None}}, ".png": {"dpi": 150}}
    for suffix, options in formats.items():
        with whole_file(path.with_name(path.name + suffix), suffix) as temporary, warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing from font")  # a name's, which the page has
            figure.savefig(temporary, **options)


def short_label(label: str) -> str:
    """A label for a legend, which leaves out what begins with an underscore, and for a title's width."""
    short = label if len(label) <= LONGEST_NAME else f"{label[:KEPT]}…{label[KEPT - LONGEST_NAME :]}"
    return f" {short}" if short.startswith("_") else short


def logarithmic(axis: Any) -> None:
    """A logarithmic y axis with ticks at 1, 2, 5, 10, … written as they are."""
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())


class NotebookFigure(Figure):
    """A figure that notebooks show, though pyplot does not know it."""

    def _repr_png_(self) -> bytes:
        content = BytesIO()
        self.savefig(content, format="png", dpi=100)
        return content.getvalue()


def draw(path: Path, *charts: Chart) -> None:
    """`drawn`, as SVG and PNG."""
    with rc_context(STYLE):
        save(drawn(*charts), path)


def drawn(*charts: Chart) -> Figure:
    """Charts side by side, one legend for all."""
    names = dict.fromkeys(series.name for chart in charts for series in chart.series)
    styles = dict(zip(names, line_styles(), strict=False))
    with rc_context(STYLE):
        columns = -(-len(names) // MOST_IN_COLUMN)
        of_legend = columns * (1 + 0.11 * max(map(len, map(short_label, names)), default=0))
        figure = NotebookFigure(figsize=(5 * len(charts) + of_legend, 4.4))
        axes = figure.subplots(1, len(charts), squeeze=False)
        handles: dict[str, Any] = {}
        for axis, chart in zip(axes[0], charts, strict=True):
            _draw_on(axis, chart, styles)
            drawn_of = axis.get_legend_handles_labels()[0]
            handles |= dict(zip((series.name for series in chart.series), drawn_of, strict=True))
        labels = map(short_label, handles)
        figure.legend(handles.values(), labels, loc="outside right upper", ncols=max(1, columns))
    return figure


def _draw_on(axis: Any, chart: Chart, styles: dict[str, Any]) -> None:
    for series in chart.series:
        style, x, y = styles[series.name], np.asarray(series.x, float), np.asarray(series.y, float)
        colour = style["color"]
        face = "none" if series.hollow else colour
        shown: Any = {**style, "label": short_label(series.name), "markerfacecolor": face}
        if chart.joined:
            axis.plot(x, y, markevery=max(1, len(x) // 12), **shown)
            if series.x_error is not None:
                bars: Any = {"ecolor": colour, "elinewidth": 1.2, "capsize": 3, "linestyle": "none"}
                axis.errorbar(x, y, xerr=series.x_error, yerr=series.y_error, **bars)
            elif series.y_error is not None:
                low, high = series.y_error
                axis.fill_between(x, y - low, y + high, color=colour, alpha=0.12, linewidth=0)
        else:
            shown |= {"linestyle": "none", "markersize": 10 if len(x) == 1 else 6, "alpha": 0.8}
            axis.errorbar(x, y, xerr=series.x_error, yerr=series.y_error, capsize=3, **shown)
        if series.outline is not None:
            axis.plot(*series.outline, color=colour, linestyle=style["linestyle"])
    if chart.even:
        axis.axhline(0, color="#777777", linewidth=1)
        axis.set_xlim(left=0)
    if chart.ticks:
        axis.set_xscale("log")
        axis.set_xticks(list(chart.ticks), list(chart.ticks.values()))
        axis.minorticks_off()
    if chart.logarithmic:
        logarithmic(axis)
    axis.set(title=short_label(chart.title), xlabel=chart.x_title, ylabel=chart.y_title)


def draw_heat_map(path: Path, chart: HeatMap) -> None:
    """A heat map with its numbers in the cells, as SVG and PNG; of many names smaller, and without them."""
    many = len(chart.names) > MOST_NUMBERED
    of_labels: Any = {"xtick.labelsize": min(12, 1_000 / len(chart.names))}
    of_labels |= {"ytick.labelsize": of_labels["xtick.labelsize"], **({"font.size": 30} if many else {})}
    with rc_context({**STYLE, "axes.grid": False, **of_labels}):
        side = 2.5 + 0.8 * min(len(chart.names), MOST_NUMBERED)
        figure = Figure(figsize=(side + 1, side))
        axis = figure.subplots()
        image = axis.imshow(np.ma.masked_invalid(chart.matrix), cmap="cividis", vmin=0, vmax=FULL_COLOUR)
        for row, cells in enumerate([] if many else chart.cells()):
            for column, text in enumerate(cells):
                colour = "white" if chart.matrix[row, column] < FULL_COLOUR / 2 else "black"
                axis.text(column, row, text, ha="center", va="center", color=colour)
        axis.set_xticks(range(len(chart.names)), chart.names, rotation=45, ha="right")
        axis.set_yticks(range(len(chart.names)), chart.names)
        figure.colorbar(image, label=f"{chart.value}, {FULL_COLOUR:g} or more: full", extend="max")
        figure.suptitle(short_label(chart.title))
        save(figure, path)


def plot_profiles(points: Sequence[ProfilePoint], folder: Path, measure: Measure = PER_TOKEN) -> None:
    """ε ↦ worst case and effective sample size of every model, one figure a data set."""
    for data in dict.fromkeys(point.data for point in points):
        draw(folder / f"profile-{file_name(data)}", *profile_charts(points, data, measure))


def plot_rewards(token_log_probs: Sequence[Sequence[float]], path: Path) -> None:
    """Histograms of the log implicit reward, per token and per sample."""
    with rc_context(STYLE):
        figure = Figure(figsize=(10, 4))
        tokens, samples = figure.subplots(1, 2)
        tokens.hist(-np.concatenate([np.asarray(row) for row in token_log_probs]), bins=60, color=COLOURS[1])
        samples.hist([-float(np.sum(row)) for row in token_log_probs], bins=60, color=COLOURS[1])
        logarithmic(tokens)
        tokens.set_xlabel("log 1/p of a token, nats")
        tokens.set_ylabel("tokens")
        samples.set_xlabel("log 1/K(y|x) of a sample, nats")
        samples.set_ylabel("samples")
        figure.suptitle("Implicit reward of SFT, in logarithms")
        save(figure, path)


def plot_gain_against_forgetting(summary: Sequence[dict[str, Any]], path: Path) -> None:
    """All methods, and beside them only those that gained: one that lost much hides the others."""
    chart = gain_chart(summary)
    gained = [series for series in chart.series if series.y[0] > 0]
    some = 0 < len(gained) < len(chart.series)
    alone = replace(chart, title="Those that gained", series=gained, even=False)
    draw(path, chart, *([alone] if some else []))


def line_styles() -> Any:
    """Colour, dash and marker together, again and again."""
    parts = zip(cycle(COLOURS), cycle(DASHES), cycle(MARKERS), strict=False)
    return ({"color": c, "linestyle": d, "marker": m} for c, d, m in parts)
