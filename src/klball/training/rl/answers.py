"""What a text answers: its last number, its choice. Text is matched, never run."""

import re
from collections.abc import Iterable
from fractions import Fraction
from numbers import Real
from typing import Any

MINUS = str.maketrans(dict.fromkeys("−–‒﹣－", "-"))
NARROW = re.compile("(?<=[0-9])[\u00a0\u202f](?=[0-9]{3})")  # spaces inside of 10 000
DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)"
NUMBER = re.compile(
    rf"""(?<![A-Za-z0-9_])             # x2 and H2O have no number of their own
    (?:(?<![0-9)])(?P<sign>-)[ ]?(?=[$€£.0-9]))?  # 5-3 is a range, or 5 and then 3
    [$€£]?[ ]?
    (?:(?P<whole>{DIGITS})?(?P<decimals>\.[0-9]+)|(?P<integer>{DIGITS}))
    (?:[eE](?P<exponent>[-+]?[0-9]{{1,3}})(?![A-Za-z0-9]))?
    (?:[ ]?/[ ]?(?P<below>[0-9]+)(?![0-9./]))?""",
    re.VERBOSE,
)
LONGEST = 1000  # digits; Python refuses to read more than 4,300
CLOSED = re.compile(r"^.*</think(?:ing)?>", re.DOTALL | re.IGNORECASE)
OPEN = re.compile(r"<think(?:ing)?>", re.IGNORECASE)
SAID = re.compile(
    r"\b(?:answer|choice|option)\b(?:\s+(?:is|would\s+be))?\s*[:=]?\s*[*_`\s]*[(\[]?([A-J])(?![A-Za-z'’])",
    re.IGNORECASE,
)
MARKED = re.compile(r"(?:^|(?<=[\s*_(\[]))[(\[]?([A-J])(?:[)\]]|[.:](?=\s|[*_]|$))")
ALONE = re.compile(r"^[\s*_`(\[]*([A-J])[\s*_`)\].:]*$")


def without_thoughts(text: str) -> str | None:
    """What follows the last </think>; None while a thought is open: nothing is answered yet.

    A prompt may have opened the thought, so that a completion holds its end alone.
    """
    text = CLOSED.sub("", text)
    return None if OPEN.search(text) else text.strip()


def last_number(text: str) -> Fraction | None:
    """The last number of a text, exactly; None if there is none.

    Thousands' commas, currencies, decimals, exponents, fractions a/b and every minus sign are read; a unit or
    a percent sign after the number is not, so 50% is 50, and digits inside of a word are no number. A
    fraction over zero, and a number of more than 1,000 digits, are none.
    """
    found = None
    for match in NUMBER.finditer(NARROW.sub(",", text.translate(MINUS))):
        found = match
    return None if found is None else _value(found)


def _value(match: re.Match[str]) -> Fraction | None:
    whole = (match["integer"] or match["whole"] or "0").replace(",", "")
    below = match["below"] or "1"
    if max(len(whole), len(match["decimals"] or ""), len(below)) > LONGEST or int(below) == 0:
        return None
    value = Fraction(whole + (match["decimals"] or "")) / int(below)
    value *= Fraction(10) ** int(match["exponent"] or 0)
    return -value if match["sign"] else value


def choice_of(text: str) -> str | None:
    """The letter A to J that a text chooses; None if it chooses none.

    The last one after "answer", "choice" or "option"; else one that stands alone in the last line; else the
    last that is marked as a choice: (B), B) or B. at its end.
    """
    said = [m for m in SAID.finditer(text) if m[1].isupper()]
    if said:
        return said[-1][1]
    lines = [line for line in text.splitlines() if line.strip()]
    alone = ALONE.match(lines[-1]) if lines else None
    if alone:
        return alone[1]
    marked = MARKED.findall(text)
    return marked[-1] if marked else None


def text_of(completion: Any) -> str:
    """Of a completion as TRL passes it: a text, or messages, of which the last has the answer."""
    if isinstance(completion, str):
        return completion
    content = completion[-1].get("content") if completion else None
    if isinstance(content, str):
        return content
    return "".join(part.get("text") or "" for part in content or () if isinstance(part, dict))


def no_references(column: str) -> ValueError:
    """The error for data without the column of right answers."""
    return ValueError(f"the reward needs a column {column!r} with the right answers: the data have none")


def references(column: str, columns: dict[str, Any]) -> Iterable[str]:
    """The right answers, one a completion. Raises ValueError without the column, or where one is missing."""
    if column not in columns:
        raise no_references(column)
    for value in columns[column]:
        if not isinstance(value, str | Real) or str(value).strip() == "":
            raise ValueError(f"the reward found no right answer in column {column!r}: {value!r}")
        yield str(value)
