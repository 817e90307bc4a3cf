"""Of other tools' columns: which one is the score, and which way it is better."""

import numpy as np
import pytest

import klball
from klball.scores.elsewhere.expression import direction, is_right
from test_scores_elsewhere import IDS

# --- which way is better --------------------------------------------------------------------------

LOSSES = [
    "loss",
    "nll",
    "eval_loss",
    "evalLoss",
    "NLL",
    "perplexity",
    "ppl_2",
    "error_rate",
    "WER",
    "log_loss",
]
LOSSES += [
    "not_tuned_loss",
    "not_fully_tuned_loss",
    "cross_entropy",
    "bits_per_byte",
    "brier",
    *("no_reply_errors", "no_family_errors", "no_context_error", "not_fully_failed"),
    "neg_log_likelihood",
    "mean loss",
    "train/loss",
]
WRONG = [
    *("wrong", "failed", "failures", "incorrect", "mistakes", "hallucinated", "violations", "invalid"),
    *(
        "not_correct",
        "notCorrect",
        "not_fully_correct",
        "not_yet_solved",
        "is_not_right",
        "not solved",
        "non_match",
        "un_solved",
    ),
    *("unsolved", "unsuccessful", "inaccurate", "inaccuracy", "mismatch_2", "non_exact_match", "neg_acc"),
    *("pass_fail", "no_success", "not_answered_correctly", "not_a_match", "not_always_correct"),
    *("not_strict_match", "not_all_tests_passed", "not_been_solved", "not_answered_acc"),
]
SOLVED = [
    *("correct", "acc", "exact_match", "pass@1", "success", "successful", "right", "includes", "solved"),
    *("correct_or_not", "no_anomaly_accuracy", "acc_no_context", "accNonEnglish", "accurate", "match_2"),
]
GAINS = [
    "accuracy",
    "acc_norm",
    "log_likelihood",
    "logprob",
    "reward",
    "exact_match",
    "F1",
    "neg_loss",
    "win",
    *("no_errors", "not_wrong", "non_hallucinated", "nonToxic"),
    *SOLVED,
]


def with_column(name):
    return {"id": IDS, name: [0.5, 2.0, 1.0, 4.0]}


@pytest.mark.parametrize("name", [*LOSSES, *WRONG])
def test_a_loss_needs_the_flag_which_the_refusal_names(name):
    assert direction(name) == -1
    with pytest.raises(ValueError, match="--lower_is_better") as refused:
        klball.scores_from(with_column(name))
    assert repr(name) in str(refused.value)
    scores = klball.scores_from(with_column(name), lower_is_better=True)
    assert scores.values.tolist() == [-0.5, -2.0, -1.0, -4.0] and scores.measure.loss
    with pytest.raises(ValueError, match="--lower_is_better"):
        klball.scores_from(with_column(name), score=repr(name) + " * 2")
    assert klball.scores_from(with_column(name), score=f"-{name!r}").values.tolist() == [-0.5, -2, -1, -4]
    assert klball.scores_from(with_column(name), lower_is_better=False).values.tolist() == [0.5, 2, 1, 4]


@pytest.mark.parametrize("name", GAINS)
def test_the_flag_on_what_is_better_higher_is_refused(name):
    with pytest.raises(ValueError, match="leave --lower_is_better out"):
        klball.scores_from(with_column(name), lower_is_better=True)


@pytest.mark.parametrize(
    "name", ["score", "latency", "tokens", "lossless", "terror", "accent", "inter_rater"]
)
def test_other_names_say_nothing(name):
    assert direction(name) == 0
    assert klball.scores_from(with_column(name)).values.tolist() == [0.5, 2, 1, 4]
    assert klball.scores_from(with_column(name), lower_is_better=True).measure.loss


@pytest.mark.parametrize("name", [*WRONG, *SOLVED])
def test_only_what_is_called_right_is_an_accuracy(name):
    """Not a column whose name denies it, whichever way its ones are said to count."""
    ones = {"id": IDS, name: [0, 1, 1, 0]}
    unit = klball.scores_from(ones, lower_is_better=None if name in SOLVED else False).measure.unit
    assert is_right(name) == (name in SOLVED) and (unit == "accuracy") == (name in SOLVED)


def test_losses_called_log_likelihoods_and_the_other_way_round_are_refused():
    with pytest.raises(ValueError, match='--score "-log_likelihood"'):
        klball.scores_from(with_column("log_likelihood"))
    assert klball.scores_from(with_column("log_likelihood"), score="-log_likelihood").values[0] == -0.5
    with pytest.raises(ValueError, match="look like log-likelihoods"):
        klball.scores_from({"nll": [-1.0, -2.0]}, lower_is_better=True)


# --- which column -----------------------------------------------------------------------------------


def test_of_several_numeric_columns_one_must_be_chosen(tmp_path):
    many = {"id": [1, 2], "x": [0.5, 1.0], "y": [3, 4], "text": ["p", "q"]}
    with pytest.raises(ValueError, match=r"several numeric columns \(x, y\).*--score COLUMN"):
        klball.scores_from(many)
    assert klball.scores_from(many, score="y").values.tolist() == [3, 4]
    assert klball.scores_from(many, score="y", id="text").sample_ids == ["p", "q"]
    with pytest.raises(ValueError, match=r"no numeric column .* there are id, text \('1,5'\)"):
        klball.scores_from({"id": [1, 2], "text": ["1,5", "q"]})
    with pytest.raises(ValueError, match=r"--score \"'a b' \+ 0.1\*c\""):
        klball.scores_from({"a b": [1, 2], "c": [1, 2]})
    (tmp_path / "x.csv").write_text("id,acc,words\na,NA,5\nb,1,6\n")  # a gap in front hides no column
    with pytest.raises(ValueError, match=r"several numeric columns \(acc, words\)"):
        klball.scores_from(tmp_path / "x.csv")
    for option in ("id", "group", "round"):
        with pytest.raises(ValueError, match=f"no column 'z' for --{option}; there are id, x, y, text"):
            klball.scores_from(many, score="x", **{option: "z"})
    with pytest.raises(ValueError, match="no column 'z' in the dict; there are id, x, y, text"):
        klball.scores_from(many, score="x + z")


def test_without_a_column_of_ids_rows_are_numbered():
    scores = klball.scores_from({"x": [1.0, 2.0]})
    assert scores.sample_ids == ["1", "2"] and scores.numbered
    assert not klball.scores_from({"x": [1.0, 2.0]}, id="none").numbered


SUMS = [
    *(
        "a + 0.1*b",
        "a - b/4",
        "-a",
        "+a",
        "2*(a - b) + 1",
        "1 - a",
        "b",
        "0.5*'odd name' + a",
        "(a + b) * 1e-3",
    ),
    *("'odd name'", "odd name", "3 * 2 * a", "-(-a)", "a + a", "0.25*a + 0.75*b - 3"),
]


@pytest.mark.parametrize("text", SUMS)
def test_weighted_sums_are_those_of_numpy(text):
    rng = np.random.default_rng(0)
    a, b, odd = rng.normal(size=(3, 5))
    scores = klball.scores_from({"a": a, "b": b, "odd name": odd}, score=text)
    python = text.replace("'odd name'", "odd").replace("odd name", "odd")
    expected = eval(python, {"a": a, "b": b, "odd": odd})
    np.testing.assert_allclose(scores.values, expected, rtol=1e-14)
    alone = {"+a": "a", "-(-a)": "a", "'odd name'": "odd name"}  # a column is called what it is
    assert scores.measure.unit == f"points of {alone.get(text, text)}"


NO_SUMS = [
    *("a*b", "a**2", "a/b", "1/a", "a/0", "abs(a)", "a.real", "a[0]", "lambda: a", "a if b else a", "a < b"),
    *("a,b", "__import__('os').system('touch pwned')", "a + 'zz'", "(a := 1)", "[a]", "a @ b", "a + True"),
    *("f'{a}'", "1j*a", "", " ", "a +", "1", "0*a", "a - a", "1e999*a", "9" * 400 + "*a", "a\nb", "a;b"),
    "(" * 300 + "a" + ")" * 300,
]


@pytest.mark.parametrize("text", NO_SUMS, ids=lambda text: text[:14])
def test_anything_else_is_refused_and_never_run(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"--score|no column"):
        klball.scores_from({"a": [1.0, 2.0], "b": [3.0, 4.0]}, score=text)
    assert not list(tmp_path.iterdir())
