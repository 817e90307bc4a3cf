"""Rewordings without a model: at least 99 for each kind of prompt, the same for everyone, offline.

A prompt is recognised by its text: those of the built-in data sets are asked in other words, and anything
else is left word for word inside an instruction to answer it.
"""

from collections.abc import Iterable
from functools import cache
from itertools import product

from klball.data.builtin import BUILTIN, module_of
from klball.files import digest

REWORDINGS = {
    kind: made
    for name in BUILTIN
    for kind, made in getattr(module_of(name), "REWORDINGS", {}).items()  # pairs are not reworded
}
QUESTIONS = {kind: pattern for kind, (pattern, _) in REWORDINGS.items()}

REPLY = (
    *("respond to", "reply to", "answer", "give an answer to", "give a response to", "write a reply to"),
    *("write an answer to", "write a response to", "provide an answer to", "provide a response to"),
)
MESSAGE = (
    *("the following message", "the message below", "the following prompt", "the prompt below"),
    *("the following text", "the text below"),
)
MANNER = ("{reply} {message}:", "please {reply} {message}:", "your task is to {reply} {message}:")


def kind_of(prompt: str) -> str:
    """Which set of rewordings fits a prompt: a key of `QUESTIONS`, or "other"."""
    matching = (kind for kind, pattern in QUESTIONS.items() if pattern.fullmatch(prompt))
    return next(matching, "other")


@cache
def templates(kind: str) -> tuple[str, ...]:
    """All rewordings of a kind, as format strings over the pattern's groups (or `{text}`), in round order.

    The order is by hash, so that neighbouring rounds differ in more than a word.
    """
    made = _framings() if kind == "other" else REWORDINGS[kind][1]
    return tuple(sorted(made, key=lambda text: digest(text, 64)))


def _framings() -> list[str]:
    lines = [
        manner.format(reply=reply, message=message)
        for manner, reply, message in product(MANNER, REPLY, MESSAGE)
    ]
    return [line[0].upper() + line[1:] + "\n\n{text}" for line in lines]


def most_rounds(prompts: Iterable[str]) -> int:
    """How many rounds the templates can make of these prompts without repeating themselves."""
    return min(len(templates(kind)) for kind in {kind_of(prompt) for prompt in prompts})


def reword(prompt: str, round_: int) -> str:
    """The rewording of a prompt in a round (from 1); every prompt of a kind gets the same one.

    White space around the prompt stays. Raises ValueError beyond the last template.
    """
    text = prompt.strip()
    kind = kind_of(text)
    choices = templates(kind)
    if not 1 <= round_ <= len(choices):
        raise ValueError(f"round {round_} of prompts of kind {kind!r}: there are rounds 1 to {len(choices)}")
    if kind == "other":
        fields = {"text": text}
    else:
        match = QUESTIONS[kind].fullmatch(text)
        assert match is not None
        fields = match.groupdict()
    head, tail = prompt[: len(prompt) - len(prompt.lstrip())], prompt[len(prompt.rstrip()) :]
    return head + choices[round_ - 1].format(**fields) + tail if text else prompt
