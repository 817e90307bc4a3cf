"""Per-sample files of lm-evaluation-harness (`--log_samples`): tasks, filters, metrics, log-likelihoods."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from klball.scores.elsewhere.choices import Choices, of_right, right_choices, texts_of
from klball.scores.elsewhere.expression import direction, is_right
from klball.scores.elsewhere.source import Source
from klball.scores.measure import LIKELIHOOD, Measure, accuracy, points

FILE = re.compile(r"samples_(?P<task>.+)_(?P<time>\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d(\.\d+)?)\.jsonl(\.\w+)?$")
MARKS = {"doc_id", "resps", "filtered_resps"}
OF_LENGTH = {"word_perplexity": "word", "byte_perplexity": "byte"}  # of a sample: [log-likelihood, length]
LIKELIHOODS = ("perplexity", "bits_per_byte", *OF_LENGTH)  # of a sample these are log-likelihoods
CHOICES = ""  # the name under which an item has its choices until it is known which one is right
FIELDS = MARKS | {"doc", "target", "arguments", "filter", "schema"}
FIELDS |= {"doc_hash", "prompt_hash", "target_hash"}
UNASKED = "acc_mutual_info"  # with it the choices come twice: given the question, then given nothing

Row = Mapping[str, Any]


def is_sample(row: Any) -> bool:
    """Whether a JSON object is one row of a samples file."""
    return isinstance(row, Mapping) and row.keys() >= MARKS


def is_totals(value: Any) -> bool:
    """Whether JSON is a results file, which holds totals only."""
    return isinstance(value, dict) and "results" in value and ("configs" in value or "versions" in value)


def of_samples(rows: Sequence[Row], path: Path) -> Source:
    """One samples file: a row a document.

    Scores: METRIC, or METRIC,FILTER where there are several filters, as lm-eval calls them;
    `log_likelihood` of the right answer (nats), of several choices also `choice_log_prob`, log softmax over
    them at the right one (nats), `choice` and `num_choices`; of whole texts `log_likelihood_per_word` and
    `log_likelihood_per_byte`.
    """
    items = _items(rows, str(path))
    choices = [item.pop(CHOICES) for item in items]
    for item, of_item, right in zip(items, choices, right_choices(choices), strict=True):
        item.update(of_right(of_item, right))
    names = list(dict.fromkeys(name for item in items for name in item))
    columns = {name: [item.get(name) for item in items] for name in names}
    found = FILE.search(path.name)
    task = found["task"] if found else path.stem
    results = _results(path.with_name(f"results_{found['time']}.json")) if found else {}
    higher = results.get("higher_is_better", {}).get(task, {})
    metrics = dict.fromkeys(name for row in rows for name in _metrics(row))
    scores = [
        name
        for name in names
        if name.partition(",")[0] in metrics and any(isinstance(x, int | float) for x in columns[name])
    ]
    measures = {name: _measure(name, columns[name], higher) for name in scores}
    for name in (n for n in names if n.startswith(("log_likelihood", "choice_log_prob"))):
        per = name.rpartition("_per_")[2] if "_per_" in name else ""
        noun = LIKELIHOOD if name != "choice_log_prob" else "log-probability of the right choice"
        measures[name] = Measure(noun, f"nats per {per}" if per else "nats")
    if not measures:
        raise ValueError(f"{path} has no metric that is a number of each sample")
    model = str(results.get("model_name") or path.parent.name)
    texts = ("prompt", "answer")
    return Source(
        *(str(path), columns),
        id="id",
        measures=measures,
        task=task,
        named=found is not None,
        settings=_settings(results, task),
        texts=texts,
        model=model,
    )


def _key(row: Row) -> str:
    return str(row["doc_id"]) + (f"-{row['doc_hash'][:8]}" if row.get("doc_hash") else "")


def _metrics(row: Row) -> list[str]:
    """Before 0.4.7 a row has no list of its metrics: they are what stands in it besides."""
    named = row.get("metrics")
    return [str(name) for name in (row if named is None else named) if name not in FIELDS]


def _filters(rows: Sequence[Row]) -> list[str]:
    """The filter of every row; where rows do not name it, a document's rows are one a filter, in order."""
    if any("filter" in row for row in rows):
        return [str(row.get("filter")) for row in rows]
    counts: Counter[str] = Counter()
    names = []
    for row in rows:
        key = _key(row) if is_sample(row) else ""
        counts[key] += 1
        names.append(f"filter {counts[key]}")
    return names


def _items(rows: Sequence[Row], where: str) -> list[dict[str, Any]]:
    """A document's rows, one a filter, as one row."""
    filters = _filters(rows)
    several = len({*filters}) > 1
    items: dict[str, dict[str, Any]] = {}
    seen: set[tuple[str, str]] = set()
    for number, row in enumerate(rows):
        at = f"{where}, row {number + 1} (counted from 1)"
        if not is_sample(row):
            raise ValueError(f"{at}: no row of lm-eval's samples")
        key, name = _key(row), filters[number]
        if (key, name) in seen:
            raise ValueError(f"{at}: document {key} again ({name})")
        seen.add((key, name))
        item = items.setdefault(key, {"id": key, "doc_id": str(row["doc_id"])})
        for metric in _metrics(row):
            if metric not in LIKELIHOODS:
                item[f"{metric},{name}" if several else metric] = row.get(metric)
        item |= {**_likelihoods(row, at), "prompt": _prompt(row), "answer": str(row.get("target", ""))}
        item[CHOICES] = _choices(row, at)
        doc = row.get("doc")
        for column, value in doc.items() if isinstance(doc, Mapping) else ():
            if isinstance(value, str | int | float):
                item.setdefault(f"doc.{column}", value)
    return list(items.values())


def _results(path: Path) -> dict[str, Any]:
    """The totals of the same run, which say which metrics are better lower."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if is_totals(found) else {}


def _settings(results: Mapping[str, Any], task: str) -> str:
    """What tells one run of a task from another: the model's arguments and how many examples it was shown."""
    arguments = results.get("config", {}).get("model_args", "")
    shots = results.get("n-shot", {}).get(task)
    said = [arguments if isinstance(arguments, str) else json.dumps(arguments, sort_keys=True)]
    return ", ".join(part for part in (*said, "" if shots is None else f"{shots}-shot") if part)


def _measure(name: str, values: Sequence[Any], higher: Mapping[str, Any]) -> Measure:
    metric = name.partition(",")[0]
    told = higher.get(metric)  # null: the task does not say
    if not (direction(metric) >= 0 if told is None else told):
        return points(name, loss=True)
    return accuracy(name) if is_right(metric) and all(value in (0, 1) for value in values) else points(name)


def _likelihoods(row: Row, where: str) -> dict[str, Any]:
    """What `resps` and the perplexities hold: of one answer, of several choices, or of a whole text."""
    whole = {name: row[name] for name in OF_LENGTH if isinstance(row.get(name), list)}
    if whole:
        total = float(next(iter(whole.values()))[0])
        per = {f"log_likelihood_per_{OF_LENGTH[k]}": total / v[1] for k, v in whole.items() if v[1]}
        return {"log_likelihood": total, **per}
    found = _asked(row, where)
    return {"log_likelihood": found[0]} if len(found) == 1 else {}


def _choices(row: Row, where: str) -> Choices | None:
    found = np.array(_asked(row, where))
    if len(found) < 2:
        return None
    accurate = bool(row["acc"]) if row.get("acc") in (0, 1) else None
    return Choices(found, str(row.get("target", "")), texts_of(row.get("arguments"))[: len(found)], accurate)


def _asked(row: Row, where: str) -> list[float]:
    """The log-likelihoods of `resps`, less those of choices given nothing; none where answers are texts."""
    answers = [answer[0] if isinstance(answer, list) and answer else answer for answer in row["resps"]]
    if not all(isinstance(answer, list | tuple) and len(answer) == 2 for answer in answers):
        return []
    found = [float(answer[0]) for answer in answers]  # text in newer versions
    if UNASKED in _metrics(row):
        if len(found) % 2:
            raise ValueError(
                f"{where}: {UNASKED} needs every choice twice, with the question and without it, and there "
                f"are {len(found)} log-likelihoods"
            )
        found = found[: len(found) // 2]
    return found


def _prompt(row: Row) -> str:
    """Of `arguments`, a mapping by request, or in older versions a list of lists."""
    first = row.get("arguments")
    while isinstance(first, Mapping | list | tuple) and first:
        first = next(iter(first.values())) if isinstance(first, Mapping) else first[0]
    return str(first or "")
