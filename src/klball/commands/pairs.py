"""What commands say of a ball over preference pairs."""

from klball.adversary.sets import AmbiguitySet, Empirical
from klball.objectives.pairs import no_preference_radius
from klball.terminal import is_main, say

RATES = (0.1, 0.2, 0.3)


def say_of_flips(ambiguity: AmbiguitySet) -> None:
    """A line on the radius that label noise allows, where there is a ball that trusts hard pairs."""
    if is_main() and not isinstance(ambiguity, Empirical) and ambiguity.direction == "pessimistic":
        say(flips_sentence())


def flips_sentence() -> str:
    """ε₀(η) at some rates of flipped labels."""
    radii = ", ".join(f"{no_preference_radius(rate):.3f} at η = {rate:g}" for rate in RATES)
    return (
        "If a share η of the labels is flipped, a pessimistic KL ball over pairs learns nothing from the "
        f"radius ε₀(η) = −½ log(4η(1−η)) on: {radii}."
    )
