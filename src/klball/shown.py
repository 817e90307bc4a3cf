"""How results show themselves: a line where they are printed, a small table in a notebook."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, ClassVar

import numpy as np

FEW = 4  # entries of a list are shown


def in_words(column: str) -> str:
    """A column's name for people: "worst 5 %" of `worst_5pct` and of `cvar_0.05`."""
    if tail := re.fullmatch(r"cvar_(\d*\.\d+)", column):
        return f"worst {100 * float(tail[1]):g} %"
    return re.sub(r"(\d)pct\b", r"\1 %", column.replace("_", " "))


class Shown:
    """A dataclass whose `repr` is one line: numbers to four digits, of arrays and long lists their spans.

    `shows` names the attributes that say most, in order; by default all fields.
    """

    shows: ClassVar[Sequence[str]] = ()

    def shown(self) -> dict[str, str]:
        """Attribute → its value in few signs."""
        of: Any = self
        names = self.shows or [field.name for field in dataclasses.fields(of)]
        return {name: brief(getattr(self, name)) for name in names}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v}' for k, v in self.shown().items())})"

    def _repr_html_(self) -> str:
        return self.as_table()

    def as_table(self) -> str:
        """`shown` as an HTML table."""
        rows = (f"<tr><th>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in self.shown().items())
        return f"<table><caption>{type(self).__name__}</caption>{''.join(rows)}</table>"


def brief(value: Any) -> str:
    """A value in few signs."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, np.ndarray) and value.dtype.kind == "f" and np.isfinite(value).any():
        finite = value[np.isfinite(value)]
        return f"{finite.min():.4g} … {finite.max():.4g} {_shape(value)}"
    if getattr(value, "shape", ()):
        return _shape(value)
    if isinstance(value, Mapping):
        value = [f"{name}: {brief(own)}" for name, own in value.items()]
    if isinstance(value, list | tuple):
        few = len(value) <= FEW
        shown = map(brief, value if few else [*value[:2], "…", value[-1]])
        return f"[{', '.join(shown)}]{'' if few else f' ({len(value)})'}"
    return str(value)


def _shape(array: Any) -> str:
    return f"({' × '.join(map(str, array.shape))})"
