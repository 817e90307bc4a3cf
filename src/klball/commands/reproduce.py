"""`klball reproduce`: whole experiments, from nothing to tables and figures."""

import time
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from datasets import Dataset

from klball.commands.leftovers import no_leftovers
from klball.commands.options import DTYPES, distinct, job_of, one_of, parse, refuse_ignored
from klball.commands.recipe import split_config
from klball.files import write_run
from klball.models.loading import is_adapter
from klball.studies import forgetting, head_to_head, preference, robustness
from klball.studies.arms import OF_RL, OF_START, OWN, Arm, Options, data_of
from klball.terminal import is_main, say

EXAMPLE = "klball reproduce --preset tiny --epsilons 0 0.05"
EXPERIMENTS = {
    "robustness": robustness.run,
    "objectives": head_to_head.run,
    "preference": preference.run,
    "forgetting": forgetting.run,
}
FOLDERS = {name: f"outputs/{name}" for name in EXPERIMENTS} | {"robustness": "outputs/reproduce"}
RECIPES = {  # (preset, experiment) → file, where it is not the preset's own
    ("paper", "objectives"): "objectives-paper",
    ("tiny", "preference"): "preference-tiny",
    ("tiny", "forgetting"): "forgetting-tiny",
    ("paper", "forgetting"): "forgetting-paper",
}
JOBS = ("num_jobs", "job_index")
IGNORED = {  # experiment → options that say nothing to it
    "robustness": ("flips", *OWN, *OF_START, *OF_RL),
    "objectives": ("static", "variants", "points", "flips", *OF_START, *OF_RL),
    "preference": (
        *("static", "variants", "points", "dataset_name", "dataset_config", "dataset_train_split"),
        *("dataset_test_split", "test_name", *OWN, *OF_RL, *JOBS),
    ),
    "forgetting": ("static", "variants", "flips", "own_name", *JOBS),
}
PRESETS = ("tiny", "paper")
GO_WITH = {  # option that names data or a model → those that say where in them, or how
    "dataset_name": ("dataset_config", "dataset_train_split", "dataset_test_split", "test_name"),
    "test_name": ("dataset_test_split",),
    "ood_name": ("ood_config", "ood_split"),
    "hard_name": ("hard_config",),
    "model_name_or_path": ("chat_template_path",),
}


def main(arguments: Sequence[str], prog: str) -> None:
    """Run what is not there yet, then print the table and write the figures; seed after seed."""
    options = _parse(list(arguments), prog)
    folder = Path(options.output_dir or FOLDERS[options.experiment])
    began = time.monotonic()
    with no_leftovers(folder):
        if is_main():
            write_run(folder, options, prog)
        for seed in EXPERIMENTS[options.experiment](options, folder):
            minutes = (time.monotonic() - began) / 60
            say(f"seed {seed}: {minutes:.1f} minutes; everything is in {folder}")


def _parse(arguments: list[str], prog: str) -> Options:
    """The preset's recipe first, then what the command line says."""
    (options,) = parse([Options], arguments, prog, EXAMPLE)
    own = options  # without the preset
    if split_config(arguments)[0] is not None:
        refuse_ignored(options, ["preset"], "with --config, which stands in its place")
    else:
        options.preset = options.preset or PRESETS[0]
        one_of(options, "preset", PRESETS)
        if (options.preset, options.experiment) == ("paper", "preference"):
            raise ValueError(
                "--experiment preference has no preset paper: at scale use klball train with the recipes "
                "dpo-paper.yaml, reward-paper.yaml and gdpo-paper.yaml"
            )
        recipe = RECIPES.get((options.preset, options.experiment), options.preset)
        config = ["--config", str(files("klball") / "recipes" / f"{recipe}.yaml")]
        (options,) = parse([Options], [*config, *arguments], prog, EXAMPLE)
        _leave_out_what_goes_with_others(options, own, *parse([Options], config, prog, EXAMPLE))
    one_of(options, "experiment", tuple(EXPERIMENTS))
    one_of(options, "dtype", DTYPES)
    job_of(options)
    distinct(options, "epsilons")
    distinct(options, "flips")
    distinct(options, "variants")
    refuse_ignored(options, IGNORED[options.experiment], f"with --experiment {options.experiment}")
    if options.start_steps == 0:
        refuse_ignored(own, ["start_learning_rate", "start_names"], "with --start_steps 0")
    if options.lora_r == 0:
        refuse_ignored(options, ["lora_alpha"], "with --lora_r 0, which trains all parameters")
    elif is_adapter(options.model_name_or_path):
        raise ValueError(
            f"{options.model_name_or_path} is an adapter, which is trained on as it is: give --lora_r 0"
        )
    return options


def _leave_out_what_goes_with_others(options: Options, own: Options, recipe: Options) -> None:
    """Where the command line names other data than the recipe, its configuration and splits say nothing."""
    for name, others in GO_WITH.items():
        if getattr(options, name) != getattr(recipe, name):
            for other in others:
                setattr(options, other, getattr(own, other))


def tiny_experiment(epsilons: Sequence[float]) -> tuple[Options, Path, dict[str, Dataset], list[Arm]]:
    """The embedded robustness experiment, in its own folder, for commands that need its models."""
    options = _parse(["--preset", "tiny", "--epsilons", *map(str, epsilons)], "klball reproduce")
    return options, Path(FOLDERS["robustness"]), data_of(options), robustness.arms_of(options)
