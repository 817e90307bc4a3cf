"""What people get wrong first, in Python and from the shell: each is one line that says what is true."""

import numpy as np
import pandas as pd
import pytest
import torch

import klball
from gradient_grid import quiet
from klball.cli import main
from small_runs import write_rows
from test_unusual_models import trainer
from toy_policy import prompts, toy_trainer


class Objective:
    """NLL with a column and a metric that may be forgotten."""

    def __init__(self, columns=True, metrics=True):
        self.returned = columns, metrics

    def __call__(self, log_probs):
        return -log_probs

    def columns(self, log_probs):
        return {"p": log_probs.exp()} if self.returned[0] else None

    def metrics(self, columns):
        return {"p_mean": columns["p"].sum() / columns["num_tokens"].sum()} if self.returned[1] else None


class Silent(klball.KLBall):
    def summary(self, solution):
        return None


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (dict(objective=Objective(columns=False)), "Objective.columns must return a dictionary, not None"),
        (dict(objective=Objective(metrics=False)), "Objective.metrics must return a dictionary, not None"),
        (dict(ambiguity=Silent(0.1)), "Silent.summary must return a dictionary, not None"),
        (dict(objective=Objective), "objective=.*Objective.* is a class: give an object of it"),
        (
            dict(objective=lambda log_probs: -log_probs[:, 1:]),
            r"must return a loss a token, a tensor \[\d+, \d+\], not \[\d+, \d+\] of torch.float32",
        ),
        (dict(load_best_model_at_end=True), "load_best_model_at_end has no effect without evaluations"),
        (dict(group_column="nope"), "no column 'nope'; there are question, answer$"),
    ],
)
def test_what_is_forgotten_is_named(given, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        trainer(tmp_path, max_steps=2, **given).train()


def test_an_attribute_in_the_place_of_a_method_makes_no_set(tmp_path):
    ball = klball.KLBall(0.1)
    object.__setattr__(ball, "summary", None)
    with pytest.raises(ValueError, match="is no ambiguity set: it needs needs, solve, relaxed"):
        trainer(tmp_path, ambiguity=ball)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        (dict(learning_rate="1e-3"), "learning_rate must be 0 or more, not the text '1e-3'"),
        (dict(epsilon="0.05"), "epsilon must be 0 or more, not the text '0.05'"),
        (dict(epsilon=float("inf")), "epsilon must be finite, not inf"),
    ],
)
def test_a_number_that_is_none_is_called_what_it_is(setting, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        klball.RobustSFTConfig(**{**quiet(str(tmp_path)), **setting})


def test_a_reward_that_is_a_class_is_refused_before_any_answer(tmp_path):
    with pytest.raises(ValueError, match=r"reward_funcs: LastNumber is a class: give an object"):
        toy_trainer(tmp_path, reward_funcs=klball.LastNumber)


def test_lists_of_prompts_are_rows_too(tmp_path):
    given = prompts().to_list()
    run, _ = toy_trainer(tmp_path / "a", radius=0.0, train_dataset=given, eval_dataset={"own": given})
    whole, _ = toy_trainer(
        tmp_path / "b", radius=0.0, train_dataset=prompts(), eval_dataset={"own": prompts()}
    )
    assert run.samples.to_list() == whole.samples.to_list()
    assert run.eval_dataset["own"].to_list() == whole.eval_dataset["own"].to_list()


@pytest.mark.parametrize("kind", [pd.DataFrame, lambda column: torch.tensor(column["loss"])[:, None]])
def test_one_column_is_not_a_round_for_each_row(kind):
    losses = [1.2, 0.8, 3.5, 1.1]
    with pytest.raises(ValueError, match=r"loss is one column, which would be 4 rounds of one sample"):
        klball.solve_dual(loss=kind({"loss": losses}), epsilon=0.05)
    frame = pd.DataFrame({"loss": losses, "again": losses}).T  # two rounds
    assert len(klball.solve_dual(loss=frame, epsilon=0.05).ess) == 2


def test_a_bound_that_is_rounded_to_the_least_score_says_that_nothing_is_shown():
    for scores in ([1], [1, 0]):
        found = klball.certified_worst_case(scores, epsilon=0.05)
        assert f"{len(scores)} prompts do not show that accuracy is above 0" in found.sentence("accuracy")
    low = klball.certified_worst_case(-np.array([3.0]), epsilon=0.05, bounds=(-8.0, 0.0)).sentence(
        "loss", loss=True
    )
    assert "do not show that loss is below 8" in low


def test_rounds_of_no_kind_are_one_line():
    with pytest.raises(ValueError, match=r"scores must be what klball\.round_scores makes, not list"):
        klball.largest_epsilon_with_ess([-1.0, -2.0])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["score", "--model_name_or_path", "./nofolder"], "'./nofolder': there is no such folder"),
        (["evaluate", "--models", "a=../no/folder"], "'../no/folder': there is no such folder"),
        (
            ["train", "--callbacks", "x"],
            "no option --callbacks: it is an argument of the trainers, in Python",
        ),
        (
            [
                "train",
                "--dataset_name",
                "d.jsonl",
                "--load_best_model_at_end",
                "true",
                "--save_strategy",
                "no",
            ],
            "--load_best_model_at_end has no effect without --eval_strategy steps or epoch",
        ),
        (["train", "--dataset_name", "d.jsonl", "--label_smoothing_factor", "0.1"], "is not supported"),
        (["compare", "--scores", "a=a.csv", "b=b.csv"], "b.csv: of a column called 'loss' less is better"),
    ],
)
def test_commands_say_what_is_wrong(words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "d.jsonl", [{"question": f"What is {i}?", "answer": "1"} for i in range(4)])
    (tmp_path / "a.csv").write_text("id,points\nx,1\ny,2\n")
    (tmp_path / "b.csv").write_text("id,loss\nx,1\ny,2\n")
    with pytest.raises(SystemExit) as stopped:
        main([*words, "--output_dir", "out"])
    told = capsys.readouterr()
    assert stopped.value.code == 2 and said in " ".join(told.err.split())
    assert "what this run logs" not in told.out
