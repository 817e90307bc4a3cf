"""All that a comparison computes from its scores, and the rows of its tables."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from typing import Any, TypeVar

import numpy as np

from klball.adversary import inputs
from klball.adversary.dual import robust_profile
from klball.comparison.averages import MeanDifference, mean_differences
from klball.comparison.effects import Effect, Spread, effect_sizes, spreads
from klball.comparison.hypothesis_tests import PAIR, PairTest, pairwise_tests
from klball.comparison.items import ItemInference, bootstrap, check_resamples, delta_inference
from klball.comparison.joint import JointRegion, bootstrap_regions, delta_regions
from klball.comparison.plain_words import JudgedPair, line_of_verdict
from klball.comparison.rounds import (
    LEAST_ESS,
    Gamma,
    RoundScores,
    RoundSolutions,
    largest_epsilon_with_ess,
    solve_rounds,
)
from klball.comparison.verdicts import LEAD, Verdict, verdicts
from klball.scores.parts import Progress
from klball.scores.perplexity import RADII
from klball.shown import Shown, brief

CLAIMS = ("items", "rounds", "undecided", "descriptive")  # the one that says most first
SOURCE_TESTS = (("welch_t", "lambda_"), ("welch_t", "beta"), ("hotelling", PAIR))


@dataclass(frozen=True)
class Analysis:
    """Everything at one (ε, γ).

    items: the delta method; resampled: the bootstrap, if it was asked for; joint: regions of (λ, β) by both.
    """

    solutions: RoundSolutions
    tests: list[PairTest]
    effects: list[Effect]
    spreads: list[Spread]
    items: list[ItemInference]
    resampled: list[ItemInference]
    joint: list[JointRegion]
    verdicts: list[Verdict]

    @property
    def name(self) -> str:
        """How tables call it."""
        gamma = "" if self.solutions.gamma is None else f", γ = {self.solutions.gamma:.4g}"
        return f"ε = {self.solutions.epsilon:g}{gamma}"

    def judged(self, models: tuple[str, str]) -> JudgedPair:
        """The verdict on two models, and the worst cases' difference that it is of."""
        return JudgedPair(*self._by_pair[models], self.solutions)

    @cached_property
    def _by_pair(self) -> dict[tuple[str, str], tuple[Verdict, Effect]]:
        leads = {(e.model_a, e.model_b): e for e in self.effects if e.quantity == LEAD}
        return {(v.model_a, v.model_b): (v, leads[v.model_a, v.model_b]) for v in self.verdicts}


@dataclass(frozen=True, repr=False)
class Comparison(Shown):
    """Models compared over rounds.

    Attributes:
        scores: What they were compared by.
        asked: The analysis at the (ε, γ) asked for.
        wide: That at the largest ε with ESS ≥ 100 at which every ball binds, without γ, if there is one.
        profiles: Rows model, ε, worst-case loss, λ, ESS: means over rounds.
        about: The models' provenance.
        averages: Differences of means, beside the worst cases.
    """

    scores: RoundScores
    asked: Analysis
    wide: Analysis | None
    profiles: list[dict[str, Any]]
    about: dict[str, Any]
    averages: list[MeanDifference]

    def analyses(self) -> list[Analysis]:
        """The one with the larger effective sample size first: its claims hold the most."""
        return [a for a in (self.wide, self.asked) if a is not None]

    def lines(self) -> list[str]:
        """Every pair of models in one plain line, claims first."""
        asked = self.asked.solutions
        return [
            line_of_verdict(pair, self._mean_of(pair), asked, self.scores.right_or_wrong)
            + self._contrary(pair)
            for pair in self._pairs
        ]

    def on_average(self) -> list[str]:
        """The differences of means that the lines speak of, in full."""
        return [self._mean_of(pair).sentence(self.scores.measure) for pair in self._pairs]

    @cached_property
    def _pairs(self) -> list[JudgedPair]:
        """Of every pair the verdict of the radius asked for; where it only describes, that of the other.

        The choice does not look at which of the two is significant: the better of two tests is no test.
        """
        found = []
        for verdict in self.asked.verdicts:
            pair = self.asked.judged((verdict.model_a, verdict.model_b))
            if verdict.claim == "descriptive" and self.wide is not None:
                pair = self.wide.judged(pair.models)
            found.append(pair)
        return sorted(found, key=lambda pair: CLAIMS.index(pair.verdict.claim))

    def _mean_of(self, pair: JudgedPair) -> MeanDifference:
        """The difference of means over what the pair's verdict speaks of."""
        return self._means[*pair.models, pair.over]

    @cached_property
    def _means(self) -> dict[tuple[str, str, str], MeanDifference]:
        return {(d.model_a, d.model_b, d.over): d for d in self.averages}

    def _contrary(self, pair: JudgedPair) -> str:
        """A sentence where the other radius allows the opposite claim; else ""."""
        for analysis in self.analyses():
            other = analysis.judged(pair.models)
            if pair.claims and other.claims and other.effect.mean * pair.effect.mean < 0:
                by = self.scores.measure.amount(abs(other.effect.mean))
                return f" At {analysis.name} it is the other way round (by {by})."
        return ""

    def said(self) -> list[tuple[Analysis, str]]:
        """The verdicts' sentences, claims before what only describes."""
        found = [(a, v) for a in self.analyses() for v in a.verdicts]
        claims = [(a, v.sentence) for a, v in found if v.claim != "descriptive"]
        return claims + [(a, v.sentence) for a, v in found if v.claim == "descriptive"]

    def shown(self) -> dict[str, str]:
        s = self.scores
        of = {"models": s.models, "rounds": len(s.rounds), "items": len(s.sample_ids)}
        at = "; ".join(analysis.name for analysis in self.analyses())
        return {**{name: brief(value) for name, value in of.items()}, "at": at}

    def _repr_html_(self) -> str:
        said = "".join(f"<li>{escape(sentence)}</li>" for _, sentence in self.said())
        return f"{self.as_table()}<ul>{said}</ul>"

    def caution(self) -> str:
        """What comes first where there is no ground for more; "" where there is."""
        n = len(self.scores.sample_ids)
        if self.wide is not None or self.asked.solutions.least_ess() >= LEAST_ESS:
            return ""
        few = "there is only 1 item" if n == 1 else f"there are only {n} items"
        why = few if n < 2 * LEAST_ESS else "at every radius few of them decide"
        return (
            f"No comparison at an effective sample size of {LEAST_ESS:g} or more: {why}. At "
            f"{self.asked.name} the least is {self.asked.solutions.least_ess():.3g} of {n}."
        )


def compare_scores(
    scores: RoundScores,
    epsilon: float,
    gamma: Gamma = None,
    resamples: int = 0,
    about: dict[str, Any] | None = None,
    progress: Progress | None = None,
    like_these: str = "rephrasings like these",
) -> Comparison:
    """Solve and test at (ε, γ), and at the largest radius whose ESS is at least 100.

    Of scores from elsewhere the second is for an ε with less than that, or one at which some worst case is
    the least score of all: at large radii a worst case of 0 and 1 says nothing any more.

    Args:
        scores: What `round_scores` made of the score tables.
        epsilon: Radius of the ball, nats.
        gamma: Bound on E_Q[C], nats; "auto" proposes one, None leaves it out.
        resamples: Bootstrap resamples of the items; 0 for none.
        about: What the comparison should remember of its models.
        progress: Called with resamples done and resamples in all.
        like_these: What the rounds are, for the verdicts' sentences.

    Raises:
        ValueError: No round of any model can be solved, no ball, or no such number of resamples.
    """
    if not inputs.radius("epsilon", epsilon) > 0:
        raise ValueError(f"epsilon must be above 0, not {epsilon!r}: without a ball λ is infinite")
    check_resamples(resamples)
    asked = _analysed(scores, epsilon, gamma, resamples, progress, like_these)
    binds = bool((asked.solutions.lambda_ > 0).all())
    enough = scores.certainty is None and binds and asked.solutions.least_ess() >= LEAST_ESS
    wide = None if enough else largest_epsilon_with_ess(scores)
    same = wide == epsilon and asked.solutions.gamma is None
    analysis = (
        None if wide is None or same else _analysed(scores, wide, None, resamples, progress, like_these)
    )
    profiles, averages = _profiles(scores), mean_differences(scores)
    return Comparison(scores, asked, analysis, profiles, about or {}, averages)


def _analysed(
    scores: RoundScores,
    epsilon: float,
    gamma: Gamma,
    resamples: int,
    progress: Progress | None,
    like_these: str,
) -> Analysis:
    solutions = solve_rounds(scores, epsilon=epsilon, gamma=gamma)
    if not np.isfinite(solutions.worst_case).any():
        least = _rounded_up((solutions.gamma or 0.0) - np.nanmin(solutions.gamma_margin))
        raise ValueError(
            f"gamma = {solutions.gamma:.6g} is below what any mixture in the ball reaches, for every model "
            f"and round: from {least:.6g} on all of them reach it; raise it, or leave it out"
        )
    tests, effects = pairwise_tests(solutions), effect_sizes(solutions)
    items = delta_inference(scores, solutions)
    resampled, joint = [], delta_regions(scores, solutions)
    if resamples:
        drawn = bootstrap(scores, solutions, resamples=resamples, progress=progress)
        resampled, joint = drawn.inference(), joint + bootstrap_regions(drawn)
    said = verdicts(solutions, tests, effects, items, like_these)
    of_rounds = spreads(solutions)
    if not solutions.of_tokens:  # β is 0 everywhere
        tests, effects, of_rounds = _without_beta(tests), _without_beta(effects), _without_beta(of_rounds)
        items, resampled, joint = _without_beta(items), _without_beta(resampled), []
    return Analysis(solutions, tests, effects, of_rounds, items, resampled, joint, said)


def _rounded_up(value: float) -> float:
    """To four digits: a bound that was rounded down would be below what can be reached."""
    digits = 3 - math.floor(math.log10(abs(value) or 1.0))
    return math.ceil(value * 10.0**digits) / 10.0**digits


Row = TypeVar("Row", PairTest, Effect, Spread, ItemInference)


def _without_beta(rows: list[Row]) -> list[Row]:
    return [row for row in rows if row.quantity not in ("beta", PAIR)]


def _profiles(scores: RoundScores) -> list[dict[str, Any]]:
    rows = []
    for m, model in enumerate(scores.models):
        rounds = [robust_profile(loss=-g, epsilons=RADII) for g in scores.log_likelihood[m]]
        for k, epsilon in enumerate(RADII):
            values = [(p.robust_loss[k], p.lambda_[k], p.ess[k]) for p in rounds]
            loss, lambda_, ess = np.mean(values, axis=0).tolist()
            rows.append(
                {"model": model, "epsilon": epsilon, "robust_loss": loss, "lambda": lambda_, "ess": ess}
            )
    return rows


OF_TOKENS = ("mean_certainty", "beta", "gamma_margin")  # which other scores lack


def _called(name: str, solutions: RoundSolutions) -> str:
    return "mean_score" if name == "mean_log_likelihood" and not solutions.of_tokens else name


def round_rows(analysis: Analysis) -> list[dict[str, Any]]:
    """One row per model and round with every number of the solve."""
    s = analysis.solutions
    columns = ["worst_case", "mean_log_likelihood", "mean_certainty", "lambda_", "beta"]
    columns += ["kl", "ess", "gap", "gamma_margin"]
    if not s.of_tokens:
        columns = [name for name in columns if name not in OF_TOKENS]
    rows = []
    for m, model in enumerate(s.models):
        for r, round_ in enumerate(s.rounds):
            numbers = {_called(name, s): float(getattr(s, name)[m, r]) for name in columns}
            gamma = {"gamma": "" if s.gamma is None else s.gamma} if s.of_tokens else {}
            at = {"epsilon": s.epsilon, **gamma}
            rows.append({"model": model, "round": round_, **at, **numbers, "status": str(s.status[m, r])})
    return rows


def source_summary(analysis: Analysis) -> list[dict[str, Any]]:
    """The source's summary: averages over the usable rounds, per model."""
    s = analysis.solutions
    usable = s.usable()
    rows = []
    for m, model in enumerate(s.models):
        row: dict[str, Any] = {"model": model, "rounds": int(usable[m].sum())}
        for name in ("mean_log_likelihood", "mean_certainty", "lambda_", "beta", "worst_case"):
            if name in OF_TOKENS and not s.of_tokens:
                continue
            values = getattr(s, name)[m][usable[m]]
            row[_called(name, s)] = float(values.mean()) if len(values) else float("nan")
        rows.append(row)
    return rows


def matrix_rows(models: Sequence[str], matrix: np.ndarray) -> list[dict[str, Any]]:
    """−log10 p as rows, their model under ""; NaN (the diagonal, or degenerate) as "—"."""
    cells = [["—" if np.isnan(x) else float(x) for x in row] for row in matrix]
    return [{"": a, **dict(zip(models, row, strict=True))} for a, row in zip(models, cells, strict=True)]
