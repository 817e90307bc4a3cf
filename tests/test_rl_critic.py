"""The critic: exact advantages, and gradients of the policy that no value can bias."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from conftest import small_qwen
from klball.training.rl.critic import Critic, gae
from test_rl_gradients import close, expected_rewards, gradient
from test_rl_resumption import run
from toy_policy import FIRST, PROMPTS, WORDS, G, toy_model, toy_reward, toy_trainer

EXACT = dict(critic=True, gae_gamma=1.0, gae_lambda=1.0)


@pytest.mark.parametrize("gamma", [1.0, 0.9, 0.0])
@pytest.mark.parametrize("lambda_", [1.0, 0.5, 0.0])
def test_advantages_are_the_sum_of_the_formula(gamma, lambda_):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    rewards = torch.randn(3, generator=generator, dtype=torch.float64)
    lengths = [5, 2, 1]
    mask = torch.tensor([[int(t < n) for t in range(5)] for n in lengths])
    found = gae(rewards, values, mask, gamma, lambda_)
    for row, n in enumerate(lengths):
        v = [*values[row, :n].tolist(), 0.0]
        delta = [(rewards[row].item() if t == n - 1 else 0) + gamma * v[t + 1] - v[t] for t in range(n)]
        for t in range(5):
            wanted = sum((gamma * lambda_) ** k * delta[t + k] for k in range(n - t))
            assert float(found[row, t]) == pytest.approx(wanted if t < n else 0)


def exact_gradient():
    model = toy_model()
    return -gradient(expected_rewards(model).mean(), model) / 2


def test_a_critic_that_answers_the_group_mean_is_no_critic(tmp_path):
    """With γ = λ = 1: gradients of the run without one, on the first step and on weighed ones."""
    runs = []
    for more in ({}, EXACT):
        trainer, recorder = toy_trainer(tmp_path, radius=0.3, max_steps=2, **more)
        if more:
            means = expected_rewards(toy_model()).detach().repeat_interleave(G)
            trainer.critic.values = lambda batch, m=means: m[:, None].expand(batch["completion_ids"].shape)
        trainer.train()
        runs.append(recorder.steps)
    assert all(close(a, b) for a, b in zip(*runs, strict=True))
    assert not close(runs[0][0], runs[0][1])


def test_no_value_biases_the_policy(tmp_path):
    """At γ = λ = 1 any function of the state is a baseline: the enumerated gradient is exact."""
    trainer, recorder = toy_trainer(tmp_path, radius=0.0, **EXACT)
    with torch.no_grad():
        for parameter in trainer.critic.net.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, dtype=parameter.dtype))
    trainer.train()
    assert close(recorder.steps[0], exact_gradient())
    assert trainer.critic.net.head.weight.abs().sum() > 0


def test_values_are_of_the_state_before_a_token(tmp_path):
    """Changing a token changes the values after it only."""
    trainer, _ = toy_trainer(tmp_path, radius=0.0, **EXACT)
    net = trainer.critic.net
    with torch.no_grad():
        net.head.weight.normal_()
    ids = torch.tensor([[2, 3], [3, 3]])
    batch = {"prompt_ids": torch.tensor([[FIRST]] * 2), "completion_ids": ids}
    batch |= {name.replace("ids", "mask"): torch.ones_like(value) for name, value in batch.items()}
    values = net(batch)
    assert values.shape == (2, 2)
    assert values[0, 0] == values[1, 0] and values[0, 1] != values[1, 1]


def learned(folder, steps=60, **more):
    settings = dict(critic=True, critic_learning_rate=0.05, max_steps=steps, weight_decay=0.0)
    trainer, _ = toy_trainer(folder, **(settings | more))
    trainer.train()
    return trainer


def test_the_critic_learns_the_expected_rewards(tmp_path):
    trainer = learned(tmp_path, gae_lambda=1.0)
    batch = {"prompt_ids": torch.arange(FIRST, FIRST + PROMPTS)[:, None]}
    batch["completion_ids"] = torch.full((PROMPTS, 1), 2)
    batch |= {name.replace("ids", "mask"): torch.ones_like(value) for name, value in batch.items()}
    values = trainer.critic.values(batch)[:, 0]
    assert values.tolist() == pytest.approx(expected_rewards(toy_model()).tolist(), abs=0.05)
    logs = [row for row in trainer.state.log_history if "critic/loss" in row]
    assert logs[-1]["critic/loss"] < 0.5 * logs[0]["critic/loss"]
    assert logs[-1]["critic/explained"] > 0.4


def test_the_clip_holds_values_near_the_old_ones(tmp_path):
    """Tokens whose value went further than the clip, towards the return, have no gradient."""
    trainer, _ = toy_trainer(tmp_path, radius=0.0, critic=True, value_clip=0.1)
    critic = trainer.critic
    batch = {"prompt_ids": torch.tensor([[FIRST]]), "completion_ids": torch.tensor([[2]])}
    batch |= {name.replace("ids", "mask"): torch.ones_like(value) for name, value in batch.items()}
    batch |= {"returns": torch.ones(1, 1).double(), "judged": torch.ones(1, dtype=torch.bool)}
    for old, moves in ((-0.05, True), (-0.2, False), (0.0, True)):  # the net answers 0
        critic.optimizer.zero_grad()
        critic.accumulate({**batch, "values": torch.full((1, 1), old).double()}, 1)
        assert bool(critic.net.head.bias.grad.abs() > 0) == moves


def test_the_critic_does_not_depend_on_batching(tmp_path):
    nets = []
    for batch, accumulation in ((64, 1), (16, 4)):
        cut = dict(per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation)
        trainer = learned(tmp_path, steps=3, **cut)
        nets.append(torch.cat([p.detach().flatten() for p in trainer.critic.net.parameters()]))
    assert torch.allclose(*nets, atol=1e-9)


def test_completions_without_a_reward_teach_nothing(tmp_path):
    def partly(prompts, completion_ids, **columns):
        rewards = toy_reward(prompts, completion_ids)
        return [None if p == "a" else r for p, r in zip(prompts, rewards, strict=True)]

    trainer, recorder = toy_trainer(tmp_path, radius=0.0, reward_funcs=partly, **EXACT)
    trainer.train()
    model = toy_model()
    exact = -gradient(expected_rewards(model)[1:].sum() / PROMPTS, model) / 2
    assert close(recorder.steps[0], exact)
    assert WORDS[FIRST] == "a"


def test_a_critic_resumes_to_the_byte(tmp_path):
    settings = dict(critic=True, critic_learning_rate=0.01)
    _, recorder = run(tmp_path / "run", **settings)
    _, rest = run(tmp_path / "again", tmp_path / "run" / "checkpoint-4", **settings)
    assert len(rest.steps) == 4
    assert all(torch.equal(a, b) for a, b in zip(rest.steps, recorder.steps[4:], strict=True))
    for name in ("critic.safetensors", "model.safetensors"):
        one, other = (tmp_path / where / "checkpoint-8" / name for where in ("run", "again"))
        assert one.read_bytes() == other.read_bytes()
    run(tmp_path / "none")
    with pytest.raises(ValueError, match="of a run without critic=True"):
        run(tmp_path / "other", tmp_path / "none" / "checkpoint-4", **settings)


def test_adapters_are_refused(tmp_path):
    trainer, _ = toy_trainer(tmp_path, radius=0.0, critic=True)
    adapted = get_peft_model(small_qwen(40), LoraConfig(task_type="CAUSAL_LM"))
    with pytest.raises(ValueError, match="cannot follow an adapter"):
        Critic(adapted, trainer.args, trainer.accelerator)
