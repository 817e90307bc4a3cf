"""Models whose parameters are spread over the processes: PyTorch's FSDP2, DeepSpeed's ZeRO-3."""

import dataclasses
from typing import Any

import torch
from accelerate import Accelerator, DistributedType


def shards_parameters(accelerator: Accelerator, certainty: bool) -> bool:
    """Whether a process will hold a part of every parameter only; if so, log-probabilities stay float32.

    Raises ValueError for FSDP1, and for ZeRO-3 where certainty is needed.
    """
    plugin: Any
    if accelerator.distributed_type == DistributedType.FSDP:
        plugin = accelerator.state.fsdp_plugin
        if plugin.fsdp_version != 2:
            raise ValueError("FSDP1 is not supported: set fsdp_version: 2")
        if plugin.mixed_precision_policy is not None:  # Accelerate's casts what a forward returns to bf16
            plugin.mixed_precision_policy = dataclasses.replace(
                plugin.mixed_precision_policy, output_dtype=None
            )
        return True
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        plugin = accelerator.state.deepspeed_plugin
        sharded = plugin.zero_stage == 3
        if sharded and certainty:
            raise ValueError(
                "gamma reads the LM head after the forward, where ZeRO-3 has it in parts: use FSDP2"
            )
        return sharded
    return False


def holds_nothing(model: Any) -> bool:
    """Whether ZeRO-3 has taken the parameters away already."""
    return isinstance(model, torch.nn.Module) and any(hasattr(p, "ds_shape") for p in model.parameters())


def refuse_lost_parameters(accelerator: Accelerator, optimizer: Any) -> None:
    """Raise ValueError if the optimizer of some process does not have every parameter.

    Accelerate 1.15 tells them apart by their address, which is 0 for all that are on the meta device: so
    where `fsdp_cpu_ram_efficient_loading` had one process alone read the weights.
    """
    parameters = [id(p) for group in optimizer.param_groups for p in group["params"]]
    lost = torch.tensor(len(parameters) - len(set(parameters)), device=accelerator.device)
    if accelerator.distributed_type == DistributedType.FSDP and int(accelerator.reduce(lost)) > 0:  # pyright: ignore[reportArgumentType]
        raise ValueError(
            "FSDP2 lost parameters of the optimizer, which would not be trained: set "
            "fsdp_cpu_ram_efficient_loading: false"
        )


def save_whole_model(trainer: Any, folder: str) -> None:
    """`trainer.save_model` in one piece, also where checkpoints are written in FSDP's shards."""
    if trainer.is_fsdp_enabled:
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    trainer.save_model(folder)
