"""How many times a share of the data may count at a radius (mathematics.md, "What ε means")."""

import math

from klball.adversary.dual import solve_dual
from klball.adversary.inputs import cap, is_finite

SHARES = (0.01, 0.05, 0.2)  # of the data, that sentences speak of


def upweighting(epsilon: float, share: float, max_weight: float | None = None) -> float:
    """The most m that a share f of the data may count in the ball: its mass becomes m·f.

        m·f = q ≥ f with KL(Bernoulli(q)‖Bernoulli(f)) = ε;   1/f from ε = −log f on

    Args:
        epsilon: Radius of the ball, nats.
        share: f, above 0 and at most 1.
        max_weight: c ≥ 1, a bound on q_i/f_i, and so on m.

    Raises:
        ValueError: A bad radius, share or cap.
    """
    if not (is_finite(share) and 0 < share <= 1):
        raise ValueError(f"share must be above 0 and at most 1, not {share!r}")
    cap(max_weight)
    mass = -solve_dual([-1.0, 0.0], epsilon=epsilon, base_weights=[share, 1 - share]).worst_case
    return min(max(1.0, mass / share), math.inf if max_weight is None else max_weight)


def radius_in_words(epsilon: float, max_weight: float | None = None) -> str:
    """One line: what ε allows to shares of 1, 5 and 20 %."""
    allowed = [upweighting(epsilon, share, max_weight) for share in SHARES]
    times = [f"{most:.3g}" if most >= 99.5 else f"{most:.2g}" for most in allowed]
    shares = [f"{100 * share:g}" for share in SHARES]
    return (
        f"ε = {epsilon:g} means that a kind of row that makes up {_listed(shares)} % of the data may count "
        f"up to {_listed(times)} times"
    )


def radius_help(epsilon: float) -> str:
    """The same for argparse, to which a percent sign is a format."""
    return radius_in_words(epsilon).replace("%", "%%")


def _listed(words: list[str]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}"
