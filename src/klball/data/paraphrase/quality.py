"""Which paraphrases may be used: cheap checks on all, similarity of meaning where it is asked for."""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from klball.boundary import first_line
from klball.data.paraphrase.samples import Sample
from klball.data.texts import folded
from klball.files import digest

NO_PROMPT = "no prompt to rephrase"
NO_REPLY = "no reply"
CUT_OFF = "reply cut off"
WRAPPED = "more than a prompt"
EMPTY = "empty"
REFUSED = "refused"
NUMBERS = "numbers changed"
CODE = "code changed"
QUESTION = "nothing is asked"
UNCHANGED = "same as the original"
REPEATED = "same as in an earlier round"
SHARED = "same as another sample's"
DISSIMILAR = "meaning too far"
REASONS = (
    *(NO_PROMPT, NO_REPLY, CUT_OFF, WRAPPED, EMPTY, REFUSED, CODE, NUMBERS, QUESTION),
    *(UNCHANGED, REPEATED, SHARED, DISSIMILAR),
)

WORDS = "two three four five six seven eight nine ten eleven twelve"
NUMBER_WORDS = {word: str(value) for value, word in enumerate(WORDS.split(), start=2)}
MINUS = "-−–⁻"
RAISED = "²³¹⁰⁴-⁹"
NUMBER = re.compile(  # a dash after a number is a range
    r"(?<![\w)\]%°$€'\"’”])(?:[-−]|(?<!\d\s)–)(?=\.?\d)|\d+(?:,\d{3})*(?:\.\d+)?|(?<![\w.])\.\d+|"
    rf"⁻(?=[{RAISED}])|[{RAISED}₀-₉¼-¾⅐-⅞]|"
    r"\b(?:" + "|".join(NUMBER_WORDS) + r")\b",
    re.IGNORECASE,
)
CODE_SPAN = re.compile(r"```.*?```|`[^`]+`", re.DOTALL)
REFUSAL = re.compile(
    r"(?:i['’]?m (?:really |so |very )?sorry|i am sorry|(?:i['’]?m )?sorry,|i apologi[sz]e|"
    r"(?:unfortunately,? )?i (?:cannot|can['’]?t|can not|won['’]?t|am unable|am not able)|"
    r"i['’]?m (?:unable|not able)|as an ai)\b",
    re.IGNORECASE,
)
INSTRUCTION = re.compile(r"\brewrite the (?:prompt|question|message|text)\b", re.IGNORECASE)
MARK = re.compile(r"[?？؟]")
ASKS = re.compile(  # without a question mark
    r"\b(?:what|how|why|explain|describe|tell|give|find|calculate|compute|determine|work out|write|list|show|"
    r"provide|name|state|say|identify|discuss|define|summari[sz]e|clarify|outline|share|help|let me know|"
    r"i(?:['’]d| would) like|i (?:want|need|wonder))\b",
    re.IGNORECASE,
)

Embedder = Callable[[list[str]], Any]  # texts → array [n, d]


@dataclass(frozen=True)
class Reply:
    """What a maker proposes for one sample: a text, or why there is none (one of `REASONS`)."""

    text: str | None
    problem: str = ""


@dataclass(frozen=True)
class Verdict:
    """What became of a reply: accepted if `reason` is empty."""

    candidate: str | None
    reason: str
    similarity: float | None = None


@dataclass(frozen=True)
class Similarity:
    """Cosine of the embeddings of original and candidate; below `threshold` the candidate is rejected.

    weights: a hash of the embedding model's.
    """

    embed: Embedder
    threshold: float
    weights: str = ""

    def cosines(self, originals: Sequence[str], candidates: Sequence[str]) -> list[float]:
        """cos(e(original), e(candidate)) per pair. Raises ValueError if one is not finite."""
        if not originals:
            return []
        a = np.asarray(self.embed(list(originals)), dtype=np.float64)
        b = np.asarray(self.embed(list(candidates)), dtype=np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            values = (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
        if not np.isfinite(values).all():
            raise ValueError("the similarity model gave an embedding that is zero or not finite")
        return values.tolist()


def sentence_similarity(name: str, threshold: float) -> Similarity:
    """By a sentence-transformers model. Raises ValueError if the extra or the model is missing."""
    try:
        from sentence_transformers import SentenceTransformer  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError("--similarity_model needs an extra: pip install 'klball[similarity]'") from error
    try:
        model = SentenceTransformer(name)
    except (OSError, ValueError) as error:
        raise ValueError(f"could not load similarity model {name!r}: {first_line(error)}") from error
    from klball.models.weights import weights_hash

    return Similarity(
        lambda texts: model.encode(texts, show_progress_bar=False), threshold, weights_hash(model)
    )


def problem_of(original: str, candidate: str) -> str:
    """Why a candidate must not stand for the original, one of `REASONS`; "" if nothing speaks against it.

    Numbers are compared as a multiset of values outside code (two to twelve count in words too, and of
    3.10, which may be a version, the last zero); code in backticks must all be there, letter for letter.
    What was a question still asks.
    """
    checks = (
        (EMPTY, not candidate.strip()),
        (REFUSED, REFUSAL.match(candidate.strip()) and not REFUSAL.match(original.strip())),
        (WRAPPED, INSTRUCTION.search(candidate) and not INSTRUCTION.search(original)),
        (CODE, set(CODE_SPAN.findall(original)) - set(CODE_SPAN.findall(candidate))),
        (NUMBERS, _numbers(original) != _numbers(candidate)),
        (QUESTION, MARK.search(original) and not (MARK.search(candidate) or ASKS.search(candidate))),
        (UNCHANGED, fold(original) == fold(candidate)),
    )
    return next((reason for reason, holds in checks if holds), "")


def _numbers(text: str) -> Counter[str]:
    """How often each value occurs; a minus sign is a match of its own, before its number."""
    found: Counter[str] = Counter()
    sign = ""
    matches: list[str] = NUMBER.findall("".join(map(_european, CODE_SPAN.sub(" ", text))))
    for match in matches:
        if match in MINUS:
            sign = "-"
            continue
        found[sign + _value(match)] += 1
        sign = ""
    return found


def _european(character: str) -> str:
    """A digit of any script as one of ours."""
    return str(unicodedata.decimal(character)) if character.isdecimal() else character


def _value(match: str) -> str:
    """Written without commas, needless zeros before it, and a fraction of zeros only."""
    if not match.isascii():  # ² or ½
        return f"{unicodedata.numeric(match):g}"
    whole, _, fraction = (NUMBER_WORDS.get(match.lower()) or match.replace(",", "")).partition(".")
    whole = whole.lstrip("0") or "0"
    return f"{whole}.{fraction}" if fraction.strip("0") else whole


def fold(text: str) -> str:
    """The text without what makes no new wording: case, white space, quotes and a mark at the end."""
    return folded(text).strip("\"'“”‘’ ").rstrip(".?! ")


class QualityControl:
    """Judges one round after the other, and knows what earlier rounds proposed for each sample."""

    def __init__(self, samples: Sequence[Sample], similarity: Similarity | None = None):
        self.samples, self.similarity = samples, similarity
        self._earlier: list[set[bytes]] = [set() for _ in samples]

    def judge(self, replies: Sequence[Reply]) -> list[Verdict]:
        """A verdict per sample on the replies of one round, in the samples' order."""
        verdicts = [self._alone(i, reply) for i, reply in enumerate(replies)]
        verdicts = self._without_shared(verdicts)
        self.remember([verdict.candidate for verdict in verdicts])
        return verdicts if self.similarity is None else self._measured(verdicts, self.similarity)

    def remember(self, candidates: Sequence[str | None]) -> None:
        """Take note of a finished round's candidates."""
        for earlier, candidate in zip(self._earlier, candidates, strict=True):
            if candidate:
                earlier.add(_key(candidate))

    def _alone(self, index: int, reply: Reply) -> Verdict:
        original = self.samples[index].prompt
        if not original.strip():
            return Verdict(None, NO_PROMPT)
        if reply.text is None or reply.problem:
            return Verdict(reply.text, reply.problem or NO_REPLY)
        reason = problem_of(original, reply.text)
        if not reason and _key(reply.text) in self._earlier[index]:
            reason = REPEATED
        return Verdict(reply.text, reason)

    def _without_shared(self, verdicts: list[Verdict]) -> list[Verdict]:
        """Samples with different prompts must not end up with one wording; all who share it are rejected."""
        origins: dict[bytes, set[str]] = {}
        for sample in self.samples:  # whose own prompt it may keep
            origins.setdefault(_key(sample.prompt), set()).add(fold(sample.prompt))
        for sample, verdict in zip(self.samples, verdicts, strict=True):
            if verdict.candidate and not verdict.reason:
                origins.setdefault(_key(verdict.candidate), set()).add(fold(sample.prompt))
        return [
            replace(v, reason=SHARED)
            if v.candidate and not v.reason and len(origins[_key(v.candidate)]) > 1
            else v
            for v in verdicts
        ]

    def _measured(self, verdicts: list[Verdict], similarity: Similarity) -> list[Verdict]:
        open_ = [i for i, verdict in enumerate(verdicts) if not verdict.reason]
        originals = [self.samples[i].prompt for i in open_]
        cosines = similarity.cosines(originals, [verdicts[i].candidate or "" for i in open_])
        measured = list(verdicts)
        for i, cosine in zip(open_, cosines, strict=True):
            reason = DISSIMILAR if cosine < similarity.threshold else ""
            measured[i] = replace(verdicts[i], reason=reason, similarity=cosine)
        return measured


def _key(text: str) -> bytes:
    return bytes.fromhex(digest(fold(text), 24))
