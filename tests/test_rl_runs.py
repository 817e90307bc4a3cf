"""Whole runs on the embedded model: messages, adapters, the preset, several rewards, evaluation."""

import math

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig

from klball import LastNumber, LengthPenalized, RobustGRPOConfig, RobustGRPOTrainer, load_model

ROWS = [
    {"prompt": [{"role": "user", "content": f"What does function {i} do?"}], "answer": i, "kind": i % 2}
    for i in range(8)
]
SETTINGS = dict(
    per_device_train_batch_size=8,
    num_generations=4,
    max_completion_length=8,
    use_cpu=True,
    bf16=False,
    report_to=[],
    disable_tqdm=True,
    gradient_checkpointing=False,
    logging_steps=1,
    save_strategy="no",
)


def letters(completions, **columns):
    """A graded reward that a small model can earn."""
    return [len(set(c[0]["content"])) / 10 for c in completions]


def trained(folder, **more):
    extras = {name: more.pop(name) for name in ("peft_config", "eval_dataset") if name in more}
    model, tokenizer = load_model("klball/tiny")
    trainer = RobustGRPOTrainer(
        model,
        [letters, LengthPenalized(LastNumber(), 0.01)],
        RobustGRPOConfig(output_dir=str(folder), **(SETTINGS | more)),
        train_dataset=Dataset.from_list(ROWS),
        processing_class=tokenizer,
        **extras,
    )
    trainer.train()
    return trainer


@pytest.mark.parametrize("adapter", [True, False])
def test_the_preset_on_messages(adapter, tmp_path):
    more = dict(peft_config=LoraConfig(target_modules="all-linear")) if adapter else dict(critic=True)
    trainer = trained(tmp_path, preset="ppo", max_steps=20, learning_rate=1e-3, **more)
    first, *_, last = [row for row in trainer.state.log_history if "kl" in row]
    assert first["kl"] == pytest.approx(0, abs=1e-6) and last["kl"] > 1e-4
    assert first["entropy"] > 0 and "clip_ratio/region_mean" in last
    assert [row["step"] for row in trainer.accountant.history] == [1, 5, 9, 13, 17]
    asked = {"lambda", "adversary_kl", "ess_ratio", "max_weight", "mean_reward", "worst_case_reward"}
    assert asked | {"mass_without_gradient", "known_prompts"} <= set(trainer.accountant.history[0])
    end = trainer.accountant.history[-1]
    assert end["known_prompts"] == 1 and end["worst_case_reward"] <= end["mean_reward"] + 1e-12
    assert (tmp_path / "history.parquet").exists()


def test_evaluation_leaves_the_ledger_alone(tmp_path):
    trainer = trained(tmp_path, max_steps=5, eval_dataset=Dataset.from_list(ROWS[:2]))
    before = trainer.accountant.ledger.tensors()
    before = {name: value.clone() for name, value in before.items()}
    found = trainer.evaluate()
    assert math.isfinite(found["eval_reward"])
    assert all(torch.equal(before[name], v) for name, v in trainer.accountant.ledger.tensors().items())
