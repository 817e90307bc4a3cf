"""What trainers that weigh losses or advantages share: the accountant's steps, log and files."""

import logging
import math
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

from datasets import Dataset
from torch import Tensor
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from klball.training.accountant import HISTORY_FILE, Accountant
from klball.training.batches import INDEX
from klball.training.checkpoints import STATE_FILE
from klball.training.resumption import Resumable
from klball.training.returned import logged, refuse_taken
from klball.training.weights import WEIGHTS_FILE, Weighed, weight_table, write_weights

logger = logging.getLogger(__name__)


class Accounted(Resumable):
    """Before a trainer of TRL: the accountant goes into checkpoints, its history into log and results."""

    args: Any
    accelerator: Any
    _metrics: Any
    _signature_columns: Any

    entry: ClassVar[tuple[str, int]] = ("loss", -1)
    """What files call the ledger's entries, and their sign there."""
    writes_weights: bool = True
    """Whether `train` leaves the last weights; `klball train` does so once the model is saved."""

    accountant: Accountant
    samples: Dataset
    given_rows: Dataset
    """The training data as it was given, with a `sample_id`, for people to see."""

    def kept_tensors(self) -> dict[str, Tensor]:
        """What a checkpoint keeps in the ledger's file besides."""
        return {}

    def rescore(self) -> None:
        """Renews entries where they can be had without a visit."""

    def texts_of(self, row: dict[str, Any], unit: int) -> Mapping[str, str]:
        """Texts of a row of `given_rows`, to be shown to people. unit: which of its units."""
        return {}

    def sample_weights(self) -> Dataset:
        """What the adversary makes of every training sample now, in the order of `samples`.

        Columns: `sample_id`; `n_q`, the weight of the sample times their number n, so that 1 is an even share
        and the mean is 1; and the ledger's entry: `log_likelihood` (nats per token) of SFT, `loss` of pairs
        and beliefs, `mean_reward` of GRPO's prompts; null of a sample that has none yet. Between re-scorings
        an entry is moved by what all have gained, and may lie where no score can. It has no effect on
        training, in which it may be called. `top_weighted.csv` is its first 20 by weight, with texts.
        """
        return weight_table(self)

    def write_weights(self, rows: Dataset | None = None, hidden: tuple[str, ...] = ()) -> Weighed | None:
        """`top_weighted.csv`, and `groups.csv` where groups are weighed, into the output folder.

        Live weights are of all samples scored anew, which takes every process; the main one alone writes, and
        has what it wrote. rows and hidden: as in `klball.training.weights.write_weights`.
        """
        if self.has_live_weights and self.args.rescore_steps != 0:
            self.rescore()  # drift is not hardness: stale entries must not lead the list
        if not self.args.should_save:
            return None
        return write_weights(self, self.given_rows if rows is None else rows, hidden)

    @property
    def has_live_weights(self) -> bool:
        """Whether there is an adversary whose weights follow the model."""
        return self.args.reweight == "live" and bool(self.accountant.ambiguity.needs)

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
        """Of the radius: it grows from 0 over the first steps, `epsilon_warmup` of them all."""
        steps = math.ceil(self.args.warmup * self.state.max_steps)
        return 1.0 if steps == 0 else min(1.0, self.state.global_step / steps)

    def _log_step(self, step: Mapping[str, Any]) -> None:
        own: set[str] = self.__dict__.setdefault("_own_names", set())
        refuse_taken({*self._metrics["train"]} - own, step)  # TRL's
        step = logged(step)
        own.update(step)
        self.accountant.history.append({"step": self.state.global_step + 1, **step})
        for name, value in step.items():
            self._metrics["train"][name].append(value)

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """TRL's train, from the beginning or a whole checkpoint; history and last weights are its files."""
        output = super().train(resume_from_checkpoint, **kwargs)
        if self.args.should_save:
            Path(str(self.args.output_dir)).mkdir(parents=True, exist_ok=True)
            self.accountant.save_history(Path(str(self.args.output_dir)) / HISTORY_FILE)
        if self.writes_weights:
            try:
                self.write_weights()
            except ValueError as error:  # the model is trained, and perhaps not saved yet
                logger.warning("there is no %s: %s", WEIGHTS_FILE, error)
        return output

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """The ledger goes first: TRL writes trainer_state.json last, and only that completes a checkpoint."""
        folder = Path(self._get_output_dir(trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        if self.args.should_save:
            (folder / STATE_FILE).unlink(missing_ok=True)  # of another run, whose files are now replaced
            for pattern in chain.from_iterable(self.checkpoint_files().values()):
                for path in folder.glob(pattern):  # perhaps of more processes
                    path.unlink()
            self.accountant.save(folder, **self.kept_tensors())
        if self.hooks:
            self.accelerator.wait_for_everyone()
        for hook in self.hooks:
            hook.save(folder, self.accelerator.process_index)
        if self.hooks:
            self.accelerator.wait_for_everyone()
        super()._save_checkpoint(model, trial)
