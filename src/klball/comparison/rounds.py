"""Score tables of models × rounds → one (λ, β) each, at the same ε and γ for all of them."""

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from datasets import Dataset

from klball.adversary.dual import solve_dual
from klball.scores.elsewhere.item_scores import (
    ONE_ROUND,
    Scores,
    over_clusters,
    refuse_percentages,
)
from klball.scores.measure import PER_BYTE, PER_TOKEN, Measure, are_right_or_wrong, points
from klball.shown import Shown

COLUMNS = ("log_likelihood", "certainty", "sum_log_prob", "num_tokens", "num_bytes")
RADII = (0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 3.0)
LEAST_ESS = 100.0
MOST_UNUSABLE = 0.05  # share of rounds; with more of them the rest is a selection, not a sample

Gamma = float | Literal["auto"] | None
Matrix = np.ndarray[tuple[int, int], np.dtype[np.float64]]


@dataclass(frozen=True, repr=False)
class RoundScores(Shown):
    """Scores [models, rounds, n] on the samples that every model holds in every round.

    Attributes:
        log_likelihood: g, or any other score of which more is better, see `measure`.
        certainty: C, nats; None where there is none (scores from elsewhere), and then no γ.
        sum_log_prob: Σ log p_t, nats; None as well.
        num_tokens: Answer tokens; None as well.
        num_bytes: UTF-8 bytes of the answer; None as well.
        left_out: Rows that left all models, by reason, each counted once: "missing" in some table,
            "truncated", "unscored" (no answer tokens, or a NaN or infinite score), "no_bytes" (empty text).
        measure: What the score is, and its unit.
        groups: The items' groups, [n], where they have some.
    """

    shows = ("models", "rounds", "sample_ids", "log_likelihood", "left_out")

    models: list[str]
    rounds: list[str]
    sample_ids: list[str]
    log_likelihood: np.ndarray
    certainty: np.ndarray | None
    sum_log_prob: np.ndarray | None
    num_tokens: np.ndarray | None
    num_bytes: np.ndarray | None
    left_out: dict[str, int]
    measure: Measure = PER_TOKEN
    groups: list[str] | None = None

    @property
    def right_or_wrong(self) -> bool:
        """Whether all scores are 0 or 1: a worst case then follows from the mean alone, as the tails do."""
        return are_right_or_wrong(self.log_likelihood)

    def per_byte(self) -> "RoundScores":
        """The same with g = Σ log p / bytes, which models with different tokenizers have in common.

        Raises ValueError for scores from elsewhere.
        """
        if self.sum_log_prob is None or self.num_bytes is None:
            raise ValueError(f"{self.measure.noun} from elsewhere cannot be had per byte")
        return replace(self, log_likelihood=self.sum_log_prob / self.num_bytes, measure=PER_BYTE)


def round_scores(tables: Mapping[tuple[str, str], Dataset] | Mapping[str, Scores]) -> RoundScores:
    """Scores aligned by the items' ids; models and rounds in order of appearance.

    Args:
        tables: Score tables by (model, round), or by model what `klball.scores_from` gives.

    Raises:
        ValueError: A (model, round) is missing, a table repeats ids, or no row is in common.
    """
    if tables and all(isinstance(table, Scores) for table in tables.values()):
        return scores_elsewhere(tables)  # pyright: ignore[reportArgumentType]
    return _of_tables(tables)  # pyright: ignore[reportArgumentType]


def _refuse_absent(units: Collection[tuple[str, str]]) -> tuple[list[str], list[str]]:
    """The models and the rounds. Raises ValueError unless every model has every round."""
    models = list(dict.fromkeys(model for model, _ in units))
    rounds = list(dict.fromkeys(label for _, label in units))
    absent = [f"{m!r} in round {r!r}" for m in models for r in rounds if (m, r) not in units]
    if absent or not models:
        raise ValueError(f"no score table of {', '.join(absent[:3]) or 'any model'}: {len(absent)} missing")
    return models, rounds


def scores_elsewhere(scores: Mapping[str, Scores]) -> RoundScores:
    """Scores from elsewhere by model; items that one model lacks in some round leave for all.

    A model with one round has the round "all". Raises ValueError where the scores measure different things,
    or have row numbers for ids and nobody said that these match.
    """
    first = next(iter(scores.values()))
    for model, own in scores.items():
        if own.numbered and len(scores) > 1:
            raise ValueError(
                f"{own.sources[0][0].where if own.sources else model} has no column of ids: name it with "
                "--id COLUMN, or match rows by their number with --id none"
            )
        if (own.name, own.measure.loss) != (first.name, first.measure.loss):
            raise ValueError(
                f"{model!r} has {own.measure.score}, {next(iter(scores))!r} {first.measure.score}: compare "
                "the same score, with --score"
            )
    refuse_percentages(scores)
    same = len({own.measure for own in scores.values()}) == 1
    of_unit = {
        (model, label if len(own.round_names) > 1 else ONE_ROUND): own.of_round(label)
        for model, own in scores.items()
        for label in own.round_names
    }
    if len({len(own.round_names) for own in scores.values()}) > 1:
        had = ", ".join(f"{model!r} has {len(own.round_names)}" for model, own in scores.items())
        raise ValueError(
            f"models have different numbers of rounds ({had}): give each the same, or let klball evaluate "
            "compare their means over rounds"
        )
    models, rounds = _refuse_absent(of_unit)
    lacking = {item: why for own in scores.values() for item, why in own.lacking.items()}
    everywhere = set.intersection(*map(set, of_unit.values()))
    kept = [item for item in next(iter(of_unit.values())) if item in everywhere]
    anywhere = set(lacking).union(*of_unit.values())
    counts = Counter(missing=len(anywhere - set(kept) - set(lacking))) + Counter(lacking.values())
    if not kept:
        raise ValueError(
            "no item has a score of every model in every round: ids are such as "
            f"{', '.join(repr(own.sample_ids[0]) for own in scores.values())}: of the same items name their "
            "column with --id"
        )
    _refuse_mispaired(scores, everywhere)
    groups = _labels_of({model: own.group_of() for model, own in scores.items()}, "group")
    clusters = _labels_of({model: own.clusters for model, own in scores.items()}, "cluster")
    found = RoundScores(
        *(models, rounds, kept),
        np.array([[[of_unit[m, r][item] for item in kept] for r in rounds] for m in models]),
        *(None, None, None, None),
        left_out={"missing": 0, **counts},
        measure=first.measure if same else points(first.name, first.measure.loss),
        groups=[groups[item] for item in kept] if groups else None,
    )
    if not clusters:
        return found
    of = [clusters[item] for item in kept]
    names, means, own = over_clusters(found.log_likelihood, of, found.groups)
    return replace(found, sample_ids=names, log_likelihood=means, groups=own)


def _refuse_mispaired(scores: Mapping[str, Scores], items: Collection[str]) -> None:
    """Raise ValueError where two models have the same prompts under other ids."""
    first, *others = scores
    prompts = {
        model: {i: text["prompt"] for i, text in own.texts_of(items).items() if text.get("prompt")}
        for model, own in scores.items()
    }
    own = prompts[first]
    for model in others:
        theirs = prompts[model]
        apart = [i for i in own.keys() & theirs.keys() if own[i] != theirs[i]]
        texts = set(own.values())
        if 2 * len(apart) > len(own) and 10 * len(texts & set(theirs.values())) > 9 * len(texts):
            item = next(i for i in own if i in set(apart))
            raise ValueError(
                f"item {item!r} is {own[item]!r:.50} of {first!r} and {theirs[item]!r:.50} of {model!r}, "
                "though both have the same prompts: name the column that tells items apart with --id"
            )


def _labels_of(of_model: Mapping[str, Mapping[str, str]], what: str) -> dict[str, str]:
    """Item → group or cluster, of all models that name them. Raises ValueError for an item with two."""
    found: dict[str, str] = {}
    for model, own in of_model.items():
        for item, label in own.items():
            if found.setdefault(item, label) != label:
                raise ValueError(
                    f"item {item!r} is in {what} {label!r} by {model!r}, before in {found[item]!r}"
                )
    return found


def _of_tables(tables: Mapping[tuple[str, str], Dataset]) -> RoundScores:
    models, rounds = _refuse_absent(tables)
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


@dataclass(frozen=True, repr=False)
class RoundSolutions(Shown):
    """Worst cases of every model and round at one (ε, γ); all arrays are [models, rounds].

    An infeasible round has NaN for everything at the optimum.

    Attributes:
        measure: What g is, and its unit.
        worst_case: E_Q[g].
        lambda_: Multiplier of the ball.
        beta: Multiplier of the bound on the certainty.
        kl: KL(Q‖F), nats.
        ess: Effective sample size 1/Σq².
        gap: The solver's certificate.
        mean_log_likelihood: Plain mean of g.
        mean_certainty: Plain mean of C; NaN where there is none.
        gamma_margin: γ − γ_min, ∞ without γ.
        status: As in `klball.DualSolution`.
    """

    shows = ("models", "rounds", "n", "epsilon", "gamma", "worst_case", "lambda_", "beta", "ess")

    models: list[str]
    rounds: list[str]
    measure: Measure
    n: int
    epsilon: float
    gamma: float | None
    worst_case: np.ndarray
    lambda_: np.ndarray
    beta: np.ndarray
    kl: np.ndarray
    ess: np.ndarray
    gap: np.ndarray
    mean_log_likelihood: np.ndarray
    mean_certainty: np.ndarray
    gamma_margin: np.ndarray
    status: np.ndarray

    @property
    def of_tokens(self) -> bool:
        """Whether there are certainty, tokens and bytes: of scores from elsewhere there are none."""
        return not bool(np.isnan(self.mean_certainty).all())

    def usable(self) -> np.ndarray:
        """Rounds with finite (λ, β), [models, rounds]; the others are infeasible, at γ_min, or ε = 0."""
        return np.isfinite(self.lambda_) & np.isfinite(self.beta)

    def pair_rounds(self, a: int, b: int) -> np.ndarray:
        """The rounds that enter the comparison of two models: usable for both, [rounds]."""
        usable = self.usable()
        return usable[a] & usable[b]

    def least_ess(self, *models: int) -> float:
        """The smallest ESS over the rounds of these models (all by default); NaN where none is solved."""
        ess = self.ess[list(models)] if models else self.ess
        return float(np.nanmin(ess)) if np.isfinite(ess).any() else math.nan


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
    if not isinstance(scores, RoundScores):
        raise ValueError(f"scores must be what klball.round_scores makes, not {type(scores).__name__}")
    margin = math.inf
    if gamma is not None:
        least = _least_certainty(scores, epsilon)
        gamma = _between(scores, epsilon, least) if gamma == "auto" else gamma
        margin = gamma - least
    shape = scores.log_likelihood.shape
    c = None if scores.certainty is None else _rows(scores.certainty)
    s = solve_dual(loss=-_rows(scores.log_likelihood), certainty=c, epsilon=epsilon, gamma=gamma, throw=False)
    status = np.array(s.status)

    def of(values: np.ndarray) -> np.ndarray:
        return np.where(status == "infeasible", np.nan, values).reshape(shape[:2])

    return RoundSolutions(
        models=scores.models,
        rounds=scores.rounds,
        measure=scores.measure,
        n=shape[2],
        epsilon=float(epsilon),
        gamma=gamma,
        worst_case=of(s.worst_case),
        lambda_=of(s.lambda_),
        beta=of(s.beta),
        kl=of(s.kl),
        ess=of(s.ess),
        gap=of(s.gap),
        mean_log_likelihood=scores.log_likelihood.mean(axis=2),
        mean_certainty=np.full(shape[:2], np.nan)
        if scores.certainty is None
        else scores.certainty.mean(axis=2),
        gamma_margin=np.broadcast_to(margin, shape[:2]),
        status=status.reshape(shape[:2]),
    )


def propose_gamma(scores: RoundScores, epsilon: float) -> float:
    """A γ feasible for every model and round: half way from γ_min to E_Q[C] of the worst case without γ.

    Both are those of the (model, round) with the largest γ_min = min {E_Q[C] : KL(Q‖F) ≤ ε}, where the
    cap then binds. Models whose certainty runs lower can have a slack cap and β = 0: C is not comparable
    across vocabularies.
    """
    return _between(scores, epsilon, _least_certainty(scores, epsilon))


def _between(scores: RoundScores, epsilon: float, least: np.ndarray) -> float:
    hardest = np.unravel_index(least.argmax(), least.shape)
    certainty = _certainty(scores)[hardest]
    free = solve_dual(loss=-scores.log_likelihood[hardest], certainty=certainty, epsilon=epsilon)
    return float(least[hardest] + free.certainty) / 2


def largest_epsilon_with_ess(
    scores: RoundScores,
    gamma: Gamma = None,
    *,
    least_ess: float = LEAST_ESS,
    radii: Sequence[float] = RADII,
) -> float | None:
    """The largest radius of a grid at which every model and round is feasible with ESS ≥ `least_ess`.

    None where no radius qualifies (always so for fewer than `least_ess` samples). The ball must bind: λ > 0.
    """
    for epsilon in sorted(radii, reverse=True):
        solutions = solve_rounds(scores, epsilon=epsilon, gamma=gamma)
        binds = (solutions.lambda_ > 0).all()  # beyond it every score that has ties at its least is that
        if binds and solutions.usable().all() and solutions.least_ess() >= least_ess:
            return epsilon
    return None


def _least_certainty(scores: RoundScores, epsilon: float) -> np.ndarray:
    """γ_min of every model and round: the worst case of C itself."""
    least = solve_dual(loss=-_rows(_certainty(scores)), epsilon=epsilon).worst_case
    return least.reshape(scores.log_likelihood.shape[:2])


def _certainty(scores: RoundScores) -> np.ndarray:
    if scores.certainty is None:
        raise ValueError(f"{scores.measure.noun} from elsewhere comes without certainty: leave gamma out")
    return scores.certainty


def _rows(values: np.ndarray) -> Matrix:
    return values.reshape(-1, values.shape[-1])
