"""Differences of means, beside the worst cases: over items, and over rounds on these items."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal

import numpy as np

from klball.comparison.calibration import LEAST_ESS, LEVEL, supports_over_rounds
from klball.comparison.p_values import holm, p_in_words, p_of_f
from klball.comparison.rounds import RoundScores
from klball.comparison.verdicts import LEAD, bounds_in_words
from klball.scores.measure import Measure
from klball.scores.tails import difference, mean_interval, mean_of


@dataclass(frozen=True)
class MeanDifference:
    """Mean score of a minus that of b, over all items and rounds, with its t interval of 95 %.

    over: what is drawn anew, items (rounds averaged) or rounds (items held fixed); count: how many there
    are. −log10 p of no difference, plain and by Holm over pairs. NaN for a single draw, or equal ones.
    """

    model_a: str
    model_b: str
    over: Literal["items", "rounds"]
    count: int
    value: float
    low: float
    high: float
    minus_log10_p: float
    minus_log10_holm: float = math.nan

    @property
    def better(self) -> int | None:
        """Of b against a: 1, −1, 0 for not clearly different; None where too few are drawn to tell."""
        enough = self.count >= LEAST_ESS if self.over == "items" else _enough(self.count)
        if not enough:
            return None
        alike = self.low == self.high and self.value != 0  # each and every one says so
        clear = alike or self.minus_log10_holm >= -math.log10(LEVEL)
        return int(-np.sign(self.value)) if clear else 0

    def sentence(self, measure: Measure) -> str:
        """The claim in full."""
        how = {0: "Undecided: on", None: "Descriptive: on"}.get(self.better, "On")
        if self.value == 0:
            return f"On average {self.model_a} and {self.model_b} have the same {measure.noun}."
        pair = (self.model_a, self.model_b)
        better, worse = reversed(pair) if self.value < 0 else pair
        only, said = "" if self.over == "items" else ", on these items only", "no interval"
        if not math.isnan(self.minus_log10_holm):
            interval = bounds_in_words(*pair, self.low, self.high, self.value, measure)
            said = f"{interval}, Holm {p_in_words(self.minus_log10_holm)}"
        over = self.over if self.count != 1 else self.over.removesuffix("s")
        return (
            f"{how} average {better} has a {measure.better} {measure.noun} than {worse}, by "
            f"{measure.amount(abs(self.value))} (over {self.count} {over}{only}: {said})."
        )


def _enough(rounds: int) -> bool:
    return supports_over_rounds("paired_t", LEAD, rounds)


def mean_differences(scores: RoundScores) -> list[MeanDifference]:
    """Of every pair of models, over items and then over rounds; paired t."""
    pairs = [
        (scores.models[a], scores.models[b], difference(*scores.log_likelihood[[a, b]]))
        for a, b in combinations(range(len(scores.models)), 2)
    ]
    over_items = [_difference(a, b, "items", d.mean(axis=0)) for a, b, d in pairs]
    over_rounds = [_difference(a, b, "rounds", d.mean(axis=1)) for a, b, d in pairs]
    return _corrected(over_items) + _corrected(over_rounds)


def _difference(a: str, b: str, over: Literal["items", "rounds"], d: np.ndarray) -> MeanDifference:
    n, value = len(d), mean_of(d)
    p = math.nan
    if n > 1 and (sd := float(d.std(ddof=1))) > 0:
        p = p_of_f((value / sd) ** 2 * n, 1, n - 1)
    return MeanDifference(a, b, over, n, value, *mean_interval(d, 2), p)


def _corrected(pairs: Sequence[MeanDifference]) -> list[MeanDifference]:
    adjusted = holm([pair.minus_log10_p for pair in pairs])
    return [replace(pair, minus_log10_holm=float(h)) for pair, h in zip(pairs, adjusted, strict=True)]
