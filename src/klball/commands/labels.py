"""How tables call models and data sets, and the file name that each label becomes."""

import re
from collections.abc import Iterable, Sequence

CONTROL = re.compile(r"[\0-\x1f\x7f-\x9f]")  # tables and figures show labels
LONGEST = 200  # bytes: file systems hold 255, and a suffix follows


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


def file_names(labels: Iterable[str], taken: Iterable[str] = ()) -> dict[str, str]:
    """label → a file name of letters, digits and `. = - _`, never one that leaves its folder.

    Raises ValueError for a label that is no name, is too long, or would share a file with another or
    with one of `taken`.
    """
    found: dict[str, str] = {}
    owners = {name.casefold(): name for name in taken}
    for label in labels:
        name = re.sub(r"[^\w.=-]+", "_", label.strip("/"))
        if not name.strip(".") or CONTROL.search(label) or len(name.encode()) > LONGEST:
            raise ValueError(f"{label[:60]!r} cannot name a file: write LABEL=NAME with a short label")
        if name.casefold() in owners:
            raise ValueError(
                f"{owners[name.casefold()]!r} and {label!r} would share the file name {name!r}: rename one"
            )
        owners[name.casefold()] = label
        found[label] = name
    return found
