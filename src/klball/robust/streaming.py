r"""The dual over data that is read chunk by chunk: constant memory, few passes, any number of processes.

A sample of the data says where to look and how the moments bend, full passes correct it to third order: what
a sample of a million rows guesses is exact after one pass at moderate radii, after two at large ones.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from klball.robust.dual import InfeasibleError, check_parameters
from klball.robust.multipliers import CLOSED, JOINT_PASSES, SLACK
from klball.robust.newton import joint_tilt, radius_tilt
from klball.robust.streaming_model import FEW, FIRST, At, Data, Model, log_z_at, sample_of, towards
from klball.robust.streaming_sums import Part, Sums
from klball.robust.tilting import Moments

EXACT = 1e-9  # a relative error of λ
MODEL_PASSES = 10  # full passes before the model is given up for plain safeguarded iterations


@dataclass(frozen=True)
class StreamedSolution:
    """`DualSolution` without the weights, which `density` gives for any of the rows.

    lambda_, beta: multipliers of the ball (nats of score per nat of radius) and of the certainty cap.
    kl, certainty, worst_case: KL(Q‖F), E_Q[C] (None without C) and E_Q[g] at the weights.
    dual_value: h at the multipliers. gap: |worst_case − dual_value| in units of max g − min g.
    ess: effective sample size 1/Σ(q²), to about 1e-6 of itself. mean: E_F[g].
    mu: n·q_i = exp((mu − g_i − βC_i)/λ) if λ is in (0, ∞), else NaN.
    num_rows: n. num_passes: full passes over the data. status: optimal | point_mass.
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

    def density(self, log_likelihood: Any, certainty: Any = None) -> np.ndarray:
        """n·q of some rows: exp((mu − g − βC)/λ), shaped like `log_likelihood`; C is needed if β > 0."""
        g = np.asarray(log_likelihood, dtype=np.float64)
        if self.status == "point_mass":
            return (g == self.worst_case) * (self.num_rows / self.ess)
        if math.isinf(self.lambda_):
            return np.ones_like(g)
        if self.beta == 0:
            return np.exp((self.mu - g) / self.lambda_)
        if certainty is None:
            raise ValueError("the weights depend on the certainty: pass it too")
        return np.exp((self.mu - g - self.beta * np.asarray(certainty, dtype=np.float64)) / self.lambda_)


def solve_dual_streamed(
    parts: Sequence[Part],
    *,
    epsilon: float,
    gamma: float | None = None,
    sharded: bool = False,
    threads: int | None = None,
) -> StreamedSolution:
    """`solve_dual` of data too large for memory, exact to its answer (about 1e-12 of the range of g).

    parts: functions without arguments, each returning an iterable of chunks (g, C) or (g, None), arrays
    [rows] of float32 or float64; called once a pass, from several `threads` (default: those of torch).
    sharded: every process of torch.distributed's default group calls this with its own parts; they
    exchange 25 numbers a pass, and all get the same answer to the bit.
    epsilon, gamma: as in `solve_dual`; a cap on weights and base weights are not supported.

    Raises ValueError for malformed input and for degenerate problems (β > 0 at λ = 0 or λ = ∞), and
    InfeasibleError, naming γ_min, if no Q qualifies.
    """
    threads = threads or torch.get_num_threads()
    sample = sample_of(parts, threads, sharded)
    check_parameters(epsilon, gamma, None, sample[1])
    data = Data(parts, sample, gamma is not None, threads, sharded)
    return _Solver(data, float(epsilon), gamma).solve()


class _Solver:
    """One problem; the first pass also finds n, the extremes, and the ties at the smallest g."""

    def __init__(self, data: Data, epsilon: float, gamma: float | None):
        self.data, self.epsilon, self.gamma = data, epsilon, gamma
        self.target = 0.0 if gamma is None else (gamma - data.origin[1]) / data.scale[1]
        self.survey = Sums(0.0)
        self.loose = False

    def solve(self) -> StreamedSolution:
        data = self.data
        guess = self._first_guess()
        at = data.at(*(guess or (1.0, 0.0)))
        self._look_around(at.sums)
        if self.epsilon == 0:
            return self._uniform(at)
        if self.loose and self._meets(self.survey.ties_y / self.survey.ties / data.scale[1]):
            return self._point_mass()
        if guess is None:
            self._check_feasible()
        passes = [at]
        if found := self._by_model(passes):
            return found
        self._check_feasible()
        nearest = min(
            passes, key=lambda at: abs(math.log(max(float(at.moments.kl[0]), 1e-300) / self.epsilon))
        )
        if found := self._by_newton(nearest):
            return found
        why = "" if self.gamma is None else ", because β > 0 where λ is 0 or infinite, or too near to that"
        raise ValueError(
            f"no multipliers were found that close the gap{why}: change epsilon or gamma, or use solve_dual "
            "on the data in memory"
        )

    def _first_guess(self) -> tuple[float, float] | None:
        """The tilt that solves the problem of the sample; None where that has none."""
        sampled = self.data.sampled()
        at = sampled.at(0.0, 0.0)
        self.survey = at.sums
        ties = at.sums.ties / at.sums.rows
        if self.epsilon == 0 or ties == 1:
            return float(self.epsilon > 0), 0.0
        normal = math.sqrt(2 * self.epsilon)  # a·sd for normal scores; skewed losses need less
        start = normal / (1 + normal / 2) / math.sqrt(float(at.moments.var_x[0]))
        radius = min(self.epsilon, -0.9 * math.log(ties))  # a sample has no larger one that binds
        few = self.data.sampled(FIRST) if at.sums.rows > FEW else sampled
        found = self._stationary(few, replace(at, a=start), radius)
        if found is None or few is sampled:
            return found
        return self._stationary(sampled, replace(at, a=found[0], b=found[1]), radius)

    def _look_around(self, sums: Sums) -> None:
        if sums.bad_g or sums.bad_c:
            columns = {"log_likelihood": sums.bad_g, "certainty": sums.bad_c}
            counts = " and ".join(f"{name} has {bad:.0f}" for name, bad in columns.items() if bad)
            raise ValueError(f"{counts} missing, NaN or infinite values; drop or repair those samples first")
        if sums.rows_with_c not in (0, sums.rows):
            raise ValueError("some chunks have a certainty and others have none")
        self.survey = sums
        self.loose = math.log(sums.rows / sums.ties) <= self.epsilon + 1e-14

    def _by_model(self, passes: list[At]) -> StreamedSolution | None:
        """More `passes` until the model is exact where it solves the problem."""
        sample = self.data.sampled()
        best = math.inf
        for _ in range(MODEL_PASSES):
            model = Model(sample, passes[-1])
            found = self._stationary(model, passes[-1], self.epsilon)
            if found is None:
                return None
            moments = model.moments(np.array([found[0]]), np.array([found[1]]))
            error = model.error(*found, np.array([self._width(0), self._width(1)]))
            solution = self._solution(*found, moments, error)
            # an outlier makes the range so wide that a gap says nothing of λ
            exact = error * self._width(0) <= EXACT * found[0] * float(moments.var_x[0])
            if solution.gap <= CLOSED and exact:
                return replace(solution, ess=model.ess(*found, float(log_z_at(moments, *found)[0])))
            if not error < best / 4:  # a sample that knows nothing of a tail
                return None
            best = error
            passes.append(self.data.at(*towards(passes[-1], *found)))
        return None

    def _by_newton(self, at: At) -> StreamedSolution | None:
        """Safeguarded iterations on the data itself, for tails that no sample knows: one pass a step."""
        found = self._stationary(self.data, at, self.epsilon)
        if found is None:
            return None
        at = self.data.at(*found)
        solution = replace(self._solution(at.a, at.b, at.moments), ess=at.sums.w**2 / at.sums.ww)
        return solution if solution.gap <= CLOSED else None

    def _stationary(self, tilting: Any, at: At, epsilon: float) -> tuple[float, float] | None:
        """The tilt with KL = ε, and E[C] = γ or b = 0, starting from that of the last pass."""
        if at.b > 0 and (found := self._jointly(tilting, at.a, at.b, epsilon)):
            return found
        a = at.a
        if not self.loose:
            a = float(radius_tilt(tilting, epsilon, np.array([True]), np.array([a or 1.0]))[0])
            if not 0 < a < math.inf:
                return None
            if self.gamma is None or self._meets(float(tilting.moments(np.array([a])).mean_y[0])):
                return a, 0.0
        return self._jointly(tilting, a, 0.0, epsilon) if self.gamma is not None else None

    def _jointly(self, tilting: Any, a: float, b: float, epsilon: float) -> tuple[float, float] | None:
        found = joint_tilt(
            tilting, epsilon, np.array([self.target]), np.array([a]), np.array([b]), JOINT_PASSES
        )
        a, b = float(found[0][0]), float(found[1][0])
        return (a, b) if found[2][0] and 0 < a < math.inf and 0 <= b < math.inf else None

    def _meets(self, mean_y: float) -> bool:
        """Whether E[C] ≤ γ, as closely as `solve_dual` looks."""
        if self.gamma is None:
            return True
        largest = max(abs(self.survey.least_c), abs(self.survey.most_c)) / self.data.scale[1]
        return mean_y <= self.target + SLACK * self._width(1) + 4e-16 * largest

    def _width(self, column: int) -> float:
        """The range of g or C in units of the sample's."""
        s = self.survey
        width = (s.most_g - s.least_g, s.most_c - s.least_c)[column]
        return max(width, 0.0) / self.data.scale[column]

    def _check_feasible(self) -> None:
        """Raise InfeasibleError if γ lies below γ_min, which is a problem of the same kind."""
        if self.gamma is None:
            return
        data = self.data
        swapped = [lambda part=part: ((c, None) for _, c in part()) for part in data.parts]
        least = solve_dual_streamed(
            swapped, epsilon=self.epsilon, sharded=data.sharded, threads=data.threads
        ).worst_case
        if not self._meets_least(least):
            raise InfeasibleError(
                f"infeasible: with epsilon = {self.epsilon} the mean certainty cannot go below "
                f"γ_min = {least!r}, but gamma = {self.gamma}; raise gamma to at least γ_min, or epsilon",
                least,
            )

    def _meets_least(self, least: float) -> bool:
        return self._meets((least - self.data.origin[1]) / self.data.scale[1])

    # --- answers ------------------------------------------------------------------------------

    def _solution(self, a: float, b: float, m: Moments, error: float = 0.0) -> StreamedSolution:
        """All but `ess`; the gap allows for an `error` of the means."""
        (x0, y0), (sx, sy) = self.data.origin, self.data.scale
        mean_x, mean_y, log_z = float(m.mean_x[0]), float(m.mean_y[0]), float(log_z_at(m, a, b)[0])
        lambda_, beta = sx / a, b / a * sx / sy
        least = -(self.epsilon + b * self.target + log_z) / a  # h in units of x
        offset = x0 + beta * y0
        return replace(
            self._answer("optimal"),
            lambda_=lambda_,
            beta=beta,
            kl=float(m.kl[0]),
            certainty=None if self.survey.rows_with_c == 0 else y0 + sy * mean_y,
            worst_case=x0 + sx * mean_x,
            dual_value=x0 + sx * least,
            gap=abs(mean_x - least) / (self._width(0) or 1.0) + error,
            mu=offset - lambda_ * log_z,
        )

    def _point_mass(self) -> StreamedSolution:
        s = self.survey
        return replace(
            self._answer("point_mass"),
            lambda_=0.0,
            kl=math.log(s.rows / s.ties),
            certainty=None if s.rows_with_c == 0 else self.data.origin[1] + s.ties_y / s.ties,
            worst_case=s.least_g,
            dual_value=s.least_g,
            ess=s.ties,
        )

    def _uniform(self, at: At) -> StreamedSolution:
        """ε = 0: plain SFT."""
        mean_y = float(at.moments.mean_y[0])
        certainty = (
            None if self.survey.rows_with_c == 0 else self.data.origin[1] + self.data.scale[1] * mean_y
        )
        if not self._meets(mean_y):
            assert certainty is not None
            raise InfeasibleError(
                f"infeasible: with epsilon = 0 the mean certainty is {certainty!r}, but gamma = {self.gamma}",
                certainty,
            )
        return replace(self._answer("optimal"), certainty=certainty)

    def _answer(self, status: str) -> StreamedSolution:
        """The uniform distribution, to be filled in."""
        mean = self.data.origin[0] + self.survey.sum_x / self.survey.rows
        return StreamedSolution(
            lambda_=math.inf,
            beta=0.0,
            kl=0.0,
            certainty=None,
            worst_case=mean,
            dual_value=mean,
            gap=0.0,
            ess=self.survey.rows,
            mu=math.nan,
            mean=mean,
            status=status,
            num_rows=int(self.survey.rows),
            num_passes=self.data.num_passes,
        )
