"""What decides which samples the steps of an epoch have."""

from typing import Any

DRAWS = (  # besides the data
    *("world_size", "train_batch_size", "gradient_accumulation_steps", "seed", "data_seed"),
    *("train_sampling_strategy", "dataloader_drop_last", "packing"),
)


def draws(args: Any) -> dict[str, Any]:
    """The values of DRAWS, for a checkpoint to be compared with."""
    return {name: getattr(args, name, None) for name in DRAWS}
