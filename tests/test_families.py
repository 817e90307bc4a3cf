"""`klball train --family`: every family runs, resumes and reports, and takes its own options only."""

import csv
import json
import re
import shutil
from dataclasses import replace
from importlib.resources import files

import pytest
from datasets import Dataset
from safetensors import safe_open
from trl import DatasetMixtureConfig, ModelConfig

import klball
from klball.commands import train as command
from klball.commands.options import parse
from klball.data.preferences import to_preferences
from klball.objectives.pairs import no_preference_radius
from klball.training import run as training_run
from klball.training.families import FAMILIES, family_of
from small_runs import contents, train, unfinish, write_rows

PAIRS = [name for name in FAMILIES if FAMILIES[name].form is to_preferences]
WORDS = ["a key", "the value", "two keys", "no value", "a long list of keys"]


def pair_rows(count=24, **more):
    return [
        {
            "prompt": [{"role": "user", "content": f"What is {i}?"}],
            "chosen": [{"role": "assistant", "content": f"{WORDS[i % 5]} of {i}"}],
            "rejected": [{"role": "assistant", "content": f"{WORDS[(i + 1) % 5]} of {i}"}],
            "field": "ab"[i % 3 == 0],
            "flipped": i % 4 == 0,
            **more,
        }
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def pair_root(root):
    write_rows(root / "pairs.jsonl", pair_rows())
    write_rows(root / "margins.jsonl", pair_rows(margin=0.5))
    return root


def run(pair_root, folder, family, *more, **settings):
    train(pair_root, folder, "--family", family, *more, **{"rows": "pairs.jsonl", **settings})


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def runs(pair_root):
    """A whole run of every family, which no test changes, and what it said."""
    for family in PAIRS:
        run(pair_root, pair_root / f"run-{family}", family, "--epsilon", "0.1")
    return pair_root


@pytest.mark.parametrize("family", PAIRS)
def test_a_run_ends_with_its_top_weighted_pairs(family, runs):
    top = rows_of(runs / f"run-{family}" / "top_weighted.csv")
    assert [*top[0]] == ["sample_id", "n_q", "loss", "prompt", "chosen", "rejected", "flipped"]
    assert len(top) == 20 and all(float(row["loss"]) > 0 for row in top)
    losses = [float(row["loss"]) for row in top]
    assert losses == sorted(losses, reverse=True)  # pessimistic: a larger loss weighs more
    given = {row["prompt"][0]["content"]: row for row in pair_rows()}
    for row in top:
        source = given[row["prompt"]]
        assert row["chosen"] == source["chosen"][0]["content"]
        assert row["rejected"] == source["rejected"][0]["content"]
        assert row["flipped"] == json.dumps(source["flipped"])


@pytest.mark.parametrize("family", PAIRS)
def test_a_run_killed_before_its_end_gives_the_same(family, runs, tmp_path):
    shutil.copytree(runs / f"run-{family}", tmp_path / "run")
    shutil.rmtree(unfinish(tmp_path / "run") / "checkpoint-4")
    run(runs, tmp_path / "run", family, "--epsilon", "0.1")
    assert contents(tmp_path / "run") == contents(runs / f"run-{family}")


@pytest.mark.parametrize("family", PAIRS)
def test_a_run_killed_before_its_first_checkpoint_gives_the_same(family, runs, tmp_path):
    """A new reward head is drawn again."""
    run(runs, tmp_path / "run", family, "--epsilon", "0.1")
    assert contents(tmp_path / "run") == contents(runs / f"run-{family}")


@pytest.mark.parametrize("family", PAIRS)
def test_groups_are_weighed_and_written(family, pair_root, tmp_path):
    run(pair_root, tmp_path, family, "--epsilon", "0.1", "--group_column", "field", "--max_steps", "1")
    groups = rows_of(tmp_path / "groups.csv")
    assert {row["group"]: int(row["samples"]) for row in groups} == {"a": 16, "b": 8}
    assert all(float(row["loss"]) > 0 for row in groups)


@pytest.mark.parametrize("family", PAIRS)
def test_training_never_sees_which_labels_were_flipped(family, pair_root, tmp_path, monkeypatch):
    seen = []

    def stop(model, **arguments):
        seen.append(arguments["train_dataset"])
        raise InterruptedError

    monkeypatch.setattr(training_run, "family_of", lambda config: replace(family_of(config), trainer=stop))
    with pytest.raises(InterruptedError):
        run(pair_root, tmp_path / "run", family)
    assert "flipped" not in seen[0].column_names
    monkeypatch.undo()
    with pytest.raises(ValueError, match="group_column: 'flipped' is about the labels"):
        run(pair_root, tmp_path / "other", family, "--group_column", "flipped")


def test_margins_are_for_reward_models(pair_root, tmp_path):
    run(pair_root, tmp_path / "reward", "reward", "--max_steps", "1", rows="margins.jsonl")
    with pytest.raises(ValueError, match="margin has no effect"):
        run(pair_root, tmp_path / "dpo", "dpo", rows="margins.jsonl")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ((), True),
        (("--epsilon", "0"), False),
        (("--direction", "optimistic"), False),
        (("--group_column", "field"), False),
    ],
)
def test_a_ball_over_pairs_says_what_label_noise_allows(more, said, pair_root, tmp_path, capsys, monkeypatch):
    for name in ("train", "write_training_page"):
        monkeypatch.setattr(command, name, lambda *args, **kwargs: None)
    run(pair_root, tmp_path / "run", "dpo", *more)
    told = " ".join(capsys.readouterr().out.split())
    radii = [f"{no_preference_radius(rate):.3f} at η = {rate}" for rate in (0.1, 0.2, 0.3)]
    assert [radius in told for radius in radii] == [said] * 3


FOREIGN = {
    "gamma": ("dpo", ["--gamma", "1"], "--gamma is an option of --family sft, not of dpo"),
    "beta": ("sft", ["--beta", "1"], "--beta is an option of --family dpo"),
    "same name": ("reward", ["--loss_type=sigmoid"], "--loss_type is an option of --family sft and dpo"),
    "unknown family": ("ppo", [], "--family must be one of sft, reward, dpo"),
    "no option at all": ("dpo", ["--bet", "1"], "no option --bet: did you mean --beta"),
    "reward as text": ("reward", ["--dataset_name", "stdlib-docs"], "need the column 'chosen'"),
    "pairs for sft": ("sft", [], "preference pairs, of two answers"),
    "group without ball": (
        "dpo",
        ["--group_column", "field", "--epsilon", "0"],
        "group_column has no effect",
    ),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_what_another_family_takes_is_refused_in_one_line(name, pair_root, tmp_path):
    family, more, what = FOREIGN[name]
    with pytest.raises(ValueError, match=re.escape(what)) as refusal:
        run(pair_root, tmp_path / "run", family, *more)
    assert "\n" not in str(refusal.value)


def test_a_recipe_names_the_family_and_its_options(pair_root, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("family: dpo\nbeta: 0.3\n")
    assert command.family_named(["--config", str(recipe)]) == "dpo"
    assert command.family_named(["--config", str(recipe), "--family=dpo"]) == "dpo"
    with pytest.raises(ValueError, match="--beta is an option of --family dpo"):
        command.family_named(["--config", str(recipe), "--family", "sft"])


def test_an_adapter_of_a_reward_model_trains_its_head(pair_root, tmp_path):
    peft = ["--use_peft", "--lora_target_modules", "q_proj", "v_proj"]
    run(pair_root, tmp_path / "run", "reward", "--epsilon", "0.1", *peft)
    with safe_open(tmp_path / "run" / "adapter_model.safetensors", "pt") as file:
        assert any("score" in key for key in file.keys())  # noqa: SIM118


BELIEFS = [
    {
        "prompt": [{"role": "user", "content": f"What about {i}?"}],
        "beliefs": ["Yes", "No", "Never"],
        "p_star": [0.5, 0.5, 0.0],
        "belief": ["Yes", "No"][i % 2],
        "chosen": [{"role": "assistant", "content": f"the value of {i}"}],
        "rejected": [{"role": "assistant", "content": f"a key of {i}"}],
        "group": "ab"[i % 3 == 0],
    }
    for i in range(12)
]
WITHOUT_TEXTS = [{name: row[name] for name in ("prompt", "beliefs", "p_star")} for row in BELIEFS]


@pytest.mark.parametrize(
    ("over", "rows"), [("belief", BELIEFS), ("question", BELIEFS), ("belief", WITHOUT_TEXTS)]
)
def test_gdpo_ends_with_beliefs_and_resumes(over, rows, pair_root, tmp_path):
    write_rows(pair_root / "beliefs.jsonl", rows)
    options = ["gdpo", "--over", over, "--max_steps", "3", "--per_device_train_batch_size", "4"]
    run(pair_root, tmp_path / "whole", *options, rows="beliefs.jsonl")
    top = rows_of(tmp_path / "whole" / "top_weighted.csv")
    assert [*top[0]] == ["sample_id", "n_q", "loss", "prompt", "belief", "chosen", "rejected"]
    assert len(top) == (20 if over == "belief" else 12)  # of 24 atoms, and 12 questions
    assert {row["belief"] for row in top} == {"Yes", "No"}
    shutil.copytree(tmp_path / "whole", tmp_path / "run")
    shutil.rmtree(unfinish(tmp_path / "run") / "checkpoint-3")
    run(pair_root, tmp_path / "run", *options, rows="beliefs.jsonl")
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


@pytest.mark.parametrize("column", ["prompt", "beliefs", "p_star"])
def test_gdpo_names_a_missing_column(column, pair_root, tmp_path):
    write_rows(
        pair_root / "lacking.jsonl", [{k: v for k, v in row.items() if k != column} for row in BELIEFS]
    )
    with pytest.raises(ValueError, match=f"GDPO needs the column '{column}'"):
        run(pair_root, tmp_path, "gdpo", rows="lacking.jsonl")


@pytest.mark.parametrize("family", ["dpo", "reward", "gdpo", "grpo"])
def test_the_recipe_at_scale_is_understood(family):
    arguments = ["--config", str(files("klball") / "recipes" / f"{family}-paper.yaml")]
    assert command.family_named(arguments) == family
    classes = [command.options_of(family), FAMILIES[family].config, ModelConfig, DatasetMixtureConfig]
    options, config, model, _ = parse(classes, arguments, "klball train")
    assert options.family == family and config.epsilon > 0 and model.model_name_or_path


def test_a_run_of_exactly_one_epoch_ends_well(root, tmp_path):
    """The last step records samples that its own answer has not seen."""
    train(root, tmp_path / "run", "--epsilon", "0", "--max_steps", "6", "--rescore_steps", "0")
    assert len(rows_of(tmp_path / "run" / "top_weighted.csv")) == 20


@pytest.mark.parametrize("family", PAIRS)
def test_held_out_pairs_are_evaluated_and_training_pairs_refused(family, pair_root, tmp_path):
    write_rows(pair_root / "held.jsonl", pair_rows(30)[24:])
    evaluated = ["--eval_strategy", "steps", "--eval_steps", "2", "--max_steps", "2", "--test_name"]
    run(pair_root, tmp_path / "run", family, *evaluated, str(pair_root / "held.jsonl"))
    state = json.loads((tmp_path / "run" / "checkpoint-2" / "trainer_state.json").read_text())
    losses = [entry["eval_loss"] for entry in state["log_history"] if "eval_loss" in entry]
    assert len(losses) == 1 and losses[0] > 0
    (entry,) = [entry for entry in state["log_history"] if "eval_loss" in entry]
    assert entry["eval_cvar"] >= entry["eval_robust_loss"] >= entry["eval_loss"] - 1e-9
    with pytest.raises(ValueError, match="every row to evaluate on is also trained on"):
        run(pair_root, tmp_path / "other", family, *evaluated, str(pair_root / "pairs.jsonl"))


@pytest.mark.parametrize("family", ["SFT", "DPO", "Reward", "GRPO"])
def test_a_trainer_knows_the_embedded_model_by_its_name(family, tmp_path):
    """Which the Hub does not."""
    config = getattr(klball, f"Robust{family}Config")(
        output_dir=str(tmp_path), bf16=False, use_cpu=True, report_to="none"
    )
    rows, more = Dataset.from_list(pair_rows(4)), {}
    if family == "SFT":
        rows = Dataset.from_list([{"prompt": f"{i}?", "completion": f" {i}"} for i in range(4)])
    if family == "GRPO":
        more = {"reward_funcs": lambda completions, **_: [0.0] * len(completions)}
        rows, config.radius = rows.select_columns("prompt"), 0.0
    trainer = getattr(klball, f"Robust{family}Trainer")(
        "klball/tiny", args=config, train_dataset=rows, **more
    )
    assert trainer.model.num_parameters() > 2e6
