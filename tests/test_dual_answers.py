"""What the dual answers: types, batches, and wrong answers that the certificate refuses."""

import dataclasses

import numpy as np
import pytest
import torch

from klball import DualSolution, DualSolutions, solve_dual
from klball.adversary import problem


def test_a_batch_equals_its_rounds_one_by_one():
    rng = np.random.default_rng(8)
    g = rng.normal(size=(20, 60))
    g[3] = -1.5  # one constant round among the others
    c = 14 - 0.7 * g + rng.normal(size=g.shape)
    together = solve_dual(g, c, epsilon=1.0, gamma=14.3, throw=False)
    for r in range(20):
        alone = solve_dual(g[r], c[r], epsilon=1.0, gamma=14.3, throw=False)
        assert together.status[r] == alone.status
        for name in ("lambda_", "beta", "kl", "worst_case", "ess"):
            pair = (getattr(together, name)[r], getattr(alone, name))
            assert pair[0] == pytest.approx(pair[1], rel=1e-8, nan_ok=True), (r, name)


def test_large_batches_are_solved_in_groups():
    rng = np.random.default_rng(9)
    g = rng.normal(size=(5, 30_000))
    c = 14 - 0.7 * g + rng.normal(size=g.shape)
    f = rng.random(g.shape)
    together = solve_dual(g, c, epsilon=0.5, gamma=14.2, base_weights=f)
    for r in range(5):
        alone = solve_dual(g[r], c[r], epsilon=0.5, gamma=14.2, base_weights=f[r])
        assert (together.lambda_[r], together.beta[r]) == pytest.approx((alone.lambda_, alone.beta))
        assert together.weights[r] == pytest.approx(alone.weights)


def test_output_type_follows_input_and_stays_float64():
    g = torch.randn(10, dtype=torch.float32)
    s = solve_dual(g, epsilon=0.1)
    assert isinstance(s.weights, torch.Tensor) and s.weights.dtype == torch.float64
    assert isinstance(s.lambda_, float)
    batch = solve_dual(g.view(2, 5).numpy(), epsilon=0.1)
    assert isinstance(batch.lambda_, np.ndarray) and batch.lambda_.shape == (2,)
    assert batch.lambda_.dtype == np.float64 and isinstance(
        solve_dual([0.0, 1.0], epsilon=0.1).weights, np.ndarray
    )


WRONG = {
    "close the gap": lambda s: {"gap": 1e-6},
    "lie in the ball": lambda s: {"kl": s.kl + 1e-6},
    "lie on its surface": lambda s: {"kl": s.kl - 1e-6},
    "keep the bound on certainty": lambda s: {"mean_y": s.mean_y + 1e-6},
    "sum to one": lambda s: {"weights": s.weights * (1 + 1e-9)},
    "keep the cap": lambda s: {"weights": np.roll(s.weights, 1)},
}


@pytest.mark.parametrize(  # capped rounds are solved one by one
    ("missed", "rounds"), [(m, 1) for m in WRONG] + [(m, 3) for m in WRONG if m != "keep the cap"]
)
def test_a_wrong_answer_is_refused_whatever_found_it(monkeypatch, missed, rounds):
    name = "solve_round" if rounds == 1 else "solve_together"
    honest = getattr(problem, name)

    def wrong(*arguments, **settings):
        found = honest(*arguments, **settings)
        return found._replace(**WRONG[missed](found))

    rng = np.random.default_rng(1)
    g = np.squeeze(-rng.gamma(2, 1, (rounds, 200)))
    c = 14 - g + rng.normal(size=g.shape)
    base = rng.random(g.shape) if missed == "keep the cap" else None
    settings = dict(epsilon=0.4, gamma=16.4, base_weights=base, max_weight=2.0 if base is not None else None)
    assert np.all(np.array(solve_dual(g, c, **settings).beta) > 0)
    monkeypatch.setattr(problem, name, wrong)
    with pytest.raises(ValueError, match=f"no multipliers were found that .*{missed}") as caught:
        solve_dual(g, c, **settings)
    assert ("round 0: " in str(caught.value)) == (rounds > 1)


@pytest.mark.parametrize("make", [np.asarray, torch.tensor, list])
@pytest.mark.parametrize("bounds", [{}, {"gamma": 2.0}, {"gamma": -9.0, "throw": False}, {"max_weight": 2.0}])
def test_one_problem_has_numbers_and_a_batch_has_arrays(make, bounds):
    g = [[-1.0, -2.0, -6.0], [-1.0, -3.0, -3.5]]
    c = [[1.0, 2.0, 3.0], [1.0, 2.0, 2.5]]
    one = solve_dual(make(g[0]), make(c[0]), epsilon=0.1, **bounds)
    many = solve_dual(make(g), make(c), epsilon=0.1, **bounds)
    assert isinstance(one, DualSolution) and isinstance(many, DualSolutions)
    kind = torch.Tensor if make is torch.tensor else np.ndarray
    for field in dataclasses.fields(DualSolution):
        number, array = getattr(one, field.name), getattr(many, field.name)
        if field.name == "gamma_min" and "gamma" not in bounds:
            assert number is None and array is None
        elif field.name == "status":
            assert type(number) is str and type(array) is list and len(array) == 2
        elif field.name == "num_passes":
            assert type(number) is int and type(array) is int
        elif field.name == "weights":
            assert type(number) is kind and type(array) is kind and array.shape == (2, 3)
        else:
            assert type(number) is float and type(array) is kind and array.shape == (2,), field.name
            assert float(array[0]) == pytest.approx(number, rel=1e-9, nan_ok=True), field.name


def test_solutions_show_their_numbers_in_a_line():
    g = -np.random.default_rng(0).gamma(2, 1, (3, 400))
    one, many = solve_dual(g[0], epsilon=0.1), solve_dual(g, -g, epsilon=0.1)
    assert repr(one).startswith("DualSolution(optimal: E_Q[g] -") and f"λ {one.lambda_:.6g}" in repr(one)
    assert repr(many).startswith("DualSolutions(3 optimal: ") and "gap at most" in repr(many)
    for shown in (repr(one), repr(many)):
        assert "\n" not in shown and len(shown) < 160


def test_solutions_can_be_compared_and_kept_in_sets():
    one, other = solve_dual([-1.0, -2.0], epsilon=0.1), solve_dual([-1.0, -2.0], epsilon=0.1)
    assert one != other and [other, one].index(one) == 1 and len({one, other, one}) == 2
