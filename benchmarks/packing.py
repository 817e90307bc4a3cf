"""Answer tokens a second of packed, padding-free and padded training, klball's trainer and TRL's own."""

import argparse
import gc
import logging
import tempfile
import time

import numpy as np
from datasets import Dataset
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

from klball import KLBall, RobustSFTConfig, RobustSFTTrainer
from klball.cli import prepare_process
from klball.data.rows import encode, load_rows
from klball.models.loading import load_model
from table import Row, row, table

MICRO_BATCH, ACCUMULATION = 4, 4  # samples; a pack holds about as many tokens as a micro-batch
ARRANGEMENTS = {
    "padded": {},
    "padded, batches of like lengths": {"train_sampling_strategy": "group_by_length"},
    "padding-free": {"padding_free": True, "max_length": None},
    "packed": {"packing": True, "per_device_train_batch_size": 1},
}
BALL, STOCK = "KLBall(.05)", "stock"
CASES = {  # data of uneven lengths, and of even ones
    "stdlib-docs": [*((BALL, name) for name in ARRANGEMENTS), (STOCK, "padded"), (STOCK, "packed")],
    "word-problems": [(BALL, "padded"), (BALL, "packed")],
}


class EpochClock(TrainerCallback):
    """Seconds of one epoch of steps: neither data preparation nor the first scoring of the ledger."""

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.began = time.perf_counter()

    def on_epoch_end(self, args, state, control, **kwargs):
        self.seconds = time.perf_counter() - self.began


def epoch_seconds(trainer_name: str, arrangement: str, rows: Dataset, tokenizer, seed: int) -> float:
    """Every case trains on the same samples once, so times compare like tokens a second."""
    tokens = MICRO_BATCH * sum(map(len, rows["input_ids"])) // len(rows)
    settings = dict(per_device_train_batch_size=MICRO_BATCH, gradient_accumulation_steps=ACCUMULATION)
    settings |= dict(max_length=max(tokens, *map(len, rows["input_ids"])))
    settings |= ARRANGEMENTS[arrangement]
    settings |= dict(num_train_epochs=1, learning_rate=1e-3, bf16=False, gradient_checkpointing=False)
    settings |= dict(report_to=[], save_strategy="no", logging_steps=1_000, disable_tqdm=True, seed=seed)
    clock, model = EpochClock(), load_model("klball/tiny")[0]
    common = dict(train_dataset=rows, processing_class=tokenizer, callbacks=[clock])
    with tempfile.TemporaryDirectory() as folder:
        if trainer_name == "stock":
            SFTTrainer(model, SFTConfig(folder, **settings), **common).train()
        else:
            config = RobustSFTConfig(folder, rescore_steps=0, **settings)
            RobustSFTTrainer(model, config, ambiguity=KLBall(0.05), **common).train()
    gc.collect()
    return clock.seconds


def measure(quick: bool) -> list[Row]:
    """Throughput over that of the same trainer with padding; and how much of a padded batch is tokens."""
    logging.getLogger("klball").setLevel(logging.ERROR)
    repeats, count = (1, 64) if quick else (3, 80)
    tokenizer = load_model("klball/tiny")[1]
    measured = []
    for name, cases in CASES.items():
        rows = encode(load_rows(name, "train").select(range(count)), tokenizer)
        rows = rows.select_columns(["input_ids", "labels"])  # so that no case tokenises again
        measured.append(row("packing", name, "share of a padded batch that is tokens", filled(rows)))
        seconds = {case: [] for case in cases}
        for repeat in range(repeats):
            for case in cases:
                seconds[case].append(epoch_seconds(*case, rows, tokenizer, repeat))
        for trainer, arrangement in cases:
            if arrangement == "padded":
                continue
            gain = np.array(seconds[trainer, "padded"]) / np.array(seconds[trainer, arrangement])
            case = f"{name}, {trainer}, {arrangement}"
            measured.append(row("packing", case, "answer tokens a second, padded = 1", gain))
        if (STOCK, "packed") in cases:
            ratio = np.array(seconds[BALL, "packed"]) / np.array(seconds[STOCK, "packed"])
            measured.append(
                row("packing", f"{name}, {BALL}, packed", "time, stock packed = 1", ratio, "≤ 1.03")
            )
    return measured


def filled(rows: Dataset) -> list[float]:
    """The share in random batches, over nine shuffles."""
    lengths = np.array([len(ids) for ids in rows["input_ids"]])
    shuffled = (np.random.default_rng(seed).permutation(lengths) for seed in range(9))
    batches = [order.reshape(-1, MICRO_BATCH) for order in shuffled]
    return [float(batch.mean() / batch.max(1).mean()) for batch in batches]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    print(table(measure(parser.parse_args().quick)))


if __name__ == "__main__":
    prepare_process()
    main()
