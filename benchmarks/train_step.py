"""Time and peak memory of a training step against stock SFTTrainer: same model, data and batches."""

import argparse
import gc
import resource
import time

import numpy as np
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

from klball import RobustSFTConfig, RobustSFTTrainer
from klball.cli import prepare_process
from klball.data.rows import load_rows, to_trl_format
from klball.evaluation.models import load_model

STEPS, BATCH = 12, 16


class Clock(TrainerCallback):
    """Seconds of every optimizer step."""

    def __init__(self):
        self.seconds: list[float] = []

    def on_step_begin(self, args, state, control, **kwargs):
        self.began = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        self.seconds.append(time.perf_counter() - self.began)


def settings(seed: int) -> dict:
    return dict(
        output_dir="/tmp/klball-bench",
        per_device_train_batch_size=BATCH,
        max_steps=STEPS,
        learning_rate=1e-3,
        bf16=False,
        gradient_checkpointing=False,
        report_to=[],
        save_strategy="no",
        logging_steps=1_000,
        disable_tqdm=True,
        seed=seed,
    )


def build(kind: str, seed: int):
    model, tokenizer = load_model("klball/tiny")
    rows = to_trl_format(load_rows("stdlib-docs", "train").select(range(512)), conversational=True)
    clock = Clock()
    common = dict(train_dataset=rows, processing_class=tokenizer, callbacks=[clock])
    if kind == "stock":
        return SFTTrainer(model, SFTConfig(**settings(seed)), **common), clock
    more = dict(gamma=4.9) if kind == "certainty" else {}
    config = RobustSFTConfig(epsilon=0.05, rescore_steps=0, **more, **settings(seed))
    return RobustSFTTrainer(model, config, **common), clock


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    kinds = ("stock", "ball", "certainty")
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    memory = {}
    scoring = []
    for seed in range(repeats):
        for kind in kinds:
            trainer, clock = build(kind, seed)
            trainer.train()
            seconds[kind].append(float(np.median(clock.seconds[2:])))
            if kind == "ball":
                scoring.append(trainer.scoring_seconds["initial"] / seconds["stock"][-1])
            memory.setdefault(kind, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
            del trainer
            gc.collect()
    print(f"{repeats} interleaved runs, batch {BATCH}, klball/tiny, full fine-tuning\n")
    print("| trainer | step time, stock = 1: median (range) |")
    print("|---|---|")
    for kind, name in zip(
        kinds, ("stock SFTTrainer", "KLBall(.05), live", "CertaintyKLBall(.05, 4.9), live"), strict=True
    ):
        ratios = np.array(seconds[kind]) / np.array(seconds["stock"])
        print(f"| {name} | {np.median(ratios):.3f} ({ratios.min():.3f} – {ratios.max():.3f}) |")
    print(
        f"\ninitial scoring (and each re-scoring) of 512 samples: {np.median(scoring):.1f} stock steps, "
        f"against {512 // BATCH} steps of an epoch"
    )
    print(
        "peak memory of the process after the first run of each, GiB (it can only grow): "
        + ", ".join(f"{kind} {memory[kind]:.2f}" for kind in kinds)
    )


if __name__ == "__main__":
    prepare_process()
    main()
