"""The embedded data sets, one module each: made on the spot, without a network, the same every time.

A module `some_name.py` in this folder is the data set `some-name`. It has `rows(split)`, for "train" and
"test"; what `rows` takes besides is written after a colon, as in `some-name:flip=0.2`. Rows of questions are
``{"id", "question", "answer"}``, and their module has `REWORDINGS`: kind of prompt → (its pattern, the same
prompt in other words, as format strings over the pattern's groups).
"""

import inspect
from collections.abc import Iterable
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from klball.files import digest

Row = dict[str, Any]
SPLITS = ("train", "test")
BUILTIN = tuple(sorted(module.name.replace("_", "-") for module in iter_modules(__path__)))


def is_builtin(name: str) -> bool:
    """Whether a name, settings after its colon left out, is that of an embedded data set."""
    return name.partition(":")[0] in BUILTIN


def load_builtin(name: str, split: str) -> list[Row]:
    """Rows of a built-in data set, as `doc-preferences:flip=0.2`; `split` is "train" or "test".

    Raises ValueError for a name, a setting or a split that does not exist.
    """
    if not is_builtin(name):
        raise ValueError(f"no built-in data set {name!r}; there are {', '.join(BUILTIN)}")
    if split not in SPLITS:
        raise ValueError(f"built-in data sets have the splits 'train' and 'test', not {split!r}")
    base, colon, settings = name.partition(":")
    rows = module_of(base).rows
    return rows(split, **_settings(base, settings, rows) if colon else {})


def _settings(name: str, text: str, rows: Any) -> dict[str, float]:
    """The numbers of "flip=0.2", by what `rows` takes."""
    known = [name for name in inspect.signature(rows).parameters if name != "split"]
    found: dict[str, float] = {}
    for part in text.split(","):
        setting, _, value = part.partition("=")
        if setting not in known or setting in found:
            there = f"takes {', '.join(f'{one}=…' for one in known)}" if known else "takes no settings"
            raise ValueError(f"{name} {there}, once each, after the colon, not {part!r}")
        try:
            found[setting] = float(value)
        except ValueError as error:
            raise ValueError(f"{name}: {setting} must be a number, not {value!r}") from error
    return found


def module_of(name: str) -> Any:
    """The module of a built-in data set."""
    return import_module(f"{__name__}.{name.replace('-', '_')}")


def row_of(question: str, answer: str) -> Row:
    """A row whose id is a hash of its contents."""
    return {"id": content_hash(question, answer), "question": question, "answer": answer}


def data_hash(rows: Iterable[Row]) -> str:
    """Sixteen hexadecimal digits that identify the rows' contents, whatever their order."""
    return content_hash(*sorted(content_hash(row["question"], row["answer"]) for row in rows))


def content_hash(*parts: str) -> str:
    """Sixteen hexadecimal digits that identify these texts."""
    return digest("\x1f".join(parts))
