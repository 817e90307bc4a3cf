"""`klball.scores_from`: per-item results of any kind → one score an item (and round), more being better."""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np

from klball.data.ids import NUMBERED
from klball.scores.elsewhere.columns import beginnings, is_numeric, numbers, texts
from klball.scores.elsewhere.expression import (
    CONSTANT,
    MINUS,
    NEVER_NEGATIVE,
    check_direction,
    is_right,
    weighted_sum,
    words,
)
from klball.scores.elsewhere.item_scores import ONE_ROUND, Scores
from klball.scores.elsewhere.recognise import sources_of
from klball.scores.elsewhere.source import Source, listed
from klball.scores.measure import ACCURACY, Measure, accuracy, points

BY_FILE = "file"  # the round that is no column
BY_TASK = "task"
MANY = 12  # columns that a refusal lists


def scores_from(
    source: Any,
    *,
    score: str | None = None,
    id: str | None = None,
    group: str | None = None,
    round: str | None = None,
    lower_is_better: bool | None = None,
) -> Scores:
    """The scores of one model on items, from what another tool, a script or klball wrote.

    Args:
        source: A file or a folder of files: CSV, TSV, JSON lines, Parquet, samples of lm-evaluation-harness
            (`--log_samples`), logs of Inspect, klball's own tables; a `datasets.Dataset`, a pandas or
            polars frame, an Arrow table, a list of dictionaries, a mapping of columns.
        score: The column, or a weighted sum of columns such as "log_likelihood + 0.1*certainty". None: the
            tool's first, or the only numeric column.
        id: The column of the items' ids. None: the tool's, `id`, `sample_id` and the like; "none": row
            numbers.
        group: A column that names groups of items.
        round: A column that names rounds (a seed, a language, a wording of the prompt), "file" where every
            file is one, or "task". None: epochs of Inspect, and files that score the same items.
        lower_is_better: The score is a loss.

    Raises:
        ValueError: No per-item results; several candidates for the score; a column called loss, perplexity
            or error without `lower_is_better`; missing, repeated, NaN or mixed values, with row and column.
    """
    for option, given in {"score": score, "id": id, "group": group, "round": round}.items():
        if not isinstance(given, str | None):
            raise ValueError(f"{option} must be text, not {given!r}")
    if not isinstance(lower_is_better, bool | None):
        raise ValueError(f"lower_is_better must be True, False or None, not {lower_is_better!r}")
    sources, without = _with_score(sources_of(source), score)
    names, notes = _chosen_scores(sources, score, (id, group, round))
    sources = [one.scored(weighted_sum(names[one.task], one.columns, one.where)) for one in sources]
    notes += [f"groups are by {told}" for told in _default_group(sources, group, round)]
    parts = [_part(one, names[one.task], lower_is_better, id) for one in sources]
    prefixed = len({one.task for one in sources}) > 1 and round != BY_TASK
    of_source = [
        [f"{one.task}/{i}" if prefixed else i for i in part[1]]
        for one, part in zip(sources, parts, strict=True)
    ]
    ids = list(chain.from_iterable(of_source))
    labels, said = _rounds(sources, of_source, round, any(part[2] for part in parts) or id == NUMBERED)
    lacking = {
        (f"{one.task}/{i}" if prefixed else i): why
        for one in sources
        for i, why in (_by_number(one.lost) if id == NUMBERED else one.lacking).items()
    }
    notes += without
    if counts := Counter(lacking.values()):
        notes.append("left out: " + ", ".join(f"{count} {why}" for why, count in counts.items()))
    _refuse_repeated(sources, ids, labels, id)
    values = np.concatenate([part[0] for part in parts])
    own = dict.fromkeys(names.values())
    notes += [] if (uneven := round is None and _uneven(_tasks(sources), labels)) else said
    scores = Scores(
        measure=_measure(sources, names, values, lower_is_better),
        name=next(iter(own)) if len(own) == 1 else ACCURACY,
        sample_ids=ids,
        values=values,
        rounds=labels,
        groups=_groups(sources, group, round),
        lacking=lacking,
        numbered=any(part[2] for part in parts),
        notes=tuple(notes),
        sources=tuple(zip(sources, of_source, strict=True)),
    )
    return _over_own_rounds(scores, _tasks(sources)) if uneven else scores


def _with_score(sources: list[Source], score: str | None) -> tuple[list[Source], list[str]]:
    """Of a tool's tasks those that have the score asked for, and a note on the others."""
    if score is None or len({one.task for one in sources}) == 1:
        return sources, []
    kept = [one for one in sources if _has(one, score)]
    if len(kept) in (0, len(sources)):
        return sources, []
    tasks = listed(dict.fromkeys(one.task for one in sources if not _has(one, score)))
    return kept, [f"tasks without {score}, left out: {tasks}"]


def _has(source: Source, score: str) -> bool:
    try:
        return bool(weighted_sum(score, source.columns))
    except ValueError:
        return False


def _tasks(sources: list[Source]) -> list[str]:
    """The task of every row."""
    return [one.task for one in sources for _ in range(one.rows)]


def _chosen_scores(
    sources: list[Source], score: str | None, taken: Collection[str | None]
) -> tuple[dict[str, str], list[str]]:
    """task → the column or sum, the same one or its own accuracy, and what was chosen unasked."""
    tasks = dict.fromkeys(one.task for one in sources)
    first = {one.task: next(iter(one.measures), "") for one in sources}
    units = [one.measures[first[one.task]].unit if first[one.task] in one.measures else "" for one in sources]
    if score is None and {*units} == {ACCURACY} and not _common(sources):
        told = "; ".join(f"{task}: {name}" for task, name in first.items())
        return first, [f"the score is each task's own accuracy ({told}); one of them alone: --score"]
    name, notes = _chosen_score(sources, score, taken)
    return dict.fromkeys(tasks, name), notes


def _common(sources: list[Source]) -> list[str]:
    """The scores that the format defines for all of them."""
    known = dict.fromkeys(name for one in sources for name in one.measures)
    return [name for name in known if all(name in one.measures for one in sources)]


def _chosen_score(
    sources: list[Source], score: str | None, taken: Collection[str | None]
) -> tuple[str, list[str]]:
    """The column or sum, and what was chosen without a word of the user's."""
    if score is not None:
        terms = weighted_sum(score, sources[0].columns, sources[0].where)
        alone = [*terms.values()] == [1.0] and CONSTANT not in terms
        return (next(iter(terms)) if alone else score), []
    if any(one.measures for one in sources):
        common = _common(sources)
        if not common:
            of_task = "; ".join(f"{one.task or one.where}: {listed(one.measures)}" for one in sources)
            raise ValueError(
                f"these files have no score in common ({of_task}): choose one with "
                "--score, and tasks without it are left out"
            )
        others = f", one of {listed(common)} (--score)" if len(common) > 1 else ""
        return common[0], [f"the score is {common[0]}{others}"]
    first = sources[0]
    inert = {*taken, first.id, first.group, first.round}
    found = [name for name in first.columns if name not in inert and is_numeric(first, name)]
    if len(found) == 1:
        return found[0], [f"the score is column {found[0]}, the only numeric one"]
    if not found:
        raise ValueError(
            f"{first.where} has no numeric column (written as 1234.5); there are {beginnings(first)}"
        )
    a, b = (name if name.isidentifier() else repr(name) for name in found[:2])
    raise ValueError(
        f"{first.where} has several numeric columns ({listed(found[:MANY])}): choose with --score COLUMN, or "
        f'a weighted sum such as --score "{a} + 0.1*{b}"'
    )


def _part(
    source: Source, name: str, lower_is_better: bool | None, id_column: str | None
) -> tuple[np.ndarray, list[str], bool]:
    """Scores, ids, and whether the ids are only numbers."""
    terms = weighted_sum(name, source.columns, source.where)
    check_direction(terms, lower_is_better, source.measures)
    alone = next(iter(terms)) if len(terms) == 1 else CONSTANT
    known = source.measures.get(alone)
    if lower_is_better and known is not None and not known.loss and terms[alone] > 0:
        raise ValueError(f"of {alone} more is better: leave --lower_is_better out")
    values = np.full(source.rows, terms.get(CONSTANT, 0.0))
    for column, factor in terms.items():
        if column != CONSTANT:
            own = numbers(source, column)
            if factor > 0:
                _refuse_impossible(source, column, own)
            values += factor * own
    values = -values if _is_loss(source, name, lower_is_better) else values
    column = source.id if id_column is None else id_column
    if column in ("", NUMBERED):
        return values, source.numbers(), id_column is None
    return values, texts(source, column, "id"), False


def _is_loss(source: Source, name: str, lower_is_better: bool | None) -> bool:
    if lower_is_better is None and name in source.measures:
        return source.measures[name].loss
    return bool(lower_is_better)


def _refuse_impossible(source: Source, name: str, values: np.ndarray) -> None:
    """Log-likelihoods that are all positive, and perplexities that are all negative, are each other."""
    own = words(name)
    likelihood = {"log", "likelihood"} <= own or own & {"loglikelihood", "logprob", "logprobs", "logp"}
    if likelihood and not own & MINUS and len(values) and values.min() > 0:
        raise ValueError(
            f"{source.where}: every {name} is positive, but log-likelihoods are 0 or less: these look like "
            f'losses: write --score "-{name}"'
        )
    if own & NEVER_NEGATIVE and len(values) and values.max() < 0:
        raise ValueError(
            f"{source.where}: every {name} is negative: these look like log-likelihoods: if more is better, "
            "give --lower_is_better false"
        )


def _measure(
    sources: list[Source], names: Mapping[str, str], scores: np.ndarray, lower_is_better: bool | None
) -> Measure:
    """Of a known score the format's, else accuracy of 0 and 1 by the column's name, else its points."""
    name, *others = dict.fromkeys(names.values())
    if others:
        return accuracy(ACCURACY)
    known = sources[0].measures.get(name)
    if known is not None and all(one.measures.get(name, known).noun == known.noun for one in sources):
        units = {one.measures.get(name, known).unit for one in sources}
        return known if len(units) == 1 else points(name, known.loss)
    if not lower_is_better and is_right(name) and np.isin(scores, (0.0, 1.0)).all():
        return accuracy(name)
    return points(name, bool(lower_is_better))


def _by_number(lost: Mapping[int, str]) -> dict[str, str]:
    return {str(place + 1): why for place, why in lost.items()}


def _rounds(
    sources: list[Source], ids: list[list[str]], round_: str | None, numbered: bool
) -> tuple[list[str], list[str]]:
    """The round of every row, and what was chosen without a word of the user's.

    numbered: ids are numbers of rows, which recur in every file whatever it is of.
    """
    own = [[ONE_ROUND] * one.rows for one in sources]
    said: list[str] = []
    if round_ == BY_TASK and any(one.task for one in sources):
        return _tasks(sources), []
    if round_ == BY_FILE and BY_FILE not in sources[0].columns:
        return [one.label or one.where for one in sources for _ in range(one.rows)], []
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
    said.append("every file is a round: they score the same items")
    labelled = [
        one.label + (f", {label}" if label != ONE_ROUND else "")
        for one, labels in zip(sources, own, strict=True)
        for label in labels
    ]
    return labelled, said


def _rounds_of_tasks(tasks: list[str], labels: list[str]) -> dict[str, set[str]]:
    of_task: dict[str, set[str]] = {task: set() for task in tasks}
    for task, label in zip(tasks, labels, strict=True):
        of_task[task].add(label)
    return of_task


def _uneven(tasks: list[str], labels: list[str]) -> bool:
    """Whether tasks have different rounds, such as one epoch and two."""
    return len(set(map(frozenset, _rounds_of_tasks(tasks, labels).values()))) > 1


def _over_own_rounds(scores: Scores, tasks: list[str]) -> Scores:
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


def _default_group(sources: list[Source], group: str | None, round_: str | None) -> list[str]:
    """What names the groups if the user does not: several tasks, or the column that the format knows."""
    if group is not None:
        return []
    if len({one.task for one in sources}) > 1 and round_ != BY_TASK:
        return [BY_TASK]
    return [sources[0].group] if all(one.group for one in sources) else []


def _groups(sources: list[Source], group: str | None, round_: str | None) -> list[str] | None:
    column = group or next(iter(_default_group(sources, group, round_)), None)
    if column is None:
        return None
    if column == BY_TASK and any(one.task for one in sources):
        return _tasks(sources)
    return [label for one in sources for label in texts(one, column, "group")]


def _refuse_repeated(sources: list[Source], ids: list[str], labels: list[str], id_column: str | None) -> None:
    if len(set(zip(ids, labels, strict=True))) == len(ids):
        return
    first: dict[tuple[str, str], int] = {}
    places = [(one, row) for one in sources for row in range(one.rows)]
    for number, key in enumerate(zip(ids, labels, strict=True)):
        if key in first:
            (one, row), (other, before) = places[number], places[first[key]]
            where = (
                f"{one.where}, rows {before + 1} and {row + 1}"
                if one is other
                else (f"{other.where}, row {before + 1}, and {one.where}, row {row + 1}")
            )
            of_round = f" in round {key[1]!r}" if key[1] != ONE_ROUND else ""
            raise ValueError(
                f"{where} (counted from 1) both have {id_column or one.id} {key[0]!r}{of_round}: name what "
                "tells them apart with --round COLUMN, or number the rows with --id none"
            )
        first[key] = number
