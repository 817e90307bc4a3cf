"""Gradients of toy runs by enumeration, in one process or launched in two: `rl_processes.py OUTPUT.pt`.

Groups of sixteen completions lie on both processes.
"""

import sys
import tempfile

import torch

from toy_policy import toy_trainer

CASES = {
    "prompts": dict(radius=0.3),
    "groups": dict(radius=0.2, over="group", group_column="kind"),
    "critic": dict(radius=0.3, critic=True, critic_learning_rate=0.05),
    "cut": dict(radius=0.3, gradient_accumulation_steps=2, beta=0.0, entropy_coef=0.0),
}


def gradients(folder, processes: int):
    """Case → (the gradient of every step, history)."""
    found = {}
    for name, case in CASES.items():
        batch = 64 // case.get("gradient_accumulation_steps", 1) // processes
        trainer, recorder = toy_trainer(folder, max_steps=3, per_device_train_batch_size=batch, **case)
        trainer.train()
        found[name] = (recorder.steps, trainer.accountant.history)
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    result = gradients(tempfile.mkdtemp(), 2)
    if torch.distributed.get_rank() == 0:
        torch.save(result, sys.argv[1])
