"""A path, frame or list of rows → its sources, told apart by content."""

import json
import logging
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from klball.data.readers import COMPRESSIONS, file_text, json_rows
from klball.scores.elsewhere import inspect_logs, lm_eval, tables
from klball.scores.elsewhere.source import Source, listed

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet", ".eval")
logger = logging.getLogger(__name__)

OURS = frozenset(("run.json", "package.json"))
UTF_16 = (BOM_UTF16_LE, BOM_UTF16_BE)  # which `file_text` refuses by name
SAMPLES = "samples_*.jsonl*"


def sources_of(given: Any) -> list[Source]:
    """The sources of what the user gave, one a file.

    Raises ValueError for what holds no per-item results.
    """
    if isinstance(given, str | Path):
        path = Path(given)
        if not path.exists():
            raise ValueError(f"there is no {given}")
        return _of_folder(path) if path.is_dir() else [_of_file(path)]
    kind = type(given).__name__
    if isinstance(given, Mapping):
        return [tables.of_arrow(_columns(given), f"the {kind}")]
    if isinstance(given, Sequence) and not isinstance(given, bytes):
        return [tables.of_rows(given, f"the {kind}")]
    if hasattr(given, "__arrow_c_stream__") or hasattr(given, "columns") or hasattr(given, "column_names"):
        return [tables.of_frame(given, f"the {kind}")]
    raise ValueError(
        f"scores must be a path, a data set, a frame or a list of rows, not {kind}; numbers alone are for "
        "klball.solve_dual"
    )


def _columns(given: Mapping[Any, Any]) -> pa.Table:
    try:
        return pa.table({str(name): pa.array(values) for name, values in given.items()})
    except (pa.ArrowException, TypeError) as error:
        raise ValueError(f"a mapping must give a list of as many values for every column: {error}") from error


def _of_file(path: Path, finished: bool = False) -> Source:
    """finished: see `inspect_logs.of_log`."""
    with path.open("rb") as file:
        start = file.read(4)
    if not start:
        raise ValueError(f"{path} is empty")
    if start == b"PAR1" or path.suffix == ".parquet":
        return tables.of_parquet(path)
    if start[:2] == b"PK":
        if not inspect_logs.is_archive(path):
            raise ValueError(f"{path} is a zip archive or a spreadsheet: unpack it, or save it as CSV")
        return inspect_logs.of_log(path, "eval", finished)
    if b"\0" in start and start[:2] not in UTF_16 and path.suffix.lower() not in COMPRESSIONS:
        raise ValueError(f"{path} is binary, and neither a Parquet file nor a log of Inspect")
    text = file_text(path)
    return _of_json(text, path, finished) if text.lstrip()[:1] in ("{", "[") else tables.of_text(text, path)


def _of_json(text: str, path: Path, finished: bool) -> Source:
    """JSON lines of rows or of lm-eval's samples; one object is a log of Inspect, or nothing for us."""
    whole = _one_object(text)
    if whole is not None:
        if inspect_logs.is_log(whole):
            return inspect_logs.of_log(path, "json", finished)
        if lm_eval.is_totals(whole):
            raise ValueError(
                f"{path} holds the totals of lm-eval: per-item results are in samples_*.jsonl, which "
                "--log_samples writes"
            )
        if "\n" in text.strip():
            raise ValueError(f"{path} is one JSON object: rows are an object a line, or one array of objects")
    rows = list(json_rows(text, path, as_written=False))
    if rows and lm_eval.is_sample(rows[0]):
        return lm_eval.of_samples(rows, path)
    return tables.of_rows(rows, str(path))


def _one_object(text: str) -> Any:
    """The object that a text is as a whole; None where it is lines of them or an array."""
    if not text.lstrip().startswith("{"):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _of_folder(folder: Path) -> list[Source]:
    files = sorted(folder.rglob(SAMPLES)) or sorted(path for path in folder.rglob("*") if _is_data(path))
    files = [path for path in files if not any(".parts-" in part for part in path.parts)]
    if not files:
        raise ValueError(f"{folder} has no files of scores ({', '.join(SUFFIXES)})")
    found, files = _finished(files)
    models: dict[str, Path] = {}
    for source, path in zip(found, files, strict=True):
        models.setdefault(source.model, path)
    models.pop("", None)
    if len(models) > 1:
        flags = " ".join(f"{name.rpartition('/')[2]}={path.parent}" for name, path in models.items())
        apart = len({path.parent for path in models.values()}) == len(models)
        raise ValueError(
            f"{folder} holds the results of {len(models)} models ({listed(models)}): give them one by one"
            + (f": --scores {flags}" if apart else ", each in a folder of its own")
        )
    return _labelled(found, [path.relative_to(folder) for path in files])


def _finished(files: list[Path]) -> tuple[list[Source], list[Path]]:
    """The sources of files, and the files, without the logs of runs that did not end well."""
    found: dict[Path, Source] = {}
    for path in files:
        try:
            found[path] = _of_file(path, finished=True)
        except inspect_logs.UnfinishedError as error:
            logger.warning("left out: %s", error)
            if path == files[-1] and not found:
                raise
    return list(found.values()), list(found)


def _is_data(path: Path) -> bool:
    suffixes = [suffix for suffix in path.suffixes if suffix.lower() not in COMPRESSIONS]
    hidden = any(part.startswith(".") for part in path.parts[-2:])
    return bool(suffixes) and suffixes[-1].lower() in SUFFIXES and path.name not in OURS and not hidden


def _labelled(found: list[Source], names: list[Path]) -> list[Source]:
    """Every source with what it is called as a round: its file's name, or of a tool's task its run."""
    runs: dict[str, int] = {}
    labelled = []
    for source, name in zip(found, names, strict=True):
        label = str(name.with_suffix(""))
        if source.task:
            runs[source.task] = runs.get(source.task, 0) + 1
            label = f"run {runs[source.task]}"
        labelled.append(replace(source, label=label))
    return labelled
