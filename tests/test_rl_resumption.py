"""A reinforcement run goes on where a batch of rollouts ended, to the byte; and two processes do as one."""

import logging
import shutil
from pathlib import Path

import pytest
import torch
from trl import GRPOConfig

from klball import RobustGRPOConfig
from launch import launched
from toy_policy import toy_model, toy_trainer

RUN = dict(
    per_device_train_batch_size=8,
    gradient_accumulation_steps=2,
    num_generations=4,  # four prompts a batch of rollouts: one an epoch
    num_iterations=2,
    learning_rate=0.01,
    beta=0.1,
    entropy_coef=0.01,
    radius=0.3,
    epsilon_warmup=0.5,
    max_steps=-1,
    num_train_epochs=4,
    shuffle_dataset=True,
    save_strategy="steps",
    save_steps=1,
    enumerated=False,
)


def run(folder: Path, resume: Path | None = None, **more):
    if not (folder.parent / "reference").exists():
        toy_model(noise=0.3).save_pretrained(folder.parent / "reference")
    model = toy_model()
    model.config._name_or_path = str(folder.parent / "reference")
    trainer, recorder = toy_trainer(folder, model, **(RUN | more))
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    return trainer, recorder


@pytest.fixture(
    scope="module", params=["an answer an epoch", "two an epoch", "inside a step", "steered entropy"]
)
def whole(request, tmp_path_factory):
    """(folder, settings, trainer) of an undisturbed run of 8 steps or more."""
    settings = {
        "an answer an epoch": {},
        "two an epoch": dict(gradient_accumulation_steps=1, num_iterations=2),
        "inside a step": dict(
            gradient_accumulation_steps=2,
            steps_per_generation=3,
            per_device_train_batch_size=4,
            num_iterations=1,
            max_steps=9,
        ),
        "steered entropy": dict(
            use_adaptive_entropy=True,
            entropy_target=1.9,
            entropy_coef_delta=0.05,
            gradient_accumulation_steps=1,
        ),
    }[request.param]
    folder = tmp_path_factory.mktemp("rl") / "run"
    trainer, recorder = run(folder, **settings)
    return folder, settings, trainer, recorder


def test_resumption_to_the_byte(whole, tmp_path):
    folder, settings, trainer, recorder = whole
    steps = sorted(int(path.name.rpartition("-")[2]) for path in folder.glob("checkpoint-*"))
    assert len(steps) >= 3 and steps[-1] == trainer.state.max_steps
    shutil.copytree(folder.parent / "reference", tmp_path / "reference")
    for step in steps[:-1]:
        again, rest = run(tmp_path / f"from-{step}", folder / f"checkpoint-{step}", **settings)
        assert len(rest.steps) == trainer.state.max_steps - step
        assert all(torch.equal(a, b) for a, b in zip(rest.steps, recorder.steps[step:], strict=True))
        assert again.accountant.history == trainer.accountant.history
        last = f"checkpoint-{trainer.state.max_steps}"
        for name in ("model.safetensors", "ledger.safetensors", "history.parquet"):
            one, other = folder / last / name, tmp_path / f"from-{step}" / last / name
            assert one.read_bytes() == other.read_bytes(), (step, name)


def test_a_save_inside_a_batch_of_rollouts_is_moved_and_said_once(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "klball"):
        run(tmp_path / "run", num_iterations=3, num_train_epochs=2)
    found = sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*"))
    assert found == ["checkpoint-3", "checkpoint-6"]
    said = [r.getMessage() for r in caplog.records if "is written at step" in r.getMessage()]
    assert len(said) == 1 and "step 1 is written at step 3" in said[0]


def test_a_checkpoint_inside_a_batch_of_rollouts_is_not_gone_on_from(tmp_path):
    short = dict(num_iterations=3, num_train_epochs=2)
    run(tmp_path / "run", **short, max_steps=5)
    last = tmp_path / "run" / "checkpoint-5"
    with pytest.raises(ValueError, match="lies inside a batch of rollouts"):
        run(tmp_path / "more", last, **short)
    run(tmp_path / "same", last, **short, max_steps=5)  # nothing is left to do


@pytest.mark.parametrize("changed", [dict(seed=1), dict(num_generations=8), dict(shuffle_dataset=False)])
def test_an_epoch_that_would_go_on_with_other_prompts_is_refused(changed, tmp_path):
    half = dict(gradient_accumulation_steps=1)
    run(tmp_path / "run", **half, num_train_epochs=2)
    checkpoint = tmp_path / "run" / "checkpoint-2"
    with pytest.raises(ValueError, match=f"drawn with {next(iter(changed))} = "):
        run(tmp_path / "other", checkpoint, **half, num_train_epochs=2, **changed)


def test_an_epochs_end_of_other_batches_is_no_place_to_go_on_from(tmp_path):
    run(tmp_path / "run", num_train_epochs=2)
    with pytest.raises(ValueError, match="gradient_accumulation_steps = 2, not 1"):
        run(tmp_path / "run", tmp_path / "run" / "checkpoint-2", gradient_accumulation_steps=1)


def test_a_second_training_begins_with_rollouts_of_its_own(tmp_path):
    trainer, recorder = toy_trainer(tmp_path, num_iterations=3, max_steps=4, radius=0.3)
    trainer.train()
    first = trainer.accountant.history
    trainer.train()
    assert trainer.accountant.history == first and [row["step"] for row in first] == [1, 4]
    halves = zip(recorder.steps[:4], recorder.steps[4:], strict=True)
    assert all(torch.allclose(a, b, atol=1e-9) for a, b in halves)


def test_the_best_checkpoint_needs_boundaries_at_every_step(tmp_path):
    with pytest.raises(ValueError, match="best checkpoint"):
        RobustGRPOConfig(
            output_dir=str(tmp_path),
            num_iterations=2,
            save_strategy="best",
            use_cpu=True,
            bf16=False,
            metric_for_best_model="loss",
            eval_strategy="steps",
        )


def test_two_processes_do_as_one(tmp_path):
    launched("rl_processes.py", tmp_path / "two.pt")
    import rl_processes

    alone = rl_processes.gradients(tmp_path, 1)
    both = torch.load(tmp_path / "two.pt")
    assert alone.keys() == both.keys()
    for name, (steps, history) in alone.items():
        for one, other in zip(steps, both[name][0], strict=True):
            assert float((one - other).norm() / one.norm()) < 1e-6, name
        assert [row.keys() for row in history] == [row.keys() for row in both[name][1]]
        for mine, theirs in zip(history, both[name][1], strict=True):
            assert mine == pytest.approx(theirs), name


def test_stock_arguments_are_kept():
    ours, theirs = (kind(output_dir="o", use_cpu=True, bf16=False) for kind in (RobustGRPOConfig, GRPOConfig))
    changed = {n for n in theirs.__dataclass_fields__ if getattr(ours, n) != getattr(theirs, n)}
    assert changed - {"logging_dir", "run_name"} == {"scale_rewards", "loss_type"}


def test_a_checkpoint_of_another_family_is_refused(tmp_path):
    trainer, _ = run(tmp_path / "run", max_steps=4)
    folder = tmp_path / "run" / "checkpoint-2"
    with pytest.raises(ValueError, match="trainer of another family: it has no visited"):
        trainer.accountant.load(folder, False, more=("visited",))
