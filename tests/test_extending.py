"""The guide's own set: solved exactly, and trained with like those that klball ships."""

import cvxpy as cp
import numpy as np
import pytest
import torch

import gradient_grid
from guide import ReverseKLBall


@pytest.mark.parametrize("seed", range(6))
def test_the_guides_set_is_solved_exactly(seed):
    generator = np.random.default_rng(seed)
    g, f = generator.normal(size=30), generator.dirichlet(np.full(30, 3.0))
    scores = {"score": torch.from_numpy(g)}
    solution = ReverseKLBall(0.3).solve(scores, torch.from_numpy(f))
    w = cp.Variable(30, pos=True)
    found = cp.Problem(cp.Minimize((f * g) @ w), [f @ w == 1, -f @ cp.log(w) <= 0.3])
    found.solve(solver=cp.CLARABEL)
    assert solution.worst_case == pytest.approx(float(found.value), abs=1e-6)
    fresh = {**scores, "unit": torch.arange(30), "base": torch.from_numpy(f)}
    assert torch.allclose(solution.density(fresh) * fresh["base"], solution.weights)
    moved = {**fresh, "score": fresh["score"] + 1e-6}
    change = float((fresh["base"] * (solution.density(moved) - solution.density(fresh))).sum()) / 1e-6
    assert solution.scales["score"] == pytest.approx(-1 / change, rel=1e-4)


def test_training_asks_the_guides_set_at_every_step(tmp_path):
    ball = ReverseKLBall(0.3)
    case = dict(objective="nll", ambiguity=ball)
    trainer, _ = gradient_grid.trainer_for(case, "4x2", str(tmp_path))
    solved = []
    begin = trainer.accountant.begin_step

    def begin_step(share):
        begin(share)
        accountant = trainer.accountant
        fresh = ball.solve(*accountant.units.problem(accountant.ledger))
        solved.append(torch.equal(accountant.solution.weights, fresh.weights))

    original = trainer.begin_training

    def begin_training():
        original()
        nonlocal begin
        begin = trainer.accountant.begin_step
        trainer.accountant.begin_step = begin_step

    trainer.begin_training = begin_training
    trainer.train()
    history = trainer.accountant.history
    assert solved == [True] * len(history) == [True] * 3
    assert all(row["eta"] > 0 for row in history) and len({row["kl"] for row in history}) == 3
    assert all(0.3 < row["mean_weight"] < 3 for row in history)
