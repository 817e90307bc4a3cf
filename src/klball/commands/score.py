"""`klball score`: a model and a data set → a score table, of answers or of preference pairs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from klball.commands.options import DTYPES, asked_rows, one_of, parse, refuse_ignored
from klball.commands.pairs import score_pairs
from klball.files import write_run
from klball.flags import ChatTemplate, DataSet, Precision, Split, option
from klball.models.loading import TINY
from klball.scores.tables import score
from klball.studies.arms import load
from klball.terminal import is_main, progress_bar, show_table

EXAMPLE = "klball score --model_name_or_path klball/tiny --dataset_name word-problems --max_rows 100"


@dataclass
class Options(Precision, ChatTemplate, Split, DataSet):
    """What to score, and where to put it."""

    model_name_or_path: str = option(TINY, "Hub name or folder, adapters included.")
    model_revision: str | None = option(None, "Revision of a Hub model.")
    family: str = option("sft", "sft: answers; dpo or reward: preference pairs.")
    reference_model: str | None = option(None, "dpo: the reference; default: the base of an adapter.")
    beta: float = option(0.1, "dpo: its beta.")
    group_column: str | None = option(None, "dpo and reward: column of groups, kept in the table.")
    max_rows: int | None = option(None, "Score the first rows only.")
    tokens_per_batch: int = option(8_192, "Tokens of one forward pass, padding included.")
    output_dir: str = option("outputs/score", "Folder for scores.parquet.")


def main(arguments: Sequence[str], prog: str) -> None:
    """Score, print a summary, write `scores.parquet` and `run.json`."""
    (options,) = parse([Options], arguments, prog, EXAMPLE)
    one_of(options, "dtype", DTYPES)
    if options.model_name_or_path == TINY or Path(options.model_name_or_path).exists():
        refuse_ignored(options, ["model_revision"], "on a local model")
    one_of(options, "family", ("sft", "dpo", "reward"))
    if options.family != "dpo":
        refuse_ignored(options, ["reference_model", "beta"], f"with --family {options.family}")
    if options.family != "sft":
        score_pairs(options, prog)
        return
    refuse_ignored(options, ["group_column"], "with --family sft")
    dataset = asked_rows(options)
    model, tokenizer = load(options.model_name_or_path, options, options.model_revision)
    output = Path(options.output_dir) / "scores.parquet"
    with progress_bar("Scoring") as progress:
        table = score(
            model,
            tokenizer,
            dataset,
            max_length=options.max_length,
            tokens_per_batch=options.tokens_per_batch,
            output=output,
            progress=progress,
        )
    if is_main():
        write_run(output.parent, options, prog)
    scored = np.array([g for g in table["log_likelihood"] if g is not None])
    cut = sum(table["truncated"])
    rows = [
        ("rows scored", len(scored)),
        ("rows cut at max_length", cut),
        ("rows without an answer", len(table) - len(scored)),
        ("mean log-likelihood, nats/token", float(scored.mean())),
        ("its standard deviation", float(scored.std())),
        ("lowest", float(scored.min())),
        ("perplexity, exp(−mean)", float(np.exp(-scored.mean()))),
        ("mean self-certainty, nats", float(np.mean([c for c in table["certainty"] if c is not None]))),
    ]
    show_table(f"{options.model_name_or_path} on {options.dataset_name} → {output}", ("", "value"), rows)
