"""The row formats people have → TRL's own, checked row by row.

Known are TRL's formats (`messages`, prompt and completion, text, token ids), ShareGPT's `conversations`,
and question–answer columns with LLaMA-Factory's `system` and `history`. The first that fits counts; a column
that only another one uses is named in a warning and left out, and columns of no format stay.
"""

import logging
from typing import Any, NamedTuple

from datasets import Dataset, concatenate_datasets

from klball.data.conversations import (
    Turn,
    earlier_turns,
    require_assistant,
    template_kwargs_of,
    tools_of,
    turns_of,
    with_system,
)
from klball.data.readers import dataset_of_columns
from klball.data.texts import found, refusal, refuse_images, texts

logger = logging.getLogger(__name__)

TEXT = "text"
QUESTIONS = ("instruction", "question", "prompt")
ANSWERS = ("output", "response", "answer", "completion")
MASKS = ("completion_mask", "assistant_masks")
RENDERING = ("tools", "chat_template_kwargs")
IGNORED = -100  # the label of a position that is not an answer token
MEANINGFUL = {
    *(*QUESTIONS, *ANSWERS, *MASKS, *RENDERING, TEXT, "messages", "conversations", "input", "context"),
    *("system", "history", "chosen", "rejected", "input_ids", "labels"),
}


class Layout(NamedTuple):
    """kind: "tokens", "messages", "pair", "text" or "question"; used: the columns that it reads."""

    kind: str
    used: frozenset[str]


def layout_of(columns: set[str], text_field: str = TEXT) -> Layout:
    """How rows with these columns are read. Raises ValueError if no format has them."""
    refuse_images(columns)
    if "input_ids" in columns:
        return Layout("tokens", frozenset(("input_ids", *(["labels"] if "labels" in columns else MASKS))))
    if "messages" in columns:
        return Layout("messages", frozenset(("messages", *RENDERING)))
    if "conversations" in columns:
        return Layout("messages", frozenset(("conversations", "system", *RENDERING)))
    if {"prompt", "completion"} <= columns:
        return Layout("pair", frozenset(("prompt", "completion", *RENDERING)))
    if {text_field, TEXT} & columns:
        return Layout("text", frozenset((text_field if text_field in columns else TEXT,)))
    question = next((name for name in QUESTIONS if name in columns), None)
    answer = next((name for name in ANSWERS if name in columns), None)
    if question is None or answer is None:
        if {"chosen", "rejected"} <= columns:
            raise ValueError(
                "the rows are preference pairs, of two answers: they are for --family reward, dpo or gdpo "
                "(in Python: load_rows(…, form=klball.to_preferences))"
            )
        if {"beliefs", "p_star"} <= columns:
            raise ValueError(
                "the rows are prompts with beliefs: they are for --family gdpo "
                "(in Python: load_rows(…, form=klball.to_belief_rows))"
            )
        raise ValueError(
            f"columns {sorted(columns - {'sample_id'})} are of no known format: give messages, "
            "conversations, prompt and completion, instruction (and input) and output or response, "
            f"question and answer, or {text_field}"
        )
    more = {"input" if "input" in columns else "context"} if question == "instruction" else set()
    return Layout("question", frozenset((question, answer, "system", "history", *more)))


def known_columns(dataset: Dataset, text_field: str = TEXT) -> Dataset:
    """The data set without the columns that its format does not read but another one would.

    They are named in a warning: TRL would mistake some, such as `labels`, for its own.
    """
    if not len(dataset):
        raise ValueError("the data set has no rows")
    columns = set(dataset.column_names)
    if {"input_ids", "seq_lengths"} <= columns:
        raise ValueError("the data set is packed already: give one sample a row")
    layout = layout_of(columns, text_field)
    used = layout.used
    if layout.kind == "pair" and not isinstance(dataset[0]["prompt"], list):
        used -= set(RENDERING)  # for chat templates
    unused = sorted((columns & (MEANINGFUL | {text_field})) - used)
    told = [name for name in unused if not (name == "prompt" and _repeats_the_first_turn(dataset))]
    if told:
        logger.warning("columns not used, because rows are read as %s: %s", layout.kind, ", ".join(told))
    return dataset.remove_columns(unused) if unused else dataset


def refuse_unread_text_field(rows: Dataset, text_field: str) -> None:
    """Raise ValueError if a column of texts was named and another one is read."""
    columns = {*rows.column_names} - {"sample_id"}
    if text_field != TEXT and layout_of(columns, text_field).used != {text_field}:
        named = ", ".join(sorted(columns))
        raise ValueError(
            f"dataset_text_field: rows with {named} are not read by {text_field!r}: leave it out, or name a "
            "column of texts"
        )


def _repeats_the_first_turn(dataset: Dataset) -> bool:
    """UltraChat and others have the first user turn as `prompt` beside `messages`."""
    row = dataset[0]
    turns = row.get("messages") or []
    first = next((t.get("content") for t in turns if isinstance(t, dict) and t.get("role") == "user"), None)
    return first is not None and row["prompt"] == first


def to_trl_format(dataset: Dataset, conversational: bool, text_field: str = TEXT) -> Dataset:
    """The rows in TRL's formats: messages, prompt and completion, `text`, or token ids.

    Question–answer columns become conversations if the tokenizer has a chat template (`conversational`),
    else plain text with a newline between. Raises ValueError for columns of no known format, and for a row
    that cannot be used, with its number, column and what was found.
    """
    dataset = known_columns(dataset, text_field)
    kind = layout_of(set(dataset.column_names), text_field).kind
    if kind == "tokens":
        return _tokens(dataset)
    if kind == "messages":
        return rendering(_messages(dataset))
    if kind == "pair":
        return _pairs(dataset)
    if kind == "text":
        column = text_field if text_field in dataset.column_names else TEXT
        return replaced(dataset, {TEXT: texts(dataset, column)}, {column})
    return _questions(dataset, conversational)


def is_chat(dataset: Dataset) -> bool:
    """Whether rows in a TRL format are conversations."""
    return "messages" in dataset.column_names or (
        "prompt" in dataset.column_names and isinstance(dataset[0]["prompt"], list)
    )


def _messages(dataset: Dataset) -> Dataset:
    column = "messages" if "messages" in dataset.column_names else "conversations"
    given = dataset[column][:]
    made = [turns_of(value, row, column) for row, value in enumerate(given)]
    if column == "conversations" and "system" in dataset.column_names:
        systems = texts(dataset, "system", empty=True)
        made = [with_system(turns, system) for turns, system in zip(made, systems, strict=True)]
    for row, turns in enumerate(made):
        require_assistant(turns, row, column)
    if column == "messages" and made == given:
        return dataset
    return replaced(dataset, {"messages": made}, {column, "system"})


def _pairs(dataset: Dataset) -> Dataset:
    prompts, completions = dataset["prompt"][:], dataset["completion"][:]
    chat = isinstance(prompts[0], list)
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        if isinstance(prompt, list) != chat:
            raise refusal(row, "prompt", f"{found(prompt)}, but in row 1 {found(prompts[0])}: give one kind")
        if isinstance(completion, list) != chat:
            both = "give both as text, or both as lists of turns"
            raise refusal(
                row, "completion", f"{found(completion)}, but the prompt is {found(prompt)}: {both}"
            )
    if not chat:
        plain = {name: texts(dataset, name) for name in ("prompt", "completion")}
        return replaced(dataset, plain, set(plain))
    made = {
        name: [turns_of(value, row, name) for row, value in enumerate(values)]
        for name, values in (("prompt", prompts), ("completion", completions))
    }
    for row, turns in enumerate(made["completion"]):
        require_assistant(turns, row, "completion")
    same = made["prompt"] == prompts and made["completion"] == completions
    return rendering(dataset if same else replaced(dataset, made, set(made)))


def _questions(dataset: Dataset, conversational: bool) -> Dataset:
    columns = dataset.column_names
    question = next(name for name in QUESTIONS if name in columns)
    answer = next(name for name in ANSWERS if name in columns)
    first = dataset[0][question]
    if isinstance(first, list):
        raise refusal(0, question, f"a list of turns, but {answer} is a column of text: give messages")
    prompts, answers = texts(dataset, question), texts(dataset, answer)
    more = next((name for name in ("input", "context") if name in columns), None)
    if more is not None:
        inputs = texts(dataset, more, empty=True)
        pairs = zip(prompts, inputs, strict=True)
        prompts = ["\n\n".join(part for part in pair if part) for pair in pairs]
    before = turns_before(dataset)
    if conversational:
        made: dict[str, list[Any]] = {
            "prompt": [
                [*turns, {"role": "user", "content": prompt}]
                for turns, prompt in zip(before, prompts, strict=True)
            ],
            "completion": [[{"role": "assistant", "content": text}] for text in answers],
        }
    else:
        both = zip(before, prompts, strict=True)
        told = ["\n\n".join([*plain_turns(turns), prompt]) for turns, prompt in both]
        made = {"prompt": [prompt + "\n" for prompt in told], "completion": answers}
    return replaced(dataset, made, {question, answer, "input", "context", "system", "history"})


def turns_before(dataset: Dataset) -> list[list[Turn]]:
    """What comes before the question: `system`, then the turns of `history`."""
    columns, nothing = dataset.column_names, [None] * len(dataset)
    systems = texts(dataset, "system", empty=True) if "system" in columns else [""] * len(dataset)
    histories = dataset["history"] if "history" in columns else nothing
    return [
        with_system(earlier_turns(history, row), system)
        for row, (history, system) in enumerate(zip(histories, systems, strict=True))
    ]


def plain_turns(turns: list[Turn]) -> list[str]:
    return [turn["content"] for turn in turns]


def rendering(dataset: Dataset) -> Dataset:
    """With `tools` and `chat_template_kwargs` that TRL can hand to the template."""
    columns = dataset.column_names
    if "tools" in columns:
        for row, tools in enumerate(dataset["tools"]):
            tools_of(tools, row)
    if "chat_template_kwargs" not in columns:
        return dataset
    given = dataset["chat_template_kwargs"][:]
    kwargs = [template_kwargs_of(value, row) for row, value in enumerate(given)]
    if kwargs == given:
        return dataset
    return replaced(dataset, {"chat_template_kwargs": kwargs}, {"chat_template_kwargs"})


def _tokens(dataset: Dataset) -> Dataset:
    """Token ids as they are; `labels` or masks must be as long."""
    beside = [name for name in ("labels", *MASKS) if name in dataset.column_names]
    masked = dataset["attention_mask"] if "attention_mask" in dataset.column_names else [None] * len(dataset)
    columns = zip(dataset["input_ids"], masked, *(dataset[name] for name in beside), strict=True)
    for row, (ids, mask, *others) in enumerate(columns):
        _whole_numbers(ids, row, "input_ids")
        if not ids:
            raise refusal(row, "input_ids", "no tokens")
        if mask is not None:
            _whole_numbers(mask, row, "attention_mask")
            if 0 in mask:
                raise refusal(row, "attention_mask", "padding (0): give the row without it")
        for name, values in zip(beside, others, strict=True):
            _whole_numbers(values, row, name)
            if len(values) != len(ids):
                raise refusal(row, name, f"{len(values)} values for {len(ids)} input_ids")
    return dataset


def _whole_numbers(values: Any, row: int, column: str) -> None:
    if not isinstance(values, list) or not all(type(value) is int for value in values):
        raise refusal(row, column, f"{found(values)}, but it must be a list of whole numbers")


def refuse_unknown_tokens(dataset: Dataset, vocabulary: int) -> None:
    """Raise ValueError for a row with token ids that a model of this vocabulary does not have."""
    for column in ("input_ids", "labels"):
        for row, ids in enumerate(dataset[column] if column in dataset.column_names else []):
            bad = next(
                (i for i in ids if not 0 <= i < vocabulary and not (column == "labels" and i == IGNORED)),
                None,
            )
            if bad is not None:
                raise refusal(row, column, f"token id {bad}, but the vocabulary has {vocabulary} tokens")


def replaced(dataset: Dataset, columns: dict[str, list[Any]], old: set[str]) -> Dataset:
    """The data set with new columns in place of old ones."""
    added = dataset_of_columns(columns)
    kept = dataset.remove_columns([name for name in dataset.column_names if name in old])
    return concatenate_datasets([kept, added], axis=1) if kept.column_names else added
