"""The data files of a folder by split, named after splits or as the card of a cloned Hub data set says."""

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, load_from_disk
from datasets.config import HF_DATASETS_CACHE
from datasets.data_files import (
    EmptyDatasetError,
    get_data_patterns,
    resolve_pattern,
    sanitize_patterns,
)
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCard

from klball.boundary import first_line
from klball.data.readers import KINDS, READABLE, read_files, suffix_of
from klball.files import digest

CARD = "README.md"
READ = {*("data_files", "data_dir", "default"), *("version", "description", "features")}  # of configurations


def rows_of_folder(folder: Path, split: str | None, config: str | None, default: str) -> Dataset:
    """The rows of one split, `default` where none is named and there are several.

    Raises ValueError if there is no such split or configuration, and where one of several must be chosen.
    """
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        _refuse_configuration(folder, config)
        return _saved(folder, split, default)
    files = _files_by_split(folder, config)
    return read_files(files[chosen_split(folder, list(files), split, default)])


def _saved(folder: Path, split: str | None, default: str) -> Dataset:
    try:
        saved = load_from_disk(str(_linked(folder)))
    except Exception as error:  # as many kinds as there are damaged files
        raise ValueError(f"could not read {folder}: {first_line(error)}") from error
    if isinstance(saved, DatasetDict):
        return saved[chosen_split(folder, list(map(str, saved)), split, default)]
    if split not in (None, "train"):
        raise ValueError(f"{folder} is one saved data set, which has no split {split!r}: leave it out")
    return saved


def _linked(folder: Path) -> Path:
    """Links to the files in the cache of `datasets`, which writes what it makes of rows beside their files.

    There, and always in the same place, because processes find each other's that way.
    """
    own = Path(os.path.realpath(folder))
    cache = Path(HF_DATASETS_CACHE) / "klball" / digest(str(own))
    for file in own.rglob("*"):
        if file.is_file():
            link = cache / file.relative_to(own)
            link.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileExistsError):
                link.symlink_to(file)
    return cache


def _refuse_configuration(folder: Path, config: str | None) -> None:
    if config is not None:
        raise ValueError(f"{folder} has no configurations: leave out the configuration {config!r}")


def chosen_split(source: Path | str, splits: Sequence[str], split: str | None, default: str) -> str:
    """The split meant; ValueError if the source has none of that name."""
    if split is None:
        split = splits[0] if len(splits) == 1 else default
    if split not in splits:
        raise ValueError(f"{source} has no split {split!r}; there are {', '.join(splits)}")
    return split


def _files_by_split(folder: Path, config: str | None) -> dict[str, list[Path]]:
    """Data files as the folder's card or their names say, both as `datasets` reads them."""
    said = {key: value for key, value in _configuration(folder, config).items() if value is not None}
    try:
        base = folder / said.get("data_dir", "")
        patterns = sanitize_patterns(said["data_files"]) if "data_files" in said else _patterns(base)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{folder / CARD}: {first_line(error)}") from error
    found: dict[str, list[Path]] = {}
    for split, globs in patterns.items():
        for glob in globs:
            try:
                paths = [Path(path) for path in resolve_pattern(glob, str(base))]
            except Exception as error:  # of remote names there are many kinds
                if "data_files" in said or not isinstance(error, FileNotFoundError):
                    raise ValueError(f"{folder / CARD} names {glob}, and there is no such file") from error
                continue
            found.setdefault(str(split), []).extend(p for p in paths if suffix_of(p) in KINDS)
    found = {split: sorted(set(paths)) for split, paths in found.items() if paths}
    if not found:
        raise ValueError(f"{base} holds no data files: those end in {READABLE}")
    return found


def _patterns(base: Path) -> Any:
    try:
        return get_data_patterns(str(base))
    except EmptyDatasetError:
        return {}


def _configuration(folder: Path, config: str | None) -> dict[str, Any]:
    """What the card of a cloned data set says of the configuration asked for, or of its default one."""
    card = folder / CARD
    try:
        text = card.read_text(encoding="utf-8-sig") if card.is_file() else ""
        tagged = text.lstrip().startswith("---")
        data: Any = DatasetCard(text).data if tagged else {}
        configs = MetadataConfigs.from_dataset_card_data(data)
        known = MetadataConfigs({str(name): said for name, said in configs.items()})
        chosen = config or known.get_default_config_name()
    except Exception as error:  # a README of any kind
        raise ValueError(f"could not read {card}: {first_line(error)}") from error
    if not known:
        _refuse_configuration(folder, config)
        return {}
    if chosen is None or chosen not in known:
        said = f"and no {chosen!r}" if chosen else "and none by default: choose one, or give its files"
        raise ValueError(f"{folder} has the configurations {', '.join(known)}, {said}")
    unread = sorted(set(known[chosen]) - READ)
    if unread:
        raise ValueError(f"{card}: klball does not read {unread[0]} of the configuration {chosen!r}")
    return known[chosen]
