"""Weights as bytes: a hash that tells any two models apart, and files that are not whole."""

import json
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError, safe_open

LFS_POINTER = b"version https://git-lfs"


def weights_hash(model: torch.nn.Module) -> str:
    """A hash of every parameter's name, dtype, shape and bytes, the same on every device and thread count."""
    digest = xxhash.xxh3_128()
    for name, parameter in model.named_parameters():
        digest.update(f"{name}{tuple(parameter.shape)}{parameter.dtype}".encode())
        digest.update(parameter.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def file_digest(path: Path) -> str:
    """A hash of a file's bytes."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()[:16]


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


def read_json_object(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object. Raises ValueError naming the file if it does not."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no JSON object but {type(content).__name__}")
    return content
