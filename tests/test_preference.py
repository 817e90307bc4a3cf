"""Robust DPO and reward models against stock TRL and an eager reference; comparators, refusals."""

import dataclasses
import math

import pytest
import torch
import trl
from datasets import Dataset
from peft import LoraConfig, PromptTuningConfig
from torch.nn.functional import logsigmoid
from transformers import GPT2ForSequenceClassification

from conftest import small_qwen
from gradient_grid import Gradients, quiet, tokenizer
from klball import (
    CVaR,
    Empirical,
    GDPOConfig,
    KLBall,
    RobustDPOConfig,
    RobustDPOTrainer,
    RobustRewardConfig,
    RobustRewardTrainer,
    no_preference_radius,
    solve_dual,
)
from klball.objectives.pairs import PAIR_LOSSES, LogRatios, bradley_terry
from klball.training.preference.comparators import GroupEG, comparator_named
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


# --- against TRL --------------------------------------------------------------------------------


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


# --- against an eager reference -----------------------------------------------------------------


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


# --- pair losses --------------------------------------------------------------------------------


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
    assert no_preference_radius(0) == math.inf and no_preference_radius(0.5) == 0
    with pytest.raises(ValueError, match="flip_rate must be a share"):
        no_preference_radius(0.6)


# --- comparators --------------------------------------------------------------------------------


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


# --- data ---------------------------------------------------------------------------------------

CHAT = [{"role": "user", "content": "What is a path?"}]


def said(text: str) -> list[dict]:
    return [{"role": "assistant", "content": text}]


FORMATS = {
    "explicit": [{"prompt": "a path?\n", "chosen": "the name", "rejected": "no"}] * 8,
    "implicit": [{"chosen": "a path?\nthe name", "rejected": "a path?\nno"}] * 8,
    "chat": [{"prompt": CHAT, "chosen": said("the name"), "rejected": said("no")}] * 8,
    "implicit chat": [{"chosen": CHAT + said("the name"), "rejected": CHAT + said("no")}] * 8,
}


@pytest.mark.parametrize("family", ["dpo", "reward"])
@pytest.mark.parametrize("name", FORMATS)
def test_trls_formats_are_taken(name, family, tmp_path):
    data = Dataset.from_list(FORMATS[name])
    trainer, recorder = trainer_for(dict(family=family, epsilon=0.1), "8x1", str(tmp_path), data=data)
    trainer.train()
    assert len(trainer.samples) == 8 and recorder.steps[0].norm() > 0


@pytest.mark.parametrize("family", ["dpo", "reward", "gdpo"])
def test_dropped_and_cut_rows_are_counted(family, tmp_path, caplog):
    data = rows(family).to_list()
    data[3]["prompt"] += "path " * 60
    data[5]["chosen"] += " path" * 60
    trainer, _ = trainer_for(
        dict(family=family, epsilon=0.1), "8x1", str(tmp_path), data=Dataset.from_list(data), max_length=60
    )
    dropped = 2 if family == "reward" else 1
    assert len(trainer.train_dataset) == NUM_ROWS - dropped
    assert f"train: of 22 rows {dropped} were dropped" in caplog.text
    assert f"and {2 - dropped} have an answer that it cuts" in caplog.text
    with pytest.raises(ValueError, match="no row is left"):
        trainer_for(dict(family=family), "8x1", str(tmp_path), max_length=2)


def test_nothing_is_said_where_nothing_is_lost(tmp_path, caplog):
    trainer_for(dict(family="dpo"), "8x1", str(tmp_path))
    assert "were dropped" not in caplog.text


@pytest.mark.parametrize("family", ["dpo", "reward", "gdpo"])
def test_data_without_rows_or_a_column_is_refused(family, tmp_path):
    column = "p_star" if family == "gdpo" else "rejected"
    case, data = dict(family=family, epsilon=0.1), rows(family)
    for given, words in (
        (data.select([]), "has no rows"),
        (data.remove_columns(column), f"no column '{column}'"),
    ):
        with pytest.raises(ValueError, match=f"train_dataset .*{words}"):
            trainer_for(case, "8x1", str(tmp_path), data=given)
        trainer, _ = trainer_for(case, "8x1", str(tmp_path))
        with pytest.raises(ValueError, match=f"eval_dataset .*{words}"):
            trainer.evaluate(given)


def test_a_reward_model_takes_tokens(tmp_path):
    data = Dataset.from_list([{"chosen_ids": [9, 8, 7], "rejected_ids": [9, 8]}] * 8)
    trainer, recorder = trainer_for(dict(family="reward", epsilon=0.1), "8x1", str(tmp_path), data=data)
    trainer.train()
    assert recorder.steps[0].norm() > 0


# --- evaluation ---------------------------------------------------------------------------------


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


# --- refusals -----------------------------------------------------------------------------------

SETTINGS = [
    (RobustDPOConfig, dict(loss_type=name), "loss_type must be one of sigmoid")
    for name in (
        "sft",
        "aot",
        "aot_unpaired",
        "exo_pair",
        "nca_pair",
        "bco_pair",
        "sppo_hard",
        "discopop",
        "none",
    )
] + [
    (RobustDPOConfig, dict(loss_type=["sigmoid", "ipo"]), "loss_type must be one of sigmoid"),
    (RobustDPOConfig, dict(label_smoothing=0.1), "label_smoothing needs loss_type='robust'"),
    (RobustDPOConfig, dict(loss_type="robust", label_smoothing=0.5), "below 0.5"),
    (RobustDPOConfig, dict(loss_type="robust", label_smoothing=-0.1), "below 0.5"),
    (RobustDPOConfig, dict(beta=0.0), "beta must be above 0"),
    (RobustDPOConfig, dict(use_weighting=True), "use_weighting=True would weigh"),
    (RobustDPOConfig, dict(ld_alpha=0.5), "ld_alpha=0.5 is not supported"),
    (RobustDPOConfig, dict(f_divergence_type="js_divergence"), "only reverse_kl is"),
    (RobustDPOConfig, dict(f_alpha_divergence_coef=0.3), "needs f_divergence_type"),
    (RobustDPOConfig, dict(discopop_tau=0.1), "needs loss_type='discopop'"),
    (RobustDPOConfig, dict(padding_free=True), "padding_free=True is not supported"),
    (RobustDPOConfig, dict(truncation_mode="keep_end"), "only keep_start"),
    (RobustDPOConfig, dict(loss_weights=[2.0]), "loss_weights=[2.0] has no effect"),
    (RobustDPOConfig, dict(sync_ref_model=True), "sync_ref_model=True is not supported"),
    (RobustDPOConfig, dict(ref_model_sync_steps=3), "needs sync_ref_model"),
    (RobustDPOConfig, dict(ref_model_mixup_alpha=0.3), "needs sync_ref_model"),
    (RobustDPOConfig, dict(over="sample"), "over must be one of pair, group"),
    (RobustDPOConfig, dict(over="group"), "over='group' needs group_column"),
    (RobustDPOConfig, dict(over="pair", group_column="source"), "group_column has no effect"),
    (RobustDPOConfig, dict(comparator="dro"), "comparator must be one of dr-dpo"),
    (RobustDPOConfig, dict(comparator="dr-dpo"), "set epsilon=0"),
    (RobustDPOConfig, dict(comparator="kldpo", epsilon=0.0, ambiguity="cvar", alpha=0.5), "set epsilon=0"),
    (RobustDPOConfig, dict(comparator="group-eg", epsilon=0.0), "needs group_column"),
    (
        RobustDPOConfig,
        dict(comparator="kldpo", epsilon=0.0, group_column="source"),
        "no effect with comparator",
    ),
    (RobustDPOConfig, dict(comparator_strength=0.1), "comparator_strength needs a comparator"),
    (RobustDPOConfig, dict(comparator="trim", comparator_strength=1.0), "alpha must be a share"),
    (RobustDPOConfig, dict(comparator="trim", comparator_strength=math.nan), "comparator_strength must be"),
    (RobustDPOConfig, dict(epsilon=math.nan), "epsilon must be 0 or more"),
    (RobustDPOConfig, dict(epsilon_warmup=2.0), "epsilon_warmup must be a share"),
    (RobustDPOConfig, dict(epsilon_warmup=0.1, reweight="static"), "needs reweight='live'"),
    (
        RobustRewardConfig,
        dict(center_rewards_coefficient=-1.0),
        "center_rewards_coefficient must be 0 or more",
    ),
    (GDPOConfig, dict(over="pair"), "over must be one of belief, question, group"),
    (GDPOConfig, dict(belief_end=""), "belief_end must be a text"),
    (GDPOConfig, dict(precompute_ref_log_probs=True), "not supported by GDPO"),
    (GDPOConfig, dict(loss_type="aot"), "loss_type must be one of"),
]


@pytest.mark.parametrize(("config", "settings", "words"), SETTINGS, ids=lambda value: str(value)[:60])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_settings_without_effect_or_meaning_are_refused(config, settings, words, tmp_path):
    with pytest.raises(ValueError) as caught:
        config(**quiet(str(tmp_path), **settings))
    assert words in str(caught.value) and "\n" not in str(caught.value)


ARGUMENTS = [
    (dict(compute_loss_func=print), {}, "compute_loss_func bypasses the weights"),
    (dict(compute_metrics=print), {}, "compute_metrics needs logits"),
    (dict(ref_model="klball/tiny"), {}, "ref_model must be a loaded model"),
    (dict(callbacks=[print]), {}, "callbacks must be"),
    (dict(processing_class="klball/tiny"), {}, "processing_class must be a loaded tokenizer"),
    (dict(peft_config="lora"), {}, "peft_config must be a PeftConfig"),
    (dict(peft_config=PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)), {}, "use LoRA"),
    (
        dict(peft_config=LoraConfig(target_modules=["q_proj"], modules_to_save=["nothing"])),
        {},
        "no module 'nothing'",
    ),
    (dict(train_dataset=None), {}, "train_dataset is required"),
    (dict(train_dataset=rows().add_column("image", [0] * NUM_ROWS)), {}, "images are not supported"),
    (dict(train_dataset=rows().to_iterable_dataset()), {}, "stream"),
    (dict(ambiguity=3), {}, "is no ambiguity set"),
    (dict(ambiguity=KLBall(0.1)), dict(epsilon=0.2), "give the ambiguity set once"),
    ({}, dict(label_smoothing_factor=0.1), "label_smoothing_factor is not supported"),
    ({}, dict(use_liger_kernel=True), "use_liger_kernel is not supported"),
    ({}, dict(metric_for_best_model="accuracy"), "is none of loss"),
    ({}, dict(dataloader_persistent_workers=True), "needs dataloader_num_workers"),
    ({}, dict(group_column="nothing"), "no column 'nothing'"),
    ({}, dict(group_column="source", epsilon=0.0), "group_column has no effect"),
    ({}, dict(lr_scheduler_type="cosine_with_min_lr"), "lr_scheduler_type="),
]


@pytest.mark.parametrize(("arguments", "settings", "words"), ARGUMENTS, ids=lambda value: str(value)[:60])
def test_arguments_that_are_not_supported_are_refused(arguments, settings, words, tmp_path):
    given = dict(
        ref_model=small_qwen(len(tokenizer()), seed=1), train_dataset=rows(), processing_class=tokenizer()
    )
    with pytest.raises(ValueError, match=words) as caught:
        RobustDPOTrainer(
            small_qwen(len(tokenizer())),
            args=RobustDPOConfig(**quiet(str(tmp_path), **settings)),
            **{**given, **arguments},
        )
    assert "\n" not in str(caught.value)


def test_positional_arguments_and_foreign_configurations_are_refused(tmp_path):
    with pytest.raises(ValueError, match="by keyword"):
        RobustDPOTrainer(None, None, RobustDPOConfig(**quiet(str(tmp_path))), None)
    with pytest.raises(ValueError, match="args must be a RobustDPOConfig, not DPOConfig"):
        RobustDPOTrainer(None, None, trl.DPOConfig(**quiet(str(tmp_path))))


def test_a_reward_head_that_would_stay_random_is_refused(tmp_path):
    given = dict(train_dataset=rows(), processing_class=tokenizer())
    config = RobustRewardConfig(**quiet(str(tmp_path)))
    heads = [
        ("CAUSAL_LM", None, "is a classifier: set task_type='SEQ_CLS'"),
        (None, None, "leaves the reward head"),
    ]
    for task, saved, words in heads:
        peft = LoraConfig(target_modules=["q_proj"], task_type=task, modules_to_save=saved)
        with pytest.raises(ValueError, match=words):
            RobustRewardTrainer(reward_model(), config, peft_config=peft, **given)
    for task, saved in (("SEQ_CLS", None), (None, ["score"])):
        peft = LoraConfig(target_modules=["q_proj"], task_type=task, modules_to_save=saved)
        RobustRewardTrainer(reward_model(), config, peft_config=peft, **given)


# --- the default radius -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "warmup"),
    [
        ({}, 0.1),
        (dict(epsilon=0.0), 0.0),
        (dict(reweight="static"), 0.0),
        (dict(epsilon_warmup=0.5), 0.5),
        (dict(ambiguity="cvar", alpha=0.5), 0.1),
        (dict(comparator="trim", epsilon=0.0), 0.1),
        (dict(comparator="dr-dpo", epsilon=0.0), 0.0),
    ],
    ids=str,
)
def test_the_radius_grows_over_a_tenth_of_the_steps_where_there_is_one(settings, warmup, tmp_path):
    given = {**settings}
    if given.get("ambiguity") == "cvar":
        config = RobustDPOConfig(**quiet(str(tmp_path), **given))
    else:
        config = RobustDPOConfig(**quiet(str(tmp_path), **given))
        assert config.epsilon == given.get("epsilon", 0.05)
    assert config.epsilon_warmup == warmup


def test_the_first_step_has_no_radius(tmp_path):
    trainer, _ = trainer_for(dict(family="dpo", epsilon=0.2), "8x1", str(tmp_path), num_train_epochs=4)
    trainer.train()
    assert [row["kl"] for row in trainer.accountant.history[:3]] == pytest.approx([0, 0.1, 0.2], abs=1e-9)


@pytest.mark.parametrize("epsilon", [0.0, 0.1])
@pytest.mark.parametrize("family", ["dpo", "reward", "gdpo"])
def test_a_loss_that_is_not_finite_names_its_sample(family, epsilon, tmp_path):
    """Before the first step where all are scored, else in it; NaN never reaches the optimizer."""
    trainer, recorder = trainer_for(dict(family=family, epsilon=epsilon), "8x1", str(tmp_path))
    with torch.no_grad():
        trainer.model.get_input_embeddings().weight[:] = torch.nan
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


# --- settings ---------------------------------------------------------------------------------

EG = dict(comparator="group-eg", epsilon=0.0, group_column="source")
EFFECTS = {  # name → family, settings before, the value that is to change what is trained
    "ambiguity": ("dpo", {}, "chi2"),
    "alpha": ("dpo", {"ambiguity": "cvar", "alpha": 0.9}, 0.3),
    "direction": ("dpo", {}, "optimistic"),
    "epsilon": ("dpo", {}, 0.3),
    "epsilon_warmup": ("dpo", {"epsilon": 0.5}, 1.0),
    "max_weight": ("dpo", {"epsilon": 0.5}, 1.05),
    "group_column": ("dpo", {"epsilon": 0.5}, "source"),
    "reweight": ("dpo", {"epsilon": 0.5, "epsilon_warmup": 0.0}, "static"),
    "rescore_steps": ("dpo", {"epsilon": 0.5}, 1),
    "comparator": ("dpo", {"epsilon": 0.0}, "kldpo"),
    "comparator_strength": ("dpo", EG, 5.0),
    "over": ("gdpo", {"epsilon": 0.5}, "question"),
    "belief_end": ("gdpo", {}, " of"),
}


def test_no_setting_lacks_a_case():
    own = [
        {field.name for field in dataclasses.fields(ours)}
        - {field.name for field in dataclasses.fields(trls)}
        for ours, trls in ((RobustDPOConfig, trl.DPOConfig), (GDPOConfig, trl.DPOConfig))
    ]
    rewards = {field.name for field in dataclasses.fields(RobustRewardConfig)}
    assert own[0] | own[1] == set(EFFECTS)
    assert rewards - {field.name for field in dataclasses.fields(trl.RewardConfig)} == own[0]


@pytest.mark.parametrize("name", EFFECTS)
def test_a_setting_changes_what_is_trained(name, tmp_path):
    family, before, value = EFFECTS[name]
    found = []
    for settings in (before, {**before, name: value}):
        trainer, _ = trainer_for(dict(family=family), "8x1", str(tmp_path), **settings)
        trainer.train()
        found.append([float(p.detach().double().abs().sum()) for p in trainer.model.parameters()])
    assert found[0] != found[1]


# --- resumption ---------------------------------------------------------------------------------

KEPT = {
    "dpo": dict(family="dpo", epsilon=0.3),
    "reward": dict(family="reward", epsilon=0.3, group_column="source"),
    "gdpo": dict(family="gdpo", epsilon=0.3),
    "lora": dict(family="dpo", epsilon=0.3, lora=True),
    "precomputed": dict(family="dpo", epsilon=0.3, precompute_ref_log_probs=True),
    "group-eg": dict(
        family="dpo", comparator="group-eg", comparator_strength=0.5, epsilon=0.0, group_column="source"
    ),
}


@pytest.mark.parametrize("name", KEPT)
def test_a_run_stopped_within_an_epoch_goes_on_to_the_bit(name, tmp_path):
    settings = dict(
        num_train_epochs=2, save_strategy="steps", save_steps=1, optim="adamw_torch", learning_rate=1e-3
    )
    settings |= dict(train_sampling_strategy="random", logging_steps=1)
    whole, _ = trainer_for(KEPT[name], "8x1", str(tmp_path / "run"), **settings)
    whole.train()
    resumed, _ = trainer_for(KEPT[name], "8x1", str(tmp_path / "again"), **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert resumed.accountant.history == whole.accountant.history
    pairs = zip(resumed.model.parameters(), whole.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    if name == "group-eg":
        (tmp_path / "run" / "checkpoint-2" / "comparator-groups.safetensors").unlink()
        with pytest.raises(ValueError, match="comparator='group-eg'"):
            resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
