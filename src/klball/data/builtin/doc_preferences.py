"""Preference pairs over the standard library's docstrings: the true answer against a plausible wrong one.

Wrong are the answer to a neighbouring question of the same module, the true answer cut short, and its first
sentence over and over. `field` is what the module is for, a group; `flipped` marks pairs whose two answers
were exchanged on request: training never sees that column.
"""

import re
from typing import Any

from klball.data.builtin import Row, content_hash, stdlib_docs

FLIPPED = "flipped"
KINDS = ("neighbour", "neighbour", "truncated", "repeated")  # of a wrong answer, by the hash of the true one
FEWEST_WORDS = 8  # of an answer that can be cut short
OTHER = "other"
FIELDS = {  # top-level module → field
    name: field
    for field, names in {
        "interfaces": "tkinter turtle curses cmd code getpass readline rlcompleter webbrowser pty tty",
        "network": "asyncio http urllib socket socketserver ssl xmlrpc smtplib smtpd imaplib poplib ftplib "
        "nntplib telnetlib wsgiref ipaddress asynchat asyncore selectors netrc cgi cgitb",
        "development": "distutils importlib unittest doctest pdb bdb pydoc inspect ast dis symtable trace "
        "traceback profile pstats cProfile timeit venv site sysconfig pkgutil modulefinder imp runpy "
        "pyclbr tokenize tracemalloc warnings compileall zipimport typing types",
        "text": "email xml html json csv configparser encodings codecs re string textwrap difflib tomllib "
        "plistlib base64 quopri gettext locale shlex argparse optparse getopt mailbox mimetypes",
        "numbers": "_pydecimal fractions numbers random statistics datetime calendar zoneinfo _strptime "
        "secrets hashlib hmac uuid",
        "files": "tarfile zipfile pathlib shutil os io _pyio tempfile glob fnmatch gzip bz2 lzma filecmp "
        "fileinput posixpath ntpath genericpath stat pickle pickletools shelve dbm sqlite3",
        "processes": "multiprocessing threading concurrent subprocess queue sched logging signal",
    }.items()
    for name in names.split()
}


def rows(split: str, flip: float = 0.0) -> list[Row]:
    """The pairs of a split; of those to train on, a share `flip` has its two answers exchanged.

    Which are flipped is decided by hashes, and those at a lower rate are among those at a higher one. The
    test pairs stay clean. Raises ValueError unless 0 ≤ flip ≤ 1.
    """
    if not 0 <= flip <= 1:
        raise ValueError(f"doc-preferences: flip must be a share from 0 to 1, not {flip:g}")
    pairs = _pairs(stdlib_docs.rows(split))
    by_hash = sorted(range(len(pairs)), key=lambda k: content_hash("flip", pairs[k]["id"]))
    for k in by_hash[: round(flip * len(pairs))] if split == "train" else []:
        pair = pairs[k]
        pairs[k] = {**pair, "chosen": pair["rejected"], "rejected": pair["chosen"], FLIPPED: True}
    return pairs


def _pairs(docs: list[Row]) -> list[Row]:
    neighbours = _neighbours(docs)
    return [_pair(row, neighbours[row["id"]]) for row in docs]


def _pair(row: Row, neighbour: Row) -> Row:
    question, answer = row["question"], row["answer"]
    wrong = _wrong(row["id"], answer, neighbour["answer"])
    return {
        "id": content_hash(question, answer, wrong),
        "prompt": [{"role": "user", "content": question}],
        "chosen": [{"role": "assistant", "content": answer}],
        "rejected": [{"role": "assistant", "content": wrong}],
        "field": FIELDS.get(module_of_question(question).partition(".")[0], OTHER),
        FLIPPED: False,
    }


def _wrong(row_id: str, answer: str, neighbour: str) -> str:
    kind = KINDS[int(row_id[:8], 16) % len(KINDS)]
    words = answer.split()
    if kind == "truncated" and len(words) >= FEWEST_WORDS:
        return " ".join(words[: len(words) // 2])
    if kind == "repeated":
        sentence = re.split(r"(?<=[.!?])\s", answer, maxsplit=1)[0]
        return " ".join([sentence] * 3)
    return neighbour


def _neighbours(docs: list[Row]) -> dict[str, Row]:
    """id → the row that follows in the order of modules and questions, of the same module where it can."""
    ordered = sorted(docs, key=lambda row: (module_of_question(row["question"]), row["question"]))
    modules = [module_of_question(row["question"]) for row in ordered]
    return {
        row["id"]: ordered[k - 1 if _last(modules, k) and k else (k + 1) % len(ordered)]
        for k, row in enumerate(ordered)
    }


def _last(modules: list[str], k: int) -> bool:
    return k + 1 == len(modules) or modules[k + 1] != modules[k]


def module_of_question(question: str) -> str:
    """The module that a question of `stdlib-docs` is about: what stands last between backticks."""
    parts: list[Any] = question.split("`")
    return parts[-2]
