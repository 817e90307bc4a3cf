"""What preference trainers take, what each setting does, and runs that are resumed."""

import dataclasses
import math

import pytest
import torch
import trl
from datasets import Dataset
from transformers import Trainer

from gradient_grid import quiet
from klball import Empirical, GDPOConfig, KLBall, RobustDPOConfig, RobustRewardConfig
from klball.adversary.trimming import Trimmed
from klball.training.checkpoints import problem_of
from preference_grid import NUM_ROWS, rows, trainer_for

# --- data -------------------------------------------------------------------------------------------

CHAT = [{"role": "user", "content": "What is a path?"}]


def said(text: str) -> list[dict]:
    return [{"role": "assistant", "content": text}]


FORMATS = {
    "explicit": [{"prompt": "a path?\n", "chosen": "the name", "rejected": "no"}] * 8,
    "implicit": [{"chosen": "a path?\nthe name", "rejected": "a path?\nno"}] * 8,
    "chat": [{"prompt": CHAT, "chosen": said("the name"), "rejected": said("no")}] * 8,
    "implicit chat": [{"chosen": CHAT + said("the name"), "rejected": CHAT + said("no")}] * 8,
}


@pytest.mark.parametrize("family", ["dpo", "reward"])
@pytest.mark.parametrize("name", FORMATS)
def test_trls_formats_are_taken(name, family, tmp_path):
    data = Dataset.from_list(FORMATS[name])
    trainer, recorder = trainer_for(dict(family=family, epsilon=0.1), "8x1", str(tmp_path), data=data)
    trainer.train()
    assert len(trainer.samples) == 8 and recorder.steps[0].norm() > 0


@pytest.mark.parametrize("family", ["dpo", "reward", "gdpo"])
def test_dropped_and_cut_rows_are_counted(family, tmp_path, caplog):
    data = rows(family).to_list()
    data[3]["prompt"] += "path " * 60
    data[5]["chosen"] += " path" * 60
    trainer, _ = trainer_for(
        dict(family=family, epsilon=0.1), "8x1", str(tmp_path), data=Dataset.from_list(data), max_length=60
    )
    dropped = 2 if family == "reward" else 1
    assert len(trainer.train_dataset) == NUM_ROWS - dropped
    assert f"train: of 22 rows {dropped} were dropped" in caplog.text
    assert f"and {2 - dropped} have an answer that it cuts" in caplog.text
    with pytest.raises(ValueError, match="no row is left"):
        trainer_for(dict(family=family), "8x1", str(tmp_path), max_length=2)


def test_a_pair_that_just_fits_is_not_cut(tmp_path, caplog):
    whole, _ = trainer_for(dict(family="dpo"), "8x1", str(tmp_path))
    longest = max(whole.row_lengths(whole.train_dataset)) // 2
    trainer_for(dict(family="dpo"), "8x1", str(tmp_path), max_length=longest)
    assert "it cuts" not in caplog.text
    trainer_for(dict(family="dpo"), "8x1", str(tmp_path), max_length=longest - 1)
    assert "it cuts" in caplog.text


def test_nothing_is_said_where_nothing_is_lost(tmp_path, caplog):
    trainer_for(dict(family="dpo"), "8x1", str(tmp_path))
    assert "were dropped" not in caplog.text


@pytest.mark.parametrize("family", ["dpo", "reward", "gdpo"])
def test_data_without_rows_or_a_column_is_refused(family, tmp_path):
    column = "p_star" if family == "gdpo" else "rejected"
    case, data = dict(family=family, epsilon=0.1), rows(family)
    for given, words in (
        (data.select([]), "has no rows"),
        (data.remove_columns(column), f"no column '{column}'"),
    ):
        with pytest.raises(ValueError, match=f"train_dataset .*{words}"):
            trainer_for(case, "8x1", str(tmp_path), data=given)
        trainer, _ = trainer_for(case, "8x1", str(tmp_path))
        with pytest.raises(ValueError, match=f"eval_dataset .*{words}"):
            trainer.evaluate(given)


MARGINS = [(None, "null"), (math.nan, "float 'nan'"), ("much", "text"), ("0.5", "")]


@pytest.mark.parametrize(("margin", "words"), MARGINS, ids=str)
def test_margins_are_numbers_or_their_row_is_named(margin, words, tmp_path):
    data = rows().add_column(
        "margin", [("0.5" if isinstance(margin, str) else 0.5), margin] * (NUM_ROWS // 2)
    )
    case = dict(family="reward", epsilon=0.1)
    if words:
        with pytest.raises(ValueError, match=rf"row 2 \(counted from 1\), margin: {words}"):
            trainer_for(case, "8x1", str(tmp_path), data=data)
    else:
        trainer, _ = trainer_for(case, "8x1", str(tmp_path), data=data)
        assert trainer.train_dataset["margin"][:] == [0.5] * NUM_ROWS


TOKENS = [{"prompt_ids": [3], "chosen_ids": [9, 8, 7], "rejected_ids": [9, 8]}] * 8


def test_a_reward_model_takes_tokens(tmp_path):
    data = Dataset.from_list(TOKENS)
    trainer, recorder = trainer_for(dict(family="reward", epsilon=0.1), "8x1", str(tmp_path), data=data)
    trainer.train()
    assert recorder.steps[0].norm() > 0


# --- the default radius -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "warmup"),
    [
        ({}, 0.1),
        (dict(epsilon=0.0), 0.0),
        (dict(reweight="static"), 0.0),
        (dict(epsilon_warmup=0.5), 0.5),
        (dict(ambiguity="cvar", alpha=0.5), 0.1),
        (dict(comparator="trim", epsilon=0.0), 0.1),
        (dict(comparator="dr-dpo", epsilon=0.0), 0.0),
    ],
    ids=str,
)
def test_the_radius_grows_over_a_tenth_of_the_steps_where_there_is_one(settings, warmup, tmp_path):
    given = {**settings}
    if given.get("ambiguity") == "cvar":
        config = RobustDPOConfig(**quiet(str(tmp_path), **given))
    else:
        config = RobustDPOConfig(**quiet(str(tmp_path), **given))
        assert config.epsilon == given.get("epsilon", 0.05)
    assert config.warmup == warmup


def test_the_set_is_that_of_the_settings(tmp_path):
    def made(**settings):
        return RobustDPOConfig(**quiet(str(tmp_path), **settings)).ambiguity_set()

    ball = KLBall(0.2, 3.0, "optimistic")
    settings = dict(epsilon=0.2, max_weight=3.0, direction="optimistic")
    assert made(**settings) == ball
    assert made(**settings, comparator="trim", comparator_strength=0.3) == Trimmed(ball, 0.3)
    assert made(comparator="trim", epsilon=0.0) == Trimmed(Empirical(), 0.1)


def test_the_first_step_has_no_radius(tmp_path):
    trainer, _ = trainer_for(dict(family="dpo", epsilon=0.2), "8x1", str(tmp_path), num_train_epochs=4)
    trainer.train()
    assert [row["kl"] for row in trainer.accountant.history[:3]] == pytest.approx([0, 0.1, 0.2], abs=1e-9)


# --- settings ---------------------------------------------------------------------------------------

EG = dict(comparator="group-eg", epsilon=0.0, group_column="source")
EFFECTS = {  # name → family, settings before, the value that is to change what is trained
    "ambiguity": ("dpo", {}, "chi2"),
    "alpha": ("dpo", {"ambiguity": "cvar", "alpha": 0.9}, 0.3),
    "direction": ("dpo", {}, "optimistic"),
    "epsilon": ("dpo", {}, 0.3),
    "epsilon_warmup": ("dpo", {"epsilon": 0.5}, 1.0),
    "max_weight": ("dpo", {"epsilon": 0.5}, 1.05),
    "group_column": ("dpo", {"epsilon": 0.5}, "source"),
    "reweight": ("dpo", {"epsilon": 0.5, "epsilon_warmup": 0.0}, "static"),
    "rescore_steps": ("dpo", {"epsilon": 0.5}, 1),
    "comparator": ("dpo", {"epsilon": 0.0}, "kldpo"),
    "comparator_strength": ("dpo", EG, 5.0),
    "over": ("gdpo", {"epsilon": 0.5}, "question"),
    "belief_end": ("gdpo", {}, " of"),
}


def test_no_setting_lacks_a_case():
    own = [
        {field.name for field in dataclasses.fields(ours)}
        - {field.name for field in dataclasses.fields(trls)}
        for ours, trls in ((RobustDPOConfig, trl.DPOConfig), (GDPOConfig, trl.DPOConfig))
    ]
    rewards = {field.name for field in dataclasses.fields(RobustRewardConfig)}
    assert own[0] | own[1] == set(EFFECTS)
    assert rewards - {field.name for field in dataclasses.fields(trl.RewardConfig)} == own[0]


@pytest.mark.parametrize("name", EFFECTS)
def test_a_setting_changes_what_is_trained(name, tmp_path):
    family, before, value = EFFECTS[name]
    found = []
    for settings in (before, {**before, name: value}):
        trainer, _ = trainer_for(dict(family=family), "8x1", str(tmp_path), **settings)
        trainer.train()
        found.append([float(p.detach().double().abs().sum()) for p in trainer.model.parameters()])
    assert found[0] != found[1]


# --- resumption -------------------------------------------------------------------------------------

KEPT = {
    "dpo": dict(family="dpo", epsilon=0.3),
    "reward": dict(family="reward", epsilon=0.3, group_column="source"),
    "gdpo": dict(family="gdpo", epsilon=0.3),
    "lora": dict(family="dpo", epsilon=0.3, lora=True),
    "precomputed": dict(family="dpo", epsilon=0.3, precompute_ref_log_probs=True),
    "group-eg": dict(
        family="dpo", comparator="group-eg", comparator_strength=0.5, epsilon=0.0, group_column="source"
    ),
}


@pytest.mark.parametrize("name", KEPT)
def test_a_run_stopped_within_an_epoch_goes_on_to_the_bit(name, tmp_path):
    settings = dict(
        num_train_epochs=2, save_strategy="steps", save_steps=1, optim="adamw_torch", learning_rate=1e-3
    )
    settings |= dict(train_sampling_strategy="random", logging_steps=1)
    whole, _ = trainer_for(KEPT[name], "8x1", str(tmp_path / "run"), **settings)
    whole.train()
    resumed, _ = trainer_for(KEPT[name], "8x1", str(tmp_path / "again"), **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert resumed.accountant.history == whole.accountant.history
    pairs = zip(resumed.model.parameters(), whole.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    if name == "group-eg":
        (tmp_path / "run" / "checkpoint-2" / "comparator-groups.safetensors").unlink()
        with pytest.raises(ValueError, match="comparator='group-eg'"):
            resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))


@pytest.mark.parametrize("family", ["dpo", "reward", "gdpo"])
def test_evaluation_between_steps_finds_the_best_checkpoint(family, tmp_path):
    settings = dict(eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1)
    settings |= dict(load_best_model_at_end=True, metric_for_best_model="loss", logging_steps=1)
    case = dict(family=family, epsilon=0.1)
    trainer, _ = trainer_for(case, "8x1", str(tmp_path), eval_dataset=rows(family), **settings)
    trainer.train()
    losses = [row["eval_loss"] for row in trainer.state.log_history if "eval_loss" in row]
    assert len(losses) == 3 and trainer.state.best_metric == min(losses)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(min(losses), rel=1e-5)
    trained = [row for row in trainer.state.log_history if "plain_loss" in row]
    assert len(trained) == 3 and {"kl", "ess_ratio", "max_weight", "robust_loss", "loss"} <= set(trained[-1])


@pytest.mark.parametrize("config", [RobustDPOConfig, RobustRewardConfig, GDPOConfig])
def test_what_was_left_out_is_derived_anew_by_replace(config, tmp_path):
    plain = config(**quiet(str(tmp_path), epsilon=0.0))
    ball = dataclasses.replace(plain, epsilon=0.05)
    assert (plain.warmup, ball.warmup, dataclasses.replace(ball, epsilon=0.0).warmup) == (0.0, 0.1, 0.0)
    grouped = dataclasses.replace(ball, group_column="source")
    assert (ball.unit, grouped.unit, dataclasses.replace(grouped, group_column=None).unit) == (
        *(config.units[0], "group", config.units[0]),
    )


def test_a_checkpoint_is_whole_or_none_while_it_takes_the_place_of_another(tmp_path, monkeypatch):
    case = dict(family="dpo", epsilon=0.1, save_strategy="steps", save_steps=1, max_steps=1)
    trainer, _ = trainer_for(case, "8x1", str(tmp_path))
    trainer.train()
    folder = tmp_path / "checkpoint-1"
    assert problem_of(folder) is None

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "_save_checkpoint", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert problem_of(folder) is not None  # a ledger of this training beside the last one's weights
