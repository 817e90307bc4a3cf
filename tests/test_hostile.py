"""Malformed and awkward inputs: a fixed sample of each class, and every second one in the slow tests."""

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from hostile.case import EITHER, REFUSED, WORKS, Answer, Case, verdict
from hostile.catalogue import catalogue

SAMPLE = 1  # of each class
AT_LEAST = 1_100
EVERY = 2  # of the slow tests: half an hour of one core for all; `python -m tests.hostile.run` has them all


def assert_answered_well(tmp_path, *options):
    """In a process of its own: a fork of one whose threads have run may hang or fail."""
    report = tmp_path / "failures.json"
    done = subprocess.run(
        [sys.executable, "-m", "hostile.run", *options, "--json", str(report)],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-3_000:]}"
    assert json.loads(report.read_text())["failures"] == []


def test_the_catalogue_is_large_and_names_every_command():
    cases = catalogue()
    assert len(cases) >= AT_LEAST
    commands = Counter(case.arguments[0] for case in cases if case.arguments)
    for name in ("train", "score", "solve", "evaluate", "scan", "paraphrase", "compare", "reproduce", "tune"):
        assert commands[name] >= 20, name


def test_a_sample_of_each_class_is_answered_well(tmp_path):
    assert_answered_well(tmp_path, "--sample", str(SAMPLE))


@pytest.mark.slow
@pytest.mark.parametrize("group", dict.fromkeys(case.group for case in catalogue()))
def test_every_second_hostile_input_is_answered_well(group, tmp_path):
    assert_answered_well(tmp_path, "--class", re.escape(group), "--every", str(EVERY))


GOOD = "klball: error: d.jsonl, row 3: answer is null\n"


@pytest.mark.parametrize(
    ("expected", "code", "err", "wrong"),
    [
        (REFUSED, 2, GOOD, ""),
        (EITHER, 2, GOOD, ""),
        (EITHER, 0, "", ""),
        (WORKS, 0, "WARNING  one row was cut\n", ""),
        (REFUSED, 2, "WARNING  one row was cut\n" + GOOD, ""),
        (REFUSED, 0, "", "accepted"),
        (WORKS, 2, GOOD, "exit code 2"),
        (REFUSED, 1, GOOD, "exit code 1"),
        (EITHER, 1, "Traceback (most recent call last)\n", "traceback"),
        (EITHER, -11, "", "killed by signal 11"),
        (REFUSED, 2, "usage: klball\n" + GOOD, "the error drowns in other lines"),
        (REFUSED, 2, GOOD + "more\n", "the error is not one last line"),
        (REFUSED, 2, "klball: error: " + "x" * 999, "the line has 1014 characters"),
        (REFUSED, 2, "klball: error: row 3 is odd", "the line does not say answer"),
        (REFUSED, 2, "klball: error: \x1b[2J answer", "an escape sequence reaches the terminal"),
        (REFUSED, 2, "klball train: error: answer", "no line `klball: error:`"),
    ],
)
def test_the_judge_knows_good_answers_from_bad_ones(expected, code, err, wrong):
    case = Case("x", "x", expected, hints=("answer",))
    assert verdict(case, Answer(code, "", err)) == wrong


def test_the_judge_sees_what_was_written_elsewhere_and_what_a_check_found():
    case = Case("x", "x", WORKS)
    assert verdict(case, Answer(0, "", "", strangers=("pwned",))) == "wrote outside its folder: pwned"
    assert verdict(case, Answer(0, "", "", problem="the weights are others")) == "the weights are others"
