"""PreferenceTrainer: what the trainers of preferences share, between RobustTrainer and one of TRL's."""

import copy
import logging
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, ClassVar

import torch
from datasets import Dataset
from torch import Tensor

from klball.adversary.sets import AmbiguitySet
from klball.data.ids import refuse_no_group, with_sample_ids
from klball.data.preferences import texts_of_pair
from klball.data.sources import as_dataset
from klball.models.modes import evaluating
from klball.training.batches import INDEX, batches_of_process
from klball.training.evaluation import RowEvaluation, each_set, refuse_metric_without_groups
from klball.training.preference.comparators import Comparator, GroupEG, comparator_named
from klball.training.preference.forward import REFERENCE
from klball.training.refusals import refuse_useless
from klball.training.robust import RobustTrainer
from klball.training.samples import groups_of, numbered, refuse_nonfinite
from klball.training.sharding import refuse_lost_parameters, shards_parameters
from klball.training.step import UnitBatch, wide
from klball.training.units import Units

logger = logging.getLogger(__name__)


class PreferenceTrainer(RowEvaluation, RobustTrainer):
    """Scores are minus the losses, so that the loss trained on is the worst case itself."""

    metrics: ClassVar[tuple[str, ...]] = ("loss",)
    columns: ClassVar[tuple[str, ...]] = ("chosen", "rejected")  # that rows have to have
    tokens: ClassVar[tuple[str, ...]] = ()  # or these
    score_names: ClassVar = {"score": "loss"}

    comparator: Comparator | None = None
    model_wrapped: Any
    _prepare_dataset: Any  # TRL's

    # --- what a family says -------------------------------------------------------------------

    def row_lengths(self, rows: Dataset) -> list[int]:
        """Tokens that scoring a prepared row takes, [n]."""
        raise NotImplementedError

    # --- set-up -------------------------------------------------------------------------------

    def init_units(self, ambiguity: AmbiguitySet | None, peft_config: Any) -> None:
        """After TRL's constructor. peft_config: as the user gave it."""
        args = self.args
        refuse_useless(self.model, args, len(self.train_dataset), peft_config)
        refuse_metric_without_groups(args, self.eval_dataset)
        self._sharded = shards_parameters(self.accelerator, certainty=False)
        self.train_dataset, samples = self.numbered_units(self.train_dataset)
        groups = groups_of(samples, args.group_column)
        self.comparator = comparator_named(
            getattr(args, "comparator", None), getattr(args, "comparator_strength", None), groups
        )
        if self.comparator is not None:
            groups = None  # it knows them
        self.init_adversary(
            samples, ambiguity or args.ambiguity_set(), Units(self.unit_sizes(samples), groups)
        )
        if isinstance(self.comparator, GroupEG):
            self.hooks.append(self.comparator)

    def numbered_units(self, rows: Dataset) -> tuple[Dataset, Dataset]:
        """Prepared rows with the positions of their units in the column INDEX, and the units, one a row."""
        rows = numbered(rows)
        return rows, rows

    def unit_sizes(self, samples: Dataset) -> Tensor | None:
        """Base weights of the units up to a factor, [n]; None for 1/n."""
        return None

    def texts_of(self, row: dict[str, Any], unit: int) -> dict[str, str]:
        return texts_of_pair(row)

    def begin_training(self) -> None:
        """Fill the ledger; a comparator starts afresh unless training is resumed."""
        if self._sharded:
            refuse_lost_parameters(self.accelerator, self.optimizer)
        if self.comparator is not None and self._resume_folder is None:
            self.comparator.restart()
        super().begin_training()

    # --- scores -------------------------------------------------------------------------------

    @torch.no_grad()
    def score_dataset(self, dataset: Dataset, title: str = "scoring") -> dict[str, Tensor]:
        """Fresh losses, scores and columns of rows in their order: float64 on the CPU, [n] each.

        dataset: prepared, as `train_dataset` is, or `eval_rows(rows)` makes it. Without dropout, shared
        out over the processes, the same on all of them. Every process raises the same ValueError where a
        loss is not finite.
        """
        own_rows = dataset is self.train_dataset
        rows, units = (dataset, self.samples) if own_rows else self.numbered_units(dataset)
        own = batches_of_process(self.row_lengths(rows), self.accelerator, title, self.hides_progress)
        names, part, parts = [""], torch.zeros(0), []
        with evaluating(self.model_wrapped):
            for batch, counts in own:
                names, part = self._fresh(self.data_collator([rows[i] for i in batch]))
                if counts:
                    parts.append(part)
        table = self._together(torch.cat([*parts, part[:0]]), len(units))
        columns = dict(zip(names[1:], table.unbind(1), strict=True))
        refuse_nonfinite(units, torch.arange(len(table)), {"loss": columns["loss"]}, self.state.global_step)
        return columns

    def _fresh(self, batch: dict[str, Any]) -> tuple[list[str], Tensor]:
        """Names, and (B, names) on the device, the position of a unit first; no gradient."""
        inputs = self._prepare_inputs(batch)
        with torch.no_grad(), self.accelerator.autocast():
            unit = self.unit_batch(self.model_wrapped, inputs)
        columns = {"index": inputs[INDEX], "loss": unit.losses, **unit.scores, **unit.columns}
        kind = unit.scores["score"].dtype
        return list(columns), torch.stack([values.to(kind) for values in columns.values()], dim=1)

    def _together(self, own: Tensor, size: int) -> Tensor:
        """The rows of all processes in the order of their positions, without those."""
        table = torch.zeros(size, own.shape[1] - 1, dtype=own.dtype, device=own.device)
        table[own[:, 0].long()] = own[:, 1:]
        if self.accelerator.num_processes > 1:
            table = self.accelerator.reduce(table, reduction="sum")
        return table.cpu().double()

    def score_units(self, when: str) -> dict[str, Tensor]:
        """Minus the loss of all units."""
        logger.info("scoring %d rows %s …", len(self.train_dataset), when)
        return {"score": self.score_dataset(self.train_dataset, f"scoring {when}")["score"]}

    # --- one optimizer step -------------------------------------------------------------------

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """The step's batches; a comparator sees the losses of all of them before the first is trained on."""
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.comparator is not None and batches and INDEX in batches[0]:
            self._step.density = self._compared(batches)
        return batches, num_items

    def _compared(self, batches: list[Any]) -> Any:
        with evaluating(self.model_wrapped):
            own = torch.cat([self._fresh(batch)[1][:, :2] for batch in batches])  # positions and losses
        own = torch.cat([own, torch.cat(self._step.keep).to(own.dtype)[:, None].to(own.device)], dim=1)
        if self.accelerator.num_processes > 1:
            own = self.accelerator.gather(self.accelerator.pad_across_processes(own, dim=0))
        index, losses, keep = own.cpu().double().unbind(1)
        index, losses = index[keep > 0].long(), losses[keep > 0]
        table = torch.ones(len(self.samples), dtype=torch.float64)
        table[index] = self.comparator.weights(losses, index)  # pyright: ignore[reportOptionalMemberAccess]
        return lambda index, scores: table.to(scores["score"])[index]

    # --- evaluation ---------------------------------------------------------------------------

    def eval_rows(self, dataset: Any) -> Dataset:
        rows = plain_rows(dataset, "eval_dataset", self.columns, self.tokens)
        return self._prepare_dataset(rows, self.processing_class, self.args, "eval")

    def eval_metrics(self, rows: Dataset) -> dict[str, float]:
        """Unweighted means over all rows; `loss` is the plain one, worst cases are of training's scores."""
        columns = self.score_dataset(rows, "evaluating")
        _, units = self.numbered_units(rows)
        worst = self.worst_cases({"score": columns["score"]}, self.unit_sizes(units), units)
        means = self.step_metrics(columns)
        return {**{"loss" if name == "plain_loss" else name: means[name] for name in means}, **worst}


def units_of(losses: Tensor, columns: Mapping[str, Tensor]) -> UnitBatch:
    """One unit a loss, whose score is minus the loss."""
    return UnitBatch(losses, {"score": -losses.detach().to(wide(losses.device))}, dict(columns))


def plain_rows(rows: Any, what: str, columns: tuple[str, ...], tokens: tuple[str, ...] = ()) -> Dataset:
    """A data set of rows as TRL takes them. Raises ValueError without rows, or without one of the columns."""
    dataset = as_dataset(rows, what)
    if not len(dataset):
        raise ValueError(f"{what} has no rows")
    if not tokens or not {*tokens} <= {*dataset.column_names}:
        for name in columns:
            if name not in dataset.column_names:
                raise ValueError(
                    f"{what} has no column {name!r}; there are {', '.join(dataset.column_names)}"
                )
    return dataset


def prepared_arguments(args: Any, kwargs: dict[str, Any], *columns: tuple[str, ...]) -> tuple[Any, Any]:
    """Settings for TRL's constructor, which edits them, and the PEFT configuration as it was given.

    In `kwargs` training rows get their `sample_id`, and evaluation rows are a `Dataset`. columns: as for
    `plain_rows`.
    """
    train = _without_reference(kwargs["train_dataset"], "train_dataset", columns)
    refuse_no_group(train, args.group_column)
    kwargs["train_dataset"] = with_sample_ids(train)
    prepared = partial(_without_reference, columns=columns)
    kwargs["eval_dataset"] = each_set(kwargs.get("eval_dataset"), prepared)
    peft_config = kwargs.get("peft_config")
    kwargs["peft_config"] = copy.deepcopy(peft_config)
    return copy.copy(args), peft_config


def _without_reference(rows: Any, what: str, columns: tuple[tuple[str, ...], ...]) -> Dataset:
    """TRL reads such columns only where it has filled them itself."""
    dataset = plain_rows(rows, what, *columns)
    if there := [name for name in REFERENCE if name in dataset.column_names]:
        raise ValueError(
            f"{what} has the column {there[0]}, which precompute_ref_log_probs fills: leave it out"
        )
    return dataset


def refuse_lost_rows(
    name: str, before: int, left: int, max_length: int | None, what: str, cut: int = 0
) -> None:
    """Count aloud the rows that `max_length` dropped, `what` says why, and those it cut.

    Raises ValueError if none is left.
    """
    if not left:
        raise ValueError(f"{name}: no row is left, {what} max_length = {max_length}: raise it")
    if before - left or cut:
        logger.warning(
            "%s: of %d rows %d were dropped, %s max_length = %s, and %d have an answer that it cuts",
            *(name, before, before - left, what, max_length, cut),
        )
