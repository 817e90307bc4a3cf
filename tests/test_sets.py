"""Every ambiguity set against cvxpy, and what the protocol asks of each: density, direction, scaling."""

import math
from dataclasses import replace

import cvxpy as cp
import numpy as np
import pytest
import torch

from klball.adversary.sets import CertaintyKLBall, ChiSquareBall, CVaR, Empirical, KLBall
from klball.adversary.trimming import Trimmed

SETS = [
    Empirical(),
    KLBall(0.3),
    KLBall(0.5, max_weight=1.7),
    CertaintyKLBall(0.5, 0.2),
    CVaR(0.2),
    CVaR(0.07),
    ChiSquareBall(0.4),
    ChiSquareBall(3.0),
    ChiSquareBall(0.5, max_weight=1.6),
]


def problem(seed, size=40, ties=False, weighted=False):
    generator = np.random.default_rng(seed)
    g = generator.normal(size=size) * 10 ** generator.uniform(-2, 2) + generator.normal() * 10
    if ties:
        g = np.round(g / np.ptp(g), 1)
    c = generator.normal(size=size)
    base = generator.dirichlet(np.full(size, 2.0)) if weighted else np.full(size, 1 / size)
    return {"score": torch.from_numpy(g), "certainty": torch.from_numpy(c)}, torch.from_numpy(base)


def worst_by_cvxpy(ambiguity, scores, base):
    g, c, f = scores["score"].numpy(), scores["certainty"].numpy(), base.numpy()
    w = cp.Variable(len(g), nonneg=True)
    rules = [f @ w == 1]
    match ambiguity:
        case Empirical():
            rules.append(w == 1)
        case KLBall() | CertaintyKLBall():
            rules.append(cp.sum(cp.multiply(f, -cp.entr(w))) <= ambiguity.epsilon)
        case CVaR():
            rules.append(w <= 1 / ambiguity.alpha)
        case ChiSquareBall():
            rules.append(cp.sum(cp.multiply(f, cp.square(w - 1))) <= ambiguity.radius)
    if isinstance(ambiguity, CertaintyKLBall):
        rules.append((f * c) @ w <= ambiguity.gamma)
    if getattr(ambiguity, "max_weight", None) is not None:
        rules.append(w <= ambiguity.max_weight)
    scaled = (g - g.mean()) / np.ptp(g)
    found = cp.Problem(cp.Minimize((f * scaled) @ w), rules)
    found.solve(solver=cp.CLARABEL)
    assert found.status == cp.OPTIMAL
    return g.mean() + np.ptp(g) * float(found.value)


@pytest.mark.parametrize("ambiguity", SETS, ids=str)
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_worst_case_is_that_of_a_general_solver(ambiguity, ties, weighted):
    for seed in range(5):
        scores, base = problem(seed, ties=ties, weighted=weighted)
        solution = ambiguity.solve(scores, base if weighted else None)
        assert solution.weights is not None
        assert float(solution.weights.sum()) == pytest.approx(1, abs=1e-12)
        assert float(solution.weights.min()) >= 0
        g = scores["score"]
        assert float(solution.weights @ g) == pytest.approx(solution.worst_case, rel=1e-12, abs=1e-12)
        wanted = worst_by_cvxpy(ambiguity, scores, base)
        assert solution.worst_case == pytest.approx(wanted, abs=2e-6 * float(g.max() - g.min()))


@pytest.mark.parametrize("ambiguity", SETS, ids=str)
@pytest.mark.parametrize("weighted", [False, True])
def test_density_of_the_ledgers_own_scores_is_the_solutions(ambiguity, weighted):
    scores, base = problem(11, weighted=weighted)
    solution = ambiguity.solve(scores, base if weighted else None)
    fresh = {**scores, "unit": torch.arange(len(base)), "base": base}
    assert solution.weights is not None
    assert torch.allclose(solution.density(fresh) * base, solution.weights, rtol=1e-9, atol=1e-12)
    assert solution.ess == pytest.approx(1 / float((solution.weights**2).sum()))
    kl = float(torch.xlogy(solution.weights, solution.weights / base).sum())
    assert solution.kl == pytest.approx(kl, abs=1e-9)


@pytest.mark.parametrize("make", [KLBall, CVaR, ChiSquareBall])
def test_optimism_is_the_mirror_of_pessimism(make):
    scores, base = problem(3, weighted=True)
    mirrored = {**scores, "score": -scores["score"]}
    hopeful = make(0.3, direction="optimistic").solve(scores, base)
    wary = make(0.3).solve(mirrored, base)
    assert torch.equal(hopeful.weights, wary.weights)
    assert hopeful.worst_case == -wary.worst_case
    assert hopeful.worst_case > float(base @ scores["score"])
    fresh = {**scores, "unit": torch.arange(len(base)), "base": base}
    assert torch.allclose(hopeful.density(fresh) * base, hopeful.weights)


@pytest.mark.parametrize("ambiguity", [*SETS[:3], *SETS[4:], CertaintyKLBall(0.5, 9.0)], ids=str)
def test_a_set_grows_from_the_base_weights(ambiguity):
    scores, _ = problem(4)
    nothing = ambiguity.scaled(0.0)
    assert torch.allclose(nothing.solve(scores).weights, torch.full((40,), 1 / 40, dtype=torch.float64))
    assert ambiguity.scaled(1.0) == ambiguity
    between = ambiguity.scaled(0.5).solve(scores).worst_case
    assert ambiguity.solve(scores).worst_case <= between <= float(scores["score"].mean()) + 1e-12


def test_where_a_chi_square_ball_binds_the_effective_sample_size_is_known():
    scores, _ = problem(5)
    solution = ChiSquareBall(0.4).solve(scores)
    assert solution.status == "optimal"
    assert solution.ess == pytest.approx(40 / 1.4, rel=1e-9)
    everything = ChiSquareBall(100.0).solve(scores)
    assert everything.status == "point_mass"
    assert everything.worst_case == float(scores["score"].min())
    capped = ChiSquareBall(100.0, max_weight=4).solve(scores)
    assert capped.status == "capped"
    assert capped.worst_case == pytest.approx(CVaR(0.25).solve(scores).worst_case, rel=1e-12)


@pytest.mark.parametrize("ambiguity", SETS, ids=str)
def test_scores_go_by_name(ambiguity):
    with pytest.raises(ValueError, match="by name"):
        ambiguity.solve(torch.zeros(3))


@pytest.mark.parametrize("make", [CVaR, ChiSquareBall, KLBall])
@pytest.mark.parametrize("wrong", [-0.1, math.nan, math.inf])
def test_radii_that_are_none_are_refused(make, wrong):
    with pytest.raises(ValueError, match="not"):
        make(wrong)
    with pytest.raises(ValueError, match="direction"):
        make(0.5, direction="both")


@pytest.mark.parametrize("ambiguity", SETS[1:], ids=str)
def test_a_score_that_is_no_number_is_refused(ambiguity):
    scores, _ = problem(6)
    scores["score"][3] = math.nan
    with pytest.raises(ValueError, match=r"finite|NaN"):
        ambiguity.solve(scores)


@pytest.mark.parametrize("seed", range(20))
def test_cvar_of_all_the_data_is_the_mean_where_units_have_no_weight(seed):
    """Also of the largest scores, which the sum of the others, a bit below 1, would reach."""
    rng = np.random.default_rng(seed)
    score, base = torch.from_numpy(np.sort(rng.normal(size=30))), torch.from_numpy(rng.random(30))
    base[-3:] = 0
    base /= base.sum()
    for ambiguity in (CVaR(1.0), CVaR(0.3).scaled(0.0)):
        assert torch.allclose(ambiguity.solve({"score": score}, base).weights, base)


@pytest.mark.parametrize("ambiguity", [ball for ball in SETS if ball.needs == ("score",)], ids=str)
@pytest.mark.parametrize("size", [3, 40])
@pytest.mark.parametrize("scale", [1e-300, 1e-160, 1e-9, 1e9, 1e160, 1e298])
@pytest.mark.parametrize("direction", ["pessimistic", "optimistic"])
def test_units_of_the_score_change_nothing_but_the_worst_case(ambiguity, size, scale, direction):
    ball = replace(ambiguity, direction=direction)
    scores, base = problem(5, size, weighted=True)
    plain, scaled = (ball.solve({"score": scores["score"] * unit}, base) for unit in (1.0, scale))
    assert torch.allclose(scaled.weights, plain.weights, rtol=1e-7, atol=1e-12)
    assert scaled.worst_case / scale == pytest.approx(plain.worst_case, rel=1e-9)
    assert scaled.scales["score"] / scale == pytest.approx(plain.scales["score"], rel=1e-6)
    assert scaled.status == plain.status


@pytest.mark.parametrize("radius", [1e-300, 1e-27, 1e-20, 1e-14, 1e-6, 0.3, 30.0, 38.9999, 39.5])
@pytest.mark.parametrize("cap", [None, 1.000001, 1.6, 40.0])
@pytest.mark.parametrize("offset", [0.0, 1e6])
@pytest.mark.parametrize("shape", ["normal", "few near the worst", "heavy"])
def test_weights_of_a_chi_square_ball_lie_in_it(radius, cap, offset, shape):
    g = np.random.default_rng(8).normal(size=40)
    if shape == "few near the worst":
        g[:5] = g.min() - 1e3 + 1e-4 * np.arange(5)
    if shape == "heavy":
        g = np.sign(g) * np.abs(g) ** 9
    ball = ChiSquareBall(radius, cap)
    found = ball.solve({"score": torch.from_numpy(g + offset)})
    w = 40 * found.weights.numpy()
    reached = float(np.mean((w - 1) ** 2))
    assert w.mean() == pytest.approx(1, abs=1e-10) and w.min() >= 0 and w.max() <= (cap or 40) * (1 + 1e-9)
    assert reached <= radius * (1 + 1e-7) + 1e-15
    if found.status == "optimal" and radius > 1e-20:
        assert reached == pytest.approx(radius, rel=1e-5)
    assert np.all(np.diff(w[np.argsort(g)]) <= 1e-9)


@pytest.mark.parametrize("ambiguity", [*SETS, Trimmed(KLBall(0.2), 0.2)], ids=str)
@pytest.mark.parametrize(
    ("change", "base", "message"),
    [
        ({"score": []}, None, "score must be a non-empty"),
        ({"score": [-1.0, math.nan, -2.0]}, None, "score has 1 NaN or infinite values"),
        ({"score": [[-1.0, -2.0, -3.0]]}, None, r"score must be a non-empty \[n\] array, not \[1, 3\]"),
        ({}, [math.nan, 1.0, 0.5], "base_weights has 1 NaN or infinite values"),
        ({}, [-0.5, 1.0, 0.5], "base_weights must not be negative"),
        ({}, [0.5, 0.5], r"base_weights has shape \[2\], the scores \[3\]"),
    ],
)
def test_scores_and_weights_that_mean_nothing_are_one_line_in_every_set(ambiguity, change, base, message):
    scores = {"score": [-1.0, -3.0, -2.0], "certainty": [0.1, 0.2, 0.3], **change}
    with pytest.raises(ValueError, match=message):
        ambiguity.solve(scores, None if base is None else torch.tensor(base))
    for needed in ambiguity.needs:
        with pytest.raises(ValueError, match=f"there is no '{needed}'"):
            ambiguity.solve({name: [-1.0, -2.0] for name in ambiguity.needs if name != needed})


@pytest.mark.parametrize("ambiguity", [*SETS, Trimmed(KLBall(0.2), 0.2)], ids=str)
def test_units_without_base_weight_and_arrays_of_any_kind(ambiguity):
    scores = {
        "score": torch.tensor([-9.0, -1.0, -3.0, -2.0]),
        "certainty": torch.tensor([0.0, 0.1, 0.2, 0.0]),
    }
    alone = ambiguity.solve({name: values[1:] for name, values in scores.items()})
    found = ambiguity.solve(
        {name: values.numpy().astype(np.float16) for name, values in scores.items()},
        torch.tensor([0.0, 1.0, 1.0, 1.0]),  # float32, and not normalised
    )
    assert found.weights[0] == 0 and found.weights[1:].allclose(alone.weights, atol=1e-3)


@pytest.mark.parametrize("kind", [np.float32, np.float16, np.float64, int])
def test_parameters_of_any_kind_of_number_are_float64(kind):
    scores = {"score": torch.from_numpy(-np.random.default_rng(0).exponential(size=200))}
    for ball in (KLBall(0.5, kind(3.3)), ChiSquareBall(0.5, kind(3.3)), CVaR(kind(1) / kind(3))):
        assert float(ball.solve(scores).weights.sum()) == pytest.approx(1, abs=1e-12)
        assert all(type(value) in (float, str) for value in vars(ball).values())


def test_a_ball_is_capped_only_where_a_weight_sits_at_the_cap():
    scores = {"score": torch.tensor([-3.0, -2.0, -1.0])}
    for ball, status in (
        (KLBall(5.0, 100.0), "point_mass"),
        (KLBall(5.0, 3.0), "capped"),
        (KLBall(5.0, 2.5), "capped"),
        (ChiSquareBall(9.0, 100.0), "point_mass"),
        (ChiSquareBall(9.0, 2.5), "capped"),
        (ChiSquareBall(0.1, 100.0), "optimal"),
    ):
        assert ball.solve(scores).status == status, ball
    for ball in (ChiSquareBall(0.01, 1.5), KLBall(0.01, 1.5)):
        unweighted = {"score": torch.tensor([-100.0, -1.0, -2.0, -3.0, -1.5])}
        assert ball.solve(unweighted, torch.tensor([0.0, 1.0, 1.0, 1.0, 1.0])).status == "optimal"
