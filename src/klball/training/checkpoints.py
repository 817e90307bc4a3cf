"""Which checkpoints are complete, and whether a folder's run is the one now asked for."""

import json
import os
from pathlib import Path
from typing import Any

from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

STATE_FILE = "trainer_state.json"


def newest_complete(folder: Path) -> str | None:
    """The newest checkpoint whose last-written file is there and whole; None if there is none."""
    steps = {}
    for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        suffix = path.name.rpartition("-")[2]
        if suffix.isdigit() and _is_complete(path):
            steps[int(suffix)] = path
    return str(steps[max(steps)]) if steps else None


def _is_complete(path: Path) -> bool:
    try:
        TrainerState.load_from_json(str(path / STATE_FILE))
    except (OSError, ValueError, TypeError):
        return False
    return True


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(content, indent=2, sort_keys=True, default=str) + "\n")
    os.replace(temporary, path)


def check_same_run(path: Path, configuration: dict[str, Any]) -> bool:
    """Whether `path` records this configuration; False if it records none.

    Raises ValueError naming the settings that differ, so that no run is continued as another.
    """
    if not path.exists():
        return False
    recorded = json.loads(path.read_text())
    wanted = json.loads(json.dumps(configuration, default=str))
    if recorded != wanted:
        keys = sorted(k for k in {*recorded, *wanted} if recorded.get(k) != wanted.get(k))
        raise ValueError(
            f"{path.parent} holds a run with other settings ({', '.join(keys)}): "
            "choose another --output_dir or remove it"
        )
    return True
