"""The accountant: a ledger, and the adversary's answer to its scores."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from klball.adversary.dual import InfeasibleError
from klball.adversary.sets import AmbiguitySet
from klball.adversary.solution import Solution
from klball.files import write_table
from klball.training.ledger import Ledger
from klball.training.returned import answered, distinct, row_of_density, told
from klball.training.units import Units

logger = logging.getLogger(__name__)

LEDGER_FILE = "ledger.safetensors"
HISTORY_FILE = "history.parquet"
DRAWS = "draws"  # a key of the ledger file's metadata
ROWS, FAMILY, NORMALIZATION = "rows", "family", "normalization"  # and three in it


def about_ledger(path: Path) -> dict[str, Any]:
    """What a ledger's file says of itself: its family, and what decided its draws."""
    with safe_open(path, "pt") as file:
        return json.loads((file.metadata() or {}).get(DRAWS, "{}"))


@dataclass
class Accountant:
    """Ledger and adversary of one training run; every rank holds the same.

    units: what the adversary weighs, the ledger's samples or groups of them, and their base weights.
    frozen: `reweight="static"`. draws: what decides which samples a step has (processes, batch size, seed,
    …): a resumed epoch goes on with the same. rows, family, normalization: whose scores these are; a
    checkpoint of others is refused.
    """

    ambiguity: AmbiguitySet
    ledger: Ledger
    units: Units
    relax: bool = True
    frozen: bool = False
    draws: dict[str, Any] = field(default_factory=dict)
    rows: str = ""
    family: str = ""
    normalization: str = ""

    def __post_init__(self) -> None:
        self.relaxed = 0  # how often γ was
        self.rescores = 0  # how often all entries were replaced, the first time not counted
        self.num_tokens = 0  # trained on, prompts included
        self.history: list[dict[str, float]] = []
        self.share = 1.0  # of the radius, in a warm-up
        self.solution: Solution | None = None
        self.start: Tensor | None = None  # what the next solve continues from
        self._recorded = False  # the ledger knows more than the solution
        self._table: Tensor | None = None  # the solution's density of every sample
        self._places: Tensor | None = None  # of the samples in the solved problem
        self._heard = False  # the warning about a point mass

    def rewrite(self, scores: Mapping[str, Tensor]) -> None:
        """Replace every entry after a full re-scoring."""
        self.ledger.rewrite(scores)
        self.solution = None

    def begin_step(self, share: float = 1.0) -> None:
        """Solve anew, at this share of the radius, on the entries as they are now; static weights stay."""
        if not self.frozen:
            self.solution, self.share = None, share
        self._tell_of_point_mass(self.solve())

    def solve(self) -> Solution:
        """The adversary's answer for the coming optimizer step, frozen until the next `begin_step`."""
        if self.solution is None:
            self._table, self._places, self._recorded = None, None, False
            self.solution = self._solve(self.start)
            self.start = None if self.frozen else self.solution.start
        return self.solution

    def _solve(self, start: Tensor | None, counted: bool = True) -> Solution:
        """Nothing but the entries and the last solution decides the answer; counted: in the log."""
        ambiguity = self.ambiguity if self.share >= 1 else self.ambiguity.scaled(self.share)
        scores, base_weights = self.units.problem(self.ledger)
        try:
            return answered(ambiguity, scores, ambiguity.solve(scores, base_weights, start=start))
        except InfeasibleError as error:
            if not self.relax:
                raise
            wider = ambiguity.relaxed(error)
            if not counted:
                return answered(wider, scores, wider.solve(scores, base_weights))
            if self.relaxed == 0:
                logger.warning(
                    "%s has become infeasible: relaxed to %s, and again whenever that happens; see "
                    "gamma_relaxed in the log",
                    *(ambiguity, wider),
                )
            if not (self.frozen and self.relaxed):  # a resumed run solves static weights again
                self.relaxed += 1
            return answered(wider, scores, wider.solve(scores, base_weights))

    def _tell_of_point_mass(self, solution: Solution) -> None:
        total = self.units.count(self.ledger)
        all_known = self.ledger.complete or bool(self.units.names)  # of others a step has gradients
        if self._heard or not all_known or solution.status != "point_mass" or 2 * solution.ess >= total:
            return
        self._heard = True
        logger.warning(
            "%s lets all weight lie on %.3g of %d %s: steps without them have no gradient: "
            "take a smaller radius, or set max_weight",
            *(self.ambiguity, solution.ess, total, self.units.name),
        )

    def unit_weights(self) -> Tensor:
        """q of the units that have a score, for entries as they are now; a warm solve does not build it."""
        current = None if self._recorded else self.solution
        weights = None if current is None else current.weights
        if weights is None:  # the answer of the step stays what it is
            weights = self._solve(start=None, counted=False).weights
        assert weights is not None
        return weights

    def weights(self) -> Tensor:
        """The adversary's weights of all samples, [n], sum 1: in proportion to their density times f."""
        weights = self.units.density(self.ledger, self.unit_weights()) * self.units.base(len(self.ledger))
        return weights / weights.sum()  # of groups that are known in part it is not 1

    def density(self, index: Tensor, scores: Mapping[str, Tensor]) -> Tensor:
        """q/f of visited samples from their fresh scores, on their device; static ones' and groups' own.

        index: (B). Mean about 1 over a step; 1 where a unit has no entry yet.
        """
        solution = self.solve()
        if not self.frozen and self.units.fresh(self.ledger):
            base = self.units.base_of(index, scores["score"], self.ledger)
            unit = index if self.ledger.complete else self._places_on(index.device)[index]
            return row_of_density(
                self.ambiguity, solution.density({**scores, "unit": unit, "base": base}), index
            )
        if self._table is None or self._table.device != index.device:
            table = self.units.density(self.ledger, self.unit_weights())
            self._table = table.to(scores["score"].dtype).to(index.device)
        return self._table[index]

    def _places_on(self, device: torch.device) -> Tensor:
        if self._places is None or self._places.device != device:
            self._places = self.ledger.places().to(device)
        return self._places

    def record(self, index: Tensor, scores: Mapping[str, Tensor]) -> None:
        """Enter the fresh scores of one optimizer step's samples, and shift all the others."""
        if not self.frozen and len(index):
            self.ledger.record(index, scores, self.solve())
            self._recorded = True

    def summary(self) -> dict[str, float]:
        """What every logging step reports of the adversary."""
        solution = self.solve()
        report = {
            "kl": float(solution.kl),
            "ess_ratio": float(solution.ess) / self.units.count(self.ledger),
        }
        if self.ambiguity.needs:
            report |= {"robust_loss": -float(solution.worst_case), "rescores": float(self.rescores)}
        if "certainty" in self.ambiguity.needs:
            report["gamma_relaxed"] = float(self.relaxed)
        return distinct(told(self.ambiguity, "summary", solution), report)

    def group_rows(self) -> list[dict[str, Any]]:
        """A row a group: its samples, score, share of the data f, weight q and q/f. None without groups."""
        return self.units.rows(self.ledger, self.unit_weights())

    def save(self, folder: Path, **more: Tensor) -> None:
        """Ledger and history into a checkpoint folder, before the checkpoint counts as complete."""
        folder.mkdir(parents=True, exist_ok=True)
        counts = torch.tensor([self.relaxed, self.rescores, self.num_tokens])
        tensors = {**self.ledger.tensors(), **more, "counts": counts}
        if self.start is not None:
            tensors["start"] = self.start
        about = json.dumps(  # one key: of several the order is random
            {**self.draws, ROWS: self.rows, FAMILY: self.family, NORMALIZATION: self.normalization}
        )
        save_file(tensors, folder / LEDGER_FILE, metadata={DRAWS: about})
        self.save_history(folder / HISTORY_FILE)

    def save_history(self, path: Path) -> None:
        """One row a step: λ, β, KL, ESS/n, weights, losses, entropy; null of what a step had none of."""
        names = dict.fromkeys(name for row in self.history for name in row)
        write_table(pa.table({name: [row.get(name) for row in self.history] for name in names}), path)

    def load(self, folder: Path, within_epoch: bool, more: Sequence[str] = ()) -> dict[str, Tensor]:
        """Continue from a checkpoint, whose epoch goes on with other samples where `within_epoch`.

        Returns the tensors named by `more`. Raises ValueError if the ledger is of other data, or its epoch
        was drawn in another way.
        """
        path = folder / LEDGER_FILE
        if not path.is_file():
            raise ValueError(f"{folder} has no ledger: it was not written by a robust trainer")
        tensors: dict[str, Any] = load_file(path)
        about = about_ledger(path)
        if len(tensors["log_likelihood"]) != len(self.ledger):
            raise ValueError(
                f"the ledger in {folder} has {len(tensors['log_likelihood'])} samples, "
                f"the training data {len(self.ledger)}"
            )
        if about.get(ROWS) != self.rows:
            raise ValueError(
                f"the ledger in {folder} is of other rows, or of these in another order: resume on those it "
                "was written for"
            )
        if missing := [name for name in more if name not in tensors]:
            raise ValueError(f"{folder} was written by a trainer of another family: it has no {missing[0]}")
        if within_epoch:
            self._refuse_other_draws(folder, about)
        self._refuse_other_scores(folder, about, tensors)
        self.ledger.load(tensors)
        self.relaxed, self.rescores, self.num_tokens = tensors["counts"].tolist()
        self.history = pq.read_table(folder / HISTORY_FILE).to_pylist()
        self.start, self.solution = tensors.get("start"), None
        return {name: tensors[name] for name in more}

    def _refuse_other_scores(
        self, folder: Path, about: Mapping[str, Any], tensors: Mapping[str, Any]
    ) -> None:
        saved = about.get(NORMALIZATION)
        if saved != self.normalization:
            raise ValueError(
                f"the scores in {folder} are of normalization={saved!r}, not {self.normalization!r}: resume "
                "it as it was"
            )
        if absent := [name for name in self.ledger.names_on_disk() if name not in tensors]:
            raise ValueError(
                f"the ledger in {folder} has no {absent[0]}, which the set needs: resume it as it was"
            )

    def _refuse_other_draws(self, folder: Path, drawn: Mapping[str, Any]) -> None:
        for name, value in self.draws.items():
            if drawn.get(name) != value:
                raise ValueError(
                    f"{folder} was drawn with {name} = {drawn.get(name)}, not {value}, which "
                    "would give its epochs other samples: resume it as it was, or set ignore_data_skip"
                )
