"""Real docstrings of the standard library: questions about its modules, classes, functions and methods."""

import ast
import re
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import product
from pathlib import Path

from klball.data.builtin import Row, row_of
from klball.data.texts import folded

TEST_ROWS = 3_200  # the hardest 1 % are then 32 samples
LONGEST_ANSWER = 600  # characters; whole paragraphs only, nothing is cut
SKIPPED_FOLDERS = {
    *("site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3"),
    *("turtledemo", "ensurepip", "pydoc_data"),
}


def rows(split: str) -> list[Row]:
    """The rows of a split: the first `TEST_ROWS` of all are the test rows."""
    everything = stdlib_docs()
    return list(everything[:TEST_ROWS] if split == "test" else everything[TEST_ROWS:])


@cache  # every split, and doc-preferences, would parse the same sources again
def stdlib_docs() -> tuple[Row, ...]:
    """Every question–answer pair of the standard library's docstrings, ordered by content hash.

    The order by hash makes any prefix a random sample that does not depend on file names.
    """
    pairs = docstring_pairs(Path(sysconfig.get_paths()["stdlib"]))
    return tuple(sorted(distinct(pairs), key=lambda row: row["id"]))


def distinct(rows: Iterable[Row]) -> list[Row]:
    """The rows without those whose question or answer, white space and case aside, came before."""
    seen: set[str] = set()
    kept = []
    for row in rows:
        keys = {"q" + folded(row["question"]), "a" + folded(row["answer"])}
        if not keys & seen:
            kept.append(row)
        seen |= keys
    return kept


def docstring_pairs(root: Path, package: str = "") -> Iterator[Row]:
    """Question–answer pairs from the docstrings of all Python files below `root`, in path order."""
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if SKIPPED_FOLDERS & set(relative.parts):
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, ValueError):  # templates and files in other encodings
            continue
        parts = [package, *relative.with_suffix("").parts]
        module = ".".join(part for part in parts if part not in ("", "__init__"))
        yield from _pairs_of(tree, module or package, ())


def _pairs_of(node: ast.AST, module: str, owners: tuple[str, ...]) -> Iterator[Row]:
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    if isinstance(node, documented):
        answer = _leading_paragraphs(ast.get_docstring(node) or "")
        if answer:
            yield row_of(_question(node, module, owners), answer)
        if isinstance(node, ast.ClassDef):
            owners = (*owners, node.name)
    for child in ast.iter_child_nodes(node):
        yield from _pairs_of(child, module, owners)


def _question(node: ast.AST, module: str, owners: tuple[str, ...]) -> str:
    if isinstance(node, ast.ClassDef):
        return f"What is the class `{'.'.join((*owners, node.name))}` of `{module}`?"
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        kind = "method" if owners else "function"
        name = ".".join((*owners, node.name))
        return f"What does the {kind} `{name}({_parameters(node.args)})` of `{module}` do?"
    return f"What is the module `{module}` for?"


def _parameters(arguments: ast.arguments) -> str:
    names = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args)]
    if arguments.vararg:
        names.append("*" + arguments.vararg.arg)
    names += [argument.arg for argument in arguments.kwonlyargs]
    if arguments.kwarg:
        names.append("**" + arguments.kwarg.arg)
    return ", ".join(name for name in names if name not in ("self", "cls"))


def _leading_paragraphs(text: str) -> str:
    """As many whole paragraphs as fit in `LONGEST_ANSWER`; "" for what is hardly prose."""
    kept = ""
    for paragraph in text.strip().split("\n\n"):
        longer = f"{kept}\n\n{paragraph.strip()}" if kept else paragraph.strip()
        if len(longer) > LONGEST_ANSWER:
            break
        kept = longer
    return kept if len(kept) >= 20 and len(kept.split()) >= 3 else ""


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


def _asked(question: str, clauses: Sequence[str], names: Sequence[str]) -> tuple[re.Pattern[str], list[str]]:
    """The pattern of a question, and every way to ask it with one of these clauses and names."""
    told = [
        frame.replace("{}", clause.replace("{}", name))
        for frame, clause, name in product(ASKING, clauses, names)
    ]
    return re.compile(question), told


def _of_kind(kind: str, question: str, clauses: Sequence[str]) -> tuple[re.Pattern[str], list[str]]:
    return _asked(question, clauses, [name.replace("{kind}", kind) for name in CALLABLE_NAMES])


CODE, OWNER = "`(?P<name>[^`]+)`", "`(?P<module>[^`]+)`"
REWORDINGS = {
    "module": _asked(f"What is the module {OWNER} for\\?", MODULE_CLAUSES, MODULE_NAMES),
    "class": _of_kind("class", f"What is the class {CODE} of {OWNER}\\?", CLASS_CLAUSES),
    **{
        kind: _of_kind(kind, f"What does the {kind} {CODE} of {OWNER} do\\?", CALLABLE_CLAUSES)
        for kind in ("function", "method")
    },
}
