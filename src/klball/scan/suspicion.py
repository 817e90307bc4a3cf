"""Signs, read off the rows themselves, that an answer may be noise; and where rows that weigh much agree."""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from scipy import stats

from klball.data.texts import folded

SIGNS = {  # sign → what it says of a row
    "duplicate": "repeat another row",
    "contradicted": "answer otherwise than another row that asks the same",
    "other script": "answer in another script than they ask in",
    "other language": "answer in words that neither their prompt nor the rest uses",
    "very short": "are far shorter than the others of their kind",
    "very long": "are far longer than the others of their kind",
}
ALIKE, DIFFERENT = 0.8, 0.5  # Jaccard indices: prompts at least (rare words count more), answers at most
NEIGHBOURS, LISTED = 20, 200  # of a row at most, and rows looked at for a word
FREQUENT = 0.1  # share of the answers that have a word by which their language is known
OUTLYING = 3.0  # robust standard deviations of the logarithm of a length
MOST_VALUES = 50  # of a column that could name groups
SURE = 1e-3  # p-value, over all words or values that were tried

WORD = re.compile(r"\w+")
Words = list[frozenset[str]]


def words_of(text: str) -> frozenset[str]:
    """The different words, in lower case."""
    return frozenset(WORD.findall(text.casefold()))


def signs_of(
    prompts: Sequence[str], answers: Sequence[str], tokens: np.ndarray, kind: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Which rows bear which of the SIGNS, [n] of bool each.

    tokens: the lengths of the answers. kind: rows (bool [n]) that are a kind of their own, whose lengths are
    compared with each other: short answers to what asks for them are no noise.
    """
    asked, answered = [*map(words_of, prompts)], [*map(words_of, answers)]
    size = np.zeros(len(tokens))
    for part in (np.ones(len(tokens), dtype=bool),) if kind is None else (kind, ~kind):
        if part.any():
            size[part] = _outlying(np.log(np.maximum(tokens[part], 1)))
    script, language = _foreign(prompts, answers, asked, answered)
    return {
        "duplicate": _repeated([*zip(map(folded, prompts), map(folded, answers), strict=True)]),
        "contradicted": _contradicted(asked, answered),
        "other script": script,
        "other language": language,
        "very short": size < -OUTLYING,
        "very long": size > OUTLYING,
    }


def _repeated(values: Sequence[Any]) -> np.ndarray:
    counts = Counter(values)
    return np.array([counts[value] > 1 for value in values])


def _outlying(values: np.ndarray) -> np.ndarray:
    """Distances from the median in standard deviations, which are 1.48 times their median, at least .2."""
    distance = values - np.median(values)
    return distance / max(0.2, 1.4826 * float(np.median(np.abs(distance))))


# --- near-duplicates --------------------------------------------------------------------------


def _contradicted(asked: Words, answered: Words) -> np.ndarray:
    found = np.zeros(len(asked), dtype=bool)
    for one, other in _neighbours(asked):
        if answered[one] != answered[other] and jaccard(answered[one], answered[other]) <= DIFFERENT:
            found[[one, other]] = True
    return found


def jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    """Words of both over words of either."""
    return len(one & other) / max(1, len(one | other))


def _neighbours(asked: Words) -> Iterator[tuple[int, int]]:
    """Pairs of rows that ask nearly the same, with the same numbers: see `ask_the_same`.

    Two of a weighted Jaccard index t or more share one of the rarest words of each, those that leave less
    than t of its weight to the others; so only rows that share one of those are compared.
    """
    weights = rarity(asked)
    rows_of: dict[str, list[int]] = defaultdict(list)
    for row, words in enumerate(asked):
        rarest = _rarest(words, weights)
        near = dict.fromkeys(other for word in rarest for other in rows_of[word][-LISTED:])
        alike = (other for other in near if ask_the_same(words, asked[other], weights))
        yield from ((row, other) for other in islice(alike, NEIGHBOURS))
        for word in rarest:
            rows_of[word].append(row)


def rarity(texts: Words) -> dict[str, float]:
    """Word → log((n + 1)/texts that have it): the name of what is asked for tells questions apart."""
    counts = Counter(word for words in texts for word in words)
    return {word: float(np.log((len(texts) + 1) / count)) for word, count in counts.items()}


def _rarest(words: frozenset[str], weights: Mapping[str, float]) -> list[str]:
    ordered = sorted(words, key=lambda word: (-weights[word], word))
    left = total = sum(weights[word] for word in ordered)
    for place, word in enumerate(ordered):
        if left < ALIKE * total - 1e-9:
            return ordered[:place]
        left -= weights[word]
    return ordered


def ask_the_same(one: frozenset[str], other: frozenset[str], weights: Mapping[str, float]) -> bool:
    """Whether they have the same numbers, and of the weight of their words ALIKE in common."""
    apart = one ^ other
    if any(any(map(str.isdigit, word)) for word in apart):
        return False
    common = sum(weights[word] for word in one & other)
    return common >= ALIKE * (common + sum(weights[word] for word in apart))


# --- scripts and languages --------------------------------------------------------------------


def _foreign(
    prompts: Sequence[str], answers: Sequence[str], asked: Words, answered: Words
) -> tuple[np.ndarray, np.ndarray]:
    """Answers in another script, or other words, than most rows and their own prompt.

    One who asks in a rare language and is answered in it is no noise.
    """
    scripts = [
        (script_of(prompt), script_of(answer)) for prompt, answer in zip(prompts, answers, strict=True)
    ]
    usual = Counter(answer for _, answer in scripts if answer).most_common(1)
    main = usual[0][0] if usual else ""
    other_script = np.array([bool(a) and a not in (main, p) for p, a in scripts])
    counts = Counter(word for words in answered for word in words)
    frequent = {word for word, count in counts.items() if count >= FREQUENT * len(answered)}
    usual_share = np.array([_share(words, frequent) for words in answered])
    prompt_share = np.array([_share(words, frequent) for words in asked])
    plain = np.array([len(words) >= 8 and _is_prose(a) for words, a in zip(answered, answers, strict=True)])
    middle, asked_in = float(np.median(usual_share)), float(np.median(prompt_share))
    if middle < 0.1:  # no words in common: there is nothing to tell a language by
        return other_script, np.zeros(len(answers), dtype=bool)
    strange = plain & (usual_share < middle / 4) & (prompt_share >= asked_in / 2)
    return other_script, strange & ~other_script


def script_of(text: str) -> str:
    """The script that most letters are of: LATIN, CYRILLIC, CJK, …; "" without letters."""
    letters = Counter(unicodedata.name(c, "").partition(" ")[0] for c in text[:2_000] if c.isalpha())
    return letters.most_common(1)[0][0] if letters else ""


def _share(words: frozenset[str], frequent: set[str]) -> float:
    return len(words & frequent) / max(1, len(words))


def _is_prose(text: str) -> bool:
    """Letters and blanks, for the most part: code is not another language."""
    return sum(c.isalpha() or c.isspace() for c in text) > 0.8 * len(text)


# --- rare matter ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Matter:
    """What rows that weigh much have in common: values of a column, or words (column None).

    rows: which of all have one, [n]; among: the share of the rows that weigh much.
    """

    column: str | None
    values: list[str]
    rows: np.ndarray
    among: float

    @property
    def share(self) -> float:
        """Of all rows."""
        return float(self.rows.mean())


def matter_of(top: np.ndarray, columns: Mapping[str, Sequence[Any]], texts: Sequence[str]) -> Matter | None:
    """The rare value of a column, or the rare words, that the rows `top` (bool [n]) have far too often.

    By hypergeometric tests, corrected for all that were tried. A column that names it goes before words.
    """
    for name, values in columns.items():
        found = _over_represented(top, [frozenset([str(value)]) for value in values])
        if found:
            return _matter(name, found[:1], top, [frozenset([str(value)]) for value in values])
    words = [*map(words_of, texts)]
    found = _over_represented(top, words)
    return _matter(None, found[:4], top, words) if found else None


def columns_that_could_name_groups(columns: Mapping[str, Sequence[Any]]) -> dict[str, Sequence[Any]]:
    """Those of texts or whole numbers with few different values."""
    return {
        name: values
        for name, values in columns.items()
        if all(isinstance(value, str | int) for value in values)
        and 1 < len(set(values)) <= min(MOST_VALUES, len(values) // 5)
    }


def _over_represented(top: np.ndarray, having: Sequence[frozenset[str]]) -> list[str]:
    """Values in at most 3 of 10 rows, but in more than 3 of 10 of the top ones, the surest first."""
    everywhere = Counter(value for values in having for value in values)
    there = Counter(value for values, is_top in zip(having, top, strict=True) if is_top for value in values)
    n, m = len(having), int(top.sum())
    rare = {value: there[value] for value in there if everywhere[value] <= 0.3 * n and there[value] > 0.3 * m}
    p = {v: float(stats.hypergeom.sf(k - 1, n, everywhere[v], m)) * len(everywhere) for v, k in rare.items()}
    return sorted((value for value in p if p[value] < SURE), key=lambda value: (p[value], value))


def _matter(
    column: str | None, values: list[str], top: np.ndarray, having: Sequence[frozenset[str]]
) -> Matter:
    has = np.array([bool(found & {*values}) for found in having])
    return Matter(column, values, has, float(has[top].mean()))
