"""Answers that a model writes itself, and how diverse they are."""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from datasets import Dataset
from sacrebleu.metrics.bleu import BLEU
from transformers import GenerationConfig, PreTrainedTokenizerBase

from klball.data.rows import IGNORED, encode
from klball.models.loading import causal_lm
from klball.models.modes import in_evaluation
from klball.scores.parts import Progress
from klball.scores.scorer import longest_input

logger = logging.getLogger(__name__)

PROMPTS_PER_BATCH = 64


def encoded_prompts(
    model: Any, tokenizer: PreTrainedTokenizerBase, rows: Dataset, max_new_tokens: int
) -> Dataset:
    """Encoded rows whose prompt leaves the model room for an answer; the others are counted aloud.

    Prompts are never cut. Raises ValueError if none is left.
    """
    if max_new_tokens < 1 or len(rows) < 1:
        raise ValueError("answers need at least one prompt and one new token")
    encoded = encode(rows, tokenizer)
    limit = longest_input(model, tokenizer, None)

    def fits(labels: list[int]) -> bool:
        start = next((i for i, label in enumerate(labels) if label != IGNORED), None)
        return start is not None and (limit is None or max(start, 1) + max_new_tokens <= limit)

    kept = encoded.filter(fits, input_columns="labels")
    if len(kept) < len(encoded):
        logger.warning(
            "%d of %d prompts are left out: no answer follows, or %d new tokens would pass the limit of %s",
            *(len(encoded) - len(kept), len(encoded), max_new_tokens, limit),
        )
    if not len(kept):
        raise ValueError(f"no prompt leaves room for {max_new_tokens} new tokens within {limit}")
    return kept


@torch.no_grad()
@in_evaluation
def sample_answers(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    encoded: Dataset,
    *,
    max_new_tokens: int = 64,
    samples: int = 1,
    greedy: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> Dataset:
    """Plain samples (temperature 1, nothing cut off) from the model on the prompts of encoded rows.

    Each prompt is answered `samples` times; greedy: with the likeliest tokens instead. Columns: sample_id,
    input_ids and labels as `encode` gives them (the end token included where the model wrote it), text.
    """
    ends = end_tokens(model, tokenizer)
    settings = GenerationConfig(
        **(dict(do_sample=False) if greedy else dict(do_sample=True, temperature=1.0, top_k=0, top_p=1.0)),
        repetition_penalty=1.0,
        max_new_tokens=max_new_tokens,
        eos_token_id=ends,
        pad_token_id=ends[0],
    )
    prompts = [_prompt(row["input_ids"], row["labels"]) for row in encoded.to_list()]
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
    rows: dict[int, list[dict[str, Any]]] = {}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if progress is not None:
            progress(0, len(order))
        for start in range(0, len(order), PROMPTS_PER_BATCH):
            batch = order[start : start + PROMPTS_PER_BATCH]
            answers = _generate(model, [prompts[i] for i in batch for _ in range(samples)], settings)
            for k, answer in enumerate(answers):
                i = batch[k // samples]
                ids = _until_end(answer, ends)
                text = tokenizer.decode(ids, skip_special_tokens=True)
                rows.setdefault(i, []).append(
                    {
                        "sample_id": encoded["sample_id"][i],
                        "input_ids": prompts[i] + ids,
                        "labels": [IGNORED] * len(prompts[i]) + ids,
                        "text": text,
                    }
                )
            if progress is not None:
                progress(start + len(batch), len(order))
    return Dataset.from_list([row for i in range(len(prompts)) for row in rows[i]])


def end_tokens(model: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every token that ends an answer. Raises ValueError if there is none."""
    configured = causal_lm(model).generation_config
    own = configured.eos_token_id if configured is not None else None
    ends = [tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])]
    known = sorted({int(end) for end in ends if isinstance(end, int)})
    if not known:
        raise ValueError("neither the tokenizer nor the model names an end token: answers would not end")
    return known


def _prompt(ids: list[int], labels: list[int]) -> list[int]:
    """What comes before the first answer token."""
    return ids[: next(i for i, label in enumerate(labels) if label != IGNORED)] or ids[:1]


def _generate(model: Any, prompts: list[list[int]], settings: GenerationConfig) -> list[list[int]]:
    length = max(map(len, prompts))
    device = next(model.parameters()).device
    pad = int(settings.pad_token_id)  # pyright: ignore[reportArgumentType]
    ids = torch.tensor([[pad] * (length - len(p)) + p for p in prompts], device=device)  # left-padded
    mask = torch.tensor([[0] * (length - len(p)) + [1] * len(p) for p in prompts], device=device)
    with _no_own_settings(causal_lm(model)):
        output = model.generate(input_ids=ids, attention_mask=mask, generation_config=settings)
    return output[:, length:].tolist()


@contextmanager
def _no_own_settings(model: Any) -> Iterator[None]:
    """`generate` takes what a configuration leaves open (min_p, bad words, …) from the model's own."""
    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


def _until_end(ids: list[int], ends: Sequence[int]) -> list[int]:
    end = next((i for i, token in enumerate(ids) if token in ends), len(ids) - 1)
    return ids[: end + 1]


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Distinct n-grams of words over all n-grams, all texts together; 1 where nothing repeats.

    Falls as the texts get more or longer: compare it at equal numbers of prompts and samples.
    """
    words_of = [text.split() for text in texts]
    grams = Counter(tuple(words[i : i + n]) for words in words_of for i in range(len(words) - n + 1))
    return len(grams) / max(1, grams.total())


def self_bleu(groups: Sequence[Sequence[str]]) -> float:
    """Mean sentence BLEU of every sample against the others of its prompt, 0 to 100; low is diverse."""
    scores = [
        _bleu(text, [*group[:i], *group[i + 1 :]])
        for group in groups
        if len(group) > 1
        for i, text in enumerate(group)
    ]
    if not scores:
        raise ValueError("self-BLEU needs at least two samples of a prompt")
    return sum(scores) / len(scores)


def _bleu(text: str, others: Sequence[str]) -> float:
    if not text.strip():  # sacreBLEU gives 0 here, which would call a model that falls silent diverse
        return 100.0 if any(not other.strip() for other in others) else 0.0
    return BLEU(effective_order=True).sentence_score(text, others).score
