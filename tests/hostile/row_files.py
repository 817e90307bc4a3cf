"""Data files that are cut, encoded, packed or named in another way than one would hope."""

import gzip
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .case import DATA, EITHER, REFUSED, WORKS, Case, command, good_rows, jsonl, others

LINES = "".join(json.dumps(row) + "\n" for row in good_rows())
CSV = "question,answer\n" + "".join(f"{r['question']},{r['answer']}\n" for r in good_rows())
DEEP = 100_000
HERE = r"^(?!.*(offline|Hub that can be reached|Couldn't))"  # an existing file is never looked for on the Hub

BYTES: dict[str, tuple[str, bytes, str, tuple[str, ...]]] = {  # kind → (file, content, expected, hints)
    "byte order mark": (DATA, b"\xef\xbb\xbf" + LINES.encode(), WORKS, ()),
    "byte order mark in CSV": ("d.csv", b"\xef\xbb\xbf" + CSV.encode(), WORKS, ()),
    "CRLF": (DATA, LINES.replace("\n", "\r\n").encode(), WORKS, ()),
    "CRLF in CSV": ("d.csv", CSV.replace("\n", "\r\n").encode(), WORKS, ()),
    "CR only": (DATA, LINES.replace("\n", "\r").encode(), EITHER, ()),
    "no last line end": (DATA, LINES.strip().encode(), WORKS, ()),
    "blank lines": (DATA, LINES.replace("\n", "\n\n").encode(), EITHER, ()),
    "raw NUL": (DATA, LINES.replace("It", "\0t").encode(), REFUSED, ()),
    "NUL in CSV": ("d.csv", CSV.replace("It", "\0t").encode(), EITHER, ()),
    "all NUL": (DATA, b"\0" * 4096, REFUSED, (DATA,)),
    "latin-1": (DATA, LINES.replace("What", "Où").encode("latin-1"), EITHER, ("utf-?8|encod",)),
    "latin-1 CSV": ("d.csv", CSV.replace("What", "Où").encode("latin-1"), EITHER, ("utf-?8|encod",)),
    "utf-16": (DATA, LINES.encode("utf-16"), EITHER, ("utf-?8|encod",)),
    "utf-16 CSV": ("d.csv", CSV.encode("utf-16"), EITHER, ("utf-?8|encod",)),
    "utf-32": (DATA, LINES.encode("utf-32"), EITHER, ("utf-?8|encod",)),
    "a broken character": (DATA, LINES.encode().replace(b"It is 2", b"It \xff is 2"), REFUSED, ("utf-?8",)),
    "nested brackets": (DATA, LINES.encode() + b"[" * DEEP, REFUSED, (DATA,)),
    "nested braces": (DATA, b'{"question": ' * DEEP, REFUSED, (DATA,)),
    "deep value": (DATA, b'{"question": ' + b"[" * DEEP + b"]" * DEEP + b', "answer": "x"}\n', REFUSED, ()),
    "rather deep value": (
        DATA,
        b'{"question": ' + b"[" * 900 + b"]" * 900 + b', "answer": "x"}\n',
        REFUSED,
        (),
    ),
    "deep .json": ("d.json", b"[" * DEEP + b"]" * DEEP, REFUSED, ("d.json",)),
    "empty": (DATA, b"", REFUSED, (DATA, "empty|no rows")),
    "empty CSV": ("d.csv", b"", REFUSED, ("d.csv", "empty|no rows")),
    "empty Parquet": ("d.parquet", b"", REFUSED, ("d.parquet",)),
    "white space": (DATA, b" \n\n \n", REFUSED, (DATA,)),
    "byte order mark alone": (DATA, b"\xef\xbb\xbf", REFUSED, (DATA,)),
    "header alone": ("d.csv", b"question,answer\n", REFUSED, ("no rows|empty",)),
    "cut last line": (DATA, LINES.encode()[:-20], REFUSED, ("line|row",)),
    "cut in a character": (DATA, LINES.replace("4", "é").encode() + b'{"question": "\xc3', REFUSED, ()),
    "comma at line end": (DATA, LINES.replace("}", "},").encode(), REFUSED, ("line|row|JSON",)),
    "single quotes": (DATA, LINES.replace('"', "'").encode(), REFUSED, ()),
    "comments": (DATA, b"# rows\n" + LINES.encode(), REFUSED, ()),
    "lines of lists": (DATA, b'["a", "b"]\n' * 4, REFUSED, ()),
    "lines of strings": (DATA, b'"a"\n' * 4, REFUSED, ()),
    "lines of numbers": (DATA, b"1\n2\n3\n", REFUSED, ()),
    "null lines": (DATA, LINES.encode() + b"null\n", REFUSED, ("line|row",)),
    "one line that is a list": (DATA, LINES.encode() + b'["a"]\n', REFUSED, ("line|row",)),
    "plain text": (DATA, b"Hello,\nthis is a text.\n", REFUSED, ()),
    "HTML": (DATA, b"<!DOCTYPE html><html><body>404</body></html>", REFUSED, ()),
    "LFS pointer": (
        DATA,
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9\n",
        REFUSED,
        (),
    ),
    "a list in .jsonl": (DATA, json.dumps(good_rows()).encode(), EITHER, ()),
    "a list in .json": ("d.json", json.dumps(good_rows()).encode(), WORKS, ()),
    "an indented list": ("d.json", json.dumps(good_rows(), indent=2).encode(), WORKS, ()),
    "rows under data": ("d.json", json.dumps({"data": good_rows()}).encode(), EITHER, ()),
    "columns in .json": ("d.json", json.dumps({"question": ["a"], "answer": ["b"]}).encode(), EITHER, ()),
    "one row in .json": ("d.json", json.dumps(good_rows()[0]).encode(), EITHER, ()),
    "an empty list": ("d.json", b"[]", REFUSED, ("d.json|no rows",)),
    "an empty object": ("d.json", b"{}", REFUSED, ()),
    "null .json": ("d.json", b"null", REFUSED, ()),
    "a string in .json": ("d.json", b'"rows"', REFUSED, ()),
    "lines in .json": ("d.json", LINES.encode(), WORKS, ()),
    "lone surrogate": (
        DATA,
        LINES.encode() + b'{"question": "\\ud800", "answer": "x"}\n',
        EITHER,
        ("line|row",),
    ),
    "escaped NUL": (DATA, LINES.encode() + b'{"question": "a\\u0000b", "answer": "x"}\n', EITHER, ()),
    "an endless number": (DATA, LINES.encode() + b'{"question": "a", "answer": 1e400}\n', EITHER, ()),
    "a long number": (DATA, b'{"question": "a", "answer": ' + b"9" * 5000 + b"}\n", EITHER, ()),
    "a key twice": (
        DATA,
        LINES.encode() + b'{"question": "a", "question": "b", "answer": "c"}\n',
        EITHER,
        (),
    ),
    "more columns later": (
        DATA,
        LINES.encode() + b'{"question": "a", "answer": "b", "note": "c"}\n',
        WORKS,
        (),
    ),
    "a very long line": (
        DATA,
        LINES.encode() + json.dumps({"question": "q", "answer": "a b " * 250_000}).encode(),
        WORKS,
        (),
    ),
    "open quote": ("d.csv", b'question,answer\n"a,b\nc,d\n', REFUSED, ()),
    "short record": ("d.csv", CSV.encode() + b"alone\n", REFUSED, ("line|row|record",)),
    "long record": ("d.csv", CSV.encode() + b"a,b,c,d\n", REFUSED, ("line|row|record",)),
    "header twice": ("d.csv", b"question,answer,answer\na,b,c\n", REFUSED, ("answer",)),
    "empty header": ("d.csv", b",\na,b\n", REFUSED, ()),
    "no header": ("d.csv", b"What?,That.\nWho?,She.\n", REFUSED, ()),
    "semicolons": ("d.csv", CSV.replace(",", ";").encode(), REFUSED, ()),
    "quotes and line ends": ("d.csv", b'question,answer\n"a ""b"", c","d\ne"\nf,g\n', WORKS, ()),
    "CSV in .jsonl": (DATA, CSV.encode(), REFUSED, ()),
    "JSON in .csv": ("d.csv", LINES.encode(), REFUSED, ()),
    "JSON in .parquet": ("d.parquet", LINES.encode(), REFUSED, ("d.parquet",)),
    "magic alone": ("d.parquet", b"PAR1PAR1", REFUSED, ("d.parquet",)),
    "gz": ("d.jsonl.gz", gzip.compress(LINES.encode()), WORKS, ()),
    "gz of CSV": ("d.csv.gz", gzip.compress(CSV.encode()), WORKS, ()),
    "gz cut": ("d.jsonl.gz", gzip.compress(LINES.encode() * 50)[:-30], REFUSED, ("d.jsonl.gz", HERE)),
    "gz junk": ("d.jsonl.gz", b"\x1f\x8b" + b"junk" * 20, REFUSED, ("d.jsonl.gz", HERE)),
    "gz by name only": ("d.jsonl.gz", LINES.encode(), REFUSED, ("d.jsonl.gz", HERE)),
    "gz empty": ("d.jsonl.gz", gzip.compress(b""), REFUSED, ("d.jsonl.gz|no rows", HERE)),
    "gz without its suffix": (DATA, gzip.compress(LINES.encode()), EITHER, ()),
    "zst junk": ("d.jsonl.zst", b"\x28\xb5\x2f\xfd" + b"junk" * 20, REFUSED, ("d.jsonl.zst", HERE)),
    "ndjson": ("d.ndjson", LINES.encode(), WORKS, ()),
    "capital suffix": ("D.JSONL", LINES.encode(), WORKS, ()),
    "capital CSV": ("D.CSV", CSV.encode(), WORKS, ()),
    "tsv": ("d.tsv", CSV.replace(",", "\t").encode(), WORKS, ()),
    "txt": ("d.txt", b"A line.\nAnother line.\n", EITHER, ("d.txt", HERE)),
    "no suffix": ("d", LINES.encode(), EITHER, ("'?d'?", HERE)),
    "unknown suffix": ("d.rows", LINES.encode(), EITHER, ("d.rows", HERE)),
    "xlsx": ("d.xlsx", b"PK\x03\x04junk", REFUSED, ("d.xlsx", HERE)),
    "zip": ("d.zip", b"PK\x03\x04junk", REFUSED, ("d.zip", HERE)),
    "python pickle": ("d.pkl", b"\x80\x04N.", REFUSED, ("d.pkl", HERE)),
    "arrow junk": ("d.arrow", b"ARROW1junk", REFUSED, ("d.arrow", HERE)),
}


def cases() -> Iterator[Case]:
    """All of them."""
    turn = others()
    for kind, (name, content, expected, hints) in BYTES.items():
        yield from _with(
            next(turn), kind, name, lambda n=name, c=content: Path(n).write_bytes(c), expected, hints
        )
    for kind, (name, prepare, expected, hints) in PLACES.items():
        yield from _with(next(turn), kind, name, prepare, expected, hints)


def _with(
    other: str, kind: str, name: str, prepare: Callable[[], Any], expected: str, hints: Any
) -> Iterator[Case]:
    for command_name in ("score", other):
        title = f"{command_name}: {kind}"
        yield Case(title, "row files", expected, command(command_name, name), prepare, hints=hints)


def _zst(cut: int = 0) -> None:
    import pyarrow as pa

    packed = pa.compress(LINES.encode() * 20, codec="zstd", asbytes=True)
    Path("d.jsonl.zst").write_bytes(packed[: len(packed) - cut])


def _parquet(damage: Callable[[bytes], bytes] = lambda content: content, **columns: Any) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = {name: [row[name] for row in good_rows()] for name in ("question", "answer")}
    pq.write_table(pa.table(columns or rows), "d.parquet")
    path = Path("d.parquet")
    path.write_bytes(damage(path.read_bytes()))


def _no_rows() -> None:
    import pyarrow as pa

    empty = pa.array([], pa.string())
    _parquet(question=empty, answer=empty)


def _saved(damage: Callable[[Path], Any] = lambda folder: None, splits: tuple[str, ...] = ()) -> None:
    from datasets import Dataset, DatasetDict

    rows = Dataset.from_list(good_rows())
    (DatasetDict(dict.fromkeys(splits, rows)) if splits else rows).save_to_disk("saved")
    damage(Path("saved"))


def _link(target: str) -> None:
    jsonl(good_rows(), "real.jsonl")
    os.symlink(target, DATA)


def _parts(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(exist_ok=True)
        jsonl(good_rows(), name)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:50])


PLACES: dict[str, tuple[str, Callable[[], Any], str, tuple[str, ...]]] = {
    "no such file": (DATA, lambda: None, REFUSED, (DATA,)),
    "no such folder": ("none/d.jsonl", lambda: None, REFUSED, ("none/d.jsonl",)),
    "a folder with a file's name": (DATA, lambda: Path(DATA).mkdir(), REFUSED, (DATA,)),
    "an empty folder": ("rows", lambda: Path("rows").mkdir(), REFUSED, ("rows",)),
    "an empty name": ("", lambda: None, REFUSED, ()),
    "white space for a name": (" ", lambda: None, REFUSED, ()),
    "a NUL in the name": ("d\0.jsonl", lambda: None, REFUSED, ()),
    "a name of 300 letters": ("d" * 300 + ".jsonl", lambda: None, REFUSED, ()),
    "a name with a line end": ("no\nrows.jsonl", lambda: None, REFUSED, ()),
    "a dangling link": (DATA, lambda: _link("nowhere.jsonl"), REFUSED, (DATA,)),
    "a link to itself": (DATA, lambda: _link(DATA), REFUSED, (DATA,)),
    "a link": (DATA, lambda: _link("real.jsonl"), WORKS, ()),
    "a pipe": (DATA, lambda: os.mkfifo(DATA), REFUSED, (DATA,)),
    "the null device": ("/dev/null", lambda: None, REFUSED, ("/dev/null",)),
    "a URL": ("https://example.org/d.jsonl", lambda: None, REFUSED, ("example.org",)),
    "a glob": ("parts/*.jsonl", lambda: _parts("parts/a.jsonl", "parts/b.jsonl"), WORKS, ()),
    "a glob of nothing": ("parts/*.jsonl", lambda: None, REFUSED, ("parts",)),
    "a path with brackets": (
        "p[/x]/d.jsonl",
        lambda: (Path("p[").mkdir(), _parts("p[/x]/d.jsonl")),
        WORKS,
        (),
    ),
    "a path with blanks": ("my rows/d.jsonl", lambda: _parts("my rows/d.jsonl"), WORKS, ()),
    "a path with an equals sign": ("a=b/d.jsonl", lambda: _parts("a=b/d.jsonl"), WORKS, ()),
    "a path in Greek": ("γραμμές/d.jsonl", lambda: _parts("γραμμές/d.jsonl"), WORKS, ()),
    "zst": ("d.jsonl.zst", _zst, WORKS, ()),
    "zst cut": ("d.jsonl.zst", lambda: _zst(9), REFUSED, ("d.jsonl.zst", HERE)),
    "Parquet": ("d.parquet", _parquet, WORKS, ()),
    "Parquet cut": ("d.parquet", lambda: _parquet(lambda c: c[:-20]), REFUSED, ("d.parquet",)),
    "Parquet half": ("d.parquet", lambda: _parquet(lambda c: c[: len(c) // 2]), REFUSED, ("d.parquet",)),
    "Parquet with a bad footer": (
        "d.parquet",
        lambda: _parquet(lambda c: c[:-60] + b"x" * 52 + c[-8:]),
        REFUSED,
        ("d.parquet",),
    ),
    "Parquet with bad pages": (
        "d.parquet",
        lambda: _parquet(lambda c: c[:4] + b"\xff" * 60 + c[64:]),
        REFUSED,
        ("d.parquet",),
    ),
    "Parquet without rows": ("d.parquet", _no_rows, REFUSED, ("no rows|empty",)),
    "saved to disk": ("saved", _saved, WORKS, ()),
    "saved splits": ("saved", lambda: _saved(splits=("train", "test")), WORKS, ()),
    "saved without the split": ("saved", lambda: _saved(splits=("other",)), EITHER, ("other",)),
    "saved, state cut": ("saved", lambda: _saved(lambda f: _cut(f / "state.json")), REFUSED, ("saved",)),
    "saved, state lost": (
        "saved",
        lambda: _saved(lambda f: (f / "state.json").unlink()),
        REFUSED,
        ("saved",),
    ),
    "saved, info cut": (
        "saved",
        lambda: _saved(lambda f: _cut(f / "dataset_info.json")),
        REFUSED,
        ("saved",),
    ),
    "saved, arrow cut": (
        "saved",
        lambda: _saved(lambda f: _cut(next(f.glob("*.arrow")))),
        REFUSED,
        ("saved",),
    ),
    "saved, arrow lost": (
        "saved",
        lambda: _saved(lambda f: next(f.glob("*.arrow")).unlink()),
        REFUSED,
        ("saved",),
    ),
}
