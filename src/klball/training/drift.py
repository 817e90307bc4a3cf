"""How the scores in the ledger move between their visits: drift is not hardness."""

import math

import torch
from torch import Tensor

from klball.adversary.solution import Solution

GAIN, PACE_GAIN = 0.5, 0.1  # of a visit's gap that goes into the shift, and into its pace
FASTEST = 0.4  # in units of λ: no more of a step's pace is believed
DEMAND = 0.3  # in units of λ: so much drift is worth a full re-scoring; a pace alone is not
ON_DEMAND = 20  # so often an epoch at most
REGULAR, PER_NAT = 10, 16  # so often an epoch at most, and for each nat of the weights' KL


class Drift:
    """What is added to every entry since the last full re-scoring, for g and C, and when the next one is due.

    At each visit the gap between a batch's fresh scores and its own entries is free of sampling noise:

        pace ← pace + gap/10, at most .4 λ (.4 λ/β for C)      what the coming step moves all scores by
        shift ← shift + gap/2 + pace                           added to all entries: a local linear trend
        entry ← fresh score + pace − shift

    offset: the first gap after a re-scoring, by the same model: not drift, but what dropout does.
    """

    def __init__(self) -> None:
        zeros = torch.zeros(2, dtype=torch.float64)
        self.shift, self.pace, self.offset = (zeros.clone() for _ in range(3))
        self.visits = 0  # since the last re-scoring
        self.scales = torch.full((2,), math.inf, dtype=torch.float64)  # λ and λ/β at the last visit
        self.kl = 0.0  # of the weights then

    def follow(self, gap: Tensor, solution: Solution) -> None:
        """One visit's mean gap, [2], and what its step was weighted by."""
        known = [solution.scales.get(name, math.inf) for name in ("score", "certainty")]
        self.scales = torch.tensor(known, dtype=torch.float64)
        self.kl = float(solution.kl)
        self.visits += 1
        if self.visits == 1:
            self.offset = self.offset + gap
            self.shift = self.offset + self.pace
            return
        fastest = FASTEST * self.scales
        self.pace = (self.pace + PACE_GAIN * gap).clamp(-fastest, fastest)
        self.shift = self.shift + GAIN * gap + self.pace

    def demands_rescoring(self, steps_an_epoch: int, grouped: bool = False) -> bool:
        """Whether a share of an epoch is over, or all scores have moved far.

        The further the weights are from f, the more they hang on what the shift cannot see: how samples part
        from each other. So there are ⌈16 KL⌉ re-scorings an epoch, from 1 to 10. Weights of groups are the
        solution's own, which no common shift changes.
        """
        regular = max(1, min(REGULAR, math.ceil(PER_NAT * self.kl)))
        moved = float(((self.shift - self.offset) / self.scales).sum())
        far = not grouped and abs(moved) > DEMAND and 0 < float(self.scales[0]) < math.inf
        return self.visits * (ON_DEMAND if far else regular) >= steps_an_epoch

    def restart(self, residuals: list[Tensor]) -> None:
        """After a re-scoring: fresh scores less what the entries foretold, [n] for each score."""
        for k, residual in enumerate(residuals if self.visits else []):
            self.pace[k] += PACE_GAIN * (residual.mean() + self.offset[k])
        self.shift = self.offset.clone()
        self.visits = 0

    def tensors(self) -> dict[str, Tensor]:
        """For the checkpoint."""
        state = {"shift": self.shift, "pace": self.pace, "offset": self.offset}
        state["scales"] = self.scales
        state["kl"] = torch.tensor(self.kl, dtype=torch.float64)
        return state | {"visits": torch.tensor(self.visits)}

    def load(self, tensors: dict[str, Tensor]) -> None:
        self.shift, self.pace, self.offset = tensors["shift"], tensors["pace"], tensors["offset"]
        self.scales, self.kl = tensors["scales"], float(tensors["kl"])
        self.visits = int(tensors["visits"])
