"""Rows held out by content, and what an evaluation says of its worst cases."""

import math
import random

import numpy as np
import pytest
import torch
from datasets import Dataset

from klball.adversary.dual import solve_dual
from klball.data.splitting import prompts_of, split_by_content
from klball.scores.tails import cvar
from klball.training.evaluation import RowEvaluation, refuse_metric_without_groups
from klball.training.sft.config import RobustSFTConfig
from klball.training.sft.trainer import RobustSFTTrainer

QUESTION = {"question": "What is  A?", "answer": "x"}
FORMATS = [
    ({"question": "What is  A?", "answer": "x"}, "what is a?"),
    ({"instruction": "Sum up", "input": "A text.", "output": "x"}, "sum up a text."),
    ({"prompt": "What is A?", "completion": "x"}, "what is a?"),
    ({"prompt": "What is A?", "chosen": "x", "rejected": "y"}, "what is a?"),
    ({"chosen": "\n\nHuman: What?\n\nAssistant: x", "rejected": "\n\nHuman: What?\n\nAssistant: y"}, "what?"),
    ({"prompt": "What is A?", "beliefs": ["x", "y"], "p_star": [0.5, 0.5]}, "what is a?"),
    ({"text": "The text."}, "the text."),
    ({"input_ids": [5, 6, 7, 8], "labels": [-100, -100, 7, 8]}, "5 6"),
    ({"input_ids": [5, 6, 7], "completion_mask": [0, 1, 1]}, "5"),
    ({"input_ids": [5, 6, 7]}, "5 6 7"),
    (
        {
            "messages": [
                {"role": "system", "content": "Be kind."},
                {"role": "user", "content": "Hello"},
                {"role": "assistant", "content": "Hi"},
                {"role": "user", "content": "More"},
                {"role": "assistant", "content": "Yes"},
            ]
        },
        "be kind. hello",
    ),
]


@pytest.mark.parametrize(
    ("row", "prompt"), FORMATS, ids=lambda x: "-".join(x)[:30] if isinstance(x, dict) else ""
)
def test_what_a_row_asks(row, prompt):
    found = prompts_of(Dataset.from_list([row]))
    assert [text.replace("human: ", "") for text in found] == [prompt]


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_a_prompt_lies_on_one_side_whatever_the_order(share):
    rows = [{"question": f"What is {i % 40}?" + " " * (i % 3), "answer": f"{i}"} for i in range(120)]
    stay, held = split_by_content(Dataset.from_list(rows), share)
    assert len(stay) + len(held) == 120 and abs(len(held) - 120 * share) < 3
    assert not {*prompts_of(stay)} & {*prompts_of(held)}
    random.Random(1).shuffle(rows)
    other = split_by_content(Dataset.from_list(rows), share)[1]
    assert sorted(other["answer"]) == sorted(held["answer"])
    assert sorted(split_by_content(Dataset.from_list(rows), share, seed=1)[1]["answer"]) != sorted(
        held["answer"]
    )


def test_what_cannot_be_split_is_refused():
    same = Dataset.from_list([QUESTION] * 5)
    with pytest.raises(ValueError, match="5 rows, with 1 different prompts, holds out no prompt"):
        split_by_content(same, 0.5)
    with pytest.raises(ValueError, match="leaves no row"):
        split_by_content(same, 1.0)


class Rows(RowEvaluation):
    def __init__(self, config):
        self.args, self.ambiguity, self._relax = config, config.ambiguity_set(), True


def config_of(tmp_path, **settings):
    return RobustSFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, **settings)


@pytest.mark.parametrize("epsilon", [0.0, 0.05, 0.5])
def test_worst_cases_of_an_evaluation_are_those_of_the_definition(epsilon, tmp_path):
    loss = np.random.default_rng(3).gamma(2.0, size=90)
    found = Rows(config_of(tmp_path, epsilon=epsilon)).worst_cases(
        {"score": torch.tensor(-loss)}, None, Dataset.from_dict({"x": [0] * 90})
    )
    assert found["cvar"] == pytest.approx(cvar(loss, 0.05))
    lambdas = np.geomspace(0.05, 1e4, 20_000)  # the dual, by brute force
    over = loss - loss.max()
    dual = [x * epsilon + x * math.log(np.exp(over / x).mean()) + loss.max() for x in lambdas]
    assert found["robust_loss"] == pytest.approx(min(dual) if epsilon else loss.mean(), rel=1e-4)


def test_the_worst_case_of_an_evaluation_is_over_groups_where_training_is(tmp_path):
    loss = np.array([1.0, 2.0, 3.0, 4.0, 10.0, 12.0])
    rows = Dataset.from_dict({"source": ["a", "a", "a", "a", "b", "b"]})
    evaluation = Rows(config_of(tmp_path, epsilon=0.1, group_column="source"))
    found = evaluation.worst_cases({"score": torch.tensor(-loss)}, None, rows)
    solution = solve_dual([-2.5, -11.0], epsilon=0.1, base_weights=[4 / 6, 2 / 6])
    assert found["robust_loss"] == pytest.approx(-solution.worst_case)
    assert set(
        evaluation.worst_cases({"score": torch.tensor(-loss)}, None, rows.remove_columns("source"))
    ) == {"cvar"}
    alone = evaluation.worst_cases({"score": torch.tensor(-loss[:4])}, None, rows.select(range(4)))
    assert alone["robust_loss"] == pytest.approx(2.5)  # rows of one group have its mean


def test_a_worst_case_over_groups_that_no_row_names_chooses_no_model(tmp_path):
    rows = Dataset.from_dict({"source": ["a"]})
    config = config_of(tmp_path, group_column="source", metric_for_best_model="eval_robust_loss")
    refuse_metric_without_groups(config, {"one": rows})
    refuse_metric_without_groups(config_of(tmp_path, metric_for_best_model="eval_robust_loss"), None)
    with pytest.raises(ValueError, match="no column 'source'"):
        refuse_metric_without_groups(config, {"one": rows, "two": rows.remove_columns("source")})


def test_an_evaluation_logs_its_worst_cases(tmp_path, tiny_model, tokenizer):
    rows = Dataset.from_list([{"question": f"What is {i}?", "answer": "a " * (i + 1)} for i in range(12)])
    for settings in ({}, {"normalization": "sum"}, {"normalization": "token"}):
        trainer = RobustSFTTrainer(
            model=tiny_model,
            args=config_of(tmp_path, epsilon=0.2, disable_tqdm=True, report_to=[], **settings),
            train_dataset=rows,
            eval_dataset=rows,
            processing_class=tokenizer,
        )
        found = trainer.evaluate()
        trainer.begin_training()
        assert found["eval_robust_loss"] == pytest.approx(trainer.accountant.summary()["robust_loss"])
        assert found["eval_cvar"] > found["eval_robust_loss"]
