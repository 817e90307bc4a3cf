"""Summed log-likelihoods against lm-evaluation-harness on the same model and rows: agreement and time."""

import argparse
import time

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

import klball
from klball.data.rows import load_rows
from klball.evaluation.models import load_model


def harness_requests(rows, tokenizer) -> list[Instance]:
    """(context, continuation) strings that join to the very text klball scores."""
    requests = []
    for row in rows:
        prompt = [{"role": "user", "content": row["question"]}]
        context = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
        pair = (context, row["answer"] + tokenizer.eos_token)
        requests.append(Instance(request_type="loglikelihood", doc={}, arguments=pair, idx=0))
    return requests


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    model, tokenizer = load_model("klball/tiny")
    rows = load_rows("stdlib-docs", "test").select(range(options.rows))
    harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=32, add_bos_token=False)
    requests = harness_requests(rows, tokenizer)
    ratios = []
    for _ in range(options.repeats):
        began = time.perf_counter()
        theirs = harness.loglikelihood(requests, disable_tqdm=True)
        middle = time.perf_counter()
        ours = klball.score(model, tokenizer, rows)
        ratios.append((middle - began) / (time.perf_counter() - middle))
    sums = np.array([value for value, _ in theirs])
    error = np.abs(sums - np.array(ours["sum_log_prob"]))
    print(f"{options.rows} rows of stdlib-docs, klball/tiny, float32\n")
    print("| | |")
    print("|---|---|")
    print(f"| largest difference of summed log-likelihoods, nats | {error.max():.1e} |")
    print(f"| mean summed log-likelihood, nats | {sums.mean():.3f} |")
    print(
        f"| lm-evaluation-harness time / klball time, tokenisation included | {np.median(ratios):.2f} "
        f"({min(ratios):.2f} – {max(ratios):.2f}) |"
    )


if __name__ == "__main__":
    main()
