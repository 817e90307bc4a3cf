"""GDPO's three terms, belief by belief."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from klball.data.rows import IGNORED
from klball.objectives.pairs import LogRatios

OfTexts = Callable[[Tensor, dict[str, Any]], tuple[Tensor, LogRatios]]
SEQUENCES = ("input_ids", "attention_mask", "completion_mask")


@dataclass(frozen=True)
class BeliefTerms:
    """Of the S beliefs of B questions; the sum over the beliefs of a question is the question's.

    losses: (S), with gradient. log_ratios: log π(b|x) − log p*_b, (S). columns: name → (S), for the log.
    """

    losses: Tensor
    log_ratios: Tensor
    columns: dict[str, Tensor]
    rows: Tensor
    num_rows: int

    def summed(self, values: Tensor) -> Tensor:
        """(S) → (B)."""
        return row_sums(values, self.rows, self.num_rows)


def row_sums(values: Tensor, rows: Tensor, num_rows: int) -> Tensor:
    """Totals of the values of each row, (S) → (B)."""
    return torch.zeros(num_rows, dtype=values.dtype, device=values.device).index_add(0, rows, values)


def log_shares(log_probs: Tensor, rows: Tensor, num_rows: int) -> Tensor:
    """log π(b|x), (S): log-probabilities of whole beliefs normalised over those of the same row, (S).

    Equivalent: `torch.cat([log_probs[rows == r].log_softmax(0) for r in range(num_rows)])`.
    """
    lowest = log_probs.new_full((num_rows,), -torch.inf)
    shifted = log_probs - lowest.scatter_reduce(0, rows, log_probs.detach(), "amax")[rows]
    return shifted - row_sums(shifted.exp(), rows, num_rows).log()[rows]


def belief_terms(model: Any, inputs: dict[str, Any], of_texts: OfTexts) -> BeliefTerms:
    """One forward over a batch of `BeliefCollator`, and the terms of its beliefs."""
    rows, text_of = inputs["belief_row"], inputs["text_of"]
    num_rows, pairs = len(inputs["num_beliefs"]), (len(inputs["input_ids"]) - len(rows)) // 2
    labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, IGNORED)
    given = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    outputs = model(**given, labels=labels, use_cache=False, fused_lm_head=True)
    log_probs = outputs.log_probs.sum(1)  # (2P + S)
    beliefs = log_probs[2 * pairs :]
    p = inputs["p_star"].to(beliefs.dtype)
    log_pi = log_shares(beliefs, rows, num_rows)
    kl = torch.xlogy(p, p) - p * log_pi
    nll = -inputs["share"].to(beliefs.dtype) * beliefs / outputs.label_mask[2 * pairs :].sum(1)
    there = text_of >= 0
    text = torch.zeros_like(kl)
    columns = {"has_text": there.to(kl.dtype)}
    columns |= {name: torch.zeros_like(kl) for name in ("chosen_ratio", "rejected_ratio")}
    if pairs:
        texts = {name: inputs[name][: 2 * pairs] for name in SEQUENCES}
        losses, ratios = of_texts(log_probs[: 2 * pairs], texts)
        text = text.masked_scatter(there, losses)
        columns["chosen_ratio"] = columns["chosen_ratio"].masked_scatter(there, ratios.chosen.detach())
        columns["rejected_ratio"] = columns["rejected_ratio"].masked_scatter(there, ratios.rejected.detach())
    columns |= {"belief_kl": kl, "belief_nll": nll, "text_dpo": text, "size": p}
    columns |= _fit(log_pi.detach(), p, rows, num_rows)
    tokens = inputs["attention_mask"].sum(1)
    of_answers = torch.zeros_like(rows).masked_scatter(there, tokens[: 2 * pairs].view(2, pairs).sum(0))
    columns["num_inputs"] = _once(tokens[2 * pairs :] + of_answers, p > 0, rows, num_rows)
    log_ratios = log_pi.detach() - p.log()
    return BeliefTerms(
        kl + nll + text, log_ratios, {k: v.detach() for k, v in columns.items()}, rows, num_rows
    )


def _fit(log_pi: Tensor, p: Tensor, rows: Tensor, num_rows: int) -> dict[str, Tensor]:
    """How near π is to p*: √ of the Jensen–Shannon divergence, nats, and whether their modes agree; × p*."""
    pi = log_pi.exp()  # 0 of a belief that is said less often than once in e^104
    middle = 0.5 * (pi + p)
    parts = 0.5 * (torch.xlogy(pi, pi) + torch.xlogy(p, p)) - torch.xlogy(middle, middle)
    distance = row_sums(parts, rows, num_rows).clamp(min=0.0).sqrt()

    def is_mode(values: Tensor) -> Tensor:
        none = torch.full((num_rows,), -torch.inf, dtype=values.dtype, device=values.device)
        return values == none.scatter_reduce(0, rows, values, "amax")[rows]

    agrees = row_sums((is_mode(log_pi) & is_mode(p)).to(p.dtype), rows, num_rows).clamp(max=1.0)
    return {"js_distance": p * distance[rows], "belief_accuracy": p * agrees[rows]}


def _once(values: Tensor, held: Tensor, rows: Tensor, num_rows: int) -> Tensor:
    """The total of each row at the first of its beliefs that someone holds, 0 at the others, (S)."""
    counted = held.long().cumsum(0)
    begins = torch.searchsorted(rows, rows)
    first = held & (counted - counted[begins] + held[begins].long() == 1)
    return row_sums(values, rows, num_rows)[rows] * first


def belief_metrics(columns: Mapping[str, Tensor], beta: float) -> dict[str, float]:
    """Means over questions, and over pairs of texts."""
    total = columns["size"].sum()
    names = ("belief_kl", "belief_nll", "text_dpo", "js_distance", "belief_accuracy")
    means = {name: float(columns[name].sum() / total) for name in names}
    report = {"plain_loss": means["belief_kl"] + means["belief_nll"] + means["text_dpo"], **means}
    there = columns["has_text"] > 0
    if not bool(there.any()):
        return report
    chosen, rejected = beta * columns["chosen_ratio"][there], beta * columns["rejected_ratio"][there]
    return {
        **report,
        "rewards/chosen": float(chosen.mean()),
        "rewards/rejected": float(rejected.mean()),
        "rewards/margins": float((chosen - rejected).mean()),
        "rewards/accuracies": float((chosen > rejected).double().mean()),
    }
