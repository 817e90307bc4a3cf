"""Weights as bytes: a hash that tells any two models apart, and files that are not whole."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from klball.files import combined, read_json_object

LFS_POINTER = b"version https://git-lfs"


def weights_hash(model: torch.nn.Module) -> str:
    """A hash of all weights' names, dtypes, shapes and bytes, the same on every device and thread count."""
    return combined(_bytes_of(model))


def whole_shape(weight: torch.Tensor) -> tuple[int, ...]:
    """The shape of a parameter, of which a process may hold nothing under ZeRO-3."""
    return tuple(getattr(weight, "ds_shape", weight.shape))


def weights_of(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """The parameters by name, and what quantised ones are read with: their scales lie beside them."""
    yield from model.named_parameters()
    plain = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    plain |= {name for name, _ in model.named_buffers(remove_duplicate=False)}
    for name, value in model.state_dict().items():
        if name not in plain and isinstance(value, torch.Tensor):
            yield name, value


def _bytes_of(model: torch.nn.Module) -> Iterator[Any]:
    for name, values in weights_of(model):
        yield f"{name}{tuple(values.shape)}{values.dtype}".encode()
        yield values.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data


def refuse_damaged_safetensors(path: Path) -> None:
    """Raise ValueError naming the file if its header is unreadable or its tensors are not all there."""
    with path.open("rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise ValueError(f"{path} is a Git LFS pointer, not weights: fetch them with `git lfs pull`")
    try:
        with safe_open(path, framework="pt"):
            pass
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or cut short ({error}): copy or download it again") from error


def refuse_missing_shards(index: Path) -> None:
    """Raise ValueError if a file that an index of weights names does not lie beside it."""
    shards = read_json_object(index).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
        raise ValueError(f"{index}: weight_map is no object of tensors and their files")
    if lost := sorted({shard for shard in shards.values() if not (index.parent / shard).is_file()}):
        raise ValueError(f"{index.parent} lacks {lost[0]}, which {index.name} names")
