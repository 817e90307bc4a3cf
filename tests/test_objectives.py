"""Token objectives by their gradients, and PSFT's window against an eager run in float64."""

import itertools
import math

import pytest
import torch
from torch import nn
from transformers import TrainerCallback

from conftest import small_qwen
from gradient_grid import rows, trainer_for
from klball import Empirical, KLBall
from klball.data.rows import encode
from klball.objectives.tokens import (
    NEEDS,
    OBJECTIVES,
    SequenceDFT,
    dft,
    needs_of,
    nll,
    objective_named,
    plain_objectives,
    psft,
)

GENERATOR = torch.Generator().manual_seed(3)


def gradient(losses, variable):
    return torch.autograd.grad(losses.sum(), variable)[0]


def random_log_probs(spread=2.0):
    values = torch.randn(4, 6, generator=GENERATOR, dtype=torch.float64) * spread
    return (-values.abs()).requires_grad_()


def test_dft_gradient_is_that_of_minus_p():
    log_p = random_log_probs()
    assert torch.allclose(gradient(dft(log_p), log_p), gradient(-log_p.exp(), log_p), rtol=1e-12)
    assert torch.allclose(gradient(dft(log_p), log_p), log_p.exp() * gradient(nll(log_p), log_p))


def test_dft_sequence_gradient_is_that_of_minus_the_probability_of_the_answer():
    log_p = random_log_probs(0.3)
    expected = gradient(-log_p.sum(-1).exp(), log_p)
    assert torch.allclose(gradient(SequenceDFT()(log_p), log_p), expected, rtol=1e-12)


@pytest.mark.parametrize("clip", [0.1, 0.28, 2.0])
def test_psft_gradient_rests_above_the_clip_and_is_the_ratio_elsewhere(clip):
    log_p, old = random_log_probs(), random_log_probs().detach()
    ratio = (log_p - old).exp().detach()
    above = ratio > 1 + clip
    assert above.any() and not above.all()
    expected = torch.where(above, 0.0, -ratio)
    assert torch.allclose(gradient(psft(log_p, old, clip), log_p), expected, rtol=1e-12)
    definition = -torch.minimum(ratio, ratio.clamp(1 - clip, 1 + clip))
    assert torch.allclose(psft(log_p, old, clip), definition, rtol=1e-12)


def test_psft_at_ratio_one_is_the_gradient_of_nll_and_overflow_gives_no_nan():
    log_p = random_log_probs()
    assert torch.equal(gradient(psft(log_p, log_p.detach()), log_p), gradient(nll(log_p), log_p))
    risen = torch.tensor([-1e-3], requires_grad=True)
    assert gradient(psft(risen, torch.tensor([-500.0])), risen).item() == 0.0


def test_every_objective_says_what_it_needs_and_is_called_with_that():
    log_p = random_log_probs()
    given = {name: random_log_probs().detach() for name in NEEDS}
    for name, function in OBJECTIVES.items():
        needed = {need: given[need] for need in needs_of(function)}
        assert objective_named(name) is function and function(log_p, **needed).shape == log_p.shape
    assert needs_of(OBJECTIVES["psft"]) == ("old_log_probs",) and needs_of(torch.neg) == ()
    assert list(plain_objectives()) == ["nll", "dft", "dft-sequence"]


class Needy:
    """All that an objective can ask for."""

    needs = tuple(NEEDS)

    def __call__(self, log_probs, entropy, certainty, old_log_probs, reference_log_probs):
        away = (log_probs - old_log_probs) ** 2 + (log_probs - reference_log_probs) ** 2
        return -log_probs - 0.1 * entropy + 0.05 * certainty + 0.3 * away


def eager_needy(tokenizer):
    """The gradients of three SGD steps in float64; the third begins a window of two."""
    model, first = (small_qwen(len(tokenizer)).double() for _ in range(2))
    old = first
    encoded = list(encode(rows(), tokenizer))
    steps = []

    def parts(which, row):
        labels = torch.tensor(row["labels"])[1:]
        logits = which(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1][labels != -100]
        log_p = logits.log_softmax(-1)
        chosen = log_p.gather(-1, labels[labels != -100][:, None])[:, 0]
        return chosen, -(log_p.exp() * log_p).sum(-1), -log_p.mean(-1) - math.log(logits.shape[-1])

    for step, batch in enumerate(encoded[i : i + 8] for i in range(0, len(encoded), 8)):
        if step == 2:
            old = small_qwen(len(tokenizer)).double()
            old.load_state_dict(model.state_dict())
        losses = [
            Needy()(*parts(model, row), parts(old, row)[0].detach(), parts(first, row)[0].detach()).mean()
            for row in batch
        ]
        gradients = torch.autograd.grad(sum(losses) / len(losses), list(model.parameters()))
        steps.append(torch.cat([g.flatten() for g in gradients]))
        with torch.no_grad():
            for parameter, g in zip(model.parameters(), gradients, strict=True):
                parameter.sub_(g, alpha=0.05)
    return steps


@pytest.mark.parametrize("arrangement", ["8x1", "4x2"])
def test_what_an_objective_needs_is_what_it_gets(arrangement, tokenizer, tmp_path):
    case = dict(objective=None, ambiguity=Empirical())
    trainer, recorder = trainer_for(case, arrangement, str(tmp_path), own=Needy(), psft_refresh=2)
    trainer.train()
    for ours, wanted in zip(recorder.steps, eager_needy(tokenizer), strict=True):
        assert (ours - wanted).norm() <= 2e-5 * wanted.norm()


class Drifted:
    """NLL, keeping how far log p is from that of the model before training."""

    needs = ("reference_log_probs",)

    def __init__(self):
        self.distances = []

    def __call__(self, log_probs, reference_log_probs):
        self.distances.append(float((log_probs.detach() - reference_log_probs).abs().max()))
        return -log_probs


@pytest.mark.parametrize("lora", [False, True])
def test_the_reference_is_the_model_before_training(lora, tokenizer, tmp_path):
    objective = Drifted()
    case = dict(objective=None, ambiguity=Empirical(), lora=lora)
    trainer, _ = trainer_for(case, "8x1", str(tmp_path), own=objective, learning_rate=0.05)
    trainer.train()
    first, *others = objective.distances
    assert first < 1e-5 and min(others) > 1e-4


def test_a_need_that_nobody_fills_is_refused_in_one_line(tokenizer, tmp_path):
    objective = Needy()
    objective.needs = ("variance",)
    with pytest.raises(ValueError, match=r"an objective can need .*, not 'variance'"):
        trainer_for(dict(objective=None, ambiguity=Empirical()), "8x1", str(tmp_path), own=objective)


def eager_psft(tokenizer, refresh, clip, warmup, learning_rate):
    """Three SGD steps on batches of 8 (8, 8, 6) in float64; the gradient of each."""
    model = small_qwen(len(tokenizer)).double()
    encoded = list(encode(rows(), tokenizer))
    batches = [encoded[i : i + 8] for i in range(0, len(encoded), 8)]
    old, steps = {}, []

    def log_probs(row):
        labels = torch.tensor(row["labels"])[1:]
        logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1]
        log_p = logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[:, None])[:, 0]
        return log_p[labels != -100]

    for step, batch in enumerate(batches):
        if step >= warmup and (step - warmup) % refresh == 0:
            old = {id(row): log_probs(row).detach() for row in itertools.chain(*batches)}
        losses = []
        for row in batch:
            log_p = log_probs(row)
            token_losses = -log_p if step < warmup else psft(log_p, old[id(row)], clip)
            losses.append(token_losses.mean())
        model.zero_grad()
        torch.stack(losses).mean().backward()
        steps.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
        with torch.no_grad():
            for p in model.parameters():
                p.sub_(learning_rate * p.grad)
    return steps


@pytest.mark.parametrize(("refresh", "warmup"), [(1, 0), (2, 0), (3, 0), (8, 1), (2, 3)])
def test_psft_run_is_the_eager_one(refresh, warmup, tokenizer, tmp_path):
    case = dict(objective="psft", ambiguity=Empirical(), psft_refresh=refresh, psft_warmup_steps=warmup)
    trainer, recorder = trainer_for({**case, "psft_clip": 0.05}, "4x2", str(tmp_path), learning_rate=0.05)
    trainer.train()
    expected = eager_psft(tokenizer, refresh, 0.05, warmup, 0.05)
    for step, wanted in zip(recorder.steps, expected, strict=True):
        assert (step - wanted).norm() <= 1e-4 * wanted.norm()
    history = trainer.accountant.history
    opening = [step < warmup or (step - warmup) % refresh == 0 for step in range(3)]
    assert [h["ratio"] == 1.0 and h["clip_fraction"] == 0.0 for h in history] == opening
    assert refresh == 1 or warmup == 3 or any(h["clip_fraction"] > 0 for h in history)


def test_psft_refreshed_at_every_step_is_sft(tokenizer, tmp_path):
    case = dict(ambiguity=KLBall(0.5))
    ours, recorder = trainer_for({**case, "objective": "psft", "psft_refresh": 1}, "8x1", str(tmp_path))
    ours.train()
    plain, expected = trainer_for({**case, "objective": "nll"}, "8x1", str(tmp_path))
    plain.train()
    assert all(torch.equal(a, b) for a, b in zip(recorder.steps, expected.steps, strict=True))


@pytest.mark.parametrize("stop", [2, 3, 5])
def test_resumed_within_a_window_ends_with_the_same_weights(stop, tokenizer, tmp_path):
    """Windows of 3 steps and then, in the second epoch of 6 steps, 3: stops inside and at an end."""
    case = dict(objective="psft", ambiguity=KLBall(0.5), psft_refresh=3)
    more = dict(save_strategy="steps", save_steps=1, num_train_epochs=2, train_sampling_strategy="random")
    whole, _ = trainer_for(case, "4x1", str(tmp_path / "whole"), **more)
    whole.train()
    again, _ = trainer_for(case, "4x1", str(tmp_path / "again"), **more)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{stop}"))
    assert again.state.global_step == whole.state.global_step == 12
    for a, b in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert whole.accountant.history == again.accountant.history


class StopsAt(TrainerCallback):
    """Ends the first epoch, or the training, after a step."""

    def __init__(self, step, what):
        self.step, self.what = step, what

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            setattr(control, self.what, True)


@pytest.mark.parametrize("what", ["should_epoch_stop", "should_training_stop"])
def test_a_window_ends_where_a_callback_ends_the_epoch(what, tokenizer, tmp_path):
    """Batches fetched for the rest of the window must not be trained on in the next epoch."""
    case = dict(objective="psft", ambiguity=Empirical(), psft_refresh=8)
    trainer, _ = trainer_for(case, "4x1", str(tmp_path), num_train_epochs=2)
    seen = []
    (window,) = trainer.hooks
    window.of = lambda index, scores, own=window.of: seen.append(index.tolist()) or own(index, scores)
    trainer.add_callback(StopsAt(2, what))
    trainer.train()
    if what == "should_training_stop":
        trainer.train()
    assert seen[2] == seen[0] == [0, 1, 2, 3]  # the epoch begins anew


def test_a_checkpoint_of_rows_in_another_order_is_refused_in_one_line(tokenizer, tmp_path):
    case = dict(objective="psft", ambiguity=Empirical(), psft_refresh=3)
    more = dict(save_strategy="steps", save_steps=1)
    trainer, _ = trainer_for(case, "4x1", str(tmp_path / "a"), **more)
    trainer.train()
    backwards = rows().select(range(len(rows()) - 1, -1, -1))
    other, _ = trainer_for(case, "4x1", str(tmp_path / "b"), data=backwards, **more)
    with pytest.raises(ValueError, match="of other rows, or of these in another order"):
        other.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-1"))


def test_psft_sets_dropout_to_zero(tokenizer, tmp_path):
    model = small_qwen(len(tokenizer), attention_dropout=0.5)
    model.lm_head.register_module("unused", nn.Dropout(0.3))
    trainer, _ = trainer_for(dict(objective="psft", ambiguity=Empirical()), "8x1", str(tmp_path), model=model)
    assert all(m.p == 0.0 for m in trainer.model.modules() if isinstance(m, nn.Dropout))
    trainer.train()
    assert trainer.accountant.history[0]["ratio"] == 1.0


def test_underflow_of_the_sequence_form_is_logged(tokenizer, tmp_path):
    trainer, _ = trainer_for(dict(objective="dft-sequence", ambiguity=Empirical()), "8x1", str(tmp_path))
    before = trainer.score_dataset(trainer.train_dataset)["sum_log_prob"][:8]
    trainer.train()
    expected = float((before < -100).double().mean())
    assert 0 < expected < 1 and trainer.accountant.history[0]["underflow_fraction"] == expected
