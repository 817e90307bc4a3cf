"""What the trainer is given as data → rows in TRL's formats."""

import copy
from collections.abc import Callable
from typing import Any

from datasets import Dataset
from transformers import AutoProcessor
from trl.trainer.utils import get_config_model_id

from klball.boundary import first_line
from klball.data.encoding import load_chat_template, require_template, training_template
from klball.data.formats import MASKS, TEXT, is_chat, refuse_unread_text_field, to_trl_format
from klball.data.ids import refuse_no_group, with_sample_ids
from klball.data.sources import as_dataset
from klball.training.evaluation import each_set, named_sets
from klball.training.sft.config import RobustSFTConfig
from klball.training.sft.refusals import refuse_other_model

Formatting = Callable[[dict[str, Any]], str]


class RowFormat:
    """Rows of any known format, or of none with a formatting function, in the format that trains.

    conversational: whether question–answer rows become chats.
    """

    def __init__(self, args: RobustSFTConfig, conversational: bool, formatting_func: Formatting | None):
        self.conversational, self.text_field = conversational, args.dataset_text_field
        self.formatting_func, self.group_column = formatting_func, args.group_column

    def __call__(self, rows: Any, what: str) -> Dataset:
        """Checked rows. Raises ValueError that begins with `what` the data is."""
        try:
            dataset = as_dataset(rows, "it")
            if self.formatting_func is not None:
                dataset = self._formatted(dataset, self.formatting_func)
            refuse_unread_text_field(dataset, self.text_field)
            return to_trl_format(dataset, self.conversational, self.text_field)
        except ValueError as error:
            raise ValueError(f"{what}: {error}") from error

    def _formatted(self, dataset: Dataset, formatting_func: Formatting) -> Dataset:
        if "input_ids" in dataset.column_names:
            raise ValueError("formatting_func has no effect on token ids: leave it out, or give texts")
        kept = [name for name in ("sample_id", self.group_column) if name in dataset.column_names]
        dropped = [name for name in dataset.column_names if name not in kept]
        return dataset.map(
            lambda row: {TEXT: formatting_func(row)}, remove_columns=dropped, desc="Formatting"
        )


def prepare_arguments(
    model: Any, args: RobustSFTConfig, kwargs: dict[str, Any]
) -> tuple[RowFormat, str | None]:
    """Settles, in `args` and `kwargs` for TRL's constructor, what depends on the data's format.

    Training and evaluation data in TRL's formats, training rows with their `sample_id`; which tokens count;
    the tokenizer. Also the chat template that marks assistant turns, where the tokenizer's does not.
    Raises ValueError for rows that cannot be used, or a setting without effect on them.
    """
    refuse_other_model(model, args)
    processing_class = kwargs.get("processing_class") or _processing_class(model, args)
    kwargs["processing_class"] = processing_class
    if args.chat_template_path:
        load_chat_template(copy.copy(processing_class), args.chat_template_path)  # for its errors
    conversational = bool(args.chat_template_path or processing_class.chat_template)
    row_format = RowFormat(args, conversational, kwargs.pop("formatting_func", None))
    args.dataset_text_field = TEXT
    numbered = with_sample_ids(as_dataset(kwargs["train_dataset"], "train_dataset"))
    refuse_no_group(numbered, args.group_column)
    rows = kwargs["train_dataset"] = row_format(numbered, "train_dataset")
    kwargs["eval_dataset"] = each_set(kwargs.get("eval_dataset"), row_format)
    if args.assistant_only_loss is None:
        args.assistant_only_loss = "messages" in rows.column_names
        if not args.assistant_only_loss:
            _refuse_conversations(kwargs["eval_dataset"])
    args.completion_only_loss = _completion_only(args, rows)
    template = None
    if is_chat(rows) and args.chat_template_path is None:
        require_template(processing_class)
        if args.assistant_only_loss:
            template = training_template(processing_class, rows)
    return row_format, template


def _refuse_conversations(evaluation: Any) -> None:
    """Raise ValueError for conversations to be evaluated by a loss that would be of the user's words too."""
    for _, data in named_sets(evaluation):
        if "messages" in data.column_names:
            raise ValueError(
                "eval_dataset has whole conversations and train_dataset has none: give both as messages, or "
                "set assistant_only_loss"
            )


def _completion_only(args: RobustSFTConfig, rows: Dataset) -> bool | None:
    """TRL's setting; None but for token ids with a `completion_mask`, which TRL would then not read."""
    mask, _ = MASKS
    masked = mask in rows.column_names
    if args.completion_only_loss and not masked and "completion" not in rows.column_names:
        raise ValueError("completion_only_loss=True has no effect on rows without a completion: leave it out")
    return True if masked and args.completion_only_loss is None else args.completion_only_loss


def _processing_class(model: Any, args: RobustSFTConfig) -> Any:
    """As TRL would load it."""
    name = model if isinstance(model, str) else get_config_model_id(model.config)
    revision = (args.model_init_kwargs or {}).get("revision")  # pyright: ignore[reportAttributeAccessIssue]
    try:
        return AutoProcessor.from_pretrained(
            name, revision=revision, trust_remote_code=args.trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise ValueError(f"there is no tokenizer of {name!r}: {first_line(error)}") from error
