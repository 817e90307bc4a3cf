"""The embedded data sets, one module each: made on the spot, without a network, the same every time.

A module `some_name.py` in this folder is the data set `some-name`. It has `rows(split)`, for "train" and
"test", and `REWORDINGS`: kind of prompt → (its pattern, the same prompt in other words, as format strings
over the pattern's groups). Rows are ``{"id", "question", "answer"}``.
"""

from collections.abc import Iterable
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from klball.files import digest

Row = dict[str, str]
SPLITS = ("train", "test")
BUILTIN = tuple(sorted(module.name.replace("_", "-") for module in iter_modules(__path__)))


def load_builtin(name: str, split: str) -> list[Row]:
    """Rows of a built-in data set; `split` is "train" or "test".

    Raises ValueError for a name or split that does not exist.
    """
    if name not in BUILTIN:
        raise ValueError(f"no built-in data set {name!r}; there are {', '.join(BUILTIN)}")
    if split not in SPLITS:
        raise ValueError(f"built-in data sets have the splits 'train' and 'test', not {split!r}")
    return module_of(name).rows(split)


def module_of(name: str) -> Any:
    """The module of a built-in data set."""
    return import_module(f"{__name__}.{name.replace('-', '_')}")


def row_of(question: str, answer: str) -> Row:
    """A row whose id is a hash of its contents."""
    return {"id": _content_hash(question, answer), "question": question, "answer": answer}


def data_hash(rows: Iterable[Row]) -> str:
    """Sixteen hexadecimal digits that identify the rows' contents, whatever their order."""
    return _content_hash(*sorted(_content_hash(row["question"], row["answer"]) for row in rows))


def _content_hash(*parts: str) -> str:
    return digest("\x1f".join(parts))
