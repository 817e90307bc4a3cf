"""`klball tune`: radii at equal budget on the user's data, what each costs and buys, and which to take."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments

from klball.commands.leftovers import no_leftovers
from klball.commands.options import distinct, refuse_ignored
from klball.commands.train import named_model, parse_training
from klball.commands.training_data import (
    evaluation_rows,
    reading_of,
    text_field_of,
    training_rows,
)
from klball.commands.training_options import refuse_missing_packages, refuse_without_effect
from klball.data.formats import TEXT
from klball.data.splitting import split_by_content
from klball.files import versions, write_run
from klball.flags import DataSet, option
from klball.models.loading import check_model
from klball.studies.tuning import Study
from klball.studies.tuning_report import tune
from klball.terminal import is_main, say
from klball.training.identity import num_shared, refuse_training_rows, settings_of
from klball.training.sft.config import RobustSFTConfig

EXAMPLE = (
    "klball tune --dataset_name word-problems --dataset_train_split 'train[:200]' --epsilons 0 0.05 0.2 "
    "--use_peft --max_steps 20 --output_dir outputs/tune"
)
ALSO = (RobustSFTConfig, ModelConfig)
NOT_OURS = {  # options of training that have no place here → why
    ("epsilon",): "here: --epsilons has the radii",
    ("max_weight",): "here: --caps has the caps",
    (
        *("eval_strategy", "eval_steps", "eval_delay", "eval_on_start", "metric_for_best_model", "do_eval"),
        *("greater_is_better", "load_best_model_at_end"),
    ): "here: arms are compared on held-out rows after training",
    ("save_strategy", "save_total_limit", "save_only_model"): "here: an arm goes on from its checkpoints",
    ("resume_from_checkpoint", "ignore_data_skip"): "here: the same command goes on where it was",
    ("push_to_hub",): "here: push the chosen model's folder",
}


@dataclass
class Options(DataSet):
    """What is tried, on which rows it is judged, and what it may cost; the rest is of training."""

    dataset_train_split: str = option("train", "Split to train on and to hold rows out of.")
    dataset_test_split: str | None = option(None, "Split to choose by, in place of rows held out.")
    eval_dataset: str | None = option(None, "File or name of rows to choose by, in place of rows held out.")
    eval_fraction: float = option(0.2, "Share of the rows held out to choose by: whole prompts, by --seed.")
    test_fraction: float | None = option(
        None, "A further share, which chooses nothing, for figures of the chosen arm."
    )
    epsilons: list[float] = option([0.0, 0.02, 0.05, 0.1, 0.2, 0.5], "Radii, nats; 0 is always among them.")
    caps: list[float] = option([], "Largest weights of a sample: every radius again with each of them.")
    max_cost: float = option(0.01, "Most that the perplexity of all rows may rise, as a share.")
    halving: bool = option(True, "Stop arms early that do not promise; false trains all to the end.")


def main(arguments: Sequence[str], prog: str) -> None:
    """Train what is not there yet, then choose; every arm goes on where it was."""
    options, config, model = parse_training(
        [Options, *ALSO], arguments, prog, EXAMPLE, output_dir="outputs/tune"
    )
    _check(options, config, model)
    named_model(model)
    check_model(str(model.model_name_or_path), model.model_revision, config.trust_remote_code)
    folder = Path(str(config.output_dir))
    train, held_out, test = _rows(options, config)
    sections: dict[str, Any] = {"model": asdict(model), "training": settings_of(config)}
    began = time.monotonic()
    study = Study(
        *(train, held_out, test, config, model),
        resolved={
            "command": prog,
            "data": {"dataset_name": options.dataset_name},
            **sections,
            "versions": versions(),
        },
        folder=folder,
        epsilons=options.epsilons,
        caps=options.caps,
        max_cost=options.max_cost,
        halving=options.halving,
    )
    with no_leftovers(folder):
        if is_main():
            write_run(folder, options, prog, **sections)
        results = tune(study)
    if is_main():
        minutes = (time.monotonic() - began) / 60
        say(f"{results.cost:g} runs, {minutes:.1f} minutes in this call; everything is in {folder}")


def _check(options: Options, config: RobustSFTConfig, model: ModelConfig) -> None:
    for names, why in NOT_OURS.items():
        refuse_ignored(config, names, why)
    if config.ambiguity == "cvar":
        raise ValueError("--ambiguity cvar has no radius to tune: take kl or chi2")
    distinct(options, "epsilons")
    distinct(options, "caps")
    if not any(options.epsilons):
        raise ValueError("--epsilons has no radius above 0: there is nothing to compare")
    given_rows = options.eval_dataset is not None or options.dataset_test_split is not None
    if given_rows:
        refuse_ignored(options, ["eval_fraction"], "with rows of their own to choose by")
    refuse_without_effect(ScriptArguments(), DatasetMixtureConfig(), config, model)
    refuse_missing_packages(config, model)


def _rows(options: Options, config: RobustSFTConfig) -> tuple[Dataset, Dataset, Dataset | None]:
    """Rows to train on, to choose by, and to test on; no prompt of a part that is held out in another."""
    if config.dataset_text_field != TEXT:
        raise ValueError(f"--dataset_text_field: tune reads texts of the column {TEXT!r} alone: rename it")
    reading = reading_of(options, config)
    train, test = training_rows(options, reading), None
    share = options.eval_fraction
    if options.test_fraction is not None:
        train, test = _split(train, options.test_fraction, "test_fraction", config)
        share /= 1 - options.test_fraction
    if options.eval_dataset is not None or options.dataset_test_split is not None:
        held_out = evaluation_rows(options, DatasetMixtureConfig(), reading)
    elif share >= 1:
        raise ValueError("--eval_fraction and --test_fraction together leave no row to train on")
    else:
        train, held_out = _split(train, share, "eval_fraction", config)
    refuse_training_rows(train, eval_dataset=held_out)
    if test is not None and (seen := num_shared(test, held_out)):
        raise ValueError(
            f"{seen} of the {len(held_out)} rows to choose by are among the test rows, which are to choose "
            "nothing: give other rows, or leave --test_fraction out"
        )
    return train, held_out, test


def _split(rows: Dataset, share: float, name: str, config: RobustSFTConfig) -> tuple[Dataset, Dataset]:
    try:
        return split_by_content(rows, share, config.seed, text_field_of(config))
    except ValueError as error:
        raise ValueError(f"--{name}: {error}") from error
