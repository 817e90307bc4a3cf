"""Runs of gradient_grid.py with the model's parameters sharded over two processes, by FSDP2 over gloo.

Run by test_fsdp.py under `torch.distributed.run`: `python fsdp_runs.py OUTPUT.pt`.
"""

import os
import sys
import tempfile
from pathlib import Path

import torch
from accelerate import DistributedType
from accelerate.utils import FullyShardedDataParallelPlugin, broadcast_object_list
from torch.distributed.fsdp import FSDPModule

import gradient_grid
from conftest import small_qwen
from gradient_grid import CASES, rows, trainer_for
from klball import RobustSFTTrainer
from klball.evaluation.models import load_model

GRADIENT_CASES = {  # name: case, tied embeddings
    "nll-ball": ("nll-ball-sample", True),
    "nll-certainty": ("nll-certainty-sample", True),
    "nll-certainty-untied": ("nll-certainty-sample", False),
    "nll-certainty-exact": ("nll-certainty-sample-exact", True),
    "psft-ball": ("psft-ball-sample", True),
    "psft-certainty-untied": ("psft-certainty-sample", False),
    "psft-certainty-lora": ("psft-certainty-token-lora", True),
}
RESUMED = CASES["psft-certainty-sample"]
SAVING = dict(save_strategy="steps", save_steps=2, optim="adamw_torch", learning_rate=0.01, max_grad_norm=1.0)


class Sharded(RobustSFTTrainer):
    """Accelerate leaves FSDP out on CPU, whatever it is asked for: here it is made to use it."""

    state_dict_type = "FULL_STATE_DICT"

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        state = self.accelerator.state
        state.distributed_type = DistributedType.FSDP
        state.fsdp_plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2,
            auto_wrap_policy="transformer_based_wrap",
            reshard_after_forward=True,
            cpu_ram_efficient_loading=False,
            state_dict_type=self.state_dict_type,
        )
        if state.mixed_precision != "no":
            state.fsdp_plugin.set_mixed_precision(state.mixed_precision)
        self.is_fsdp_enabled = True


class ShardedCheckpoints(Sharded):
    state_dict_type = "SHARDED_STATE_DICT"


def model(tied: bool):
    return small_qwen(len(load_model("klball/tiny")[1]), tie_word_embeddings=tied)


def gradients(case: str, tied: bool, trainer=RobustSFTTrainer, arrangement: str = "8x1") -> dict:
    with tempfile.TemporaryDirectory() as folder:
        run, recorder = trainer_for(CASES[case], arrangement, folder, model(tied), trainer)
        run.train()
        metrics = run.evaluate(run.samples)
    if trainer is not RobustSFTTrainer:
        assert isinstance(run.model, FSDPModule)
        assert run._forward.fused
    return {"steps": recorder.steps, "evaluation": metrics, "history": run.accountant.history}


def resumed(trainer, arrangement: str, folder: str) -> dict:
    """Gradients of a run, and of its last step again from the checkpoint before; the saved model."""
    whole, recorder = trainer_for(RESUMED, arrangement, folder, model(True), trainer, **SAVING)
    whole.train()
    again, more = trainer_for(RESUMED, arrangement, folder, model(True), trainer, **SAVING)
    again.train(resume_from_checkpoint=str(Path(folder) / "checkpoint-2"))
    return {"steps": recorder.steps, "again": more.steps, "ledger": again.accountant.scores()[0]}


def log_probs_under_bf16() -> torch.dtype:
    with tempfile.TemporaryDirectory() as folder:
        run, _ = trainer_for(CASES["nll-ball-sample"], "two processes", folder, None, Sharded, bf16=True)
        run.train()
        batch = run._prepare_inputs(run.data_collator([run.samples[0]]))
        return run._forward(run.model, batch).log_probs.dtype


def shared_folder() -> str:
    folder = [tempfile.mkdtemp() if os.environ["RANK"] == "0" else None]
    return broadcast_object_list(folder)[0]


if __name__ == "__main__":
    torch.set_num_threads(1)
    results: dict = {
        name: gradients(*case, Sharded, "two processes") for name, case in GRADIENT_CASES.items()
    }
    if "--checkpoints" in sys.argv:
        for trainer in (Sharded, ShardedCheckpoints):
            results[trainer.state_dict_type] = resumed(trainer, "two processes", shared_folder())
    results["bf16"] = log_probs_under_bf16()
    if os.environ["RANK"] == "0":
        torch.save(results, sys.argv[1])
