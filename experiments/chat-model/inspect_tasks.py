"""Tasks of Inspect on the rows of `data.py`, which lie in `rows` beside this file."""

import json
from itertools import islice
from pathlib import Path
from typing import Any

from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.scorer import choice, match
from inspect_ai.solver import generate, multiple_choice


def rows(name: str, count: int) -> list[dict[str, Any]]:
    path = Path(__file__).parent / "rows" / f"{name}.jsonl"
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in islice(file, count)]


@task
def gsm8k(count: int = 40) -> Task:
    samples = [
        Sample(id=f"gsm-{k}", input=row["question"], target=row["answer"].split("####")[-1].strip())
        for k, row in enumerate(rows("gsm8k-test", count))
    ]
    return Task(dataset=samples, solver=generate(), scorer=match(numeric=True))


@task
def sums(count: int = 60) -> Task:
    samples = [
        Sample(id=row["id"], input=row["question"], target=row["answer"].split("=")[-1].strip())
        for row in rows("sums-test", count)
    ]
    return Task(dataset=samples, solver=generate(), scorer=match(numeric=True, location="any"), epochs=2)


@task
def llmbar(count: int = 60) -> Task:
    """The better answer is A in every second pair."""
    samples = []
    for k, row in enumerate(rows("llmbar-test", count)):
        pair = [row["chosen"][-1]["content"], row["rejected"][-1]["content"]]
        question = "Which answer follows the instruction better?\n" + row["prompt"][-1]["content"]
        choices, target = (pair, "A") if k % 2 == 0 else (pair[::-1], "B")
        samples.append(Sample(id=row["id"], input=question, choices=choices, target=target))
    return Task(dataset=samples, solver=multiple_choice(), scorer=choice())
