"""What callers pass: anything array-like becomes float64 [rounds, n], or one clear line says why not."""

import math
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from klball.adversary.solver.tilting import Numbers

Array = Any  # anything array-like: torch, NumPy, Arrow, pandas, a list
LARGEST = 1e300  # beyond it differences of scores, and multipliers, overflow


def numbers(name: str, values: Array) -> Numbers:
    """A contiguous float64 array of one or two dimensions, not copied where it is one."""
    array = _of_tensor(name, values) if isinstance(values, Tensor) else _of_array(name, values)
    if array.ndim not in (1, 2) or array.size == 0:
        raise ValueError(f"{name} must be a non-empty [n] or [rounds, n] array, not {list(array.shape)}")
    return np.ascontiguousarray(array, dtype=np.float64)


def _of_tensor(name: str, values: Tensor) -> Numbers:
    if values.is_complex() or values.layout != torch.strided or values.device.type == "meta":
        kind = "complex" if values.is_complex() else "sparse" if values.layout != torch.strided else "meta"
        raise ValueError(
            f"{name} is a {kind} tensor, not an array of numbers; pass a dense tensor of real numbers"
        )
    if values.dtype == torch.bool:
        raise ValueError(f"{name} is not an array of numbers: its elements are bool")
    return values.detach().to(dtype=torch.float64, device="cpu").numpy()


def _of_array(name: str, values: Array) -> Numbers:
    if np.ma.is_masked(values):
        raise ValueError(f"{name} has masked values; drop those samples first")
    try:
        array = np.asarray(values)
        if array.dtype.kind == "O":
            if any(isinstance(value, str | bytes | bool) for value in array.flat):
                raise TypeError("it holds text, or true and false")
            array = array.astype(np.float64)
        if array.dtype.kind not in "uif":
            raise TypeError(f"its elements are {array.dtype.name}")
        return array.astype(np.float64, copy=False)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{name} is not an array of numbers: {str(error).splitlines()[0]}") from None


def scores(name: str, values: Numbers) -> tuple[Numbers, Numbers]:
    """The smallest and the largest of every round, [rounds], which must be finite, and not too large."""
    low, high = values.min(1), values.max(1)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        bad = int(np.count_nonzero(~np.isfinite(values)))
        raise ValueError(f"{name} has {bad} NaN or infinite values; drop or repair those samples first")
    if not max(-low.min(), high.max()) <= LARGEST:
        raise ValueError(f"{name} has values beyond ±{LARGEST:g}; rescale them")
    return low, high


def matching(name: str, values: Array | None, like: Numbers) -> Numbers | None:
    if values is None:
        return None
    array = np.atleast_2d(numbers(name, values))
    if array.shape != like.shape:
        raise ValueError(f"{name} has shape {list(array.shape)}, log_likelihood {list(like.shape)}")
    return array


def base_weights(values: Array | None, like: Numbers) -> Numbers | None:
    """f, every round summing to one; one row may stand for all rounds."""
    if values is None:
        return None
    base = np.atleast_2d(numbers("base_weights", values))
    if base.shape[1] != like.shape[1] or base.shape[0] not in (1, like.shape[0]):
        raise ValueError(f"base_weights has shape {list(base.shape)}, log_likelihood {list(like.shape)}")
    if bad := int(np.count_nonzero(~np.isfinite(base))):
        raise ValueError(f"base_weights has {bad} NaN or infinite values; drop or repair those samples first")
    with np.errstate(over="ignore"):
        total = base.sum(1, keepdims=True)
    if (base < 0).any() or (total == 0).any():
        raise ValueError("base_weights must not be negative, and not all zero")
    if not np.isfinite(total).all():
        raise ValueError("base_weights sum to infinity; rescale them")
    base = base / total
    return base if base.shape == like.shape else np.broadcast_to(base, like.shape)  # which is read-only


def log_likelihoods(values: Array | None, loss: Array | None) -> Numbers:
    """g, from log-likelihoods or from losses −g."""
    if (values is None) == (loss is None):
        raise ValueError("pass either log_likelihood or loss, and not both")
    return -numbers("loss", loss) if values is None else numbers("log_likelihood", values)


def refuse_losses(least: float) -> None:
    """Raise ValueError if even the smallest log-likelihood is positive."""
    if least > 0:
        raise ValueError(
            "every log_likelihood is positive, but mean log-probabilities are 0 or less: these look like "
            "losses; pass them as loss="
        )


def parameters(
    epsilon: float, gamma: float | None, max_weight: float | None, certainty: object = True
) -> None:
    """Raise ValueError for a radius, bound or cap that means nothing."""
    radius("epsilon", epsilon)
    if gamma is not None:
        bound(gamma)
    if gamma is not None and certainty is None:
        raise ValueError("gamma bounds the mean certainty: pass certainty too")
    cap(max_weight)


def radius(name: str, value: Any) -> None:
    if not (is_finite(value) and value >= 0):
        raise ValueError(f"{name} must be a finite number, 0 or more (of KL in nats), not {_shown(value)}")


def bound(gamma: Any) -> None:
    if not is_finite(gamma):
        raise ValueError(
            f"gamma must be a finite number of nats, not {_shown(gamma)}; leave it out for no bound"
        )


def cap(max_weight: Any) -> None:
    if max_weight is not None and not (is_finite(max_weight) and max_weight >= 1):
        raise ValueError(
            f"max_weight must be finite and at least 1 (the mean weight), not {_shown(max_weight)}"
        )


def is_finite(value: Any) -> bool:
    """Whether it is a real number that a float holds; true and false are none."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False


def _shown(value: Any) -> str:
    return str(value)[:40] if isinstance(value, Real) else repr(value)[:40]
