"""What the adversary makes of the samples: a table at any moment, and the files that every trainer leaves."""

import csv
import logging

import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset
from transformers import TrainerCallback

import preference_grid
from gradient_grid import quiet
from gradient_grid import trainer_for as sft_trainer
from klball import (
    CertaintyKLBall,
    ChiSquareBall,
    CVaR,
    KLBall,
    RobustGRPOConfig,
    RobustGRPOTrainer,
    RobustSFTConfig,
    RobustSFTTrainer,
    load_model,
    load_rows,
)
from klball.training import run as training_run
from klball.training.accountant import Accountant
from klball.training.ledger import Ledger
from klball.training.units import Units
from small_runs import train
from test_preference import small_gpt2

SLOW = pytest.mark.slow
FILES = ("top_weighted.csv", "history.parquet")


def rows_of(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def trainer_of(family, folder, **more):
    """A small one, over samples of which a step sees some."""
    if family == "sft":
        case = dict(objective="nll", ambiguity=KLBall(0.3))
        return sft_trainer(case, "8x1", str(folder), **more)[0]
    if family == "grpo":
        return grpo(folder, **more)
    case = dict(family=family, ambiguity=KLBall(0.3), own_start=family == "dpo")
    return preference_grid.trainer_for(case, "8x1", str(folder), **more)[0]


def grpo(folder, data=None, **more):
    def reward(completions, **columns):
        return [len(set(text)) / 10 for text in completions]

    settings = quiet(str(folder), per_device_train_batch_size=16, num_generations=4, max_completion_length=4)
    del settings["train_sampling_strategy"]
    data = data or Dataset.from_list([{"prompt": f"word {i}", "answer": str(i)} for i in range(6)])
    tokenizer = preference_grid.tokenizer()
    return RobustGRPOTrainer(
        small_gpt2(len(tokenizer)),
        reward,
        RobustGRPOConfig(**{**settings, "radius": 0.3, "beta": 0.0, **more}),
        train_dataset=data,
        processing_class=tokenizer,
    )


SCORES = {"sft": "log_likelihood", "dpo": "loss", "reward": "loss", "gdpo": "loss", "grpo": "mean_reward"}
TEXTS = {
    "sft": ["prompt", "answer"],
    "grpo": ["prompt", "answer"],
    "dpo": ["prompt", "chosen", "rejected"],
    "reward": ["prompt", "chosen", "rejected"],
    "gdpo": ["prompt", "belief", "chosen", "rejected"],
}


@pytest.mark.parametrize(
    "family", ["sft", "dpo", "grpo", *(pytest.param(f, marks=SLOW) for f in ("reward", "gdpo"))]
)
def test_a_trainer_leaves_its_weights_and_its_history(family, tmp_path):
    trainer = trainer_of(family, tmp_path, max_steps=2)
    trainer.train()
    name = SCORES[family]
    table = trainer.sample_weights()
    assert table.column_names == ["sample_id", "n_q", name] and len(table) == len(trainer.samples)
    assert sum(table["n_q"]) == pytest.approx(len(table))
    known = [row for row in table if row[name] is not None]
    order = sorted(known, key=lambda row: -row["n_q"])[:20]
    top = rows_of(tmp_path / "top_weighted.csv")
    assert [*top[0]] == ["sample_id", "n_q", name, *TEXTS[family]] and all(row["prompt"] for row in top)
    assert [{k: row[k] for k in table.column_names} for row in top] == [
        {k: str(v) for k, v in row.items()} for row in order
    ]
    hardest = (min if name != "loss" else max)(row[name] for row in known)
    if family != "gdpo":  # whose score over beliefs is not the loss
        assert order[0][name] == hardest
    assert [row["step"] for row in pq.read_table(tmp_path / "history.parquet").to_pylist()] == [1, 2]


def test_a_trainer_leaves_what_the_command_leaves(root, finished, tmp_path):
    model, tokenizer = load_model(str(root / "model"))
    settings = dict(max_steps=4, save_steps=2, per_device_train_batch_size=4, learning_rate=0.01)
    quiet = dict(report_to="none", logging_steps=1, disable_tqdm=True, gradient_checkpointing=False)
    config = RobustSFTConfig(str(tmp_path), lr_scheduler_type="constant", bf16=False, **settings, **quiet)
    data = load_rows(str(root / "rows.jsonl"))
    RobustSFTTrainer(model, config, train_dataset=data, processing_class=tokenizer).train()
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (finished / name).read_bytes()


# --- between steps ----------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [None, ["a", "b", "c"] * 4])
@pytest.mark.parametrize("start", [None, -0.7])
@pytest.mark.parametrize(
    "ambiguity", [KLBall(0.2), KLBall(0.2, max_weight=1.5), CVaR(0.4), ChiSquareBall(0.3)], ids=str
)
def test_weights_after_a_step_are_those_of_the_entries_as_they_are(ambiguity, start, groups):
    """A step makes samples known that its own answer does not know."""
    accountant = Accountant(ambiguity, Ledger(12, start=start), Units(groups=groups))
    for index in ([0, 1, 2, 3], [3, 4, 5, 6, 7]):
        accountant.begin_step()
        answer = accountant.solve()
        scores = -torch.tensor([1.3, 0.2, 2.1, 0.9, 1.7], dtype=torch.float64)[: len(index)]
        accountant.record(torch.tensor(index), {"score": scores})
        weights = accountant.weights()
        assert accountant.solve() is answer  # which stays
        entries, base = accountant.units.problem(accountant.ledger)
        expected = accountant.units.density(accountant.ledger, ambiguity.solve(entries, base).weights)
        assert weights.tolist() == pytest.approx((expected / expected.sum()).tolist())
        assert len(accountant.group_rows()) == (0 if groups is None else 3)


def test_weights_without_a_last_scoring(tmp_path):
    moving = dict(learning_rate=0.05, epsilon_warmup=0.0, rescore_steps=0)
    trainer = trainer_of("dpo", tmp_path, max_steps=2, **moving)
    trainer.train()
    assert 1 < trainer.accountant.ledger.known.sum() <= 8
    assert sum(row is not None for row in trainer.sample_weights()["loss"]) <= 8


class Looking(TrainerCallback):
    def __init__(self):
        self.trainer = self.tables = None

    def look(self, *args, **kwargs):
        self.trainer.sample_weights()

    on_train_begin = on_step_begin = on_step_end = on_log = look


@pytest.mark.parametrize(
    "case", ["infeasible", *(pytest.param(c, marks=SLOW) for c in ("ball", "groups", "dpo"))]
)
def test_looking_changes_nothing(case, tmp_path):
    """Neither the weights, to the bit, nor what is counted."""
    cases = {
        "ball": dict(ambiguity=KLBall(0.3)),
        "infeasible": dict(ambiguity=CertaintyKLBall(0.3, 0.01)),
        "groups": dict(ambiguity=KLBall(0.1), group_column="source"),
    }
    found = []
    for looks in (False, True):
        if case == "dpo":
            trainer = trainer_of("dpo", tmp_path)
        else:
            settings = dict(objective="nll", **cases[case])
            trainer, _ = sft_trainer(settings, "4x1", str(tmp_path))
        looking = Looking()
        looking.trainer = trainer
        if looks:
            trainer.callback_handler.callbacks.insert(0, looking)  # before the ledger is filled, and after
            trainer.add_callback(looking)
        trainer.train()
        found.append((trainer.accountant.history, trainer.accountant.ledger.tensors()))
    (history, tensors), (seen_history, seen_tensors) = found
    assert seen_history == history
    assert all(torch.equal(tensors[name], seen_tensors[name]) for name in tensors)
    assert case != "infeasible" or history[-1]["gamma_relaxed"] > 0


# --- when it goes wrong -----------------------------------------------------------------------------


def test_a_trained_model_is_not_lost_for_a_table(tmp_path, caplog):
    trainer = trainer_of("sft", tmp_path, max_steps=1)

    def broken():
        raise ValueError("log-likelihood of sample '3' is not finite at step 1")

    trainer.rescore_now, trainer.rescore = (
        trainer.rescore,
        lambda reason="": trainer.rescore_now(reason) if reason else broken(),
    )
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert "there is no top_weighted.csv: log-likelihood of sample '3'" in caplog.text
    assert (tmp_path / "history.parquet").exists() and not (tmp_path / "top_weighted.csv").exists()


def test_a_file_of_another_training_finishes_no_run(root, tmp_path, monkeypatch):
    """A trainer in Python left it there; the command is killed before it has saved the model."""
    (tmp_path / "top_weighted.csv").write_text("sample_id,n_q\n")

    def killed(*args):
        raise InterruptedError

    monkeypatch.setattr(training_run, "save_whole_model", killed)
    with pytest.raises(InterruptedError):
        train(root, tmp_path)
    assert not (tmp_path / "top_weighted.csv").exists()
    monkeypatch.undo()
    train(root, tmp_path)
    assert len(rows_of(tmp_path / "top_weighted.csv")) == 20 and (tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize("family", SCORES)
def test_a_checkpoint_is_not_resumed_on_other_rows(family, tmp_path):
    """As many of them: entries of the ledger are known by their places."""
    for name in "ab":
        (tmp_path / name).mkdir()
    settings = dict(save_strategy="steps", save_steps=1, max_steps=3)
    trainer = trainer_of(family, tmp_path / "a", **settings)
    trainer.train()
    backwards = trainer.given_rows.select(range(len(trainer.given_rows) - 1, -1, -1))
    other = trainer_of(family, tmp_path / "b", data=backwards, **settings)
    with pytest.raises(ValueError, match="of other rows, or of these in another order"):
        other.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))
