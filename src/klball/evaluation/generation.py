"""Answers that a model writes itself, and how diverse they are."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from sacrebleu.metrics.bleu import BLEU
from transformers import GenerationConfig, PreTrainedTokenizerBase

from klball.data.rows import IGNORED
from klball.evaluation.models import causal_lm
from klball.evaluation.tables import Progress

PROMPTS_PER_BATCH = 64


@torch.no_grad()
def sample_answers(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    encoded: Dataset,
    *,
    max_new_tokens: int = 64,
    samples: int = 1,
    seed: int = 0,
    progress: Progress | None = None,
) -> Dataset:
    """Plain samples (temperature 1, nothing cut off) from the model on the prompts of encoded rows.

    Each prompt is answered `samples` times. Columns: sample_id, input_ids and labels as `encode` gives
    them (the end token included where the model wrote it), text.
    """
    model.eval()
    ends = _end_tokens(model, tokenizer)
    settings = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
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
        for start in range(0, len(order), PROMPTS_PER_BATCH):
            batch = order[start : start + PROMPTS_PER_BATCH]
            answers = _generate(model, [prompts[i] for i in batch for _ in range(samples)], settings)
            for k, answer in enumerate(answers):
                i = batch[k // samples]
                ids, text = _until_end(answer, ends), tokenizer.decode(answer, skip_special_tokens=True)
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


def _end_tokens(model: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
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
    output = model.generate(input_ids=ids, attention_mask=mask, generation_config=settings)
    return output[:, length:].tolist()


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
    bleu = BLEU(effective_order=True)
    scores = [
        bleu.sentence_score(text, [*group[:i], *group[i + 1 :]]).score
        for group in groups
        if len(group) > 1
        for i, text in enumerate(group)
    ]
    if not scores:
        raise ValueError("self-BLEU needs at least two samples of a prompt")
    return sum(scores) / len(scores)
