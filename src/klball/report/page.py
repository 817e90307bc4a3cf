"""A report in one HTML file: parts are values, a template draws them, nothing is loaded from elsewhere."""

import base64
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import plotly.io
from markupsafe import Markup
from plotly.graph_objects import Figure
from plotly.offline import get_plotlyjs

from klball.files import digest, write_text
from klball.shown import in_words

MOST_TEXTS, MOST_ROWS = 300, 1_000  # rows of a table with long texts, and of any other
EXCERPT = 180  # characters of a text that are shown before it is opened
# what a JSON text may not hold inside <script>, and the line separators that JavaScript once refused
ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


@dataclass(frozen=True)
class Cell:
    """A number to sort by and export, and the text that shows it: 1.02 as "1.02 [0.98, 1.07]"."""

    value: float
    text: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Table:
    """Rows of equal keys under the headings of `columns` (all keys by default); sortable.

    `long`: columns of long texts, folded to an excerpt. Of many rows the first few hundred are drawn, and
    `rest` says where the others are. `search`: a box that filters rows, and with `group` also a list of
    that column's values.
    """

    title: str
    rows: Sequence[Mapping[str, Any]]
    columns: Mapping[str, str] = field(default_factory=dict)
    note: str = ""
    long: Sequence[str] = ()
    search: bool = False
    group: str = ""
    rest: str = "in the files beside this page"
    kind: str = field(default="table", init=False)

    def headings(self) -> Mapping[str, str]:
        """Key → heading."""
        return self.columns or {key: in_words(key) for key in (self.rows[0] if self.rows else {})}

    @cached_property
    def numeric(self) -> set[str]:
        """The columns that hold numbers only, and so go to the right."""
        found = set()
        for key in self.headings():
            values = [row[key] for row in self.rows if row[key] is not None]
            if values and all(isinstance(v, int | float | Cell) for v in values):
                found.add(key)
        return found

    @cached_property
    def shown(self) -> Sequence[Mapping[str, Any]]:
        """The rows that are drawn: the first ones of each group, so many in all."""
        most = MOST_TEXTS if self.long else MOST_ROWS
        if len(self.rows) <= most:
            return self.rows
        seen: Counter[str] = Counter()
        places = []
        for place, row in enumerate(self.rows):
            group = str(row[self.group]) if self.group else ""
            places.append((seen[group], place))
            seen[group] += 1
        return [self.rows[place] for place in sorted(place for _, place in sorted(places)[:most])]

    def left_out(self) -> str:
        """What is not drawn, and where it is; "" if all is."""
        left = len(self.rows) - len(self.shown)
        each = " of each of the list" if self.group else ""
        return f"The first rows{each}, {len(self.shown)} in all; {left} more are {self.rest}." if left else ""

    def groups(self) -> list[str]:
        """The values of the `group` column, in order of appearance."""
        return list(dict.fromkeys(str(row[self.group]) for row in self.rows)) if self.group else []


@dataclass(frozen=True)
class Plot:
    """A plotly figure; `description` is read aloud in its place, `note` is printed under it."""

    title: str
    figure: Figure
    description: str
    note: str = ""
    kind: str = field(default="plot", init=False)


@dataclass(frozen=True)
class Record:
    """Nested values (options, versions, provenance), folded away."""

    title: str
    values: Mapping[str, Any]
    kind: str = field(default="record", init=False)

    def text(self) -> str:
        """The values as indented JSON."""
        return json.dumps(self.values, indent=2, ensure_ascii=False, default=str)


Part = Table | Plot | Record


@dataclass(frozen=True)
class Section:
    """A heading, a paragraph and parts."""

    title: str
    parts: Sequence[Part]
    intro: str = ""


@dataclass(frozen=True)
class Page:
    """A report: the verdict comes first, where there is one in plain lines (headline), then in sentences."""

    title: str
    verdict: Sequence[str]
    sections: Sequence[Section]
    subtitle: str = ""
    headline: Sequence[str] = ()


def write_page(page: Page, path: str | Path) -> None:
    """Write the page as one HTML file, whole or not at all."""
    write_text(Path(path), render(page))


def render(page: Page) -> str:
    """The page as HTML. Texts are escaped, and no script but the page's own two may run."""
    source = files("klball.report")
    scripts = [get_plotlyjs(), source.joinpath("page.js").read_text(encoding="utf-8")]
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters.update(number=number, exact=exact, json=script_json, excerpt=excerpt)
    template = environment.from_string(source.joinpath("template.html.j2").read_text(encoding="utf-8"))
    return template.render(
        page=page,
        style=Markup(source.joinpath("page.css").read_text(encoding="utf-8")),
        scripts=[Markup(script) for script in scripts],
        hashes=Markup(" ".join(map(_integrity, scripts))),
    )


def _integrity(script: str) -> str:
    """A script's entry in the content security policy: scripts without one are blocked by the browser."""
    whole = bytes.fromhex(digest(script, 64))
    return f"'sha256-{base64.b64encode(whole).decode()}'"


def script_json(figure: Figure) -> Markup:
    """A figure as JSON that can stand inside <script>."""
    text = plotly.io.to_json(figure)
    assert text is not None
    for character, escape in ESCAPES.items():
        text = text.replace(character, escape)
    return Markup(text)


def number(value: Any) -> str:
    """A cell's text: four digits, a dash for what is not there."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, float) and math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if isinstance(value, float):
        return f"{value:.4g}".replace("-", "−")
    return str(value)


def exact(value: Any) -> str:
    """The number behind a cell, as CSV files have it; "" for what is no number."""
    value = value.value if isinstance(value, Cell) else value
    return str(value) if isinstance(value, int | float) else ""


def excerpt(text: str) -> str:
    """The beginning of a long text."""
    return text if len(text) <= EXCERPT else text[:EXCERPT].rstrip() + " …"
