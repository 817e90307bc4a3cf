"""The embedded data sets: real docstrings of the standard library, and generated arithmetic stories.

Both are made on the spot, need no network, and depend on nothing but the running Python and a fixed
seed. Rows are ``{"id", "question", "answer"}``.
"""

import ast
import hashlib
import random
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

BUILTIN = ("stdlib-docs", "word-problems")
TEST_ROWS = 3_200  # the hardest 1 % are then 32 samples
LONGEST_ANSWER = 600  # characters; whole paragraphs only, nothing is cut
SKIPPED_FOLDERS = {
    *("site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3"),
    *("turtledemo", "ensurepip", "pydoc_data"),
}

Row = dict[str, str]


def load_builtin(name: str, split: str) -> list[Row]:
    """Rows of a built-in data set; `split` is "train" or "test".

    Raises ValueError for a name or split that does not exist.
    """
    if name not in BUILTIN:
        raise ValueError(f"no built-in data set {name!r}; there are {', '.join(BUILTIN)}")
    if split not in ("train", "test"):
        raise ValueError(f"built-in data sets have the splits 'train' and 'test', not {split!r}")
    if name == "stdlib-docs":
        rows = stdlib_docs()
        return rows[:TEST_ROWS] if split == "test" else rows[TEST_ROWS:]
    return word_problems(1_000, seed=2 if split == "test" else 1)


def data_hash(rows: Iterable[Row]) -> str:
    """Sixteen hexadecimal digits that identify the rows' contents, whatever their order."""
    return _digest(*sorted(_digest(row["question"], row["answer"]) for row in rows))


def stdlib_docs() -> list[Row]:
    """Every question–answer pair of the standard library's docstrings, ordered by content hash.

    The order by hash makes any prefix a random sample that does not depend on file names; the
    first `TEST_ROWS` are the test split.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    rows = distinct(docstring_pairs(root))
    return sorted(rows, key=lambda row: row["id"])


def distinct(rows: Iterable[Row]) -> list[Row]:
    """The rows without those whose question or answer, white space and case aside, came before."""
    seen: set[str] = set()
    kept = []
    for row in rows:
        keys = {"q" + _fold(row["question"]), "a" + _fold(row["answer"])}
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
            question = _question(node, module, owners)
            yield {"id": _digest(question, answer), "question": question, "answer": answer}
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


def _fold(text: str) -> str:
    return " ".join(text.casefold().split())


def _digest(*parts: str) -> str:
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()[:16]


# --- generated arithmetic stories -------------------------------------------------------------

NAMES = [
    *("Ada", "Ben", "Carla", "Deniz", "Emma", "Farid", "Greta", "Hugo"),
    *("Ines", "Jonas", "Kofi", "Lena", "Mina", "Noah", "Olga", "Pavel"),
]
THINGS = [
    *("apples", "books", "coins", "marbles", "pencils"),
    *("shells", "stamps", "stickers", "tickets", "tomatoes"),
]
PLACES = ["a bakery", "a farm", "a library", "a market", "a museum", "a school", "a workshop"]


def word_problems(count: int, seed: int) -> list[Row]:
    """`count` distinct arithmetic stories with worked solutions, the same for the same seed."""
    rng = random.Random(seed)
    rows: dict[str, Row] = {}
    while len(rows) < count:
        question, answer = rng.choice(STORIES)(rng)
        rows.setdefault(question, {"id": _digest(question, answer), "question": question, "answer": answer})
    return list(rows.values())


def _boxes(rng: random.Random) -> tuple[str, str]:
    name, thing = rng.choice(NAMES), rng.choice(THINGS)
    boxes, each, given = rng.randint(3, 12), rng.randint(4, 20), rng.randint(2, 9)
    total = boxes * each
    return (
        f"{name} packs {thing} into {boxes} boxes with {each} {thing} in each box. Then {name} gives "
        f"{given} {thing} to a friend. How many {thing} does {name} have now?",
        f"The boxes hold {boxes} * {each} = {total} {thing}. After the gift {total} - {given} = "
        f"{total - given} {thing} are left. The answer is {total - given}.",
    )


def _savings(rng: random.Random) -> tuple[str, str]:
    name, weeks = rng.choice(NAMES), rng.randint(3, 15)
    weekly, start = rng.randint(4, 25), rng.randint(5, 60)
    total = start + weeks * weekly
    price = rng.randint(5, min(40, total))
    return (
        f"{name} has {start} dollars and saves {weekly} dollars every week for {weeks} weeks. After "
        f"that {name} buys a lamp for {price} dollars. How many dollars remain?",
        f"In {weeks} weeks {name} saves {weeks} * {weekly} = {weeks * weekly} dollars. With the first "
        f"{start} dollars that makes {total}. After the lamp {total} - {price} = {total - price} "
        f"dollars remain. The answer is {total - price}.",
    )


def _sharing(rng: random.Random) -> tuple[str, str]:
    first, second = rng.sample(NAMES, 2)
    thing, people = rng.choice(THINGS), rng.randint(3, 9)
    share, extra = rng.randint(3, 15), rng.randint(1, 8)
    total = people * share
    return (
        f"{first} brings {total - extra} {thing} and {second} brings {extra} {thing}. They share all "
        f"of them equally among {people} people. How many {thing} does each person get?",
        f"Together they have {total - extra} + {extra} = {total} {thing}. Each person gets {total} / "
        f"{people} = {share} {thing}. The answer is {share}.",
    )


def _shop(rng: random.Random) -> tuple[str, str]:
    place, thing = rng.choice(PLACES), rng.choice(THINGS)
    morning, factor, price = rng.randint(5, 30), rng.randint(2, 4), rng.randint(2, 6)
    afternoon = morning * factor
    total = morning + afternoon
    return (
        f"At {place} {morning} {thing} are sold in the morning and {factor} times as many in the "
        f"afternoon. Each costs {price} dollars. How many dollars are earned that day?",
        f"In the afternoon {factor} * {morning} = {afternoon} {thing} are sold, so {morning} + "
        f"{afternoon} = {total} in all. They earn {total} * {price} = {total * price} dollars. "
        f"The answer is {total * price}.",
    )


def _journey(rng: random.Random) -> tuple[str, str]:
    name, speed, hours = rng.choice(NAMES), rng.randint(12, 90), rng.randint(2, 6)
    rest = rng.randint(5, 40)
    distance = speed * hours
    return (
        f"{name} travels {hours} hours at {speed} kilometres an hour, and then {rest} kilometres "
        f"more. How far is the whole journey?",
        f"The first part is {hours} * {speed} = {distance} kilometres. The whole journey is "
        f"{distance} + {rest} = {distance + rest} kilometres. The answer is {distance + rest}.",
    )


def _ages(rng: random.Random) -> tuple[str, str]:
    first, second, third = rng.sample(NAMES, 3)
    age, older, factor = rng.randint(4, 15), rng.randint(2, 9), rng.randint(2, 4)
    oldest = (age + older) * factor
    return (
        f"{first} is {age} years old. {second} is {older} years older than {first}, and {third} is "
        f"{factor} times as old as {second}. How old are the three together?",
        f"{second} is {age} + {older} = {age + older} years old. {third} is {factor} * {age + older} "
        f"= {oldest}. Together they are {age} + {age + older} + {oldest} = "
        f"{age + age + older + oldest}. The answer is {age + age + older + oldest}.",
    )


STORIES: tuple[Callable[[random.Random], tuple[str, str]], ...] = (
    *(_boxes, _savings, _sharing, _shop, _journey, _ages),
)
