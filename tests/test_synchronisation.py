"""What an optimizer step makes the host wait for: one reading of its rows, and nothing a micro-batch."""

import dataclasses
from collections import Counter

import pytest
import torch
from trl import SFTTrainer

from gradient_grid import CASES, trainer_for

READING = {  # what waits for a device
    "cpu": torch.Tensor.cpu,
    "item": torch.Tensor.item,
    "tolist": torch.Tensor.tolist,
    "float": torch.Tensor.__float__,
    "int": torch.Tensor.__int__,
    "bool": torch.Tensor.__bool__,
    "numpy": torch.Tensor.numpy,
    "nonzero": torch.Tensor.nonzero,
    "index": torch.Tensor.__index__,
}
counted: Counter[str] = Counter()


class Device(torch.Tensor):
    """A tensor on a device: whatever is made of it is there too, until it is read."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        for name, reading in READING.items():
            counted[name] += function is reading
        result = super().__torch_function__(function, types, args, kwargs or {})
        if function in (torch.Tensor.cpu, torch.Tensor.numpy):
            return result.as_subclass(torch.Tensor)
        return result


def there(value):
    return value.as_subclass(Device) if isinstance(value, torch.Tensor) else value


@pytest.mark.parametrize(
    "case",
    [
        *("nll-none-sample", "nll-ball-token", "nll-capped-sample", "nll-certainty-sample", "nll-cvar-token"),
        *("nll-groups-token", "nll-guide-token", "psft-certainty-sample", "dft-sequence-ball-sample"),
    ],
)
@pytest.mark.parametrize("arrangement", ["8x1", "4x2", "1x8"])
def test_one_reading_a_step(case, arrangement, tmp_path, monkeypatch):
    more = dict(logging_steps=1_000, logging_nan_inf_filter=False)  # with which Transformers reads every loss
    run, recorder = trainer_for(CASES[case], arrangement, str(tmp_path), **more)
    forward, finish = run._forward, run._finish_step

    def of_device(model, inputs):
        scores = forward(model, {name: plain(value) for name, value in inputs.items()})
        inputs |= {name: there(value) for name, value in inputs.items()}
        fields = {f.name: there(getattr(scores, f.name)) for f in dataclasses.fields(scores)}
        return dataclasses.replace(scores, **fields)

    def plain(value):
        return value.as_subclass(torch.Tensor) if isinstance(value, torch.Tensor) else value

    fetch = SFTTrainer.get_batch_samples

    def fetched(self, *arguments):
        batches, number = fetch(self, *arguments)
        return [{name: there(value) for name, value in batch.items()} for batch in batches], number

    readings = []

    def finished(step):
        finish(step)
        readings.append(dict(+counted))
        counted.clear()

    monkeypatch.setattr(SFTTrainer, "get_batch_samples", fetched)
    monkeypatch.setattr(run, "_forward", of_device)
    monkeypatch.setattr(run, "_finish_step", finished)
    counted.clear()
    run.train()
    assert len(readings) == len(recorder.steps) == 3
    assert readings == [{"cpu": 1}] * 3


def test_a_reading_is_counted():
    counted.clear()
    values = there(torch.ones(2))
    values.sum().item(), values.tolist(), values.cpu(), float(values[0]), bool(values[0])
    assert sum(counted.values()) == 5
