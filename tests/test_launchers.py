"""What launchers change: the device of a process, draws that all share, parameters that ZeRO-3 took away."""

import json

import pytest
import torch
from accelerate import Accelerator
from transformers.trainer_pt_utils import LengthGroupedSampler

from conftest import small_qwen
from gradient_grid import quiet, rows, tokenizer
from klball import (
    KLBall,
    RobustDPOConfig,
    RobustDPOTrainer,
    RobustGRPOConfig,
    RobustSFTConfig,
    RobustSFTTrainer,
)
from klball.data.rows import load_rows
from klball.models import loading
from klball.models.weights import whole_shape
from klball.terminal import is_main
from klball.training import run
from klball.training.checkpoints import refuse_unfit
from klball.training.sharding import holds_nothing
from preference_grid import rows as pairs
from test_objectives import Drifted


def trainer(folder, **settings):
    args = RobustSFTConfig(**quiet(str(folder), **settings))
    model = small_qwen(len(tokenizer()))
    return RobustSFTTrainer(
        model, args, ambiguity=KLBall(0.3), train_dataset=rows(), processing_class=tokenizer()
    )


def without_values(model):
    """As ZeRO-3 leaves a model: parameters of no elements that know their whole shape."""
    for parameter in model.parameters():
        parameter.ds_shape = parameter.shape
        parameter.data = torch.empty(0)
    return model


@pytest.mark.parametrize(("rank", "device"), [("0", 0), ("3", 3), ("5", 1), (None, None)])
def test_a_process_loads_onto_its_own_device(rank, device, monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 4)
    monkeypatch.setattr(torch.accelerator, "set_device_index", chosen.append)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cpu"))
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("LOCAL_RANK", rank)
    loading.load_on_device("klball/tiny")
    assert chosen == ([] if device is None else [device])  # without a launcher it is the user's choice


@pytest.mark.parametrize(
    ("environment", "main"),
    [
        ({}, True),
        ({"RANK": "1"}, True),  # left over, or a loop's own
        ({"RANK": "3", "WORLD_SIZE": "1"}, True),
        ({"RANK": "1", "WORLD_SIZE": "2"}, True),  # no launcher's: those set LOCAL_RANK too
        ({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}, False),
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, True),
    ],
)
def test_a_lone_process_prints_and_writes_whatever_rank_it_finds(environment, main, monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert is_main() == main


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_of_a_group_has_its_rank_there(rank, monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: rank)
    monkeypatch.delenv("RANK", raising=False)
    assert is_main() == (rank == 0)


def test_a_rank_that_is_no_number_is_one_line(monkeypatch):
    monkeypatch.setenv("RANK", "one")
    with pytest.raises(ValueError, match="RANK='one' in the environment is no number"):
        is_main()


def test_processes_draw_one_order_of_lengths_whatever_their_generators(tmp_path, monkeypatch):
    """Accelerate shares the generator of random samplers only."""
    of = trainer(tmp_path, train_sampling_strategy="group_by_length")
    alone = of._get_train_sampler()
    of.state.epoch = 0.5
    torch.manual_seed(0)
    first = list(alone)
    torch.manual_seed(0)
    assert first == list(
        LengthGroupedSampler(alone.sampler.batch_size, lengths=alone.sampler.lengths)
    )  # Transformers' own
    monkeypatch.setattr(type(of.args), "world_size", property(lambda self: 2))
    sampler, orders = of._get_train_sampler(), []
    for seed, epoch in ((0, 0.0), (1, 0.7), (2, 1.0), (3, 1.5)):
        torch.manual_seed(seed)
        of.state.epoch = epoch
        orders.append(list(sampler))
    assert orders[0] == orders[1] != orders[2] == orders[3]
    assert len(sampler) == len(rows()) and all(sorted(order) == list(range(len(rows()))) for order in orders)


def test_a_run_ends_when_all_its_files_are_written(tmp_path, monkeypatch):
    """The next command of another process loads what the main one writes."""
    events, plain, waits = [], run.save_whole_model, Accelerator.wait_for_everyone

    def saved(*given):
        plain(*given)
        events.append("saved")

    def waited(self):
        events.append("all")
        waits(self)

    monkeypatch.setattr(run, "save_whole_model", saved)
    monkeypatch.setattr(Accelerator, "wait_for_everyone", waited)
    config = RobustSFTConfig(**quiet(str(tmp_path), max_steps=1, epsilon=0.0))
    options = run.ModelConfig(model_name_or_path="klball/tiny", dtype="float32")
    run.train(load_rows("stdlib-docs", "train").select(range(8)), config, options, {})
    assert events[-2:] == ["saved", "all"]


def test_a_checkpoint_of_a_model_in_parts_is_of_that_model(tmp_path):
    of = trainer(tmp_path, max_steps=1, save_strategy="steps", save_steps=1)
    of.train()
    refuse_unfit(tmp_path / "checkpoint-1", without_values(of.model), "robust-sft")
    other = without_values(small_qwen(len(tokenizer()), hidden_size=32))
    with pytest.raises(ValueError, match="is of another model"):
        refuse_unfit(tmp_path / "checkpoint-1", other, "robust-sft")


def test_models_in_parts_are_refused_where_they_would_have_to_be_read(tmp_path):
    model = without_values(small_qwen(len(tokenizer())))
    assert holds_nothing(model) and not holds_nothing("klball/tiny") and not holds_nothing(None)
    assert whole_shape(next(model.parameters()))[0] == len(tokenizer())
    args = RobustDPOConfig(**quiet(str(tmp_path)))
    given = dict(train_dataset=pairs(), processing_class=tokenizer())
    with pytest.raises(ValueError, match="under ZeRO-3 it cannot be seen"):
        RobustDPOTrainer(small_qwen(len(tokenizer())), model, args, ambiguity=KLBall(0.3), **given)
    with pytest.raises(ValueError, match="which ZeRO-3 holds in parts"):
        RobustSFTTrainer(
            *(model, RobustSFTConfig(**quiet(str(tmp_path)))),
            ambiguity=KLBall(0.3),
            objective=Drifted(),
            train_dataset=rows(),
            processing_class=tokenizer(),
        )


def test_a_checkpoint_has_no_windows_of_more_processes(tmp_path):
    of = trainer(tmp_path, objective="psft", psft_refresh=2, max_steps=2, save_strategy="steps", save_steps=1)
    stale = tmp_path / "checkpoint-1" / "psft-window-3.safetensors"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"of four processes")
    of.train()
    assert [path.name for path in stale.parent.glob("psft-window-*")] == ["psft-window-0.safetensors"]
    assert json.loads((stale.parent / "trainer_state.json").read_text())["global_step"] == 1


def test_a_critic_in_half_precision_is_refused(tmp_path):
    with pytest.raises(ValueError, match="critic=True loses small gradients with fp16=True"):
        RobustGRPOConfig(str(tmp_path), critic=True, fp16=True, use_cpu=True)
