"""Training that ends at a share of its steps: the share is a step."""

from types import SimpleNamespace

import pytest

from klball.training.stages import StopAt, last_step


@pytest.mark.parametrize(("share", "steps"), [(0.25, 4), (0.25, 7), (0.5, 2), (1.0, 1)])
def test_a_share_of_a_step_or_more_is_trained(share, steps):
    StopAt(share).on_train_begin(None, SimpleNamespace(max_steps=steps), None)
    assert last_step(share, steps) >= 1


@pytest.mark.parametrize(("share", "steps"), [(0.25, 3), (0.125, 7), (0.5, 1)])
def test_less_than_a_step_is_refused(share, steps):
    with pytest.raises(ValueError, match=f"{100 * share:g} % of {steps} steps is less than one"):
        StopAt(share).on_train_begin(None, SimpleNamespace(max_steps=steps), None)
