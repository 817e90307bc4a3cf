"""Rows held out by their content: all answers to one prompt lie on the same side."""

from collections import defaultdict
from typing import Any

from datasets import Dataset

from klball.data.conversations import text_of_turn
from klball.data.formats import ANSWERS, IGNORED, MASKS, TEXT, to_trl_format
from klball.data.preferences import CHOSEN, REJECTED, to_preferences
from klball.data.texts import folded
from klball.files import digest


class NoSplitError(ValueError):
    """No prompt can be held out."""


def split_by_content(
    rows: Dataset, share: float, seed: int = 0, text_field: str = TEXT
) -> tuple[Dataset, Dataset]:
    """The rows that stay, and about `share` of them held out, each in their order.

    Prompts are shuffled by a hash of the seed and their text, whatever the order of the rows, and held out
    one after the other while `share` of the rows is not exceeded. Upper and lower case, and blanks, make no
    other prompt. rows: in any format that klball reads.

    Raises:
        NoSplitError: No prompt can be held out, a ValueError.
        ValueError: None would stay.
    """
    rows_of: dict[str, list[int]] = defaultdict(list)
    for row, prompt in enumerate(prompts_of(rows, text_field)):
        rows_of[prompt].append(row)
    room = share * len(rows) + 1e-9
    held: set[int] = set()
    for prompt in sorted(rows_of, key=lambda prompt: digest(f"{seed} {prompt}")):
        if len(held) + len(rows_of[prompt]) <= room:
            held.update(rows_of[prompt])
    if not held:
        raise NoSplitError(
            f"{share:g} of {len(rows)} rows, with {len(rows_of)} different prompts, holds out no prompt with "
            "all its answers: give a larger share, or rows of their own to evaluate on"
        )
    stay = [row for row in range(len(rows)) if row not in held]
    if not stay:
        raise ValueError(f"a share of {share:g} leaves no row to train on")
    return rows.select(stay), rows.select(sorted(held))


def prompts_of(rows: Dataset, text_field: str = TEXT) -> list[str]:
    """What every row asks, in lower case and with single blanks; a plain text asks all of itself.

    Of a conversation it is what stands before the first answer, so that two that begin alike are one.
    """
    columns = {*rows.column_names}
    if "prompt" not in columns and {CHOSEN, REJECTED} <= columns:
        rows = to_preferences(rows)
    elif "prompt" not in columns or columns & {*ANSWERS, "messages", "conversations"}:
        rows = to_trl_format(rows, conversational=False, text_field=text_field)
    return [folded(_asked(dict(row))) for row in rows]


def _asked(row: dict[str, Any]) -> str:
    if "input_ids" in row:
        return " ".join(map(str, row["input_ids"][: _first_answer_token(row)]))
    turns = row["messages"] if "messages" in row else row.get("prompt")
    if turns is None:
        return row[TEXT]
    if isinstance(turns, str):
        return turns
    first = next((k for k, turn in enumerate(turns) if turn["role"] == "assistant"), len(turns))
    return "\n".join(map(text_of_turn, turns[:first]))


def _first_answer_token(row: dict[str, Any]) -> int | None:
    """Its position; None where all tokens count alike."""
    marks = [row[name] for name in MASKS if name in row]
    answered = (
        [label != IGNORED for label in row["labels"]]
        if "labels" in row
        else [*map(all, zip(*marks, strict=True))]
    )
    return answered.index(True) if True in answered and not answered[0] else None
