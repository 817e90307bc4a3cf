"""What the preference experiment found: measures of every arm, and the radius at which learning stops."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import brentq

from klball.files import read_csv, write_csv
from klball.objectives.pairs import no_preference_radius
from klball.report.charts import TICKS, Chart, Series, places
from klball.report.figures import draw
from klball.report.pages.parts import few_in_words
from klball.report.pages.preference import write_preference_page
from klball.scores.accuracy import Columns, pair_report, value_of, worst_group
from klball.scores.tails import CVAR, cvar, hardest
from klball.shown import in_words
from klball.studies.arms import provenance_of
from klball.studies.summary import means
from klball.terminal import say, show_table
from klball.training.weights import WEIGHTS_FILE

STOPPED = 0.1  # of the margin that plain DPO learns


@dataclass(frozen=True)
class Outcome:
    """One arm, one seed, on clean held-out pairs.

    pairs: how many; accuracy; worst_group: the least of the fields; worst_5pct: mean loss of the arm's own
    worst 5 % (CVaR); hardest_1pct: that of the pairs that plain DPO on clean labels finds hardest; margin:
    mean βΔ; loss: mean; forgetting: nats per token on other data; top_flipped: the share of flipped pairs
    among the 20 of largest weight (NaN without weights).
    """

    arm: str
    kind: str
    flip: float
    epsilon: float
    seed: int
    pairs: int
    accuracy: float
    worst_group: float
    worst_5pct: float
    hardest_1pct: float
    margin: float
    loss: float
    forgetting: float
    top_flipped: float


MEASURES = (
    *("accuracy", "worst_group", "worst_5pct", "hardest_1pct", "margin", "loss", "forgetting"),
    "top_flipped",
)


def outcome_of(
    arm: Any, seed: int, columns: Columns, reference: Columns, forgetting: float, run: Path
) -> Outcome:
    """reference: the columns of the arm that chooses the hardest pairs."""
    rows = pair_report(columns)
    hard = hardest(-reference["loss"])
    return Outcome(
        *(arm.label, arm.kind, arm.flip, arm.epsilon, seed, len(columns["loss"])),
        accuracy=value_of(rows, "accuracy", "all"),
        worst_group=worst_group(rows),
        worst_5pct=cvar(columns["loss"], CVAR),
        hardest_1pct=float(columns["loss"][hard].mean()),
        margin=float(columns["margin"].mean()),
        loss=value_of(rows, "loss", "all"),
        forgetting=forgetting,
        top_flipped=_top_flipped(run) if arm.epsilon > 0 and arm.flip > 0 else math.nan,
    )


def _top_flipped(run: Path) -> float:
    flipped = [row["flipped"] == "True" for row in read_csv(run / WEIGHTS_FILE)]
    return sum(flipped) / len(flipped)


def report(outcomes: Sequence[Outcome], beliefs: Sequence[dict[str, Any]], folder: Path) -> None:
    """Tables, figures and the page."""
    summary, stops = summarise(outcomes), stopping_radii(outcomes)
    of_beliefs = means(beliefs, ("arm",), ("js_distance", "minority_js", "minority_share", "minority_target"))
    write_csv(folder / "finals.csv", [asdict(outcome) for outcome in outcomes])
    write_csv(folder / "summary.csv", summary)
    write_csv(folder / "stops.csv", stops)
    write_csv(folder / "beliefs.csv", list(beliefs))
    seeds = 1 + max(outcome.seed for outcome in outcomes)
    header = ("flips", "arm", *(in_words(name) for name in MEASURES))
    body = [(f"{row['flip']:g}", row["arm"], *(row[name] for name in MEASURES)) for row in summary]
    show_table(f"clean held-out pairs, means over {seeds} seed(s)", header, body)
    if few := few_in_words(outcomes[0].pairs, "pair"):
        say(few)
    header = ("flips η", "predicted ε₀(η)", f"learning stops: margin below {STOPPED:g} of plain DPO's")
    show_table("where learning stops", header, [(f"{r['flip']:g}", r["predicted"], r["text"]) for r in stops])
    columns = [name for name in of_beliefs[0] if not name.endswith("_sd")] if of_beliefs else []
    show_table(
        "beliefs on held-out questions", columns, [[row[name] for name in columns] for row in of_beliefs]
    )
    charts = [accuracy_chart(summary), margin_chart(summary)]
    draw(folder / "figures" / "radius", *charts)
    write_preference_page(
        summary, stops, of_beliefs, charts, seeds, MEASURES, few, provenance_of(folder), folder
    )


def summarise(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Means and standard deviations (`_sd`, 0 for one seed) over seeds."""
    rows = [asdict(outcome) for outcome in outcomes]
    return means(rows, ("arm", "kind", "flip", "epsilon"), MEASURES)


def stopping_radii(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """By rate of flips: ε₀, and the measured radius at which a pessimistic ball over pairs learns no more.

    measured: the radius at which the mean margin falls below `STOPPED` of plain DPO's, between two radii by
    a straight line; infinite if none of those tried was enough.
    """
    found = []
    for flip in dict.fromkeys(outcome.flip for outcome in outcomes):
        own = [o for o in outcomes if o.flip == flip and o.kind in ("plain", "pairs")]
        measured = [_stop([o for o in own if o.seed == seed]) for seed in sorted({o.seed for o in own})]
        largest = max(o.epsilon for o in own)
        texts = [_stop_in_words(value, largest) for value in measured]
        found.append(
            {
                "flip": flip,
                "predicted": no_preference_radius(flip),
                "measured": float(np.mean(measured)),
                "text": ", ".join(texts),
            }
        )
    return found


def _stop_in_words(radius: float, largest: float) -> str:
    if math.isnan(radius):
        return "no ε: plain DPO learnt nothing"
    return f"ε = {radius:.3g}" if math.isfinite(radius) else f"no ε up to {largest:g}"


def _stop(of_seed: Sequence[Outcome]) -> float:
    points = sorted((o.epsilon, o.margin) for o in of_seed)
    plain = points[0][1]
    if plain <= 0:
        return math.nan  # nothing was learnt without a ball either
    shares = [(epsilon, margin / plain) for epsilon, margin in points]
    for (low, above), (high, below) in pairwise(shares):
        if below < STOPPED:
            return low + (high - low) * (above - STOPPED) / (above - below)
    return math.inf


def predicted_share(flip: float, epsilon: float) -> float:
    """The margin log((1−q)/q) that one feature learns at radius ε, over that at 0; kl(q‖η) = ε, q > η."""
    if epsilon >= no_preference_radius(flip):
        return 0.0

    def excess(q: float) -> float:
        return q * math.log(q / flip) + (1 - q) * math.log((1 - q) / (1 - flip)) - epsilon

    q = flip if epsilon == 0 else float(brentq(excess, flip, 0.5))  # pyright: ignore[reportArgumentType]
    return math.log((1 - q) / q) / math.log((1 - flip) / flip)


def accuracy_chart(summary: Sequence[dict[str, Any]]) -> Chart:
    """Accuracy by radius, a line a rate of flips."""
    series = []
    for flip in dict.fromkeys(row["flip"] for row in summary):
        own = _of_pairs(summary, flip)
        error = np.array([[row["accuracy_sd"] for row in own]] * 2)
        radii = [row["epsilon"] for row in own]
        series.append(Series(f"flips {flip:g}", radii, [row["accuracy"] for row in own], y_error=error))
    note = "A pessimistic ball over pairs; radius 0 is plain DPO. Bands: one sd over seeds."
    return Chart("Accuracy on clean held-out pairs", "radius ε, nats", "accuracy", series, note)


def margin_chart(summary: Sequence[dict[str, Any]]) -> Chart:
    """Share of plain DPO's margin by ε/ε₀(η), measured, and what one feature would keep of it."""
    flips = sorted({row["flip"] for row in summary if row["flip"] > 0})
    radii = {
        flip: [r["epsilon"] / no_preference_radius(flip) for r in _of_pairs(summary, flip)] for flip in flips
    }
    place = places(chain(*radii.values()))
    series = []
    for flip in flips:
        own = _of_pairs(summary, flip)
        if (plain := own[0]["margin"]) > 0:
            error = np.array([[row["margin_sd"] / plain for row in own]] * 2)
            x, shares = [place[radius] for radius in radii[flip]], [row["margin"] / plain for row in own]
            series.append(Series(f"flips {flip:g}", x, shares, y_error=error))
    least, most = min(place.values(), default=1.0), max(place.values(), default=1.0)
    for flip in flips[-1:]:
        at = {**place, 1.0: 1.0}  # where it was measured, and where it ends
        theory = {at[x]: predicted_share(flip, x * no_preference_radius(flip)) for x in sorted(at)}
        series.append(Series("one feature", [*theory], [*theory.values()], hollow=True))
    note = (
        "Bands: one sd over seeds. One feature: the theory's log((1−q)/q) with kl(q‖η) = ε, 0 from ε₀ on, at "
        "the most flips; other rates lie beside it."
    )
    ticks = {least: "0", **{x: f"{x:g}" for x in TICKS if least < x <= most}}
    return Chart("What is learnt", "radius ε / ε₀(η)", "margin / plain DPO's", series, note, ticks=ticks)


def _of_pairs(summary: Sequence[dict[str, Any]], flip: float) -> list[dict[str, Any]]:
    own = [row for row in summary if row["flip"] == flip and row["kind"] in ("plain", "pairs")]
    return sorted(own, key=lambda row: row["epsilon"])
