"""Texts and columns of them, and how a refusal names a row."""

import math
from collections.abc import Collection
from typing import Any

from datasets import ClassLabel, Dataset


def folded(text: str) -> str:
    """In lower case and with single blanks."""
    return " ".join(text.casefold().split())


def refusal(row: int, column: str, what: str) -> ValueError:
    """The error for a row (an index from 0) that cannot be used."""
    return ValueError(f"row {row + 1} (counted from 1), {column}: {what}")


def found(value: Any) -> str:
    """What a value is, in the words of a data file."""
    names = {type(None): "null", list: "a list", dict: "an object", bytes: "bytes", str: "text"}
    return names.get(type(value), f"{type(value).__name__} {str(value)[:40]!r}")


def refuse_images(columns: Collection[str]) -> None:
    """Raise ValueError for a column of images, which TRL would read as a part of the prompt."""
    if {"image", "images"}.intersection(columns):
        raise ValueError("images are not supported: leave out the column image or images")


def refuse_other_kind(value: Any, first: Any, row: int, column: str) -> None:
    """Raise ValueError for null, and where texts stand beside lists of turns."""
    if value is None:
        raise refusal(row, column, "null: write text, or leave the row out")
    if isinstance(value, list) != isinstance(first, list):
        raise refusal(row, column, f"{found(value)}, but in row 1 {found(first)}: give one kind")


def texts(dataset: Dataset, column: str, empty: bool = False) -> list[str]:
    """A column as text, unchanged: numbers as they are written, true and false as JSON writes them.

    empty: null is "". Raises ValueError with the row for null, lists, objects, bytes, dates and labels.
    """
    if isinstance(dataset.features[column], ClassLabel):
        raise ValueError(f"{column} holds class labels, not text: write out their names")
    return [_text(value, row, column, empty) for row, value in enumerate(dataset[column])]


def _text(value: Any, row: int, column: str, empty: bool) -> str:
    if isinstance(value, str):
        return value
    if value is None and empty:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float) and math.isfinite(value):
        return repr(value)
    what = "text is missing (null, or the column is absent)" if value is None else f"{found(value)}, not text"
    raise refusal(row, column, f"{what}; write text, or leave the row out")
