"""The dual: solve time beside plain NumPy and `torch.exp` over the same data, cvxpy and SciPy, and by n."""

import argparse
import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from table import Row, interleaved, row, table

ROUNDS, N, EPSILON, GAMMA = 594, 1_000, 3.0, 14.5
FEW = 60  # rounds given to cvxpy, for which all of them take minutes
RADII = (0.03, 3.0)
SIZES = ((1_000, 301), (30_000, 101), (1_000_000, 11), (10_000_000, 7))  # n, repeats
PLAIN = {1_000: "≤ 1.2", 30_000: "≤ 1.2"}
GROWTH = "growth"


def measure(quick: bool) -> list[Row]:
    """Everything at one thread and at two, each in a process whose libraries all have that number."""
    rows = []
    for threads in (1, 2):
        limits = {
            name: str(threads) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
        }
        command = [sys.executable, __file__, "--threads", str(threads), *["--quick"][: int(quick)]]
        done = subprocess.run(
            command, env={**os.environ, **limits}, capture_output=True, text=True, check=True
        )
        rows += [Row(**fields) for fields in json.loads(done.stdout)]
    return rows


def measured_here(threads: int, quick: bool) -> list[Row]:
    alone = in_passes(threads, quick) + with_bounds(threads, quick)
    return [*alone, *in_batches(threads), *by_size(threads, quick)]


def _case(threads: int) -> str:
    return f"{threads} thread" + "s" * (threads > 1)


def losses(n: int) -> Any:
    import torch

    return -torch.from_numpy(np.random.default_rng(0).gamma(2, 1, n))


def plain(g: np.ndarray, epsilon: float) -> tuple[float, np.ndarray]:
    """λ and weights by safeguarded Newton on log KL in log a, in thirty plain lines without checks."""
    x = g - g.min()
    low, high = 0.0, math.inf
    a = math.sqrt(2 * epsilon) / x.std()
    for _ in range(100):
        w = np.exp(-a * x)
        z = w.sum()
        wx = w * x
        mean = wx.sum() / z
        var = wx @ x / z - mean**2
        kl = -math.log(z / len(x)) - a * mean
        if abs(kl - epsilon) <= 1e-12 * max(1, epsilon):
            break
        if kl < epsilon:
            low = a
        else:
            high = a
        step = kl * math.log(epsilon / kl) / (a * a * var) if kl > 0 and var > 0 else 1.5
        new = a * math.exp(max(-1.5, min(1.5, step)))
        if not low < new < high:
            new = math.sqrt(low * high) if high < math.inf else 2 * a
        a = new
    return 1 / a, w / z


def in_passes(threads: int, quick: bool) -> list[Row]:
    import torch

    from klball import solve_dual

    rows = []
    for n, repeats in SIZES:
        g = losses(n)
        buffer = torch.exp(g)  # touched
        for epsilon in RADII:
            solve, peer = partial(solve_dual, g, epsilon=epsilon), partial(plain, g.numpy(), epsilon)
            assert abs(solve().lambda_ / peer()[0] - 1) < 1e-9
            loops = [solve, peer, partial(torch.exp, g, out=buffer)]
            seconds = interleaved(loops, 3 if quick and n == SIZES[-1][0] else repeats)
            case = f"n = {n:,}, ε = {epsilon}, {_case(threads)}"
            ours = seconds[:, 0]
            rows.append(
                row("dual", case, "klball / plain NumPy", ours / np.median(seconds[:, 1]), PLAIN.get(n, ""))
            )
            rows.append(row("dual", case, "passes of torch.exp", ours / np.median(seconds[:, 2])))
    return rows


def with_bounds(threads: int, quick: bool) -> list[Row]:
    """A cap on weights, a bound on certainty, both; and again after a drift of a per mille."""
    import torch

    from klball import solve_dual
    from klball.adversary.warm import resolve

    rng, rows = np.random.default_rng(2), []
    for n in (30_000,) if quick else (30_000, 1_000_000):
        g = losses(n)
        noise = torch.from_numpy(rng.normal(size=(2, n)))
        c, moved = 15 - 0.5 * (g + 2) + 0.8 * noise[0], g + 1e-3 * noise[1]
        for epsilon, gamma, cap in (
            (0.05, None, 2.0),
            (0.05, 15.1, None),
            (0.3, 15.1, 2.0),
            (1.0, 15.3, 2.0),
        ):
            solve = partial(solve_dual, g, c, epsilon=epsilon, gamma=gamma, max_weight=cap)
            found = solve()
            bounds = dict(epsilon=epsilon, gamma=gamma, max_weight=cap)
            again = partial(resolve, moved, c, None, start=(found.lambda_, found.beta), **bounds)
            warm = found.lambda_ > 0 and again() is not None
            seconds = 1e3 * interleaved([solve, again] if warm else [solve], 5)
            case = f"n = {n:,}, ε = {epsilon}, γ = {gamma}, cap {cap}, {_case(threads)}"
            rows.append(row("dual", case, f"{found.status}, ms (this machine)", seconds[:, 0]))
            if warm:
                rows.append(row("dual", case, "warm start, ms (this machine)", seconds[:, 1]))
    return rows


def scores() -> tuple[np.ndarray, np.ndarray]:
    """Rounds like the source's: g about −2, C about 15 and higher where g is low."""
    rng = np.random.default_rng(1)
    g = -2 + 0.5 * rng.normal(size=(ROUNDS, N))
    return g, 15 - 0.8 * (g + 2) + 0.8 * rng.normal(size=(ROUNDS, N))


def cvxpy_loop(problem: Any, g: np.ndarray, c: np.ndarray) -> None:
    """A parametrised problem, compiled once, on standardised scores and weights of mean one."""
    import cvxpy as cp

    parameters = problem.param_dict
    for own_g, own_c in zip(g, c, strict=True):
        parameters["g"].value = (own_g - own_g.mean()) / own_g.std()
        parameters["c"].value = (own_c - own_c.mean()) / own_c.std()
        parameters["bound"].value = (GAMMA - own_c.mean()) / own_c.std()
        try:
            problem.solve(solver=cp.CLARABEL)
        except cp.SolverError:  # it happens in some rounds; the time counts all the same
            continue


def conic_problem() -> Any:
    import cvxpy as cp

    w = cp.Variable(N, nonneg=True)
    g, c, bound = cp.Parameter(N, name="g"), cp.Parameter(N, name="c"), cp.Parameter(name="bound")
    ball = cp.sum(cp.kl_div(w, np.ones(N))) / N <= EPSILON
    return cp.Problem(cp.Minimize(g @ w / N), [cp.sum(w) == N, ball, c @ w / N <= bound])


def scipy_loop(g: np.ndarray, c: np.ndarray) -> np.ndarray:
    """L-BFGS-B on −h(λ, β) with its analytic gradient; the values of E_Q[g] it finds."""
    from scipy.optimize import minimize

    def negative_dual(x: np.ndarray, gr: np.ndarray, cr: np.ndarray) -> tuple[float, np.ndarray]:
        lam, beta = x
        exponent = -(gr + beta * cr) / lam
        top = exponent.max()
        e = np.exp(exponent - top)
        z = e.mean()
        q = e / (N * z)
        log_z = top + np.log(z)
        kl = q @ exponent - log_z
        return lam * EPSILON + beta * GAMMA + lam * log_z, np.array([EPSILON - kl, GAMMA - q @ cr])

    values = []
    for gr, cr in zip(g, c, strict=True):
        start = np.array([gr.std() / np.sqrt(2 * EPSILON), 0.1])
        bounds = [(1e-4, None), (0, None)]
        found = minimize(negative_dual, start, (gr, cr), jac=True, method="L-BFGS-B", bounds=bounds)
        values.append(-found.fun)
    return np.array(values)


def in_batches(threads: int) -> list[Row]:
    from klball import solve_dual

    g, c = scores()
    solve = partial(solve_dual, g, c, epsilon=EPSILON, gamma=GAMMA)
    exact = solve()
    assert set(exact.status) == {"optimal"}, set(exact.status)
    problem = conic_problem()
    cvxpy_loop(problem, g[:1], c[:1])  # compile
    quasi = np.abs(scipy_loop(g, c) - exact.worst_case).max()
    loops = [solve, partial(cvxpy_loop, problem, g[:FEW], c[:FEW]), partial(scipy_loop, g, c)]
    seconds = interleaved(loops, 3)
    ours = np.median(seconds[:, 0])
    case = f"{ROUNDS} × {N:,}, (ε, γ) = ({EPSILON:g}, {GAMMA}), {_case(threads)}"
    gap = float((exact.gap * np.ptp(g, axis=1)).max())
    return [
        row("dual", case, "cvxpy + Clarabel / klball", seconds[:, 1] * ROUNDS / FEW / ours, "≥ 300"),
        row("dual", case, "SciPy L-BFGS-B / klball", seconds[:, 2] / ours, "≥ 10"),
        row("dual", case, "largest gap of klball, nats", [gap]),
        row("dual", case, "largest error of L-BFGS-B, nats", [float(quasi)]),
    ]


def by_size(threads: int, quick: bool) -> list[Row]:
    """Time a sample, in units of `torch.exp` a sample at n = 1e6 with the same threads."""
    import torch

    from klball import solve_dual

    unit = losses(1_000_000)
    buffer = torch.exp(unit)
    rows = []
    for power in range(3, 8 if quick else 9):
        n = 10**power
        g = losses(n)
        both = [partial(solve_dual, g, epsilon=0.05), partial(torch.exp, unit, out=buffer)]
        seconds = interleaved(both, max(3, min(50, 10**7 // n)))
        cost = seconds[:, 0] / np.median(seconds[:, 1])
        rows.append(row("dual", f"n = 1e{power}, {_case(threads)}", GROWTH, cost))
        del g
    return rows


def figure(rows: Sequence[Row], path: Path) -> None:
    """Growth with n, log–log: solve time in units of `torch.exp` over a million samples."""
    import matplotlib.pyplot as plt

    from klball.report.figures import STYLE, line_styles, save

    own = [r for r in rows if r.measure == GROWTH]
    with plt.rc_context(STYLE):
        drawn, axis = plt.subplots(figsize=(7, 4.5))
        for threads, style in zip((1, 2), line_styles(), strict=False):
            mine = [r for r in own if r.case.endswith(_case(threads))]
            sizes = [float(r.case.split(",")[0].removeprefix("n = ")) for r in mine]
            axis.plot(sizes, [r.median for r in mine], label=_case(threads), **style)
        ends = np.array([1e5, max(float(r.case.split(",")[0].removeprefix("n = ")) for r in own)])
        axis.plot(ends, 8 * ends / 1e6, color="#777777", linewidth=1, label="8 passes of exp")
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xlabel("samples n")
        axis.set_ylabel("solve time, passes of exp over 1e6")
        axis.legend()
        save(drawn, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--threads", type=int, help="measure here, with so many threads, and print JSON")
    parser.add_argument("--figure", type=Path, help="where to draw the growth with n, without suffix")
    options = parser.parse_args()
    if options.threads:
        import torch

        torch.set_num_threads(options.threads)
        print(json.dumps([vars(r) for r in measured_here(options.threads, options.quick)]))
        return
    rows = measure(options.quick)
    print(table(rows))
    if options.figure:
        figure(rows, options.figure)


if __name__ == "__main__":
    main()
