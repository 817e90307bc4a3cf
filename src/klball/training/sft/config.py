"""RobustSFTConfig: TRL's SFTConfig and the few settings that robust training adds."""

from dataclasses import dataclass, field
from typing import get_args, get_origin, get_type_hints

from trl import SFTConfig

from klball.adversary.sets import (
    AmbiguitySet,
    CertaintyKLBall,
    ChiSquareBall,
    CVaR,
    Empirical,
    KLBall,
)
from klball.objectives.tokens import OBJECTIVES, PROXIMAL
from klball.training.bounds import BOUNDS, check_bounds

REWEIGHT = ("live", "static")
NORMALIZATION = ("sample", "token", "sum")
ON_INFEASIBLE = ("relax", "raise")
UNUSED = {"kl": ("alpha",), "chi2": ("alpha", "gamma"), "cvar": ("epsilon", "gamma", "max_weight")}


@dataclass
class RobustSFTConfig(SFTConfig):
    """TRL's `SFTConfig` plus the adversary. Raises ValueError for a bad or contradictory value.

    ambiguity: "kl" or "chi2", a ball of radius epsilon, or "cvar", the worst share alpha of the data.
    epsilon: radius of the ball, of KL in nats; 0 is plain SFT. direction: "pessimistic" weighs what is
    hard, "optimistic" what is easy (and so mistrusts noise). gamma: bound on the mean self-certainty.
    max_weight: largest q_i/f_i the adversary may use. reweight: "live" (weights follow the model) or
    "static" (fixed from the starting model). objective: token objective; None follows `loss_type`.
    entropy_coef: weight of an entropy bonus, L − coef·H. normalization: "sample" (f = 1/n), "token"
    (f_i ∝ T_i) or "sum" (f = 1/n, scores summed over tokens). psft_clip, psft_refresh, psft_warmup_steps:
    for objective="psft", the upper clip c of the ratio, the optimizer steps between refreshes of p^old, and
    the steps of plain NLL before the first. rescore_steps: optimizer steps between full
    re-scorings of all samples, each n forwards (None: ⌈16 KL⌉ an epoch, from 1 to 10, KL being that of the
    weights, and whenever all scores have drifted by .3 λ, at most 20 an epoch; 0: never).
    on_infeasible: "relax" gamma or "raise". certainty_gradient: add the −β Σ q ∇C of the envelope theorem.
    """

    ambiguity: str = field(
        default="kl", metadata={"help": "What the adversary may do: kl or chi2 (a ball), or cvar (a share)."}
    )
    epsilon: float = field(
        default=0.05, metadata={"help": "Radius of the ball, of KL in nats; 0 is plain SFT."}
    )
    alpha: float | None = field(
        default=None, metadata={"help": "cvar: the share of the data, the worst, that is trained on."}
    )
    direction: str = field(
        default="pessimistic",
        metadata={"help": "pessimistic: hard samples weigh more; optimistic: easy ones do."},
    )
    gamma: float | None = field(
        default=None, metadata={"help": "Upper bound on the mean self-certainty under the weights, nats."}
    )
    max_weight: float | None = field(
        default=None,
        metadata={"help": "Largest weight of a sample relative to plain averaging (at least 1)."},
    )
    reweight: str = field(
        default="live", metadata={"help": "'live': weights follow the model; 'static': fixed from its start."}
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
    rescore_steps: int | None = field(
        default=None,
        metadata={
            "help": "Optimizer steps between full re-scorings; default: as radius and drift ask; 0: never."
        },
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
        check_bounds(vars(self))
        _refuse_other_types(self)
        super().__post_init__()
        self.ambiguity_set()  # raises for bad values
        _one_of("reweight", self.reweight, REWEIGHT)
        _one_of("normalization", self.normalization, NORMALIZATION)
        _one_of("on_infeasible", self.on_infeasible, ON_INFEASIBLE)
        if self.objective is not None:
            _one_of("objective", self.objective, (*OBJECTIVES, PROXIMAL))
            if self.loss_type not in ("nll", self.objective):
                raise ValueError(
                    f"objective={self.objective!r} contradicts loss_type={self.loss_type!r}: set one of them"
                )
        for name in ("psft_clip", "psft_refresh", "psft_warmup_steps"):
            if self.objective != PROXIMAL and getattr(self, name) != getattr(type(self), name):
                raise ValueError(f"{name} needs objective={PROXIMAL!r}")
        if self.rescore_steps is not None and self.reweight == "static":
            raise ValueError("rescore_steps needs reweight='live': static weights stay")
        if self.certainty_gradient and self.gamma is None:
            raise ValueError("certainty_gradient needs gamma: without it certainty plays no part")
        if self.certainty_gradient and self.reweight == "static":
            raise ValueError("certainty_gradient needs reweight='live': static weights have no multiplier")

    def ambiguity_set(self) -> AmbiguitySet:
        """The set of ambiguity, epsilon, alpha, direction, gamma and max_weight."""
        _one_of("ambiguity", self.ambiguity, tuple(UNUSED))
        for name in UNUSED[self.ambiguity]:
            if getattr(self, name) != getattr(type(self), name):
                raise ValueError(f"{name} has no effect with ambiguity={self.ambiguity!r}: leave it out")
        if self.ambiguity == "cvar":
            if self.alpha is None:
                raise ValueError("ambiguity='cvar' needs alpha, the share of the data to train on")
            return CVaR(self.alpha, self.direction)
        if self.epsilon == 0 and self.gamma is None:
            KLBall(0.0, self.max_weight, self.direction)  # for its refusals
            return Empirical()
        if self.ambiguity == "chi2":
            return ChiSquareBall(self.epsilon, self.max_weight, self.direction)
        if self.gamma is not None:
            return CertaintyKLBall(self.epsilon, self.gamma, self.max_weight, self.direction)
        return KLBall(self.epsilon, self.max_weight, self.direction)


def _refuse_other_types(config: RobustSFTConfig) -> None:
    """What argparse sees to on the command line: whole numbers, one number, mappings."""
    for name, hint in get_type_hints(type(config)).items():
        kinds = {get_origin(kind) or kind for kind in get_args(hint) or (hint,)}
        value = getattr(config, name, None)
        whole = int in kinds and float not in kinds
        if name in BOUNDS and (isinstance(value, list | tuple) or (whole and isinstance(value, float))):
            raise ValueError(f"{name} must be a {'whole ' * whole}number, not {value!r}")
        if dict in kinds and not kinds & {list, int, bool} and isinstance(value, list | int | float):
            raise ValueError(f"{name} must be a mapping, not {value!r}")


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, not {value!r}")
