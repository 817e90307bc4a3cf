"""What is rephrased in a row of any supported format, and the row again with other words in that place."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset

from klball.data.conversations import chat_of, last_answer, text_of_turn
from klball.data.readers import dataset_of
from klball.data.rows import to_trl_format, with_sample_ids

LAYOUTS = ("question-answer", "prompt-completion", "conversation")


@dataclass(frozen=True)
class Sample:
    """One row: `prompt` is what may be reworded, `answer` the text of the final answer.

    `conversation` holds the whole row of a conversation, whose last user turn before the final answer
    is the prompt; None for plain text.
    """

    sample_id: str
    prompt: str
    answer: str
    conversation: dict[str, Any] | None = None


def samples_of(dataset: Dataset) -> tuple[list[Sample], str]:
    """The samples of a data set, with the ids that `klball.score` gives its rows, and their layout.

    Raises ValueError for a format without prompts, contents that are not text, or rows of which none has
    a prompt, or none an answer.
    """
    columns = set(dataset.column_names)
    before = bool({"system", "history"} & columns)  # turns of their own, which stay as they are
    rows = to_trl_format(with_sample_ids(dataset), conversational=before)
    columns_now = set(rows.column_names)
    if "messages" not in columns_now and not {"prompt", "completion"} <= columns_now:
        raise ValueError(f"columns {sorted(columns)} hold no prompt with an answer that could be rephrased")
    layout = "prompt-completion" if {"prompt", "completion"} <= columns else "question-answer"
    if "messages" in columns_now or isinstance(rows[0]["prompt"], list):
        layout = "conversation"
    read = {"conversation": _conversation, "prompt-completion": _plain, "question-answer": _question}[layout]
    samples = [read(dict(row)) for row in rows]
    if not any(sample.prompt.strip() for sample in samples):
        raise ValueError("no row has a user's prompt before its answer")
    if not any(sample.answer.strip() for sample in samples):
        raise ValueError("no row has an answer: rounds are scored on the answers, which stay as they are")
    return samples, layout


def rows_of(
    layout: str,
    ids: Sequence[str],
    prompts: Sequence[str],
    answers: Sequence[str],
    conversations: Sequence[Any],
) -> Dataset:
    """The rows with these prompts in them, in the layout they came in, with the samples' ids as `id`.

    Question–answer rows stay `question`/`answer`, so that they become chats or plain text by the same
    rule as the original data, whichever the tokenizer asks for.
    """
    if layout == "conversation":
        pairs = zip(ids, prompts, conversations, strict=True)
        return dataset_of([{"id": i, **_with_prompt(row, prompt)} for i, prompt, row in pairs])
    question, answer = ("question", "answer") if layout == "question-answer" else ("prompt", "completion")
    return Dataset.from_dict({"id": list(ids), question: list(prompts), answer: list(answers)})


def _question(row: dict[str, Any]) -> Sample:
    return Sample(row["sample_id"], row["prompt"].removesuffix("\n"), row["completion"])


def _plain(row: dict[str, Any]) -> Sample:
    return Sample(row["sample_id"], row["prompt"] or "", row["completion"])


def _conversation(row: dict[str, Any]) -> Sample:
    kept = ("messages",) if "messages" in row else ("prompt", "completion")
    kept = (*kept, *(name for name in ("tools", "chat_template_kwargs") if name in row))
    conversation = {name: row[name] for name in kept}
    turns = chat_of(conversation)
    final, place = last_answer(turns), _place(turns)
    return Sample(
        row["sample_id"],
        "" if place is None else turns[place]["content"],
        "" if final is None else text_of_turn(turns[final]),
        conversation,
    )


def _with_prompt(conversation: dict[str, Any], prompt: str) -> dict[str, Any]:
    changed = copy.deepcopy(conversation)
    turns = chat_of(changed)
    place = _place(turns)
    if place is not None:
        turns[place]["content"] = prompt
    return changed


def _place(turns: Sequence[dict[str, Any]]) -> int | None:
    """The last user turn before the final answer."""
    final = last_answer(turns)
    users = (i for i, turn in enumerate(turns[: final or 0]) if turn["role"] == "user")
    return max(users, default=None)
