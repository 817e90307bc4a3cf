"""The dual against independent oracles: cvxpy with Clarabel, nested bracketing, and closed forms."""

import math

import cvxpy as cp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.special import softmax, xlogy

from klball import InfeasibleError, robust_profile, solve_dual
from klball.adversary.solver.tilting import Scores, Tilting

RADII = (0.01, 0.05, 0.5, 1.0, 2.0, 5.0)


def conic_optimum(g, c, f, epsilon, gamma, cap):
    """The primal problem by an interior-point solver that shares nothing with ours."""
    q = cp.Variable(len(g), nonneg=True)
    constraints = [cp.sum(q) == 1, cp.sum(cp.kl_div(q, f)) <= epsilon]
    if gamma is not None:
        constraints.append(c @ q <= gamma)
    if cap is not None:
        constraints.append(q <= cap * f)
    problem = cp.Problem(cp.Minimize(g @ q), constraints)
    problem.solve(solver=cp.CLARABEL)
    return problem


def random_problem(rng):
    n = int(rng.choice([1, 2, 3, 5, 20, 100]))
    g = [
        rng.normal(size=n),
        -rng.gamma(1, 1, n),
        rng.standard_t(2, size=n),
        rng.integers(0, 3, n).astype(float),  # ties
    ][rng.integers(4)]
    c = [rng.normal(size=n), rng.normal(size=n) - g / 2, rng.integers(0, 3, n).astype(float)][rng.integers(3)]
    f = np.full(n, 1 / n) if rng.random() < 0.6 else rng.dirichlet(np.ones(n))
    gamma = float(np.quantile(c, rng.random()) * 0.7 + 0.3 * c.mean()) if rng.random() < 0.7 else None
    cap = float(rng.choice([1.2, 2, 5])) if rng.random() < 0.3 else None
    return g, c, f, float(rng.choice(RADII)), gamma, cap


@pytest.mark.parametrize("seed", range(12))
def test_agrees_with_conic_solver_on_random_problems(seed):
    rng = np.random.default_rng(seed)
    for _ in range(10):
        g, c, f, epsilon, gamma, cap = random_problem(rng)
        s = solve_dual(
            loss=-g, certainty=c, epsilon=epsilon, gamma=gamma, base_weights=f, max_weight=cap, throw=False
        )
        oracle = conic_optimum(g, c, f, epsilon, gamma, cap)
        if s.status == "infeasible":
            # the conic solver may call a barely infeasible problem solved: then γ is within its accuracy
            assert oracle.status.startswith("infeasible") or s.gamma_min - gamma < 1e-4
            continue
        assert oracle.status in ("optimal", "optimal_inaccurate"), (seed, oracle.status)
        assert s.worst_case == pytest.approx(oracle.value, abs=2e-6 * max(np.ptp(g), 1))
        check_certificate(s, g, c, f, epsilon, gamma, cap)


def check_certificate(s, g, c, f, epsilon, gamma, cap):
    q = np.asarray(s.weights)
    assert q.sum() == pytest.approx(1, abs=1e-12)
    assert (q >= 0).all()
    assert s.gap <= 1e-10
    positive = q > 0
    kl = float(np.sum(q[positive] * np.log(q[positive] / f[positive])))
    assert kl <= epsilon + 1e-10 * max(1, epsilon)
    assert s.kl == pytest.approx(kl, abs=1e-10)
    if s.status == "optimal" and epsilon > 0:
        assert abs(kl - epsilon) <= 1e-10 * max(1, epsilon)
    if gamma is not None:
        assert q @ c <= gamma + 1e-10
    if cap is not None:
        assert (q <= cap * f * (1 + 1e-12)).all()
    assert s.worst_case == pytest.approx(q @ g, abs=1e-12 * max(1, np.abs(g).max()))
    assert s.ess == pytest.approx(1 / (q @ q))


def bracketed_lambda(g, epsilon):
    """λ of the ball alone by plain bisection in log λ; shares no code with the solver."""
    loss = g.min() - g

    def kl(lam):
        e = np.exp(loss / lam)
        z = e.mean()
        return float((e / z * (loss / lam - math.log(z))).mean())

    low, high = 1e-12 * np.ptp(g), 1e8 * np.ptp(g)
    for _ in range(200):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if kl(middle) > epsilon else (low, middle)
    return math.sqrt(low * high)


SHAPES = {
    "normal": lambda rng, n: rng.normal(size=n) - 2,
    "heavy": lambda rng, n: -np.abs(rng.standard_t(1.5, size=n)),
    "tiny spread": lambda rng, n: rng.normal(size=n) * 1e-9,
    "huge spread": lambda rng, n: rng.normal(size=n) * 1e6,
    "offset": lambda rng, n: -1e3 + rng.normal(size=n) * 1e-3,
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("n", [10, 2_000, 100_000])
@pytest.mark.parametrize("epsilon", [1e-6, 0.03, 0.5, 2.0])
def test_accuracy_over_shapes_and_sizes(shape, n, epsilon):
    g = SHAPES[shape](np.random.default_rng(n), n)
    s = solve_dual(g, epsilon=epsilon)
    assert s.status == "optimal"
    assert abs(s.kl - epsilon) <= 1e-10 * max(1, epsilon)
    assert s.gap <= 1e-10
    assert s.lambda_ == pytest.approx(bracketed_lambda(g, epsilon), rel=1e-6 if epsilon < 1e-3 else 1e-9)
    check_certificate(s, g, None, np.full(n, 1 / n), epsilon, None, None)


def test_a_million_samples():
    g = -np.random.default_rng(0).gamma(2, 1, 1_000_000)
    for epsilon in (0.03, 3.0):
        s = solve_dual(g, epsilon=epsilon)
        assert abs(s.kl - epsilon) <= 1e-10 * max(1, epsilon) and s.gap <= 1e-10
        assert s.lambda_ == pytest.approx(bracketed_lambda(g, epsilon), rel=1e-9)


def test_standardised_scores_against_conic_solver_at_two_thousand():
    rng = np.random.default_rng(5)
    g, f = rng.normal(size=2_000), np.full(2_000, 1 / 2_000)
    c = 0.5 * g + rng.normal(size=2_000)
    s = solve_dual(g, c, epsilon=0.5, gamma=-0.5)
    assert s.beta > 0
    assert s.worst_case == pytest.approx(conic_optimum(g, c, f, 0.5, -0.5, None).value, abs=2e-6)


# --- every status -----------------------------------------------------------------------------


def test_radius_zero_is_plain_averaging():
    s = solve_dual([-1.0, -2.0, -6.0], epsilon=0)
    assert (s.status, s.lambda_, s.kl) == ("optimal", math.inf, 0)
    assert s.weights == pytest.approx([1 / 3] * 3) and s.worst_case == pytest.approx(-3)


def test_point_mass_with_and_without_ties():
    s = solve_dual([-1.0, -2.0, -6.0], epsilon=math.log(3) + 0.1)
    assert (s.status, s.lambda_, s.ess) == ("point_mass", 0, 1) and s.worst_case == -6
    tied = solve_dual([-6.0, -2.0, -6.0, 0.0], epsilon=math.log(2))
    assert tied.status == "point_mass" and tied.weights == pytest.approx([0.5, 0, 0.5, 0])
    assert solve_dual([-6.0, -2.0, -6.0, 0.0], epsilon=math.log(2) - 1e-6).status == "optimal"


@pytest.mark.parametrize("n", [1, 7])
def test_constant_scores_keep_uniform_weights(n):
    s = solve_dual([-2.5] * n, epsilon=0.3)
    assert (s.status, s.lambda_) == ("point_mass", 0) and s.gap < 1e-15
    assert s.weights == pytest.approx([1 / n] * n)


def test_slack_certainty_has_no_price():
    rng = np.random.default_rng(1)
    g, c = rng.normal(size=200), rng.normal(size=200)
    free = solve_dual(g, c, epsilon=0.2)
    s = solve_dual(g, c, epsilon=0.2, gamma=float(free.certainty) + 0.01)
    assert s.beta == 0 and s.lambda_ == pytest.approx(free.lambda_, rel=1e-13)


def test_both_constraints_bind():
    rng = np.random.default_rng(2)
    g = rng.normal(size=300)
    c = 14 - g + rng.normal(size=300)
    s = solve_dual(g, c, epsilon=0.5, gamma=14.2)
    assert s.status == "optimal" and s.beta > 0
    assert s.kl == pytest.approx(0.5, abs=1e-11) and s.certainty == pytest.approx(14.2, abs=1e-11)
    density = np.exp((s.mu - g - s.beta * c) / s.lambda_) / 300
    assert s.weights == pytest.approx(density, rel=1e-9)


def test_the_vertex_of_the_design():
    s = solve_dual([0.0, 1.0], [2.0, 0.0], epsilon=5, gamma=1)
    assert (s.status, s.lambda_, s.beta) == ("vertex", 0, 0.5)
    assert s.weights == pytest.approx([0.5, 0.5]) and s.gap <= 1e-12


def test_infeasible_names_gamma_min_and_just_above_it_works():
    rng = np.random.default_rng(3)
    g = rng.normal(size=100)
    c = 10 - g + rng.normal(size=100)
    with pytest.raises(InfeasibleError, match="γ_min") as caught:
        solve_dual(g, c, epsilon=0.3, gamma=8.0)
    least = caught.value.gamma_min
    assert repr(least) in str(caught.value)
    above = solve_dual(g, c, epsilon=0.3, gamma=least + 1e-6)
    assert above.status == "optimal" and above.gap <= 1e-10
    failed = solve_dual(g, c, epsilon=0.3, gamma=8.0, throw=False)
    assert failed.status == "infeasible" and math.isnan(failed.lambda_) and failed.gamma_min == least


def test_boundary_weights_are_tilts_by_certainty():
    rng = np.random.default_rng(4)
    g, c = rng.normal(size=50), rng.normal(size=50)
    least = solve_dual(g, c, epsilon=0.3, gamma=-99, throw=False).gamma_min
    s = solve_dual(g, c, epsilon=0.3, gamma=least)
    assert (s.status, s.lambda_, s.beta) == ("boundary", math.inf, math.inf)
    slope, intercept = np.polyfit(c, np.log(s.weights), 1)
    assert np.log(s.weights) == pytest.approx(slope * c + intercept, abs=1e-8)


def test_boundary_with_ties_still_picks_the_worst_scores():
    g, c, f = np.array([3.0, 1.0, 2.0, 0.0]), np.array([0.0, 0.0, 0.0, 1.0]), np.full(4, 0.25)
    s = solve_dual(g, c, epsilon=0.6, gamma=0.0)
    assert s.status == "boundary" and s.weights[3] == 0
    # the conic solver meets its constraints to 1e-8, and the value moves like their square root here
    assert s.worst_case == pytest.approx(conic_optimum(g, c, f, 0.6, 0.0, None).value, abs=1e-3)


def test_capped_reaches_conditional_value_at_risk():
    g = np.sort(np.random.default_rng(6).normal(size=100))
    s = solve_dual(g, epsilon=50, max_weight=4)
    assert (s.status, s.lambda_) == ("capped", 0)
    assert s.worst_case == pytest.approx(g[:25].mean()) and s.ess == pytest.approx(25)
    part = solve_dual(g, epsilon=0.8, max_weight=4)
    assert part.status == "capped" and part.lambda_ > 0 and part.weights.max() == pytest.approx(0.04)
    assert solve_dual(g, epsilon=0.01, max_weight=4).status == "optimal"


# --- bad input --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"log_likelihood": []}, "non-empty"),
        ({"log_likelihood": [[[0.0]]]}, "non-empty"),
        ({"log_likelihood": [0.0, math.nan]}, "NaN"),
        ({"log_likelihood": [0.0, -math.inf]}, "infinite"),
        ({"log_likelihood": ["a"]}, "not an array of numbers"),
        ({"certainty": [1.0]}, "shape"),
        ({"certainty": [1.0, math.inf]}, "certainty has 1 NaN"),
        ({"epsilon": -0.1}, "epsilon"),
        ({"epsilon": math.nan}, "epsilon"),
        ({"gamma": 1.0}, "pass certainty"),
        ({"gamma": math.inf, "certainty": [1.0, 2.0]}, "gamma"),
        ({"base_weights": [1.0, -1.0]}, "negative"),
        ({"base_weights": [0.0, 0.0]}, "zero"),
        ({"base_weights": [1.0]}, "shape"),
        ({"max_weight": 0.5}, "max_weight"),
        ({"max_weight": math.nan}, "max_weight"),
    ],
)
def test_bad_input_is_one_clear_line(arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        solve_dual(**{"log_likelihood": [0.0, 1.0], "epsilon": 0.1, **arguments})
    assert "\n" not in str(caught.value)


# --- properties -------------------------------------------------------------------------------

scores = st.lists(st.floats(-50, 50), min_size=2, max_size=40).map(np.array)
radii = st.floats(1e-3, 4)


@given(scores, radii, st.floats(-100, 100), st.floats(0.01, 100))
@example(np.array([0.0, 1.0, 4.566404611274148e-156]), 1.0, 0.0, 1.0)  # whose squares are nothing
@settings(max_examples=60, deadline=None)
def test_shift_and_scale(g, epsilon, shift, scale):
    if np.ptp(g) < 1e-3:
        return
    s, moved = (solve_dual(loss=-v, epsilon=epsilon) for v in (g, scale * g + shift))
    assert moved.lambda_ == pytest.approx(scale * s.lambda_, rel=1e-6, abs=1e-9)
    assert moved.worst_case == pytest.approx(scale * s.worst_case + shift, rel=1e-9, abs=1e-7)


@given(scores, radii, st.randoms())
@settings(max_examples=60, deadline=None)
def test_permutation_duplication_and_order(g, epsilon, random):
    g = -np.abs(g)
    s = solve_dual(g, epsilon=epsilon)
    order = random.sample(range(len(g)), len(g))
    assert solve_dual(g[order], epsilon=epsilon).weights == pytest.approx(s.weights[order], abs=1e-9)
    twice = solve_dual(np.concatenate([g, g]), epsilon=epsilon)
    assert twice.worst_case == pytest.approx(s.worst_case, abs=1e-9)
    assert twice.lambda_ == pytest.approx(s.lambda_, rel=1e-6, abs=1e-9)
    assert (np.diff(s.weights[np.argsort(g)]) <= 1e-15).all()  # the harder, the heavier


@given(st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_profile_is_increasing_concave_with_slope_lambda(seed):
    g = np.random.default_rng(seed).normal(size=50)
    epsilons = np.linspace(0.01, 2.0, 40)
    profile = robust_profile(g, epsilons)
    loss = np.array(profile.robust_loss)
    slopes = np.diff(loss) / np.diff(epsilons)
    assert (slopes > 0).all() and (np.diff(slopes) < 1e-9).all()
    lam = np.array(profile.lambda_)
    assert (slopes <= lam[:-1] + 1e-9).all() and (slopes >= lam[1:] - 1e-9).all()
    step = 1e-5
    ahead, behind = robust_profile(g, [0.5 + step, 0.5 - step]).robust_loss
    assert (ahead - behind) / (2 * step) == pytest.approx(solve_dual(g, epsilon=0.5).lambda_, rel=1e-6)


def test_a_profile_takes_the_bounds_of_the_solver():
    g, f = -np.random.default_rng(0).gamma(2.0, size=50), np.random.default_rng(1).dirichlet(np.ones(50))
    for bounds in ({"base_weights": f}, {"max_weight": 2.0}, {"base_weights": f, "max_weight": 2.0}):
        profile, plain = robust_profile(g, [0.1, 0.5], **bounds), robust_profile(g, [0.1, 0.5])
        solutions = [solve_dual(g, epsilon=epsilon, **bounds) for epsilon in (0.1, 0.5)]
        assert list(profile.robust_loss) == [-solution.worst_case for solution in solutions]
        assert list(profile.lambda_) == [solution.lambda_ for solution in solutions]
        assert list(profile.ess) == [solution.ess for solution in solutions]
        assert not np.isclose(profile.robust_loss, plain.robust_loss).any()


def test_minibatches_understate_the_worst_case():
    g = -np.random.default_rng(7).gamma(2, 1, 4_096)
    whole = solve_dual(g, epsilon=0.5)
    batches = solve_dual(g.reshape(-1, 8), epsilon=0.5)
    assert batches.worst_case.mean() > whole.worst_case and batches.lambda_.mean() < whole.lambda_


# --- batches and types ------------------------------------------------------------------------


def test_base_weights_count_like_repetition():
    g = np.array([0.3, -1.0, 2.0])
    weighted = solve_dual(g, epsilon=0.2, base_weights=[1, 2, 3])
    repeated = solve_dual(np.repeat(g, [1, 2, 3]), epsilon=0.2)
    assert weighted.worst_case == pytest.approx(repeated.worst_case, abs=1e-12)
    ignored = solve_dual([*g, -99.0], epsilon=0.2, base_weights=[1, 2, 3, 0])
    assert ignored.worst_case == pytest.approx(weighted.worst_case, abs=1e-10) and ignored.weights[3] == 0


def test_cap_on_certainty_that_binds_inside_the_ball_only():
    """The hardest sample is also the least certain: without the ball the cap would be slack."""
    rng = np.random.default_rng(4)
    for _ in range(20):
        g, c = rng.normal(size=12), rng.normal(size=12)
        g[3], c[3] = g.min() - 1, c.min() - 1
        free, least = solve_dual(g, c, epsilon=0.6), solve_dual(loss=-c, epsilon=0.6)
        gamma = 0.5 * (float(free.certainty) + float(least.worst_case))
        s = solve_dual(g, c, epsilon=0.6, gamma=gamma)
        optimum = conic_optimum(g, c, np.full(12, 1 / 12), 0.6, gamma, None).value
        assert s.worst_case == pytest.approx(optimum, abs=1e-6) and s.gap <= 1e-10


@pytest.mark.parametrize("tilt", [3.0, 2_000.0])  # at the second, every exponential alone is out of range
def test_moments_at_any_tilt(tilt):
    rng = np.random.default_rng(0)
    x, y = rng.random((2, 50)), 0.5 + rng.random((2, 50)) / 2
    x[:, 0] = 0.0
    a, b = np.full(2, tilt), np.full(2, tilt)
    exponents = -a[:, None] * x - b[:, None] * y
    q = softmax(exponents, axis=1)
    tilting = Tilting(Scores(x, y, None, None))
    moments, (weights, tilted) = tilting.moments(a, b), tilting.weights(a, b)
    assert moments.mean_x == pytest.approx((q * x).sum(1))
    assert moments.mean_y == pytest.approx((q * y).sum(1))
    assert moments.kl == pytest.approx((xlogy(q, q) + q * np.log(50)).sum(1))
    assert weights == pytest.approx(q)
    assert tilted.kl == pytest.approx(moments.kl)


@pytest.mark.parametrize(
    ("n", "cap"), [(90_000, 1.25), (150_000, 1.25), (150_000, 10.0), (300_000, 5.0), (12, 3.0), (7, 7.0)]
)
def test_a_cap_that_divides_the_samples_leaves_a_face_of_whole_samples(n, cap):
    found = solve_dual(-np.arange(float(n)), epsilon=9.0, max_weight=cap)
    filled = round(n / cap)
    assert found.status == "capped" and found.ess == pytest.approx(filled)
    assert found.worst_case == pytest.approx(-(n - 1) + (filled - 1) / 2)


def test_a_sample_of_hardly_any_base_weight_keeps_a_cap_of_one():
    base = np.array([1e-11, 1.0, 1.0])
    found = solve_dual([0.0, -1.0, -2.0], epsilon=0.1, max_weight=1, base_weights=base)
    assert np.allclose(found.weights, base / base.sum(), rtol=1e-12)
