"""Trains the same tiny preference runs in many arrangements and records every optimizer step's gradient.

Run by test_preference_invariance.py in one process, and in two by `launch.py`, once for all cases:
`preference_grid.py OUTPUT.pt CASE…`.
"""

import os
import sys
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import Qwen3ForSequenceClassification

from conftest import small_qwen
from gradient_grid import Gradients, quiet, tokenizer
from klball import (
    CVaR,
    Empirical,
    GDPOConfig,
    GDPOTrainer,
    KLBall,
    RobustDPOConfig,
    RobustDPOTrainer,
    RobustRewardConfig,
    RobustRewardTrainer,
)

SETS = {
    "none": dict(ambiguity=Empirical()),
    "ball": dict(ambiguity=KLBall(0.3)),
    "groups": dict(ambiguity=KLBall(0.2), group_column="source"),
    "cvar": dict(ambiguity=CVaR(0.6)),
}
CASES = {
    f"{family}-{name}": dict(family=family, **adversary)
    for family in ("dpo", "reward", "gdpo")
    for name, adversary in SETS.items()
}
for loss in ("sigmoid_norm", "hinge", "ipo", "robust", "apo_zero", "apo_down"):
    more = dict(label_smoothing=0.2) if loss == "robust" else {}
    CASES[f"dpo-ball-{loss}"] = dict(family="dpo", ambiguity=KLBall(0.3), loss_type=loss, **more)
CASES["dpo-optimistic"] = dict(family="dpo", ambiguity=KLBall(0.3, direction="optimistic"))
CASES["dpo-precomputed"] = dict(family="dpo", ambiguity=KLBall(0.3), precompute_ref_log_probs=True)
CASES["dpo-lora"] = dict(family="dpo", ambiguity=KLBall(0.3), lora=True, learning_rate=0.001)
CASES["dpo-lora-groups"] = dict(CASES["dpo-groups"], lora=True, learning_rate=0.001)
CASES["dpo-lora-cvar"] = dict(CASES["dpo-cvar"], lora=True, learning_rate=0.001)
CASES["dpo-own-precomputed"] = dict(CASES["dpo-precomputed"], ambiguity=KLBall(0.05), own_start=True)
CASES["reward-lora"] = dict(family="reward", ambiguity=KLBall(0.3), lora=True, learning_rate=0.001)
CASES["reward-centred"] = dict(family="reward", ambiguity=KLBall(0.3), center_rewards_coefficient=0.1)
CASES["gdpo-question"] = dict(family="gdpo", ambiguity=KLBall(0.3), over="question")
CASES["gdpo-lora"] = dict(family="gdpo", ambiguity=KLBall(0.3), lora=True, learning_rate=0.0001)
CASES["dpo-dr-dpo"] = dict(family="dpo", comparator="dr-dpo", comparator_strength=0.5, epsilon=0.0)
CASES["dpo-kldpo"] = dict(family="dpo", comparator="kldpo", comparator_strength=2.0, epsilon=0.0)
CASES["dpo-group-eg"] = dict(
    family="dpo", comparator="group-eg", comparator_strength=0.5, epsilon=0.0, group_column="source"
)
CASES["reward-trim"] = dict(family="reward", comparator="trim", comparator_strength=0.15, epsilon=0.3)
CASES["dpo-own-trim"] = dict(CASES["reward-trim"], family="dpo", lora=True, learning_rate=0.001)

FAST = {"dpo-none", "dpo-ball", "dpo-groups", "dpo-cvar", "dpo-precomputed", "dpo-lora", "dpo-group-eg"}
FAST |= {"dpo-own-precomputed", "reward-ball", "gdpo-ball"}

ARRANGEMENTS = {  # micro-batch, accumulation, more
    "8x1": (8, 1, {}),
    "1x8": (1, 8, {}),
    "4x2 padded and checkpointed": (4, 2, {"pad_to_multiple_of": 64, "gradient_checkpointing": True}),
    "two processes": (2, 2, {}),
}
TWO_PROCESSES = "two processes"
NUM_ROWS = 22  # not divisible by 8: the last step is short, and with two processes pairs repeat
WORDS = [
    "read",
    "write",
    "open",
    "close",
    "list",
    "file",
    "path",
    "name",
    "value",
    "error",
    "key",
    "index",
    "of",
    "the",
    "a",
    "to",
]
BELIEFS = ("yes", "no", "it depends")


def rows(family: str = "dpo") -> Dataset:
    generator = torch.Generator().manual_seed(0)

    def text(low, high):
        count = int(torch.randint(low, high, (1,), generator=generator))
        return " ".join(WORDS[i] for i in torch.randint(len(WORDS), (count,), generator=generator).tolist())

    def row(i):
        pair = {"prompt": text(2, 6) + "\n", "chosen": text(1, 12), "rejected": text(1, 12)}
        pair["source"] = ("wiki", "forum", "wiki", "notes")[i % 4]
        if family != "gdpo":
            return pair
        shares = torch.rand(3, generator=generator, dtype=torch.float64)
        return {
            **pair,
            "beliefs": list(BELIEFS)[: 3 - i % 2],
            "p_star": (shares / shares.sum()).tolist() if i % 2 == 0 else [0.25, 0.75],
            "belief": BELIEFS[i % 2],
        }

    return Dataset.from_list([row(i) for i in range(NUM_ROWS)])


def reward_model(seed: int = 0) -> Qwen3ForSequenceClassification:
    causal = small_qwen(len(tokenizer()), seed)
    causal.config.num_labels = 1
    model = Qwen3ForSequenceClassification(causal.config).eval()
    model.model.load_state_dict(causal.model.state_dict())
    return model


FAMILIES = {
    "dpo": (RobustDPOTrainer, RobustDPOConfig),
    "reward": (RobustRewardTrainer, RobustRewardConfig),
    "gdpo": (GDPOTrainer, GDPOConfig),
}


def trainer_for(case: dict, arrangement: str, folder: str, model=None, data=None, eval_dataset=None, **more):
    """A trainer and what records its gradients; its reference is another model, or its own start."""
    case = dict(case)
    micro, accumulation, extra = ARRANGEMENTS[arrangement]
    family, ambiguity = case.pop("family"), case.pop("ambiguity", None)
    trainer, config = FAMILIES[family]
    settings = quiet(folder, per_device_train_batch_size=micro, gradient_accumulation_steps=accumulation)
    settings["learning_rate"] = 0.003  # at .05 float32 noise grows from step to step
    if family != "reward":
        settings["beta"] = 0.5
    kwargs = {}
    if case.pop("lora", False):
        kind = {"reward": "SEQ_CLS"}.get(family, "CAUSAL_LM")
        target = ["q_proj", "v_proj", "up_proj", "down_proj"]
        kwargs["peft_config"] = LoraConfig(
            r=4, lora_alpha=32, target_modules=target, lora_dropout=0.0, task_type=kind
        )
    elif case.pop("own_start", False):
        if not {**case, **more}.get("precompute_ref_log_probs"):
            model = tempfile.mkdtemp(dir=folder)  # TRL loads the reference by the model's name
            small_qwen(len(tokenizer())).save_pretrained(model)
    elif family != "reward":
        kwargs["ref_model"] = small_qwen(len(tokenizer()), seed=1)
    if model is None:
        model = reward_model() if family == "reward" else small_qwen(len(tokenizer()))
    return trainer(
        model,
        args=config(**{**settings, **extra, **case, **more}),
        train_dataset=rows(family) if data is None else data,
        eval_dataset=eval_dataset,
        processing_class=tokenizer(),
        ambiguity=ambiguity,
        callbacks=[recorder := Gradients()],
        **kwargs,
    ), recorder


def gradients(case: dict, arrangement: str, **more) -> list[torch.Tensor]:
    with tempfile.TemporaryDirectory() as folder:
        trainer, recorder = trainer_for(case, arrangement, folder, **more)
        trainer.train()
    return recorder.steps


if __name__ == "__main__":
    torch.set_num_threads(1)
    data = Dataset.load_from_disk(Path(sys.argv[1]).parent / "rows")  # for what processes share on disk
    results = {
        name: gradients(CASES[name], TWO_PROCESSES, **({"data": data} if "precomputed" in name else {}))
        for name in sys.argv[2:]
    }
    if int(os.environ.get("RANK", "0")) == 0:
        torch.save(results, sys.argv[1])
