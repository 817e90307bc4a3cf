"""The one-file report in a real browser, and its parts against independent oracles."""

import csv
import json
import shutil
import time
from itertools import pairwise

import numpy as np
import pytest
from scipy import stats

from klball.files import write_csv
from klball.report import figures, interactive
from klball.report.charts import (
    Chart,
    Series,
    curve_chart,
    gain_chart,
    multipliers_chart,
    profile_charts,
    radius_chart,
)
from klball.report.ellipse import clipped, covariance_ellipse
from klball.report.page import Cell, Page, Plot, Record, Section, Table, render, script_json, write_page
from klball.report.paper import latex_table, plot_p_values
from klball.scores.perplexity import ProfilePoint

NASTY = "</script><script>window.broken = 1</script><img src=x onerror='window.broken = 1'> & <b>bold</b>"
RNG = np.random.default_rng(0)
NUMBERS = [
    {"model": "base", "value": 0.1 + 0.2, "count": 7, "missing": None},
    {"model": "tuned", "value": -1.0 / 3, "count": 40, "missing": float("nan")},
    {"model": "worse", "value": 1e-12, "count": 100, "missing": float("inf")},
]
SAMPLES = [
    {"list": "hardest", "sample": f"s{i}", "weight": 1.5 * i, "text": f"plain text number {i}"}
    for i in range(30)
] + [{"list": "top-weighted", "sample": "evil", "weight": 99.0, "text": NASTY + " filler" * 60}]


ONE, TWO = np.array([[0.1], [0.3]]), np.array([[0.2, 0.1], [0.1, 0.2]])
CHARTS = {
    "bands": Chart("t", "step", "loss", [Series(NASTY, [0, 1], [2.0, 1.0], y_error=TWO)], "note"),
    "plain": Chart("t", "step", "loss", [Series("_a$b$", [0.5, 1], [2.0, 1.0], hollow=True)]),
    "points": Chart(
        "t, at length",
        "forgetting: KL, nats",
        "gain, nats",
        [
            Series("a", [0.1], [0.2], x_error=ONE, y_error=ONE),
            Series("b", [0.3, 0.4, 0.2], [0.1, 0.3, 0.3], outline=np.array([[0.1, 0.5], [0.0, 0.4]])),
        ],
        joined=False,
        even=True,
    ),
    "empty": Chart("t", "x", "y", [Series("none left", [], [])], joined=False),
    "logarithms": Chart(
        "t",
        "radius ε, nats",
        "ESS",
        [Series("a", [0.03, 0.1], [50.0, 5.0], labels=["ε = 0", "ε = 0.1"])],
        ticks={0.03: "0", 0.1: "0.1"},
        logarithmic=True,
    ),
}


def a_page() -> Page:
    pairs = {m: (RNG.normal(size=9), RNG.normal(size=9), [str(i) for i in range(9)]) for m in ("base", NASTY)}
    matrix = np.array([[np.nan, 3.2], [3.2, np.nan]])
    strips = {f"base − {NASTY}": (RNG.normal(size=9), [str(i) for i in range(9)])}
    profile = [ProfilePoint("d", "base", e, 1.0 + e, 0.1, 50 / (1 + e)) for e in (0.0, 0.1, 1.0)]
    charts = [*profile_charts(profile, "d"), multipliers_chart(pairs), CHARTS["bands"]]
    plots = {
        "heat": interactive.heat_map(matrix, ["base", NASTY], "−log10 p"),
        "strips": interactive.paired_differences(strips, {f"base − {NASTY}": (0.1, -0.2, 0.4)}, "difference"),
        "dots": interactive.intervals({"tuned": {"all of it": (0.9, 0.8, 1.1)}}, "ratio", 1.0),
    }
    return Page(
        title=f"A report {NASTY}",
        subtitle="A page for tests",
        verdict=["One.", NASTY],
        sections=[
            Section("Charts", [interactive.plot(chart) for chart in charts]),
            Section("Figures", [Plot(name, figure, f"figure {NASTY}") for name, figure in plots.items()]),
            Section("Numbers", [Table("Table of numbers", NUMBERS, note="As in the CSV.")]),
            Section("Samples", [Table("All samples", SAMPLES, long=("text",), search=True, group="list")]),
            Section("Provenance", [Record("Options", {"prompt": NASTY})]),
        ],
    )


@pytest.fixture(scope="module")
def browser():
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium on this machine: the report cannot be opened")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_page(a_page(), path)
    return path


class Opened:
    """A tab with the report, and everything the browser complained about or asked for."""

    def __init__(self, browser, path, width=1280, scheme="light"):
        self.url = path.as_uri()
        self.complaints, self.requests = [], []
        self.page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(self.url)
        self.page.wait_for_function("document.querySelectorAll('.plot .main-svg').length >= 5")


@pytest.fixture(scope="module")
def desktop(browser, path):
    return Opened(browser, path)


def test_loads_without_a_complaint_or_a_request(desktop):
    assert desktop.complaints == []
    assert desktop.requests == [desktop.url]


def test_texts_of_data_show_as_text(desktop):
    assert desktop.page.evaluate("window.broken") is None
    assert desktop.page.locator("main b, main img:not(.plot img)").count() == 0
    assert NASTY in desktop.page.locator(".verdict").inner_text()
    assert NASTY in desktop.page.locator("td details div").text_content()
    assert json.loads(desktop.page.locator("pre").text_content()) == {"prompt": NASTY}
    ticks = desktop.page.locator(".plot .yaxislayer-above text").all_text_contents()
    assert any("<b>bold</b>" in tick for tick in ticks)


def test_policy_stops_a_script_that_is_not_the_pages_own(desktop):
    desktop.page.evaluate(
        "() => { const s = document.createElement('script'); s.textContent = 'window.injected = 1';"
        " document.body.append(s); }"
    )
    assert desktop.page.evaluate("window.injected") is None
    desktop.complaints.clear()  # the browser reports the blocked script


def shown(page):
    return page.locator(".searchable tbody tr:visible").count()


def test_filter_by_keyboard(desktop):
    page = desktop.page
    total = len(SAMPLES)
    assert shown(page) == total
    page.get_by_label("Search").focus()
    page.keyboard.type("NUMBER 29")
    assert shown(page) == 1
    assert page.locator(".searchable output").inner_text() == f"1 of {total} rows"
    page.keyboard.press("Escape")
    assert shown(page) == total
    page.keyboard.press("Tab")
    page.keyboard.type("top")  # the list of groups selects by its first letters
    assert shown(page) == 1
    page.get_by_label("list").select_option("")
    assert shown(page) == total


def test_sorting_by_keyboard_uses_the_numbers(desktop):
    page = desktop.page
    header = page.locator("th[data-key=count]")
    header.locator("button").focus()
    for order in ("ascending", "descending"):
        page.keyboard.press("Enter")
        assert header.get_attribute("aria-sort") == order
        counts = page.locator("table:has(th[data-key=count]) tbody td:nth-child(3)").all_text_contents()
        assert counts == (["7", "40", "100"] if order == "ascending" else ["100", "40", "7"])
    page.locator("th[data-key=missing] button").press("Enter")
    last = page.locator("table:has(th[data-key=count]) tbody tr td:nth-child(4)").all_text_contents()
    assert last[0] == "∞" and last[1:] == ["–", "–"]


def test_tooltip_on_hover(desktop):
    point = desktop.page.locator(".plot .scatterlayer .point").first
    point.scroll_into_view_if_needed()
    point.hover(force=True)
    tooltip = desktop.page.locator(".hoverlayer .hovertext")
    tooltip.first.wait_for(timeout=3000)
    assert "ε = 0" in tooltip.first.text_content()


def test_numbers_equal_the_csv(desktop, tmp_path):
    write_csv(tmp_path / "numbers.csv", NUMBERS)
    written = {row["model"]: row for row in csv.DictReader((tmp_path / "numbers.csv").open())}
    rows = desktop.page.locator("table:has(th[data-key=count]) tbody tr")
    for row in rows.all():
        model, *values = row.locator("td").all()
        expected = written[model.inner_text()]
        for cell, key in zip(values, ("value", "count", "missing"), strict=True):
            assert cell.get_attribute("data-value") == expected[key]
            if key == "value":
                assert float(cell.inner_text().replace("−", "-")) == pytest.approx(
                    float(expected[key]), rel=1e-3
                )


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_phone_width_and_contrast(browser, path, scheme):
    page = Opened(browser, path, width=390, scheme=scheme).page
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    widths = page.evaluate("[...document.querySelectorAll('.plot .main-svg')].map(x => x.clientWidth)")
    assert max(widths) <= 390
    background = colour(page, "body", "backgroundColor")
    assert (luminance(background) < 0.1) == (scheme == "dark")
    for selector in (
        "main li",
        ".note",
        ".subtitle",
        "output",
        "nav a",
        "td",
        "summary",
        ".plot .xtick text",
    ):
        ink = colour(page, selector, "fill" if "text" in selector else "color")
        assert contrast(ink, background) >= 4.5, selector
    panel = colour(page, "th", "backgroundColor")
    assert contrast(colour(page, "th", "color"), panel) >= 4.5
    page.close()


def colour(page, selector, name):
    text = page.locator(selector).first.evaluate(f"element => getComputedStyle(element).{name}")
    return [int(part) for part in text[text.index("(") + 1 : -1].split(",")[:3]]


def luminance(rgb):
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in np.array(rgb) / 255]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def contrast(a, b):
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def test_page_is_accessible(desktop):
    page = desktop.page
    assert page.locator("html").get_attribute("lang") == "en"
    levels = page.evaluate("[...document.querySelectorAll('h1,h2,h3,h4')].map(h => Number(h.tagName[1]))")
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert all(plot.get_attribute("aria-label") for plot in page.locator(".plot").all())
    page.evaluate("document.activeElement.blur(); window.scrollTo(0, 0)")
    assert page.locator(".skip").get_attribute("href") == "#main"


def test_a_failed_page_leaves_the_old_one(path):
    before = path.read_bytes()
    broken = Page("x", ["y"], [Section("z", [Table("t", [{"a": 1}, {"b": 2}])])])
    with pytest.raises((KeyError, ValueError)):
        write_page(broken, path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


def test_figures_in_the_page_are_plain_json():
    chart = Chart("t", "x", "y", [Series("<b>&\u2028</script>", [1], [2])])
    figure = interactive.plot(chart).figure
    text = script_json(figure)
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == json.loads(figure.to_json())


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
    assert legend == [figures.name_of(series.name).strip() for series in chart.series]


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


def test_plotly_is_embedded_once():
    html = render(a_page())
    assert html.count("plotly.js v") == 1
    assert "cdn." not in html[: html.index("plotly.js v")]


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


def test_ellipse_of_a_line_and_of_too_few():
    edge = covariance_ellipse(np.array([0.0, 1, 2]), np.zeros(3))
    np.testing.assert_allclose(edge[1], 0, atol=1e-12)
    with pytest.raises(ValueError, match="two pairs"):
        covariance_ellipse(np.array([1.0]), np.array([1.0]))


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
    with pytest.raises(ValueError, match="no rows"):
        latex_table([], {"a": "a"}, "none")


def test_figures_for_papers(tmp_path):
    names = [str(k) for k in range(5)]
    pairs = {"a": (RNG.normal(size=5), RNG.normal(size=5), names), "b": (np.ones(1), np.zeros(1), ["0"])}
    figures.draw(tmp_path / "pairs", multipliers_chart(pairs))
    plot_p_values(np.array([[np.nan, 400.0], [400.0, np.nan]]), ["a", "b"], "t", tmp_path / "p")
    assert {p.name for p in tmp_path.iterdir()} == {"pairs.svg", "pairs.png", "p.svg", "p.png"}


def test_a_cell_sorts_by_its_number_and_shows_its_text():
    html = render(Page("p", ["v"], [Section("s", [Table("t", [{"ratio": Cell(0.5, "half")}])])]))
    assert '<td class="number" data-value="0.5">half</td>' in html


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


@pytest.mark.parametrize("long", [(), ("text",)])
def test_a_page_takes_time_in_proportion_to_its_rows(long):
    """And of long texts a few hundred are drawn, of every group the first ones."""

    def drawn(rows):
        table = Table(
            "t",
            [{"model": f"m{i % 3}", "n": i, "text": "w " * 200} for i in range(rows)],
            long=long,
            group="model",
        )
        began = time.process_time()
        html = render(Page("p", ["v"], [Section("s", [table])]))
        return time.process_time() - began, html

    drawn(10)
    assert drawn(8_000)[0] < 12 * drawn(1_000)[0] + 0.5  # 20 times and more where it was quadratic
    html = drawn(8_000)[1]
    assert html.count("<details>") == (300 if long else 0)
    if long:
        assert "7700 more are in the files beside this page" in html and 'data-value="299"' in html


def test_heat_maps_share_one_scale():
    scales = [
        interactive.heat_map(np.array([[np.nan, x], [x, np.nan]]), ["a", "b"], "t").data[0]
        for x in (0.43, 9.0)
    ]
    assert {(h.zmin, h.zmax) for h in scales} == {(0, 4.0)}
