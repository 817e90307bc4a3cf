"""RobustRewardTrainer: TRL's RewardTrainer whose loss weighs preference pairs as the worst case would."""

from typing import Any, ClassVar

import torch
from datasets import Dataset
from torch import Tensor
from trl import RewardTrainer

from klball.adversary.sets import AmbiguitySet
from klball.data.preferences import MARGIN, margins_of
from klball.objectives.pairs import bradley_terry
from klball.training.batches import INDEX
from klball.training.checkpoints import located
from klball.training.evaluation import WORST_CASES
from klball.training.preference.config import RobustRewardConfig
from klball.training.preference.refusals import (
    refuse_other_head,
    refuse_other_task,
    refuse_unsupported,
    refuse_untrained_head,
)
from klball.training.preference.trainer import (
    PreferenceTrainer,
    prepared_arguments,
    refuse_lost_rows,
    units_of,
)
from klball.training.step import UnitBatch


class RobustRewardTrainer(PreferenceTrainer, RewardTrainer):  # pyright: ignore[reportIncompatibleMethodOverride]
    """`trl.RewardTrainer` with the same arguments, data formats and callbacks, and an adversary.

    As `RobustDPOTrainer`, with the rewards r of both answers, m their `margin` or 0, and c the
    `center_rewards_coefficient`:

        ℓ = −log σ(r_w − r_l − m) + c·(r_w + r_l)²

    Args:
        model: As in `trl.RewardTrainer`: a sequence classifier of one label, or a name.
        args: A `RobustRewardConfig`.
        *positional: None are taken; they are here to be refused.
        ambiguity: An ambiguity set that needs the score, instead of the configured one.
        **kwargs: The other arguments of `trl.RewardTrainer`: train_dataset, processing_class, ….

    Raises:
        ValueError: A combination that is not supported, or data of which no pair is left.
    """

    _tag_names: ClassVar = ["klball", "robust-reward"]
    metrics: ClassVar = ("loss", "accuracy", "margin", "mean_reward", *WORST_CASES)
    tokens: ClassVar = ("chosen_ids", "rejected_ids")
    args: Any

    def __init__(
        self,
        model: Any,
        args: RobustRewardConfig | None = None,
        *positional: Any,
        ambiguity: AmbiguitySet | None = None,
        **kwargs: Any,
    ):
        model, args = located(model), args or RobustRewardConfig(output_dir="robust-reward")
        given = {**kwargs, "model": model}
        refuse_unsupported(RobustRewardTrainer, RobustRewardConfig, args, positional, given, ambiguity)
        args, peft_config = prepared_arguments(args, kwargs, self.columns, self.tokens)
        self.given_rows = kwargs["train_dataset"]
        refuse_other_task(peft_config)
        super().__init__(model, args, **kwargs)
        refuse_untrained_head(self.model)
        refuse_other_head(self.model, self.args)
        self.init_units(ambiguity, peft_config)

    def _prepare_dataset(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, dataset: Any, processing_class: Any, args: Any, dataset_name: str
    ) -> Any:
        """TRL's preparation, counting the pairs that it drops."""
        if MARGIN in dataset.column_names:
            numbers = margins_of(dataset)
            dataset = dataset.remove_columns(MARGIN).add_column(MARGIN, numbers)
        prepared: Any = super()._prepare_dataset(dataset, processing_class, args, dataset_name)
        refuse_lost_rows(dataset_name, len(dataset), len(prepared), args.max_length, "an answer exceeds")
        return prepared

    def row_lengths(self, rows: Dataset) -> list[int]:
        return [
            2 * max(map(len, pair)) for pair in zip(rows["chosen_ids"], rows["rejected_ids"], strict=True)
        ]

    def unit_batch(self, model: Any, inputs: dict[str, Any]) -> UnitBatch:
        """Losses of the pairs; TRL's collator has all chosen answers first."""
        given = {name: value for name, value in inputs.items() if name not in (MARGIN, INDEX)}
        rewards = model(**given, use_cache=False).logits.squeeze(-1)  # (2B)
        rewards = rewards.to(torch.promote_types(rewards.dtype, torch.float32))
        chosen, rejected = rewards.chunk(2)
        losses = bradley_terry(
            chosen, rejected, inputs.get(MARGIN), self.args.center_rewards_coefficient or 0.0
        )
        sizes = inputs["attention_mask"].sum(1).view(2, -1).sum(0)
        return units_of(losses, {"num_inputs": sizes, "chosen": chosen, "rejected": rejected})

    def step_metrics(self, columns: dict[str, Tensor]) -> dict[str, float]:
        chosen, rejected = columns["chosen"], columns["rejected"]
        rewards = torch.cat([chosen, rejected])
        return {
            "plain_loss": -float(columns["score"].mean()),
            "accuracy": float((chosen > rejected).double().mean()),
            "margin": float((chosen - rejected).mean()),
            "min_reward": float(rewards.min()),
            "mean_reward": float(rewards.mean()),
            "max_reward": float(rewards.max()),
        }
