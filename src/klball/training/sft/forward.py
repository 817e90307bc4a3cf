"""One training forward: token log-probabilities with gradient, entropy, and self-certainty if needed."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from klball.data.rows import IGNORED
from klball.models.causality import refuse_looking_ahead
from klball.models.loading import lm_head
from klball.models.modes import evaluating
from klball.models.token_scores import LMHead
from klball.training.batches import INDEX
from klball.training.step import wide

logger = logging.getLogger(__name__)

PROBE_TOKENS = 64


def token_sums(values: Tensor) -> Tensor:
    """Sums over the tokens (B, T−1) → (B) in the widest type of the device, on it."""
    return values.detach().to(wide(values.device)).sum(1)


@dataclass(frozen=True)
class BatchScores:
    """Per token (B, T−1), zero outside `mask`, in nats; `num_tokens` is (B)."""

    log_probs: Tensor
    entropy: Tensor
    is_top1: Tensor
    mask: Tensor
    certainty: Tensor | None

    @property
    def num_tokens(self) -> Tensor:
        """T_i, at least 1."""
        return self.mask.sum(1).clamp(min=1)

    def unpacked(self, offsets: Tensor, longest: int) -> "BatchScores":
        """One row of L tokens that holds B samples, as one row (longest − 1) for each.

        offsets (B+1): where each sample begins, and the last one ends. Equivalent for every field:
        `pad_sequence([field[0, a : b - 1] for a, b in zip(offsets[:-1], offsets[1:])], batch_first=True)`.
        """
        column = torch.arange(longest - 1, device=offsets.device)
        inside = column < offsets.diff()[:, None] - 1
        source = (offsets[:-1, None] + column).masked_fill(~inside, 0).long()

        def rows(field: Tensor) -> Tensor:
            return field[0][source].masked_fill(~inside, 0)

        certainty = None if self.certainty is None else rows(self.certainty)
        return BatchScores(
            rows(self.log_probs), rows(self.entropy), rows(self.is_top1), rows(self.mask), certainty
        )


class SampleForward:
    """Calls the model through TRL's fused head, which never builds the logits.

    Self-certainty needs no second pass over the vocabulary: C_t = ẑ_y − mean(z) − log p_t − log V, with
    the label's logit ẑ_y from the hidden state. On one row the result is compared with the model's
    own logits; where they differ, every batch takes the full logits instead, and says so.
    """

    def __init__(self, model: PreTrainedModel, certainty: bool, certainty_gradient: bool):
        self.model, self.certainty, self.certainty_gradient = model, certainty, certainty_gradient
        self.hidden: Tensor | None = None
        self._keeps = False  # a model that is trained twice has the hooks of both
        head = self.head
        if certainty_gradient and head is not None and head.softcap is not None:
            raise ValueError("certainty_gradient is not supported for models with soft-capped logits")
        if certainty:
            model.base_model.register_forward_hook(self._keep_hidden)
        self.fused = True

    @property
    def head(self) -> LMHead | None:
        """Looked up at each use: FSDP2 replaces the parameters, and has them whole after a forward only."""
        return lm_head(self.model)

    def __call__(self, model: Any, inputs: dict[str, Any]) -> BatchScores:
        """Scores of one collated batch, padded or packed: a row for each sample."""
        given = {name: value for name, value in inputs.items() if name != INDEX}
        scores = self._fused_scores(model, given) if self.fused else self._from_logits(model, given)
        if "cu_seq_lens_q" not in inputs:
            return scores
        # TRL counts every position that pads the row to a multiple as a sequence of its own: not samples
        offsets = inputs["cu_seq_lens_q"][: len(inputs[INDEX]) + 1]
        return scores.unpacked(offsets, inputs["max_length_q"])

    def _fused_scores(self, model: Any, inputs: dict[str, Any]) -> BatchScores:
        self._keeps = self.certainty
        try:
            outputs = model(**inputs, use_cache=False, fused_lm_head=True)
        except BaseException:
            self.hidden = None  # out of memory: a smaller batch is tried, and needs what this graph holds
            raise
        finally:
            self._keeps = False
        mask = outputs.label_mask
        certainty = None
        if self.certainty:
            certainty = self._certainty(outputs, inputs["labels"][:, 1:], mask)
            self.hidden = None  # with its graph nobody could copy the model, whose hook this is
        return BatchScores(outputs.log_probs, outputs.entropy, outputs.is_top1, mask, certainty)

    def _keep_hidden(self, module: Any, args: Any, output: Any) -> None:
        if self._keeps:
            self.hidden = output.last_hidden_state

    def _certainty(self, outputs: Any, labels: Tensor, mask: Tensor) -> Tensor:
        head = self.head
        assert self.hidden is not None and head is not None
        hidden = self.hidden[:, :-1]
        if not self.certainty_gradient:
            head = LMHead(head.weight.detach(), head.bias, head.scale, head.softcap)
            hidden = hidden.detach()
        label_logits = torch.zeros_like(outputs.log_probs)
        with torch.autocast(hidden.device.type, enabled=False):
            label_logits = label_logits.masked_scatter(
                mask, head.label_logits(hidden[mask], labels[mask]).to(label_logits.dtype)
            )
            means, log_probs = outputs.mean_logits, outputs.log_probs.detach()
            if self.certainty_gradient:
                log_probs = outputs.log_probs
                mean_bias = 0.0 if head.bias is None else head.bias.float().mean()
                means = head.scale * (hidden.float() @ head.weight.float().mean(0) + mean_bias)
        certainty = label_logits - means - log_probs - math.log(head.weight.shape[0])
        return certainty.masked_fill(~mask, 0.0)

    def _from_logits(self, model: Any, inputs: dict[str, Any]) -> BatchScores:
        labels = inputs["labels"][:, 1:]
        mask = labels != IGNORED
        plain = {name: value for name, value in inputs.items() if name != "labels"}
        logits = model(**plain, use_cache=False).logits[:, :-1].float()
        log_p = logits.log_softmax(-1)
        log_probs = log_p.gather(-1, labels.clamp(min=0)[..., None])[..., 0].masked_fill(~mask, 0.0)
        entropy = -(log_p.exp() * log_p).sum(-1).masked_fill(~mask, 0.0)
        top1 = (logits.argmax(-1) == labels) & mask
        certainty = None
        if self.certainty:
            certainty = -log_p.mean(-1) - math.log(logits.shape[-1])
            certainty = certainty if self.certainty_gradient else certainty.detach()
            certainty = certainty.masked_fill(~mask, 0.0)
        return BatchScores(log_probs, entropy, top1, mask, certainty)

    def probe(self, row: Sequence[int]) -> dict[str, Any]:
        """The beginning of one row as a batch."""
        device = next(self.model.parameters()).device
        ids = torch.tensor([list(row[:PROBE_TOKENS])], device=device)
        return {"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids)}

    @torch.no_grad()
    def check(self, model: Any, probe: Sequence[int], exact: bool = True) -> None:
        """Keep the fused head only if `model`, wrapped or not, agrees on one row; exact: in float32.

        Raises ValueError for a model that sees the tokens it is to predict.
        """
        with evaluating(model):
            ids = self.probe(probe[:2])["input_ids"]
            name = type(self.model).__name__
            refuse_looking_ahead(name, lambda ids: model(input_ids=ids, use_cache=False).logits, ids)
        self.fused = self.head is not None
        if self.head is None:
            logger.warning("unusual LM head: training through full logits, which costs memory")
            return
        inputs = self.probe(probe)
        with evaluating(model):
            fused, full = self(model, dict(inputs)), self._from_logits(model, dict(inputs))
        tolerance = 1e-3 if exact and self.head.weight.dtype == torch.float32 else 0.1
        pairs = [(fused.log_probs, full.log_probs)]
        if fused.certainty is not None and full.certainty is not None:
            pairs.append((fused.certainty, full.certainty))
        self.fused = all(
            torch.allclose(a.float(), b.float(), rtol=tolerance, atol=tolerance) for a, b in pairs
        )
        if not self.fused:
            logger.warning(
                "the fused LM head does not match the model's logits: training through full logits"
            )
