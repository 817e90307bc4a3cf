"""Token objectives by their gradients, and PSFT's window against an eager run in float64."""

import itertools

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
    PROXIMAL,
    dft,
    dft_sequence,
    needs_of,
    nll,
    objective,
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
    assert torch.allclose(gradient(dft_sequence(log_p), log_p), expected, rtol=1e-12)


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
    assert needs_of(psft) == ("old_log_probs",) and needs_of(torch.neg) == ()
    assert list(plain_objectives())[:3] == ["nll", "dft", "dft-sequence"] and PROXIMAL in OBJECTIVES
    assert PROXIMAL not in plain_objectives()


def test_an_objective_of_the_users_own_is_a_function_and_a_line(monkeypatch):
    monkeypatch.setattr("klball.objectives.tokens.OBJECTIVES", known := dict(OBJECTIVES))

    @objective("certain", needs=("certainty", "entropy"))
    def certain(log_probs, certainty, entropy):
        return -log_probs * certainty - entropy

    assert objective_named("certain") is certain and list(known)[-1] == "certain"
    assert needs_of(certain) == ("certainty", "entropy")
    objective("certain")(certain)  # a notebook's cell runs twice


@pytest.mark.parametrize(
    ("name", "needs", "words"),
    [
        ("nll", (), "there is an objective 'nll' already"),
        ("mine", ("variance",), "needs 'variance'; there are old_log_probs"),
        ("mine", ("entropy",), "needs 'entropy', but has no parameter of that name"),
    ],
)
def test_an_objective_that_cannot_be_called_is_refused(name, needs, words):
    with pytest.raises(ValueError, match=words):
        objective(name, needs)(lambda log_probs: log_probs)
    assert "mine" not in OBJECTIVES and objective_named("nll") is nll


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
    trainer._window.losses = lambda index, scores, own=trainer._window.losses: (
        seen.append(index.tolist()) or own(index, scores)
    )
    trainer.add_callback(StopsAt(2, what))
    trainer.train()
    if what == "should_training_stop":
        trainer.train()
    assert seen[2] == seen[0] == [0, 1, 2, 3]  # the epoch begins anew


def test_a_window_of_other_rows_is_refused_in_one_line(tokenizer, tmp_path):
    case = dict(objective="psft", ambiguity=Empirical(), psft_refresh=3)
    more = dict(save_strategy="steps", save_steps=1)
    trainer, _ = trainer_for(case, "4x1", str(tmp_path / "a"), **more)
    trainer.train()
    backwards = rows().select(range(len(rows()) - 1, -1, -1))
    other, _ = trainer_for(case, "4x1", str(tmp_path / "b"), data=backwards, **more)
    with pytest.raises(ValueError, match="no log p\\^old"):
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
