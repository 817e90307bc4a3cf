"""RobustGRPOConfig: TRL's GRPOConfig and the few settings that the adversary and the critic add."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from trl import GRPOConfig

from klball.adversary.upweighting import radius_help
from klball.training.arguments import RobustArguments, one_of
from klball.training.rl.settings import refuse_without_effect

OVER = ("prompt", "group")
PRESETS: dict[str, dict[str, Any]] = {
    # the clipped surrogate with a group baseline; with the critic it is PPO
    "ppo": dict(num_iterations=4, epsilon=0.2, beta=0.05, entropy_coef=0.01, disable_dropout=True),
}
OF_THE_CRITIC = ("gae_gamma", "gae_lambda", "value_clip", "critic_learning_rate")
NORMALISED = {  # loss types that look beyond the completion: what they do
    "bnpo": "averages over the tokens of each micro-batch, so gradients change with its size",
    **dict.fromkeys(
        ("dapo", "cispo", "vespo"),
        "divides by the tokens of a whole batch of rollouts, so a prompt counts less among long completions",
    ),
}


@dataclass
class RobustGRPOConfig(RobustArguments, GRPOConfig):
    """TRL's `GRPOConfig`, whose `epsilon` stays the clip of the ratio, plus the adversary over prompts.

    Args:
        radius: Radius of the ball, of KL in nats; 0 is TRL's own GRPO.
        over: What the adversary weighs: each "prompt", or each "group" of prompts that `group_column` names.
        max_weight: Largest q/f of a prompt, at least 1; None: no cap. A prompt that is never solved takes
            weight and gives no gradient.
        shrinkage: κ of the shrunken mean rewards (G p̂ + κ m)/(G + κ), in completions; None: estimated for
            prompts, 0 for groups, whose means are of many completions.
        preset: "ppo" sets num_iterations 4, epsilon .2, beta .05, entropy_coef .01 and disable_dropout,
            each where it was left at its default: the clipped surrogate with a group baseline.
        critic: Advantages of a token-level value model by GAE, not of the group's mean: PPO.
        gae_gamma: γ of the generalised advantage estimator.
        gae_lambda: Its λ.
        value_clip: How far a value may move in one batch of rollouts before its loss is clipped.
        critic_learning_rate: That of the value model, constant.
        scale_rewards: "none", TRL's "group" or "batch": whether advantages are divided by a deviation.
        loss_type: TRL's, "dr_grpo" by default.
        ambiguity: As in `RobustSFTConfig`, and so are alpha, direction, epsilon_warmup and group_column.

    Raises:
        ValueError: A bad or contradictory value.
    """

    radius_field: ClassVar[str] = "radius"

    radius: float = field(
        default=0.05,
        metadata={
            "help": f"Radius ε of the ball over prompts, of KL in nats; 0 is plain GRPO; {radius_help(0.05)}."
        },
    )
    over: str = field(
        default="prompt", metadata={"help": "What the adversary weighs: 'prompt', or 'group' (group_column)."}
    )
    max_weight: float | None = field(
        default=4.0, metadata={"help": "Largest weight of a prompt relative to plain averaging (at least 1)."}
    )
    shrinkage: float | None = field(
        default=None,
        metadata={"help": "Completions that the common mean counts for in a pass rate; default: estimated."},
    )
    scale_rewards: str = field(
        default="none",
        metadata={"help": "'none': advantages in units of reward; 'group' or 'batch': divided by its sd."},
    )
    loss_type: str = field(
        default="dr_grpo",
        metadata={"help": "TRL's loss; 'dr_grpo', 'grpo', 'sapo' and 'luspo' do not depend on batching."},
    )
    preset: str | None = field(
        default=None, metadata={"help": "'ppo': clipped surrogate with several iterations, KL and entropy."}
    )
    critic: bool = field(
        default=False, metadata={"help": "Advantages from a token-level value model (PPO), not the group."}
    )
    gae_gamma: float = field(default=1.0, metadata={"help": "Critic: discount of later rewards."})
    gae_lambda: float = field(
        default=0.95, metadata={"help": "Critic: 1 trusts returns alone, 0 the value model alone."}
    )
    value_clip: float = field(
        default=0.5, metadata={"help": "Critic: how far a value may move before its loss is clipped."}
    )
    critic_learning_rate: float = field(default=1e-5, metadata={"help": "Critic: its learning rate."})

    def __post_init__(self) -> None:
        if self.generation_batch_size and self.steps_per_generation:
            step = self.per_device_train_batch_size * self.steps_per_generation
            if self.generation_batch_size % step == 0:  # both were settled before dataclasses.replace
                self.generation_batch_size = None
        one_of("over", self.over, OVER)
        if self.preset is not None:
            one_of("preset", self.preset, tuple(PRESETS))
            for name, value in PRESETS[self.preset].items():
                if getattr(self, name) == type(self).__dataclass_fields__[name].default:
                    setattr(self, name, value)
        super().__post_init__()
        refuse_without_effect(self)
        self._refuse_useless()

    def _refuse_useless(self) -> None:
        if (self.over == "group") != (self.group_column is not None):
            raise ValueError("over='group' and group_column go together: set both, or neither")
        if self.reweight != "live" or self.rescore_steps is not None:
            name = "reweight" if self.reweight != "live" else "rescore_steps"
            raise ValueError(f"{name} has no effect here: a prompt's reward is known once it was visited")
        if self.radius == 0 and self.shrinkage is not None:
            raise ValueError("shrinkage has no effect without an adversary: set a radius above 0")
        for name in OF_THE_CRITIC:
            if not self.critic and getattr(self, name) != getattr(type(self), name):
                raise ValueError(f"{name} needs critic=True")
        if self.critic and self.fp16:
            raise ValueError("critic=True loses small gradients with fp16=True: use bf16=True")
        for name in ("scale_rewards", "multi_objective_aggregation"):
            if self.critic and getattr(self, name) != type(self).__dataclass_fields__[name].default:
                raise ValueError(f"{name} has no effect with critic=True: advantages come from its values")
        whole = self.gradient_accumulation_steps % self.steps_an_answer == 0
        if not whole and (self.load_best_model_at_end or self.save_strategy == "best"):
            raise ValueError(
                "the best checkpoint can be kept only where every step ends a batch of rollouts: "
                "gradient_accumulation_steps must be a multiple of steps_per_generation * num_iterations "
                f"= {self.steps_an_answer}"
            )

    @property
    def steps_an_answer(self) -> int:
        """Micro-batches, of this process, that are drawn from one batch of rollouts."""
        return int(self.steps_per_generation or 1) * self.num_iterations

    def departures(self) -> list[str]:
        """What the chosen settings depart from: one line each, for the log."""
        lines = []
        if self.epsilon != 0.2 and self.radius == type(self).radius:
            lines.append(
                f"epsilon={self.epsilon} is TRL's clip of the ratio; the radius of the ball is "
                f"radius={self.radius}"
            )
        if (what := NORMALISED.get(self.loss_type)) is not None:
            lines.append(f"loss_type={self.loss_type!r} {what}: 'dr_grpo' does neither")
        if self.multi_objective_aggregation != "sum_then_normalize":
            lines.append(
                f"multi_objective_aggregation={self.multi_objective_aggregation!r} divides rewards by their "
                "standard deviation: the worst-case reward is not what is maximised"
            )
        elif self.scale_rewards != "none":
            lines.append(
                f"scale_rewards={self.scale_rewards!r} divides advantages by a standard deviation, which for "
                "0/1 rewards climbs 2·arcsin √p and not the pass rate p: 'none' climbs the worst-case reward"
            )
        if self.entropy_coef and self.gradient_accumulation_steps > 1:
            lines.append(
                "entropy_coef: TRL's bonus is a mean over the tokens of each micro-batch, so its gradient "
                "changes with their size"
            )
        return lines
