"""Pair tables: how much better a model finds the chosen of two answers, by its likelihoods or its rewards."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.functional import logsigmoid
from trl.data_utils import _tokenize, common_prefix_length

from klball.data.conversations import tools_of
from klball.data.encoding import rendering_errors_named, require_template
from klball.data.formats import IGNORED
from klball.data.ids import group_names, with_sample_ids
from klball.data.preferences import CHOSEN, MARGIN, REJECTED, to_preferences
from klball.data.readers import dataset_of_columns
from klball.data.sources import as_dataset
from klball.files import (
    json_digest,
    provenance_in,
    read_table,
    refuse_other,
    remove_parts,
    versions,
    with_provenance,
    write_table,
)
from klball.models.modes import in_evaluation
from klball.models.weights import weights_hash
from klball.scores.parts import Progress, made_from, table_in_parts
from klball.scores.scorer import TOKENS_PER_BATCH, batches_by_length, longest_input
from klball.scores.tables import LIBRARIES, PLACES, read_provenance, score

COMMON = [
    *(("sample_id", pa.string()), ("loss", pa.float64()), ("margin", pa.float64()), ("accuracy", pa.bool_())),
    *(("group", pa.string()), ("truncated", pa.bool_())),
    *(("chosen_tokens", pa.int64()), ("rejected_tokens", pa.int64())),
]
OF_KIND = {  # family → its own columns
    "dpo": [f"{who}{answer}_log_prob" for who in ("", "reference_") for answer in (CHOSEN, REJECTED)],
    "reward": ["chosen_reward", "rejected_reward"],
}
NEEDED = ("sample_id", "loss", "margin", "accuracy", "group", "truncated")


def schema_of(kind: str) -> pa.Schema:
    """The columns of a pair table; `kind` is "dpo" or "reward"."""
    return pa.schema([*COMMON, *((name, pa.float64()) for name in OF_KIND[kind])])


@dataclass(frozen=True)
class EncodedPairs:
    """Tokens of n pairs as training has them: `answers` has a row an answer, all chosen ones first.

    answers: sample_id, input_ids, labels. margins: m of a reward model, [n], or None. groups: [n], or None.
    """

    ids: list[str]
    answers: Dataset
    margins: list[float] | None
    groups: list[str] | None


def encode_pairs(dataset: Any, tokenizer: Any, group_column: str | None = None) -> EncodedPairs:
    """The pairs by TRL's tokenisation; a pair's answers begin where the first of them leaves the prompt.

    Raises ValueError for rows that cannot be used, chats without a template, or no such column.
    """
    rows = to_preferences(with_sample_ids(as_dataset(dataset)))
    groups = None if group_column is None else list(map(str, group_names(rows, group_column)))
    if isinstance(rows[0]["prompt"], list):
        require_template(tokenizer)
    ids = rows["sample_id"][:]
    with rendering_errors_named(rows, tokenizer, None):
        pairs = [_tokens(row, tokenizer) for row in rows.to_list()]
    answers = list(chain.from_iterable(zip(*pairs, strict=True)))
    columns = {
        "sample_id": [f"{answer} {sample_id}" for answer in (CHOSEN, REJECTED) for sample_id in ids],
        "input_ids": [tokens for tokens, _ in answers],
        "labels": [[IGNORED] * start + tokens[start:] for tokens, start in answers],
    }
    return EncodedPairs(
        ids,
        dataset_of_columns(columns),
        rows[MARGIN][:] if MARGIN in rows.column_names else None,
        groups,
    )


def _tokens(row: Mapping[str, Any], tokenizer: Any) -> list[tuple[list[int], int]]:
    """Both answers' tokens after the prompt's, and where the answers begin."""
    prompt = row["prompt"]
    if isinstance(prompt, list):
        options = {"tools": tools_of(row.get("tools"), 0), **(row.get("chat_template_kwargs") or {})}
        before = _tokenize(tokenizer, prompt, add_generation_prompt=True, **options)["input_ids"]
        both = [
            _tokenize(tokenizer, prompt + row[name], **options)["input_ids"] for name in (CHOSEN, REJECTED)
        ]
    else:
        end = tokenizer.eos_token or ""
        before = _tokenize(tokenizer, prompt)["input_ids"]
        texts = [prompt + row[name].removesuffix(end) + end for name in (CHOSEN, REJECTED)]
        both = [_tokenize(tokenizer, text)["input_ids"] for text in texts]
    start = min(common_prefix_length(before, ids) for ids in both)
    return [(ids, start) for ids in both]


def likelihoods(
    model: torch.nn.Module, tokenizer: Any, pairs: EncodedPairs, output: Path, **options: Any
) -> Dataset:
    """The score table of both answers of all pairs, `score` of their tokens, kept in `output`."""
    return score(model, tokenizer, pairs.answers, output=output, **options)


def dpo_table(pairs: EncodedPairs, model: Path, reference: Path, beta: float, output: Path) -> Dataset:
    """The pair table of DPO from the `likelihoods` of a model and its reference, two files.

    margin = βΔ, Δ = (log π_w − log π_ref,w) − (log π_l − log π_ref,l), nats, summed over answers; loss =
    −log σ(βΔ). Pairs with an answer that is cut to nothing have none.
    """
    n = len(pairs.ids)
    tables = [read_table(path) for path in (model, reference)]
    _refuse_other_tokens(pairs, *tables)
    own, other = (table["sum_log_prob"].to_numpy(zero_copy_only=False).astype(float) for table in tables)
    ratio = own - other
    columns = {
        **_halves("log_prob", own, n),
        **_halves("log_prob", other, n, "reference_"),
        **_counts(tables[0], n),
        "margin": beta * (ratio[:n] - ratio[n:]),
    }
    about = {
        "kind": "dpo",
        "beta": beta,
        "groups": json_digest(pairs.groups),
        "model": read_provenance(model),
        "reference": read_provenance(reference),
    }
    table = _table(pairs, columns, about)
    if output.exists():
        refuse_other(output, read_pairs(output)[1], about)
    write_table(table, output)
    return Dataset(table)


@in_evaluation
def reward_table(
    model: Any,
    tokenizer: Any,
    pairs: EncodedPairs,
    *,
    max_length: int | None = None,
    tokens_per_batch: int = TOKENS_PER_BATCH,
    output: Path,
    progress: Progress | None = None,
) -> Dataset:
    """The pair table of a reward model, a sequence classifier of one label.

    margin = r_w − r_l; loss = −log σ(margin − m), m the rows' `margin` or 0. Killed and run again, it
    continues. Longer answers than `max_length` lose their end. Raises ValueError for a reward that is not
    finite, or an `output` made from something else.
    """
    limit = longest_input(model, tokenizer, max_length)
    tokens = [ids[:limit] for ids in pairs.answers["input_ids"]]
    about = {
        "kind": "reward",
        "model": model.config._name_or_path,
        "weights": weights_hash(model),
        "dtype": str(next(model.parameters()).dtype),
        "data": json_digest([pairs.ids, pairs.answers["input_ids"][:], pairs.margins, pairs.groups]),
        "max_length": limit,
        "tokens_per_batch": tokens_per_batch,
        "libraries": versions(*LIBRARIES),
    }
    if output.exists():
        finished, recorded = read_pairs(output)
        refuse_other(output, recorded, about, PLACES)
        remove_parts(output)  # which a kill may have left
        return finished
    pad = model.config.get_text_config().pad_token_id

    def part_of(batches: list[list[int]]) -> pa.Table:
        rows = list(chain.from_iterable(batches))
        rewards = [rewards_of(model, [tokens[row] for row in batch], pad) for batch in batches]
        return pa.table({"row": rows, "reward": torch.cat(rewards).double().tolist()})

    def whole(parts: Sequence[pa.Table]) -> pa.Table:
        rewards = pa.concat_tables(parts).sort_by("row")["reward"].to_numpy()
        return _table(pairs, _of_rewards(pairs, rewards, tokens), about)

    batches = batches_by_length(list(map(len, tokens)), tokens_per_batch)
    return Dataset(table_in_parts(batches, part_of, whole, made_from(about), output, progress))


def _of_rewards(pairs: EncodedPairs, rewards: np.ndarray, tokens: list[list[int]]) -> dict[str, Any]:
    if not np.isfinite(rewards).all():
        bad = pairs.answers[int(np.flatnonzero(~np.isfinite(rewards))[0])]["sample_id"]
        raise ValueError(f"the reward of {bad!r} is not finite: score in float32")
    n = len(pairs.ids)
    kept = np.array(list(map(len, tokens)))
    cut = kept < np.array(list(map(len, pairs.answers["input_ids"])))
    return {
        **_halves("reward", rewards, n),
        **_halves("tokens", kept, n),
        "truncated": cut[:n] | cut[n:],
        "margin": rewards[:n] - rewards[n:],
    }


@torch.no_grad()
def rewards_of(model: Any, rows: Sequence[list[int]], pad: int) -> Tensor:
    """Of a classifier of one label, (B), float32, on the CPU; rows are padded at the end, as in training."""
    length, device = max(map(len, rows)), next(model.parameters()).device
    ids = torch.tensor([row + [pad] * (length - len(row)) for row in rows], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows], device=device)
    return model(input_ids=ids, attention_mask=mask, use_cache=False).logits.squeeze(-1).float().cpu()


def _refuse_other_tokens(pairs: EncodedPairs, own: pa.Table, other: pa.Table) -> None:
    """Raise ValueError where one of the models has scored more of an answer than the other."""
    counts = [table["num_tokens"].to_numpy() for table in (own, other)]
    if (apart := np.flatnonzero(counts[0] != counts[1])).size:
        row = int(apart[0])
        raise ValueError(
            f"of {pairs.answers[row]['sample_id']!r} the model has scored {counts[0][row]} tokens and its "
            f"reference {counts[1][row]}: set --max_length to what both can hold"
        )


def _halves(name: str, values: np.ndarray, n: int, who: str = "") -> dict[str, np.ndarray]:
    return {f"{who}{CHOSEN}_{name}": values[:n], f"{who}{REJECTED}_{name}": values[n:]}


def _counts(table: pa.Table, n: int) -> dict[str, np.ndarray]:
    cut = table["truncated"].to_numpy(zero_copy_only=False)
    return {**_halves("tokens", table["num_tokens"].to_numpy(), n), "truncated": cut[:n] | cut[n:]}


def _table(pairs: EncodedPairs, columns: dict[str, Any], about: dict[str, Any]) -> pa.Table:
    """With loss and accuracy from the margin; a pair's own m raises the loss alone."""
    schema, margin = schema_of(about["kind"]), columns["margin"]
    asked = 0.0 if about["kind"] == "dpo" or pairs.margins is None else np.array(pairs.margins, dtype=float)
    columns |= {
        "sample_id": pairs.ids,
        "group": pairs.groups or [None] * len(pairs.ids),
        "loss": -logsigmoid(torch.from_numpy(margin - asked)).numpy(),
        "accuracy": [None if np.isnan(value) else bool(value > 0) for value in margin],
    }
    arrays = [pa.array(columns[field.name], field.type, from_pandas=True) for field in schema]
    return pa.table(arrays, schema=schema.with_metadata(with_provenance(about)))


def read_pairs(path: str | Path) -> tuple[Dataset, dict[str, Any]]:
    """A pair table and its provenance. Raises ValueError for what is none."""
    table = read_table(path)
    if missing := [name for name in NEEDED if name not in table.column_names]:
        raise ValueError(f"{path} is not a pair table: it lacks {', '.join(missing)}")
    for name in ("loss", "margin"):
        kind = table.schema.field(name).type
        if not (pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_null(kind)):
            raise ValueError(f"{path}: {name} holds {kind}, not numbers")
    return Dataset(table), provenance_in(path, table.schema)
