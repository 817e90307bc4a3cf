"""How tables call models and data sets."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence

CONTROL = re.compile(r"[\0-\x1f\x7f-\x9f]")  # tables and figures show labels


def labelled(names: Sequence[str]) -> dict[str, str]:
    """label → name, of NAME or LABEL=NAME. Raises ValueError if labels repeat or a part is missing."""
    pairs = [name.partition("=") if "=" in name else (name, "=", name) for name in names]
    empty = next((pair for pair in pairs if not pair[0].strip() or not pair[2].strip()), None)
    if empty is not None:
        raise ValueError(f"{''.join(empty)!r} must be NAME or LABEL=NAME")
    labels = [label for label, _, _ in pairs]
    refuse_control(labels)
    if len(set(labels)) < len(labels):
        raise ValueError(f"labels repeat in {', '.join(labels)}: write LABEL=NAME")
    return {label: name for label, _, name in pairs}


def refuse_control(labels: Iterable[str]) -> None:
    """Raise ValueError for a label that holds control characters."""
    if odd := next((label for label in labels if CONTROL.search(label)), None):
        raise ValueError(f"{odd[:60]!r} cannot be a label: write LABEL=NAME without control characters")


def refuse_repeated(labels: Sequence[str], taken: Sequence[str] = ()) -> None:
    """Raise ValueError for a label that stands twice, or is one of `taken`."""
    count = Counter((*taken, *labels))
    if twice := next((label for label in labels if count[label] > 1), None):
        raise ValueError(f"two would be called {twice!r} in tables: rename one")
