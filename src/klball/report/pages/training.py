"""The report of `klball train`: how the adversary weighed the data while the model learnt."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from klball.files import read_csv, read_table
from klball.report.charts import Chart, Series
from klball.report.interactive import plot
from klball.report.page import Page, Plot, Section, Table, write_page
from klball.report.pages.parts import REPORT_FILE, provenance_section, ran_on, samples_section
from klball.shown import in_words
from klball.training.accountant import HISTORY_FILE

CURVES = {  # title → (axis, columns of the history and what they are called)
    "Loss": (
        "nats",
        {"plain_loss": "mean of the step's samples", "robust_loss": "worst case of all samples"},
    ),
    "Accuracy": (
        "share of the step's pairs",
        dict.fromkeys(("accuracy", "rewards/accuracies"), "chosen answer has the larger reward"),
    ),
    "Distance to p*": ("√ of the Jensen–Shannon divergence", {"js_distance": "mean of the step's questions"}),
    "Reward": ("reward", {"mean_reward": "mean of all prompts", "worst_case_reward": "worst case"}),
    "How uneven the weights are": ("share of what is weighed", {"ess_ratio": "effective sample size / n"}),
    "The adversary's price": ("nats", {"lambda": "λ", "kl": "KL(Q‖F)", "adversary_kl": "KL(Q‖F)"}),
}
MEANS = {
    "plain_loss": ("mean loss of a step's samples", " nats"),
    "accuracy": ("share of pairs whose chosen answer has the larger reward", ""),
    "rewards/accuracies": ("share of pairs whose chosen answer has the larger reward", ""),
    "js_distance": ("Jensen–Shannon distance to p*", ""),
    "mean_reward": ("mean reward", ""),
}
ENDS = 10  # one step is too few to say where a run began and ended: a tenth of them
WORST = {"robust_loss": ("worst case", " nats"), "worst_case_reward": ("worst-case reward", "")}
SHARES = {"f": "share f", "q": "weight q", "density": "q/f"}
TEXTS = ("sample_id", "group", "prompt", "answer", "chosen", "rejected", "belief")


def write_training_page(folder: Path, title: str, meaning: str = "") -> None:
    """report.html of a finished run, from the files in its folder; meaning: of its radius, in words."""
    history = read_table(folder / HISTORY_FILE).to_pylist()
    groups, top = (_rows(folder / name) for name in ("groups.csv", "top_weighted.csv"))
    sections = [Section("Over training", _curves(history))]
    if groups:
        sections.insert(0, Section("Groups", [_groups_table(groups)]))
    intro = "By their weight at the end, n·q: rare, hard, or mislabelled? 1 is an even share."
    page = Page(
        title=title,
        subtitle=f"{len(history)} optimizer steps{ran_on(folder)}",
        verdict=[*_verdict(history, groups), *filter(None, [meaning])],
        sections=[
            *sections,
            samples_section("Samples that the adversary weighs most", top, intro),
            provenance_section(folder, {}),
        ],
    )
    write_page(page, folder / REPORT_FILE)


def _rows(path: Path) -> list[dict[str, Any]]:
    """A CSV file's rows, numbers as numbers; none without the file."""
    if not path.exists():
        return []
    return [{name: _value(name, text) for name, text in row.items()} for row in read_csv(path)]


def _value(name: str, text: str) -> Any:
    if name in TEXTS:
        return text
    try:
        return int(text) if text.isdecimal() else float(text)
    except ValueError:
        return text


def _curves(history: Sequence[Mapping[str, Any]]) -> list[Plot]:
    plots = []
    for title, (axis, columns) in CURVES.items():
        series = []
        for column, name in columns.items():
            known = _known(history, column)
            if known:
                steps, values = zip(*known, strict=True)
                series.append(Series(name, steps, values))
        if series:
            plots.append(plot(Chart(title, "optimizer step", axis, series)))
    return plots


def _known(history: Sequence[Mapping[str, Any]], column: str) -> list[tuple[Any, Any]]:
    """(step, value); none of the mean reward of a reward model, which no loss sees."""
    if column == "mean_reward" and "margin" in history[0]:
        return []
    return [(row["step"], row[column]) for row in history if row.get(column) is not None]


def _ends(history: Sequence[Mapping[str, Any]], column: str) -> tuple[float, float] | None:
    values = [value for _, value in _known(history, column)]
    few = max(1, len(values) // ENDS)
    return (fmean(values[:few]), fmean(values[-few:])) if values else None


def _groups_table(groups: Sequence[Mapping[str, Any]]) -> Table:
    rows = sorted(groups, key=lambda row: -row["density"])
    names = {name: SHARES.get(name, in_words(name)) for name in rows[0]}
    note = "q/f is how many times over a sample of the group counts."
    return Table("Groups as the adversary weighs them", rows, names, note)


def _verdict(history: Sequence[Mapping[str, Any]], groups: Sequence[Mapping[str, Any]]) -> list[str]:
    if not history:
        return ["No step was trained."]
    last = history[-1]
    over = "From the first to the last tenth of the steps the" if len(history) >= 2 * ENDS else "The"
    sentences = [
        f"{over} {what} went from {ends[0]:.3g} to {ends[1]:.3g}{unit}.".replace("-", "−")
        for name, (what, unit) in MEANS.items()
        if (ends := _ends(history, name))
    ]
    for name, (what, unit) in WORST.items():
        if last.get(name) is not None:
            sentences.append(
                f"At the end the {what} is {last[name]:.3g}{unit}, and the adversary looks at "
                f"{100 * last['ess_ratio']:.3g} % of the {'groups' if groups else 'data'} in effect."
            )
    if groups:
        most = max(groups, key=lambda row: row["density"])
        sentences.append(
            f"The group {most['group']} weighs most: its samples count {most['density']:.3g} times over."
        )
    return sentences
