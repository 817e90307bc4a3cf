"""The embedded preference pairs and beliefs: the same every time, and flips that training cannot see."""

from collections import Counter, defaultdict

import pytest

from klball.data.builtin import load_builtin
from klball.data.builtin.beliefs import MINORITY
from klball.data.builtin.doc_preferences import FIELDS, OTHER, module_of_question
from klball.data.builtin.stdlib_docs import TEST_ROWS
from klball.data.rows import load_rows, to_preferences


@pytest.fixture(scope="module")
def pairs():
    return {name: load_builtin(name, "train") for name in _names(0, 0.1, 0.3)}


def _names(*rates):
    return ["doc-preferences" if rate == 0 else f"doc-preferences:flip={rate}" for rate in rates]


def test_pairs_are_true_answers_against_wrong_ones(pairs):
    docs = {row["question"]: row["answer"] for row in load_builtin("stdlib-docs", "train")}
    rows = pairs["doc-preferences"]
    answers_of = defaultdict(list)
    for question, answer in docs.items():
        answers_of[module_of_question(question)].append(answer)
    assert len(rows) == len(docs) and len({row["id"] for row in rows}) == len(rows)
    kinds = Counter()
    for row in rows:
        question, chosen, rejected = (row[name][0]["content"] for name in ("prompt", "chosen", "rejected"))
        assert chosen == docs[question] != rejected and not row["flipped"]
        assert row["field"] in {*FIELDS.values(), OTHER}
        folded = " ".join(chosen.split())
        thrice = " ".join([rejected[: len(rejected) // 3]] * 3) == rejected
        kind = "truncated" if folded.startswith(rejected) else "repeated" if thrice else "neighbour"
        kinds[kind] += 1
        near = answers_of[module_of_question(question)]
        assert kind != "neighbour" or len(near) == 1 or rejected in near
    assert min(kinds.values()) > len(rows) / 8 and kinds["neighbour"] > len(rows) / 2.5
    sizes = Counter(row["field"] for row in rows)
    assert max(sizes.values()) > 2 * min(sizes.values()) > 200


def test_a_flip_exchanges_the_answers_of_its_share_and_more_of_them_hold_fewer(pairs):
    clean, few, many = pairs.values()
    for rows, rate in ((few, 0.1), (many, 0.3)):
        flipped = [row["flipped"] for row in rows]
        assert sum(flipped) == round(rate * len(rows))
        for before, after in zip(clean, rows, strict=True):
            exchanged = {
                **before,
                "chosen": before["rejected"],
                "rejected": before["chosen"],
                "flipped": True,
            }
            assert after == (exchanged if after["flipped"] else before)
    assert all(after["flipped"] for before, after in zip(few, many, strict=True) if before["flipped"])


def test_held_out_pairs_stay_clean_and_apart(pairs):
    test = load_builtin("doc-preferences:flip=0.3", "test")
    assert len(test) == TEST_ROWS and not any(row["flipped"] for row in test)
    assert test == load_builtin("doc-preferences", "test")
    asked = {str(row["prompt"]) for row in pairs["doc-preferences"]}
    assert not asked & {str(row["prompt"]) for row in test}


@pytest.mark.parametrize("name", ["flip=2", "flip=-1", "flip=nan", "flip=x", "flop=1", "", "flip=.1,flip=.2"])
def test_a_setting_that_cannot_be_is_refused(name):
    with pytest.raises(ValueError, match="doc-preferences") as refusal:
        load_rows(f"doc-preferences:{name}", form=to_preferences)
    assert "\n" not in str(refusal.value)


def test_a_set_without_settings_takes_none():
    with pytest.raises(ValueError, match="stdlib-docs takes no settings"):
        load_rows("stdlib-docs:flip=0.1")


@pytest.mark.parametrize("name", ["doc-preferences", "beliefs"])
@pytest.mark.parametrize("split", ["train[:50]", "test[:50]"])
def test_the_embedded_pairs_are_preference_rows(name, split):
    rows = load_rows(name, split, form=to_preferences)
    assert len(rows) == 50 and {"prompt", "chosen", "rejected", "sample_id"} <= {*rows.column_names}
    with pytest.raises(ValueError, match="preference pairs, of two answers"):
        load_rows(name, split)


@pytest.mark.parametrize("split", ["train", "test"])
def test_beliefs_occur_as_often_as_they_are_held(split):
    rows = load_builtin("beliefs", split)
    asked = {}
    for row in rows:
        assert sum(row["p_star"]) == pytest.approx(1) and min(row["p_star"]) > 0
        assert 2 <= len(row["beliefs"]) == len(row["p_star"]) <= 4
        assert row["chosen"] != row["rejected"]
        asked.setdefault(row["prompt"][0]["content"], []).append(row)
    for of_question in asked.values():
        first = of_question[0]
        counts = Counter(row["belief"] for row in of_question)
        assert [counts[b] / len(of_question) for b in first["beliefs"]] == pytest.approx(first["p_star"])
    groups = Counter(row["group"] for row in rows)
    assert len(groups) == 3 and groups[MINORITY] == min(groups.values()) < len(rows) / 6
    assert len({row["id"] for row in rows}) == len(rows)


def test_the_minority_believes_what_others_do_not_and_held_out_questions_are_new():
    train, test = (load_builtin("beliefs", split) for split in ("train", "test"))
    assert not {row["prompt"][0]["content"] for row in train} & {row["prompt"][0]["content"] for row in test}
    favourite = {(r["theme"], r["group"]): r["beliefs"][r["p_star"].index(max(r["p_star"]))] for r in train}
    for theme in {theme for theme, _ in favourite}:
        assert favourite[theme, MINORITY] != favourite[theme, "townspeople"]
