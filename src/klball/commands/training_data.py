"""Rows to train and to evaluate on: one source or a mixture, and never the same rows for both."""

import logging
from collections.abc import Callable
from typing import Any

from datasets import Dataset
from transformers import set_seed
from trl import DatasetMixtureConfig, get_dataset

from klball.boundary import first_line
from klball.commands.training_options import given
from klball.data.rows import is_one_table, load_rows
from klball.training.identity import row_digests

logger = logging.getLogger(__name__)

Form = Callable[[Dataset], Dataset] | None


def training_and_evaluation_rows(
    options: Any, mixture: DatasetMixtureConfig, config: Any, form: Form = None
) -> tuple[Dataset, Dataset | None]:
    """The rows that were asked for; None for evaluation if there is none. form: as for `load_rows`.

    Raises ValueError where evaluation is asked for and no rows are held out.
    """
    evaluates = str(getattr(config.eval_strategy, "value", config.eval_strategy)) != "no"
    reading = {"id_column": options.id_column, "form": form}
    if field := getattr(config, "dataset_text_field", None):
        reading["text_field"] = field
    if mixture.datasets:
        parts = _mixture(mixture, config.seed)
    else:
        parts = {"train": _training_rows(options, reading)}
    evaluation = None
    if evaluates and "test" in parts:
        if options.test_name is not None:
            raise ValueError("the test rows are given twice: --test_name and test_split_size")
        evaluation = parts["test"]
    elif evaluates:
        evaluation = _evaluation_rows(options, mixture, reading)
    train = parts["train"]
    if evaluation is not None:
        _refuse_training_rows(train, evaluation)
    return train, evaluation


def _training_rows(options: Any, reading: dict[str, Any]) -> Dataset:
    split = options.dataset_train_split
    return load_rows(options.dataset_name, split, options.dataset_config, **reading)


def _evaluation_rows(options: Any, mixture: DatasetMixtureConfig, reading: dict[str, Any]) -> Dataset:
    split = options.dataset_test_split if given(options, "dataset_test_split") else None
    if options.test_name is not None:
        return load_rows(options.test_name, split, default="test", **reading)
    if mixture.datasets:
        raise ValueError("--eval_strategy needs test rows: give test_split_size or --test_name")
    name = options.dataset_name
    if split is None and is_one_table(name):
        raise ValueError(
            f"--eval_strategy needs test rows, and {name} has one set of rows: give --test_name, or "
            "--dataset_train_split 'train[:90%]' --dataset_test_split 'train[90%:]'"
        )
    return load_rows(name, split, options.dataset_config, default="test", **reading)


def _mixture(mixture: DatasetMixtureConfig, seed: int) -> dict[str, Dataset]:
    if any(part.path == "csv" for part in mixture.datasets):  # whose cells would be taken for numbers or null
        raise ValueError("a CSV file cannot be part of `datasets`: give it as --dataset_name")
    set_seed(seed)  # TRL splits by the global random state
    try:
        return {str(split): rows for split, rows in get_dataset(mixture).items()}
    except Exception as error:  # datasets raises many kinds
        said = first_line(error.__cause__ or error)
        raise ValueError(f"could not load the mixture of `datasets`: {said}") from error


def _refuse_training_rows(train: Dataset, evaluation: Dataset) -> None:
    known = set(row_digests(_content(train)))
    seen = sum(digest in known for digest in row_digests(_content(evaluation)))
    if seen == len(evaluation):
        raise ValueError("every row to evaluate on is also trained on: give held-out rows, with --test_name")
    if seen:
        logger.warning("%d of %d rows to evaluate on are also trained on", seen, len(evaluation))


def _content(rows: Dataset) -> Dataset:
    return rows.remove_columns([name for name in ("id", "sample_id") if name in rows.column_names])
