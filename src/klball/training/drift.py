"""How the scores in the ledger move between their visits: drift is not hardness."""

import math

import torch
from torch import Tensor

GAIN, PACE_GAIN = 0.5, 0.1  # of a visit's gap that goes into the shift, and into its pace
FASTEST = 0.3  # in units of λ: no more of a step's pace is believed
DEMAND = 0.4  # in units of λ: so much drift is worth a full re-scoring; a pace alone is not
AN_EPOCH = 20  # so often at most
LOOK_BACK = 0.1  # radii above it need the lift from the first epoch on


class Drift:
    """What is added to every entry since the last full re-scoring, for g and C.

    At each visit the gap between a batch's fresh scores and its own entries is free of sampling noise:

        pace ← pace + gap/10, at most .3 λ (.3 λ/β for C)      what the coming step moves all scores by
        shift ← shift + gap/2 + pace                           added to all entries: a local linear trend
        entry ← fresh score + pace + lift − shift

    lift: what training on a sample moves its score by beyond the others'. Gaps do not show it, because they
    are seen before the step: it is learnt at each re-scoring from the samples visited since the last, or by
    looking back at those alone, and falls with the learning rate.
    offset: the first gap after a re-scoring, by the same model: not drift, but what dropout does.
    """

    def __init__(self, num_samples: int):
        zeros = torch.zeros(2, dtype=torch.float64)
        self.shift, self.pace, self.lift, self.offset = (zeros.clone() for _ in range(4))
        self.visited = torch.zeros(num_samples, dtype=torch.bool)  # since the last re-scoring
        self.visits = 0
        self.prices = (math.inf, 0.0)  # λ, β at the last visit
        self.rate = 0.0  # the learning rate then

    def follow(self, gap: Tensor, lambda_: float, beta: float, learning_rate: float) -> None:
        """One visit's mean gap, [2], and what its step is made with."""
        if learning_rate < self.rate:
            self.lift *= learning_rate / self.rate
        self.prices, self.rate = (lambda_, beta), learning_rate
        self.visits += 1
        if self.visits == 1:
            self.offset = gap
            self.shift = gap + self.pace
            return
        fastest = FASTEST * lambda_ / torch.tensor([1.0, beta], dtype=torch.float64)
        self.pace = (self.pace + PACE_GAIN * gap).clamp(-fastest, fastest).nan_to_num(0.0)
        self.shift = self.shift + GAIN * gap + self.pace

    def demands_rescoring(self, steps_an_epoch: int) -> bool:
        """Whether all scores have moved so far that what the shift cannot see would change weights."""
        lambda_, beta = self.prices
        moved = self.shift - self.offset
        far = abs(float(moved[0] + beta * moved[1])) > DEMAND * lambda_
        return far and 0 < lambda_ < math.inf and self.visits * AN_EPOCH >= steps_an_epoch

    def restart(self, residuals: list[Tensor]) -> None:
        """After a re-scoring: fresh scores less what the entries foretold, [n] for each score."""
        contrast = bool(self.visited.any()) and not bool(self.visited.all())
        for k, residual in enumerate(residuals if contrast else []):
            common = residual[~self.visited].mean()
            self.lift[k] += residual[self.visited].mean() - common
            self.pace[k] += PACE_GAIN * (common + self.offset[k])
        self.shift = torch.zeros_like(self.shift)
        self.visited.zero_()
        self.visits = 0

    def looks_back(self, step: int, steps_an_epoch: int, epsilon: float) -> bool:
        """Whether a tenth of an epoch is over, whose samples tell the lift; at small radii it hardly matters."""
        due = step % steps_an_epoch == max(1, steps_an_epoch // 10)
        return due and epsilon > LOOK_BACK and bool(self.visited.any())

    def tensors(self) -> dict[str, Tensor]:
        """For the checkpoint."""
        names = {"shift": self.shift, "pace": self.pace, "lift": self.lift, "offset": self.offset}
        names |= {"visited_since": self.visited, "visits": torch.tensor(self.visits)}
        return names | {"prices": torch.tensor([*self.prices, self.rate], dtype=torch.float64)}

    def load(self, tensors: dict[str, Tensor]) -> None:
        self.shift, self.pace, self.lift = tensors["shift"], tensors["pace"], tensors["lift"]
        self.offset, self.visited = tensors["offset"], tensors["visited_since"]
        self.visits = int(tensors["visits"])
        lambda_, beta, self.rate = tensors["prices"].tolist()
        self.prices = (lambda_, beta)
