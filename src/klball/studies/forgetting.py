"""Does reinforcement learning forget less than SFT? Both from one start, on one task, at equal accuracy.

Every arm is an ordinary `klball train`: SFT, DFT and PSFT on the task's solutions, SFT on the start's own
correct answers, GRPO with a verifiable reward, its robust form, and RLHF with a reward model of other pairs.
All see the same prompts as often; a checkpoint at a constant learning rate is a run of a smaller budget.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset, concatenate_datasets

from klball.data.prompts import check_prompts, to_prompts
from klball.data.readers import dataset_of
from klball.data.rows import load_rows, to_preferences
from klball.studies.arms import (
    START,
    Options,
    data_of,
    first,
    load,
    num_steps,
    run_settings,
    start_of,
    train_run,
)
from klball.studies.forgetting_measures import HARD, TASK, Reference
from klball.studies.forgetting_summary import point_of, report
from klball.studies.head_to_head import LOWER
from klball.studies.own_answers import answer_table
from klball.terminal import is_main, progress_bar
from klball.training.checkpoints import checkpoints_of
from klball.training.identity import refuse_training_rows
from klball.training.preference.config import RobustRewardConfig
from klball.training.rl.family import GRPORunConfig
from klball.training.rl.rewards import VERIFIABLE, refuse_unreadable
from klball.training.rl.settings import refuse_even_weights
from klball.training.sft.config import RobustSFTConfig

REWARD = "last-number"


@dataclass(frozen=True)
class Method:
    """One way to train: its name in tables, its folder below the seed's, and its configuration.

    own: trained on the start's own correct answers, not on the task's solutions.
    """

    label: str
    folder: str
    config: Any
    settings: dict[str, Any]
    own: bool = False


def methods_of(options: Options, reward_model: str) -> list[Method]:
    """Every method at the same prompts; the robust one has the largest of `epsilons`, if that is above 0."""
    rl = {
        "learning_rate": options.rl_learning_rate,
        "num_generations": options.num_generations,
        "max_completion_length": options.max_completion_length,
        # a step of P prompts is P · num_generations completions, as many in one forward as SFT has answers
        "gradient_accumulation_steps": options.gradient_accumulation_steps * options.num_generations,
    }
    lower = {"learning_rate": options.learning_rate / LOWER}
    radius = max(options.epsilons)
    methods = [
        _sft("SFT", "sft", {}),
        _sft(f"SFT, lr/{LOWER}", "sft-lower", lower),
        _sft("DFT", "dft", {"objective": "dft"}),
        _sft("PSFT", "psft", {"objective": "psft"}),
        _sft("SFT on own correct answers", "own-correct", {}, own=True),
        Method("GRPO", "grpo", GRPORunConfig, {**rl, "radius": 0.0, "reward": REWARD}),
    ]
    if radius > 0:
        robust = {**rl, "radius": radius, "reward": REWARD}
        label, name = f"robust GRPO, ε = {radius:g}", f"robust-grpo-{radius:g}"
        methods.append(Method(label, name, GRPORunConfig, robust))
    learnt = {**rl, "radius": 0.0, "reward_model": reward_model, "beta": options.beta}
    return [*methods, Method("RLHF", "rlhf", GRPORunConfig, learnt)]


def _sft(label: str, folder: str, settings: dict[str, Any], own: bool = False) -> Method:
    return Method(label, folder, RobustSFTConfig, {"epsilon": 0.0, **settings}, own)


def config_of(method: Method, run: Path, steps: int, seed: int, options: Options) -> Any:
    """A configuration with `points` checkpoints, at a learning rate that stays where it is."""
    settings = run_settings(run, steps, seed, options)
    settings |= {"save_steps": -(-steps // options.points), "lr_scheduler_type": "constant_with_warmup"}
    if method.config is GRPORunConfig:
        del settings["max_length"]  # completions have a limit, prompts are never cut
    return method.config(**{**settings, **method.settings})


def run(options: Options, folder: Path) -> Iterator[int]:
    """Train and measure what is not there yet; report after every seed, and yield it."""
    data = task_data(options)
    _refuse_even_weights(options, folder, len(data["train"]))
    label = "before the comparison"
    start = start_of(options, folder, "sft", start_rows(options, data["train"]), label)
    methods = methods_of(options, reward_model_of(options, folder, start))
    reference = Reference(options, folder, start, data, VERIFIABLE[REWARD]())
    rows = []
    for seed in range(options.seeds):
        rows.append({**point_of(START, seed, 0, 0), **reference.measures(start, START)})
        own = own_correct(data["train"], seed, start, folder, options)  # refused before other arms
        for method in methods:
            of_method = own if method.own else data["train"]
            checkpoints = trained(method, seed, of_method, start, folder, options)
            for point, (share, path) in enumerate(checkpoints, start=1):
                measures = reference.measures(str(path), f"seed-{seed}/{method.folder}/{path.name}")
                prompts = round(share * options.num_train_epochs * len(data["train"]))
                rows.append({**point_of(method.label, seed, point, prompts), **measures})
        if is_main():
            report(rows, folder)
        yield seed


def _refuse_even_weights(options: Options, folder: Path, rows: int) -> None:
    """Before hours of other arms: what a trainer of the robust one would refuse."""
    steps = num_steps(rows, options)
    for method in (one for one in methods_of(options, "") if one.settings.get("radius")):
        try:
            refuse_even_weights(config_of(method, folder, steps, 0, options), rows)
        except ValueError as error:
            raise ValueError(f"{method.label}: {error}") from error


def task_data(options: Options) -> dict[str, Dataset]:
    """What arms are trained on, held-out rows of it, harder ones, and other rows ("ood")."""
    hard = load_rows(
        options.hard_name, None, options.hard_config, default="test", id_column="none", form=check_prompts
    )
    data = {**data_of(options), HARD: first(hard, options.test_rows)}
    refuse_training_rows(data["train"], hard_name=data[HARD])
    for part, name in (
        ("train", options.dataset_name),
        (TASK, options.dataset_name),
        (HARD, options.hard_name),
    ):
        refuse_unreadable(VERIFIABLE[REWARD](), name, to_prompts(data[part], conversational=False))
    return data


def start_rows(options: Options, train: Dataset) -> Dataset:
    """Half of the first of `start_names`, the rest of the others in equal shares; no prompts of the arms.

    Raises ValueError if their columns are not the same.
    """
    count = max(1, options.start_steps * options.per_device_train_batch_size)
    others = max(1, len(options.start_names) - 1)
    taken = {*_prompts(train)}
    parts = []
    for name in options.start_names:
        rows = load_rows(name)
        rows = rows.select([i for i, prompt in enumerate(_prompts(rows)) if prompt not in taken])
        parts.append(first(rows, -(-count // (2 * others if parts else 2))))
        if {*parts[-1].column_names} != {*parts[0].column_names}:
            raise ValueError(f"--start_names: {name} has other columns than {options.start_names[0]}")
    return concatenate_datasets(parts).shuffle(seed=1)


def _prompts(rows: Dataset) -> list[str]:
    return [str(prompt) for prompt in to_prompts(rows, conversational=False)["prompt"]]


def reward_model_of(options: Options, folder: Path, start: str) -> str:
    """The folder of a reward model, the start trained on as many pairs as there are prompts."""
    run = folder / START / "reward-model"
    rows = first(load_rows(options.pairs_name, "train", form=to_preferences), options.train_rows)
    settings = {**run_settings(run, num_steps(len(rows), options), 0, options), "epsilon": 0.0}
    train_run(RobustRewardConfig(**settings), rows, start, "reward model", 0, options, lora=False)
    return str(run)


def trained(
    method: Method, seed: int, rows: Dataset, start: str, folder: Path, options: Options
) -> list[tuple[float, Path]]:
    """The checkpoints of a method, trained if it is not yet, each with its share of the whole budget."""
    run = folder / f"seed-{seed}" / method.folder
    if method.config is GRPORunConfig:
        rows = check_prompts(rows)
    steps = num_steps(len(rows), options)
    train_run(config_of(method, run, steps, seed, options), rows, start, method.label, seed, options)
    return [(step / steps, path) for step, path in sorted(checkpoints_of(run).items())]


def own_correct(rows: Dataset, seed: int, start: str, folder: Path, options: Options) -> Dataset:
    """What the start itself answers right among `num_generations` samples of every prompt, all of them.

    Raises ValueError if it is nothing.
    """
    model, tokenizer = load(start, options)
    prompts = to_prompts(rows, bool(tokenizer.chat_template))
    with progress_bar(f"seed {seed}: the start answers", "prompts") as progress:
        table = answer_table(
            *(model, tokenizer, prompts, VERIFIABLE[REWARD]()),
            samples=options.num_generations,
            max_new_tokens=options.max_completion_length,
            seed=seed,
            output=folder / "answers" / f"seed-{seed}" / "own.parquet",
            progress=progress,
        )
    found = []
    for row, prompt in zip(table.to_list(), prompts["prompt"], strict=True):
        for k, (text, reward) in enumerate(zip(row["samples"], row["rewards"][1:], strict=True)):
            answer = [{"role": "assistant", "content": text}] if isinstance(prompt, list) else text
            if reward == 1:
                found.append({"id": f"{row['sample_id']}-{k}", "prompt": prompt, "completion": answer})
    if not found:
        raise ValueError(
            f"the start answers none of {len(rows)} prompts right: there is nothing to learn from its own "
            "answers, and no reward to climb; raise --start_steps or take an easier task"
        )
    return dataset_of(found)
