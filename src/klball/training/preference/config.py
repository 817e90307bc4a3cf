"""The configurations of preference training: TRL's, and the few settings that robust training adds."""

from dataclasses import MISSING, dataclass, field, fields
from typing import Any, ClassVar

from trl import DPOConfig, RewardConfig

from klball.adversary.sets import AmbiguitySet, Empirical
from klball.adversary.trimming import Trimmed
from klball.adversary.upweighting import radius_help
from klball.objectives.pairs import PAIR_LOSSES
from klball.training.arguments import RobustArguments, one_of
from klball.training.preference.comparators import STRENGTHS

WARMUP = 0.1  # at first all losses are alike, and a ball would weigh noise
TRIM = "trim"
UNSUPPORTED = {  # TRL's settings → why a value other than TRL's own is refused
    "use_weighting": "would weigh pairs beside the adversary",
    "ld_alpha": "is not supported",
    "f_divergence_type": "is not supported: only reverse_kl is",
    "f_alpha_divergence_coef": "needs f_divergence_type='alpha_divergence', which is not supported",
    "discopop_tau": "needs loss_type='discopop', which has no place here",
    "padding_free": "is not supported: TRL turns it off",
    "truncation_mode": "is not supported: only keep_start is",
    "loss_weights": "has no effect on one loss type: scale learning_rate",
    "sync_ref_model": "is not supported: checkpoints would not hold the reference",
    "ref_model_mixup_alpha": "needs sync_ref_model, which is not supported",
    "ref_model_sync_steps": "needs sync_ref_model, which is not supported",
}


@dataclass
class PreferenceArguments(RobustArguments):
    """What the configurations share beside `RobustArguments`."""

    units: ClassVar[tuple[str, ...]] = ("pair", "group")

    epsilon: float = field(
        default=0.05,
        metadata={"help": f"Radius of the ball, of KL in nats; 0 for none; {radius_help(0.05)}."},
    )
    epsilon_warmup: float | None = field(  # pyright: ignore[reportIncompatibleVariableOverride]
        default=None,
        metadata={"help": "Share of the steps over which the radius grows from 0; default: .1 of a ball."},
    )
    over: str | None = field(
        default=None,
        metadata={"help": "What the adversary weighs: pair or group; default: as group_column says."},
    )

    def __post_init__(self) -> None:
        one_of("over", self.unit, self.units)
        if (self.unit == "group") != (self.group_column is not None):
            raise ValueError(
                "over='group' needs group_column, the column that names the groups"
                if self.unit == "group"
                else f"group_column has no effect with over={self.over!r}: leave one of them out"
            )
        if not getattr(self, "average_tokens_across_devices", True):
            raise ValueError("average_tokens_across_devices has no effect: losses are means over pairs")
        super().__post_init__()

    # the fields stay as they were given: `dataclasses.replace` derives anew what was left out

    @property
    def unit(self) -> str:
        """What the adversary weighs."""
        if self.over is not None:
            return self.over
        return "group" if self.group_column is not None else self.units[0]

    @property
    def warmup(self) -> float:
        """Share of the steps over which the radius grows from 0."""
        if self.epsilon_warmup is not None:
            return self.epsilon_warmup
        idle = self.reweight == "static" or isinstance(self.ambiguity_set(), Empirical)
        return 0.0 if idle else WARMUP


@dataclass
class ComparatorArguments(PreferenceArguments):
    """Other people's weights, to be compared at the same budget."""

    comparator: str | None = field(
        default=None,
        metadata={"help": "Instead of the ball: dr-dpo, kldpo or group-eg; within it: trim (DORO)."},
    )
    comparator_strength: float | None = field(
        default=None,
        metadata={"help": "dr-dpo and kldpo: temperature (1); group-eg: step (.01); trim: share (.1)."},
    )

    def __post_init__(self) -> None:
        names = (*STRENGTHS, TRIM)
        if self.comparator is None:
            if self.comparator_strength is not None:
                raise ValueError("comparator_strength needs a comparator")
        else:
            one_of("comparator", self.comparator, names)
        if self.comparator in STRENGTHS and (self.epsilon != 0 or self.ambiguity != "kl"):
            raise ValueError(f"comparator={self.comparator!r} weighs in the adversary's place: set epsilon=0")
        if self.comparator == "group-eg" and self.group_column is None:
            raise ValueError("comparator='group-eg' needs group_column, the column that names the groups")
        if self.comparator in ("dr-dpo", "kldpo") and self.group_column is not None:
            raise ValueError(f"group_column has no effect with comparator={self.comparator!r}: leave it out")
        if self.comparator == TRIM and (self.comparator_strength or 0) >= 1:
            raise ValueError(
                f"comparator_strength of trim is the share left out, below 1, not {self.comparator_strength}"
            )
        super().__post_init__()

    def ambiguity_set(self) -> AmbiguitySet:
        """That of the shared fields; what is left after trimming is its data."""
        found = super().ambiguity_set()
        if self.comparator != TRIM:
            return found
        return Trimmed(found, 0.1 if self.comparator_strength is None else self.comparator_strength)


@dataclass
class RobustDPOConfig(ComparatorArguments, DPOConfig):
    """TRL's `DPOConfig` plus the adversary. loss_type: one of `PAIR_LOSSES`.

    Args:
        epsilon: Radius of the ball, of KL in nats; 0 is plain DPO. Over pairs, label noise sets a limit:
            `no_preference_radius`.
        epsilon_warmup: Share of the steps over which the radius grows from 0. Default .1 where there is a
            ball: at first all losses are alike, and the ball would weigh noise.
        over: "pair", or "group": the adversary weighs the groups that `group_column` names. It follows
            noise over pairs and cannot over groups.
        comparator: Another's weights. "dr-dpo": w ∝ exp(−ℓ/β′) in each step, optimistic. "kldpo":
            w = min(10, exp((ℓ − mean ℓ)/τ)) in each step, pessimistic, mean above 1. "group-eg":
            α_g ← α_g·exp(η·mean ℓ_g), normalised, w = α_g/f_g. These need epsilon=0, and depend on the
            size of a step, as their authors define them on batches, but not on how it is accumulated or
            shared out. "trim": the hardest share is left out before the ball (DORO).
        comparator_strength: β′, τ, η or the share; the authors' 1, 1 and .01, and .1.
        ambiguity: As in `RobustSFTConfig`, like the settings that are not named here.

    Raises:
        ValueError: A bad or contradictory value, or a setting of TRL's that has no place here.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_unsupported_settings(self)


@dataclass
class RobustRewardConfig(ComparatorArguments, RewardConfig):
    """TRL's `RewardConfig` plus the adversary; its settings are those of `RobustDPOConfig`.

    Raises:
        ValueError: A bad or contradictory value.
    """


@dataclass
class GDPOConfig(PreferenceArguments, DPOConfig):
    """TRL's `DPOConfig` for Group Distributional Preference Optimization, plus the adversary.

    Args:
        epsilon: Radius of the ball, of KL in nats; 0 is plain GDPO.
        over: "belief": atoms (question, belief) with base weight p*/n, which protects beliefs of few;
            "question"; or "group", of questions, named by `group_column`.
        belief_end: What closes a belief, so that none is the beginning of another.
        epsilon_warmup: As in `RobustDPOConfig`.

    Raises:
        ValueError: A bad or contradictory value, or a setting of TRL's that has no place here.
    """

    units: ClassVar[tuple[str, ...]] = ("belief", "question", "group")

    over: str | None = field(
        default=None,
        metadata={"help": "What the adversary weighs: belief, question or group; default: belief."},
    )
    belief_end: str = field(default="\n", metadata={"help": "The text that closes a belief."})

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_unsupported_settings(self)
        if not isinstance(self.belief_end, str) or not self.belief_end:
            raise ValueError("belief_end must be a text: without it a belief could be part of another")
        if self.precompute_ref_log_probs:
            raise ValueError("precompute_ref_log_probs is not supported by GDPO")


def refuse_unsupported_settings(config: Any) -> None:
    """Raise ValueError for a setting of TRL's `DPOConfig` that has no place, or no effect, here."""
    ours = {f.name: f.default if f.default is not MISSING else None for f in fields(DPOConfig)}
    for name, why in UNSUPPORTED.items():
        if getattr(config, name) != ours[name]:
            raise ValueError(f"{name}={getattr(config, name)!r} {why}")
    if config.precompute_ref_batch_size is not None and not config.precompute_ref_log_probs:
        raise ValueError("precompute_ref_batch_size has no effect without precompute_ref_log_probs")
    if len(config.loss_type) != 1 or config.loss_type[0] not in PAIR_LOSSES:
        raise ValueError(
            f"loss_type must be one of {', '.join(PAIR_LOSSES)}: {', '.join(map(str, config.loss_type))} is "
            "not supported"
        )
    if not config.beta > 0:
        raise ValueError(f"beta must be above 0, not {config.beta!r}: without it no answer is preferred")
    if config.label_smoothing and config.loss_type != ["robust"]:
        raise ValueError("label_smoothing needs loss_type='robust': it is the rate of flipped labels")
