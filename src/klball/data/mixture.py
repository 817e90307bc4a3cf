"""Several sources as one: the `datasets` of TRL's recipes, local files read as `load_rows` reads them."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, concatenate_datasets, load_dataset
from trl.scripts.utils import DatasetConfig

from klball.boundary import first_line
from klball.data.readers import KINDS, dataset_of_columns, suffix_of
from klball.data.sources import as_dataset, matches_of, rows_of_files, source_rows

BUILDERS = frozenset(KINDS.values())  # what `datasets` calls the kinds of files that klball reads


def mixed_rows(parts: Sequence[DatasetConfig]) -> Dataset:
    """The rows of all parts, one after the other; where they have fractions, the first ones of each.

    Of part i there are round(wᵢ · minⱼ nⱼ/wⱼ) of its nᵢ rows, wᵢ its share of the fractions.

    Raises:
        ValueError: A part's source, split, column or fraction is bad; it is named.
    """
    names = [f"`datasets`, entry {place} ({_source(part)})" for place, part in enumerate(parts, 1)]
    shares = [_share(part, name) for part, name in zip(parts, names, strict=True)]
    sources = [_read(part, name) for part, name in zip(parts, names, strict=True)]
    if any(shares):
        if not all(shares):
            raise ValueError(f"{names[shares.index(0)]}: give fraction for every entry, or for none")
        shares = [share / max(shares) for share in shares]  # whose sum is finite
        weights = [share / sum(shares) for share in shares]
        total = min(len(rows) / weight for rows, weight in zip(sources, weights, strict=True))
        kept = [round(weight * total) for weight in weights]
        sources = [rows.select(range(count)) for rows, count in zip(sources, kept, strict=True)]
    return _together(sources)


def _source(part: DatasetConfig) -> str:
    return str(part.path if part.data_files is None else part.data_files)


def _share(part: DatasetConfig, name: str) -> float:
    if part.fraction is None:
        return 0.0
    if not (math.isfinite(part.fraction) and part.fraction > 0):
        raise ValueError(f"{name}: fraction must be a number above 0, not {part.fraction!r}")
    return part.fraction


def _read(part: DatasetConfig, name: str) -> Dataset:
    try:
        rows = _rows(part)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    wanted = rows.column_names if part.columns is None else part.columns
    absent = next((column for column in wanted if column not in rows.column_names), None)
    if absent is not None:
        raise ValueError(f"{name}: no column {absent!r}; there are {', '.join(rows.column_names)}")
    if len({*wanted}) < len(wanted):
        raise ValueError(f"{name}: columns are named twice: {', '.join(wanted)}")
    return rows.select_columns(wanted)


def _rows(part: DatasetConfig) -> Dataset:
    """The part's split: of local files by klball's own readers, which guess no types."""
    folder, files = Path(part.path).expanduser(), _listed(part.data_files)
    remote = any("://" in file for some in files.values() for file in some)
    if part.path in BUILDERS and part.data_files is None:
        raise ValueError(f"{part.path} needs data_files")
    if part.data_files is not None and not remote and (part.path in BUILDERS or folder.is_dir()):
        return _of_files(part, files)
    if part.data_files is not None or (part.data_dir and not folder.is_dir()):
        return _by_datasets(part)
    name = str(folder / part.data_dir) if part.data_dir else part.path
    if part.data_dir and not (folder / part.data_dir).is_dir():
        raise ValueError(f"there is no folder {name}")
    return source_rows(name, part.split, part.name)


def _listed(files: str | list[str] | dict[str, str] | None) -> dict[str, list[str]]:
    if files is None:
        return {}
    by_split: dict[str, Any] = files if isinstance(files, dict) else {"train": files}
    listed = {split: some if isinstance(some, list) else [some] for split, some in by_split.items()}
    for some in listed.values() or [[]]:
        if not some or not all(isinstance(file, str) and file for file in some):
            raise ValueError(f"data_files must name files, by split where there are several, not {files!r}")
    return listed


def _of_files(part: DatasetConfig, files: dict[str, list[str]]) -> Dataset:
    if part.name is not None:
        raise ValueError(f"files have no configurations: leave out name: {part.name}")
    kind = part.path if part.path in BUILDERS else None
    folder = Path("" if kind else part.path, part.data_dir or "").expanduser()
    found = {split: _hits(folder, some, kind) for split, some in files.items()}
    return rows_of_files(found, part.split)


def _hits(folder: Path, files: list[str], kind: str | None) -> list[Path]:
    """The files of these names and patterns, all of that kind."""
    hits = []
    for path in (folder / Path(file).expanduser() for file in files):
        matches = [path] if path.exists() else matches_of(path)
        if not matches:
            raise ValueError(f"no data file {path}")
        hits += matches
    other = next((path for path in hits if kind and KINDS.get(suffix_of(path)) != kind), None)
    if other is not None:
        raise ValueError(f"{other} is no {kind} file by its name")
    return hits


def _by_datasets(part: DatasetConfig) -> Dataset:
    if part.path == "csv":  # whose cells would be taken for numbers or null
        raise ValueError("a CSV file must be local: download it first")
    try:
        rows = load_dataset(
            part.path, part.name, data_dir=part.data_dir, data_files=part.data_files, split=part.split
        )
    except Exception as error:  # datasets raises many kinds
        raise ValueError(first_line(error.__cause__ or error)) from error
    return as_dataset(rows)


def _together(sources: Sequence[Dataset]) -> Dataset:
    try:
        return concatenate_datasets(list(sources))
    except (ValueError, TypeError):  # columns of different types
        columns: dict[str, list[Any]] = {name: [] for rows in sources for name in rows.column_names}
        for rows in sources:
            for name, values in columns.items():
                values.extend(rows[name][:] if name in rows.column_names else [None] * len(rows))
        return dataset_of_columns(columns)
