"""Old log-probabilities: scored ahead for a window of optimizer steps, with no second model."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from klball.training.batches import INDEX
from klball.training.sft.forward import BatchScores, SampleForward
from klball.training.step import StepHook

WINDOW_FILE = "psft-window-{}.safetensors"  # one a process
NEEDED_FILES = {"PSFT window": (WINDOW_FILE.format("*"),)}


class OldLogProbs(StepHook):
    """log p^old of the batches of the coming `refresh` − 1 optimizer steps.

    A window opens at a step whose own detached log p serves as old; the batches of the steps that follow
    are scored before the model moves. It ends with the epoch. In the first `warmup_steps` every step is a
    window of its own: an objective in p/p^old then has the gradient of the NLL.

    forward: scores one batch as training would. step: the number of the coming step and of all.
    """

    files: ClassVar[Mapping[str, tuple[str, ...]]] = NEEDED_FILES

    def __init__(
        self,
        refresh: int,
        warmup_steps: int,
        forward: Callable[[dict[str, Any]], BatchScores],
        step: Callable[[], tuple[int, int]],
    ):
        self.refresh, self.warmup_steps, self.forward, self.step = refresh, warmup_steps, forward, step
        self.opening = True  # the current step is the first of its window
        self.steps_left = 0  # of the window, after the current step
        self._ahead: list[dict[str, Any]] = []  # fetched, not yet trained on
        self._scored: deque[tuple[Tensor, Tensor, Tensor]] = deque()  # theirs: indices, log p^old, mask
        self._loaded: dict[int, Tensor] = {}  # of a checkpoint: sample index → log p^old of its answer

    def begin_epoch(self) -> None:
        """Forget the window, also where a callback ended an epoch or a training in its middle."""
        self._ahead, self.steps_left = [], 0
        self._scored.clear()
        self._loaded.clear()

    def step_batches(self, batches: Iterator[Any], num_batches: int) -> Iterator[Any]:
        """The batches of this step; at a window's first, those of the others are fetched and scored."""
        step, max_steps = self.step()
        self.opening = self.steps_left == 0
        steps = self.steps_left
        if self.opening:
            self.begin_epoch()
            steps = 1 if step < self.warmup_steps else min(self.refresh, max_steps - step)
        fetched = list(islice(chain(self._ahead, batches), num_batches * steps))
        self._ahead = fetched[num_batches:]
        self.steps_left = -(-len(self._ahead) // num_batches)  # fewer where the epoch ends
        if self.opening:
            self._score_ahead()
        return iter(fetched[:num_batches])

    @torch.no_grad()
    def _score_ahead(self) -> None:
        """As many forwards on every process."""
        for batch in self._ahead:
            scores = self.forward(batch)
            self._scored.append((batch[INDEX], scores.log_probs, scores.mask))

    def of(self, index: Tensor, scores: BatchScores) -> Tensor:
        """log p^old (B, T) of the step's next micro-batch."""
        if self.opening:
            return scores.log_probs.detach()
        if self._loaded:
            return self._of_checkpoint(index, scores)
        return self._scored.popleft()[1]

    def _of_checkpoint(self, index: Tensor, scores: BatchScores) -> Tensor:
        counts = zip(index.tolist(), scores.mask.sum(1).tolist(), strict=True)
        if missing := [sample for sample, count in counts if len(self._loaded.get(sample, ())) != count]:
            raise ValueError(
                f"row {missing[0]} has no log p^old in the window of the checkpoint: its data, their order, "
                "the batch or the number of processes changed; resume from a window's end or start again"
            )
        old = torch.cat([self._loaded[sample] for sample in index.tolist()])
        return torch.zeros_like(scores.log_probs).masked_scatter(
            scores.mask, old.to(scores.log_probs.device, scores.log_probs.dtype)
        )

    def _rows(self) -> dict[int, Tensor]:
        """What the rest of the window needs: sample index → log p^old of its answer."""
        rows = dict(self._loaded) if self.steps_left else {}
        for index, log_probs, mask in self._scored:
            answers = log_probs[mask].split(mask.sum(1).tolist())
            rows |= zip(index.tolist(), answers, strict=True)
        return rows

    def save(self, folder: Path, process: int) -> None:
        """The open window of one process, before the checkpoint counts as complete."""
        rows = self._rows()
        tensors = {
            "steps_left": torch.tensor(self.steps_left),
            "index": torch.tensor(list(rows), dtype=torch.long),
            "num_tokens": torch.tensor([len(row) for row in rows.values()], dtype=torch.long),
            "log_probs": torch.cat([row.detach().cpu() for row in rows.values()]) if rows else torch.zeros(0),
        }
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, folder / WINDOW_FILE.format(process))

    def load(self, folder: Path) -> None:
        """Continue the window of a checkpoint, whichever process scored a sample."""
        paths = sorted(folder.glob(WINDOW_FILE.format("*")))
        if not paths:
            raise ValueError(f"{folder} has no PSFT window: it was not written by a PSFT run")
        self.begin_epoch()
        for path in paths:
            tensors: dict[str, Any] = load_file(path)
            rows = tensors["log_probs"].split(tensors["num_tokens"].tolist())
            self._loaded |= zip(tensors["index"].tolist(), rows, strict=True)
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
