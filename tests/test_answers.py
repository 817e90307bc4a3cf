"""pass@k against its definition, worst-case accuracy against its closed form, prompts of every row format."""

import math
from itertools import combinations

import numpy as np
import pytest
from datasets import Dataset
from scipy.optimize import brentq
from scipy.special import rel_entr

from klball import certified_worst_case
from klball.data.prompts import check_prompts, to_prompts
from klball.data.readers import dataset_of
from klball.scores.answers import answer_report, pass_at_k, worst_mean


@pytest.mark.parametrize("n", [1, 4, 7])
def test_pass_at_k_is_the_mean_over_all_choices(n):
    for k in range(1, n + 1):
        for c in range(n + 1):
            right = [i < c for i in range(n)]
            chosen = [any(some) for some in combinations(right, k)]
            assert pass_at_k(np.array([c]), n, k)[0] == pytest.approx(np.mean(chosen))


@pytest.mark.parametrize("k", [0, 5, -1])
def test_pass_at_k_needs_k_samples(k):
    with pytest.raises(ValueError, match="pass@"):
        pass_at_k(np.array([1]), 4, k)


def bernoulli_worst(p, epsilon):
    """The least m with kl(m‖p) ≤ ε: what a ball does to 0/1 scores of mean p."""

    def excess(m):
        return float(rel_entr(m, p) + rel_entr(1 - m, 1 - p)) - epsilon

    return 0.0 if excess(0.0) <= 0 else brentq(excess, 0.0, p, xtol=1e-14)


@pytest.mark.parametrize("right", [1, 30, 99])
@pytest.mark.parametrize("epsilon", [0.001, 0.05, 0.3, 3.0])
def test_worst_accuracy_is_the_inverse_of_the_bernoulli_divergence(right, epsilon):
    scores = np.array([1.0] * right + [0.0] * (100 - right))
    assert worst_mean(scores, epsilon) == pytest.approx(bernoulli_worst(right / 100, epsilon), abs=1e-9)


def test_scores_of_any_sign_have_a_worst_case():
    scores = np.array([1.0, 2.0, 5.0])
    assert worst_mean(scores, 0.0) == pytest.approx(scores.mean())
    assert worst_mean(scores, 0.1) == pytest.approx(worst_mean(scores - 7, 0.1) + 7)
    assert worst_mean(np.ones(3), 0.1) == pytest.approx(1)


def test_the_report_has_every_metric_and_part():
    columns = {
        "accuracy": np.array([1.0, 0, 1, 1]),
        "mean_reward": np.array([3, 4, 5, 6]) / 6,
        "length": np.array([3, 4, 5, 6]),
    }
    rows = answer_report(columns, ["a", "b", "a", "b"], radii=(0.1,))
    found = {(row["metric"], row["part"]): row["value"] for row in rows}
    assert found["accuracy", "all"] == 0.75 and found["accuracy", "group b"] == 0.5
    assert found["accuracy", "worst ε = 0.1"] == pytest.approx(bernoulli_worst(0.75, 0.1))
    assert len(found) == 2 * 4 + 3
    certified = {(row["metric"], row["part"]): row["certified"] for row in rows if row["certified"] >= 0}
    assert set(certified) == {(metric, "worst ε = 0.1") for metric in ("accuracy", "mean_reward")}
    for (metric, _), lower in certified.items():
        assert lower == certified_worst_case(columns[metric], 0.1).lower
    learnt = {"reward": np.array([3, 4, 5, 6])}
    assert math.isnan(answer_report(learnt, radii=(0.1,))[-1]["certified"])
    bounded = answer_report(learnt, radii=(0.1,), confidence=0.5, bounds=(0, 8))[-1]["certified"]
    assert bounded == certified_worst_case(learnt["reward"], 0.1, (0, 8), 0.5).lower > 0


USER, BOT = {"role": "user", "content": "q"}, {"role": "assistant", "content": "7"}
FORMS = {
    "question": ({"question": "q", "answer": "7"}, "q\n", "7"),
    "pair": ({"prompt": "q", "completion": "7"}, "q", "7"),
    "turns": ({"prompt": [USER], "completion": [BOT]}, [USER], "7"),
    "messages": ({"messages": [USER, BOT]}, [USER], "7"),
    "rounds": ({"messages": [USER, BOT, USER, BOT]}, [USER, BOT, USER], "7"),
    "prompt alone": ({"prompt": "q"}, "q", None),
    "prompt and answer": ({"prompt": [USER], "answer": 7}, [USER], 7),
    "preference": (
        {"prompt": [USER], "chosen": [BOT], "rejected": [USER | BOT | {"content": "8"}]},
        [USER],
        None,
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_prompts_of_every_row_format(name):
    row, prompt, answer = FORMS[name]
    rows = to_prompts(Dataset.from_list([{**row, "kind": "k"}]), conversational=False)
    assert rows[0]["prompt"] == prompt and rows[0].get("answer") == answer and rows[0]["kind"] == "k"
    chat = to_prompts(Dataset.from_list([row]), conversational=True)[0]["prompt"]
    assert isinstance(chat, list) == (name not in ("pair",))


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"text": "a"}], "needs prompts"),
        ([{"input_ids": [1]}], "needs prompts"),
        ([{"prompt": [USER, BOT]}], r"row 1 .* the last turn is not the user's"),
        ([{"prompt": "a"}, {"prompt": None}], "row 2"),
        ([{"messages": [BOT]}], "row 1"),
        ([{"other": 1}], "of no known format"),
    ],
)
def test_rows_without_prompts_are_refused(rows, said):
    with pytest.raises(ValueError, match=said):
        check_prompts(Dataset.from_list(rows))


def test_what_stands_before_a_prompt_is_part_of_it(caplog):
    """As in SFT of the same rows, and with `question` in place of `prompt`."""
    row = {"system": "In French.", "history": [["1+1?", "2"]], "prompt": "2+2?", "answer": "4", "input": "x"}
    earlier = [("system", "In French."), ("user", "1+1?"), ("assistant", "2"), ("user", "2+2?")]
    found = to_prompts(dataset_of([row]), conversational=True)
    assert [(turn["role"], turn["content"]) for turn in found[0]["prompt"]] == earlier
    assert {*found.column_names} >= {"prompt", "answer"} and not {"system", "history"} & {*found.column_names}
    plain = to_prompts(dataset_of([row]), conversational=False)[0]["prompt"]
    assert plain == "\n\n".join(text for _, text in earlier)
    assert "columns that are no part of the prompt: input" in caplog.text


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"prompt": "1 + 1?", "image": None}], "images are not supported"),
        ([{"prompt": "1 + 1?", "images": ["a.png"]}], "images are not supported"),
        ([{"prompt": "1 + 1?"}, {"prompt": None}], r"row 2 \(counted from 1\), prompt: null"),
        (
            [{"prompt": [{"role": "user", "content": "1 + 1?"}]}, {"prompt": None}],
            r"row 2 \(counted from 1\), prompt: null",
        ),
    ],
)
def test_prompts_that_cannot_be_asked_are_named(rows, said):
    with pytest.raises(ValueError, match=said):
        to_prompts(dataset_of(rows), conversational=True)
