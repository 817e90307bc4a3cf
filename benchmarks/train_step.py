"""Time and peak memory of a training step against stock SFTTrainer: same model, data and batches."""

import argparse
import gc
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from transformers import AutoTokenizer, PrinterCallback, Qwen3Config, Qwen3ForCausalLM
from trl import SFTConfig, SFTTrainer

from klball import RobustSFTConfig, RobustSFTTrainer
from klball.cli import prepare_process
from klball.data.rows import load_rows, to_trl_format
from klball.models.loading import TINY, model_path
from klball.report.figures import STYLE, line_styles, save
from table import Row, row, table
from turns import in_turns, paired

BENCHMARK = "train_step"
BATCH, ROWS, PACKED_LENGTH = 4, 128, 160
MODELS = {"2 × 128": (2, 128), "6 × 384": (6, 384)}  # layers × hidden size
VOCABULARIES = (4_096, 32_000, 151_936)
PACKED_VOCABULARIES = (32_000, 151_936)
ROBUST: dict[str, dict[str, Any]] = {  # what is beside stock TRL
    "nll, KLBall(.05)": dict(epsilon=0.05),
    "dft, KLBall(.05)": dict(epsilon=0.05, objective="dft"),
}
EXTRA: dict[str, dict[str, Any]] = {  # with the smallest vocabulary only
    "nll, CertaintyKLBall(.05, 4.9)": dict(epsilon=0.05, gamma=4.9),
    "psft, refreshed every 8 steps": dict(epsilon=0.0, objective="psft"),
}
TARGET = "≤ 1.03"
CLOCK, CPU = "step time / stock (95 % interval)", "step's CPU time / stock (95 % interval)"
MEMORY = "peak memory above the idle trainer / stock"


def _case(size: str, vocabulary: int, packing: bool, arm: str = "") -> str:
    return f"{size}, V = {vocabulary:,}" + ", packed" * packing + f": {arm}" * bool(arm)


def build_model(size: str, vocabulary: int) -> Qwen3ForCausalLM:
    """The same random Qwen3 whenever it is asked for."""
    layers, hidden = MODELS[size]
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64,
        head_dim=64,
        max_position_embeddings=1_024,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    return Qwen3ForCausalLM(config)


def build(model: Any, arm: dict[str, Any] | None, packing: bool, max_steps: int = 100_000) -> SFTTrainer:
    """A trainer on short rows of stdlib-docs, not yet started; stock TRL if `arm` is None."""
    rows = load_rows("stdlib-docs", "train").filter(lambda r: len(r["question"] + r["answer"]) < 240)
    settings: dict[str, Any] = dict(
        output_dir=mkdtemp(prefix="klball-bench-"),
        per_device_train_batch_size=2 if packing else BATCH,
        max_steps=max_steps,
        packing=packing,
        packing_strategy="bfd",
        max_length=PACKED_LENGTH if packing else 1_024,
        bf16=False,
        gradient_checkpointing=False,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    common: dict[str, Any] = dict(
        train_dataset=to_trl_format(rows.select(range(ROWS)), conversational=True),
        processing_class=AutoTokenizer.from_pretrained(model_path(TINY)),
    )
    if arm is None:
        trainer = SFTTrainer(model, SFTConfig(**settings), **common)
    else:
        trainer = RobustSFTTrainer(model, RobustSFTConfig(rescore_steps=0, **arm, **settings), **common)
    trainer.remove_callback(PrinterCallback)
    return trainer


def step_times(size: str, vocabulary: int, packing: bool, seconds: float) -> list[Row]:
    """Paired ratios of one case, and what the first scoring of the ledger costs."""
    arms = dict(ROBUST) if packing or vocabulary > VOCABULARIES[0] else ROBUST | EXTRA
    trainers = [build(build_model(size, vocabulary), arm, packing) for arm in (None, *arms.values())]
    times = in_turns(trainers, seconds, least=48 if len(trainers) > 3 else 8)
    rows = []
    for k, (name, arm) in enumerate(arms.items(), start=1):
        # PSFT scores seven steps' batches at the first of every eight
        block = 8 if arm.get("objective") == "psft" else 1
        target = TARGET if name in ROBUST and vocabulary > VOCABULARIES[0] else ""
        for measure, column, wanted in ((CLOCK, 0, target), (CPU, 1, "")):
            pair = times[:, k, column], times[:, 0, column]
            rows.append(
                paired(BENCHMARK, _case(size, vocabulary, packing, name), measure, *pair, wanted, block)
            )
    epoch = len(trainers[0].get_train_dataloader()) * np.median(times[:, 0, 0])
    scoring = trainers[1].scoring_seconds["initial"] / epoch  # pyright: ignore[reportAttributeAccessIssue]
    case = _case(size, vocabulary, packing)
    rows.append(row(BENCHMARK, case, "one scoring of the training data / epoch of stock steps", [scoring]))
    del trainers
    gc.collect()
    return rows


def memory(size: str, vocabulary: int) -> list[Row]:
    """Peak memory of trainings in processes of their own, two at a time."""
    arms = ["stock", "nll, KLBall(.05)", "nll, CertaintyKLBall(.05, 4.9)"]
    with ThreadPoolExecutor(2) as pool:
        stock, *others = pool.map(lambda arm: peak(size, vocabulary, arm), arms)
    return [
        row(BENCHMARK, _case(size, vocabulary, False, arm), MEMORY, [value / stock])
        for arm, value in zip(arms[1:], others, strict=True)
    ]


def peak(size: str, vocabulary: int, arm: str) -> float:
    """KiB by which a process of its own grows while it trains."""
    command = [sys.executable, __file__, "--peak", size, str(vocabulary), arm]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def print_peak(size: str, vocabulary: str, arm: str) -> None:
    """What `peak` runs: four steps of one trainer."""
    trainer = build(build_model(size, int(vocabulary)), (ROBUST | EXTRA).get(arm), False, max_steps=4)
    idle = process_memory("VmRSS")
    trainer.train()
    print(process_memory("VmHWM") - idle)  # ru_maxrss would start from the parent's peak


def process_memory(field: str) -> int:
    """A field of /proc/self/status, KiB."""
    return int(Path("/proc/self/status").read_text().split(f"{field}:")[1].split()[0])


def measure(quick: bool) -> list[Row]:
    prepare_process()
    sizes = list(MODELS)[:1] if quick else list(MODELS)
    seconds, kept = (2, 2) if quick else (15, 3)
    rows = []
    for size in sizes:
        cases = [(v, False) for v in VOCABULARIES[:kept]] + [
            (v, True) for v in PACKED_VOCABULARIES[: kept - 1]
        ]
        for vocabulary, packing in cases:
            rows += step_times(size, vocabulary, packing, seconds)
            print(table(rows[-1:]).splitlines()[-1], flush=True)
        rows += memory(size, VOCABULARIES[kept - 1])
    return rows


def figure(rows: Sequence[Row], path: Path) -> None:
    """How the ratio moves as the vocabulary grows; bars are 95 % intervals, the thin line is the target."""
    found = {(r.case, r.measure): r for r in rows}
    with plt.rc_context(STYLE):
        drawing, axes = plt.subplots(1, len(MODELS), figsize=(10, 4), sharey=True)
        for axis, size in zip(axes, MODELS, strict=True):
            lines = product((False, True), ROBUST)
            for k, ((packing, name), style) in enumerate(zip(lines, line_styles(), strict=False)):
                cases = [(v, found.get((_case(size, v, packing, name), CLOCK))) for v in VOCABULARIES]
                points = [(v, r.median, r.low, r.high) for v, r in cases if r is not None]
                if points:
                    v, median, low, high = np.array(points).T
                    label = name.split(",")[0] + (", packed" if packing else "")
                    axis.errorbar(
                        1.1**k * v, median, [median - low, high - median], label=label, capsize=3, **style
                    )
            axis.axhline(1.03, color="#777777", linewidth=1)
            axis.set_xscale("log")
            axis.set_xticks(VOCABULARIES, [f"{v / 1_000:.0f}k" for v in VOCABULARIES])
            axis.minorticks_off()
            axis.set_xlabel("vocabulary")
            axis.set_title(f"{size.replace('×', 'layers, width')}")
        axes[0].set_ylabel("step time, stock TRL = 1")
        drawing.legend(*axes[0].get_legend_handles_labels(), loc="outside right center")
        save(drawing, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument(
        "--peak", nargs=3, metavar=("SIZE", "VOCABULARY", "ARM"), help="print one peak memory"
    )
    options = parser.parse_args()
    if options.peak:
        print_peak(*options.peak)
    else:
        print(table(measure(options.quick)))


if __name__ == "__main__":
    main()
