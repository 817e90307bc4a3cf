"""Lines of the mathematics and the statistics that no other test would miss: each was broken once."""

import math
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch
from scipy import stats

import klball
from klball import CertaintyKLBall, ChiSquareBall, CVaR, Empirical, InfeasibleError, KLBall, Trimmed
from klball.adversary.solver.reading import Data, sample_of
from klball.adversary.streaming import _Solver, solve_dual_streamed
from klball.adversary.upweighting import upweighting
from klball.comparison.effects import effect_sizes
from klball.comparison.items import bootstrap
from klball.comparison.rounds import solve_rounds
from klball.objectives.pairs import LogRatios
from klball.scores import parts
from klball.scores.frontier import frontier_row
from klball.scores.perplexity import _of_hardest, _percentiles
from klball.scores.tails import HARDEST, hardest, mean_interval, paired_interval, tail_interval, tail_size
from simulated_rounds import simulated

# --- ambiguity sets ----------------------------------------------------------------------------


def test_weights_too_small_for_their_numbers_are_refused():
    with pytest.raises(ValueError, match="sum to one"):
        CVaR(1e-310).solve({"score": torch.tensor([-1.0, -2.0])})


def test_the_scale_of_a_capped_chi_square_ball_is_that_of_its_free_units():
    torch.manual_seed(0)
    g = torch.randn(40, dtype=torch.float64)
    found = ChiSquareBall(0.5, max_weight=1.6).solve({"score": g})
    assert found.status == "capped"
    h = 1e-6
    slope = (found.function(g + h) - found.function(g - h)).mean() / (2 * h)
    assert found.scales["score"] == pytest.approx(-1 / float(slope), rel=1e-4)


@pytest.mark.parametrize("ball", [KLBall(0.1), KLBall(0.1, direction="optimistic"), ChiSquareBall(0.3)])
def test_a_score_far_outside_has_no_more_weight_than_a_point_mass(ball):
    g = torch.linspace(-3, -1, 10, dtype=torch.float64)
    found = ball.solve({"score": g})
    far = g + (1e6 if ball.direction == "optimistic" else -1e6)
    own = {"score": far, "unit": torch.arange(10), "base": torch.full_like(g, 0.1)}
    assert float(found.density(own).max()) <= 10 + 1e-12


def test_certainty_is_measured_in_lambda_over_beta():
    g = torch.linspace(-3, -1, 30, dtype=torch.float64)
    c = torch.cos(5 * g)
    found = CertaintyKLBall(0.2, float(c.mean()) - 0.05).solve({"score": g, "certainty": c})
    lambda_, beta = found.dual.lambda_, found.dual.beta
    assert beta > 0 and found.scales == {"score": lambda_, "certainty": pytest.approx(lambda_ / beta)}


def test_an_infeasible_bound_without_a_certainty_to_relax_to_stays_infeasible():
    loss, c = [1.0, 2.0, 3.0], [5.0, 6.0, 7.0]
    with pytest.raises(InfeasibleError) as caught:
        klball.solve_dual(loss=loss, certainty=c, epsilon=0.1, gamma=1.0)
    with pytest.raises(InfeasibleError):
        CertaintyKLBall(0.1, 1.0).relaxed(caught.value)


def foreign(*g):
    return {"score": torch.tensor(g), "unit": torch.tensor([-1, -1]), "base": torch.full((2,), 0.25)}


def test_units_at_the_edge_of_a_trim_are_left_out():
    found = Trimmed(Empirical(), 0.3).solve({"score": torch.tensor([-3.0, -2.0, -1.0, -0.5])})
    assert found.density(foreign(-2.0, -1.9)).tolist() == pytest.approx([0.0, 1 / 0.7])


def test_units_that_were_not_solved_for_keep_out_of_the_place_of_the_last():
    found = Trimmed(CVaR(0.5), 0.25).solve({"score": torch.tensor([-3.0, -2.0, -1.0, -0.5])})
    assert found.density(foreign(-1.5, -0.1)).tolist() == [pytest.approx(2 / 0.75), 0.0]


# --- the dual ----------------------------------------------------------------------------------


def test_a_radius_below_rounding_is_refused_and_the_least_is_solved():
    for seed in range(40):
        loss = np.random.default_rng(seed).normal(size=3 + seed)
        found = klball.solve_dual(loss=loss, epsilon=1e-13)
        rise = float(found.weights @ loss) - loss.mean()
        assert rise == pytest.approx(math.sqrt(2e-13) * loss.std(), rel=0.1)
    for epsilon in (1e-300, 1e-17, 1e-15, 9e-14):
        with pytest.raises(
            ValueError, match="is below what float64 can tell from 0: use 0, or 1e-13 at least"
        ):
            klball.solve_dual(loss=[1.0, 2.0, 3.0], epsilon=epsilon)
        with pytest.raises(ValueError, match="is below what float64 can tell from 0"):
            KLBall(epsilon).solve({"score": torch.tensor([-1.0, -2.0])})


def test_a_face_of_a_capped_ball_is_solved_within_its_own_mass():
    g = np.random.default_rng(0).normal(size=10) - 3
    c = np.array([0.0] * 3 + [1.0] * 5 + [2.0] * 2)
    least = klball.solve_dual(loss=-c, epsilon=0.8, max_weight=2.0)
    assert least.lambda_ == 0 and least.kl < 0.8
    found = klball.solve_dual(g, c, epsilon=0.45, gamma=least.worst_case, max_weight=2.0)
    assert found.status == "boundary" and found.kl == pytest.approx(0.45)


def test_a_least_score_of_zero_is_no_bound():
    assert klball.solve_dual([0.0, 0.0, 1.0], epsilon=0.1).worst_case < 1 / 3


def solver(g, c, epsilon, gamma):
    chunks = [lambda: [(np.array(g), None if c is None else np.array(c))]]
    return _Solver(Data(chunks, sample_of(chunks, False), False), epsilon, gamma)


def test_a_stream_near_a_point_mass_is_not_done_before_its_kl_is_right():
    found = solver([-3.0, -2.0, -1.0], None, math.log(3) - 1e-9, None)
    found.data.moments(0.0)
    assert found._closed(140.0, 0.0)[1] is None


def test_a_stream_is_not_done_while_its_certainty_is_too_high():
    """A price of next to nothing closes the gap wherever E[C] is."""
    g, c = [-3.0, -2.0, -1.0], [3.0, 2.0, 1.0]
    free = solver(g, c, 0.1, None).solve(refuse_losses=True)
    found = solver(g, c, 0.1, free.certainty - 0.1)
    found.data.moments(0.0)
    a = found.data.width / free.lambda_
    assert found._closed(a, 0.0)[1] is not None and found._closed(a, 1e-13)[1] is None


def test_chunks_with_and_without_a_certainty_are_refused_beyond_the_sample():
    def chunk(k):
        return [(np.full(3, -1.0 - k), None if k == 1 else np.ones(3))]

    with pytest.raises(ValueError, match="some chunks have a certainty"):
        solve_dual_streamed([lambda k=k: chunk(k) for k in range(130)], epsilon=0.1)


@pytest.mark.parametrize("share", [1e-9, 0.3, 1.0])
def test_no_radius_weighs_less_than_once(share):
    assert upweighting(0.0, share) >= 1


def test_an_empty_answer_counts_as_one_token():
    zero = torch.zeros(1)
    assert LogRatios(zero, torch.tensor([-2.0]), zero, torch.tensor([4.0])).mean_margin.tolist() == [0.5]


# --- intervals ---------------------------------------------------------------------------------


def test_a_certified_bound_is_not_below_the_scores_own():
    assert klball.certified_worst_case([0.1] * 5, 0.05, bounds=(0.1, 0.7)).lower == 0.1


def test_a_paired_interval_counts_the_rows_of_the_tail():
    effect = np.random.default_rng(0).normal(size=100)
    m = tail_size(0.05, 100)
    half = stats.t.ppf(0.975, m - 1) * math.sqrt((effect**2).sum() * m / (m - 1)) / 100
    assert paired_interval(effect, 0.05, 1.0) == pytest.approx((1 - half, 1 + half))


def test_the_edge_of_the_hardest_rows_is_their_next_few():
    rng = np.random.default_rng(0)
    reference = -rng.exponential(size=600)
    g = reference + 0.1 * rng.normal(size=600)
    hard, order = hardest(reference), np.argsort(reference)
    expected = tail_interval(-g[hard], -g[order[6:12]].mean(), HARDEST, -g[hard].mean())
    assert _of_hardest(g, reference, hard)[1:3] == pytest.approx(np.exp(expected))


def test_percentiles_of_few_rows_are_as_wide_as_the_t_interval():
    """A bootstrap of a mean has the standard deviation s·√((n−1)/n)/√n."""
    values = np.random.default_rng(0).normal(size=6)
    grid = stats.norm.ppf((np.arange(100_000) + 0.5) / 100_000)
    draws = values.mean() + grid * values.std(ddof=0) / math.sqrt(6)
    assert _percentiles(draws, 6) == pytest.approx(mean_interval(values), abs=1e-4)


def test_the_worst_groups_interval_is_of_the_smaller_group():
    rng = np.random.default_rng(0)
    names = np.array(["small"] * 10 + ["big"] * 90)
    small, big = names == "small", names == "big"
    plain, loss = rng.exponential(size=100) + big, rng.exponential(size=100) + 2 * small
    row = frontier_row(loss, plain, np.arange(3), names.tolist())
    own, other = loss[small].mean(), plain[big].mean()
    effect = np.where(small, (loss - own) * 10, 0) - np.where(big, (plain - other) / 0.9, 0)
    expected = np.exp(paired_interval(effect, 0.1, own - other))
    assert row["group"] == "small"
    assert (row["worst_group_low"], row["worst_group_high"]) == pytest.approx(tuple(expected))


def test_a_bootstrapped_pair_has_the_rounds_that_both_can_use():
    scores = simulated(rounds=3)
    assert scores.certainty is not None
    scores.certainty[0, 0] += 30  # out of reach of any γ that is met elsewhere
    s = solve_rounds(scores, epsilon=0.3, gamma=float(scores.certainty[:, 1:].mean()))
    assert s.usable().tolist() == [[False, True, True], [True, True, True]]
    found = bootstrap(scores, s, resamples=60).inference()
    pair = next(i for i in found if i.model_b and i.quantity == "lambda_")
    assert pair.rounds == 2 and pair.degenerate == "" and pair.low < pair.value < pair.high


def test_the_interval_of_cohens_dz_is_its_formula():
    effect = effect_sizes(solve_rounds(simulated(rounds=6), epsilon=0.3))[0]
    dz = effect.cohen_dz
    half = stats.t.ppf(0.975, 5) * math.sqrt((1 + dz**2 / 2) / 6)
    assert (effect.cohen_dz_low, effect.cohen_dz_high) == pytest.approx((dz - half, dz + half))


def test_processes_make_their_own_parts_of_a_table(tmp_path, monkeypatch):
    made = []

    def part_of(batches):
        made.append(batches[0][0])
        return pa.table({"row": [batch[0] for batch in batches]})

    def share(process):
        state = SimpleNamespace(num_processes=2, process_index=process, wait_for_everyone=lambda: None)
        monkeypatch.setattr(parts, "PartialState", lambda **_: state)
        batches = [[k] for k in range(64)]
        parts.table_in_parts(batches, part_of, pa.concat_tables, {}, tmp_path / "t.parquet")

    with pytest.raises((OSError, ValueError)):  # the second process is done before the first begins
        share(1)
    assert made == [16, 48]
    share(0)
    assert made == [16, 48, 0, 32]


@pytest.mark.parametrize("at", [0, 16, 48])
def test_another_run_may_make_the_same_table_first(at, tmp_path):
    """It removes the parts of both."""
    batches = [[k] for k in range(64)]

    def made(overtaken):
        def part_of(own):
            if own[0][0] == overtaken:
                made(None)
            return pa.table({"row": [batch[0] for batch in own]})

        return parts.table_in_parts(batches, part_of, pa.concat_tables, {}, tmp_path / "t.parquet")

    assert made(at)["row"].to_pylist() == [*range(64)]
