"""What a model's own answers are worth: accuracy, pass@k, mean reward, and each at the worst in a ball."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from klball.scores.certified import certified_worst_case, worst_mean
from klball.scores.paired import differences
from klball.scores.tails import own_mean_interval

DESCRIPTIVE = ("length", "finished")  # neither is better for being more
RADII = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)


def pass_at_k(correct: Sequence[int] | np.ndarray, samples: int, k: int) -> np.ndarray:
    """The chance that one of k answers is right, without bias, from `correct` right ones of n, [prompts].

        1 − C(n − c, k) / C(n, k) = 1 − Π_{i = n−c+1}^{n} (1 − k/i)

    Raises ValueError unless 1 ≤ k ≤ n.
    """
    if not 1 <= k <= samples:
        raise ValueError(f"pass@{k} needs at least {k} samples of each prompt, not {samples}")
    factors = 1 - k / np.arange(1, samples + 1)
    return np.array([1 - np.prod(factors[samples - int(c) :]) if c else 0.0 for c in correct]).clip(0, 1)


def answer_report(
    columns: dict[str, np.ndarray],
    groups: Sequence[str] | None = None,
    radii: Sequence[float] = RADII,
    confidence: float = 0.95,
    bounds: tuple[float, float] | None = None,
) -> list[dict[str, Any]]:
    """Rows metric, part, prompts, value, low, high, certified: means with 95 % intervals over all prompts and
    groups, and, of what is worth something, the worst case of every radius, without an interval.

    columns: metric → its values, [prompts]. certified: the bound of `certified_worst_case`, or NaN. bounds:
    of rewards; None: none are known, unless there is an accuracy, whose rewards are 0 or 1.
    """
    bounds = (0.0, 1.0) if "accuracy" in columns else bounds
    parts = _parts(columns, groups)
    rows = []
    for metric, values in columns.items():
        for part, chosen in parts.items():
            some = values[chosen].astype(float)
            low, high = own_mean_interval(some)
            row = {"metric": metric, "part": part, "prompts": len(some), "value": float(some.mean())}
            rows.append({**row, "low": low, "high": high, "certified": math.nan})
        for epsilon in () if metric in DESCRIPTIVE else radii:
            worst = worst_mean(values, epsilon)
            row = {"metric": metric, "part": f"worst ε = {epsilon:g}", "prompts": len(values), "value": worst}
            lower = math.nan
            if bounds is not None:
                lower = certified_worst_case(values, epsilon, bounds, confidence).lower
            rows.append({**row, "low": math.nan, "high": math.nan, "certified": lower})
    return rows


def answer_differences(
    columns: Mapping[str, Mapping[str, np.ndarray]], groups: Sequence[str] | None = None
) -> list[dict[str, Any]]:
    """`klball.scores.paired.differences` of all models' columns, on the same prompts."""
    values = {model: {k: v.astype(float) for k, v in own.items()} for model, own in columns.items()}
    return differences(values, _parts(next(iter(values.values())), groups), "prompts")


def _parts(columns: Mapping[str, np.ndarray], groups: Sequence[str] | None) -> dict[str, np.ndarray]:
    """All prompts, and those of every group."""
    parts = {"all": np.arange(len(next(iter(columns.values()))))}
    if groups is not None:
        names = np.array([str(group) for group in groups])
        parts |= {f"group {name}": np.flatnonzero(names == name) for name in sorted(set(names.tolist()))}
    return parts
