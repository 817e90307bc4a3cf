"""Gradients do not depend on micro-batches, accumulation, padding, packing, checkpointing or processes."""

from functools import cache

import pytest
import torch

import gradient_grid
from gradient_grid import ARRANGEMENTS, CASES, TWO_PROCESSES
from launch import launched

# "checkpointed" is 4 × 2 too
SINGLE = [name for name in ARRANGEMENTS if name not in ("8x1", "4x2", "4x1", *TWO_PROCESSES)]


@cache
def reference(case: str) -> list[torch.Tensor]:
    return gradient_grid.gradients(CASES[case], "8x1")


def assert_same(case: str, steps: list[torch.Tensor]) -> None:
    expected = reference(case)
    assert len(steps) == len(expected) == 3
    for step, wanted in zip(steps, expected, strict=True):
        assert wanted.norm() > 0  # an all-zero gradient would agree with anything
        assert (step - wanted).norm() <= 1e-5 * wanted.norm()


@pytest.mark.parametrize("case", CASES)
def test_one_process(case):
    for arrangement in SINGLE:
        assert_same(case, gradient_grid.gradients(CASES[case], arrangement))


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """One launch for the whole grid: n = 22 rows, not divisible by 2 × 2 × 2, nor 11 packs by 2 × 2."""
    output = tmp_path_factory.mktemp("grid") / "gradients.pt"
    launched("gradient_grid.py", output, *TWO_PROCESSES)
    return torch.load(output)


@pytest.mark.parametrize("case", CASES)
def test_two_processes(case, two_processes):
    for arrangement in TWO_PROCESSES:
        assert_same(case, two_processes[arrangement][case])
