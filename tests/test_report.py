"""The one-file report in a real browser, and its parts against independent oracles."""

import csv
import json
import shutil
import time
from itertools import pairwise

import numpy as np
import pytest

from klball.files import write_csv
from klball.report import interactive
from klball.report.charts import (
    Chart,
    HeatMap,
    Series,
    multipliers_chart,
    profile_charts,
)
from klball.report.page import Cell, Page, Plot, Record, Section, Table, render, script_json, write_page
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


LONG = (
    "all of it",
    "the hardest 1 % as the reference chose them: 1 row",
    "group of/an-author-and-a-model-350M",
)


def a_page() -> Page:
    pairs = {
        m: (RNG.normal(size=12), RNG.normal(size=12), [str(i) for i in range(12)]) for m in ("base", NASTY)
    }
    matrix = np.array([[np.nan, 3.2], [3.2, np.nan]])
    strips = {f"base − {NASTY}": (RNG.normal(size=9), [str(i) for i in range(9)])}
    profile = [ProfilePoint("d", "base", e, 1.0 + e, 0.1, 50 / (1 + e)) for e in (0.0, 0.1, 1.0)]
    charts = [*profile_charts(profile, "d"), multipliers_chart(pairs), CHARTS["bands"]]
    heat = HeatMap("p-values", "−log10 p", ["base", NASTY], matrix, NASTY)
    plots = {
        "strips": interactive.paired_differences(strips, {f"base − {NASTY}": (0.1, -0.2, 0.4)}, "difference"),
        "dots": interactive.intervals({"tuned": dict.fromkeys(LONG, (0.9, 0.8, 1.1))}, "ratio", 1.0),
    }
    return Page(
        title=f"A report {NASTY}",
        subtitle="A page for tests",
        verdict=["One.", NASTY],
        sections=[
            Section("Charts", [*map(interactive.plot, charts), interactive.heat_map(heat)]),
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
            assert str(cell.get_attribute("data-value")).removeprefix("nan") == expected[key]
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
    figures = page.evaluate(
        "[...document.querySelectorAll('.plot')].map(x => [x.id, x._fullLayout._size.w / x.clientWidth])"
    )
    assert len(figures) == 7 and not {name: share for name, share in figures if share < 0.7}
    names = page.evaluate("[...document.querySelectorAll('.plot .annotation-text')].map(x => x.textContent)")
    assert "all of it" in names
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


def test_plotly_is_embedded_once():
    html = render(a_page())
    assert html.count("plotly.js v") == 1
    assert "cdn." not in html[: html.index("plotly.js v")]


def test_a_cell_sorts_by_its_number_and_shows_its_text():
    html = render(Page("p", ["v"], [Section("s", [Table("t", [{"ratio": Cell(0.5, "half")}])])]))
    assert '<td class="number" data-value="0.5">half</td>' in html


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


def test_a_filter_finds_groups_with_several_spaces():
    """Browsers make one of them where an option has no value of its own."""
    rows = [{"group": "my  run", "loss": 1.0}]
    page = Page(
        title="t", verdict=[], sections=[Section("s", [Table("rows", rows, search=True, group="group")])]
    )
    assert '<option value="my  run">' in render(page)


def test_on_paper_everything_is_open_and_closed_again_afterwards(browser, path):
    page = Opened(browser, path).page
    closed = page.locator("details:not([open])").count()
    assert closed >= 2
    page.pdf()  # which prints
    assert page.locator("details:not([open])").count() == closed
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details:not([open])").count() == 0
    assert page.locator("pre").is_visible() and page.locator("td details div").first.is_visible()
    hidden = page.locator(".hint, .controls, td details summary").all()
    assert len(hidden) >= 3 and not any(part.is_visible() for part in hidden)
    buttons = page.locator("thead button").all()
    assert {button.evaluate("b => getComputedStyle(b).display") for button in buttons} == {"contents"}
