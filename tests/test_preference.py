"""Robust DPO and reward models against stock TRL and an eager reference; comparators, refusals."""

import math
from types import SimpleNamespace

import pytest
import torch
import trl
from peft import LoraConfig
from torch.nn.functional import logsigmoid
from transformers import GPT2ForSequenceClassification

from conftest import small_qwen
from gradient_grid import Gradients, quiet, tokenizer
from klball import (
    CVaR,
    Empirical,
    KLBall,
    RobustDPOConfig,
    RobustDPOTrainer,
    no_preference_radius,
    solve_dual,
)
from klball.objectives.pairs import PAIR_LOSSES, LogRatios, bradley_terry
from klball.training.preference.comparators import GroupEG, comparator_named
from klball.training.preference.forward import reference
from preference_grid import NUM_ROWS, reward_model, rows, trainer_for
from test_trainer import small_gpt2

WHOLE = dict(per_device_train_batch_size=NUM_ROWS, max_steps=1)
SMOOTHED = dict(loss_type="robust", label_smoothing=0.2)


def gradient_of(case: dict, folder, **more) -> torch.Tensor:
    trainer, recorder = trainer_for(
        {"beta": 0.5, **case} if case["family"] == "dpo" else case, "8x1", folder, **more
    )
    trainer.train()
    return recorder.steps[0]


def stock(trainer, config, model, folder, data, **settings):
    """Loss and gradient of TRL's own trainer on one batch."""
    reference = settings.pop("ref_model", None)
    made = trainer(
        model,
        args=config(**quiet(folder, **WHOLE, logging_steps=1, **settings)),
        train_dataset=data,
        processing_class=tokenizer(),
        callbacks=[recorder := Gradients()],
        **({} if reference is None else {"ref_model": reference}),
    )
    made.train()
    return made.state.log_history[0], recorder.steps[0]


# --- against TRL ------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", PAIR_LOSSES)
def test_without_adversary_dpo_is_trls(loss, tmp_path):
    settings = SMOOTHED if loss == "robust" else dict(loss_type=loss)
    case = dict(family="dpo", ambiguity=Empirical(), **settings)
    trainer, recorder = trainer_for(case, "8x1", str(tmp_path), logging_steps=1, **WHOLE)
    trainer.train()
    reference = small_qwen(len(tokenizer()), seed=1)
    log, gradient = stock(
        *(trl.DPOTrainer, trl.DPOConfig, small_qwen(len(tokenizer())), str(tmp_path), rows()),
        **dict(beta=0.5, ref_model=reference, **settings),
    )
    assert (recorder.steps[0] - gradient).norm() <= 1e-6 * gradient.norm()
    ours = trainer.state.log_history[0]
    shared = {name for name in log if "/" in name} | {"loss", "entropy", "mean_token_accuracy", "num_tokens"}
    assert len(shared) == 12
    assert {n: ours[n] for n in shared} == pytest.approx({n: log[n] for n in shared}, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("settings", [{}, {"center_rewards_coefficient": 0.3}], ids=str)
@pytest.mark.parametrize("margins", [False, True])
def test_without_adversary_a_reward_model_is_trls(settings, margins, tmp_path):
    data = rows()
    if margins:
        data = data.add_column("margin", [0.1 * i for i in range(NUM_ROWS)])
    case = dict(family="reward", ambiguity=Empirical(), **settings)
    trainer, recorder = trainer_for(case, "8x1", str(tmp_path), data=data, logging_steps=1, **WHOLE)
    trainer.train()
    log, gradient = stock(
        trl.RewardTrainer, trl.RewardConfig, reward_model(), str(tmp_path), data, **settings
    )
    assert (recorder.steps[0] - gradient).norm() <= 1e-6 * gradient.norm()
    ours = trainer.state.log_history[0]
    shared = ("loss", "accuracy", "margin", "min_reward", "mean_reward", "max_reward", "num_tokens")
    assert {n: ours[n] for n in shared} == pytest.approx({n: log[n] for n in shared}, rel=1e-4, abs=1e-6)


# --- against an eager reference ---------------------------------------------------------------------


def eager_log_probs(model, prompts, answers) -> torch.Tensor:
    """log π of each answer, summed over its tokens, one row at a time from full logits."""
    found = []
    for prompt, answer in zip(prompts, answers, strict=True):
        start = len(tokenizer()(prompt)["input_ids"])
        ids = torch.tensor([tokenizer()(prompt + answer + tokenizer().eos_token)["input_ids"]])
        log_p = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        found.append(log_p.gather(-1, ids[0, 1:, None])[start - 1 :].sum())
    return torch.stack(found)


def eager_losses(model, beta: float = 0.5) -> torch.Tensor:
    data, reference = rows(), small_qwen(len(tokenizer()), seed=1).double()
    answers = [(data["prompt"], data[name]) for name in ("chosen", "rejected")]
    with torch.no_grad():
        there = [eager_log_probs(reference, *pair) for pair in answers]
    here = [eager_log_probs(model, *pair) for pair in answers]
    return -logsigmoid(beta * ((here[0] - there[0]) - (here[1] - there[1])))


def flat_gradient(loss: torch.Tensor, model) -> torch.Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


BALLS = [
    KLBall(0.05),
    KLBall(0.5),
    KLBall(0.5, max_weight=1.5),
    KLBall(0.3, direction="optimistic"),
    CVaR(0.4),
]


@pytest.mark.parametrize("ball", BALLS, ids=str)
def test_the_gradient_is_the_eager_weighted_one(ball, tmp_path):
    case = dict(family="dpo", ambiguity=ball, epsilon_warmup=0.0)
    ours = gradient_of(case, str(tmp_path), model=small_gpt2(len(tokenizer())), **WHOLE)
    model = small_gpt2(len(tokenizer())).double()
    losses = eager_losses(model)
    weights = ball.solve({"score": -losses.detach()}).weights
    expected = flat_gradient((weights * losses).sum(), model)
    assert (ours - expected).norm() <= 1e-5 * expected.norm()


def test_the_gradient_of_groups_is_the_eager_weighted_one(tmp_path):
    case = dict(family="dpo", ambiguity=KLBall(0.2), epsilon_warmup=0.0, group_column="source")
    ours = gradient_of(case, str(tmp_path), model=small_gpt2(len(tokenizer())), **WHOLE)
    model = small_gpt2(len(tokenizer())).double()
    losses, groups = eager_losses(model), rows()["source"][:]
    names = sorted(set(groups))
    of_group = {k: torch.tensor([group == k for group in groups]) for k in names}
    share = torch.tensor([float(of_group[k].double().mean()) for k in names]).double()
    means = torch.stack([losses[of_group[k]].mean() for k in names])
    weights = solve_dual(loss=means.detach(), epsilon=0.2, base_weights=share).weights
    expected = flat_gradient((weights * means).sum(), model)
    assert (ours - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize("name", ["dr-dpo", "kldpo"])
def test_a_comparator_is_its_authors_objective_on_the_step(name, tmp_path):
    case = dict(family="dpo", comparator=name, comparator_strength=0.7, epsilon=0.0)
    ours = gradient_of(case, str(tmp_path), model=small_gpt2(len(tokenizer())), **WHOLE)
    model = small_gpt2(len(tokenizer())).double()
    losses = eager_losses(model)
    if name == "dr-dpo":
        objective = -0.7 * ((-losses / 0.7).logsumexp(0) - math.log(NUM_ROWS))
    else:
        weights = ((losses - losses.mean()) / 0.7).exp().clamp(max=10).detach()
        objective = (weights * losses).mean()
        assert weights.max() == 10  # the cap is met
    expected = flat_gradient(objective, model)
    assert (ours - expected).norm() <= 1e-5 * expected.norm()


def test_a_reward_models_gradient_is_the_eager_weighted_one(tmp_path):
    def made():
        causal = small_gpt2(len(tokenizer()))
        causal.config.num_labels, causal.config.pad_token_id = 1, 0
        torch.manual_seed(1)
        model = GPT2ForSequenceClassification(causal.config).eval()
        model.transformer.load_state_dict(causal.transformer.state_dict())
        return model

    case = dict(family="reward", ambiguity=KLBall(0.3), epsilon_warmup=0.0)
    ours = gradient_of(case, str(tmp_path), model=made(), **WHOLE)
    model, data = made().double(), rows()
    rewards = {
        name: torch.stack(
            [
                model(
                    input_ids=torch.tensor([tokenizer()(p + a + tokenizer().eos_token)["input_ids"]])
                ).logits[0, 0]
                for p, a in zip(data["prompt"], data[name], strict=True)
            ]
        )
        for name in ("chosen", "rejected")
    }
    losses = -logsigmoid(rewards["chosen"] - rewards["rejected"])
    weights = solve_dual(loss=losses.detach(), epsilon=0.3).weights
    expected = flat_gradient((weights * losses).sum(), model)
    assert (ours - expected).norm() <= 1e-5 * expected.norm()


# --- pair losses ------------------------------------------------------------------------------------


def ratios(margin: torch.Tensor) -> LogRatios:
    tokens = torch.tensor([3, 5, 2, 7])
    return LogRatios(margin / 2, -margin / 2, tokens, tokens.flip(0))


def test_identities_of_the_losses():
    margin = torch.tensor([-2.0, 0.1, 0.7, 5.0], dtype=torch.float64, requires_grad=True)
    there, back = (PAIR_LOSSES["sigmoid"](ratios(sign * margin), 0.3, 0.0) for sign in (1, -1))
    assert torch.allclose(there - back, -0.3 * margin)
    (slope,) = torch.autograd.grad(there.sum(), margin)
    assert torch.allclose(slope, -0.3 * torch.sigmoid(-0.3 * margin))
    flipped = [PAIR_LOSSES["robust"](ratios(sign * margin), 0.3, 0.2) for sign in (1, -1)]
    assert torch.allclose(0.8 * flipped[0] + 0.2 * flipped[1], there)  # the mean over flips is the clean loss
    even = LogRatios(*(torch.tensor([x]).double() for x in (4.0, -6.0, 4.0, 4.0)))
    assert float(PAIR_LOSSES["ipo"](even, 0.2, 0.0)) == pytest.approx(0, abs=1e-15)  # Δ̄ = 2.5 = 1/(2·.2)


def test_rewards_have_no_level_unless_they_are_centred():
    chosen, rejected = torch.tensor([1.0, -2.0]).double(), torch.tensor([0.5, 3.0]).double()
    plain = bradley_terry(chosen, rejected, None, 0.0)
    assert torch.allclose(plain, bradley_terry(chosen + 7, rejected + 7, None, 0.0))
    assert not torch.allclose(*(bradley_terry(chosen + s, rejected + s, None, 0.1) for s in (0, 7)))


@pytest.mark.parametrize("flip_rate", [0.05, 0.1, 0.2, 0.3])
def test_beyond_the_no_preference_radius_the_flipped_have_half_the_weight(flip_rate):
    losses = torch.full((1000,), float(-logsigmoid(torch.tensor(1e-3).double()))).double()
    flipped = torch.arange(1000) < 1000 * flip_rate
    losses[flipped] += 1e-3
    radius = no_preference_radius(flip_rate)
    for slack, learns in ((-0.01, True), (0.01, False)):
        weights = solve_dual(loss=losses, epsilon=radius + slack).weights
        assert (float(weights[flipped].sum()) < 0.5) == learns
    assert no_preference_radius(0) == math.inf and str(no_preference_radius(0.5)) == "0.0"
    with pytest.raises(ValueError, match="flip_rate must be a share"):
        no_preference_radius(0.6)
    assert no_preference_radius(torch.tensor(0.25)) == no_preference_radius(0.25)
    for rate in ("0.1", None, math.nan):
        with pytest.raises(ValueError, match="flip_rate must be a share"):
            no_preference_radius(rate)


# --- comparators ------------------------------------------------------------------------------------


def test_groups_by_exponentiated_gradient():
    groups = ["a", "b", "b", "b", "c", "a"]
    eg: GroupEG = comparator_named("group-eg", 0.5, groups)
    losses, index = torch.tensor([2.0, 1.0, 3.0]).double(), torch.tensor([0, 1, 3])
    weights = eg.weights(losses, index)
    alpha = torch.tensor([math.exp(0.5 * 2), math.exp(0.5 * 2), 1.0]).double()  # b: the mean of 1 and 3
    alpha /= alpha.sum()
    share = torch.tensor([2, 3, 1]).double() / 6
    assert torch.allclose(weights, (alpha / share)[[0, 1, 1]])
    eg.restart()
    assert torch.allclose(eg.alpha, torch.full((3,), 1 / 3).double())


def test_a_second_training_starts_the_comparator_afresh(tmp_path):
    case = dict(
        family="dpo", comparator="group-eg", comparator_strength=0.5, epsilon=0.0, group_column="source"
    )
    trainer, recorder = trainer_for(case, "8x1", str(tmp_path), learning_rate=0.0)
    trainer.train()
    trainer.train()
    assert all(torch.equal(a, b) for a, b in zip(recorder.steps[:3], recorder.steps[3:], strict=True))


def test_dropout_disturbs_neither_scores_nor_what_a_comparator_weighs(tmp_path):
    case = dict(family="dpo", comparator="dr-dpo", epsilon=0.0, learning_rate=0.0, max_steps=2)
    trainer, _ = trainer_for(case, "8x1", str(tmp_path))
    for layer in trainer.model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    seen = []

    def weights(losses, index):
        seen.append((losses, index))
        return torch.ones_like(losses)

    trainer.comparator = SimpleNamespace(weights=weights, restart=lambda: None)
    trainer.train()
    scored = trainer.score_dataset(trainer.train_dataset)["loss"]
    for losses, index in seen:
        assert torch.allclose(losses, scored[index], rtol=1e-5)
        assert not torch.allclose(losses, -trainer.accountant.ledger.scores()["score"][index], rtol=1e-2)


def test_dropout_does_not_disturb_the_reference_of_an_adapter(tmp_path):
    trainer, _ = trainer_for(dict(family="dpo", epsilon=0.1, lora=True), "8x1", str(tmp_path))
    for layer in trainer.model.get_base_model().model.layers:
        layer.self_attn.attention_dropout = 0.5
    trainer.model.train()
    batch = trainer._prepare_inputs(trainer.data_collator(list(trainer.train_dataset.select(range(4)))))
    assert torch.equal(reference(trainer, batch), reference(trainer, batch)) and trainer.model.training


# --- evaluation -------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 3, 22])
def test_evaluation_is_the_mean_over_pairs(batch, tmp_path):
    case = dict(family="dpo", epsilon=0.1, per_device_eval_batch_size=batch)
    trainer, _ = trainer_for(case, "8x1", str(tmp_path))
    found = trainer.evaluate(rows())
    losses = eager_losses(small_qwen(len(tokenizer())).double())
    assert found["eval_loss"] == pytest.approx(float(losses.detach().mean()), rel=1e-5)
    assert found["eval_rewards/accuracies"] == pytest.approx(float((losses < math.log(2)).double().mean()))
    table = trainer.score_dataset(trainer.train_dataset)
    assert table["loss"].tolist() == pytest.approx(losses.tolist(), rel=1e-4, abs=1e-5)
    assert trainer.evaluate({"a": rows(), "b": rows()})["eval_b_loss"] == pytest.approx(found["eval_loss"])


def test_new_rows_have_no_reference_where_it_was_precomputed_and_dropped(tmp_path):
    small_qwen(len(tokenizer())).save_pretrained(tmp_path / "model")
    trainer = RobustDPOTrainer(
        str(tmp_path / "model"),
        args=RobustDPOConfig(**quiet(str(tmp_path), precompute_ref_log_probs=True)),
        train_dataset=rows(),
        eval_dataset=rows(),
        processing_class=tokenizer(),
    )
    assert trainer.evaluate()["eval_loss"] == pytest.approx(math.log(2))
    with pytest.raises(ValueError, match="leaves no reference"):
        trainer.evaluate(rows())


BROKEN = [(family, epsilon, "model") for family in ("dpo", "reward", "gdpo") for epsilon in (0.0, 0.1)]
BROKEN += [("dpo", 0.0, "ref_model"), ("gdpo", 0.0, "ref_model")]  # scores of beliefs do not see it


@pytest.mark.parametrize(("family", "epsilon", "broken"), BROKEN)
def test_a_loss_that_is_not_finite_names_its_sample(family, epsilon, broken, tmp_path):
    """Before the first step where all are scored, else in it; NaN never reaches the optimizer."""
    trainer, recorder = trainer_for(dict(family=family, epsilon=epsilon), "8x1", str(tmp_path))
    with torch.no_grad():
        getattr(trainer, broken).get_input_embeddings().weight[:] = torch.nan
    with pytest.raises(ValueError, match=r"loss of sample '\d+-\w+' is not finite at step [01]") as caught:
        trainer.train()
    assert "\n" not in str(caught.value) and not recorder.steps


def test_an_adapter_may_have_another_reference(tmp_path):
    case = dict(family="dpo", epsilon=0.1, lora=True)
    plain, _ = trainer_for(case, "8x1", str(tmp_path))
    assert plain.evaluate(rows())["eval_loss"] == pytest.approx(math.log(2))
    trainer = RobustDPOTrainer(
        small_qwen(len(tokenizer())),
        small_qwen(len(tokenizer()), seed=1),
        RobustDPOConfig(**quiet(str(tmp_path), beta=0.5)),
        train_dataset=rows(),
        processing_class=tokenizer(),
        peft_config=LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"),
    )
    losses = eager_losses(small_qwen(len(tokenizer())).double()).detach()
    assert trainer.evaluate(rows())["eval_loss"] == pytest.approx(float(losses.mean()), rel=1e-5)
