"""A ledger whose units all start with one score: what is not known yet has no part in the problem."""

import logging
import math
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from conftest import small_qwen
from gradient_grid import tokenizer
from klball import CVaR, KLBall
from klball.training.accountant import Accountant
from klball.training.ledger import Ledger
from klball.training.preference.forward import rounding
from klball.training.units import Units
from preference_grid import trainer_for

N, START = 10, -math.log(2)
VISITED = torch.tensor([2, 3, 5, 8])
FRESH = START + torch.tensor([0.4, -0.2, 0.1, 0.3], dtype=torch.float64)


def begun(ambiguity, visited=VISITED, fresh=FRESH, sizes=None, groups=None) -> Accountant:
    """After one step, which saw these scores."""
    accountant = Accountant(ambiguity, Ledger(N, start=START), Units(sizes, groups))
    accountant.begin_step()
    accountant.record(visited, {"score": fresh})
    return accountant


def test_the_drift_is_measured_from_the_start():
    """A unit that was not visited has moved as those that were."""
    accountant = begun(KLBall(0.1))
    unknown = ~accountant.ledger.known
    expected = [START + float((FRESH - START).mean())] * int(unknown.sum())
    assert accountant.ledger.scores()["score"][unknown].tolist() == pytest.approx(expected)


def test_scores_of_the_start_make_no_unit_known():
    assert not begun(KLBall(0.1), fresh=torch.full((4,), START + 1e-7).double()).ledger.known.any()


@pytest.mark.parametrize("sizes", [None, torch.arange(1.0, N + 1)])
def test_densities_of_what_was_solved_for_and_of_the_others(sizes):
    """CVaR's density steps: those solved for keep their own, the others have that of their fresh score."""
    accountant = begun(CVaR(0.5), sizes=sizes)
    accountant.begin_step()
    base = torch.ones(4).double() if sizes is None else sizes.double()[VISITED]
    base = base / base.sum()
    own = CVaR(0.5).solve({"score": accountant.ledger.scores()["score"][VISITED]}, base).weights / base
    index = torch.tensor([*VISITED.tolist(), 0, 1])
    fresh = torch.tensor([9.0, 9.0, 9.0, 9.0, START - 5, START + 5], dtype=torch.float64)
    found = accountant.density(index, {"score": fresh})
    assert found.tolist() == pytest.approx([*own.tolist(), 2.0, 0.0])


def test_one_known_unit_judges_no_other():
    accountant = begun(CVaR(0.5), VISITED[:1], FRESH[:1])
    accountant.begin_step()
    assert accountant.density(torch.tensor([0, 1]), {"score": torch.tensor([5.0, -5.0])}).tolist() == [1, 1]


def test_nothing_known_of_groups():
    accountant = Accountant(KLBall(0.1), Ledger(N, start=START), Units(groups=["a", "b"] * 5))
    accountant.begin_step()
    assert accountant.summary()["ess_ratio"] == 1
    assert accountant.density(VISITED, {"score": FRESH}).tolist() == [1] * 4


def test_a_point_mass_among_few_known_units_is_no_warning(caplog):
    """The others have the density of their fresh scores."""
    with caplog.at_level(logging.WARNING):
        accountant = begun(KLBall(5.0))
        accountant.begin_step()
        assert accountant.solve().status == "point_mass" and not caplog.records
        accountant.rewrite({"score": torch.arange(N).double()})
        accountant.begin_step()
    assert "steps without them have no gradient" in caplog.text


@pytest.mark.parametrize("settings", [{}, {"loss_type": "ipo"}], ids=str)
@pytest.mark.parametrize("bf16", [False, True])
def test_rounding_tells_no_pairs_apart(bf16, settings, tmp_path):
    """A model that stays where it is, and the reference computed before in batches of another shape."""
    case = dict(family="dpo", ambiguity=KLBall(0.3), own_start=True, precompute_ref_log_probs=True)
    more = dict(
        precompute_ref_batch_size=3,
        use_cpu=True,
        epsilon_warmup=0.0,
        rescore_steps=0,
        learning_rate=0.0,
        bf16=bf16,
    )
    wide = small_qwen(len(tokenizer()), hidden_size=128, intermediate_size=256, head_dim=64)
    trainer, _ = trainer_for({**case, **more, **settings}, "8x1", str(tmp_path), model=wide)
    trainer.train()
    moved = trainer.accountant.ledger.entries["score"] - trainer.common_start()
    assert bool(moved.abs().max() > 2e-5) is bf16
    assert not trainer.accountant.ledger.known.any()
    assert all(row["max_weight"] == 1 for row in trainer.accountant.history)


def test_what_exceeds_rounding_is_known_in_bf16(tmp_path):
    case = dict(family="dpo", ambiguity=KLBall(0.3), own_start=True, precompute_ref_log_probs=True)
    more = dict(use_cpu=True, epsilon_warmup=0.0, rescore_steps=0, learning_rate=0.05, bf16=True)
    trainer, _ = trainer_for({**case, **more}, "8x1", str(tmp_path))
    trainer.train()
    assert trainer.accountant.ledger.known.any() and trainer.accountant.history[-1]["max_weight"] != 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_tolerance_follows_the_dtype_and_the_length(dtype):
    """Of parameters, or of autocast where that is less exact."""
    for own, context in ((dtype, nullcontext()), (torch.float32, torch.autocast("cpu", dtype))):
        accelerator = SimpleNamespace(device=torch.device("cpu"), autocast=lambda c=context: c)
        model = small_qwen(64).to(own)
        short, long = (rounding(model, accelerator, tokens) for tokens in (100, 400))
        assert long == pytest.approx(2 * short) == pytest.approx(2 * 80 * torch.finfo(dtype).eps)


def test_a_re_scoring_that_finds_the_start_makes_no_unit_known():
    """Its rounding would be weighed: with a learning rate of 0 in the first steps all pairs cost log 2."""
    ledger = Ledger(N, start=START)
    ledger.rewrite({"score": START + 1e-7 * torch.randn(N).double()})
    assert not ledger.known.any()
    ledger.rewrite({"score": START + 0.1 * torch.randn(N).double()})
    assert ledger.complete
    ledger = Ledger(N)  # without a common start every score tells
    ledger.rewrite({"score": torch.zeros(N).double()})
    assert ledger.complete
