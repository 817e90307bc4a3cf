"""Where a run is within its epoch: what a resumed one still has to draw, and when entries are renewed."""

import math
from pathlib import Path
from typing import Any

from transformers import TrainerState

DRAWS = (  # what decides which samples a step of an epoch has, besides the data
    *("world_size", "train_batch_size", "gradient_accumulation_steps", "seed", "data_seed"),
    *("train_sampling_strategy", "dataloader_drop_last", "packing"),
)


def draws(args: Any) -> dict[str, Any]:
    """The values of DRAWS, for a checkpoint to be compared with."""
    return {name: getattr(args, name, None) for name in DRAWS}


def steps_an_epoch(args: Any, num_rows: int) -> int:
    """Optimizer steps, the last one perhaps short."""
    batches = num_rows / (args.train_batch_size * args.world_size)
    whole = math.floor(batches) if args.dataloader_drop_last else math.ceil(batches)
    return max(1, math.ceil(whole / args.gradient_accumulation_steps))


def within_epoch(args: Any, state: TrainerState, num_rows: int, resumed: Path | None) -> bool:
    """Whether training resumes in the middle of an epoch, and goes on with the samples still to come."""
    if resumed is None or args.ignore_data_skip:
        return False
    epoch = state.epoch or 0.0
    return abs(epoch - round(epoch)) > 1e-9 or state.global_step % steps_an_epoch(args, num_rows) > 0
