"""A validated problem, brought to units of its scores (mathematics.md, "Digits"), solved and checked.

What comes back satisfies every bound and closes the gap (mathematics.md, "The certificate").
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from klball.adversary.answers import DualSolution, DualSolutions, infeasible
from klball.adversary.solver.rounds import (
    Answer,
    Ball,
    closed,
    divergence,
    solve_round,
    solve_together,
    untied,
)
from klball.adversary.solver.tilting import PIECE, Numbers, Scores, quantile

WIDEST_GAP = 1e-9  # of the range of g: a wider one is no answer
TOLERANCE = 1e-9  # of ε and of the range of C, within which a constraint is met
SURFACE = 1e-8  # of ε, by which KL may fall short where λ > 0: the gap is what proves
ROUNDING = 1e-12  # of Σq, of a weight at the cap, and of KL
LARGE = 1e3  # exponents of which the sums of a tilt may lose the digits of KL
TYPICAL = 16  # samples of which the middle one is no outlier


@dataclass(frozen=True)
class Units:
    """x = (g − g0)/width and y = (C − c0)/c_width: numbers, or of many rounds arrays [rounds]."""

    g0: Any
    width: Any
    c0: Any = 0.0
    c_width: Any = 1.0

    def in_nats(self, found: Answer, certain: bool, bounded: bool) -> dict[str, Any]:
        """The numbers of a `DualSolution`; h lies below E_Q[g] by the gap."""
        lambda_, beta = np.divide(self.width, found.a), found.beta * self.width / self.c_width
        worst = self.g0 + self.width * found.mean_x
        return dict(
            lambda_=lambda_,
            beta=beta,
            kl=found.kl,
            certainty=self.c0 + self.c_width * found.mean_y if certain else None,
            worst_case=worst,
            dual_value=worst - self.width * found.gap,
            gap=found.gap,
            ess=found.ess,
            mu=lambda_ * found.mu + self.g0 + beta * self.c0,  # NaN where the weights are no tilt
            gamma_min=self.c0 + self.c_width * found.least_y if bounded else None,
        )

    def solutions(
        self, found: Answer, weights: Any, certain: bool, bounded: bool, like: Callable[[Numbers], Any]
    ) -> DualSolutions[Any]:
        numbers = self.in_nats(found, certain, bounded)
        arrays: dict[str, Any] = {
            name: None if value is None else like(value) for name, value in numbers.items()
        }
        return DualSolutions(
            **arrays, weights=weights, status=found.status.tolist(), num_passes=np.max(found.passes).item()
        )

    def solution(self, found: Answer, weights: Any, certain: bool, bounded: bool) -> DualSolution[Any]:
        numbers = self.in_nats(found, certain, bounded)
        floats: dict[str, Any] = {k: None if value is None else float(value) for k, value in numbers.items()}
        return DualSolution(**floats, weights=weights, status=found.status, num_passes=found.passes)


def standardised(
    values: Numbers, extremes: tuple[Any, Any], base: Numbers | None, cap: float | None, middle: bool
) -> tuple[Numbers, Any, Any]:
    """Scores in units of their range, their origin, and the range (of every round); weightless ones are 1.

    The origin is where digits are needed: the smallest, near the `middle`, or with a cap where that begins to
    bind (mathematics.md, "Digits").
    """
    low, high = extremes
    single = values.ndim == 1
    used = None if base is None or base.all() else base > 0
    if used is not None:
        low = values.min(-1, where=used, initial=math.inf)
        high = values.max(-1, where=used, initial=-math.inf)
    origin: Any = low
    if cap is not None:
        origin = quantile(values, base, cap)
    elif middle:
        origin = _typical(values, used, low)
    width: Any = (high - low) or 1.0 if single else np.where(high > low, high - low, 1.0)
    x = values - (origin if single else origin[:, None])
    unit = width if single else width[:, None]
    if (width if single else width.min()) > 1e-290:
        x *= 1 / unit  # half the time of a division
    else:
        x /= unit  # whose reciprocal may overflow
    if used is not None:
        x[~used] = 1.0
    return x, origin, width


def _typical(values: Numbers, used: Numbers | None, low: Any) -> Any:
    """A value near the middle of those used: one beyond them would put used scores above the weightless."""
    step = max(1, values.shape[-1] // TYPICAL)
    few = values[..., ::step]
    if used is None:
        return np.partition(few, few.shape[-1] // 2)[..., few.shape[-1] // 2]
    chosen = used[..., ::step]
    count = chosen.sum(-1)
    ordered = np.sort(np.where(chosen, few, math.inf), axis=-1)
    found = np.take_along_axis(ordered, np.expand_dims(count // 2, -1).clip(0, few.shape[-1] - 1), -1)[..., 0]
    found = np.where(count > 0, found, low)
    return found if found.ndim else float(found)


@dataclass(frozen=True)
class Problem:
    """Validated scores and base weights, float64 [n] or [rounds, n], their extremes, and the constraints."""

    g: Numbers
    extremes: tuple[Any, Any]
    c: Numbers | None
    c_extremes: tuple[Any, Any] | None
    base: Numbers | None
    epsilon: float
    gamma: float | None
    cap: float | None

    def solve(self) -> tuple[Answer, Units]:
        """The certified answers, in units: of short rounds together, of long ones one by one."""
        if self.g.ndim == 1:
            return self._alone()
        if self.cap is None and self.epsilon > 0 and self.g.shape[1] <= PIECE:
            scores, units = self._in_units()
            ball = self._ball(units)
            answers = solve_together(scores, ball)
            return _certified(answers, scores, ball), units
        rounds = [self._round(r)._alone(f"round {r}: ") for r in range(len(self.g))]
        nothing = np.full(self.g.shape[1], math.nan)
        columns = zip(*(answer for answer, _ in rounds), strict=True)
        stacked: Any = (np.array([nothing if v is None else v for v in column]) for column in columns)
        answers = Answer(*stacked)
        return answers, Units(*np.array([(u.g0, u.width, u.c0, u.c_width) for _, u in rounds]).T)

    def refuse_infeasible(self, found: Answer, units: Units) -> None:
        """Raise InfeasibleError if a round is."""
        if self.gamma is None or not (status := np.atleast_1d(found.status) == "infeasible").any():
            return
        least = float(np.atleast_1d(units.c0 + units.c_width * found.least_y)[status].max())
        where = "" if self.g.ndim == 1 else f" in {status.sum()} of {len(self.g)} rounds"
        cap = "" if self.cap is None else f" and max_weight = {self.cap}"
        raise infeasible(f"{self.epsilon}{cap}", self.gamma, least, where)

    def _round(self, r: int) -> "Problem":
        of = lambda values: None if values is None else values[r]  # noqa: E731
        extremes, c_extremes = (
            (low[r], high[r]) for low, high in (self.extremes, self.c_extremes or self.extremes)
        )
        return replace(
            self, g=self.g[r], extremes=extremes, c=of(self.c), c_extremes=c_extremes, base=of(self.base)
        )

    def _alone(self, where: str = "") -> tuple[Answer, Units]:
        scores, units = self._in_units()
        ball = self._ball(units)
        answer = solve_round(scores, ball, overwrite=True)
        if 0 < answer.a < math.inf and not closed(answer, ball):
            scores, units = self._in_units()
            answer = solve_round(untied(scores), ball)
        return _certified(answer, scores, ball, where), units

    def _in_units(self) -> tuple[Scores, Units]:
        middle = self.gamma is not None
        x, g0, width = standardised(self.g, self.extremes, self.base, self.cap, middle)
        if self.c is None or self.c_extremes is None:
            return Scores(x, None, self.base, self.cap), Units(g0, width)
        y, c0, c_width = standardised(self.c, self.c_extremes, self.base, self.cap, middle)
        return Scores(x, y, self.base, self.cap), Units(g0, width, c0, c_width)

    def _ball(self, units: Units) -> Ball:
        if self.gamma is None:
            return Ball(self.epsilon)
        blur = 4e-16 * np.maximum(np.abs(units.c0), abs(self.gamma)) / units.c_width
        return Ball(self.epsilon, (self.gamma - units.c0) / units.c_width, blur)


def _certified(found: Answer, scores: Scores, ball: Ball, where: str = "") -> Answer:
    """Raise ValueError unless every q lies in the ball, keeps every bound, and closes the gap."""
    q, kl, price = found.weights, found.kl, found.a * (1 + found.beta)
    if q is None:  # infeasible
        return found
    inside = (price > 0) & (price < math.inf)
    f = 1 / q.shape[-1] if scores.base is None else scores.base
    if np.max(price) > LARGE if isinstance(price, np.ndarray) else price > LARGE:
        kl = np.where(inside & (price > LARGE), divergence(q, f), kl)
        found = found._replace(kl=kl)
    kept = {
        "close the gap": found.gap <= WIDEST_GAP,
        "lie in the ball": kl <= ball.epsilon * (1 + TOLERANCE) + ROUNDING,
        "lie on its surface": (kl >= ball.epsilon * (1 - SURFACE) - ROUNDING) | (inside ^ True),
        "keep the bound on certainty": ball.met(found.mean_y, TOLERANCE),
        "sum to one": abs(q.sum(-1) - 1) <= ROUNDING,
        "keep the cap": scores.cap is None or (q <= scores.cap * f * (1 + ROUNDING)).all(-1),
    }
    if all(holds.all() if isinstance(holds, np.ndarray) else holds for holds in kept.values()):
        return found
    bad = {
        what: np.atleast_1d((holds ^ True) & (found.status != "infeasible")) for what, holds in kept.items()
    }
    if not any(rounds.any() for rounds in bad.values()):
        return found
    r = min(int(np.argmax(rounds)) for rounds in bad.values() if rounds.any())
    missed = " and ".join(what for what, rounds in bad.items() if rounds[r])
    gap, kl = np.atleast_1d(found.gap)[r], np.atleast_1d(found.kl)[r]
    raise ValueError(
        f"{where if q.ndim == 1 else f'round {r}: '}no multipliers were found that {missed} (the gap is "
        f"{gap:.1e} of the range of the scores, KL {kl}): change epsilon or gamma"
    )
