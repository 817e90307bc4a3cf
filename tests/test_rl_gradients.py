"""RobustGRPOTrainer's gradients against exact ones of a policy whose completions can be enumerated."""

import math

import pytest
import torch
from transformers import TrainerCallback

import klball
from toy_policy import (
    FIRST,
    PROMPTS,
    WORDS,
    G,
    completions_of,
    probabilities,
    prompts,
    reward_of,
    toy_model,
    toy_reward,
    toy_trainer,
)

RADIUS = 0.3
LOSSES = ["grpo", "dapo", "dr_grpo", "bnpo", "luspo", "sapo", "cispo", "vespo"]


def log_prob(model, prompt, ids):
    """log π(ids | prompt) by the model's own logits."""
    logits = model(torch.tensor([[prompt, *ids]])).logits[0].log_softmax(-1)
    return sum(logits[k, token] for k, token in enumerate(ids))


def distinct(prompt, length=2):
    return [list(ids) for ids in dict.fromkeys(map(tuple, completions_of(prompt, length)))]


def expected_rewards(model, length=2):
    """E_{y∼π} r(x, y) of each prompt, differentiable, as the sum over all completions."""
    return torch.stack(
        [
            sum(log_prob(model, x, ids).exp() * reward_of(x, ids) for ids in distinct(x, length))
            for x in range(FIRST, FIRST + PROMPTS)
        ]
    )


def gradient(value, model):
    found = torch.autograd.grad(value, list(model.parameters()), allow_unused=True, retain_graph=True)
    return torch.cat(
        [
            (torch.zeros_like(p) if g is None else g).flatten()
            for g, p in zip(found, model.parameters(), strict=True)
        ]
    )


def worst_weights(scores, **settings):
    """q of mean rewards; `solve_dual` takes log-likelihoods, and answers alike wherever zero is."""
    return klball.solve_dual(scores.detach() - scores.detach().max(), **settings).weights


def states(length=2):
    """previous word → how often a token of a completion is predicted from it, over the four prompts."""
    table, visits = probabilities(), torch.zeros(len(WORDS), dtype=torch.float64)
    for prompt in range(FIRST, FIRST + PROMPTS):
        visits[prompt] += 1
        if length == 2:
            visits[2:4] += table[prompt, 2:4]
    return visits


def rows_of(model):
    """log π(· | previous), [words, words], differentiable."""
    return model(torch.arange(len(WORDS))[:, None]).logits[:, 0].log_softmax(-1)


def close(found, exact):
    return float((found - exact).norm() / exact.norm()) < 1e-6


def test_the_enumeration_is_the_policy():
    model = toy_model()
    for prompt in range(FIRST, FIRST + PROMPTS):
        counts = [completions_of(prompt).count(ids) / G for ids in distinct(prompt)]
        exact = [log_prob(model, prompt, ids).exp().item() for ids in distinct(prompt)]
        assert counts == pytest.approx(exact, abs=1e-6) and sum(counts) == 1


@pytest.mark.parametrize("length", [1, 2])
@pytest.mark.parametrize(
    ("settings", "call"),
    [
        (dict(radius=RADIUS, max_weight=None), dict()),
        (dict(radius=RADIUS, max_weight=1.5), dict(max_weight=1.5)),
        (dict(radius=RADIUS, max_weight=None, direction="optimistic"), None),
    ],
)
def test_gradient_of_the_worst_case_reward(length, settings, call, tmp_path):
    trainer, recorder = toy_trainer(tmp_path, length=length, max_steps=2, shrinkage=0.0, **settings)
    trainer.train()
    model = toy_model()
    rewards = expected_rewards(model, length)
    q = worst_weights(-rewards if call is None else rewards, epsilon=RADIUS, **(call or {}))
    for step, weights in enumerate([torch.full((PROMPTS,), 1 / PROMPTS), q]):
        exact = -gradient((weights * rewards).sum(), model) / 2  # dr_grpo divides by max_completion_length
        assert close(recorder.steps[step], exact)
    last = trainer.accountant.history[-1]
    assert last["worst_case_reward"] == pytest.approx(float((q * rewards.detach()).sum()))
    assert last["mean_reward"] == pytest.approx(float(rewards.mean()))
    assert last["max_weight"] == pytest.approx(float(q.max()) * PROMPTS)


def test_gradient_over_groups_of_prompts(tmp_path):
    more = dict(radius=0.2, over="group", group_column="kind", max_weight=None, max_steps=2)
    trainer, recorder = toy_trainer(tmp_path, **more)
    trainer.train()
    model = toy_model()
    rewards = expected_rewards(model).view(2, 2).mean(0)  # kinds alternate
    q = worst_weights(rewards, epsilon=0.2)
    assert close(recorder.steps[1], -gradient((q * rewards).sum(), model) / 2)


def test_weights_are_of_before_the_prompts_own_new_rewards(tmp_path):
    calls = []

    def turning(prompts, completion_ids, **columns):
        calls.append(1)
        rewards = toy_reward(prompts, completion_ids)
        return [1 - r for r in rewards] if len(calls) == 2 else rewards

    settings = dict(radius=RADIUS, max_weight=None, max_steps=2, shrinkage=0.0, reward_funcs=turning)
    trainer, recorder = toy_trainer(tmp_path, **settings)
    trainer.train()
    model = toy_model()
    rewards = expected_rewards(model)
    q = worst_weights(rewards, epsilon=RADIUS)  # not of 1 − r
    assert close(recorder.steps[1], gradient((q * rewards).sum(), model) / 2)


def with_reference(folder, **more):
    """A run whose reference differs from its policy."""
    reference = toy_model(noise=0.5)
    reference.save_pretrained(folder / "reference")
    model = toy_model()
    model.config._name_or_path = str(folder / "reference")
    return toy_trainer(folder / "run", model, reward_funcs=lambda prompts, **_: [0.0] * len(prompts), **more)


@pytest.mark.parametrize("length", [1, 2])
def test_gradient_of_the_kl_to_the_reference(length, tmp_path):
    """Of Σ_s d(s) KL(π(·|s) ‖ π_ref(·|s)), d the visits under the policy that sampled: with one token, of
    the KL itself."""
    trainer, recorder = with_reference(tmp_path, length=length, beta=0.5, radius=0)
    trainer.train()
    model, reference = toy_model(), rows_of(toy_model(noise=0.5)).detach()
    own = rows_of(model)
    kl = (own.exp() * (own - reference)).sum(1)
    assert close(recorder.steps[0], 0.5 * gradient((states(length) * kl).sum(), model) / PROMPTS / 2)
    logged = (states(length) * kl).sum() / states(length).sum()
    assert trainer.state.log_history[0]["kl"] == pytest.approx(logged.item(), rel=1e-4)


def test_the_bonus_raises_entropy(tmp_path):
    trainer, recorder = toy_trainer(
        tmp_path, reward_funcs=lambda prompts, **_: [0.0] * len(prompts), entropy_coef=0.1, radius=0
    )
    trainer.train()
    model = toy_model()

    def entropy():
        own = rows_of(model)
        return (states() * -(own.exp() * own).sum(1)).sum() / states().sum()

    assert close(recorder.steps[0], -0.1 * gradient(entropy(), model))
    before = float(entropy())
    with torch.no_grad():
        start = 0
        for parameter in model.parameters():
            parameter.sub_(recorder.steps[0][start : start + parameter.numel()].view_as(parameter))
            start += parameter.numel()
    assert float(entropy()) > before


class Nudge(TrainerCallback):
    """Moves the policy after the first step, so that ratios differ from 1 in the second."""

    def on_step_end(self, args, state, control, model=None, **kwargs):
        generator = torch.Generator().manual_seed(state.global_step)
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.05 * torch.randn(p.shape, generator=generator, dtype=p.dtype))


def step_with(weights, folder, loss_type):
    more = dict(epsilon_high=5.0) if loss_type == "cispo" else {}
    trainer, recorder = toy_trainer(
        folder, loss_type=loss_type, max_steps=2, num_iterations=2, radius=0, **more
    )
    trainer.accountant.units.density = lambda ledger, found: weights.double()
    trainer.begin_training = lambda: None  # keeps the density
    trainer.add_callback(Nudge())
    trainer.train()
    return recorder.steps


@pytest.mark.parametrize("loss_type", LOSSES)
def test_weighing_advantages_weighs_the_losses_of_prompts(loss_type, tmp_path):
    weights = torch.linspace(0.2, 1.8, PROMPTS)
    together = step_with(weights, tmp_path, loss_type)
    single = [step_with(row, tmp_path, loss_type) for row in torch.eye(PROMPTS)]
    for step in (0, 1):
        parts = sum(w * gradients[step] for w, gradients in zip(weights, single, strict=True))
        assert close(parts, together[step])
    assert not close(together[0], together[1])


@pytest.mark.parametrize("loss_type", LOSSES)
def test_which_losses_do_not_depend_on_batching(loss_type, tmp_path):
    """As `departures` says: a micro-batch's token mean does, the others do not."""
    found = []
    for batch, accumulation in ((64, 1), (16, 4), (8, 8)):
        more = dict(epsilon_high=5.0) if loss_type == "cispo" else {}
        cut = dict(per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation)
        trainer, recorder = toy_trainer(
            tmp_path, radius=RADIUS, loss_type=loss_type, max_steps=2, **cut, **more
        )
        trainer.train()
        found.append(recorder.steps[1])
    same = [close(other, found[0]) for other in found[1:]]
    assert same == ([False, False] if loss_type == "bnpo" else [True, True])
    said = any("micro-batch" in line for line in trainer.args.departures())
    assert said == (loss_type == "bnpo")


@pytest.mark.parametrize("settings", [{}, dict(beta=0.1, num_iterations=2, scale_rewards="group")])
def test_radius_0_is_stock_trl_to_the_bit(settings, tmp_path):
    toy_model(noise=0.5).save_pretrained(tmp_path / "reference")
    runs = []
    for stock in (True, False):
        model = toy_model()
        model.config._name_or_path = str(tmp_path / "reference")
        more = {} if stock else dict(radius=0.0)
        batches = dict(per_device_train_batch_size=8, gradient_accumulation_steps=4, num_generations=8)
        trainer, recorder = toy_trainer(
            *(tmp_path / "run", model, stock),
            **(batches | settings | more | dict(learning_rate=0.01, max_steps=6)),
            enumerated=False,
            shuffle_dataset=True,
        )
        trainer.train()
        runs.append([*recorder.steps, *(p.detach().clone() for p in trainer.model.parameters())])
    assert len(runs[0]) == 6 + 3
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_a_prompt_without_any_reward_stays_unknown(tmp_path):
    def partly(prompts, completion_ids, **columns):
        rewards = toy_reward(prompts, completion_ids)
        return [None if p == "a" else r for p, r in zip(prompts, rewards, strict=True)]

    trainer, recorder = toy_trainer(tmp_path, radius=RADIUS, reward_funcs=partly, max_steps=2)
    trainer.train()
    ledger = trainer.accountant.ledger
    assert ledger.known.tolist() == [False, True, True, True]
    assert trainer.accountant.history[-1]["known_prompts"] == 0.75
    assert all(math.isfinite(float(g.norm())) for g in recorder.steps)


def test_an_infinite_reward_is_refused(tmp_path):
    trainer, _ = toy_trainer(
        tmp_path, radius=0.0, reward_funcs=lambda prompts, **_: [math.inf] * len(prompts)
    )
    with pytest.raises(ValueError, match="reward '<lambda>' is infinite at optimizer step 1"):
        trainer.train()


def test_prompts_repeated_by_the_sampler_are_one_unit(tmp_path):
    trainer, _ = toy_trainer(tmp_path, radius=RADIUS, num_iterations=3, max_steps=6)
    trainer.train()
    assert [row["step"] for row in trainer.accountant.history] == [1, 4]
    exact = expected_rewards(toy_model()).detach()
    assert torch.allclose(trainer.accountant.ledger.entries["score"] + 0.0, exact)
    assert prompts()["prompt"][:] == WORDS[FIRST:]
