"""The head-to-head of token objectives: task gain against forgetting, entropy and diversity, at equal budget.

SFT, its two cheap controls (a lower learning rate, an entropy bonus), DFT and PSFT, and each objective
with a KL ball around the data.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from torch import Tensor

from klball.data.rows import load_rows
from klball.files import json_digest, read_table, write_csv
from klball.report.charts import entropy_chart
from klball.report.figures import draw, plot_gain_against_forgetting
from klball.report.pages.parts import BASE, few_in_words
from klball.report.pages.reproduction import write_objectives_page
from klball.scan.behaviour import Behaviour, behaviour_of
from klball.scores.own import usable
from klball.scores.perplexity import common_rows, robustness_report, token_mean, token_nll
from klball.shown import in_words
from klball.studies.arms import (
    OWN,
    Arm,
    Options,
    Tables,
    base_answers,
    data_of,
    kept,
    load,
    provenance_of,
    refuse_unusable,
    run_arm,
    score_model,
)
from klball.studies.jobs import others_have_arms
from klball.studies.summary import means
from klball.terminal import is_main, progress_bar, say, show_table
from klball.training.accountant import HISTORY_FILE
from klball.training.identity import model_digest

LOWER = 4  # the control's learning rate is this many times lower
ENTROPY_COEF = 0.1


@dataclass(frozen=True)
class Outcome:
    """One arm, one seed. Nats per token, but for the perplexities of two tails and the diversity.

    task_nll, other_nll: token mean NLL on test rows and out of domain; gain: the base's task_nll minus
    this one. entropy: token mean on the test answers. The rest as in `Behaviour`.
    """

    arm: str
    seed: int
    task_nll: float
    gain: float
    worst_5pct: float
    hardest_1pct: float
    other_nll: float
    entropy: float
    forgetting: float
    own_entropy: float
    distinct_2: float
    self_bleu: float


MEASURES = [name for name in Outcome.__annotations__ if name not in ("arm", "seed")]


def arms_of(options: Options) -> list[Arm]:
    """Every arm has the same data, steps and schedule; robust ones use the largest of `epsilons`."""
    radius = max(options.epsilons)
    if radius == 0:
        raise ValueError("--epsilons has no radius above 0: the robust arms would be the plain ones")
    lower = {"learning_rate": options.learning_rate / LOWER}
    arms = [
        Arm("SFT", "sft", {"epsilon": 0.0}),
        Arm(f"SFT, lr/{LOWER}", "sft-lower", {"epsilon": 0.0, **lower}),
        Arm("SFT + entropy", "sft-entropy", {"epsilon": 0.0, "entropy_coef": ENTROPY_COEF}),
        Arm("DFT", "dft", {"epsilon": 0.0, "objective": "dft"}),
        Arm("PSFT", "psft", {"epsilon": 0.0, "objective": "psft"}),
    ]
    for name in ("SFT", "DFT", "PSFT"):
        objective = "nll" if name == "SFT" else name.lower()
        settings = {"epsilon": radius, "objective": objective}
        arms.append(Arm(f"robust {name}", f"robust-{name.lower()}-{radius:g}", settings))
    return arms


def run(options: Options, folder: Path) -> Iterator[int]:
    """Train and measure what is not there yet; report after every seed, and yield it."""
    options = dataclasses.replace(options, points=1)  # only the end is measured
    data, arms = data_of(options), arms_of(options)
    refuse_unusable(arms, data["train"], folder, options)
    asked = data["test"] if options.own_name is None else load_rows(options.own_name, default="test")
    start: dict[str, Tensor] = {}
    if others_have_arms(arms, data, folder, options, start):
        return
    base = score_model(options.model_name_or_path, BASE, data, folder, options)
    model, tokenizer = load(options.model_name_or_path, options)
    prompts, written = base_answers(model, tokenizer, asked, options, folder / "own" / "base.parquet")
    reference = _Reference(model, prompts, written, base, options)
    outcomes: list[Outcome] = []
    for seed in range(options.seeds):
        outcomes.append(
            reference.outcome(BASE, seed, base, options.model_name_or_path, folder / "own" / BASE)
        )
        for arm in arms:
            tables, points = run_arm(arm, seed, data, folder, options, start)
            path = folder / f"seed-{seed}" / arm.folder / f"checkpoint-{points[-1]['step']}"
            own = folder / "own" / f"seed-{seed}" / arm.folder
            outcomes.append(reference.outcome(arm.label, seed, tables, str(path), own))
        _report(outcomes, arms, base, data, folder)
        yield seed


@dataclass
class _Reference:
    """The base model, what it wrote, and its scores: what every arm is measured against."""

    model: Any
    prompts: Dataset
    written: Dataset
    tables: Tables
    options: Options

    def outcome(self, label: str, seed: int, tables: Tables, path: str, output: Path) -> Outcome:
        behaviour = self._behaviour(label, path, output.with_name(f"{output.name}.json"))
        of_data = {name: {BASE: self.tables[name], label: tables[name]} for name in tables}
        report = robustness_report(of_data, BASE, 1)
        # those that the tails are of: `max_length` cuts the same rows for all models
        base, test, other = (
            table.select(np.flatnonzero(usable(table)))
            for table in (self.tables["test"], tables["test"], tables["ood"])
        )
        return Outcome(
            arm=label,
            seed=seed,
            task_nll=token_nll(test),
            gain=token_nll(base) - token_nll(test),
            worst_5pct=report.value("test", label, "worst_5pct").value,
            hardest_1pct=report.value("test", label, "hardest_1pct").value,
            other_nll=token_nll(other),
            entropy=token_mean(test, "entropy"),
            forgetting=behaviour.forgetting,
            own_entropy=behaviour.own_entropy,
            distinct_2=behaviour.distinct_2,
            self_bleu=behaviour.self_bleu,
        )

    def _behaviour(self, label: str, path: str, output: Path) -> Behaviour:
        written = json_digest(self.written["input_ids"][:])
        own = {name: getattr(self.options, name) for name in OWN}
        asked = {"model": model_digest(path), "base_answers": written, **own}

        def made() -> dict[str, Any]:
            model, tokenizer = load(path, self.options)
            with progress_bar(f"{label}: answering") as progress:
                behaviour = behaviour_of(
                    *(self.model, model, tokenizer, self.prompts, self.written),
                    *(self.options.own_tokens, self.options.own_samples),
                    progress=progress,
                )
            return asdict(behaviour)

        return Behaviour(**kept(output, asked, made))


def _report(
    outcomes: Sequence[Outcome], arms: Sequence[Arm], base: Tables, data: dict[str, Dataset], folder: Path
) -> None:
    if not is_main():
        return
    finals = [asdict(outcome) for outcome in outcomes]
    write_csv(folder / "finals.csv", finals)
    summary = means(finals, ("arm",), MEASURES)
    write_csv(folder / "summary.csv", summary)
    seeds = 1 + max(outcome.seed for outcome in outcomes)
    title = f"{seeds} seed(s): mean ± sd; nats per token, worst 5 % and hardest 1 % as perplexity"
    header = ("arm", *(in_words(name) for name in MEASURES))
    show_table(
        title, header, [(row["arm"], *(_cell(row, name, seeds) for name in MEASURES)) for row in summary]
    )
    if few := few_in_words(common_rows("test", {BASE: base["test"]})[1]["kept"]):
        say(f"of the test rows {few}")
    plot_gain_against_forgetting(summary, folder / "figures" / "gain-against-forgetting")
    curves: dict[str, Sequence[Any]] = {
        arm.label: [
            read_table(folder / f"seed-{seed}" / arm.folder / HISTORY_FILE, columns=["step", "entropy"])
            for seed in range(seeds)
        ]
        for arm in arms
    }
    entropy = entropy_chart(curves)
    draw(folder / "figures" / "entropy", entropy)
    of_base = {name: {BASE: table} for name, table in base.items()}
    write_objectives_page(summary, entropy, seeds, of_base, data, provenance_of(folder), folder)


def _cell(row: dict[str, Any], name: str, seeds: int) -> str:
    spread = f" ±{row[f'{name}_sd']:.2g}" if seeds > 1 else ""
    return f"{row[name]:.4g}{spread}"
