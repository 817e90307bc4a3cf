"""Rows to train and to evaluate on: one source or a mixture, and never the same rows for both."""

import logging
from collections.abc import Callable
from typing import Any

from datasets import Dataset
from transformers import set_seed
from trl import DatasetMixtureConfig

from klball.boundary import first_line
from klball.commands.training_options import given
from klball.data.formats import TEXT, refuse_unread_text_field
from klball.data.ids import with_sample_ids
from klball.data.mixture import mixed_rows
from klball.data.rows import is_one_table, load_rows
from klball.data.splitting import split_by_content
from klball.training.identity import refuse_training_rows

logger = logging.getLogger(__name__)

Form = Callable[[Dataset], Dataset] | None


def training_and_evaluation_rows(
    options: Any, mixture: DatasetMixtureConfig, config: Any, form: Form = None
) -> tuple[Dataset, Dataset | None]:
    """The rows that were asked for; None for evaluation if there is none. form: as for `load_rows`.

    Raises ValueError where evaluation is asked for and no rows are held out.
    """
    evaluates = str(getattr(config.eval_strategy, "value", config.eval_strategy)) != "no"
    reading = reading_of(options, config, form)
    parts = _mixture(mixture, config.seed, options.id_column) if mixture.datasets else {}
    train = parts["train"] if parts else training_rows(options, reading)
    refuse_unread_text_field(train, text_field_of(config))
    if not evaluates:
        return train, None
    _refuse_two_sources(options, "test" in parts)
    if "test" in parts:
        evaluation = parts["test"]
    elif options.test_fraction is not None:
        train, evaluation = split_by_content(train, options.test_fraction, config.seed, text_field_of(config))
    else:
        evaluation = evaluation_rows(options, mixture, reading)
    refuse_unread_text_field(evaluation, text_field_of(config))
    refuse_training_rows(train, eval_dataset=evaluation)
    return train, evaluation


def reading_of(options: Any, config: Any, form: Form = None) -> dict[str, Any]:
    """Keywords of `load_rows`."""
    field = {"text_field": config.dataset_text_field} if getattr(config, "dataset_text_field", None) else {}
    return {"id_column": options.id_column, "form": form, **field}


def text_field_of(config: Any) -> str:
    """The column of plain texts."""
    return getattr(config, "dataset_text_field", None) or TEXT


def _refuse_two_sources(options: Any, split_size: bool) -> None:
    asked = {
        "test_split_size": split_size,
        "--test_fraction": options.test_fraction is not None,
        "--eval_dataset": options.eval_dataset is not None,
    }
    named = [name for name, given_one in asked.items() if given_one]
    if len(named) > 1:
        raise ValueError(f"the test rows are given twice: {named[1]} and {named[0]}")
    if options.test_fraction is not None and given(options, "dataset_test_split"):
        raise ValueError("the test rows are given twice: --test_fraction and --dataset_test_split")


def training_rows(options: Any, reading: dict[str, Any]) -> Dataset:
    """All rows of the data set's training split."""
    split = options.dataset_train_split
    return load_rows(options.dataset_name, split, options.dataset_config, **reading)


def evaluation_rows(options: Any, mixture: DatasetMixtureConfig, reading: dict[str, Any]) -> Dataset:
    """Rows of --eval_dataset, or of the data set's test split."""
    split = options.dataset_test_split if given(options, "dataset_test_split") else None
    if options.eval_dataset is not None:
        try:
            return load_rows(options.eval_dataset, split, default="test", **reading)
        except ValueError as error:  # the training data have other rows
            raise ValueError(f"--eval_dataset: {error}") from error
    if mixture.datasets:
        raise ValueError("--eval_strategy needs test rows: give --test_fraction or --eval_dataset")
    name = options.dataset_name
    if split is None and is_one_table(name):
        raise ValueError(
            f"--eval_strategy needs test rows, and {name} has one set of rows: give --test_fraction 0.1, "
            "or other rows as --eval_dataset"
        )
    return load_rows(name, split, options.dataset_config, default="test", **reading)


def _mixture(mixture: DatasetMixtureConfig, seed: int, id_column: str | None) -> dict[str, Dataset]:
    rows = with_sample_ids(mixed_rows(mixture.datasets), id_column)
    if mixture.test_split_size is None:
        return {"train": rows}
    set_seed(seed)  # as TRL splits, by the global random state
    try:
        return {str(split): part for split, part in rows.train_test_split(mixture.test_split_size).items()}
    except ValueError as error:
        raise ValueError(f"test_split_size: {first_line(error)}") from error
