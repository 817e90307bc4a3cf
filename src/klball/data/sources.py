"""Where rows come from: a built-in name, local files and folders, the Hub, or objects in Python."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
from datasets import (
    Dataset,
    DatasetDict,
    IterableDataset,
    IterableDatasetDict,
    ReadInstruction,
    concatenate_datasets,
    load_dataset,
)

from klball.boundary import first_line
from klball.data.builtin import BUILTIN, is_builtin, load_builtin
from klball.data.folders import chosen_split, rows_of_folder
from klball.data.formats import TEXT, known_columns, to_trl_format
from klball.data.ids import with_sample_ids
from klball.data.readers import KINDS, READABLE, dataset_of, read_files, suffix_of
from klball.files import name_of

SPLIT = re.compile(r"\s*([^\[\]\s]+)\s*(\[[^\[\]]*\])?\s*")
ALL_ROWS = "train"  # what `datasets` calls the rows of a file


def load_rows(
    name: str | Path,
    split: str | None = None,
    config: str | None = None,
    *,
    default: str = "train",
    id_column: str | None = None,
    text_field: str = TEXT,
    form: Callable[[Dataset], Dataset] | None = None,
) -> Dataset:
    """The checked rows of a built-in data set, local files, or a Hub data set, with their `sample_id`.

    Rows are numbered before they are sliced.

    Args:
        name: Local are a file, a pattern such as data/*.jsonl, a folder with files for each split, or
            what `save_to_disk` wrote.
        split: A name, or slices of some as in `datasets` ("train[:10%]+test"); None: all rows of a file,
            else `default`.
        config: Configuration of a Hub data set, or of a clone of one.
        default: The split where none is named.
        id_column: Column of the ids; "none" numbers them; None: sample_id, else id.
        text_field: Column of plain texts.
        form: Checks the rows and brings them into another format than those of SFT, such as
            `to_preferences` and `to_belief_rows`; None: they are checked for SFT, and stay as they are.

    Raises:
        ValueError: There is no such source, split or configuration, or a row is bad.
    """
    name, parts = name_of("a data set", name), []
    for base, cut in _pieces(split):
        whole = _whole_split(name, base, config, default)
        if form is None:
            rows = with_sample_ids(known_columns(whole, text_field), id_column)
            to_trl_format(
                rows, conversational=False, text_field=text_field
            )  # its errors name rows of the file
        else:
            rows = form(with_sample_ids(whole, id_column))
        parts.append(_slice(rows, cut))
    return parts[0] if len(parts) == 1 else with_sample_ids(concatenate_datasets(parts))


def source_rows(name: str, split: str | None, config: str | None = None) -> Dataset:
    """The rows of such a source as they are, neither checked nor numbered.

    Raises ValueError if there is no such source, split or configuration.
    """
    parts = [_slice(_whole_split(name, base, config, ALL_ROWS), cut) for base, cut in _pieces(split)]
    return concatenate_datasets(parts)


def rows_of_files(files: Mapping[str, Sequence[Path]], split: str | None) -> Dataset:
    """The rows of such a split of these files. Raises ValueError if there is no such split."""
    parts = []
    for base, cut in _pieces(split):
        parts.append(_slice(read_files(files[chosen_split("data_files", list(files), base, ALL_ROWS)]), cut))
    return concatenate_datasets(parts)


def first_rows(dataset: Dataset, count: int | None) -> Dataset:
    """The first rows, or all of them for None. Raises ValueError unless `count` is positive."""
    if count is None:
        return dataset
    if count < 1:
        raise ValueError(f"--max_rows must be at least 1, not {count}")
    return dataset.select(range(min(count, len(dataset))))


def is_one_table(name: str) -> bool:
    """Whether these local rows have no splits: a file, several by pattern, or one saved data set."""
    path = Path(name).expanduser()
    if is_builtin(name):
        return False
    return path.is_file() or matches_of(path) != [] or (path / "state.json").is_file()


def as_dataset(rows: Any, what: str = "the data") -> Dataset:
    """A Dataset of Python values from a Dataset in any format, rows as dictionaries, or a DataFrame.

    Raises ValueError for anything that is not one fixed table of rows.
    """
    if isinstance(rows, Dataset):
        if rows.format["type"] == "custom":
            raise ValueError("data sets with with_transform() are not supported: use map() instead")
        return rows if rows.format["type"] is None else rows.with_format(None)
    if isinstance(rows, IterableDataset | IterableDatasetDict):
        raise ValueError(f"{what} is streaming data, which has no fixed set of samples: load it whole")
    if isinstance(rows, DatasetDict | dict):
        names = list(map(str, rows))
        one = f": give one of them, such as data[{names[0]!r}]" if names else ""
        raise ValueError(f"{what} is split ({', '.join(names)}){one}")
    if isinstance(rows, list | tuple) and all(isinstance(row, dict) for row in rows):
        return dataset_of(rows)
    if isinstance(rows, pd.DataFrame):
        try:
            return Dataset.from_pandas(rows, preserve_index=False)
        except pa.ArrowException:  # columns of several types
            return dataset_of(rows.to_dict("records"))
    hint = ""
    if isinstance(rows, str | Path):
        hint = f": read it with klball.load_rows({str(rows)!r})"
    raise ValueError(f"{what} must be a datasets.Dataset, not {type(rows).__name__}{hint}")


def _pieces(split: str | None) -> list[tuple[str | None, str | None]]:
    """The splits that a sum of slices names, each with its slice."""
    if split is None:
        return [(None, None)]
    if not isinstance(split, str):
        raise ValueError(f"split must be a name such as test, or a slice of one, not {split!r}")
    matches = [SPLIT.fullmatch(part) for part in split.split("+")]
    if None in matches:
        raise ValueError(f"{split!r} is no split: write a name such as test, or a slice such as test[:100]")
    return [(match[1], match[2]) for match in matches if match]


def _whole_split(name: str, split: str | None, config: str | None, default: str) -> Dataset:
    path = Path(name).expanduser()
    matches = [] if path.exists() else matches_of(path)
    local = path.exists() or matches or suffix_of(path) in KINDS or name.startswith((".", "/", "~"))
    if config is not None and (is_builtin(name) or (local and not path.is_dir())):
        raise ValueError(f"{name} has no configurations: leave out the configuration {config!r}")
    if is_builtin(name):
        return Dataset.from_list(load_builtin(name, split or default))
    if path.is_dir():
        return rows_of_folder(path, split, config, default)
    if path.is_file() or matches or suffix_of(path) in KINDS:
        if split not in (None, ALL_ROWS):
            raise ValueError(
                f"{name} is one table, which has no split {split!r}: leave the split out for all its rows, "
                "take a slice such as 'train[:80%]', or give a folder with train.jsonl and test.jsonl"
            )
        return read_files(matches or [path])
    if local:
        raise ValueError(f"no file or folder {name}; data files end in {READABLE}")
    return _of_hub(name, split or default, config)


def matches_of(path: Path) -> list[Path]:
    """The files of a pattern; none for a plain name."""
    if not set("*?[") & set(str(path)):
        return []
    root = Path(path.anchor) if path.is_absolute() else Path()
    pattern = str(path.relative_to(path.anchor)) if path.is_absolute() else str(path)
    return sorted(match for match in root.glob(pattern) if match.is_file())


def _of_hub(name: str, split: str, config: str | None) -> Dataset:
    try:
        dataset = load_dataset(name, config, split=split)
    except Exception as error:  # the Hub client raises a dozen kinds when offline
        raise ValueError(
            f"could not load data set {name!r} (split {split!r}): {first_line(error)}; "
            f"give a local file, a Hub name that can be reached, or one of {', '.join(BUILTIN)}"
        ) from error
    return as_dataset(dataset, name)


def _slice(rows: Dataset, cut: str | None) -> Dataset:
    if cut is None:
        return rows
    try:
        (part,) = ReadInstruction.from_spec(f"rows{cut}").to_absolute({"rows": len(rows)})
    except (ValueError, AssertionError) as error:
        raise ValueError(f"no slice {cut}: write one such as [:100], [10%:] or [5:20] ({error})") from error
    if part.from_ >= part.to:
        raise ValueError(f"the slice {cut} has no rows: there are {len(rows)}")
    return rows.select(range(part.from_, part.to))
