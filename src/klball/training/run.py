"""One training run, resumable at any moment."""

import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from typing import Any

from accelerate import DistributedType, PartialState
from datasets import Dataset
from torch import Tensor
from transformers import PrinterCallback, TrainerState, set_seed
from trl import (
    ModelConfig,
    get_peft_config,
    get_quantization_config,
)

from klball.data.encoding import chat_template_at
from klball.data.preferences import HIDDEN
from klball.data.rows import load_chat_template, with_sample_ids
from klball.files import RUN_FILE, combined, json_digest, read_json_object, write_json
from klball.models.loading import (
    REWARD,
    check_model,
    is_adapter,
    load_model,
    model_path,
)
from klball.terminal import is_main, say, show_table
from klball.training.checkpoints import STATE_FILE, checkpoints_of, newest_complete, problem_of
from klball.training.families import Family, family_of
from klball.training.identity import (
    DIGESTS,
    check_same_run,
    checkpoint_digest,
    model_digest,
    row_digests,
)
from klball.training.lock import alone_in, remove_left
from klball.training.sharding import save_whole_model
from klball.training.stages import StopAt, checkpoint_at
from klball.training.weights import GROUPS_FILE, WEIGHTS_FILE

logger = logging.getLogger(__name__)

DONE_FILE = WEIGHTS_FILE  # written last


def train(
    dataset: Dataset,
    config: Any,
    model_options: ModelConfig,
    resolved: dict[str, Any],
    evaluation: Dataset | None = None,
    callbacks: Sequence[Any] = (),
    chat_template_path: str | None = None,
    until: float = 1.0,
    start_scores: dict[str, Tensor] | None = None,
    begin: Callable[[], Any] = lambda: None,
) -> None:
    """Run to the end: model, history and top-weighted samples in `config.output_dir`.

    The configuration's class says which of the `FAMILIES` it is. chat_template_path: for configurations
    that have no such field. until: the share of the steps after which to stop, with a checkpoint in place of
    what a finished run leaves; 0: what the trainer refuses is refused, and nothing is trained or written.
    start_scores: empty at first, and shared by runs that begin alike, so that one of them scores for all.
    begin: called once nothing is refused any more, before the first step.

    Resumes from the newest whole checkpoint if the folder's `run.json` is `resolved` on the same rows and
    model, and raises ValueError if it is another run's. `config.resume_from_checkpoint`: where to begin
    if the folder holds no checkpoint yet.
    """
    family = family_of(config)
    folder = Path(str(config.output_dir))
    if _same_place(model_path(str(model_options.model_name_or_path)), folder):
        raise ValueError(f"{folder} holds the model to train: choose another --output_dir to keep it")
    asked = _asked_checkpoint(config.resume_from_checkpoint)
    others = family.models(config)
    _check_models(model_options, others, config.trust_remote_code, family)
    template = getattr(config, "chat_template_path", chat_template_path)
    digests = _digests(dataset, evaluation, model_options, asked, folder, template)
    resolved = {
        **resolved,
        DIGESTS: {**digests, **{what: model_digest(n, None) for what, n in others.items()}},
    }
    with _kept(folder, resolved, until) as started:
        if started is None:
            return
        also = family.files(config)
        resume_from = _resumption(*(folder, asked, config.resume_from_checkpoint, started, also))
        numbered = with_sample_ids(dataset)
        trainer, rows = _trainer_of(numbered, evaluation, config, model_options, template)
        if until == 0:
            return
        if is_main():  # only now: settings that the trainer refuses leave no run behind
            _remove_unfinished(folder, resume_from, config.save_total_limit)
            write_json(folder / RUN_FILE, resolved)
        begin()
        trainer.writes_weights, trainer.start_scores = False, start_scores
        if until < 1:
            trainer.add_callback(StopAt(until))
        for callback in callbacks:
            trainer.add_callback(callback)
        if callbacks:  # they show the progress; the figures are in the history
            trainer.remove_callback(PrinterCallback)
        trainer.train(resume_from_checkpoint=resume_from)
        if until == 1 or trainer.state.global_step >= trainer.state.max_steps:
            _finish(trainer, rows, numbered, family)
        trainer.accelerator.wait_for_everyone()  # whose next command reads what one has written


@contextmanager
def _kept(folder: Path, resolved: dict[str, Any], until: float) -> Iterator[bool | None]:
    """Whether this run began, its folder kept for it in the block; None if nothing is left to do."""
    started = _begun(folder, resolved, until)
    if started is None or until == 0:
        yield started
        return
    with alone_in(folder):
        yield _begun(folder, resolved, until)  # again: another process may have been at it until now


def _begun(folder: Path, resolved: dict[str, Any], until: float) -> bool | None:
    started = check_same_run(folder, resolved)
    if started and (folder / DONE_FILE).exists():
        if is_main():
            remove_left(folder)
            say(f"{folder} already holds this run, finished")
        return None
    over = until == 0 or (until < 1 and checkpoint_at(folder, until) is not None)
    return None if started and over else started


def _finish(trainer: Any, rows: Dataset, numbered: Dataset, family: Family) -> None:
    folder = Path(trainer.args.output_dir)
    save_whole_model(trainer, str(folder))
    there = family.form is not None
    hidden = tuple(column for column in HIDDEN if there and column in numbered.column_names)
    for column in hidden:  # for people to see, once training is over
        rows = rows.add_column(column, numbered[column][:])
    _report_weights(trainer, rows, hidden, folder)


def _trainer_of(
    rows: Dataset, evaluation: Dataset | None, config: Any, model_options: ModelConfig, template: str | None
) -> tuple[Any, Dataset]:
    """The family's trainer, with model, tokenizer and reference, and the rows as they were handed to it."""
    family = family_of(config)
    if family.purpose.head is not None:
        set_seed(config.seed)  # a new head is drawn at random
    model, tokenizer = load_for_training(config, model_options)
    load_chat_template(tokenizer, template)
    train_dataset = family.prepared(rows, tokenizer, config)
    arguments: dict[str, Any] = dict(
        args=family.settled(config),
        train_dataset=train_dataset,
        eval_dataset=None if evaluation is None else family.prepared(evaluation, tokenizer, config),
        processing_class=tokenizer,
        peft_config=_peft_config(model_options, family),
        **family.arguments(config),
    )
    name = str(model_options.model_name_or_path)
    if family.reference and not (model_options.use_peft or is_adapter(name, model_options.model_revision)):
        arguments["ref_model"] = load_for_training(config, model_options)[0]  # else adapters are switched off
    return family.trainer(model, **arguments), train_dataset


def _check_models(options: ModelConfig, others: Mapping[str, str], trusted: bool, family: Family) -> None:
    """Raise ValueError unless there are a model to train and the others that its training needs."""
    check_model(str(options.model_name_or_path), options.model_revision, trusted, family.purpose)
    for other in others.values():
        check_model(other, None, trusted, REWARD)


def _peft_config(options: ModelConfig, family: Family) -> Any:
    """TRL's for this kind of model; one module's name would be a pattern that whole paths have to match."""
    if options.use_peft and options.lora_r < 1:
        raise ValueError(
            f"--lora_r must be at least 1, not {options.lora_r}: leave out --use_peft for all weights"
        )
    config: Any = get_peft_config(options)
    if config is None:
        return None
    config.task_type = family.purpose.task_types[-1]  # PEFT then trains a new head whole
    if isinstance(getattr(config, "target_modules", None), str) and config.target_modules.isidentifier():
        config.target_modules = {config.target_modules}
    return config


def load_for_training(config: Any, options: ModelConfig) -> tuple[Any, Any]:
    """The model as TRL's options ask for it; an adapter is loaded to be trained further."""
    name, revision = str(options.model_name_or_path), options.model_revision
    settings = {**(config.model_init_kwargs or {})}
    settings = {
        "dtype": options.dtype or "auto",
        "trust_remote_code": config.trust_remote_code,
        "purpose": family_of(config).purpose,
        **settings,
    }
    adapted = is_adapter(name, revision)
    if adapted and options.use_peft:
        raise ValueError(
            f"{name} is an adapter: leave out --use_peft to train it further, or merge it into its base first"
        )
    if options.attn_implementation is not None:
        settings.setdefault("attn_implementation", options.attn_implementation)
    if (quantization := get_quantization_config(options)) is not None:
        if not (adapted or options.use_peft):
            raise ValueError("a quantised model is trained through an adapter: add --use_peft")
        settings = {
            "quantization_config": quantization,
            "device_map": _device_map(),
            **settings,
        }
    return load_model(name, revision=settings.pop("revision", revision), trainable=True, **settings)


def _device_map() -> str | None:
    """Where TRL's trainers put a model that they load."""
    state: Any = PartialState()
    spread = state.distributed_type in (DistributedType.MULTI_GPU, DistributedType.DEEPSPEED)
    return None if spread or state.device.type in ("cpu", "mps") else "auto"


def _same_place(one: str | Path, other: str | Path) -> bool:
    """Path.resolve() would raise for a link to itself."""
    return os.path.realpath(one) == os.path.realpath(other)


def _asked_checkpoint(asked: str | None) -> Path | None:
    """The checkpoint that --resume_from_checkpoint names, if it names one by its path."""
    if asked is None or asked.lower() in ("true", "latest", "false"):
        return None
    checkpoint = Path(asked).expanduser()
    if not checkpoint.is_dir():
        raise ValueError(f"there is no checkpoint {asked} to resume from")
    if (problem := problem_of(checkpoint)) is not None:
        raise ValueError(f"{asked} cannot be resumed from: {problem}")
    return checkpoint


def _digests(
    dataset: Dataset,
    evaluation: Dataset | None,
    options: ModelConfig,
    asked: Path | None,
    folder: Path,
    template: str | None,
) -> dict[str, str]:
    """Rows, model, chat template and foreign starting point by their content."""
    digests = {
        "data": combined(row_digests(dataset)),
        "model": model_digest(str(options.model_name_or_path), options.model_revision),
    }
    if evaluation is not None:
        digests["test data"] = combined(row_digests(evaluation))
    if template:
        digests["chat template"] = json_digest(chat_template_at(template))
    if asked is None or _same_place(asked.parent, folder):
        return digests
    run = asked.parent / RUN_FILE
    recorded = read_json_object(run).get(DIGESTS, {}) if run.is_file() else {}
    if recorded.get("data", digests["data"]) != digests["data"]:
        raise ValueError(f"{asked} is of a run on other data")
    return {**digests, "starting checkpoint": checkpoint_digest(asked)}


def _resumption(
    folder: Path, asked: Path | None, wanted: str | None, started: bool, also: Mapping[str, tuple[str, ...]]
) -> str | None:
    """Where to begin: at the checkpoint asked for, else at this run's newest whole one."""
    own = checkpoints_of(folder)
    if asked is not None and (asked.name in {path.name for path in own.values()} or not own):
        return str(asked)
    newest = newest_complete(folder, also) if started else None
    if newest is None and own:
        logger.warning("no checkpoint in %s can be resumed from: starting from the beginning", folder)
    if newest is None and not started and str(wanted).lower() in ("true", "latest"):
        raise ValueError(f"{folder} has no whole checkpoint to resume from")
    return newest


def _remove_unfinished(folder: Path, resume_from: str | None, limit: int | None) -> None:
    """What a kill left: checkpoints that will be written anew or were being deleted, and temporary files.

    And the last file of a run, which a trainer in Python leaves as well. Transformers' own rotation would
    take a backup such as checkpoint-6-copy for the newest one, and delete the checkpoint to resume from.
    """
    state = TrainerState(global_step=-1)
    if resume_from is not None and _same_place(Path(resume_from).parent, folder):
        state = TrainerState.load_from_json(str(Path(resume_from) / STATE_FILE))  # whatever it is called
    own = checkpoints_of(folder)
    best = state.best_model_checkpoint and Path(state.best_model_checkpoint).name
    kept = [path for step, path in sorted(own.items()) if step <= state.global_step]
    older = [path for path in kept[:-1] if path.name not in (best, Path(str(resume_from)).name)]
    going = older[: max(0, len(kept) - limit)] if limit else []  # as a trainer that saves once more
    for path in {*own.values()} - {*kept} | {*going}:
        shutil.rmtree(path)
    for path in (*folder.glob(".*.????????-[0-9]*"), *folder.glob(".tmp??????"), folder / DONE_FILE):
        if path.is_file():
            path.unlink()


def _report_weights(trainer: Any, rows: Dataset, hidden: tuple[str, ...], folder: Path) -> None:
    """Which groups and samples the adversary weighs most at the end: rare, hard, or mislabelled?"""
    written = trainer.write_weights(rows, hidden)
    if written is None or not is_main():
        return
    groups, top = written
    if groups:
        header = ("group", "samples", f"mean {_in_words(trainer.entry[0])}", "share f", "weight q", "q/f")
        body = [tuple(row.values()) for row in sorted(groups, key=lambda row: -row["density"])]
        title = f"groups as the adversary weighs them ({folder / GROUPS_FILE})"
        show_table(title, header, body, f"{folder / GROUPS_FILE} has them all")
    if trainer.has_live_weights and top:
        columns = [column for column in top[0] if column not in ("sample_id", *HIDDEN)]
        header = ("n·q", *map(_in_words, columns[1:]))
        body = [tuple(_shown(row[column]) for column in columns) for row in top[:8]]
        show_table(f"top-weighted samples (all {len(top)} in {folder / DONE_FILE})", header, body)


def _in_words(column: str) -> str:
    return column.replace("_likelihood", "-likelihood").replace("_", " ")


def _shown(value: Any) -> Any:
    return shorten(value, 80, placeholder=" …") if isinstance(value, str) else value
