"""Trains the same tiny run in many arrangements and records every optimizer step's gradient.

Run by test_invariance.py in one process, and in two by `launch.py`, once for the whole grid:
`gradient_grid.py OUTPUT.pt ARRANGEMENT…`.
"""

import itertools
import os
import sys
import tempfile
from functools import cache

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from datasets import Dataset
from peft import LoraConfig
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from conftest import small_qwen
from guide import ReverseKLBall
from klball import (
    CertaintyKLBall,
    ChiSquareBall,
    CVaR,
    Empirical,
    KLBall,
    RobustSFTConfig,
    RobustSFTTrainer,
    Trimmed,
)
from klball.models.loading import load_model

SETS = {"none": Empirical(), "ball": KLBall(0.5), "certainty": CertaintyKLBall(0.5, 3.2)}
CASES = {
    f"{objective}-{name}-sample": dict(objective=objective, ambiguity=ambiguity)
    for objective, (name, ambiguity) in itertools.product(
        ("nll", "dft", "dft-sequence", "psft"), SETS.items()
    )
} | {
    f"nll-{name}-{normalization}": dict(objective="nll", ambiguity=SETS[name], normalization=normalization)
    for name, normalization in itertools.product(SETS, ("token", "sum"))
}
for name in SETS:  # three steps are one window: the second and third have old log-probabilities
    CASES[f"psft-{name}-sample"]["psft_refresh"] = 3
for name in SETS:  # gradients of sums are an order larger
    CASES[f"nll-{name}-sum"]["learning_rate"] = 0.003
CASES["nll-ball-sample-lora"] = dict(objective="nll", ambiguity=KLBall(0.5), lora=True)
CASES["nll-ball-sample-lora"]["learning_rate"] = 0.003  # .05 trebles float32 noise at every step
CASES["dft-ball-sample-entropy"] = dict(objective="dft", ambiguity=KLBall(0.5), entropy_coef=0.1)
CASES["psft-certainty-token-lora"] = dict(
    objective="psft", ambiguity=SETS["certainty"], normalization="token", lora=True, psft_refresh=2
)
# Adam's first steps magnify rounding in LoRA's zeros
CASES["psft-certainty-token-lora"]["learning_rate"] = 0.01
CASES["nll-certainty-sample-exact"] = dict(
    objective="nll", ambiguity=CertaintyKLBall(0.5, 3.2), certainty_gradient=True, gamma=3.2
)
CASES["nll-capped-sample"] = dict(objective="nll", ambiguity=KLBall(0.5, max_weight=2))
for name, ambiguity in {
    "optimistic": KLBall(0.5, direction="optimistic"),
    "cvar": CVaR(0.6),
    "chi2": ChiSquareBall(0.5),
    "chi2-capped": ChiSquareBall(0.5, max_weight=1.5),
    "trimmed": Trimmed(KLBall(0.3), 0.2),
    "guide": ReverseKLBall(0.3),  # one that klball does not ship
}.items():
    CASES[f"nll-{name}-token"] = dict(objective="nll", ambiguity=ambiguity, normalization="token")
for name, ambiguity in {"groups": KLBall(0.3), "cvar-groups": CVaR(0.5)}.items():
    for normalization in ("sample", "token"):
        CASES[f"nll-{name}-{normalization}"] = dict(
            objective="nll", ambiguity=ambiguity, normalization=normalization, group_column="source"
        )
CASES["nll-warmup-sample"] = dict(objective="nll", ambiguity=KLBall(0.5), epsilon_warmup=0.9)

PACK = 32  # tokens; holds two rows of `paired_rows`
ARRANGEMENTS = {  # micro-batch, accumulation, more
    "8x1": (8, 1, {}),
    "4x2": (4, 2, {}),
    "1x8": (1, 8, {}),
    "4x1": (4, 1, {}),
    "padded": (8, 1, {"pad_to_multiple_of": 64}),
    "checkpointed": (4, 2, {"gradient_checkpointing": True}),
    "padding-free": (4, 2, {"padding_free": True, "max_length": None, "pad_to_multiple_of": 48}),
    "packed": (2, 2, {"packing": True, "max_length": PACK}),
    "two processes": (2, 2, {}),
    "packed, two processes": (1, 2, {"packing": True, "max_length": PACK}),
}
TWO_PROCESSES = ("two processes", "packed, two processes")
SOURCES = ("wiki", "forum", "wiki", "notes")
NUM_ROWS = 22  # not divisible by 8: the last step is short, and with two processes rows or packs repeat


def rows() -> Dataset:
    generator = torch.Generator().manual_seed(0)
    words = ["read", "write", "open", "close", "list", "file", "path", "name", "value"]
    words += ["error", "key", "index", "of", "the", "a", "to"]

    def text(low, high):
        count = int(torch.randint(low, high, (1,), generator=generator))
        return " ".join(words[i] for i in torch.randint(len(words), (count,), generator=generator).tolist())

    return Dataset.from_list(
        [
            {"prompt": text(2, 6) + "\n", "completion": text(1, 12), "source": SOURCES[i % len(SOURCES)]}
            for i in range(NUM_ROWS)
        ]
    )


def paired_rows() -> Dataset:
    """Token rows whose packs are rows 0 and 1, 2 and 3, …: four packs are the rows of an unpacked step.

    Some have no prompt, so that the first token of a sample is labelled too.
    """
    generator = torch.Generator().manual_seed(0)

    def row(length):
        ids = torch.randint(8, 1_000, (length,), generator=generator).tolist()
        start = max(0, int(torch.randint(-4, length - 1, (1,), generator=generator)))
        return {"input_ids": ids, "labels": [-100] * start + ids[start:], "source": SOURCES[length % 3]}

    longest = range(PACK - 5, PACK // 2, -1)
    return Dataset.from_list([row(n) for long in longest for n in (long, PACK - long)])


@cache
def tokenizer():
    return load_model("klball/tiny")[1]


class Gradients(TrainerCallback):
    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        grads = [_whole(p.grad).flatten().double() for p in model.parameters() if p.grad is not None]
        self.steps.append(torch.cat(grads).clone())


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def quiet(folder: str, **more) -> dict:
    """Settings of a short, silent, deterministic run with plain gradient steps."""
    settings = dict(
        output_dir=folder,
        num_train_epochs=1,
        learning_rate=0.05,
        lr_scheduler_type="constant",
        optim="sgd",
        max_grad_norm=0.0,
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        train_sampling_strategy="sequential",
    )
    return {**settings, **more}


def trainer_for(
    case: dict,
    arrangement: str,
    folder: str,
    model=None,
    trainer=RobustSFTTrainer,
    data=None,
    own=None,
    **more,
) -> tuple[RobustSFTTrainer, Gradients]:
    case = dict(case)
    micro, accumulation, extra = ARRANGEMENTS[arrangement]
    objective, ambiguity, lora = case.pop("objective"), case.pop("ambiguity"), case.pop("lora", False)
    if case.get("gamma") is not None:  # certainty_gradient is checked against the configuration
        case |= {"epsilon": ambiguity.epsilon}
        ambiguity = None
    settings = quiet(folder, per_device_train_batch_size=micro, gradient_accumulation_steps=accumulation)
    settings["objective"] = objective
    config = RobustSFTConfig(**{**settings, **extra, **case, **more})
    peft = LoraConfig(
        r=4, lora_alpha=32, target_modules="all-linear", lora_dropout=0.0, task_type="CAUSAL_LM"
    )
    return trainer(
        model or small_qwen(len(tokenizer())),
        config,
        train_dataset=data or rows(),
        processing_class=tokenizer(),
        peft_config=peft if lora else None,
        ambiguity=ambiguity,
        objective=own,
        callbacks=[recorder := Gradients()],
    ), recorder


def gradients(case: dict, arrangement: str) -> list[torch.Tensor]:
    with tempfile.TemporaryDirectory() as folder:
        trainer, recorder = trainer_for(case, arrangement, folder, data=paired_rows())
        trainer.train()
    return recorder.steps


if __name__ == "__main__":
    torch.set_num_threads(1)
    results = {
        arrangement: {name: gradients(case, arrangement) for name, case in CASES.items()}
        for arrangement in sys.argv[2:]
    }
    if int(os.environ.get("RANK", "0")) == 0:
        torch.save(results, sys.argv[1])
