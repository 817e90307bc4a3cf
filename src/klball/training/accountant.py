"""The accountant: the latest score of every training sample, and the adversary's answer to them."""

import json
import logging
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
from klball.training.drift import Drift

logger = logging.getLogger(__name__)

LEDGER_FILE = "ledger.safetensors"
HISTORY_FILE = "history.parquet"
DRAWS = "draws"  # a key of the ledger file's metadata


@dataclass
class Accountant:
    """Ledger and adversary of one training run; every rank holds the same.

    Entries age while the model moves, so stale ones look hard: `drift` is added to all of them.

    base_weights: f ∝ T_i for token normalisation, None for 1/n. frozen: `reweight="static"`. draws: what
    decides which samples a step has (processes, batch size, seed, …): a resumed epoch goes on with the same.
    """

    ambiguity: AmbiguitySet
    log_likelihood: Tensor  # [n], float64, without the drift's shift
    certainty: Tensor | None
    base_weights: Tensor | None
    relax: bool
    frozen: bool
    draws: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.drift = Drift()
        self.visited = torch.zeros(len(self.log_likelihood), dtype=torch.bool)  # in this epoch
        self.relaxed = 0  # how often γ was
        self.rescores = 0  # how often all entries were replaced, the first time not counted
        self.num_tokens = 0  # trained on, prompts included
        self.history: list[dict[str, float]] = []
        self._heard = False  # the warning about a point mass
        self.solution: Solution | None = None
        self.start: Tensor | None = None  # what the next solve continues from

    def rewrite(self, log_likelihood: Tensor, certainty: Tensor | None) -> None:
        """Replace every entry after a full re-scoring."""
        fresh = [v for v in (log_likelihood, certainty) if v is not None]
        foretold = [v for v in self.scores() if v is not None]
        self.drift.restart([new - old for new, old in zip(fresh, foretold, strict=True)])
        self.log_likelihood = log_likelihood.contiguous()
        self.certainty = None if certainty is None else certainty.contiguous()
        self.solution = None

    def scores(self) -> tuple[Tensor, Tensor | None]:
        """The entries, shift included: g and C, [n]."""
        certainty = None if self.certainty is None else self.certainty + self.drift.shift[1]
        return self.log_likelihood + self.drift.shift[0], certainty

    def solve(self) -> Solution:
        """The adversary's answer for the coming optimizer step, frozen until the next call."""
        if self.solution is None:
            self.solution = self._solve(self.start)
            self.start = None if self.frozen else self.solution.start
        return self.solution

    def begin_step(self) -> None:
        """Solve anew on the entries as they are now; static weights stay."""
        if not self.frozen:
            self.solution = None
        self._tell_of_point_mass(self.solve())

    def _tell_of_point_mass(self, solution: Solution) -> None:
        if self._heard or solution.status != "point_mass" or 2 * solution.ess >= len(self.log_likelihood):
            return
        self._heard = True
        logger.warning(
            "%s lets all weight lie on %.3g of %d samples: steps without them have no gradient: "
            "take a smaller radius, or set max_weight",
            *(self.ambiguity, solution.ess, len(self.log_likelihood)),
        )

    def weights(self) -> Tensor:
        """The adversary's weights of all samples, [n]; a warm solve does not build them."""
        weights = self.solve().weights
        if weights is None:
            weights = self._solve(start=None).weights
        assert weights is not None
        return weights

    def _problem(self) -> dict[str, Tensor]:
        g, c = self.scores()
        return {"score": g} if c is None else {"score": g, "certainty": c}

    def _solve(self, start: Tensor | None) -> Solution:
        """Nothing but the entries and the last solution decides the answer."""
        try:
            return self.ambiguity.solve(self._problem(), self.base_weights, start=start)
        except InfeasibleError as error:
            if not self.relax:
                raise
            wider = self.ambiguity.relaxed(error)
            if self.relaxed == 0:
                logger.warning(
                    "%s has become infeasible: relaxed to %s, and again whenever that happens; see "
                    "gamma_relaxed in the log",
                    *(self.ambiguity, wider),
                )
            if not (self.frozen and self.relaxed):  # a resumed run solves static weights again
                self.relaxed += 1
            return wider.solve(self._problem(), self.base_weights)

    def visit(self, samples: list[int]) -> Tensor:
        """Mark samples as visited in this epoch; True where it is the first time. −1 is padding."""
        first = torch.zeros(len(samples), dtype=torch.bool)
        for position, sample in enumerate(samples):
            if sample >= 0 and not self.visited[sample]:
                first[position] = self.visited[sample] = True
        return first

    def density(self, index: Tensor, log_likelihood: Tensor, certainty: Tensor | None) -> Tensor:
        """q_i/f_i of visited samples from their fresh scores, float64, mean about 1; static ones' own."""
        solution = self.solve()
        n = len(self.log_likelihood)
        base = torch.full((len(index),), 1 / n, dtype=torch.float64)
        if self.base_weights is not None:
            base = self.base_weights[index]
        if self.frozen:
            return self.weights()[index] / base
        fresh = {"score": log_likelihood.double(), "unit": index, "base": base}
        if certainty is not None:
            fresh["certainty"] = certainty.double()
        return solution.density(fresh)

    def record(self, index: Tensor, log_likelihood: Tensor, certainty: Tensor | None) -> None:
        """Enter the fresh scores of one optimizer step's samples, and shift all the others."""
        if self.frozen or len(index) == 0:
            return
        pairs = [(log_likelihood.double(), self.log_likelihood)]
        if certainty is not None and self.certainty is not None:
            pairs.append((certainty.double(), self.certainty))
        gap = torch.zeros(2, dtype=torch.float64)
        for k, (fresh, entries) in enumerate(pairs):
            gap[k] = (fresh - entries[index] - self.drift.shift[k]).mean()
        self.drift.follow(gap, self.solve())
        for k, (fresh, entries) in enumerate(pairs):
            entries[index] = fresh + self.drift.pace[k] - self.drift.shift[k]

    def summary(self) -> dict[str, float]:
        """What every logging step reports of the adversary."""
        solution = self.solve()
        report = {
            **self.ambiguity.summary(solution),
            "kl": float(solution.kl),
            "ess_ratio": float(solution.ess) / len(self.log_likelihood),
        }
        if self.ambiguity.needs:
            report |= {"robust_loss": -float(solution.worst_case), "rescores": float(self.rescores)}
        if "certainty" in self.ambiguity.needs:
            report["gamma_relaxed"] = float(self.relaxed)
        return report

    def save(self, folder: Path) -> None:
        """Ledger and history into a checkpoint folder, before the checkpoint counts as complete."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {"log_likelihood": self.log_likelihood, "visited": self.visited, **self.drift.tensors()}
        tensors["counts"] = torch.tensor([self.relaxed, self.rescores, self.num_tokens])
        if self.certainty is not None:
            tensors["certainty"] = self.certainty
        if self.start is not None:
            tensors["start"] = self.start
        save_file(tensors, folder / LEDGER_FILE, metadata={DRAWS: json.dumps(self.draws)})
        self.save_history(folder / HISTORY_FILE)

    def save_history(self, path: Path) -> None:
        """One row a step: λ, β, KL, ESS/n, weights, losses, entropy."""
        pq.write_table(pa.Table.from_pylist(self.history), path)

    def load(self, folder: Path, within_epoch: bool) -> None:
        """Continue from a checkpoint, whose epoch goes on with other samples where `within_epoch`.

        Raises ValueError if its ledger is of other data, or its epoch was drawn in another way.
        """
        path = folder / LEDGER_FILE
        if not path.is_file():
            raise ValueError(f"{folder} has no ledger: it was not written by RobustSFTTrainer")
        tensors: dict[str, Any] = load_file(path)
        if len(tensors["log_likelihood"]) != len(self.log_likelihood):
            raise ValueError(
                f"the ledger in {folder} has {len(tensors['log_likelihood'])} samples, "
                f"the training data {len(self.log_likelihood)}"
            )
        if "kl" not in tensors:
            raise ValueError(f"{path} was written by an earlier version of klball: start the run again")
        if within_epoch:
            self._refuse_other_draws(path)
        self.log_likelihood, self.certainty = tensors["log_likelihood"], tensors.get("certainty")
        self.visited = tensors["visited"]
        self.drift.load(tensors)
        self.relaxed, self.rescores, self.num_tokens = tensors["counts"].tolist()
        self.history = pq.read_table(folder / HISTORY_FILE).to_pylist()
        self.start, self.solution = tensors.get("start"), None

    def _refuse_other_draws(self, path: Path) -> None:
        with safe_open(path, "pt") as file:
            drawn = json.loads((file.metadata() or {}).get(DRAWS, "{}"))
        for name, value in self.draws.items():
            if drawn.get(name) != value:
                raise ValueError(
                    f"{path.parent} lies within an epoch that was drawn with {name} = {drawn.get(name)}, not "
                    f"{value}: resume it as it was, or from an epoch's end"
                )
