"""Gradients of preference training do not depend on micro-batches, padding, checkpointing or processes."""

from functools import cache
from pathlib import Path

import pytest
import torch

import preference_grid
from launch import launched
from preference_grid import ARRANGEMENTS, CASES, FAST, TWO_PROCESSES

TOLERANCE = 1e-5
WIDER = dict.fromkeys(("dpo-own-precomputed", "dpo-own-trim"), 1e-4)  # λ is as small as losses differ


@cache
def reference(case: str) -> list[torch.Tensor]:
    return preference_grid.gradients(CASES[case], "8x1")


def assert_same(case: str, steps: list[torch.Tensor]) -> None:
    expected = reference(case)
    assert len(steps) == len(expected) == 3
    for step, wanted in zip(steps, expected, strict=True):
        assert wanted.norm() > 0  # an all-zero gradient would agree with anything
        assert (step - wanted).norm() <= WIDER.get(case, TOLERANCE) * wanted.norm()


def by_speed(cases):
    return [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in cases]


@pytest.mark.parametrize("case", by_speed(CASES))
def test_one_process(case):
    for arrangement in ARRANGEMENTS:
        if arrangement not in ("8x1", TWO_PROCESSES):
            assert_same(case, preference_grid.gradients(CASES[case], arrangement))


def in_two_processes(output: Path, cases) -> dict[str, list[torch.Tensor]]:
    preference_grid.rows().save_to_disk(output.parent / "rows")
    launched("preference_grid.py", output, *cases)
    return torch.load(output)


def test_two_processes(tmp_path):
    """n = 22, not divisible by 2 × 2 × 2."""
    for case, steps in in_two_processes(tmp_path / "gradients.pt", sorted(FAST)).items():
        assert_same(case, steps)


@pytest.mark.slow
def test_two_processes_and_every_loss(tmp_path):
    for case, steps in in_two_processes(tmp_path / "gradients.pt", sorted({*CASES} - FAST)).items():
        assert_same(case, steps)
