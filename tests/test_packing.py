"""Packs: samples kept apart and whole, scores and runs the same as without them."""

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AttentionInterface

from conftest import small_qwen
from gradient_grid import PACK, SETS, paired_rows, quiet, rows, trainer_for
from klball import CertaintyKLBall, Empirical, KLBall, RobustSFTConfig, RobustSFTTrainer
from klball.training.batches import INDEX
from klball.training.sft.packing import packed
from test_trainer import small_gpt2

CERTAINTY = dict(objective="nll", ambiguity=CertaintyKLBall(0.5, 3.2))


def packed_trainer(folder, case=CERTAINTY, model=None, data=None, **more):
    return trainer_for(case, "packed", str(folder), model=model, data=data or paired_rows(), **more)[0]


def scores_by_sample(trainer):
    """(g, C) of every sample from the batches and the forward that training uses."""
    found = {}
    for batch in trainer.get_train_dataloader():
        with torch.no_grad():
            scores = trainer._forward(trainer.model, batch)
        sums = torch.stack([scores.log_probs.sum(1), scores.certainty.sum(1)], dim=1)
        means = sums / scores.num_tokens[:, None]
        found |= zip(batch[INDEX].tolist(), means, strict=True)
    return torch.stack([found[index] for index in sorted(found)])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("fused", [True, False])
def test_scores_are_those_of_unpacked_samples(attention, fused, tokenizer, tmp_path):
    trainer = packed_trainer(
        tmp_path, model=small_qwen(len(tokenizer), attn_implementation=attention), pad_to_multiple_of=24
    )
    trainer._forward.fused = fused
    ours = scores_by_sample(trainer)
    table = trainer.score_dataset(trainer.samples)
    expected = torch.stack([table["log_likelihood"], table["certainty"]], dim=1)
    assert len(ours) == 22 and len(trainer.train_dataset) == 11
    assert torch.allclose(ours.double(), expected, rtol=2e-6, atol=2e-6)


def test_learned_positions_begin_anew_in_every_sample(tokenizer, tmp_path):
    trainer = packed_trainer(tmp_path, model=small_gpt2(len(tokenizer)))
    expected = trainer.score_dataset(trainer.samples)["log_likelihood"]
    assert torch.allclose(scores_by_sample(trainer)[:, 0].double(), expected, rtol=2e-6)


def test_a_sample_does_not_see_its_neighbours(tokenizer, tmp_path):
    """Every token of every even row changes, and no odd row's scores move by a bit."""
    model = small_qwen(len(tokenizer))
    other = paired_rows().map(
        lambda row, k: row if k % 2 else {n: [x + (x >= 0) for x in row[n]] for n in ("input_ids", "labels")},
        with_indices=True,
    )
    before, after = (scores_by_sample(packed_trainer(tmp_path, model=model, data=d)) for d in (None, other))
    assert torch.equal(before[1::2], after[1::2])
    assert (before[::2] != after[::2]).all()


def blind(module, query, key, value, attention_mask, **kwargs):
    """Causal, whatever the mask."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    return torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True).transpose(
        1, 2
    ), None


@pytest.mark.parametrize("arrangement", ["packed", "padding-free"])
def test_attention_across_samples_is_refused(arrangement, tokenizer, tmp_path):
    AttentionInterface.register("blind", blind)
    model = small_qwen(len(tokenizer), attn_implementation="blind")
    trainer_for(CERTAINTY, "8x1", str(tmp_path), model=model)  # right padding needs no mask
    with pytest.raises(ValueError, match="packed samples meet") as caught:
        trainer_for(CERTAINTY, arrangement, str(tmp_path), model=model)
    assert "\n" not in str(caught.value)


def test_packs_hold_every_sample_once_and_whole():
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(2, 41, (300,), generator=generator).tolist()
    ids = [torch.randint(1_000, (n,), generator=generator).tolist() for n in lengths]
    samples = Dataset.from_dict({"input_ids": ids, "labels": ids, INDEX: range(300), "sample_id": ids})
    args = RobustSFTConfig(packing=True, max_length=40, use_cpu=True, bf16=False, report_to=[])
    packs = packed(samples, args)
    assert packs[:] == packed(samples, args)[:]
    seen = {}
    for pack in packs:
        assert len(pack["input_ids"]) <= 40
        position = 0
        for length in pack["seq_lengths"]:
            (index,) = set(pack[INDEX][position : position + length])
            assert index not in seen
            seen[index] = pack["input_ids"][position : position + length]
            position += length
    assert [seen[k] for k in range(300)] == ids
    assert len(packs) < 1.05 * sum(lengths) / 40
    with pytest.raises(ValueError, match="rows are longer than max_length = 30"):
        packed(samples, RobustSFTConfig(packing=True, max_length=30, use_cpu=True, bf16=False, report_to=[]))


@pytest.mark.parametrize("case", ["psft, LoRA", "certainty"])
def test_a_run_killed_amid_an_epoch_resumes_bitwise(case, tokenizer, tmp_path):
    more = dict(num_train_epochs=2, save_strategy="steps", save_steps=1, train_sampling_strategy="random")
    more |= dict(optim="adamw_torch", learning_rate=1e-3, per_device_train_batch_size=1)
    settings = dict(objective="psft", ambiguity=SETS["ball"], lora=True, psft_refresh=4)
    settings = settings if case == "psft, LoRA" else CERTAINTY
    whole = packed_trainer(tmp_path / "whole", settings, **more)
    whole.train()
    again = packed_trainer(tmp_path / "again", settings, **more)
    assert whole.state.global_step == 12  # of 6 an epoch
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-8"))
    for a, b in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert whole.accountant.history == again.accountant.history


def test_evaluation_scores_samples_one_by_one(tokenizer, tmp_path):
    more = dict(eval_strategy="steps", eval_steps=1, max_steps=1, learning_rate=0.0)
    settings = quiet(str(tmp_path), per_device_train_batch_size=4, **more)
    logged = []
    for packing in ({"packing": True, "max_length": 64}, {}):
        trainer = RobustSFTTrainer(
            small_qwen(len(tokenizer)),
            RobustSFTConfig(**settings, **packing),
            train_dataset=rows(),
            eval_dataset=rows(),
            processing_class=tokenizer,
        )
        trainer.train()
        assert len(trainer.eval_dataset) == len(rows())
        logged.append([log["eval_loss"] for log in trainer.state.log_history if "eval_loss" in log])
        logged[-1].append(trainer.evaluate(rows())["eval_loss"])
    assert logged[0] == logged[1] and len(logged[0]) == 2


def test_messages_are_packed_by_assistant_turns(tokenizer, tmp_path):
    turns = [
        {"role": "user", "content": "read the file"},
        {"role": "assistant", "content": "It reads."},
        {"role": "user", "content": "and then close"},
        {"role": "assistant", "content": "It closes the file."},
    ]
    trainer = RobustSFTTrainer(
        small_qwen(len(tokenizer)),
        RobustSFTConfig(packing=True, max_length=200, **quiet(str(tmp_path), learning_rate=0.0)),
        train_dataset=Dataset.from_list([{"messages": turns}, {"messages": turns[:2]}]),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    (pack,) = trainer.train_dataset
    kept = tokenizer.decode([label for label in pack["labels"] if label != -100])
    assert kept == "It reads.<|im_end|>It closes the file.<|im_end|>It reads.<|im_end|>"
    trainer.train()
    (step,) = trainer.accountant.history
    table = trainer.score_dataset(trainer.samples)
    assert trainer._visits.seen.all()
    expected = -float(table["sum_log_prob"].sum() / table["num_tokens"].sum())
    assert step["mean_weight"] == pytest.approx(1.0, abs=1e-5)
    assert step["nll"] == pytest.approx(expected, rel=1e-5)


def test_rows_that_packs_cannot_hold_are_counted(tokenizer, tmp_path, caplog):
    data = Dataset.from_list(
        [
            {"prompt": "a\n", "completion": "of the"},
            {"prompt": "a\n", "completion": "of the " * 30},
            {"prompt": "a file " * 40, "completion": "lost"},
        ]
    )
    trainer = packed_trainer(tmp_path, dict(objective="nll", ambiguity=KLBall(0.5)), data=data, max_length=16)
    assert len(trainer.samples) == 2 and len(trainer.train_dataset) == 2
    assert "2 of 3 rows are longer than max_length = 16: 1 cut, 1 dropped" in caplog.text
    whole = dict(objective="nll", ambiguity=Empirical(), dataset_kwargs={"skip_prepare_dataset": True})
    with pytest.raises(ValueError, match=r"^11 rows are longer than max_length = 16: packing would cut them"):
        packed_trainer(tmp_path, whole, max_length=PACK // 2)


def test_one_process_for_several_gpus_is_refused(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(RobustSFTConfig, "n_gpu", 2)
    with pytest.raises(ValueError, match="accelerate launch"):
        packed_trainer(tmp_path)
