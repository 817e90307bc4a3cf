"""No name is logged without a definition, none defined that is not logged; the docs show the same table."""

import json
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from klball.commands import train as command
from klball.commands.options import parse
from klball.training.families import FAMILIES
from klball.training.logged import ALL, LOGGED, Logged, logged_by
from small_runs import train, write_rows
from test_families import pair_rows

DOCS = Path(__file__).parents[1] / "docs" / "formats.md"
GRPO = ["--num_generations", "4", "--max_completion_length", "6", "--reward", "exact", "--max_steps", "2"]
GRPO += ["--per_device_train_batch_size", "16"]
SLOW = pytest.mark.slow
EVALUATES = ["--eval_strategy", "steps", "--eval_steps", "2", "--test_fraction", "0.3"]
RUNS = [
    ("sft", ["--max_steps", "2", "--gamma", "14", "--objective", "psft", *EVALUATES]),
    ("dpo", ["--max_steps", "2", *EVALUATES]),
    ("grpo", [*GRPO, "--critic", "true", "--beta", "0.1"]),
    pytest.param("sft", ["--max_steps", "1", "--epsilon", "0", "--objective", "dft-sequence"], marks=SLOW),
    pytest.param("sft", ["--max_steps", "1", "--ambiguity", "cvar", "--alpha", "0.4"], marks=SLOW),
    pytest.param("dpo", ["--max_steps", "1", "--comparator", "trim"], marks=SLOW),
    pytest.param("dpo", ["--max_steps", "1", "--comparator", "trim", "--epsilon", "0"], marks=SLOW),
    pytest.param("dpo", ["--max_steps", "1", "--comparator", "kldpo", "--epsilon", "0"], marks=SLOW),
    pytest.param("reward", ["--max_steps", "2", *EVALUATES], marks=SLOW),
    pytest.param("gdpo", ["--max_steps", "2", *EVALUATES], marks=SLOW),
    pytest.param("grpo", [*GRPO, "--radius", "0", "--entropy_coef", "0.1"], marks=SLOW),
    pytest.param("grpo", [*GRPO, "--loss_type", "cispo", *EVALUATES], marks=SLOW),
    pytest.param("grpo", [*GRPO, "--loss_type", "vespo"], marks=SLOW),
]  # fmt: skip


def definition(name: str, family: str) -> Logged | None:
    """Of a name as it is logged; eval_NAME is NAME of other rows where it has no definition of its own."""
    own = {entry.name: entry for entry in LOGGED if family in entry.families}
    plain = re.sub(r"^rewards/.+/(mean|std)$", r"rewards/REWARD/\1", name.removeprefix("eval_"))
    return own.get(name) or own.get(plain)


@pytest.fixture(scope="module")
def data(root):
    write_rows(root / "pairs.jsonl", pair_rows(12))
    beliefs = [{"beliefs": ["yes", "no"], "p_star": [0.3, 0.7], "belief": "no"} for _ in range(12)]
    texts = [{"prompt": f"Is it {i}?", "chosen": "It is.", "rejected": "Or not."} for i in range(12)]
    write_rows(root / "beliefs.jsonl", [{**a, **b} for a, b in zip(beliefs, texts, strict=True)])
    write_rows(root / "prompts.jsonl", [{"prompt": f"What is {i}?", "answer": str(i)} for i in range(6)])
    return root


ROWS = {"sft": "rows.jsonl", "gdpo": "beliefs.jsonl", "grpo": "prompts.jsonl"}


@pytest.mark.parametrize(("family", "more"), RUNS)
def test_what_a_run_logs_is_what_it_says_at_its_start(family, more, data, tmp_path, capsys):
    rows = ROWS.get(family, "pairs.jsonl")
    train(data, tmp_path, "--family", family, "--save_steps", "1", *more, rows=rows)
    said = capsys.readouterr().out
    steps = max(tmp_path.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    lines = json.loads((steps / "trainer_state.json").read_text())["log_history"]
    found = {name for line in lines for name in line} - {"step"}
    found |= set(pq.read_table(tmp_path / "history.parquet").column_names) - {"step"}
    defined = {name: definition(name, family) for name in found}
    assert [name for name, entry in defined.items() if entry is None] == []
    words = ["--family", family, *more, "--report_to", "none", "--output_dir", "o"]
    (_, config) = parse([command.options_of(family), FAMILIES[family].config], words, "klball train")
    promised = {entry.name for entry in logged_by(family, config)}
    alike = {"critic/explained"}  # not where all returns are
    assert {entry.name for entry in defined.values()} | alike & promised == promised
    assert said.index("what this run logs") < said.index(min(promised))
    assert all(name in said for name in promised)


def test_every_family_has_its_names_once():
    for family in FAMILIES:
        names = [entry.name for entry in LOGGED if family in entry.families]
        assert names and len(set(names)) == len(names)
    assert set(ALL) == set(FAMILIES)
    assert all(entry.meaning and entry.families for entry in LOGGED)
    assert definition("nothing", "sft") is None and definition("kl", "sft") != definition("kl", "grpo")
    assert definition("eval_rewards/exact/mean", "grpo").name == "rewards/REWARD/mean"


def test_the_docs_show_the_table():
    text = DOCS.read_text(encoding="utf-8")
    (section,) = re.findall(r"^## What training logs\n(.*?)(?=^## )", text, re.DOTALL | re.MULTILINE)
    rows = re.findall(r"^\| `(.+?)` \| (.+?) \| (.+?) \|$", section, re.MULTILINE)
    every = {", ".join(ALL): "all"}
    assert rows == [
        (entry.name, every.get(", ".join(entry.families), ", ".join(entry.families)), entry.meaning)
        for entry in LOGGED
    ]
