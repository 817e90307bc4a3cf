"""Rounds of scores from elsewhere, where a rounds file of rephrased prompts would be."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from klball.scores.elsewhere.item_scores import Scores


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
