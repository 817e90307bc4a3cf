"""The ledger: the latest scores of n units, and the drift common to them. It knows no set and no trainer."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from klball.adversary.solution import Solution
from klball.training.drift import Drift

NOISE = 1e-5  # relative, at the least: of one score computed twice, in batches of other shapes
ON_DISK = {"score": "log_likelihood"}  # names of the file where they differ


class Ledger:
    """Scores of n units by name, [n] in float64; `known` says which have one of their own yet.

    Entries age while the model moves, so stale ones look hard: the drift's shift is added to all of them.
    start: what every score is before training, where that is the same for all: the drift is measured from
    it, but it does not tell units apart. noise: how far rounding may move a score from it. "score" comes
    first, whatever the `names`.
    """

    def __init__(self, size: int, names: Sequence[str] = (), start: float | None = None, noise: float = 0.0):
        self.start, self.noise = start, max(noise, NOISE * (1 + abs(start or 0.0)))
        filled = torch.full((size,), start or 0.0, dtype=torch.float64)
        self.entries = {name: filled.clone() for name in dict.fromkeys(("score", *names))}
        self.known = torch.zeros(size, dtype=torch.bool)
        self.drift = Drift()

    def __len__(self) -> int:
        return len(self.known)

    @property
    def complete(self) -> bool:
        """Whether every unit is known."""
        return bool(self.known.all())

    @property
    def filled(self) -> bool:
        """Whether every unit has an entry, be it the common start."""
        return self.start is not None or self.complete

    def places(self) -> Tensor:
        """Where each unit stands among the known ones, −1 for an unknown one, [n]."""
        return torch.where(self.known, self.known.cumsum(0) - 1, -1)

    def scores(self) -> dict[str, Tensor]:
        """The entries, shift included."""
        return {name: values + self.drift.shift[k] for k, (name, values) in enumerate(self.entries.items())}

    def rewrite(self, fresh: Mapping[str, Tensor]) -> None:
        """Replace every entry after a full re-scoring. The common start tells of no unit."""
        foretold = self.scores()
        self.drift.restart([fresh[name] - foretold[name] for name in self.entries])
        # copies: `record` writes into them
        self.entries = {
            name: fresh[name].double().clone(memory_format=torch.contiguous_format) for name in self.entries
        }
        if not self._at_start(fresh["score"]):
            self.known.fill_(True)

    def record(self, index: Tensor, fresh: Mapping[str, Tensor], solution: Solution | None) -> None:
        """Enter one step's fresh scores, after which all the others shift; each unit once.

        Scores that are still the common start leave their units unknown.
        """
        seen = self.known[index] | (self.start is not None)
        if solution is not None and bool(seen.any()):
            gap = torch.zeros(2, dtype=torch.float64)
            for k, (name, entries) in enumerate(self.entries.items()):
                stale = entries[index] + self.drift.shift[k]
                gap[k] = (fresh[name] - stale)[seen].mean()
            self.drift.follow(gap, solution)
        for k, (name, entries) in enumerate(self.entries.items()):
            entries[index] = fresh[name].double() + self.drift.pace[k] - self.drift.shift[k]
        if not self._at_start(fresh["score"]):
            self.known[index] = True

    def _at_start(self, scores: Tensor) -> bool:
        if self.start is None:
            return False
        return float((scores - self.start).abs().max()) <= self.noise

    def names_on_disk(self) -> list[str]:
        """What the checkpoint calls the entries."""
        return [ON_DISK.get(name, name) for name in self.entries]

    def tensors(self) -> dict[str, Tensor]:
        """For the checkpoint."""
        state = {ON_DISK.get(name, name): values for name, values in self.entries.items()}
        return {**state, **self.drift.tensors(), "known": self.known}

    def load(self, tensors: Mapping[str, Any]) -> None:
        """The state of `tensors`."""
        self.entries = {name: tensors[ON_DISK.get(name, name)] for name in self.entries}
        self.known = tensors["known"]
        self.drift.load(dict(tensors))
