"""A model sharded by FSDP2 over two processes trains as a whole one in one process does."""

import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch

import fsdp_runs
from fsdp_runs import FAST, SLOW
from klball import RobustSFTTrainer
from klball.evaluation.models import load_model

HERE = Path(__file__).parent
CASES = [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("fsdp")


@cache
def launched(folder: Path, which: str) -> dict:
    """One launch for all cases of a kind."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    done = subprocess.run(
        [*launch, HERE / "fsdp_runs.py", folder / f"{which}.pt", which],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(folder / f"{which}.pt")


@cache
def whole(name: str) -> dict:
    return fsdp_runs.trained(name, sharded=False)


def assert_same(steps: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    assert len(steps) == len(expected) > 0
    for step, wanted in zip(steps, expected, strict=True):
        assert wanted.norm() > 0
        assert (step - wanted).norm() <= 1e-5 * wanted.norm()


@pytest.mark.parametrize("name", CASES)
def test_same_run(folder, name):
    """Gradients, ledger and evaluation; 22 rows are one batch to score, which two processes must share."""
    sharded = launched(folder, "fast" if name in FAST else "slow")[name]
    assert_same(sharded["steps"], whole(name)["steps"])
    for step, wanted in zip(sharded["history"], whole(name)["history"], strict=True):
        assert step == pytest.approx(wanted, rel=1e-4, abs=1e-5)
    wanted = dict(whole(name)["evaluation"])
    if "certainty" not in name:  # a sharded model is not asked for it then
        del wanted["eval_certainty"]
    assert sharded["evaluation"] == pytest.approx(wanted, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["Sharded", "ShardedCheckpoints"])
def test_checkpoints_resume_and_the_model_is_saved_whole(folder, tmp_path, kind):
    run = launched(folder, "slow")[kind]
    assert len(run["again"]) == 1
    assert_same(run["again"], run["steps"][2:])
    expected = fsdp_runs.resumed(RobustSFTTrainer, "8x1", tmp_path)
    assert_same(run["steps"], expected["steps"])
    saved, wanted = (load_model(str(path))[0] for path in (folder / kind, tmp_path))
    for parameter, other in zip(saved.parameters(), wanted.parameters(), strict=True):
        torch.testing.assert_close(parameter, other, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_log_probabilities_stay_float32_under_bf16(folder):
    assert launched(folder, "slow")["bf16"] == torch.float32
