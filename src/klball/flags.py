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
class DataSet(RowIds, DataName):
    """One data set, with what reading it may need."""

    dataset_config: str | None = option(None, "Configuration of a Hub data set.")


@dataclass
class Split:
    """Which rows of a data set."""

    dataset_split: str | None = option(None, "Split, or a slice of it; default: all of a file, else test.")


@dataclass
class ChatTemplate:
    """How chats become text."""

    chat_template_path: str | None = option(None, "A .jinja file or a tokenizer.")


@dataclass
class Precision:
    """How a model is run, and on how long rows."""

    dtype: str = option("float32", "float32, bfloat16, float16 or auto.")
    max_length: int | None = option(None, "Cut longer rows; default: the model's limit.")
