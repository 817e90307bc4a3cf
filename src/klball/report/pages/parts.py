"""What the reports of several commands have in common: samples with their texts, provenance, sentences."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from klball.data.ids import places_of
from klball.data.rows import texts_of, to_trl_format, with_sample_ids
from klball.files import RUN_FILE, read_json_object, versions
from klball.report.page import Cell, Record, Section, Table
from klball.scores.tails import CVAR, FEW, HARDEST, LEAST, few_hardest, largest, tail_size
from klball.shown import in_words

SHOWN = 20  # samples of each kind
REPORT_FILE = "report.html"
EACH = "Every interval stands by itself: of twenty differences that are none, one is shown as one."
LONG = ("prompt", "answer", "chosen", "rejected")  # columns of texts
BASE = "base"  # how tables call the model that training starts from


def with_texts(rows: Sequence[dict[str, Any]], dataset: Dataset) -> list[dict[str, Any]]:
    """Rows that have a `sample_id`, with the prompt and answer of that sample in `dataset`."""
    data = with_sample_ids(dataset)
    kept = data.select(sorted(places_of(data, {row["sample_id"] for row in rows}).values()))
    converted = to_trl_format(kept, conversational=False).to_list() if len(kept) else []
    texts = {row["sample_id"]: [text.strip() for text in texts_of(row)] for row in converted}
    return [
        {**row, **dict(zip(("prompt", "answer"), texts.get(row["sample_id"], ("", "")), strict=True))}
        for row in rows
    ]


def sample_rows(
    ids: Sequence[str], g: np.ndarray, weights: np.ndarray, score: str = "log_likelihood", **labels: str
) -> list[dict[str, Any]]:
    """The samples with the lowest g and with the largest weights, each once, with `labels` in front.

    weights: q, which sums to 1, or NaN for none; shown as n·q, where 1 is an even share. score: what g is
    called.
    """
    hard = largest(-g, SHOWN).tolist()
    heavy = [] if np.isnan(weights).any() else largest(weights, SHOWN).tolist()
    rows = []
    for i in dict.fromkeys([*heavy, *hard]):
        why = [name for name, places in (("hardest", hard), ("top-weighted", heavy)) if i in places]
        numbers = {score: float(g[i]), "n_q": float(weights[i] * len(g))}
        rows.append({**labels, "why": " and ".join(why), "sample_id": ids[i], **numbers})
    return rows


def samples_section(title: str, rows: Sequence[dict[str, Any]], intro: str, group: str = "") -> Section:
    """A searchable table of samples with their texts, to be narrowed to one value of `group`."""
    headings = {"log_likelihood": "log-likelihood", "n_q": "weight n·q", "sample_id": "sample"}
    table = Table(
        title,
        rows,
        {key: headings.get(key, in_words(key)) for key in (rows[0] if rows else {})},
        long=[name for name in LONG if rows and name in rows[0]],
        search=True,
        group=group,
        rest="in the score tables (Parquet) of this folder",
    )
    return Section("Samples", [table], intro)


def provenance_section(folder: Path, tables: Mapping[str, Any]) -> Section:
    """Options of the run, library versions, and what every score table says it was made from."""
    run = folder / RUN_FILE
    records = [Record("Command and options", read_json_object(run))] if run.exists() else []
    records.append(Record("Library versions", versions()))
    if tables:
        records.append(Record("Score tables: model, weights, tokenizer, data, length", tables))
    return Section("Provenance", records, "What the numbers depend on, in full.")


def ran_on(folder: Path) -> str:
    """For subtitles: "; smollm2 on chat.jsonl", as far as `run.json` names model and data; else ""."""
    run = read_json_object(folder / RUN_FILE) if (folder / RUN_FILE).exists() else {}
    options = {**run.get("model", {}), **run.get("data", {}), **run.get("options", {})}
    if scores := options.get("scores"):  # whose data `dataset_name`, left at its default, is not
        return f"; {scores[0]}" if len(scores) == 1 else ""
    mixture = ", ".join(str(entry.get("path")) for entry in options.get("datasets") or ())
    data = options.get("rounds_path") or mixture or options.get("dataset_name")
    config = options.get("dataset_config")
    named = [options.get("model_name_or_path"), data and (f"{data} ({config})" if config else data)]
    return "; " + " on ".join(filter(None, named)) if any(named) else ""


def counted(rows: int, of: str = "row") -> str:
    """ "1 row", "7 rows"."""
    return f"1 {of}" if rows == 1 else f"{rows} {of}s"


def few_in_words(rows: int, of: str = "row") -> str:
    """What to read where the hardest 1 % of so many rows are too few; "" where they are enough."""
    if not few_hardest(rows):
        return ""
    hard, worst = tail_size(HARDEST, rows), tail_size(CVAR, rows)
    also = "" if worst >= FEW else ", descriptive too"
    return (
        f"the hardest 1 % are {counted(hard, of)}, too few to judge by: read the worst 5 % "
        f"(CVaR, {counted(worst, of)}{also})"
    )


def interval(value: float, low: float, high: float, rows: int = LEAST) -> Cell:
    """A number with its interval; where a bound is NaN without, or with the `rows` too few for one."""
    if math.isnan(value):
        return Cell(value, "–")
    text = f"{value:.4g}{too_few(rows)}" if math.isnan(low) else f"{value:.4g} [{low:.4g}, {high:.4g}]"
    return Cell(value, text.replace("-", "−"))


def too_few(rows: int) -> str:
    """What stands in the place of an interval of so few rows, " (2 rows)"; "" where they are enough."""
    return f" ({counted(rows)})" if rows < LEAST else ""


def means_table(
    title: str,
    rows: Sequence[Mapping[str, Any]],
    keys: Sequence[str],
    note: str,
    measures: Iterable[str] | None = None,
    names: Mapping[str, str] = {},
) -> Table:
    """The `keys` of every row, and its measures as mean ± sd over seeds: the columns name and name_sd.

    measures: by default all that have an sd. names: headings, where they are not the columns' own words.
    """
    first = rows[0] if rows else {}
    measures = [name for name in first if f"{name}_sd" in first] if measures is None else [*measures]
    shown = [
        {**{key: row[key] for key in keys}, **{m: _number_sd(row[m], row[f"{m}_sd"]) for m in measures}}
        for row in rows
    ]
    return Table(title, shown, {name: names.get(name, in_words(name)) for name in (*keys, *measures)}, note)


def _number_sd(mean: float, sd: float) -> Cell | None:
    """A mean with its spread over seeds, where there is one."""
    if math.isnan(mean):
        return None
    text = f"{mean:.4g}" + (f" ± {sd:.2g}" if sd > 0 else "")
    return Cell(mean, text.replace("-", "−"))


def change(ratio: float, low: float, high: float) -> Cell:
    """A ratio as a change in percent, with its interval."""
    if math.isnan(ratio):
        return Cell(ratio, "–")
    value, *bounds = _percent(ratio, low, high)
    text = f"{value} %" if math.isnan(low) else f"{value} % [{', '.join(bounds)}]"
    return Cell(100 * (ratio - 1), text.replace("-", "−"))


def _percent(*ratios: float) -> list[str]:
    """Ratio and bounds as changes in percent, with digits that tell the bounds apart; 0 has no minus."""
    width = 100 * (ratios[-1] - ratios[-2])
    digits = min(4, max(1, math.ceil(-math.log10(width / 2)))) if width > 0 else 1
    return [f"{round(100 * (x - 1), digits) + 0.0:+.{digits}f}" for x in ratios]


def says(ratio: float, low: float, high: float) -> str:
    """A ratio in words: "8.8 % lower (95 % interval −13.1 to −4.3 %)", or that the data do not tell."""
    value, *ends = _percent(ratio, low, high)
    size = f"{value[1:]} % {'higher' if ratio > 1 else 'lower'}"
    if math.isnan(low):
        return f"{size} (no interval)"
    bounds = f"{' to '.join(ends)} %".replace("-", "−")
    if low <= 1 <= high:
        return f"not clearly different ({size}, 95 % interval {bounds})"
    return f"{size} (95 % interval {bounds})"
