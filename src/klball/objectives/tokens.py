"""Token objectives: token log-probabilities → token losses, pure functions of shape (B, T) → (B, T).

What they give at a position that is not an answer token is not used. One is a function and a line:

    @objective("certain", needs=("certainty",))
    def certain(log_probs, certainty): ...
"""

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from torch import Tensor

Objective = Callable[..., Tensor]  # (log_probs, what it needs by name) → losses, all (B, T)
Function = TypeVar("Function", bound=Callable[..., Tensor])
NEEDS = {  # what an objective may ask for beside log p_t, each (B, T) in nats
    "old_log_probs": "log p_t of the model some steps ago, without gradient",
    "reference_log_probs": "log p_t of the model that training starts from, without gradient",
    "entropy": "entropy of the next-token distribution, with gradient",
    "certainty": "self-certainty KL(U‖p_t), with gradient",
}
OBJECTIVES: dict[str, Objective] = {}


def objective(name: str, needs: Sequence[str] = ()) -> Callable[[Function], Function]:
    """Makes a function an objective: known by this name everywhere, called with `needs` by their names.

    Raises ValueError for a name that is taken, a need that is none of `NEEDS`, or one without a parameter.
    """

    def register(function: Function) -> Function:
        taken = OBJECTIVES.get(name)
        if taken is not None and taken.__module__ != function.__module__:
            raise ValueError(f"there is an objective {name!r} already: choose another name")
        if unknown := [need for need in needs if need not in NEEDS]:
            raise ValueError(f"objective {name!r} needs {unknown[0]!r}; there are {', '.join(NEEDS)}")
        if absent := [need for need in needs if need not in inspect.signature(function).parameters]:
            raise ValueError(f"objective {name!r} needs {absent[0]!r}, but has no parameter of that name")
        marked: Any = function
        marked.needs = tuple(needs)
        OBJECTIVES[name] = function
        return function

    return register


def needs_of(function: Objective) -> tuple[str, ...]:
    """What an objective is called with beside log-probabilities; nothing, if it does not say."""
    return tuple(getattr(function, "needs", ()))


def plain_objectives() -> dict[str, Objective]:
    """Those that need nothing but log-probabilities, by name."""
    return {name: function for name, function in OBJECTIVES.items() if not needs_of(function)}


@objective("nll")
def nll(log_probs: Tensor) -> Tensor:
    """Negative log-likelihood: −log p_t. Supervised fine-tuning as usual."""
    return -log_probs


@objective("dft")
def dft(log_probs: Tensor) -> Tensor:
    """Dynamic fine-tuning: −sg(p_t)·log p_t, whose gradient is that of −p_t.

    Equivalent: `-(log_probs.exp().detach() * log_probs)`. Source: Wu et al., arXiv 2508.05629.
    """
    return -log_probs.exp().detach() * log_probs


@objective("dft-sequence")
def dft_sequence(log_probs: Tensor) -> Tensor:
    """The trajectory form of DFT: −sg(K(y|x))·log K(y|x), spread over the tokens of each row.

    Known to be unstable: beyond about 100 nats a row's gradient underflows to nothing.
    """
    return -log_probs.sum(-1, keepdim=True).exp().detach() * log_probs


PROXIMAL = "psft"


@objective(PROXIMAL, needs=("old_log_probs",))
def psft(log_probs: Tensor, old_log_probs: Tensor, clip: float = 0.28) -> Tensor:
    """Proximal fine-tuning: −min(r, clip(r, 1−c, 1+c)) with r = p_t/p_t^old; gradient −r·1[r ≤ 1+c]·∇log p.

    Equivalent: `-(log_probs - old_log_probs).exp().clamp(max=1 + clip)`, but clipped before it is
    exponentiated: ratios that overflow then have gradient 0, not NaN. The lower clip can never act.
    Source: Zhu et al., arXiv 2508.17784.
    """
    return -(log_probs - old_log_probs).clamp(max=math.log1p(clip)).exp()


def objective_named(name: str) -> Objective:
    """The objective of that name. Raises ValueError naming the ones there are."""
    if name not in OBJECTIVES:
        raise ValueError(f"no objective {name!r}; there are {', '.join(OBJECTIVES)}")
    return OBJECTIVES[name]
