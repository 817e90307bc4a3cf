"""Runs that begin alike score their samples before the first step once."""

import pytest
import torch

from gradient_grid import CASES, trainer_for
from klball.adversary.sets import CertaintyKLBall


def trained(tmp_path, name, case, start_scores, **more):
    run, recorder = trainer_for(case, "4x1", str(tmp_path / name), **more)
    run.start_scores = start_scores
    passes = []
    score_units = run.score_units
    run.score_units = lambda when: passes.append(when) or score_units(when)
    run.train()
    return passes, recorder.steps


def test_the_second_run_reads_what_the_first_has_left_and_is_the_same(tmp_path):
    case, file = CASES["nll-ball-sample"], tmp_path / "shared" / "start.pt"
    alone, wanted = trained(tmp_path, "alone", case, None)
    first, steps = trained(tmp_path, "first", case, file)
    second, again = trained(tmp_path, "second", case, file)
    assert alone == first == ["before the first step", *second] and file.exists()
    for step, other, one in zip(steps, again, wanted, strict=True):
        assert torch.equal(step, one) and torch.equal(other, one)


def test_an_adversary_that_needs_more_than_was_kept_scores_anew(tmp_path):
    file = tmp_path / "start.pt"
    trained(tmp_path, "ball", CASES["nll-ball-sample"], file)
    case = CASES["nll-certainty-sample"]
    assert isinstance(case["ambiguity"], CertaintyKLBall)
    passes, steps = trained(tmp_path, "certainty", case, file)
    _, wanted = trained(tmp_path, "alone", case, None)
    assert passes[0] == "before the first step" and torch.load(file).keys() == {"score", "certainty"}
    assert all(map(torch.equal, steps, wanted))
    assert trained(tmp_path, "third", CASES["nll-ball-sample"], file)[0] == passes[1:]  # less is enough


def test_a_file_of_other_samples_is_refused(tmp_path):
    file = tmp_path / "start.pt"
    torch.save({"score": torch.zeros(3)}, file)
    with pytest.raises(ValueError, match=r"start.pt holds scores of 3 samples, not of"):
        trained(tmp_path, "run", CASES["nll-ball-sample"], file)
