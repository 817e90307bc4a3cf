"""A model sharded by FSDP2 over two processes trains as a whole one in one process does."""

from functools import cache
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import DistributedType
from accelerate.commands.config.config_args import ClusterConfig
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DeepSpeedPlugin, FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

import fsdp_runs
from klball import RobustSFTTrainer
from klball.models.loading import load_model
from klball.training.sft.fresh_scores import sharded_scores
from klball.training.sharding import shards_parameters
from launch import launched


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("fsdp")


@pytest.fixture(scope="module")
def sharded(folder) -> dict:
    """One launch for all of it."""
    launched("fsdp_runs.py", folder / "runs.pt")
    return torch.load(folder / "runs.pt")


@cache
def whole(name: str) -> dict:
    return fsdp_runs.trained(name, sharded=False)


def assert_same(steps: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    assert len(steps) == len(expected) > 0
    for step, wanted in zip(steps, expected, strict=True):
        assert wanted.norm() > 0
        assert (step - wanted).norm() <= 1e-5 * wanted.norm()


@pytest.mark.slow
@pytest.mark.parametrize("name", fsdp_runs.RUNS)
def test_same_run(sharded, name):
    """Gradients, ledger and evaluation; 22 rows are one batch to score, which two processes must share."""
    run = sharded[name]
    assert_same(run["steps"], whole(name)["steps"])
    for step, wanted in zip(run["history"], whole(name)["history"], strict=True):
        assert step == pytest.approx(wanted, rel=1e-4, abs=1e-5)
    wanted = dict(whole(name)["evaluation"])
    if "certainty" not in name:  # a sharded model is not asked for it then
        del wanted["eval_certainty"]
    assert run["evaluation"] == pytest.approx(wanted, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["Sharded", "ShardedCheckpoints"])
def test_checkpoints_resume_and_the_model_is_saved_whole(sharded, folder, tmp_path, kind):
    run = sharded[kind]
    assert len(run["again"]) == 1
    assert_same(run["again"], run["steps"][2:])
    expected = fsdp_runs.resumed(RobustSFTTrainer, "8x1", tmp_path)
    assert_same(run["steps"], expected["steps"])
    saved, wanted = (load_model(str(path))[0] for path in (folder / kind, tmp_path))
    for parameter, other in zip(saved.parameters(), wanted.parameters(), strict=True):
        torch.testing.assert_close(parameter, other, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_log_probabilities_stay_float32_under_bf16(sharded):
    assert sharded["bf16"] == torch.float32


@pytest.mark.slow
def test_parameters_lost_by_the_optimizer_are_refused(sharded):
    assert "fsdp_cpu_ram_efficient_loading: false" in sharded["loaded once"]


def accelerated(distributed_type: str, **plugin) -> Any:
    """What `shards_parameters` reads of an Accelerator."""
    settings = SimpleNamespace(**plugin)
    state = SimpleNamespace(fsdp_plugin=settings, deepspeed_plugin=settings)
    return SimpleNamespace(distributed_type=DistributedType(distributed_type), state=state)


@pytest.mark.parametrize("recipe", ["accelerate-fsdp2", "accelerate-zero2", "accelerate-zero3"])
def test_accelerate_knows_every_key_of_the_recipes(recipe, monkeypatch):
    path = str(files("klball") / "recipes" / f"{recipe}.yaml")
    arguments = launch_command_parser().parse_args(["--config_file", path, "-m", "klball", "train"])
    config = ClusterConfig.from_yaml_file(path)  # raises for an unknown key, of the outer level only
    assert {*config.fsdp_config, *config.deepspeed_config} <= set(vars(arguments))
    arguments, _, _ = _validate_launch_command(arguments)
    assert arguments.use_fsdp == (recipe == "accelerate-fsdp2")
    if arguments.use_fsdp:
        environment = prepare_multi_gpu_env(arguments)
    else:
        arguments.deepspeed_fields_from_accelerate_config = ",".join(config.deepspeed_config)
        _, environment = prepare_deepspeed_cmd_env(arguments)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if arguments.use_fsdp:
        plugin = FullyShardedDataParallelPlugin()
        assert plugin.fsdp_version == 2 and not plugin.cpu_ram_efficient_loading
        return
    plugin = DeepSpeedPlugin()
    assert plugin.zero_stage == int(recipe[-1])
    assert plugin.gradient_accumulation_steps == plugin.gradient_clipping == "auto"
    assert plugin.zero3_save_16bit_model == plugin.zero3_init_flag == (recipe[-1] == "3")


def test_what_a_sharded_model_cannot_do_is_refused():
    with pytest.raises(ValueError, match="fsdp_version: 2"):
        shards_parameters(accelerated("FSDP", fsdp_version=1), certainty=False)
    with pytest.raises(ValueError, match="ZeRO-3"):
        shards_parameters(accelerated("DEEPSPEED", zero_stage=3), certainty=True)
    assert shards_parameters(accelerated("DEEPSPEED", zero_stage=3), certainty=False)
    assert not shards_parameters(accelerated("DEEPSPEED", zero_stage=2), certainty=True)
    assert not shards_parameters(accelerated("MULTI_GPU"), certainty=True)
    with pytest.raises(ValueError, match="cannot be evaluated before"):
        sharded_scores(None, torch.nn.Linear(1, 1), None, torch.device("cpu"), [])
