"""`klball train`: one robust fine-tuning run, resumable at any moment."""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments

from klball.commands.options import parse
from klball.commands.training_data import training_and_evaluation_rows
from klball.commands.training_options import refuse_missing_packages, refuse_without_effect
from klball.files import versions
from klball.flags import RowIds, option
from klball.models.loading import TINY, public_name
from klball.objectives.tokens import OBJECTIVES, needs_of
from klball.report.pages.training import write_training_page
from klball.terminal import is_main
from klball.training.identity import settings_of
from klball.training.run import train
from klball.training.sft.config import RobustSFTConfig

EXAMPLE = "klball train --dataset_name rows.jsonl --epsilon 0.05 --use_peft --output_dir outputs/run"
logger = logging.getLogger(__name__)


@dataclasses.dataclass
class Options(RowIds, ScriptArguments):
    """TRL's script arguments, with the embedded data set as the default, and test rows from elsewhere."""

    dataset_name: str | None = option(None, "Built-in name, local file or Hub name; default: stdlib-docs.")
    test_name: str | None = option(None, "Rows for --eval_strategy, if not a split of the above.")


def main(arguments: Sequence[str], prog: str) -> None:
    """Train, or finish what an interrupted run of the same command began."""
    classes = [Options, RobustSFTConfig, ModelConfig, DatasetMixtureConfig]
    options, config, model_options, mixture = parse(classes, arguments, prog, EXAMPLE)
    refuse_without_effect(options, mixture, config, model_options)
    refuse_missing_packages(config, model_options)
    if "old_log_probs" in needs_of(OBJECTIVES.get(config.objective or "")):
        # TRL's default of .05 is for the others; what was asked for stays
        _, _, model_options, _ = parse(classes, arguments, prog, lora_dropout=0.0)
    name = model_options.model_name_or_path
    model_options.model_name_or_path = public_name(TINY if name is None else name)
    resolved = {
        "command": prog,
        "data": {**dataclasses.asdict(options), **dataclasses.asdict(mixture)},
        "model": dataclasses.asdict(model_options),
        "training": settings_of(config),
        "versions": versions(),
    }
    rows, evaluation = training_and_evaluation_rows(options, mixture, config)
    train(rows, config, model_options, resolved, evaluation)
    if is_main():
        write_training_page(Path(str(config.output_dir)), "Robust fine-tuning")
