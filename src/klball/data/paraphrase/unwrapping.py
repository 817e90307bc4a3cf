"""What chat models put around the prompt they were asked for: taken off where that is unambiguous.

A prompt may itself be code, JSON, a list or a quotation. So a wrapper counts only where the original
has none of its kind, and what still looks wrapped in the end is rejected, not guessed at.
"""

import json
import re
from typing import Any

SURELY = r"(?:rewritten|rephrased|reworded|paraphrased|reformulated|restated)"  # of nothing else
MADE = rf"(?:{SURELY}|revised|alternative|updated|new)"
THING = r"(?:prompt|version|question|request|message|instruction|wording|text|one)s?"
RESULT = rf"(?:{MADE}(?:\s+{THING})?|rewrite|rephrasing|rewording|paraphrase|prompt|version|output|result)"
OPENER = (
    r"(?:sure(?: thing)?|certainly|of course|absolutely|okay|ok|got it|no problem|alright|great|understood)"
)
THOUGHT = "(?:think|thinking|thought|reasoning|analysis|scratchpad)"

THOUGHTS_END = re.compile(rf"</{THOUGHT}>", re.IGNORECASE)
FENCE = re.compile(r"^[ \t]*(?:```|~~~)", re.MULTILINE)
FENCED = re.compile(r"(`{3,}|~{3,})[^\n`]*\n(.*)\n[ \t]*\1[ \t]*", re.DOTALL)
FENCED_LINE = re.compile(r"```([^\n`]+)```")
TAGGED = re.compile(r"<([A-Za-z][\w-]*)>(.*)</\1>", re.DOTALL)
# "Rewritten prompt:", "**Rephrased Prompt (formal):**", "The new version is:"
LABEL = re.compile(
    rf"^[#>*_ \t]*(?:(?:the|your|my)\s+)?{RESULT}(?:\s+is)?[ \t]*(?:\([^()\n]*\))?[ \t]*"
    r"(?::[*_]*|[*_]+[ \t]*:)\s*",
    re.IGNORECASE | re.MULTILINE,
)
LABEL_LINE = re.compile(
    rf"^(?:#+[ \t]*[*_]*|\*\*|__)(?:(?:the|your)\s+)?{RESULT}(?:\s*\([^()\n]*\))?(?:\*\*|__)?[ \t]*\n+",
    re.IGNORECASE,
)
OPENING = re.compile(rf"{OPENER}\s*[!.,:–—]+\s+", re.IGNORECASE)
CHEER = re.compile(rf"{OPENER}!\s+", re.IGNORECASE)
OFFER = re.compile(
    rf"{OPENER}\s*(?:[!.,–—]+[^\n]*\b(?:help|happy|glad|here|i['’]?ll|i can|i will|let me)\b[^\n]*)?"
    r"[!.:]?\s*\n+",
    re.IGNORECASE,
)
WAY = r"(?:one|a|another) (?:possible )?way to (?:say|put|phrase|word|ask|express)"
ABOUT = (
    rf"(?:{SURELY}|rewrit\w*|rephras\w*|reword\w*|paraphras\w*|reformulation|(?:the|your|a) prompt"
    rf"|{MADE} {THING}|version of (?:the|your)|{WAY})"
)
HERE = (
    r"(?:(?:here|below)(?:['’]?s|\s+is|\s+are)"
    r"|i(?:['’]ve|\s+have)?\s+(?:rewrote|rewritten|rephrased|reworded))"
)
INTRODUCTION = re.compile(
    rf"{HERE}\b(?=[^\n:]{{0,90}}\b{ABOUT}|\s+{ABOUT})[^\n:]{{0,120}}:[*_]*\s*"
    rf"|{HERE}\s+(?:the|your) prompt[^\n:]*:\s*",
    re.IGNORECASE,
)
HERE_YOU_GO = re.compile(r"here(?:\s+you\s+(?:go|are)|\s+it\s+is)\s*[:!.]\s*", re.IGNORECASE)
ORIGINAL = re.compile(r"^[#>*_ \t]*(?:the\s+)?original(?:\s+\w+)?[*_]*\s*:", re.IGNORECASE | re.MULTILINE)
SURE_REMARK = (
    r"(?:(?:please\s+)?let me know (?:if|whether) (?:you(?:['’]d|\s+would|\s+need|\s+want|\s+have|\s+prefer)"
    r"|this\b|that works|it works|there(?:['’]s|\s+is)\s+any|any\b|further)"
    r"|i hope (?:this|that|it) (?:helps|works|is|meets|suits)|hope (?:this|that|it) helps"
    r"|feel free to (?:ask|let me know|reach out|modify|adjust)|would you like me to|do you want me to"
    r"|is there anything else)"
)
REMARK = re.compile(rf"[\s*_(\[]*{SURE_REMARK}.*", re.DOTALL | re.IGNORECASE)
ADDED_SENTENCE = re.compile(rf"(?<=[.?!])\s+{SURE_REMARK}[^\n]*$", re.IGNORECASE)
# may be the prompt's own words: "Note: use metres.", "I have changed the disk."
PERHAPS_REMARK = re.compile(
    r"[\s*_(\[>-]*(?:(?:note|explanation|changes(?: made)?|reasoning|comment|remark|rationale)\b[*_]*\s*"
    r"(?:\([^()\n]*\))?[*_]*\s*:|note that\b|i(?:['’]ve| have)? (?:kept|preserved|changed|replaced|rewrote|"
    rf"rephrased|reworded|used|made)\b|this (?:{MADE} {THING}|version|rewrite|rewording|rephrasing|wording|"
    r"phrasing)\b|the (?:meaning|numbers?) (?:is|are|was|were|remains?)\b)",
    re.IGNORECASE,
)
RULE = re.compile(r"[ \t]*(?:-{3,}|\*{3,}|_{3,}|={3,})[ \t]*")
ITEM = re.compile(r"^[ \t]*(?:\d{1,2}[.)]|[-*•+])[ \t]+(?=\S)", re.MULTILINE)
OPTION = re.compile(
    r"^[ \t>#*_\d.)-]*(?:option|version|variant|alternative|rewrite)\s+(?:\d+|[a-d])\b[^\w\n]", re.I | re.M
)
HEADING = re.compile(r"^#{1,6}[ \t]+", re.MULTILINE)
SPECIAL = re.compile(r"<\|[^|<>\n]{1,40}\|>|</?s>|\[/?INST\]")
THOUGHT_TAG = re.compile(rf"</?{THOUGHT}>", re.IGNORECASE)
ROLE = re.compile(r"(?:assistant|ai|bot)\s*:\s*", re.IGNORECASE)
REWORDING = re.compile(r"rewrit|rephras|reword|paraphras|reformulat|restat|revis|edit|improve", re.IGNORECASE)
SPOKEN_OF = re.compile(rf"\b{SURELY}\b|\brephrasing\b|\brewording\b", re.IGNORECASE)
LAYERS = 8  # of wrappers around each other
QUOTES = ('""', "“”", "«»", "„“", "‘’", "''")
MARKS = ("**", "__", "*", "_", "`")


def unwrap(text: str, original: str) -> tuple[str, bool]:
    """The prompt in a reply to `original`, and whether nothing else seems to be left around it."""
    original = original.strip()
    text = text.replace("\r\n", "\n").strip().strip("\ufeff\u200b").strip()
    for _ in range(LAYERS):
        before = text
        for step in STEPS:
            text = step(text, original).strip()
        if text == before:
            break
    return text, not _wrapped(text, original)


def _without_thoughts(text: str, original: str) -> str:
    """All before the last end of thoughts: some servers leave out where they begin."""
    ends = [] if THOUGHTS_END.search(original) else [match.end() for match in THOUGHTS_END.finditer(text)]
    return text[ends[-1] :] if ends else text


def _without_fence(text: str, original: str) -> str:
    """One block around everything; blocks of the prompt's own stay, however many it has."""
    added = len(FENCE.findall(text)) - len(FENCE.findall(original))
    match = FENCED.fullmatch(text)
    if match and added == 2:  # its first line and its last
        return match[2]
    line = FENCED_LINE.fullmatch(text)
    return line[1] if line and "```" not in original else text


def _without_json(text: str, original: str) -> str:
    value, own = _json_value(text), _json_value(original)
    if value is None or (type(value) is type(own) and not _has_new_key(value, own)):
        return text
    found = _only_text(value)
    return text if found is None else found


def _json_value(text: str) -> Any:
    """The object, list or string that a text is in JSON; None for anything else."""
    if text[:1] not in ("{", "[", '"'):
        return None
    try:
        value = json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict | list | str) else None


def _only_text(value: Any) -> str | None:
    """The one text that a wrapper can mean: its only one, or the one under the only key of a rewording."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return _only_text(value[0]) if len(value) == 1 else None
    if not isinstance(value, dict):
        return None
    named = [inner for key, inner in value.items() if re.search(rf"{MADE}|rewrite|paraphrase", key, re.I)]
    texts = named if named else list(value.values())
    return _only_text(texts[0]) if len(texts) == 1 else None


def _has_new_key(value: Any, own: Any) -> bool:
    return isinstance(value, dict) and isinstance(own, dict) and not set(value) & set(own)


def _without_tag(text: str, original: str) -> str:
    match = TAGGED.fullmatch(text)
    return match[2] if match and f"<{match[1]}>" not in original else text


def _without_introduction(text: str, original: str) -> str:
    """Openers ("Sure!"), "Here is …:", labels and their headings, where the original has no such start."""
    for pattern in (OFFER, CHEER):
        match = pattern.match(text)
        if match and not OPENING.match(original) and text[match.end() :]:
            return text[match.end() :]
    opening = OPENING.match(text)
    rest = text[opening.end() :] if opening else text
    for pattern in (INTRODUCTION, HERE_YOU_GO, LABEL_LINE, LABEL):
        match = pattern.match(rest)
        sure = pattern is not INTRODUCTION or opening or not REWORDING.search(original)
        if match and sure and rest[match.end() :] and not pattern.match(original):
            return rest[match.end() :]
    return text


def _without_remark(text: str, original: str) -> str:
    """A last paragraph, or a last sentence, that speaks to whoever asked."""
    if REMARK.search(original):
        return text
    shorter = ADDED_SENTENCE.sub("", text)
    head, line, tail = shorter.rpartition("\n")
    return head if line and REMARK.fullmatch(tail) else shorter


def _without_rules(text: str, original: str) -> str:
    lines = text.split("\n")
    if len(lines) > 1 and not any(RULE.fullmatch(line) for line in original.split("\n")):
        while lines and (RULE.fullmatch(lines[0]) or not lines[0].strip()):
            del lines[0]
        while lines and (RULE.fullmatch(lines[-1]) or not lines[-1].strip()):
            del lines[-1]
    return "\n".join(lines)


def _without_quotation(text: str, original: str) -> str:
    """Quotation marks, bold and italics around everything, `>` before every line, one heading or item."""
    for left, right in QUOTES:
        inner = text[1:-1]
        around = len(text) > 1 and text[0] == left and text[-1] == right
        if around and not {left, right} & set(inner) and original[:1] != left:
            return inner
    for mark in MARKS:
        size = len(mark)
        inner = text[size:-size]
        around = len(text) > 2 * size and text.startswith(mark) and text.endswith(mark)
        if around and mark[0] not in inner and "\n\n" not in inner and not original.startswith(mark):
            return inner
    lines = text.split("\n")
    if all(line.startswith(">") for line in lines) and not original.startswith(">"):
        return "\n".join(line[1:].removeprefix(" ") for line in lines)
    if HEADING.match(text) and len(lines) == 1 and not HEADING.search(original):
        return HEADING.sub("", text)
    if ITEM.match(text) and len(ITEM.findall(text)) == 1 and not ITEM.search(original):
        return ITEM.sub("", text, count=1)
    return text


STEPS = (
    *(_without_thoughts, _without_fence, _without_json, _without_tag),
    *(_without_introduction, _without_remark, _without_rules, _without_quotation),
)

STARTS = (ROLE, OPENING, INTRODUCTION, HERE_YOU_GO)
ANYWHERE = (OPTION, HEADING, SPECIAL, LABEL, ORIGINAL, THOUGHT_TAG)


def _wrapped(text: str, original: str) -> bool:
    """Whether something is left that the original has not, and that no rewording needs."""
    listed = len(ITEM.findall(text)) > 1 and not ITEM.search(original)  # proposals, or changes
    if listed or len(FENCE.findall(text)) != len(FENCE.findall(original)):
        return True
    if text[:1] in ("{", "[") and original[:1] != text[:1]:
        return True
    at_start = any(mark.match(text) and not mark.match(original) for mark in STARTS)
    if at_start or any(mark.search(text) and not mark.search(original) for mark in ANYWHERE):
        return True
    last = text.rpartition("\n\n")
    if last[1] and PERHAPS_REMARK.match(last[2]) and not PERHAPS_REMARK.search(original):
        return True
    return bool(SPOKEN_OF.search(text)) and not REWORDING.search(original)
