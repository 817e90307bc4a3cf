"""What the rows that would dominate robust training look like, and what to do about them, in words."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from klball.scan.suspicion import SIGNS, Matter, columns_that_could_name_groups, matter_of, signs_of

TOP, LEAST = 0.05, 20  # the share of rows looked at, and the fewest
DOMINATES = 2.0  # times an even share, of odds: of few rows those looked at are up to a half
FEWEST = 5  # rows that may have something in common
NOISY = 0.2  # share of the rows looked at that bears a sign
TIMES = 3.0  # how often over a radius that is suggested lets rare matter count
CAREFUL = 0.05  # nats


@dataclass(frozen=True)
class Advice:
    """Sentences for people, and the rows that they are about: position, n·q and signs of each."""

    sentences: list[str]
    rows: list[dict[str, Any]]


def radius_for(share: float) -> float:
    """The ε at which this share f of the data may count t = 3 times, at most a half in all.

    ε = kl(t·f‖f) = t·f·log t + (1 − t·f)·log((1 − t·f)/(1 − f)), in nats.
    """
    part = min(TIMES * share, max(0.5, share))
    if part >= 1:
        return 0.0
    return part * math.log(part / share) + (1 - part) * math.log((1 - part) / (1 - share))


def advise(
    prompts: Sequence[str],
    answers: Sequence[str],
    tokens: np.ndarray,
    weights: np.ndarray,
    epsilon: float,
    columns: Mapping[str, Sequence[Any]],
) -> Advice:
    """What dominates under weights n·q [n] of a ball of radius ε, and what that suggests.

    tokens: lengths of the answers, [n]. columns: what else the rows hold, which may name groups.
    """
    n = len(weights)
    if n < 2 * LEAST:
        return Advice(
            [f"{n} rows are too few to say what dominates: from {2 * LEAST} on there is advice."], []
        )
    order = np.argsort(-weights, kind="stable")[: max(LEAST, math.ceil(TOP * n))]
    top = np.zeros(n, dtype=bool)
    top[order] = True
    held, even = float(weights[top].sum() / weights.sum()), len(order) / n
    texts, names = prompts if any(prompts) else answers, columns_that_could_name_groups(columns)
    kind = matter_of(top, names, texts)
    signs = signs_of(prompts, answers, tokens, None if kind is None else kind.rows)
    clean = ~np.logical_or.reduce([*signs.values()])
    rows = [
        {"row": int(i), "n_q": float(weights[i]), "signs": ", ".join(s for s in SIGNS if signs[s][i])}
        for i in order
    ]
    first = (
        f"At ε = {epsilon:g} the heaviest {len(order)} of {n} rows hold {held:.0%} of the weight; "
        f"an even share is {even:.0%}."
    )
    if held * (1 - even) < DOMINATES * even * (1 - held):
        return Advice([first, _nothing_dominates()], rows)
    noise = _noise(top, signs, clean)
    unsuspected = top & clean
    matter = matter_of(unsuspected, names, texts) if unsuspected.sum() >= FEWEST else None
    found = [sentence for sentence in (noise, matter and _of_matter(matter, bool(noise))) if sentence]
    return Advice([first, *found, _suggestion(bool(noise), matter)], rows)


def _noise(top: np.ndarray, signs: Mapping[str, np.ndarray], clean: np.ndarray) -> str:
    """The signs of noise among the top rows; "" where they are no more frequent than elsewhere."""
    table = [[(top & ~clean).sum(), (top & clean).sum()], [(~top & ~clean).sum(), (~top & clean).sum()]]
    test: Any = stats.fisher_exact(table, alternative="greater")
    share, elsewhere = ((~clean)[part].mean() for part in (top, ~top))
    if share < NOISY or test.pvalue >= 0.01:
        return ""
    counts = {sign: int((marks & top).sum()) for sign, marks in signs.items()}
    named = [f"{count} {SIGNS[sign]}" for sign, count in counts.items() if count]
    return f"{share:.0%} of them bear a sign of noise, of the others {elsewhere:.0%}: {'; '.join(named)}."


def _of_matter(matter: Matter, noisy: bool) -> str:
    values = ", ".join(matter.values)
    if matter.column is not None:
        what = f"{matter.column} = {values}"
    else:
        what = f"the words {values}" if len(matter.values) > 1 else f"the word {values}"
    which = "Of the rest of them" if noisy else "Of them"
    return f"{which} {matter.among:.0%} have {what}, of all rows {matter.share:.0%}: a kind of its own."


def _suggestion(noisy: bool, matter: Matter | None) -> str:
    if matter is None:
        return _against_noise() if noisy else _unknown()
    epsilon = f"--epsilon {radius_for(matter.share):.2g}"
    reach = f"at which those {matter.share:.0%} may count up to {_times(matter.share):.2g} times over"
    if matter.column is not None:
        over = f"--group_column {matter.column} {epsilon}, {reach}"
        why = ": a group's score is a mean, which single bad rows do not move" if noisy else ""
        kind = "noise and rare matter" if noisy else "rare matter, not noise"
        return f"This looks like {kind}: weigh groups, {over}{why}."
    if noisy:
        return (
            "This looks like noise and rare matter: first leave out what is wrong in advice.csv; then "
            f"{epsilon}, {reach}, with the cap --max_weight {math.ceil(_times(matter.share))}, so that no "
            "row counts more; better, name the kind in a column and weigh groups (--group_column)."
        )
    return (
        f"This looks like rare matter, not noise: {epsilon}, {reach}, and no cap; name the kind in a column "
        "to weigh groups (--group_column) where you can."
    )


def _times(share: float) -> float:
    return min(TIMES, max(0.5, share) / share)


def _against_noise() -> str:
    return (
        "This looks like noise, which the adversary would follow: leave out (trim) what is wrong in "
        f"advice.csv; until then --epsilon {CAREFUL:g} at most, with the cap --max_weight 2, so that no row "
        "counts more than twice."
    )


def _unknown() -> str:
    return (
        "They bear no sign of noise and have nothing in common that could be found: read them in advice.csv; "
        f"begin at --epsilon {CAREFUL:g}, and let klball tune compare it with ε = 0."
    )


def _nothing_dominates() -> str:
    return (
        "Nothing dominates: the losses are even, and there is little for robustness to buy. klball tune "
        "tells whether there is any."
    )
