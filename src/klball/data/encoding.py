"""Rows → token ids and answer labels, by the tokenisation that trains: TRL's."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jinja2
from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from trl.chat_template_utils import get_training_chat_template, has_generation_markers
from trl.data_utils import _tokenize, common_prefix_length

from klball.boundary import first_line
from klball.data.conversations import chat_of, last_answer, template_kwargs_of, text_of_turn, tools_of
from klball.data.formats import IGNORED, MASKS, TEXT, is_chat, refuse_unknown_tokens, to_trl_format
from klball.data.ids import with_sample_ids
from klball.data.marking import RENDERING_ERRORS, marked_template
from klball.data.sources import as_dataset

CONTEXT = 8  # tokens before an answer that its first bytes may depend on, as the space of SentencePiece does


def load_chat_template(tokenizer: PreTrainedTokenizerBase, path: str | None) -> None:
    """Set the tokenizer's chat template from a Jinja file or a tokenizer folder, if a path is given."""
    if path is not None:
        tokenizer.chat_template = chat_template_at(path)
        refuse_broken_template(tokenizer)


def chat_template_at(path: str) -> Any:
    """That of a Jinja file, or of a tokenizer. Raises ValueError where there is none."""
    source = Path(path)
    if source.suffix in (".jinja", ".j2") and source.is_file():
        return source.read_text(encoding="utf-8")
    from transformers import AutoTokenizer

    wanted = f"no chat template at {path!r}: give a .jinja file or a tokenizer that has one"
    try:
        found = AutoTokenizer.from_pretrained(path).chat_template
    except (OSError, ValueError) as error:
        raise ValueError(wanted) from error
    if not found:
        raise ValueError(wanted)
    return found


def refuse_broken_template(tokenizer: Any) -> None:
    """Raise ValueError if the chat template has a syntax error."""
    try:
        tokenizer.apply_chat_template([{"role": "user", "content": "?"}], tokenize=False)
    except jinja2.TemplateSyntaxError as error:
        raise ValueError(f"the chat template has a fault in line {error.lineno}: {error.message}") from error
    except RENDERING_ERRORS:
        pass  # it may refuse this conversation; those of the data are what counts


def require_template(tokenizer: Any) -> None:
    """Raise ValueError if there is no chat template, or one with a syntax error."""
    if not tokenizer.chat_template:
        raise ValueError(
            "the rows are conversations but the tokenizer has no chat template: give one with "
            "--chat_template_path (a .jinja file or a tokenizer that has one)"
        )
    refuse_broken_template(tokenizer)


def training_template(tokenizer: Any, rows: Dataset) -> str | None:
    """The template that marks assistant turns, where rows are `messages` and the tokenizer's own does not.

    TRL's, where it has one for this template; else one made from it. Raises ValueError if there is neither.
    """
    if "messages" not in rows.column_names or has_generation_markers(tokenizer.chat_template):
        return None
    with suppress(ValueError):
        return get_training_chat_template(tokenizer)
    try:
        return marked_template(tokenizer)
    except ValueError as error:
        raise ValueError(
            "the chat template does not mark assistant turns with {% generation %}, and they cannot be found "
            f"in it ({error}); give one that marks them with --chat_template_path"
        ) from error


@contextmanager
def rendering_errors_named(rows: Dataset, tokenizer: Any, template: str | None) -> Iterator[None]:
    """Turn an error of a chat template inside into a ValueError that names the row."""
    try:
        yield
    except RENDERING_ERRORS as error:
        if is_chat(rows):
            for row, values in enumerate(rows):
                _render(dict(values), row, tokenizer, template)
        if "no assistant tokens" in str(error):  # TRL's RuntimeError
            raise ValueError(
                "in at least one row the chat template marks no token of an assistant turn with "
                "{% generation %}; give one that does with --chat_template_path"
            ) from error
        raise


def _render(values: dict[str, Any], row: int, tokenizer: Any, template: str | None) -> None:
    turns = chat_of(values)
    options = {"tokenize": False, **template_options(values, template)}
    try:
        tokenizer.apply_chat_template(turns, **options)
        if "prompt" in values:
            tokenizer.apply_chat_template(values["prompt"], add_generation_prompt=True, **options)
    except RENDERING_ERRORS as error:
        message = first_line(error)
        raise ValueError(
            f"row {row + 1} (counted from 1): the chat template cannot render it: {message}; change the "
            "row, or give another template with --chat_template_path"
        ) from error


def encode(
    dataset: Any,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None = None,
    vocabulary: int | None = None,
) -> Dataset:
    """Tokens for scoring: columns input_ids, labels, sample_id, num_bytes, truncated; rows in order.

    Tokens and labels are those that `trl.SFTTrainer` trains on: `tools` and `chat_template_kwargs`
    rendered, a chat tokenised once, the answer's end of turn included; answers are the completion, every
    assistant turn of `messages`, or all of `text`. Rows longer than `max_length` lose their end and are
    marked. `num_bytes` are the UTF-8 bytes of the scored tokens' text. `vocabulary`: of the model, against
    which token ids in the data are checked; default: the tokenizer's.
    Raises ValueError for rows that cannot be used, and chats without a template.
    """
    if max_length is not None and max_length < 1:
        raise ValueError(f"max_length must be at least 1, not {max_length}")
    rows = to_trl_format(with_sample_ids(as_dataset(dataset)), conversational=bool(tokenizer.chat_template))
    if "input_ids" in rows.column_names:
        refuse_unknown_tokens(rows, vocabulary or len(tokenizer))
    if is_chat(rows):
        require_template(tokenizer)
    options = {
        "tokenizer": tokenizer,
        "template": training_template(tokenizer, rows),
        "max_length": max_length,
    }
    with rendering_errors_named(rows, tokenizer, options["template"]):
        return rows.map(
            _encode_row,
            fn_kwargs=options,
            remove_columns=[name for name in rows.column_names if name != "sample_id"],
            load_from_cache_file=False,  # its key does not see a change of the functions that this one calls
            desc="Tokenising",
        )


def _encode_row(
    row: dict[str, Any], tokenizer: Any, template: str | None, max_length: int | None
) -> dict[str, Any]:
    ids, is_answer = _tokens_of(row, tokenizer, template)
    labels = row.get("labels") or [
        token if keep else IGNORED for token, keep in zip(ids, is_answer, strict=True)
    ]
    truncated = max_length is not None and len(ids) > max_length
    ids, labels = ids[:max_length], labels[:max_length]
    return {
        "input_ids": ids,
        "labels": labels,
        "num_bytes": _answer_bytes(ids, labels, tokenizer),
        "truncated": truncated,
    }


def _tokens_of(row: dict[str, Any], tokenizer: Any, template: str | None) -> tuple[list[int], list[bool]]:
    """Token ids, and which of them are the answer; the mask comes from the joint tokenisation, since
    tokens may merge across the boundary.
    """
    if "input_ids" in row:
        ids = row["input_ids"]
        masks = [row[name] for name in MASKS if name in row] or [[1] * len(ids)]
        return ids, [all(bits) for bits in zip(*masks, strict=True)]
    options = template_options(row, template)
    if "messages" in row:
        chat = _tokenize(tokenizer, row["messages"], return_assistant_tokens_mask=True, **options)
        return chat["input_ids"], [bool(bit) for bit in chat["assistant_masks"]]
    end = tokenizer.eos_token or ""
    if "prompt" not in row:
        ids = _tokenize(tokenizer, row[TEXT].removesuffix(end) + end)["input_ids"]
        return ids, [True] * len(ids)
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, list):
        before = _tokenize(tokenizer, prompt, add_generation_prompt=True, **options)["input_ids"]
        ids = _tokenize(tokenizer, prompt + completion, **options)["input_ids"]
    else:
        before = _tokenize(tokenizer, prompt)["input_ids"]
        ids = _tokenize(tokenizer, prompt + completion.removesuffix(end) + end)["input_ids"]
    start = common_prefix_length(before, ids)
    return ids, [position >= start for position in range(len(ids))]


def template_options(row: dict[str, Any], template: str | None = None, place: int = 0) -> dict[str, Any]:
    """What TRL hands to the chat template beside the turns; place: of the row, for errors."""
    more = template_kwargs_of(row.get("chat_template_kwargs"), place)
    return {"chat_template": template, "tools": tools_of(row.get("tools"), place), **more}


def _answer_bytes(ids: list[int], labels: list[int], tokenizer: Any) -> int:
    """Bytes of the text of the scored tokens; special tokens have none, and a row's first is not scored."""
    edges = [i for i in range(len(ids) + 1) if _is_answer(labels, i - 1) != _is_answer(labels, i)]
    total = 0
    for start, end in zip(edges[::2], edges[1::2], strict=True):
        before = max(0, start - CONTEXT)
        total += _bytes_of(ids[before:end], tokenizer) - _bytes_of(ids[before:start], tokenizer)
    return total


def _is_answer(labels: list[int], position: int) -> bool:
    return 0 < position < len(labels) and labels[position] != IGNORED


def _bytes_of(ids: list[int], tokenizer: Any) -> int:
    text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return len(text.encode())


def texts_of(row: dict[str, Any]) -> tuple[str, str]:
    """Prompt and answer of a row in a TRL format, to be shown to people; empty for token ids."""
    if "messages" not in row and not isinstance(row.get("prompt"), list):
        return row.get("prompt", ""), row.get("completion", row.get(TEXT, ""))
    turns = chat_of(row)
    said, answer = [text_of_turn(turn) for turn in turns], last_answer(turns) or 0
    return " / ".join(said[:answer]), said[answer]
