"""Score tables of models × rounds → one (λ, β) each, at the same ε and γ for all of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from datasets import Dataset

from klball.adversary.dual import solve_dual

COLUMNS = ("log_likelihood", "certainty", "sum_log_prob", "num_tokens", "num_bytes")
RADII = (0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 3.0)
LEAST_ESS = 100.0
MOST_UNUSABLE = 0.05  # share of rounds; with more of them the rest is a selection, not a sample

Gamma = float | Literal["auto"] | None
Matrix = np.ndarray[tuple[int, int], np.dtype[np.float64]]


@dataclass(frozen=True)
class RoundScores:
    """Scores [models, rounds, n] on the samples that every model holds in every round.

    Attributes:
        log_likelihood: g, nats per `unit`.
        certainty: C, nats.
        sum_log_prob: Σ log p_t, nats.
        num_tokens: Answer tokens.
        num_bytes: UTF-8 bytes of the answer.
        left_out: Rows that left all models, by reason, each counted once: "missing" in some table,
            "truncated", "unscored" (no answer tokens, or a NaN or infinite score), "no_bytes" (empty text).
    """

    models: list[str]
    rounds: list[str]
    sample_ids: list[str]
    log_likelihood: np.ndarray
    certainty: np.ndarray
    sum_log_prob: np.ndarray
    num_tokens: np.ndarray
    num_bytes: np.ndarray
    left_out: dict[str, int]
    unit: Literal["token", "byte"] = "token"

    def per_byte(self) -> "RoundScores":
        """The same with g = Σ log p / bytes, which models with different tokenizers have in common."""
        return replace(self, log_likelihood=self.sum_log_prob / self.num_bytes, unit="byte")


def round_scores(tables: Mapping[tuple[str, str], Dataset]) -> RoundScores:
    """Score tables by (model, round), aligned by sample_id; models and rounds in order of appearance.

    Raises:
        ValueError: A (model, round) is missing, a table repeats ids, or no row is in common.
    """
    models = list(dict.fromkeys(model for model, _ in tables))
    rounds = list(dict.fromkeys(label for _, label in tables))
    absent = [f"{m!r} in round {r!r}" for m in models for r in rounds if (m, r) not in tables]
    if absent or not models:
        raise ValueError(f"no score table of {', '.join(absent[:3]) or 'any model'}: {len(absent)} missing")
    positions = {key: _positions(key, table) for key, table in tables.items()}
    everywhere = set.intersection(*(set(p) for p in positions.values()))
    anywhere = set.union(*(set(p) for p in positions.values()))
    ids = [i for i in next(iter(positions.values())) if i in everywhere]
    parts = {key: _columns(table, [positions[key][i] for i in ids]) for key, table in tables.items()}
    reasons = _reasons(list(parts.values()), len(ids))
    kept = reasons == ""
    counts = {name: int((reasons == name).sum()) for name in ("truncated", "unscored", "no_bytes")}
    counts = {"missing": len(anywhere) - len(ids), **counts}
    if not kept.any():
        raise ValueError(f"no row can be scored by every model in every round: left out {counts}")
    stacked: Any = {c: np.array([[parts[m, r][c][kept] for r in rounds] for m in models]) for c in COLUMNS}
    kept_ids = [i for i, keep in zip(ids, kept, strict=True) if keep]
    return RoundScores(models, rounds, kept_ids, **stacked, left_out=counts)


def _positions(key: tuple[str, str], table: Dataset) -> dict[str, int]:
    ids = table["sample_id"][:]
    positions = {sample_id: row for row, sample_id in enumerate(ids)}
    if len(positions) < len(ids):
        raise ValueError(f"the score table of {key[0]!r} in round {key[1]!r} repeats a sample_id")
    return positions


def _columns(table: Dataset, rows: list[int]) -> dict[str, np.ndarray]:
    columns = {name: np.array(table[name][:], dtype=float)[rows] for name in COLUMNS}
    return {**columns, "truncated": np.array(table["truncated"][:], dtype=bool)[rows]}


def _reasons(parts: list[dict[str, np.ndarray]], n: int) -> np.ndarray:
    """Why each row leaves, "" for those that stay; the gravest reason in any table wins."""
    reasons = np.full(n, "", dtype="U9")
    finite = [np.isfinite([p[name] for name in COLUMNS]).all(axis=0) for p in parts]
    reasons[np.any([p["num_bytes"] == 0 for p in parts], axis=0)] = "no_bytes"
    reasons[~np.all(finite, axis=0)] = "unscored"
    reasons[np.any([p["truncated"] for p in parts], axis=0)] = "truncated"
    return reasons


@dataclass(frozen=True)
class RoundSolutions:
    """Worst cases of every model and round at one (ε, γ); all arrays are [models, rounds].

    An infeasible round has NaN for everything at the optimum.

    Attributes:
        worst_case: E_Q[g], nats per `unit`.
        worst_case_per_byte: The same problem for Σ log p / bytes.
        lambda_: Multiplier of the ball.
        beta: Multiplier of the bound on the certainty.
        kl: KL(Q‖F), nats.
        ess: Effective sample size 1/Σq².
        gap: The solver's certificate.
        mean_log_likelihood: Plain mean of g.
        mean_certainty: Plain mean of C.
        gamma_margin: γ − γ_min, ∞ without γ.
        status: As in `klball.DualSolution`.
    """

    models: list[str]
    rounds: list[str]
    unit: str
    n: int
    epsilon: float
    gamma: float | None
    worst_case: np.ndarray
    worst_case_per_byte: np.ndarray
    lambda_: np.ndarray
    beta: np.ndarray
    kl: np.ndarray
    ess: np.ndarray
    gap: np.ndarray
    mean_log_likelihood: np.ndarray
    mean_certainty: np.ndarray
    gamma_margin: np.ndarray
    status: np.ndarray

    def usable(self) -> np.ndarray:
        """Rounds with finite (λ, β), [models, rounds]; the others are infeasible, at γ_min, or ε = 0."""
        return np.isfinite(self.lambda_) & np.isfinite(self.beta)

    def pair_rounds(self, a: int, b: int) -> np.ndarray:
        """The rounds that enter the comparison of two models: usable for both, [rounds]."""
        usable = self.usable()
        return usable[a] & usable[b]

    def least_ess(self, *models: int) -> float:
        """The smallest ESS over the rounds of these models (all by default)."""
        return float(np.nanmin(self.ess[list(models)] if models else self.ess, initial=self.n))


def solve_rounds(scores: RoundScores, *, epsilon: float, gamma: Gamma = None) -> RoundSolutions:
    """All models and rounds in one batched solve: max {E_Q[−g] : KL(Q‖F) ≤ ε, E_Q[C] ≤ γ}.

    Infeasible rounds come back with status "infeasible" and NaN.

    Args:
        scores: What `round_scores` made of the score tables.
        epsilon: Radius of the ball, nats.
        gamma: Bound on E_Q[C], nats; "auto" takes `propose_gamma`, None leaves it out.

    Raises:
        ValueError: A bad parameter.
    """
    least = None if gamma is None else _least_certainty(scores, epsilon)
    if gamma == "auto":
        gamma = propose_gamma(scores, epsilon)
    shape = scores.log_likelihood.shape
    byte = scores.sum_log_prob / scores.num_bytes
    g: Matrix = np.concatenate([_rows(scores.log_likelihood), _rows(byte)])
    c = np.concatenate([_rows(scores.certainty)] * 2)
    s = solve_dual(g, c, epsilon=epsilon, gamma=gamma, throw=False)
    status = np.array(s.status)
    bad = status == "infeasible"
    half = len(g) // 2

    def of(values: np.ndarray) -> np.ndarray:
        return np.where(bad, np.nan, values)[:half].reshape(shape[:2])

    return RoundSolutions(
        models=scores.models,
        rounds=scores.rounds,
        unit=scores.unit,
        n=shape[2],
        epsilon=float(epsilon),
        gamma=gamma,
        worst_case=of(s.worst_case),
        worst_case_per_byte=np.where(bad, np.nan, s.worst_case)[half:].reshape(shape[:2]),
        lambda_=of(s.lambda_),
        beta=of(s.beta),
        kl=of(s.kl),
        ess=of(s.ess),
        gap=of(s.gap),
        mean_log_likelihood=scores.log_likelihood.mean(axis=2),
        mean_certainty=scores.certainty.mean(axis=2),
        gamma_margin=np.full(shape[:2], np.inf) if least is None or gamma is None else gamma - least,
        status=status[:half].reshape(shape[:2]),
    )


def propose_gamma(scores: RoundScores, epsilon: float) -> float:
    """A γ feasible for every model and round: half way from γ_min to E_Q[C] of the worst case without γ.

    Both are those of the (model, round) with the largest γ_min = min {E_Q[C] : KL(Q‖F) ≤ ε}, where the
    cap then binds. Models whose certainty runs lower can have a slack cap and β = 0: C is not comparable
    across vocabularies.
    """
    least = _least_certainty(scores, epsilon)
    hardest = np.unravel_index(least.argmax(), least.shape)
    free = solve_dual(scores.log_likelihood[hardest], scores.certainty[hardest], epsilon=epsilon)
    return float(least[hardest] + free.certainty) / 2


def largest_epsilon_with_ess(
    scores: RoundScores,
    gamma: Gamma = None,
    *,
    least_ess: float = LEAST_ESS,
    radii: Sequence[float] = RADII,
) -> float | None:
    """The largest radius of a grid at which every model and round is feasible with ESS ≥ `least_ess`.

    None where no radius qualifies (always so for fewer than `least_ess` samples).
    """
    for epsilon in sorted(radii, reverse=True):
        solutions = solve_rounds(scores, epsilon=epsilon, gamma=gamma)
        if solutions.usable().all() and solutions.least_ess() >= least_ess:
            return epsilon
    return None


def _least_certainty(scores: RoundScores, epsilon: float) -> np.ndarray:
    """γ_min of every model and round: the worst case of C itself."""
    least = solve_dual(loss=-_rows(scores.certainty), epsilon=epsilon).worst_case
    return least.reshape(scores.certainty.shape[:2])


def _rows(values: np.ndarray) -> Matrix:
    return values.reshape(-1, values.shape[-1])
