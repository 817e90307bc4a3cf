"""What all commands show: messages, progress, tables."""

import logging
import os
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from klball.plain_text import visible


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Nobody reads on, as of `klball … | head`: what goes to files comes all the same."""
        with suppress(SystemExit):
            super().on_broken_pipe()


console = _Console(
    stderr=False,
    width=None if sys.stdout is not None and sys.stdout.isatty() else 120,
    markup=False,
    emoji=False,
)
MOST_ROWS = 40  # of a table or list that is also in a file
LONGEST_SHOWN = 400  # characters of a cell
REPEATS = 3  # of one kind of message are shown
LONG_WAIT, SHORT_WAIT = 30.0, 1.0  # seconds between two lines of progress


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
    handler.setFormatter(_Plain("%(message)s"))
    logging.getLogger("klball").handlers = [handler]
    logging.getLogger("klball").setLevel(logging.INFO if is_main() else logging.ERROR)


class _Plain(logging.Formatter):
    """Messages quote data."""

    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record))


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
    torch = sys.modules.get("torch")
    if torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank() == 0
    launched = "LOCAL_RANK" in os.environ and _in_environment("WORLD_SIZE", 1) > 1  # in a moment
    return _in_environment("RANK", 0) == 0 or not launched


def _in_environment(name: str, otherwise: int) -> int:
    text = os.environ.get(name, str(otherwise))
    if not text.isdecimal():
        raise ValueError(
            f"{name}={text!r} in the environment is no number: unset it, or use accelerate launch"
        )
    return int(text)


@contextmanager
def progress_bar(title: str, unit: str = "rows") -> Iterator[Any]:
    """A function (done, total) that shows progress on the main process: a bar, or lines in a log file."""
    title = visible(title, one_line=True)
    if not is_main():
        yield lambda done, total: None
        return
    if not sys.stderr.isatty():
        yield _ProgressLines(title, unit)
        return
    columns = (
        *(TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn()),
        *(TextColumn(unit, markup=False), TimeRemainingColumn()),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        tasks: list[TaskID] = []

        def show(done: int, total: int | None) -> None:
            if not tasks:  # only now: what is finished already reports nothing, and needs no empty bar
                tasks.append(progress.add_task(title))
            progress.update(tasks[0], completed=done, total=total)

        yield show


class _ProgressLines:
    """A plain line at every tenth of the work, at most one a second, and at least every half a minute."""

    def __init__(self, title: str, unit: str):
        self.title, self.unit = title, unit
        self.said_at, self.said = time.monotonic(), 0

    def __call__(self, done: int, total: int | None) -> None:
        waited = time.monotonic() - self.said_at
        tenth = bool(total) and (done - self.said) * 10 >= total
        if waited >= LONG_WAIT or (tenth and waited >= SHORT_WAIT):
            of = f" of {total:,}" if total else ""
            print(f"{self.title}: {done:,}{of} {self.unit}", file=sys.stderr, flush=True)
            self.said_at, self.said = time.monotonic(), done


def say(text: str, style: str = "") -> None:
    """Print text as it is: brackets and colons are no markup, control characters are made visible."""
    console.print(Text(visible(text), style=style))


def say_verdicts(lines: Sequence[str], rest: str = "", title: str = "Verdicts") -> None:
    """Which model is better where, in a plain line each, before the tables that it rests on.

    rest: where all lines are, which has the first `MOST_ROWS` printed alone.
    """
    left = max(0, len(lines) - MOST_ROWS) if rest else 0
    shown = [f"• {line}" for line in lines[: len(lines) - left]]
    for line in (title, *shown, *([f"{left:,} more: {rest}"] if left else []), "") if lines else ():
        say(line, style="bold" if line == title else "")


def show_table(
    title: str, header: Sequence[str], rows: Iterable[Sequence[Any]], rest: str | None = None
) -> None:
    """Print a table; numbers to the right, everything else to the left. No text is taken for markup.

    rest: where all rows are, which has the first `MOST_ROWS` printed alone.
    """
    if not is_main():
        return
    title, *header = (visible(text, one_line=True) for text in (title, *header))
    width = min(cell_len(title), console.width)
    table = Table(title=Text(title), title_justify="left", header_style="bold cyan", min_width=width)
    rows = list(rows)
    left = 0 if rest is None else max(0, len(rows) - MOST_ROWS)
    rows = [[_cell(value) for value in row] for row in rows[: len(rows) - left]]
    for column, name in enumerate(header):
        numeric = all(_is_number(row[column]) for row in rows)
        table.add_column(Text(name), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table)
    if left:
        say(f"{left:,} more rows: {rest}")


def _cell(value: Any) -> str:
    """Lines stay: a summary's cells have two. Of endless ids and answers the ends are shown."""
    text = f"{value:.4g}" if isinstance(value, float) else visible(str(value))
    return text if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN - 100]} … {text[-90:]}"


def _is_number(text: str) -> bool:
    words = text.split(maxsplit=1) or ["0"]
    try:
        float(words[0].rstrip("%"))
    except ValueError:
        return False
    return True
