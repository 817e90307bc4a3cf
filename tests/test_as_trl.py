"""What TRL's own trainers do with an option, a column or a configuration is done here too, or refused."""

import copy
from functools import partial
from pathlib import Path

import pytest
import torch
import trl
from datasets import Dataset
from peft import LoraConfig
from transformers import TrainerCallback

from conftest import small_qwen
from gradient_grid import quiet
from gradient_grid import rows as answers
from klball import (
    RobustDPOConfig,
    RobustDPOTrainer,
    RobustGRPOConfig,
    RobustGRPOTrainer,
    RobustRewardConfig,
    RobustRewardTrainer,
    RobustSFTConfig,
    RobustSFTTrainer,
)
from preference_grid import reward_model, rows, tokenizer

PROMPTS = Dataset.from_list(
    [{"prompt": [{"role": "user", "content": f"Say {i}."}], "answer": f"{i}"} for i in range(4)]
)
TEMPLATE = Path(trl.__file__).parent / "chat_templates" / "qwen3.jinja"
GRPO = dict(num_generations=2, per_device_train_batch_size=4, max_completion_length=4, max_steps=4)


def unlike(completions, **columns):
    """A reward that differs between any two completions."""
    return [float(sum(map(ord, str(c))) % 97) for c in completions]


def of_grpo(folder, cls=RobustGRPOTrainer, data=PROMPTS, reward=unlike, settings=None, **more):
    config = RobustGRPOConfig if cls is RobustGRPOTrainer else trl.GRPOConfig
    made = config(**{**quiet(str(folder), train_sampling_strategy="random"), **GRPO, **(settings or {})})
    reads = copy.deepcopy(tokenizer())  # which other tests share
    reads.chat_template = TEMPLATE.read_text()  # one that can render tools
    given = dict(train_dataset=data, processing_class=reads, **more)
    return cls(small_qwen(len(tokenizer())), reward, args=made, **given)


def of_pairs(cls, config, model, folder, data=None, settings=None, **more):
    given = dict(train_dataset=rows() if data is None else data, processing_class=tokenizer(), **more)
    return cls(model(), args=config(**quiet(str(folder), **{"max_steps": 2, **(settings or {})})), **given)


def policy():
    return small_qwen(len(tokenizer()))


def of_dpo(folder, model=policy, **more):
    return of_pairs(RobustDPOTrainer, RobustDPOConfig, model, folder, ref_model=policy(), **more)


of_reward = partial(of_pairs, RobustRewardTrainer, RobustRewardConfig, reward_model)


def of_sft(folder, settings=None, model=policy, **more):
    config = RobustSFTConfig(**quiet(str(folder), **{"max_steps": 4, **(settings or {})}))
    given = dict(train_dataset=answers(), processing_class=tokenizer(), **more)
    return RobustSFTTrainer(model(), config, **given)


def weights(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


# --- environments and columns of GRPO ---------------------------------------------------------------


class Environment:
    """It takes the columns of the data, and no others."""

    asked = None

    def reset(self, prompt, answer):
        self.answer = answer
        type(self).asked = prompt
        return " Please."

    def get_reward(self):
        return float(self.answer)


class AsksItself:
    def reset(self, answer):
        self.answer = answer
        return "What now?"

    def get_reward(self):
        return float(self.answer)


@pytest.mark.parametrize("radius", [0.0, 0.3])
def test_an_environment_resets_with_the_columns_of_the_data(radius, tmp_path):
    trained = []
    for cls in (trl.GRPOTrainer, RobustGRPOTrainer):
        settings = dict(loss_type="dr_grpo", scale_rewards="none")
        if cls is RobustGRPOTrainer:
            settings |= dict(radius=radius, **({"shrinkage": 0.0} if radius else {}))
        trainer = of_grpo(tmp_path, cls, settings=settings, environment_factory=Environment)
        trainer.train()
        assert Environment.asked
        trained.append(weights(trainer))
    assert torch.equal(*trained) == (radius == 0)


def test_an_environment_may_ask_itself(tmp_path):
    data = PROMPTS.remove_columns("prompt")
    trainer = of_grpo(tmp_path, data=data, environment_factory=AsksItself)
    trainer.train()
    assert trainer.accountant.ledger.known.any()
    with pytest.raises(ValueError, match="train_dataset has no column 'prompt'"):
        of_grpo(tmp_path, data=data)


def test_rewards_and_data_keep_what_is_theirs(tmp_path):
    seen = {}

    def reward(completions, **columns):
        seen.update(columns)
        return unlike(completions)

    of_grpo(tmp_path, reward=reward).train()
    assert not {"sample_id", "sample_index"} & {*seen} and "answer" in seen
    with pytest.raises(ValueError, match="'sample_index' is klball's own name"):
        of_grpo(tmp_path, data=PROMPTS.add_column("sample_index", [7, 8, 9, 10]))
    with pytest.raises(ValueError, match="use map"):
        of_grpo(tmp_path, data=PROMPTS.with_transform(lambda batch: batch))


def test_the_advantages_that_are_shown_are_those_that_train(tmp_path):
    used = []

    class Shown(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            batch = trainer._buffered_inputs[0]["advantages"]  # a step has one micro-batch
            used.append((batch.tolist(), [*trainer._logs["advantages"]][-len(batch) :]))

    settings = dict(radius=0.5, shrinkage=0.0, scale_rewards="none", shuffle_dataset=False, max_steps=6)
    trainer = of_grpo(tmp_path, settings=settings, callbacks=[Shown()])
    trainer.train()
    assert trainer.accountant.history[-1]["max_weight"] > 1.1
    assert all(sorted(shown) == pytest.approx(sorted(batch)) for batch, shown in used)


# --- optimizers, adapters, collators ----------------------------------------------------------------


class Averaging(torch.optim.SGD):
    """Of two sets of weights, those to be evaluated are zeros."""

    def __init__(self, parameters, **settings):
        super().__init__(parameters, **settings)
        self.all = [p for group in self.param_groups for p in group["params"]]
        self.kept = []

    def eval(self):
        if not self.kept:
            self.kept = [p.detach().clone() for p in self.all]
            for p in self.all:
                p.data.zero_()

    def train(self):
        if self.kept:
            for p, kept in zip(self.all, self.kept, strict=True):
                p.data.copy_(kept)
            self.kept = []


@pytest.mark.parametrize("of", [of_dpo, of_sft])
def test_weights_that_an_optimizer_averages_are_those_evaluated(of, tmp_path):
    data = answers() if of is of_sft else rows()
    settings = dict(eval_strategy="steps", eval_steps=1, max_steps=2)
    model = policy()
    given = dict(optimizers=(Averaging(model.parameters(), lr=1e-3), None), eval_dataset=data)
    trainer = of(tmp_path, settings=settings, model=lambda: model, **given)
    trainer.train()
    losses = [row["eval_loss"] for row in trainer.state.log_history if "eval_loss" in row]
    assert len(losses) == 2 and losses[0] == losses[1]
    assert not weights(trainer).any()


def test_one_lora_configuration_serves_several_reward_models(tmp_path):
    lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="SEQ_CLS")
    for _ in range(2):
        of_reward(tmp_path, peft_config=lora)
        assert lora.modules_to_save is None
    of_pairs(trl.RewardTrainer, trl.RewardConfig, reward_model, tmp_path, peft_config=lora)
    assert lora.modules_to_save  # PEFT's, into the user's own
    of_reward(tmp_path, peft_config=lora)
    lora.modules_to_save = ["scorer"]
    with pytest.raises(ValueError, match="no module 'scorer'"):
        of_reward(tmp_path, peft_config=lora)


def test_what_a_collator_adds_reaches_a_reward_model(tmp_path):
    class Shifted(trl.trainer.reward_trainer.DataCollatorForPreference):
        def torch_call(self, examples):
            batch = super().torch_call(examples)
            places = torch.arange(batch["input_ids"].shape[1])
            return batch | {"position_ids": (7 * places).expand_as(batch["input_ids"])}

    trained = []
    for cls in (Shifted, trl.trainer.reward_trainer.DataCollatorForPreference):
        trainer = of_reward(tmp_path, data_collator=cls(pad_token_id=0), settings=dict(learning_rate=1e-2))
        trainer.train()
        trained.append(weights(trainer))
    assert not torch.equal(*trained)


# --- refused, or warned of --------------------------------------------------------------------------


def test_trainable_tokens_of_tied_embeddings_are_refused_where_the_head_is_fused(tmp_path):
    lora = LoraConfig(r=2, target_modules=["q_proj"], trainable_token_indices=[5], task_type="CAUSAL_LM")
    with pytest.raises(ValueError, match="trainable_token_indices is not supported"):
        of_dpo(tmp_path, peft_config=lora)


@pytest.mark.parametrize("of", [of_dpo, of_reward])
def test_pairs_are_not_grouped_by_length(of, tmp_path):
    with pytest.raises(ValueError, match="group_by_length' is not supported"):
        of(tmp_path, settings=dict(train_sampling_strategy="group_by_length"))


def test_evaluation_sets_are_looked_at_as_training_rows_are(tmp_path, caplog):
    margins, pictures = (rows().add_column(name, [0.5] * len(rows())) for name in ("margin", "images"))
    with pytest.raises(ValueError, match="margin"):
        of_dpo(tmp_path, eval_dataset={"a": margins})
    with pytest.raises(ValueError, match="images are not supported: leave out their column of eval_dataset"):
        of_reward(tmp_path, eval_dataset=pictures)
    of_dpo(tmp_path, data=rows().add_column("tools", ["[]"] * len(rows())))
    assert "train_dataset: tools has no effect on rows that are texts" in caplog.text


IDLE = {
    "eval_steps": 3,
    "eval_delay": 2,
    "per_device_eval_batch_size": 2,
    "length_column_name": "n",
    "optim_target_modules": ["q_proj"],
    "liger_kernel_config": {"rope": True},
    "gradient_checkpointing_kwargs": {"use_reentrant": False},
}


def test_settings_that_say_nothing_are_named(tmp_path, caplog):
    of_sft(tmp_path, dict(gradient_checkpointing=False))
    assert "has no effect" not in caplog.text
    of_sft(tmp_path, dict(gradient_checkpointing=False, **IDLE))
    assert all(f"{name}=" in caplog.text for name in IDLE)
    with pytest.raises(ValueError, match="nothing but skip_prepare_dataset is read"):
        of_sft(tmp_path, dict(dataset_kwargs={"add_special_tokens": False}))


def test_selective_checkpointing_is_trls_of_sft(tmp_path):
    settings = dict(gradient_checkpointing=True, gradient_checkpointing_kwargs={"selective": True})
    of_sft(tmp_path, settings).train()
