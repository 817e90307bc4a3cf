"""Devices without float64 (Apple's), and autocast: what is computed in which precision."""

import dataclasses

import pytest
import torch

from gradient_grid import CASES, trainer_for
from klball.data.rows import encode, load_rows
from klball.models.loading import load_model
from klball.models.token_scores import LMHead
from klball.scores.scorer import TOKENS, Scorer
from klball.training.sft.fresh_scores import sharded_scores


class Apple(torch.Tensor):
    """A tensor on a device that has no float64: whatever is made of one is on that device, until `.cpu()`."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        result = super().__torch_function__(function, types, args, kwargs or {})
        if function is torch.Tensor.cpu:
            return result.as_subclass(torch.Tensor)
        results = result if isinstance(result, list | tuple) else [result]
        if any(isinstance(r, Apple) and r.dtype == torch.float64 for r in results):
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't")
        return result


def on_apple(value):
    return value.as_subclass(Apple) if isinstance(value, torch.Tensor) else value


@pytest.fixture(autouse=True)
def known(monkeypatch):
    """These tensors say that they are on the CPU."""
    monkeypatch.setattr("klball.training.step.NO_FLOAT64", {"mps", "cpu"})


def test_the_device_refuses_float64():
    values = torch.ones(3).as_subclass(Apple)
    assert type((2 * values).sum()) is Apple
    assert type(values.cpu().double()) is torch.Tensor
    for forbidden in (
        values.double,
        lambda: torch.mul(values, torch.ones(3, dtype=torch.float64)),
        lambda: torch.stack([values.to(torch.float64)]),
        lambda: values.double().cpu(),
    ):
        with pytest.raises(TypeError, match="MPS"):
            forbidden()


@pytest.mark.parametrize(
    "case",
    [
        *("nll-certainty-sample", "nll-certainty-sample-exact", "nll-certainty-sum"),
        *("psft-certainty-token-lora", "dft-sequence-ball-sample", "dft-ball-sample-entropy"),
    ],
)
@pytest.mark.parametrize("arrangement", ["4x2", "packed"])
def test_training_has_no_float64_on_the_device(case, arrangement, tmp_path):
    run, recorder = trainer_for(CASES[case], arrangement, str(tmp_path), max_steps=2)
    forward = run._forward

    def there(model, inputs):
        scores = forward(model, inputs)
        fields = {f.name: on_apple(getattr(scores, f.name)) for f in dataclasses.fields(scores)}
        for name, value in inputs.items():
            inputs[name] = on_apple(value)
        return dataclasses.replace(scores, **fields)

    run._forward = there
    run.train()
    assert len(recorder.steps) == 2


@pytest.fixture(scope="module")
def encoded():
    model, tokenizer = load_model("klball/tiny")
    return model, encode(load_rows("stdlib-docs", "test").select(range(12)), tokenizer).to_list()


@pytest.mark.parametrize("headless", [False, True])
def test_scoring_has_no_float64_on_the_device(headless, encoded, monkeypatch):
    model, rows = encoded
    scorer = Scorer(model, rows[0]["input_ids"])
    wanted = scorer.score(rows)
    if headless:
        scorer.head = None
    collated = scorer._collated
    monkeypatch.setattr(scorer, "_collated", lambda batch: tuple(map(on_apple, collated(batch))))
    monkeypatch.setattr("klball.models.token_scores._onednn", lambda hidden: False)  # of the CPU's own
    hidden = scorer._hidden
    monkeypatch.setattr(scorer, "_hidden", lambda ids, mask: on_apple(hidden(ids, mask)))
    assert scorer.score(rows)["certainty"] == pytest.approx(wanted["certainty"], abs=1e-4)
    for distribution in scorer.log_distributions(rows):
        assert distribution.dtype == torch.float32


def test_sharded_scoring_has_no_float64_on_the_device(tmp_path):
    run, _ = trainer_for(CASES["nll-certainty-sample"], "8x1", str(tmp_path))
    forward = run._forward

    class Wrapped(torch.nn.Module):
        module = run.model

    def there(model, inputs):
        scores = forward(run.model, inputs)
        fields = {f.name: on_apple(getattr(scores, f.name)) for f in dataclasses.fields(scores)}
        return dataclasses.replace(scores, **fields)

    batch = [run.samples[i] for i in range(4)]
    rows = [{"input_ids": row["input_ids"], "labels": row["labels"]} for row in batch]
    columns = sharded_scores(there, Wrapped(), run.data_collator, torch.device("cpu"), rows)
    wanted = run.score_dataset(run.samples.select(range(4)))
    for name, values in columns.items():
        assert values == pytest.approx(wanted[name].tolist(), abs=1e-4)


def flat(lists):
    return torch.tensor([value for values in lists for value in values])


def test_scoring_under_autocast_multiplies_in_its_dtype(encoded, monkeypatch):
    """As training does; and no worse than 1.5 times what the whole logits in bf16 would give."""
    model, rows = encoded
    seen = set()
    logits = LMHead.logits

    def watched(head, hidden, *tile):
        seen.add((hidden.dtype, head.weight.dtype))
        return logits(head, hidden, *tile)

    monkeypatch.setattr(LMHead, "logits", watched)
    scorer = Scorer(model, rows[0]["input_ids"], lambda: torch.autocast("cpu", torch.bfloat16))
    ours = scorer.score(rows)[TOKENS]
    assert seen == {(torch.bfloat16, torch.bfloat16)}
    exact = flat(Scorer(model, rows[0]["input_ids"]).score(rows)[TOKENS])
    naive = []
    for row in rows:
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])[1:]
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            z = model(input_ids=ids).logits[0, :-1][labels != -100].float()
        naive.append(z.log_softmax(-1).gather(-1, labels[labels != -100][:, None])[:, 0])
    error, bound = (flat(ours) - exact).norm(), (torch.cat(naive) - exact).norm()
    assert 0 < error <= 1.5 * bound
