"""Rewards of reinforcement learning, called as TRL calls reward functions; none runs what a model wrote.

    reward(prompts, completions, completion_ids, **columns) → a number a completion, or None: unscorable

`completion_finished` is a column that RobustGRPOTrainer adds: a completion that was cut at the limit, or
whose thought is still open, is no finished answer and gets 0, even if its last number is right.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from importlib import import_module
from math import isnan
from numbers import Real
from typing import Any, Protocol

import torch
from datasets import Dataset
from torch import Tensor
from trl.trainer.utils import is_async_callable

from klball.data.prompts import FINISHED
from klball.data.texts import refusal
from klball.training.rl.answers import (
    choice_of,
    last_number,
    no_references,
    references,
    text_of,
    without_thoughts,
)

Rewards = list[float | None]


class Reward(Protocol):
    """As TRL calls it."""

    def __call__(self, prompts: Any, completions: Any, completion_ids: Any, **columns: Any) -> Rewards: ...


@dataclass(frozen=True)
class AnswerReward:
    """1 for a finished completion that gives the right answer, else 0.

    column: of the data, with the right answer of each prompt.
    """

    column: str = "answer"

    def wanted(self, reference: str) -> Any:
        """What the answer is compared with. Raises ValueError for a reference that is none."""
        raise NotImplementedError

    def right(self, answer: str, wanted: Any) -> bool:
        """Whether what follows a completion's thoughts is right."""
        raise NotImplementedError

    def check(self, rows: Dataset) -> None:
        """Raise ValueError for the first row with a reference that is none, before any model is asked."""
        if self.column not in rows.column_names:
            raise no_references(self.column)
        for row, value in enumerate(rows[self.column][:]):
            try:
                self.wanted(*references(self.column, {self.column: [value]}))
            except ValueError as error:
                raise refusal(row, self.column, str(error)) from None

    def __call__(self, prompts: Any, completions: Any, completion_ids: Any = None, **columns: Any) -> Rewards:
        finished = columns.get(FINISHED) or [True] * len(completions)
        rewards: Rewards = []
        for completion, reference, whole in zip(
            completions, references(self.column, columns), finished, strict=True
        ):
            wanted = self.wanted(reference)
            answer = without_thoughts(text_of(completion)) if whole else None
            rewards.append(float(answer is not None and self.right(answer, wanted)))
        return rewards


@dataclass(frozen=True)
class LastNumber(AnswerReward):
    """The last number is that of the reference, exactly: 1,000 = 1000.0 = 2000/2.

    marker: the format asked for, if any: the number has to stand in the line after the last marker, as in
    "#### 72". References may have markers of their own.
    """

    marker: str | None = None

    def wanted(self, reference: str) -> Any:
        found = last_number(reference)
        if found is None:
            raise ValueError(f"the reward needs numbers in column {self.column!r}, not {reference!r:.60}")
        return found

    def right(self, answer: str, wanted: Any) -> bool:
        if self.marker is not None:
            _, found, after = answer.rpartition(self.marker)
            answer = after.strip().partition("\n")[0] if found else ""
        return last_number(answer) == wanted


@dataclass(frozen=True)
class ExactMatch(AnswerReward):
    """The whole answer is the reference, but for white space."""

    def wanted(self, reference: str) -> list[str]:
        return reference.split()

    def right(self, answer: str, wanted: list[str]) -> bool:
        return answer.split() == wanted


@dataclass(frozen=True)
class MultipleChoice(AnswerReward):
    """The answer chooses the reference's letter, A to J."""

    def wanted(self, reference: str) -> str:
        letter = reference.strip().strip("()[].:*")
        if len(letter) != 1 or letter not in "ABCDEFGHIJ":
            raise ValueError(
                f"the reward needs letters A to J in column {self.column!r}, not {reference!r:.60}"
            )
        return letter

    def right(self, answer: str, wanted: str) -> bool:
        return choice_of(answer) == wanted


@dataclass(frozen=True)
class MathVerify(AnswerReward):
    r"""The answer equals the reference as mathematics, by the package `math-verify`.

    LaTeX of the answer ($…$, \boxed{…}) is parsed; without any, its last number counts. Raises ValueError if
    the package is not installed.
    """

    def __post_init__(self) -> None:
        _ = self.package

    @property
    def package(self) -> Any:
        """Not an attribute: a reward can be pickled."""
        try:
            return import_module("math_verify")
        except ImportError:
            raise ValueError(
                "this reward needs the package math-verify: pip install 'klball[math]'"
            ) from None

    def wanted(self, reference: str) -> Any:
        has_latex = any(sign in reference for sign in ("$", "\\boxed", "\\[", "\\("))
        found = self._parsed(reference if has_latex else f"${reference}$")
        if not found:
            raise ValueError(f"math-verify cannot read {reference!r:.60} of column {self.column!r}")
        return found

    def right(self, answer: str, wanted: Any) -> bool:
        found = self._parsed(answer)
        if not found and (number := last_number(answer)) is not None:
            found = self._parsed(f"$\\frac{{{number.numerator}}}{{{number.denominator}}}$")
        return bool(self.package.verify(wanted, found, timeout_seconds=_limit()))

    def _parsed(self, text: str) -> Any:
        # plain expressions are left out: math-verify would pass them to sympy's eval
        return self.package.parse(
            text,
            extraction_config=[self.package.LatexExtractionConfig(boxed_match_priority=0)],
            parsing_timeout=_limit(),
        )


def _limit() -> int | None:
    """Seconds; the alarm that math-verify sets works in the main thread only."""
    return 5 if threading.current_thread() is threading.main_thread() else None


@dataclass(frozen=True)
class LengthPenalized:
    """Another reward less `per_token` for each token of the completion beyond `free` ones.

    Raises ValueError for a negative penalty.
    """

    reward: Reward
    per_token: float
    free: int = 0

    def __post_init__(self) -> None:
        if is_async_callable(self.reward) or not callable(self.reward):
            raise ValueError(f"a length penalty is of a plain function, not of {self.reward!r:.60}")
        if not (self.per_token >= 0 and self.free >= 0):
            raise ValueError(
                f"a length penalty needs numbers of 0 or more, not {self.per_token}, {self.free}"
            )

    def __call__(self, prompts: Any, completions: Any, completion_ids: Any, **columns: Any) -> Rewards:
        found = self.reward(
            prompts=prompts, completions=completions, completion_ids=completion_ids, **columns
        )
        over = [max(0, len(ids) - self.free) for ids in completion_ids]
        return [
            None if reward is None else reward - self.per_token * tokens
            for reward, tokens in zip(found, over, strict=True)
        ]


def refuse_unreadable(rewards: Any, name: str, rows: Dataset) -> None:
    """Raise ValueError where rows have no right answer for a verifiable reward to compare with."""
    for reward in rewards if isinstance(rewards, list | tuple) else [rewards]:
        inner = reward.reward if isinstance(reward, LengthPenalized) else reward
        if isinstance(inner, AnswerReward):
            try:
                inner.check(rows)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None


def refuse_no_rewards(rewards: Any) -> None:
    """Raise ValueError for what cannot be called for rewards, and a model that has no single reward."""
    for reward in rewards if isinstance(rewards, list | tuple) else [rewards]:
        labels = getattr(getattr(reward, "config", None), "num_labels", 1)
        if labels != 1:
            raise ValueError(
                f"{type(reward).__name__} has {labels} labels, and a reward model one: train one with "
                "RobustRewardTrainer"
            )
        if isinstance(reward, type):
            raise ValueError(
                f"reward_funcs: {reward.__name__} is a class: give an object, {reward.__name__}(…)"
            )
        if not (reward is None or isinstance(reward, str) or callable(reward)):
            raise ValueError(f"reward_funcs: {reward!r:.40} is neither a function nor a model nor its name")


def numbered_names(names: list[str]) -> list[str]:
    """Names of rewards for the log, where one that stands before has its number: two would be one mean."""
    return [name if (k := names[:i].count(name)) == 0 else f"{name}-{k + 1}" for i, name in enumerate(names)]


def refusing_nan(name: str, reward: Any) -> Any:
    """A reward function, awaited or not, that raises ValueError for what is no number.

    NaN would pass for "no reward". TRL calls models in another way: they stay as they are.
    """
    if isinstance(reward, torch.nn.Module):
        return reward
    if is_async_callable(reward):

        async def awaited(**given: Any) -> Any:
            return _numbers(name, await reward(**given))

        return awaited
    return lambda **given: _numbers(name, reward(**given))


def _numbers(name: str, found: Any) -> Any:
    """What a reward function gave. Raises ValueError unless it is a row of numbers and Nones."""
    if not isinstance(found, Iterable) or isinstance(found, str | Mapping | Set):
        raise ValueError(f"reward {name!r} gave {found!r:.40}, not a list of numbers")
    if isinstance(found, Iterator):  # it can be read once
        found = list(found)
    for value in found:
        if value is not None and not (isinstance(value, Real | Tensor) and not isnan(value)):
            raise ValueError(f"reward {name!r} gave {value!r:.40}, not a number; None is for no reward")
    return found


VERIFIABLE: dict[str, Callable[[], AnswerReward]] = {
    "last-number": LastNumber,
    "last-number-marked": lambda: LastNumber(marker="####"),
    "math-verify": MathVerify,
    "exact": ExactMatch,
    "choice": MultipleChoice,
}


def refuse_unknown_reward(option: str, name: str) -> None:
    """Raise ValueError for a name that is none of `VERIFIABLE`."""
    if name not in VERIFIABLE:
        raise ValueError(
            f"{option} must be one of {', '.join(VERIFIABLE)}, not {name!r}; functions of your own are for "
            "RobustGRPOTrainer(reward_funcs=…), in Python"
        )
