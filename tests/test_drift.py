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
from klball.models.loading import load_model
from ledgers import accountant_of

REAL = Path(os.environ.get("KLBALL_REAL_DATA", Path(__file__).parents[2] / "shared" / "realdata"))
STORIES, PROBLEMS = REAL / "models" / "stories260K", REAL / "data" / "gsm8k-train-3000.jsonl"
EPSILONS = (0.05, 0.3, 1.0, 3.0)
REGULAR = {0.05: 1, 0.3: 9, 1.0: 19, 3.0: 19}  # re-scorings in two epochs that no drift demands


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

    def train(self, index: torch.Tensor) -> None:
        pace = 1 - self.step / len(self.order)  # the learning rate falls
        self.own += 0.01 * pace * self.noise()
        self.own[index] += self.lift * pace
        self.step += 1


def replayed(world, ball: KLBall, an_epoch_only: bool = False) -> tuple[list[float], torch.Tensor, int]:
    """Mean weights / exact ones by epoch; λ / the exact one after a tenth of the run; re-scorings."""
    accountant = accountant_of(ball, world.scores())
    half, rescores = len(world.order) // 2, 0
    ours, exact, lambdas = [], [], []
    for step, index in enumerate(world.order):
        fresh = world.scores()
        if step == half if an_epoch_only else accountant.ledger.drift.demands_rescoring(half):
            accountant.rewrite({"score": fresh.clone()})
            rescores += 1
        accountant.begin_step()
        truth = ball.solve({"score": fresh})
        trained_on = fresh[index] + world.dropout
        ours.append(float(accountant.density(index, {"score": trained_on}).mean()))
        exact.append(float(truth.weights[index].mean()) * world.n)
        lambdas.append(accountant.solve().dual.lambda_ / (truth.dual.lambda_ or math.nan))
        accountant.record(index, {"score": trained_on})
        world.train(index)
    epochs = [sum(ours[part]) / sum(exact[part]) for part in (slice(half), slice(half, None))]
    return epochs, torch.tensor(lambdas[len(lambdas) // 10 :]), rescores


@pytest.mark.parametrize("epsilon", EPSILONS)
@pytest.mark.parametrize(
    ("drift", "lift"), [(5.0, 0.1), (0.05, 0.02), (0.05, 0.2)], ids=["strong", "mild", "learnt by heart"]
)
def test_mean_weights_are_those_of_a_rescoring_at_every_step(drift, lift, epsilon):
    epochs, lambdas, rescores = replayed(World(drift, lift), KLBall(epsilon))
    assert epochs == pytest.approx([1, 1], abs=tolerance(epsilon))
    assert lambdas.quantile(0.05) > 0.85 and lambdas.quantile(0.95) < 1.15
    if drift < 1:
        assert rescores == REGULAR[epsilon]
    else:
        assert REGULAR[epsilon] < rescores <= 30  # of 80 steps
    if epsilon > 0.1 and max(drift, 10 * lift) > 1:  # what more than one an epoch is for
        without, _, _ = replayed(World(drift, lift), KLBall(epsilon), an_epoch_only=True)
        assert abs(without[0] - 1) > tolerance(epsilon)


@pytest.mark.parametrize(("cap", "rescores"), [(1.02, 1), (1.2, 5), (3.0, 19)])
def test_rescorings_go_by_how_far_the_weights_are_from_even_not_by_the_radius(cap, rescores):
    epochs, _, counted = replayed(World(0.05, 0.02), KLBall(3.0, max_weight=cap))
    assert counted == rescores
    assert epochs == pytest.approx([1, 1], abs=0.02)


@pytest.mark.parametrize("epsilon", EPSILONS)
def test_dropout_is_not_drift(epsilon):
    """Scores in training are lower by a constant: no re-scoring could help, and weights stay right."""
    epochs, _, rescores = replayed(World(0.05, 0.02, dropout=-0.3), KLBall(epsilon))
    assert rescores == REGULAR[epsilon]
    assert epochs == pytest.approx([1, 1], abs=0.05)  # only the first step does not know of it


def test_shift_follows_a_common_drift():
    n = 400
    truth = torch.randn(n, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) - 4
    accountant = accountant_of(KLBall(0.05), truth.clone())
    naive = truth.clone()
    order = torch.randperm(n, generator=torch.Generator().manual_seed(1))
    for step in range(50):
        batch = order[8 * step : 8 * step + 8]
        accountant.record(batch, {"score": truth[batch]})
        naive[batch] = truth[batch]
        truth = truth + 0.02  # every sample becomes easier at the same pace
    shifted = accountant.ledger.scores()["score"]
    assert (shifted - truth).abs().max() < 0.1
    assert (naive - truth).abs().max() > 0.4


def lora() -> LoraConfig:
    return LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")


def stories():
    if not STORIES.is_dir() or not PROBLEMS.is_file():
        pytest.skip(f"no {STORIES}: set KLBALL_REAL_DATA")
    rows = [json.loads(line) for line in PROBLEMS.read_text().splitlines()[:320]]
    return load_model(str(STORIES)), Dataset.from_list(rows)


class Recording:
    """All true scores of a real run that scores them anew at every step, in place of a `World`."""

    dropout = 0.0

    def __init__(self, source, folder: str, epsilon: float = 0.3, rate: float = 2e-3, peft_config=None):
        (model, tokenizer), data = source
        self.order: list[torch.Tensor] = []
        self.truth: list[torch.Tensor] = []
        recording = self

        class Recorded(RobustSFTTrainer):
            def get_batch_samples(self, *args):
                batches, number = super().get_batch_samples(*args)
                recording.order.append(torch.cat([batch["sample_index"] for batch in batches]))
                recording.truth.append(self.accountant.ledger.entries["score"].clone())
                return batches, number

        settings = dict(num_train_epochs=2, learning_rate=rate, lr_scheduler_type="linear", max_length=512)
        settings |= dict(optim="adamw_torch", train_sampling_strategy="random", max_grad_norm=1.0)
        trainer = Recorded(
            model,
            RobustSFTConfig(epsilon=epsilon, rescore_steps=1, **quiet(folder, **settings)),
            train_dataset=to_trl_format(data, conversational=bool(tokenizer.chat_template)),
            processing_class=tokenizer,
            peft_config=peft_config,
        )
        trainer.train()
        self.n, self.step = len(trainer.samples), 0

    def scores(self) -> torch.Tensor:
        return self.truth[self.step].clone()

    def train(self, index: torch.Tensor) -> None:
        self.step += 1


@pytest.fixture(scope="module")
def recorded_stories(tmp_path_factory):
    return Recording(stories(), str(tmp_path_factory.mktemp("stories")))


@pytest.fixture(scope="module")
def recorded_tiny(tmp_path_factory):
    source = load_model("klball/tiny"), load_rows("word-problems", "train").select(range(320))
    return Recording(source, str(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def recorded_docs(tmp_path_factory):
    source = load_model("klball/tiny"), load_rows("stdlib-docs", "train").select(range(320))
    return Recording(source, str(tmp_path_factory.mktemp("docs")), epsilon=1.0, rate=1e-3, peft_config=lora())


@pytest.mark.slow
@pytest.mark.parametrize("epsilon", EPSILONS)
def test_mild_drift_of_a_real_model(epsilon, recorded_docs):
    """LoRA, 8 samples a step, the loss from 3.9 to 3.5 in 80 steps: nothing is demanded."""
    recorded_docs.step = 0
    epochs, lambdas, rescores = replayed(recorded_docs, KLBall(epsilon))
    assert epochs == pytest.approx([1, 1], abs=tolerance(epsilon))
    assert lambdas.median() == pytest.approx(1, abs=0.1) and lambdas.quantile(0.05) > 0.85
    assert rescores == REGULAR[epsilon]
    if epsilon > 0.1:
        recorded_docs.step = 0
        without, _, _ = replayed(recorded_docs, KLBall(epsilon), an_epoch_only=True)
        assert abs(without[0] - 1) > tolerance(epsilon)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "epsilon"), [*(("recorded_stories", epsilon) for epsilon in EPSILONS), ("recorded_tiny", 0.3)]
)
def test_strong_drift_of_a_real_model(name, epsilon, request):
    """Full fine-tuning, 8 samples a step, the loss from 7.1 to 2.5 (and 3.5 to .35) in 40 steps."""
    recording = request.getfixturevalue(name)
    recording.step = 0
    epochs, lambdas, rescores = replayed(recording, KLBall(epsilon))
    assert epochs == pytest.approx([1, 1], abs=tolerance(epsilon))
    assert lambdas.median() == pytest.approx(1, abs=0.1) and lambdas.quantile(0.05) > 0.8
    assert rescores <= 30  # of 80 steps
    recording.step = 0
    without, _, _ = replayed(recording, KLBall(epsilon), an_epoch_only=True)
    assert abs(without[0] - 1) > tolerance(epsilon)


@pytest.mark.slow
@pytest.mark.parametrize(("rescore_steps", "tolerance"), [(None, 0.15), (0, 0.25)])
def test_a_drifting_run_keeps_lambda_and_weights(rescore_steps, tolerance, tokenizer, tmp_path):
    """A real run on the embedded model, every step compared with an exact re-score of all samples."""

    class Watched(RobustSFTTrainer):
        def get_batch_samples(self, *args):
            batches, number = super().get_batch_samples(*args)
            if self.state.global_step % 6 == 5:
                exact = KLBall(0.05).solve(
                    {"score": self.score_dataset(self.train_dataset)["log_likelihood"]}
                )
                index = torch.cat([batch["sample_index"] for batch in batches])
                weight = float(exact.weights[index].mean()) * len(self.train_dataset)
                watched[self.state.global_step + 1] = (exact.dual.lambda_, weight)
            return batches, number

    watched: dict[int, tuple[float, float]] = {}
    data = to_trl_format(load_rows("stdlib-docs", "train").select(range(1_104)), conversational=True)
    settings = quiet(
        str(tmp_path),
        per_device_train_batch_size=16,
        num_train_epochs=2,
        learning_rate=1e-3,
        optim="adamw_torch",
    )
    trainer = Watched(
        load_model("klball/tiny")[0],
        RobustSFTConfig(epsilon=0.05, rescore_steps=rescore_steps, **settings),
        train_dataset=data,
        processing_class=tokenizer,
        peft_config=lora(),
    )
    trainer.train()
    ours = {step["step"]: step for step in trainer.accountant.history}
    late = [step for step in watched if step > len(ours) // 10]
    for step in late:
        assert ours[step]["lambda"] == pytest.approx(watched[step][0], rel=tolerance), step
    for epoch in (late[: len(late) // 2], late[len(late) // 2 :]):
        weights = [
            sum(pair) / len(epoch)
            for pair in zip(*((ours[step]["mean_weight"], watched[step][1]) for step in epoch), strict=True)
        ]
        assert weights[0] == pytest.approx(weights[1], rel=0.05)
