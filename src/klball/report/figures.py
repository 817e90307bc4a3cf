"""Figures as SVG and PNG, told apart by line style and marker as well as by colour."""

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from klball.files import file_name, whole_file
from klball.scores.perplexity import ProfilePoint

# Okabe–Ito, ordered by lightness so that neighbours differ in grey too
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#777777")
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)), (0, (8, 2)))  # one fewer than colours
LONGEST_NAME = 60  # characters
MARKERS = "osD^vPX*"
STYLE: Any = {
    "font.size": 12,
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
        with whole_file(path.with_name(path.name + suffix), suffix) as temporary:
            figure.savefig(temporary, **options)
    plt.close(figure)


def name_of(label: str) -> str:
    """A label for a legend, which leaves out what begins with an underscore, and for a title's width."""
    short = label if len(label) <= LONGEST_NAME else label[:LONGEST_NAME] + "…"
    return f" {short}" if short.startswith("_") else short


def logarithmic(axis: Any) -> None:
    """A logarithmic y axis with ticks at 1, 2, 5, 10, … written as they are."""
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())


def plot_profiles(points: Sequence[ProfilePoint], folder: Path) -> None:
    """ε ↦ L_ε and effective sample size of every model, one figure a data set."""
    for data in dict.fromkeys(point.data for point in points):
        with plt.rc_context(STYLE):
            figure, (loss, ess) = plt.subplots(1, 2, figsize=(10, 4))
            styles = line_styles()
            for model in dict.fromkeys(point.model for point in points if point.data == data):
                own = [p for p in points if (p.data, p.model) == (data, model)]
                radii = [p.epsilon for p in own]
                style = next(styles)
                loss.plot(radii, [p.robust_loss for p in own], label=name_of(model), **style)
                ess.plot(radii, [p.ess for p in own], label=name_of(model), **style)
            for axis in (loss, ess):
                axis.set_xscale("symlog", linthresh=0.01)
                axis.set_xticks([0, 0.01, 0.1, 1], ["0", "0.01", "0.1", "1"])
                axis.minorticks_off()
                axis.set_xlabel("radius ε, nats")
            loss.set_ylabel("worst-case loss L(ε), nats/token")
            ess.set_ylabel("effective sample size")
            logarithmic(ess)
            loss.legend()
            figure.suptitle(f"Robust profile on {name_of(data)}")
            save(figure, folder / f"profile-{file_name(data)}")


def plot_experiment(
    metric: str,
    title: str,
    curves: Sequence[dict[str, Any]],
    finals: Sequence[dict[str, Any]],
    path: Path,
) -> None:
    """One measure over training (left) and at the end by ε (right), every seed a faint line or point.

    curves: rows arm, seed, step, `metric`. finals: rows arm, kind, seed, epsilon, `metric`; the base
    has no epsilon.
    """
    with plt.rc_context(STYLE):
        figure, (over, by) = plt.subplots(1, 2, figsize=(10, 4))
        styles = line_styles()
        for arm in dict.fromkeys(row["arm"] for row in curves):
            own = [row for row in curves if row["arm"] == arm]
            style = next(styles)
            steps = sorted({row["step"] for row in own})
            means = [_mean([row[metric] for row in own if row["step"] == step]) for step in steps]
            over.plot(steps, means, label=name_of(arm), **style)
            if len({row["seed"] for row in own}) > 1:
                low = [min(row[metric] for row in own if row["step"] == step) for step in steps]
                high = [max(row[metric] for row in own if row["step"] == step) for step in steps]
                over.fill_between(steps, low, high, color=style["color"], alpha=0.12, linewidth=0)
        over.set_xlabel("optimizer step")
        over.set_ylabel("perplexity")
        over.legend()
        _plot_by_radius(by, metric, finals)
        figure.suptitle(title)
        save(figure, path)


def _plot_by_radius(axis: Any, metric: str, finals: Sequence[dict[str, Any]]) -> None:
    """Final values at their radius: live arms joined, static ones open."""
    kinds = dict.fromkeys(row["kind"] for row in finals if row["epsilon"] is not None)
    for kind in kinds:
        own = [row for row in finals if row["kind"] == kind and row["epsilon"] is not None]
        radii = sorted({row["epsilon"] for row in own})
        means = [_mean([row[metric] for row in own if row["epsilon"] == e]) for e in radii]
        fill = "none" if kind == "static" else "#000000"
        dash = ":" if kind == "static" else "-"
        axis.plot(radii, means, linestyle=dash, marker="o", color="#000000", markerfacecolor=fill, label=kind)
        if len({row["seed"] for row in own}) > 1:
            axis.plot(
                [r["epsilon"] for r in own], [r[metric] for r in own], "x", color="#777777", markersize=6
            )
    ticks = sorted({row["epsilon"] for row in finals if row["epsilon"] is not None})
    axis.set_xticks(ticks, [f"{epsilon:g}" for epsilon in ticks], rotation=45)
    axis.set_xlabel("radius ε, nats")
    axis.set_ylabel("perplexity at the end")
    if len(kinds) > 1:
        axis.legend()


def plot_rewards(token_log_probs: Sequence[Sequence[float]], path: Path) -> None:
    """Histograms of the log implicit reward, per token and per sample."""
    with plt.rc_context(STYLE):
        figure, (tokens, samples) = plt.subplots(1, 2, figsize=(10, 4))
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
    """Every method a point: what it gained on the task and what it forgot, with its spread over seeds.

    Left all of them, right only those that gained: a method that lost much hides the others.
    """
    points = [row for row in summary if row["arm"] != "base"]  # which is the origin
    gained = [row for row in points if row["gain"] > 0]
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(12, 4.6))
        for axis, shown in zip(axes, (points, gained), strict=True):
            for row, style in zip(points, line_styles(), strict=False):
                if row in shown:
                    _plot_method(axis, row, style)
            axis.axhline(0, color="#777777", linewidth=1)
            axis.set_xlabel("forgetting, nats/token")
        axes[1].set_ylim(bottom=None if not gained else min(0.9 * r["gain"] for r in gained))
        axes[0].set_ylabel("gain on the task, nats/token")
        axes[1].set_title("those that gained")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right center")
        save(figure, path)


def _plot_method(axis: Any, row: dict[str, Any], style: dict[str, Any]) -> None:
    """A point with its standard deviations; robust methods are open."""
    axis.errorbar(
        *(row["forgetting"], row["gain"]),
        xerr=row["forgetting_sd"],
        yerr=row["gain_sd"],
        label=name_of(row["arm"]),
        color=style["color"],
        marker=style["marker"],
        linestyle="none",
        markersize=10,
        markerfacecolor="none" if row["arm"].startswith("robust") else style["color"],
        capsize=3,
    )


def plot_entropy(curves: dict[str, Sequence[Any]], path: Path, window: int = 10) -> None:
    """Mean token entropy of the training batches over training; means of `window` steps, over seeds.

    curves: per method one table (step, entropy) a seed.
    """
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(7.5, 5))
        for (name, tables), style in zip(curves.items(), line_styles(), strict=False):
            axis.plot(*smoothed_entropy(tables, window), label=name_of(name), markevery=4, **style)
        axis.set_xlabel("optimizer step")
        axis.set_ylabel("token entropy of training answers, nats")
        figure.legend(loc="outside right center")
        save(figure, path)


def smoothed_entropy(tables: Sequence[Any], window: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Centres of windows of steps and the mean entropy in each, over the tables of all seeds."""
    runs = np.array([table["entropy"].to_numpy() for table in tables])
    steps = tables[0]["step"].to_numpy()
    width = max(1, min(window, len(steps)))
    kept = len(steps) // width * width
    smooth = runs[:, :kept].reshape(len(runs), -1, width).mean(axis=(0, 2))
    return steps[:kept].reshape(-1, width).mean(axis=1), smooth


def line_styles() -> Any:
    """Colour, dash and marker together, again and again."""
    parts = zip(cycle(COLOURS), cycle(DASHES), cycle(MARKERS), strict=False)
    return ({"color": c, "linestyle": d, "marker": m} for c, d, m in parts)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
