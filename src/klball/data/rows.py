"""From any supported source and row format to token ids, answer labels and a sample id.

A source is a built-in name, a local file or folder, or a Hub name. Rows are in TRL's formats
(prompt–completion, plain or conversational; `messages`; `text`) or in the common question–answer
columns, which become prompt–completion rows.
"""

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset
from transformers import PreTrainedTokenizerBase
from trl.chat_template_utils import get_training_chat_template, has_generation_markers
from trl.data_utils import common_prefix_length

from klball.data.builtin import BUILTIN, load_builtin

FILE_TYPES = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}
IGNORED = -100  # the label of a position that is not an answer token


def load_rows(
    name: str, split: str | None = None, config: str | None = None, *, default: str = "train"
) -> Dataset:
    """The rows of a built-in data set, a local .jsonl/.json/.parquet/.csv file, or a Hub data set.

    A file is one split, `train`, whatever the name; a slice such as "train[:90%]" can be asked for.
    `default` is what no split stands for. Raises ValueError in one line if there is no such source or split.
    """
    split = split or default
    if Path(name).suffix in FILE_TYPES and not split.startswith("train["):
        split = "train"
    if name in BUILTIN:
        return Dataset.from_list(load_builtin(name, split))
    path = Path(name).expanduser()
    if path.suffix in FILE_TYPES:
        if not path.is_file():
            raise ValueError(f"no data file {name}")
        if path.stat().st_size == 0:
            raise ValueError(f"{name} is empty")
        try:
            return _as_dataset(load_dataset(FILE_TYPES[path.suffix], data_files=str(path), split=split))
        except Exception as error:  # datasets raises many kinds for a malformed file
            raise ValueError(f"could not read {name}: {_first_line(error.__cause__ or error)}") from error
    try:
        return _as_dataset(load_dataset(name, config, split=split))
    except Exception as error:  # the Hub client raises a dozen kinds when offline
        raise ValueError(
            f"could not load data set {name!r} (split {split!r}): {_first_line(error)}; "
            f"give a local file, a Hub name that can be reached, or one of {', '.join(BUILTIN)}"
        ) from error


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _as_dataset(dataset: Any) -> Dataset:
    if not isinstance(dataset, Dataset):
        raise ValueError(f"expected one split of rows, got {type(dataset).__name__}")
    return dataset


def with_sample_ids(dataset: Dataset) -> Dataset:
    """The data set with a string column `sample_id`: the `id` column, else row index and content hash.

    Raises ValueError if ids repeat.
    """
    if len(dataset) == 0:
        raise ValueError("the data set has no rows")
    if "sample_id" in dataset.column_names:
        ids = [str(value) for value in dataset["sample_id"]]
        dataset = dataset.remove_columns("sample_id")
    elif "id" in dataset.column_names:
        ids = [str(value) for value in dataset["id"]]
    else:
        ids = [f"{index}-{_content_hash(row)}" for index, row in enumerate(dataset)]
    if len(set(ids)) < len(ids):
        repeated = Counter(ids).most_common(1)[0][0]
        raise ValueError(f"sample ids repeat, for example {repeated!r}: make them unique or drop the column")
    return dataset.add_column("sample_id", ids)


def _content_hash(row: Any) -> str:
    return hashlib.sha256(json.dumps(row, sort_keys=True, default=str).encode()).hexdigest()[:8]


def to_trl_format(dataset: Dataset, conversational: bool) -> Dataset:
    """Question–answer columns turned into TRL's prompt–completion; TRL's own formats left alone.

    `instruction`/`input`/`output|response|completion` and `question`/`answer` become conversational
    if the tokenizer has a chat template (`conversational`), else plain text with a newline between.
    Raises ValueError for columns of no known format.
    """
    columns = set(dataset.column_names)
    if (
        "messages" in columns
    ):  # data sets often repeat the first turn as `prompt`, which TRL would take for its own
        keep = {"messages", "id", "sample_id", "tools", "chat_template_kwargs"}
        return dataset.select_columns([c for c in dataset.column_names if c in keep])
    if columns & {"text", "input_ids"} or {"prompt", "completion"} <= columns:
        return dataset
    question = next((c for c in ("instruction", "question", "prompt") if c in columns), None)
    answer = next((c for c in ("output", "response", "answer") if c in columns), None)
    if question is None or answer is None:
        raise ValueError(
            f"columns {sorted(columns - {'sample_id'})} are of no known format: give messages, prompt and "
            "completion, instruction (and input) and output or response, question and answer, or text"
        )

    def convert(row: dict[str, Any]) -> dict[str, Any]:
        parts = [row[question], row.get("input") if question == "instruction" else None]
        prompt = "\n\n".join(str(part) for part in parts if part)
        completion = str(row[answer] or "")
        if not conversational:
            return {"prompt": prompt + "\n", "completion": completion}
        return {
            "prompt": [{"role": "user", "content": prompt}],
            "completion": [{"role": "assistant", "content": completion}],
        }

    kept = [c for c in ("id", "sample_id") if c in columns]
    dropped = [c for c in dataset.column_names if c not in kept]
    return dataset.map(convert, remove_columns=dropped, desc="Converting rows")


def load_chat_template(tokenizer: PreTrainedTokenizerBase, path: str | None) -> None:
    """Set the tokenizer's chat template from a Jinja file or a tokenizer folder, if a path is given."""
    if path is None:
        return
    source = Path(path)
    if source.suffix in (".jinja", ".j2") and source.is_file():
        tokenizer.chat_template = source.read_text(encoding="utf-8")
        return
    from transformers import AutoTokenizer

    try:
        tokenizer.chat_template = AutoTokenizer.from_pretrained(path).chat_template
    except (OSError, ValueError) as error:
        raise ValueError(f"no chat template at {path!r}: give a .jinja file or a tokenizer") from error


def encode(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int | None = None) -> Dataset:
    """Tokens for scoring: columns input_ids, labels, sample_id, num_bytes, truncated; rows in order.

    A rendered chat is tokenised once; labels mark the answer tokens, the end of turn included:
    the completion, every assistant turn of `messages`, or all of `text`. Rows longer than
    `max_length` lose their end and are marked. Raises ValueError for chats without a template.
    """
    dataset = to_trl_format(with_sample_ids(dataset), conversational=bool(tokenizer.chat_template))
    first = dataset[0]
    if _is_chat(first) and not tokenizer.chat_template:
        raise ValueError(
            "the rows are conversations but the tokenizer has no chat template: give one with "
            "--chat_template_path (a .jinja file or a tokenizer that has one)"
        )
    template = None
    if "messages" in first and not has_generation_markers(tokenizer.chat_template):
        try:
            template = get_training_chat_template(tokenizer)
        except ValueError as error:
            raise ValueError(
                "the chat template does not mark assistant turns with {% generation %}; give one that "
                "does with --chat_template_path"
            ) from error
    options = {"tokenizer": tokenizer, "template": template, "max_length": max_length}
    kept = ["sample_id"]
    return dataset.map(
        _encode_row,
        fn_kwargs=options,
        remove_columns=[c for c in dataset.column_names if c not in kept],
        desc="Tokenising",
    )


def _is_chat(row: dict[str, Any]) -> bool:
    return "messages" in row or isinstance(row.get("prompt"), list)


def _encode_row(
    row: dict[str, Any],
    tokenizer: Any,
    template: str | None,
    max_length: int | None,
) -> dict[str, Any]:
    if "messages" in row:
        ids, is_answer, answer = _encode_messages(row["messages"], tokenizer, template)
    elif "prompt" in row:
        ids, is_answer, answer = _encode_completion(row, tokenizer)
    else:
        ids = tokenizer(row["text"])["input_ids"]
        if tokenizer.eos_token_id not in (None, *ids[-1:]):
            ids = [*ids, tokenizer.eos_token_id]
        is_answer, answer = [True] * len(ids), row["text"]
    truncated = max_length is not None and len(ids) > max_length
    if truncated:
        ids, is_answer = ids[:max_length], is_answer[:max_length]
        kept = [token for token, keep in zip(ids, is_answer, strict=True) if keep]
        answer = tokenizer.decode(kept, skip_special_tokens=True)
    return {
        "input_ids": ids,
        "labels": [token if keep else IGNORED for token, keep in zip(ids, is_answer, strict=True)],
        "num_bytes": len(answer.encode()),
        "truncated": truncated,
    }


def _encode_messages(
    messages: list[dict[str, str]], tokenizer: Any, template: str | None
) -> tuple[list[int], list[bool], str]:
    rendered = tokenizer.apply_chat_template(
        messages,
        chat_template=template,
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    answer = "".join(m["content"] for m in messages if m["role"] == "assistant")
    return rendered["input_ids"], [bool(m) for m in rendered["assistant_masks"]], answer


def _encode_completion(row: dict[str, Any], tokenizer: Any) -> tuple[list[int], list[bool], str]:
    """The mask comes from the joint tokenisation: tokens may merge across the boundary."""
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, list):
        answer = "".join(message["content"] for message in completion)
        prompt_ids = tokenizer.apply_chat_template(
            prompt, add_generation_prompt=True, tokenize=True, return_dict=True
        )["input_ids"]
        ids = tokenizer.apply_chat_template(prompt + completion, tokenize=True, return_dict=True)["input_ids"]
    else:
        answer = completion
        eos = tokenizer.eos_token or ""
        ending = "" if completion.endswith(eos) else eos
        prompt_ids = tokenizer(prompt)["input_ids"]
        ids = tokenizer(prompt + completion + ending)["input_ids"]
    start = common_prefix_length(prompt_ids, ids)
    return ids, [position >= start for position in range(len(ids))], answer


def texts_of(row: dict[str, Any]) -> tuple[str, str]:
    """Prompt and answer of a row in a TRL format, to be shown to people."""
    if "messages" in row:
        turns = [message["content"] for message in row["messages"]]
        return " / ".join(turns[:-1]), turns[-1]
    if "prompt" not in row:
        return "", str(row.get("text", ""))
    pair = (row["prompt"], row["completion"])
    return tuple(part if isinstance(part, str) else part[-1]["content"] for part in pair)  # pyright: ignore[reportReturnType]
