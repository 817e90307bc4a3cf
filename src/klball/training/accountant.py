"""The accountant: the latest score of every training sample, and the adversary's answer to them."""

import json
import logging
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from klball.robust.ambiguity import AmbiguitySet, CertaintyKLBall, Empirical
from klball.robust.dual import DualSolution, InfeasibleError
from klball.robust.warm import resolve
from klball.training.drift import Drift

logger = logging.getLogger(__name__)

LEDGER_FILE = "ledger.safetensors"
HISTORY_FILE = "history.parquet"
DRAWS = "draws"  # a key of the ledger file's metadata
RELAXED_MARGIN = 0.01  # of the way from γ_min to the mean certainty


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
        self.solution: DualSolution | None = None
        self.multipliers: tuple[float, float] | None = None  # (λ, β) that the next step starts from

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

    def solve(self) -> DualSolution:
        """The adversary's multipliers for the coming optimizer step, frozen until the next call."""
        if self.solution is None:
            self.solution = self._solve()
        return self.solution

    def begin_step(self) -> None:
        """Solve anew on the entries as they are now; static weights stay."""
        if not self.frozen:
            self.solution = None
        solution = self.solve()
        unheard = self.ambiguity.max_weight is None and not self._heard
        if unheard and solution.lambda_ == 0 and 2 * solution.ess < len(self.log_likelihood):
            self._heard = True
            logger.warning(
                "epsilon = %s lets the adversary put all weight on %.3g of %d samples: steps without them "
                "have no gradient; lower epsilon, or set max_weight",
                *(self.ambiguity.epsilon, solution.ess, len(self.log_likelihood)),
            )

    def weights(self) -> Tensor:
        """The adversary's weights of all samples, [n]; `solve` keeps them only where a step needs them."""
        weights = self.solve().weights
        return self._solve_afresh().weights if weights is None else weights

    def _solve(self) -> DualSolution:
        """From the last multipliers, else afresh; nothing but the entries and these decides the answer."""
        solution = self._solve_again() or self._solve_afresh()
        between = 0 < solution.lambda_ < math.inf and math.isfinite(solution.beta)
        self.multipliers = None
        if between and not self.frozen:
            solution = replace(solution, weights=None)  # `density` is a formula there
            if self.ambiguity.max_weight is None:
                self.multipliers = (solution.lambda_, solution.beta)
        return solution

    def _solve_again(self) -> DualSolution | None:
        """One or two passes over the entries as they lie: a shift of them all moves only μ and the means."""
        if self.multipliers is None or self.frozen:
            return None
        (g, c), gamma = self.drift.shift.tolist(), self.ambiguity.gamma
        found = resolve(
            self.log_likelihood,
            None if gamma is None else self.certainty,
            self.base_weights,
            epsilon=self.ambiguity.epsilon,
            gamma=None if gamma is None else gamma - c,
            start=self.multipliers,
        )
        if found is None:
            return None
        return replace(
            found,
            worst_case=found.worst_case + g,
            dual_value=found.dual_value + g,
            mu=found.mu + g + found.beta * c,
            certainty=None if found.certainty is None else found.certainty + c,
        )

    def _solve_afresh(self) -> DualSolution:
        g, c = self.scores()
        try:
            return self.ambiguity.solve(g, c, self.base_weights)
        except InfeasibleError as error:
            if not self.relax or c is None:
                raise
            mean = float(c.mean()) if self.base_weights is None else float(self.base_weights @ c)
            gamma = error.gamma_min + RELAXED_MARGIN * max(mean - error.gamma_min, 1e-6)
            if self.relaxed == 0:
                logger.warning(
                    "gamma = %s has become infeasible (γ_min = %.4f): relaxed to %.4f, and again whenever "
                    "that happens; see gamma_relaxed in the log",
                    *(self.ambiguity.gamma, error.gamma_min, gamma),
                )
            if not (self.frozen and self.relaxed):  # a resumed run solves static weights again
                self.relaxed += 1
            ball = CertaintyKLBall(self.ambiguity.epsilon, gamma, self.ambiguity.max_weight)
            return ball.solve(g, c, self.base_weights)

    def visit(self, samples: list[int]) -> Tensor:
        """Mark samples as visited in this epoch; True where it is the first time. −1 is padding."""
        first = torch.zeros(len(samples), dtype=torch.bool)
        for position, sample in enumerate(samples):
            if sample >= 0 and not self.visited[sample]:
                first[position] = self.visited[sample] = True
        return first

    def density(self, index: Tensor, log_likelihood: Tensor, certainty: Tensor | None) -> Tensor:
        """q_i/f_i of visited samples from their fresh scores, float64, mean about 1.

        min(c, exp((μ − g − βC)/λ)); where λ is 0 or ∞, or weights are static, the ledger's own.
        """
        solution = self.solve()
        if self.frozen or not 0 < solution.lambda_ < math.inf or not math.isfinite(solution.mu):
            weights = solution.weights[index]
            return (
                weights * len(self.log_likelihood)
                if self.base_weights is None
                else (weights / self.base_weights[index])
            )
        score = log_likelihood.double()
        if certainty is not None and solution.beta > 0:
            score = score + solution.beta * certainty.double()
        density = ((solution.mu - score) / solution.lambda_).exp()
        if self.ambiguity.max_weight is not None:
            density = density.clamp(max=self.ambiguity.max_weight)
        # no q_i exceeds 1, however far a score has moved since the multipliers were solved
        base = 1 / len(self.log_likelihood) if self.base_weights is None else self.base_weights[index]
        return torch.minimum(density, 1 / torch.as_tensor(base, dtype=density.dtype))

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
        s = self.solve()
        if isinstance(self.ambiguity, Empirical):
            return {"kl": s.kl, "ess_ratio": s.ess / len(self.log_likelihood)}
        report = {
            "lambda": s.lambda_,
            "beta": s.beta,
            "kl": s.kl,
            "ess_ratio": s.ess / len(self.log_likelihood),
            "robust_loss": -s.worst_case,
            "rescores": float(self.rescores),
        }
        if isinstance(self.ambiguity, CertaintyKLBall):
            report |= {"certainty": float(s.certainty), "gamma_relaxed": float(self.relaxed)}
        return report

    def save(self, folder: Path) -> None:
        """Ledger and history into a checkpoint folder, before the checkpoint counts as complete."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {"log_likelihood": self.log_likelihood, "visited": self.visited, **self.drift.tensors()}
        tensors["counts"] = torch.tensor([self.relaxed, self.rescores, self.num_tokens])
        if self.certainty is not None:
            tensors["certainty"] = self.certainty
        if self.multipliers is not None:
            tensors["multipliers"] = torch.tensor(self.multipliers, dtype=torch.float64)
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
        start = tensors.get("multipliers")
        self.multipliers = None if start is None else (float(start[0]), float(start[1]))
        self.history = pq.read_table(folder / HISTORY_FILE).to_pylist()
        self.solution = None

    def _refuse_other_draws(self, path: Path) -> None:
        with safe_open(path, "pt") as file:
            drawn = json.loads((file.metadata() or {}).get(DRAWS, "{}"))
        for name, value in self.draws.items():
            if drawn.get(name) != value:
                raise ValueError(
                    f"{path.parent} lies within an epoch that was drawn with {name} = {drawn.get(name)}, not "
                    f"{value}: resume it as it was, or from an epoch's end"
                )
