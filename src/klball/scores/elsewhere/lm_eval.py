"""Per-sample files of lm-evaluation-harness (`--log_samples`): tasks, filters, metrics, log-likelihoods."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from klball.scores.elsewhere.expression import direction, is_right
from klball.scores.elsewhere.source import Source
from klball.scores.measure import LIKELIHOOD, Measure, accuracy, points

FILE = re.compile(r"samples_(?P<task>.+)_(?P<time>\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d(\.\d+)?)\.jsonl(\.\w+)?$")
MARKS = {"doc_id", "resps", "filtered_resps"}
OF_LENGTH = {"word_perplexity": "word", "byte_perplexity": "byte"}  # of a sample: [log-likelihood, length]
LIKELIHOODS = ("perplexity", "bits_per_byte", *OF_LENGTH)  # of a sample these are log-likelihoods
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
    names = list(dict.fromkeys(name for item in items for name in item))
    columns = {name: [item.get(name) for item in items] for name in names}
    found = FILE.search(path.name)
    task = found["task"] if found else path.stem
    results = _results(path.with_name(f"results_{found['time']}.json")) if found else {}
    higher = results.get("higher_is_better", {}).get(task, {})
    metrics = dict.fromkeys(str(name) for row in rows for name in row.get("metrics", ()))
    scores = [name for name in names if name.partition(",")[0] in metrics]
    measures = {name: _measure(name, columns[name], higher) for name in scores}
    for name in (n for n in names if n.startswith(("log_likelihood", "choice_log_prob"))):
        per = name.rpartition("_per_")[2] if "_per_" in name else ""
        noun = LIKELIHOOD if name != "choice_log_prob" else "log-probability of the right choice"
        measures[name] = Measure(noun, f"nats per {per}" if per else "nats")
    if not measures:
        raise ValueError(f"{path} has no metric that is a number of each sample")
    model = str(results.get("model_name") or path.parent.name)
    texts = ("prompt", "answer")
    return Source(str(path), columns, id="id", measures=measures, task=task, texts=texts, model=model)


def _items(rows: Sequence[Row], where: str) -> list[dict[str, Any]]:
    """A document's rows, one a filter, as one row."""
    several = len({str(row.get("filter")) for row in rows}) > 1
    items: dict[str, dict[str, Any]] = {}
    seen: set[tuple[str, str]] = set()
    for number, row in enumerate(rows):
        at = f"{where}, row {number + 1} (counted from 1)"
        if not is_sample(row):
            raise ValueError(f"{at}: no row of lm-eval's samples")
        key = str(row["doc_id"]) + (f"-{row['doc_hash'][:8]}" if row.get("doc_hash") else "")
        name = str(row.get("filter"))
        if (key, name) in seen:
            raise ValueError(f"{at}: document {key} again ({name})")
        seen.add((key, name))
        item = items.setdefault(key, {"id": key, "doc_id": str(row["doc_id"])})
        for metric in row.get("metrics", ()):
            if metric not in LIKELIHOODS:
                item[f"{metric},{name}" if several else str(metric)] = row.get(metric)
        item |= {**_likelihoods(row, at), "prompt": _prompt(row), "answer": str(row.get("target", ""))}
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
    answers = [answer[0] if isinstance(answer, list) and answer else answer for answer in row["resps"]]
    if not all(isinstance(answer, list | tuple) and len(answer) == 2 for answer in answers):
        return {}
    found = np.array([float(answer[0]) for answer in answers])  # text in newer versions
    if UNASKED in row.get("metrics", ()):
        if len(found) % 2:
            raise ValueError(
                f"{where}: {UNASKED} needs every choice twice, with the question and without it, and there "
                f"are {len(found)} log-likelihoods"
            )
        found = found[: len(found) // 2]
    if len(found) == 1:
        return {"log_likelihood": float(found[0])}
    of_choice = {"choice": int(found.argmax()), "num_choices": len(found)}
    right = str(row.get("target", ""))
    if not right.isdecimal() or int(right) >= len(found):
        return of_choice
    at = float(found[int(right)])
    top = float(found.max())
    of_right = {"log_likelihood": at, "choice_log_prob": at - top - float(np.log(np.exp(found - top).sum()))}
    return {**of_right, **of_choice}


def _prompt(row: Row) -> str:
    """Of `arguments`, a mapping by request, or in older versions a list of lists."""
    first = row.get("arguments")
    while isinstance(first, Mapping | list | tuple) and first:
        first = next(iter(first.values())) if isinstance(first, Mapping) else first[0]
    return str(first or "")
