"""Confidence regions of (λ, β): the sandwich by finite differences, simulation, and where there is none."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from klball import solve_dual
from klball.comparison.items import bootstrap, influence
from klball.comparison.joint import bootstrap_regions, delta_regions
from klball.comparison.rounds import RoundScores, solve_rounds
from klball.report.ellipse import ellipse
from simulated_rounds import simulated


def one_round(g, c):
    """Scores of one model in one round."""
    g, c = (np.asarray(x)[None, None] for x in (g, c))
    return RoundScores(["a"], ["1"], [str(i) for i in range(g.size)], g, c, g, *[np.ones_like(g)] * 2, {})


def estimating_equations(theta, g, c, epsilon, gamma):
    """ψ(μ, a, b) of every item, [3, n]: r has mean 1, r log r ε, r(C − γ) 0; r = exp(μ − ag − bC)."""
    mu, a, b = theta
    log_r = mu - a * g - b * c
    r = np.exp(log_r)
    return np.array([r - 1, r * log_r - epsilon, r * (c - gamma)])


def test_the_matrix_is_the_sandwich_of_the_estimating_equations():
    scores = simulated(models=1, rounds=1, n=300)
    s = solve_rounds(scores, epsilon=0.3, gamma="auto")
    (region,) = delta_regions(scores, s)
    g, c = scores.log_likelihood[0, 0], scores.certainty[0, 0]
    a, b = 1 / region.lambda_, region.beta / region.lambda_
    theta = np.array([-math.log(np.mean(np.exp(-a * g - b * c))), a, b])
    data = (g, c, 0.3, s.gamma)
    psi = estimating_equations(theta, *data)
    assert psi.mean(axis=1) == pytest.approx(0, abs=1e-6)
    bread = np.empty((3, 3))
    for k in range(3):
        step = 1e-5 * np.eye(3)[k]
        moved = [estimating_equations(theta + sign * step, *data).mean(axis=1) for sign in (1, -1)]
        bread[:, k] = (moved[0] - moved[1]) / 2e-5
    inverse = np.linalg.inv(bread)
    of_theta = inverse @ np.cov(psi) @ inverse.T / len(g)
    to_multipliers = np.array([[0, -1 / a**2, 0], [0, -b / a**2, 1 / a]])
    assert region.matrix == pytest.approx(to_multipliers @ of_theta @ to_multipliers.T, rel=1e-5)
    freedom = region.ess - 1
    f = stats.f.ppf(0.95, 2, freedom - 1)
    assert region.radius**2 == pytest.approx(2 * freedom / (freedom - 1) * f)


def test_the_region_holds_the_population_where_much_decides():
    """Normal scores at a small radius; the truth is exact, on a grid. Draws vary as the matrices say."""
    x, y = np.meshgrid(np.linspace(-8, 8, 321), np.linspace(-8, 8, 161))
    mass = np.exp(-(x**2 + y**2) / 2).ravel()
    g, c = (-2 - 0.5 * x).ravel(), (12 + 0.7 * x + 0.7 * y).ravel()
    gamma = 11.95
    truth = solve_dual(g, c, epsilon=0.05, gamma=gamma, base_weights=mass)
    rng, draws, found = np.random.default_rng(0), 120, []
    for _ in range(draws):
        u, v = rng.normal(size=(2, 2_000))
        scores = one_round(-2 - 0.5 * u, 12 + 0.7 * u + 0.7 * v)
        found += delta_regions(scores, solve_rounds(scores, epsilon=0.05, gamma=gamma))
    assert not any(region.degenerate for region in found)
    held = sum(region.distance(truth.lambda_, truth.beta) <= region.radius for region in found)
    assert stats.binom.ppf(1e-4, draws, 0.92) <= held
    spread = np.cov([r.lambda_ for r in found], [r.beta for r in found])
    assert np.median([r.matrix for r in found], axis=0) == pytest.approx(spread, rel=0.4)


def test_the_outline_is_at_the_radius_and_the_centre_inside():
    scores = simulated(models=2, rounds=3, n=200)
    for region in delta_regions(scores, solve_rounds(scores, epsilon=0.2, gamma="auto")):
        centre = np.array([region.lambda_, region.beta])
        points = ellipse(centre, region.matrix, region.radius)
        assert region.distance(*points) == pytest.approx(region.radius)
        assert region.distance(*centre) == 0 and -1 < region.correlation < 1


def test_a_region_is_supported_where_many_items_decide_it_far_from_zero():
    rng = np.random.default_rng(2)
    u, v = rng.normal(size=(2, 3_000))
    scores = one_round(-2 - 0.5 * u, 12 + 0.7 * u + 0.7 * v)
    s = solve_rounds(scores, epsilon=0.05, gamma="auto")
    (region,) = delta_regions(scores, s)
    of_item = influence(scores, s)
    effect = np.array([of_item["lambda_"][0, 0], of_item["beta"][0, 0]])
    shares = np.einsum("in,ij,jn->n", effect, np.linalg.inv(np.cov(effect)), effect)
    assert region.deciding == pytest.approx(shares.sum() ** 2 / (shares**2).sum())
    assert region.supported and region.deciding < 3_000
    assert not replace(region, deciding=29.0).supported
    assert not replace(region, beta=3.9 * math.sqrt(region.beta_var)).supported
    assert not replace(region, lambda_=3.9 * math.sqrt(region.lambda_var)).supported
    assert not any(r.supported for r in bootstrap_regions(bootstrap(scores, s, resamples=20)))


def test_the_bootstrap_region_holds_its_draws_and_lies_near_the_delta_methods():
    scores = simulated(models=2, rounds=2, n=400)
    s = solve_rounds(scores, epsilon=0.1, gamma="auto")
    drawn = bootstrap(scores, s, resamples=200)
    for m, (region, delta) in enumerate(zip(bootstrap_regions(drawn), delta_regions(scores, s), strict=True)):
        points = [drawn.draws[name][:, m].mean(axis=1) for name in ("lambda_", "beta")]
        assert (region.distance(*points) <= region.radius).mean() == pytest.approx(0.95, abs=0.01)
        assert (region.model, region.lambda_, region.beta) == (delta.model, delta.lambda_, delta.beta)
        assert np.sqrt(np.diag(region.matrix)) == pytest.approx(np.sqrt(np.diag(delta.matrix)), rel=0.4)


@pytest.mark.parametrize(
    ("epsilon", "gamma", "said"),
    [
        (0.3, None, "β = 0 in 1 of 1 rounds"),
        (0.3, 99.0, "β = 0 in 1 of 1 rounds"),
        (0.3, 1.0, "no usable round"),
        (2.65, "auto", "ESS = 2"),
        (9.0, "auto", "λ = 0 in 1 of 1 rounds"),
    ],
)
def test_where_there_is_no_region_the_reason_is_said(epsilon, gamma, said):
    scores = simulated(models=1, rounds=1, n=30)
    s = solve_rounds(scores, epsilon=epsilon, gamma=gamma)
    for region in (*delta_regions(scores, s), *bootstrap_regions(bootstrap(scores, s, resamples=5))):
        assert said in region.degenerate and math.isnan(region.radius)


@pytest.mark.parametrize("resamples", [1, 2])
def test_too_few_resamples_are_said_to_be(resamples):
    scores = simulated(models=1, rounds=1)
    s = solve_rounds(scores, epsilon=0.1, gamma="auto")
    (region,) = bootstrap_regions(bootstrap(scores, s, resamples=resamples))
    assert region.degenerate == f"{resamples} resamples" and math.isnan(region.lambda_var)


def test_infeasible_resamples_leave_no_region():
    scores = simulated(models=1, rounds=1, n=40)
    least = solve_rounds(scores, epsilon=0.3, gamma="auto")
    s = solve_rounds(scores, epsilon=0.3, gamma=float(least.gamma - least.gamma_margin.min()) + 1e-3)
    (region,) = bootstrap_regions(bootstrap(scores, s, resamples=60))
    assert region.lost > 0 and "resamples are infeasible" in region.degenerate
