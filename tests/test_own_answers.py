"""A model's own answers become a table that is resumed, read by `solve`, and told of by groups."""

import numpy as np
import pytest
from datasets import Dataset

from conftest import small_qwen
from klball import LastNumber
from klball.scores.answers import answer_report
from klball.scores.tables import read_scores
from klball.studies import own_answers
from klball.studies.own_answers import answer_table, metrics_of

ROWS = [
    {"sample_id": f"s{i}", "prompt": [{"role": "user", "content": f"{i}?"}], "answer": i, "kind": i % 2}
    for i in range(9)
]


class LengthReward:
    def __repr__(self):
        return "length"

    def __call__(self, prompts, completions, completion_ids, **columns):
        self.told = columns
        return [float(len(ids) % 2) for ids in completion_ids]


@pytest.fixture(scope="module")
def model(tokenizer):
    return small_qwen(len(tokenizer))


def table(model, tokenizer, output, reward=None, **more):
    settings = dict(samples=3, max_new_tokens=6, group_column="kind", output=output) | more
    return answer_table(model, tokenizer, Dataset.from_list(ROWS), reward or LengthReward(), **settings)


def test_a_table_is_a_score_table_and_tells_metrics(model, tokenizer, tmp_path):
    reward = LengthReward()
    made = table(model, tokenizer, tmp_path / "a.parquet", reward)
    assert made["sample_id"][:] == [row["sample_id"] for row in ROWS]
    assert read_scores(tmp_path / "a.parquet")[0]["log_likelihood"][:] == [r[0] for r in made["rewards"]]
    assert set(reward.told) == {"sample_id", "answer", "kind", "completion_finished"}
    assert all(len(row["samples"]) + 1 == len(row["rewards"]) == 4 for row in made.to_list())
    metrics = metrics_of(made, (1, 3))
    assert list(metrics) == ["accuracy", "mean_reward", "pass@1", "pass@3", "length", "finished"]
    assert np.allclose(metrics["pass@1"], metrics["mean_reward"])
    assert np.array_equal(metrics["pass@3"], (np.array(made["rewards"])[:, 1:] > 0).any(1))
    parts = {row["part"] for row in answer_report(metrics, made["group"][:])}
    assert {"all", "group 0", "group 1", "worst ε = 0.05"} <= parts


def test_a_killed_run_continues_to_the_byte(model, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr("klball.scores.parts.BATCHES_PER_PART", 1)
    table(model, tokenizer, tmp_path / "whole.parquet")
    judged, calls = own_answers._judged, []

    def killed(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return judged(*arguments)

    monkeypatch.setattr(own_answers, "_judged", killed)
    with pytest.raises(KeyboardInterrupt):
        table(model, tokenizer, tmp_path / "killed.parquet")
    table(model, tokenizer, tmp_path / "killed.parquet")
    assert len(calls) == 2 + 2  # three parts, of which the first was kept
    assert (tmp_path / "killed.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()


def test_other_answers_are_refused(model, tokenizer, tmp_path):
    table(model, tokenizer, tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="answers"):
        table(model, tokenizer, tmp_path / "a.parquet", samples=2)


def test_greedy_answers_do_not_depend_on_the_seed(model, tokenizer, tmp_path):
    def sums(completion_ids, **columns):
        return [float(sum(ids)) for ids in completion_ids]

    one, other = (table(model, tokenizer, tmp_path / f"{s}.parquet", sums, seed=s) for s in (0, 1))
    assert one["answer"][:] == other["answer"][:]
    pairs = list(zip(one["rewards"][:], other["rewards"][:], strict=True))
    assert all(a[0] == b[0] for a, b in pairs) and any(a[1:] != b[1:] for a, b in pairs)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (dict(max_new_tokens=1000), "row 1 .* leaves no room for 1000 new ones"),
        (dict(group_column="sort"), "no column 'sort'"),
        (dict(reward=lambda **_: [None] * 36), "all need a number"),
    ],
)
def test_what_is_refused(more, said, model, tokenizer, tmp_path):
    with pytest.raises(ValueError, match=said):
        table(model, tokenizer, tmp_path / "a.parquet", **more)


def test_pass_at_k_needs_verifiable_rewards(model, tokenizer, tmp_path):
    made = table(model, tokenizer, tmp_path / "a.parquet", lambda completions, **_: [0.5] * len(completions))
    assert "reward" in metrics_of(made)
    with pytest.raises(ValueError, match="rewards of 0 or 1"):
        metrics_of(made, (1,))


def test_verifiable_rewards_take_the_answer_column(model, tokenizer, tmp_path):
    made = table(model, tokenizer, tmp_path / "a.parquet", LastNumber())
    assert set(np.array(made["rewards"]).ravel()) <= {0.0, 1.0}
