"""The fields that the configuration of every robust trainer shares."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, get_args, get_origin, get_type_hints

from klball.adversary.sets import AmbiguitySet, ChiSquareBall, CVaR, Empirical, KLBall
from klball.adversary.upweighting import radius_in_words
from klball.training.bounds import BOUNDS, check_bounds

REWEIGHT = ("live", "static")
OF_SETS = ("ambiguity", "direction", "max_weight")
OF_ADVERSARY = (*OF_SETS, "reweight", "rescore_steps")
LOWER_IS_BETTER = (  # ends of the names of metrics; of the others Transformers takes the greatest
    *("loss", "cvar", "perplexity_token", "perplexity_sample", "hardest_1pct"),
    *("belief_kl", "belief_nll", "text_dpo", "js_distance"),
)
UNUSED = {"kl": ("alpha",), "chi2": ("alpha", "gamma"), "cvar": ("radius", "gamma", "max_weight")}


@dataclass
class RobustArguments:
    """The adversary, before a configuration of TRL's. Raises ValueError for a bad or contradictory value.

    A family adds the radius: `epsilon`, or `radius` where TRL's own `epsilon` is a clip.
    """

    radius_field: ClassVar[str] = "epsilon"

    ambiguity: str = field(
        default="kl", metadata={"help": "What the adversary may do: kl or chi2 (a ball), or cvar (a share)."}
    )
    alpha: float | None = field(
        default=None, metadata={"help": "cvar: the share of the data, the worst, that is trained on."}
    )
    direction: str = field(
        default="pessimistic",
        metadata={"help": "pessimistic: hard samples weigh more; optimistic: easy ones do."},
    )
    max_weight: float | None = field(
        default=None,
        metadata={"help": "Largest weight of a sample relative to plain averaging (at least 1)."},
    )
    epsilon_warmup: float = field(
        default=0.0, metadata={"help": "Share of the steps over which the radius grows from 0."}
    )
    group_column: str | None = field(
        default=None, metadata={"help": "Weigh the groups that this column names, not single samples."}
    )
    reweight: str = field(
        default="live", metadata={"help": "'live': weights follow the model; 'static': fixed from its start."}
    )
    rescore_steps: int | None = field(
        default=None,
        metadata={
            "help": "Optimizer steps between full re-scorings; default: as radius and drift ask; 0: never."
        },
    )

    def __post_init__(self) -> None:
        check_bounds(vars(self))
        _refuse_other_types(self)
        given: Any = self
        if given.greater_is_better is None and str(given.metric_for_best_model).endswith(LOWER_IS_BETTER):
            given.greater_is_better = False
        parent: Any = super()
        parent.__post_init__()
        self.ambiguity_set()  # raises for bad values
        one_of("reweight", self.reweight, REWEIGHT)
        if self.warmup is None:
            raise ValueError("epsilon_warmup must be a share, from 0 to 1, not None")
        if self.reweight == "static":
            for name, given in (
                ("rescore_steps", self.rescore_steps is not None),
                ("epsilon_warmup", self.warmup > 0),
            ):
                if given:
                    raise ValueError(f"{name} needs reweight='live': static weights stay")
        found = self.ambiguity_set()
        if isinstance(found, Empirical):
            if self.warmup:
                raise ValueError("epsilon_warmup needs a radius above 0 to grow to")
            self._refuse_idle(OF_ADVERSARY)
        elif isinstance(getattr(found, "inner", None), Empirical):  # the hardest left out, and no ball
            self._refuse_idle(OF_SETS)

    def _refuse_idle(self, names: Sequence[str]) -> None:
        for name in names:
            if getattr(self, name) not in (getattr(type(self), name), 0):  # rescore_steps=0: never
                raise ValueError(f"{name} has no effect with {self.radius_field}=0: leave one of them out")

    @property
    def warmup(self) -> float:
        """Share of the steps over which the radius grows from 0."""
        return self.epsilon_warmup

    @property
    def adversary_radius(self) -> float:
        """Of the ball, whatever the field is called."""
        return getattr(self, self.radius_field)

    def radius_in_words(self) -> str:
        """What the radius lets a share of the data count; "" where there is no KL ball."""
        ball = self.ambiguity == "kl" and self.adversary_radius > 0
        return radius_in_words(self.adversary_radius, self.max_weight) if ball else ""

    def ambiguity_set(self) -> AmbiguitySet:
        """The set of ambiguity, the radius, alpha, direction and max_weight."""
        one_of("ambiguity", self.ambiguity, tuple(UNUSED))
        for unused in UNUSED[self.ambiguity]:
            name = self.radius_field if unused == "radius" else unused
            if getattr(self, name, None) != getattr(type(self), name, None):
                raise ValueError(f"{name} has no effect with ambiguity={self.ambiguity!r}: leave it out")
        if self.ambiguity == "cvar":
            if self.alpha is None:
                raise ValueError("ambiguity='cvar' needs alpha, the share of the data to train on")
            return CVaR(self.alpha, self.direction)
        if self.adversary_radius == 0:
            KLBall(0.0, self.max_weight, self.direction)  # for its refusals
            return Empirical()
        ball = ChiSquareBall if self.ambiguity == "chi2" else KLBall
        return ball(self.adversary_radius, self.max_weight, self.direction)


def _refuse_other_types(config: Any) -> None:
    """What argparse sees to on the command line: whole numbers, one number, mappings."""
    for name, hint in get_type_hints(type(config)).items():
        kinds = {get_origin(kind) or kind for kind in get_args(hint) or (hint,)}
        value = getattr(config, name, None)
        whole = int in kinds and float not in kinds
        several = isinstance(value, list | tuple) and list not in kinds
        if name in BOUNDS and (several or (whole and isinstance(value, float))):
            raise ValueError(f"{name} must be a {'whole ' * whole}number, not {value!r}")
        if dict in kinds and not kinds & {list, int, bool} and isinstance(value, list | int | float):
            raise ValueError(f"{name} must be a mapping, not {value!r}")


def one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise ValueError for a word that is not among those allowed."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, not {value!r}")
