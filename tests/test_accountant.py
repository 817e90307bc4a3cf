"""The ledger's warm start: as exact as solving afresh, and the same after a checkpoint."""

import math

import pyarrow.parquet as pq
import pytest
import torch

from klball import CertaintyKLBall, KLBall, solve_dual
from klball.adversary import sets
from klball.adversary.warm import resolve
from klball.training.accountant import Accountant
from klball.training.ledger import Ledger
from klball.training.step import Visits
from klball.training.units import Units
from ledgers import accountant_of, named

N = 3_000
FIELDS = {"lambda_": 1e-6, "beta": 1e-5, "kl": 1e-8, "worst_case": 1e-8, "mu": 1e-6, "ess": 5e-5}


def ledger(ambiguity, weighted=False, n=N, seed=0):
    generator = torch.Generator().manual_seed(seed)
    g = -torch.randn(n, dtype=torch.float64, generator=generator).exp()
    c = 14 - 0.5 * g + torch.randn(n, dtype=torch.float64, generator=generator)
    base = torch.rand(n, dtype=torch.float64, generator=generator)
    certainty = c if "certainty" in ambiguity.needs else None
    accountant = accountant_of(ambiguity, g, certainty, base if weighted else None)
    return accountant, generator


def drift(accountant, generator, size=32, pace=0.02):
    """One batch of fresh scores of a model that gets better, and surer of itself."""
    index = torch.randperm(len(accountant.ledger), generator=generator)[:size]
    if not hasattr(accountant, "truth"):
        accountant.truth = {name: v.clone() for name, v in accountant.ledger.scores().items()}
    g, c = accountant.truth["score"], accountant.truth.get("certainty")
    noise = torch.randn(2, size, dtype=torch.float64, generator=generator)
    g.mul_(1 - pace)
    if c is not None:
        c.add_(pace / 4)
    sure = None if c is None else c[index] + pace * noise[1]
    accountant.record(index, named(g[index] + pace * noise[0], sure))


def assert_exact(solution, accountant, gamma=None):
    scores = accountant.ledger.scores()
    g, c = scores["score"], scores.get("certainty")
    ball = accountant.ambiguity
    gamma = getattr(ball, "gamma", None) if gamma is None else gamma
    expected = solve_dual(
        *(g, c),
        epsilon=ball.epsilon,
        gamma=gamma,
        base_weights=accountant.units.sizes,
        max_weight=ball.max_weight,
    )
    solution = solution.dual
    assert solution.gap <= 1e-9
    for field, tolerance in FIELDS.items():
        wanted = getattr(expected, field)
        assert getattr(solution, field) == pytest.approx(wanted, rel=tolerance, abs=tolerance, nan_ok=True), (
            field
        )
    if c is not None:
        assert solution.certainty == pytest.approx(expected.certainty, abs=1e-8)


@pytest.mark.parametrize(
    "ball",
    [
        KLBall(0.05),
        KLBall(3.0),
        KLBall(0.5, max_weight=4.0),
        CertaintyKLBall(0.05, 15.0),
        CertaintyKLBall(0.1, 99.0),
    ],
    ids=str,
)
@pytest.mark.parametrize("weighted", [False, True])
def test_warm_equals_afresh_on_a_drifting_ledger(ball, weighted, monkeypatch):
    accountant, generator = ledger(ball, weighted)
    accountant.begin_step()
    afresh = []
    monkeypatch.setattr(sets, "solve_dual", lambda **named: afresh.append(1) or solve_dual(**named))
    for _ in range(30):
        drift(accountant, generator)
        accountant.begin_step()
        assert_exact(accountant.solution, accountant)
    assert len(afresh) <= (1 if ball.max_weight is None else 3)  # a first step may be too long


def test_price_of_certainty_comes_and_goes():
    """γ is slack, binds, and is slack again: whichever holds is found, by the warm start or without it."""
    accountant, _ = ledger(CertaintyKLBall(0.1, 16.0))
    prices = []
    for move in [0.0] + [0.2] * 8 + [-0.2] * 8:
        accountant.ledger.entries["certainty"] += move
        accountant.begin_step()
        assert_exact(accountant.solution, accountant)
        prices.append(accountant.solution.dual.beta)
    assert prices[0] == prices[-1] == 0 and max(prices) > 0


def test_relaxed_point_mass_and_capped():
    accountant, generator = ledger(CertaintyKLBall(0.1, 5.0))
    for _ in range(3):
        accountant.begin_step()
        drift(accountant, generator)
    assert accountant.relaxed == 3
    point, generator = ledger(KLBall(9.0))
    point.begin_step()
    worst = point.ledger.entries["score"].argmin()[None]
    assert point.solution.status == "point_mass" and point.solution.weights is not None
    assert float(point.density(worst, {"score": torch.zeros(1)})) == N
    capped, generator = ledger(KLBall(0.5, max_weight=4.0))
    for _ in range(3):
        capped.begin_step()
        assert_exact(capped.solution, capped)
        drift(capped, generator)


@pytest.mark.parametrize("ball", [KLBall(0.05), CertaintyKLBall(0.05, 15.0)], ids=str)
def test_a_checkpoint_changes_no_bit(ball, tmp_path):
    accountant, generator = ledger(ball)
    for _ in range(5):
        accountant.begin_step()
        drift(accountant, generator)
    accountant.save(tmp_path)
    again, _ = ledger(ball, seed=1)
    again.load(tmp_path, within_epoch=True)
    for name, value in vars(accountant.ledger.drift).items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(vars(again.ledger.drift)[name])), name
    again.truth = {name: v.clone() for name, v in accountant.truth.items()}
    for either in (accountant, again):
        own = torch.Generator().manual_seed(5)
        for _ in range(3):
            either.begin_step()
            drift(either, own)
        either.begin_step()
    for field in ("lambda_", "beta", "mu", "kl", "ess", "num_passes"):
        assert getattr(accountant.solution.dual, field) == getattr(again.solution.dual, field), field


def test_static_weights_do_not_follow_fresh_scores():
    g = -torch.rand(50, dtype=torch.float64, generator=torch.Generator().manual_seed(4)) - 1
    index = torch.arange(50)
    for frozen in (True, False):
        accountant = accountant_of(KLBall(0.3), g, frozen=frozen)
        before = accountant.density(index, named(g))
        accountant.begin_step()
        after = accountant.density(index, named(g - 0.5 * torch.arange(50) / 50))
        assert torch.equal(before, after) is frozen


@pytest.mark.parametrize("seed", range(5))
def test_a_sample_counts_at_its_first_visit_of_an_epoch(seed):
    """Against a set of those seen; −1 is padding, and one sample may come twice in a step."""
    generator = torch.Generator().manual_seed(seed)
    visits, seen = Visits(20), set()
    for _ in range(4):
        index = torch.randint(-1, 20, (9,), generator=generator)
        expected = []
        for sample in index.tolist():
            expected.append(sample >= 0 and sample not in seen)
            seen.add(sample)
        assert visits.first(index).tolist() == expected
    visits.forget()
    assert visits.first(torch.tensor([3, 3, -1])).tolist() == [True, False, False]


def test_weights_of_all_samples_on_demand():
    accountant, generator = ledger(KLBall(0.3))
    accountant.begin_step()
    drift(accountant, generator)
    accountant.begin_step()
    weights = accountant.weights()
    assert weights.sum() == pytest.approx(1)
    density = accountant.density(torch.arange(N), accountant.ledger.scores())
    assert density / N == pytest.approx(weights, rel=1e-6)


def test_a_start_that_does_not_do_gives_nothing():
    generator = torch.Generator().manual_seed(3)
    g, noise = -torch.rand(2, 100, dtype=torch.float64, generator=generator)
    settings = dict(base=None, epsilon=0.1, gamma=None)
    assert resolve(torch.zeros_like(g), None, start=(1.0, 0.0), **settings) is None  # constant scores
    assert resolve(g, None, start=(1e-300, 0.0), **settings) is None  # nowhere near
    c = 10 - 0.5 * g - noise
    free = solve_dual(g, c, epsilon=0.1)
    assert free.beta == 0 and math.isfinite(free.lambda_)
    tight = float(free.certainty) - 0.01
    assert resolve(g, c, None, epsilon=0.1, gamma=tight, start=(free.lambda_, 0.0)) is None  # β must rise
    sure = solve_dual(g, c, epsilon=0.1, gamma=tight)
    assert resolve(g, c, None, epsilon=0.1, gamma=99.0, start=(sure.lambda_, sure.beta)) is None  # and fall


def test_a_history_keeps_what_only_later_steps_have(tmp_path):
    """A step of beliefs without texts has no preference columns."""
    accountant = Accountant(KLBall(0.1), Ledger(4), Units())
    accountant.history = [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.4, "rewards/margins": 0.1}]
    accountant.save_history(tmp_path / "history.parquet")
    kept = pq.read_table(tmp_path / "history.parquet").to_pylist()
    assert kept == [{"step": 1, "loss": 0.5, "rewards/margins": None}, accountant.history[1]]
    accountant.history = []
    accountant.save_history(tmp_path / "history.parquet")
    assert pq.read_table(tmp_path / "history.parquet").num_rows == 0


@pytest.mark.parametrize("groups", [None, ["a", "b", "b", "a"]])
def test_before_any_unit_is_told_apart_the_worst_case_is_the_common_start(groups):
    accountant = Accountant(KLBall(0.1), Ledger(4, start=-0.7), Units(groups=groups))
    accountant.begin_step()
    report = accountant.summary()
    assert report["robust_loss"] == 0.7 and report["kl"] == 0 and report["ess_ratio"] == 1
