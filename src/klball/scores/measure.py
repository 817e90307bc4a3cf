"""What a score measures and in which unit: sentences, tables and figures name both."""

from dataclasses import dataclass

import numpy as np

LIKELIHOOD = "log-likelihood"
ACCURACY = "accuracy"


@dataclass(frozen=True)
class Measure:
    """A number of which more is better; of a loss, the score is minus it.

    noun: what is measured: "log-likelihood", "accuracy", a column. unit: "nats per token", "accuracy",
    "points of COLUMN".
    """

    noun: str
    unit: str
    loss: bool = False

    @property
    def score(self) -> str:
        """What the score is called, of which more is better."""
        return f"−{self.noun}" if self.loss else self.noun

    @property
    def title(self) -> str:
        """What is measured and its unit, for tables and axes."""
        return self._titled(self.noun)

    @property
    def score_title(self) -> str:
        """The same of the score."""
        return self._titled(self.score)

    def _titled(self, name: str) -> str:
        unit = {ACCURACY: "", f"points of {self.noun}": "points"}.get(self.unit, self.unit)
        return f"{name}, {unit}" if unit else name

    @property
    def better(self) -> str:
        """How the better of two values compares."""
        return "lower" if self.loss else "higher"

    def own(self, score: float) -> float:
        """A score as the source's own number, the loss where it is one."""
        return 0.0 - score if self.loss else score

    def amount(self, size: float) -> str:
        """A size with its unit."""
        return f"{size:.3g} {'in ' if self.unit == ACCURACY else ''}{self.unit}"

    @property
    def profile(self) -> tuple[str, int]:
        """What the values of a robust profile are called, and their sign against the worst-case loss."""
        if self.noun == LIKELIHOOD:
            return f"worst-case loss L(ε), {self.unit}", 1
        return f"worst-case {self.title}", 1 if self.loss else -1


PER_TOKEN = Measure(LIKELIHOOD, "nats per token")
PER_BYTE = Measure(LIKELIHOOD, "nats per byte")


def are_right_or_wrong(scores: np.ndarray) -> bool:
    """Whether all are 0 and 1, or as losses 0 and −1."""
    return bool(np.isin(scores, (0.0, 1.0)).all() or np.isin(scores, (0.0, -1.0)).all())


def points(noun: str, loss: bool = False) -> Measure:
    """The measure of a column of which nothing else is known."""
    return Measure(noun, f"points of {noun}", loss)


def accuracy(noun: str) -> Measure:
    """Right or wrong, 1 or 0."""
    return Measure(ACCURACY if noun in (ACCURACY, "acc") else f"{ACCURACY} ({noun})", ACCURACY)
