"""`klball reproduce`: whole experiments, from nothing to tables and figures."""

import time
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from datasets import Dataset

from klball.experiments import objectives, robustness
from klball.experiments.arms import Arm, Options, data_of
from klball.experiments.command import console, parse, write_run

EXPERIMENTS = {"robustness": robustness.run, "objectives": objectives.run}
FOLDERS = {"robustness": "outputs/reproduce", "objectives": "outputs/objectives"}
PRESETS = ("tiny", "paper")


def main(arguments: Sequence[str], prog: str) -> None:
    """Run what is not there yet, then print the table and write the figures; seed after seed."""
    options = _parse(list(arguments), prog)
    folder = Path(options.output_dir or FOLDERS[options.experiment])
    write_run(folder, options, prog)
    began = time.monotonic()
    for seed in EXPERIMENTS[options.experiment](options, folder):
        minutes = (time.monotonic() - began) / 60
        console.print(f"seed {seed}: {minutes:.1f} minutes; everything is in {folder}")


def _parse(arguments: list[str], prog: str) -> Options:
    """The preset's recipe first, then what the command line says."""
    (options,) = parse([Options], arguments, prog)
    if options.preset not in PRESETS:
        raise ValueError(f"--preset must be one of {', '.join(PRESETS)}, not {options.preset!r}")
    if "--config" not in arguments:
        recipe = f"{options.preset}.yaml"
        if (options.preset, options.experiment) == ("paper", "objectives"):
            recipe = "objectives-paper.yaml"
        arguments = ["--config", str(files("klball") / "recipes" / recipe), *arguments]
        (options,) = parse([Options], arguments, prog)
    if options.experiment not in EXPERIMENTS:
        raise ValueError(f"--experiment must be one of {', '.join(EXPERIMENTS)}, not {options.experiment!r}")
    if options.seeds < 1 or options.points < 1 or not options.epsilons:
        raise ValueError("--seeds and --points must be at least 1, and --epsilons not empty")
    if any(e < 0 for e in options.epsilons):
        raise ValueError(f"--epsilons must be 0 or more, not {min(options.epsilons)}")
    return options


def tiny_experiment(epsilons: Sequence[float]) -> tuple[Options, Path, dict[str, Dataset], list[Arm]]:
    """The embedded robustness experiment, in its own folder, for commands that need its models."""
    options = _parse(["--preset", "tiny", "--epsilons", *map(str, epsilons)], "klball reproduce")
    return options, Path(FOLDERS["robustness"]), data_of(options), robustness.arms_of(options)
