"""What a token objective needs besides log-probabilities, and where the trainer has it from."""

import copy
from typing import Any

import torch
from torch import Tensor
from trl.trainer.utils import add_fused_lm_head

from klball.models.loading import causal_lm
from klball.models.modes import evaluating
from klball.objectives.tokens import Objective, needs_of
from klball.training.sft.forward import BatchScores, SampleForward
from klball.training.sft.window import NEEDED_FILES, OldLogProbs


def checkpoint_files(objective: Objective | None) -> dict[str, tuple[str, ...]]:
    """What a whole checkpoint of a run with this objective holds besides the ledger."""
    return dict(NEEDED_FILES) if "old_log_probs" in needs_of(objective) else {}


class Reference:
    """Log-probabilities of the model before training: without its adapter, or a copy of it."""

    def __init__(self, model: Any, forward: SampleForward):
        self.of_model = forward
        self.adapted = hasattr(model, "disable_adapter")
        self.model: Any = model if self.adapted else _copy_of(causal_lm(model))
        self.forward = SampleForward(causal_lm(self.model), certainty=False, certainty_gradient=False)

    @torch.no_grad()
    def log_probs(self, inputs: dict[str, Any]) -> Tensor:
        """(B, T−1)."""
        self.forward.fused = self.of_model.fused
        if not self.adapted:
            return self.forward(self.model.to(inputs["input_ids"].device), inputs).log_probs
        with evaluating(self.model), self.model.disable_adapter():
            return self.forward(self.model, inputs).log_probs

    def refuse_trained_adapter(self, probe: dict[str, Any]) -> None:
        """Raise ValueError if the model without its adapter is not the one that training starts from."""
        if not self.adapted:
            return
        reference = self.log_probs(dict(probe))
        with torch.no_grad(), evaluating(self.model):
            start = self.forward(self.model, dict(probe)).log_probs
        rounding = 0.01 if next(self.model.parameters()).dtype == torch.float32 else 0.1
        if float((start.float() - reference.float()).abs().mean()) > rounding:
            raise ValueError(
                "reference_log_probs: without its adapter this model is not what training starts from: merge "
                "an adapter that was trained before, and begin a new one with zeros, as LoRA does by default"
            )


def _copy_of(model: Any) -> Any:
    """Frozen; TRL's forward, which a copy would share with the model that moves, is made anew."""
    copied = copy.deepcopy(model).eval().requires_grad_(False)
    vars(copied).pop("forward", None)
    add_fused_lm_head(copied, outputs=("log_probs", "entropy", "is_top1"))
    return copied


class Needed:
    """Fills the needs of one objective for a micro-batch."""

    def __init__(self, objective: Objective, window: OldLogProbs | None, reference: Reference | None):
        self.names, self.window, self.reference = needs_of(objective), window, reference

    def __call__(self, index: Tensor, inputs: dict[str, Any], scores: BatchScores) -> dict[str, Tensor]:
        """By name, (B, T−1) each."""
        given: dict[str, Tensor | None] = {"entropy": scores.entropy, "certainty": scores.certainty}
        if self.window is not None:
            given["old_log_probs"] = self.window.of(index, scores)
        if self.reference is not None:
            given["reference_log_probs"] = self.reference.log_probs(inputs)
        found = {name: given[name] for name in self.names}
        return {name: values for name, values in found.items() if values is not None}
