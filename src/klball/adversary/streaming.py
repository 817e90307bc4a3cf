"""The dual over data that is read chunk by chunk: constant memory, few passes, any number of processes.

A sample of the data says where to look; from there on the iterations are those of `solve_dual`, every pass of
them a reading of the data (mathematics.md, "Passes over data").
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from klball.adversary import inputs
from klball.adversary.dual import InfeasibleError
from klball.adversary.solver.newton import joint_tilt, moments_at, radius_start, radius_tilt
from klball.adversary.solver.reading import Chunk, Data, Part, Survey, sample_of
from klball.adversary.solver.rounds import CLOSED, FEASIBLE, SLACK
from klball.adversary.solver.tilting import Moments


@dataclass(frozen=True)
class StreamedSolution:
    """`DualSolution` without the weights, which `density` gives for any of the rows.

    lambda_, beta: multipliers of the ball (nats of score per nat of radius) and of the certainty cap.
    kl, certainty, worst_case: KL(Q‖F), E_Q[C] (None without C) and E_Q[g] at the weights.
    dual_value: h at the multipliers. gap: |worst_case − dual_value| in units of max g − min g.
    ess: effective sample size 1/Σ(q²), to about 2e-5 of itself. mean: E_F[g].
    mu: n·q_i = exp((mu − g_i − βC_i)/λ) if λ is in (0, ∞), else NaN.
    num_rows: n. num_passes: full passes over the data. status: optimal | point_mass.
    tilt: g0, C0, widths, a, b and m of log(n·q) = m − a·(g − g0)/width − b·(C − C0)/width, which keeps
    digits that λ and mu lose to a large offset or a tiny range.
    """

    lambda_: float
    beta: float
    kl: float
    certainty: float | None
    worst_case: float
    dual_value: float
    gap: float
    ess: float
    mu: float
    mean: float
    status: str
    num_rows: int
    num_passes: int
    tilt: tuple[float, ...] = ()

    def density(self, log_likelihood: Any, certainty: Any = None) -> np.ndarray:
        """n·q of some rows, exp((mu − g − βC)/λ) shaped like `log_likelihood`; C is needed if β > 0."""
        g = np.asarray(log_likelihood, dtype=np.float64)
        if self.status == "point_mass":
            return (g == self.worst_case) * (self.num_rows / self.ess)
        if math.isinf(self.lambda_):
            return np.ones_like(g)
        g0, c0, width, c_width, a, b, m = self.tilt
        exponents = m - a * ((g - g0) / width)
        if b > 0:
            if certainty is None:
                raise ValueError("the weights depend on the certainty: pass it too")
            exponents = exponents - b * ((np.asarray(certainty, dtype=np.float64) - c0) / c_width)
        return np.exp(exponents)


@np.errstate(all="ignore")  # what leaves the range of float64 is looked for
def solve_dual_streamed(
    parts: Sequence[Part], *, epsilon: float, gamma: float | None = None, sharded: bool = False
) -> StreamedSolution:
    """`solve_dual` of data too large for memory, exact to its answer (about 1e-11 of the range of g).

    parts: functions without arguments, each returning an iterable of chunks (g, C) or (g, None), arrays
    [rows] of float32 or float64; called once a pass.
    sharded: every process of torch.distributed's default group calls this with its own parts; they
    exchange some twenty numbers a pass, and all get the same answer to the bit.
    epsilon, gamma: as in `solve_dual`; a cap on weights and base weights are not supported.

    Raises ValueError for malformed input (log-likelihoods that are all positive among it) and for degenerate
    problems (β > 0 at λ = 0 or λ = ∞), and InfeasibleError, naming γ_min, if no Q qualifies.
    """
    sample = sample_of(parts, sharded)
    inputs.parameters(epsilon, gamma, None, sample[1])
    solver = _Solver(Data(parts, sample, sharded), float(epsilon), gamma)
    return solver.solve(refuse_losses=True)


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
        at_guess = self.data.moments(*guess)
        self._check_rows()
        if refuse_losses:
            inputs.refuse_losses(self.survey.least_g)
        if self.epsilon == 0:
            return self._uniform(at_guess)
        s = self.survey
        loose = self.epsilon >= math.log(s.rows / s.ties) - 1e-14
        if loose and self._meets(s.ties_y / s.ties):
            return self._point_mass()
        if (found := self._search(guess, loose)) is not None:
            return found
        self._check_feasible()
        why = "" if self.gamma is None else ", because β > 0 where λ is 0 or infinite, or too near to that"
        raise ValueError(
            f"no multipliers were found that close the gap{why}: change epsilon or gamma, or use solve_dual "
            "on the data in memory"
        )

    def _tilt_of_sample(self) -> tuple[float, float]:
        sampled = self.data.sampled()
        x = sampled.scores.x
        ties = int(np.count_nonzero(x == x.min()))
        if ties == len(x):
            return 1.0, 0.0
        radius = min(self.epsilon, -0.9 * math.log(ties / len(x)))  # a sample has no larger one that binds
        a = radius_tilt(sampled, radius, radius_start(sampled, radius))
        if self.gamma is not None and sampled.moments(a).mean_y > self.target:
            start = np.array([a]), np.zeros(1)
            found = joint_tilt(sampled, radius, np.array([self.target]), *start)
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
            tilt, gamma = (np.array([a]), np.array([b])), np.array([self.target])
            found_a, found_b, solved = joint_tilt(self.data, self.epsilon, gamma, *tilt, enough=enough)
            a, b = float(found_a[0]), float(found_b[0])
            if not (solved[0] and 0 < a < math.inf and 0 < b < math.inf):
                return None
            if (found := self._closed(a, b)[1]) is not None:
                return found
        return None

    def _closed(self, a: float, b: float) -> tuple[Moments, StreamedSolution | None]:
        """The moments, and the solution if it closes the gap, lies in the ball and, where β > 0, meets γ."""
        m = moments_at(self.data, a, b)
        found = self._solution(a, b, m)
        within = abs(m.kl - self.epsilon) <= 5e-10 * max(self.epsilon, 1e-4)
        proved = found.gap <= CLOSED and within and (b == 0 or self._meets(m.mean_y, FEASIBLE))
        return m, found if proved else None

    def _meets(self, mean_y: float, slack: float = SLACK) -> bool:
        """Whether E[C] ≤ γ, as closely as `solve_dual` looks."""
        if self.gamma is None:
            return True
        s, unit = self.survey, self.data.c_width
        blur = 4e-16 * max(abs(s.least_c), abs(s.most_c), abs(self.gamma)) / unit
        return mean_y <= self.target + slack * (s.most_c - s.least_c) / unit + blur

    def _check_rows(self) -> None:
        s = self.survey
        if s.bad_g or s.bad_c:
            columns = {"log_likelihood": s.bad_g, "certainty": s.bad_c}
            counts = " and ".join(f"{name} has {bad:.0f}" for name, bad in columns.items() if bad)
            raise ValueError(f"{counts} missing, NaN or infinite values; drop or repair those samples first")
        if s.rows_with_c not in (0, s.rows):
            raise ValueError("some chunks have a certainty and others have none")

    def _check_feasible(self) -> None:
        """Raise InfeasibleError if γ lies below γ_min, which is a problem of the same kind."""
        data = self.data
        if self.gamma is None or data.sample[1] is None:
            return
        swapped = [partial(_certainties, part) for part in data.parts]
        least = _Solver(Data(swapped, (data.sample[1], None), data.sharded), self.epsilon, None).solve(False)
        if not self._meets((least.worst_case - data.c0) / data.c_width):
            raise InfeasibleError(
                f"infeasible: with epsilon = {self.epsilon} the mean certainty cannot go below γ_min = "
                f"{least.worst_case!r}, but gamma = {self.gamma}; raise gamma to at least γ_min, or epsilon",
                least.worst_case,
            )

    # --- answers ------------------------------------------------------------------------------

    def _solution(self, a: float, b: float, m: Moments) -> StreamedSolution:
        data, s = self.data, self.survey
        lacking = self.epsilon - m.kl + b * (self.target - m.mean_y)
        lambda_, beta = data.width / a, b / a * data.width / data.c_width
        gap = abs(lacking) / a * data.width / ((s.most_g - s.least_g) or 1.0)
        worst = data.g0 + data.width * m.mean_x
        return replace(
            self._answer("optimal"),
            lambda_=lambda_,
            beta=beta,
            kl=m.kl,
            certainty=self._certainty(m.mean_y),
            worst_case=worst,
            dual_value=worst - data.width * lacking / a,
            gap=gap,
            ess=m.ess,
            mu=data.g0 + beta * data.c0 + lambda_ * m.mu,
            tilt=(data.g0, data.c0, data.width, data.c_width, a, b, m.mu),
        )

    def _certainty(self, mean_y: float) -> float | None:
        return self.data.c0 + self.data.c_width * mean_y if self.survey.rows_with_c else None

    def _point_mass(self) -> StreamedSolution:
        s = self.survey
        return replace(
            self._answer("point_mass"),
            lambda_=0.0,
            kl=math.log(s.rows / s.ties),
            certainty=self._certainty(s.ties_y / s.ties),
            worst_case=s.least_g,
            dual_value=s.least_g,
            ess=float(s.ties),
        )

    def _uniform(self, m: Moments) -> StreamedSolution:
        """ε = 0: plain SFT."""
        certainty = self._certainty(m.mean_y)
        if not self._meets(m.mean_y):
            assert certainty is not None
            raise InfeasibleError(
                f"infeasible: with epsilon = 0 the mean certainty is {certainty!r}, but gamma = {self.gamma}",
                certainty,
            )
        return replace(self._answer("optimal"), certainty=certainty)

    def _answer(self, status: str) -> StreamedSolution:
        """The uniform distribution, to be filled in."""
        mean = self.data.g0 + self.data.width * self.survey.sum_x / self.survey.rows
        return StreamedSolution(
            lambda_=math.inf,
            beta=0.0,
            kl=0.0,
            certainty=None,
            worst_case=mean,
            dual_value=mean,
            gap=0.0,
            ess=float(self.survey.rows),
            mu=math.nan,
            mean=mean,
            status=status,
            num_rows=int(self.survey.rows),
            num_passes=self.data.num_passes,
        )


def _certainties(part: Part) -> Iterator[Chunk]:
    """C in the place of g."""
    return ((c, None) for _, c in part() if c is not None)
