"""What commands do with preference pairs: score them, solve and report their tables, and speak of noise."""

import logging
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from klball.adversary.dual import solve_dual
from klball.adversary.sets import AmbiguitySet, Empirical
from klball.adversary.upweighting import radius_in_words
from klball.commands.certified import cell, certain, given_bounds
from klball.commands.earlier import remove_evaluation
from klball.commands.options import asked_rows
from klball.commands.ratios import write_differences
from klball.data.preferences import refuse_margin
from klball.data.rows import load_chat_template, to_preferences
from klball.files import RUN_FILE, read_json_object, write_csv, write_run
from klball.models.loading import REWARD, adapter_base, load_on_device
from klball.objectives.pairs import no_preference_radius
from klball.report.pages.parts import counted, few_in_words
from klball.scores.accuracy import WORST, columns_in_common, columns_of, pair_differences, pair_report
from klball.scores.certified import certified_worst_case
from klball.scores.pairs import dpo_table, encode_pairs, likelihoods, read_pairs, reward_table
from klball.scores.tails import heaviest
from klball.studies.arms import load
from klball.terminal import is_main, progress_bar, say, show_table

logger = logging.getLogger(__name__)

RATES = (0.1, 0.2, 0.3)
DATA = "doc-preferences"


def say_of_flips(ambiguity: AmbiguitySet) -> None:
    """A line on the radius that label noise allows, where there is a ball that trusts hard pairs."""
    if is_main() and not isinstance(ambiguity, Empirical) and _direction(ambiguity) == "pessimistic":
        say(flips_sentence())


def _direction(ambiguity: Any) -> str:
    """Of a set, or of the one inside it that is left after trimming."""
    return getattr(getattr(ambiguity, "inner", ambiguity), "direction", "none")


def flips_sentence() -> str:
    """ε₀(η) at some rates of flipped labels."""
    radii = ", ".join(f"{no_preference_radius(rate):.3f} at η = {rate:g}" for rate in RATES)
    return (
        "If a share η of the labels is flipped, a pessimistic KL ball over pairs learns nothing from the "
        f"radius ε₀(η) = −½ log(4η(1−η)) on: {radii}."
    )


def score_pairs(options: Any, prog: str) -> None:
    """`klball score --family dpo|reward`: `scores.parquet`, a pair table."""
    name = DATA if options.dataset_name == type(options).dataset_name else options.dataset_name
    rows = asked_rows(options, name, to_preferences)
    if options.family == "dpo":
        refuse_margin(rows.column_names)
    folder = Path(options.output_dir)
    output = folder / "scores.parquet"
    table = (_dpo if options.family == "dpo" else _reward)(options, rows, output)
    if is_main():
        write_run(folder, options, prog)
        title = f"{options.model_name_or_path} on {name} → {output}"
        show_report({options.model_name_or_path: table}, title)


def _dpo(options: Any, rows: Dataset, output: Path) -> Dataset:
    model = options.model_name_or_path
    if options.beta == 0:
        raise ValueError("--beta must be above 0: without it no answer is preferred")
    models = ((model, options.model_revision), _reference(options))
    paths = [output.with_name(f"{name}.parquet") for name in ("model", "reference")]
    own: Any = None
    for path, (name, revision) in zip(paths, models, strict=True):
        loaded, tokenizer = load(name, options, revision)
        own = own or encode_pairs(rows, tokenizer, options.group_column)
        with progress_bar(f"Scoring {name}") as progress:
            likelihoods(
                loaded,
                tokenizer,
                own,
                path,
                max_length=options.max_length,
                tokens_per_batch=options.tokens_per_batch,
                progress=progress,
            )
    return dpo_table(own, paths[0], paths[1], options.beta, output)


def _reference(options: Any) -> tuple[str, str | None]:
    """Name and revision: as asked for, else what a run of ours began from, else the base of an adapter."""
    model = options.model_name_or_path
    if options.reference_model is not None:
        return options.reference_model, None
    if (run := _run_of(Path(model))) is not None:
        beta = run.get("training", {}).get("beta", options.beta)
        if beta != options.beta:
            logger.warning(
                "%s was trained with beta %g, and the table has --beta %g", *(model, beta, options.beta)
            )
        return run["model"]["model_name_or_path"], run["model"]["model_revision"]
    base = adapter_base(model, options.model_revision)
    if base is None:
        raise ValueError(
            f"{model} is no adapter: name the model that its DPO began from with --reference_model"
        )
    return base, None


def _run_of(model: Path) -> dict[str, Any] | None:
    """What is recorded of the run of ours that trained a model with a reference, or a checkpoint of it."""
    folder = model.parent if model.name.startswith(PREFIX_CHECKPOINT_DIR) else model
    run = read_json_object(folder / RUN_FILE) if (folder / RUN_FILE).is_file() else {}
    return run if run.get("data", {}).get("family") in ("dpo", "gdpo") else None


def _reward(options: Any, rows: Dataset, output: Path) -> Dataset:
    name = options.model_name_or_path
    model, tokenizer = load_on_device(name, options.dtype, options.model_revision, REWARD)
    load_chat_template(tokenizer, options.chat_template_path)
    pairs = encode_pairs(rows, tokenizer, options.group_column)
    with progress_bar("Scoring") as progress:
        return reward_table(
            *(model, tokenizer, pairs),
            max_length=options.max_length,
            tokens_per_batch=options.tokens_per_batch,
            output=output,
            progress=progress,
        )


# --- reading pair tables ------------------------------------------------------------------------


def show_report(
    tables: dict[str, Dataset], title: str, reference: str | None = None, confidence: float = 0.95
) -> list[dict[str, Any]]:
    """Print accuracy and loss by part, a column a model, and what is certain; returns the rows of all models.

    reference: whose losses choose the hardest 1 %; None: each model's own. Raises ValueError for tables of
    different pairs.
    """
    columns, left_out = columns_in_common(tables)
    others = ", and leave for all" if len(tables) > 1 else ""
    for label, count in left_out.items():
        if count:
            say(f"{label}: {counted(count, 'pair')} with an answer that was cut to nothing: no loss{others}")
    first = next(iter(columns))
    chooser = None if reference is None else columns[reference]
    reports = {label: pair_report(own, chooser, confidence) for label, own in columns.items()}
    body = [
        (rows[0]["metric"], rows[0]["part"], rows[0]["pairs"], *(cell(row) for row in rows))
        for rows in zip(*reports.values(), strict=True)
    ]
    title = f"{title}: value [95 % interval] {certain(confidence)}"
    show_table(title, ("metric", "pairs of", "pairs", *reports), body)
    if few := few_in_words(len(columns[first]["loss"]), "pair"):
        say(few)
    for label, own in columns.items():
        found = certified_worst_case(own["accuracy"], WORST, confidence=confidence)
        say(f"{label}: {found.sentence('accuracy', 'pairs')}")
    say(radius_in_words(WORST))
    return [{"model": label, **row} for label, rows in reports.items() for row in rows]


def evaluate_pairs(options: Any, labels: dict[str, str], prog: str) -> None:
    """`klball evaluate --pair_scores`: pair tables that are there → two CSV files and the printed report."""
    reference = options.reference or next(iter(labels))
    if reference not in labels:
        raise ValueError(f"--reference {reference!r} is not among the tables {', '.join(labels)}")
    given_bounds(options, "with --pair_scores, whose accuracies are 0, ½ or 1")
    tables = {label: read_pairs(path)[0] for label, path in labels.items()}
    if is_main():
        folder = Path(options.output_dir)
        columns, _ = columns_in_common(tables)
        rows = show_report(
            tables, f"preference pairs, hardest 1 % by {reference}", reference, options.confidence
        )
        differences = pair_differences(columns, reference)
        remove_evaluation(folder, prog)
        write_run(folder, options, prog)
        write_csv(folder / "pairs.csv", rows)
        write_differences(differences, "pairs", folder)


def solve_pairs(options: Any) -> tuple[Any, int, int, float, list[dict[str, Any]]]:
    """The adversary's answer to a pair table: solution, pairs, pairs without a loss, mean loss, top rows."""
    columns, left_out = columns_of(read_pairs(options.scores)[0])
    losses = columns["loss"]
    solution = solve_dual(-losses, epsilon=options.epsilon, max_weight=options.max_weight)
    top = heaviest(columns["sample_id"], solution.weights, losses, "loss", options.top)
    return solution, len(losses), left_out, float(losses.mean()), top
