"""`klball train`: one robust training run of any family, resumable at any moment."""

import dataclasses
import logging
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments

from klball.commands.leftovers import no_leftovers
from klball.commands.options import parse
from klball.commands.pairs import say_of_flips
from klball.commands.recipe import read_recipe, split_config
from klball.commands.training_data import training_and_evaluation_rows
from klball.commands.training_options import refuse_missing_packages, refuse_without_effect
from klball.data.ids import group_names
from klball.files import versions
from klball.flags import ChatTemplate, RowIds, option
from klball.models.loading import TINY, public_name
from klball.objectives.tokens import OBJECTIVES, needs_of
from klball.report.pages.training import write_training_page
from klball.terminal import is_main, say, show_table
from klball.training.families import FAMILIES
from klball.training.identity import settings_of
from klball.training.logged import logged_by
from klball.training.run import train

EXAMPLE = (
    "klball train --dataset_name word-problems --dataset_train_split 'train[:200]' --epsilon 0.05 --use_peft "
    "--max_steps 20 --output_dir outputs/run"
)
ALSO = (ModelConfig, DatasetMixtureConfig)
logger = logging.getLogger(__name__)


@dataclasses.dataclass
class Options(RowIds, ScriptArguments):
    """TRL's script arguments, with embedded data as the default, and test rows from elsewhere."""

    family: str = option("sft", f"What is trained: {', '.join(FAMILIES)}.")
    dataset_name: str | None = option(
        None, "Built-in name, local file or Hub name; default: stdlib-docs, for pairs doc-preferences."
    )
    eval_dataset: str | None = option(
        None, "File or name of rows to evaluate on, if not a split of the above.", aliases=["--test_name"]
    )
    test_fraction: float | None = option(
        None, "Share of the rows to evaluate on instead of training: whole prompts, drawn by --seed."
    )


@dataclasses.dataclass
class TemplateOptions(ChatTemplate, Options):
    """For families whose configuration has no chat template."""


def main(arguments: Sequence[str], prog: str) -> None:
    """Train, or finish what an interrupted run of the same command began."""
    name = family_named(arguments)
    family = FAMILIES[name]
    classes = [options_of(name), family.config, *ALSO]
    options, config, model_options, mixture = parse_training(classes, arguments, prog, EXAMPLE)
    refuse_without_effect(options, mixture, config, model_options)
    refuse_missing_packages(config, model_options)
    named_model(model_options)
    resolved = {
        "command": prog,
        "data": {**dataclasses.asdict(options), **dataclasses.asdict(mixture)},
        "model": dataclasses.asdict(model_options),
        "training": settings_of(config),
        "versions": versions(),
    }
    options.dataset_name = options.dataset_name or family.data
    rows, evaluation = training_and_evaluation_rows(options, mixture, config, family.form)
    if (column := getattr(config, "group_column", None)) is not None:
        group_names(rows, column)  # for its refusals, of the columns that the data have
    if getattr(config, "unit", None) == "pair":
        say_of_flips(config.ambiguity_set())
    meaning = config.radius_in_words()

    def begin() -> None:
        if meaning and is_main():
            say(meaning)
        rows_logged = [(entry.name, entry.meaning) for entry in logged_by(name, config)]
        show_table("what this run logs", ("name", "meaning"), rows_logged)

    template = getattr(options, "chat_template_path", None)
    folder = Path(str(config.output_dir))
    with no_leftovers(folder):
        train(*(rows, config, model_options, resolved, evaluation), chat_template_path=template, begin=begin)
    if is_main():
        write_training_page(folder, "Robust fine-tuning", meaning)
        say(f"everything is in {folder}: the model, what it logged, report.html")


def parse_training(
    classes: Sequence[Any], arguments: Sequence[str], prog: str, example: str, **defaults: Any
) -> tuple[Any, ...]:
    """`parse` of own options, a configuration, those of the model, and others; PSFT has no LoRA dropout."""
    parsed = parse(classes, arguments, prog, example, **defaults)
    objective = OBJECTIVES.get(getattr(parsed[1], "objective", None) or "")
    if parsed[2].use_peft and "old_log_probs" in needs_of(objective):
        # TRL's default of .05 is for the others; what was asked for stays
        parsed = parse(classes, arguments, prog, lora_dropout=0.0, **defaults)
    return parsed


def named_model(options: ModelConfig) -> None:
    """The embedded model where none is named, by its public name."""
    name = options.model_name_or_path
    options.model_name_or_path = public_name(TINY if name is None else name)


def options_of(family: str) -> type[Options]:
    """The class of the command's own options."""
    return Options if hasattr(FAMILIES[family].config, "chat_template_path") else TemplateOptions


def family_named(arguments: Sequence[str]) -> str:
    """The family that the arguments, or their recipe, ask for, before its options can be read.

    Raises ValueError for one that does not exist, and for an option of another.
    """
    path, words = split_config(arguments)
    recipe = {} if path is None else read_recipe(path)[0]
    name = recipe.get("family", "sft")
    for word, following in pairwise([*words, ""]):
        flag, sign, value = word.partition("=")
        if flag == "--family":
            name = value if sign else following
    if name not in FAMILIES:
        raise ValueError(f"--family must be one of {', '.join(FAMILIES)}, not {name!r}")
    flags = [word.partition("=")[0] for word in words if word.startswith("--")]
    _refuse_other_families(name, [*recipe, *(flag[2:] for flag in flags)])
    return name


def _refuse_other_families(name: str, given: Sequence[str]) -> None:
    known = {family: _fields(family) for family in FAMILIES}
    for option_name in given:
        elsewhere = [family for family in FAMILIES if option_name in known[family]]
        if elsewhere and name not in elsewhere:
            raise ValueError(
                f"--{option_name} is an option of --family {' and '.join(elsewhere)}, not of {name}"
            )


def _fields(family: str) -> set[str]:
    return {f.name for cls in (options_of(family), FAMILIES[family].config) for f in dataclasses.fields(cls)}
