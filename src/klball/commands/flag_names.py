"""The flags of a command by the sources of its options: importing TRL to refuse a typo would take seconds."""

import ast
from collections.abc import Collection, Iterator, Sequence
from difflib import get_close_matches
from functools import cache
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

from klball.commands.recipe import read_recipe, split_config

ALSO, FAMILIES = "ALSO", "FAMILIES"  # names that a command's module may have for its other classes
ALWAYS = {"--help", "-h"}
IN_PYTHON = {  # of TRL's commands
    "reward_funcs": "functions of your own are for RobustGRPOTrainer(reward_funcs=…), in Python; --reward "
    "names klball's",
    **dict.fromkeys(
        ("callbacks", "data_collator", "compute_metrics", "optimizers", "formatting_func", "peft_config"),
        "it is an argument of the trainers, in Python",
    ),
}


def refuse_unknown(module: str, arguments: Sequence[str]) -> None:
    """Raise ValueError for the first flag, or key of the recipe, that the command in `module` does not have.

    What looks like a flag and may be a value is left to the parser.
    """
    path, words = split_config(arguments)
    recipe = {} if path is None else read_recipe(path)[0]
    try:
        known = known_flags(module)
    except LookupError:  # a package is not there, or not where its sources say
        return
    for key in recipe:
        if f"--{key}" not in known:
            raise ValueError(f"{path}: no option {key!r}{did_you_mean(key, {flag[2:] for flag in known})}")
    for before, word in pairwise(["", *words]):
        flag = word.partition("=")[0]
        double = flag.startswith("--") and len(flag) > 2
        single = flag[:1] == "-" and flag[1:2].isalpha() and not before.startswith("-")
        if (double or single) and " " not in word and flag not in known | ALWAYS:
            raise ValueError(f"no option {flag}{did_you_mean(flag, known)}")


def did_you_mean(name: str, known: Collection[str]) -> str:
    """The end of a refusal: the known name that is nearest to one that is not."""
    plain = name.replace("-", "_")
    if plain.strip("_") in IN_PYTHON:
        return f": {IN_PYTHON[plain.strip('_')]}"
    names = {option.replace("-", "_"): option for option in sorted(known)}  # --a_b before --a-b
    begins = [option for option in names if option.startswith(plain) and plain.strip("_")]
    near = sorted(begins, key=len) or get_close_matches(plain, names, 1)
    return f": did you mean {names[near[0]]}?" if near else "; --help lists them"


@cache
def known_flags(module: str) -> frozenset[str]:
    """All flags of a command's classes, of every family of training where it has several.

    The classes are the classes called …Options, what `ALSO` lists, and `config` of the entries in `FAMILIES`.
    Raises LookupError if the source of one cannot be found.
    """
    file = _file(Path(__file__).parents[2], module)
    here = _defined(file)
    names = [name for name in here if name.endswith("Options")]
    if ALSO in here:
        names += [name.id for name in here[ALSO].value.elts]
    classes = [(name, file) for name in names]
    if FAMILIES in here:
        table, place = _found(FAMILIES, file)
        words = [word for entry in table.value.values for word in entry.keywords]
        classes += [(word.value.id, place) for word in words if word.arg == "config"]
    return frozenset(flag for name, place in classes for flag in _flags(name, place))


def _flags(name: str, file: Path) -> Iterator[str]:
    """Of a dataclass and its bases, as Transformers' parser makes them of fields."""
    found, file = _found(name, file)
    for base in found.bases:
        yield from _flags(base.id, file)
    for field in found.body:
        if isinstance(field, ast.AnnAssign) and "ClassVar" not in ast.unparse(field.annotation):
            names = [ast.unparse(field.target)]
            words = {word.arg: word.value for word in getattr(field.value, "keywords", ())}
            given = [*getattr(field.value, "args", ()), words.get("default", field.value)]
            if getattr(given[0], "value", None) is True:
                names.append(f"no_{names[0]}")
            yield from (f"--{form}" for name in names for form in (name, name.replace("_", "-")))
            yield from ast.literal_eval(words["aliases"]) if "aliases" in words else ()


def _found(name: str, file: Path) -> tuple[Any, Path]:
    """Where a name is defined, however often it is imported on its way here: the statement, and its file."""
    node = _defined(file).get(name)
    if isinstance(node, ast.ImportFrom):
        (original,) = (alias.name for alias in node.names if (alias.asname or alias.name) == name)
        root = file.parents[node.level - 1] if node.level else _root(str(node.module))
        return _found(original, _file(root, node.module or ""))
    if node is None:
        raise LookupError(f"{name} is not in {file}")
    return node, file


@cache
def _defined(file: Path) -> dict[str, Any]:
    """Name → the class, assignment or import that gives it; also those for type checkers only."""
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError) as error:
        raise LookupError(f"{file} cannot be read") from error
    found: dict[str, Any] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            found |= {alias.asname or alias.name: node for alias in node.names}
        elif isinstance(node, ast.ClassDef):
            found[node.name] = node
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            found.setdefault(node.targets[0].id, node)
    return found


def _root(module: str) -> Path:
    """The folder in which the top of a package lies, which is not imported."""
    spec = find_spec(module.partition(".")[0])
    if spec is None or spec.origin is None:
        raise LookupError(f"there is no {module}")
    return Path(spec.origin).parents[1]


def _file(root: Path, module: str) -> Path:
    place = root.joinpath(*module.split("."))
    return place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
