"""A real chat model: a step of every family against stock TRL.

`python benchmarks/chat_model.py FOLDER`, a model of Transformers with a chat template. On an accelerator also
peak memory and how often a step makes the host wait.
"""

import argparse
import warnings
from collections.abc import Sequence
from tempfile import mkdtemp
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import PrinterCallback, Trainer, TrainerCallback
from trl import (
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    RewardConfig,
    RewardTrainer,
    SFTConfig,
    SFTTrainer,
)

from accelerator import peak_memory
from klball import (
    RobustDPOConfig,
    RobustDPOTrainer,
    RobustGRPOConfig,
    RobustGRPOTrainer,
    RobustRewardConfig,
    RobustRewardTrainer,
    RobustSFTConfig,
    RobustSFTTrainer,
)
from klball.cli import prepare_process
from klball.data.rows import load_rows, to_preferences
from klball.models.loading import REWARD, load_model
from table import Row, row, table
from turns import in_turns, paired

BENCHMARK = "chat_model"
BATCH, ROWS, NEW_TOKENS, GENERATIONS = 8, 64, 32, 8
OURS, STOCK = "klball", "stock TRL"
FAMILIES: dict[str, tuple[Any, Any, Any, Any, dict[str, Any], str]] = {
    "sft": (SFTTrainer, SFTConfig, RobustSFTTrainer, RobustSFTConfig, {}, "≤ 1.03"),
    "dpo": (DPOTrainer, DPOConfig, RobustDPOTrainer, RobustDPOConfig, {}, "≤ 1.03"),
    "reward": (RewardTrainer, RewardConfig, RobustRewardTrainer, RobustRewardConfig, {}, "≤ 1.03"),
    "grpo": (
        *(GRPOTrainer, GRPOConfig, RobustGRPOTrainer, RobustGRPOConfig),
        dict(num_generations=GENERATIONS, max_completion_length=NEW_TOKENS),
        "≤ 1.02",
    ),
}


def even_lengths(completions: Sequence[Any], **columns: Any) -> list[float]:
    """A reward that half of all answers earn."""
    return [float(len(answer[0]["content"]) % 2) for answer in completions]


def rows_of(family: str) -> Dataset:
    """Chats, pairs or prompts from the embedded data."""
    if family in ("dpo", "reward"):
        return load_rows("doc-preferences", "train", form=to_preferences).select(range(ROWS))
    rows = load_rows("stdlib-docs", "train").filter(lambda r: len(r["question"] + r["answer"]) < 600)
    questions = [{"role": "user", "content": text} for text in rows["question"][:ROWS]]
    if family == "grpo":
        return Dataset.from_dict({"prompt": [[question] for question in questions]})
    answers = [{"role": "assistant", "content": text} for text in rows["answer"][:ROWS]]
    return Dataset.from_dict({"messages": [[q, a] for q, a in zip(questions, answers, strict=True)]})


def build(family: str, ours: bool, folder: str, device: str, max_steps: int = 100_000) -> Trainer:
    """Stock or robust, LoRA of rank 16, not yet started."""
    stock, stock_config, robust, robust_config, more, _ = FAMILIES[family]
    if ours:
        more = {**more, **({"radius": 0.05} if family == "grpo" else {"epsilon": 0.05, "rescore_steps": 0})}
    settings: dict[str, Any] = dict(
        output_dir=mkdtemp(prefix="klball-bench-"),
        per_device_train_batch_size=BATCH,
        max_steps=max_steps,
        bf16=device == "cuda",
        use_cpu=device == "cpu",
        gradient_checkpointing=False,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        **more,
    )
    if family != "grpo":
        settings["max_length"] = 512
    dtype = "bfloat16" if device == "cuda" else "float32"
    purpose: dict[str, Any] = {"purpose": REWARD, "trainable": True} if family == "reward" else {}
    model, tokenizer = load_model(folder, dtype, **purpose)
    task = "SEQ_CLS" if family == "reward" else "CAUSAL_LM"
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type=task)
    make, config = (robust, robust_config) if ours else (stock, stock_config)
    rewards = {"reward_funcs": even_lengths} if family == "grpo" else {}
    trainer = make(
        *(model,),
        args=config(**settings),
        train_dataset=rows_of(family),
        processing_class=tokenizer,
        peft_config=lora,
        **rewards,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


class Waits(TrainerCallback):
    """Counts what CUDA's debug mode reports as waits of the host, from the third step on."""

    def __init__(self) -> None:
        self.counts: list[int] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._caught = warnings.catch_warnings(record=True)
        self._found = self._caught.__enter__()
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        torch.cuda.set_sync_debug_mode("default")
        if state.global_step > 2:
            self.counts.append(sum("synchroniz" in str(w.message) for w in self._found or ()))
        self._caught.__exit__(None, None, None)


def training(family: str, folder: str, device: str, seconds: float) -> list[Row]:
    """Paired ratio of step times; on an accelerator also peak memory and waits of the host."""
    target = FAMILIES[family][-1]
    trainers = [build(family, ours, folder, device) for ours in (False, True)]
    times = in_turns(trainers, seconds, least=6)
    case = f"{family}, batch {BATCH}"
    rows = [
        paired(BENCHMARK, case, "step time / stock (95 % interval)", *_columns(times, 0), target),
        paired(BENCHMARK, case, "step's CPU time / stock (95 % interval)", *_columns(times, 1)),
        row(BENCHMARK, f"{case}, {STOCK}", "seconds a step", list(times[:, 0, 0])),
    ]
    del trainers
    if device == "cuda":
        for ours in (False, True):
            name = OURS if ours else STOCK
            waits = Waits()
            trainer = build(family, ours, folder, device, max_steps=6)
            trainer.add_callback(waits)
            rows.append(row(BENCHMARK, f"{case}, {name}", "peak memory, GiB", [peak_memory(trainer.train)]))
            rows.append(row(BENCHMARK, f"{case}, {name}", "waits of the host a step", waits.counts))
            del trainer
    return rows


def _columns(times: np.ndarray, kind: int) -> tuple[np.ndarray, np.ndarray]:
    return times[:, 1, kind], times[:, 0, kind]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", help="Of the model.")
    parser.add_argument("--seconds", type=float, default=60, help="Of each family.")
    parser.add_argument("--families", nargs="*", choices=[*FAMILIES], default=[*FAMILIES])
    options = parser.parse_args()
    prepare_process()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for family in options.families:  # each is printed when it is done: all of them take long on a CPU
        print(table(training(family, options.folder, device, options.seconds)), flush=True)


if __name__ == "__main__":
    main()
