"""What of TRL's GRPO has no place here, or no effect beside other settings, said in one line."""

import math
from collections.abc import Callable
from dataclasses import fields
from typing import Any

from klball.training.arguments import one_of
from klball.training.logged import CLIPPED

Condition = tuple[str, Callable[[Any], Any]]

LOG: Condition = ("log_completions", lambda c: c.log_completions)
SYNC: Condition = ("sync_ref_model, which is not supported", lambda c: False)
ADAPTIVE: Condition = ("use_adaptive_entropy", lambda c: c.use_adaptive_entropy)
SAPO: Condition = ("loss_type='sapo'", lambda c: c.loss_type == "sapo")
VESPO: Condition = ("loss_type='vespo'", lambda c: c.loss_type == "vespo")
RATIO: Condition = ("a loss_type that clips a ratio", lambda c: c.loss_type in (*CLIPPED, "cispo"))
VLLM: Condition = ("use_vllm", lambda c: c.use_vllm)
NEEDS: dict[str, Condition] = {  # setting → what it would have no effect without
    "num_generations_eval": ("eval_strategy", lambda c: c.eval_strategy != "no"),
    **dict.fromkeys(("num_completions_to_print", "log_unique_prompts", "log_multimodal"), LOG),
    **dict.fromkeys(("ref_model_mixup_alpha", "ref_model_sync_steps"), SYNC),
    "use_bias_correction_kl": ("beta above 0", lambda c: c.beta > 0),
    **dict.fromkeys(
        ("entropy_target", *(f"entropy_coef_{end}" for end in ("min", "max", "delta"))), ADAPTIVE
    ),
    **dict.fromkeys(("sapo_temperature_pos", "sapo_temperature_neg"), SAPO),
    "importance_sampling_level": (
        "a loss_type that clips a ratio, sapo, or beta above 0",
        lambda c: c.loss_type != "vespo" or c.beta > 0,
    ),
    **dict.fromkeys(("vespo_k_pos", "vespo_k_neg", "vespo_lambda_pos", "vespo_lambda_neg"), VESPO),
    "delta": (f"a loss_type of {', '.join(CLIPPED)}", lambda c: c.loss_type in CLIPPED),
    **dict.fromkeys(("epsilon", "epsilon_high"), RATIO),
    "ds3_gather_for_generation": ("deepspeed", lambda c: c.deepspeed_plugin),
    "transformers_continuous_batching_config": (
        "use_transformers_continuous_batching",
        lambda c: c.use_transformers_continuous_batching,
    ),
}
WORDS = {  # setting → its values; TRL would miss an unknown one in the first step, or never
    "loss_type": (*CLIPPED, "cispo", "sapo", "vespo"),
    "importance_sampling_level": ("token", "sequence"),
    "scale_rewards": ("none", "group", "batch"),
    "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
}
NEVER = {  # setting → why a value other than TRL's own is refused
    "sync_ref_model": "is not supported: checkpoints would not hold the reference",
    "label_smoothing_factor": "has no effect: there are no labels",
    "train_sampling_strategy": "has no effect: TRL draws the prompts, see shuffle_dataset",
    "length_column_name": "has no effect: TRL draws the prompts, whatever their length",
    "data_seed": "has no effect: TRL draws the prompts by seed",
    "dataloader_drop_last": "has no effect: TRL drops prompts that do not fill a batch of rollouts",
    "average_tokens_across_devices": "has no effect: no loss here is divided by tokens of a step",
    "remove_unused_columns": "would hide the prompts' columns from rewards and the ledger",
}


def refuse_without_effect(config: Any) -> None:
    """Raise ValueError for a setting of TRL's that would be accepted and ignored, or an unknown word."""
    defaults = {f.name: f.default for f in fields(config)}
    for name, words in WORDS.items():
        one_of(name, getattr(config, name), words)
    for name, why in NEVER.items():
        if getattr(config, name) != defaults[name]:
            raise ValueError(f"{name}={getattr(config, name)!r} {why}")
    conditions = {**{n: VLLM for n in defaults if n.startswith("vllm_")}, **NEEDS}
    for name, (needed, holds) in conditions.items():
        if getattr(config, name) != defaults[name] and not holds(config):
            raise ValueError(f"{name} has no effect without {needed}")


def refuse_even_weights(config: Any, prompts: int) -> None:
    """Raise ValueError where training ends before any weight could differ from 1."""
    batch = config.generation_batch_size // config.num_generations
    an_epoch = prompts // batch
    if config.max_steps > 0:
        drawn = math.ceil(config.max_steps * config.gradient_accumulation_steps / config.steps_an_answer)
    else:
        drawn = math.ceil(config.num_train_epochs * an_epoch)
    of_groups = config.group_column is not None
    if drawn > (1 if of_groups else an_epoch):
        return
    known, instead = "prompt is weighed from its second visit", ", weigh groups (over='group')"
    if of_groups:
        known, instead = "group is weighed from the second batch of rollouts", ""
    raise ValueError(
        f"the adversary would have no effect: a {known} on, and training ends after {drawn} of the "
        f"{an_epoch} batches of an epoch: train longer{instead}, or without it ({config.radius_field}=0)"
    )
