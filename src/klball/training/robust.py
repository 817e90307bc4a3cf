"""RobustTrainer: what all robust trainers share, a mixin before one of TRL's. It knows no loss, no data."""

import logging
import time
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from datasets import Dataset
from torch import Tensor
from transformers import TrainerCallback
from transformers.trainer_pt_utils import LengthGroupedSampler

from klball.adversary.sets import AmbiguitySet
from klball.data.ids import order_of, with_sample_ids
from klball.training.accountant import Accountant
from klball.training.accounted import Accounted
from klball.training.batches import INDEX, SharedOrder, WithIndex
from klball.training.ledger import Ledger
from klball.training.refusals import refuse_split_models
from klball.training.returned import distinct, refuse_no_density
from klball.training.samples import refuse_nonfinite
from klball.training.step import LOSS, StepPlan, UnitBatch, Visits, plan_step
from klball.training.units import Units

logger = logging.getLogger(__name__)

DRAWS = (  # settings that decide which samples the steps of an epoch have
    *("world_size", "train_batch_size", "gradient_accumulation_steps", "seed", "data_seed"),
    *("train_sampling_strategy", "dataloader_drop_last", "packing"),
)


class RobustTrainer(Accounted):
    """Weighs the losses of samples as the adversary would who knows the scores of all of them.

    Written before a trainer of TRL: `class RobustDPOTrainer(RobustTrainer, DPOTrainer)`, whose constructor
    calls `init_adversary` last. Per optimizer step, with the adversary's answer to the ledger frozen:

        loss = Σ_i w_i · loss_i / samples in the step (or Σ of their sizes),   w_i = q_i/f_i

    so gradients do not depend on micro-batches, accumulation or the number of processes. A family says
    `unit_batch`, and `score_units` if entries can be had before they are visited.
    """

    # what the annotations of Transformers leave open, and TRL adds
    model: Any
    train_dataset: Any
    data_collator: Any

    score_names: ClassVar[Mapping[str, str]] = {"score": "log-likelihood"}  # as messages call them

    samples: Dataset

    start_scores: dict[str, Tensor] | None = None
    """The scores before the first step, which runs that begin alike share; the first of them fills it."""
    _trained: bool = False  # here before: the model is no more what it was at the start

    # --- what a family says -------------------------------------------------------------------

    def unit_batch(self, model: Any, inputs: dict[str, Any]) -> UnitBatch:
        """Losses, scores and columns for the log of one micro-batch."""
        raise NotImplementedError

    def score_units(self, when: str) -> dict[str, Tensor] | None:
        """Fresh scores of all samples, [n]; None: entries fill as they are visited. when: for messages."""
        return None

    def common_start(self) -> float | None:
        """The score of every sample before training, if it is one for all; they are not scored then."""
        return None

    def start_noise(self) -> float:
        """How far rounding may move a score from the common start."""
        return 0.0

    def step_metrics(self, columns: dict[str, Tensor]) -> dict[str, float]:
        """What every logging step reports of the rows of `unit_batch` that counted."""
        return {}

    # --- set-up -------------------------------------------------------------------------------

    def init_adversary(
        self, samples: Dataset, ambiguity: AmbiguitySet, units: Units, relax: bool = True
    ) -> None:
        """After TRL's constructor. samples: with their positions in the column INDEX."""
        if units.names and not ambiguity.needs:
            raise ValueError("group_column has no effect without an adversary: set a radius above 0")
        refuse_split_models(self.accelerator)
        self.samples, self.ambiguity, self._units, self._relax = samples, ambiguity, units, relax
        if not hasattr(self, "given_rows"):
            self.samples = self.given_rows = with_sample_ids(samples)
        self._order = order_of(self.samples)
        self.loss_is_scaled_for_ga = True  # normalised over the whole optimizer step, here
        self.data_collator = WithIndex(self.data_collator)
        self.hooks = []
        self._visits = Visits(len(samples))
        self.accountant = self._empty_accountant()
        self.scoring_seconds = {"initial": 0.0, "rescoring": 0.0}
        self.add_callback(_Boundaries(self))

    def _empty_accountant(self) -> Accountant:
        return Accountant(
            ambiguity=self.ambiguity,
            ledger=Ledger(len(self.samples), self.ambiguity.needs, self.common_start(), self.start_noise()),
            units=self._units,
            relax=self._relax,
            frozen=self.args.reweight == "static",
            draws={name: getattr(self.args, name, None) for name in DRAWS},
            rows=self._order,
            normalization=getattr(self.args, "normalization", ""),
            family=self._tag_names[-1],
        )

    def kept_tensors(self) -> dict[str, Tensor]:
        """The rows that the epoch has visited."""
        return {"visited": self._visits.seen[:-1].cpu()}

    # --- the ledger ---------------------------------------------------------------------------

    @property
    def hides_progress(self) -> bool:
        """Whether a scoring pass shows no bar, as Transformers shows none."""
        return bool(self.args.disable_tqdm) or not self.is_world_process_zero()

    def begin_training(self) -> None:
        """Fill the ledger: from the checkpoint that training resumes from, else by scoring all samples."""
        if self._resume_folder is not None:
            kept = self.accountant.load(self._resume_folder, self._begun_epoch(), more=("visited",))
            self._visits = Visits(len(self.samples))
            self._visits.seen[:-1] = kept["visited"]
            for hook in self.hooks:
                hook.load(self._resume_folder)
        elif self.state.global_step == 0:
            self.accountant = self._empty_accountant()
            self._visits.forget()
            if self.ambiguity.needs and (self._trained or self.common_start() is None):
                self.rescore("initial")
        self._trained = True

    def begin_epoch(self) -> None:
        """An epoch begins that is not the rest of a resumed one."""
        self._visits.forget()
        for hook in self.hooks:
            hook.begin_epoch()

    def rescore(self, reason: str = "rescoring") -> None:
        """Rewrite the whole ledger with fresh scores; the time it takes is kept in `scoring_seconds`."""
        began = time.perf_counter()
        step = self.state.global_step
        when = "before the first step" if reason == "initial" else f"again after step {step}"
        scores = self._scores_of_start(when) if reason == "initial" else self.score_units(when)
        if scores is not None:
            self.accountant.rewrite(scores)
        self.scoring_seconds[reason] += time.perf_counter() - began

    def _scores_of_start(self, when: str) -> dict[str, Tensor] | None:
        """Those that another run has left, if they are what this adversary needs."""
        shared, needs = None if self._trained else self.start_scores, self.ambiguity.needs
        if shared is not None and shared.keys() >= {*needs}:
            return {name: shared[name] for name in needs}
        scores = self.score_units(when)
        if shared is not None and scores is not None:
            shared.update(scores)
        return scores

    def _rescore_is_due(self) -> bool:
        """Every `rescore_steps`; by default as often as the radius and the drift ask for."""
        if self.state.global_step == 0 or self.accountant.frozen or not self.ambiguity.needs:
            return False
        if self.args.rescore_steps is None:
            grouped = bool(self._units.names)
            return self.accountant.ledger.drift.demands_rescoring(self._steps_an_epoch, grouped)
        return self.args.rescore_steps > 0 and self.state.global_step % self.args.rescore_steps == 0

    # --- one optimizer step -------------------------------------------------------------------

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """Fetch the whole step's batches, count its distinct samples over all ranks, freeze the answer."""
        for hook in self.hooks:
            epoch_iterator = hook.step_batches(epoch_iterator, num_batches)
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if batches and INDEX in batches[0]:
            if self._rescore_is_due():
                self.accountant.rescores += 1
                self.rescore()
            self._begin_step()
            indices = [batch[INDEX].to(device) for batch in batches]
            self._step = plan_step(
                *(indices, self._visits, self.accountant.density, self.accelerator, self._units)
            )
        return batches, num_items

    def _get_train_sampler(self, *arguments: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Transformers' sampler by length draws from the global generator, which others need not share.

        Of one process the first epoch is the seed's as it is; a run that goes on would draw other later ones.
        """
        sampler = super()._get_train_sampler(*arguments)
        if not isinstance(sampler, LengthGroupedSampler):
            return sampler
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed

        def of_epoch() -> int | None:
            epoch = int((self.state.epoch or 0.0) + 1e-6)
            return None if self.args.world_size == 1 and epoch == 0 else seed + epoch

        return SharedOrder(sampler, of_epoch)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The weighted loss of one micro-batch, already divided by the step's total."""
        if INDEX not in inputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        loss = self._step.weigh(inputs[INDEX], self.unit_batch(model, inputs))
        # DDP averages gradients over ranks; the divisor already counts all of them
        return loss * self.accelerator.num_processes

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        """TRL's step; after the last micro-batch the fresh scores of all ranks go to the ledger."""
        loss = super().training_step(model, inputs, *args, **kwargs)
        if self._step.is_over:
            self._finish_step(self._step)
        return loss

    def _finish_step(self, step: StepPlan) -> None:
        everyone = step.gathered(self.accelerator)
        names = {name: self.score_names.get(name, name) for name in self.accountant.ledger.entries}
        # only now do all processes know of it, and the optimizer has not moved yet
        scores = {title: everyone[name] for name, title in names.items()}
        for finite in (scores, {LOSS: everyone[LOSS]}):
            refuse_nonfinite(self.samples, everyone["index"].long(), finite, self.state.global_step + 1)
        refuse_no_density(self.ambiguity, everyone["density"], self.state.global_step + 1)
        columns = {name: values[everyone["keep"] > 0] for name, values in everyone.items()}
        if not len(columns["index"]):
            raise ValueError(
                f"step {self.state.global_step + 1} has only samples that its epoch has visited before: a "
                "sampler must not draw a sample twice"
            )
        if "num_inputs" in columns:
            self.accountant.num_tokens += int(columns["num_inputs"].sum())
            self._metrics["train"]["num_tokens"] = [self.accountant.num_tokens]
        self._log_step(distinct(self.accountant.summary(), _weights(columns), self.step_metrics(columns)))
        self.accountant.record(columns["index"].long(), {name: columns[name] for name in names})


def _weights(columns: Mapping[str, Tensor]) -> dict[str, float]:
    density = columns["density"]
    return {"mean_weight": float(density.mean()), "max_weight": float(density.max())}


class _Boundaries(TrainerCallback):
    """Starts the ledger once the model is on its device and the state says whether this is a resumption."""

    def __init__(self, trainer: RobustTrainer):
        self.trainer = trainer
        self.within_epoch = False

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.within_epoch = self.trainer.within_epoch
        self.trainer.begin_training()

    def on_epoch_begin(self, *args: Any, **kwargs: Any) -> None:
        if not self.within_epoch:
            self.trainer.begin_epoch()
        self.within_epoch = False
