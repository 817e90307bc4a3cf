"""Every setting of TRL's that a family takes has its effect, needs another that is named, or is refused."""

import dataclasses

import pytest
import trl
from transformers import TrainingArguments

from klball import GDPOConfig, RobustDPOConfig, RobustGRPOConfig, RobustRewardConfig
from klball.training.bounds import BOUNDS
from klball.training.families import FAMILIES
from klball.training.preference.config import UNSUPPORTED
from klball.training.rl.settings import NEEDS, NEVER, WORDS
from test_option_effects import numbers

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
BASE = {field.name for field in dataclasses.fields(TrainingArguments)}


def own(*classes) -> set[str]:
    """Settings that TRL adds to Transformers'."""
    return {field.name for cls in classes for field in dataclasses.fields(cls)} - BASE


def made(cls, **settings):
    return cls(output_dir="o", use_cpu=True, bf16=False, report_to=[], **settings)


LOADING = {"model_init_kwargs", "trust_remote_code", "pad_to_multiple_of", "pad_token", "dataset_num_proc"}
COMMON = {*LOADING, "disable_dropout", "max_length", "activation_offloading"}
SEEN_TO = {  # of each of TRL's classes, what its trainer does as it says, whatever the other settings
    trl.DPOConfig: {*COMMON, "beta", "loss_type", "precompute_ref_log_probs", "router_aux_loss_coef"},
    trl.RewardConfig: {*COMMON, "chat_template_path", "eos_token", "center_rewards_coefficient"},
    trl.GRPOConfig: {
        *(LOADING - {"pad_token", "dataset_num_proc"} | {"disable_dropout", "router_aux_loss_coef"}),
        *("beta", "loss_type", "scale_rewards", "entropy_coef", "use_adaptive_entropy", "reward_weights"),
        *("num_generations", "max_completion_length", "generation_batch_size", "steps_per_generation"),
        *("num_iterations", "shuffle_dataset", "temperature", "top_p", "top_k", "min_p"),
        *("repetition_penalty", "generation_kwargs", "cache_implementation", "cast_lm_head_to_fp32"),
        *("use_transformers_paged", "use_transformers_continuous_batching", "use_vllm"),
        *("importance_sampling_level", "off_policy_mask_threshold", "mask_truncated_completions"),
        *("top_entropy_quantile", "multi_objective_aggregation", "log_completions"),
        "log_completions_hub_repo",  # TRL refuses it without log_completions
        *("chat_template_kwargs", "max_tool_calling_iterations"),  # where the trainer knows prompts and tools
    },
}
DPO_NEEDS = {"label_smoothing", "precompute_ref_batch_size"}


def test_no_setting_of_trls_lacks_a_verdict():
    vllm = {name for name in own(trl.GRPOConfig) if name.startswith("vllm_")}
    verdicts = {
        trl.DPOConfig: {*UNSUPPORTED, *DPO_NEEDS},
        trl.RewardConfig: set(),
        trl.GRPOConfig: {*NEEDS, *NEVER, *vllm} - BASE - {"epsilon"},
    }
    for cls, found in verdicts.items():
        seen = SEEN_TO[cls] | found | ({"epsilon"} if cls is trl.GRPOConfig else set())
        assert own(cls) == seen, own(cls) ^ seen


@pytest.mark.parametrize("family", FAMILIES)
def test_every_number_has_bounds(family):
    assert not set(numbers(FAMILIES[family].config)) - set(BOUNDS)


NUMBERS = [
    (cls, name)
    for cls in (RobustDPOConfig, RobustRewardConfig, GDPOConfig, RobustGRPOConfig)
    for name in numbers(cls)
]


@pytest.mark.parametrize(("cls", "name"), NUMBERS, ids=lambda value: getattr(value, "__name__", value))
def test_no_number_of_a_family_can_be_nan_or_far_below_zero(cls, name):
    values = [float("nan")] + [-7.0] * (not BOUNDS[name][1](-7.0))
    for value in values:
        with pytest.raises(ValueError, match=rf"\b{name} (must be|needs a comparator)"):
            made(cls, **{name: [value] if name in ("reward_weights", "loss_weights") else value})


OTHER = {  # values that are not TRL's own, where adding one or turning it round does not give them
    "num_generations_eval": 8,
    "importance_sampling_level": "sequence",
    "num_completions_to_print": 1,
    "delta": 2.0,
    "epsilon_high": 0.3,
    "transformers_continuous_batching_config": {"max_memory_percent": 0.3},
    "train_sampling_strategy": "group_by_length",
    "length_column_name": "size",
    "data_seed": 3,
    "label_smoothing_factor": 0.1,
}
ENABLING = {
    **{
        name: {"log_completions": True}
        for name in ("num_completions_to_print", "log_unique_prompts", "log_multimodal")
    },
    "num_generations_eval": {"eval_strategy": "steps", "eval_steps": 1},
    "use_bias_correction_kl": {"beta": 0.1},
    **{name: {"use_adaptive_entropy": True} for name in NEEDS if name.startswith("entropy_")},
    **{name: {"loss_type": name[:4]} for name in NEEDS if name.startswith("sapo")},
    **{name: {"loss_type": name[:5]} for name in NEEDS if name.startswith("vespo")},
    "transformers_continuous_batching_config": {"use_transformers_continuous_batching": True},
}
IDLE = {  # what takes the effect from settings that have one by default
    "delta": {"loss_type": "sapo"},
    "epsilon": {"loss_type": "vespo"},
    "importance_sampling_level": {"loss_type": "vespo"},
    "epsilon_high": {"loss_type": "sapo"},
}


def another(name):
    default = RobustGRPOConfig.__dataclass_fields__[name].default
    if name in OTHER:
        return OTHER[name]
    return not default if isinstance(default, bool) else default + (0.01 if isinstance(default, float) else 1)


@pytest.mark.parametrize("name", NEEDS)
def test_a_setting_that_needs_another_is_refused_without_it(name):
    given = {name: another(name)}
    with pytest.raises(ValueError, match=f"^{name} has no effect without ") as caught:
        made(RobustGRPOConfig, **given, **IDLE.get(name, {}))
    assert "\n" not in str(caught.value)
    if name in ENABLING or name in IDLE:
        made(RobustGRPOConfig, **given, **ENABLING.get(name, {}))


@pytest.mark.parametrize("name", NEVER)
def test_a_setting_without_place_is_refused(name):
    with pytest.raises(ValueError, match=f"^{name}="):
        made(RobustGRPOConfig, **{name: another(name)})


@pytest.mark.parametrize("name", WORDS)
def test_an_unknown_word_is_refused(name):
    for word in WORDS[name]:
        made(RobustGRPOConfig, **{name: word})
    with pytest.raises(ValueError, match=f"^{name} must be one of"):
        made(RobustGRPOConfig, **{name: "wow"})


@pytest.mark.parametrize("name", ["vllm_mode", "vllm_server_port"])
def test_settings_of_vllm_need_it(name):
    value = {"vllm_mode": "server", "vllm_server_port": 9}[name]
    with pytest.raises(ValueError, match=f"^{name} has no effect without use_vllm"):
        made(RobustGRPOConfig, **{name: value})
    made(RobustGRPOConfig, use_vllm=True, **{name: value})


@pytest.mark.parametrize("cls", [RobustDPOConfig, GDPOConfig, RobustRewardConfig])
def test_tokens_of_a_step_divide_no_pair_loss(cls):
    with pytest.raises(ValueError, match="average_tokens_across_devices"):
        made(cls, average_tokens_across_devices=False)


def test_the_references_batch_needs_its_precomputation():
    with pytest.raises(ValueError, match="precompute_ref_batch_size has no effect without"):
        made(RobustDPOConfig, precompute_ref_batch_size=4)
    made(RobustDPOConfig, precompute_ref_batch_size=4, precompute_ref_log_probs=True)


def test_several_rewards_have_several_weights():
    assert made(RobustGRPOConfig, reward_weights=[1.0, 0.5]).reward_weights == [1.0, 0.5]
    with pytest.raises(ValueError, match="radius must be a number"):
        made(RobustGRPOConfig, radius=[0.1])
