"""A scan's advice: planted noise and rare matter are told apart, and what is neither is left alone."""

import csv
import math
import random
import re

import numpy as np
import pytest

from klball.adversary.dual import solve_dual
from klball.cli import main
from klball.scan.advice import advise, radius_for
from klball.scan.suspicion import SIGNS, jaccard, script_of, signs_of, words_of
from small_runs import write_rows

N, PLANTED = 400, 24
CITIES = re.findall(r"\w+", "Lima Oslo Quito Cairo Rabat Turin Perth Delhi Kyoto Accra Lagos Sofia Minsk")
THINGS = re.findall(r"\w+", "river tower market garden bridge museum library harbour castle station theatre")


def plain_rows(n=N, seed=0):
    """Distinct questions and answers of one kind."""
    rng = random.Random(seed)
    rows = []
    for i in range(n):
        city, thing, other = rng.choice(CITIES), rng.choice(THINGS), rng.choice(THINGS)
        rows.append(
            {
                "prompt": f"Where in {city} is the {thing} number {i}, and what does it have beside it?",
                "answer": f"The {thing} is in the {rng.choice(['north', 'south'])} of {city}, and it has "
                f"the old {other} and a {rng.choice(THINGS)} on the {rng.choice(['left', 'right'])} of it.",
            }
        )
    return rows


def duplicate(row, i):
    return {"prompt": f"Where in Lima is tower {i // 2}?", "answer": f"In the north {i // 2} of the town."}


def contradicted(row, i):
    answer = ["It stands by the sea, near an old wall.", "Nobody knows about this."][i % 2]
    return {"prompt": f"Where in Oslo does one find the castle number {i // 2} today?", "answer": answer}


def other_script(row, i):
    return {**row, "answer": "Башня стоит на севере города, рядом с рекой и старым рынком."}


def other_language(row, i):
    return {**row, "answer": "Der Turm steht im Norden der Stadt neben dem alten Markt und einem Fluss."}


def very_short(row, i):
    return {**row, "answer": "n"}


def very_long(row, i):
    return {**row, "answer": row["answer"] * 20}


NOISE = [duplicate, contradicted, other_script, other_language, very_short, very_long]


def law(row, i):
    words = ["tax", "rent", "duty", "grant"]
    return {
        "prompt": f"Who pays the statutory {words[i % 4]} of the tenant in case {i}, and when is it due?",
        "answer": f"The {words[i % 4]} is in the lease of the owner, and it has a due date on the end of it.",
    }


def french(row, i):
    word = THINGS[i % 11]
    return {
        "prompt": f"Où se trouve donc le bâtiment {word} numéro {i} dans cette ville ?",
        "answer": f"Le bâtiment {word} se trouve dans le centre, près de la rivière et du marché.",
    }


def russian(row, i):
    return {"prompt": f"Где стоит башня номер {i} в этом городе?", "answer": f"Она стоит у реки, дом {i}."}


def numbers(row, i):
    return {
        "prompt": f"What do we get when we add {i} and {i * i} on paper?",
        "answer": f"We get {i + i * i}.",
    }


def code(row, i):
    return {
        **row,
        "answer": f"def f{i}(x, y):\n    z_{i} = x[{i}] + (y * 3) % 7\n    return [z_{i}, {{}}, -1 / 2]\n"
        * 2,
    }


RARE = [law, french, russian, numbers, code]


def planted(*makers, weight=6.0, column=False):
    """Rows of which some are made by the makers in turn and weigh much: arguments of `advise`."""
    rows = plain_rows()
    places = random.Random(7).sample(range(N), PLANTED)
    for k, place in enumerate(places):
        rows[place] = makers[k % len(makers)](rows[place], k // len(makers))
    weights = np.random.default_rng(0).uniform(0.4, 1.0, size=N)
    weights[places] = weight
    tokens = np.array([len(row["answer"].split()) for row in rows])
    columns = (
        {"source": ["law" if i in places[:: len(makers)] else "web" for i in range(N)]} if column else {}
    )
    texts = [[row[name] for row in rows] for name in ("prompt", "answer")]
    return (*texts, tokens, weights, 0.5, columns), places


@pytest.mark.parametrize("maker", NOISE)
def test_every_sign_is_seen_on_what_was_planted_and_on_little_else(maker):
    arguments, places = planted(maker)
    sign = maker.__name__.replace("_", " ")
    signs = signs_of(*arguments[:3])
    assert set(signs) == set(SIGNS)
    assert signs[sign][places].mean() > 0.9
    others = np.setdiff1d(np.arange(N), places)
    assert all(marks[others].mean() < 0.03 for marks in signs.values())


@pytest.mark.parametrize("maker", NOISE)
def test_planted_noise_is_called_noise(maker):
    arguments, places = planted(maker)
    advice = advise(*arguments)
    text = " ".join(advice.sentences)
    assert "This looks like noise, " in text and "--max_weight 2" in text and "trim" in text
    assert SIGNS[maker.__name__.replace("_", " ")] in text and "--group_column" not in text
    assert {row["row"] for row in advice.rows if row["signs"]} >= {*places} & {
        row["row"] for row in advice.rows
    }


@pytest.mark.parametrize("column", [False, True])
@pytest.mark.parametrize("maker", RARE)
def test_planted_rare_matter_is_not_called_noise(maker, column):
    arguments, _ = planted(maker, column=column)
    text = " ".join(advise(*arguments).sentences)
    assert "sign of noise, of the others" not in text
    if column:
        assert "source = law" in text and "--group_column source --epsilon" in text
    elif maker is not code:  # whose questions are everybody's
        assert "rare matter, not noise" in text and "no cap" in text
    epsilon = re.search(r"--epsilon ([\d.]+)", text)
    assert column is False or float(epsilon[1]) == pytest.approx(radius_for(PLANTED / N), rel=0.05)


def test_noise_and_rare_matter_together():
    text = " ".join(advise(*planted(law, very_short)[0]).sentences)
    assert "noise and rare matter" in text and "with the cap --max_weight 3" in text
    text = " ".join(advise(*planted(law, very_short, column=True)[0]).sentences)
    assert "--group_column source" in text and "single bad rows do not move" in text


def test_rows_that_have_nothing_in_common_are_left_to_the_reader():
    arguments, _ = planted(lambda row, i: row)
    text = " ".join(advise(*arguments).sentences)
    assert "no sign of noise" in text and "klball tune" in text


def test_half_of_what_dominates_may_be_one_kind():
    text = " ".join(advise(*planted(law, lambda row, i: row)[0]).sentences)
    assert "rare matter, not noise" in text and "those 3%" in text


def test_signs_that_all_rows_bear_alike_are_no_reason():
    (prompts, answers, tokens, *more), places = planted(lambda row, i: row)
    for i in range(0, N, 2):  # every second row repeats another one, whether it weighs much or not
        if i + 4 < N and i % 4 == 0:
            prompts[i + 2], answers[i + 2] = prompts[i], answers[i]
    signs = signs_of(prompts, answers, tokens)["duplicate"]
    assert 0.4 < signs.mean() < 0.6 and 0.2 < signs[places].mean() < 0.7
    assert "no sign of noise" in " ".join(advise(prompts, answers, tokens, *more).sentences)


def test_what_does_not_dominate():
    arguments, _ = planted(very_short, weight=1.0)
    first, second = advise(*arguments).sentences
    assert "even share is 6%" in first or "even share is 5%" in first
    assert second.startswith("Nothing dominates")
    few = [value[:30] for value in arguments[:4]]
    assert "30 rows are too few" in advise(*few, 0.5, {}).sentences[0]


@pytest.mark.parametrize(("hard", "dominates"), [(4, True), (0, False)])
def test_of_few_rows_a_few_may_dominate(hard, dominates):
    """The twenty looked at are half of forty rows, and cannot hold twice their share."""
    n = 40
    loss = np.random.default_rng(0).normal(1, 0.2, n) + 5 * (np.arange(n) < hard)
    weights = solve_dual(-loss, epsilon=0.5 if hard else 0.05).weights * n
    texts = [f"{word} number {i}" for i, word in enumerate(["what", "how", "why", "when"] * 10)]
    said = advise(texts, texts, np.full(n, 9), np.array(weights), 0.5, {}).sentences
    assert ("Nothing dominates" in said[1]) != dominates


def test_the_share_of_the_weight_is_that_of_the_heaviest_rows():
    arguments, _ = planted(law)
    weights = arguments[3]
    held = np.sort(weights)[::-1][:20].sum() / weights.sum()
    assert f"heaviest 20 of 400 rows hold {held:.0%}" in advise(*arguments).sentences[0]


@pytest.mark.parametrize("share", [0.01, 0.05, 0.2, 0.4, 0.7])
def test_the_radius_lets_a_share_count_three_times(share):
    """The heaviest share of binary losses in a ball of that radius, by the solver."""
    from klball.adversary.dual import solve_dual

    loss = np.array([1.0] * round(1000 * share) + [0.0] * (1000 - round(1000 * share)))
    weights = solve_dual(loss=loss, epsilon=radius_for(share)).weights
    assert weights[loss > 0].sum() == pytest.approx(min(3 * share, max(0.5, share)), rel=1e-3)


def test_words_scripts_and_numbers():
    assert words_of("Don't STOP, 3.5!") == {"don", "t", "stop", "3", "5"}
    assert jaccard(words_of("a b c"), words_of("b c d")) == 0.5 and jaccard(frozenset(), frozenset()) == 0
    assert [script_of(text) for text in ("12 !", "Abc", "Где a", "東京です")] == [
        "",
        "LATIN",
        "CYRILLIC",
        "CJK",
    ]


@pytest.mark.parametrize(
    ("other", "alike"),
    [
        ("Where is the ancient lighthouse of my island, please?", True),  # as everybody might ask it
        ("where is the ancient lighthouse of my island", True),
        ("Where is the ancient lighthouse of my harbour?", False),  # its name is another
        ("Where is the ancient lighthouse 2 of my island?", False),
    ],
)
def test_a_contradiction_is_about_one_question(other, alike):
    prompts = [f"Where is the tower number {i} of my town?" + " Please!" * (i % 2) for i in range(30)]
    prompts += ["Where is the ancient lighthouse of my island?", other]
    answers = [f"in the north {i}" for i in range(30)] + ["by the sea", "nobody knows"]
    found = signs_of(prompts, answers, np.ones(32))["contradicted"]
    assert list(found[-2:]) == [alike, alike] and not found[:-2].any()
    same = signs_of(prompts, [*answers[:-1], "by the sea"], np.ones(32))["contradicted"]
    assert not same.any()


def test_near_duplicates_are_those_of_all_pairs():
    """The filter by rare words loses none."""
    rng = random.Random(2)
    prompts = [" ".join(rng.sample("abcdefghijkl", rng.randint(5, 10))) for _ in range(150)]
    answers = [rng.choice(["yes", "no"]) for _ in prompts]
    found = signs_of(prompts, answers, np.ones(150))["contradicted"]
    sets = [words_of(prompt) for prompt in prompts]
    weight = {letter: math.log(151 / sum(letter in words for words in sets)) for letter in "abcdefghijkl"}

    def index(one, other):
        return sum(weight[x] for x in one & other) / sum(weight[x] for x in one | other)

    for i in range(150):
        others = [j for j in range(150) if j != i and answers[i] != answers[j]]
        assert found[i] == any(index(sets[i], sets[j]) >= 0.8 for j in others)


@pytest.mark.slow
def test_a_scan_ends_with_its_advice(root, tmp_path, capsys):
    rows = [{"question": row["prompt"], "answer": row["answer"], "source": "web"} for row in plain_rows(120)]
    write_rows(tmp_path / "rows.jsonl", rows)
    words = [
        "scan",
        "--model_name_or_path",
        str(root / "model"),
        "--dataset_name",
        str(tmp_path / "rows.jsonl"),
    ]
    main([*words, "--gradient_rows", "4", "--output_dir", str(tmp_path / "out")])
    said = capsys.readouterr().out
    assert said.index("heaviest 20 of 120 rows") > said.index("written")
    listed = list(csv.DictReader((tmp_path / "out" / "advice.csv").open()))
    assert len(listed) == 20 and [*listed[0]] == ["sample_id", "n_q", "signs", "prompt", "answer"]
    assert float(listed[0]["n_q"]) >= float(listed[-1]["n_q"]) > 0
    assert "heaviest 20 of 120 rows" in (tmp_path / "out" / "report.html").read_text()
    assert not math.isnan(float(listed[0]["n_q"]))
