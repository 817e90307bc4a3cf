"""Verifiable rewards on awkward texts."""

import asyncio
import importlib.util
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from datasets import Dataset
from trl.trainer.utils import is_async_callable

from klball import ExactMatch, LastNumber, LengthPenalized, MathVerify, MultipleChoice
from klball.training.rl.answers import choice_of, last_number, text_of, without_thoughts
from klball.training.rl.rewards import refuse_unreadable, refusing_nan

NUMBERS = {
    "The answer is 72.": "72",
    "72": "72",
    "She has 3 apples and 5 pears, so 8": "8",
    "#### 1,234": "1234",
    "1,234,567.50 dollars": "1234567.5",
    "between 1,2 and 3": "3",
    "It costs $12.": "12",
    "$1,000": "1000",
    "-$5": "-5",
    "−7": "-7",
    "minus: −7.25.": "-7.25",
    "–3": "-3",
    "- 3": "-3",
    "- 3 apples": "-3",
    "5-3": "3",
    "5 - 3 = 2": "2",
    "3–5": "5",
    "x = -0.5": "-.5",
    ".5": ".5",
    "-.5 m": "-.5",
    "3/4": "3/4",
    "3 / 4": "3/4",
    "-3/4 of it": "-3/4",
    "1e3": "1000",
    "2.5e-1": "1/4",
    "12km": "12",
    "12 km/h": "12",
    "50%": "50",
    "50 percent": "50",
    "3.14.": "3.14",
    "3.0": "3",
    "007": "7",
    "**42**": "42",
    "\\boxed{42}": "42",
    "42!": "42",
    "(42)": "42",
    "(-42)": "-42",
    "=42": "42",
    "42,": "42",
    "1, 2, 3": "3",
    "12:30": "30",
    "I counted 10\nand then 20": "20",
    "6 x2": "6",
    "7 of H2O": "7",
    "8 CO2": "8",
    "no number": None,
    "": None,
    "x2": None,
    "5/0": None,
    "½": None,
    "nan": None,
    "inf": None,
    "twelve": None,
    "9" * 5000: None,
    "1/" + "9" * 5000: None,
    "1.5/2": "3/4",
    "10\u202f000": "10000",
    "10\u00a0km": "10",
    "10 000": "0",
    "two 2s": "2",
    "\u0661\u0662": None,
}


@pytest.mark.parametrize(("text", "value"), NUMBERS.items(), ids=[text[:20] for text in NUMBERS])
def test_the_last_number_of_a_text(text, value):
    assert last_number(text) == (None if value is None else Fraction(value))


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("<think>5</think> 7", "7"),
        ("5</think>\n\n7", "7"),
        ("<think>a</think> 5 <think>b</think>7", "7"),
        ("<think>it is 7", None),
        ("a</think> 5 <think> 7", None),
        ("<THINK>5</Think>7", "7"),
        ("<thinking>5</thinking>7", "7"),
        ("7", "7"),
        ("<think>7</think>", ""),
    ],
)
def test_thoughts_are_no_answers(text, rest):
    assert without_thoughts(text) == rest
    expected = float(rest == "7")
    assert LastNumber()(None, [text], answer=["7"]) == [expected]


CHOICES = {
    "B": "B",
    "(B)": "B",
    "B.": "B",
    "**B**": "B",
    "The answer is B.": "B",
    "The answer is (C), not (D).": "C",
    "Answer: D": "D",
    "answer = **A**": "A",
    "The best option is B because A is wrong": "B",
    "A) one\nB) two\nSo it is\nB": "B",
    "Not (A) but (B)": "B",
    "I think A man did it.": None,
    "A cat sat.": None,
    "It is A.": "A",
    "none": None,
    "": None,
    "Answer: Because": None,
    "the answer is a mystery": None,
    "AB": None,
    "The answer is A. Wait, the answer is B.": "B",
    "[J]": "J",
    "K": None,
}


@pytest.mark.parametrize(("text", "letter"), CHOICES.items())
def test_the_choice_of_a_text(text, letter):
    assert choice_of(text) == letter
    assert MultipleChoice()(None, [text], answer=["(B)"]) == [float(letter == "B")]


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("so\n#### 72", True),
        ("####72", True),
        ("#### $72.00", True),
        ("#### 72 apples", True),
        ("#### 71\n#### 72", True),
        ("#### 72\nand 5 more words", True),
        ("####\n72", True),
        ("72", False),
        ("72 ####", False),
        ("#### 71\n72", False),
        ("#### none", False),
    ],
)
def test_the_format_asked_for(text, right):
    assert LastNumber(marker="####")(None, [text], answer=["3 + 69 = 72\n#### 72"]) == [float(right)]
    assert not right or LastNumber()(None, [text.partition("\nand")[0]], answer=["72"]) == [1.0]


def test_exact_match_minds_all_but_white_space():
    texts = ["a b", " a\n b ", "A b", "a b.", "ab", "<think>x</think>a b", ""]
    assert ExactMatch()(None, texts, answer=["a b"] * len(texts)) == [1, 1, 0, 0, 0, 1, 0]


def test_a_cut_completion_is_no_finished_answer():
    for reward in (LastNumber(), ExactMatch()):
        assert reward(None, ["7 7", "7 7"], answer=["7 7"] * 2, completion_finished=[False, True]) == [0, 1]


@pytest.mark.parametrize(
    ("completion", "text"),
    [
        ("a", "a"),
        ([{"role": "assistant", "content": "a"}], "a"),
        ([{"role": "assistant", "content": "x"}, {"role": "assistant", "content": "a"}], "a"),
        ([{"role": "assistant", "content": [{"type": "text", "text": "a"}, {"type": "image"}]}], "a"),
        ([{"role": "assistant", "content": None, "tool_calls": []}], ""),
        ([{"role": "assistant"}], ""),
        ([], ""),
    ],
)
def test_text_of_any_completion(completion, text):
    assert text_of(completion) == text


@pytest.mark.parametrize(
    ("reward", "columns", "said"),
    [
        (LastNumber(), {}, "needs a column 'answer'"),
        (LastNumber("solution"), {"answer": ["1"]}, "needs a column 'solution'"),
        (LastNumber(), {"answer": ["one"]}, "needs numbers in column 'answer', not 'one'"),
        (ExactMatch(), {"answer": [["1"]]}, "found no right answer in column 'answer'"),
        (LastNumber(), {"answer": [None]}, "found no right answer in column 'answer'"),
        (ExactMatch(), {"answer": [" "]}, "found no right answer"),
        (MultipleChoice(), {"answer": ["2"]}, "needs letters A to J"),
        (MultipleChoice(), {"answer": ["AB"]}, "needs letters A to J"),
    ],
)
def test_what_a_reward_refuses(reward, columns, said):
    with pytest.raises(ValueError, match=said) as caught:
        reward(None, ["7"], **columns)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_row_that_a_reward_cannot_read_is_refused_before_any_answer(wrapped):
    reward = LengthPenalized(LastNumber(), 0.1) if wrapped else LastNumber()
    good = Dataset.from_dict({"prompt": ["a", "b"], "answer": ["1", "2"]})
    bad = Dataset.from_dict({"prompt": ["a", "b"], "answer": ["1", "two"]})
    refuse_unreadable([len, reward], "data", good)
    with pytest.raises(ValueError, match=r"data: row 2 \(counted from 1\), answer: the reward needs numbers"):
        refuse_unreadable([len, reward], "data", bad)
    with pytest.raises(ValueError, match="needs a column 'answer'"):
        refuse_unreadable(reward, "data", good.remove_columns("answer"))
    refuse_unreadable([len], "data", bad)


def test_numbers_may_be_numbers():
    assert LastNumber()(None, ["7", "7.0", "8"], answer=[7, 7.0, 7]) == [1, 1, 0]


def test_the_length_penalty():
    inner = LastNumber()
    reward = LengthPenalized(inner, 0.1, free=2)
    ids = [[0], [0] * 2, [0] * 5]
    assert reward(None, ["7", "7", "8"], ids, answer=[7] * 3) == pytest.approx([1, 1, -0.3])
    unscored = LengthPenalized(lambda **_: [None], 0.1)
    assert unscored(None, ["7"], [[0]]) == [None]
    with pytest.raises(ValueError, match="length penalty"):
        LengthPenalized(inner, -1)


HAVE_MATH = importlib.util.find_spec("math_verify") is not None


def test_math_verify_is_asked_for_in_one_line(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(ValueError, match=r"pip install 'klball\[math\]'") as caught:
        MathVerify()
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not HAVE_MATH, reason="needs the extra klball[math]")
@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        ("$\\frac{3}{4}$", "0.75", True),
        ("\\boxed{\\frac{3}{4}}", "\\frac{6}{8}", True),
        ("so 5, no: $x^2+2x+1$", "$(x+1)^2$", True),
        ("72", "72", True),
        ("it is -1,000.", "$-1000$", True),
        ("$71$", "72", False),
        ("nothing", "72", False),
        ("__import__('os').system('true')", "1", False),
    ],
)
def test_math_verify_reads_latex_and_numbers(answer, reference, right):
    assert MathVerify()(None, [answer], answer=[reference]) == [float(right)]


def test_no_reward_runs_what_a_model_wrote(monkeypatch):
    import builtins

    def never(*_, **__):
        raise AssertionError("a text was run")

    monkeypatch.setattr(builtins, "eval", never)
    monkeypatch.setattr(builtins, "exec", never)
    texts = ["__import__('os').system('true') 7", "exit(7)", "7; import sys", "9**9**9**9"]
    rewards = [LastNumber(), ExactMatch(), *([MathVerify()] if HAVE_MATH else [])]
    for reward in rewards:
        assert len(reward(None, texts, answer=["7"] * 4)) == 4


@pytest.mark.parametrize("kind", [list, tuple, iter, torch.tensor, np.array])
def test_rewards_may_be_any_row_of_numbers(kind):
    """A generator can be read once, and TRL reads it too."""
    checked = refusing_nan("own", lambda **given: kind([0.5, 1.0]))
    assert [float(value) for value in checked(completions=["a", "b"])] == [0.5, 1.0]
    with pytest.raises(ValueError, match="'own' gave"):
        refusing_nan("own", lambda **given: kind([0.5, math.nan]))(completions=["a", "b"])


@pytest.mark.parametrize("awaited", [False, True])
@pytest.mark.parametrize(
    "given",
    [
        [1.0, math.nan],
        ["a", "b"],
        None,
        0.5,
        "ab",
        {0: 1.0, 1: 1.0},
        {0.5, 1.0},
        [torch.tensor(math.nan), 1.0],
    ],
    ids=str,
)
def test_what_is_no_row_of_numbers_is_refused_awaited_or_not(given, awaited):
    async def later(**_):
        return given

    checked = refusing_nan("own", later if awaited else lambda **_: given)
    assert is_async_callable(checked) == awaited  # TRL awaits it only then
    with pytest.raises(ValueError, match="reward 'own' gave"):
        asyncio.run(checked(completions=[])) if awaited else checked(completions=[])


def test_awaited_rewards_come_through():
    async def later(completions, **_):
        return [None if text == "" else float(len(text)) for text in completions]

    assert asyncio.run(refusing_nan("own", later)(completions=["ab", ""])) == [2.0, None]
