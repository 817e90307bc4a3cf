"""Every ambiguity set against cvxpy, and what the protocol asks of each: density, direction, scaling."""

import math

import cvxpy as cp
import numpy as np
import pytest
import torch

from klball.adversary.sets import CertaintyKLBall, ChiSquareBall, CVaR, Empirical, KLBall

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
