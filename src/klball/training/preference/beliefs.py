"""GDPO's rows: a question, the beliefs there are about it, and two answers under one of them → tokens."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from trl.data_utils import common_prefix_length
from trl.trainer.utils import pad

from klball.data.conversations import template_kwargs_of, tools_of
from klball.data.texts import found, refusal

COLUMNS = ("prompt_ids", "belief_ids", "p_star", "named", "chosen_ids", "rejected_ids", "text_start")
PADDED = ("input_ids", "attention_mask", "completion_mask")


def encoded_beliefs(dataset: Dataset, tokenizer: Any, belief_end: str, num_proc: int | None) -> Dataset:
    """The rows with COLUMNS. Raises ValueError for a row that cannot be used."""
    options = {"tokenizer": tokenizer, "end": belief_end}
    return dataset.map(
        _encode,
        with_indices=True,
        fn_kwargs=options,
        num_proc=num_proc,
        load_from_cache_file=False,  # its key does not see a change of the functions that this one calls
        desc="Tokenising beliefs",
    )


def _encode(values: dict[str, Any], row: int, tokenizer: Any, end: str) -> dict[str, Any]:
    beliefs, p_star = _checked_beliefs(values, row)
    template = _of_template(values, row)
    prompt, special = _rendered(tokenizer, values["prompt"], row, template)
    before = tokenizer(text=prompt, add_special_tokens=special)["input_ids"]
    whole = [tokenizer(text=prompt + b + end, add_special_tokens=special)["input_ids"] for b in beliefs]
    start = min(common_prefix_length(before, ids) for ids in whole)
    if start == 0:
        raise refusal(row, "prompt", "it has no token before the beliefs")
    tokens = [ids[start:] for ids in whole]
    for ids in tokens:  # else P(one) would count what belongs to the other
        if sum(other[: len(ids)] == ids for other in tokens) > 1:
            raise refusal(row, "beliefs", f"{tokenizer.decode(ids)!r} begins another: change belief_end")
    named = _named(values, beliefs, p_star, row)
    encoded = {"prompt_ids": whole[0][:start], "belief_ids": tokens, "p_star": p_star, "named": named}
    texts = [_text(values, name, row) for name in ("chosen", "rejected")]
    if None in texts:
        if texts != [None, None]:
            raise refusal(row, "chosen", "and rejected belong together: give both or none")
        return {**encoded, "chosen_ids": [], "rejected_ids": [], "text_start": 0}
    if str(texts[0]).strip() == str(texts[1]).strip():
        raise refusal(row, "rejected", "is the same answer as chosen: there is nothing to prefer")
    if named < 0:
        raise refusal(row, "belief", "is missing: it says under which belief the two answers were given")
    said = [beliefs[named] + end + str(text) for text in texts]
    answers = [_answer(tokenizer, values["prompt"], prompt, text, row, template) for text in said]
    text_start = min(common_prefix_length(whole[named], ids) for ids in answers)
    chosen, rejected = (ids[start:] for ids in answers)
    return {**encoded, "chosen_ids": chosen, "rejected_ids": rejected, "text_start": text_start - start}


def _of_template(values: dict[str, Any], row: int) -> dict[str, Any]:
    kwargs = template_kwargs_of(values.get("chat_template_kwargs"), row)
    return {"tools": tools_of(values.get("tools"), row), **kwargs, "tokenize": False}


def _rendered(tokenizer: Any, prompt: Any, row: int, template: dict[str, Any]) -> tuple[str, bool]:
    """A prompt as text, and whether special tokens are still to be added."""
    if isinstance(prompt, str):
        return prompt, True
    if not isinstance(prompt, list):
        raise refusal(row, "prompt", f"is {found(prompt)}, not a text or a list of turns")
    return tokenizer.apply_chat_template(prompt, **template, add_generation_prompt=True), False


def _answer(
    tokenizer: Any, given: Any, prompt: str, text: str, row: int, template: dict[str, Any]
) -> list[int]:
    """given: the prompt of the row, prompt: as it is rendered. text: with the belief in front."""
    if isinstance(given, str):
        whole = prompt + text.removesuffix(tokenizer.eos_token) + tokenizer.eos_token
        return tokenizer(text=whole)["input_ids"]
    turns = [*given, {"role": "assistant", "content": text}]
    whole = tokenizer.apply_chat_template(turns, **template)
    if not whole.startswith(prompt + text.rstrip()):
        raise refusal(
            row,
            "belief",
            "the chat template does not begin an answer with it, right behind the prompt: change the "
            "template, or its settings by a column chat_template_kwargs (enable_thinking: false, say)",
        )
    return tokenizer(text=whole, add_special_tokens=False)["input_ids"]


def _text(values: dict[str, Any], column: str, row: int) -> str | None:
    """A text, or that of the one turn that an answer is."""
    value = values.get(column)
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict):
        value = value[0].get("content")
    if value is not None and not (isinstance(value, str) and value):
        raise refusal(row, column, f"is {_unusable(value)}, not a text with words or one assistant turn")
    return value


def _unusable(value: Any) -> str:
    return "an empty text" if isinstance(value, str) else found(value)


def _counted(value: Any) -> str:
    return f"a list of {len(value)}" if isinstance(value, list) else found(value)


def _checked_beliefs(values: dict[str, Any], row: int) -> tuple[list[str], list[float]]:
    beliefs, p_star = values.get("beliefs"), values.get("p_star")
    if not isinstance(beliefs, list) or len(beliefs) < 2:
        raise refusal(row, "beliefs", f"is {_counted(beliefs)}, not a list of at least two texts")
    for belief in beliefs:
        if not isinstance(belief, str) or not belief.strip():
            raise refusal(row, "beliefs", f"has {_unusable(belief)}, not a text with words")
    if len(set(beliefs)) < len(beliefs):
        raise refusal(row, "beliefs", "has one of them twice")
    if not isinstance(p_star, list) or len(p_star) != len(beliefs):
        raise refusal(row, "p_star", f"is {_counted(p_star)}, not a share for each of {len(beliefs)} beliefs")
    for share in p_star:
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
            raise refusal(row, "p_star", f"has {found(share)}, not a share from 0 to 1")
    if abs(math.fsum(p_star) - 1) > 1e-6:
        raise refusal(row, "p_star", f"sums to {math.fsum(p_star):.6g}, not to 1")
    return beliefs, [share / math.fsum(p_star) for share in p_star]


def _named(values: dict[str, Any], beliefs: list[str], p_star: list[float], row: int) -> int:
    """The position of `belief`; −1 where the row names none."""
    belief = values.get("belief")
    if belief is None:
        return -1
    if belief not in beliefs:
        raise refusal(row, "belief", f"is {belief!r:.40}, not one of {', '.join(beliefs)}")
    if p_star[beliefs.index(belief)] == 0:
        raise refusal(row, "belief", f"is {belief!r:.40}, which nobody holds: its p_star is 0")
    return beliefs.index(belief)


def fits(row: dict[str, Any], max_length: int | None) -> bool:
    """Whether all beliefs of an encoded row, and some of both texts, lie within `max_length`."""
    room = math.inf if max_length is None else max_length - len(row["prompt_ids"])
    return max(map(len, row["belief_ids"])) <= room and row["text_start"] < room


class BeliefCollator:
    """Encoded rows → one padded batch of 2P + S sequences: P chosen answers, P rejected ones, S beliefs.

    Beside `input_ids`, `attention_mask` and `completion_mask`, the tokens that are scored (of an answer
    those after its belief): `belief_row` (S), the row of a belief, `p_star` (S), `share` (S), its part of the
    row's belief likelihood, `text_of` (S), the answers under it among the P, or −1; `num_beliefs` (B).
    """

    def __init__(self, pad_token_id: int, max_length: int | None, pad_to_multiple_of: int | None):
        self.pad_token_id, self.max_length, self.multiple = pad_token_id, max_length, pad_to_multiple_of

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        texts = [row for row in examples if row["chosen_ids"]]
        scored = [
            (row["prompt_ids"], row[name], row["text_start"])
            for name in ("chosen_ids", "rejected_ids")
            for row in texts
        ] + [(row["prompt_ids"], ids, 0) for row in examples for ids in row["belief_ids"]]
        batch: dict[str, list[Tensor]] = {name: [] for name in PADDED}
        for prompt, ids, start in scored:
            whole = torch.tensor([*prompt, *ids])[: self.max_length]
            mask = torch.ones_like(whole)
            mask[: len(prompt) + start] = 0
            for name, value in zip(PADDED, (whole, torch.ones_like(whole), mask), strict=True):
                batch[name].append(value)
        padding = {"input_ids": self.pad_token_id}
        padded = {
            name: pad(values, padding.get(name, 0), "right", self.multiple) for name, values in batch.items()
        }
        return {**padded, **_of_beliefs(examples)}


def _of_beliefs(examples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    columns: dict[str, list[Any]] = {name: [] for name in ("belief_row", "p_star", "share", "text_of")}
    texts = 0
    for place, row in enumerate(examples):
        for k, p in enumerate(row["p_star"]):
            named = k == row["named"]
            columns["belief_row"].append(place)
            columns["p_star"].append(p)
            columns["share"].append(p if row["named"] < 0 else float(named))
            columns["text_of"].append(texts if named and row["chosen_ids"] else -1)
        texts += bool(row["chosen_ids"])
    columns["num_beliefs"] = [len(row["p_star"]) for row in examples]
    return {name: torch.tensor(values) for name, values in columns.items()}
