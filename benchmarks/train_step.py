"""Time and peak memory of a training step against stock SFTTrainer: same model, data and batches."""

import argparse
import gc
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

from klball import RobustSFTConfig, RobustSFTTrainer
from klball.cli import prepare_process
from klball.data.rows import load_rows, to_trl_format
from klball.evaluation.models import load_model

STEPS, BATCH = 18, 16  # two whole windows of PSFT beyond the first two steps
KINDS = {  # name → (settings of RobustSFTConfig, what the table says); stock is TRL's own trainer
    "stock": ({}, "stock SFTTrainer"),
    "ball": (dict(epsilon=0.05), "KLBall(.05), live"),
    "certainty": (dict(epsilon=0.05, gamma=4.9), "CertaintyKLBall(.05, 4.9), live"),
    "dft": (dict(epsilon=0.05, objective="dft"), "KLBall(.05), live, DFT"),
    "psft": (dict(epsilon=0.0, objective="psft"), "PSFT, refreshed every 8 steps, ε = 0"),
}


class Clock(TrainerCallback):
    """When every optimizer step ended: what is done before a step begins counts too."""

    def __init__(self):
        self.ends: list[float] = []

    def on_step_end(self, args, state, control, **kwargs):
        self.ends.append(time.perf_counter())


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
    config = RobustSFTConfig(rescore_steps=0, **KINDS[kind][0], **settings(seed))
    return RobustSFTTrainer(model, config, **common), clock


def peak(kind: str) -> float:
    """Peak resident memory, GiB, of a process of its own that trains once; 0 steps for "nothing"."""
    command = [sys.executable, __file__, "--peak", kind]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def print_peak(kind: str) -> None:
    trainer, _ = build("stock" if kind == "nothing" else kind, 0)
    if kind != "nothing":
        trainer.train()
    # ru_maxrss would start from the parent's peak
    status = Path("/proc/self/status").read_text()
    print(int(status.split("VmHWM:")[1].split()[0]) / 2**20)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peak", metavar="KIND", help="only train this once and print the peak memory")
    options = parser.parse_args()
    if options.peak:
        return print_peak(options.peak)
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    scoring = []
    for seed in range(options.repeats):
        for kind in KINDS:
            trainer, clock = build(kind, seed)
            trainer.train()
            # whole windows: PSFT scores seven steps' batches at the first of every eight
            seconds[kind].append(clock.ends[-1] - clock.ends[-17])
            if kind == "ball":
                scoring.append(trainer.scoring_seconds["initial"] / (seconds["stock"][-1] / 16))
            del trainer
            gc.collect()
    base = peak("nothing")
    print(f"{options.repeats} interleaved runs, batch {BATCH}, klball/tiny, full fine-tuning\n")
    print(
        "| trainer | time of 16 steps, stock = 1: median (range) | peak memory, GiB | above an idle trainer |"
    )
    print("|---|---|---|---|")
    for kind, (_, name) in KINDS.items():
        ratios = np.array(seconds[kind]) / np.array(seconds["stock"])
        memory = peak(kind)
        spread = f"{np.median(ratios):.3f} ({ratios.min():.3f} – {ratios.max():.3f})"
        print(f"| {name} | {spread} | {memory:.2f} | {memory - base:.2f} |")
    print(
        f"\ninitial scoring (and each re-scoring) of 512 samples: {np.median(scoring):.1f} stock steps, "
        f"against {512 // BATCH} steps of an epoch"
    )


if __name__ == "__main__":
    prepare_process()
    main()
