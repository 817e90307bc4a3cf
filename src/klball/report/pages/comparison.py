"""The report of `klball compare`: verdicts, effects, robust profiles, the source's tables and reading."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from klball.adversary.dual import solve_dual
from klball.adversary.upweighting import radius_in_words
from klball.comparison.analysis import SOURCE_TESTS, Analysis, Comparison, matrix_rows, source_summary
from klball.comparison.elsewhere import RoundsElsewhere, group_report
from klball.comparison.hypothesis_tests import p_matrix
from klball.comparison.joint import LEAST_DECIDING, LEAST_ERRORS
from klball.comparison.verdicts import LEAD
from klball.data.paraphrase.rounds import Rounds
from klball.files import write_text
from klball.report.charts import HeatMap, mean_profile_charts, multipliers_chart, regions_chart
from klball.report.figures import draw, draw_heat_map
from klball.report.interactive import heat_map, paired_differences, plot
from klball.report.page import Page, Part, Plot, Section, Table, write_page
from klball.report.pages.parts import (
    REPORT_FILE,
    interval,
    provenance_section,
    ran_on,
    sample_rows,
    samples_section,
)
from klball.report.paper import latex_table
from klball.scores.elsewhere.report import GROUP

MOST_PAIRS = 40  # of models, in a list or a figure
MOST_ERRORS = 1000.0  # standard errors of a radius: with more, two items decided
SYMBOLS = {"lambda_": "λ", "beta": "β", "lambda_beta": "(λ, β)", "worst_case": "worst case"}
TESTS = {"welch_t": "Welch's t", "hotelling": "Hotelling's T²"}
SUMMARY = {
    **{"model": "model", "rounds": "rounds", "mean_log_likelihood": "log-likelihood"},
    **{"mean_certainty": "self-certainty", "lambda_": "λ", "beta": "β", "worst_case": "worst case"},
}
READING = (
    "The source reads a larger λ as more reliable on rare prompts and a smaller β as more consistent. The "
    "mathematics says otherwise: λ is what the worst case costs per nat of radius, so at a fixed ε a larger "
    "λ means a more uneven model; β is the price of the cap on certainty; both diverge near γ_min. The "
    "source's tests are unpaired: shown, not endorsed."
)


def write_comparison_report(comparison: Comparison, rounds: Rounds | RoundsElsewhere, folder: Path) -> None:
    """report.html; for papers the scatter and heat maps as SVG and PNG, and the tables as LaTeX."""
    write_page(comparison_page(comparison, rounds, folder), folder / REPORT_FILE)
    asked, models = comparison.asked, comparison.asked.solutions.models
    if _has_cap(asked):
        draw(folder / "figures" / "multipliers", multipliers_chart(_pairs(asked)))
    for test, quantity in SOURCE_TESTS if asked.solutions.of_tokens else ():
        chart = _p_chart(asked, test, quantity)
        if not np.isnan(chart.matrix).all():
            draw_heat_map(folder / "figures" / f"p-{test}-{quantity}", chart)
        columns = {name: name for name in ("", *models)}
        caption = f"{chart.title}, unpaired, at {asked.name}"
        text = latex_table(matrix_rows(models, chart.matrix), columns, caption)
        write_text(folder / "latex" / f"p-{test}-{quantity}.tex", text)
    measure = asked.solutions.measure
    caption = f"Means over rounds at {asked.name}, {measure.score}, {measure.unit}"
    columns = {name: title for name, title in SUMMARY.items() if name in source_summary(asked)[0]}
    write_text(folder / "latex" / "summary.tex", latex_table(source_summary(asked), columns, caption))
    for analysis in comparison.analyses():
        own = "asked" if analysis is asked else "wide"
        rows = _effect_rows(analysis)
        text = latex_table(
            rows, EFFECTS, f"Worst-case {measure.score} at {analysis.name}: differences a − b, {measure.unit}"
        )
        write_text(folder / "latex" / f"effects-{own}.tex", text)


def comparison_page(comparison: Comparison, rounds: Rounds | RoundsElsewhere, folder: Path) -> Page:
    """The page; `folder` holds run.json."""
    scores = comparison.scores
    n, rounds_scored = len(scores.sample_ids), len(scores.rounds)
    of_rounds = f"{rounds_scored} round{'s' * (rounds_scored != 1)} of {n} samples"
    return Page(
        title="Which model is more reliable?",
        subtitle=f"{len(scores.models)} models, {of_rounds}{ran_on(folder)}",
        headline=_first(comparison.lines()),
        verdict=[
            *filter(None, [comparison.caution()]),
            *_first([_said(analysis, sentence) for analysis, sentence in comparison.said()]),
            *_first(comparison.on_average()),
        ],
        sections=[
            *(_effects_section(analysis) for analysis in comparison.analyses()),
            _profiles_section(comparison),
            *_groups_section(comparison),
            _source_section(comparison.asked),
            _tests_section(comparison),
            samples_section(
                "Hardest and top-weighted samples",
                _samples(comparison, rounds),
                f"Scores ({scores.measure.score_title}) and weights at {comparison.asked.name}, means over "
                "rounds; a weight n·q of 1 is an even share."
                + (" Prompts are the original ones." if rounds.acceptance() else ""),
                group="model",
            ),
            _quality_section(comparison, rounds),
            provenance_section(folder, {"rounds": rounds.about, **comparison.about}),
        ],
    )


def _first(lines: list[str]) -> list[str]:
    left = len(lines) - MOST_PAIRS
    return [*lines[:MOST_PAIRS], f"{left:,} more are in verdicts.txt."] if left > 0 else lines


def _said(analysis: Analysis, sentence: str) -> str:
    """The sentence names ε; γ goes before it."""
    gamma = analysis.solutions.gamma
    return sentence if gamma is None else f"With certainty capped at γ = {gamma:.4g}: {sentence}"


EFFECTS = {
    **{"pair": "pair, a − b", "mean": "mean difference", "hodges_lehmann": "Hodges–Lehmann"},
    **{"cohen_dz": "Cohen's d_z", "items": "over items (delta method)", "ess": "least ESS"},
    **{"rounds": "rounds", "rounds_needed": "rounds needed", "holm": "−log10 p, Holm"},
}


def _effect_rows(analysis: Analysis) -> list[dict[str, Any]]:
    """A row a pair of models: what is said of the difference of their worst cases."""
    items = {(i.model_a, i.model_b): i for i in analysis.items if i.quantity == LEAD}
    tests = [t for t in analysis.tests if (t.test, t.quantity) == ("paired_t", LEAD)]
    holm = {(t.model_a, t.model_b): t.minus_log10_holm for t in tests}
    found = []
    for effect in analysis.effects:
        if effect.quantity != LEAD:
            continue
        pair = (effect.model_a, effect.model_b)
        item = items[pair]
        median = (effect.hodges_lehmann, effect.hodges_lehmann_low, effect.hodges_lehmann_high)
        found.append(
            {
                "pair": " − ".join(pair),
                "mean": interval(effect.mean, effect.mean_low, effect.mean_high),
                "hodges_lehmann": interval(*median),
                "cohen_dz": interval(effect.cohen_dz, effect.cohen_dz_low, effect.cohen_dz_high),
                "items": interval(item.value, item.low, item.high),
                "ess": item.ess,
                "rounds": effect.rounds,
                "rounds_needed": effect.rounds_needed,
                "holm": holm[pair],
                "degenerate": effect.degenerate,
            }
        )
    return found


def _effects_section(analysis: Analysis) -> Section:
    s = analysis.solutions
    of_pair = _effect_rows(analysis)
    unit, worst = s.measure.unit, f"Worst-case {s.measure.score}"
    lead = f"{worst}, {unit}: differences between models"
    note = "95 % intervals; above 0 the first model of the pair is better. Over rounds: on these items only."
    spreads = [vars(x) for x in analysis.spreads if x.quantity == LEAD]
    ground = [
        {**row, "ess": s.least_ess(m), "margin": float(s.gamma_margin[m].min())}
        for m, row in enumerate(spreads)
    ]
    columns = {
        **{"model": "model", "mean": "mean", "median": "median", "sd": "sd over rounds", "low": "lowest"},
        **{"worst_round": "worst round", "ess": "least ESS"},
        **({"margin": "least γ − γ_min"} if s.of_tokens else {}),
    }
    parts: list[Part] = [
        Table(lead, of_pair, _with_reasons(EFFECTS, of_pair), note),
        _differences(analysis, of_pair, unit),
        Table(f"{worst} of each model over rounds, {unit}", ground, columns),
    ]
    return Section(f"Worst case at {analysis.name}", parts, f"{radius_in_words(s.epsilon)}.")


def _with_reasons(columns: Mapping[str, str], rows: list[dict[str, Any]]) -> dict[str, str]:
    """The columns, and where some row has no number the one that says why."""
    return {**columns, **({"degenerate": "why none"} if any(row["degenerate"] for row in rows) else {})}


def _differences(analysis: Analysis, of_pair: list[dict[str, Any]], unit: str) -> Plot:
    s = analysis.solutions
    points, means = {}, {}
    effects = [effect for effect in analysis.effects if effect.quantity == LEAD]
    fewer = ""
    if len(effects) > MOST_PAIRS:
        effects = sorted(effects, key=lambda effect: -abs(np.nan_to_num(effect.mean)))[:MOST_PAIRS]
        fewer = f" Drawn are the {MOST_PAIRS} pairs of the largest differences."
    for effect in effects:
        a, b = s.models.index(effect.model_a), s.models.index(effect.model_b)
        usable = np.flatnonzero(s.pair_rounds(a, b))
        pair = f"{effect.model_a} − {effect.model_b}"
        points[pair] = ((s.worst_case[a] - s.worst_case[b])[usable], [s.rounds[r] for r in usable])
        means[pair] = (effect.mean, effect.mean_low, effect.mean_high)
    said = "; ".join(f"{row['pair']}: {row['mean']}" for row in of_pair if row["pair"] in points)
    return Plot(
        "Per-round paired differences",
        paired_differences(points, means, f"difference of the worst-case {s.measure.score}, {unit}"),
        f"Strip plot, a strip a pair of models. Means with intervals: {said}.",
        f"A dot is a round; the line at 0 is no difference.{fewer}",
    )


def _profiles_section(comparison: Comparison) -> Section:
    worst, sign = comparison.scores.measure.profile
    rows = [{**p, "robust_loss": sign * p["robust_loss"] + 0.0} for p in comparison.profiles]
    columns = {
        **{"model": "model", "epsilon": "ε", "robust_loss": worst},
        **{"lambda": "λ", "ess": "effective sample size"},
    }
    table = Table("Profiles", rows, columns, "Means over rounds, without γ.")
    return Section("Robust profiles", [plot(mean_profile_charts(comparison)[0]), table])


def _groups_section(comparison: Comparison) -> list[Section]:
    """A table of the groups' means, where items have groups."""
    report = group_report(comparison.scores)
    if report is None:
        return []
    models = comparison.scores.models
    body: dict[str, dict[str, Any]] = {}
    for row in report.rows:
        own = body.setdefault(row["name"], {"group": row["name"].removeprefix(GROUP), "items": row["items"]})
        own["mean of " + row["model"]] = interval(row["value"], row["low"], row["high"])
        bounds = (row["difference"], row["difference_low"], row["difference_high"])
        own["difference of " + row["model"]] = interval(*bounds)
    columns = {"group": "group", "items": "items", **{f"mean of {model}": model for model in models}}
    columns |= {f"difference of {model}": f"{model} − {models[0]}" for model in models[1:]}
    note = "Means over items and rounds; differences paired over items; 95 % intervals over items."
    title = f"Groups, mean {comparison.scores.measure.title}"
    return [
        Section("Groups", [Table(title, list(body.values()), columns, note, search=len(body) > MOST_PAIRS)])
    ]


def _has_cap(analysis: Analysis) -> bool:
    return bool(np.any(analysis.solutions.beta[analysis.solutions.usable()] > 0))


def _pairs(analysis: Analysis) -> dict[str, tuple[np.ndarray, np.ndarray, list[str]]]:
    """(λ, β) and the names of the usable rounds of each model."""
    s = analysis.solutions
    found = {}
    for m, model in enumerate(s.models):
        usable = np.flatnonzero(s.usable()[m])
        found[model] = (s.lambda_[m, usable], s.beta[m, usable], [s.rounds[r] for r in usable])
    return found


def _source_section(analysis: Analysis) -> Section:
    s = analysis.solutions
    if not s.of_tokens:
        summary = Table(f"Means over rounds, {s.measure.score}, {s.measure.unit}", source_summary(analysis))
        return Section(f"Means at {analysis.name}", [summary], f"n = {s.n}.")
    parts: list[Part] = [Table("The source's summary: means over rounds", source_summary(analysis), SUMMARY)]
    readings = [
        {"pair": f"{v.model_a} and {v.model_b}", "reading": v.source_reading} for v in analysis.verdicts
    ]
    parts.append(Table("The source's reading, not ours", readings))
    if _has_cap(analysis):
        parts += [plot(multipliers_chart(_pairs(analysis))), *_regions(analysis)]
    for test, quantity in SOURCE_TESTS:
        parts.append(_p_values(analysis, test, quantity))
    return Section(f"The source's tables at {analysis.name}", parts, f"n = {s.n}. {READING}")


def _regions(analysis: Analysis) -> list[Part]:
    """The ellipses of the delta method that say something, and a table of both methods."""
    drawn = [r for r in analysis.joint if r.supported]
    rows = [
        {
            **vars(r),
            "lambda_se": math.sqrt(r.lambda_var),
            "beta_se": math.sqrt(r.beta_var),
            "correlation": r.correlation,
            "radius": r.radius if r.radius < MOST_ERRORS else math.nan,
        }
        for r in analysis.joint
    ]
    columns = {
        **{"model": "model", "method": "method", "lambda_": "λ", "beta": "β", "lambda_se": "se of λ"},
        **{
            "beta_se": "se of β",
            "correlation": "correlation",
            "radius": "radius, se",
            "deciding": "items that decide",
        },
    }
    title = "Confidence regions of (λ, β) over items, rounds held fixed"
    note = (
        f"Drawn are those of the delta method that {LEAST_DECIDING:g} items or more decide, with λ and β "
        f"{LEAST_ERRORS:g} standard errors or more from 0: others cover far less than 95 %."
    )
    table = Table(title, rows, _with_reasons(columns, rows), note)
    return [*([plot(regions_chart(drawn))] if drawn else []), table]


def _p_chart(analysis: Analysis, test: str, quantity: str) -> HeatMap:
    """−log10 p of every pair of models."""
    own = [t for t in analysis.tests if (t.test, t.quantity) == (test, quantity)]
    said = (
        f"{t.model_a} and {t.model_b}: {t.degenerate or f'{t.minus_log10_p:.3g}'}" for t in own[:MOST_PAIRS]
    )
    models = analysis.solutions.models
    matrix = p_matrix(analysis.tests, test, quantity, models)
    title = f"−log10 p of {TESTS[test]} on {SYMBOLS[quantity]}"
    return HeatMap(title, "−log10 p", models, matrix, "; ".join(said), "1.3 is p = .05.")


def _p_values(analysis: Analysis, test: str, quantity: str) -> Part:
    """A heat map, or, where no pair has a p-value, the reasons."""
    chart = _p_chart(analysis, test, quantity)
    if not np.isnan(chart.matrix).all():
        return heat_map(chart)
    own = [t for t in analysis.tests if (t.test, t.quantity) == (test, quantity)]
    rows = [{"pair": f"{t.model_a} and {t.model_b}", "why": t.degenerate} for t in own]
    return Table(chart.title, rows, {"pair": "pair", "why": "why there is none"})


def _tests_section(comparison: Comparison) -> Section:
    columns = {
        **{"test": "test", "of": "on", "pair": "pair", "rounds": "rounds", "statistic": "statistic"},
        **{"minus_log10_p": "−log10 p", "minus_log10_holm": "Holm", "minus_log10_bh": "Benjamini–Hochberg"},
    }
    parts = []
    for analysis in comparison.analyses():
        rows = [
            {**vars(t), "of": SYMBOLS[t.quantity], "pair": f"{t.model_a} and {t.model_b}"}
            for t in analysis.tests
        ]
        title = f"At {analysis.name}"
        parts.append(Table(title, rows, _with_reasons(columns, rows), search=True, group="test"))
    note = "All treat rounds as the sample and hold for these items only. Paired tests fit matched rounds."
    return Section("Every test over rounds", parts, note)


def _samples(comparison: Comparison, rounds: Rounds | RoundsElsewhere) -> list[dict[str, Any]]:
    scores, s = comparison.scores, comparison.asked.solutions
    rows: list[dict[str, Any]] = []
    for m, model in enumerate(scores.models):
        usable = s.usable()[m]
        g = scores.log_likelihood[m]
        c = None if scores.certainty is None else scores.certainty[m][usable]
        weights = np.full(s.n, np.nan)
        if usable.any():
            q = solve_dual(loss=-g[usable], certainty=c, epsilon=s.epsilon, gamma=s.gamma).weights
            weights = np.asarray(q).mean(axis=0)
        name = "log_likelihood" if s.of_tokens else scores.measure.score
        rows += sample_rows(scores.sample_ids, g.mean(axis=0), weights, name, model=model)
    text_of = rounds.texts({row["sample_id"] for row in rows})
    empty = {"prompt": "", "answer": ""} if text_of else {}
    return [{**row, **empty, **text_of.get(row["sample_id"], {})} for row in rows]


def _quality_section(comparison: Comparison, rounds: Rounds | RoundsElsewhere) -> Section:
    scores = comparison.scores
    kept = {"kept": len(scores.sample_ids), **scores.left_out}
    status = []
    for analysis in comparison.analyses():
        s = analysis.solutions
        names = sorted(set(s.status.ravel().tolist()) | {"infeasible"})
        for m, model in enumerate(s.models):
            counts = {name: int((s.status[m] == name).sum()) for name in names}
            status.append({"at": analysis.name, "model": model, **counts})
    keys = list(dict.fromkeys(key for row in status for key in row))
    status = [{key: row.get(key, 0) for key in keys} for row in status]
    acceptance = [
        {key: value for key, value in row.items() if key in ("round", "rows", "accepted", "share") or value}
        for row in rounds.acceptance()
    ]
    reasons = list(dict.fromkeys(key for row in acceptance for key in row))
    accepted = [{key: row.get(key, 0) for key in reasons} for row in acceptance]
    parts: list[Part] = [
        Table("Rows", [kept], note="Rows left out for all models, by the gravest reason in any table."),
        Table("Rounds by status of the solve", status, note="Infeasible rounds enter no test."),
    ]
    if accepted:
        note = (
            "A rejected one is replaced by the original prompt. Word for word: of the accepted, "
            "those that hold the original unchanged, with a line put before it."
        )
        parts.append(Table("Rephrasings accepted in each round", accepted, note=note))
    return Section("Data quality", parts)
