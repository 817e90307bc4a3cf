"""Training that can be stopped anywhere: where it goes on, where it ends, and what it leaves on disk."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft import PeftModel
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from klball.training.checkpoints import (
    adapter_weights,
    hide_installation,
    load_renamed,
    newest_complete,
    refuse_unfit,
)
from klball.training.step import StepHook

if TYPE_CHECKING:
    from transformers import Trainer as Base
else:  # before a trainer of TRL, which is one
    Base = object


class Resumable(Base):
    """Before a trainer of TRL: resumes from whole checkpoints of this model only, not past `max_steps`."""

    _resume_folder: Path | None = None
    _steps_an_epoch: int = 1
    within_epoch: bool = False
    """Whether training resumes in the middle of an epoch, and goes on with the samples still to come."""
    hooks: list[StepHook]
    model: Any
    _tag_names: Any

    def checkpoint_files(self) -> Mapping[str, tuple[str, ...]]:
        """What a whole checkpoint holds beside TRL's files and the ledger: what it is → patterns of names."""
        return {what: patterns for hook in self.hooks for what, patterns in hook.files.items()}

    def train(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any
    ) -> Any:
        """TRL's train; True resumes from the newest whole checkpoint of the output folder.

        Raises ValueError if there is none, or the one named is damaged, incomplete or of another model.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = newest_complete(Path(str(self.args.output_dir)), self.checkpoint_files())
            if resume_from_checkpoint is None:
                raise ValueError(f"{self.args.output_dir} has no complete checkpoint to resume from")
        self._resume_folder = Path(str(resume_from_checkpoint)) if resume_from_checkpoint else None
        if self._resume_folder is not None:
            refuse_unfit(self._resume_folder, self.model, self._tag_names[-1])
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def _init_training_state(self, *arguments: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Transformers forgets the best checkpoint of a folder that was moved: it lies beside this one."""
        result = super()._init_training_state(*arguments)
        self._steps_an_epoch, self.within_epoch = arguments[1], result[1] > 0
        if self._resume_folder is not None and self.state.best_model_checkpoint is None:
            best = self._resume_folder.with_name(f"{PREFIX_CHECKPOINT_DIR}-{self.state.best_global_step}")
            self.state.best_model_checkpoint = str(best) if best.is_dir() else None
        return result

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Transformers would leave out what is saved under another name."""
        if self.is_fsdp_enabled or not load_renamed(Path(resume_from_checkpoint), self.model):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        best = self.state.best_model_checkpoint
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        if best is None or sharded or not (self._load_named(best) or load_renamed(Path(best), self.model)):
            super()._load_best_model()

    def _load_named(self, folder: str) -> bool:
        """Load an adapter with a name, which Transformers looks for in the wrong place; False for others."""
        if not isinstance(self.model, PeftModel):
            return False
        weights = adapter_weights(Path(folder), self.model)
        if weights.parent == Path(folder) or not weights.is_file():
            return False
        self.model.load_adapter(str(weights.parent), self.model.active_adapters[0], is_trainable=True)
        return True

    def _begun_epoch(self) -> bool:
        """Whether training resumes in the middle of an epoch, or in another epoch than it was in."""
        epochs = self.state.epoch or 0.0
        moved = abs(epochs - self.state.global_step / self._steps_an_epoch) > 1e-6
        by_epochs, begun = self.args.max_steps <= 0, abs(epochs - round(epochs)) > 1e-6
        return not self.args.ignore_data_skip and (self.within_epoch or begun or (by_epochs and moved))

    def _run_epoch(self, **kwargs: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Transformers asks whether training is over after a step only: so it is asked before, too."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(**kwargs)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Without the Hub token, which is pickled with the arguments, and without the installation's path."""
        token, self.args.hub_token = self.args.hub_token, None
        try:
            super()._save(output_dir, state_dict)
        finally:
            self.args.hub_token = token
        if self.args.should_save:
            hide_installation(Path(str(output_dir or self.args.output_dir)))
