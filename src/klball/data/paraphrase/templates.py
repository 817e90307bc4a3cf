"""Rewordings without a model: at least 99 for each kind of prompt, the same for everyone, offline.

A prompt is recognised by its text: questions about Python's documentation, the generated arithmetic
stories, and anything else, which is left word for word inside an instruction to answer it.
"""

import hashlib
import re
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import product

from klball.data.paraphrase.stories import STORIES

CODE = "`(?P<name>[^`]+)`"
OWNER = "`(?P<module>[^`]+)`"
QUESTIONS = {  # kind of prompt → how it is worded in the embedded data
    "module": re.compile(f"What is the module {OWNER} for\\?"),
    "class": re.compile(f"What is the class {CODE} of {OWNER}\\?"),
    "function": re.compile(f"What does the function {CODE} of {OWNER} do\\?"),
    "method": re.compile(f"What does the method {CODE} of {OWNER} do\\?"),
    **{kind: re.compile(pattern) for kind, (pattern, _) in STORIES.items()},
}

ASKING = (  # around a noun clause such as "what the module `os` is for"
    *("Explain {}.", "Please explain {}.", "Can you explain {}?", "Could you please explain {}?"),
    *("Describe {}.", "Please describe {}.", "Could you describe {}?"),
    *("Tell me {}.", "Please tell me {}.", "Could you tell me {}?", "I would like to know {}."),
    *("I want to understand {}.", "Help me understand {}.", "I need an explanation of {}."),
)
CALLABLE_CLAUSES = (
    *("what {} does", "what {} is for", "what {} is used for", "what {} is meant to do"),
    *("the purpose of {}", "what purpose {} serves"),
)
CLASS_CLAUSES = ("what {} is", "what {} is for", "what sort of thing {} is")
MODULE_CLAUSES = (
    *("what {} is for", "what {} is used for", "what {} is meant for", "what purpose {} serves"),
    *("the purpose of {}", "the use of {}"),
)
CALLABLE_NAMES = (
    *("the {kind} `{name}` of `{module}`", "the {kind} `{name}` in `{module}`"),
    *("the `{name}` {kind} of `{module}`", "the {kind} `{name}` from `{module}`"),
)
MODULE_NAMES = (
    *("the module `{module}`", "the `{module}` module"),
    *("the Python module `{module}`", "Python's module `{module}`"),
)

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
    if kind == "other":
        made = _framings()
    elif kind in STORIES:
        made = [" ".join(parts) for parts in product(*STORIES[kind][1])][1:]  # the first is the original
    elif kind == "module":
        made = _asked(MODULE_CLAUSES, MODULE_NAMES)
    else:
        names = [name.replace("{kind}", kind) for name in CALLABLE_NAMES]
        made = _asked(CLASS_CLAUSES if kind == "class" else CALLABLE_CLAUSES, names)
    return tuple(sorted(made, key=lambda text: hashlib.sha256(text.encode()).hexdigest()))


def _asked(clauses: Sequence[str], names: Sequence[str]) -> list[str]:
    return [
        frame.replace("{}", clause.replace("{}", name))
        for frame, clause, name in product(ASKING, clauses, names)
    ]


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
