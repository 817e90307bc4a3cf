"""How public results show themselves: one short line, and a table that a notebook can hold."""

from dataclasses import dataclass, is_dataclass
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from transformers import TrainingArguments

import klball
from klball.shown import Shown
from test_plot import BETTER, G, table

SCORE = {"score": torch.tensor(G)}


def compared():
    tables = {(m, r): table(g + 0.1 * k) for m, g in (("a", G), ("b<i>", BETTER)) for k, r in enumerate("12")}
    return klball.compare_scores(klball.round_scores(tables), epsilon=0.1)


RESULTS = {  # name → (how to get it, what its line must say)
    "DualSolution": (lambda: klball.solve_dual(G, epsilon=0.1), "KL 0.1,"),
    "DualSolutions": (lambda: klball.solve_dual(np.stack([G, BETTER]), epsilon=0.1), "2 optimal"),
    "TiltSolution": (lambda: klball.KLBall(0.1).solve(SCORE), "kl=0.1,"),
    "DensitySolution": (lambda: klball.CVaR(0.25).solve(SCORE), "ess=100"),
    "TrimmedSolution": (lambda: klball.Trimmed(klball.KLBall(0.1), 0.05).solve(SCORE), "status=optimal"),
    "RobustProfile": (lambda: klball.robust_profile(G, [0, 0.1]), "epsilon=[0, 0.1]"),
    "CertifiedWorstCase": (lambda: klball.certified_worst_case(G > -2, 0.1), "confidence=0.95"),
    "Scores": (lambda: klball.scores_from(table(G)), "400 items"),
    "RoundScores": (lambda: compared().scores, "(2 × 2 × 400)"),
    "RoundSolutions": (lambda: compared().asked.solutions, "epsilon=0.1, gamma=None"),
    "Comparison": (compared, "rounds=2, items=400"),
}


class Cells(HTMLParser):
    """The texts of well-formed HTML, in whose text no markup is left."""

    def __init__(self, text):
        super().__init__()
        self.texts, self.open = [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


@pytest.mark.parametrize("name", RESULTS)
def test_a_result_is_one_short_line_and_a_table(name):
    make, said = RESULTS[name]
    result = make()
    line = repr(result)
    assert line.startswith(f"{name}(") and said in line and "\n" not in line and len(line) < 350
    cells = Cells(result._repr_html_()).texts
    assert name in cells and len(cells) > 4


def test_a_comparison_shows_its_verdicts_escaped():
    found = compared()
    texts = Cells(found._repr_html_()).texts
    assert all(sentence in texts for _, sentence in found.said()) and "b<i>" in found.said()[0][1]


def test_a_score_table_says_what_is_in_it_and_shows_its_first_rows():
    rows = [{"question": f"What is {i}?", "answer": "it is a key"} for i in range(9)]
    scored = klball.score(
        "klball/tiny", dataset=[*rows, {"question": "x", "answer": "y " * 40}], max_length=40
    )
    mean = np.mean(scored["log_likelihood"])
    assert f"ScoreTable(10 rows: mean log-likelihood {mean:.4g} nats/token" in repr(scored)
    assert "; 1 cut, 0 without an answer; sample_id, log_likelihood" in repr(scored)
    html = scored._repr_html_()
    assert html.count("<tr") == 5 and "log_likelihood" in html and scored["sample_id"][0] in html
    assert repr(scored.remove_columns("certainty")).startswith("Dataset(")


@dataclass(repr=False)
class Odd(Shown):
    values: object


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.123456, "0.1235"),
        (np.array([1.0, np.nan, 3.0]), "1 … 3 (3)"),
        (np.full(2, np.nan), "(2)"),
        (torch.zeros(2, 3), "(2 × 3)"),
        (np.zeros(0), "(0)"),
        ([*range(9)], "[0, 1, …, 8] (9)"),
        ({"a": 0.5, "b": [1]}, "[a: 0.5, b: [1]]"),
        (None, "None"),
        ("<b>", "<b>"),
    ],
)
def test_values_are_brief(value, shown):
    assert repr(Odd(value)) == f"Odd(values={shown})"
    assert Cells(Odd(value)._repr_html_()).texts == ["Odd", "values", shown]


def test_every_public_result_is_one_of_these():
    """Of the public dataclasses all that are no settings, sets or rewards."""
    public = {name: getattr(klball, name) for name in klball.__all__}
    data = {name: cls for name, cls in public.items() if isinstance(cls, type) and is_dataclass(cls)}
    results = {
        name
        for name, cls in data.items()
        if not (
            issubclass(cls, TrainingArguments)
            or hasattr(cls, "solve")
            or any("__call__" in vars(base) for base in cls.__mro__)
        )
    }
    results |= {"Scores"}
    assert {"DualSolution", "StreamedSolution", "Comparison", "Rounds"} <= results
    assert all(issubclass(data[name], Shown) for name in results), results


def test_a_file_of_rounds_says_where_it_is(tmp_path):
    assert repr(klball.Rounds(tmp_path / "none", {})) == f"Rounds(path={tmp_path}/none)"
