"""Batches of rollouts: checkpoints may lie only where one ends, since TRL does not keep an open one."""

import logging
from typing import Any

from transformers import TrainerCallback

logger = logging.getLogger(__name__)


class RolloutBoundaries(TrainerCallback):
    """Moves a save to the end of its batch of rollouts, and starts the trainer's ledger.

    Where training ends inside of one, its last checkpoint stays: nothing goes on from it.
    """

    def __init__(self, trainer: Any):
        self.trainer = trainer
        self.asked: int | None = None  # the step of a save that waits
        self._said = False

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.asked = None
        self.trainer.begin_training()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._move(state, control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._move(state, control)

    def _move(self, state: Any, control: Any) -> None:
        inside = self.trainer.rollout_position != 0 and state.global_step < state.max_steps
        if not inside:
            if self.asked is not None:
                control.should_save = True
                if not self._said:
                    logger.warning(
                        "the checkpoint of step %d is written at step %d, and others are moved likewise: "
                        "only where a batch of rollouts ends can training be resumed",
                        *(self.asked, state.global_step),
                    )
                    self._said = True
                self.asked = None
        elif control.should_save:
            control.should_save = False
            self.asked = self.asked or state.global_step
