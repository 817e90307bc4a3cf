"""Which tests may support a claim: looked up in measured type I errors, never assumed."""

import json
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path

CALIBRATION = Path(__file__).with_name("calibration.json")
LEVEL = 0.05
MOST_ERROR = 0.07
LEAST_ESS = 30.0  # below it every shape fails at some setting; a pass there is a wide interval, not accuracy


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
        """What makes the test hold better: more rounds; over items more ESS and lighter tails."""
        return (self.rounds,) if self.null == "rounds" else (self.ess, -tail(self.ess, self.n, self.epsilon))


def tail(ess: float, n: int, epsilon: float) -> float:
    """−log(ESS/n)/(2ε): 1 for normal scores, whose tilt has ESS/n = e^−2ε; more for skewed losses."""
    return -math.log(ess / n) / (2 * epsilon)


@cache
def measured_settings(path: Path = CALIBRATION) -> tuple[Measured, ...]:
    """The stored simulation."""
    return tuple(Measured(**record) for record in json.loads(path.read_text(encoding="utf-8")))


def supports_over_rounds(test: str, quantity: str, rounds: int) -> bool:
    """Whether a test may support a claim over rephrasings, on these items."""
    return _supports("rounds", test, quantity, (rounds,))


def supports_over_items(test: str, quantity: str, *, ess: float, n: int, epsilon: float) -> bool:
    """Whether a test may support a claim over items, in these rounds."""
    return ess >= LEAST_ESS and _supports("items", test, quantity, (ess, -tail(ess, n, epsilon)))


def has_heavy_tail(test: str, quantity: str, *, ess: float, n: int, epsilon: float) -> bool:
    """Whether no number of items like these would let the test support a claim over items at this ε."""
    return not _supports("items", test, quantity, (math.inf, -tail(ess, n, epsilon)))


def _supports(null: str, test: str, quantity: str, ease: tuple[float, ...]) -> bool:
    """Some setting at least as hard as `ease` has an error of at most .07, and none at most as hard more."""
    settings = [s for s in measured_settings() if (s.null, s.test, s.quantity) == (null, test, quantity)]
    passed = any(s.error <= MOST_ERROR and _at_most(s.ease(), ease) for s in settings)
    failed = any(s.error > MOST_ERROR and _at_most(ease, s.ease()) for s in settings)
    return passed and not failed


def _at_most(left: tuple[float, ...], right: tuple[float, ...]) -> bool:
    return all(x <= y for x, y in zip(left, right, strict=True))
