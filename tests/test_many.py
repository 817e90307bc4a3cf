"""Much of anything stays readable: what is printed and drawn is bounded, and says where the rest is."""

import json
import logging

import numpy as np
import pytest

from klball import compare_scores
from klball.cli import main
from klball.commands.comparison_tables import show, write
from klball.commands.elsewhere import _by_name, _groups
from klball.comparison.elsewhere import RoundsElsewhere
from klball.comparison.rounds import RoundScores
from klball.data.rows import load_rows
from klball.report.page import MOST_ROWS as MOST_DRAWN
from klball.report.page import Table
from klball.report.pages.comparison import write_comparison_report
from klball.scores.elsewhere.item_scores import Scores
from klball.scores.elsewhere.report import item_report
from klball.scores.measure import Measure
from klball.terminal import LONGEST_SHOWN, MOST_ROWS, say_verdicts, show_table

LOSS = Measure("loss", "nats", True)


def test_a_long_table_is_printed_in_part(capsys):
    rows = [(f"row {k}.", k) for k in range(MOST_ROWS + 5)]
    show_table("t", ("a", "b"), rows, "the file has them all")
    shown = capsys.readouterr().out
    assert f"row {MOST_ROWS - 1}." in shown and f"row {MOST_ROWS}." not in shown
    assert "5 more rows: the file has them all" in shown
    show_table("t", ("a", "b"), rows)
    assert f"row {MOST_ROWS + 4}." in capsys.readouterr().out


def test_many_verdicts_are_printed_in_part(capsys):
    say_verdicts([f"line {k}." for k in range(MOST_ROWS + 2)], "the file has them all")
    shown = capsys.readouterr().out
    assert f"line {MOST_ROWS - 1}." in shown and f"line {MOST_ROWS}." not in shown
    assert "2 more: the file has them all" in shown


def test_an_endless_cell_shows_its_ends(capsys):
    show_table("t", ("a",), [("begin" + "x" * 5_000 + "end",), ("y" * LONGEST_SHOWN,)])
    shown = "".join(capsys.readouterr().out.split())
    assert "begin" in shown and "end" in shown and shown.count("x") < LONGEST_SHOWN
    assert shown.count("y") == LONGEST_SHOWN


def test_a_long_table_of_a_page_says_where_its_rows_are():
    table = Table("t", [{"a": k, "g": k % 2} for k in range(MOST_DRAWN + 10)], group="g")
    assert len(table.shown) == MOST_DRAWN and {row["g"] for row in table.shown} == {0, 1}
    assert "10 more are in the files beside this page" in table.left_out()


@pytest.mark.parametrize("seed", range(3))
def test_groups_have_the_numbers_of_their_items(seed):
    rng = np.random.default_rng(seed)
    values, weights = -rng.gamma(2, size=60), rng.dirichlet(np.ones(60))
    groups = rng.choice(["a", "b", "ä", "b "], 60).tolist()
    ids, rounds = [str(k) for k in range(60)], ["all"] * 60
    found = _groups(Scores(LOSS, "loss", ids, values, rounds, groups), weights)
    assert [row["group"] for row in found] == sorted(set(groups))
    report = item_report({"m": values}, LOSS, "m", groups)
    for row in found:
        own = np.array([group == row["group"] for group in groups])
        expected = (own.sum(), -values[own].mean(), own.mean(), weights[own].sum())
        assert (row["items"], row["mean"], row["f"], row["q"]) == pytest.approx(expected)
        assert row["q_f"] == pytest.approx(row["q"] / row["f"])
        of_report = report.row_of["m", f"group {row['group']}"]
        assert (of_report["items"], of_report["value"]) == pytest.approx(expected[:2])


def test_of_many_groups_the_worst_come_first():
    rng = np.random.default_rng(0)
    a, b, groups = -rng.gamma(2, size=200), -rng.gamma(2, size=200), [f"g{k % 100}" for k in range(200)]
    blocks = _by_name(item_report({"a": a, "b": b}, LOSS, "a", groups), ["a", "b"])
    metrics = sum(not rows[0]["name"].startswith("group ") for rows in blocks)
    worst = [max(row["value"] for row in rows) for rows in blocks[metrics:]]
    assert blocks[0][0]["name"] == "mean" and len(worst) == 100 and worst == sorted(worst, reverse=True)


def test_many_groups_are_solved_and_reported_in_part(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for name in "ab":
        rows = [
            {"id": k, "correct": int(rng.random() < 0.6), "grp": f"group-{k % 150:03d}"} for k in range(600)
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    main(["solve", "--scores", str(tmp_path / "a.jsonl"), "--group", "grp", "--epsilon", "0.1"])
    assert f"{150 - MOST_ROWS} more rows: --json true prints them all" in capsys.readouterr().out
    scores = [f"{name}={tmp_path / name}.jsonl" for name in "ab"]
    main(["evaluate", "--scores", *scores, "--group", "grp", "--output_dir", str(tmp_path / "out")])
    assert " more rows: " in capsys.readouterr().out
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Of the groups the 60 of the largest differences are drawn." in page
    assert (tmp_path / "out" / "scores.csv").read_text().count("group group-") == 300


def test_many_models_are_compared_in_part(tmp_path, capsys):
    rng, models = np.random.default_rng(0), 14
    g = -rng.gamma(2, size=(models, 2, 40)) - 0.05 * np.arange(models)[:, None, None]
    tokens = np.full(g.shape, 10.0)
    names = ([f"m{k}" for k in range(models)], ["0", "1"], [f"i{k}" for k in range(40)])
    scores = RoundScores(*names, g, g + 10.0, g * tokens, tokens, tokens * 4, {"missing": 0})
    comparison = compare_scores(scores, 0.1)
    (tmp_path / "run.json").write_text("{}")
    write(comparison, RoundsElsewhere({}), tmp_path)
    show(comparison, RoundsElsewhere({}), tmp_path)
    shown = " ".join(capsys.readouterr().out.split())
    assert "more: " in shown and "verdicts.txt has them all" in shown
    assert "p-values of every pair of 14 models are in" in shown
    assert len((tmp_path / "verdicts.txt").read_text().splitlines()) > 2 * 91
    write_comparison_report(comparison, RoundsElsewhere({}), tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "51 more are in verdicts.txt." in page
    assert "Drawn are the 40 pairs of the largest differences." in page
    assert page.count('"a round"') == 40 * len(comparison.analyses())


def test_what_is_no_json_is_said_once_a_file(tmp_path, caplog):
    line = '{"question": "q", "answer": "a", "score": %s}\n'
    (tmp_path / "rows.jsonl").write_text("".join(line % value for value in ("1", "NaN", "-Infinity", "NaN")))
    with caplog.at_level(logging.WARNING):
        assert load_rows(tmp_path / "rows.jsonl")["score"][:] == ["1", None, None, None]
    said = [record.getMessage() for record in caplog.records if "JSON" in record.getMessage()]
    assert len(said) == 1
    assert said[0].endswith("rows.jsonl, line 2: NaN is not JSON, and is read as null (3 times in this file)")
