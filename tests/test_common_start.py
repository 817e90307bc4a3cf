"""A ledger whose units all start with one score: what is not known yet has no part in the problem."""

import logging
import math

import pytest
import torch

from klball import CVaR, KLBall
from klball.training.accountant import Accountant
from klball.training.ledger import Ledger
from klball.training.units import Units

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
