"""Logs of Inspect (`.eval` and JSON), read by `inspect_ai`: scorers, epochs, metadata."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

from klball.files import json_digest
from klball.scores.elsewhere.columns import NUMBER
from klball.scores.elsewhere.expression import direction, is_right
from klball.scores.elsewhere.source import Source, is_there
from klball.scores.measure import Measure, accuracy, points

LETTERS = {"C": 1.0, "P": 0.5, "I": 0.0, "N": 0.0}  # what Inspect's own metrics make of them
WORDS = {"yes": 1.0, "true": 1.0, "no": 0.0, "false": 0.0}  # and of these
MISSING = "inspect_ai reads logs of Inspect, and is not installed: pip install 'klball[inspect]'"

OF_SAMPLE = ("item", "id", "epoch", "prompt", "answer")

logger = logging.getLogger(__name__)


class UnfinishedError(ValueError):
    """A log whose run did not end well."""


def is_log(value: Any) -> bool:
    """Whether JSON is a log of Inspect."""
    return isinstance(value, dict) and {"eval", "status", "version"} <= value.keys()


def is_archive(path: Path) -> bool:
    """Whether a zip archive is a log of Inspect; one that cannot be opened may be a damaged log."""
    try:
        with ZipFile(path) as archive:
            return not {"header.json", "_journal/start.json"}.isdisjoint(archive.namelist())
    except BadZipFile:
        return path.suffix.lower() == ".eval"


def of_log(path: Path, kind: str, finished: bool = False) -> Source:
    """One log: a row a sample and epoch, a column a scorer (SCORER.KEY where it gives several values).

    Items are ID-DIGEST of input and target: Inspect numbers samples by their place where they have no id, and
    the next log may have others there, or have shuffled them.
    kind: "eval" or "json". finished: raise UnfinishedError for a run that did not end well.
    Samples that stopped with an error have no score, and are left out and counted.
    """
    try:
        from inspect_ai.log import read_eval_log  # pyright: ignore[reportMissingImports]  # an extra
    except ImportError as error:
        raise ValueError(f"{path}: {MISSING}") from error
    try:
        log = read_eval_log(str(path), format=kind)  # pyright: ignore[reportArgumentType]
    except Exception as error:  # whatever a damaged archive or a foreign version makes it raise
        said = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} cannot be read as a log of Inspect: {said}") from error
    if finished and log.status != "success":
        raise UnfinishedError(f"{path}: its run ended with status {log.status}")
    if log.status != "success":
        logger.warning("%s: its run ended with status %s: samples may be missing", path, log.status)
    rows: list[dict[str, Any]] = []
    for sample in log.samples or []:
        scores = {} if sample.error is not None else _flat(sample.scores or {})
        target = sample.target if isinstance(sample.target, str) else ", ".join(sample.target)
        item = f"{sample.id}-{json_digest([_whole(sample.input), target], 8)}"
        told = {"item": item, "id": str(sample.id), "epoch": str(sample.epoch)}
        told |= {"prompt": _text(sample.input)}
        about = {f"metadata.{k}": v for k, v in (sample.metadata or {}).items() if isinstance(v, str | int)}
        rows.append({**told, "answer": target, **about, **scores})
    names = list(dict.fromkeys(name for row in rows for name in row))
    values = {name: [row.get(name) for row in rows] for name in names}
    if not _scorers(values):
        raise ValueError(f"{path} (status {log.status}) has no sample with a score")
    columns = {**values, **{name: list(map(_number, values[name])) for name in _scorers(values)}}
    scorers = [name for name in _scorers(values) if direction(name) >= 0]
    return Source(
        *(str(path), columns),
        id="item",
        round="epoch" if len(set(columns["epoch"])) > 1 else "",
        measures={name: _measure(name, values[name]) for name in scorers},
        task=log.eval.task,
        named=True,
        settings=", ".join(f"{name} {value}" for name, value in sorted(log.eval.task_args.items())),
        model=str(log.eval.model_args.get("model_path") or log.eval.model),  # of a local one
        texts=("prompt", "answer"),
        gaps=True,
    )


def _scorers(row: Mapping[str, Any]) -> list[str]:
    return [k for k in row if k not in OF_SAMPLE and not k.startswith("metadata.")]


def _flat(scores: Mapping[str, Any]) -> dict[str, Any]:
    """scorer → its value; several values of one scorer each under its own name."""
    found: dict[str, Any] = {}
    for name, score in scores.items():
        value = score.value
        if isinstance(value, Mapping):
            found |= {f"{name}.{key}": part for key, part in value.items()}
        elif isinstance(value, list):
            found |= {f"{name}.{index}": part for index, part in enumerate(value)}
        else:
            found[name] = value
    return found


def _number(value: Any) -> Any:
    """Text as Inspect's own metrics read it; what they would make a silent 0 of stays."""
    if not isinstance(value, str):
        return value
    if value in LETTERS:
        return LETTERS[value]
    return float(value) if NUMBER.fullmatch(value) else WORDS.get(value.lower(), value)


def _measure(name: str, values: list[Any]) -> Measure:
    """values: as the log has them. Letters, true and false say what is right; 0 and 1 where the name does."""
    had = [value for value in values if is_there(value)]
    right = all(isinstance(value, bool) or value in LETTERS for value in had)
    right = right or (is_right(name) and all(_number(value) in (0, 1) for value in had))
    return accuracy(name) if right else points(name)


def _whole(content: Any) -> list[str]:
    """The texts of a prompt or of all turns of a chat, without the names that Inspect gives turns anew."""
    return [content] if isinstance(content, str) else [turn.text for turn in content]


def _text(content: Any) -> str:
    """A prompt, or the last turn of a chat."""
    return content if isinstance(content, str) else str(content[-1].text) if content else ""
