"""PSFT's old log-probabilities: scored ahead for a window of optimizer steps, with no second model."""

from collections.abc import Callable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from klball.objectives.tokens import nll, psft
from klball.training.batches import INDEX
from klball.training.sft.forward import BatchScores, SampleForward, token_sums

WINDOW_FILE = "psft-window-{}.safetensors"  # one a process


class ProximalWindow:
    """log p^old of the batches of the coming `refresh` − 1 optimizer steps.

    A window opens at a step whose own detached log p serves as old; the batches of the steps that follow
    are scored before the model moves. It ends with the epoch. The first `warmup_steps` are plain NLL.
    """

    def __init__(self, clip: float, refresh: int, warmup_steps: int):
        self.clip, self.refresh, self.warmup_steps = clip, refresh, warmup_steps
        self.warming_up = False
        self.opening = True  # the current step is the first of its window
        self.steps_left = 0  # of the window, after the current step
        self.old: dict[int, Tensor] = {}  # sample index → log p^old of its answer tokens
        self._ahead: list[dict[str, Any]] = []  # fetched, not yet trained on

    def close(self) -> None:
        """Forget the window, also where a callback ended an epoch or a training in its middle."""
        self._ahead, self.steps_left = [], 0
        self.old.clear()

    def step_batches(
        self, batches: Iterator[Any], num_batches: int, step: int, max_steps: int
    ) -> Iterator[Any]:
        """The batches of this step; with a window's first, those of its other steps are fetched too."""
        self.warming_up = step < self.warmup_steps
        self.opening = self.steps_left == 0
        if self.opening:
            self.old.clear()
            steps = 1 if self.warming_up else min(self.refresh, max_steps - step)
        else:
            steps = self.steps_left
        fetched = list(islice(chain(self._ahead, batches), num_batches * steps))
        self._ahead = fetched[num_batches:]
        self.steps_left = -(-len(self._ahead) // num_batches)  # fewer where the epoch ends
        return iter(fetched[:num_batches])

    @torch.no_grad()
    def score_ahead(self, forward: Callable[[dict[str, Any]], BatchScores]) -> None:
        """At a window's first step, score the others' batches; as many on every process."""
        if not self.opening:
            return
        for batch in self._ahead:
            scores = forward(batch)
            rows = scores.log_probs[scores.mask].split(scores.mask.sum(1).tolist())
            self.old |= zip(batch[INDEX].tolist(), rows, strict=True)

    def losses(self, index: Tensor, scores: BatchScores) -> Tensor:
        """Token losses (B, T−1) of one micro-batch of the current step."""
        if self.warming_up:
            return nll(scores.log_probs)
        return psft(scores.log_probs, self._old(index, scores), self.clip)

    def ratio_columns(self, index: Tensor, scores: BatchScores) -> list[Tensor]:
        """Per row, for the log: the sum of the ratios r_t, and the number of tokens above 1 + c."""
        log_ratio = scores.log_probs.detach() - self._old(index, scores)
        ratio = log_ratio.exp().masked_fill(~scores.mask, 0.0)
        return [token_sums(ratio), token_sums(ratio > 1 + self.clip)]

    def _old(self, index: Tensor, scores: BatchScores) -> Tensor:
        if self.opening:
            return scores.log_probs.detach()
        counts = zip(index.tolist(), scores.mask.sum(1).tolist(), strict=True)
        if missing := [sample for sample, count in counts if len(self.old.get(sample, ())) != count]:
            raise ValueError(
                f"row {missing[0]} has no log p^old in the window of the checkpoint: its data, their order, "
                "the batch or the number of processes changed; resume from a window's end or start again"
            )
        old = torch.cat([self.old[sample] for sample in index.tolist()])
        return torch.zeros_like(scores.log_probs).masked_scatter(
            scores.mask, old.to(scores.log_probs.device, scores.log_probs.dtype)
        )

    def save(self, folder: Path, process: int) -> None:
        """The open window of one process, before the checkpoint counts as complete."""
        rows = list(self.old.values()) if self.steps_left else []
        tensors = {
            "steps_left": torch.tensor(self.steps_left),
            "index": torch.tensor(list(self.old)[: len(rows)], dtype=torch.long),
            "num_tokens": torch.tensor([len(row) for row in rows], dtype=torch.long),
            "log_probs": torch.cat([row.detach().cpu() for row in rows]) if rows else torch.zeros(0),
        }
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, folder / WINDOW_FILE.format(process))

    def load(self, folder: Path) -> None:
        """Continue the window of a checkpoint, whichever process scored a sample."""
        paths = sorted(folder.glob(WINDOW_FILE.format("*")))
        if not paths:
            raise ValueError(f"{folder} has no PSFT window: it was not written by a PSFT run")
        self.close()
        for path in paths:
            tensors: dict[str, Any] = load_file(path)
            rows = tensors["log_probs"].split(tensors["num_tokens"].tolist())
            self.old |= zip(tensors["index"].tolist(), rows, strict=True)
            self.steps_left = int(tensors["steps_left"])


def without_dropout(model: nn.Module, forward: SampleForward, probe: list[int]) -> None:
    """Set the model's dropout to 0, so that the ratio is exactly 1 before the model has moved.

    Raises ValueError if two forwards in training mode still differ.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("attention_dropout", "dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    ids = torch.tensor([probe], device=next(model.parameters()).device)
    inputs = {"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids)}
    was_training = model.training
    model.train()
    with torch.no_grad():
        first, second = (forward(model, dict(inputs)).log_probs for _ in range(2))
    model.train(was_training)
    if not torch.equal(first, second):
        raise ValueError("the model is random in training mode even without dropout: psft cannot be used")
