"""`klball.scores_from`: per-item results of any kind → one score an item (and round), more being better."""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import replace
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from klball.data.ids import NUMBERED
from klball.scores.elsewhere.columns import beginnings, ids_in, is_numeric, numbers, scored, texts
from klball.scores.elsewhere.expression import (
    CONSTANT,
    MINUS,
    NEUTRAL,
    NEVER_NEGATIVE,
    check_direction,
    is_bookkeeping,
    is_right,
    weighted_sum,
    words,
)
from klball.scores.elsewhere.item_scores import Scores, label_of, refuse_percentages
from klball.scores.elsewhere.recognise import sources_of
from klball.scores.elsewhere.rounds import (
    BY_FILE,
    BY_TASK,
    files_of,
    over_own_rounds,
    refuse_repeated,
    rounds_of,
    tasks_of,
    uneven,
)
from klball.scores.elsewhere.source import Source, listed
from klball.scores.elsewhere.tables import IDS
from klball.scores.measure import ACCURACY, Measure, accuracy, points

MANY = 12  # columns that a refusal lists


def scores_from(
    source: Any,
    *,
    score: str | None = None,
    id: str | None = None,
    group: str | None = None,
    round: str | None = None,
    cluster: str | None = None,
    lower_is_better: bool | None = None,
) -> Scores:
    """The scores of one model on items, from what another tool, a script or klball wrote.

    Args:
        source: A file or a folder of files: CSV, TSV, JSON lines, Parquet, samples of lm-evaluation-harness
            (`--log_samples`), logs of Inspect, klball's own tables; a `datasets.Dataset`, a pandas or
            polars frame, an Arrow table, a list of dictionaries, a mapping of columns.
        score: The column, or a weighted sum of columns such as "log_likelihood + 0.1*certainty". None: the
            tool's first, or the only numeric column.
        id: The column of the items' ids, or several that tell items apart together ("task,id"; "file" is the
            file's name). None: the tool's, `id`, `sample_id` and the like; "none": row numbers.
        group: A column that names groups of items, "task", or "file".
        round: A column that names rounds (a seed, a language, a wording of the prompt), "file" where every
            file is one, or "task". None: epochs of Inspect, and files that score the same items.
        cluster: A column that names items which depend on each other, such as those of one passage: the mean
            of a cluster counts as one item.
        lower_is_better: The score is a loss.

    Raises:
        ValueError: No per-item results; several candidates for the score; a column called loss, perplexity
            or error without `lower_is_better`; missing, repeated, NaN or mixed values, with row and column.
    """
    texts_given = {"score": score, "id": id, "group": group, "round": round, "cluster": cluster}
    for option, given in texts_given.items():
        if not isinstance(given, str | None):
            raise ValueError(f"{option} must be text, not {given!r}")
    if not isinstance(lower_is_better, bool | None):
        raise ValueError(f"lower_is_better must be True, False or None, not {lower_is_better!r}")
    return _scores(sources_of(source), score, id, group, round, cluster, lower_is_better)


def scores_by_model(source: Any, model: str, **columns: Any) -> dict[str, Scores]:
    """Model → its scores, of tables in which a column says whose a row is; keywords as of `scores_from`.

    Raises ValueError for results of a tool, which are one model's, and items without ids.
    """
    of_model: dict[str, list[Source]] = {}
    for one in sources_of(source):
        if one.measures:
            raise ValueError(f"{one.where} holds results of one model: --model_column is of tables")
        if (columns.get("id") or one.id) in ("", NUMBERED):
            raise ValueError(f"{one.where}: items of several models need ids: name their column with --id")
        rows: dict[str, list[int]] = {}
        for row, label in enumerate(texts(one, model, "model_column")):
            rows.setdefault(label, []).append(row)
        for label, kept in rows.items():
            of_model.setdefault(label, []).append(one.of_rows(kept))
    return {label: _scores(own, **columns, inert=model) for label, own in of_model.items()}


def scores_by_column(source: Any, models: Mapping[str, str], **columns: Any) -> dict[str, Scores]:
    """Model → its scores, of a table with a column of scores for each; the other keywords of `scores_from`.

    models: label → column. What they measure is accuracy if every column's name and values say so, else
    points of the score.
    """
    found = {label: scores_from(source, score=column, **columns) for label, column in models.items()}
    refuse_percentages(found)
    right = all(scores.measure.unit == ACCURACY for scores in found.values())
    measure = accuracy(ACCURACY) if right else points("score", bool(columns.get("lower_is_better")))
    return {label: replace(scores, measure=measure, name=measure.noun) for label, scores in found.items()}


def _scores(
    sources: list[Source],
    score: str | None = None,
    id: str | None = None,
    group: str | None = None,
    round: str | None = None,
    cluster: str | None = None,
    lower_is_better: bool | None = None,
    inert: str | None = None,
) -> Scores:
    """inert: a column that is no score."""
    sources, without = _with_score(sources, score)
    names, notes = _chosen_scores(sources, score, (id, group, round, cluster, inert))
    sources = [scored(one, weighted_sum(names[one.task], one.columns, one.where), id) for one in sources]
    prefixes = [_prefix(one, sources, id, round) for one in sources]
    parts = [
        _part(one, names[one.task], lower_is_better, id, prefix)
        for one, prefix in zip(sources, prefixes, strict=True)
    ]
    own_ids = [part.ids for part in parts]
    ids = list(chain.from_iterable(own_ids))
    numbered = any(part.numbered for part in parts)
    without_score = [{*part.lacking} for part in parts]
    labels, said = rounds_of(sources, own_ids, without_score, round, numbered or id == NUMBERED)
    refuse_repeated(sources, ids, labels, id)
    own_rounds = round is None and uneven(tasks_of(sources), labels)
    lacking = {item: why for part in parts for item, why in part.lacking.items()}
    notes += _chosen_id(sources[0], id)
    notes += [f"groups are by {told}" for told in _default_group(sources, group, round)]
    notes += [f"the mean of a cluster, by column {cluster}, counts as one item"] * (cluster is not None)
    notes += [*without, *_counted(lacking), *([] if own_rounds else said)]
    values = np.concatenate([part.values for part in parts])
    own = list(dict.fromkeys(names.values()))
    scores = Scores(
        measure=_measure(sources, names, values, lower_is_better),
        name=own[0] if len(own) == 1 else ACCURACY,
        sample_ids=ids,
        values=values,
        rounds=labels,
        groups=_groups(sources, group, round),
        clusters=_clusters(sources, ids, cluster),
        lacking=lacking,
        numbered=numbered,
        notes=tuple(notes),
        sources=tuple(zip(sources, own_ids, strict=True)),
    )
    return over_own_rounds(scores, tasks_of(sources)) if own_rounds else scores


def _chosen_id(source: Source, id_column: str | None) -> list[str]:
    """Which column told items apart unasked, where a table has several that could."""
    others = [name for name in source.columns if name.lower() in IDS and name != source.id]
    if id_column is not None or source.measures or not source.id or not others:
        return []
    return [f"items are told apart by column {source.id} (there is {listed(others)}: --id)"]


def _counted(lacking: Mapping[str, str]) -> list[str]:
    counts = Counter(lacking.values())
    told = ", ".join(f"{count} {why}" for why, count in counts.items())
    return [f"left out: {told}"] if told else []


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


def _prefix(source: Source, sources: list[Source], id_column: str | None, round_: str | None) -> str:
    """What stands before ids: the task, so that item 1 of another task is another item."""
    several = len({one.task for one in sources}) > 1
    of_tool = source.named and id_column is None
    return f"{source.task}/" if source.task and round_ != BY_TASK and (several or of_tool) else ""


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
    named = {part.strip() for name in taken if name for part in (name, *name.split(","))}
    inert = {*named, first.id, first.group, first.round}
    found = [
        name
        for name in first.columns
        if name not in inert and not is_bookkeeping(name) and is_numeric(first, name)
    ]
    if len(found) == 1:
        return found[0], [f"the score is column {found[0]}, the only numeric one"]
    if not found:
        raise ValueError(
            f"{first.where} has no numeric column (written as 1234.5) that could be the score; there are "
            f"{beginnings(first)}"
        )
    a, b = (name if name.isidentifier() else repr(name) for name in found[:2])
    raise ValueError(
        f"{first.where} has several numeric columns ({listed(found[:MANY])}): choose with --score COLUMN or "
        f'a weighted sum such as --score "{a} + 0.1*{b}", or name the models\' own in evaluate and compare, '
        f"--model_columns {a} {b}"
    )


class _Part(NamedTuple):
    """What is read of one source: scores and ids [rows], and the items without a score and why.

    numbered: the ids are numbers of rows, because there is no column of ids.
    """

    values: np.ndarray
    ids: list[str]
    lacking: dict[str, str]
    numbered: bool


def _part(
    source: Source, name: str, lower_is_better: bool | None, id_column: str | None, prefix: str
) -> _Part:
    """prefix: what stands before every id."""
    terms = weighted_sum(name, source.columns, source.where)
    check_direction(terms, lower_is_better, source.measures, source.where)
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
    bare = column in ("", NUMBERED)
    lost = source.lacking
    if id_column == NUMBERED:
        lost = {str(place + 1): why for place, why in source.lost.items()}
    return _Part(
        values,
        [prefix + i for i in (source.numbers() if bare else ids_in(source, column))],
        {prefix + i: why for i, why in lost.items()},
        numbered=bare and id_column is None,
    )


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
    """Of a known score the format's, else accuracy of 0 and 1 unless the column's name says otherwise, else
    its points."""
    name, *others = dict.fromkeys(names.values())
    if others:
        return accuracy(ACCURACY)
    known = sources[0].measures.get(name)
    if known is not None and all(one.measures.get(name, known).noun == known.noun for one in sources):
        units = {one.measures.get(name, known).unit for one in sources}
        return known if len(units) == 1 else points(name, known.loss)
    right = is_right(name) or name.lower() in NEUTRAL
    if right and not lower_is_better and np.isin(scores, (0.0, 1.0)).all():
        return accuracy(name)
    return points(name, bool(lower_is_better))


def _default_group(sources: list[Source], group: str | None, round_: str | None) -> list[str]:
    """What names the groups if the user does not: several tasks, or the column that the format knows."""
    if group is not None:
        return []
    if len({one.task for one in sources}) > 1 and round_ != BY_TASK:
        return [BY_TASK]
    return [sources[0].group] if all(one.group for one in sources) else []


def _clusters(sources: list[Source], ids: list[str], column: str | None) -> dict[str, str]:
    if column is None:
        return {}
    labels = [label for one in sources for label in texts(one, column, "cluster")]
    return label_of(ids, labels, "clusters")


def _groups(sources: list[Source], group: str | None, round_: str | None) -> list[str] | None:
    column = group or next(iter(_default_group(sources, group, round_)), None)
    if column is None:
        return None
    if column == BY_TASK and any(one.task for one in sources):
        return tasks_of(sources)
    if column == BY_FILE and not any(BY_FILE in one.columns for one in sources):
        return files_of(sources)
    return [label for one in sources for label in texts(one, column, "group")]
