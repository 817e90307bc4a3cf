"""`klball evaluate --generate true`: models answer prompts, and rewards say what their answers are worth."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset

from klball.adversary.upweighting import radius_in_words
from klball.commands.certified import SHARES, cell, certain, certified, given_bounds
from klball.commands.earlier import remove_evaluation
from klball.commands.labels import labelled
from klball.commands.options import asked_rows, refuse_ignored
from klball.commands.ratios import write_differences
from klball.data.prompts import check_prompts, to_prompts
from klball.files import write_csv, write_run
from klball.flags import option
from klball.models.loading import REWARD, check_model, load_on_device
from klball.scores.accuracy import WORST
from klball.scores.answers import answer_differences, answer_report, pass_at_k
from klball.scores.parts import TABLES_FILE, Cache
from klball.studies.arms import load
from klball.studies.own_answers import answer_table, metrics_of
from klball.terminal import is_main, progress_bar, say, show_table
from klball.training.rl.reward_model import RewardModel
from klball.training.rl.rewards import VERIFIABLE, refuse_unknown_reward, refuse_unreadable

OF_ANSWERS = ("reward", "reward_model", "samples", "pass_at", "max_new_tokens", "answer_seed", "group_column")


@dataclass
class Answering:
    """Answers of the models' own."""

    generate: bool = option(
        False, "Let the models answer, and reward their answers, in place of scoring rows."
    )
    reward: str | None = option(None, f"With --generate: {', '.join(VERIFIABLE)}, against the rows' answers.")
    reward_model: str | None = option(None, "With --generate: a trained reward model instead.")
    samples: int = option(
        0, "With --generate: answers at temperature 1 to each prompt, beside the greedy one."
    )
    pass_at: list[int] = option([], "With --generate: the k of pass@k, at most --samples.")
    max_new_tokens: int = option(256, "With --generate: longer answers are cut.")
    answer_seed: int = option(0, "With --generate: of the samples.")
    group_column: str | None = option(None, "With --generate: report the groups that this column names.")


def evaluate_answers(options: Any, prog: str) -> None:
    """Let every model answer every data set (finished tables are reused), then report."""
    bounds = _checked(options)
    folder = Path(options.output_dir)
    models, datasets = labelled(options.models), labelled(options.datasets)
    rows = {label: _rows(name, options) for label, name in datasets.items()}
    for name in models.values():
        check_model(name)
    reward = _reward(options)
    cache, named = Cache(folder / "answers"), []
    found: list[dict[str, Any]] = []
    sentences: list[str] = []
    of_data: dict[str, dict[str, Any]] = {data: {} for data in rows}
    groups: dict[str, Any] = {}
    for label, name in models.items():
        model, tokenizer = load(name, options)
        for data, dataset in rows.items():
            with progress_bar(f"{label} on {data}", "prompts") as progress:
                table = answer_table(
                    *(model, tokenizer, to_prompts(dataset, bool(tokenizer.chat_template)), reward),
                    samples=options.samples,
                    max_new_tokens=options.max_new_tokens,
                    seed=options.answer_seed,
                    group_column=options.group_column,
                    output=cache,
                    progress=progress,
                )
            named.append({"model": label, "data": data, "file": cache.last.name})
            groups[data] = None if options.group_column is None else table["group"][:]
            metrics = of_data[data][label] = metrics_of(table, options.pass_at)
            report = answer_report(metrics, groups[data], confidence=options.confidence, bounds=bounds)
            found += [{"data": data, "model": label, **row} for row in report]
            sentences.append(f"{label} on {data}: {_certified(metrics, bounds, options)}")
    if is_main():
        compared = [
            {"data": data, **row} for data in rows for row in answer_differences(of_data[data], groups[data])
        ]
        remove_evaluation(folder, prog)
        write_run(folder, options, prog)
        write_csv(folder / TABLES_FILE, named)
        write_csv(folder / "answers.csv", found)
        _show(found, list(models), folder, options.confidence)
        write_differences(compared, "prompts", folder)
        for sentence in (*sentences, radius_in_words(WORST)):
            say(sentence)


def _checked(options: Any) -> Any:
    """The bounds of the rewards, None for none. Raises ValueError for options that do not go together."""
    if (options.reward is None) == (options.reward_model is None):
        raise ValueError(
            f"--generate needs --reward ({', '.join(VERIFIABLE)}) or --reward_model, one of them"
        )
    if options.reward is not None:
        refuse_unknown_reward("--reward", options.reward)
    for k in options.pass_at:
        pass_at_k([], options.samples, k)  # for its refusal
    bounds = given_bounds(
        options, "" if options.reward is None else "with --reward, whose rewards are 0 or 1"
    )
    if options.reward_model is not None:  # else refused once the answers are there
        refuse_ignored(options, ("pass_at",), "with --reward_model: pass@k counts rewards of 1")
        if bounds is None:
            refuse_ignored(options, ("confidence",), "without --bounds: a learnt reward has none known")
    return bounds


def _certified(metrics: dict[str, Any], bounds: Any, options: Any) -> str:
    """The sentence on the greedy answers."""
    name, own = ("accuracy", SHARES) if "accuracy" in metrics else ("reward", bounds)
    return certified(metrics[name], f"the {name}", "prompts", WORST, own, options)[1]


def _rows(name: str, options: Any) -> Dataset:
    rows = asked_rows(options, name, check_prompts)
    if options.reward is not None:
        refuse_unreadable(VERIFIABLE[options.reward](), name, to_prompts(rows, conversational=False))
    return rows


def _reward(options: Any) -> Any:
    if options.reward is not None:
        return VERIFIABLE[options.reward]()
    check_model(options.reward_model, None, False, REWARD)
    return RewardModel(*load_on_device(options.reward_model, options.dtype, None, REWARD))


def _show(found: list[dict[str, Any]], models: list[str], folder: Path, confidence: float) -> None:
    for data in dict.fromkeys(row["data"] for row in found):
        cells: dict[tuple[str, str, int], list[str]] = {}
        for row in (row for row in found if row["data"] == data):
            key = (row["metric"], row["part"], row["prompts"])
            cells.setdefault(key, []).append(cell(row))
        title = f"{data}: value [95 % interval] {certain(confidence)} ({folder / 'answers.csv'})"
        header = ("metric", "prompts of", "prompts", *models)
        show_table(title, header, [(*key, *values) for key, values in cells.items()])
