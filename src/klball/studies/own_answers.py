"""A model answers prompts itself, and rewards say what its answers are worth: a score table of that."""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset

from klball.data.encoding import require_template, template_options
from klball.data.formats import IGNORED
from klball.data.ids import group_names
from klball.data.readers import dataset_of_columns
from klball.files import (
    json_digest,
    provenance_in,
    read_table,
    refuse_other,
    remove_parts,
    versions,
    with_provenance,
)
from klball.models.weights import weights_hash
from klball.scan.generation import end_tokens, sample_answers
from klball.scores.answers import pass_at_k
from klball.scores.parts import PLACES, Cache, Progress, made_from, table_in_parts
from klball.scores.scorer import longest_input
from klball.scores.tables import LIBRARIES, SCHEMA
from klball.training.rl.rewards import FINISHED, Reward

KIND = "answers"
PROMPTS_PER_BATCH, ON_ACCELERATOR = 4, 64  # and 16 batches a part
OF_ANSWERS = [
    *(("group", pa.string()), ("answer", pa.string()), ("finished", pa.bool_())),
    *(("rewards", pa.list_(pa.float64())), ("lengths", pa.list_(pa.int64()))),
    ("samples", pa.list_(pa.string())),
]
"""answer, finished: the greedy one. samples: the texts of the others. rewards, lengths (tokens): of the
greedy one and then of every sample."""


def answer_table(
    model: Any,
    tokenizer: Any,
    prompts: Dataset,
    reward: Reward,
    *,
    samples: int = 0,
    max_new_tokens: int = 256,
    seed: int = 0,
    group_column: str | None = None,
    output: Path | Cache,
    progress: Progress | None = None,
) -> Dataset:
    """The greedy answer and some samples to every prompt, with their rewards, as a score table.

    Columns: those of a score table, in which `log_likelihood` and `sum_log_prob` hold the reward of the
    greedy answer and `certainty` is 0, for what reads score tables; and OF_ANSWERS.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        prompts: Rows of `to_prompts`, with `sample_id`.
        reward: Called as TRL calls rewards; a number for every answer.
        samples: Answers at temperature 1 to each prompt, beside the greedy one.
        max_new_tokens: Longer answers are cut, which the reward is told.
        seed: Of the samples.
        group_column: Kept as `group`.
        output: A Parquet file, or their cache; killed and run again, it continues, and comes out the same.
        progress: Called with prompts done and prompts in all.

    Raises:
        ValueError: A prompt leaves no room, an answer has no reward, or `output` is of something else.
    """
    if group_column is not None:
        group_names(prompts, group_column)  # for its refusals
    tokens = _tokens(model, tokenizer, prompts, max_new_tokens)
    about = {
        "kind": KIND,
        "model": model.config._name_or_path,
        "weights": weights_hash(model),
        "dtype": str(next(model.parameters()).dtype),
        "data": json_digest([prompts.to_list(), tokens]),
        "reward": repr(reward),
        "answers": [samples, max_new_tokens, seed, group_column],
        "libraries": versions(*LIBRARIES),
    }
    if isinstance(output, Cache):
        output = output.path(about)
    if output.exists():
        finished = read_table(output)
        refuse_other(output, provenance_in(output, finished.schema), about, PLACES)
        remove_parts(output)  # which a kill may have left
        return Dataset(finished)
    order = sorted(range(len(tokens)), key=lambda row: (len(tokens[row]), row))
    size = PROMPTS_PER_BATCH if next(model.parameters()).device.type == "cpu" else ON_ACCELERATOR
    batches = [order[k : k + size] for k in range(0, len(order), size)]

    def part_of(batches: list[list[int]]) -> pa.Table:
        rows = list(chain.from_iterable(batches))
        some = prompts.select(rows)
        drawn = [_answers(model, tokenizer, some, [tokens[r] for r in rows], max_new_tokens, 1, None)]
        if samples:
            of_part = seed * 1_000_003 + rows[0]
            settings = (max_new_tokens, samples, of_part)
            drawn.append(_answers(model, tokenizer, some, [tokens[r] for r in rows], *settings))
        return _judged(some, rows, drawn, reward, group_column)

    def whole(parts: Sequence[pa.Table]) -> pa.Table:
        table = pa.concat_tables(parts).sort_by("row").drop_columns("row")
        return table.replace_schema_metadata(with_provenance(about))

    return Dataset(table_in_parts(batches, part_of, whole, made_from(about), output, progress))


def _tokens(model: Any, tokenizer: Any, prompts: Dataset, max_new_tokens: int) -> list[list[int]]:
    if isinstance(prompts[0]["prompt"], list):
        require_template(tokenizer)
        rows: Any = prompts
        options = [template_options(row, place=place) for place, row in enumerate(rows)]
        asked = {"add_generation_prompt": True, "return_dict": True}
        made = [
            tokenizer.apply_chat_template(prompt, **asked, **more)["input_ids"]
            for prompt, more in zip(prompts["prompt"], options, strict=True)
        ]
    else:
        made = tokenizer(prompts["prompt"][:])["input_ids"]
    limit = longest_input(model, tokenizer, None)
    for row, ids in enumerate(made):
        if not ids or (limit is not None and len(ids) + max_new_tokens > limit):
            raise ValueError(
                f"row {row + 1} (counted from 1): its prompt of {len(ids)} tokens leaves no room for "
                f"{max_new_tokens} new ones within {limit}"
            )
    return made


Answers = list[list[dict[str, Any]]]  # of every prompt


def _answers(
    model: Any,
    tokenizer: Any,
    rows: Dataset,
    tokens: list[list[int]],
    max_new_tokens: int,
    samples: int,
    seed: int | None,
) -> Answers:
    """seed: None for the greedy ones."""
    end = tokenizer.eos_token_id
    encoded = dataset_of_columns(
        {
            "sample_id": rows["sample_id"][:],
            "input_ids": [[*ids, end] for ids in tokens],
            "labels": [[IGNORED] * len(ids) + [end] for ids in tokens],
        }
    )
    settings: dict[str, Any] = dict(
        max_new_tokens=max_new_tokens, samples=samples, greedy=seed is None, seed=seed or 0
    )
    drawn = sample_answers(model, tokenizer, encoded, **settings).to_list()
    ends = end_tokens(model, tokenizer)
    for row in drawn:
        row["ids"] = [token for token in row["labels"] if token != IGNORED]
        row["finished"] = bool(row["ids"]) and row["ids"][-1] in ends
    return [drawn[k : k + samples] for k in range(0, len(drawn), samples)]


def _judged(
    prompts: Dataset, rows: list[int], drawn: list[Answers], reward: Reward, group_column: str | None
) -> pa.Table:
    """The part of the table of these rows; drawn: of every pass over them, the answers to each."""
    answers = [list(chain(*(some[k] for some in drawn))) for k in range(len(rows))]
    _reward_all(prompts, answers, reward)
    firsts = [some[0] for some in answers]
    scores = [row["reward"] for row in firsts]
    table = {
        "row": rows,
        "sample_id": prompts["sample_id"][:],
        **dict.fromkeys(("log_likelihood", "sum_log_prob"), scores),
        **dict.fromkeys(("certainty", "entropy"), [0.0] * len(rows)),
        "num_tokens": [len(row["ids"]) for row in firsts],
        "num_bytes": [max(1, len(row["text"].encode())) for row in firsts],
        "truncated": [False] * len(rows),
        "group": [None] * len(rows) if group_column is None else list(map(str, prompts[group_column])),
        "answer": [row["text"] for row in firsts],
        "finished": [row["finished"] for row in firsts],
        "rewards": [[row["reward"] for row in some] for some in answers],
        "lengths": [[len(row["ids"]) for row in some] for some in answers],
        "samples": [[row["text"] for row in some[1:]] for some in answers],
    }
    schema = pa.schema([("row", pa.int64()), *SCHEMA, *OF_ANSWERS])
    return pa.table([pa.array(table[name], schema.field(name).type) for name in schema.names], schema=schema)


def _reward_all(prompts: Dataset, answers: Answers, reward: Reward) -> None:
    """Every answer gets its reward, in one call."""
    repeated = prompts.select(np.repeat(np.arange(len(answers)), [len(some) for some in answers]))
    flat = list(chain.from_iterable(answers))
    chat = isinstance(prompts[0]["prompt"], list)
    texts = [row["text"] for row in flat]
    columns = {name: repeated[name][:] for name in repeated.column_names if name != "prompt"}
    found = reward(
        prompts=repeated["prompt"][:],
        completions=[[{"role": "assistant", "content": text}] for text in texts] if chat else texts,
        completion_ids=[row["ids"] for row in flat],
        **{**columns, FINISHED: [row["finished"] for row in flat]},
    )
    for row, value in zip(flat, found, strict=True):
        if value is None or not np.isfinite(value):
            raise ValueError(f"an answer to {row['sample_id']!r} has the reward {value}: all need a number")
        row["reward"] = float(value)


def metrics_of(table: Dataset, ks: Sequence[int] = ()) -> dict[str, np.ndarray]:
    """What `answer_report` takes, [prompts] each: reward (greedy), length, finished; of samples mean_reward
    and, where all rewards are 0 or 1, accuracy and pass@k."""
    rewards = np.array(table["rewards"][:])
    lengths = np.array(table["lengths"][:])
    greedy, sampled = rewards[:, 0], rewards[:, 1:]
    verified = bool(np.isin(rewards, (0.0, 1.0)).all())
    found = {"accuracy" if verified else "reward": greedy}
    if sampled.shape[1]:
        found["mean_reward"] = sampled.mean(1)
        if ks and not verified:
            raise ValueError("pass@k needs rewards of 0 or 1")
        found |= {f"pass@{k}": pass_at_k(sampled.sum(1), sampled.shape[1], k) for k in ks}
    return {**found, "length": lengths[:, 0], "finished": np.array(table["finished"][:], dtype=float)}
