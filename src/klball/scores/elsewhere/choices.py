"""Which of the choices that lm-evaluation-harness scored is right: its log names it by place or by text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Choices:
    """One question: log-likelihoods [choices] in nats, and what its row says of the right one.

    right: What is called right; texts: what every choice reads; accurate: whether the likeliest is right.
    """

    log_likelihoods: np.ndarray
    right: str
    texts: Sequence[str]
    accurate: bool | None

    @property
    def likeliest(self) -> int:
        return int(self.log_likelihoods.argmax())

    def by_place(self) -> int | None:
        """`right` as a place from 0."""
        place = int(self.right) if self.right.isdecimal() else -1
        return place if 0 <= place < len(self.log_likelihoods) else None

    def by_text(self) -> int | None:
        """The only choice that reads like `right`."""
        places = [k for k, text in enumerate(self.texts) if text.strip() == self.right.strip()]
        return places[0] if len(places) == 1 else None

    def fits(self, place: int | None) -> bool:
        return place is not None and self.accurate in (None, place == self.likeliest)


def right_choices(questions: Sequence[Choices | None]) -> list[int | None]:
    """The right choice of every question, by place or by text, as fits the accuracies of all; else None.

    Without accuracies the two must not contradict each other: choices such as 2, 0, 1 are places of others.
    """
    asked = [one for one in questions if one is not None]
    places, texts = [one.by_place() for one in asked], [one.by_text() for one in asked]
    ways = [found for found in (places, texts) if all(map(Choices.fits, asked, found))]
    if len(ways) == 2 and places != texts and not any(one.accurate is not None for one in asked):
        ways = []
    if not ways:
        return [None] * len(questions)
    found = iter(ways[0])
    return [None if one is None else next(found) for one in questions]


def of_right(choices: Choices | None, right: int | None) -> dict[str, Any]:
    """`choice`, `num_choices`; where it is known also the right one's `log_likelihood`, `choice_log_prob`."""
    if choices is None:
        return {}
    found = choices.log_likelihoods
    of_choice = {"choice": choices.likeliest, "num_choices": len(found)}
    if right is None:
        return of_choice
    at, top = float(found[right]), float(found.max())
    return {
        "log_likelihood": at,
        "choice_log_prob": at - top - float(np.log(np.exp(found - top).sum())),
        **of_choice,
    }


def texts_of(arguments: Any) -> list[str]:
    """The continuations of a row's `arguments`, a mapping by request or in older versions a list of lists."""
    requests = arguments.values() if isinstance(arguments, Mapping) else arguments or ()
    pairs = [[*one.values()] if isinstance(one, Mapping) else one for one in requests]
    return [str(pair[1]) for pair in pairs if isinstance(pair, list | tuple) and len(pair) > 1]
