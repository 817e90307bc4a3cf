"""What somebody's own ambiguity set, objective or metric returns, and one line where it is of no use."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from klball.adversary.sets import AmbiguitySet
from klball.adversary.solution import Scores, Solution

OF_TRANSFORMERS = ("step", "loss", "grad_norm", "learning_rate", "epoch", "num_tokens")  # in its log
ROUNDING = 1e-4  # of the sum of weights, and of the mean weight: a general solver's


def told(owner: Any, method: str, *given: Any, **needed: Any) -> Mapping[str, Any]:
    """What a method of somebody's own says by name. Raises ValueError for what is no dictionary."""
    found = getattr(owner, method)(*given, **needed)
    if not isinstance(found, Mapping):
        raise ValueError(f"{type(owner).__name__}.{method} must return a dictionary, not {found!r:.40}")
    return found


def distinct(*parts: Mapping[str, Any]) -> dict[str, Any]:
    """All of them as one. Raises ValueError for a name that two have: one would stand for the other."""
    merged: dict[str, Any] = {}
    for part in parts:
        refuse_taken(merged, part)
        merged |= part
    return merged


def refuse_taken(taken: Any, names: Mapping[str, Any]) -> None:
    """Raise ValueError for a name that is taken."""
    if both := sorted({*taken} & {*names}):
        raise ValueError(
            f"{both[0]!r} is a name that is logged already: call the column, metric or summary another"
        )


def logged(values: Mapping[str, Any]) -> dict[str, float]:
    """Numbers for the log. Raises ValueError for what is none."""
    refuse_taken(OF_TRANSFORMERS, values)
    numbers: dict[str, float] = {}
    for name, value in values.items():
        try:
            numbers[name] = float(value if not isinstance(value, str) else "text")
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(f"{name!r}, for the log, must be a number, not {value!r:.40}") from None
    return numbers


def answered(ambiguity: AmbiguitySet, scores: Scores, solution: Solution) -> Solution:
    """The solution, whose weights, where it has them, are a distribution over the scored units."""
    weights, size = solution.weights, len(next(iter(scores.values())))
    if weights is None:
        return solution
    if not isinstance(weights, Tensor) or weights.shape != (size,) or not weights.is_floating_point():
        raise ValueError(f"{ambiguity}: weights must be a tensor [{size}] of floats, not {kind(weights)}")
    if not (bool((weights >= -ROUNDING / size).all()) and abs(float(weights.sum()) - 1) <= ROUNDING):
        raise ValueError(f"{ambiguity}: weights must not be negative or NaN, and sum to 1")
    return solution


def row_of_density(ambiguity: AmbiguitySet, density: Any, index: Tensor) -> Tensor:
    """The density of a micro-batch, (B); what it holds is looked at once a step."""
    if isinstance(density, Tensor) and density.shape == index.shape and density.is_floating_point():
        return density
    raise ValueError(f"{ambiguity}: density must give a tensor [{len(index)}] of floats, not {kind(density)}")


def kind(value: Any) -> str:
    """What a value is, for a message."""
    if isinstance(value, Tensor):
        return f"{list(value.shape)} of {value.dtype}"
    return f"{value!r:.60}"


def refuse_no_density(ambiguity: AmbiguitySet, density: Tensor, step: int) -> None:
    """Raise ValueError for a density that is negative or not finite; the model has not moved yet."""
    usable = density.isfinite() & (density >= -ROUNDING)
    if not bool(usable.all()):
        bad = float(density[~usable][0])
        raise ValueError(f"{ambiguity}: density is {bad} at step {step}; q/f is finite and not negative")
