"""What an outsider's objective, metric or family returns: it works as the guide says, or is one line."""

import copy
import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset
from transformers import DataCollatorForSeq2Seq
from trl import RewardConfig, RewardTrainer

import klball
from gradient_grid import quiet
from klball.models.loading import REWARD, load_model
from klball.training.arguments import RobustArguments
from klball.training.robust import RobustTrainer
from klball.training.samples import numbered
from klball.training.step import UnitBatch
from klball.training.units import Units
from small_runs import write_rows
from test_unusual_models import TOKENIZER, rows, trainer
from toy_policy import toy_trainer

PAIRS = [
    {"prompt": f"Count to {i}: ", "chosen": " ".join(["one", "two", "three"][: 1 + i % 3]), "rejected": "bad"}
    for i in range(8)
]
BELIEFS = [{"prompt": f"Favourite {i}? ", "beliefs": ["red", "blue"], "p_star": [0.7, 0.3]} for i in range(8)]


# --- what goes into the log ---------------------------------------------------------------------


class Telling:
    """NLL that logs a column and a metric under names of its choice."""

    def __init__(self, column="p", metric="p_mean", value=lambda sums: sums.mean(), needs=()):
        self.column, self.metric, self.value, self.needs = column, metric, value, needs

    def __call__(self, log_probs, **needed):
        return -log_probs

    def columns(self, log_probs, **needed):
        return {self.column: log_probs.exp()}

    def metrics(self, columns):
        return {self.metric: self.value(columns[self.column])}


def test_a_metric_may_be_a_tensor_of_one_number(tmp_path):
    run = trainer(tmp_path, max_steps=2, objective=Telling())
    run.train()
    logged = pq.read_table(tmp_path / "history.parquet")["p_mean"].to_pylist()
    assert len(logged) == 2 and all(isinstance(value, float) and value > 0 for value in logged)


@pytest.mark.parametrize(
    "told",
    [
        *(
            Telling(column=name)
            for name in (
                "score",
                "log_prob",
                "entropy",
                "num_tokens",
                "num_inputs",
                "density",
                "index",
                "keep",
            )
        ),
        *(
            Telling(metric=name)
            for name in ("loss", "plain_loss", "nll", "kl", "mean_weight", "step", "lambda", "num_tokens")
        ),
    ],
    ids=lambda told: f"{told.column}-{told.metric}",
)
def test_names_of_klballs_own_are_not_taken(told, tmp_path):
    taken = told.column if told.column != "p" else told.metric
    with pytest.raises(ValueError, match=f"'{taken}' is a name that is logged already"):
        trainer(tmp_path, max_steps=2, epsilon=0.1, objective=told).train()


@pytest.mark.parametrize("value", ["0.5", None, [1.0, 2.0], torch.ones(2)])
def test_what_is_no_number_is_no_metric(value, tmp_path):
    told = Telling(value=lambda sums: value)
    with pytest.raises(ValueError, match="'p_mean', for the log, must be a number"):
        trainer(tmp_path, max_steps=2, objective=told).train()


# --- objectives ---------------------------------------------------------------------------------


class Ahead:
    """PSFT without a clip, as somebody else would write it."""

    needs = ("old_log_probs",)

    def __call__(self, log_probs, old_log_probs):
        return -(log_probs - old_log_probs).exp()


def test_an_own_objective_has_its_window(tmp_path):
    run = trainer(tmp_path, max_steps=2, objective=Ahead(), psft_refresh=4, psft_warmup_steps=1)
    run.train()
    for settings in ({"psft_refresh": 4}, {"psft_warmup_steps": 1}):
        with pytest.raises(ValueError, match="need an objective with old_log_probs"):
            trainer(tmp_path, **settings)
        with pytest.raises(ValueError, match="need an objective with old_log_probs"):
            trainer(tmp_path, objective=Telling(), **settings)


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (lambda log_probs: -log_probs.detach(), "losses with a gradient"),
        (Telling(needs="entropy"), "needs must be a tuple of names, not 'entropy'"),
    ],
)
def test_objectives_that_cannot_be_trained_with_are_one_line(objective, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, max_steps=1, objective=objective).train()


def test_an_objective_may_leave_the_gradient_to_the_entropy(tmp_path):
    run = trainer(tmp_path, max_steps=1, objective=torch.zeros_like, entropy_coef=0.1)
    run.train()


# --- a family of one's own ----------------------------------------------------------------------


@dataclass
class HingeConfig(RobustArguments, RewardConfig):
    epsilon: float = field(default=0.1, metadata={"help": "Radius, nats."})


class HingeTrainer(RobustTrainer, RewardTrainer):
    """A reward model by the hinge of the difference, written from the guide alone."""

    _tag_names: ClassVar = ["hinge"]

    def __init__(self, *given, **named):
        super().__init__(*given, **named)
        self.train_dataset = numbered(self.train_dataset)
        self.init_adversary(self.train_dataset, self.args.ambiguity_set(), Units())

    def unit_batch(self, model, inputs):
        rewards = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
        chosen, rejected = rewards.squeeze(-1).chunk(2)
        losses = (1 - (chosen - rejected)).clamp(min=0)
        return UnitBatch(losses, {"score": -losses.detach().double()}, {"difference": chosen - rejected})


def test_a_family_from_the_guide_trains_and_tells_its_weights(tmp_path):
    model, tokenizer = load_model("klball/tiny", purpose=REWARD, trainable=True)
    config = HingeConfig(**quiet(str(tmp_path), per_device_train_batch_size=4, max_steps=6, max_length=64))
    data = Dataset.from_list(PAIRS)
    run = HingeTrainer(model, config, train_dataset=data, processing_class=tokenizer)
    run.train()
    assert max(row["max_weight"] for row in run.accountant.history) > 1
    weighed = pd.read_csv(tmp_path / "top_weighted.csv")
    assert len(weighed) == 8 and {"sample_id", "n_q", "loss"} <= set(weighed.columns)


# --- arguments of TRL's -------------------------------------------------------------------------


def test_a_collator_whose_answers_are_not_the_rows_is_refused(tmp_path):
    base = trainer(tmp_path).data_collator.collator

    def whole(examples):
        batch = base(examples)
        batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        return batch

    with pytest.raises(ValueError, match="data_collator gives other labels than the rows have"):
        trainer(tmp_path, data_collator=whole)
    for usual in (base, DataCollatorForSeq2Seq(copy.deepcopy(TOKENIZER))):
        trainer(tmp_path, max_steps=1, data_collator=usual).train()


def test_other_arguments_without_effect_are_one_line(tmp_path):
    with pytest.raises(ValueError, match="preprocess_logits_for_metrics needs logits that are never built"):
        klball.RobustSFTTrainer(
            trainer(tmp_path).model,
            klball.RobustSFTConfig(**quiet(str(tmp_path))),
            train_dataset=rows(),
            processing_class=copy.deepcopy(TOKENIZER),
            preprocess_logits_for_metrics=lambda logits, labels: logits,
        )
    run = trainer(tmp_path, eval_dataset=rows(8))
    several = trainer(tmp_path, eval_dataset={"a": rows(8)})
    for evaluated, name in ((run, "a"), (several, "zz")):
        with pytest.raises(ValueError, match=f"eval_dataset='{name}' is no name of an evaluation set"):
            evaluated.evaluate(name)
    assert "eval_loss" in several.evaluate("a")
    with pytest.raises(ValueError, match=r"eval_dataset must be a datasets\.Dataset, not str: read it with"):
        toy_trainer(tmp_path, eval_dataset="rows.jsonl")


def test_rewards_of_one_class_are_logged_apart(tmp_path):
    def one(completions, **columns):
        return [1.0] * len(completions)

    both = [klball.LengthPenalized(one, 0.0), klball.LengthPenalized(one, 0.25)]
    run, _ = toy_trainer(tmp_path, reward_funcs=both, radius=0.0)
    assert run.reward_func_names == ["LengthPenalized", "LengthPenalized-2"]

    async def later(completions, **columns):
        return one(completions)

    with pytest.raises(ValueError, match="a length penalty is of a plain function"):
        klball.LengthPenalized(later, 0.1)
    with pytest.raises(ValueError, match="a reward model is a loaded sequence classifier, not 'klball/tiny'"):
        klball.RewardModel("klball/tiny", TOKENIZER)


# --- other processes, paths and dtypes ----------------------------------------------------------


def test_errors_and_rewards_come_back_from_another_process():
    with pytest.raises(klball.InfeasibleError, match="cannot go below") as raised:
        klball.solve_dual(loss=[1.0, 2.0], certainty=[1.0, 2.0], epsilon=0.1, gamma=0.0)
    error = pickle.loads(pickle.dumps(raised.value))  # as a pool of processes sends it
    assert str(error) == str(raised.value) and error.gamma_min == raised.value.gamma_min > 1
    pytest.importorskip("math_verify")
    reward = pickle.loads(pickle.dumps(copy.deepcopy(klball.MathVerify())))
    assert reward(prompts=["?"], completions=["$2$"], answer=["2"], finished=[True])[0] == 1


def test_models_and_rows_are_found_by_path_and_by_dtype(tmp_path):
    path = Path(klball.__file__).parent / "tiny"
    assert klball.load_model(path, dtype=torch.bfloat16)[0].dtype == torch.bfloat16
    for given, error in (
        ({"torch_dtype": torch.float16}, "torch_dtype is called dtype"),
        ({"dtype": "x"}, "no dtype"),
    ):
        with pytest.raises(ValueError, match=error):
            klball.load_model("klball/tiny", **given)
    write_rows(tmp_path / "rows.jsonl", [{"question": "a", "answer": "b"}])
    assert len(klball.load_rows(tmp_path / "rows.jsonl")) == 1
    for load in (klball.load_rows, klball.load_model):
        with pytest.raises(ValueError, match="is given by its name or path, not by NoneType"):
            load(None)
    with pytest.raises(ValueError, match="split must be a name"):
        klball.load_rows("word-problems", split=3)


@pytest.mark.parametrize(
    ("name", "form", "column"),
    [
        ("doc-preferences", "to_preferences", "chosen"),
        ("beliefs", "to_preferences", "chosen"),
        ("rows.jsonl", "to_belief_rows", "p_star"),
    ],
)
def test_rows_of_other_families_are_read_as_the_refusal_says(name, form, column, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "rows.jsonl", BELIEFS)
    with pytest.raises(ValueError, match=f"form=klball.{form}"):
        klball.load_rows(name, "train[:20]")
    assert column in klball.load_rows(name, "train[:20]", form=getattr(klball, form)).column_names
