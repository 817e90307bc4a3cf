"""Token objectives: token log-probabilities → token losses, pure functions of shape (B, T) → (B, T).

A position that is not an answer token has log-probability 0 and must get loss 0.
"""

from collections.abc import Callable

from torch import Tensor

Objective = Callable[[Tensor], Tensor]


def nll(log_probs: Tensor) -> Tensor:
    """Negative log-likelihood: −log p_t. Supervised fine-tuning as usual."""
    return -log_probs


def dft(log_probs: Tensor) -> Tensor:
    """Dynamic fine-tuning: −sg(p_t)·log p_t, whose gradient is that of −p_t.

    Equivalent: `-(log_probs.exp().detach() * log_probs)`. Source: Wu et al., arXiv 2508.05629.
    """
    return -log_probs.exp().detach() * log_probs


def dft_sequence(log_probs: Tensor) -> Tensor:
    """The trajectory form of DFT: −sg(K(y|x))·log K(y|x), spread over the tokens of each row.

    Known to be unstable: beyond about 100 nats a row's gradient underflows to nothing.
    """
    return -log_probs.sum(-1, keepdim=True).exp().detach() * log_probs


OBJECTIVES: dict[str, Objective] = {"nll": nll, "dft": dft, "dft-sequence": dft_sequence}


def objective_named(name: str) -> Objective:
    """The objective of that name. Raises ValueError naming the ones there are."""
    if name not in OBJECTIVES:
        raise ValueError(f"no objective {name!r}; there are {', '.join(OBJECTIVES)}")
    return OBJECTIVES[name]
