"""What the reproduced experiments share: options, data, and arms that train and are scored, resumably.

Every arm is an ordinary `klball train` run and every score table an ordinary `klball score`, so an
interrupted experiment continues where it was.
"""

import dataclasses
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from torch import Tensor
from transformers import TrainerCallback
from trl import ModelConfig

from klball.adversary.upweighting import radius_help
from klball.data.rows import is_one_table, load_chat_template, load_rows
from klball.data.splitting import NoSplitError, split_by_content
from klball.files import read_json_object, versions, write_json
from klball.flags import ChatTemplate, DataConfig, Jobs, option
from klball.models.loading import load_on_device
from klball.scan.behaviour import own_answers
from klball.scan.generation import encoded_prompts
from klball.scores.parquet import score_files
from klball.scores.tables import read_provenance, score
from klball.terminal import progress_bar
from klball.training.checkpoints import checkpoints_of
from klball.training.identity import refuse_training_rows
from klball.training.run import train
from klball.training.samples import groups_of
from klball.training.sft.config import RobustSFTConfig

logger = logging.getLogger(__name__)

START = "start"
TABLES = ("test", "ood")
OWN = ("own_name", "own_prompts", "own_samples", "own_tokens")  # concern what comes after training
OF_START = ("beta", "start_steps", "start_learning_rate")  # of experiments that train their start
OF_RL = (  # of the forgetting experiment
    *("hard_name", "hard_config", "pairs_name", "start_names"),
    *("num_generations", "max_completion_length", "rl_learning_rate"),
)
UNRELATED = (  # to one arm
    *("seeds", "epsilons", "flips", "static", "variants", "output_dir", "dataset_config"),
    *("num_jobs", "job_index"),
    *OWN,
)


@dataclass
class Options(Jobs, ChatTemplate, DataConfig):
    """The experiment; a preset fills what the command line leaves out."""

    experiment: str = option(
        "robustness",
        "robustness (radii), objectives (the head-to-head), preference (noisy pairs) or forgetting (SFT "
        "and reinforcement learning at equal accuracy).",
    )
    preset: str | None = option(None, "tiny (default) or paper.")
    model_name_or_path: str = option("klball/tiny", "Hub name or local folder.")
    dataset_train_split: str = option("train", "Split to train on.")
    dataset_test_split: str | None = option(None, "Split to evaluate on; default: all of a file, else test.")
    test_name: str | None = option(None, "Test data, if not a split of the above.")
    train_rows: int | None = option(None, "Training rows, the first after a shuffle.")
    test_rows: int | None = option(None, "Test rows, the first after a shuffle.")
    ood_name: str = option("word-problems", "Out-of-domain data set.")
    ood_config: str | None = option(None, "Its Hub configuration.")
    ood_split: str | None = option(None, "Its split; default: all of a file, else test.")
    ood_rows: int | None = option(None, "Its rows, the first after a shuffle.")
    epsilons: list[float] = option(
        [0.0, 0.03, 0.05],
        f"Radii, nats; objectives and forgetting take the largest; {radius_help(0.05)}.",
    )
    flips: list[float] = option([0.0, 0.1, 0.2, 0.3], "preference: shares of flipped labels, below .5.")
    beta: float = option(0.1, "preference: beta of DPO; forgetting: weight of RLHF's KL to the start.")
    start_steps: int = option(150, "preference, forgetting: steps of SFT before all arms; 0: none.")
    start_learning_rate: float = option(2e-3, "preference, forgetting: their learning rate.")
    start_names: list[str] = option(
        ["word-problems:level=1,count=4000", "word-problems:level=2,count=4000", "stdlib-docs"],
        "forgetting: data of these steps, half of it the first, without the rows of the arms.",
    )
    hard_name: str = option("word-problems:level=2", "forgetting: harder problems, which no arm trains on.")
    hard_config: str | None = option(None, "forgetting: their Hub configuration.")
    pairs_name: str = option("doc-preferences", "forgetting: pairs for the reward model of RLHF.")
    num_generations: int = option(8, "forgetting: completions of a prompt, of RL and rejection sampling.")
    max_completion_length: int = option(96, "forgetting: longest completion, tokens.")
    rl_learning_rate: float = option(1e-3, "forgetting: peak learning rate of RL.")
    seeds: int = option(1, "Seeds: data order and LoRA initialisation.")
    static: bool = option(False, "Add static arms beside the live ones.")
    variants: list[str] = option(
        [],
        "robustness: more arms, at the middle radius above 0: cap=NUMBER, trim=SHARE, group=COLUMN, "
        "optimistic; lower is SFT at a quarter of the learning rate.",
    )
    points: int = option(2, "Evaluations over training, the last one included.")
    learning_rate: float = option(4e-3, "Peak learning rate of AdamW.")
    per_device_train_batch_size: int = option(16, "Samples of one forward pass.")
    gradient_accumulation_steps: int = option(1, "Forward passes of one step.")
    num_train_epochs: float = option(1.0, "Epochs.")
    warmup_ratio: float = option(0.03, "Share of the steps that warm up.")
    weight_decay: float = option(0.0, "Weight decay of AdamW.")
    adam_beta2: float = option(0.999, "Second-moment decay of AdamW.")
    lora_r: int = option(16, "LoRA rank; 0 trains all parameters.")
    lora_alpha: int = option(32, "LoRA alpha.")
    max_length: int = option(1_024, "Longest row, tokens.")
    dtype: str = option("float32", "dtype of the weights.")
    own_name: str | None = option(None, "objectives: data with prompts to answer; default: the test rows.")
    own_prompts: int = option(96, "objectives, forgetting: prompts that the models answer themselves.")
    own_samples: int = option(4, "objectives, forgetting: answers to each of them.")
    own_tokens: int = option(64, "objectives, forgetting: their longest answer, tokens.")
    output_dir: str | None = option(
        None, "Folder for everything; default: outputs/reproduce, or outputs/ and the experiment's name."
    )


@dataclass(frozen=True)
class Arm:
    """One way to train: how tables call it, its folder, and what it changes in RobustSFTConfig.

    variant: none of those that differ from SFT in the radius and `reweight` alone.
    """

    label: str
    folder: str
    settings: dict[str, Any]
    variant: bool = False

    @property
    def epsilon(self) -> float:
        """Radius of its KL ball."""
        return self.settings["epsilon"]

    @property
    def kind(self) -> str:
        """Whether its weights follow the model ("live") or not ("static"); "variant" of a variant."""
        return "variant" if self.variant else self.settings.get("reweight", "live")


def data_of(options: Options) -> dict[str, Dataset]:
    """Training, test and out-of-domain rows; a single local file is split by its prompts."""
    train_split, test_split = options.dataset_train_split, options.dataset_test_split
    train = load_rows(options.dataset_name, train_split, options.dataset_config)
    if options.test_name is None and test_split is None and is_one_table(options.dataset_name):
        held_out = min(options.test_rows or len(train), len(train) // 4)
        try:
            train, test = split_by_content(train, held_out / len(train))
        except NoSplitError:
            raise ValueError(
                f"--dataset_name {options.dataset_name}: of {len(train)} rows, {held_out} to be held out, no "
                "prompt can be, with all its answers: give other rows as --test_name"
            ) from None
    else:
        name, config = options.test_name or options.dataset_name, options.dataset_config
        test = load_rows(name, test_split, None if options.test_name else config, default="test")
    ood = load_rows(options.ood_name, options.ood_split, options.ood_config, default="test")
    data = {
        "train": first(train, options.train_rows),
        "test": first(test, options.test_rows),
        "ood": first(ood, options.ood_rows),
    }
    refuse_training_rows(data["train"], test_name=data["test"], ood_name=data["ood"])
    return data


def first(rows: Dataset, count: int | None) -> Dataset:
    """The first rows after a shuffle with a fixed seed, or all of them."""
    return rows if count is None or count >= len(rows) else rows.shuffle(seed=0).select(range(count))


Tables = dict[str, Dataset]


def score_model(
    model_name: str, label: str, data: dict[str, Dataset], folder: Path, options: Options
) -> Tables:
    """Score tables on the test and out-of-domain rows, from disk where they are finished."""
    model, tokenizer = load(model_name, options)
    tables = {}
    for name in TABLES:
        with progress_bar(f"{label}: scoring {name}") as progress:
            tables[name] = score(
                *(model, tokenizer, data[name]),
                max_length=options.max_length,
                output=table_path(folder, label, name),
                progress=progress,
            )
    return tables


def table_path(folder: Path, label: str, name: str) -> Path:
    """Where the studies keep score tables."""
    return folder / "scores" / label / f"{name}.parquet"


def load(name: str, options: Any, revision: str | None = None) -> tuple[Any, Any]:
    """Model and tokenizer with the dtype and the chat template that these options ask for."""
    model, tokenizer = load_on_device(name, options.dtype, revision)
    load_chat_template(tokenizer, options.chat_template_path)
    return model, tokenizer


def base_answers(
    model: Any, tokenizer: Any, rows: Dataset, options: Any, output: Path
) -> tuple[Dataset, Dataset]:
    """Encoded prompts of the first rows, and the base model's own answers to them, kept in `output`."""
    asked = rows.select(range(min(options.own_prompts, len(rows))))
    prompts = encoded_prompts(model, tokenizer, asked, options.own_tokens)
    with progress_bar("base: answering") as progress:
        written = own_answers(
            *(model, tokenizer, prompts, options.own_tokens, options.own_samples),
            output=output,
            progress=progress,
        )
    return prompts, written


def provenance_of(folder: Path) -> dict[str, Any]:
    """What every score table of an experiment says it was made from, by its path."""
    scores = folder / "scores"
    paths = map(Path, score_files(scores)) if scores.is_dir() else ()
    names = {path: path.relative_to(scores).as_posix().removesuffix(".parquet") for path in paths}
    return {name: read_provenance(path) for path, name in names.items()}


def run_arm(
    arm: Arm,
    seed: int,
    data: dict[str, Dataset],
    folder: Path,
    options: Options,
    start_scores: dict[str, Tensor],
) -> tuple[Tables, list[dict[str, Any]]]:
    """Train one arm, score its checkpoints; returns the final tables and the curve's points.

    start_scores: one for all arms and seeds, as in `klball.training.run.train`.
    """
    run = folder / f"seed-{seed}" / arm.folder
    config = _config(arm, seed, run, num_steps(len(data["train"]), options), options)
    name = options.model_name_or_path
    train_run(config, data["train"], name, arm.label, seed, options, start_scores=start_scores)
    curve = []
    tables: Tables = {}
    for step, path in sorted(checkpoints_of(run).items()):
        label = f"seed-{seed}/{arm.folder}/{path.name}"
        tables = score_model(str(path), label, data, folder, options)
        curve.append({"arm": arm.label, "seed": seed, "step": step, "tables": tables})
    return tables, curve


def refuse_unusable(arms: Sequence[Arm], rows: Dataset, folder: Path, options: Options) -> None:
    """Raise ValueError for what an arm's training would refuse, before anything is scored."""
    for arm in arms:
        config = _config(arm, 0, folder, num_steps(len(rows), options), options)
        try:
            groups_of(rows, config.group_column)
        except ValueError as error:
            raise ValueError(f"rows to train on, in their shuffled order: {error}") from None


def num_steps(rows: int, options: Options) -> int:
    """Optimizer steps of the asked epochs; a step holds the batches of all processes."""
    processes = PartialState(cpu=not torch.accelerator.is_available()).num_processes
    per_step = options.per_device_train_batch_size * options.gradient_accumulation_steps * processes
    return max(1, round(options.num_train_epochs * -(-rows // per_step)))


def train_run(
    config: Any,
    rows: Dataset,
    model: str,
    label: str,
    seed: int,
    options: Options,
    lora: bool = True,
    start_scores: dict[str, Tensor] | None = None,
) -> None:
    """Train from a model, by LoRA unless its rank is 0; a finished run is left as it is.

    start_scores: as in `klball.training.run.train`.
    """
    model_options = ModelConfig(
        model_name_or_path=model,
        dtype=options.dtype,
        use_peft=lora and options.lora_r > 0,
        lora_r=options.lora_r,
        lora_alpha=options.lora_alpha,
        lora_dropout=0.0,
        lora_target_modules="all-linear",  # pyright: ignore[reportArgumentType]
    )
    resolved = {
        "command": "klball reproduce",
        "options": dataclasses.asdict(options),
        "arm": label,
        "seed": seed,
        "versions": versions(),
    }
    for name in (*UNRELATED, *(OF_RL if options.experiment != "forgetting" else ())):
        resolved["options"].pop(name)
    with progress_bar(f"seed {seed}, {label}: training", "steps") as progress:
        template = options.chat_template_path
        train(
            *(rows, config, model_options, resolved),
            callbacks=[Steps(progress)],
            chat_template_path=template,
            start_scores=start_scores,
        )


def _config(arm: Arm, seed: int, run: Path, steps: int, options: Options) -> RobustSFTConfig:
    more: Any = dict(
        chat_template_path=options.chat_template_path,
        train_sampling_strategy="group_by_length",
        save_steps=max(1, steps // options.points),
    )
    return RobustSFTConfig(**{**run_settings(run, steps, seed, options), **more, **arm.settings})


def start_of(options: Options, folder: Path, name: str, rows: Dataset, label: str) -> str:
    """A model after a short SFT of all weights: where arms start, and their reference."""
    if options.start_steps == 0:
        return options.model_name_or_path
    run = folder / START / name
    settings = run_settings(run, options.start_steps, 0, options)
    more = {"epsilon": 0.0, "learning_rate": options.start_learning_rate}
    config = RobustSFTConfig(**{**settings, **more})
    train_run(config, rows, options.model_name_or_path, label, 0, options, lora=False)
    return str(run)


def kept(output: Path, asked: dict[str, Any], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a JSON file has if it was made from the same, else what is made now and written there."""
    if output.exists():
        known = read_json_object(output)
        if known.get("asked") == asked and isinstance(known.get("measures"), dict):
            return known["measures"]
        logger.warning("%s was made from something else: measuring again", output)
    made = make()
    write_json(output, {"asked": asked, "measures": made})
    return made


def run_settings(run: Path, steps: int, seed: int, options: Options) -> dict[str, Any]:
    """What every arm of a study has, whatever its family; one checkpoint, at the end."""
    return dict(
        output_dir=str(run),
        max_steps=steps,
        per_device_train_batch_size=options.per_device_train_batch_size,
        gradient_accumulation_steps=options.gradient_accumulation_steps,
        learning_rate=options.learning_rate,
        weight_decay=options.weight_decay,
        adam_beta2=options.adam_beta2,
        lr_scheduler_type="cosine",
        warmup_steps=options.warmup_ratio,
        max_length=options.max_length,
        save_strategy="steps",
        save_steps=steps,
        logging_steps=10,
        seed=seed,
        report_to=[],
        disable_tqdm=True,
        log_level="error",
        bf16=torch.accelerator.is_available(),
        use_cpu=not torch.accelerator.is_available(),
        gradient_checkpointing=torch.accelerator.is_available(),
    )


class Steps(TrainerCallback):
    """Moves the progress bar; the log lines go to the history file."""

    def __init__(self, progress: Any):
        self.progress = progress

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.progress(state.global_step, state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.progress(state.global_step, state.max_steps)
