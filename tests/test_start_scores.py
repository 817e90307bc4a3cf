"""Runs that begin alike score their samples before the first step once."""

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
    case, shared = CASES["nll-ball-sample"], {}
    alone, wanted = trained(tmp_path, "alone", case, None)
    first, steps = trained(tmp_path, "first", case, shared)
    shared["score"] = shared["score"].contiguous()
    kept = shared["score"].clone()
    second, again = trained(tmp_path, "second", case, shared)
    assert torch.equal(shared["score"], kept)
    assert alone == first == ["before the first step", *second]
    for step, other, one in zip(steps, again, wanted, strict=True):
        assert torch.equal(step, one) and torch.equal(other, one)


def test_an_adversary_that_needs_more_than_was_kept_scores_anew(tmp_path):
    shared = {}
    trained(tmp_path, "ball", CASES["nll-ball-sample"], shared)
    case = CASES["nll-certainty-sample"]
    assert isinstance(case["ambiguity"], CertaintyKLBall)
    passes, steps = trained(tmp_path, "certainty", case, shared)
    _, wanted = trained(tmp_path, "alone", case, None)
    assert passes[0] == "before the first step" and shared.keys() == {"score", "certainty"}
    assert all(map(torch.equal, steps, wanted))
    assert trained(tmp_path, "third", CASES["nll-ball-sample"], shared)[0] == passes[1:]  # less is enough
