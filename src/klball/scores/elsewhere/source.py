"""Rows of per-item results as a file or frame has them, and what its format knows of the columns."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from klball.scores.measure import Measure

Column = Any  # pa.ChunkedArray, or a sequence of Python's values


@dataclass(frozen=True)
class Source:
    """One file, log or frame.

    Attributes:
        where: What messages call it.
        columns: Name → values, one a row.
        written: The values are text as CSV has it, numbers included.
        id, group, round: The columns that hold them, "" for none that the format knows.
        measures: The scores that the format defines, the default first.
        lacking: The ids of items without a score → why: "unscored" or "truncated".
        lost: The places of their rows, from 0 → why; places: those of the other rows, None for all.
        task: What the items are of, where the tool has tasks; named: as the tool itself has it, and not only
            the file's name.
        settings: What its run was told, where the tool says so: of one task, other settings are no rounds.
        label: What a round is called if every file is one.
        model: Who was measured, where the file says so.
        texts: The columns of prompt and answer, "" for none.
        gaps: The tool leaves a score out, or writes NaN, where it has none: such rows leave, and are counted.
    """

    where: str
    columns: Mapping[str, Column]
    written: bool = False
    id: str = ""
    group: str = ""
    round: str = ""
    measures: Mapping[str, Measure] = field(default_factory=dict)
    lacking: Mapping[str, str] = field(default_factory=dict)
    lost: Mapping[int, str] = field(default_factory=dict)
    places: Sequence[int] | None = None
    task: str = ""
    named: bool = False
    settings: str = ""
    label: str = ""
    model: str = ""
    texts: tuple[str, str] = ("", "")
    gaps: bool = False

    @property
    def rows(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    def column(self, name: str, option: str) -> Column:
        """Raises ValueError naming the option where there is no such column."""
        if name not in self.columns:
            raise ValueError(
                f"{self.where} has no column {name!r} for --{option}; there are {listed(self.columns)}"
            )
        return self.columns[name]

    def numbers(self) -> list[str]:
        """Ids of the rows by where they stand in the file, rows without a score counted."""
        return [str(self.number(row)) for row in range(self.rows)]

    def number(self, row: int) -> int:
        """Where a row stands in the file, from 1."""
        return 1 + (row if self.places is None else self.places[row])

    def of_rows(self, kept: Sequence[int]) -> "Source":
        """Those rows alone, which keep their numbers."""
        columns = {
            name: column.take(kept) if isinstance(column, pa.ChunkedArray) else [column[row] for row in kept]
            for name, column in self.columns.items()
        }
        return replace(self, columns=columns, places=[self.number(row) - 1 for row in kept])

    def refusal(self, row: int, name: str, what: str) -> ValueError:
        """The error of one cell; rows count from 1."""
        return ValueError(f"{self.where}, row {self.number(row)} (counted from 1), {name}: {what}")


def is_there(value: Any) -> bool:
    """Neither missing nor NaN."""
    return value is not None and not (isinstance(value, float) and math.isnan(value))


def listed(names: Any) -> str:
    """Names with commas, the first twenty of them."""
    names = list(names)
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
