"""RobustSFTConfig: TRL's SFTConfig and the few settings that robust training adds."""

from dataclasses import dataclass, field

from trl import SFTConfig

from klball.adversary.sets import AmbiguitySet, CertaintyKLBall
from klball.adversary.trimming import Trimmed
from klball.adversary.upweighting import radius_help
from klball.objectives.tokens import OBJECTIVES
from klball.training.arguments import RobustArguments, one_of

NORMALIZATION = ("sample", "token", "sum")
ON_INFEASIBLE = ("relax", "raise")


@dataclass
class RobustSFTConfig(RobustArguments, SFTConfig):
    """TRL's `SFTConfig` plus the adversary.

    Args:
        ambiguity: "kl" or "chi2", a ball of radius epsilon, or "cvar", the worst share alpha of the data.
        epsilon: Radius of the ball, of KL in nats; 0 is plain SFT.
        alpha: For "cvar": the share of the data, the worst, that is trained on.
        direction: "pessimistic" weighs what is hard, "optimistic" what is easy.
        max_weight: Largest q_i/f_i that the adversary may use, at least 1.
        epsilon_warmup: Share of the steps over which the radius grows from 0.
        group_column: The adversary weighs the groups that this column names, not single samples.
        trim: Share of the samples, the hardest, that is left out; the adversary has the rest.
        gamma: Bound on the mean self-certainty, nats.
        reweight: "live" (weights follow the model) or "static" (fixed from the starting model).
        objective: Token objective: "nll", "dft", "dft-sequence" or "psft"; None follows `loss_type`.
        entropy_coef: Weight of an entropy bonus, L − coef·H.
        normalization: "sample" (f = 1/n), "token" (f_i ∝ T_i) or "sum" (f = 1/n, scores summed over
            tokens).
        psft_clip: For "psft": the upper clip c of the ratio.
        psft_refresh: For "psft": optimizer steps between refreshes of p^old.
        psft_warmup_steps: For "psft": the steps before the first refresh, whose gradient is the NLL's.
        rescore_steps: Optimizer steps between full re-scorings of all samples, each n forwards. None:
            ⌈16 KL⌉ an epoch, from 1 to 10, KL being that of the weights, and whenever all scores have
            drifted by .3 λ, at most 20 an epoch. 0: never.
        on_infeasible: Where no Q meets gamma: "relax" it, or "raise".
        certainty_gradient: Add the −β Σ q ∇C of the envelope theorem.
        assistant_only_loss: Train on assistant turns only; None: yes for `messages` data.

    Raises:
        ValueError: A bad or contradictory value.
    """

    epsilon: float = field(
        default=0.05,
        metadata={"help": f"Radius of the ball, of KL in nats; 0 is plain SFT; {radius_help(0.05)}."},
    )
    trim: float = field(
        default=0.0,
        metadata={
            "help": "Share of the samples, the hardest, left out as doubtful before the rest is weighed."
        },
    )
    gamma: float | None = field(
        default=None, metadata={"help": "Upper bound on the mean self-certainty under the weights, nats."}
    )
    objective: str | None = field(
        default=None,
        metadata={"help": "nll, dft, dft-sequence or psft; default: loss_type."},
    )
    psft_clip: float = field(default=0.28, metadata={"help": "PSFT: tokens above the ratio 1 + c rest."})
    psft_refresh: int = field(
        default=8, metadata={"help": "PSFT: optimizer steps between refreshes of the old probabilities."}
    )
    psft_warmup_steps: int = field(
        default=0, metadata={"help": "PSFT: optimizer steps of plain NLL before it begins."}
    )
    entropy_coef: float = field(default=0.0, metadata={"help": "Weight of the entropy bonus, L - coef*H."})
    normalization: str = field(
        default="sample", metadata={"help": "'sample' (f = 1/n), 'token' (f ~ answer tokens) or 'sum'."}
    )
    on_infeasible: str = field(
        default="relax", metadata={"help": "When gamma becomes infeasible: 'relax' it or 'raise'."}
    )
    certainty_gradient: bool = field(
        default=False, metadata={"help": "Add the gradient of the certainty (envelope theorem)."}
    )
    assistant_only_loss: bool | None = field(  # pyright: ignore[reportIncompatibleVariableOverride]
        default=None, metadata={"help": "Train on assistant turns only; default: yes for `messages` data."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("normalization", self.normalization, NORMALIZATION)
        one_of("on_infeasible", self.on_infeasible, ON_INFEASIBLE)
        if self.objective is not None:
            one_of("objective", self.objective, tuple(OBJECTIVES))
            if self.loss_type not in ("nll", self.objective):
                raise ValueError(
                    f"objective={self.objective!r} contradicts loss_type={self.loss_type!r}: set one of them"
                )
        for name in ("psft_clip", "psft_refresh", "psft_warmup_steps"):
            for_own = self.objective is None and name != "psft_clip"  # the trainer's objective may need it
            if self.objective != "psft" and not for_own and getattr(self, name) != getattr(type(self), name):
                raise ValueError(f"{name} needs objective='psft'")
        if self.certainty_gradient and self.gamma is None:
            raise ValueError("certainty_gradient needs gamma: without it certainty plays no part")
        if self.certainty_gradient and self.reweight == "static":
            raise ValueError("certainty_gradient needs reweight='live': static weights have no multiplier")

    def ambiguity_set(self) -> AmbiguitySet:
        """That of the shared fields, with a bound on the certainty where there is a gamma, and trimmed."""
        found = super().ambiguity_set()
        if self.gamma is not None:
            found = CertaintyKLBall(self.epsilon, self.gamma, self.max_weight, self.direction)
        return Trimmed(found, self.trim) if self.trim else found
