"""Qwen3-0.6B's shape with random weights, bf16, on an accelerator: training against stock TRL, and scoring.

Model FLOP utilisation counts 6 FLOPs a token for every weight of a matrix product (the LM head
included) and the attention of all positions to all, over the device's dense bf16 peak, as TRL does.
"""

import argparse
import gc
from functools import partial
from tempfile import mkdtemp
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoTokenizer, PrinterCallback, Qwen3Config, Qwen3ForCausalLM
from trl import SFTConfig, SFTTrainer
from trl.trainer.utils import compute_flops_per_token, get_peak_flops

from klball import RobustSFTConfig, RobustSFTTrainer
from klball.cli import prepare_process
from klball.data.rows import IGNORED
from klball.models.loading import TINY, model_path
from klball.scores.scorer import Scorer, batches_by_length, score_encoded
from table import Row, interleaved, row, table
from turns import in_turns, paired

BENCHMARK = "accelerator"
SHAPE = Qwen3Config(
    vocab_size=151_936,
    hidden_size=1_024,
    intermediate_size=3_072,
    num_hidden_layers=28,
    num_attention_heads=16,
    num_key_value_heads=8,
    head_dim=128,
    max_position_embeddings=40_960,
    tie_word_embeddings=True,
)
BATCHES = {1_024: 8, 4_096: 2}  # sequence length → rows a step
ROWS = 64
OURS, STOCK, NAIVE = "klball", "stock TRL", "naive loop"


def build_rows(length: int, vocabulary: int) -> Dataset:
    """Random tokens; the last quarter of every row is its answer."""
    ids = np.random.default_rng(0).integers(vocabulary, size=(ROWS, length))
    labels = ids.copy()
    labels[:, : length * 3 // 4] = IGNORED
    return Dataset.from_dict({"input_ids": ids.tolist(), "labels": labels.tolist()})


def build_model(config: Qwen3Config, device: str, dtype: torch.dtype) -> Qwen3ForCausalLM:
    """The same random model whenever it is asked for."""
    torch.manual_seed(0)
    return Qwen3ForCausalLM(config).to(device, dtype)


def uneven_rows(length: int, vocabulary: int) -> Dataset:
    """Random tokens in rows of 64 tokens to `length`; the second half of every row is its answer."""
    drawn = np.random.default_rng(0)
    rows = [drawn.integers(vocabulary, size=size) for size in drawn.integers(64, length + 1, size=4 * ROWS)]
    labels = [np.where(np.arange(len(row)) < len(row) // 2, IGNORED, row) for row in rows]
    return Dataset.from_dict({"input_ids": [*map(list, rows)], "labels": [*map(list, labels)]})


def build_trainer(
    name: str, config: Qwen3Config, length: int, device: str, max_steps: int = 100_000, packed: bool = False
) -> SFTTrainer:
    """Stock or robust, bf16 autocast over float32 weights, not yet started."""
    rows = uneven_rows if packed else build_rows
    settings: dict[str, Any] = dict(
        output_dir=mkdtemp(prefix="klball-bench-"),
        per_device_train_batch_size=BATCHES[length],
        max_length=length,
        max_steps=max_steps,
        bf16=True,
        use_cpu=device == "cpu",
        gradient_checkpointing=False,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        packing=packed,
    )
    common: dict[str, Any] = dict(
        train_dataset=rows(length, config.vocab_size),
        processing_class=AutoTokenizer.from_pretrained(model_path(TINY)),
    )
    model = build_model(config, device, torch.float32)
    if name == STOCK:
        trainer = SFTTrainer(model, SFTConfig(**settings), **common)
    else:
        trainer = RobustSFTTrainer(model, RobustSFTConfig(rescore_steps=0, **settings), **common)
    trainer.remove_callback(PrinterCallback)
    return trainer


def training_speed(config: Qwen3Config, length: int, device: str, seconds: float) -> list[Row]:
    """Tokens per second and utilisation of both trainers, and their paired ratio."""
    names = (STOCK, OURS)
    trainers = [build_trainer(name, config, length, device) for name in names]
    times = in_turns(trainers, seconds, least=8)[:, :, 0]
    case, per_step = f"training, {length:,} tokens a row", BATCHES[length] * length
    rows = [paired(BENCHMARK, case, "step time / stock (95 % interval)", times[:, 1], times[:, 0], "≤ 1.03")]
    name_of_device = torch.cuda.get_device_name() if device == "cuda" else device
    peak = get_peak_flops(name_of_device, "bfloat16")
    for k, name in enumerate(names):
        speed = per_step / times[:, k]
        rows.append(row(BENCHMARK, f"{case}, {name}", "tokens per second", list(speed)))
        if peak is not None:
            share = speed * compute_flops_per_token(config, length) / peak
            measure = f"FLOP utilisation, of {name_of_device}'s {peak / 1e12:.0f} TFLOP/s"
            rows.append(row(BENCHMARK, f"{case}, {name}", measure, list(share)))
    return rows


def packed_speed(config: Qwen3Config, length: int, device: str, seconds: float) -> list[Row]:
    """Rows of uneven lengths in packs of `length` tokens: both trainers' steps in turns."""
    trainers = [build_trainer(name, config, length, device, packed=True) for name in (STOCK, OURS)]
    times = in_turns(trainers, seconds, least=8)[:, :, 0]
    case = f"packs of {length:,} tokens"
    return [
        paired(BENCHMARK, case, "step time / stock (95 % interval)", times[:, 1], times[:, 0], "≤ 1.03"),
        row(BENCHMARK, f"{case}, {OURS}", "seconds a step", list(times[:, 1])),
    ]


def training_memory(config: Qwen3Config, length: int, device: str) -> list[Row]:
    """Peak memory of each trainer, alone on the device for four steps."""
    case = f"training, {length:,} tokens a row"
    rows = []
    for name in (STOCK, OURS):
        trainer = build_trainer(name, config, length, device, max_steps=4)
        rows.append(row(BENCHMARK, f"{case}, {name}", "peak memory, GiB", [peak_memory(trainer.train)]))
        del trainer
    return rows


def naive_scores(model: Any, rows: Dataset, batch: int) -> list[float]:
    """Mean log-likelihoods from all logits, as a loop over Hugging Face's forward has them."""
    found = []
    for start in range(0, len(rows), batch):
        columns = rows[start : start + batch]
        ids = _padded(columns["input_ids"], 0).to(model.device)  # on the right, where no token looks
        labels = _padded(columns["labels"], IGNORED).to(model.device)[:, 1:]
        with torch.no_grad():
            log_p = model(input_ids=ids, use_cache=False).logits[:, :-1].float().log_softmax(-1)
        mask = labels != IGNORED
        chosen = log_p.gather(-1, labels.clamp(min=0)[..., None])[..., 0] * mask
        found += (chosen.sum(1) / mask.sum(1)).tolist()
    return found


def _padded(rows: list[list[int]], value: int) -> torch.Tensor:
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value)


def klball_scores(model: Any, rows: Dataset) -> list[float]:
    """The same from the score table's code, in the order of the rows; certainty and entropy come with it."""
    found = np.empty(len(rows))
    scorer = Scorer(model, rows[0]["input_ids"])
    for index, scores in score_encoded(scorer, rows, batches_by_length([len(x) for x in rows["input_ids"]])):
        found[index] = scores["log_likelihood"]
    return list(found)


def scoring(config: Qwen3Config, length: int, device: str, repeats: int) -> list[Row]:
    """Speed and peak memory of the score table's code and of the naive loop, bf16 weights."""
    model = build_model(config, device, torch.bfloat16).eval()
    rows = build_rows(length, config.vocab_size)
    ours, naive = partial(klball_scores, model, rows), partial(naive_scores, model, rows, BATCHES[length])
    case = f"scoring, {length:,} tokens a row"
    error = float(np.abs(np.array(ours()) - np.array(naive())).max())
    times = interleaved([ours, naive], repeats)
    table_rows = [
        row(BENCHMARK, case, "naive time / klball time", list(times[:, 1] / times[:, 0]), "≥ 1"),
        row(BENCHMARK, case, "largest difference of log-likelihoods, nats per token", [error]),
    ]
    for k, (name, score) in enumerate(((OURS, ours), (NAIVE, naive))):
        speeds = list(len(rows) / times[:, k])
        table_rows.append(row(BENCHMARK, f"{case}, {name}", "rows per second", speeds))
        table_rows.append(row(BENCHMARK, f"{case}, {name}", "peak memory, GiB", [peak_memory(score)]))
    return table_rows


def peak_memory(work: Any) -> float:
    """GiB on the device at most while `work` runs, all that was there before included; 0 without one."""
    gc.collect()
    if not torch.cuda.is_available():
        work()
        return 0.0
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    work()
    return torch.cuda.max_memory_allocated() / 2**30


def measure(quick: bool) -> list[Row]:
    prepare_process()
    if not torch.cuda.is_available():
        print("no accelerator here: nothing measured")
        return []
    rows = []
    for length in list(BATCHES)[: 1 if quick else None]:
        rows += training_speed(SHAPE, length, "cuda", seconds=2 if quick else 30)
        rows += training_memory(SHAPE, length, "cuda")
        rows += packed_speed(SHAPE, length, "cuda", seconds=2 if quick else 30)
        rows += scoring(SHAPE, length, "cuda", repeats=2 if quick else 7)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    print(table(measure(parser.parse_args().quick)))


if __name__ == "__main__":
    main()
