"""RobustGRPOConfig's refusals and presets, what it says of departures, and the ledger of mean rewards."""

import logging
import math

import pytest
import torch
from datasets import Dataset

from klball import Empirical, KLBall, LastNumber, RobustGRPOConfig, RobustSFTConfig
from klball.training.rl.reward_ledger import RewardLedger, group_statistics
from toy_policy import G, prompts, toy_trainer


def config(**more):
    return RobustGRPOConfig(output_dir="o", use_cpu=True, bf16=False, **more)


def asked(*own):
    return Dataset.from_dict({"prompt": own})


def test_the_set_of_the_defaults():
    assert config().ambiguity_set() == KLBall(0.05, 4.0)
    assert config(radius=0).ambiguity_set() == Empirical()
    assert config(epsilon=0.3).ambiguity_set() == KLBall(0.05, 4.0)  # the clip


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (dict(over="tokens"), "over must be one of prompt, group"),
        (dict(over="group"), "group_column go together"),
        (dict(group_column="kind"), "group_column go together"),
        (dict(preset="trpo"), "preset must be one of ppo"),
        (dict(reweight="static"), "reweight has no effect"),
        (dict(rescore_steps=3), "rescore_steps has no effect"),
        (dict(radius=-1.0), "radius"),
        (dict(radius=math.nan), "radius"),
        (dict(max_weight=0.5), "max_weight"),
        (dict(shrinkage=-1.0), "shrinkage"),
        (dict(shrinkage=2.0, radius=0.0), "shrinkage has no effect without an adversary"),
        (dict(epsilon_warmup=None), "epsilon_warmup must be a share"),
        (dict(epsilon_warmup=0.1, radius=0.0), "epsilon_warmup needs a radius"),
        (dict(ambiguity="cvar", alpha=0.5, radius=0.1), "radius has no effect with ambiguity='cvar'"),
        (dict(gae_lambda=0.5), "gae_lambda needs critic=True"),
        (dict(gae_gamma=0.5), "gae_gamma needs critic=True"),
        (dict(value_clip=0.1), "value_clip needs critic=True"),
        (dict(critic_learning_rate=0.1), "critic_learning_rate needs critic=True"),
        (dict(critic=True, gae_lambda=1.5), "gae_lambda"),
        (dict(critic=True, scale_rewards="group"), "scale_rewards has no effect with critic=True"),
        (
            dict(critic=True, multi_objective_aggregation="normalize_then_sum"),
            "multi_objective_aggregation has no effect with critic=True",
        ),
        (dict(max_completion_length=None), "max_completion_length must be at least 1, not None"),
        (
            dict(loss_type="vespo", importance_sampling_level="sequence"),
            "importance_sampling_level has no effect without a loss_type that",
        ),
    ],
)
def test_settings_that_are_refused(settings, said):
    with pytest.raises(ValueError, match=said) as caught:
        config(**settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            dict(train_dataset=[{"prompt": "a"}]),
            "a batch of rollouts takes . prompts, and train_dataset has 1",
        ),
        (
            dict(train_dataset="rows.jsonl"),
            r"train_dataset must be a datasets.Dataset, not str: read it with",
        ),
        (dict(train_dataset={"a": [1]}), r"train_dataset is split \(a\): give one of them"),
        (dict(radius=0.0, over="group", group_column="kind"), "group_column has no effect without"),
        (dict(over="group", group_column="sort"), "no column 'sort'"),
        (dict(ambiguity=3), "is no ambiguity set"),
        (dict(metric_for_best_model="eval_cvar"), "have no worst case; name eval_reward"),
        (dict(eval_dataset=Dataset.from_dict({"x": ["a"]})), "eval_dataset has no column 'prompt'"),
        (
            dict(
                train_dataset=prompts().add_column("answer", ["1"] * 4),
                eval_dataset={"own": prompts()},
                reward_funcs=LastNumber(),
            ),
            "eval_dataset 'own': the reward needs a column 'answer'",
        ),
        (dict(reward_funcs=LastNumber()), "train_dataset: the reward needs a column 'answer'"),
        (
            dict(reward_funcs=LastNumber("kind")),
            r"train_dataset: row 1 \(counted from 1\), kind: the reward needs numbers",
        ),
        (dict(train_dataset=asked("a", "", "c", "d")), r"train_dataset: row 2 .*, prompt: '' is no prompt"),
        (dict(train_dataset=asked([], [], [], [])), r"train_dataset: row 1 .*, prompt: \[\] is no prompt"),
        (dict(train_dataset=asked("a", "b", None, "d")), r"row 3 .*, prompt: None is no prompt"),
        (dict(train_dataset=asked(1, 2, 3, 4)), r"row 1 .*, prompt: 1 is no prompt"),
        (dict(eval_dataset=asked("a", "")), r"eval_dataset: row 2 .*, prompt: '' is no prompt"),
        (dict(num_generations=8), "a batch of rollouts takes 8 prompts, and train_dataset has 4"),
    ],
)
def test_what_a_trainer_refuses(more, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        toy_trainer(tmp_path, **more)


def test_another_configuration_is_refused(tmp_path):
    from klball import RobustGRPOTrainer

    with pytest.raises(ValueError, match="args must be a RobustGRPOConfig, not RobustSFTConfig"):
        RobustGRPOTrainer("none", [], RobustSFTConfig(output_dir="o", use_cpu=True, bf16=False))


def test_the_preset_fills_what_was_left_at_its_default():
    chosen = config(preset="ppo")
    found = [getattr(chosen, n) for n in ("num_iterations", "epsilon", "beta", "entropy_coef")]
    assert found == [4, 0.2, 0.05, 0.01] and chosen.disable_dropout
    kept = config(preset="ppo", beta=0.2, num_iterations=2)
    assert (kept.beta, kept.num_iterations, kept.entropy_coef) == (0.2, 2, 0.01)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (dict(), []),
        (dict(loss_type="grpo"), []),
        (dict(epsilon=0.05), ["TRL's clip of the ratio"]),
        (dict(epsilon=0.3, radius=0.1), []),
        (dict(loss_type="bnpo"), ["micro-batch"]),
        (dict(loss_type="dapo"), ["tokens of a whole batch of rollouts"]),
        (dict(scale_rewards="group"), ["2·arcsin"]),
        (dict(scale_rewards="batch", loss_type="bnpo"), ["micro-batch", "2·arcsin"]),
        (dict(multi_objective_aggregation="normalize_then_sum"), ["worst-case reward is not"]),
        (dict(entropy_coef=0.1, gradient_accumulation_steps=2), ["entropy_coef"]),
    ],
)
def test_departures_are_said_in_a_line_each(settings, said, tmp_path, caplog):
    lines = config(**settings).departures()
    assert len(lines) == len(said) and all(w in line for w, line in zip(said, lines, strict=True))
    if settings == dict(loss_type="dapo"):
        with caplog.at_level(logging.WARNING, "klball"):
            toy_trainer(tmp_path, max_steps=2, **settings)
        assert lines[0] in [record.getMessage() for record in caplog.records]


def seen(rewards, shrinkage=None):
    """A ledger that has seen these rewards, (prompts, G)."""
    ledger = RewardLedger(len(rewards), shrinkage)
    ledger.record(torch.arange(len(rewards)), group_statistics(rewards), None)
    return ledger


def test_shrunken_rewards_follow_the_formula():
    rewards = torch.tensor([[0.0, 0, 0, 1], [1, 1, 1, 1], [0, 0, 1, math.nan]])
    ledger = seen(rewards, shrinkage=2.0)
    p, g = torch.tensor([0.25, 1.0, 1 / 3]).double(), torch.tensor([4.0, 4, 3]).double()
    expected = (g * p + 2 * p.mean()) / (g + 2)
    assert torch.allclose(ledger.scores()["score"], expected, rtol=1e-7)


@pytest.mark.parametrize("g", [4, 8])
def test_the_worst_case_of_shrunken_rewards_is_what_the_weights_truly_cost(g):
    """Uniform pass rates: κ = E[p(1−p)]/Var p = 2. The noise of p̂ inflates λ by √(1 + κ/G): 1.22, 1.12."""
    generator = torch.Generator().manual_seed(0)
    p = torch.rand(20_000, generator=generator)
    rewards = (torch.rand(20_000, g, generator=generator) < p[:, None]).float()
    ledger = seen(rewards)
    assert ledger.kappa == pytest.approx(2, rel=0.05)
    ball = KLBall(0.02)
    true = ball.solve({"score": p.double()}).dual.lambda_
    raw = ball.solve({"score": seen(rewards, 0.0).scores()["score"]})
    shrunk = ball.solve(ledger.scores())
    assert raw.dual.lambda_ / true == pytest.approx(math.sqrt(1 + 2 / g), rel=0.03)
    assert shrunk.dual.lambda_ / true == pytest.approx(1 / math.sqrt(1 + 2 / g), rel=0.03)
    cost = float((shrunk.weights * p.double()).sum())
    assert shrunk.worst_case == pytest.approx(cost, abs=0.003)
    assert raw.worst_case < cost - 0.01
    assert torch.allclose(shrunk.weights, raw.weights, rtol=1e-6)  # an affine map of all scores


def test_prompts_that_do_not_differ_weigh_the_same():
    same = torch.tensor([[0.0, 1, 0, 1], [1, 0, 0, 1], [0, 0, 1, 1]])
    ledger = seen(same)
    assert math.isinf(ledger.kappa)
    assert ledger.scores()["score"].unique().tolist() == [0.5]
    assert math.isinf(RewardLedger(3).kappa)  # nothing is known yet


def test_statistics_of_completions():
    rewards = torch.tensor([[0.1, 0.1, 0.1], [1.0, math.nan, 3.0], [math.nan] * 3, [2.0, math.nan, math.nan]])
    found = group_statistics(rewards)
    assert found["count"].tolist() == [3, 2, 0, 1]
    assert found["score"].tolist() == pytest.approx([0.1, 2, 0, 2])
    assert found["variance"].tolist() == [0, 2, 0, 0]


def test_the_first_prompts_that_come_again_tell_of_drift_and_of_no_offset():
    """shift ← gap/2 + pace: half of what few prompts show. All of it would be what dropout does."""
    ledger = RewardLedger(6, 0.0)
    whole = {"score": torch.full((6,), 0.5), "variance": torch.ones(6), "count": torch.full((6,), 8)}
    ledger.record(torch.arange(6), whole, None)
    again = {name: values[:2] for name, values in whole.items()} | {"score": torch.full((2,), 0.9)}
    ledger.record(torch.arange(2), again, KLBall(0.1).solve({"score": torch.rand(6).double()}))
    pace = float(ledger.drift.pace[0])
    assert 0 < pace <= 0.04 + 1e-9 and float(ledger.drift.offset[0]) == 0
    expected = [0.9 + pace] * 2 + [0.5 + 0.2 + pace] * 4
    assert ledger.scores()["score"].tolist() == pytest.approx(expected)


def test_a_ledger_is_kept_and_read():
    ledger = seen(torch.rand(5, 4))
    again = RewardLedger(5)
    again.load(ledger.tensors())
    assert torch.equal(again.scores()["score"], ledger.scores()["score"]) and again.kappa == ledger.kappa


def test_a_prompt_that_leaves_no_room_for_a_completion_is_refused(tmp_path):
    """The toy holds 32,768 positions: the second prompt alone fills them."""
    data = Dataset.from_list([{"prompt": "a"}, {"prompt": "b " * 32_767}, {"prompt": "c"}, {"prompt": "d"}])
    with pytest.raises(ValueError, match=r"row 2: a prompt of 32767 tokens .* exceed the 32768"):
        toy_trainer(tmp_path, train_dataset=data)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (dict(max_steps=1), "no effect: a prompt is weighed from its second visit on"),
        (dict(max_steps=3, num_iterations=3), "ends after 1 of the 1 batches of an epoch"),
        (dict(max_steps=2, per_device_train_batch_size=2 * G), "ends after 2 of the 2 batches"),
        (dict(max_steps=-1, num_train_epochs=1), "ends after 1 of the 1 batches"),
        (dict(over="group", group_column="kind"), "a group is weighed from the second batch of rollouts on"),
        (dict(max_steps=2), None),
        (dict(max_steps=4, num_iterations=3), None),
        (dict(max_steps=3, per_device_train_batch_size=2 * G), None),
        (dict(max_steps=2, per_device_train_batch_size=2 * G, over="group", group_column="kind"), None),
        (dict(max_steps=-1, num_train_epochs=1.5), None),
        (dict(max_steps=1, radius=0.0), None),
    ],
)
def test_weights_that_stay_even_to_the_end_are_refused(more, said, tmp_path):
    """And where they are not refused, they do not."""
    if said:
        with pytest.raises(ValueError, match=said) as caught:
            toy_trainer(tmp_path, **more)
        assert "\n" not in str(caught.value)
        return
    trainer, _ = toy_trainer(tmp_path, shrinkage=None if more.get("radius") == 0 else 0.0, **more)
    trainer.train()
    history = trainer.accountant.history
    assert any(row["max_weight"] > 1 for row in history) == (trainer.args.radius > 0)
