"""Prompts of reinforcement learning, and the right answers where the rows have them."""

import logging
from collections.abc import Collection, Sequence
from typing import Any

from datasets import Dataset

from klball.data.conversations import chat_of, last_answer, turns_of
from klball.data.formats import (
    RENDERING,
    layout_of,
    plain_turns,
    rendering,
    replaced,
    to_trl_format,
    turns_before,
)
from klball.data.preferences import CHOSEN, REJECTED, to_preferences
from klball.data.texts import refusal, refuse_images, refuse_other_kind, texts

logger = logging.getLogger(__name__)

PROMPT, ANSWER = "prompt", "answer"
FINISHED = "completion_finished"
BESIDES = {"question", "instruction", "input", "context"}  # of rows whose prompt is `prompt`
TOLD = {  # what reward functions are told besides the columns of the data
    *("prompts", "completions", "completion_ids", FINISHED),
    *("trainer_state", "log_extra", "log_metric", "environments"),
}


def to_prompts(dataset: Dataset, conversational: bool) -> Dataset:
    """The rows with `prompt`, a text or turns, and `answer`, the right answer, where they have one.

    Rows in any format of SFT: what precedes the last answer is the prompt. Rows with `prompt` alone, or with
    one beside `answer`, are taken as they are, texts after their `system` and `history`; preference pairs
    without their answers. Other columns stay. A text becomes a user's turn if the tokenizer has a chat
    template (`conversational`).

    Raises:
        ValueError: There is no prompt, or a row cannot be used: its number, column and what was found.
    """
    if not len(dataset):
        raise ValueError("the data set has no rows")
    columns = set(dataset.column_names)
    refuse_told(columns)
    refuse_images(columns)
    if {CHOSEN, REJECTED} <= columns:
        pairs = to_preferences(dataset)
        return _as_turns(pairs.remove_columns([CHOSEN, REJECTED]), conversational)
    if PROMPT in columns and not {"completion", "messages", "conversations"} & columns:
        return _as_turns(dataset, conversational)
    if layout_of(columns).kind in ("text", "tokens"):
        raise ValueError(
            f"reinforcement learning needs prompts, and columns {sorted(columns - {'sample_id'})} have none: "
            "give prompt, or question and answer"
        )
    return _split(to_trl_format(dataset, conversational))


def check_prompts(dataset: Dataset) -> Dataset:
    """The rows as they are, once `to_prompts` has found nothing wrong with them."""
    to_prompts(dataset, conversational=False)
    return dataset


def refuse_told(columns: Collection[str]) -> None:
    """Raise ValueError for a column that would take the place of what reward functions are told."""
    for name in sorted(TOLD.intersection(columns)):
        raise ValueError(f"the column {name!r} is what reward functions are told: rename yours")


def refuse_no_prompts(name: str, dataset: Dataset) -> None:
    """Raise ValueError for the first row whose `prompt` is no text and no list of turns, or empty."""
    kind: Any = None
    for row, prompt in enumerate(dataset[PROMPT]):
        kind = kind or type(prompt)
        if not isinstance(prompt, str | list) or not prompt or type(prompt) is not kind:
            what = "of another kind than row 1" if prompt and isinstance(prompt, str | list) else "no prompt"
            raise ValueError(f"{name}: {refusal(row, PROMPT, f'{prompt!r:.40} is {what}')}")


def _as_turns(dataset: Dataset, conversational: bool) -> Dataset:
    prompts = dataset[PROMPT][:]
    for row, prompt in enumerate(prompts):
        refuse_other_kind(prompt, prompts[0], row, PROMPT)
    if conversational or isinstance(prompts[0], list):
        dataset = rendering(dataset)
    if isinstance(prompts[0], list):
        turns = [turns_of(prompt, row, PROMPT) for row, prompt in enumerate(prompts)]
        for row, prompt in enumerate(turns):
            if prompt[-1]["role"] == "assistant":
                raise refusal(row, PROMPT, "the last turn is not the user's: there is nothing to answer")
        return dataset if turns == prompts else replaced(dataset, {PROMPT: turns}, {PROMPT})
    plain = texts(dataset, PROMPT)
    _refuse_empty(plain)
    unread = BESIDES if conversational else {*BESIDES, *RENDERING}
    if besides := sorted(unread.intersection(dataset.column_names)):
        logger.warning("columns that are no part of the prompt: %s", ", ".join(besides))
    told = zip(turns_before(dataset), plain, strict=True)
    made: list[Any] = (
        [[*turns, {"role": "user", "content": text}] for turns, text in told]
        if conversational
        else ["\n\n".join([*plain_turns(turns), text]) for turns, text in told]
    )
    return replaced(dataset, {PROMPT: made}, {PROMPT, "system", "history"})


def _refuse_empty(prompts: Sequence[Any]) -> None:
    for row, prompt in enumerate(prompts):
        if not prompt:
            raise refusal(row, PROMPT, "it is empty: there is nothing to answer")


def _split(dataset: Dataset) -> Dataset:
    """From TRL's formats of SFT: the turns before the last answer, and its text."""
    used = {"messages"} if "messages" in dataset.column_names else {PROMPT, "completion"}
    prompts: list[Any] = []
    answers: list[Any] = []
    rows: Any = dataset.select_columns(sorted(used))
    for row in rows:
        if isinstance(row.get(PROMPT), str):
            prompts.append(row[PROMPT])
            answers.append(row["completion"])
            continue
        turns = chat_of(row)
        cut = last_answer(turns) or 0
        prompts.append(turns[:cut])
        answers.append(turns[cut]["content"])
    _refuse_empty(prompts)
    return replaced(dataset, {PROMPT: prompts, ANSWER: answers}, used)
