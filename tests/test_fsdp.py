"""A model sharded by FSDP2 over two processes trains as a whole one in one process does."""

import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch

import fsdp_runs
from fsdp_runs import GRADIENT_CASES

HERE = Path(__file__).parent


def launched(folder: Path, *flags: str) -> dict:
    output = folder / "runs.pt"
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    done = subprocess.run(
        [*launch, HERE / "fsdp_runs.py", output, *flags],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(output)


@pytest.fixture(scope="module")
def sharded(tmp_path_factory) -> dict:
    return launched(tmp_path_factory.mktemp("fsdp"))


@cache
def whole(name: str) -> dict:
    return fsdp_runs.gradients(*GRADIENT_CASES[name])


def assert_same(steps: list[torch.Tensor], expected: list[torch.Tensor], tolerance: float = 1e-5) -> None:
    assert len(steps) == len(expected) > 0
    for step, wanted in zip(steps, expected, strict=True):
        assert wanted.norm() > 0
        assert (step - wanted).norm() <= tolerance * wanted.norm()


@pytest.mark.parametrize("name", GRADIENT_CASES)
def test_gradients(sharded, name):
    """Also through the scores: 22 rows are one batch, so one process scores for nothing."""
    assert_same(sharded[name]["steps"], whole(name)["steps"])


@pytest.mark.parametrize("name", GRADIENT_CASES)
def test_history_and_evaluation(sharded, name):
    for step, wanted in zip(sharded[name]["history"], whole(name)["history"], strict=True):
        assert step == pytest.approx(wanted, rel=1e-4, abs=1e-5)
    evaluation = sharded[name]["evaluation"]
    assert evaluation.get("eval_certainty") is not None or "certainty" not in name
    assert evaluation == pytest.approx({key: whole(name)["evaluation"][key] for key in evaluation}, rel=1e-4)


def test_log_probabilities_stay_float32_under_bf16(sharded):
    assert sharded["bf16"] == torch.float32
