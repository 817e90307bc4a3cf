"""Rounds: templates, quality control, rows of every layout, the file, the command."""

import random
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from klball.commands.paraphrase import main
from klball.data.builtin import BUILTIN, SPLITS, data_hash, load_builtin, module_of
from klball.data.paraphrase import quality
from klball.data.paraphrase.quality import QualityControl, Reply, Similarity, problem_of
from klball.data.paraphrase.rounds import read_rounds, write_rounds
from klball.data.paraphrase.samples import Sample, rows_of, samples_of
from klball.data.paraphrase.templates import QUESTIONS, kind_of, reword, templates
from klball.data.readers import dataset_of
from klball.data.rows import encode
from klball.files import json_digest

ROUNDS = 99
QUESTION_SETS = [name for name in BUILTIN if hasattr(module_of(name), "REWORDINGS")]


# --- templates ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", QUESTION_SETS)
def test_templates_of_the_embedded_data(name):
    """All prompts are recognised; 99 rewordings keep numbers and code, and never meet one another."""
    rows = load_builtin(name, "test")
    kinds = {kind_of(row["question"]) for row in rows}
    assert kinds == set(module_of(name).REWORDINGS)
    for row in random.Random(0).sample(rows, 30):
        made = [reword(row["question"], round_) for round_ in range(1, ROUNDS + 1)]
        assert len({quality.fold(text) for text in [*made, row["question"]]}) == ROUNDS + 1
        assert {problem_of(row["question"], text) for text in made} == {""}
    for round_ in (1, 50, 99):
        assert len({reword(row["question"], round_) for row in rows}) == len(rows)


@pytest.mark.parametrize("name", QUESTION_SETS)
def test_every_prompt_of_the_embedded_data_is_of_one_kind(name):
    of_kind = {kind: module_of(n) for n in QUESTION_SETS for kind in module_of(n).REWORDINGS}
    assert list(of_kind) == list(QUESTIONS)  # no two data sets share a kind
    for split in SPLITS:
        for row in load_builtin(name, split)[:200]:
            matching = [kind for kind, pattern in QUESTIONS.items() if pattern.fullmatch(row["question"])]
            assert len(matching) == 1 and of_kind[matching[0]] is module_of(name)


def test_embedded_rows_and_rewordings_are_those_that_files_on_disk_were_made_from():
    hashes = {split: data_hash(load_builtin("word-problems", split)) for split in SPLITS}
    assert hashes == {"train": "2b686acbbf6651c8", "test": "8cc710df3cee8498"}
    kinds = ["module", "class", "function", "method"]
    kinds += ["boxes", "savings", "sharing", "shop", "journey", "ages", "other"]
    assert json_digest([templates(kind) for kind in kinds]) == "a157d0d922abb7f2"


def test_templates_are_sentences():
    for kind in QUESTIONS:
        for text in templates(kind):
            assert text[0].isupper() or text[0] == "{", text
            assert text.endswith((".", "?")) and "  " not in text and ".." not in text and "?." not in text
            assert text.endswith("?") == text.split(". ")[-1].startswith(("Can", "Could", "How", "What")), (
                text
            )


def test_other_prompts_stay_word_for_word():
    prompt = "  Use {braces} and `f(x)`, 3 times.\nQ: why?\nA: "
    made = [reword(prompt, round_) for round_ in range(1, ROUNDS + 1)]
    assert len(set(made)) == ROUNDS
    assert all(text.endswith("\n\n" + prompt.lstrip()) and text.startswith("  ") for text in made)
    with pytest.raises(ValueError, match="rounds 1 to"):
        reword("Hello", 10_000)


def test_templates_are_the_same_in_another_process():
    code = (
        "from klball.data.paraphrase.templates import *; print([templates(k) for k in [*QUESTIONS, 'other']])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str([templates(kind) for kind in [*QUESTIONS, "other"]])


# --- quality ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("original", "candidate", "reason"),
    [
        ("Ann has 3 cats.", "There are 3 cats with Ann.", ""),
        ("Ann has three cats.", "There are 3 cats with Ann.", ""),
        ("Ann has 1,200 cats.", "There are 1200 cats with Ann.", ""),
        ("It costs 2.00.", "The price is 2.", ""),
        ("Ann has 3 cats.", "Ann has some cats.", quality.NUMBERS),
        ("Ann has 3 cats.", "Ann has 4 cats, I think.", quality.NUMBERS),
        ("3 bags of 3", "3 bags", quality.NUMBERS),
        ("It is -3 degrees.", "The temperature is 3 degrees.", quality.NUMBERS),
        ("From 5-3 take 2", "Take 2 from 5-3", ""),
        ("Pages 3–5 of it", "Of it, pages 3–5", ""),
        ("Add .5 cups of milk", "Put .50 cups of milk in", quality.NUMBERS),
        ("Add .5 cups of milk", "Put 0.5 cups of milk in", ""),
        ("Add 05.00 cups of milk", "Put 5 cups of milk in", ""),
        ("Add .5 cups of milk", "Put 5 cups of milk in", quality.NUMBERS),
        ("Is -.5 below 0?", "Would .5 be below 0?", quality.NUMBERS),
        ("It is –5 degrees", "The temperature is 5 degrees", quality.NUMBERS),
        ("Work out 5²", "Compute 5³", quality.NUMBERS),
        ("Work out 5²", "Compute 5²", ""),
        ("Take ½ a cup", "Use ¼ of a cup", quality.NUMBERS),
        ("Take ½ a cup", "Use 0.5 of a cup", ""),
        ("Take १２ cups", "Use 12 cups", ""),
        ("From 10%–20% of it", "10% to 20% of it", ""),
        ("From 5 –3 to 4", "5 and 3, to 4", ""),
        ("Work out 10⁻³", "Compute 10³", quality.NUMBERS),
        ("Run Python 3.10", "Start Python 3.1", quality.NUMBERS),
        ("What is `a1`?", "Explain `a1`.", ""),
        ("What is `a1`?", "Explain a1.", quality.CODE),
        ("Run ```x = 1\ny```", "Please run ```x = 1\nz```", quality.CODE),
        ("What is `a`?", "Explain `A`.", quality.CODE),
        ("Why?", "  ", quality.EMPTY),
        ("Why?", "I'm sorry, but I can't help with that.", quality.REFUSED),
        ("Why?", "As an AI, I do not rewrite.", quality.REFUSED),
        ("I'm sorry, what was that?", "I am sorry, could you repeat that?", ""),
        ("What is it?", "  what IS it", quality.UNCHANGED),
    ],
)
def test_problem_of(original, candidate, reason):
    assert problem_of(original, candidate) == reason


def samples(*prompts):
    return [Sample(str(i), prompt, f"answer {i}") for i, prompt in enumerate(prompts)]


def judge(control, *texts):
    return [verdict.reason for verdict in control.judge([Reply(text) for text in texts])]


def test_duplicates_within_and_across_rounds():
    control = QualityControl(samples("one thing", "another thing", "One  thing", "last"))
    assert judge(control, "a", "b", "A.", "c") == ["", "", "", ""]  # equal prompts may share a wording
    assert judge(control, "d", "D", "e", "c?") == [quality.SHARED, quality.SHARED, "", quality.REPEATED]
    assert judge(control, "b", "d", "g", "h") == ["", quality.REPEATED, "", ""]
    assert [v.reason for v in control.judge([Reply(None)] * 4)] == [quality.NO_REPLY] * 4


def test_no_sample_takes_the_prompt_that_another_may_keep():
    control = QualityControl(samples("What is 3 minus 5?", "What is 5 minus 3?"))
    assert judge(control, "what is 5 minus 3", "REFUSED?") == [quality.SHARED, quality.NUMBERS]


def test_similarity_is_a_cosine_and_only_asked_where_needed():
    vectors = {"x": [1, 0], "y": [1, 1], "near x": [3, 1], "far": [-1, 2], "z": [0, 0]}
    seen = []

    def embed(texts):
        seen.extend(texts)
        return [vectors[text] for text in texts]

    control = QualityControl(samples("x", "y", "x"), Similarity(embed, 0.8))
    verdicts = control.judge([Reply("near x"), Reply("far"), Reply("")])
    assert [v.reason for v in verdicts] == ["", quality.DISSIMILAR, quality.EMPTY]
    expected = [np.dot(*p) / np.sqrt(np.dot(p[0], p[0]) * np.dot(p[1], p[1])) for p in [([1, 0], [3, 1])]]
    assert verdicts[0].similarity == pytest.approx(expected[0]) and verdicts[2].similarity is None
    assert sorted(seen) == ["far", "near x", "x", "y"]
    with pytest.raises(ValueError, match="not finite"):
        control.judge([Reply("z"), Reply("far"), Reply("")])


# --- rows and the rounds file -------------------------------------------------------------------

CHAT = {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]}
CHAT["messages"] += [{"role": "assistant", "content": "Hello."}, {"role": "user", "content": "Name 2 birds"}]
CHAT["messages"] += [{"role": "assistant", "content": "Owl, wren."}, {"role": "user", "content": "Thanks"}]
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {% if m['role'] == 'assistant' %}{% generation %}"
    "{{ m['content'] }}{% endgeneration %}{% else %}{{ m['content'] }}{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
ROWS = {
    "question": [{"question": f"What is {i}?", "answer": f"the value {i}"} for i in range(3)],
    "id": [{"id": 7, "question": "Why?", "answer": "so"}, {"id": 8, "question": "How?", "answer": "thus"}],
    "instruction": [{"instruction": "Sum", "input": "1 and 2", "output": "3", "extra": 5}],
    "plain": [{"prompt": "Q: 1?\nA: ", "completion": "one"}],
    "chat": [{"prompt": [{"role": "user", "content": "Hey"}], "completion": [dict(CHAT["messages"][2])]}],
    "messages": [CHAT],
}
CONVERSATIONS = ("chat", "messages")  # which need a tokenizer with a template


@pytest.mark.parametrize(
    ("name", "chat"),
    [(name, chat) for name in ROWS for chat in (False, True) if chat or name not in CONVERSATIONS],
)
def test_rounds_join_what_score_reads(name, chat, tokenizer, tmp_path, monkeypatch):
    """Same ids and answers as the original data under either kind of tokenizer; only the prompt differs."""
    monkeypatch.setattr(tokenizer, "chat_template", TEMPLATE if chat else None)
    dataset = Dataset.from_list(ROWS[name])
    read, layout = samples_of(dataset)
    path = tmp_path / "rounds.parquet"
    replies = {1: [Reply(f"Said anew: {s.prompt}") for s in read], 2: [Reply(None) for _ in read]}
    rounds = write_rounds(path, read, layout, replies.get, rounds=2, maker={"maker": "test"})
    originals, anew, fallen = (encode(d, tokenizer) for d in (dataset, rounds.dataset(1), rounds.dataset(2)))
    assert originals["sample_id"] == anew["sample_id"] == rounds.sample_ids
    assert originals["input_ids"] == fallen["input_ids"] and originals["labels"] == fallen["labels"]

    def answers(encoded):
        return [[token for token in labels if token >= 0] for labels in encoded["labels"]]

    assert answers(originals) == answers(anew) and originals["input_ids"] != anew["input_ids"]
    texts = [tokenizer.decode(ids) for ids in anew["input_ids"]]
    assert all(text.count("Said anew: ") == 1 for text in texts)


def test_ids_do_not_depend_on_the_tokenizer(tokenizer, monkeypatch):
    dataset = Dataset.from_list(ROWS["question"])
    ids = []
    for template in (None, TEMPLATE):
        monkeypatch.setattr(tokenizer, "chat_template", template)
        ids.append(encode(dataset, tokenizer)["sample_id"][:])
    assert ids[0] == ids[1]


def test_the_last_user_turn_before_the_final_answer_is_reworded():
    read, layout = samples_of(Dataset.from_list([CHAT]))
    assert (read[0].prompt, read[0].answer, layout) == ("Name 2 birds", "Owl, wren.", "conversation")


@pytest.mark.parametrize("size", [0, 4, 300])
def test_a_damaged_part_costs_its_round_alone(size, tmp_path, caplog):
    read, asked = samples("one", "two things"), []

    def replies(round_, last):
        asked.append(round_)
        if round_ > last:
            raise KeyboardInterrupt
        return [Reply(f"wording {round_}"), Reply("two things, " + "again " * round_)]

    settings: dict = {"rounds": 3, "maker": {"maker": "test"}}
    whole, path = tmp_path / "whole.parquet", tmp_path / "rounds.parquet"
    write_rounds(whole, read, "question-answer", lambda r: replies(r, 3), **settings)
    with pytest.raises(KeyboardInterrupt):
        write_rounds(path, read, "question-answer", lambda r: replies(r, 2), **settings)
    (part,) = tmp_path.glob("rounds.parquet.parts-*/000001.parquet")
    part.write_bytes(part.read_bytes()[:size])
    asked.clear()
    write_rounds(path, read, "question-answer", lambda r: replies(r, 3), **settings)
    assert asked == [1, 3] and "000001.parquet is damaged and made again" in caplog.text
    assert path.read_bytes() == whole.read_bytes()


def test_rounds_resume_and_refuse(tmp_path):
    """A kill in round 3 costs round 3 alone; earlier wordings are still known; other settings are refused."""
    read = samples("one", "two things")
    asked = []

    def replies(round_):
        asked.append(round_)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return [Reply("first" if round_ in (1, 3) else "second"), Reply("two things, " + "again " * round_)]

    path, settings = tmp_path / "rounds.parquet", {"rounds": 4, "maker": {"maker": "test"}}
    with pytest.raises(KeyboardInterrupt):
        write_rounds(path, read, "question-answer", replies, **settings)
    assert not path.exists()
    rounds = write_rounds(path, read, "question-answer", replies, **settings)
    assert asked == [1, 2, 3, 3, 4] and rounds.rounds == [1, 2, 3, 4]
    assert rounds.table(3)["reason"].to_pylist() == [quality.REPEATED, ""]
    assert rounds.table(3)["prompt"].to_pylist()[0] == "one"
    assert rounds.table(3)["candidate"].to_pylist()[0] == "first"
    assert [row["accepted"] for row in rounds.acceptance()] == [2, 2, 1, 1]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["rounds.parquet"]
    write_rounds(path, read, "question-answer", replies, **settings)
    assert len(asked) == 5
    with pytest.raises(ValueError, match="different: rounds"):
        write_rounds(path, read, "question-answer", replies, rounds=2, maker={"maker": "test"})
    with pytest.raises(ValueError, match="no round 5"):
        rounds.dataset(5)
    table = pq.read_table(path)
    pq.write_table(table.slice(1), path)
    with pytest.raises(ValueError, match="same samples"):
        read_rounds(path)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text": "x"}], "no prompt"),
        ([{"question": "x", "answer": ""}], "no row has an answer"),
        ([{"messages": [{"role": "user", "content": "x"}]}], "no assistant turn"),
        ([{"question": "x"}], "no known format"),
    ],
)
def test_rows_that_cannot_be_rephrased(rows, message):
    with pytest.raises(ValueError, match=message):
        samples_of(Dataset.from_list(rows))


# --- the command --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--maker", "oracle"], "--maker must be one of .* not 'oracle'"),
        (["--rounds", "0"], "--rounds must be at least 1"),
        (["--rounds", "500"], "the templates make 180 different rounds"),
        (["--maker", "model"], "needs --model_name_or_path"),
        (["--maker", "openai-batch", "--model_name_or_path", "m"], "needs --step"),
        (["--similarity_model", "x"], "pip install 'klball\\[similarity\\]'"),
        (["--max_rows", "0"], "--max_rows"),
        (
            [
                "--maker",
                "openai-batch",
                "--model_name_or_path",
                "m",
                "--step",
                "requests",
                "--requests_per_file",
                "50001",
            ],
            "at most",
        ),
        (["--requests_per_file", "7"], "has no effect with --maker templates"),
        (
            ["--maker", "model", "--model_name_or_path", "m", "--step", "submit"],
            "has no effect with --maker model",
        ),
        (["--min_similarity", "0.5"], "without --similarity_model"),
    ],
)
def test_bad_arguments(arguments, message, data, tmp_path):
    fixed = ["--dataset_name", str(data), "--output_dir", str(tmp_path / "out")]
    with pytest.raises(ValueError, match=message):
        main([*fixed, *arguments], prog="klball paraphrase")
    assert not (tmp_path / "out").exists()


# --- rounds files of other making, and prompts that are only framed -------------------------------


def test_conversations_come_back_as_they_were():
    """Absent keys stay absent, and tools' arguments may be of any kind: a template prints what is there."""
    called = [
        [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": given}}]}]
        for given in ({"a": 1}, {"a": "x"}, {"b": [1.5]})
    ]
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"Call {k}."},
                *turns,
                {"role": "assistant", "content": "Done."},
            ]
        }
        for k, turns in enumerate(called)
    ]
    samples, layout = samples_of(dataset_of(rows))
    columns = zip(*((s.sample_id, s.prompt, s.answer, s.conversation) for s in samples), strict=True)
    made = rows_of(layout, *map(list, columns)).to_list()
    assert [row["messages"] for row in made] == [row["messages"] for row in rows]


@pytest.mark.parametrize(
    ("candidate", "problem"),
    [
        ("Tracy used 4 feet of wire and obtained 6 inches of it.", "nothing is asked"),
        ("Rewrite the prompt: Tracy cuts 4 feet of wire into 6 inches. How many?", "more than a prompt"),
        ("Tracy cuts 4 feet of wire into pieces of 6 inches: how many?", ""),
        ("Tell me into how many pieces of 6 inches Tracy cuts 4 feet of wire.", ""),
        ("Calculate the number of pieces of 6 inches in 4 feet of Tracy's wire.", ""),
        ("崔西把4英尺的线剪成6英寸的小段，一共多少段？", ""),
    ],
)
def test_a_question_still_asks(candidate, problem):
    """Of seven rewordings by a small model that kept every number, five had lost the question."""
    original = "Tracy used a wire 4 feet long. It was cut into pieces 6 inches long. How many did she obtain?"
    assert problem_of(original, candidate) == problem
    assert problem_of("Rewrite the prompt below: 4 of 6.", "Please rewrite the prompt below: 4 of 6.") == ""
