"""Assistant turns are found in templates that do not mark them, and in no others."""

import pytest
from transformers import AutoTokenizer

from klball import RobustSFTConfig, RobustSFTTrainer, load_model, score
from klball.data.encoding import encode
from klball.data.marking import marked_template
from klball.models.loading import TINY, model_path

TEMPLATES = {
    "chatml with a system turn of its own": (
        "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
        "{{ '<|im_start|>system\nHelp.<|im_end|>\n' }}{% endif %}"
        "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "instructions in brackets": (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
        "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
    ),
    "indented, over lines": (
        "{%- for message in messages %}\n"
        "    {%- if message.role == 'user' %}\n"
        "Q: {{ message.content }}\n"
        "    {% else %}\n"
        "A: {{ message.content }}{{ eos_token }}\n\n"
        "    {% endif %}\n"
        "{%- endfor %}\n"
        "{%- if add_generation_prompt %}\n"
        "A: {% endif %}"
    ),
}
REFUSED = {
    "earlier answers are dropped": (
        "{% for m in messages %}{{ m.role }}: {% if m.role == 'user' or loop.last %}{{ m.content }}"
        "{% endif %}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    ),
    "another generation prompt": (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}[answer]{% endif %}"
    ),
    "turns must alternate twice": "{{ raise_exception('no') }}",
}
CHAT = [
    {"role": "user", "content": "What is a list?"},
    {"role": "assistant", "content": "A row of values."},
    {"role": "user", "content": "And {a} set?"},
    {"role": "assistant", "content": "  No order, no value twice. \n"},
]


@pytest.fixture
def tokenizer():
    return AutoTokenizer.from_pretrained(model_path(TINY))


def answers_by_offsets(tokenizer, turns):
    """Which tokens lie in what a turn adds to the text before it, up to the white space at its end."""

    def text(some, prompt=False):
        return tokenizer.apply_chat_template(some, tokenize=False, add_generation_prompt=prompt)

    spans = []
    for k, turn in enumerate(turns):
        if turn["role"] == "assistant":
            spans.append((len(text(turns[:k], True)), len(text(turns[: k + 1]).rstrip())))
    offsets = tokenizer(text(turns), add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return [any(a < end and start < b for start, end in spans) for a, b in offsets]


WITH_SYSTEM = [{"role": "system", "content": "Be brief."}, *CHAT]
CASES = [(name, turns) for name in TEMPLATES for turns in (CHAT, CHAT[:2], WITH_SYSTEM)]
CASES.remove(("instructions in brackets", WITH_SYSTEM))  # which takes every turn but the user's for an answer


@pytest.mark.parametrize(("name", "turns"), CASES)
def test_turns_are_what_they_add(name, turns, tokenizer):
    tokenizer.chat_template = TEMPLATES[name]
    row = encode([{"messages": turns}], tokenizer)[0]
    plain = tokenizer.apply_chat_template(turns, return_dict=True)["input_ids"]
    assert row["input_ids"] == plain
    assert [label != -100 for label in row["labels"]] == answers_by_offsets(tokenizer, turns)
    tokenizer.chat_template = {"default": TEMPLATES[name], "tool_use": "{{ other }}"}
    assert encode([{"messages": turns}], tokenizer)[0]["labels"] == row["labels"]


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_told_apart_is_refused(name, tokenizer):
    tokenizer.chat_template = REFUSED[name]
    with pytest.raises(ValueError, match="give one that marks them with --chat_template_path"):
        encode([{"messages": CHAT}], tokenizer)
    with pytest.raises(ValueError):
        marked_template(tokenizer)


def test_a_template_that_divides_by_zero_is_refused(tokenizer):
    tokenizer.chat_template = (
        "{{ 1 // (messages|length - 1) }}" + TEMPLATES["chatml with a system turn of its own"]
    )
    with pytest.raises(ValueError, match="zero"):
        marked_template(tokenizer)


def test_training_sees_the_tokens_that_scoring_does_and_keeps_the_template(tmp_path):
    model, tokenizer = load_model("klball/tiny")
    tokenizer.chat_template = own = TEMPLATES["chatml with a system turn of its own"]
    rows = [{"messages": CHAT}, {"messages": CHAT[:2]}]
    settings = dict(report_to=[], use_cpu=True, bf16=False, max_steps=1, per_device_train_batch_size=2)
    config = RobustSFTConfig(str(tmp_path), **settings)
    trainer = RobustSFTTrainer(model, config, train_dataset=rows, processing_class=tokenizer)
    scores = score(model, tokenizer, rows, output=tmp_path / "scores.parquet")
    counted = scores["num_tokens"][:]
    trained = [sum(label != -100 for label in row["labels"]) for row in trainer.samples]
    assert trained == counted
    nll = -sum(scores["sum_log_prob"]) / sum(counted)
    assert trainer.evaluate(rows)["eval_loss"] == pytest.approx(nll, rel=1e-4)
    trainer.train()
    trainer.save_model()
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template == own == tokenizer.chat_template


def test_a_template_that_was_given_stays(tmp_path):
    given = "{% for m in messages %}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}{% endfor %}"
    (tmp_path / "given.jinja").write_text(given)
    model, tokenizer = load_model("klball/tiny")
    config = RobustSFTConfig(
        str(tmp_path),
        report_to=[],
        use_cpu=True,
        bf16=False,
        chat_template_path=str(tmp_path / "given.jinja"),
    )
    trainer = RobustSFTTrainer(model, config, train_dataset=[{"messages": CHAT}], processing_class=tokenizer)
    assert trainer.processing_class.chat_template == given
