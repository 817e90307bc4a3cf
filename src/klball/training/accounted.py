"""What trainers that weigh losses or advantages share: the accountant's steps, log and files."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from klball.training.accountant import HISTORY_FILE, Accountant
from klball.training.batches import INDEX
from klball.training.resumption import Resumable
from klball.training.step import StepHook


class Accounted(Resumable):
    """Before a trainer of TRL: the accountant goes into checkpoints, its history into log and results."""

    args: Any
    accelerator: Any
    _metrics: Any
    _signature_columns: Any

    accountant: Accountant
    hooks: list[StepHook]

    def kept_tensors(self) -> dict[str, Tensor]:
        """What a checkpoint keeps in the ledger's file besides."""
        return {}

    def rescore(self) -> None:
        """Renews entries where they can be had without a visit."""

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if INDEX not in self._signature_columns:
            self._signature_columns = [*self._signature_columns, INDEX]

    def _begin_step(self) -> None:
        """Freeze the adversary's answer to the entries as they are now."""
        try:
            self.accountant.begin_step(self._warmup_share())
        except ValueError as error:
            error.args = (f"at optimizer step {self.state.global_step + 1}: {error}",)
            raise

    def _warmup_share(self) -> float:
        """Of the radius: it grows from 0 over the first `epsilon_warmup` of all steps."""
        steps = math.ceil(self.args.epsilon_warmup * self.state.max_steps)
        return 1.0 if steps == 0 else min(1.0, self.state.global_step / steps)

    def _log_step(self, step: Mapping[str, float]) -> None:
        self.accountant.history.append({"step": self.state.global_step + 1, **step})
        for name, value in step.items():
            self._metrics["train"][name].append(value)

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """TRL's train, from the beginning or a whole checkpoint; writes the history at its end."""
        output = super().train(resume_from_checkpoint, **kwargs)
        if self.args.should_save:
            Path(str(self.args.output_dir)).mkdir(parents=True, exist_ok=True)
            self.accountant.save_history(Path(str(self.args.output_dir)) / HISTORY_FILE)
        return output

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """The ledger goes first: TRL writes trainer_state.json last, and only that completes a checkpoint."""
        folder = Path(self._get_output_dir(trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        if self.args.should_save:
            self.accountant.save(folder, **self.kept_tensors())
        for hook in self.hooks:
            hook.save(folder, self.accelerator.process_index)
        if self.hooks:
            self.accelerator.wait_for_everyone()
        super()._save_checkpoint(model, trial)
