"""The dual over data that is read chunk by chunk: constant memory, few passes, any number of processes.

A sample of the data says where to look; from there on the iterations are those of `solve_dual`, every pass of
them a reading of the data (mathematics.md, "Passes over data").
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from klball.adversary import inputs
from klball.adversary.answers import StreamedSolution, infeasible
from klball.adversary.solver.newton import joint_tilt, moments_at, radius_start, radius_tilt
from klball.adversary.solver.reading import Chunk, Data, Part, Survey, certainties, sample_of
from klball.adversary.solver.rounds import CLOSED, FEASIBLE, SLACK
from klball.adversary.solver.tilting import Moments

__all__ = ["Chunk", "StreamedSolution", "solve_dual_streamed"]


@np.errstate(all="ignore")  # what leaves the range of float64 is looked for
def solve_dual_streamed(
    parts: Sequence[Part], *, epsilon: float, gamma: float | None = None, sharded: bool = False
) -> StreamedSolution:
    """`solve_dual` of data too large for memory, exact to its answer (about 1e-11 of the range of g).

    Args:
        parts: Functions without arguments, each returning an iterable of chunks (g, C) or (g, None),
            arrays [rows] of float32 or float64; called once a pass.
        epsilon: Radius of the ball, nats.
        gamma: Upper bound on E_Q[C], nats. A cap on weights and base weights are not supported.
        sharded: Every process of torch.distributed's default group calls this with its own parts; they
            exchange some twenty numbers a pass, and all get the same answer to the bit.

    Raises:
        ValueError: Malformed input (log-likelihoods that are all positive among it), or a degenerate
            problem (β > 0 at λ = 0 or λ = ∞).
        InfeasibleError: No Q qualifies; it names γ_min.
    """
    sample = sample_of(parts, sharded)
    epsilon, gamma, _ = inputs.parameters(epsilon, gamma, None, sample[1])
    return _Solver(Data(parts, sample, sharded), epsilon, gamma).solve(refuse_losses=True)


class _Solver:
    """One problem; the first pass also finds n, the extremes, and the ties at the smallest g."""

    def __init__(self, data: Data, epsilon: float, gamma: float | None):
        self.data, self.epsilon, self.gamma = data, epsilon, gamma
        self.target = 0.0 if gamma is None else (gamma - data.c0) / data.c_width

    @property
    def survey(self) -> Survey:
        assert self.data.survey is not None
        return self.data.survey

    def solve(self, refuse_losses: bool) -> StreamedSolution:
        guess = (0.0, 0.0) if self.epsilon == 0 else self._tilt_of_sample()
        at_guess, s = self.data.moments(*guess), self.survey
        if s.rows == 0:
            raise ValueError(
                "the parts gave no rows when read again: each must return a new iterable at every call"
            )
        s.check()
        if refuse_losses:
            inputs.refuse_losses(s.least_g)
        loose = self.epsilon >= math.log(s.rows / s.ties) - 1e-14
        if self.epsilon == 0:
            found = self._answer("optimal", at_guess.mean_y)
            if not self._meets(at_guess.mean_y):
                assert found.certainty is not None and self.gamma is not None
                raise infeasible(f"{self.epsilon}", self.gamma, found.certainty)
        elif loose and self._meets(s.ties_y / s.ties):
            kl, worst = math.log(s.rows / s.ties), s.least_g
            numbers: dict[str, Any] = dict(lambda_=0.0, kl=kl, worst_case=worst, dual_value=worst, ess=s.ties)
            found = self._answer("point_mass", s.ties_y / s.ties, **numbers)
        else:
            found = self._search(guess, loose)
        if found is None:
            self._check_feasible()
            raise ValueError(
                "no multipliers were found that close the gap (in passes none with β > 0 where λ is 0 or "
                "infinite, or near to that): change epsilon or gamma, or use solve_dual on the data in memory"
            )
        return found

    def _tilt_of_sample(self) -> tuple[float, float]:
        sampled = self.data.sampled()
        x = sampled.scores.x
        ties = int(np.count_nonzero(x == x.min()))
        if ties == len(x):
            return 1.0, 0.0
        radius = min(self.epsilon, -0.9 * math.log(ties / len(x)))  # a sample has no larger one that binds
        a = radius_tilt(sampled, radius, radius_start(sampled, radius))
        if self.gamma is not None and sampled.moments(a).mean_y > self.target:
            found = joint_tilt(sampled, radius, np.array([self.target]), np.array([a]), np.zeros(1))
            if found[2][0]:
                return float(found[0][0]), float(found[1][0])
        return a, 0.0

    def _search(self, guess: tuple[float, float], loose: bool) -> StreamedSolution | None:
        """The tilt with KL = ε, and E[C] = γ or b = 0."""
        a, b = guess
        if b > 0 and (found := self._jointly(a, b)):
            return found
        if not loose:
            a = radius_tilt(self.data, self.epsilon, a)
            if not 0 < a < math.inf:
                return None
            m, found = self._closed(a, 0.0)
            if self.gamma is None or (found is not None and self._meets(m.mean_y)):
                return found
        return None if self.gamma is None else self._jointly(a, 0.0)

    def _jointly(self, a: float, b: float) -> StreamedSolution | None:
        """KL = ε and E[C] = γ; an error of 1e-4 is mostly squared enough by one step, which saves a pass."""
        for enough in (1e-4, 1e-6):
            problem = self.epsilon, np.array([self.target]), np.array([a]), np.array([b])
            a, b, solved = (each.item() for each in joint_tilt(self.data, *problem, enough=enough))
            if not (solved and 0 < a < math.inf and 0 < b < math.inf):
                return None
            if (found := self._closed(a, b)[1]) is not None:
                return found
        return None

    def _closed(self, a: float, b: float) -> tuple[Moments, StreamedSolution | None]:
        """The moments, and the solution if it closes the gap, lies in the ball and, where β > 0, meets γ."""
        m, data, s = moments_at(self.data, a, b), self.data, self.survey
        lacking = self.epsilon - m.kl + b * (self.target - m.mean_y)
        gap = abs(lacking) / a * data.width / ((s.most_g - s.least_g) or 1.0)
        within = abs(m.kl - self.epsilon) <= 5e-10 * max(self.epsilon, 1e-4)
        if not (gap <= CLOSED and within and (b == 0 or self._meets(m.mean_y, FEASIBLE))):
            return m, None
        lambda_, beta = data.width / a, b / a * data.width / data.c_width
        worst, mu = data.g0 + data.width * m.mean_x, data.g0 + beta * data.c0 + lambda_ * m.mu
        value = worst - data.width * lacking / a
        numbers = dict(kl=m.kl, worst_case=worst, dual_value=value, gap=gap, ess=m.ess)
        tilt = (data.g0, data.c0, data.width, data.c_width, a, b, m.mu)
        return m, self._answer("optimal", m.mean_y, tilt, lambda_=lambda_, beta=beta, mu=mu, **numbers)

    def _meets(self, mean_y: float, slack: float = SLACK) -> bool:
        """Whether E[C] ≤ γ, as closely as `solve_dual` looks."""
        if self.gamma is None:
            return True
        s, unit = self.survey, self.data.c_width
        blur = 4e-16 * max(abs(s.least_c), abs(s.most_c), abs(self.gamma)) / unit
        return mean_y <= self.target + slack * (s.most_c - s.least_c) / unit + blur

    def _check_feasible(self) -> None:
        """Raise InfeasibleError if γ lies below γ_min, which is a problem of the same kind."""
        data = self.data
        if self.gamma is None or data.sample[1] is None:
            return
        swapped = Data(
            [partial(certainties, part) for part in data.parts], (data.sample[1], None), data.sharded
        )
        least = _Solver(swapped, self.epsilon, None).solve(refuse_losses=False).worst_case
        if not self._meets((least - data.c0) / data.c_width):
            raise infeasible(f"{self.epsilon}", self.gamma, least)

    def _answer(
        self, status: str, mean_y: float, tilt: tuple[float, ...] = (), **numbers: Any
    ) -> StreamedSolution:
        """The uniform distribution, but for what is given."""
        data, s = self.data, self.survey
        mean = data.g0 + data.width * s.sum_x / s.rows
        plain = dict(lambda_=math.inf, beta=0.0, kl=0.0, worst_case=mean, dual_value=mean, gap=0.0)
        return StreamedSolution(
            **plain | dict(ess=s.rows, mu=math.nan) | numbers,
            certainty=data.c0 + data.c_width * mean_y if s.rows_with_c else None,
            mean=mean,
            status=status,
            num_rows=int(s.rows),
            num_passes=data.num_passes,
            tilt=tilt,
        )
