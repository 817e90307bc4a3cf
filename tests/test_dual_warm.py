"""Warm starts: as exact as solving afresh, whatever binds, or nothing."""

import numpy as np
import pytest
import torch

from klball import solve_dual
from klball.adversary.warm import resolve

CASES = {
    "ball": {},
    "certainty": {"gamma": 14.4},
    "cap": {"max_weight": 2.0},
    "cap and certainty": {"max_weight": 2.0, "gamma": 14.4},
    "large radius": {"epsilon": 3.0},
    "large radius, cap": {"epsilon": 1.5, "max_weight": 8.0},
}


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_a_drift_is_followed(name, weighted):
    settings = {"epsilon": 0.2, "gamma": None, "max_weight": None} | CASES[name]
    rng = np.random.default_rng(0)
    g = -rng.gamma(2, 1, 3_000)
    c = 14 - 0.5 * g + rng.normal(size=len(g))
    base = rng.dirichlet(np.ones(len(g))) if weighted else None
    tensors = [None if v is None else torch.from_numpy(v) for v in (g, c, base)]
    start, warm_ones = solve_dual(g, c, base_weights=base, **settings), 0
    for _ in range(15):
        some = rng.integers(len(g), size=64)
        g[some] = 0.98 * g[some] + 0.02 * rng.normal(size=64)
        c[some] += 0.01
        exact = solve_dual(g, c, base_weights=base, **settings)
        found = resolve(*tensors, start=(start.lambda_, start.beta), **settings)
        if found is not None:
            warm_ones += 1
            assert found.weights is None and found.gap <= 1e-10
            for field in ("lambda_", "beta", "mu", "kl", "certainty", "worst_case"):
                assert getattr(found, field) == pytest.approx(getattr(exact, field), rel=1e-7), field
            assert found.ess == pytest.approx(exact.ess, rel=5e-5) and found.status == exact.status
        start = exact
    assert warm_ones == 15


def test_a_start_far_off_gives_nothing_or_the_answer():
    rng = np.random.default_rng(1)
    g = -rng.gamma(2, 1, 500)
    for cap in (None, 3.0):
        exact = solve_dual(g, epsilon=0.3, max_weight=cap)
        for factor in (1e-12, 1e-3, 0.5, 3.0, 1e6):
            start = (exact.lambda_ * factor, 0.0)
            settings = dict(epsilon=0.3, gamma=None, max_weight=cap, start=start)
            found = resolve(torch.from_numpy(g), None, None, **settings)
            assert found is None or found.lambda_ == pytest.approx(exact.lambda_, rel=1e-8)
    constant = torch.full((50,), -2.0, dtype=torch.float64)
    for settings in ({"max_weight": None}, {"max_weight": 2.0}):
        assert resolve(constant, None, None, epsilon=0.3, gamma=None, start=(1.0, 0.0), **settings) is None


def test_conditional_value_at_risk_is_no_tilt():
    g = -np.random.default_rng(2).gamma(2, 1, 400)
    assert solve_dual(g, epsilon=5.0, max_weight=4.0).lambda_ == 0
    settings = dict(epsilon=5.0, gamma=None, max_weight=4.0, start=(0.05, 0.0))
    assert resolve(torch.from_numpy(g), None, None, **settings) is None
