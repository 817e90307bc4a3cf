"""What the adversary weighs: the samples of a ledger, or groups of them named by a column."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from klball.training.ledger import Ledger


class Units:
    """Base weights f of n samples, and the group of each where the adversary weighs groups.

    A group's score is the mean of its members' under f, its base weight their total f_g; every member has
    the density q_g/f_g. The worst single group is ε ≥ −log f_g. Samples without an entry yet are left out
    of the problem and keep the density 1.

    sizes: f up to a factor, [n]; None for 1/n. groups: the names, one a sample, [n]; None for the samples.
    """

    def __init__(self, sizes: Tensor | None = None, groups: Sequence[Any] | None = None):
        self.sizes = sizes
        self._total = 0.0 if sizes is None else float(sizes.double().sum())
        self.names: list[Any] = []
        self.of_sample: Tensor | None = None
        if groups is not None:
            self.names = list(dict.fromkeys(groups))
            place = {name: k for k, name in enumerate(self.names)}
            self.of_sample = torch.tensor([place[name] for name in groups])
        self._sizes_there: Tensor | None = None  # on the device of the scores

    @property
    def name(self) -> str:
        """How messages call them."""
        return "samples" if self.of_sample is None else "groups"

    def base(self, n: int) -> Tensor:
        """f of all samples, [n], sum 1."""
        if self.sizes is None:
            return torch.full((n,), 1 / n, dtype=torch.float64)
        return self.sizes.double() / self._total

    def sizes_of(self, index: Tensor, like: Tensor) -> Tensor:
        """f of some samples up to a factor, (B), with the dtype and on the device of `like`."""
        if self.sizes is None:
            return torch.ones_like(index, dtype=like.dtype)
        if self._sizes_there is None or self._sizes_there.device != like.device:
            self._sizes_there = self.sizes.to(like.dtype).to(like.device)
        return self._sizes_there[index]

    def base_of(self, index: Tensor, like: Tensor, ledger: Ledger) -> Tensor:
        """f of some samples among those that are known, (B), with the dtype and on the device of `like`."""
        if self.sizes is None:
            total = float(ledger.known.sum())
        else:
            total = self._total if ledger.complete else float(self.sizes.double()[ledger.known].sum())
        return self.sizes_of(index, like) / total

    def fresh(self, ledger: Ledger) -> bool:
        """Whether a sample's own fresh score decides its density."""
        return self.of_sample is None and (ledger.complete or (ledger.filled and int(ledger.known.sum()) > 1))

    def count(self, ledger: Ledger) -> int:
        """Units that have a score, 1 where none has."""
        if self.of_sample is None:
            return max(1, int(ledger.known.sum()))
        return max(1, len(self.of_sample[ledger.known].unique()))

    def problem(self, ledger: Ledger) -> tuple[dict[str, Tensor], Tensor | None]:
        """Scores by name and base weights of the units that have a score, for `AmbiguitySet.solve`."""
        scores = ledger.scores()
        if self.of_sample is None and ledger.complete:
            return scores, None if self.sizes is None else self.base(len(ledger))
        mass = self._sum(self.base(len(ledger)) * ledger.known)
        there = mass > 0
        if not bool(there.any()):  # nothing is known: all are alike
            return {name: values[:1] for name, values in scores.items()}, None
        known = self.base(len(ledger)) * ledger.known
        means = {name: (self._sum(known * values) / mass)[there] for name, values in scores.items()}
        return means, mass[there] / mass.sum()

    def density(self, ledger: Ledger, weights: Tensor) -> Tensor:
        """q/f of all samples, [n], from the weights of the units of `problem`."""
        mass = self._sum(self.base(len(ledger)) * ledger.known)
        there = mass > 0
        density = torch.ones_like(mass)
        if bool(there.any()):
            density[there] = weights / (mass[there] / mass.sum())
        return density if self.of_sample is None else density[self.of_sample]

    def rows(self, ledger: Ledger, weights: Tensor) -> list[dict[str, Any]]:
        """A row a group that has a score; no rows for samples."""
        if self.of_sample is None:
            return []
        scores, base = self.problem(ledger)
        assert base is not None
        counts = torch.bincount(self.of_sample, minlength=len(self.names))
        there = self._sum(self.base(len(ledger)) * ledger.known) > 0
        columns = {
            "group": [name for name, known in zip(self.names, there.tolist(), strict=True) if known],
            "samples": counts[there].tolist(),
            **{name: values.tolist() for name, values in scores.items()},
            "f": base.tolist(),
            "q": weights.tolist(),
            "density": (weights / base).tolist(),
        }
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def _sum(self, values: Tensor) -> Tensor:
        """Totals of the units, [units]."""
        if self.of_sample is None:
            return values
        return torch.zeros(len(self.names), dtype=torch.float64).index_add(0, self.of_sample, values)
