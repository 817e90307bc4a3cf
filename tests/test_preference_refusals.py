"""What preference trainers refuse in one line: settings, arguments, and a reward head left random."""

import math

import pytest
import trl
from datasets import Dataset
from peft import LoraConfig, PromptTuningConfig

from conftest import small_qwen
from gradient_grid import quiet, tokenizer
from klball import (
    GDPOConfig,
    KLBall,
    RobustDPOConfig,
    RobustDPOTrainer,
    RobustRewardConfig,
    RobustRewardTrainer,
)
from preference_grid import NUM_ROWS, reward_model, rows
from test_preference_settings import TOKENS

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
