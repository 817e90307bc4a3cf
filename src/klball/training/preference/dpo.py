"""RobustDPOTrainer: TRL's DPOTrainer whose loss weighs preference pairs as the worst case would."""

import logging
from typing import Any, ClassVar

import torch
from datasets import Dataset
from torch import Tensor
from trl import DPOTrainer

from klball.adversary.sets import AmbiguitySet
from klball.models.weights import weights_of
from klball.objectives.pairs import PAIR_LOSSES, LogRatios
from klball.training.checkpoints import located
from klball.training.evaluation import WORST_CASES
from klball.training.preference.config import RobustDPOConfig
from klball.training.preference.forward import (
    answers,
    log_ratios,
    pair_metrics,
    ratio_columns,
    reference,
    rounding,
)
from klball.training.preference.refusals import refuse_unfit_model, refuse_unsupported
from klball.training.preference.trainer import (
    PreferenceTrainer,
    prepared_arguments,
    refuse_lost_rows,
    units_of,
)
from klball.training.sharding import holds_nothing
from klball.training.step import UnitBatch

logger = logging.getLogger(__name__)


class RobustDPOTrainer(PreferenceTrainer, DPOTrainer):  # pyright: ignore[reportIncompatibleMethodOverride]
    """`trl.DPOTrainer` with the same arguments, data formats and callbacks, and an adversary.

    Per optimizer step, with λ and μ solved on the ledger of all pairs' losses ℓ and then frozen:

        w_i = min(c, exp((μ + ℓ_i)/λ))     ℓ_i fresh and detached; "optimistic": exp((μ − ℓ_i)/λ)
        loss = Σ_i w_i·ℓ_i / pairs in the step,     ℓ = −log σ(βΔ), or another of `loss_type`

    so gradients do not depend on micro-batches, accumulation, padding or the number of processes, as TRL's
    means of micro-batch means do, and at ε = 0 they are TRL's on one batch.

    What is logged: docs/formats.md, "What training logs". A comparator's weights are in `mean_weight` and
    `max_weight`.

    Args:
        model: As in `trl.DPOTrainer`: a model or a name.
        ref_model: As there; None: the model's own start, or with an adapter the model without it.
        args: A `RobustDPOConfig`.
        *positional: None are taken; they are here to be refused.
        ambiguity: An ambiguity set that needs the score, instead of the configured one.
        **kwargs: The other arguments of `trl.DPOTrainer`: train_dataset, processing_class, ….

    Raises:
        ValueError: A combination that is not supported, or data of which no pair is left.
    """

    _tag_names: ClassVar = ["klball", "robust-dpo"]
    metrics: ClassVar = (
        "loss",
        "rewards/margins",
        "rewards/accuracies",
        "rewards/chosen",
        "logps/chosen",
        *WORST_CASES,
    )
    args: Any

    def __init__(
        self,
        model: Any,
        ref_model: Any = None,
        args: RobustDPOConfig | None = None,
        *positional: Any,
        ambiguity: AmbiguitySet | None = None,
        **kwargs: Any,
    ):
        model, ref_model = located(model), located(ref_model)
        args = args or RobustDPOConfig(output_dir="robust-dpo")
        given = {**kwargs, "model": model, "ref_model": ref_model}
        refuse_unsupported(RobustDPOTrainer, RobustDPOConfig, args, positional, given, ambiguity)
        args, peft_config = prepared_arguments(args, kwargs, self.columns)
        self.given_rows = kwargs["train_dataset"]
        if holds_nothing(ref_model):
            raise ValueError(
                "under ZeRO-3 it cannot be seen whether the policy starts as its reference, where the ball "
                "would weigh rounding: train DPO with FSDP2 or an adapter"
            )
        self._own_start = ref_model is None or _same_weights(model, ref_model)
        loaded = ref_model is None and isinstance(given["model"], torch.nn.Module)  # TRL loads what was saved
        if not loaded:
            self._refuse_static(args)
        super().__init__(model, ref_model, args, **kwargs)
        if loaded and self.ref_model is not None and _differ(self.model, self.ref_model):
            self._own_start = False
            logger.warning(
                "the model is not what is saved as %s, which TRL takes for its reference: give ref_model if "
                "the reference is to be the model as it is now",
                self.model.config._name_or_path,
            )
        self._refuse_static(self.args)
        refuse_unfit_model(self)
        self._pair_loss = PAIR_LOSSES[self.args.loss_type[0]]
        self.init_units(ambiguity, peft_config)

    def _refuse_static(self, args: Any) -> None:
        if self._own_start and args.reweight == "static":
            raise ValueError(
                "reweight='static' would weigh all pairs alike: the policy starts as its own reference, and "
                "then all pairs cost the same. Use 'live', or in Python another model as ref_model"
            )

    def _prepare_dataset(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, dataset: Any, processing_class: Any, args: Any, dataset_name: str
    ) -> Any:
        """TRL's preparation, counting the pairs that it drops and those that its collator will cut."""
        prepared: Any = super()._prepare_dataset(dataset, processing_class, args, dataset_name)
        limit = args.max_length
        cut = 0 if limit is None else sum(length > 2 * limit for length in self.row_lengths(prepared))
        refuse_lost_rows(dataset_name, len(dataset), len(prepared), limit, "their prompt fills", cut)
        return prepared

    def row_lengths(self, rows: Dataset) -> list[int]:
        columns = (rows["prompt_ids"], rows["chosen_ids"], rows["rejected_ids"])
        return [2 * (len(p) + max(len(c), len(r))) for p, c, r in zip(*columns, strict=True)]

    def unit_batch(self, model: Any, inputs: dict[str, Any]) -> UnitBatch:
        """Losses of the pairs."""
        found = answers(model, inputs)
        ratios = log_ratios(found.log_probs, reference(self, inputs), inputs)
        losses = self._pair_loss(ratios, self.beta, self.label_smoothing)
        return units_of(losses, {**found.columns, **ratio_columns(ratios)})

    def common_start(self) -> float | None:
        """Minus the loss of any pair while the policy is still its reference."""
        if not self._own_start:
            return None
        return -self._loss_at(0.0, 1.0)

    def start_noise(self) -> float:
        """What rounding makes of a loss at the start: in bf16 it exceeds what first steps change."""
        if not self._own_start:
            return 0.0
        rows = self.train_dataset
        tokens = sum(map(len, rows["chosen_ids"])) / len(rows)
        apart = rounding(self.model, self.accelerator, 2 * tokens)
        return max(abs(self._loss_at(x, tokens) - self._loss_at(0.0, tokens)) for x in (apart, -apart))

    def _loss_at(self, apart: float, tokens: float) -> float:
        """ℓ of a pair of answers of so many tokens whose log-ratios differ by that."""
        ratio, zero, count = torch.tensor([apart]), torch.zeros(1), torch.tensor([tokens])
        ratios = LogRatios(chosen=ratio, rejected=zero, chosen_tokens=count, rejected_tokens=count)
        return float(self._pair_loss(ratios, self.beta, self.label_smoothing))

    def step_metrics(self, columns: dict[str, Tensor]) -> dict[str, float]:
        return {"plain_loss": -float(columns["score"].mean()), **pair_metrics(columns, self.beta)}


def _same_weights(model: Any, reference: Any) -> bool:
    """Whether two loaded models are one, weight by weight; not known of sharded ones."""
    if not isinstance(model, torch.nn.Module):
        return False
    own, others = dict(weights_of(model)), dict(weights_of(reference))
    return own.keys() == others.keys() and all(
        values.numel() > 0 and values.device == others[name].device and torch.equal(values, others[name])
        for name, values in own.items()
    )


def _differ(model: Any, reference: Any) -> bool:
    """Whether two loaded models are known to differ in a weight; of sharded ones nothing is."""
    others = dict(weights_of(reference))
    return any(
        values.numel() > 0
        and (values.device, values.dtype) == (others[name].device, others[name].dtype)
        and not torch.equal(values, others[name])
        for name, values in weights_of(model)
        if name in others
    )
