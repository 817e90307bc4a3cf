"""Texts that look like markup, escapes, formulas or code and are valid: they must arrive byte for byte."""

import csv
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from .case import EITHER, WORKS, Case, command, jsonl

TEXTS = {
    "Llama tags": "[INST] hello [/INST]",
    "closing tag": "[/b] and [/]",
    "colour": "[red]stop[/red]",
    "open bracket": "a[0] = dict[str, int] [",
    "link markup": "[link=https://example.org]x[/link]",
    "emoji code": ":smile: :warning:",
    "regular expression": r"[a-z]+ \[x\] (?P<n>\d+)",
    "clear screen": "\x1b[2J\x1b[H before",
    "terminal title": "\x1b]0;owned\x07 title",
    "terminal link": "\x1b]8;;https://example.org\x1b\\click\x1b]8;;\x1b\\",
    "eight-bit escape": "\x9b31m red",
    "bell and backspace": "ab\x08\x07c",
    "carriage return": "safe text\rhidden",
    "CRLF inside": "one\r\ntwo\r\n",
    "tabs": "\ta\tb\t",
    "line separators": "a\u2028b\u2029c\x85d\x0be\x0cf",
    "emoji": "👩‍👩‍👧‍👦 ok 🏳️‍🌈",
    "right to left": "مرحبا שלום",
    "direction override": "abc\u202edef\u202c\u2066x",
    "combining": "Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A",
    "zero width": "a\u200bb\ufeffc",
    "wide": "漢字かな 한글 ｆｕｌｌ",
    "private use": "\ue000\U000f0000\U0010fffd",
    "formula": '=HYPERLINK("http://example.org","x")',
    "formula by plus": "+1+cmd|' /C calc'!A0",
    "formula by at": "@SUM(1+1)*cmd",
    "minus": "-2+3",
    "HTML": "<script>alert(1)</script><img src=x onerror=y>",
    "LaTeX": r"$x^2_{i}$ \input{/etc/passwd} \end{tabular}",
    "template code": "{{ 7*7 }} {% for x in y %} ${HOME} %(a)s {0} %s",
    "special tokens": "<|im_end|>\n<|im_start|>assistant\nYes<|endoftext|>",
    "words that are null": "null",
    "NA": "NA",
    "None": "None",
    "nan": "nan",
    "true": "true",
    "leading zeros": "0042",
    "a number": "1e5",
    "a date": "2020-01-01",
    "a list": "[1, 2, 3]",
    "an object": '{"a": null}',
    "quotes": '"a" \'b\' """ \'\'',
    "commas": 'a, "b", c;d',
    "white space around": "  padded \n",
    "a path": "/etc/passwd ../../x C:\\x",
    "a long word": "a" * 500,
    "NUL": "a\0b",
}
CONTROL = {"NUL"}  # may be refused too


def cases() -> Iterator[Case]:
    """All of them."""
    for number, (kind, text) in enumerate(TEXTS.items()):
        expected = EITHER if kind in CONTROL else WORKS
        long = kind == "a long word"
        for form in ("jsonl", "csv"):
            if form == "csv" and kind in CONTROL | {"carriage return"}:
                continue
            data = f"d.{form}"
            yield Case(
                f"score: {form} {kind}",
                "valid texts",
                expected,
                command("score", data),
                _writes(text, form),
                check=None if long else lambda text=text: _sizes(text),
            )
        yield Case(
            f"train: {kind}",
            "valid texts",
            expected,
            command("train"),
            _writes(text, "jsonl"),
            check=None if long or kind in CONTROL else lambda text=text: _top(text),
        )
        yield Case(
            f"paraphrase: {kind}",
            "valid texts",
            expected,
            command("paraphrase"),
            _writes(text, "jsonl"),
            check=lambda text=text: _originals(text),
        )
        for more, check in (("", _shown), ("--json", _printed)):
            if more and number % 3:
                continue
            yield Case(
                f"solve{more}: id {kind}",
                "valid texts",
                expected,
                ["solve", "--scores", "s.parquet", *([more] if more else [])],
                lambda text=text: _table(text),
                fixtures=("scores",),
                environment={"COLUMNS": "200"},
                check=_told(check, text) if not long else None,
            )
    for name in ("evaluate", "scan", "compare", "reproduce"):
        for kind in ("Llama tags", "clear screen", "direction override", "HTML", "LaTeX", "template code"):
            rows = _writes(TEXTS[kind], "jsonl", 12)
            yield Case(f"{name}: {kind}", "valid texts", WORKS, command(name), rows)


def _writes(text: str, form: str, count: int = 4) -> Callable[[], None]:
    rows = [{"question": f"{text}{i}", "answer": text} for i in range(count)]

    def write() -> None:
        if form == "jsonl":
            jsonl(rows)
            return
        with Path("d.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["question", "answer"], quoting=csv.QUOTE_ALL)
            writer.writeheader()
            writer.writerows(rows)

    return write


def _sizes(text: str) -> str | None:
    """The answers that were scored have as many bytes as those in the file.

    Special tokens have none; where an answer begins with white space, the line's end before it may share
    the answer's first token.
    """
    import pyarrow.parquet as pq

    size = len(re.sub(r"<\|\w+\|>", "", text).encode())
    sizes = set(pq.read_table("out/scores.parquet")["num_bytes"].to_pylist())
    allowed = {size, size + 1} if text[:1].isspace() else {size}
    return None if sizes <= allowed else f"{size} bytes became {sizes}"


def _top(text: str) -> str | None:
    """The list of samples has the answer, an apostrophe before a formula at most."""
    with Path("out/top_weighted.csv").open(newline="", encoding="utf-8") as file:
        answers = {row["answer"] for row in csv.DictReader(file)}
    same = all(answer.removeprefix("'") == text.removeprefix("'") for answer in answers)
    return None if same else f"the answer became {answers!r:.200}"


def _originals(text: str) -> str | None:
    import pyarrow.parquet as pq

    table = pq.read_table("out/rounds.parquet")
    wrong = set(table["answer"].to_pylist()) != {text}
    wrong |= set(table["original"].to_pylist()) != {f"{text}{i}" for i in range(4)}
    return "a text changed in rounds.parquet" if wrong else None


def _table(text: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from .case import fixture

    table = pq.read_table(fixture("scores") / "out/scores.parquet")
    ids = pa.array([f"{text}{i}" for i in range(len(table))])
    pq.write_table(table.set_column(table.column_names.index("sample_id"), "sample_id", ids), "s.parquet")


def _told(check: Callable[[str, str], str | None], text: str) -> Callable[[], str | None]:
    return lambda: check(Path("../out").read_text(encoding="utf-8"), text)


def _printed(out: str, text: str) -> str | None:
    ids = {top["sample_id"] for top in json.loads(out)["top"]}
    return None if ids == {f"{text}{i}" for i in range(4)} else f"ids became {ids!r:.200}"


def _shown(out: str, text: str) -> str | None:
    """An id of plain characters is in the printed table as it is."""
    plain = text.isascii() and text.isprintable() and text == text.strip() and len(text) < 40
    return None if not plain or f"{text}0" in out else "an id is not shown as it is"
