"""`klball evaluate`: models × data sets → perplexities, the hardest 1 %, tails, robust profiles."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset

from klball.commands.answers import OF_ANSWERS, Answering, evaluate_answers
from klball.commands.earlier import remove_evaluation
from klball.commands.elsewhere import COLUMNS, OF_SEVERAL, evaluate_elsewhere
from klball.commands.labels import labelled
from klball.commands.options import DTYPES, asked_rows, one_of, parse, refuse_ignored
from klball.commands.pairs import evaluate_pairs
from klball.commands.ratios import write_ratios
from klball.files import write_csv, write_run
from klball.flags import (
    Certifying,
    ChatTemplate,
    ModelColumns,
    Precision,
    RowIds,
    ScoreColumns,
    Split,
    option,
)
from klball.models.loading import TINY, check_model, public_name
from klball.report.pages.evaluation import plain_lines, write_evaluation_page
from klball.report.pages.tables import write_report
from klball.scores.parts import TABLES_FILE, Cache
from klball.scores.perplexity import robustness_report
from klball.scores.tables import read_provenance, score, warn_of_formats
from klball.studies.arms import load
from klball.terminal import is_main, progress_bar, say, say_verdicts

EXAMPLE = (
    "klball evaluate --models base=klball/tiny robust=outputs/run --datasets word-problems --max_rows 100"
)

OF_MODELS = (
    *("models", "datasets", "max_rows", "dtype", "max_length", "chat_template_path"),
    *("dataset_split", "id_column", "generate", *OF_ANSWERS),
)


@dataclass
class Options(ModelColumns, ScoreColumns, Answering, Certifying, Precision, ChatTemplate, Split, RowIds):
    """Models and data sets, each as NAME or LABEL=NAME."""

    models: list[str] = option([TINY], "Models, as NAME or LABEL=NAME; the first is the reference.")
    datasets: list[str] = option(["stdlib-docs", "word-problems"], "Data sets, as NAME or LABEL=NAME.")
    pair_scores: list[str] = option(
        [], "Pair tables of klball score, as FILE or LABEL=FILE, instead of models and data."
    )
    scores: list[str] = option(
        [],
        "Results that are there, as PATH or LABEL=PATH, instead of models and data: klball's tables, CSV, "
        "TSV, JSON lines, Parquet, samples of lm-eval, logs of Inspect.",
    )
    reference: str | None = option(None, "Label of the model that chooses the hardest 1 %.")
    max_rows: int | None = option(None, "Use the first rows of each data set only.")
    output_dir: str = option("outputs/evaluate", "Folder for score tables, metrics and figures.")


def main(arguments: Sequence[str], prog: str) -> None:
    """Score every model on every data set (finished tables are reused), then report."""
    (options,) = parse([Options], arguments, prog, EXAMPLE)
    one_of(options, "dtype", DTYPES)
    if options.scores:
        refuse_ignored(options, (*OF_MODELS, "pair_scores"), "with --scores, whose items are scored")
        evaluate_elsewhere(options, prog)
        return
    refuse_ignored(options, (*COLUMNS, *OF_SEVERAL), "without --scores")
    if options.pair_scores:
        refuse_ignored(options, OF_MODELS, "with --pair_scores, whose tables are finished")
        evaluate_pairs(options, labelled(options.pair_scores), prog)
        return
    if options.generate:
        refuse_ignored(options, ("reference", "max_length"), "with --generate true")
        evaluate_answers(options, prog)
        return
    refuse_ignored(options, OF_ANSWERS, "without --generate true")
    refuse_ignored(options, ("confidence", "bounds"), "on log-likelihoods, which are in nats and have none")
    folder = Path(options.output_dir)
    models, datasets = labelled(options.models), labelled(options.datasets)
    reference = options.reference or next(iter(models))
    if reference not in models:
        raise ValueError(f"--reference {reference!r} is not among the models {', '.join(models)}")
    rows = {label: asked_rows(options, name) for label, name in datasets.items()}
    for name in models.values():
        check_model(name)
    tables: dict[str, dict[str, Dataset]] = {data: {} for data in datasets}
    about: dict[str, Any] = {}
    cache, named = Cache(folder / "scores"), []
    for label, name in models.items():
        model, tokenizer = load(name, options)
        for data, dataset in rows.items():
            with progress_bar(f"{label} on {data}") as progress:
                limit = options.max_length
                tables[data][label] = score(
                    model, tokenizer, dataset, max_length=limit, output=cache, progress=progress
                )
            named.append({"model": label, "data": data, "file": cache.last.name})
            about[f"{label} on {data}"] = {**read_provenance(cache.last), "model": public_name(name)}
    if is_main():
        report = robustness_report(tables, reference)
        remove_evaluation(folder, prog)
        write_run(folder, options, prog)
        write_csv(folder / TABLES_FILE, named)
        warn_of_formats(about.values())
        say_verdicts(plain_lines(report))
        write_report(report, folder)
        write_ratios(report, folder)
        write_evaluation_page(report, tables, rows, about, folder)
        say(f"everything is in {folder}")
