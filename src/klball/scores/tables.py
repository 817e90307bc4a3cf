"""Score tables on disk: written part by part, resumable to the byte, with their provenance."""

import logging
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from klball.data.rows import to_trl_format
from klball.data.sources import as_dataset
from klball.files import (
    digest,
    json_digest,
    provenance_in,
    read_table,
    refuse_other,
    remove_parts,
    versions,
    with_provenance,
)
from klball.models.loading import causal_lm, load_on_device, public_name
from klball.models.modes import in_evaluation
from klball.models.weights import weights_hash
from klball.scores.own import check_rows, per_item, refuse_other_ids
from klball.scores.parquet import ELSEWHERE, check_columns, readable, score_files
from klball.scores.parts import PLACES, Cache, Progress, made_from, table_in_parts
from klball.scores.scorer import (
    SCORE_COLUMNS,
    TOKENS,
    TOKENS_PER_BATCH,
    Scorer,
    batches_by_length,
    encode_for,
    score_encoded,
)
from klball.shown import FEW

SCHEMA = pa.schema(
    [
        ("sample_id", pa.string()),
        ("log_likelihood", pa.float64()),
        ("certainty", pa.float64()),
        ("entropy", pa.float64()),
        ("sum_log_prob", pa.float64()),
        ("num_tokens", pa.int64()),
        ("num_bytes", pa.int64()),
        ("truncated", pa.bool_()),
    ]
)
TOKENS_FIELD = pa.field(TOKENS, pa.list_(pa.float32()))
LIBRARIES = ("klball", "torch", "transformers", "tokenizers", "datasets", "peft")

logger = logging.getLogger(__name__)


class ScoreTable(Dataset):
    """A score table, which shows what is in it."""

    def __repr__(self) -> str:
        if not {*SCHEMA.names} <= {*self.column_names}:
            return super().__repr__()
        g = [x for x in self["log_likelihood"] if x is not None]
        mean = f"mean log-likelihood {np.mean(g):.4g} nats/token, lowest {min(g):.4g}" if g else "no score"
        left = f"{sum(self['truncated'])} cut, {len(self) - len(g)} without an answer"
        return f"ScoreTable({len(self)} rows: {mean}; {left}; {', '.join(self.column_names)})"

    def _repr_html_(self) -> str:
        return f"<p>{escape(repr(self))}</p>{pd.DataFrame(self[:FEW]).to_html(index=False)}"


@in_evaluation
def score(
    model: torch.nn.Module | str | Path,
    tokenizer: PreTrainedTokenizerBase | None = None,
    dataset: Dataset | Sequence[dict[str, Any]] | None = None,
    *,
    max_length: int | None = None,
    tokens_per_batch: int = TOKENS_PER_BATCH,
    output: str | Path | Cache | None = None,
    progress: Progress | None = None,
    token_log_probs: bool = False,
    alone: bool = False,
) -> Dataset:
    """The score table of a model on a data set, in the data set's order.

    Columns: sample_id, log_likelihood g = (1/T) Σ log p_t, certainty C, entropy (nats, means over the T
    answer tokens, null if T = 0), sum_log_prob (nats), num_tokens T, num_bytes, truncated.

    Args:
        model: A causal language model, which is set to evaluation while it scores; or the name or path of
            one, adapters included, to be loaded in float32 onto the accelerator.
        tokenizer: Its tokenizer, whose chat template is used as in training; of a name it is loaded too.
        dataset: Rows in any supported format: a Dataset, a DataFrame, a list of dictionaries.
        max_length: Longer rows lose their end; None: the model's limit.
        tokens_per_batch: Most tokens of one forward pass.
        output: A Parquet file, written part by part: killed and run again, it continues and the file is
            the same to the byte. Processes started by `accelerate launch` divide the parts.
        progress: Called with rows done and rows in all.
        token_log_probs: Add that column, a list of nats.
        alone: This process works on a table of its own, and shares none with others.

    Raises:
        ValueError: No such model, unusable rows, non-finite logits, or an `output` made from something else.
    """
    _refuse_arguments(model, max_length, tokens_per_batch, output)
    dataset = as_dataset(dataset, "dataset")
    model, tokenizer = _loaded(model, tokenizer)
    encoded = encode_for(model, tokenizer, dataset, max_length)
    scorer = Scorer(model, encoded[0]["input_ids"])
    about = provenance(scorer, tokenizer, encoded, max_length, tokens_per_batch)
    about["row_format"] = row_format(dataset)
    columns = SCORE_COLUMNS
    if token_log_probs:
        columns, about = (*SCORE_COLUMNS, TOKENS), {**about, "columns": TOKENS}
    if output is not None:
        output = output.path(about) if isinstance(output, Cache) else Path(output)
    if output is not None and output.exists():
        finished, recorded = read_scores(output)
        refuse_other(output, recorded, about, PLACES)
        remove_parts(output)  # which a kill may have left
        return finished
    table = table_in_parts(
        batches_by_length([len(ids) for ids in encoded["input_ids"]], tokens_per_batch),
        lambda batches: _part(scorer, encoded, batches, columns),
        lambda tables: _in_order(tables, encoded, about),
        made_from(about),
        output,
        progress,
        alone,
    )
    return ScoreTable(table) if output is None else read_scores(output)[0]


def _loaded(model: Any, tokenizer: Any) -> tuple[torch.nn.Module, PreTrainedTokenizerBase]:
    """Of a name both, unless there is a tokenizer."""
    if isinstance(model, str | Path):
        model, own = load_on_device(str(model))
        tokenizer = own if tokenizer is None else tokenizer
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise ValueError(f"tokenizer must be a loaded tokenizer, not {type(tokenizer).__name__}")
    return model, tokenizer


def _refuse_arguments(model: Any, max_length: Any, tokens_per_batch: Any, output: Any) -> None:
    if not isinstance(output, str | Path | Cache | None):
        raise ValueError(f"output must be the path of a file, not {output!r}")
    if not isinstance(model, torch.nn.Module | str | Path):
        found = f"{type(model).__name__} {str(model)[:60]!r}"
        raise ValueError(f"model must be a loaded model, or the name or path of one, not {found}")
    if type(tokens_per_batch) is not int or tokens_per_batch < 1:
        raise ValueError(f"tokens_per_batch must be a whole number, at least 1, not {tokens_per_batch!r}")
    if max_length is not None and type(max_length) is not int:
        raise ValueError(f"max_length must be a whole number of tokens, not {max_length!r}")
    if max_length is not None and max_length < 1:
        raise ValueError(f"max_length must be at least 1, not {max_length}")


def read_scores(path: str | Path) -> tuple[Dataset, dict[str, Any]]:
    """A score table, a file or a folder with some, and its provenance.

    Raises:
        ValueError: It is no score table, repeats or lacks an id, or holds a score that is no number.
    """
    tables = _read(path)
    table = pa.concat_tables(tables.values(), promote_options="none" if len(tables) == 1 else "permissive")
    return ScoreTable(table), provenance_in(*next((file, own.schema) for file, own in tables.items()))


def read_items(path: str | Path) -> tuple[pa.Table, int]:
    """A row a sample of a score table, or of a folder with some, and in how many rounds each sample is.

    See `per_item`. Raises ValueError as `read_scores` does.
    """
    return per_item(_read(path))


def _read(path: str | Path) -> dict[str, pa.Table]:
    tables = {file: read_table(file, ELSEWHERE) for file in score_files(path)}
    for file, table in tables.items():
        check_columns(file, table.schema, SCHEMA.names)
        check_rows(table, file)
    refuse_other_ids({file: table.schema for file, table in tables.items()})
    return tables


def read_provenance(path: str | Path) -> dict[str, Any]:
    """What a score table says it was made from; empty if it says nothing. ValueError for a damaged one."""
    with readable(path):
        return provenance_in(path, pq.read_schema(path))


def row_format(dataset: Dataset) -> str:
    """How rows are scored: "messages", "prompt-completion" or "text".

    Of chats, prompt–completion rows score what the template puts after the end of turn, messages do not.
    """
    columns = set(to_trl_format(dataset.select([0]), conversational=False).column_names)
    return "messages" if "messages" in columns else "prompt-completion" if "prompt" in columns else "text"


def warn_of_formats(abouts: Iterable[dict[str, Any]]) -> None:
    """A warning if tables of these provenances score different parts of an answer."""
    formats = {about.get("row_format") for about in abouts}
    if {"messages", "prompt-completion"} <= formats:
        logger.warning(
            "some tables are of messages rows and some of prompt and completion: of chats, only the latter "
            "score what the template puts after the end of turn (often a newline): do not compare them"
        )


def provenance(
    scorer: Scorer,
    tokenizer: PreTrainedTokenizerBase,
    encoded: Dataset,
    max_length: int | None,
    tokens_per_batch: int,
) -> dict[str, Any]:
    """What the scores depend on; two tables with the same provenance are the same table."""
    model = causal_lm(scorer.model)
    return {
        "model": public_name(model.config._name_or_path),
        "revision": getattr(model.config, "_commit_hash", None),
        "weights": weights_hash(scorer.model),
        "adapter": type(scorer.model).__name__ if scorer.model is not model else None,
        "dtype": str(next(model.parameters()).dtype),
        "attention": getattr(model.config, "_attn_implementation", None),
        "num_logits": scorer.num_logits(),
        "vocabulary": len(tokenizer),
        "full_logits": scorer.head is None,
        "tokenizer": json_digest([tokenizer.get_vocab(), *_around_tokens(tokenizer)]),
        "template": digest(str(tokenizer.chat_template)),
        "data": json_digest([encoded[name][:] for name in ("sample_id", "input_ids", "labels")]),
        "rows": len(encoded),
        "max_length": max_length,
        "tokens_per_batch": tokens_per_batch,
        "libraries": versions(*LIBRARIES),
    }


def _around_tokens(tokenizer: PreTrainedTokenizerBase) -> list[Any]:
    """What else decides which tokens a text becomes, and which of them have no text."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    steps = [getattr(backend, name, None) for name in ("normalizer", "pre_tokenizer", "post_processor")]
    added = [(i, token.content, token.special) for i, token in tokenizer.added_tokens_decoder.items()]
    return [*map(_state_of, steps), sorted(added)]


def _state_of(step: Any) -> str:
    """Of one written in Python, which has none, its name."""
    try:
        return "" if step is None else step.__getstate__().decode()
    except Exception:  # what tokenizers raises has no class of its own
        return type(step).__name__


def _part(scorer: Scorer, encoded: Dataset, batches: list[list[int]], names: Sequence[str]) -> pa.Table:
    columns: dict[str, list[Any]] = {"row": [], **{name: [] for name in names}}
    for rows, scores in score_encoded(scorer, encoded, batches):
        columns["row"] += rows
        for name in names:
            columns[name] += scores[name]
    fields = {**{field.name: field for field in SCHEMA}, TOKENS: TOKENS_FIELD}
    return pa.table(columns, schema=pa.schema([("row", pa.int64()), *(fields[name] for name in names)]))


def _in_order(tables: Sequence[pa.Table], encoded: Dataset, about: dict[str, Any]) -> pa.Table:
    scores = pa.concat_tables(tables).sort_by("row")
    columns = {name: scores[name] for name in scores.column_names if name != "row"}
    for name in ("sample_id", "num_bytes", "truncated"):
        columns[name] = pa.array(encoded[name][:])
    schema = SCHEMA.append(TOKENS_FIELD) if TOKENS in columns else SCHEMA
    schema = schema.with_metadata(with_provenance(about))
    return pa.table([columns[name] for name in schema.names], schema=schema)
