"""Arms dealt to independent jobs that share a folder, one to a GPU say; the last to end writes the report."""

from collections.abc import Sequence
from pathlib import Path

from datasets import Dataset
from torch import Tensor

from klball.report.pages.parts import BASE
from klball.studies.arms import TABLES, Arm, Options, run_arm, score_model, table_path
from klball.terminal import say
from klball.training.checkpoints import checkpoints_of
from klball.training.run import DONE_FILE


def others_have_arms(
    arms: Sequence[Arm], data: dict[str, Dataset], folder: Path, options: Options, start: dict[str, Tensor]
) -> bool:
    """Run this job's share of all seeds' arms; whether other jobs have not ended theirs, and so report later.

    The only job runs nothing here: the study itself does, and shows what it has after every arm.
    """
    if options.num_jobs == 1:
        return False
    if options.job_index == 0:
        score_model(options.model_name_or_path, BASE, data, folder, options)
    units = [(seed, arm) for seed in range(options.seeds) for arm in arms]
    for seed, arm in units[options.job_index :: options.num_jobs]:
        run_arm(arm, seed, data, folder, options, start)
    left = sum(not _is_finished(folder / f"seed-{seed}" / arm.folder, folder) for seed, arm in units)
    if left or not _has_tables(BASE, folder):
        say(
            f"job {options.job_index} of {options.num_jobs} is done; {left} of {len(units)} arms are other "
            "jobs': the job that ends last writes the tables"
        )
        return True
    return False


def _is_finished(run: Path, folder: Path) -> bool:
    place = run.relative_to(folder)
    return (run / DONE_FILE).exists() and all(
        _has_tables(f"{place}/{path.name}", folder) for path in checkpoints_of(run).values()
    )


def _has_tables(label: str, folder: Path) -> bool:
    return all(table_path(folder, label, name).exists() for name in TABLES)
