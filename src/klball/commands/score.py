"""`klball score`: a model and a data set → a score table."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from klball.commands.options import DTYPES, one_of, parse, refuse_ignored
from klball.data.rows import first_rows, load_chat_template, load_rows
from klball.files import write_run
from klball.models.loading import TINY, load_on_device
from klball.scores.tables import score
from klball.terminal import is_main, progress_bar, show_table


@dataclass
class Options:
    """What to score, and where to put it."""

    model_name_or_path: str = field(default=TINY, metadata={"help": "Hub name or folder, adapters included."})
    dataset_name: str = field(
        default="stdlib-docs", metadata={"help": "Built-in name, local file or Hub name."}
    )
    dataset_split: str | None = field(
        default=None, metadata={"help": "Split, or a slice of it; default: all of a file, else test."}
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub data set."})
    id_column: str | None = field(
        default=None,
        metadata={"help": "Column of the rows' ids; none numbers them; default: sample_id, else id."},
    )
    chat_template_path: str | None = field(default=None, metadata={"help": "A .jinja file or a tokenizer."})
    model_revision: str | None = field(default=None, metadata={"help": "Revision of a Hub model."})
    dtype: str = field(default="float32", metadata={"help": "float32, bfloat16, float16 or auto."})
    max_length: int | None = field(
        default=None, metadata={"help": "Cut longer rows; default: the model's limit."}
    )
    max_rows: int | None = field(default=None, metadata={"help": "Score the first rows only."})
    tokens_per_batch: int = field(
        default=8_192, metadata={"help": "Tokens of one forward pass, padding included."}
    )
    output_dir: str = field(default="outputs/score", metadata={"help": "Folder for scores.parquet."})


def main(arguments: Sequence[str], prog: str) -> None:
    """Score, print a summary, write `scores.parquet` and `run.json`."""
    (options,) = parse([Options], arguments, prog)
    one_of(options, "dtype", DTYPES)
    if options.model_name_or_path == TINY or Path(options.model_name_or_path).exists():
        refuse_ignored(options, ["model_revision"], "on a local model")
    dataset = load_rows(
        *(options.dataset_name, options.dataset_split, options.dataset_config),
        default="test",
        id_column=options.id_column,
    )
    dataset = first_rows(dataset, options.max_rows)
    model, tokenizer = load_on_device(options.model_name_or_path, options.dtype, options.model_revision)
    load_chat_template(tokenizer, options.chat_template_path)
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
