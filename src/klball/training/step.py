"""One optimizer step: which samples count, over all ranks, what divides the loss, and what is kept."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from klball.training.returned import distinct
from klball.training.units import Units

NO_FLOAT64 = {"mps"}  # devices
LOSS = "loss"  # among the columns of a step
Density = Callable[[Tensor, Mapping[str, Tensor]], Tensor]


def wide(device: torch.device) -> torch.dtype:
    """The widest floating-point type there."""
    return torch.float32 if device.type in NO_FLOAT64 else torch.float64


class UnitBatch(NamedTuple):
    """One micro-batch, a row a sample (a text, a preference pair, a prompt)."""

    losses: Tensor
    """(B), with gradient."""
    scores: dict[str, Tensor]
    """Name → (B), detached, in the `wide` type; larger is better."""
    columns: dict[str, Tensor]
    """Name → (B), for the log."""


class StepHook:
    """What a trainer does beside its steps, such as scoring batches before the model moves."""

    files: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """What a whole checkpoint holds of it: what it is → patterns, one of which has to match."""

    def step_batches(self, batches: Iterator[Any], num_batches: int) -> Iterator[Any]:
        """The batches of the coming optimizer step; more may be fetched from `batches` for later ones."""
        return batches

    def begin_epoch(self) -> None:
        """An epoch begins that is not the rest of a resumed one."""

    def save(self, folder: Path, process: int) -> None:
        """Into a checkpoint, on every process, before it counts as complete."""

    def load(self, folder: Path) -> None:
        """Continue from a checkpoint; raises ValueError if it lacks what `save` wrote."""


@dataclass
class StepPlan:
    """keep: for each micro-batch, the rows (B) that count, all but those that fill the epoch's last step.

    divisor: the samples of the whole step, over all ranks, or their sizes' total.
    """

    keep: list[Tensor]
    divisor: Tensor
    density: Density
    rows: list[Tensor] = field(default_factory=list)
    names: list[str] = field(default_factory=list)

    @property
    def is_over(self) -> bool:
        """Whether every micro-batch has been weighed."""
        return len(self.rows) == len(self.keep)

    def weigh(self, index: Tensor, batch: UnitBatch) -> Tensor:
        """Σ_i keep_i · q_i/f_i · loss_i / divisor of the next micro-batch; no synchronisation."""
        keep = self.keep[len(self.rows)]
        kept = wide(index.device)
        density = self.density(index, batch.scores).to(kept)
        weighed = {"index": index, "keep": keep, "density": density, LOSS: batch.losses}
        columns = distinct(weighed, batch.scores, batch.columns)
        self.names = list(columns)
        self.rows.append(torch.stack([values.detach().to(kept) for values in columns.values()], dim=1))
        weights = density * keep / self.divisor
        return (weights.to(batch.losses.dtype) * batch.losses).sum()

    def gathered(self, accelerator: Any) -> dict[str, Tensor]:
        """The columns of all ranks' rows in float64 on the CPU; the step's only synchronisation."""
        rows = torch.cat(self.rows)
        if accelerator.num_processes > 1:
            rows = accelerator.gather(accelerator.pad_across_processes(rows, dim=0))
        return dict(zip(self.names, rows.cpu().double().unbind(1), strict=True))


class Visits:
    """Which of n samples an epoch has visited, on the device of the batches."""

    def __init__(self, size: int):
        self.seen = torch.zeros(size + 1, dtype=torch.bool)
        self.forget()

    def forget(self) -> None:
        """A new epoch."""
        self.seen[:-1] = False
        self.seen[-1] = True  # what padding (−1) points to

    def first(self, index: Tensor) -> Tensor:
        """Marks these samples; True at the first visit of each, (B). −1 is padding. No synchronisation."""
        self.seen = self.seen.to(index.device)
        order = index.argsort(stable=True)
        ordered = index[order]
        new = torch.ones_like(ordered, dtype=torch.bool)
        new[1:] = ordered[1:] != ordered[:-1]
        first = torch.empty_like(new).scatter(0, order, new) & ~self.seen[index]
        self.seen[index] = True
        return first


def plan_step(
    batches: list[Tensor], visits: Visits, density: Density, accelerator: Any, units: Units
) -> StepPlan:
    """The plan of a step from the sample indices of this rank's micro-batches."""
    own = torch.cat(batches)
    start, everyone = 0, own
    if accelerator.num_processes > 1:
        padded = accelerator.pad_across_processes(own, dim=0, pad_index=-1)
        start = accelerator.process_index * len(padded)
        everyone = accelerator.gather(padded)
    first = visits.first(everyone)
    kept = first.to(wide(own.device))
    divisor = (kept * units.sizes_of(everyone, kept)).sum()
    return StepPlan(list(first[start : start + len(own)].split(list(map(len, batches)))), divisor, density)
