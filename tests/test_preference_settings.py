"""What preference trainers take and refuse, what each setting does, and runs that are resumed."""

import dataclasses
import math

import pytest
import torch
import trl
from datasets import Dataset
from peft import LoraConfig, PromptTuningConfig

from conftest import small_qwen
from gradient_grid import quiet, tokenizer
from klball import (
    Empirical,
    GDPOConfig,
    KLBall,
    RobustDPOConfig,
    RobustDPOTrainer,
    RobustRewardConfig,
    RobustRewardTrainer,
)
from klball.adversary.trimming import Trimmed
from preference_grid import NUM_ROWS, reward_model, rows, trainer_for

# --- data -------------------------------------------------------------------------------------------

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


def test_a_pair_that_just_fits_is_not_cut(tmp_path, caplog):
    whole, _ = trainer_for(dict(family="dpo"), "8x1", str(tmp_path))
    longest = max(whole.row_lengths(whole.train_dataset)) // 2
    trainer_for(dict(family="dpo"), "8x1", str(tmp_path), max_length=longest)
    assert "it cuts" not in caplog.text
    trainer_for(dict(family="dpo"), "8x1", str(tmp_path), max_length=longest - 1)
    assert "it cuts" in caplog.text


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


MARGINS = [(None, "null"), (math.nan, "float 'nan'"), ("much", "text"), ("0.5", "")]


@pytest.mark.parametrize(("margin", "words"), MARGINS, ids=str)
def test_margins_are_numbers_or_their_row_is_named(margin, words, tmp_path):
    data = rows().add_column(
        "margin", [("0.5" if isinstance(margin, str) else 0.5), margin] * (NUM_ROWS // 2)
    )
    case = dict(family="reward", epsilon=0.1)
    if words:
        with pytest.raises(ValueError, match=rf"row 2 \(counted from 1\), margin: {words}"):
            trainer_for(case, "8x1", str(tmp_path), data=data)
    else:
        trainer, _ = trainer_for(case, "8x1", str(tmp_path), data=data)
        assert trainer.train_dataset["margin"][:] == [0.5] * NUM_ROWS


def test_a_reward_model_takes_tokens(tmp_path):
    data = Dataset.from_list(TOKENS)
    trainer, recorder = trainer_for(dict(family="reward", epsilon=0.1), "8x1", str(tmp_path), data=data)
    trainer.train()
    assert recorder.steps[0].norm() > 0


# --- refusals ---------------------------------------------------------------------------------------

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
    (RobustDPOConfig, dict(comparator="trim", comparator_strength=1.0), "the share left out, below 1"),
    (RobustDPOConfig, dict(comparator="trim", comparator_strength=math.nan), "comparator_strength must be"),
    (RobustDPOConfig, dict(epsilon=math.nan), "epsilon must be 0 or more"),
    (RobustDPOConfig, dict(epsilon_warmup=2.0), "epsilon_warmup must be a share"),
    (RobustDPOConfig, dict(over=""), "over must be one of pair, group"),
    (RobustDPOConfig, dict(epsilon_warmup=0.1, reweight="static"), "needs reweight='live'"),
    (
        RobustRewardConfig,
        dict(center_rewards_coefficient=-1.0),
        "center_rewards_coefficient must be 0 or more",
    ),
    *(
        (config, dict(epsilon=0.0, **idle, **more), f"{next(iter(idle))} has no effect with epsilon=0")
        for config, more in (
            (RobustDPOConfig, {}),
            (RobustRewardConfig, dict(comparator="dr-dpo")),
            (GDPOConfig, {}),
        )
        for idle in (
            dict(direction="optimistic"),
            dict(max_weight=2.0),
            dict(reweight="static"),
            dict(rescore_steps=3),
            dict(ambiguity="chi2"),
        )
        if (more, idle) != (dict(comparator="dr-dpo"), dict(ambiguity="chi2"))  # refused for another reason
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


TOKENS = [{"prompt_ids": [3], "chosen_ids": [9, 8, 7], "rejected_ids": [9, 8]}] * 8
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
    (dict(train_dataset=rows().add_column("ref_chosen_logps", [0.0] * NUM_ROWS)), {}, "precompute_ref_log_"),
    (
        dict(eval_dataset=rows().add_column("ref_rejected_logps", [0.0] * NUM_ROWS)),
        {},
        "eval_dataset has the",
    ),
    (dict(train_dataset=Dataset.from_list(TOKENS)), {}, "train_dataset has no column 'chosen'"),
    (dict(ambiguity=3), {}, "is no ambiguity set"),
    *(
        ({}, {name: value}, f"{name} has no effect here")
        for name, value in dict(
            prediction_loss_only=True,
            eval_accumulation_steps=2,
            eval_do_concat_batches=False,
            include_for_metrics=["loss"],
            batch_eval_metrics=True,
            label_names=["labels"],
        ).items()
    ),
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


# --- the default radius -----------------------------------------------------------------------------


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
    assert config.warmup == warmup


def test_the_set_is_that_of_the_settings(tmp_path):
    def made(**settings):
        return RobustDPOConfig(**quiet(str(tmp_path), **settings)).ambiguity_set()

    ball = KLBall(0.2, 3.0, "optimistic")
    settings = dict(epsilon=0.2, max_weight=3.0, direction="optimistic")
    assert made(**settings) == ball
    assert made(**settings, comparator="trim", comparator_strength=0.3) == Trimmed(ball, 0.3)
    assert made(comparator="trim", epsilon=0.0) == Trimmed(Empirical(), 0.1)


def test_the_first_step_has_no_radius(tmp_path):
    trainer, _ = trainer_for(dict(family="dpo", epsilon=0.2), "8x1", str(tmp_path), num_train_epochs=4)
    trainer.train()
    assert [row["kl"] for row in trainer.accountant.history[:3]] == pytest.approx([0, 0.1, 0.2], abs=1e-9)


# --- settings ---------------------------------------------------------------------------------------

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


# --- resumption -------------------------------------------------------------------------------------

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


@pytest.mark.parametrize("family", ["dpo", "reward", "gdpo"])
def test_evaluation_between_steps_finds_the_best_checkpoint(family, tmp_path):
    settings = dict(eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1)
    settings |= dict(load_best_model_at_end=True, metric_for_best_model="loss", logging_steps=1)
    case = dict(family=family, epsilon=0.1)
    trainer, _ = trainer_for(case, "8x1", str(tmp_path), eval_dataset=rows(family), **settings)
    trainer.train()
    losses = [row["eval_loss"] for row in trainer.state.log_history if "eval_loss" in row]
    assert len(losses) == 3 and trainer.state.best_metric == min(losses)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(min(losses), rel=1e-5)
    trained = [row for row in trainer.state.log_history if "plain_loss" in row]
    assert len(trained) == 3 and {"kl", "ess_ratio", "max_weight", "robust_loss", "loss"} <= set(trained[-1])


@pytest.mark.parametrize("config", [RobustDPOConfig, RobustRewardConfig, GDPOConfig])
def test_what_was_left_out_is_derived_anew_by_replace(config, tmp_path):
    plain = config(**quiet(str(tmp_path), epsilon=0.0))
    ball = dataclasses.replace(plain, epsilon=0.05)
    assert (plain.warmup, ball.warmup, dataclasses.replace(ball, epsilon=0.0).warmup) == (0.0, 0.1, 0.0)
    grouped = dataclasses.replace(ball, group_column="source")
    assert (ball.unit, grouped.unit, dataclasses.replace(grouped, group_column=None).unit) == (
        *(config.units[0], "group", config.units[0]),
    )
