"""What callers pass: anything array-like becomes float64 [rounds, n], or one clear line says why not."""

import math
from collections.abc import Mapping
from numbers import Real
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from klball.adversary.solver.tilting import Numbers

Array = ArrayLike  # torch, NumPy, Arrow, pandas, a list
LARGEST = 1e300  # beyond it differences of scores, and multipliers, overflow
LEAST_KL = 1e-13


def numbers(name: str, values: Array | None) -> Numbers:
    """A contiguous float64 array of one or two dimensions, not copied where it is one."""
    array = _of_tensor(name, values) if isinstance(values, Tensor) else _of_array(name, values)
    if array.ndim not in (1, 2) or array.size == 0:
        raise ValueError(f"{name} must be a non-empty [n] or [rounds, n] array, not {list(array.shape)}")
    one_column = array.ndim == 2 and array.shape[1] == 1 < len(array)
    if one_column and (isinstance(values, Tensor) or hasattr(values, "columns")):  # of a head, of a frame
        raise ValueError(
            f"{name} is one column, which would be {len(array)} rounds of one sample: give it as [n]"
        )
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


def _of_array(name: str, values: Array | None) -> Numbers:
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


def least_and_most(name: str, values: Numbers) -> tuple[Any, Any]:
    """The smallest and the largest (of every round, [rounds]), which must be finite, and not too large."""
    low, high = values.min(-1), values.max(-1)
    if values.ndim == 1:
        low, high = float(low), float(high)
        worst = max(-low, high)
    else:
        worst = np.maximum(-low, high).max()
    if not worst <= LARGEST:
        if bad := int(np.count_nonzero(~np.isfinite(values))):
            raise ValueError(f"{name} has {bad} NaN or infinite values; drop or repair those samples first")
        raise ValueError(f"{name} has values beyond ±{LARGEST:g}; rescale them")
    return low, high


def named(scores: Mapping[str, Array], name: str) -> Tensor:
    """The scores of that name, [n], float64, finite, on the CPU."""
    if not isinstance(scores, Mapping) or name not in scores:
        raise ValueError(
            'scores go by name: pass {"score": log_likelihood}, and "certainty" where it is needed; there is '
            f"no {name!r}"
        )
    values = numbers(name, scores[name])
    if values.ndim != 1:
        raise ValueError(f"{name} must be a non-empty [n] array, not {list(values.shape)}")
    least_and_most(name, values)
    return torch.from_numpy(values if values.flags.writeable else values.copy())


def matching(name: str, values: Array | None, like: Numbers) -> Numbers | None:
    if values is None:
        return None
    array = numbers(name, values)
    if array.shape != like.shape and (array.size, array.shape[-1]) != (like.size, like.shape[-1]):
        raise ValueError(f"{name} has shape {list(array.shape)}, log_likelihood {list(like.shape)}")
    return array.reshape(like.shape)


def base_weights(values: Array | None, like: Numbers) -> Numbers | None:
    """f, every round summing to one; one row may stand for all rounds."""
    if values is None:
        return None
    base = numbers("base_weights", values)
    rounds = like.size // like.shape[-1]
    if base.shape[-1] != like.shape[-1] or base.size // base.shape[-1] not in (1, rounds):
        raise ValueError(f"base_weights has shape {list(base.shape)}, the scores {list(like.shape)}")
    if bad := int(np.count_nonzero(~np.isfinite(base))):
        raise ValueError(f"base_weights has {bad} NaN or infinite values; drop or repair those samples first")
    with np.errstate(over="ignore"):
        total = base.sum(-1, keepdims=True)
    if (base < 0).any() or (total == 0).any():
        raise ValueError("base_weights must not be negative, and not all zero")
    if not np.isfinite(total).all():
        raise ValueError("base_weights sum to infinity; rescale them")
    base = base / total
    return base.reshape(like.shape) if base.size == like.size else np.broadcast_to(base, like.shape)


def base_of(values: Array | None, score: Tensor) -> Tensor:
    """f of scores [n], summing to one, float64; None: 1/n."""
    base = base_weights(values, score.numpy())
    return torch.full_like(score, 1 / len(score)) if base is None else torch.from_numpy(base)


def log_likelihoods(values: Array | None, loss: Array | None) -> Numbers:
    """g, from log-likelihoods or from losses −g."""
    if (values is None) == (loss is None):
        raise ValueError("pass either log_likelihood or loss, and not both")
    return numbers("log_likelihood", values) if values is not None else -numbers("loss", loss)


def refuse_losses(least: Any) -> None:
    """Raise ValueError if even the smallest log-likelihood is positive."""
    if np.min(least) > 0 if isinstance(least, np.ndarray) else least > 0:
        raise ValueError(
            "every log_likelihood is positive, but mean log-probabilities are 0 or less: these look like "
            "losses; pass them as loss="
        )


def parameters(
    epsilon: float, gamma: float | None, max_weight: float | None, certainty: object = True
) -> tuple[float, float | None, float | None]:
    """The three in float64; raises ValueError for a radius, bound or cap that means nothing."""
    limits = kl_radius(epsilon), None if gamma is None else bound(gamma), cap(max_weight)
    if gamma is not None and certainty is None:
        raise ValueError("gamma bounds the mean certainty: pass certainty too")
    return limits


def radius(name: str, value: Any) -> float:
    if not (is_finite(value) and value >= 0):
        raise ValueError(f"{name} must be a finite number, 0 or more (of KL in nats), not {_shown(value)}")
    return float(value)


def kl_radius(value: Any) -> float:
    """Of a KL ball: between 0 and 1e-13 a tilt is lost in rounding, and no answer could be certified."""
    found = radius("epsilon", value)
    if 0 < found < LEAST_KL:
        raise ValueError(
            f"epsilon = {value:g} is below what float64 can tell from 0: use 0, or {LEAST_KL:g} at least"
        )
    return found


def bound(gamma: Any) -> float:
    if not is_finite(gamma):
        raise ValueError(
            f"gamma must be a finite number of nats, not {_shown(gamma)}; leave it out for no bound"
        )
    return float(gamma)


def cap(max_weight: Any) -> float | None:
    if max_weight is not None and not (is_finite(max_weight) and max_weight >= 1):
        raise ValueError(
            f"max_weight must be finite and at least 1 (the mean weight), not {_shown(max_weight)}"
        )
    return None if max_weight is None else float(max_weight)


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
