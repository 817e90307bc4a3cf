"""Labels, names and output folders that are paths, markup, escapes or too long for a file."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .case import EITHER, REFUSED, ROUNDS, TWO, WORKS, Case, command, good_data, good_rows, jsonl

LABELS = {
    "brackets": ("m[/1]", WORKS),
    "colour": ("[red]", WORKS),
    "parents": ("../../up", EITHER),
    "dots": ("..", EITHER),
    "a dot": (".", EITHER),
    "absolute": ("/etc/x", EITHER),
    "slash": ("a/b/c", EITHER),
    "backslash": ("a\\b", EITHER),
    "blank": (" ", EITHER),
    "blanks inside": ("my model", WORKS),
    "Greek": ("μοντέλο", WORKS),
    "emoji": ("🤖", WORKS),
    "right to left": ("\u202eabc", EITHER),
    "escape": ("\x1b[2Jx", EITHER),
    "line end": ("a\nb", EITHER),
    "tab": ("a\tb", EITHER),
    "percent": ("100%", WORKS),
    "template": ("{{x}}", WORKS),
    "HTML": ("<b>x</b>", WORKS),
    "LaTeX": ("a_b$c^", WORKS),
    "quote": ('it\'s "x"', WORKS),
    "formula": ("=1+1", EITHER),
    "dash": ("--x", EITHER),
    "300 letters": ("x" * 300, EITHER),
    "dotted": ("d.1", WORKS),
    "hidden": (".x", EITHER),
    "parts": ("a.parts-1", EITHER),
}
FILED = (
    "brackets",
    "parents",
    "dots",
    "absolute",
    "escape",
    "300 letters",
    "dotted",
    "LaTeX",
    "HTML",
    "line end",
)


def cases() -> Iterator[Case]:
    """All of them."""
    for kind, (label, expected) in LABELS.items():
        wanted = EITHER if label.startswith(("-", "=")) else expected
        evaluate = ["evaluate", "--models", "b=klball/tiny", f"{label}=klball/tiny", "--datasets", "d.jsonl"]
        yield _case(f"evaluate: model {kind}", wanted, [*evaluate, "--output_dir", "out"])
        named = [
            "evaluate",
            "--models",
            "klball/tiny",
            "--datasets",
            f"{label}=d.jsonl",
            "--output_dir",
            "out",
        ]
        yield _case(f"evaluate: data {kind}", wanted, named)
        if kind not in FILED:
            continue
        models = ("--models", "b=klball/tiny", f"{label}=klball/tiny")
        yield _case(
            f"compare: model {kind}", wanted, ["compare", *models, "--dataset_name", "d.jsonl", *ROUNDS]
        )
    yield from _two()
    yield from _folders()


def _case(title: str, expected: str, arguments: list[str], prepare: Any = good_data) -> Case:
    return Case(title, "labels and folders", expected, arguments, prepare)


def _two() -> Iterator[Case]:
    """Two labels that would share a name, a file or a figure."""
    pairs = {
        "equal": ("a", "a", REFUSED),
        "equal but for case": ("a", "A", EITHER),
        "equal before a dot": ("d.1", "d.2", WORKS),
        "equal but for signs": ("a/b", "a-b", EITHER),
        "equal but for blanks": ("a", "a ", EITHER),
        "empty": ("", "b", REFUSED),
        "normalised alike": ("\u00e9", "e\u0301", EITHER),
        "words for base": ("base", "train", WORKS),
    }
    for kind, (first, second, expected) in pairs.items():
        models = ("--models", f"{first}=klball/tiny", f"{second}=klball/tiny")
        evaluate = ["evaluate", *models, "--datasets", "d.jsonl", "--output_dir", "out"]
        yield _case(f"evaluate: labels {kind}", expected, evaluate)
        data = ["--datasets", f"{first}=d.jsonl", f"{second}=d.jsonl"]
        check = _two_figures if kind == "equal before a dot" else None
        arguments = ["evaluate", "--models", "klball/tiny", *data, "--output_dir", "out"]
        yield Case(
            f"evaluate: data sets {kind}", "labels and folders", expected, arguments, good_data, check=check
        )
        compare = ["compare", *models, "--dataset_name", "d.jsonl", *ROUNDS]
        yield _case(f"compare: labels {kind}", expected, compare)
    for kind, names in {
        "of two runs": ("a/b/c", "d/b/c"),
        "of base": ("base", "x"),
        "of train": ("x/train", "y"),
    }.items():
        scan = [*command("scan"), "--models", *names]
        yield _case(f"scan: labels {kind}", REFUSED, scan)


def _two_figures() -> str | None:
    found = sorted(path.name for path in Path("out").rglob("profile-*.svg"))
    return None if len(found) == 2 else f"figures are {found}"


def _folders() -> Iterator[Case]:
    """Where results go."""

    def a_file() -> None:
        good_data()
        Path("out").write_text("x")

    def a_link() -> None:
        good_data()
        os.symlink("out", "out")

    places: dict[str, tuple[str, str, Any]] = {
        "a file": ("out", REFUSED, a_file),
        "below a file": ("d.jsonl/out", REFUSED, good_data),
        "a link to itself": ("out", REFUSED, a_link),
        "a device": ("/dev/null", REFUSED, good_data),
        "below a device": ("/dev/null/out", REFUSED, good_data),
        "a kernel's folder": ("/proc/out", REFUSED, good_data),
        "empty": ("", REFUSED, good_data),
        "NUL": ("a\0b", REFUSED, good_data),
        "300 letters": ("o" * 300, REFUSED, good_data),
        "too deep": ("/".join(["o" * 100] * 50), REFUSED, good_data),
        "here": (".", EITHER, good_data),
        "brackets": ("out[/b]", WORKS, good_data),
        "blanks": ("my out", WORKS, good_data),
        "line end": ("a\nb", EITHER, good_data),
        "escape": ("a\x1b[2Jb", EITHER, good_data),
        "an equals sign": ("a=b", WORKS, good_data),
        "dots inside": ("a/../out", WORKS, good_data),
        "a slash at the end": ("out/", WORKS, good_data),
        "home": ("~/hostile-out", WORKS, good_data),
        "not UTF-8": ("a\udcffb", EITHER, good_data),
    }
    for kind, (place, expected, prepare) in places.items():
        for name in ("score", "train", "evaluate", "paraphrase", "compare", "scan", "reproduce"):
            if name not in ("score", "train") and kind not in ("a file", "brackets", "home", "below a file"):
                continue
            arguments = [*command(name)[:-2], "--output_dir", place]
            check = _at_home if kind == "home" else None
            made = _home if kind == "home" else prepare
            yield Case(f"{name}: output {kind}", "labels and folders", expected, arguments, made, check=check)
    for name in ("score", "train"):
        data = "p[/x]/[red]/d.jsonl"
        yield _case(f"{name}: data in brackets", WORKS, command(name, data), lambda data=data: _at(data))
    yield _case(
        "compare: data in brackets",
        WORKS,
        ["compare", *TWO, "--dataset_name", "[b].jsonl", *ROUNDS],
        lambda: _at("[b].jsonl"),
    )


def _at(path: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    jsonl(good_rows(), path)


def _home() -> None:
    good_data()
    Path("home").mkdir()
    os.environ["HOME"] = str(Path("home").absolute())


def _at_home() -> str | None:
    if Path("~").exists():
        return "a folder called ~ was made"
    return None if Path("home/hostile-out").is_dir() else "nothing was written in the home folder"
