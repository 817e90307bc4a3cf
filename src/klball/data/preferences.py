"""Preference pairs: rows in TRL's formats → prompt, chosen and rejected, checked row by row.

TRL takes for an implicit prompt whatever `chosen` and `rejected` begin with, so that the words with which
both answers open are never learnt. Here a prompt ends where a turn does.
"""

import logging
import math
import re
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from datasets import Dataset

from klball.data.conversations import Turn, text_of_turn, turns_of
from klball.data.formats import MEANINGFUL, RENDERING, rendering, replaced
from klball.data.texts import found, refusal, refuse_images, refuse_other_kind, texts

logger = logging.getLogger(__name__)

CHOSEN, REJECTED, PROMPT, MARGIN = "chosen", "rejected", "prompt", "margin"
PAIR = (PROMPT, CHOSEN, REJECTED)
SPEAKER = re.compile(r"\n\n(Human|Assistant):[ \t]*")
ROLE_OF = {"Human": "user", "Assistant": "assistant"}
TOKENS = ("chosen_ids", "rejected_ids", "prompt_ids", "chosen_input_ids", "rejected_input_ids")
REFERENCE = ("ref_chosen_logps", "ref_rejected_logps")  # TRL would believe them, whatever the reference
HIDDEN = ("flipped",)  # columns about the labels, which no training may see
ADVICE = "give the prompt in a column `prompt`, or rows as lists of turns"


class Pair(NamedTuple):
    """One pair: texts, or lists of turns."""

    prompt: Any
    chosen: Any
    rejected: Any


def visible(dataset: Dataset, group_column: str | None) -> Dataset:
    """The rows without what training may not see. Raises ValueError for groups by it."""
    if group_column in HIDDEN:
        raise ValueError(f"group_column: {group_column!r} is about the labels: training may not see it")
    return dataset.remove_columns([name for name in HIDDEN if name in dataset.column_names])


def to_preferences(dataset: Dataset) -> Dataset:
    """The rows with an explicit `prompt`, and `chosen` and `rejected` that answer it; other columns stay.

    All three are texts, or all are lists of turns. Known are explicit prompts; conversations whose common
    turns are the prompt; texts whose turns begin with "\\n\\nHuman:" and "\\n\\nAssistant:"; and other texts,
    whose common lines are it. `margin`: a number in every row.

    Raises:
        ValueError: A column is missing, or a row cannot be used: its number, column and what was found.
    """
    _refuse_columns(dataset)
    dataset = _known_columns(dataset)
    pairs = _pairs_of(dataset)
    refuse_useless_pairs(pairs)
    columns: dict[str, list[Any]] = dict(zip(PAIR, map(list, zip(*pairs, strict=True)), strict=True))
    if MARGIN in dataset.column_names:
        columns[MARGIN] = margins_of(dataset)
    same = all(n in dataset.column_names and dataset[n][:] == values for n, values in columns.items())
    made = dataset if same else replaced(dataset, columns, set(columns))
    return rendering(made) if isinstance(pairs[0].prompt, list) else made


def to_belief_rows(dataset: Dataset) -> Dataset:
    """GDPO's rows: prompt, beliefs, p_star; where they have chosen and rejected, these as pairs.

    Raises ValueError for a missing column, or a pair that cannot be used; the trainer checks beliefs.
    """
    columns = dataset.column_names
    if missing := [name for name in ("prompt", "beliefs", "p_star") if name not in columns]:
        raise ValueError(f"GDPO needs the column {missing[0]!r}; there are {', '.join(sorted(columns))}")
    answers = [name for name in (CHOSEN, REJECTED) if name in columns]
    of_row = zip(*(dataset[name] for name in answers), strict=True)
    lacking = [sum(value is None for value in values) for values in of_row]
    if sum(lacking) == len(answers) * len(dataset):
        return dataset.remove_columns(answers) if answers else dataset
    return _with_pairs(dataset, lacking) if any(lacking) and len(answers) == 2 else to_preferences(dataset)


def _with_pairs(dataset: Dataset, lacking: Sequence[int]) -> Dataset:
    """Rows of which some have no answers; lacking: how many of the two, in each row."""
    if 1 in lacking:
        raise refusal(lacking.index(1), CHOSEN, "and rejected belong together: give both or none")
    given = [row for row, count in enumerate(lacking) if not count]
    try:
        pairs = to_preferences(dataset.select(given))
    except ValueError as error:  # which counts the rows that it saw
        said = re.sub(r"\brow (\d+)\b", lambda row: f"row {given[int(row[1]) - 1] + 1}", str(error))
        raise ValueError(said) from None
    columns: dict[str, list[Any]] = {name: [None] * len(dataset) for name in (CHOSEN, REJECTED)}
    columns[PROMPT] = dataset[PROMPT][:]
    for name, values in columns.items():
        for row, value in zip(given, pairs[name], strict=True):
            values[row] = value
    return replaced(dataset, columns, set(columns))


def refuse_margin(columns: Collection[str]) -> None:
    """Raise ValueError for a column that only reward models have a use for."""
    if MARGIN in columns:
        raise ValueError(f"the column {MARGIN} has no effect here: it is for reward models; leave it out")


def texts_of_pair(row: dict[str, Any]) -> dict[str, str]:
    """Prompt and both answers of a row, to be shown to people; "" for what it has only as tokens."""
    return {name: _as_text(row.get(name) or "") for name in PAIR}


def _as_text(turns: str | list[Turn]) -> str:
    return turns if isinstance(turns, str) else " / ".join(map(text_of_turn, turns))


# --- columns ------------------------------------------------------------------------------------


def _refuse_columns(dataset: Dataset) -> None:
    if not len(dataset):
        raise ValueError("the data set has no rows")
    columns = set(dataset.column_names)
    refuse_images(columns)
    if missing := [name for name in (CHOSEN, REJECTED) if name not in columns]:
        raise ValueError(
            f"preference pairs need the column {missing[0]!r}; there are {', '.join(sorted(columns))}: give "
            "prompt, chosen and rejected, or chosen and rejected as whole conversations"
        )


def _known_columns(dataset: Dataset) -> Dataset:
    """Without columns that TRL would take for something of its own; they are named in a warning."""
    read = {*PAIR, *RENDERING}
    unused = sorted({*dataset.column_names} & ((MEANINGFUL | {*TOKENS, *REFERENCE}) - read))
    unused += for_templates(dataset)
    if unused:
        logger.warning("columns not used, because rows are read as preference pairs: %s", ", ".join(unused))
    return dataset.remove_columns(unused) if unused else dataset


def for_templates(dataset: Dataset) -> list[str]:
    """Columns for chat templates beside rows that are texts, of which none makes use."""
    names = [name for name in RENDERING if name in dataset.column_names]
    first = dataset[0] if names and CHOSEN in dataset.column_names else {CHOSEN: []}
    return [] if isinstance(first[CHOSEN], list) or _has_turns(first) else names


def margins_of(dataset: Dataset) -> list[float]:
    """The column `margin` as numbers, [n]. Raises ValueError for a row without one."""
    return [_margin(value, row) for row, value in enumerate(dataset[MARGIN])]


def _margin(value: Any, row: int) -> float:
    """A number, or the text of one: that is what is read from JSON and CSV files."""
    number = math.nan
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        with suppress(ValueError):
            number = float(value)
    if not math.isfinite(number):
        raise refusal(row, MARGIN, f"{found(value)}, but a margin is a finite number, in every row")
    return number


# --- pairs --------------------------------------------------------------------------------------


def _pairs_of(dataset: Dataset) -> list[Pair]:
    rows = dataset.select_columns([name for name in PAIR if name in dataset.column_names]).to_list()
    first = rows[0]
    for row, values in enumerate(rows):
        for name in values:
            refuse_other_kind(values[name], first[name], row, name)
    if isinstance(first[CHOSEN], list) != isinstance(first[REJECTED], list):
        raise refusal(0, REJECTED, f"{found(first[REJECTED])}, but chosen is {found(first[CHOSEN])}")
    if isinstance(first[CHOSEN], list):
        return [_of_turns(values, row) for row, values in enumerate(rows)]
    if isinstance(first.get(PROMPT), list):
        said = found(first[CHOSEN])
        raise refusal(
            0, CHOSEN, f"{said}, but the prompt is a list of turns: give all as text, or all as turns"
        )
    columns = {name: texts(dataset, name) for name in first}
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    spoken = [_has_turns(values) for values in rows]
    if all(spoken):
        return [_of_speakers(values, row) for row, values in enumerate(rows)]
    if any(spoken):
        row = spoken.index(False)
        raise refusal(
            row, CHOSEN, f"no 'Human:' and 'Assistant:' turns, as row {spoken.index(True) + 1} has them"
        )
    if PROMPT in first:
        return [_of_texts(values, row) for row, values in enumerate(rows)]
    logger.warning(
        "rows have no column prompt: of every pair, the lines that chosen and rejected share at their "
        "beginning are taken for it"
    )
    return [_of_lines(values, row) for row, values in enumerate(rows)]


def refuse_useless_pairs(pairs: Iterable[tuple[Any, Any, Any]]) -> None:
    """Raise ValueError for an answer without words, or no difference to learn from.

    pairs: prompt, chosen and rejected, each a text or a list of turns; None where a row has no pair.
    """
    for row, (_, *answers) in enumerate(pairs):
        if None in answers:
            continue
        chosen, rejected = map(_said, answers)
        for name, said in ((CHOSEN, chosen), (REJECTED, rejected)):
            if not said:
                raise refusal(row, name, "the answer is empty: leave the row out")
        if chosen == rejected:
            raise refusal(
                row, REJECTED, "the same answer as chosen: there is nothing to prefer; leave the row out"
            )


def _said(answer: Any) -> Any:
    if isinstance(answer, str):
        return answer.strip()
    contents = [turn.get("content") or "" for turn in answer]
    words = [content.strip() if isinstance(content, str) else content for content in contents]
    spoken = [(t["role"], said, t.get("tool_calls")) for t, said in zip(answer, words, strict=True)]
    return spoken if any(content or calls for _, content, calls in spoken) else None


# --- conversations ------------------------------------------------------------------------------


def _of_turns(values: dict[str, Any], row: int) -> Pair:
    """Lists of turns; a prompt that stands in front of both answers as well is theirs."""
    chosen, rejected = (turns_of(values[name], row, name) for name in (CHOSEN, REJECTED))
    prompt = values.get(PROMPT)
    if isinstance(prompt, str):  # UltraFeedback and others have the first user turn as `prompt`, too
        users = [turn.get("content") for turn in chosen if turn["role"] == "user"]
        if prompt not in users:
            raise refusal(row, PROMPT, "text, but chosen is a list of turns: give the prompt as turns, too")
        prompt = None
    if prompt is None:
        return _common_turns(chosen, rejected, row)
    before = turns_of(prompt, row, PROMPT)
    if chosen[: len(before)] == before and rejected[: len(before)] == before:
        return _common_turns(chosen, rejected, row)
    return _answering(Pair(before, chosen, rejected), row)


def _common_turns(chosen: list[Turn], rejected: list[Turn], row: int) -> Pair:
    pairs = zip(chosen, rejected, strict=False)
    end = next((k for k, (one, other) in enumerate(pairs) if one != other), min(len(chosen), len(rejected)))
    if end == len(chosen) == len(rejected):
        raise refusal(row, REJECTED, "the same conversation as chosen: there is nothing to prefer")
    if end in (len(chosen), len(rejected)):
        end -= 1  # one goes on where the other ends: the last turn of the shorter is its answer
    if end == 0:
        raise refusal(row, CHOSEN, "its first turn differs from that of rejected: there is no common prompt")
    return _answering(Pair(chosen[:end], chosen[end:], rejected[end:]), row)


def _answering(pair: Pair, row: int) -> Pair:
    for name, turns in ((CHOSEN, pair.chosen), (REJECTED, pair.rejected)):
        if turns[0]["role"] != "assistant":
            other = "chosen and rejected must answer the same prompt"
            raise refusal(row, name, f"the answer begins with a turn of the {turns[0]['role']}: {other}")
        if turns[-1]["role"] != "assistant":
            raise refusal(row, name, f"it ends with a turn of the {turns[-1]['role']}, not with an answer")
    return pair


# --- texts --------------------------------------------------------------------------------------


def _has_turns(values: dict[str, Any]) -> bool:
    """Whether the texts are turns of a "Human" and an "Assistant", as those of hh-rlhf."""
    text = values.get(PROMPT, values[CHOSEN])
    speakers = [match[1] for match in SPEAKER.finditer(text)] if isinstance(text, str) else []
    return text.startswith("\n\n") and "Assistant" in speakers and "Human" in speakers if speakers else False


def _of_speakers(values: dict[str, str], row: int) -> Pair:
    before = values.get(PROMPT, "")
    repeated = before and values[CHOSEN].startswith(before) and values[REJECTED].startswith(before)
    prefix = "" if repeated else before
    chosen, rejected = (_spoken(prefix + values[name], row, name) for name in (CHOSEN, REJECTED))
    return _common_turns(chosen, rejected, row)


def _spoken(text: str, row: int, column: str) -> list[Turn]:
    head, *parts = SPEAKER.split(text)
    turns = [
        {"role": ROLE_OF[speaker], "content": content.strip()}
        for speaker, content in zip(parts[::2], parts[1::2], strict=True)
    ]
    if head.strip() or not turns:
        raise refusal(row, column, f"it must begin with '\\n\\nHuman:', and begins with {text[:30]!r}")
    if not turns[-1]["content"]:
        raise refusal(row, column, f"the last turn, of the {turns[-1]['role']}, is empty: leave the row out")
    return turns


def _of_texts(values: dict[str, str], row: int) -> Pair:
    pair = Pair(*(values[name] for name in PAIR))
    if pair.prompt.strip() and all(answer.startswith(pair.prompt) for answer in (pair.chosen, pair.rejected)):
        raise refusal(row, CHOSEN, "it repeats the whole prompt: give the answer alone, or no column prompt")
    return pair


def _of_lines(values: dict[str, str], row: int) -> Pair:
    """The prompt ends with the last line break that both texts share: no word of an answer belongs to it."""
    chosen, rejected = values[CHOSEN], values[REJECTED]
    both = zip(chosen, rejected, strict=False)
    differ = next((k for k, (a, b) in enumerate(both) if a != b), min(len(chosen), len(rejected)))
    end = chosen.rfind("\n", 0, differ) + 1
    if not chosen[:end].strip():
        raise refusal(
            row, CHOSEN, f"it shares no whole line with rejected that could be the prompt: {ADVICE}"
        )
    return Pair(chosen[:end], chosen[end:], rejected[end:])
