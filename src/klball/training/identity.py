"""What makes two runs the same run: settings, versions, and digests of the data and the model."""

import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import xxhash
from datasets import Dataset
from transformers import TrainingArguments
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.utils.hub import cached_file, extract_commit_hash

from klball.data.formats import MEANINGFUL
from klball.files import RUN_FILE, combined, file_digest, json_digest, read_json_object
from klball.models.loading import adapter_base, model_path
from klball.training.accountant import HISTORY_FILE, LEDGER_FILE
from klball.training.checkpoints import STATE_FILE, WEIGHTS, checkpoints_of

logger = logging.getLogger(__name__)

DIGESTS = "digests"
INDIFFERENT = {  # what says nothing about the trained model, and what the digests know by its content
    *("dataset_name", "dataset_config", "dataset_train_split", "dataset_test_split", "eval_dataset"),
    *("test_fraction", "datasets", "test_split_size", "model_name_or_path", "model_revision"),
    *("output_dir", "resume_from_checkpoint", "local_rank", "do_train"),
    *("logging_strategy", "logging_steps", "logging_first_step", "logging_nan_inf_filter"),
    *("log_level", "log_level_replica", "log_on_each_node", "disable_tqdm", "report_to", "run_name"),
    *("project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"),
    *("include_num_input_tokens_seen", "skip_memory_metrics", "debug"),
    *("dataloader_num_workers", "dataloader_prefetch_factor", "dataloader_pin_memory"),
    *("dataloader_persistent_workers", "dataloader_multiprocessing_context", "dataset_num_proc"),
    *("push_to_hub", "hub_model_id", "hub_strategy", "hub_private_repo", "hub_always_push", "hub_revision"),
    *("save_total_limit", "save_on_each_node", "enable_jit_checkpoint", "ddp_timeout"),
    *("per_device_eval_batch_size", "torch_empty_cache_steps", "trust_remote_code"),
}
LENIENT: dict[str, Any] = {  # what cannot be loaded is said when it is loaded
    f"_raise_exceptions_for_{what}": False for what in ("gated_repo", "missing_entries", "connection_errors")
}
LONGEST = 60  # characters of a setting's value in a message
MODEL_FILES = ("*.json", "*.safetensors", "*.bin", "*.jinja", "*.model", "*.txt", "*.py")


def settings_of(config: TrainingArguments) -> dict[str, Any]:
    """The settings as JSON, with every token but the Hub's: `to_dict` masks `eos_token` too."""
    settings = config.to_dict()
    tokens = {name: getattr(config, name) for name in settings if name.endswith("_token")}
    return {**settings, **{name: tokens[name] for name in tokens if name != "hub_token"}, "hub_token": None}


def check_same_run(folder: Path, wanted: dict[str, Any]) -> bool:
    """Whether the folder holds this run, begun or finished; False if it holds none that began.

    Raises ValueError naming what differs, so that no run is continued as another.
    """
    path = folder / RUN_FILE
    checkpoints = checkpoints_of(folder)
    elsewhere = "choose another --output_dir or remove it"
    if not path.exists():
        if checkpoints:
            raise ValueError(
                f"{folder} holds checkpoints of a run that this command did not begin (no {RUN_FILE}): "
                "choose another --output_dir, and go on from one with --resume_from_checkpoint"
            )
        return False
    recorded = _recorded(path, checkpoints)
    wanted = json.loads(json.dumps(wanted, default=str))
    command = recorded.get("command", "another command")
    if command != wanted["command"]:
        raise ValueError(f"{folder} holds the results of {command}: {elsewhere}")
    changes = _differences(recorded, wanted)
    if not changes:
        return True
    if not checkpoints and not (folder / HISTORY_FILE).exists():
        return False  # it never began: nothing is lost
    other = sorted(name.partition(".")[2] for name in changes if name.startswith(f"{DIGESTS}."))
    settings = [f"{name.split('.', 1)[-1]} {change}" for name, change in sorted(changes.items())]
    settings = [text for text in settings if text.split(" ")[0] not in other]
    what = [f"on other {' and '.join(other)}"] if other else []
    what += [f"with other settings: {', '.join(settings)}"] if settings else []
    raise ValueError(f"{folder} holds a run {', '.join(what)}: {elsewhere}")


def _recorded(path: Path, checkpoints: Mapping[int, Path]) -> dict[str, Any]:
    try:
        return read_json_object(path)
    except ValueError as error:
        anew = "remove it to begin anew"
        if checkpoints:
            newest = checkpoints[max(checkpoints)]
            anew = f"remove it, and go on in another --output_dir with --resume_from_checkpoint {newest}"
        raise ValueError(f"{error}: {anew}") from error


def _differences(recorded: dict[str, Any], wanted: dict[str, Any]) -> dict[str, str]:
    """Setting → "old → new", of those that matter."""
    old, new = dict(_flat(recorded)), dict(_flat(wanted))
    return {
        name: f"{_shown(old.get(name))} → {_shown(new.get(name))}"
        for name in {*old, *new}
        if old.get(name) != new.get(name) and name.split(".", 1)[-1] not in INDIFFERENT
    }


def _flat(settings: dict[str, Any]) -> Iterable[tuple[str, Any]]:
    """Two levels: section and setting."""
    for section, values in settings.items():
        if isinstance(values, dict):
            yield from ((f"{section}.{name}", value) for name, value in values.items())
        else:
            yield section, values


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def row_digests(rows: Dataset) -> list[bytes]:
    """A hash of every row's content, whatever the order of its columns."""
    return [
        xxhash.xxh3_128_digest(json.dumps(row, sort_keys=True, default=str).encode())
        for row in rows.with_format(None)
    ]


def num_shared(rows: Dataset, others: Dataset) -> int:
    """How many of the others are among some rows, whatever their ids and what else only one of them says."""
    of_one = {*rows.column_names} ^ {*others.column_names}
    apart = {"id", "sample_id"} | (of_one - MEANINGFUL)
    known, own = (
        row_digests(data.remove_columns([*apart & {*data.column_names}])) for data in (rows, others)
    )
    return sum(map({*known}.__contains__, own))


def refuse_training_rows(train: Dataset, **evaluations: Dataset) -> None:
    """Raise ValueError if all rows to evaluate on, by their option, are trained on, and warn of some."""
    for option, rows in evaluations.items():
        seen = num_shared(train, rows)
        if seen == len(rows):
            raise ValueError(f"every row to evaluate on is also trained on: give others, with --{option}")
        if seen:
            logger.warning("%d of %d rows of --%s are also trained on", seen, len(rows), option)


def model_digest(name: str, revision: str | None = None) -> str:
    """A hash of a model's files, of an adapter's and its base model's; of a Hub model, its commit."""
    path = model_path(name)
    parts = []
    if Path(path).is_dir():
        found = sorted({file for pattern in MODEL_FILES for file in Path(path).glob(pattern)})
        ignored = {RUN_FILE, STATE_FILE, TRAINING_ARGS_NAME}
        parts += [f"{file.name} {_content_digest(file)}" for file in found if file.name not in ignored]
    else:
        config = cached_file(path, "config.json", revision=revision, **LENIENT)
        parts.append(f"{name} {extract_commit_hash(config, None)}")
    base = adapter_base(name, revision)
    if base and model_path(base) != path:
        parts.append(model_digest(base))
    return combined(part.encode() for part in parts)


def _content_digest(file: Path) -> str:
    """Of an adapter's settings whatever the order of its lists, which PEFT writes in a set's."""
    if file.name != "adapter_config.json":
        return file_digest(file)
    settings = read_json_object(file)
    return json_digest({k: sorted(v, key=str) if isinstance(v, list) else v for k, v in settings.items()})


def checkpoint_digest(checkpoint: Path) -> str:
    """What tells a checkpoint from others: its ledger, log, optimizer state and weights."""
    paths = (checkpoint / name for name in (LEDGER_FILE, STATE_FILE, "optimizer.pt", *WEIGHTS))
    return combined(file_digest(path).encode() for path in paths if path.is_file())
