"""`klball reproduce`: what robust fine-tuning costs and buys, from nothing to tables and figures.

Base model, SFT (ε = 0) and robust SFT at each radius, at equal budget; perplexity on the whole test set, on
its hardest 1 % (chosen by the base model) and out of domain, over training and by ε. Every arm is an
ordinary `klball train` run and every score table an ordinary `klball score`, so an interrupted experiment
continues where it was.
"""

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl import ModelConfig

from klball.data.rows import load_rows
from klball.evaluation.models import load_model
from klball.evaluation.perplexity import RESAMPLES, robustness_report
from klball.evaluation.tables import score
from klball.experiments.command import (
    console,
    is_main,
    parse,
    progress_bar,
    show_table,
    versions,
    write_csv,
    write_run,
)
from klball.experiments.evaluate import write_report
from klball.experiments.summary import Arm, finals_of, summarise
from klball.experiments.train import train
from klball.report.figures import plot_experiment
from klball.training.config import RobustSFTConfig

BASE = "base"
PRESETS = ("tiny", "paper")
MEASURES = {  # column → (data set, metric of the report, title)
    "whole": ("test", "perplexity_sample", "Perplexity on the whole test set"),
    "hardest_1pct": ("test", "hardest_1pct", "Perplexity on the hardest 1 % (chosen by the base model)"),
    "out_of_domain": ("ood", "perplexity_sample", "Perplexity out of domain"),
}


@dataclass
class Options:
    """The experiment; a preset fills what the command line leaves out."""

    preset: str = field(default="tiny", metadata={"help": "tiny or paper."})
    model_name_or_path: str = field(default="klball/tiny", metadata={"help": "Hub name or local folder."})
    dataset_name: str = field(
        default="stdlib-docs", metadata={"help": "Built-in name, local file or Hub name."}
    )
    dataset_train_split: str = field(default="train", metadata={"help": "Split to train on."})
    dataset_test_split: str = field(default="test", metadata={"help": "Split to evaluate on."})
    test_name: str | None = field(default=None, metadata={"help": "Test data, if not a split of the above."})
    train_rows: int | None = field(
        default=None, metadata={"help": "Training rows, the first after a shuffle."}
    )
    test_rows: int | None = field(default=None, metadata={"help": "Test rows, the first after a shuffle."})
    ood_name: str = field(default="word-problems", metadata={"help": "Out-of-domain data set."})
    ood_config: str | None = field(default=None, metadata={"help": "Its Hub configuration."})
    ood_split: str = field(default="test", metadata={"help": "Its split."})
    ood_rows: int | None = field(default=None, metadata={"help": "Its rows, the first after a shuffle."})
    epsilons: list[float] = field(
        default_factory=lambda: [0.0, 0.03, 0.05], metadata={"help": "Radii, nats."}
    )
    seeds: int = field(default=1, metadata={"help": "Seeds: data order and LoRA initialisation."})
    static: bool = field(default=False, metadata={"help": "Add static arms beside the live ones."})
    points: int = field(default=2, metadata={"help": "Evaluations over training, the last one included."})
    learning_rate: float = field(default=4e-3, metadata={"help": "Peak learning rate of AdamW."})
    per_device_train_batch_size: int = field(default=16, metadata={"help": "Samples of one forward pass."})
    gradient_accumulation_steps: int = field(default=1, metadata={"help": "Forward passes of one step."})
    num_train_epochs: float = field(default=1.0, metadata={"help": "Epochs."})
    warmup_ratio: float = field(default=0.03, metadata={"help": "Share of the steps that warm up."})
    lora_r: int = field(default=16, metadata={"help": "LoRA rank."})
    lora_alpha: int = field(default=32, metadata={"help": "LoRA alpha."})
    max_length: int = field(default=1_024, metadata={"help": "Longest row, tokens."})
    dtype: str = field(default="float32", metadata={"help": "dtype of the weights."})
    output_dir: str = field(default="outputs/reproduce", metadata={"help": "Folder for everything."})


def main(arguments: Sequence[str], prog: str) -> None:
    """Run what is not there yet, then print the table and write the figures."""
    options = _parse(list(arguments), prog)
    folder = Path(options.output_dir)
    began = time.monotonic()
    data = _data(options)
    write_run(folder, options, prog)
    kinds = ["live", "static"] if options.static else ["live"]
    arms = [Arm(e, kind) for e in options.epsilons for kind in (kinds if e > 0 else ["live"])]
    tables = {0: {BASE: _score(options.model_name_or_path, BASE, data, folder, options)}}
    curves: list[dict[str, Any]] = []
    for seed in range(options.seeds):
        tables.setdefault(seed, {})[BASE] = tables[0][BASE]
        for arm in arms:
            tables[seed][arm.label], points = _run_arm(arm, seed, data, folder, options)
            curves += points
        reached = {s: t for s, t in tables.items() if s <= seed}
        _report(reached, curves, arms, folder)
        console.print(
            f"seed {seed}: {(time.monotonic() - began) / 60:.1f} minutes; everything is in {folder}"
        )


def _parse(arguments: list[str], prog: str) -> Options:
    """The preset's recipe first, then what the command line says."""
    preset = arguments[arguments.index("--preset") + 1] if "--preset" in arguments[:-1] else "tiny"
    if preset not in PRESETS:
        raise ValueError(f"--preset must be one of {', '.join(PRESETS)}, not {preset!r}")
    if "--config" not in arguments:
        arguments = ["--config", str(files("klball") / "recipes" / f"{preset}.yaml"), *arguments]
    (options,) = parse([Options], arguments, prog)
    if options.seeds < 1 or options.points < 1 or not options.epsilons:
        raise ValueError("--seeds and --points must be at least 1, and --epsilons not empty")
    if any(e < 0 for e in options.epsilons):
        raise ValueError(f"--epsilons must be 0 or more, not {min(options.epsilons)}")
    return options


def _data(options: Options) -> dict[str, Dataset]:
    """Training, test and out-of-domain rows; a single local file is split, test rows first."""
    train_split, test_split = options.dataset_train_split, options.dataset_test_split
    train = load_rows(options.dataset_name, train_split)
    if options.test_name is None and Path(options.dataset_name).is_file():
        rows = train.shuffle(seed=0)
        held_out = min(options.test_rows or len(rows), len(rows) // 4)
        test, train = rows.select(range(held_out)), rows.select(range(held_out, len(rows)))
    else:
        test = load_rows(options.test_name or options.dataset_name, test_split)
    ood = load_rows(options.ood_name, options.ood_split, options.ood_config)
    return {
        "train": _first(train, options.train_rows),
        "test": _first(test, options.test_rows),
        "ood": _first(ood, options.ood_rows),
    }


def _first(rows: Dataset, count: int | None) -> Dataset:
    """The first rows after a shuffle with a fixed seed, or all of them."""
    return rows if count is None or count >= len(rows) else rows.shuffle(seed=0).select(range(count))


Tables = dict[str, Dataset]


def _score(model_name: str, label: str, data: dict[str, Dataset], folder: Path, options: Options) -> Tables:
    """Score tables on the test and out-of-domain rows, from disk where they are finished."""
    model, tokenizer = load_model(model_name, options.dtype)
    if torch.accelerator.is_available():
        model.to(torch.accelerator.current_accelerator())
    tables = {}
    for name in ("test", "ood"):
        output = folder / "scores" / label / f"{name}.parquet"
        with progress_bar(f"{label}: scoring {name}") as progress:
            tables[name] = score(
                *(model, tokenizer, data[name]),
                max_length=options.max_length,
                output=output,
                progress=progress,
            )
    return tables


def _run_arm(
    arm: Arm, seed: int, data: dict[str, Dataset], folder: Path, options: Options
) -> tuple[Tables, list[dict[str, Any]]]:
    """Train one arm, score its checkpoints; returns the final tables and the curve's points."""
    run = folder / f"seed-{seed}" / arm.folder
    per_step = options.per_device_train_batch_size * options.gradient_accumulation_steps
    steps = max(1, round(options.num_train_epochs * -(-len(data["train"]) // per_step)))
    config = _config(arm, seed, run, steps, options)
    model_options = ModelConfig(
        model_name_or_path=options.model_name_or_path,
        dtype=options.dtype,
        use_peft=True,
        lora_r=options.lora_r,
        lora_alpha=options.lora_alpha,
        lora_dropout=0.0,
        lora_target_modules="all-linear",  # pyright: ignore[reportArgumentType]
    )
    resolved = {
        "options": dataclasses.asdict(options),
        "arm": arm.label,
        "seed": seed,
        "versions": versions(),
    }
    for name in ("seeds", "epsilons", "static", "output_dir"):  # say nothing about this arm
        resolved["options"].pop(name)
    with progress_bar(f"seed {seed}, {arm.label}: training", "steps") as progress:
        train(data["train"], config, model_options, resolved, callbacks=[_Steps(progress)])
    curve = []
    tables: Tables = {}
    checkpoints = sorted(run.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    for path in checkpoints:
        label = f"seed-{seed}/{arm.folder}/{path.name}"
        tables = _score(str(path), label, data, folder, options)
        step = int(path.name.rpartition("-")[2])
        curve.append({"arm": arm.label, "seed": seed, "step": step, "tables": tables})
    return tables, curve


def _config(arm: Arm, seed: int, run: Path, steps: int, options: Options) -> RobustSFTConfig:
    return RobustSFTConfig(
        output_dir=str(run),
        epsilon=arm.epsilon,
        reweight=arm.kind,
        max_steps=steps,
        per_device_train_batch_size=options.per_device_train_batch_size,
        gradient_accumulation_steps=options.gradient_accumulation_steps,
        learning_rate=options.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=options.warmup_ratio,
        max_length=options.max_length,
        train_sampling_strategy="group_by_length",
        save_strategy="steps",
        save_steps=max(1, steps // options.points),
        logging_steps=10,
        seed=seed,
        report_to=[],
        disable_tqdm=True,
        log_level="error",
        bf16=torch.accelerator.is_available(),
        use_cpu=not torch.accelerator.is_available(),
        gradient_checkpointing=torch.accelerator.is_available(),
    )


class _Steps(TrainerCallback):
    """Moves the progress bar; the log lines go to the history file."""

    def __init__(self, progress: Any):
        self.progress = progress

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.progress(state.global_step, state.max_steps)


def _report(
    tables: dict[int, dict[str, Tables]], curves: list[dict[str, Any]], arms: list[Arm], folder: Path
) -> None:
    if not is_main():
        return
    reports = {seed: _report_of(of_model) for seed, of_model in tables.items()}
    write_report(reports[0], folder)
    finals = finals_of(reports, arms, MEASURES, BASE)
    rows = summarise(finals, reports, arms, MEASURES, BASE)
    write_csv(folder / "finals.csv", finals)
    write_csv(folder / "summary.csv", [{k: v for k, v in row.items() if "text" not in k} for row in rows])
    points = [_curve_point(point, tables[0][BASE]) for point in curves]
    start = next(row for row in finals if row["arm"] == BASE)
    seeds = range(len(reports))
    points += [{**start, "arm": arm.label, "seed": seed, "step": 0} for arm in arms for seed in seeds]
    write_csv(folder / "curves.csv", [{k: p[k] for k in ("arm", "seed", "step", *MEASURES)} for p in points])
    for column, (_, _, title) in MEASURES.items():
        plot_experiment(column, title, points, finals, folder / "figures" / column)
    header = ("arm", *(column.replace("_", " ") for column in MEASURES))
    body = [(row["arm"], *(row[f"{column}_text"] for column in MEASURES)) for row in rows]
    title = f"Perplexity, {len(reports)} seed(s): mean ± sd over seeds (change against ε = 0 [95 % interval])"
    show_table(title, header, body)


def _report_of(of_model: dict[str, Tables], resamples: int = RESAMPLES) -> Any:
    by_data = {data: {model: tables[data] for model, tables in of_model.items()} for data in ("test", "ood")}
    return robustness_report(by_data, BASE, resamples)


def _curve_point(point: dict[str, Any], base: Tables) -> dict[str, Any]:
    report = _report_of({BASE: base, "point": point["tables"]}, resamples=1)  # only values matter here
    values = {
        column: report.value(data, "point", metric).value for column, (data, metric, _) in MEASURES.items()
    }
    return {"arm": point["arm"], "seed": point["seed"], "step": point["step"], **values}
