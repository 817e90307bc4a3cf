"""Drift is not hardness: the ledger's λ and weights against an exact re-scoring at every step."""

import json
import math
import os
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig

from gradient_grid import quiet
from klball import KLBall, RobustSFTConfig, RobustSFTTrainer
from klball.data.rows import load_rows, to_trl_format
from klball.evaluation.models import load_model
from klball.training.accountant import Accountant

REAL = Path(os.environ.get("KLBALL_REAL_DATA", Path(__file__).parents[2] / "shared" / "realdata"))
STORIES, PROBLEMS = REAL / "models" / "stories260K", REAL / "data" / "gsm8k-train-3000.jsonl"
EPSILONS = (0.05, 0.3, 1.0, 3.0)


def tolerance(epsilon: float) -> float:
    return 0.05 if epsilon <= 1 else 0.1


class World:
    """Scores of a model that learns 640 samples: as a real run has them, but known at every step.

    All get easier by `drift` nats, fast at first, and more alike; each goes its own way by a little; and
    one that was trained on gets easier by `lift` more. `dropout` makes scores in training differ.
    """

    def __init__(self, drift: float, lift: float, dropout: float = 0.0):
        self.drift, self.lift, self.dropout, self.n, self.step = drift, lift, dropout, 640, 0
        self.generator = torch.Generator().manual_seed(0)
        epochs = [torch.randperm(self.n, generator=self.generator).split(16) for _ in range(2)]
        self.order = [index for epoch in epochs for index in epoch]
        self.own = -self.noise().mul(0.4).exp()

    def noise(self) -> torch.Tensor:
        return torch.randn(self.n, dtype=torch.float64, generator=self.generator)

    def scores(self) -> torch.Tensor:
        left = math.exp(-self.step / 8)
        return -2 - self.drift * left + self.own * (0.6 + 0.1 * self.drift * left)

    def pace(self) -> float:
        return 1 - self.step / len(self.order)  # the learning rate falls

    def train(self, index: torch.Tensor) -> None:
        self.own += 0.01 * self.pace() * self.noise()
        self.own[index] += self.lift * self.pace()
        self.step += 1


def replayed(world: World, ball: KLBall, on_demand: bool = True) -> tuple[list[float], torch.Tensor, int]:
    """Mean weights / exact ones by epoch; λ / the exact one after a tenth of the run; re-scorings."""
    accountant = Accountant(ball, world.scores(), None, None, relax=True, frozen=False)
    half, rescores = len(world.order) // 2, 0
    ours, exact, lambdas = [], [], []
    for step, index in enumerate(world.order):
        fresh = world.scores()
        if step == half or (on_demand and accountant.drift.demands_rescoring(half)):
            accountant.rewrite(fresh.clone(), None)
            rescores += 1
        accountant.begin_step()
        truth = ball.solve(fresh)
        trained_on = fresh[index] + world.dropout
        ours.append(float(accountant.density(index, trained_on, None).mean()))
        exact.append(float(truth.weights[index].mean()) * world.n)
        lambdas.append(accountant.solve().lambda_ / truth.lambda_)
        accountant.record(index, trained_on, None, world.pace())
        world.train(index)
    epochs = [sum(ours[part]) / sum(exact[part]) for part in (slice(half), slice(half, None))]
    return epochs, torch.tensor(lambdas[len(lambdas) // 10 :]), rescores


@pytest.mark.parametrize("epsilon", EPSILONS)
@pytest.mark.parametrize(("drift", "lift"), [(5.0, 0.1), (0.05, 0.02)], ids=["strong", "mild"])
def test_mean_weights_are_those_of_a_rescoring_at_every_step(drift, lift, epsilon):
    epochs, lambdas, rescores = replayed(World(drift, lift), KLBall(epsilon))
    assert epochs == pytest.approx([1, 1], abs=tolerance(epsilon))
    assert lambdas.quantile(0.05) > 0.85 and lambdas.quantile(0.95) < 1.15
    assert rescores <= (20 if drift > 1 else 1)  # of 80 steps; one an epoch at no drift
    if drift > 1 and epsilon > 0.05:  # what the demand is for
        without, _, _ = replayed(World(drift, lift), KLBall(epsilon), on_demand=False)
        assert abs(without[0] - 1) > tolerance(epsilon)


@pytest.mark.parametrize("epsilon", EPSILONS)
def test_dropout_is_not_drift(epsilon):
    """Scores in training are lower by a constant: no re-scoring could help, and weights stay right."""
    epochs, _, rescores = replayed(World(0.05, 0.02, dropout=-0.3), KLBall(epsilon))
    assert rescores <= 2
    # only the first step after a re-scoring does not know yet
    assert epochs == pytest.approx([1, 1], abs=0.1 if epsilon <= 1 else 0.5)


def test_shift_follows_a_common_drift():
    n = 400
    truth = torch.randn(n, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) - 4
    accountant = Accountant(KLBall(0.05), truth.clone(), None, None, relax=True, frozen=False)
    naive = truth.clone()
    order = torch.randperm(n, generator=torch.Generator().manual_seed(1))
    for step in range(50):
        batch = order[8 * step : 8 * step + 8]
        accountant.record(batch, truth[batch], None)
        naive[batch] = truth[batch]
        truth = truth + 0.02  # every sample becomes easier at the same pace
    shifted, _ = accountant.scores()
    assert (shifted - truth).abs().max() < 0.1
    assert (naive - truth).abs().max() > 0.4


def stories():
    if not STORIES.is_dir() or not PROBLEMS.is_file():
        pytest.skip(f"no {STORIES}: set KLBALL_REAL_DATA")
    rows = [json.loads(line) for line in PROBLEMS.read_text().splitlines()[:320]]
    return load_model(str(STORIES)), Dataset.from_list(rows)


def tiny(data: str, rows: int):
    return load_model("klball/tiny"), load_rows(data, "train").select(range(rows))


CASES = {  # model and data; more settings; adapters; steps between exact re-scorings
    "strong": (stories, {"learning_rate": 2e-3}, False, 6),
    "strong-tiny": (lambda: tiny("stdlib-docs", 160), {"learning_rate": 5e-4}, False, 4),
    "mild": (lambda: tiny("stdlib-docs", 320), {"learning_rate": 1e-3}, True, 8),
}
GRID = [(case, epsilon, None) for case in CASES for epsilon in EPSILONS] + [("mild", 0.05, 0)]


def watched_run(case: str, epsilon: float, rescore_steps: int | None, folder: str):
    """The history by step, and (λ, mean weight) by exact re-scoring at some steps."""
    load, settings, lora, every = CASES[case]
    (model, tokenizer), data = load()
    exact: dict[int, tuple[float, float]] = {}

    class Watched(RobustSFTTrainer):
        def get_batch_samples(self, *args):
            batches, number = super().get_batch_samples(*args)
            if self.state.global_step % every == every - 1:
                solution = KLBall(epsilon).solve(self.score_dataset(self.samples)["log_likelihood"])
                index = torch.cat([batch["sample_index"] for batch in batches])
                weight = float(solution.weights[index].mean()) * len(self.samples)
                exact[self.state.global_step + 1] = (solution.lambda_, weight)
            return batches, number

    settings = {"num_train_epochs": 2, "optim": "adamw_torch", "max_length": 512, **settings}
    settings |= {"lr_scheduler_type": "linear", "train_sampling_strategy": "random"}
    adapters = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = Watched(
        model,
        RobustSFTConfig(epsilon=epsilon, rescore_steps=rescore_steps, **quiet(folder, **settings)),
        train_dataset=to_trl_format(data, conversational=bool(tokenizer.chat_template)),
        processing_class=tokenizer,
        peft_config=adapters if lora else None,
    )
    trainer.train()
    return {step["step"]: step for step in trainer.accountant.history}, exact


@pytest.mark.slow
@pytest.mark.parametrize(("case", "epsilon", "rescore_steps"), GRID)
def test_a_real_run_keeps_lambda_and_weights(case, epsilon, rescore_steps, tmp_path):
    ours, exact = watched_run(case, epsilon, rescore_steps, str(tmp_path))
    half = len(ours) // 2
    for epoch in ([s for s in exact if s <= half], [s for s in exact if s > half]):
        wanted = sum(exact[s][1] for s in epoch)
        assert sum(ours[s]["mean_weight"] for s in epoch) == pytest.approx(wanted, rel=tolerance(epsilon))
    ratios = torch.tensor([ours[s]["lambda"] / exact[s][0] for s in exact if s > len(ours) // 10])
    assert ratios.median() == pytest.approx(1, abs=0.15 if rescore_steps is None else 0.25)
