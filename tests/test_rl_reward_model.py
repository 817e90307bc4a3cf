"""A reward model scores texts as its own trainer did; and rewards know which completions ended."""

import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForSequenceClassification
from trl import RewardConfig, RewardTrainer

from klball import LastNumber, RewardModel
from klball.models.loading import TINY_FOLDER
from toy_policy import EOS, G, toy_trainer

PROMPTS = ["What is it?", "Say why, and how many of them there are."]
ANSWERS = ["It is a key.", "Because of the values."]


def small_reward_model(tokenizer, **more):
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        num_labels=1,
        initializer_range=0.5,
        pad_token_id=tokenizer.pad_token_id,
    )
    config.update(more)
    return Qwen3ForSequenceClassification(config).eval()


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(TINY_FOLDER)


def messages(role, text):
    return [{"role": role, "content": text}]


@pytest.mark.parametrize("chat", [True, False])
def test_texts_are_read_as_the_reward_trainer_reads_them(chat, tokenizer, tmp_path):
    prompts = [messages("user", p) if chat else p for p in PROMPTS]
    answers = [messages("assistant", a) if chat else a for a in ANSWERS]
    model = small_reward_model(tokenizer)
    trainer = RewardTrainer(
        model,
        RewardConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to=[]),
        train_dataset=Dataset.from_dict({"prompt": prompts, "chosen": answers, "rejected": answers}),
        processing_class=tokenizer,
    )
    reward = RewardModel(model, tokenizer)
    assert [reward.ids_of(p, a) for p, a in zip(prompts, answers, strict=True)] == trainer.train_dataset[
        "chosen_ids"
    ][:]
    batch = trainer.data_collator([trainer.train_dataset[k] for k in range(2)])
    with torch.no_grad():
        trained = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:2, 0]
    found = reward(prompts, answers, [[0], [0]])
    assert found == pytest.approx(trained.tolist(), rel=1e-5)
    assert found[0] != found[1]


def test_rewards_do_not_depend_on_the_batch(tokenizer):
    prompts, answers = PROMPTS * 4, [*(ANSWERS * 4)[1:], "and so on, " * 5]
    model = small_reward_model(tokenizer)
    found = [RewardModel(model, tokenizer, batch_size=n)(prompts, answers) for n in (1, 3, 16)]
    for other in found[1:]:
        assert other == pytest.approx(found[0], rel=1e-4, abs=1e-5)


def test_a_cut_completion_is_penalised(tokenizer):
    reward = RewardModel(small_reward_model(tokenizer), tokenizer, cut_penalty=2.5)
    whole = reward(PROMPTS, ANSWERS, completion_finished=[True, True])
    cut = reward(PROMPTS, ANSWERS, completion_finished=[True, False])
    assert cut == pytest.approx([whole[0], whole[1] - 2.5])


@pytest.mark.parametrize(
    ("config", "settings", "said"),
    [
        (dict(num_labels=2), {}, "has one label, not 2"),
        (dict(pad_token_id=None), {}, "no pad_token_id"),
        ({}, dict(cut_penalty=-1.0), "cut_penalty must be 0 or more"),
        ({}, dict(cut_penalty=float("nan")), "cut_penalty must be 0 or more"),
    ],
)
def test_what_a_reward_model_refuses(config, settings, said, tokenizer):
    with pytest.raises(ValueError, match=said):
        RewardModel(small_reward_model(tokenizer, **config), tokenizer, **settings)


def test_messages_need_a_template():
    tokenizer = AutoTokenizer.from_pretrained(TINY_FOLDER)
    tokenizer.chat_template = None
    reward = RewardModel(small_reward_model(tokenizer), tokenizer)
    with pytest.raises(ValueError, match="no chat template"):
        reward([messages("user", "a")], [messages("assistant", "b")])


def test_reward_functions_are_told_which_completions_ended(tmp_path):
    told = []

    def reward(prompts, completion_ids, completion_finished, **columns):
        told.extend(zip(completion_ids, completion_finished, strict=True))
        return [0.0] * len(prompts)

    trainer, _ = toy_trainer(
        tmp_path, reward_funcs=[reward, LastNumber()], radius=0.0, train_dataset=answers()
    )
    trainer.train()
    assert len(told) == 4 * G
    assert all(finished == (ids[-1] == EOS) for ids, finished in told)
    assert {finished for _, finished in told} == {True, False}


def answers():
    return Dataset.from_dict({"prompt": ["a", "b", "c", "d"], "answer": [1, 2, 3, 4]})


def test_a_column_of_that_name_is_refused(tmp_path):
    rows = answers().rename_column("answer", "completion_finished")
    with pytest.raises(ValueError, match="'completion_finished' is what reward functions are told"):
        toy_trainer(tmp_path, train_dataset=rows)
