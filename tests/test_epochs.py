"""The place in an epoch: a run goes on where its loader was, or says why not."""

import pytest
from torch.utils.data import WeightedRandomSampler

from klball import RobustSFTTrainer
from test_unusual_models import rows, trainer


class Shrinking(RobustSFTTrainer):
    def training_step(self, model, inputs, *args, **kwargs):
        if len(inputs["input_ids"]) > 7:
            raise RuntimeError("CUDA out of memory. Tried to allocate")
        return super().training_step(model, inputs, *args, **kwargs)


EVERY_STEP = dict(save_strategy="steps", save_steps=1)
ROUNDED = {
    "at random": (RobustSFTTrainer, EVERY_STEP),
    "by length": (RobustSFTTrainer, dict(train_sampling_strategy="group_by_length", **EVERY_STEP)),
    "rebalanced": (
        RobustSFTTrainer,
        dict(
            train_sampling_strategy="batch_rebalance",
            dataloader_drop_last=True,
            gradient_accumulation_steps=3,
            **EVERY_STEP,
        ),
    ),
    "shrunk": (
        Shrinking,
        dict(
            auto_find_batch_size=True,
            per_device_train_batch_size=8,
            save_strategy="epoch",
            shuffle_dataset=False,
        ),
    ),
}


@pytest.mark.parametrize("name", ROUNDED)
def test_the_steps_of_an_epoch_are_those_of_the_loader(name, tmp_path):
    cls, settings = ROUNDED[name]
    whole = trainer(tmp_path, data=rows(22), cls=cls, num_train_epochs=3, **settings)
    whole.train()
    checkpoints = sorted(tmp_path.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))
    assert len(checkpoints) >= 3
    for checkpoint in checkpoints[:-1:5]:  # within epochs and at their ends
        again = trainer(tmp_path, data=rows(22), cls=cls, num_train_epochs=3, **settings)
        again.train(resume_from_checkpoint=str(checkpoint))
        assert again.accountant.history == whole.accountant.history
        assert again.accountant.num_tokens == whole.accountant.num_tokens


@pytest.mark.parametrize(("before", "after", "step"), [(4, 8, 6), (8, 4, 3)])
def test_an_epochs_end_of_other_batches_is_no_place_to_go_on_from(before, after, step, tmp_path):
    settings = dict(save_strategy="epoch", num_train_epochs=3)
    trainer(tmp_path, per_device_train_batch_size=before, **settings).train()
    other = trainer(tmp_path, per_device_train_batch_size=after, **settings)
    with pytest.raises(ValueError, match=f"train_batch_size = {before}, not {after}, which would"):
        other.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))


def test_half_an_epoch_is_no_whole_one_of_larger_batches(tmp_path):
    trainer(tmp_path, save_strategy="steps", save_steps=3, max_steps=12).train()
    other = trainer(tmp_path, per_device_train_batch_size=8, max_steps=12)
    with pytest.raises(ValueError, match="train_batch_size = 4, not 8"):
        other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ({}, {"gamma": 3.0}, "has no certainty"),
        ({}, {"normalization": "sum"}, "normalization='sample', not 'sum'"),
    ],
)
def test_scores_of_another_kind_are_not_gone_on_with(before, after, words, tmp_path):
    settings = dict(save_strategy="steps", save_steps=6, num_train_epochs=2)
    trainer(tmp_path, **settings, **before).train()
    with pytest.raises(ValueError, match=words):
        trainer(tmp_path, **settings, **after).train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))


class Repeating(RobustSFTTrainer):
    def _get_train_sampler(self, dataset=None):
        return WeightedRandomSampler([1.0] * 2 + [1e-9] * 22, 24, replacement=True)


def test_a_sampler_that_draws_twice_is_one_line(tmp_path):
    with pytest.raises(ValueError, match="has only samples that its epoch has visited before"):
        trainer(tmp_path, cls=Repeating).train()
