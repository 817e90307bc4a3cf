"""Options that several commands share, each declared once; a command's own class inherits what it takes."""

from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field
from typing import Any


def option(default: Any, help: str, aliases: Sequence[str] = ()) -> Any:
    """A field of a class of options; without a default (`MISSING`) it must be given. aliases: older flags."""
    metadata: dict[str, Any] = {"help": help, **({"aliases": list(aliases)} if aliases else {})}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


REQUIRED = MISSING


@dataclass
class RowIds:
    """Where the rows' ids are."""

    id_column: str | None = option(
        None, "Column of the rows' ids; none numbers them; default: sample_id, else id."
    )


@dataclass
class DataName:
    """One data set by its name."""

    dataset_name: str = option("stdlib-docs", "Built-in name, local file or Hub name.")


@dataclass
class DataConfig(DataName):
    """One data set, and which of a Hub data set's configurations."""

    dataset_config: str | None = option(None, "Configuration of a Hub data set, or of a clone of one.")


@dataclass
class DataSet(RowIds, DataConfig):
    """One data set, with what reading it may need."""


@dataclass
class Jobs:
    """A share of the work for each of several jobs."""

    num_jobs: int = option(1, "Independent jobs that share the folder and its work, such as one a GPU.")
    job_index: int = option(0, "Which of them this is, from 0.")


@dataclass
class Split:
    """Which rows of a data set."""

    dataset_split: str | None = option(None, "Split, or a slice of it; default: all of a file, else test.")


@dataclass
class ScoreColumns:
    """What the columns of scores from elsewhere are."""

    score: str | None = option(
        None,
        'The column, or a sum such as "a + 0.1*b"; default: the tool\'s first, or the only numeric one.',
    )
    lower_is_better: bool | None = option(
        None, "The score is a loss; with false: it is none, though it is called one."
    )
    id: str | None = option(
        None, "The column of the items' ids; none numbers the rows; default: id and the like."
    )
    group: str | None = option(None, "A column that names groups of items; task is one.")
    round: str | None = option(
        None,
        "A column that names rounds (seed, language, wording), or file, or task; default: epochs, and files "
        "that score the same items.",
    )
    cluster: str | None = option(
        None, "A column that names items which depend on each other: the mean of a cluster is one item."
    )


@dataclass
class ModelColumns:
    """Whose the rows or the columns of scores from elsewhere are."""

    model_column: str | None = option(
        None, "A column that names models; default: every file or folder is one."
    )
    model_columns: list[str] = option(
        [], "COLUMN or LABEL=COLUMN: a column of scores for each model, of one table."
    )


@dataclass
class ChatTemplate:
    """How chats become text."""

    chat_template_path: str | None = option(None, "A .jinja file or a tokenizer.")


@dataclass(kw_only=True)
class Certifying:
    """How sure a bound on the population's worst case is to be, and of which scores it is."""

    confidence: float = option(0.95, "Of the bound on the worst case that is printed for bounded scores.")
    bounds: list[float] = option(
        [], "LOW HIGH, between which every score there could be lies; needless for right and wrong."
    )


@dataclass
class Precision:
    """How a model is run, and on how long rows."""

    dtype: str = option("float32", "float32, bfloat16, float16, float64 or auto.")
    max_length: int | None = option(None, "Cut longer rows; default: the model's limit.")
