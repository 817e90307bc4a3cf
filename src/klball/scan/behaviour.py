"""What a fine-tuned model does when it writes itself: forgetting, entropy, diversity."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from klball.files import differences, provenance_in, read_table, write_table
from klball.models.modes import in_evaluation
from klball.scan.forgetting import forgetting
from klball.scan.generation import (
    PROMPTS_PER_BATCH,
    distinct_n,
    end_tokens,
    sample_answers,
    self_bleu,
)
from klball.scores.parts import Progress
from klball.scores.scorer import Scorer, batches_by_length, score_encoded
from klball.scores.tables import PLACES, provenance

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Behaviour:
    """forgetting: token mean of KL(π₀‖π) on answers of the base, nats. own_entropy: mean entropy of the
    model's next-token distributions over the tokens of its own answers, nats. distinct_n: share of n-grams
    of words that are distinct, over all its answers. self_bleu: 0 (all differ) to 100 (all the same).
    """

    forgetting: float
    own_entropy: float
    distinct_1: float
    distinct_2: float
    self_bleu: float


def own_answers(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Dataset,
    max_new_tokens: int,
    samples: int,
    *,
    output: Path | None = None,
    progress: Progress | None = None,
) -> Dataset:
    """`sample_answers`, kept in a Parquet file where `output` is given.

    It is read from there next time if model, prompts and lengths are the same, and written anew if not.
    """
    about: dict[str, Any] = {}
    if output is not None:
        scorer = Scorer(model, prompts[0]["input_ids"])
        about = {
            **provenance(scorer, tokenizer, prompts, None, PROMPTS_PER_BATCH),
            **{"max_new_tokens": max_new_tokens, "samples": samples, "ends": end_tokens(model, tokenizer)},
        }
        if output.exists():
            table = read_table(output)
            known = provenance_in(output, table.schema)
            if not differences(known, about, PLACES):
                return Dataset(table)
            logger.warning("%s was made from something else: answering again", output)
    answers = sample_answers(
        model, tokenizer, prompts, max_new_tokens=max_new_tokens, samples=samples, progress=progress
    )
    if output is not None:
        write_table(answers.data.table, output, about)
    return answers


def behaviour_of(
    base: Any,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Dataset,
    base_answers: Dataset,
    max_new_tokens: int,
    samples: int,
    progress: Progress | None = None,
) -> Behaviour:
    """Measure one model against the base, with the base's answers and its own to the same prompts."""
    own = own_answers(model, tokenizer, prompts, max_new_tokens, samples, progress=progress)
    return behaviour_from(base, model, base_answers, own)


def behaviour_from(base: Any, model: Any, base_answers: Dataset, own: Dataset) -> Behaviour:
    """`behaviour_of` from answers of both to the same prompts."""
    groups: dict[str, list[str]] = {}
    for row in own.to_list():
        groups.setdefault(row["sample_id"], []).append(row["text"])
    texts = [text for group in groups.values() for text in group]
    return Behaviour(
        forgetting=forgetting(base, model, base_answers),
        own_entropy=token_entropy(model, own),
        distinct_1=distinct_n(texts, 1),
        distinct_2=distinct_n(texts, 2),
        self_bleu=self_bleu(list(groups.values())),
    )


@in_evaluation
def token_entropy(model: Any, encoded: Dataset) -> float:
    """Mean entropy of the next-token distribution over all answer tokens, nats."""
    scorer = Scorer(model, encoded[0]["input_ids"])
    batches = batches_by_length([len(ids) for ids in encoded["input_ids"]])
    total, tokens = 0.0, 0
    for _, scores in score_encoded(scorer, encoded, batches):
        for entropy, count in zip(scores["entropy"], scores["num_tokens"], strict=True):
            total, tokens = total + (entropy or 0.0) * count, tokens + count
    return total / tokens
