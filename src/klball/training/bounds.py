"""What numbers are possible for the settings of commands and trainers, by their names."""

from collections.abc import Callable, Mapping
from math import inf, isnan
from numbers import Real
from typing import Any

Rule = tuple[str, Callable[[float], bool]]

POSITIVE: Rule = ("above 0", lambda x: 0 < x < inf)
NOT_NEGATIVE: Rule = ("0 or more", lambda x: 0 <= x < inf)
AT_LEAST_1: Rule = ("at least 1", lambda x: 1 <= x < inf)
AT_LEAST_2: Rule = ("at least 2", lambda x: 2 <= x < inf)
BELOW_1: Rule = ("at least 0 and below 1", lambda x: 0 <= x < 1)
PART: Rule = ("a share above 0 and below 1", lambda x: 0 < x < 1)
SHARE: Rule = ("a share, from 0 to 1", lambda x: 0 <= x <= 1)
PORT: Rule = ("a port, from 1 to 65535", lambda x: 1 <= x <= 65535)
FINITE: Rule = ("a finite number", lambda x: -inf < x < inf)

ADVERSARY: dict[str, Rule] = {
    "epsilon": NOT_NEGATIVE,
    "epsilons": NOT_NEGATIVE,
    "radius": NOT_NEGATIVE,
    "epsilon_warmup": SHARE,
    "alpha": ("a share above 0 and at most 1", lambda x: 0 < x <= 1),
    "trim": BELOW_1,
    "gamma": FINITE,
    "max_weight": AT_LEAST_1,
    "caps": AT_LEAST_1,
    "max_cost": NOT_NEGATIVE,
    "beta": NOT_NEGATIVE,  # of DPO above 0, of a KL to a reference also 0
    "entropy_coef": FINITE,
    "psft_clip": POSITIVE,
    "psft_refresh": AT_LEAST_1,
    "psft_warmup_steps": NOT_NEGATIVE,
    "rescore_steps": NOT_NEGATIVE,
    "shrinkage": NOT_NEGATIVE,
    "gae_gamma": SHARE,
    "gae_lambda": SHARE,
    "value_clip": POSITIVE,
    "critic_learning_rate": POSITIVE,
}
WORDS = {"pad_to_multiple_of"}  # TRL's "auto"
NEVER_NONE = {*ADVERSARY, "max_completion_length"} - {
    *("alpha", "gamma", "max_weight", "rescore_steps", "epsilon_warmup", "comparator_strength", "shrinkage"),
}
BOUNDS: dict[str, Rule] = {
    **ADVERSARY,
    # optimisation
    "learning_rate": NOT_NEGATIVE,
    "weight_decay": NOT_NEGATIVE,
    "adam_beta1": BELOW_1,
    "adam_beta2": BELOW_1,
    "adam_epsilon": POSITIVE,
    "max_grad_norm": ("0 or more; 0 does not clip", lambda x: x >= 0),
    "warmup_ratio": BELOW_1,
    "warmup_steps": NOT_NEGATIVE,
    "num_train_epochs": POSITIVE,
    "max_steps": ("at least 1, or -1 for all epochs", lambda x: x == -1 or x >= 1),
    "per_device_train_batch_size": AT_LEAST_1,
    "per_device_eval_batch_size": AT_LEAST_1,
    "gradient_accumulation_steps": AT_LEAST_1,
    "eval_accumulation_steps": AT_LEAST_1,
    "label_smoothing_factor": BELOW_1,
    "neftune_noise_alpha": NOT_NEGATIVE,
    "router_aux_loss_coef": NOT_NEGATIVE,
    "lora_r": NOT_NEGATIVE,  # reproduce trains all weights at 0
    "lora_alpha": AT_LEAST_1,
    "lora_dropout": BELOW_1,
    "comparator_strength": POSITIVE,
    "center_rewards_coefficient": NOT_NEGATIVE,
    "label_smoothing": ("a rate of flipped labels, 0 or more and below 0.5", lambda x: 0 <= x < 0.5),
    "loss_weights": FINITE,
    "ld_alpha": SHARE,
    "f_alpha_divergence_coef": FINITE,
    "discopop_tau": POSITIVE,
    "ref_model_mixup_alpha": SHARE,
    "ref_model_sync_steps": AT_LEAST_1,
    # rollouts
    "num_generations": AT_LEAST_2,
    "num_generations_eval": AT_LEAST_1,
    "max_completion_length": AT_LEAST_1,
    "generation_batch_size": AT_LEAST_1,
    "steps_per_generation": AT_LEAST_1,
    "num_iterations": AT_LEAST_1,
    "top_p": ("a share above 0 and at most 1", lambda x: 0 < x <= 1),
    "top_k": NOT_NEGATIVE,
    "min_p": SHARE,
    "repetition_penalty": POSITIVE,
    "max_tool_calling_iterations": NOT_NEGATIVE,
    "num_completions_to_print": NOT_NEGATIVE,
    "delta": AT_LEAST_1,
    "epsilon_high": NOT_NEGATIVE,
    **dict.fromkeys(("sapo_temperature_pos", "sapo_temperature_neg"), POSITIVE),
    **dict.fromkeys(("vespo_k_pos", "vespo_k_neg", "vespo_lambda_pos", "vespo_lambda_neg"), NOT_NEGATIVE),
    "reward_weights": FINITE,
    "top_entropy_quantile": SHARE,
    **dict.fromkeys(("entropy_coef_min", "entropy_coef_max", "entropy_coef_delta"), NOT_NEGATIVE),
    "entropy_target": NOT_NEGATIVE,
    "off_policy_mask_threshold": NOT_NEGATIVE,
    **dict.fromkeys(("vllm_server_port", "vllm_group_port"), PORT),
    "vllm_server_timeout": POSITIVE,
    "vllm_gpu_memory_utilization": ("a share above 0 and at most 1", lambda x: 0 < x <= 1),
    **dict.fromkeys(("vllm_max_model_length", "vllm_tensor_parallel_size"), AT_LEAST_1),
    **dict.fromkeys(
        tuple(f"vllm_importance_sampling_{name}" for name in ("cap", "clip_max", "clip_min")), NOT_NEGATIVE
    ),
    # when something happens
    "logging_steps": POSITIVE,
    "eval_steps": POSITIVE,
    "eval_delay": NOT_NEGATIVE,
    "save_steps": POSITIVE,
    "save_total_limit": AT_LEAST_1,
    "torch_empty_cache_steps": AT_LEAST_1,
    "seed": ("between 0 and 4294967295", lambda x: 0 <= x < 2**32),  # NumPy's range
    "data_seed": ("between 0 and 4294967295", lambda x: 0 <= x < 2**32),
    "local_rank": ("-1 or more", lambda x: x >= -1),
    # data
    "max_length": AT_LEAST_1,
    "max_rows": AT_LEAST_1,
    "train_rows": AT_LEAST_1,
    "test_rows": AT_LEAST_1,
    "ood_rows": AT_LEAST_1,
    "test_split_size": POSITIVE,
    "test_fraction": PART,
    "eval_fraction": PART,
    "tokens_per_batch": AT_LEAST_1,
    "pad_to_multiple_of": AT_LEAST_1,
    "dataset_num_proc": AT_LEAST_1,
    "precompute_ref_batch_size": AT_LEAST_1,
    "dataloader_num_workers": NOT_NEGATIVE,
    "dataloader_prefetch_factor": AT_LEAST_1,
    "ddp_bucket_cap_mb": AT_LEAST_1,
    "ddp_timeout": AT_LEAST_1,
    # experiments and comparisons
    "seeds": AT_LEAST_1,
    "flips": ("a share from 0 to below .5", lambda x: 0 <= x < 0.5),
    "start_steps": NOT_NEGATIVE,
    "rl_learning_rate": NOT_NEGATIVE,
    "start_learning_rate": NOT_NEGATIVE,
    "points": AT_LEAST_1,
    "top": NOT_NEGATIVE,
    "gradient_rows": AT_LEAST_1,
    "own_prompts": AT_LEAST_1,
    "own_samples": ("at least 2: self-BLEU compares answers to one prompt", lambda x: 2 <= x < inf),
    "own_tokens": AT_LEAST_1,
    "rounds": AT_LEAST_1,
    "resamples": NOT_NEGATIVE,
    "confidence": ("above 0 and below 1", lambda x: 0 < x < 1),
    "bounds": FINITE,
    "num_jobs": AT_LEAST_1,
    "job_index": NOT_NEGATIVE,
    "requests_per_file": AT_LEAST_1,
    "temperature": NOT_NEGATIVE,
    "max_new_tokens": AT_LEAST_1,
    "samples": NOT_NEGATIVE,
    "pass_at": AT_LEAST_1,
    "answer_seed": ("between 0 and 4294967295", lambda x: 0 <= x < 2**32),
    "cut_penalty": NOT_NEGATIVE,
    "length_penalty": NOT_NEGATIVE,
    "batch_size": AT_LEAST_1,
    "min_similarity": ("a cosine, between -1 and 1", lambda x: -1 <= x <= 1),
}


def check_bounds(settings: Mapping[str, Any], prefix: str = "") -> None:
    """Raise ValueError for the first number that is not possible; NaN is never.

    `prefix` goes before the setting's name: "--" on the command line.
    """
    for name, value in settings.items():
        for number in value if isinstance(value, list | tuple) else [value]:
            words, holds = BOUNDS.get(name, ("a number", lambda x: True))
            if number is None and name not in NEVER_NONE:
                continue
            if (name not in BOUNDS or name in WORDS) and not _is_number(number):
                continue
            if not _holds(number, holds):
                words = "finite" if number in (inf, -inf) else words
                raise ValueError(f"{prefix}{name} must be {words}, not {_shown(number)}")


def _shown(number: Any) -> str:
    return f"the text {number[:40]!r}" if isinstance(number, str) else str(number)[:40]


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _holds(number: Any, rule: Callable[[float], bool]) -> bool:
    if not _is_number(number):
        return False
    try:
        return not isnan(float(number)) and rule(number)
    except OverflowError:  # a whole number that no float holds
        return False
