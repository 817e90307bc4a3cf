"""The dual: solve time in passes of `torch.exp` over the same data, and against cvxpy and SciPy."""

import os
import time

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # for everyone

from collections.abc import Callable
from functools import partial

import cvxpy as cp
import numpy as np
import torch
from scipy.optimize import minimize

from klball import solve_dual

ROUNDS, N, EPSILON, GAMMA = 594, 1_000, 3.0, 14.5


def interleaved(functions: list[Callable[[], object]], repeats: int) -> list[float]:
    """Median seconds of each function, run in turn so that the machine's mood is shared."""
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(repeats):
        for k, function in enumerate(functions):
            began = time.perf_counter()
            function()
            times[k].append(time.perf_counter() - began)
    return [float(np.median(t)) for t in times]


def in_passes() -> None:
    print("| n | ε | solve, in passes of exp | passes over the data | gap |")
    print("|---|---|---|---|---|")
    for n, repeats in ((30_000, 101), (1_000_000, 11), (10_000_000, 5)):
        g = -torch.from_numpy(np.random.default_rng(0).gamma(2, 1, n))
        buffer = torch.exp(g)  # touched
        for epsilon in (0.03, 0.05, 3.0):
            solution = solve_dual(g, epsilon=epsilon)
            solve = partial(solve_dual, g, epsilon=epsilon)
            ours, one_pass = interleaved([solve, partial(torch.exp, g, out=buffer)], repeats)
            print(
                f"| {n:,} | {epsilon} | {ours / one_pass:.1f} | {solution.num_passes} | {solution.gap:.0e} |"
            )


def scores() -> tuple[np.ndarray, np.ndarray]:
    """Rounds like the source's: g about −2, C about 15 and higher where g is low."""
    rng = np.random.default_rng(1)
    g = -2 + 0.5 * rng.normal(size=(ROUNDS, N))
    return g, 15 - 0.8 * (g + 2) + 0.8 * rng.normal(size=(ROUNDS, N))


def cvxpy_loop(g: np.ndarray, c: np.ndarray, count: int) -> list[float]:
    """A parametrised problem, compiled once, on standardised scores and weights of mean one."""
    w = cp.Variable(N, nonneg=True)
    pg, pc, bound = cp.Parameter(N), cp.Parameter(N), cp.Parameter()
    ball = cp.sum(cp.kl_div(w, np.ones(N))) / N <= EPSILON
    problem = cp.Problem(cp.Minimize(pg @ w / N), [cp.sum(w) == N, ball, pc @ w / N <= bound])
    values = []
    for r in range(count):
        pg.value = (g[r] - g[r].mean()) / g[r].std()
        pc.value = (c[r] - c[r].mean()) / c[r].std()
        bound.value = (GAMMA - c[r].mean()) / c[r].std()
        try:
            problem.solve(solver=cp.CLARABEL)
            values.append(g[r].mean() + g[r].std() * problem.value)
        except cp.SolverError:
            values.append(np.nan)
    return values


def scipy_loop(g: np.ndarray, c: np.ndarray, count: int) -> list[float]:
    """L-BFGS-B on −h(λ, β) with its analytic gradient."""

    def negative_dual(x: np.ndarray, gr: np.ndarray, cr: np.ndarray) -> tuple[float, np.ndarray]:
        lam, beta = x
        exponent = -(gr + beta * cr) / lam
        top = exponent.max()
        e = np.exp(exponent - top)
        z = e.mean()
        q = e / (N * z)
        log_z = top + np.log(z)
        mean_c = q @ cr
        kl = q @ exponent - log_z
        return lam * EPSILON + beta * GAMMA + lam * log_z, np.array([EPSILON - kl, GAMMA - mean_c])

    values = []
    for r in range(count):
        start = np.array([g[r].std() / np.sqrt(2 * EPSILON), 0.1])
        bounds = [(1e-4, None), (0, None)]
        found = minimize(negative_dual, start, (g[r], c[r]), jac=True, method="L-BFGS-B", bounds=bounds)
        values.append(-found.fun)
    return values


def in_batches() -> None:
    g, c = scores()
    solve = partial(solve_dual, g, c, epsilon=EPSILON, gamma=GAMMA)
    exact = solve()
    assert set(exact.status) == {"optimal"}, set(exact.status)
    few = 60  # cvxpy on all rounds would take minutes
    cvxpy_loop(g, c, 1)  # compile
    ours, by_cvxpy, by_scipy = interleaved(
        [solve, lambda: cvxpy_loop(g, c, few), lambda: scipy_loop(g, c, ROUNDS)], 3
    )
    by_cvxpy *= ROUNDS / few
    conic_values = np.array(cvxpy_loop(g, c, few))
    conic, failed = (
        np.nanmax(np.abs(conic_values - exact.worst_case[:few])),
        int(np.isnan(conic_values).sum()),
    )
    quasi = np.abs(np.array(scipy_loop(g, c, ROUNDS)) - exact.worst_case).max()
    print(
        f"\n{ROUNDS} problems of n = {N:,}, (ε, γ) = ({EPSILON}, {GAMMA}), β > 0 in "
        f"{int((exact.beta > 0).sum())} of them\n"
    )
    print("| solver | time, klball = 1 | largest error of E_Q g |")
    print("|---|---|---|")
    print(f"| klball, one batched call | 1 | {exact.gap.max() * np.ptp(g, axis=1).max():.0e} (its own gap) |")
    print(
        f"| cvxpy + Clarabel, parametrised | {by_cvxpy / ours:.0f} | {conic:.0e}, {failed} of {few} failed |"
    )
    print(f"| SciPy L-BFGS-B, analytic gradient | {by_scipy / ours:.1f} | {quasi:.0e} |")


if __name__ == "__main__":
    torch.set_num_threads(1)
    in_passes()
    in_batches()
