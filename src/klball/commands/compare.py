"""`klball compare`: models × rounds of rephrased prompts → worst cases, (λ, β), tests, verdicts.

Each model × round is one unit of work and one score table. Units are divided among the processes of
`accelerate launch`, or among independent jobs that share the folder; finished ones are skipped.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import PartialState
from datasets import Dataset

from klball.adversary.upweighting import radius_help
from klball.commands.comparison_tables import in_full, show, write
from klball.commands.earlier import comparison_before, remove_unwritten
from klball.commands.elsewhere import (
    COLUMNS,
    OF_SEVERAL,
    asks_for_columns,
    own_tables,
    read_models,
    show_groups,
)
from klball.commands.labels import labelled
from klball.commands.options import DTYPES, job_of, one_of, parse, refuse_ignored
from klball.commands.paraphrase import template_replies
from klball.commands.reproduce import tiny_experiment
from klball.comparison.analysis import Comparison, compare_scores
from klball.comparison.elsewhere import RoundsElsewhere
from klball.comparison.items import check_resamples
from klball.comparison.rounds import Gamma, round_scores
from klball.data.paraphrase.rounds import Rounds, read_rounds, write_rounds
from klball.data.paraphrase.samples import samples_of
from klball.data.rows import load_rows
from klball.files import file_name, write_run
from klball.flags import ChatTemplate, DataSet, Jobs, ModelColumns, Precision, ScoreColumns, Split, option
from klball.models.loading import TINY, check_model
from klball.report.pages.comparison import write_comparison_report
from klball.scores.tables import read_scores, score, warn_of_formats
from klball.studies.arms import load, run_arm
from klball.terminal import is_main, progress_bar, say, say_verdicts

EXAMPLE = (
    "klball compare --models base=klball/tiny robust=outputs/run --dataset_name word-problems --rounds 5 "
    "--max_rows 50"
)


OF_MODELS = (
    *("models", "rounds_path", "rounds", "max_rows", "num_jobs", "job_index", "dtype", "max_length"),
    *("chat_template_path", "dataset_name", "dataset_split", "dataset_config", "id_column"),
)
SOURCES = 3.0  # the radius of the source
ELSEWHERE = 0.1  # of scores with a floor, such as 0 and 1, the worst case is soon there


@dataclass
class Options(Jobs, ModelColumns, ScoreColumns, Precision, ChatTemplate, Split, DataSet):
    """The models, the rounds, and the adversary."""

    models: list[str] = option(
        [], "name=path or path; default: klball/tiny before and after `klball reproduce`."
    )
    scores: list[str] = option(
        [],
        "Results that are there, as PATH or LABEL=PATH, a file or folder a model, instead of models and "
        "data: klball's tables, CSV, TSV, JSON lines, Parquet, samples of lm-eval, logs of Inspect.",
    )
    rounds_path: str | None = option(
        None, "rounds.parquet of `klball paraphrase`; default: made by templates."
    )
    rounds: int | None = option(None, "How many rounds; default: 20 by templates, or all of the file's.")
    max_rows: int | None = option(
        None, "The first rows, after a shuffle unless a file has them; default: 300 by templates, else all."
    )
    epsilon: float | None = option(
        None,
        f"Radius of the KL ball, nats; default: the source's 3 ({radius_help(3.0)}); on scores from "
        f"elsewhere 0.1 ({radius_help(0.1)}).",
    )
    gamma: str = option("auto", "Bound on the mean certainty: a number (the source's: 14.5), auto, none.")
    resamples: int = option(200, "Bootstrap resamples of the items; 0: none.")
    output_dir: str = option("outputs/compare", "Folder for everything.")


def main(arguments: Sequence[str], prog: str) -> None:
    """Score what is missing, then solve, test and report; or say how many units other jobs still owe."""
    (options,) = parse([Options], arguments, prog, EXAMPLE)
    gamma = _checked(options)
    if options.scores:
        _compare_elsewhere(options, gamma, prog)
        return
    refuse_ignored(options, (*COLUMNS, *OF_SEVERAL), "without --scores")
    options.epsilon = SOURCES if options.epsilon is None else options.epsilon
    folder = Path(options.output_dir)
    models = _models(options) if options.models else {}
    for name in models.values():
        check_model(name)
    rounds = _rounds(options, folder)
    models = models or _embedded()
    if options.rounds is not None and options.rounds > len(rounds.rounds):
        raise ValueError(f"--rounds is {options.rounds}, but {rounds.path} holds {len(rounds.rounds)}")
    rounds = replace(rounds, number=options.rounds, samples=options.max_rows)
    numbers = rounds.rounds
    if len(numbers) < 3:
        raise ValueError(f"a comparison needs at least 3 rounds, got {len(numbers)}")
    before = comparison_before(folder, prog)
    if is_main():
        write_run(folder, options, prog)
    _score_units(models, rounds, numbers, options, folder)
    if not is_main():
        return
    units = {(name, r): _table_path(folder, path, r) for name, path in models.items() for r in numbers}
    missing = [path for path in units.values() if not path.exists()]
    if missing:
        say(f"{len(missing)} of {len(units)} tables are still to be scored by other jobs; run again then")
        return
    _check_others(models, rounds, numbers, options, folder)
    tables = {(name, str(r)): read_scores(path) for (name, r), path in units.items()}
    comparison = _compared(tables, gamma, options, rounds.like_these(len(numbers)))
    write(comparison, rounds, folder)
    say_verdicts(comparison.lines(), in_full(folder))
    write_comparison_report(comparison, rounds, folder)
    show(comparison, rounds, folder)
    remove_unwritten(before)


def _compare_elsewhere(options: Options, gamma: Gamma, prog: str) -> None:
    """`--scores`: what is there is aligned, compared and reported."""
    refuse_ignored(options, OF_MODELS, "with --scores, whose items are scored")
    paths = labelled(options.scores)
    if len(paths) < 2 and not any(getattr(options, name) for name in OF_SEVERAL):
        raise ValueError(
            "a comparison needs at least two --scores, as LABEL=PATH, a --model_column, or --model_columns"
        )
    folder = Path(options.output_dir)
    before, own = comparison_before(folder, prog), own_tables(options, paths)
    if own is not None and not asks_for_columns(options):
        options.epsilon = SOURCES if options.epsilon is None else options.epsilon
        rounds = RoundsElsewhere({})
        comparison = _compared(own, gamma, options, rounds.like_these(len({r for _, r in own})))
    else:
        refuse_ignored(options, ("gamma",), "on scores from elsewhere, which have no certainty")
        rounds = RoundsElsewhere(read_models(options))
        if len(rounds.scores) < 2:
            only = f"{next(iter(rounds.scores))!r} alone"
            column = options.model_column or "--model_columns"
            raise ValueError(f"a comparison needs two models, and {column} names {only}")
        scores = round_scores(rounds.scores)
        options.epsilon = ELSEWHERE if options.epsilon is None else options.epsilon
        told = rounds.like_these(len(scores.rounds))
        with progress_bar("Bootstrap over items", "resamples") as progress:
            settings = (options.epsilon, None, options.resamples, rounds.about, progress, told)
            comparison = compare_scores(scores, *settings)
    write_run(folder, options, prog)
    write(comparison, rounds, folder)
    say_verdicts(comparison.lines(), in_full(folder))
    write_comparison_report(comparison, rounds, folder)
    show_groups(comparison.scores, folder)
    show(comparison, rounds, folder)
    remove_unwritten(before)


def _checked(options: Options) -> Gamma:
    one_of(options, "dtype", DTYPES)
    if options.rounds_path is not None:
        names = ["dataset_name", "dataset_split", "dataset_config"]
        refuse_ignored(options, names, "with --rounds_path, which holds the rows")
    if options.rounds is not None and options.rounds < 3:
        raise ValueError(f"--rounds must be at least 3, not {options.rounds}")
    job_of(options)
    check_resamples(options.resamples)
    if options.max_rows is not None and options.max_rows < 2:
        raise ValueError(f"--max_rows must be at least 2, not {options.max_rows}")
    if options.epsilon is not None and not options.epsilon > 0:
        raise ValueError(f"--epsilon must be above 0, not {options.epsilon}: without a ball λ is infinite")
    if options.gamma in ("auto", "none"):
        return "auto" if options.gamma == "auto" else None
    try:
        gamma = float(options.gamma)
    except ValueError:
        gamma = math.nan
    if not math.isfinite(gamma):
        raise ValueError(f"--gamma must be a number, auto or none, not {options.gamma!r}")
    return gamma


def _rounds(options: Options, folder: Path) -> Rounds:
    """The file asked for, or rounds made by templates; the main process makes them, the others wait."""
    if options.rounds_path is not None:
        return read_rounds(options.rounds_path)
    path = folder / "rounds.parquet"
    state = PartialState(cpu=True)
    with state.main_process_first():
        rows = load_rows(
            *(options.dataset_name, options.dataset_split, options.dataset_config),
            default="test",
            id_column=options.id_column,
        ).shuffle(seed=0)
        samples, layout = samples_of(rows.select(range(min(options.max_rows or 300, len(rows)))))
        number = options.rounds or 20
        maker, replies = template_replies(samples, number)
        with progress_bar("Rewording", "rounds") as progress:
            return write_rounds(
                *(path, samples, layout, replies), rounds=number, maker=maker, progress=progress
            )


def _models(options: Options) -> dict[str, str]:
    """name → path."""
    models = labelled(options.models)
    if len(models) < 2:
        raise ValueError("a comparison needs at least two --models")
    return models


def _embedded() -> dict[str, str]:
    """The embedded model and what `klball reproduce` makes of it."""
    options, folder, data, arms = tiny_experiment((0.0, 0.05))
    models = {"base": TINY}
    for arm in arms:
        _, points = run_arm(arm, 0, data, folder, options, {})
        name = f"robust SFT, {arm.label}" if arm.epsilon > 0 else "SFT"
        models[name] = str(folder / "seed-0" / arm.folder / f"checkpoint-{points[-1]['step']}")
    return models


def _table_path(folder: Path, model: str, round_: int) -> Path:
    """By the model's path: another label for it is no other table."""
    return folder / "scores" / file_name(model) / f"round-{round_:04d}.parquet"


def _score_units(
    models: dict[str, str], rounds: Rounds, numbers: Sequence[int], options: Options, folder: Path
) -> None:
    """This process's share of the tables that are not there yet; each is whole or absent."""
    state = PartialState(cpu=True)
    mine = _share(models, numbers, options, state.process_index)
    with progress_bar("Scoring", "model × round") as progress:
        progress(0, len(mine))
        for done, _ in enumerate(_scored(models, mine, rounds, options, folder), start=1):
            progress(done, len(mine))
    state.wait_for_everyone()


def _share(
    models: dict[str, str], numbers: Sequence[int], options: Options, process: int
) -> list[tuple[str, int]]:
    """The units of a process of this job."""
    processes = PartialState(cpu=True).num_processes
    units = [(name, r) for name in models for r in numbers]
    return units[options.job_index * processes + process :: options.num_jobs * processes]


def _check_others(
    models: dict[str, str], rounds: Rounds, numbers: Sequence[int], options: Options, folder: Path
) -> None:
    """Raise ValueError if another job's table was made from another model, other rows or another length."""
    own = {
        unit
        for p in range(PartialState(cpu=True).num_processes)
        for unit in _share(models, numbers, options, p)
    }
    others = [(name, r) for name in models for r in numbers if (name, r) not in own]
    if not others:
        return
    with progress_bar("Checking what other jobs made", "model × round") as progress:
        for done, _ in enumerate(_scored(models, others, rounds, options, folder), start=1):
            progress(done, len(others))


def _scored(
    models: dict[str, str], units: Sequence[tuple[str, int]], rounds: Rounds, options: Options, folder: Path
) -> Iterator[Dataset]:
    loaded, model, tokenizer = "", None, None
    for name, round_ in units:
        if loaded != name:
            loaded, (model, tokenizer) = name, load(models[name], options)
        assert model is not None and tokenizer is not None
        output = _table_path(folder, models[name], round_)
        yield score(
            model, tokenizer, rounds.dataset(round_), max_length=options.max_length, output=output, alone=True
        )


def _compared(
    tables: dict[tuple[str, str], tuple[Dataset, dict[str, Any]]],
    gamma: Gamma,
    options: Options,
    like_these: str,
) -> Comparison:
    """Nats per token, or per byte where the models' tokenizers differ."""
    scores = round_scores({unit: table for unit, (table, _) in tables.items()})
    warn_of_formats(about for _, about in tables.values())
    tokenizers = {about.get("tokenizer") for _, about in tables.values()}
    if len(tokenizers) > 1:
        say("the models' tokenizers differ: everything is in nats per byte, not per token")
        scores = scores.per_byte()
    about = {
        f"{model}, round {r}": about for (model, r), (_, about) in tables.items() if r == scores.rounds[0]
    }
    with progress_bar("Bootstrap over items", "resamples") as progress:
        assert options.epsilon is not None
        return compare_scores(scores, options.epsilon, gamma, options.resamples, about, progress, like_these)
