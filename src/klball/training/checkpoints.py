"""Which checkpoints training can be resumed from, and what of a run is not for others to see."""

import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors import safe_open
from transformers import PreTrainedModel
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_callback import TrainerState
from transformers.trainer_pt_utils import safe_globals
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from klball.boundary import first_line
from klball.files import read_json_object, write_text
from klball.models.loading import TINY, TINY_FOLDER
from klball.models.weights import refuse_damaged_safetensors, refuse_missing_shards, whole_shape
from klball.training.accountant import FAMILY, HISTORY_FILE, LEDGER_FILE, about_ledger

logger = logging.getLogger(__name__)

STATE_FILE = "trainer_state.json"
WEIGHTS = ("model.safetensors", "adapter_model.safetensors")
NAMED = f"*/{WEIGHTS[1]}"  # of an adapter that is not called "default"
NEEDED = {  # what a resumption reads → names that it may have; folders are FSDP's and DeepSpeed's
    "weights": (
        *(*WEIGHTS, NAMED, "*model*.index.json", "*model*.bin"),
        *("pytorch_model_fsdp*", "global_step*"),
    ),
    "optimizer state (as with --save_only_model)": (
        "optimizer.pt",
        "optimizer.bin",
        "optimizer_*",
        "global_step*",
    ),
    "scheduler state": ("scheduler.pt", "global_step*"),
    "random state": ("rng_state*.pth",),
    "ledger (it was not written by a robust trainer)": (LEDGER_FILE,),
    "history": (HISTORY_FILE,),
}


def checkpoints_of(folder: Path) -> dict[int, Path]:
    """The folder's checkpoints by their step, whole or not."""
    paths = {path.name.rpartition("-")[2]: path for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*")}
    return {int(step): path for step, path in sorted(paths.items()) if step.isdigit() and path.is_dir()}


def newest_complete(folder: Path, also: Mapping[str, tuple[str, ...]] | None = None) -> str | None:
    """The newest checkpoint that can be resumed from, None if there is none; says why newer ones cannot.

    also: what this kind of run needs besides: what it is → patterns of names.
    """
    for _, path in sorted(checkpoints_of(folder).items(), reverse=True):
        problem = problem_of(path, also)
        if problem is None:
            return str(path)
        logger.warning("%s is passed over: %s", path, problem)
    return None


def problem_of(checkpoint: Path, also: Mapping[str, tuple[str, ...]] | None = None) -> str | None:
    """Why training cannot be resumed from a checkpoint; None if all it needs is there and readable.

    Weights and optimizer state are not read but for their headers.
    """
    try:
        state = TrainerState.load_from_json(str(checkpoint / STATE_FILE))
    except FileNotFoundError:
        return "it was not finished"
    except (OSError, ValueError, TypeError, RecursionError):
        return f"{STATE_FILE} is damaged"
    step = checkpoint.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-")
    if state.train_batch_size is None or (step.isdigit() and state.global_step != int(step)):
        return f"{STATE_FILE} is damaged (it is of step {state.global_step})"
    needed = {**NEEDED, **(also or {})}
    absent = [what for what, names in needed.items() if not any(_has(checkpoint, name) for name in names)]
    if absent:
        return f"it has no {absent[0]}"
    for path in sorted([*checkpoint.iterdir(), *checkpoint.glob(NAMED)]):
        try:
            _read(path)
        except Exception as error:  # torch.load raises a dozen kinds for a damaged file
            return f"{path.name} is damaged ({first_line(error)})"
    return None


def _has(checkpoint: Path, name: str) -> bool:
    return next(checkpoint.glob(name), None) is not None


def _read(path: Path) -> None:
    if path.suffix and path.is_dir():
        raise ValueError("it is a folder")
    if path.suffix == ".safetensors":
        refuse_damaged_safetensors(path)
    elif path.name.endswith(".index.json"):
        refuse_missing_shards(path)
    elif path.suffix in (".pt", ".pth") or (path.suffix == ".bin" and path.name != TRAINING_ARGS_NAME):
        with safe_globals():
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        if path.name == "optimizer.pt" and not {"state", "param_groups"} <= set(content):
            raise ValueError("it is no optimizer's state")
    elif path.name in ("config.json", "adapter_config.json"):
        read_json_object(path)
    elif path.suffix == ".parquet":
        pq.read_table(path)


def refuse_unfit(checkpoint: Path, model: torch.nn.Module, family: str) -> None:
    """Raise ValueError if a checkpoint cannot be resumed from, or is of another family or model.

    Transformers loads what fits and leaves the rest as it was.
    """
    if not checkpoint.is_dir():
        raise ValueError(f"there is no checkpoint {checkpoint} to resume from")
    if (problem := problem_of(checkpoint)) is not None:
        raise ValueError(f"{checkpoint} cannot be resumed from: {problem}")
    found = about_ledger(checkpoint / LEDGER_FILE).get(FAMILY)
    if found != family:
        raise ValueError(f"{checkpoint} was written by a trainer of another family, {found}, not {family}")
    of_adapter = isinstance(model, PeftModel)
    if _has(checkpoint, WEIGHTS[not of_adapter]) or (not of_adapter and _has(checkpoint, NAMED)):
        raise ValueError(
            f"{checkpoint} holds {'a whole model' if of_adapter else 'an adapter'}, and "
            f"{'an adapter' if of_adapter else 'a whole model'} is to be trained"
        )
    if isinstance(model, PeftModel):
        weights = adapter_weights(checkpoint, model)
        own = get_peft_model_state_dict(model, adapter_name=model.active_adapters[0])
    else:
        weights, own = checkpoint / WEIGHTS[0], {**model.state_dict(), **dict(model.named_parameters())}
    if not weights.is_file():
        if of_adapter and (_has(checkpoint, WEIGHTS[1]) or _has(checkpoint, NAMED)):
            raise ValueError(f"{checkpoint} is of another model: it has no {weights.relative_to(checkpoint)}")
        return  # in shards: left to what loads them
    with safe_open(weights, framework="pt") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    if not of_adapter and _renames(model, shapes):
        return  # judged by what loads them
    foreign = [name for name, shape in shapes.items() if name not in own or whole_shape(own[name]) != shape]
    if foreign:
        raise ValueError(f"{checkpoint} is of another model: {foreign[0]} does not fit")


def adapter_weights(folder: Path, model: PeftModel) -> Path:
    """Where the adapter that is trained lies: one with a name in a folder of that name."""
    name = model.active_adapters[0]
    return (folder if name == "default" else folder / name) / WEIGHTS[1]


def _renames(model: torch.nn.Module, names: Collection[str]) -> bool:
    """Whether a whole model's saved names are not all its parameters': some are renamed, split or joined."""
    return isinstance(model, PreTrainedModel) and not {*names} <= {*model.state_dict()}


def load_renamed(folder: Path, model: torch.nn.Module) -> bool:
    """Load a whole model that is saved under other names than its parameters have; False for all others.

    Raises ValueError for the weights of another model.
    """
    single, index = folder / WEIGHTS[0], folder / f"{WEIGHTS[0]}.index.json"
    if single.is_file():
        with safe_open(single, framework="pt") as file:
            names = [*file.keys()]
    else:
        names = [*read_json_object(index)["weight_map"]] if index.is_file() else []
    if not _renames(model, names):
        return False
    assert isinstance(model, PreTrainedModel)
    try:
        found: Any = type(model).from_pretrained(folder, dtype="auto", output_loading_info=True)
        loaded, info = found
        if foreign := [*info["unexpected_keys"], *info["missing_keys"]]:
            raise ValueError(f"{folder} is of another model: {foreign[0]} does not fit")
        model.load_state_dict(loaded.state_dict())
    except RuntimeError as error:  # of shapes, or of another number of layers
        raise ValueError(f"{folder} is of another model: {first_line(error)}") from error
    return True


def located(model: Any) -> Any:
    """The embedded model's folder for its name, which the Hub does not know; anything else as it is."""
    return TINY_FOLDER if isinstance(model, str) and model == TINY else model


def hide_installation(folder: Path) -> None:
    """Call the embedded model by its name in saved files, not by the place where klball is installed."""
    for path in (folder / "adapter_config.json", folder / "README.md"):
        if path.is_file() and TINY_FOLDER in (text := path.read_text(encoding="utf-8")):
            write_text(path, text.replace(TINY_FOLDER, TINY))
