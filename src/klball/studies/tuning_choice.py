"""Which radius: how long arms are trained, which go on, and which is chosen, by rules stated beforehand."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

Row = Mapping[str, Any]  # of `frontier_row`, with arm, kind and epsilon


@dataclass(frozen=True)
class Rung:
    """Arms beside ε = 0 that are trained to this share of the steps."""

    share: float
    challengers: int


def rungs_of(challengers: int, halving: bool) -> list[Rung]:
    """Half as many arms at each rung, rounded down, until one goes to the end, for twice the steps."""
    counts = [challengers]
    while halving and counts[-1] > 1:
        counts.append(counts[-1] // 2)
    return [Rung(2.0 ** (place + 1 - len(counts)), count) for place, count in enumerate(counts)]


def cost_of(rungs: Sequence[Rung]) -> float:
    """Steps of all arms, that of ε = 0 included, in whole runs: Σ (1 + m_r)(share_r − share_{r−1})."""
    before = [Rung(0.0, 0), *rungs]
    return sum((1 + rung.challengers) * (rung.share - last.share) for last, rung in pairwise(before))


def is_affordable(row: Row, max_cost: float) -> bool:
    """Whether its mean is worse than that of ε = 0 by `max_cost` at most; NaN is not."""
    return row["mean_ratio"] <= 1 + max_cost


def gains(row: Row, tail: str) -> bool:
    """Whether the interval of its tail lies wholly below that of ε = 0; NaN does not."""
    return row[f"{tail}_high"] < 1


def chosen(rows: Sequence[Row], tail: str, max_cost: float) -> Row | None:
    """Of the arms that are affordable and gain, the one with the largest ε; None for ε = 0.

    Radii of different kinds (over samples, over groups, capped) do not compare: of the largest of each kind
    it is the one with the best tail, and of those that tie the first.
    """
    largest: dict[str, Row] = {}
    for row in rows:
        if not (is_affordable(row, max_cost) and gains(row, tail)):
            continue
        best = largest.get(row["kind"])
        if best is None or row["epsilon"] > best["epsilon"]:
            largest[row["kind"]] = row
    return min(largest.values(), key=lambda row: row[f"{tail}_ratio"], default=None)


def kept(rows: Sequence[Row], count: int, tail: str, max_cost: float) -> list[str]:
    """The arms that go on: affordable ones by their tail, then the others by their cost; NaN comes last.

    Affordable are here costs of up to `max_cost` over the share of the steps that are done, for what a radius
    costs on the mean shrinks as training goes on.
    """

    def place(row: Row) -> tuple[int, float]:
        if is_affordable(row, max_cost / row["share"]) and not math.isnan(row[f"{tail}_ratio"]):
            return 0, row[f"{tail}_ratio"]
        return (2, 0.0) if math.isnan(row["mean_ratio"]) else (1, row["mean_ratio"])

    return [row["arm"] for row in sorted(rows, key=place)[:count]]
