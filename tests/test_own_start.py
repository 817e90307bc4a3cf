"""A policy that starts as its own reference: what all pairs cost at the start weighs none."""

import math

import pytest
import torch
from transformers import Qwen3ForCausalLM

from conftest import small_qwen
from gradient_grid import quiet, tokenizer
from klball import Empirical, KLBall, RobustDPOConfig, RobustDPOTrainer, solve_dual
from klball.adversary.trimming import Trimmed
from klball.objectives.pairs import PAIR_LOSSES
from klball.training.accountant import Accountant
from preference_grid import NUM_ROWS, rows, trainer_for


@pytest.mark.parametrize("loss", PAIR_LOSSES)
def test_the_start_is_the_same_for_all_pairs(loss, tmp_path):
    """So the pairs are not scored first; what they cost is what each costs that the trainer can score."""
    more = dict(label_smoothing=0.2) if loss == "robust" else {}
    case = dict(family="dpo", ambiguity=KLBall(0.3), loss_type=loss, own_start=True, **more)
    trainer, _ = trainer_for(case, "8x1", str(tmp_path))
    scores = trainer.score_dataset(trainer.train_dataset)["score"]
    assert scores.tolist() == pytest.approx([trainer.common_start()] * NUM_ROWS, rel=1e-6)


@pytest.mark.parametrize("precomputed", [False, True])
@pytest.mark.parametrize("warmup_steps", [0, 2])
def test_what_all_pairs_cost_at_the_start_weighs_none(warmup_steps, precomputed, tmp_path, monkeypatch):
    """The answer of every step is the set's own to the pairs that were visited and had moved.

    Rounding, or entries that have no spread yet, gave weights of a hundred here.
    """
    more = dict(precompute_ref_log_probs=precomputed, epsilon_warmup=0.0, num_train_epochs=2)
    more |= dict(learning_rate=1e-3, warmup_steps=warmup_steps, rescore_steps=0)
    more |= dict(lr_scheduler_type="constant_with_warmup" if warmup_steps else "constant")
    case = dict(family="dpo", ambiguity=KLBall(0.3), own_start=True)
    trainer, _ = trainer_for(case, "4x2 padded and checkpointed", str(tmp_path), **more)
    monkeypatch.setattr(trainer, "score_dataset", None)  # nothing is scored at the start
    density, known = Accountant.density, []

    def checked(accountant, index, scores):
        ledger = accountant.ledger
        known.append(int(ledger.known.sum()))
        found = density(accountant, index, scores)
        expected = torch.ones(len(index), dtype=torch.float64)
        if known[-1]:
            s = solve_dual(loss=-ledger.scores()["score"][ledger.known], epsilon=0.3)
            expected = ((s.mu - scores["score"]) / s.lambda_).exp()
        torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-9)
        return found

    monkeypatch.setattr(Accountant, "density", checked)
    trainer.train()
    unmoved = 1 + (warmup_steps > 0)  # steps: the first has no learning rate in a warm-up
    assert known[: 2 * unmoved + 2] == [0] * (2 * unmoved + 2) and known[-1] == NUM_ROWS


def test_static_weights_of_the_start_are_refused(tmp_path):
    case = dict(family="dpo", epsilon=0.1, reweight="static", own_start=True)
    with pytest.raises(ValueError, match="would weigh all pairs alike"):
        trainer_for(case, "8x1", str(tmp_path))


def test_a_reference_of_the_same_weights_is_the_own_start_too(tmp_path):
    """`klball train` without an adapter loads one beside the model."""
    case = dict(family="dpo", ambiguity=KLBall(0.3))
    trainer, _ = trainer_for(case, "8x1", str(tmp_path), model=small_qwen(len(tokenizer()), seed=1))
    assert trainer.common_start() == pytest.approx(-math.log(2))
    trainer, _ = trainer_for(case, "8x1", str(tmp_path))  # of another seed
    assert trainer.common_start() is None


def test_a_second_training_begins_with_a_model_that_has_left_its_reference(tmp_path):
    case = dict(family="dpo", ambiguity=KLBall(0.3), own_start=True, rescore_steps=0)
    trainer, _ = trainer_for(case, "8x1", str(tmp_path), epsilon_warmup=0.0, learning_rate=0.01)
    trainer.train()
    assert trainer.accountant.history[0]["max_weight"] == 1
    scores = trainer.score_dataset(trainer.train_dataset)["score"]
    trainer.start_scores = {"score": torch.zeros(NUM_ROWS)}  # of the first start
    trainer.state.global_step = 0
    trainer.begin_training()
    ledger = trainer.accountant.ledger
    assert ledger.complete and torch.allclose(ledger.scores()["score"], scores.double())
    trainer.train()
    assert trainer.accountant.history[0]["max_weight"] > 1


@pytest.mark.parametrize("changed", [False, True])
def test_the_reference_that_trl_loads_may_be_another_model(changed, tmp_path, caplog):
    """A model that was changed in memory is not what is saved under its name."""
    small_qwen(len(tokenizer())).save_pretrained(tmp_path / "saved")
    model = Qwen3ForCausalLM.from_pretrained(tmp_path / "saved")
    if changed:
        torch.nn.init.normal_(model.model.layers[0].mlp.up_proj.weight)
    settings = quiet(str(tmp_path / "run"), epsilon=0.1)
    made = dict(train_dataset=rows(), processing_class=tokenizer())
    trainer = RobustDPOTrainer(model, args=RobustDPOConfig(**settings), **made)
    assert (trainer.common_start() is None) is changed is ("the model is not what is saved" in caplog.text)
    static = RobustDPOConfig(**settings, reweight="static")
    if changed:
        RobustDPOTrainer(model, args=static, **made)
        return
    with pytest.raises(ValueError, match="would weigh all pairs alike"):
        RobustDPOTrainer(model, args=static, **made)


def test_trimming_judges_pairs_that_were_not_solved_for_by_their_fresh_score():
    scores = torch.tensor([-3.0, -2.0, -1.0, -0.5], dtype=torch.float64)
    solution = Trimmed(Empirical(), 0.25).solve({"score": scores})
    fresh = torch.tensor([-9.0, -2.5, -2.0, -0.1], dtype=torch.float64)
    base = torch.full_like(fresh, 0.25)
    outside = solution.density({"score": fresh, "unit": torch.full((4,), -1), "base": base})
    assert outside.tolist() == pytest.approx([0, 4 / 3, 4 / 3, 4 / 3])
    inside = solution.density({"score": fresh, "unit": torch.arange(4), "base": base})
    assert inside.tolist() == pytest.approx([0, 4 / 3, 4 / 3, 4 / 3])
