"""Chat templates that mark assistant turns with {% generation %}, made from those that do not."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jinja2

RENDERING_ERRORS = (  # what a template's own code can raise
    *(jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError),
    RuntimeError,
)
# The template itself renders what comes before a turn, and the turn with it: what is more is the turn, up to
# the white space after its end. Written piece by piece, so that a piece can be marked.
MARKED = """\
{%- macro whole_text(messages, add_generation_prompt) -%}
TEMPLATE
{%- endmacro -%}
{%- set written = namespace(text="") -%}
{%- for turn in messages -%}
{%- if turn["role"] == "assistant" -%}
{%- set before = whole_text(messages[:loop.index0], true) -%}
{%- set whole = whole_text(messages[:loop.index], false) -%}
{%- if not before.startswith(written.text) or not whole.startswith(before) -%}
{{- raise_exception("a turn changes what is before it") -}}
{%- endif -%}
{{- before[written.text|length:] -}}
{%- generation -%}{{- whole[before|length:].rstrip() -}}{%- endgeneration -%}
{%- set written.text = before + whole[before|length:].rstrip() -%}
{%- endif -%}
{%- endfor -%}
{%- set whole = whole_text(messages, add_generation_prompt) -%}
{%- if not whole.startswith(written.text) -%}
{{- raise_exception("a turn changes what is before it") -}}
{%- endif -%}
{{- whole[written.text|length:] -}}
"""
PROBE = [
    {"role": role, "content": f"{role} says {number}"} for number in (1, 2) for role in ("user", "assistant")
]


def marked_template(tokenizer: Any) -> str:
    """The tokenizer's template, rendering the same text, with every assistant turn marked.

    A turn is what its template adds to the text before it and the generation prompt. Raises ValueError where
    a turn changes the text before it (as of those that drop earlier reasoning), or does not follow the
    generation prompt.
    """
    own = tokenizer.chat_template
    try:
        own = own["default"] if isinstance(own, dict) else own
        template = MARKED.replace("TEMPLATE", own)
        same = _rendered(tokenizer, template) == _rendered(tokenizer, own)
        marked = tokenizer.apply_chat_template(
            PROBE, chat_template=template, return_dict=True, return_assistant_tokens_mask=True
        )
    except RENDERING_ERRORS as error:
        raise ValueError(str(error)) from error
    if not same or not any(marked["assistant_masks"]):
        raise ValueError("the text with marks would be another")
    return template


def _rendered(tokenizer: Any, template: str) -> list[str]:
    return [
        tokenizer.apply_chat_template(
            PROBE[:turns], chat_template=template, tokenize=False, add_generation_prompt=turns % 2 == 1
        )
        for turns in range(1, len(PROBE) + 1)
    ]


@contextmanager
def chat_template_of(tokenizer: Any, template: str | None) -> Iterator[None]:
    """The tokenizer has this template inside; its own again afterwards.

    None changes nothing, and keeps what was changed inside.
    """
    if template is None:
        yield
        return
    own, tokenizer.chat_template = tokenizer.chat_template, template
    try:
        yield
    finally:
        tokenizer.chat_template = own
