"""Scoring renders rows as TRL's trainer does; the trainer takes the rows that scoring takes."""

import copy
import json
from pathlib import Path

import pandas as pd
import pytest
import torch
import trl
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

import klball
from conftest import small_qwen
from gradient_grid import quiet
from klball.data.readers import dataset_of
from klball.data.rows import encode, to_trl_format

TEMPLATES = Path(trl.__file__).parent / "chat_templates"
TOWNS = ("Oslo", "Lima", "Cairo")
PROPERTIES = {"type": "object", "properties": {"town": {"type": "string"}}, "required": ["town"]}
CLOCK = {"name": "clock", "description": "Tells the time.", "parameters": PROPERTIES}
TOOLS = [{"type": "function", "function": CLOCK}]


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}


def call(**arguments):
    return [{"type": "function", "function": {"name": "clock", "arguments": arguments}}]


def asking(town):
    return user(f"What time is it in {town}?")


def rows_of(kind):
    """Three rows of a kind, of different lengths and with different keys."""
    answer = {"role": "tool", "name": "clock", "content": "10:15"}
    silent = [assistant(None, tool_calls=call(**{t: k + 0.5})) for k, t in enumerate(TOWNS)]
    ends = ("", "<|im_end|>", " ")
    return {
        "messages": [
            {"messages": [asking(t), assistant(f"{t} sleeps."), user("And?"), assistant("")]} for t in TOWNS
        ],
        "tools": [
            {"messages": [asking(t), assistant("", tool_calls=call(town=t))], "tools": TOOLS} for t in TOWNS
        ],
        "tools as text": [
            {"messages": [asking(t), assistant("Ten.")], "tools": json.dumps(TOOLS[:k])}
            for k, t in enumerate(TOWNS)
        ],
        "null content": [
            {
                "messages": [asking(t), silent[k], answer, assistant("10:15")],
                "tools": TOOLS if k else None,
            }
            for k, t in enumerate(TOWNS)
        ],
        "pair": [{"prompt": [asking(t)], "completion": [assistant("Ten.")]} for t in TOWNS],
        "pair with tools": [
            {"prompt": [asking(t)], "completion": [turn], "tools": TOOLS}
            for t, turn in zip(TOWNS, silent, strict=True)
        ],
        "thinking": [
            {
                "prompt": [asking(t)],
                "completion": [assistant("Ten.")],
                "chat_template_kwargs": {"enable_thinking": False} if k else {},
            }
            for k, t in enumerate(TOWNS)
        ],
        "plain": [
            {"prompt": f"{t}:", "completion": f" ten{end}"} for t, end in zip(TOWNS, ends, strict=True)
        ],
        "text": [{"text": f"Ten in {t}{end}"} for t, end in zip(TOWNS, ends, strict=True)],
    }[kind]


def trl_tokens(rows, tokenizer, tmp_path):
    settings = {"assistant_only_loss": "messages" in rows[0], "max_length": None}
    config = SFTConfig(**quiet(str(tmp_path), **settings))
    trainer = SFTTrainer(
        small_qwen(len(tokenizer)),
        config,
        train_dataset=dataset_of(rows),
        processing_class=copy.deepcopy(tokenizer),
    )
    return trainer.train_dataset.select_columns(["input_ids", "labels"]).to_list()


CHATS = ("messages", "tools", "tools as text", "null content", "pair", "pair with tools", "thinking")
CASES = [
    *((template, kind) for template in ("qwen3", "qwen2_5", "llama3_1", "glm4moe") for kind in CHATS),
    *((template, kind) for template in ("own", "phi3", "gemma", "llama3") for kind in ("messages", "pair")),
    *(("own", kind) for kind in ("plain", "text")),
]


def fits(template, kind):
    """Llama 3.1's template has no counterpart that marks assistant turns."""
    return template != "llama3_1" or kind.startswith("pair")


@pytest.mark.parametrize(("template", "kind"), [case for case in CASES if fits(*case)])
def test_tokens_and_labels_are_those_of_trl(template, kind, tokenizer, tmp_path):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.bos_token = "<|im_start|>"  # some templates write it
    if template != "own":
        tokenizer.chat_template = (TEMPLATES / f"{template}.jinja").read_text()
    rows = rows_of(kind)
    ours = encode(rows, tokenizer)
    assert ours.select_columns(["input_ids", "labels"]).to_list() == trl_tokens(rows, tokenizer, tmp_path)
    assert all(num_bytes > 0 for num_bytes in ours["num_bytes"])
    for row in ours:
        scored = [token for token in row["labels"][1:] if token != -100]
        assert row["num_bytes"] == len(tokenizer.decode(scored, skip_special_tokens=True).encode())


@pytest.mark.parametrize("kind", ["tools", "null content", "thinking"])
def test_the_trainer_and_score_agree(kind, tokenizer, tmp_path):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = (TEMPLATES / "qwen3.jinja").read_text()
    model, rows = small_qwen(len(tokenizer), max_position_embeddings=2_048), dataset_of(rows_of(kind))
    trainer = trainer_of(rows, tokenizer, tmp_path, model=model, max_length=2_048)
    table = klball.score(trainer.model, tokenizer, rows)
    fresh = trainer.score_dataset(trainer.samples)
    assert fresh["log_likelihood"].tolist() == pytest.approx(table["log_likelihood"][:], abs=1e-5)
    assert fresh["num_tokens"].tolist() == table["num_tokens"][:]


def test_bytes_of_an_answer_whose_first_token_takes_a_space(tokenizer):
    """As SentencePiece does: decoded alone, the answer would lose it."""

    class Stripping:
        def __getattr__(self, name):
            return getattr(tokenizer, name)

        def __call__(self, *args, **kwargs):
            return tokenizer(*args, **kwargs)

        def decode(self, ids, **kwargs):
            return tokenizer.decode(ids, **kwargs).removeprefix(" ")

    (row,) = encode([{"prompt": "read the", "completion": " file"}], Stripping())
    assert row["num_bytes"] == len(" file")


def test_nothing_to_score_is_one_line(tokenizer):
    model = small_qwen(len(tokenizer))
    for rows, more, message in [
        ([{"question": "q", "answer": ""}] * 2, {}, "every answer is empty"),
        (
            [{"prompt": "a long enough prompt", "completion": "x"}],
            {"max_length": 2},
            "no row has an answer token",
        ),
        ([{"prompt": "p", "completion": "x"}], {"max_length": 0}, "max_length must be at least 1"),
        ([{"prompt": "p", "completion": "x"}], {"max_length": -3}, "max_length must be at least 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            klball.score(model, tokenizer, rows, **more)


def test_bits_per_byte_are_finite_with_empty_answers_among_others(tokenizer):
    from klball.scores.perplexity import robustness_report

    rows = [{"question": f"q{k}", "answer": "yes" if k == 0 else ""} for k in range(4)]
    table = klball.score(small_qwen(len(tokenizer)), tokenizer, rows)
    (metric,) = [m for m in robustness_report({"d": {"m": table}}, "m").metrics if m.name == "bits_per_byte"]
    assert all(torch.tensor([metric.value, metric.low, metric.high, metric.ratio_low]).isfinite())


# --- the trainer's data -----------------------------------------------------------------------


def trainer_of(rows, tokenizer, tmp_path, model=None, arguments=None, **settings):
    return klball.RobustSFTTrainer(
        model or small_qwen(len(tokenizer)),
        klball.RobustSFTConfig(**quiet(str(tmp_path), **settings)),
        train_dataset=rows,
        processing_class=tokenizer,
        **(arguments or {}),
    )


QUESTIONS = [{"question": f"What about {k}?", "answer": f"It is {k}."} for k in range(4)]
SHAREGPT = [
    {"conversations": [{"from": "human", "value": row["question"]}, {"from": "gpt", "value": row["answer"]}]}
    for row in QUESTIONS
]
MESSAGES = [{"messages": [user(row["question"]), assistant(row["answer"])]} for row in QUESTIONS]


def labels_of(trainer):
    return trainer.samples["labels"][:]


@pytest.mark.parametrize("rows", [QUESTIONS, SHAREGPT, MESSAGES], ids=["questions", "sharegpt", "messages"])
def test_the_trainer_takes_the_rows_that_score_takes(rows, tokenizer, tmp_path):
    ours = encode(rows, tokenizer)
    for given in (
        rows,
        Dataset.from_list(rows),
        Dataset.from_list(rows).with_format("numpy"),
        pd.DataFrame(rows),
    ):
        trainer = trainer_of(given, tokenizer, tmp_path, arguments={"eval_dataset": given})
        assert labels_of(trainer) == ours["labels"][:] == trainer.eval_dataset["labels"][:]
        assert trainer.samples["sample_id"][:] == ours["sample_id"][:]
    metrics = trainer.evaluate()
    assert trainer.evaluate(rows)["eval_loss"] == metrics["eval_loss"]
    assert trainer.evaluate({"a": rows})["eval_a_loss"] == metrics["eval_loss"]
    with pytest.raises(ValueError, match="predict needs logits"):
        trainer.predict(trainer.samples)


def test_evaluation_data_are_checked_too(tokenizer, tmp_path):
    bad = [MESSAGES[0], {"messages": [user("x")]}]
    for evaluation, message in [(bad, "eval_dataset: row 2"), ({"dev": bad}, "eval_dataset 'dev': row 2")]:
        with pytest.raises(ValueError, match=message):
            trainer_of(MESSAGES, tokenizer, tmp_path, arguments={"eval_dataset": evaluation})
    with pytest.raises(ValueError, match=r"row 2 .*no assistant turn"):
        trainer_of(MESSAGES, tokenizer, tmp_path).evaluate(bad)
    with pytest.raises(ValueError, match="nothing to evaluate"):
        trainer_of(MESSAGES, tokenizer, tmp_path).evaluate()


def test_several_evaluation_sets_are_prepared_once(tokenizer, tmp_path):
    trainer = trainer_of(
        MESSAGES, tokenizer, tmp_path, arguments={"eval_dataset": {"a": MESSAGES, "b": QUESTIONS}}
    )
    prepared = trainer.eval_dataset["b"]
    metrics = trainer.evaluate()
    assert {"eval_a_loss", "eval_b_loss"} <= set(metrics) and trainer.eval_dataset["b"] is prepared
    assert trainer.evaluate("b", metric_key_prefix="x")["x_loss"] == metrics["eval_b_loss"]


def test_a_formatting_function_makes_the_text(tokenizer, tmp_path, caplog):
    """Whatever columns there are: TRL would tokenise `messages` beside it."""
    trainer = trainer_of(
        MESSAGES,
        tokenizer,
        tmp_path,
        arguments={"formatting_func": lambda row: row["messages"][0]["content"]},
    )
    texts = [row["question"] for row in QUESTIONS]
    assert labels_of(trainer) == encode([{"text": text} for text in texts], tokenizer)["labels"][:]
    assert "ignored" not in caplog.text
    for rows, message in [([{"input_ids": [1, 2]}], "no effect on token ids"), (MESSAGES, "text: a list")]:
        with pytest.raises(ValueError, match=message):
            trainer_of(rows, tokenizer, tmp_path, arguments={"formatting_func": lambda row: ["x"]})


def test_text_in_a_column_of_another_name(tokenizer, tmp_path):
    rows = [{"content": row["answer"], "source": "web"} for row in QUESTIONS]
    trainer = trainer_of(
        rows, tokenizer, tmp_path, dataset_text_field="content", arguments={"eval_dataset": rows}
    )
    expected = encode([{"text": row["content"]} for row in rows], tokenizer)["labels"][:]
    assert labels_of(trainer) == trainer.eval_dataset["labels"][:] == expected
    assert trainer.samples["source"][:] == ["web"] * 4
    for other in ({"body": "x"}, {"text": "x"}, *MESSAGES, {**MESSAGES[0], "content": "x"}):
        refusal = r"train_dataset: (dataset_text_field: rows with .* are not read by 'content'|.*or content)"
        with pytest.raises(ValueError, match=refusal):
            trainer_of([other], tokenizer, tmp_path, dataset_text_field="content")


def test_columns_of_the_users_with_our_names(tokenizer, tmp_path):
    rows = [{**row, "sample_index": "mine", "sample_id": f"s{k}"} for k, row in enumerate(QUESTIONS)]
    trainer = trainer_of(rows, tokenizer, tmp_path, max_steps=2)
    trainer.train()
    assert trainer.samples["sample_index"][:] == [0, 1, 2, 3]
    assert trainer.samples["sample_id"][:] == ["s0", "s1", "s2", "s3"]


@pytest.mark.parametrize("mask", ["completion_mask", "assistant_masks"])
def test_masks_of_token_ids_count_in_the_trainer_and_in_score(mask, tokenizer, tmp_path):
    rows = [{"input_ids": [5, 6, 7, 8], mask: [0, 0, 1, 1]}, {"input_ids": [9, 10, 11], mask: [0, 1, 1]}]
    expected = [[-100, -100, 7, 8], [-100, 10, 11]]
    assert (
        labels_of(trainer_of(rows, tokenizer, tmp_path)) == encode(rows, tokenizer)["labels"][:] == expected
    )


def test_training_data_that_leave_nothing_to_train_on(tokenizer, tmp_path):
    for rows, settings, message in [
        (
            [{"prompt": "a long enough prompt", "completion": "x"}],
            {"max_length": 2},
            "no row has an answer token",
        ),
        (QUESTIONS, {"max_length": 0}, "max_length must be at least 1"),
        (MESSAGES, {"completion_only_loss": True}, "no effect on rows without a completion"),
        ({"train": Dataset.from_list(QUESTIONS)}, {}, "is split"),
        ("rows.jsonl", {}, "load_rows"),
    ]:
        with pytest.raises(ValueError, match=message) as caught:
            trainer_of(rows, tokenizer, tmp_path, **settings)
        assert "\n" not in str(caught.value)


def test_the_tokenizer_is_found_where_trl_finds_it(tokenizer, tmp_path):
    model = small_qwen(len(tokenizer))
    model.config._name_or_path = str(Path(klball.__file__).parent / "tiny")
    trainer = trainer_of(QUESTIONS, None, tmp_path, model=model)
    assert labels_of(trainer) == encode(QUESTIONS, tokenizer)["labels"][:]
    assert to_trl_format(dataset_of(QUESTIONS), True)["prompt"][0] == [user("What about 0?")]


def test_conversations_are_not_evaluated_by_a_loss_of_all_turns(tokenizer, tmp_path):
    """Rows of questions settle no loss of assistant's turns: the user's words would count in evaluation."""
    chats = Dataset.from_list(MESSAGES)
    for given in (chats, {"own": chats}):
        with pytest.raises(
            ValueError, match="eval_dataset has whole conversations and train_dataset has none"
        ):
            trainer_of(QUESTIONS, tokenizer, tmp_path, arguments={"eval_dataset": given})
    trainer_of(MESSAGES, tokenizer, tmp_path, arguments={"eval_dataset": chats})
