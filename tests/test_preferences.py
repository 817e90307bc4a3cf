"""Preference pairs: every format becomes the same pair, and no row that cannot teach one passes."""

import json

import pytest
from datasets import Dataset

from klball.data.preferences import texts_of_pair, to_belief_rows, to_preferences
from klball.data.readers import dataset_of, read_files


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def human(*turns):
    speakers = ("\n\nHuman: ", "\n\nAssistant: ")
    return "".join(speakers[k % 2] + text for k, text in enumerate(turns))


ASKED, GOOD, BAD = "Is it the sky?", "It is the sky.", "It is the sea."
TURNS = [user("Hello."), assistant("Yes?"), user(ASKED)]
PAIR = {"prompt": [user(ASKED)], "chosen": [assistant(GOOD)], "rejected": [assistant(BAD)]}
SAME = {
    "explicit": PAIR,
    "implicit": {"chosen": [user(ASKED), assistant(GOOD)], "rejected": [user(ASKED), assistant(BAD)]},
    "repeated prompt": {
        "prompt": [user(ASKED)],
        "chosen": [user(ASKED), assistant(GOOD)],
        "rejected": [user(ASKED), assistant(BAD)],
    },
    "text prompt beside turns": {
        "prompt": ASKED,
        "chosen": [user(ASKED), assistant(GOOD)],
        "rejected": [user(ASKED), assistant(BAD)],
    },
    "parts of text": {**PAIR, "chosen": [{"role": "assistant", "content": [{"type": "text", "text": GOOD}]}]},
    "human and assistant": {"chosen": human(ASKED, GOOD), "rejected": human(ASKED, BAD)},
    "with a prompt": {
        "prompt": f"\n\nHuman: {ASKED}\n\nAssistant:",
        "chosen": f" {GOOD}",
        "rejected": f" {BAD}",
    },
    "with a prompt that both repeat": {
        "prompt": f"\n\nHuman: {ASKED}\n\nAssistant:",
        "chosen": human(ASKED, GOOD),
        "rejected": human(ASKED, BAD),
    },
    "sharegpt": {
        "prompt": [{"from": "human", "value": ASKED}],
        "chosen": [{"from": "gpt", "value": GOOD}],
        "rejected": [{"from": "gpt", "value": BAD}],
    },
}


@pytest.mark.parametrize("form", SAME)
def test_every_form_is_the_same_pair(form):
    """Its opening words, which TRL would take for the prompt, stay in the answers."""
    (row,) = to_preferences(Dataset.from_list([{**SAME[form], "source": "a"}])).to_list()
    plain = {n: [{k: t[k] for k in ("role", "content")} for t in row[n]] for n in PAIR}
    assert plain == PAIR and row["source"] == "a"
    assert texts_of_pair(row) == {"prompt": ASKED, "chosen": GOOD, "rejected": BAD}


def test_earlier_turns_are_the_prompt():
    rows = [{"chosen": human("Hello.", "Yes?", ASKED, GOOD), "rejected": human("Hello.", "Yes?", ASKED, BAD)}]
    assert to_preferences(Dataset.from_list(rows))["prompt"][0] == TURNS


@pytest.mark.parametrize("shorter", ["chosen", "rejected"])
def test_the_shorter_conversation_keeps_an_answer(shorter):
    """TRL would leave it none: chosen is all there is in common."""
    longer = {"chosen": "rejected", "rejected": "chosen"}[shorter]
    row = {
        shorter: [user(ASKED), assistant(GOOD)],
        longer: [user(ASKED), assistant(GOOD), *TURNS[2:], assistant("a")],
    }
    (made,) = to_preferences(Dataset.from_list([row])).to_list()
    assert made["prompt"] == [user(ASKED)] and made[shorter] == [assistant(GOOD)] and len(made[longer]) == 3


def test_plain_texts_are_split_at_a_line(caplog):
    row = {"chosen": f"{ASKED}\n{GOOD}", "rejected": f"{ASKED}\n{BAD}"}
    (made,) = to_preferences(Dataset.from_list([row])).to_list()
    assert made == {"prompt": f"{ASKED}\n", "chosen": GOOD, "rejected": BAD}
    assert "share at their beginning" in caplog.text


def test_explicit_texts_stay():
    rows = [{"prompt": "a ", "chosen": "b", "rejected": "c", "margin": 0.5, "field": "x"}]
    assert to_preferences(Dataset.from_list(rows)).to_list() == rows


def test_what_trl_would_mistake_is_named_and_left_out(caplog):
    rows = [{**PAIR, "messages": TURNS, "labels": [1], "score": 0.5, "chosen_ids": [1]}]
    made = to_preferences(Dataset.from_list(rows))
    assert set(made.column_names) == {*PAIR, "score"}
    assert "chosen_ids, labels, messages" in caplog.text


MIXED = {
    "turns after text": ({"prompt": "a", "chosen": "b", "rejected": "c"}, "chosen", [assistant(GOOD)]),
    "text after turns": (PAIR, "rejected", BAD),
    "prompt text after turns": (PAIR, "prompt", ASKED),
    "one without speakers": ({"chosen": human(ASKED, GOOD), "rejected": human(ASKED, BAD)}, "chosen", "a\nb"),
}


@pytest.mark.parametrize("name", MIXED)
def test_rows_of_two_kinds_are_refused(name):
    row, column, value = MIXED[name]
    with pytest.raises(ValueError, match=rf"^row 2 \(counted from 1\), {column}: "):
        to_preferences(dataset_of([row, {**row, column: value}]))


def test_margins_of_a_file_are_numbers(tmp_path):
    """Readers leave numbers at the top of a row as the text that the file has."""
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({**PAIR, "margin": 0.5}) + "\n")
    assert to_preferences(read_files([path]))["margin"][:] == [0.5]


REFUSED = {
    "same": ({**PAIR, "rejected": [assistant(f" {GOOD} ")]}, "rejected: the same answer"),
    "same texts": ({"prompt": "a", "chosen": "b ", "rejected": "b"}, "rejected: the same answer"),
    "same conversation": (
        {"chosen": human(ASKED, GOOD), "rejected": human(ASKED, GOOD)},
        "the same conversation",
    ),
    "empty": ({**PAIR, "chosen": [assistant("  ")]}, "chosen: the answer is empty"),
    "empty text": ({"prompt": "a", "chosen": "b", "rejected": " "}, "rejected: the answer is empty"),
    "empty turn": ({"chosen": human(ASKED, ""), "rejected": human(ASKED, BAD)}, "chosen: the last turn"),
    "no turns": ({**PAIR, "rejected": []}, "rejected: the list of turns is empty"),
    "another prompt": ({"chosen": human(ASKED, GOOD), "rejected": human("No.", GOOD)}, "first turn differs"),
    "a user's answer": (
        {**PAIR, "chosen": [user(GOOD)]},
        "chosen: the answer begins with a turn of the user",
    ),
    "a user's end": ({**PAIR, "chosen": [assistant(GOOD), user("Oh?")]}, "chosen: it ends with a turn of"),
    "other question": (
        {"chosen": human("a", "b", "c", GOOD), "rejected": human("a", "b", "d", BAD)},
        "chosen: the answer begins with a turn of the user",
    ),
    "text against turns": ({**PAIR, "rejected": BAD}, "rejected: text, but chosen is a list"),
    "prompt in turns": (
        {"prompt": [user("a")], "chosen": "b", "rejected": "c"},
        "chosen: text, but the prompt",
    ),
    "prompt in text": ({**PAIR, "prompt": "What?"}, "prompt: text, but chosen is a list of turns"),
    "no line in common": ({"chosen": "Why? a", "rejected": "Why? b"}, "chosen: it shares no whole line"),
    "prompt twice": (
        {"prompt": "a", "chosen": "a b", "rejected": "a c"},
        "chosen: it repeats the whole prompt",
    ),
    "null": ({"prompt": "a", "chosen": "b", "rejected": None}, "rejected: null"),
    "bytes": ({"prompt": "a", "chosen": "b", "rejected": b"c"}, "rejected: bytes, not text"),
    "margin text": ({**PAIR, "margin": "much"}, "margin: text"),
    "margin null": ({**PAIR, "margin": None}, "margin: null"),
    "margin nan": ({**PAIR, "margin": float("nan")}, "margin: float 'nan'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_row_that_cannot_be_used_is_refused_by_number_and_column(name):
    row, what = REFUSED[name]
    with pytest.raises(ValueError, match=r"^row 1 \(counted from 1\), ") as refusal:
        to_preferences(Dataset.from_list([row]))
    assert what in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize("column", ["chosen", "rejected"])
def test_a_missing_column_is_named(column):
    rows = Dataset.from_list([PAIR]).remove_columns(column)
    with pytest.raises(ValueError, match=f"need the column '{column}'"):
        to_preferences(rows)


def test_images_are_refused():
    with pytest.raises(ValueError, match="images are not supported"):
        to_preferences(Dataset.from_list([{**PAIR, "images": ["a"]}]))


# --- beliefs, of which not every row has two answers ---------------------------------------------

BELIEF = {"prompt": "Who?", "beliefs": ["yes", "no"], "p_star": [0.5, 0.5], "belief": "yes"}
BARE = {**BELIEF, "chosen": None, "rejected": None}


@pytest.mark.parametrize("turns", [False, True])
def test_rows_of_beliefs_with_answers_and_without(turns):
    answers = (
        {"chosen": assistant("a"), "rejected": assistant("b")} if turns else {"chosen": "a", "rejected": "b"}
    )
    answers = {name: [turn] for name, turn in answers.items()} if turns else answers
    told = {"prompt": [user("Who?")]} if turns else {}
    rows = to_belief_rows(dataset_of([{**BARE, **told}, {**BELIEF, **answers, **told}, {**BARE, **told}]))
    whole = to_belief_rows(dataset_of([{**BELIEF, **answers, **told}]))[0]
    assert rows[1] == whole
    assert rows[0] == rows[2] == {**whole, "chosen": None, "rejected": None}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({**BELIEF, "chosen": "a", "rejected": None}, "row 3 .*, chosen: and rejected belong together"),
        ({**BELIEF, "chosen": "a", "rejected": "a"}, "row 3 .*, rejected: the same answer as chosen"),
        ({**BELIEF, "chosen": "", "rejected": "b"}, "row 3 .*, chosen: the answer is empty"),
    ],
)
def test_rows_are_counted_as_they_stand(row, said):
    rows = [BARE, {**BELIEF, "chosen": "a", "rejected": "b"}, row]
    with pytest.raises(ValueError, match=said):
        to_belief_rows(Dataset.from_list(rows))


def test_an_answer_that_is_one_object_is_called_so():
    with pytest.raises(ValueError, match="chosen: an object, but the prompt is a list of turns"):
        to_preferences(Dataset.from_list([{**PAIR, "chosen": assistant(GOOD), "rejected": assistant(BAD)}]))
