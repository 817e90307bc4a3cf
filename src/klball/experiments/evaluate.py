"""`klball evaluate`: models × data sets → perplexities, the hardest 1 %, tails, robust profiles."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from klball.data.files import file_name
from klball.data.rows import first_rows, load_chat_template, load_rows
from klball.evaluation.models import TINY, check_model, load_model
from klball.evaluation.perplexity import Metric, RobustnessReport, decided_by, robustness_report
from klball.evaluation.tables import read_provenance, score, warn_of_formats
from klball.experiments.command import is_main, parse, progress_bar, show_table, write_csv, write_run
from klball.experiments.labels import file_names, labelled
from klball.experiments.options import DTYPES, one_of
from klball.experiments.pages.evaluation import write_evaluation_page
from klball.experiments.pages.parts import counted
from klball.report.figures import plot_profiles

SHOWN = {  # metric → column of the printed table
    **{"perplexity_token": "ppl, token", "perplexity_sample": "ppl, sample", "bits_per_byte": "bits/byte"},
    **{"hardest_1pct": "hardest 1%", "own_hardest_1pct": "own 1%", "cvar_0.05": "CVaR 5%"},
}


@dataclass
class Options:
    """Models and data sets, each as NAME or LABEL=NAME."""

    models: list[str] = field(
        default_factory=lambda: [TINY],
        metadata={"help": "Models, as NAME or LABEL=NAME; the first is the reference."},
    )
    datasets: list[str] = field(
        default_factory=lambda: ["stdlib-docs", "word-problems"],
        metadata={"help": "Data sets, as NAME or LABEL=NAME."},
    )
    dataset_split: str | None = field(
        default=None, metadata={"help": "Split, or a slice of it; default: all of a file, else test."}
    )
    id_column: str | None = field(
        default=None,
        metadata={"help": "Column of the rows' ids; none numbers them; default: sample_id, else id."},
    )
    reference: str | None = field(
        default=None, metadata={"help": "Label of the model that chooses the hardest 1 %."}
    )
    chat_template_path: str | None = field(default=None, metadata={"help": "A .jinja file or a tokenizer."})
    dtype: str = field(default="float32", metadata={"help": "float32, bfloat16, float16 or auto."})
    max_length: int | None = field(
        default=None, metadata={"help": "Cut longer rows; default: the model's limit."}
    )
    max_rows: int | None = field(default=None, metadata={"help": "Use the first rows of each data set only."})
    output_dir: str = field(default="outputs/evaluate", metadata={"help": "Folder for tables and figures."})


def main(arguments: Sequence[str], prog: str) -> None:
    """Score every model on every data set (finished tables are reused), then report."""
    (options,) = parse([Options], arguments, prog)
    one_of(options, "dtype", DTYPES)
    folder = Path(options.output_dir)
    models, datasets = labelled(options.models), labelled(options.datasets)
    for labels in (models, datasets):
        file_names(labels)
    reference = options.reference or next(iter(models))
    if reference not in models:
        raise ValueError(f"--reference {reference!r} is not among the models {', '.join(models)}")
    rows = {label: _rows(name, options) for label, name in datasets.items()}
    for name in models.values():
        check_model(name)
    tables: dict[str, dict[str, Dataset]] = {data: {} for data in datasets}
    about: dict[str, Any] = {}
    for label, name in models.items():
        model, tokenizer = load_model(name, options.dtype)
        if torch.accelerator.is_available():
            model.to(torch.accelerator.current_accelerator())
        load_chat_template(tokenizer, options.chat_template_path)
        for data, dataset in rows.items():
            output = folder / "scores" / f"{file_name(name)}--{file_name(datasets[data])}.parquet"
            with progress_bar(f"{label} on {data}") as progress:
                tables[data][label] = score(
                    *(model, tokenizer, dataset),
                    max_length=options.max_length,
                    output=output,
                    progress=progress,
                )
            about[f"{label} on {data}"] = read_provenance(output)
    if is_main():
        write_run(folder, options, prog)
        warn_of_formats(about.values())
        report = robustness_report(tables, reference)
        write_report(report, folder)
        write_evaluation_page(report, tables, rows, about, folder)


def write_report(report: RobustnessReport, folder: Path) -> None:
    """Print the tables (± half a 95 % interval); write the CSV files and the figures."""
    for data, counts in report.rows.items():
        hard = counted(decided_by("hardest_1pct", counts["kept"]))
        dropped = f"{counts['truncated']} cut, {counts['unscored']} without answer: left out for all models"
        title = f"{data}: {counted(counts['kept'])} ({dropped}); hardest 1 % = {hard} by {report.reference}"
        body = []
        for model in dict.fromkeys(m.model for m in report.metrics):
            metrics = [report.value(data, model, name) for name in SHOWN]
            body.append([model, *(_with_half(m) for m in metrics)])
        show_table(title, ("model", *SHOWN.values()), body)
    write_csv(folder / "metrics.csv", report.records())
    write_csv(folder / "profiles.csv", [dataclasses.asdict(point) for point in report.profiles])
    plot_profiles(report.profiles, folder)


def _rows(name: str, options: Options) -> Dataset:
    dataset = load_rows(name, options.dataset_split, default="test", id_column=options.id_column)
    return first_rows(dataset, options.max_rows)


def _with_half(metric: Metric) -> str:
    """A number ± half its interval, where there is one."""
    if not math.isfinite(metric.value):
        return "–"
    half = (metric.high - metric.low) / 2
    return f"{metric.value:.4g}" + (f" ±{half:.2g}" if math.isfinite(half) else "")
