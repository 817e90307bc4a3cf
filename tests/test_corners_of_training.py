"""Lines of ledgers, steps and rewards that no other test would miss: each was broken once."""

import math
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from trl import GRPOTrainer

from gradient_grid import CASES, trainer_for
from klball import KLBall, RobustSFTTrainer
from klball.training.drift import DEMAND, Drift
from klball.training.ledger import Ledger
from klball.training.preference.belief_losses import _once
from klball.training.returned import answered
from klball.training.rl.reward_ledger import group_statistics
from klball.training.step import Visits, plan_step
from klball.training.units import Units
from klball.training.weights import weight_table, write_weights
from ledgers import accountant_of
from test_rl_resumption import run
from toy_policy import toy_trainer

SOLUTION = KLBall(0.1).solve({"score": torch.tensor([-5.0, -4.0, -3.0, -1.0])})


def score(*values):
    return {"score": torch.tensor(values, dtype=torch.float64)}


# --- the ledger --------------------------------------------------------------------------------


def test_units_that_were_not_known_tell_nothing_of_drift():
    ledger = Ledger(3)
    ledger.record(torch.tensor([0]), score(-5.0), None)
    ledger.drift.visits = 1
    solution = KLBall(0.1).solve({"score": torch.tensor([-5.0, -4.0])})
    lone = Ledger(3)
    lone.load({name: values.clone() for name, values in ledger.tensors().items()})
    ledger.record(torch.tensor([0, 1]), score(-4.9, -3.0), solution)
    lone.record(torch.tensor([0]), score(-4.9), solution)
    assert torch.equal(ledger.drift.shift, lone.drift.shift)
    assert float(lone.drift.shift[0]) == pytest.approx(0.06)


def test_a_unit_is_known_whichever_way_it_left_the_common_start():
    ledger = Ledger(2, start=-0.7)
    ledger.record(torch.tensor([0, 1]), score(-1.0, -0.9), None)
    assert ledger.known.all()


def test_an_entry_goes_on_at_the_pace_of_the_others():
    ledger = Ledger(4)
    ledger.rewrite(score(-5.0, -4.0, -3.0, -1.0))
    for k in range(3):
        ledger.record(torch.tensor([0]), score(-4.9 + k / 10), SOLUTION)
    pace = float(ledger.drift.pace[0])
    assert pace != 0 and float(ledger.scores()["score"][0]) == pytest.approx(-4.7 + pace)


@pytest.mark.parametrize("sign", [1, -1])
def test_drift_in_either_direction_asks_for_new_scores(sign):
    drift = Drift()
    drift.follow(torch.zeros(2, dtype=torch.float64), SOLUTION)
    drift.kl = 0.01
    assert not drift.demands_rescoring(20)
    drift.shift = drift.shift + torch.tensor([sign * 2 * DEMAND * float(drift.scales[0]), 0.0])
    assert drift.demands_rescoring(20)


def test_a_checkpoint_of_other_scores_is_not_gone_on_with(tmp_path):
    g = torch.linspace(-3, -1, 8, dtype=torch.float64)
    accountant_of(KLBall(0.1), g, normalization="sample").save(tmp_path)
    accountant_of(KLBall(0.1), g, normalization="sample").load(tmp_path, False)
    with pytest.raises(ValueError, match="normalization='sample', not 'token'"):
        accountant_of(KLBall(0.1), g, normalization="token").load(tmp_path, False)
    with pytest.raises(ValueError, match="has no certainty, which the set needs"):
        accountant_of(KLBall(0.1), g, g, normalization="sample").load(tmp_path, False)


def test_weights_sum_to_one_where_some_are_not_known():
    g = torch.linspace(-3, -1, 6, dtype=torch.float64)
    accountant = accountant_of(KLBall(0.2), g, groups=["a", "a", "b", "b", "c", "c"])
    accountant.ledger.known[torch.tensor([1, 4, 5])] = False
    assert float(accountant.weights().sum()) == pytest.approx(1, abs=1e-12)


def test_tables_of_weights_have_a_familys_entry_with_its_own_sign(tmp_path):
    loss = torch.tensor([3.0, 2.0, 1.0, 0.5], dtype=torch.float64)
    rows = Dataset.from_dict({"sample_id": list("abcd")})
    trainer = SimpleNamespace(
        entry=("loss", -1),
        samples=rows,
        args=SimpleNamespace(output_dir=tmp_path),
        texts_of=lambda row, unit: {},
        accountant=accountant_of(KLBall(0.1), -loss, groups=["x", "x", "y", "y"]),
    )
    trainer.sample_weights = lambda: weight_table(trainer)
    found = write_weights(trainer, rows)
    assert {row["group"]: row["loss"] for row in found.groups} == {"x": 2.5, "y": 0.75}
    assert {row["sample_id"]: row["loss"] for row in found.top} == dict(
        zip("abcd", loss.tolist(), strict=True)
    )


@pytest.mark.parametrize("weights", [[-0.5, 1.5], [math.nan, 1.0], [0.5, 0.6]])
def test_weights_of_an_own_set_that_are_none_are_refused(weights):
    solution = SimpleNamespace(weights=torch.tensor(weights))
    with pytest.raises(ValueError, match="weights must not be negative or NaN, and sum to 1"):
        answered(KLBall(0.1), {"score": torch.zeros(2)}, solution)


# --- steps -------------------------------------------------------------------------------------


class Ranks:
    """Two processes, seen from the second; the first has one sample more."""

    num_processes, process_index = 2, 1

    def __init__(self, *own):
        self.own = own

    def pad_across_processes(self, values, dim, pad_index):
        missing = max(map(len, self.own)) - len(values)
        return torch.nn.functional.pad(values, (0, missing), value=pad_index)

    def gather(self, values):
        return torch.cat([self.pad_across_processes(own, 0, -1) for own in self.own])


def test_ranks_of_unequal_samples_keep_each_its_own():
    first, second = torch.tensor([0, 1, 2]), torch.tensor([3, 0])
    plan = plan_step([second[:1], second[1:]], Visits(5), None, Ranks(first, second), Units())
    assert torch.cat(plan.keep).tolist() == [True, False] and float(plan.divisor) == 4


class Twice(RobustSFTTrainer):
    def _get_train_sampler(self, dataset=None):
        return [0, 1, 2, 3, 3, 4, 0, 5]


def test_tokens_of_a_repeated_row_count_once(tmp_path):
    trainer, _ = trainer_for(CASES["nll-ball-sample"], "4x1", str(tmp_path), trainer=Twice)
    trainer.train()
    lengths = [len(trainer.samples[i]["input_ids"]) for i in range(6)]
    assert trainer.accountant.num_tokens == sum(lengths)


# --- rewards and beliefs -----------------------------------------------------------------------


@pytest.mark.parametrize("value", [0.1, 0.3, 1 / 3])
def test_equal_rewards_have_no_variance_at_all(value):
    for count in range(2, 12):
        rewards = torch.full((1, count), value, dtype=torch.float64)
        assert group_statistics(rewards)["variance"].tolist() == [0.0]


def test_a_run_without_shuffling_resumes_where_it_was(tmp_path):
    settings = dict(shuffle_dataset=False, num_train_epochs=2, max_steps=-1)
    whole, recorder = run(tmp_path / "run", **settings)
    step = whole.state.max_steps // 2
    _, rest = run(tmp_path / "again", tmp_path / "run" / f"checkpoint-{step}", **settings)
    assert all(torch.equal(a, b) for a, b in zip(rest.steps, recorder.steps[step:], strict=True))


def test_a_reward_model_that_gives_nan_is_named(tmp_path, monkeypatch):
    trainer, _ = toy_trainer(tmp_path, radius=0.0)
    trainer.reward_funcs, trainer.reward_func_names = [torch.nn.Linear(1, 1)], ["judge"]
    monkeypatch.setattr(GRPOTrainer, "_calculate_rewards", lambda *_: torch.tensor([[math.nan], [1.0]]))
    with pytest.raises(ValueError, match="reward 'judge' is NaN at optimizer step 1"):
        trainer._calculate_rewards([{}, {}], ["a", "b"], ["x", "y"], [[1], [2]])


def test_a_rows_value_is_that_of_its_first_held_belief():
    """Row 0's first belief is held by nobody; of row 1 both are held, of row 2 none."""
    rows = torch.tensor([0, 0, 0, 1, 1, 2])
    held = torch.tensor([False, True, True, True, True, False])
    assert _once(torch.tensor([1, 2, 4, 8, 16, 32]), held, rows, 3).tolist() == [0, 7, 0, 24, 0, 0]
