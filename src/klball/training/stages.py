"""A part of a run: it stops at a share of its steps, with a checkpoint from which the same run goes on."""

import math
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from klball.training.checkpoints import STATE_FILE, newest_complete, problem_of


def last_step(share: float, steps: int) -> int:
    """The step at which `share` of a run's steps are done, at least one."""
    return min(steps, max(1, math.ceil(share * steps - 1e-9)))


class StopAt(TrainerCallback):
    """Ends training there; learning rate and everything else are those of the whole run."""

    def __init__(self, share: float):
        self.share = share

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Raise ValueError if that share is less than a step."""
        refuse_no_step(self.share, state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step >= last_step(self.share, state.max_steps):
            control.should_save = control.should_training_stop = True


def refuse_no_step(share: float, steps: int) -> None:
    """Raise ValueError if that share of the steps is less than one: later shares might be the same step."""
    if share * steps < 1:
        raise ValueError(
            f"{100 * share:g} % of {steps} steps is less than one: train longer, or give --halving false"
        )


def checkpoint_at(folder: Path, share: float) -> Path | None:
    """The whole checkpoint of a run at the end of this part of it; None if there is none."""
    newest = newest_complete(folder)
    if newest is None:
        return None
    state = TrainerState.load_from_json(str(Path(newest) / STATE_FILE))
    path = folder / f"{PREFIX_CHECKPOINT_DIR}-{last_step(share, state.max_steps)}"
    return path if path.is_dir() and problem_of(path) is None else None
