"""All that a comparison computes from its scores, and its tables on screen and on disk."""

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from klball.adversary.upweighting import radius_in_words
from klball.comparison.analysis import (
    SOURCE_TESTS,
    Analysis,
    Comparison,
    matrix_rows,
    round_rows,
    source_summary,
)
from klball.comparison.elsewhere import RoundsElsewhere
from klball.comparison.hypothesis_tests import p_matrix
from klball.data.paraphrase.rounds import WORD_FOR_WORD, Rounds
from klball.files import write_csv, write_text
from klball.report.pages.comparison import SYMBOLS, TESTS
from klball.report.pages.parts import counted
from klball.scores.elsewhere.item_scores import ONE_ROUND
from klball.terminal import say, say_verdicts, show_table

MOST_MODELS = 12  # across a terminal


def write(comparison: Comparison, rounds: Rounds | RoundsElsewhere, folder: Path) -> None:
    """CSV tables; those of one (ε, γ) in the folder `asked` or `wide`."""
    if acceptance := rounds.acceptance():
        write_csv(folder / "acceptance.csv", acceptance)
    write_csv(
        folder / "left_out.csv", [{"n": len(comparison.scores.sample_ids), **comparison.scores.left_out}]
    )
    write_csv(folder / "profiles.csv", _profiles(comparison))
    for analysis in comparison.analyses():
        own = folder / ("asked" if analysis is comparison.asked else "wide")
        write_csv(own / "rounds.csv", round_rows(analysis))
        write_csv(own / "summary.csv", source_summary(analysis))
        items = [asdict(i) for i in (*analysis.items, *analysis.resampled)]
        for name, rows in (
            ("verdicts", [asdict(v) for v in analysis.verdicts]),
            ("effects", [asdict(e) for e in analysis.effects]),
            ("tests", [{**asdict(t), "p": t.p} for t in analysis.tests]),
            ("spreads", [asdict(s) for s in analysis.spreads]),
            ("items", items),
            ("joint", [asdict(region) for region in analysis.joint]),
        ):
            write_csv(own / f"{name}.csv", rows)
        for test, quantity in SOURCE_TESTS if analysis.solutions.of_tokens else ():
            matrix = p_matrix(analysis.tests, test, quantity, analysis.solutions.models)
            write_csv(own / f"p-{test}-{quantity}.csv", matrix_rows(analysis.solutions.models, matrix))
    sentences = [f"{analysis.name}: {sentence}" for analysis, sentence in comparison.said()]
    lines = [line for line in (*comparison.lines(), comparison.caution(), *sentences) if line]
    lines += comparison.on_average()
    write_csv(folder / "averages.csv", [asdict(difference) for difference in comparison.averages])
    write_text(folder / "verdicts.txt", "\n".join(lines) + "\n")


def _profiles(comparison: Comparison) -> list[dict[str, Any]]:
    """The robust profiles; of scores from elsewhere with the worst-case score in place of the loss."""
    if comparison.asked.solutions.of_tokens:
        return comparison.profiles
    worst = ({"worst_case": 0.0 - row["robust_loss"], **row} for row in comparison.profiles)
    order = ("model", "epsilon", "worst_case", "lambda", "ess")
    return [{name: row[name] for name in order} for row in worst]


def show(comparison: Comparison, rounds: Rounds | RoundsElsewhere, folder: Path) -> None:
    """What the plain lines rest on, the verdicts in full, the source's tables."""
    scores = comparison.scores
    many = "" if scores.rounds == [ONE_ROUND] else f" × {len(scores.rounds)} rounds"
    lost = ", ".join(f"{count} {reason}" for reason, count in scores.left_out.items() if count) or "none"
    better = "" if comparison.asked.solutions.of_tokens else f"; {scores.measure.better} is better"
    say(
        f"n = {counted(len(scores.sample_ids), 'sample')}{many} × {len(scores.models)} models; "
        f"rows left out for all: {lost}{better}{accepted(rounds)}"
    )
    for analysis in comparison.analyses():
        _show_ground(analysis)
        say(radius_in_words(analysis.solutions.epsilon))
    lines = [f"at {analysis.name}: {sentence}" for analysis, sentence in comparison.said()]
    lines = [line for line in (comparison.caution(), *lines, *comparison.on_average()) if line]
    say_verdicts(lines, in_full(folder), "\nVerdicts in full")
    if comparison.asked.solutions.of_tokens:
        _show_source(comparison.asked, folder)
    say(f"everything is in {folder}")


def in_full(folder: Path) -> str:
    """Where all verdicts are."""
    return f"{folder / 'verdicts.txt'} has them all"


def accepted(rounds: Rounds | RoundsElsewhere) -> str:
    """How many of the new prompts were accepted, and how many of those only frame the old one."""
    rows = rounds.acceptance()
    if not rows:
        return ""
    low, high = (f"{100 * pick(row['share'] for row in rows):.0f}" for pick in (min, max))
    share = f"{low} %" if low == high else f"{low} to {high} %"
    taken, framed = (sum(row[key] for row in rows) for key in ("accepted", WORD_FOR_WORD))
    said = f"; new prompts accepted: {share} in every round"
    if framed:
        said += f", {100 * framed / taken:.0f} % of them the unchanged one with a line put before it"
    return said


def _mean(values: np.ndarray) -> float:
    """Over the rounds that have one; NaN where none has."""
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else math.nan


def _show_ground(analysis: Analysis) -> None:
    s = analysis.solutions
    body = []
    for m, model in enumerate(s.models):
        statuses, counts = np.unique(s.status[m].astype(str), return_counts=True)
        body.append(
            (
                model,
                *([] if s.of_tokens else [float(s.mean_log_likelihood[m].mean())]),
                _mean(s.worst_case[m]),
                s.least_ess(m),
                *([] if not s.of_tokens else ["no γ" if s.gamma is None else float(s.gamma_margin[m].min())]),
                ", ".join(f"{count} {status}" for status, count in zip(statuses, counts, strict=True)),
            )
        )
    margin = ["least γ − γ_min"] if s.of_tokens else []
    mean = [] if s.of_tokens else [f"mean, {s.measure.score_title}"]
    header = ("model", *mean, f"worst case, {s.measure.score_title}", "least ESS", *margin, "rounds")
    show_table(f"{analysis.name}, n = {s.n}", header, body)


def _show_source(analysis: Analysis, folder: Path) -> None:
    header = ("model", "rounds", "log-likelihood", "self-certainty", "λ", "β", "worst case")
    body = [tuple(row.values()) for row in source_summary(analysis)]
    show_table(f"the source's summary at {analysis.name}: means over rounds", header, body)
    models = analysis.solutions.models
    if len(models) > MOST_MODELS:
        say(f"the source's p-values of every pair of {len(models)} models are in {folder / 'asked'}/p-*.csv")
        return
    for test, quantity in SOURCE_TESTS:
        rows = matrix_rows(models, p_matrix(analysis.tests, test, quantity, models))
        title = f"the source's {TESTS[test]} on {SYMBOLS[quantity]}, −log10 p (unpaired: shown, not endorsed)"
        show_table(title, ("", *models), [tuple(row.values()) for row in rows])
