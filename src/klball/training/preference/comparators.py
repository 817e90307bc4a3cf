"""Weights of other methods, for comparison: one optimizer step's pair losses → the weights of its pairs.

Their authors define them on a batch. Here that is the whole optimizer step over all processes, so that
accumulation and processes change nothing; the size of a step does, which an exact adversary's does not.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from klball.training.step import StepHook

STRENGTHS = {"dr-dpo": 1.0, "kldpo": 1.0, "group-eg": 0.01}  # the authors'
KLDPO_CAP = 10.0
GROUPS_FILE = "comparator-groups.safetensors"


class Comparator(Protocol):
    """Weighs the pairs of one step."""

    def weights(self, losses: Tensor, index: Tensor) -> Tensor:
        """w (B) of the step's distinct pairs from their losses (B) and positions (B), float64 on the CPU."""
        ...

    def restart(self) -> None:
        """Training begins."""


@dataclass(frozen=True)
class DrDPO(Comparator):
    """Dr. DPO: w = B·softmax(−ℓ/β′), the gradient of −β′ log mean exp(−ℓ/β′).

    Optimistic: easy pairs weigh more. Source: Wu et al., arXiv 2407.07880.
    """

    temperature: float

    def weights(self, losses: Tensor, index: Tensor) -> Tensor:
        return len(losses) * (-losses / self.temperature).softmax(0)


@dataclass(frozen=True)
class KLDPO(Comparator):
    """KLDPO: w = min(10, exp((ℓ − mean ℓ)/τ)), not normalised: below the cap its mean is at least 1.

    Pessimistic. Source: Xu et al., arXiv 2502.01930.
    """

    temperature: float

    def weights(self, losses: Tensor, index: Tensor) -> Tensor:
        return ((losses - losses.mean()) / self.temperature).exp().clamp(max=KLDPO_CAP)


class GroupEG(StepHook):
    """Group-robust by exponentiated gradient: α_g ← α_g·exp(η·mean ℓ_g), normalised; w = α_g/f_g.

    α starts uniform, and moves before it weighs the step's pairs. Pessimistic; α has a memory, and goes
    into checkpoints. Source: Ramesh et al., GR-DPO, arXiv 2405.20304.
    """

    files: ClassVar[Mapping[str, tuple[str, ...]]] = {"weights of groups": (GROUPS_FILE,)}

    def __init__(self, step: float, groups: Sequence[Any]):
        names = list(dict.fromkeys(groups))
        self.step = step
        self.of_pair = torch.tensor([names.index(group) for group in groups])
        self.share = torch.bincount(self.of_pair).double() / len(groups)
        self.restart()

    def restart(self) -> None:
        self.alpha = torch.full_like(self.share, 1 / len(self.share))

    def weights(self, losses: Tensor, index: Tensor) -> Tensor:
        group = self.of_pair[index]
        count = torch.bincount(group, minlength=len(self.share))
        mean = torch.zeros_like(self.share).index_add(0, group, losses) / count.clamp(min=1)
        self.alpha = (self.alpha.log() + self.step * mean).softmax(0)
        return (self.alpha / self.share)[group]

    def save(self, folder: Path, process: int) -> None:
        if process == 0:
            folder.mkdir(parents=True, exist_ok=True)
            save_file({"alpha": self.alpha}, folder / GROUPS_FILE)

    def load(self, folder: Path) -> None:
        if not (folder / GROUPS_FILE).is_file():
            raise ValueError(f"{folder} has no {GROUPS_FILE}: it was not written with comparator='group-eg'")
        self.alpha = load_file(folder / GROUPS_FILE)["alpha"]


def comparator_named(name: str | None, strength: float | None, groups: Sequence[Any] | None) -> Any:
    """The comparator of that name; None for none, and for "trim", which is an ambiguity set."""
    if name not in STRENGTHS:
        return None
    value = STRENGTHS[name] if strength is None else strength
    if name == "group-eg":
        assert groups is not None
        return GroupEG(value, groups)
    return DrDPO(value) if name == "dr-dpo" else KLDPO(value)
