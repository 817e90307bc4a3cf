"""Which tests may support a claim: looked up in measured type I errors, never assumed."""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

CALIBRATION = Path(__file__).with_name("calibration.json")
LEVEL = 0.05
MOST_ERROR = 0.07


@dataclass(frozen=True)
class Measured:
    """One simulated setting without a difference, as benchmarks/type_one_error.py writes it.

    null: "rounds" (fixed items, phrasing drawn anew) or "items" (items drawn anew). error: share of
    rejections at level .05; coverage: of the 95 % interval of one model, None where not measured;
    both over `replications`, those with a p-value (`degenerate` had none). ess: median least ESS.
    """

    null: str
    n: int
    rounds: int
    shape: str
    epsilon: float
    capped: bool
    test: str
    quantity: str
    ess: float
    error: float
    coverage: float | None
    replications: int
    degenerate: int

    def ease(self) -> tuple[float, ...]:
        """What makes the test hold better: rounds for claims over rounds, ESS and ESS/n over items."""
        return (self.rounds,) if self.null == "rounds" else (self.ess, self.ess / self.n)


@cache
def measured_settings(path: Path = CALIBRATION) -> tuple[Measured, ...]:
    """The stored simulation."""
    return tuple(Measured(**record) for record in json.loads(path.read_text(encoding="utf-8")))


def supports(null: str, test: str, quantity: str, *ease: float) -> bool:
    """Whether a test may support a claim: its measured type I error is at most .07 where it matters.

    Some setting at least as hard as this comparison must have passed, and none at most as hard may have
    failed. `ease` is the number of rounds (null="rounds"), or ESS and ESS/n (null="items").
    """
    settings = [s for s in measured_settings() if (s.null, s.test, s.quantity) == (null, test, quantity)]
    passed = any(s.error <= MOST_ERROR and _at_most(s.ease(), ease) for s in settings)
    failed = any(s.error > MOST_ERROR and _at_most(ease, s.ease()) for s in settings)
    return passed and not failed


def _at_most(left: tuple[float, ...], right: tuple[float, ...]) -> bool:
    return all(x <= y for x, y in zip(left, right, strict=True))
