"""One validator for every row format: what is accepted, what is refused and in which words."""

import copy

import pandas as pd
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

import klball
from conftest import small_qwen
from gradient_grid import quiet
from klball import cli
from klball.data.encoding import load_chat_template
from klball.data.readers import dataset_of
from klball.data.rows import (
    as_dataset,
    encode,
    first_rows,
    load_rows,
    texts_of,
    to_trl_format,
    with_sample_ids,
)
from test_rows import ROWS, write

GOOD = {"question": "Who?", "answer": "Ada."}
USER, ASSISTANT = {"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ada."}
CHAT = {"messages": [USER, ASSISTANT]}
PAIR = {"prompt": [USER], "completion": [ASSISTANT]}
CALL = {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": {"name": "f"}}]}


def chat(*turns):
    return {"messages": list(turns)}


# row → what a message says of it, after a row that is right
BAD_ROWS = {
    "null messages": (CHAT, {"messages": None}, "messages: null, not a list"),
    "JSON string": (CHAT, {"messages": '[{"role": "user"}]'}, "messages: text, not a list.*JSON string"),
    "number for messages": (CHAT, {"messages": 7}, "messages: (text|int '7'), not"),
    "one object": (CHAT, {"messages": USER}, "messages: an object, not a list"),
    "no turns": (CHAT, chat(), "messages: the list of turns is empty"),
    "turns of text": (CHAT, chat("hi", "yo"), "turn 1: text, not an object"),
    "a null turn": (CHAT, chat(USER, None), "turn 2: null, not an object"),
    "no role": (CHAT, chat({"content": "x"}, ASSISTANT), "turn 1: no role"),
    "unknown role": (CHAT, chat({"role": "human", "content": "x"}, ASSISTANT), "role 'human'.*'user'"),
    "odd role": (CHAT, chat(USER, {"role": 3, "content": "x"}), "turn 2: unknown role 3"),
    "list for a role": (CHAT, chat(USER, {"role": ["user"], "content": "x"}), "turn 2: unknown role"),
    "null content": (CHAT, chat({"role": "user", "content": None}, ASSISTANT), "the user has no content"),
    "no content": (CHAT, chat(USER, {"role": "assistant"}), "turn 2: the assistant has no content"),
    "no calls": (CHAT, chat(USER, {**CALL, "tool_calls": []}), "turn 2: the assistant has no content"),
    "calls of a user": (CHAT, chat({**CALL, "role": "user"}, ASSISTANT), "turn 1: the user has no content"),
    "calls as text": (CHAT, chat(USER, {**CALL, "tool_calls": "f()"}), "tool_calls is text"),
    "number for content": (CHAT, chat(USER, {"role": "assistant", "content": 4}), "content is int '4'"),
    "object for content": (CHAT, chat(USER, {"role": "assistant", "content": {}}), "content is an object"),
    "an image": (CHAT, chat({"role": "user", "content": [{"type": "image_url"}]}, ASSISTANT), "'image_url'"),
    "a bare part": (CHAT, chat({"role": "user", "content": ["x"]}, ASSISTANT), "content has text: only"),
    "a null part": (CHAT, chat({"role": "user", "content": [{"type": "text", "text": None}]}, ASSISTANT), ""),
    "nobody answers": (CHAT, chat(USER), "no assistant turn"),
    "tools as prose": ({**CHAT, "tools": None}, {**CHAT, "tools": "a clock"}, "tools: text that is not JSON"),
    "tools as object": ({**CHAT, "tools": []}, {**CHAT, "tools": {"a": 1}}, "tools: an object, not a list"),
    "kwargs as list": (
        {**CHAT, "chat_template_kwargs": {}},
        {**CHAT, "chat_template_kwargs": [1]},
        "chat_template_kwargs: a list",
    ),
    "prompt kinds": (PAIR, {"prompt": "Who?", "completion": "Ada."}, "prompt: text, but in row 1 a list"),
    "mixed kinds": (PAIR, {"prompt": [USER], "completion": "Ada."}, "completion: text, but"),
    "mixed the other way": (
        {"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": [ASSISTANT]}, "a list, but"
    ),
    "empty prompt": (PAIR, {"prompt": [], "completion": [ASSISTANT]}, "prompt: .* is empty"),
    "empty completion": (PAIR, {"prompt": [USER], "completion": []}, "completion: .* is empty"),
    "completion by the user": (PAIR, {"prompt": [USER], "completion": [USER]}, "completion: no assistant"),
    "null completion": (
        {"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": None}, "completion: .*null"
    ),
    "null text": ({"text": "a"}, {"text": None}, "text: text is missing"),
    "absent answer": (GOOD, {"question": "a"}, "answer: text is missing"),
    "null question": (GOOD, {"question": None, "answer": "b"}, "question: text is missing"),
    "list for an answer": (GOOD, {"question": "a", "answer": ["b"]}, "answer: a list, not text"),
    "object for an answer": (GOOD, {"question": "a", "answer": {"text": "b"}}, "answer: an object, not text"),
    "history of text": (
        {**GOOD, "history": []}, {**GOOD, "history": [["a"]]}, r"history: not a list of \[user, assistant\]"
    ),
    "sharegpt speaker": (
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
        {"conversations": [{"from": "alien", "value": "a"}]},
        "turn 1: unknown speaker 'alien'",
    ),
    "sharegpt null": (
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
        {"conversations": [{"from": "human", "value": None}, {"from": "gpt", "value": "b"}]},
        "turn 1: the user has no content",
    ),
    "no tokens": ({"input_ids": [1, 2]}, {"input_ids": []}, "input_ids: no tokens"),
    "null tokens": ({"input_ids": [1, 2]}, {"input_ids": None}, "input_ids: null, but it must be a list"),
    "tokens as text": ({"input_ids": [1, 2]}, {"input_ids": ["a"]}, "input_ids: a list, but it must be"),
    "short labels": (
        {"input_ids": [1], "labels": [1]}, {"input_ids": [1, 2], "labels": [1]}, "1 values for 2 input_ids"
    ),
    "short mask": (
        {"input_ids": [1], "completion_mask": [1]}, {"input_ids": [1, 2], "completion_mask": [1]}, "1 val"
    ),
    "odd padding": (
        {"input_ids": [1], "attention_mask": [1]},
        {"input_ids": [1], "attention_mask": 1.5},
        "attention_mask: .*must be a list",
    ),
    "padding": (
        {"input_ids": [1, 2], "attention_mask": [1, 1]},
        {"input_ids": [1, 2], "attention_mask": [1, 0]},
        r"attention_mask: padding \(0\)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_ROWS)
def test_bad_rows_are_named_in_one_line(name, tokenizer, tmp_path):
    """By the file's row, from a file as from Python, and in the trainer."""
    good, bad, message = BAD_ROWS[name]
    rows = [good, bad, good]

    def train():
        klball.RobustSFTTrainer(
            small_qwen(len(tokenizer)),
            klball.RobustSFTConfig(**quiet(str(tmp_path))),
            train_dataset=rows,
            processing_class=tokenizer,
        )

    path = write(tmp_path / "d.jsonl", rows)
    for refused in (lambda: load_rows(path), lambda: encode(rows, tokenizer), train):
        with pytest.raises(ValueError, match=rf"row 2 \(counted from 1\), .*({message})") as caught:
            refused()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [b"x", [1], {"a": 1}])
def test_answers_of_other_types_are_refused(value, tokenizer):
    rows = Dataset.from_dict({"question": ["q"], "answer": [value]})
    with pytest.raises(ValueError, match=r"row 1 .*answer: .*, not text"):
        encode(rows, tokenizer)


def test_labels_are_no_texts(tokenizer):
    features = Features({"question": Value("string"), "answer": ClassLabel(names=["no", "yes"])})
    with pytest.raises(ValueError, match="answer holds class labels"):
        encode(Dataset.from_dict({"question": ["q"], "answer": [1]}, features=features), tokenizer)


@pytest.mark.parametrize("command", ["score", "evaluate", "scan", "paraphrase", "compare", "train"])
def test_every_command_refuses_a_bad_row_before_it_loads_a_model(command, tmp_path, monkeypatch, capsys):
    from transformers import AutoModelForCausalLM

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", None)
    path = write(tmp_path / "d.jsonl", [CHAT, chat(USER)])
    option = "--datasets" if command == "evaluate" else "--dataset_name"
    more = ["--models", "a=klball/tiny", "b=klball/tiny"] if command == "compare" else []
    with pytest.raises(SystemExit) as caught:
        cli.main([command, option, path, "--output_dir", str(tmp_path / "out"), *more])
    assert caught.value.code == 2
    assert "row 2 (counted from 1), messages: no assistant turn" in capsys.readouterr().err


# --- what is accepted -------------------------------------------------------------------------


def rendered(rows, conversational=True):
    return to_trl_format(dataset_of(rows), conversational).to_list()


def test_text_parts_are_their_text():
    parts = [{"type": "text", "text": "W"}, {"type": "text", "text": "ho?"}]
    assert rendered([chat({"role": "user", "content": parts}, ASSISTANT)]) == [CHAT]


@pytest.mark.parametrize("names", [("human", "gpt"), ("user", "assistant"), ("human", "chatgpt")])
def test_sharegpt_turns_are_messages(names):
    turns = [{"from": names[0], "value": "Who?"}, {"from": names[1], "value": "Ada."}]
    system = {"role": "system", "content": "Be short."}
    assert rendered([{"conversations": turns}]) == [CHAT]
    assert rendered([{"conversations": [USER, ASSISTANT]}]) == [CHAT]
    assert rendered([{"conversations": turns, "system": "Be short."}]) == [chat(system, USER, ASSISTANT)]
    own = {"from": "system", "value": "Be short."}
    assert rendered([{"conversations": [own, *turns], "system": "x"}]) == [chat(system, USER, ASSISTANT)]


@pytest.mark.parametrize("question", ["instruction", "question", "prompt"])
@pytest.mark.parametrize("answer", ["output", "response", "answer", "completion"])
def test_question_and_answer_columns(question, answer):
    (row,) = rendered(
        [{question: "Who?", answer: "Ada."}], conversational=question != "prompt" or answer != "completion"
    )
    assert row == (
        PAIR if (question, answer) != ("prompt", "completion") else {"prompt": "Who?", "completion": "Ada."}
    )


def test_system_and_history_are_turns_before_the_question():
    row = {
        "system": "Be short.",
        "history": [["a", "b"]],
        "instruction": "Who?",
        "input": "Now",
        "output": "Ada.",
    }
    before = [("system", "Be short."), ("user", "a"), ("assistant", "b"), ("user", "Who?\n\nNow")]
    (made,) = rendered([row])
    assert [(turn["role"], turn["content"]) for turn in made["prompt"]] == before
    assert rendered([row], False) == [
        {"prompt": "Be short.\n\na\n\nb\n\nWho?\n\nNow\n", "completion": "Ada."}
    ]
    none = {**row, "system": None, "history": None, "input": ""}
    assert rendered([none]) == [PAIR]


@pytest.mark.parametrize(
    ("row", "unused", "kept"),
    [
        ({**CHAT, "text": "x", "source": "web"}, ["text"], {"messages", "source"}),
        ({**CHAT, "system": "x"}, ["system"], {"messages"}),
        ({**CHAT, "chosen": "a", "rejected": "b"}, ["chosen, rejected"], {"messages"}),
        ({**CHAT, "labels": [1, 2]}, ["labels"], {"messages"}),
        ({**CHAT, "prompt": "Who?", "prompt_id": "7"}, [], {"messages", "prompt_id"}),
        ({**CHAT, "prompt": "Other?"}, ["prompt"], {"messages"}),
        ({**GOOD, "text": "x"}, ["answer, question"], {"text"}),
        ({**GOOD, "input": "x"}, ["input"], {"prompt", "completion"}),
        ({"prompt": "a", "completion": "b", "tools": []}, ["tools"], {"prompt", "completion"}),
        (
            {"input_ids": [1, 2], "labels": [1, 2], "completion_mask": [0, 1]},
            ["completion_mask"],
            {"input_ids", "labels"},
        ),
    ],
)
def test_columns_without_effect_are_named_once(row, unused, kept, caplog, tmp_path, tokenizer):
    rows = load_rows(write(tmp_path / "d.jsonl", [row]))
    encode(rows, tokenizer)
    messages = [record.getMessage() for record in caplog.records if record.name.startswith("klball")]
    told = [message.rpartition(": ")[2].partition(" (more")[0] for message in messages]
    assert told == unused
    assert set(to_trl_format(rows, True).column_names) == {*kept, "sample_id"}


@pytest.mark.parametrize(
    "row",
    [
        *(CHAT, PAIR, chat(USER, CALL), chat(USER, CALL, ASSISTANT), {"prompt": "a", "completion": "b"}),
        *({"text": "x"}, {"input_ids": [1, 2]}, {"prompt": [USER], "completion": [CALL]}),
    ],
)
def test_texts_can_be_shown_for_every_format(row):
    assert all(isinstance(text, str) for text in texts_of(rendered([row])[0]))
    assert "null" not in texts_of(rendered([row])[0]) and "None" not in texts_of(rendered([row])[0])


# --- templates --------------------------------------------------------------------------------


def test_a_tokenizer_without_a_template_takes_none_away(tokenizer, tmp_path):
    bare = copy.deepcopy(tokenizer)
    bare.chat_template = None
    bare.save_pretrained(tmp_path)
    own = copy.deepcopy(tokenizer)
    with pytest.raises(ValueError, match=r"no chat template at .* tokenizer that has one"):
        load_chat_template(own, str(tmp_path))
    assert own.chat_template == tokenizer.chat_template


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "no chat template.*--chat_template_path"),
        ("{% for m in messages %}", "fault in line 1"),
        (
            "{{ raise_exception('No such turns') }}{% generation %}{% endgeneration %}",
            "row 1 .*No such turns",
        ),
        ("{{ messages[0].content + 1 }}{% generation %}{% endgeneration %}", "row 1 .*cannot render"),
        ("{{ messages[-1].content }}", r"\{% generation %\}.*--chat_template_path"),
    ],
)
def test_templates_that_do_not_fit_are_one_line(template, message, tokenizer, tmp_path):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = template
    config = klball.RobustSFTConfig(**quiet(str(tmp_path)))
    model = small_qwen(len(tokenizer))
    for refused in (
        lambda: encode([CHAT], tokenizer),
        lambda: klball.RobustSFTTrainer(model, config, train_dataset=[CHAT], processing_class=tokenizer),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            refused()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ids", [[1, 99_999], [-1, 2]])
def test_tokens_out_of_the_vocabulary_are_refused(ids, tokenizer, tmp_path):
    model, rows = small_qwen(len(tokenizer)), [{"input_ids": [1, 2]}, {"input_ids": ids}]
    config = klball.RobustSFTConfig(**quiet(str(tmp_path)))
    for refused in (
        lambda: klball.score(model, tokenizer, rows),
        lambda: klball.RobustSFTTrainer(model, config, train_dataset=rows, processing_class=tokenizer),
    ):
        with pytest.raises(ValueError, match=r"row 2 .*input_ids: token id (99999|-1), but the vocabulary"):
            refused()


# --- objects in Python ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["torch", "numpy", "pandas", "arrow"])
def test_formatted_data_sets_are_plain_again(kind):
    dataset = Dataset.from_list([{"id": 5, "question": "a", "answer": "b"}]).with_format(kind)
    rows = with_sample_ids(as_dataset(dataset))
    assert rows["sample_id"][:] == ["5"] and to_trl_format(rows, False)["completion"][:] == ["b"]


def test_rows_in_python():
    assert as_dataset(ROWS).to_list() == as_dataset(pd.DataFrame(ROWS)).to_list() == ROWS
    dataset = Dataset.from_list(ROWS)
    mixed = pd.DataFrame({"question": ["a", "b"], "answer": [7, "x"]})
    assert to_trl_format(as_dataset(mixed), False)["completion"][:] == ["7", "x"]
    for rows, message in [
        (DatasetDict({"train": dataset}), r"is split \(train\): .* data\[.train.\]"),
        (dataset.to_iterable_dataset(), "streaming"),
        (dataset.with_transform(lambda row: row), "with_transform"),
        ("data.jsonl", r"load_rows\('data.jsonl'\)"),
        (["a", "b"], "must be a datasets.Dataset, not list"),
        (None, "not NoneType"),
    ]:
        with pytest.raises(ValueError, match=message):
            as_dataset(rows)


@pytest.mark.parametrize("count", [0, -1])
def test_the_first_rows_are_some(count):
    with pytest.raises(ValueError, match="--max_rows must be at least 1"):
        first_rows(Dataset.from_list(ROWS), count)
    assert len(first_rows(Dataset.from_list(ROWS), 99)) == len(first_rows(Dataset.from_list(ROWS), None)) == 8
