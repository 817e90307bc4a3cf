"""klball.score against the naive full-logits loop and lm-evaluation-harness: agreement, time, peak memory."""

import argparse
import ctypes
import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import Qwen3Config, Qwen3ForCausalLM

import klball
from klball.cli import prepare_process
from klball.data.rows import IGNORED, encode, load_rows
from klball.models.loading import load_model
from table import Row, interleaved, row, table

BATCH = 16
VOCABULARIES = (32_000, 152_000)
ANSWER_CHARACTERS = 60  # of a short answer
SHAPES = {  # on the accelerator that of Qwen3-0.6B
    "cpu": dict(hidden_size=256, intermediate_size=768, num_hidden_layers=4, num_attention_heads=4),
    "cuda": dict(hidden_size=1_024, intermediate_size=3_072, num_hidden_layers=28, num_attention_heads=16),
}
PEERS = {
    "naive": "naive loop",
    "naive, full": "naive loop with certainty and entropy",
    "harness": "lm-evaluation-harness",
}


Subject = int | str  # a random model of that vocabulary, or the folder of a chat model


def named(subject: Subject) -> str:
    """How a row of the table calls it."""
    return Path(subject).name if isinstance(subject, str) else f"V = {subject:,}"


def build(subject: Subject, device: str) -> tuple[Any, Any]:
    """The model of a folder, or a random one with the embedded tokenizer, whose ids are a part of its."""
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    if isinstance(subject, str):
        model, tokenizer = load_model(subject)
        return model.to(device, dtype).eval(), tokenizer
    torch.manual_seed(0)
    heads = SHAPES[device]["num_attention_heads"]
    config = Qwen3Config(
        vocab_size=subject,
        num_key_value_heads=heads // 2,
        head_dim=SHAPES[device]["hidden_size"] // heads,
        max_position_embeddings=1_024,
        tie_word_embeddings=True,
        **SHAPES[device],
    )
    return Qwen3ForCausalLM(config).to(device, dtype).eval(), load_model("klball/tiny")[1]


def short_answers(count: int) -> datasets.Dataset:
    """One-line docstrings: about 31 tokens of prompt and 13 of answer."""
    rows = load_rows("stdlib-docs", "test")
    short = [i for i, answer in enumerate(rows["answer"]) if len(answer) <= ANSWER_CHARACTERS]
    return rows.select(short[:count])


@lru_cache
def longest(tokenizer, rows) -> int:
    """Tokens of the longest row: klball's batches are so many tokens, not so many rows."""
    return max(len(ids) for ids in encode(rows, tokenizer)["input_ids"])


def ours(model, tokenizer, rows) -> list[float]:
    tokens = BATCH * longest(tokenizer, rows)
    return klball.score(model, tokenizer, rows, tokens_per_batch=tokens)["sum_log_prob"]


@torch.no_grad()
def naive(model, tokenizer, rows, full: bool = False) -> list[float]:
    """Summed log-likelihoods from all logits, in batches of similar length; `full` computes all scores."""
    encoded = encode(rows, tokenizer)[:]
    order = sorted(range(len(rows)), key=lambda i: -len(encoded["input_ids"][i]))
    sums = [0.0] * len(rows)
    for start in range(0, len(order), BATCH):
        batch = order[start : start + BATCH]
        ids = pad_sequence([torch.tensor(encoded["input_ids"][i]) for i in batch], True)
        labels = pad_sequence([torch.tensor(encoded["labels"][i]) for i in batch], True, IGNORED)[:, 1:]
        mask = pad_sequence([torch.ones(len(encoded["input_ids"][i]), dtype=torch.long) for i in batch], True)
        ids, labels, mask = (tensor.to(model.device) for tensor in (ids, labels, mask))
        logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1].float()
        log_p = logits.log_softmax(-1)
        answered = labels != IGNORED
        each = log_p.gather(-1, labels.clamp(min=0)[:, :, None])[:, :, 0] * answered
        for i, value in zip(batch, each.sum(1).tolist(), strict=True):
            sums[i] = value
        if full:
            certainty = logits.logsumexp(-1) - logits.mean(-1) - math.log(logits.shape[-1])
            entropy = -(log_p.exp() * log_p).sum(-1)
            for values in (certainty, entropy):
                ((values * answered).sum(1) / answered.sum(1)).tolist()
    return sums


def harness(model, tokenizer, rows) -> list[float]:
    """lm-evaluation-harness on (context, continuation) strings that join to the text klball scores."""
    from lm_eval.api.instance import Instance  # here, so that it weighs on its own process only
    from lm_eval.models.huggingface import HFLM

    requests = []
    for sample in rows:
        prompt = [{"role": "user", "content": sample["question"]}]
        context = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
        pair = (context, sample["answer"] + tokenizer.eos_token)
        requests.append(Instance(request_type="loglikelihood", doc={}, arguments=pair, idx=0))
    peer = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=BATCH, add_bos_token=False)
    return [value for value, _ in peer.loglikelihood(requests, disable_tqdm=True)]


METHODS: dict[str, Callable[..., list[float]]] = {
    "ours": ours,
    "naive": naive,
    "naive, full": lambda *given: naive(*given, full=True),
    "harness": harness,
}


def speed(device: str, subject: Subject, case: str, rows: datasets.Dataset, repeats: int) -> list[Row]:
    """Samples a second of klball.score over those of each peer, tokenisation included."""
    model, tokenizer = build(subject, device)
    for method in METHODS.values():
        method(model, tokenizer, rows.select(range(2)))
    longest(tokenizer, rows)  # a matter of this comparison, not of scoring
    runs = [lambda method=method: method(model, tokenizer, rows) for method in METHODS.values()]
    seconds = interleaved(runs, repeats)
    targets = {"naive": "≥ 1", "harness": "≥ 2" if case == "short answers" else ""}
    return [
        row(
            "scoring",
            f"{device}, {named(subject)}, {case}",
            f"samples per second, {PEERS[peer]} = 1",
            (seconds[:, k] / seconds[:, 0]).tolist(),
            targets.get(peer, ""),
        )
        for k, peer in enumerate(METHODS)
        if peer in PEERS
    ]


def peak(method: str, subject: Subject, device: str) -> tuple[float, float]:
    """Peak memory, MiB, of a process of its own that scores one batch: in all, and above the idle model."""
    command = [sys.executable, __file__, "--peak", method, str(subject), device]
    words = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-2:]
    before, after = map(float, words)
    return after, after - before


def print_peak(method: str, subject: Subject, device: str) -> None:
    rows = load_rows("word-problems", "test").select(range(BATCH))
    METHODS[method](*load_model("klball/tiny"), rows.select(range(1)))  # libraries load on first use
    model, tokenizer = build(subject, device)
    before = high_water(device, reset=True)
    METHODS[method](model, tokenizer, rows)
    print(before, high_water(device))


def high_water(device: str, reset: bool = False) -> float:
    """The most memory held since the last reset, MiB."""
    if device == "cuda":
        if reset:
            torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated() / 2**20
    if reset:
        ctypes.CDLL(None).malloc_trim(0)  # room left by building the model would hide what scoring takes
        Path("/proc/self/clear_refs").write_text("5")
    # ru_maxrss would start from the parent's peak
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 2**10


def memory(device: str, subject: Subject, peers: Sequence[str], repeats: int) -> list[Row]:
    """Peak memory over that of each peer: what scoring adds to a process with the model, and in all."""
    total, added = {}, {}
    for method in ("ours", *peers):
        peaks = np.array([peak(method, subject, device) for _ in range(repeats)])
        total[method], added[method] = peaks.T
    case = f"{device}, {named(subject)}, word-problems"
    targets = {} if subject == min(VOCABULARIES) else {"naive": "≤ 0.1"}
    rows = [row("scoring", case, "memory that scoring adds, MiB", added["ours"])]
    for peer in peers:
        ratio = added["ours"] / added[peer]
        measured, target = f"memory that scoring adds, {PEERS[peer]} = 1", targets.get(peer, "")
        rows.append(row("scoring", case, measured, ratio, target))
        rows.append(row("scoring", case, f"peak memory, {PEERS[peer]} = 1", total["ours"] / total[peer]))
    return rows


def agreement(subject: str, count: int) -> Row:
    """Largest difference of summed log-likelihoods from lm-evaluation-harness."""
    model, tokenizer = build(subject, "cpu")
    rows = load_rows("stdlib-docs", "test").select(range(count))
    difference = np.subtract(ours(model, tokenizer, rows), harness(model, tokenizer, rows))
    case = f"{named(subject)}, {count} rows of stdlib-docs"
    measured = "largest difference of summed log-likelihoods from lm-evaluation-harness, nats"
    return row("scoring", case, measured, [float(np.abs(difference).max())], "≤ 2e-3")


def measure(quick: bool, folder: str | None = None) -> list[Row]:
    """Agreement, speed and memory against the peers; `quick` is the smaller vocabulary, once.

    folder: of a chat model, instead of random ones.
    """
    datasets.disable_progress_bars()
    repeats, count = (1, BATCH) if quick else (3, 3 * BATCH)
    rows = [agreement(folder or "klball/tiny", 50 if quick or folder else 300)]
    cases = {"short answers": short_answers(count)}
    if not quick:
        cases["word-problems"] = load_rows("word-problems", "test").select(range(count // 2))
    subjects: Sequence[Subject] = [folder] if folder else VOCABULARIES[: 1 if quick else None]
    for device in ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]:
        for subject in subjects:
            for case, data in cases.items():
                rows += speed(device, subject, case, data, repeats)
            rows += memory(device, subject, ["naive"] if quick else ["naive", "harness"], repeats)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--model", metavar="FOLDER", help="a chat model instead of random ones")
    parser.add_argument("--peak", nargs=3, metavar=("METHOD", "V", "DEVICE"), help="print one peak, MiB")
    options = parser.parse_args()
    if options.peak:
        prepare_process()
        method, subject, device = options.peak
        return print_peak(method, int(subject) if subject.isdigit() else subject, device)
    print(table(measure(options.quick, options.model)))


if __name__ == "__main__":
    main()
