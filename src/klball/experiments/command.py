"""What all commands share: options from one flat YAML and the command line, progress, files on disk."""

import csv
import dataclasses
import json
import logging
import os
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from trl import TrlParser

console = Console(stderr=False, width=None if sys.stdout.isatty() else 120)
REPEATS = 3  # of one kind of message are shown
LIBRARIES = ("klball", "torch", "transformers", "trl", "peft", "accelerate", "datasets", "tokenizers")


def parse(classes: Sequence[Any], arguments: Sequence[str], prog: str, **defaults: Any) -> tuple[Any, ...]:
    """The dataclasses filled from `--config FILE.yaml` and the command line, by TRL's own parser.

    `defaults` replace those of the classes.
    Raises ValueError for an unreadable file or an unknown key in it.
    """
    parser = TrlParser(classes, prog=prog)
    if not torch.accelerator.is_available():
        parser.set_defaults_with_config(use_cpu=True, bf16=False)
    parser.set_defaults_with_config(**defaults)
    arguments = list(arguments)
    if "--config" in arguments:
        position = arguments.index("--config") + 1
        if position == len(arguments) or not Path(arguments[position]).is_file():
            raise ValueError(
                f"--config needs a YAML file, got {arguments[position : position + 1] or 'nothing'}"
            )
    quieten()
    return parser.parse_args_and_config(arguments)


def quieten() -> None:
    """Our own messages in colour; the libraries' progress bars and notices out of the way."""
    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)
    handler = RichHandler(
        console=Console(stderr=True), show_path=False, show_time=False, rich_tracebacks=False
    )
    handler.addFilter(_FewRepeats())
    logging.getLogger("klball").handlers = [handler]
    logging.getLogger("klball").setLevel(logging.INFO if is_main() else logging.ERROR)


class _FewRepeats(logging.Filter):
    """Shows a message a few times, whatever its numbers: hundreds of tables can each have cut rows."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: Counter[str] = Counter()

    def filter(self, record: logging.LogRecord) -> bool:
        self.shown[record.msg] += 1
        count = self.shown[record.msg]
        if count == REPEATS:
            record.msg += " (more like this are not shown)"
        return count <= REPEATS


def is_main() -> bool:
    """Whether this process is the one that prints and writes."""
    return int(os.environ.get("RANK", "0")) == 0


@contextmanager
def progress_bar(title: str, unit: str = "rows") -> Iterator[Any]:
    """A function (done, total) that draws a progress bar on the main process."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit))
    with Progress(
        *columns, TimeRemainingColumn(), console=Console(stderr=True), disable=not is_main()
    ) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def show_table(title: str, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print a table; numbers to the right, everything else to the left."""
    if not is_main():
        return
    width = min(len(title), console.width)
    table = Table(title=title, title_justify="left", header_style="bold cyan", min_width=width)
    rows = [[_cell(value) for value in row] for row in rows]
    for column, name in enumerate(header):
        numeric = all(_is_number(row[column]) for row in rows)
        table.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _is_number(text: str) -> bool:
    try:
        float(text.split(maxsplit=1)[0].rstrip("%") if text else "0")
    except ValueError:
        return False
    return True


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Rows of equal keys as CSV."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    os.replace(temporary, path)


def write_run(folder: Path, options: Any, name: str) -> None:
    """The resolved options and the versions of the libraries, beside the results."""
    content = {
        "command": name,
        "options": dataclasses.asdict(options),
        "versions": versions(),
    }
    write_text(folder / "run.json", json.dumps(content, indent=2, sort_keys=True, default=str) + "\n")


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that results depend on."""
    return {"python": sys.version.split()[0], **{library: version(library) for library in LIBRARIES}}
