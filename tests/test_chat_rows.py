"""One conversation is one prompt and one answer, however it is written and whoever reads it."""

import pytest
from datasets import Dataset

from klball.data.encoding import encode, texts_of
from klball.data.preferences import texts_of_pair
from klball.data.prompts import to_prompts
from klball.data.rows import to_trl_format
from klball.models.loading import REWARD, load_model
from klball.scores.pairs import encode_pairs
from klball.studies.own_answers import _tokens
from klball.training.rl.reward_model import RewardModel

TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
    "{% if mood is defined %}[{{ mood }}]{% endif %}{% if tools %}[{{ tools | length }} tools]{% endif %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
READ = {
    "chat_template_kwargs": {"mood": "calm"},
    "tools": [{"type": "function", "function": {"name": "add"}}],
}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}


def turn(role, content, **more):
    return {"role": role, "content": content, **more}


QUESTION, ANSWER = turn("user", "What is 2+2?"), turn("assistant", "4.")


@pytest.mark.parametrize(
    ("after", "asked", "answer"),
    [
        ([ANSWER], 1, "4."),
        ([ANSWER, turn("user", "ok")], 1, "4."),
        ([turn("assistant", "Let me see."), turn("tool", "4"), ANSWER], 3, "4."),
        ([ANSWER, turn("user", "And 3+3?"), turn("assistant", "6."), turn("user", "thanks")], 3, "6."),
    ],
)
def test_messages_and_pairs_are_read_alike(after, asked, answer):
    turns = [QUESTION, *after]
    for row in ({"messages": turns}, {"prompt": [QUESTION], "completion": after}):
        (prompt,) = to_prompts(Dataset.from_list([row]), conversational=True)
        assert prompt == {"prompt": turns[:asked], "answer": answer}
        (formatted,) = to_trl_format(Dataset.from_list([row]), True)
        shown = " / ".join(t["content"] for t in turns[:asked])
        assert texts_of(formatted) == (shown, answer)


def test_tool_calls_are_shown():
    calling = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    texts = texts_of_pair({"prompt": [QUESTION], "chosen": [calling], "rejected": [ANSWER, QUESTION]})
    assert '"name": "add"' in texts["chosen"]
    assert (texts["prompt"], texts["rejected"]) == ("What is 2+2?", "4. / What is 2+2?")


def test_what_a_template_reads_of_a_row_it_reads_everywhere():
    model, tokenizer = load_model("klball/tiny", purpose=REWARD, trainable=True)
    tokenizer.chat_template = TEMPLATE
    answered = {"prompt": [QUESTION], "completion": [ANSWER], **READ}

    def read(ids):
        return tokenizer.decode(ids)

    scored = read(encode(Dataset.from_list([answered]), tokenizer)[0]["input_ids"])
    prompts = to_prompts(Dataset.from_list([answered]), True)
    assert read(_tokens(model, tokenizer, prompts, 8)[0]) == "<user>What is 2+2?[calm][1 tools]<assistant>"
    assert scored == "<user>What is 2+2?<assistant>4.[calm][1 tools]"
    reward = RewardModel(model, tokenizer)
    asked = []
    reward.scores = lambda ids: asked.extend(ids) or model.score.weight.new_zeros(len(ids))
    reward([[QUESTION]] * 2, [[ANSWER]] * 2, **{name: [value, None] for name, value in READ.items()})
    assert [read(ids) for ids in asked] == [scored, "<user>What is 2+2?<assistant>4."]
    pair = {"prompt": [QUESTION], "chosen": [ANSWER], "rejected": [turn("assistant", "5.")], **READ}
    assert read(encode_pairs(Dataset.from_list([pair]), tokenizer).answers[0]["input_ids"]) == scored


def test_tools_that_are_none_are_refused_by_their_row():
    rows = [{"prompt": [QUESTION], "tools": tools} for tools in (None, "not json")]
    with pytest.raises(ValueError, match=r"row 2 \(counted from 1\), tools: text that is not JSON"):
        to_prompts(Dataset.from_list(rows), True)


def test_plain_prompts_say_that_nothing_renders_them(caplog):
    to_prompts(Dataset.from_list([{"prompt": "2+2?", "answer": "4", **READ}]), False)
    assert "no part of the prompt: chat_template_kwargs, tools" in caplog.text
    caplog.clear()
    to_prompts(Dataset.from_list([{"prompt": "2+2?", "answer": "4", **READ}]), True)
    assert not caplog.text
