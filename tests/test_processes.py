"""All processes hear of a bad score and score as one; an epoch goes on only as it was drawn."""

import json
from pathlib import Path

import pytest

import klball
import launch
import two_processes
from gradient_grid import CASES, rows, trainer_for
from klball.data.rows import load_rows
from klball.models.loading import load_model

BALL = CASES["nll-ball-sample"]
SAVING = dict(save_strategy="steps", save_steps=1, save_total_limit=20)


@pytest.fixture(scope="module")
def launched(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    launch.launched("two_processes.py", folder)
    return folder


@pytest.mark.parametrize("fault", two_processes.FAULTS)
def test_all_processes_raise_the_same_line(fault, launched):
    first, second = (json.loads((launched / f"said-{rank}.json").read_text())[fault] for rank in (0, 1))
    assert first == second and "\n" not in first
    assert "is not finite at step" in first and "of sample" in first
    if fault == "scoring":  # found one by one in its batch
        run, _ = trainer_for(BALL, "8x1", str(launched / "none"))
        assert run.samples[two_processes.SICK]["sample_id"] in first
    else:
        assert fault in first


def test_two_processes_give_the_same_table(launched):
    rows = load_rows("stdlib-docs", "test").select(range(two_processes.SCORED))
    wanted = klball.score(*load_model("klball/tiny"), rows)
    table = klball.read_scores(launched / "scored/scores.parquet")[0]
    assert table["sample_id"] == wanted["sample_id"]
    assert table["log_likelihood"] == pytest.approx(wanted["log_likelihood"], abs=1e-5)


def saved(folder: Path, batch: int = 4, **more) -> Path:
    """A run of 6 steps an epoch that keeps all its checkpoints."""
    settings = dict(per_device_train_batch_size=batch, num_train_epochs=2, **SAVING) | more
    run, _ = trainer_for(BALL, "4x1", str(folder), **settings)
    run.train()
    return folder


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> Path:
    return saved(tmp_path_factory.mktemp("run"))


def resumed(checkpoint: Path, folder: Path, **more):
    settings = dict(num_train_epochs=2, **SAVING) | more
    run, recorder = trainer_for(BALL, "4x1", str(folder), **settings)
    run.train(resume_from_checkpoint=str(checkpoint))
    return run, recorder


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("train_batch_size", {"per_device_train_batch_size": 2}),
        ("gradient_accumulation_steps", {"gradient_accumulation_steps": 2}),
        ("seed", {"seed": 1}),
        ("data_seed", {"data_seed": 1}),
        ("train_sampling_strategy", {"train_sampling_strategy": "random"}),
        ("dataloader_drop_last", {"dataloader_drop_last": True}),
    ],
)
def test_an_epoch_that_would_go_on_with_other_samples_is_refused(name, more, checkpoints, tmp_path):
    with pytest.raises(ValueError, match=f"drawn with {name} = ") as caught:
        resumed(checkpoints / "checkpoint-3", tmp_path, **more)
    assert "\n" not in str(caught.value)


def test_an_epoch_of_two_processes_is_not_continued_by_one(launched, tmp_path):
    with pytest.raises(ValueError, match="world_size = 2, not 1"):
        resumed(launched / "run" / "checkpoint-2", tmp_path)


@pytest.mark.parametrize(
    ("step", "more", "steps", "visited"),
    [
        (6, {"seed": 1}, 6, 22),  # an epoch's end
        (6, {"per_device_train_batch_size": 22, "max_steps": 12}, 6, 22),
        (3, {"ignore_data_skip": True}, 6 + 3, 12),  # the epoch is begun anew
        (3, {"ignore_data_skip": True, "seed": 1, "per_device_train_batch_size": 8}, 3, 22),
        (3, {"learning_rate": 0.01}, 9, 22),
    ],
)
def test_every_row_of_what_follows_counts_once(step, more, steps, visited, checkpoints, tmp_path):
    run, recorder = resumed(checkpoints / f"checkpoint-{step}", tmp_path, **more)
    assert all(gradient.norm() > 0 for gradient in recorder.steps)
    assert (len(recorder.steps), int(run._visits.seen[:-1].sum())) == (steps, visited)


@pytest.mark.parametrize("step", [2, 6, 9])
def test_history_continues_to_the_bit(step, checkpoints, tmp_path):
    run, _ = resumed(checkpoints / f"checkpoint-{step}", tmp_path)
    wanted, _ = resumed(checkpoints / "checkpoint-12", tmp_path)
    assert run.accountant.history == wanted.accountant.history
    assert run.accountant.num_tokens == wanted.accountant.num_tokens
    assert run.accountant.num_tokens == 2 * sum(len(ids) for ids in run.samples["input_ids"])
    assert len(run.samples) == len(rows())


def test_relaxed_static_weights_are_counted_once(tmp_path):
    case = dict(CASES["nll-certainty-sample"], reweight="static")
    case["ambiguity"] = type(case["ambiguity"])(0.1, 0.5)
    counts = []
    for checkpoint in (None, "checkpoint-1", "checkpoint-2"):
        run, _ = trainer_for(case, "8x1", str(tmp_path), **SAVING)
        run.train(resume_from_checkpoint=checkpoint and str(tmp_path / checkpoint))
        counts.append(run.accountant.history[-1]["gamma_relaxed"])
    assert counts == [1.0, 1.0, 1.0]
