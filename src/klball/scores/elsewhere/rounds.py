"""Which round every row is of: a value of a column, a task, an epoch, or a file of the same items."""

from dataclasses import replace
from itertools import chain

import numpy as np

from klball.scores.elsewhere.columns import FILE, texts
from klball.scores.elsewhere.item_scores import ONE_ROUND, Scores
from klball.scores.elsewhere.source import Source

BY_FILE = FILE  # the round that is no column
BY_TASK = "task"


def rounds_of(
    sources: list[Source], ids: list[list[str]], lacking: list[set[str]], round_: str | None, numbered: bool
) -> tuple[list[str], list[str]]:
    """The round of every row, and what was chosen without a word of the user's.

    lacking: the items of every source that have no score. numbered: ids are numbers of rows, which recur in
    every file whatever it is of.
    """
    own = [[ONE_ROUND] * one.rows for one in sources]
    said: list[str] = []
    if round_ == BY_TASK and any(one.task for one in sources):
        return tasks_of(sources), []
    if round_ == BY_FILE and BY_FILE not in sources[0].columns:
        return files_of(sources), []
    if round_ is not None:
        own = [texts(one, round_, "round") for one in sources]
    elif any(one.round for one in sources):
        own = [
            texts(one, one.round, "round") if one.round else o for one, o in zip(sources, own, strict=True)
        ]
        said.append(f"a round is an {sources[0].round or 'epoch'}")
    seen = [set(zip(*both, strict=True)) for both in zip(ids, own, strict=True)]
    if sum(map(len, seen)) == len(set().union(*seen)):
        return [label for labels in own for label in labels], said
    if numbered:
        raise ValueError(
            f"{sources[0].where} and {sources[1].where} have no ids, so nothing tells whether they score the "
            "same items: name the column with --id, or say --round file if row k is the same item in each"
        )
    items = [gone.union(own) for gone, own in zip(lacking, ids, strict=True)]
    _refuse_other_runs(sources, items)
    said.append("every file is a round: their ids are the same, so their items are taken to be")
    labelled = [
        one.label + (f", {label}" if label != ONE_ROUND else "")
        for one, labels in zip(sources, own, strict=True)
        for label in labels
    ]
    return labelled, said


def tasks_of(sources: list[Source]) -> list[str]:
    """The task of every row."""
    return [one.task for one in sources for _ in range(one.rows)]


def files_of(sources: list[Source]) -> list[str]:
    """What the file of every row is called."""
    return [one.label or one.where for one in sources for _ in range(one.rows)]


def _refuse_other_runs(sources: list[Source], items: list[set[str]]) -> None:
    """Raise ValueError unless files taken for rounds have the same items, and runs the same settings."""
    first: dict[str, tuple[Source, set[str]]] = {}
    for one, own in zip(sources, items, strict=True):
        other, others = first.setdefault(one.task, (one, own))
        if one.settings != other.settings:
            raise ValueError(
                f"{other.where} and {one.where} are runs with other settings ({other.settings}; "
                f"{one.settings}): give them one by one, or say --round file to take them for rounds"
            )
        if own == others:
            continue
        shared = f"{other.where} and {one.where} share {len(own & others)} of their {len(own | others)} items"
        ways = (
            "keep the runs that you mean, or say --round file for the items that all of them have"
            if one.task
            else "say --round file for rounds with gaps; if an id is another item in the next file, name "
            "what tells them apart, as --id task,id or --id file,id"
        )
        raise ValueError(f"{shared}, so they are neither rounds nor parts of one table: {ways}")


def _rounds_of_tasks(tasks: list[str], labels: list[str]) -> dict[str, set[str]]:
    of_task: dict[str, set[str]] = {task: set() for task in tasks}
    for task, label in zip(tasks, labels, strict=True):
        of_task[task].add(label)
    return of_task


def uneven(tasks: list[str], labels: list[str]) -> bool:
    """Whether tasks have different rounds, such as one epoch and two."""
    return len(set(map(frozenset, _rounds_of_tasks(tasks, labels).values()))) > 1


def over_own_rounds(scores: Scores, tasks: list[str]) -> Scores:
    """One round: an item's score is its mean over the rounds of its task."""
    of_task = _rounds_of_tasks(tasks, scores.rounds)
    parts = [
        scores.of_rows([row for row, own in enumerate(tasks) if own == task]).per_item() for task in of_task
    ]
    items = list(chain.from_iterable(part.sample_ids for part in parts))
    counts = "; ".join(f"{task}: {len(labels)}" for task, labels in of_task.items())
    return replace(
        scores,
        sample_ids=items,
        values=np.concatenate([part.values for part in parts]),
        rounds=[ONE_ROUND] * len(items),
        groups=None if scores.groups is None else [g for part in parts for g in part.groups or []],
        lacking={item: why for part in parts for item, why in part.lacking.items()},
        notes=(
            *scores.notes,
            f"rounds differ by task ({counts}): a score is the mean over its task's",
        ),
    )


def refuse_repeated(sources: list[Source], ids: list[str], labels: list[str], id_column: str | None) -> None:
    if len(set(zip(ids, labels, strict=True))) == len(ids):
        return
    first: dict[tuple[str, str], int] = {}
    places = [(one, row) for one in sources for row in range(one.rows)]
    for number, key in enumerate(zip(ids, labels, strict=True)):
        if key in first:
            (one, row), (other, before) = places[number], places[first[key]]
            where = (
                f"{one.where}, rows {one.number(before)} and {one.number(row)}"
                if one is other
                else f"{other.where}, row {other.number(before)}, and {one.where}, row {one.number(row)}"
            )
            of_round = f" in round {key[1]!r}" if key[1] != ONE_ROUND else ""
            raise ValueError(
                f"{where} (counted from 1) both have {id_column or one.id} {key[0]!r}{of_round}: name the "
                "columns that tell items apart, as --id task,id, of one item's repeats --round COLUMN, or of "
                "several models (in evaluate and compare) --model_column COLUMN"
            )
        first[key] = number
