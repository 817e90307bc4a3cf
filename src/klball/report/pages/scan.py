"""The report of `klball scan`: what SFT would do to a model, and what fine-tuning did."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from klball.adversary.upweighting import radius_in_words
from klball.report.charts import gain_chart, profile_charts
from klball.report.interactive import intervals, plot
from klball.report.page import Cell, Page, Plot, Section, Table, write_page
from klball.report.pages.parts import REPORT_FILE, provenance_section, ran_on, samples_section
from klball.report.pages.reproduction import gain_verdict
from klball.scores.accuracy import WORST
from klball.scores.perplexity import ProfilePoint

Rows = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class ScanResults:
    """The rows of the scan's CSV files; `models` is empty where no fine-tuned model was given.

    kept, skipped, truncated: rows with answer tokens, without them, and those that were cut.
    """

    rewards: Rows
    shares: Rows
    dominating: Rows
    profile: Sequence[ProfilePoint]
    models: Rows
    counts: Mapping[str, int]
    advice: Sequence[str]


def write_scan_page(results: ScanResults, about: Mapping[str, Any], folder: Path) -> None:
    """report.html of a scan."""
    sections = [_gradient_section(results), _profile_section(results)]
    if results.models:
        sections.insert(0, _models_section(results.models))
    note = "By weight in the gradient of plain SFT, times n·q of the worst case at the largest radius."
    quality = Table("Training rows", [results.counts], note="Rows without an answer token are left out.")
    page = Page(
        title="Scan of a training set",
        subtitle=f"What supervised fine-tuning would see, and who holds its gradient{ran_on(folder)}",
        verdict=_verdict(results),
        sections=[
            *sections,
            samples_section("Samples with the most gradient weight", results.dominating, note),
            Section("Data quality", [quality]),
            provenance_section(folder, about),
        ],
    )
    write_page(page, folder / REPORT_FILE)


def _verdict(results: ScanResults) -> list[str]:
    shares = {(s["objective"], s["epsilon"]): s for s in results.shares}
    objectives = list(dict.fromkeys(objective for objective, _ in shares))
    least, most = (pick(epsilon for _, epsilon in shares) for pick in (min, max))
    sentences = []
    if "nll" in objectives:
        plain = shares["nll", least]
        sentences.append(
            f"Under SFT at ε = {least:g} the heaviest 1 % of samples hold {plain['samples']:.1%} of the "
            f"gradient weight and the heaviest 1 % of tokens {plain['tokens']:.1%}; an even share is 1 %."
        )
        if most > least:
            robust = shares["nll", most]
            sentences.append(
                f"At ε = {most:g} the heaviest 1 % of samples hold {robust['samples']:.1%}, and the "
                f"adversary looks at {robust['ess']:.0f} samples in effect, of {results.counts['kept']}."
            )
    sentences += results.advice
    return sentences + (gain_verdict(results.models) if len(results.models) > 1 else [])


def _gradient_section(results: ScanResults) -> Section:
    series = {
        f"ε = {epsilon:g}": {
            share["objective"]: (100 * share["samples"], math.nan, math.nan)
            for share in results.shares
            if share["epsilon"] == epsilon and not math.isnan(share["samples"])
        }
        for epsilon in dict.fromkeys(share["epsilon"] for share in results.shares)
    }
    dots = Plot(
        "Gradient weight of the heaviest 1 % of samples",
        intervals(series, "share of the gradient weight, % (1 is even)", reference=1.0),
        "Dots, one per objective and radius; the numbers are in the table below.",
    )
    rows = [
        {**share, **{unit: Cell(share[unit], f"{share[unit]:.1%}") for unit in ("tokens", "samples")}}
        for share in results.shares
    ]
    columns = {
        **{"objective": "objective", "epsilon": "ε", "tokens": "top 1 % of tokens"},
        **{"samples": "top 1 % of samples", "ess": "effective sample size"},
    }
    table = Table("Shares of the gradient weight", rows, columns, "psft at ratio 1 is nll.")
    rewards = Table(
        "Log implicit reward log 1/K, nats: quantiles",
        results.rewards,
        {key: key.replace("q", "") + " %" if key[0] == "q" else key for key in results.rewards[0]}
        | {"unit": "per", "top_1pct_share": "reward held by the top 1 %"},
    )
    return Section("Who holds the gradient", [dots, table, rewards])


def _profile_section(results: ScanResults) -> Section:
    rows = [vars(point) for point in results.profile]
    columns = {
        **{"epsilon": "ε", "robust_loss": "worst-case loss, nats/token"},
        **{"lambda_": "λ", "ess": "effective sample size"},
    }
    loss, _ = profile_charts(results.profile, results.profile[0].data)
    return Section(
        "Robust profile", [plot(loss), Table("Profile", rows, columns)], f"{radius_in_words(WORST)}."
    )


def _models_section(models: Rows) -> Section:
    measures = Table("Measures, nats per token", models)
    return Section("What fine-tuning did", [plot(gain_chart(models)), measures])
