"""Which of two models is better where, in one line for somebody who will read no second one."""

from collections.abc import Sequence
from dataclasses import dataclass

from klball.comparison.averages import MeanDifference
from klball.comparison.effects import Effect
from klball.comparison.rounds import RoundSolutions
from klball.comparison.verdicts import Verdict

AGAINST = {1: "better than", -1: "worse than", 0: "not clearly different from"}
AGAIN = {1: "better", -1: "worse", 0: "not clearly different"}
AVERAGE = "on average"
FEW = "the data do not suffice"
OWN_HARD = "on each model's own hard"


@dataclass(frozen=True)
class Side:
    """One model against another on a part of the data.

    where: "on hard prompts". better: 1, or −1 for worse, 0 for not clearly different, None where it cannot
    be told, `why` says why. by: the size of the difference with its unit.
    """

    where: str
    better: int | None
    by: str = ""
    why: str = FEW

    def amount(self) -> str:
        """The size in brackets, of a difference that is clear."""
        return f" (by {self.by})" if self.better and self.by else ""


def plain_line(model: str, other: str, sides: Sequence[Side], scope: str) -> str:
    """ "b is better than a on hard prompts (by .2 nats per token), but worse on average (by .01 …), SCOPE."""
    judged = [side for side in sides if side.better is not None]
    unknown = [side for side in sides if side.better is None]
    if not judged:
        return f"Whether {model} is better than {other} cannot be told: {unknown[0].why}."
    first, *more = judged
    line = f"{model} is {AGAINST[first.better or 0]} {other} {first.where}{first.amount()}"
    for side in more:
        if side.better == first.better:
            word = " and" if side.better else " or"
        else:
            word = f"{', but' if first.better and side.better else ' and'} {AGAIN[side.better or 0]}"
        line += f"{word} {side.where}{side.amount()}"
    line += f", {scope}."
    return line + "".join(f" Nothing can be said {side.where}: {side.why}." for side in unknown)


@dataclass(frozen=True)
class JudgedPair:
    """What is said of two models at one radius; effect: the difference of their worst cases."""

    verdict: Verdict
    effect: Effect
    solutions: RoundSolutions

    @property
    def models(self) -> tuple[str, str]:
        """a and b."""
        return self.verdict.model_a, self.verdict.model_b

    @property
    def claims(self) -> bool:
        """Whether the verdict says that one of them is better."""
        return self.verdict.claim in ("items", "rounds")

    @property
    def over(self) -> str:
        """ "rounds" where a test holds on these items only."""
        undecided = self.verdict.claim == "undecided" and not self.verdict.over_items
        return "rounds" if undecided or self.verdict.claim == "rounds" else "items"


def at_another_radius(solutions: RoundSolutions, asked: RoundSolutions) -> str:
    """How this radius differs from the one asked for: " at ε = .1", or " without γ"."""
    return " without γ" if solutions.epsilon == asked.epsilon else f" at ε = {solutions.epsilon:.3g}"


def line_of_verdict(
    pair: JudgedPair, mean: MeanDifference, asked: RoundSolutions, right_or_wrong: bool = False
) -> str:
    """The line of a pair: b against a. mean: over what the verdict is over; asked: those asked for.

    The worst case of right and wrong follows from the mean: hard items would be those that each got wrong.
    """
    verdict, effect, solutions = pair.verdict, pair.effect, pair.solutions
    measure, what = solutions.measure, "prompts" if solutions.of_tokens else "items"
    better = {"undecided": 0, "descriptive": None}.get(verdict.claim, 1 if effect.mean < 0 else -1)
    scope = f"for {what} like these {solutions.n}"
    if mean.over == "rounds":
        scope = f"on these {solutions.n} {what} only"
    radius = "" if solutions is asked else at_another_radius(solutions, asked)
    hard = Side(f"{OWN_HARD} {what}{radius}", better, measure.amount(abs(effect.mean)), verdict.why or FEW)
    average = Side(AVERAGE, mean.better, measure.amount(abs(mean.value)))
    sides = [average] if right_or_wrong else [hard, average]
    return plain_line(verdict.model_b, verdict.model_a, sides, scope)
