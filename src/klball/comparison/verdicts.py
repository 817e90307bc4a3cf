"""One sentence per pair of models: what can be claimed, and conditional on what."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from klball.comparison.calibration import (
    LEAST_ESS,
    LEVEL,
    has_heavy_tail,
    supports_over_items,
    supports_over_rounds,
)
from klball.comparison.effects import Effect
from klball.comparison.hypothesis_tests import PairTest
from klball.comparison.items import ItemInference
from klball.comparison.p_values import p_in_words
from klball.comparison.rounds import MOST_UNUSABLE, RoundSolutions
from klball.scores.elsewhere.item_scores import ONE_ROUND
from klball.scores.measure import Measure

LEAD = "worst_case"
HEAVY = "the tail is too heavy for a test at this ε (a smaller one may do)"


@dataclass(frozen=True)
class Verdict:
    """What the worst-case score allows to say of two models.

    claim: "items" (over items, averaged over these rounds), "rounds" (over rephrasings, on these items
    only), "undecided", or "descriptive" (no test here has a measured type I error of at most .07, or the
    effective sample size is below 30).
    over_items: whether a test over items holds here: without one nothing is said of other items.
    why: why the claim is descriptive, if it is for another reason than too few items.
    source_reading: the source's interpretation of λ and β, which klball shows and does not endorse.
    """

    model_a: str
    model_b: str
    claim: Literal["items", "rounds", "undecided", "descriptive"]
    sentence: str
    source_reading: str
    over_items: bool = False
    why: str = ""


def verdicts(
    solutions: RoundSolutions,
    tests: Sequence[PairTest],
    effects: Sequence[Effect],
    items: Sequence[ItemInference],
    like_these: str = "rephrasings like these",
) -> list[Verdict]:
    """A verdict for every pair, from `pairwise_tests`, `effect_sizes` and `delta_inference`.

    `like_these`: what the rounds are, for claims over rounds (see `klball.data.paraphrase.rounds.Rounds`).
    Claims use Holm's correction over all pairs at level .05. A pair that lost more than 5 % of its
    rounds is descriptive.
    """
    by_pair = {(t.model_a, t.model_b): t for t in tests if (t.test, t.quantity) == ("paired_t", LEAD)}
    of_effect = {(e.model_a, e.model_b, e.quantity): e for e in effects}
    of_items = {(i.model_a, i.model_b): i for i in items if i.quantity == LEAD and i.method == "delta"}
    return [
        _verdict(
            *(solutions, test, of_effect[*pair, LEAD], of_items[pair], like_these),
            _source_reading(of_effect, pair),
        )
        for pair, test in by_pair.items()
    ]


def _verdict(
    solutions: RoundSolutions,
    test: PairTest,
    effect: Effect,
    item: ItemInference,
    like_these: str,
    reading: str,
) -> Verdict:
    claim, sentence = _claim(solutions, test, effect, item, like_these)
    over_items = _holds_over_items(item, solutions)
    why = HEAVY if claim == "descriptive" and not over_items and _is_heavy(item, solutions) else ""
    return Verdict(test.model_a, test.model_b, claim, sentence, reading, over_items, why)


def _is_heavy(item: ItemInference, solutions: RoundSolutions) -> bool:
    return not item.degenerate and has_heavy_tail(
        "delta", LEAD, ess=item.ess, n=solutions.n, epsilon=solutions.epsilon
    )


def _holds_over_items(item: ItemInference, solutions: RoundSolutions) -> bool:
    return not item.degenerate and supports_over_items(
        "delta", LEAD, ess=item.ess, n=solutions.n, epsilon=solutions.epsilon
    )


def _claim(
    solutions: RoundSolutions, test: PairTest, effect: Effect, item: ItemInference, like_these: str
) -> tuple[Literal["items", "rounds", "undecided", "descriptive"], str]:
    lost = len(solutions.rounds) - effect.rounds
    difference = _comparison(effect, solutions)
    ess = f"ESS = {item.ess:.3g} of {solutions.n}"
    if lost > MOST_UNUSABLE * len(solutions.rounds):
        why = f"{lost} of {len(solutions.rounds)} rounds are infeasible or at γ_min for one of the models"
        return (
            "descriptive",
            f"Descriptive: {why}, so the rest is a selection; raise γ or lower ε. {difference}.",
        )
    over_rounds = not test.degenerate and supports_over_rounds("paired_t", LEAD, test.rounds)
    interval = _interval(effect, effect.mean_low, effect.mean_high, effect, solutions.measure)
    if item.ess < LEAST_ESS:
        on_these = f" on these {solutions.n} items ({interval} over {like_these})" if over_rounds else ""
        return (
            "descriptive",
            f"Descriptive: {ess}, so a few items decide. {difference}{on_these}; that is no claim.",
        )
    over_items = _holds_over_items(item, solutions)
    of_items = _interval(item, item.low, item.high, effect, solutions.measure)
    if over_items and _significant(item):
        rounds = "" if solutions.rounds == [ONE_ROUND] else f", {_rounds(effect.rounds)}"
        scope = f"for items like these {solutions.n}{rounds}"
        return (
            "items",
            f"{difference} {scope} (over items: {of_items}, {_holm(item)}; {ess}).",
        )
    heavy = not over_items and _is_heavy(item, solutions)
    why = item.degenerate or (f"{ess}, and {HEAVY}" if heavy else ess)
    beyond = f"undecided ({of_items})" if over_items else f"descriptive: {why}"
    if over_rounds and _significant(test):
        scope = f"on these {solutions.n} items only, over {like_these}"
        return (
            "rounds",
            f"{difference} {scope} ({interval}, {_holm(test)}); beyond these items {beyond}.",
        )
    if not over_rounds and not over_items:
        return (
            "descriptive",
            f"Descriptive: {why}, {_counted(effect.rounds)}. {difference}, without a test that holds.",
        )
    return (
        "undecided",
        f"Undecided: {difference}{_more_rounds(effect, over_rounds, interval)}; beyond these items {beyond}.",
    )


def _counted(rounds: int) -> str:
    return "1 usable round" if rounds == 1 else f"{rounds} usable rounds"


def _comparison(effect: Effect, solutions: RoundSolutions) -> str:
    """Which of the two has the higher worst case, and by how much."""
    measure = solutions.measure
    a, b = effect.model_a, effect.model_b
    if math.isnan(effect.mean):
        return f"{a} and {b} have no usable round in common at ε = {solutions.epsilon:g}"
    if effect.mean == 0:  # `effects` has taken rounding out
        return f"{a} and {b} have the same worst-case {measure.noun} at ε = {solutions.epsilon:g}"
    better, worse = (a, b) if effect.mean > 0 else (b, a)
    who = f"{better} has a {measure.better} worst-case {measure.noun} than {worse}"
    return f"{who} at ε = {solutions.epsilon:g}, by {measure.amount(abs(effect.mean))}"


def _more_rounds(effect: Effect, over_rounds: bool, interval: str) -> str:
    """How much more data a paired t would need on these items, where one may be used at all."""
    if not over_rounds or effect.degenerate:
        return ""
    if math.isinf(effect.rounds_needed):
        return f" over {effect.rounds} rounds ({interval})"
    return (
        f" over {effect.rounds} rounds ({interval}); were that the true difference on these items, "
        f"{effect.rounds_needed:.0f} rounds would settle it with power .8"
    )


def _rounds(count: int) -> str:
    return "in this one round" if count == 1 else f"averaged over these {count} rounds"


def _significant(result: PairTest | ItemInference) -> bool:
    return result.minus_log10_holm >= -math.log10(LEVEL)


def _interval(of: Effect | ItemInference, low: float, high: float, effect: Effect, measure: Measure) -> str:
    """Of the difference that the sentence names: of scores the better model's minus the other's, of losses
    the other's minus its."""
    if math.isnan(low) or math.isnan(high):
        return "no interval"
    return bounds_in_words(of.model_a, of.model_b, low, high, effect.mean, measure)


def _holm(result: PairTest | ItemInference) -> str:
    return f"Holm {p_in_words(result.minus_log10_holm)}"


def bounds_in_words(a: str, b: str, low: float, high: float, difference: float, measure: Measure) -> str:
    """The interval of a − b, turned to the better model's score minus the other's, of losses the other way.

    difference: a − b; its sign says which is the better.
    """
    if difference < 0:
        a, b, low, high = b, a, -high, -low
    first, second = (b, a) if measure.loss else (a, b)
    bounds = f"{low:.3g} to {high:.3g}".replace("-", "−")
    return f"95 % interval of {first} − {second}: {bounds}"


def _source_reading(effects: dict[tuple[str, str, str], Effect], pair: tuple[str, str]) -> str:
    """What the slides would conclude from the means of λ and β."""
    lambda_, beta = effects[*pair, "lambda_"], effects[*pair, "beta"]
    if math.isnan(lambda_.mean):
        return "The source's reading needs (λ, β), and no round has them for both models."
    if lambda_.mean == 0:
        first = "λ does not tell them apart"
    else:
        higher = pair[0] if lambda_.mean > 0 else pair[1]
        first = (
            f'a larger λ, here {higher}\'s by {abs(lambda_.mean):.3g}, means "more reliable on rare prompts"'
        )
    if beta.mean == 0:
        second = "β does not tell them apart"
    else:
        lower = pair[1] if beta.mean > 0 else pair[0]
        second = f'a smaller β, here {lower}\'s by {abs(beta.mean):.3g}, means "more consistent"'
    return (
        f"The source's reading (not a claim of this comparison): {first}; {second}. "
        "Yet λ = dL/dε, so at one ε a larger λ means a more uneven model."
    )
