"""A model and a data set → the score table: one row a sample, one forward pass, only the answers' logits."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from klball.data.formats import refuse_unknown_tokens
from klball.data.rows import IGNORED, encode
from klball.models.causality import refuse_looking_ahead
from klball.models.loading import causal_lm, lm_head
from klball.models.modes import evaluating
from klball.models.token_scores import LMHead, TokenScores, scores_from_logits, token_scores

logger = logging.getLogger(__name__)

TOKENS_PER_BATCH = 8_192
TOKENS_PER_DISTRIBUTION = 64
PROBE_TOKENS = 4  # their logits are held whole, several times over
TOKENS = "token_log_probs"
SCORE_COLUMNS = ("log_likelihood", "certainty", "entropy", "sum_log_prob", "num_tokens")

Scores = dict[str, list[Any]]


class Scorer:
    """A model ready to score encoded rows, by its LM head or, where that does not fit, by its logits."""

    def __init__(
        self,
        model: torch.nn.Module,
        probe: Sequence[int],
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ):
        self.model, self.autocast = model, autocast
        self.causal_lm = causal_lm(model)
        self.device = next(model.parameters()).device
        with autocast():  # in whose dtype the head multiplies too, as in training
            enabled = torch.is_autocast_enabled(self.device.type)
            self.lower = torch.get_autocast_dtype(self.device.type) if enabled else None
        ids = torch.tensor([list(probe[:PROBE_TOKENS])], device=self.device)
        with evaluating(model):
            refuse_looking_ahead(type(self.causal_lm).__name__, self._logits, ids)
            self.head = self._checked_head(ids)

    def num_logits(self) -> int:
        """V, padded vocabulary rows included: what self-certainty is measured against."""
        projection: Any = self.causal_lm.get_output_embeddings()
        return projection.weight.shape[0]

    @torch.no_grad()
    def score(self, rows: list[dict[str, Any]]) -> Scores:
        """SCORE_COLUMNS for one batch of encoded rows; means are None for a row without answer tokens.

        And `token_log_probs`, a list of nats for each row.
        """
        ids, mask, targets = self._collated(rows)
        answered = targets != IGNORED
        tokens = self._token_scores(ids, mask, targets, answered)
        each = tokens.log_prob.float().cpu().split(answered.sum(1).tolist())
        return {**_sample_scores(tokens, answered), TOKENS: [row.tolist() for row in each]}

    @torch.no_grad()
    def log_distributions(self, rows: list[dict[str, Any]]) -> Iterator[Tensor]:
        """log K(·|x, y_<t) at the answer positions of a batch, row after row, in tiles (tokens, V)."""
        ids, mask, targets = self._collated(rows)
        answered = targets != IGNORED
        states = self._logits(ids, mask) if self.head is None else self._hidden(ids, mask)
        for tile in states[answered].split(TOKENS_PER_DISTRIBUTION):
            logits = tile if self.head is None else self.head.logits(tile)
            yield logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)

    def _collated(self, rows: list[dict[str, Any]]) -> tuple[Tensor, Tensor, Tensor]:
        """input_ids, attention mask and targets, each (B, L−1), on the model's device.

        A row's last token is a target only.
        """
        length = max(2, *(len(row["input_ids"]) for row in rows))
        ids = torch.zeros(len(rows), length, dtype=torch.long)
        labels = torch.full((len(rows), length), IGNORED)
        mask = torch.zeros(len(rows), length, dtype=torch.long)
        for i, row in enumerate(rows):  # right-padded: positions and masks then need no care
            n = len(row["input_ids"])
            ids[i, :n] = torch.tensor(row["input_ids"])
            labels[i, :n] = torch.tensor(row["labels"])
            mask[i, :n] = 1
        return ids[:, :-1].to(self.device), mask[:, :-1].to(self.device), labels[:, 1:].to(self.device)

    def _token_scores(self, ids: Tensor, mask: Tensor, targets: Tensor, answered: Tensor) -> TokenScores:
        labels = targets[answered]
        if self.head is None:
            return scores_from_logits(self._logits(ids, mask)[answered], labels)
        hidden = self._hidden(ids, mask)
        return token_scores(hidden[answered].to(self.head.weight.device), self.head, labels)

    def _logits(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        with self.autocast():
            return self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits

    def _hidden(self, ids: Tensor, mask: Tensor) -> Tensor:
        backbone = self.causal_lm.base_model
        with self.autocast():
            hidden = backbone(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        return hidden if self.lower is None else hidden.to(self.lower)

    @torch.no_grad()
    def _checked_head(self, ids: Tensor) -> LMHead | None:
        """The head, if on one row it reproduces the model's own logits."""
        head = lm_head(self.causal_lm)
        if head is None:
            logger.warning("unusual LM head: scoring through full logits, which costs memory")
            return None
        if self.lower is not None:
            head = replace(head, weight=head.weight.to(self.lower))
        mask = torch.ones_like(ids)
        own = self._logits(ids, mask)[0].float()
        ours = head.logits(self._hidden(ids, mask)[0]).float()
        tolerance = 1e-4 if head.weight.dtype in (torch.float32, torch.float64) else 3e-2
        if torch.allclose(own, ours, rtol=tolerance, atol=tolerance * float(own.abs().max().nan_to_num())):
            return head
        logger.warning("the LM head does not explain the logits: scoring through full logits")
        return None


def _sample_scores(tokens: TokenScores, answered: Tensor) -> Scores:
    counts = answered.sum(1)
    row_of = answered.nonzero()[:, 0]

    def summed(values: Tensor) -> Tensor:
        zeros = torch.zeros(len(counts), dtype=torch.float64, device="cpu")
        return zeros.index_add_(0, row_of.cpu(), values.cpu().double())

    num = counts.cpu()
    sums = {"log_likelihood": tokens.log_prob, "certainty": tokens.certainty, "entropy": tokens.entropy}
    scores: Scores = {
        name: [s / n if n else None for s, n in zip(summed(v).tolist(), num.tolist(), strict=True)]
        for name, v in sums.items()
    }
    scores["sum_log_prob"] = [
        s if n else None for s, n in zip(summed(tokens.log_prob).tolist(), num.tolist(), strict=True)
    ]
    scores["num_tokens"] = num.tolist()
    return scores


def batches_by_length(lengths: Sequence[int], tokens: int = TOKENS_PER_BATCH) -> list[list[int]]:
    """Row indices, longest first, in batches of at most `tokens` tokens with padding (one row at least)."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    batches: list[list[int]] = []
    for index in order:
        if batches and lengths[batches[-1][0]] * (len(batches[-1]) + 1) <= tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def rows_of(encoded: Dataset, batch: list[int]) -> list[dict[str, Any]]:
    """Those rows of an encoded data set, as `Scorer` takes them."""
    columns = encoded[batch]
    pairs = zip(columns["input_ids"], columns["labels"], strict=True)
    return [{"input_ids": ids, "labels": labels} for ids, labels in pairs]


def score_encoded(
    scorer: Scorer, encoded: Dataset, batches: Iterable[list[int]]
) -> Iterator[tuple[list[int], Scores]]:
    """(row indices, scores) of every batch of an encoded data set."""
    for batch in batches:
        yield batch, scorer.score(rows_of(encoded, batch))


def longest_input(
    model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, asked: int | None
) -> int | None:
    """The smallest of what was asked for, what the model holds, and what the tokenizer says."""
    config = causal_lm(model).config.get_text_config()
    limits = [asked, getattr(config, "max_position_embeddings", None), tokenizer.model_max_length]
    known = [limit for limit in limits if limit is not None and limit < 10**9]
    return min(known) if known else None


def encode_for(
    model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, dataset: Dataset, max_length: int | None
) -> Dataset:
    """`encode` at the longest input that the model holds; cut rows are counted aloud.

    Raises ValueError if no row has an answer, or cutting leaves none.
    """
    limit = longest_input(model, tokenizer, max_length)
    vocabulary = causal_lm(model).config.get_text_config().vocab_size
    if limit == 0:
        raise ValueError("the model takes no more than 0 tokens: its max_position_embeddings is 0")
    encoded = encode(dataset, tokenizer, limit, vocabulary)
    if len(tokenizer) > vocabulary:
        refuse_unknown_tokens(encoded, vocabulary)
    cut = sum(encoded["truncated"])
    if cut:
        logger.warning("%d of %d rows are longer than %s tokens and were cut", cut, len(encoded), limit)
    if all(label == IGNORED for labels in encoded["labels"] for label in labels[1:]):
        hint = "raise max_length" if limit == max_length else "the model takes no more"
        raise ValueError(f"no row has an answer token to score within {limit} tokens: {hint}")
    if not any(encoded["num_bytes"]):
        raise ValueError("no row has an answer text to score: every answer is empty")
    return encoded
