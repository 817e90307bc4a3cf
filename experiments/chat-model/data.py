"""The rows of the experiments on a real chat model, from public files: `python data.py MODEL FOLDER OUTPUT`.

MODEL: SmolLM2-135M-Instruct, whose tokenizer measures lengths. FOLDER holds mtbench101.jsonl
(mtbench101/mt-bench-101), gpteacher-roleplay.json (teknium1/GPTeacher), gsm8k-train-3000.jsonl and
gsm8k-test.jsonl (openai/grade-school-math), hh-harmless-test.jsonl (anthropics/hh-rlhf, turns parsed),
llmbar-pairs.jsonl (princeton-nlp/LLMBar) and persona-beliefs.jsonl (anthropics/evals, 200 a persona).
"""

import json
import random
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

Row = dict[str, Any]
LONGEST, LONGEST_PAIR = 768, 512  # tokens
SHORT_HH, SHORT_LLMBAR = 200, 512  # tokens of both answers, each with its prompt
TEST, VALIDATION, TRAIN = 1_000, 240, 2_048
EXCHANGED = FLIPPED = 0.2
LARGEST = 30  # number of a sum


def main(model: str, folder: str, output: str) -> None:
    source, target = Path(folder), Path(output)
    target.mkdir(parents=True, exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(model)

    def size(turns: list[Row]) -> int:
        return len(tokenizer.apply_chat_template(turns, tokenize=True)["input_ids"])

    def both(row: Row) -> int:
        turns = [*row["prompt"] * 2, *row["chosen"], *row["rejected"]]
        return sum(len(tokenizer(turn["content"])["input_ids"]) + 5 for turn in turns)

    def write(name: str, rows: Iterable[Row]) -> None:
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        (target / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
        print(f"{name}: {len(lines)} rows")

    chats(source, write, size)
    problems(source, write)
    pairs(source, write, size, both)
    beliefs(source, write)


def chats(source: Path, write: Callable[..., None], size: Callable[..., int]) -> None:
    """Multi-turn dialogues of 13 tasks and single-turn role-play, split by their first question."""
    found = {}
    for row in _lines(source / "mtbench101.jsonl"):
        turns = [t for h in row["history"] for t in (_turn("user", h["user"]), _turn("assistant", h["bot"]))]
        found.setdefault(turns[0]["content"], {"messages": turns, "task": row["task"]})
    for row in json.loads((source / "gpteacher-roleplay.json").read_text(encoding="utf-8")):
        question = "\n\n".join(filter(None, (row["instruction"], row["input"])))
        turns = [_turn("user", question), _turn("assistant", row["response"])]
        found.setdefault(question, {"messages": turns, "task": "role-play"})
    rows = [row for row in found.values() if size(row["messages"]) <= LONGEST]
    rows = [{"id": f"chat-{k}", **row} for k, row in enumerate(rows)]
    random.Random(0).shuffle(rows)
    kept = rows[TEST + VALIDATION :][:TRAIN]
    write("chat-test", rows[:TEST])
    write("chat-validation", rows[TEST : TEST + VALIDATION])
    write("chat-train", kept)
    exchanged = _exchanged(kept)
    write("chat-train-exchanged", exchanged)
    write("chat-exchanged", [row for row in exchanged if row["exchanged"]])
    write("role-play", [row for row in rows[:TEST] if row["task"] == "role-play"][:300])


def _exchanged(rows: list[Row]) -> list[Row]:
    """A share of the rows gets the last answer of another of them."""
    chosen = random.Random(1).sample(range(len(rows)), round(EXCHANGED * len(rows)))
    answers = {
        k: rows[other]["messages"][-1] for k, other in zip(chosen, chosen[1:] + chosen[:1], strict=True)
    }
    return [
        {
            **row,
            "messages": [*row["messages"][:-1], answers.get(k, row["messages"][-1])],
            "exchanged": k in answers,
        }
        for k, row in enumerate(rows)
    ]


def problems(source: Path, write: Callable[..., None]) -> None:
    """GSM8K as it is, and sums of two numbers; harder ones have three."""
    rows = list(_lines(source / "gsm8k-train-3000.jsonl"))
    write("gsm8k-train", rows[:2_800])
    write("gsm8k-validation", rows[2_800:])
    write("gsm8k-test", list(_lines(source / "gsm8k-test.jsonl"))[:600])
    sums = [(a, b) for a in range(1, LARGEST + 1) for b in range(1, LARGEST + 1)]
    random.Random(0).shuffle(sums)
    write("sums-start", map(_sum, sums[:160]))
    write("sums-train", map(_sum, sums[160:700]))
    write("sums-test", map(_sum, sums[700:]))
    three = [(a, b, c) for a in range(1, 10) for b in range(1, 10) for c in range(1, 10)]
    write("sums-hard", map(_sum, random.Random(1).sample(three, 200)))


def _sum(numbers: tuple[int, ...]) -> Row:
    text = " + ".join(map(str, numbers))
    return {"id": text, "question": f"What is {text}?", "answer": f"{text} = {sum(numbers)}"}


def pairs(
    source: Path, write: Callable[..., None], size: Callable[..., int], both: Callable[[Row], int]
) -> None:
    """Harmless answers, clean and with flips, and LLMBar by its five groups; of both the short ones apart."""

    def write_short(name: str, rows: list[Row], longest: int, count: int | None = None) -> None:
        write(f"{name}-short", [row for row in rows if both(row) <= longest][:count])

    found = {}
    for row in _lines(source / "hh-harmless-test.jsonl"):
        longest = max(size(row["prompt"] + row[name]) for name in ("chosen", "rejected"))
        if row["chosen"] != row["rejected"] and longest <= LONGEST_PAIR:
            found.setdefault(json.dumps(row["prompt"]), row)
    rows = list(found.values())
    random.Random(0).shuffle(rows)
    write("hh-test", rows[:600])
    answered = [{"id": row["id"], "prompt": row["prompt"], "completion": row["chosen"]} for row in rows[:600]]
    write("hh-answers", [row for row in answered if size(row["prompt"] + row["completion"]) <= SHORT_HH][:60])
    train = rows[600:2_300]
    write("hh-train", train)
    flipped = set(random.Random(1).sample(range(len(train)), round(FLIPPED * len(train))))
    noisy = [_flipped(row, k in flipped) for k, row in enumerate(train)]
    write("hh-train-flipped", noisy)
    write_short("hh-test", rows[:600], SHORT_HH)
    write_short("hh-train", train, SHORT_HH, 400)
    write_short("hh-train-flipped", noisy, SHORT_HH, 400)
    rows = list(_lines(source / "llmbar-pairs.jsonl"))
    random.Random(0).shuffle(rows)
    write("llmbar-test", rows[:140])
    write("llmbar-train", rows[140:])
    write_short("llmbar-test", rows[:140], SHORT_LLMBAR)
    write_short("llmbar-train", rows[140:], SHORT_LLMBAR)


def _flipped(row: Row, flip: bool) -> Row:
    answers = {"chosen": row["rejected"], "rejected": row["chosen"]} if flip else {}
    return {**row, **answers, "flipped": flip}


def beliefs(source: Path, write: Callable[..., None]) -> None:
    """Whether a persona would say a statement, with the probability of yes."""
    rows = list(_lines(source / "persona-beliefs.jsonl"))
    random.Random(0).shuffle(rows)
    made = [
        {
            "id": row["id"],
            "prompt": [_turn("user", row["question"])],
            "beliefs": ["Yes", "No"],
            "p_star": [row["probability_yes"], 1 - row["probability_yes"]],
            "group": row["group"],
        }
        for row in rows
    ]
    write("beliefs-test", made[:400])
    write("beliefs-train", made[400:])
    write("beliefs-train-short", made[400:1_000])


def _turn(role: str, content: str) -> Row:
    return {"role": role, "content": content}


def _lines(path: Path) -> Iterable[Row]:
    with path.open(encoding="utf-8") as file:  # splitlines() would cut at U+2028 too
        yield from map(json.loads, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
