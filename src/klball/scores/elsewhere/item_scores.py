"""Scores of the items of one model: what `klball.scores_from` gives."""

import logging
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from klball.adversary.answers import DualSolution
from klball.adversary.dual import RobustProfile, robust_profile, solve_dual
from klball.scores.elsewhere.expression import is_share
from klball.scores.elsewhere.source import Source
from klball.scores.measure import Measure
from klball.shown import Shown

ONE_ROUND = "all"
PERCENT = 20  # times as large may be percentages beside shares

logger = logging.getLogger(__name__)


@dataclass(frozen=True, repr=False)
class Scores(Shown):
    """Scores of the items of one model, more being better; a row an item, or an item and round.

    Attributes:
        measure: What they are, and their unit.
        name: The column or sum that they are.
        sample_ids: [rows].
        values: [rows], float64: minus the source's own numbers where less is better.
        rounds: [rows], in the order of the rounds; "all" where there is one.
        groups: [rows], or None.
        clusters: Item → the cluster whose mean counts as one item; empty where items are independent.
        lacking: Items without a score in some round → "unscored", "truncated".
        numbered: The ids are row numbers, because there is no column of ids.
        notes: What was chosen where nothing was said, in sentences.
    """

    shows = ("name", "values", "round_names", "lacking", "notes")

    measure: Measure
    name: str
    sample_ids: list[str]
    values: np.ndarray
    rounds: list[str]
    groups: list[str] | None = None
    clusters: dict[str, str] = field(default_factory=dict)
    lacking: dict[str, str] = field(default_factory=dict)
    numbered: bool = False
    notes: tuple[str, ...] = ()
    sources: tuple[tuple[Source, list[str]], ...] = field(default=())  # and their rows' ids

    def __repr__(self) -> str:
        rounds = f" in {len(self.round_names)} rounds" if len(self.round_names) > 1 else ""
        items = len(self) // len(self.round_names) if rounds else len(self)
        return f"Scores({items} items{rounds}: {self.measure.title})"

    def __len__(self) -> int:
        return len(self.sample_ids)

    @cached_property
    def round_names(self) -> list[str]:
        """The rounds, in order."""
        return list(dict.fromkeys(self.rounds))

    def of_rows(self, rows: Sequence[int]) -> "Scores":
        """Some of the rows."""
        return replace(
            self,
            sample_ids=[self.sample_ids[row] for row in rows],
            values=self.values[list(rows)],
            rounds=[self.rounds[row] for row in rows],
            groups=None if self.groups is None else [self.groups[row] for row in rows],
        )

    def of_round(self, name: str) -> dict[str, float]:
        """Item → score of one round."""
        return {
            i: float(v)
            for i, v, r in zip(self.sample_ids, self.values, self.rounds, strict=True)
            if r == name
        }

    def group_of(self) -> dict[str, str]:
        """Item → group. Raises ValueError for an item with two."""
        return label_of(self.sample_ids, self.groups, "groups") if self.groups else {}

    def per_item(self) -> "Scores":
        """One row an item: the mean over rounds, of the items that every round has."""
        if len(self.round_names) == 1:
            return self
        counts = Counter(self.sample_ids)
        kept = [i for i, count in counts.items() if count == len(self.round_names)]
        if not kept:
            raise ValueError(
                f"no item is in all {len(self.round_names)} rounds: an item needs the same id in each (--id)"
            )
        place = {item: row for row, item in enumerate(kept)}
        total = np.zeros(len(kept))
        for item, value in zip(self.sample_ids, self.values, strict=True):
            if item in place:
                total[place[item]] += value
        groups = None if self.groups is None else [self.group_of()[item] for item in kept]
        missing = {item: "missing" for item in counts if item not in place and item not in self.lacking}
        return replace(
            self,
            sample_ids=kept,
            values=total / len(self.round_names),
            rounds=[ONE_ROUND] * len(kept),
            groups=groups,
            lacking={**self.lacking, **missing},
            notes=(*self.notes, f"scores are means over {len(self.round_names)} rounds"),
        )

    def per_cluster(self) -> "Scores":
        """One row a cluster, the mean of its items; as `per_item` where there are none."""
        own = self.per_item()
        if not self.clusters:
            return own
        clusters = [self.clusters[item] for item in own.sample_ids]
        names, values, groups = over_clusters(own.values, clusters, own.groups)
        rows = {"sample_ids": names, "values": values, "rounds": [ONE_ROUND] * len(names), "groups": groups}
        return replace(own, **rows, clusters={})

    def solve(self, epsilon: float, max_weight: float | None = None) -> DualSolution[np.ndarray]:
        """`klball.solve_dual` of the scores per item, of whatever sign; worst_case = E_Q[score]."""
        return solve_dual(loss=-self.per_cluster().values, epsilon=epsilon, max_weight=max_weight)

    def profile(self, epsilons: Sequence[float]) -> RobustProfile:
        """`klball.robust_profile` of the scores per item: robust_loss = −E_Q[score]."""
        return robust_profile(loss=-self.per_cluster().values, epsilons=epsilons)

    def texts_of(self, items: Collection[str]) -> dict[str, dict[str, str]]:
        """Item → its prompt and answer, where the source has them."""
        found: dict[str, dict[str, str]] = {}
        for source, ids in self.sources:
            names = {
                kind: name for kind, name in zip(("prompt", "answer"), source.texts, strict=True) if name
            }
            for row, item in enumerate(ids if names else ()):
                if item in items:
                    found[item] = {kind: _shown(source.columns[name][row]) for kind, name in names.items()}
        return found


def label_of(items: Sequence[str], labels: Sequence[str], what: str, whose: str = "item") -> dict[str, str]:
    """Item → label. Raises ValueError for an item with two."""
    found: dict[str, str] = {}
    for item, label in zip(items, labels, strict=True):
        if found.setdefault(item, label) != label:
            raise ValueError(f"{whose} {item!r} has two {what}, {found[item]!r} and {label!r}")
    return found


def over_clusters(
    values: np.ndarray, clusters: Sequence[str], groups: Sequence[str] | None
) -> tuple[list[str], np.ndarray, list[str] | None]:
    """The clusters in order of appearance, the means [..., clusters] of values [..., items], and the groups.

    Raises ValueError for a cluster with items of two groups.
    """
    names = list(dict.fromkeys(clusters))
    place = {name: k for k, name in enumerate(names)}
    of = np.array([place[name] for name in clusters])
    order, counts = np.argsort(of, kind="stable"), np.bincount(of)
    starts = np.cumsum(counts) - counts
    group_of = label_of(clusters, groups, "groups", "cluster") if groups else {}
    own = [group_of[name] for name in names] if groups else None
    return names, np.add.reduceat(values[..., order], starts, axis=-1) / counts, own


def refuse_percentages(scores: Mapping[str, Scores]) -> None:
    """Raise ValueError where one model has shares up to 1 and another has them up to 100.

    Where no name says that they are shares a factor such as models are seldom apart is said aloud.
    """
    highest = {model: float(np.abs(own.values).max()) for model, own in scores.items()}
    low, high = (pick(highest, key=highest.__getitem__) for pick in (min, max))
    if not 0 < highest[low] <= 1 < highest[high]:
        return
    one, other = (f"{highest[model]:g} of {model!r}" for model in (low, high))
    told = f"the largest {scores[low].name} is {one} and {other}"
    if all(is_share(scores[model].name) for model in (low, high)):
        raise ValueError(f"{told}: write shares or percentages for all")
    if highest[high] >= PERCENT * highest[low]:
        logger.warning("%s: are these shares beside percentages?", told)


def _shown(value: Any) -> str:
    value = value.as_py() if hasattr(value, "as_py") else value
    return "" if value is None else str(value)
