"""Runs of gradient_grid.py with the model's parameters sharded over two processes, by FSDP2 over gloo.

Run by test_fsdp.py in two by `launch.py`: `fsdp_runs.py OUTPUT.pt`.
"""

import os
import sys
import tempfile
from pathlib import Path

import torch
from accelerate import DistributedType, PartialState
from accelerate.utils import FullyShardedDataParallelPlugin
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

from conftest import small_qwen
from gradient_grid import CASES, trainer_for
from klball import RobustSFTTrainer
from klball.models.loading import load_model
from klball.training.sharding import save_whole_model

RUNS = {  # name: case, tied embeddings, more settings
    "nll-ball": ("nll-ball-sample", True, {}),
    "nll-certainty": ("nll-certainty-sample", False, {}),
    "psft-ball": ("psft-ball-sample", False, {}),
    "psft-certainty": ("psft-certainty-sample", True, {}),
    "nll-certainty-exact": ("nll-certainty-sample-exact", True, {"gradient_checkpointing": True}),
    "psft-certainty-lora": ("psft-certainty-token-lora", True, {}),
    "nll-certainty-packed": ("nll-certainty-sample", True, {"packing": True, "max_length": 48}),
}
SAVING = dict(save_strategy="steps", save_steps=2, optim="adamw_torch", learning_rate=0.01, max_grad_norm=1.0)


class Sharded(RobustSFTTrainer):
    """Accelerate 1.15 leaves FSDP out on CPU, whatever it is asked for: here it has to use it."""

    state_dict_type = "FULL_STATE_DICT"
    loads_once = False

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        state = self.accelerator.state
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP  # each new state copies it
        state.distributed_type = DistributedType.FSDP
        state.fsdp_plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2,
            auto_wrap_policy="transformer_based_wrap",
            reshard_after_forward=True,
            state_dict_type=self.state_dict_type,
            cpu_ram_efficient_loading=self.loads_once,
        )
        if state.mixed_precision != "no":
            state.fsdp_plugin.set_mixed_precision(state.mixed_precision)
        self.is_fsdp_enabled = True


class ShardedCheckpoints(Sharded):
    state_dict_type = "SHARDED_STATE_DICT"


class LoadedOnce(Sharded):
    loads_once = True


def model(tied: bool) -> PreTrainedModel:
    return small_qwen(len(load_model("klball/tiny")[1]), tie_word_embeddings=tied)


def loaded_once() -> str:
    """What is said where only the first process read the weights."""
    network = model(tied=True)
    if os.environ["RANK"] != "0":
        without_weights(network)
    with tempfile.TemporaryDirectory() as folder:
        run, _ = trainer_for(CASES["nll-none-sample"], "two processes", folder, network, LoadedOnce)
        try:
            run.train()
        except ValueError as error:
            return str(error)
    return ""


def without_weights(network: PreTrainedModel) -> None:
    for module in network.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, torch.nn.Parameter(parameter.to("meta")))
    network.tie_weights()


def trained(name: str, sharded: bool) -> dict:
    """Every step's gradient, the history, and an evaluation at the end."""
    case, tied, more = RUNS[name]
    network, kind = model(tied), Sharded if sharded else RobustSFTTrainer
    with tempfile.TemporaryDirectory() as folder:
        arrangement = "two processes" if sharded else "8x1"
        run, recorder = trainer_for(CASES[case], arrangement, folder, network, kind, **more)
        run.train()
        metrics = run.evaluate(run.samples)
    assert run._forward.fused
    assert isinstance(run.model, FSDPModule) == sharded
    return {"steps": recorder.steps, "evaluation": metrics, "history": run.accountant.history}


def resumed(kind: type[RobustSFTTrainer], arrangement: str, folder: Path) -> dict:
    """Gradients of a run, and of its last step again from the checkpoint before; the model is saved."""
    case = CASES["psft-certainty-sample"]  # the checkpoint is in the middle of a window
    run, recorder = trainer_for(case, arrangement, str(folder), model(True), kind, **SAVING)
    run.train()
    again, more = trainer_for(case, arrangement, str(folder), model(True), kind, **SAVING)
    again.train(resume_from_checkpoint=str(folder / "checkpoint-2"))
    save_whole_model(again, str(folder))
    return {"steps": recorder.steps, "again": more.steps}


def log_probs_under_bf16() -> torch.dtype:
    with tempfile.TemporaryDirectory() as folder:
        run, _ = trainer_for(
            CASES["nll-ball-sample"], "two processes", folder, None, Sharded, bf16=True, max_steps=1
        )
        run.train()
        batch = run._prepare_inputs(run.data_collator([run.samples[0]]))
        return run._forward(run.model, batch).log_probs.dtype


if __name__ == "__main__":
    torch.set_num_threads(1)
    output = Path(sys.argv[1])
    results: dict = {name: trained(name, sharded=True) for name in RUNS}
    for kind in (Sharded, ShardedCheckpoints):
        results[kind.__name__] = resumed(kind, "two processes", output.parent / kind.__name__)
    results["bf16"] = log_probs_under_bf16()
    results["loaded once"] = loaded_once()
    if os.environ["RANK"] == "0":
        torch.save(results, output)
