"""Scores of many prepared rows by the model as it is now, shared out over the processes."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate.utils import send_to_device
from datasets import Dataset
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from klball.models.token_scores import NonFiniteLogitError
from klball.scores.scorer import Scores, rows_of
from klball.training.batches import INDEX, batches_of_process
from klball.training.sft.forward import SampleForward, token_sums

ScoreRows = Callable[[list[dict[str, Any]]], Scores]


def fresh_scores(
    score: ScoreRows,
    dataset: Dataset,
    names: Sequence[str],
    accelerator: Any,
    title: str,
    quiet: bool,
) -> dict[str, Tensor]:
    """Columns `names` of the score table in float64, [n], with a bar like Transformers' own unless quiet.

    The same on every process; NaN where a row has no finite score, which all have to hear of first.
    """
    table = torch.zeros(len(dataset), len(names), dtype=torch.float64)
    lengths = [len(ids) for ids in dataset["input_ids"]]
    for batch, counts in batches_of_process(lengths, accelerator, title, quiet):
        scores = _finite_or_nan(score, rows_of(dataset, batch), names)
        if counts:
            table[batch] = scores
    if accelerator.num_processes > 1:
        reduced: Any = accelerator.reduce(table.to(accelerator.device), reduction="sum")
        table = reduced.cpu()
    return dict(zip(names, table.unbind(1), strict=True))


def _finite_or_nan(score: ScoreRows, rows: list[dict[str, Any]], names: Sequence[str]) -> Tensor:
    """(rows, names); one by one where a batch cannot be scored, to tell which row it is."""
    try:
        columns = score(rows)
    except NonFiniteLogitError:
        if len(rows) > 1:
            return torch.cat([_finite_or_nan(score, [row], names) for row in rows])
        columns = {name: [math.nan] for name in names}
    return torch.stack([torch.as_tensor(columns[name], dtype=torch.float64) for name in names], dim=1)


@torch.no_grad()
def sharded_scores(
    forward: SampleForward,
    model: Any,
    collator: Callable[..., dict[str, Any]],
    device: torch.device,
    rows: list[dict[str, Any]],
) -> Scores:
    """`Scorer.score` through the wrapped model's own forward, where the LM head is put together.

    As often on every process. Raises ValueError before the model is wrapped.
    """
    if not isinstance(model, FSDPModule) and not hasattr(model, "module"):
        raise ValueError("a sharded model is put together by train(): it cannot be evaluated before")
    numbered = [{**row, INDEX: index} for index, row in enumerate(rows)]
    batch: Any = send_to_device(collator(numbered), device)
    scores = forward(model, batch)
    num = scores.num_tokens.cpu()
    columns = {"log_likelihood": scores.log_probs, "entropy": scores.entropy}
    if scores.certainty is not None:
        columns["certainty"] = scores.certainty
    sums = {name: token_sums(values).cpu().double() for name, values in columns.items()}
    table = {name: values / num for name, values in sums.items()}
    table |= {"sum_log_prob": sums["log_likelihood"], "num_tokens": num}
    return {name: values.tolist() for name, values in table.items()}
