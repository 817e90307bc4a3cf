"""The disease of SFT in numbers: implicit rewards, and who holds the gradient, per objective and radius."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from klball.adversary.dual import solve_dual
from klball.objectives.tokens import OBJECTIVES, plain_objectives

TOP = 0.01
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)


@dataclass(frozen=True)
class Reward:
    """Quantiles of the log implicit reward, nats, and the share of all reward that the top 1 % hold.

    unit: "token" (log 1/p_t) or "sample" (log 1/K(y|x) = −Σ log p_t).
    """

    unit: str
    quantiles: dict[float, float]
    top_share: float


@dataclass(frozen=True)
class GradientShare:
    """Shares of the gradient weight that the heaviest 1 % of tokens and of samples hold."""

    objective: str
    epsilon: float
    tokens: float
    samples: float
    ess: float


def implicit_rewards(token_log_probs: Sequence[Sequence[float]]) -> list[Reward]:
    """SFT is a policy gradient with reward w = 1/K(y|x): its distribution, in log space.

    top_share: Σ over the top 1 % of w, divided by Σ w, by log-sum-exp (w itself overflows).
    Source: Wu et al., arXiv 2508.05629.
    """
    tokens = -np.concatenate([np.asarray(row, dtype=float) for row in token_log_probs])
    samples = np.array([-math.fsum(row) for row in token_log_probs])
    rewards = []
    for unit, log_w in (("token", tokens), ("sample", samples)):
        top = np.sort(log_w)[-_top_count(len(log_w)) :]
        share = math.exp(np.logaddexp.reduce(top) - np.logaddexp.reduce(log_w))
        quantiles = {q: float(np.quantile(log_w, q)) for q in QUANTILES}
        rewards.append(Reward(unit, quantiles, share))
    return rewards


def gradient_weights(
    token_log_probs: Sequence[Sequence[float]], objective: str, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Per token and per sample: q_i/T_i·|∂ℓ_t/∂log p_t|·(1 − p_t), and its sum over the sample's tokens.

    This is half the L1 norm of the loss's gradient in the logits that predict the token, exactly. The
    derivative is taken by autograd from the objective itself. psft has that of nll where its ratio is 1.
    """
    per_token = []
    for q, row in zip(weights, token_log_probs, strict=True):
        log_p = torch.tensor([list(row)], dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(OBJECTIVES[objective](log_p).sum(), log_p)
        distance = -torch.expm1(log_p.detach())
        per_token.append((q / len(row)) * (slope.abs() * distance)[0].numpy())
    return np.concatenate(per_token), np.array([row.sum() for row in per_token])


def gradient_shares(
    token_log_probs: Sequence[Sequence[float]], epsilons: Sequence[float]
) -> list[GradientShare]:
    """For every objective and radius, how concentrated the gradient weight is; .01 would be even."""
    g = np.array([np.mean(row) for row in token_log_probs])
    shares = []
    for objective in plain_objectives():
        plain_tokens, plain_samples = gradient_weights(token_log_probs, objective, np.ones(len(g)))
        lengths = [len(row) for row in token_log_probs]
        for epsilon in epsilons:
            solution = solve_dual(g, epsilon=epsilon)
            q = solution.weights * len(g)
            tokens, samples = plain_tokens * np.repeat(q, lengths), plain_samples * q
            shares.append(
                GradientShare(objective, epsilon, top_share(tokens), top_share(samples), float(solution.ess))
            )
    return shares


def top_share(values: np.ndarray) -> float:
    """The part of the sum that the largest 1 % hold (at least one of them); NaN if all are 0."""
    top = np.sort(values)[-_top_count(len(values)) :]
    total = values.sum()
    return float(top.sum() / total) if total > 0 else math.nan


def _top_count(n: int) -> int:
    return max(1, math.ceil(TOP * n))
