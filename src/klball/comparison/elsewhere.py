"""Rounds of scores from elsewhere, where a rounds file of rephrased prompts would be."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from klball.comparison.rounds import RoundScores
from klball.scores.elsewhere.item_scores import Scores
from klball.scores.elsewhere.report import GROUP, ItemReport, item_report


def group_report(scores: RoundScores) -> ItemReport | None:
    """Means over rounds of every group, with differences to the first model; None of items without groups."""
    if not scores.groups:
        return None
    means = {model: scores.log_likelihood[m].mean(axis=0) for m, model in enumerate(scores.models)}
    report = item_report(means, scores.measure, scores.models[0], scores.groups)
    return replace(report, rows=[row for row in report.rows if row["name"].startswith(GROUP)])


@dataclass(frozen=True)
class RoundsElsewhere:
    """What reports ask of rounds: whence they are, the items' texts, and what a claim over them speaks of."""

    scores: Mapping[str, Scores]

    @property
    def about(self) -> dict[str, Any]:
        """Model → files, score, unit and what was chosen unasked."""
        return {
            model: {
                "files": [source.where for source, _ in own.sources],
                "score": own.name,
                "unit": own.measure.unit,
                "rounds": own.round_names,
                "notes": list(own.notes),
            }
            for model, own in self.scores.items()
        }

    def acceptance(self) -> list[dict[str, Any]]:
        """Nothing was rephrased here."""
        return []

    def texts(self, items: Collection[str]) -> dict[str, dict[str, str]]:
        """Item → prompt and answer, where the first model's source has them."""
        return next(iter(self.scores.values())).texts_of(items) if self.scores else {}

    def like_these(self, rounds: int) -> str:
        """For sentences: "rounds like these 4"."""
        return f"rounds like these {rounds}"
