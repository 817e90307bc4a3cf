"""YAML recipes that are broken, foreign, or of another type than the option."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from .case import DATA, EITHER, REFUSED, WORKS, Case, good_data
from .flags import _scores

GOOD = "dataset_name: d.jsonl\noutput_dir: out\n"
SMALL = "max_steps: 2\nreport_to: none\nper_device_train_batch_size: 2\n"
BOMB = "a: &a [x, x]\n" + "".join(
    f"{b}: &{b} [*{a}, *{a}]\n" for a, b in pairwise("abcdefghijklmnopqrstuvwxyz")
)
CONTENTS: dict[str, tuple[str | bytes, str, tuple[str, ...]]] = {  # kind → (content, expected, hints)
    "good": (GOOD, WORKS, ()),
    "with comments": ("# mine\n" + GOOD + "# end\n", WORKS, ()),
    "as JSON": ('{"dataset_name": "d.jsonl", "output_dir": "out"}', WORKS, ()),
    "byte order mark": (b"\xef\xbb\xbf" + GOOD.encode(), WORKS, ()),
    "CRLF": (GOOD.replace("\n", "\r\n"), WORKS, ()),
    "start and end marks": ("---\n" + GOOD + "...\n", WORKS, ()),
    "empty": ("", EITHER, ()),
    "comments alone": ("# nothing\n", EITHER, ()),
    "a list": ("- dataset_name\n- d.jsonl\n", REFUSED, ("r.yaml",)),
    "a string": ("dataset_name\n", REFUSED, ("r.yaml",)),
    "a number": ("3\n", REFUSED, ("r.yaml",)),
    "true": ("true\n", REFUSED, ("r.yaml",)),
    "null": ("null\n", EITHER, ("r.yaml",)),
    "two documents": (GOOD + "---\n" + GOOD, REFUSED, ("r.yaml",)),
    "a tab": (GOOD + "\tepsilon: 1\n", REFUSED, ("r.yaml", "line|tab")),
    "an open bracket": (GOOD + "epsilon: [1\n", REFUSED, ("r.yaml",)),
    "an open quote": (GOOD + 'epsilon: "1\n', REFUSED, ("r.yaml",)),
    "a colon too many": (GOOD + "a: b: c\n", REFUSED, ("r.yaml",)),
    "bad indentation": (GOOD + "  dtype: float32\n", REFUSED, ("r.yaml",)),
    "a Python object": (
        GOOD + "dtype: !!python/object/apply:os.system ['touch ../pwned']\n",
        REFUSED,
        ("r.yaml",),
    ),
    "a Python name": (GOOD + "dtype: !!python/name:os.system\n", REFUSED, ("r.yaml",)),
    "an unknown tag": (GOOD + "dtype: !wow x\n", REFUSED, ("r.yaml",)),
    "an unknown alias": (GOOD + "dtype: *nobody\n", REFUSED, ("r.yaml",)),
    "a mapping that holds itself": ("&a\ndataset_name: d.jsonl\nenv: *a\n", REFUSED, ("r.yaml",)),
    "a list that holds itself": (GOOD + "dtype: &a [*a]\n", REFUSED, ("dtype|r.yaml",)),
    "a bomb of aliases": (GOOD + BOMB, REFUSED, ("r.yaml|key|option|argument",)),
    "nested brackets": (GOOD + "dtype: " + "[" * 100_000, REFUSED, ("r.yaml",)),
    "NUL": (GOOD.encode() + b"dtype: a\0b\n", REFUSED, ("r.yaml",)),
    "ESC": (GOOD.encode() + b"dtype: a\x1bb\n", REFUSED, ("r.yaml",)),
    "latin-1": (GOOD.encode() + b"# \xe9\n", EITHER, ("r.yaml",)),
    "utf-16": (GOOD.encode("utf-16"), EITHER, ("r.yaml",)),
    "a binary file": (bytes(range(256)), REFUSED, ("r.yaml",)),
    "an unknown key": (GOOD + "wow: 3\n", REFUSED, ("wow",)),
    "a key cut short": (GOOD + "max_len: 3\n", REFUSED, ("max_len",)),
    "a key with dashes": (GOOD + "--dtype: float32\n", REFUSED, ("dtype",)),
    "a capital key": (GOOD + "Dtype: float32\n", REFUSED, ("dtype",)),
    "a numeric key": (GOOD + "3: x\n", REFUSED, ("3|key",)),
    "a null key": (GOOD + "null: x\n", REFUSED, ()),
    "a list for a key": (GOOD + "? [a, b]\n: x\n", REFUSED, ()),
    "a key twice": (GOOD + "dtype: float32\ndtype: bfloat16\n", REFUSED, ("dtype",)),
    "null for a word": (GOOD + "dtype:\n", EITHER, ("dtype",)),
    "null for an optional number": (GOOD + "max_length:\n", WORKS, ()),
    "a list for a word": (GOOD + "dtype: [float32]\n", REFUSED, ("dtype",)),
    "a mapping for a word": (GOOD + "dtype: {a: b}\n", REFUSED, ("dtype",)),
    "a number for a word": (GOOD + "dtype: 32\n", REFUSED, ("dtype",)),
    "a date for a word": (GOOD + "dtype: 2020-01-01\n", REFUSED, ("dtype",)),
    "yes for a word": (GOOD + "dtype: yes\n", REFUSED, ("dtype",)),
    "binary for a word": (GOOD + "dtype: !!binary aGk=\n", REFUSED, ("dtype",)),
    "a word for a number": (GOOD + "max_length: many\n", REFUSED, ("max_length",)),
    "a list for a number": (GOOD + "max_length: [64]\n", REFUSED, ("max_length",)),
    "a mapping for a number": (GOOD + "max_length: {a: 64}\n", REFUSED, ("max_length",)),
    "true for a number": (GOOD + "max_length: true\n", REFUSED, ("max_length",)),
    "a fraction for a whole number": (GOOD + "max_length: 64.5\n", REFUSED, ("max_length",)),
    "NaN for a whole number": (GOOD + "max_length: .nan\n", REFUSED, ("max_length",)),
    "inf for a whole number": (GOOD + "max_length: .inf\n", REFUSED, ("max_length",)),
    "a negative number": (GOOD + "max_length: -64\n", REFUSED, ("max_length",)),
    "a quoted number": (GOOD + 'max_length: "64"\n', EITHER, ("max_length",)),
    "an octal number": (GOOD + "max_length: 0100\n", REFUSED, ("octal",)),
    "a sexagesimal number": (GOOD + "max_length: 1:30\n", REFUSED, ("line 3",)),
    "an endless number": (GOOD + "max_length: " + "9" * 5000 + "\n", REFUSED, ("line 3",)),
    "a number for a path": ("dataset_name: 3\noutput_dir: out\n", REFUSED, ("3|dataset_name",)),
    "a list for a path": ("dataset_name: [d.jsonl]\noutput_dir: out\n", REFUSED, ("dataset_name",)),
    "null for a path": ("dataset_name: d.jsonl\noutput_dir:\n", EITHER, ("output_dir",)),
    "env is a list": (GOOD + "env: [a]\n", REFUSED, ("env",)),
    "env with numbers": (GOOD + "env: {A: 1}\n", EITHER, ("env",)),
    "env with an empty name": (GOOD + "env: {'': x}\n", REFUSED, ("env",)),
    "a secret in the wrong place": (GOOD + "hub_token: secret\n", EITHER, ("hub_token",)),
}
TRAIN: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "a power without a point": ("learning_rate: 1e-3\n", WORKS, ()),
    "NaN": ("learning_rate: .nan\n", REFUSED, ("learning.rate",)),
    "NaN radius": ("epsilon: .nan\n", REFUSED, ("epsilon",)),
    "infinite radius": ("epsilon: .inf\n", REFUSED, ("epsilon",)),
    "null radius": ("epsilon:\n", REFUSED, ("epsilon",)),
    "list radius": ("epsilon: [0.1]\n", REFUSED, ("epsilon",)),
    "word radius": ("epsilon: small\n", REFUSED, ("epsilon",)),
    "true radius": ("epsilon: true\n", REFUSED, ("epsilon",)),
    "quoted truth": ('packing: "false"\n', EITHER, ()),
    "no for truth": ("packing: no\n", WORKS, ()),
    "a word for truth": ("packing: maybe\n", REFUSED, ("packing",)),
    "a number for truth": ("packing: 3\n", REFUSED, ("packing",)),
    "null for truth": ("packing:\n", EITHER, ("packing",)),
    "a mapping for settings": ("lr_scheduler_kwargs: {nonsense: 1}\n", REFUSED, ()),
    "a list for settings": ("model_init_kwargs: [1]\n", REFUSED, ("model_init_kwargs",)),
    "modules in a list": ("use_peft: true\nlora_r: 2\nlora_target_modules: [q_proj]\n", WORKS, ()),
    "modules in a word": ("use_peft: true\nlora_r: 2\nlora_target_modules: q_proj\n", EITHER, ()),
    "modules with numbers": ("use_peft: true\nlora_target_modules: [1, null]\n", REFUSED, ()),
    "report to a list": ("report_to: [none]\n", EITHER, ()),
    "report to null": ("report_to:\n", EITHER, ()),
    "negative steps": ("save_steps: -5\n", REFUSED, ("save_steps",)),
    "mixture": ("datasets:\n  - path: json\n    data_files: d.jsonl\n", WORKS, ()),
    "mixture and a name": (
        "dataset_name: d.jsonl\ndatasets: [{path: json, data_files: d.jsonl}]\n",
        EITHER,
        (),
    ),
    "mixture of a missing file": (
        "datasets:\n  - path: json\n    data_files: none.jsonl\n",
        REFUSED,
        ("none.jsonl",),
    ),
    "mixture is a word": ("datasets: d.jsonl\n", REFUSED, ("datasets",)),
    "mixture is empty": ("datasets: []\n", REFUSED, ("datasets",)),
    "mixture of words": ("datasets: [d.jsonl]\n", REFUSED, ("datasets",)),
    "mixture without a path": ("datasets: [{split: train}]\n", REFUSED, ("path",)),
    "mixture with an unknown key": (
        "datasets: [{path: json, data_files: d.jsonl, wow: 1}]\n",
        REFUSED,
        ("wow",),
    ),
}


def cases() -> Iterator[Case]:
    """All of them."""
    for kind, (content, expected, hints) in CONTENTS.items():
        for name in ("score", "train"):
            more = SMALL.encode() if name == "train" else b""
            if kind in ("empty", "comments alone", "null"):  # then the built-in data would be taken
                arguments = [name, "--config", "r.yaml", "--dataset_name", DATA, "--output_dir", "out"]
                arguments += ["--max_steps", "2", "--report_to", "none"] if name == "train" else []
            else:
                arguments = [name, "--config", "r.yaml"]
            written = content.encode() if isinstance(content, str) else content
            if expected == WORKS and name == "train" and kind not in ("as JSON", "start and end marks"):
                written += more.replace(b"\n", b"\r\n") if kind == "CRLF" else more
            elif expected != REFUSED and name == "train":
                arguments = [*arguments, "--max_steps", "2", "--report_to", "none"]
            title = f"{name}: {kind}"
            yield Case(title, "recipes", expected, arguments, _writes(written), hints=hints)
    for kind, (text, expected, hints) in TRAIN.items():
        named = "" if "dataset" in text else "dataset_name: d.jsonl\n"
        content = f"{named}output_dir: out\n{SMALL}{text}"
        if text.startswith("report_to"):
            content = content.replace("report_to: none\n", "", 1)
        arguments = ["train", "--config", "r.yaml"]
        yield Case(f"train: {kind}", "recipes", expected, arguments, _writes(content.encode()), hints=hints)
    yield from _ways()


def _writes(content: bytes) -> Any:
    return lambda: (good_data(), Path("r.yaml").write_bytes(content))


def _ways() -> Iterator[Case]:
    """How the recipe is named."""
    write = _writes((GOOD).encode())
    ways: dict[str, tuple[list[str], str]] = {
        "--config=FILE": (["--config=r.yaml"], WORKS),
        "after other options": (["--dtype", "float32", "--config", "r.yaml"], WORKS),
        "overridden": (["--config", "r.yaml", "--dtype", "float32"], WORKS),
        "no file": (["--config"], REFUSED),
        "empty name": (["--config", ""], REFUSED),
        "missing file": (["--config", "none.yaml"], REFUSED),
        "missing file with =": (["--config=none.yaml"], REFUSED),
        "a folder": (["--config", "."], REFUSED),
        "twice": (["--config", "r.yaml", "--config", "r.yaml"], EITHER),
        "the data": (["--config", "d.jsonl"], REFUSED),
        "cut short": (["--conf", "r.yaml"], REFUSED),
        "the null device": (
            ["--config", "/dev/null", "--dataset_name", "d.jsonl", "--output_dir", "out"],
            EITHER,
        ),
        "NUL in the name": (["--config", "a\0b"], REFUSED),
        "a long name": (["--config", "r" * 300], REFUSED),
    }
    for kind, (arguments, expected) in ways.items():
        yield Case(f"score: recipe {kind}", "recipes", expected, ["score", *arguments], write)
    table = "scores: out/scores.parquet\n"
    solves = {
        "good": ("epsilon: 0.1\n", WORKS),
        "NaN radius": ("epsilon: .nan\n", REFUSED),
        "null bound": ("gamma:\n", WORKS),
        "word bound": ("gamma: auto\n", REFUSED),
        "null table": ("scores:\n", REFUSED),
        "list of tables": ("scores: [a, b]\n", REFUSED),
        "true top": ("top: true\n", REFUSED),
        "unknown key": ("lambda: 3\n", REFUSED),
    }
    for kind, (text, expected) in solves.items():
        content = text if text.startswith("scores") else table + text
        yield Case(
            *(f"solve: recipe {kind}", "recipes", expected, ["solve", "--config", "r.yaml"]),
            prepare=lambda content=content: (_scores(), Path("r.yaml").write_text(content)),
            fixtures=("scores",),
        )
