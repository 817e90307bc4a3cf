"""Every setting that RobustSFTConfig adds to TRL's changes what is trained, or is refused."""

import dataclasses

import pytest
from datasets import Dataset
from trl import SFTConfig

from conftest import small_qwen
from klball.training.sft.config import RobustSFTConfig
from klball.training.sft.trainer import RobustSFTTrainer

BINDING = {"gamma": 0.01}  # below every certainty: relaxed to the least feasible bound
PSFT = {"objective": "psft"}
CHATS = {"data": "messages"}
CASES = {  # setting → (other settings first, the changed value) or (…, …, the refusal)
    "ambiguity": ({"epsilon": 0.5}, "chi2"),
    "epsilon": ({}, 0.5),
    "alpha": ({"ambiguity": "cvar", "alpha": 0.9}, 0.3),
    "direction": ({}, "optimistic"),
    "epsilon_warmup": ({"epsilon": 0.5}, 1.0),
    "group_column": ({"epsilon": 0.5}, "source"),
    "trim": ({}, 0.4),
    "gamma": ({}, 0.01),
    "max_weight": ({}, 1.05),
    "reweight": ({}, "static"),
    "objective": ({}, "dft"),
    "psft_clip": (PSFT, 0.001),
    "psft_refresh": (PSFT, 1),
    "psft_warmup_steps": (PSFT, 2),
    "entropy_coef": ({}, 0.5),
    "normalization": ({}, "token"),
    "rescore_steps": ({}, 1),
    "on_infeasible": (BINDING, "raise", "infeasible"),
    "certainty_gradient": (BINDING, True),
    "assistant_only_loss": (CHATS, False),
}
REFUSED = [
    ({"ambiguity": "wasserstein"}, "ambiguity must be one of kl, chi2, cvar"),
    ({"ambiguity": "cvar"}, "needs alpha"),
    ({"ambiguity": "cvar", "alpha": 0.5, "epsilon": 0.3}, "epsilon has no effect with ambiguity='cvar'"),
    ({"ambiguity": "cvar", "alpha": 0.0}, "alpha must be a share"),
    ({"ambiguity": "chi2", "gamma": 1.0}, "gamma has no effect with ambiguity='chi2'"),
    ({"alpha": 0.5}, "alpha has no effect with ambiguity='kl'"),
    ({"direction": "both"}, "direction must be one of"),
    ({"trim": 1.0}, "trim must be at least 0 and below 1"),
    ({"trim": None}, "trim must be at least 0 and below 1"),
    ({"psft_clip": 0.5}, "psft_clip needs objective='psft'"),
    ({"psft_refresh": 3, "objective": "dft"}, "psft_refresh needs objective='psft'"),
    ({"psft_warmup_steps": 3, "objective": "dft"}, "psft_warmup_steps needs objective='psft'"),
    ({"on_infeasible": "perhaps", "gamma": 1.0}, "on_infeasible must be one of"),
    ({"rescore_steps": 3, "reweight": "static"}, "rescore_steps needs reweight='live'"),
    ({"certainty_gradient": True}, "certainty_gradient needs gamma"),
    ({"reweight": "dead"}, "reweight must be one of"),
    ({"normalization": "none"}, "normalization must be one of"),
    ({"objective": "rlhf"}, "objective must be one of"),
    ({"objective": "nll", "loss_type": "dft"}, "contradicts loss_type"),
    ({"epsilon": None}, "epsilon must be 0 or more"),
    ({"epsilon": [0.1]}, "epsilon must be a number"),
    ({"learning_rate": "fast"}, "learning_rate must be 0 or more"),
    ({"rescore_steps": 1.5}, "rescore_steps must be a whole number"),
    ({"per_device_train_batch_size": 1.5}, "per_device_train_batch_size must be a whole number"),
    ({"model_init_kwargs": []}, "model_init_kwargs must be a mapping"),
    ({"lr_scheduler_kwargs": 3}, "lr_scheduler_kwargs must be a mapping"),
]


def config(folder, **settings) -> RobustSFTConfig:
    fixed = dict(max_steps=4, per_device_train_batch_size=4, learning_rate=0.05, logging_steps=1, seed=0)
    quiet = dict(report_to=[], disable_tqdm=True, save_strategy="no", use_cpu=True, bf16=False)
    return RobustSFTConfig(
        output_dir=str(folder), gradient_checkpointing=False, **{**fixed, **quiet, **settings}
    )


def trained(folder, tokenizer, data="prompts", **settings) -> list[float]:
    """Sums of the weights after four steps."""
    pairs = [(f"What about {i}?", "It is " + "so " * (i % 4) + str(i)) for i in range(8)]
    if data == "messages":
        turns = [[("user", q), ("assistant", a)] for q, a in pairs]
        rows = [{"messages": [{"role": r, "content": c} for r, c in chat]} for chat in turns]
    else:
        rows = [{"prompt": f"{q}\n", "completion": a, "source": len(a) % 2} for q, a in pairs]
    model = small_qwen(len(tokenizer))
    trainer = RobustSFTTrainer(
        model,
        config(folder, **settings),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    trainer.train()
    return [float(parameter.detach().double().abs().sum()) for parameter in model.parameters()]


def test_no_setting_lacks_a_case():
    inherited = {field.name for field in dataclasses.fields(SFTConfig)}
    own = {field.name for field in dataclasses.fields(RobustSFTConfig)} - inherited
    assert own | {"assistant_only_loss"} == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_a_setting_changes_what_is_trained(name, tokenizer, tmp_path):
    before, value, *refusal = CASES[name]
    if refusal:
        with pytest.raises(ValueError, match=refusal[0]):
            trained(tmp_path, tokenizer, **{**before, name: value})
        return
    assert trained(tmp_path, tokenizer, **{**before, name: value}) != trained(tmp_path, tokenizer, **before)


def test_the_same_settings_train_the_same(tokenizer, tmp_path):
    assert trained(tmp_path, tokenizer) == trained(tmp_path, tokenizer)


@pytest.mark.parametrize(("settings", "words"), REFUSED, ids=str)
def test_settings_without_effect_or_meaning_are_refused(settings, words, tmp_path):
    with pytest.raises(ValueError) as caught:
        config(tmp_path, **settings)
    assert words in str(caught.value)


def test_what_to_do_when_gamma_is_infeasible_needs_a_gamma(tokenizer, tmp_path):
    with pytest.raises(ValueError, match="on_infeasible needs gamma"):
        trained(tmp_path, tokenizer, on_infeasible="raise")
