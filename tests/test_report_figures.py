"""Figures: charts in both engines, ellipses, tables for papers."""

import re
from itertools import chain, islice

import numpy as np
import pytest
from scipy import stats

import klball
from klball.report import figures, interactive
from klball.report.charts import (
    FEWEST_ROUNDS,
    Chart,
    HeatMap,
    Series,
    curve_chart,
    gain_chart,
    multipliers_chart,
    radius_chart,
)
from klball.report.ellipse import clipped, covariance_ellipse
from klball.report.figures import line_styles
from klball.report.pages.parts import change, says
from klball.report.paper import latex_table
from klball.scores.perplexity import ProfilePoint
from test_report import CHARTS, RNG


@pytest.mark.parametrize("name", CHARTS)
def test_both_engines_draw_what_a_chart_says(name, monkeypatch, tmp_path):
    """Every point, error bar, outline, label of an axis and tick, in matplotlib as in plotly."""
    chart, kept = CHARTS[name], []
    monkeypatch.setattr(figures, "save", lambda figure, path: kept.append(figure))
    figures.draw(tmp_path / "x", chart)
    (axis,) = kept[0].axes
    page = interactive.plot(chart)
    layout = page.figure.layout
    assert page.title == chart.title and all(series.name in page.description for series in chart.series)
    assert axis.get_xlabel() == layout.xaxis.title.text == chart.x_title
    assert axis.get_ylabel() == layout.yaxis.title.text == chart.y_title
    assert [axis.get_xscale(), axis.get_yscale()] == [
        "log" if chart.ticks else "linear",
        "log" if chart.logarithmic else "linear",
    ]
    assert [layout.xaxis.type, layout.yaxis.type] == [
        "log" if chart.ticks else None,
        "log" if chart.logarithmic else None,
    ]
    if chart.ticks:
        texts = [label.get_text() for label in axis.get_xticklabels()]
        assert texts == list(layout.xaxis.ticktext) == list(chart.ticks.values())
    if chart.even:
        assert axis.get_xlim()[0] == 0 and layout.xaxis.rangemode == "tozero"
    drawn = [np.array(line.get_xydata()) for line in axis.lines]
    traces = [np.array([trace.x, trace.y], float).T for trace in page.figure.data]
    for series in chart.series:
        curves = [np.array([series.x, series.y], float).T]
        curves += [] if series.outline is None else [series.outline.T]
        for curve in curves:
            assert any(np.array_equal(curve, line) for line in drawn)
            assert any(np.array_equal(curve, trace) for trace in traces)
        (trace,) = [t for t in page.figure.data if t.name == interactive._plain(series.name)]
        for error, bars in ((series.x_error, trace.error_x), (series.y_error, trace.error_y)):
            shown = None if bars.array is None else np.array([bars.arrayminus, bars.array])
            assert (error is None and shown is None) or np.array_equal(error, shown)
    errors = sum(s.x_error is not None or s.y_error is not None for s in chart.series)
    outlined = [c for c in axis.collections if len(c.get_paths())]
    assert bool(outlined) == bool(errors)
    legend = [text.get_text().strip() for text in kept[0].legends[0].texts]
    assert legend == [figures.short_label(series.name).strip() for series in chart.series]


def test_charts_of_an_experiment_show_means_and_extremes_over_seeds():
    losses = {
        ("SFT", 0): (4.0, 2.0),
        ("SFT", 1): (4.0, 3.0),
        ("robust", 0): (4.0, 1.0),
        ("robust", 1): (4, 1),
    }
    rows = [
        {"arm": arm, "seed": seed, "step": step, "loss": pair[step]}
        for (arm, seed), pair in losses.items()
        for step in (0, 1)
    ]
    sft, robust = curve_chart("t", rows, "loss").series
    assert (list(sft.x), list(sft.y), list(robust.y)) == ([0, 1], [4.0, 2.5], [4.0, 1.0])
    np.testing.assert_array_equal(sft.y_error, [[0, 0.5], [0, 0.5]])
    assert curve_chart("t", [row for row in rows if row["seed"] == 0], "loss").series[0].y_error is None
    radii = {"base": None, "live": 0.1, "static": 0.1}
    finals = [{"kind": k, "seed": s, "epsilon": e, "loss": s} for k, e in radii.items() for s in (0, 1)]
    finals.append({"kind": "variant", "seed": 0, "epsilon": 0.1, "loss": 9})  # is none of a row of radii
    chart = radius_chart([*finals, {"kind": "live", "seed": 0, "epsilon": 0.0, "loss": 7}], "loss")
    live, static = chart.series
    assert list(live.y) == [7, 0.5] and list(static.y) == [0.5] and (live.hollow, static.hollow) == (0, 1)
    assert [chart.ticks[x] for x in live.x] == ["0", "0.1"] and list(static.x) == [live.x[1]]


def test_the_base_is_the_origin_of_gain_against_forgetting():
    rows = [
        {"arm": "base", "gain": 0.0, "forgetting": 0.0},
        {"arm": "SFT", "gain": 0.5, "forgetting": 0.2, "gain_sd": 0.1, "forgetting_sd": 0.0},
        {"arm": "robust SFT", "gain": -0.1, "forgetting": 0.1},
    ]
    sft, robust = gain_chart(rows).series
    assert (sft.name, sft.hollow, robust.hollow, sft.x_error) == ("SFT", False, True, None)
    np.testing.assert_array_equal(sft.y_error, [[0.1], [0.1]])


@pytest.mark.parametrize("level", [0.5, 0.95])
def test_ellipse_is_the_level_set_of_the_covariance(level):
    x, y = np.linalg.cholesky([[4.0, 1.2], [1.2, 0.5]]) @ RNG.normal(size=(2, 40)) + [[3.0], [-1.0]]
    edge = covariance_ellipse(x, y, level) - [[x.mean()], [y.mean()]]
    distance = np.einsum("ik,ij,jk->k", edge, np.linalg.inv(np.cov(x, y)), edge)
    np.testing.assert_allclose(distance, stats.chi2.ppf(level, 2), rtol=1e-9)
    np.testing.assert_allclose(edge[:, 0], edge[:, -1], atol=1e-12)


def test_ellipse_holds_its_share_of_normal_pairs():
    pairs = RNG.multivariate_normal([0, 0], [[1, 0.8], [0.8, 1]], size=20_000).T
    edge = covariance_ellipse(*pairs)
    centred = pairs - pairs.mean(axis=1, keepdims=True)
    inverse = np.linalg.inv(np.cov(pairs))
    limit = (edge[:, :1] - pairs.mean(axis=1, keepdims=True)).T @ inverse
    limit = float((limit @ (edge[:, :1] - pairs.mean(axis=1, keepdims=True))).item())
    inside = np.einsum("ik,ij,jk->k", centred, inverse, centred) <= limit
    assert inside.mean() == pytest.approx(0.95, abs=0.006)


@pytest.mark.parametrize("centre", [(0.1, 0.2), (3, 0.1), (0.1, 3), (2, 2)])
def test_an_ellipse_is_clipped_to_what_multipliers_can_be(centre):
    """The clipped curve is the boundary of the ellipse's part in the quadrant: same area by counting."""
    from matplotlib.path import Path

    pairs = RNG.multivariate_normal(centre, [[0.2, 0.1], [0.1, 0.3]], size=50).T
    whole, part = covariance_ellipse(*pairs), clipped(covariance_ellipse(*pairs))
    assert part.min() >= -1e-12 and np.allclose(part[:, 0], part[:, -1])
    points = RNG.uniform(-3, 6, size=(20_000, 2))
    inside = Path(whole.T).contains_points(points) & (points >= 0).all(axis=1)
    assert (Path(part.T).contains_points(points) != inside).mean() < 1e-3


def test_ellipse_of_a_line():
    edge = covariance_ellipse(np.array([0.0, 1, 2]), np.zeros(3))
    np.testing.assert_allclose(edge[1], 0, atol=1e-12)


def test_latex_table():
    rows = [
        {"model": "a_b & 50 % {x} \\ λ", "p": 1.5e-9, "n": 3},
        {"model": "#~^$", "p": float("nan"), "n": -4},
        {"model": "c", "p": float("inf"), "n": 0},
    ]
    lines = latex_table(rows, {"model": "Model_1", "p": "β", "n": "n"}, "100 % sure").splitlines()
    assert lines[2] == r"\caption{100 \% sure}"
    assert lines[3:7] == [r"\begin{tabular}{lrr}", r"\toprule", r"Model\_1 & $\beta$ & n \\", r"\midrule"]
    assert lines[7] == r"a\_b \& 50 \% \{x\} \textbackslash{} $\lambda$ & $1.5 \cdot 10^{-9}$ & $3$ \\"
    assert lines[8] == r"\#\textasciitilde{}\textasciicircum{}\$ & -- & $-4$ \\"
    assert lines[9] == r"c & $\infty$ & $0$ \\"


def heat(value: float) -> HeatMap:
    matrix = np.array([[np.nan, value], [value, np.nan]])
    return HeatMap("who differs", "−log10 p", ["a", "b"], matrix, f"a and b: {value}")


def test_figures_for_papers(tmp_path):
    names = [str(k) for k in range(5)]
    pairs = {"a": (RNG.normal(size=5), RNG.normal(size=5), names), "b": (np.ones(1), np.zeros(1), ["0"])}
    chart = multipliers_chart(pairs)
    assert [series.outline for series in chart.series] == [None, None]  # five tell no covariance
    figures.draw(tmp_path / "pairs", chart)
    figures.draw_heat_map(tmp_path / "p", heat(400.0))
    assert {p.name for p in tmp_path.iterdir()} == {"pairs.svg", "pairs.png", "p.svg", "p.png"}


def test_ellipses_stand_around_enough_rounds():
    counts = {"a": FEWEST_ROUNDS - 1, "b": FEWEST_ROUNDS}
    pairs = {
        m: (RNG.normal(size=n), RNG.normal(size=n), [str(k) for k in range(n)]) for m, n in counts.items()
    }
    assert [series.outline is None for series in multipliers_chart(pairs).series] == [True, False]


def test_a_heat_map_of_many_names_is_no_larger_than_one_with_numbers(tmp_path):
    for count in (figures.MOST_NUMBERED, 60):
        names = [f"m{k}" for k in range(count)]
        chart = HeatMap("who differs", "−log10 p", names, np.full((count, count), 2.5), "all")
        figures.draw_heat_map(tmp_path / str(count), chart)
    sizes = [re.search(r'width="([\d.]+)pt"', path.read_text())[1] for path in sorted(tmp_path.glob("*.svg"))]
    assert sizes[0] == sizes[1]
    assert (
        (tmp_path / "25.svg").read_text().count("2.5") > 600 > (tmp_path / "60.svg").read_text().count("2.5")
    )


@pytest.mark.parametrize(
    "labels", [("d.1", "d.2"), ("a/b", "a-b"), ("../x", "x"), ("_a$b$", "$\\frac"), ("é" * 300, "e")]
)
def test_labels_are_no_markup_and_share_no_file(labels, tmp_path):
    points = [ProfilePoint(d, d, e, 1.0 + e, 0.1, 50 / (1 + e)) for d in labels for e in (0.0, 0.1, 1.0)]
    figures.plot_profiles(points, tmp_path / "f")
    assert len(list((tmp_path / "f").iterdir())) == 4 and list(tmp_path.iterdir()) == [tmp_path / "f"]
    figures.plot_rewards([[-1.0, -2.0]], tmp_path / "f" / "x.1")
    pairs = {d: (RNG.normal(size=5), RNG.normal(size=5), "abcde") for d in labels}
    figures.draw(tmp_path / "f" / "x.2", multipliers_chart(pairs))
    assert (tmp_path / "f" / "x.1.svg").exists() and (tmp_path / "f" / "x.2.svg").exists()


def test_models_may_be_called_like_numbers():
    """Else Plotly gives a heat map an axis of numbers, on which the names are gone."""
    matrix = np.full((2, 2), 1.0)
    page = interactive.heat_map(HeatMap("who differs", "p", ["0.05", "0.5"], matrix, ""))
    assert page.figure.layout.xaxis.type == page.figure.layout.yaxis.type == "category"


def test_long_names_that_differ_at_their_ends_stay_apart():
    names = [f"/home/somebody/experiments/robust-fine-tuning/a-model/runs/eps-{e}" for e in (0.05, 0.5)]
    chart = Chart("t", "x", "y", [Series(name, [0, 1], [0, 1]) for name in names])
    legend = [text.get_text() for text in figures.drawn(chart).legends[0].texts]
    assert len({*legend}) == 2 and all(map(str.endswith, legend, ("eps-0.05", "eps-0.5")))
    assert max(map(len, legend)) <= figures.LONGEST_NAME + 1


def test_both_engines_draw_what_a_heat_map_says(monkeypatch, tmp_path):
    """Cells, names, title and one scale whatever the numbers are."""
    kept = []
    monkeypatch.setattr(figures, "save", lambda figure, path: kept.append(figure))
    for chart in (heat(0.43), heat(9.0)):
        figures.draw_heat_map(tmp_path / "x", chart)
        axis, bar = kept[-1].axes
        page = interactive.heat_map(chart)
        cells, dashes = page.figure.data
        drawn = [text.get_text() for text in axis.texts]
        assert drawn == [*chain(*chart.cells())]
        assert sorted(drawn) == sorted(filter(None, [*chain(*cells.text), *dashes.text]))
        assert drawn.count("–") == 2 and list(zip(dashes.x, dashes.y, strict=True)) == [
            ("a", "a"),
            ("b", "b"),
        ]
        assert [t.get_text() for t in axis.get_xticklabels()] == list(cells.x) == list(chart.names)
        assert page.title == kept[-1].get_suptitle() == chart.title and chart.reading in page.description
        assert chart.value in bar.get_ylabel() and chart.value in cells.colorbar.title.text
        assert axis.images[0].get_clim() == (cells.zmin, cells.zmax) == (0, 4.0)


def test_many_lines_are_told_apart_and_named():
    """Colours, dashes and markers go round at different times; a legend of many names has columns."""
    styles = list(islice(line_styles(), 50))
    assert (
        len({(s["color"], s["marker"]) for s in styles})
        == 50
        == len({(s["color"], str(s["linestyle"])) for s in styles})
    )
    figure = klball.plot.profile({f"model {k}": np.arange(4.0) - k for k in range(40)})
    figure.canvas.draw()
    inside = figure.legends[0].get_window_extent()
    assert inside.y0 >= 0 and inside.x1 <= figure.bbox.width + 1 and len(figure.legends[0].get_texts()) == 40


@pytest.mark.parametrize(
    ("epsilons", "labelled"),
    [([0, 0.15, 0.7], {"0", "0.15", "0.7"}), ([0.1, 0.2, 0.5], {"0.1", "0.2", "0.5"})],
)
def test_own_radii_are_on_the_axis(epsilons, labelled):
    figure = klball.plot.profile({1: np.arange(4.0)}, epsilons=epsilons)
    assert {text.get_text() for text in figure.axes[0].get_xticklabels()} == labelled


def test_a_change_in_percent_has_the_digits_that_its_interval_needs():
    assert says(0.9951, 0.99495, 0.99525) == "0.49 % lower (95 % interval −0.50 to −0.48 %)"
    assert says(0.912, 0.869, 0.957) == "8.8 % lower (95 % interval −13.1 to −4.3 %)"
    assert change(1.0001, 0.99998, 1.0002).text == "+0.01 % [+0.00, +0.02]"  # no minus before 0
    assert change(0.99999, 0.99, 1.01).text == "+0.0 % [−1.0, +1.0]"
