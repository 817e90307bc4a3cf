"""Trimming against the definition: the lowest scores out, the inner set's answer on what is left."""

import math

import pytest
import torch

from klball import CVaR, Empirical, KLBall, RobustSFTConfig, Trimmed, solve_dual
from ledgers import accountant_of


def problem(seed: int, size: int = 40, weighted: bool = False, ties: bool = False):
    generator = torch.Generator().manual_seed(seed)
    g = torch.randn(size, dtype=torch.float64, generator=generator)
    g = g.mul(2).round() if ties else g
    base = torch.rand(size, dtype=torch.float64, generator=generator) + 0.1
    return g, base / base.sum() if weighted else None


def split_by_hand(g, base, alpha):
    """Scores and masses of the atoms, the one at the edge cut in two; all atoms of a level share the loss."""
    f = torch.full_like(g, 1 / len(g)) if base is None else base
    left, kept = alpha, f.clone()
    for level in sorted(set(g.tolist())):
        there = g == level
        mass = float(f[there].sum())
        lost = min(left, mass)
        kept[there] = f[there] * (1 - lost / mass)
        left -= lost
    return f, kept


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.33, 0.9])
@pytest.mark.parametrize("inner", [Empirical(), KLBall(0.3), KLBall(0.2, max_weight=1.5), CVaR(0.5)], ids=str)
def test_the_answer_is_the_inner_sets_on_the_rest(inner, alpha, weighted, ties):
    g, base = problem(3, weighted=weighted, ties=ties)
    f, kept = split_by_hand(g, base, alpha)
    there = kept > 1e-15
    wanted = torch.zeros_like(g)
    wanted[there] = inner.solve({"score": g[there]}, kept[there] / kept.sum()).weights
    solution = Trimmed(inner, alpha).solve({"score": g}, base)
    assert torch.allclose(solution.weights, wanted, atol=1e-10)
    assert solution.worst_case == pytest.approx(float(wanted @ g))
    assert solution.ess == pytest.approx(1 / float((wanted**2).sum()))
    assert solution.kl == pytest.approx(float(torch.xlogy(wanted, wanted / f).sum()), abs=1e-9)
    fresh = {"score": g, "unit": torch.arange(len(g)), "base": f}
    assert torch.allclose(solution.density(fresh) * f, wanted, atol=1e-8)


def test_a_fresh_score_does_not_bring_a_unit_back():
    g, _ = problem(0)
    solution = Trimmed(KLBall(0.2), 0.25).solve({"score": g})
    lowest = g.argsort()[:10]
    there = {"score": g + 10, "unit": torch.arange(40), "base": torch.full_like(g, 1 / 40)}
    density = solution.density(there)
    assert torch.equal(density[lowest], torch.zeros(10).double())
    assert (density.sum() > 0) and density.isfinite().all()


def test_a_share_of_it_trims_less_and_none_is_the_base():
    half = Trimmed(KLBall(0.4), 0.2).scaled(0.5)
    assert half == Trimmed(KLBall(0.2), 0.1)
    g, _ = problem(1)
    none = Trimmed(KLBall(0.4), 0.2).scaled(0.0).solve({"score": g})
    assert torch.allclose(none.weights, torch.full_like(g, 1 / 40))


@pytest.mark.parametrize("alpha", [-0.1, 1.0, math.nan, "0.1", True, None])
def test_what_is_no_share_is_refused(alpha):
    with pytest.raises(ValueError, match="alpha must be a share of the data, at least 0 and below 1"):
        Trimmed(KLBall(0.1), alpha)


def test_groups_are_trimmed_whole_or_at_the_edge():
    g = torch.tensor([-9.0, -9.0, -1.0, -1.0, -2.0, -2.0, -3.0, -3.0]).double()
    accountant = accountant_of(Trimmed(KLBall(0.1), 0.25), g, groups=list("aabbccdd"))
    density = accountant.density(torch.arange(8), {"score": g})
    weights = solve_dual([-1.0, -2.0, -3.0], epsilon=0.1).weights
    assert density[:2].tolist() == [0, 0]
    assert density[2::2].tolist() == pytest.approx((weights * 4).tolist())


@pytest.mark.parametrize(
    "idle", [dict(direction="optimistic"), dict(max_weight=2.0), dict(ambiguity="chi2")], ids=str
)
def test_what_is_of_a_ball_has_no_effect_on_trimming_alone(idle, tmp_path):
    plain = dict(output_dir=str(tmp_path), use_cpu=True, bf16=False, trim=0.1)
    with pytest.raises(ValueError, match=f"{next(iter(idle))} has no effect with epsilon=0"):
        RobustSFTConfig(**plain, epsilon=0.0, **idle)
    RobustSFTConfig(**plain, epsilon=0.1, **idle)
    RobustSFTConfig(**plain, epsilon=0.0, reweight="static")
