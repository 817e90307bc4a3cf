"""A recipe: the YAML file behind `--config`, read before anything heavy is loaded."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from klball.boundary import first_line

FLAG = "--config"
UNMEANT = (
    (re.compile(r".+:.+"), "a number of minutes: put text in quotes"),
    (re.compile(r"[-+]?0[0-7_]+"), "octal: leave out the zero in front, or put text in quotes"),
)


class _Loader(yaml.SafeLoader):
    """YAML in which a key that is given twice is an error, not the last one's."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                said = f"{key.value!r} is given twice"
                raise yaml.MarkedYAMLError(problem=said, problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_yaml_number(self, node: yaml.ScalarNode) -> int | float:
        """YAML 1.1 reads 1:30 as 90, and 010 as 8."""
        for pattern, meant in UNMEANT:
            if pattern.fullmatch(node.value):
                problem = f"{node.value} would be {meant}"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        whole = node.tag.endswith(":int")
        try:
            return self.construct_yaml_int(node) if whole else self.construct_yaml_float(node)
        except ValueError as error:  # thousands of digits
            raise yaml.MarkedYAMLError(problem=str(error), problem_mark=node.start_mark) from error


for _kind in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _Loader.construct_yaml_number)


def split_config(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """The recipe's path, from `--config FILE` or `--config=FILE`, and the other arguments.

    Raises ValueError if it is given twice or without a file.
    """
    found: list[str] = []
    rest: list[str] = []
    remaining = iter(arguments)
    for argument in remaining:
        name, sign, value = argument.partition("=")
        if name != FLAG:
            rest.append(argument)
        else:
            found.append(value if sign else next(remaining, ""))
    if len(found) > 1:
        raise ValueError(f"{FLAG} is given twice: {' and '.join(found)}")
    if not found:
        return None, rest
    path = os.path.expanduser(found[0])
    if not Path(path).is_file():
        raise ValueError(f"{FLAG} needs a YAML file, got {found[0] or 'nothing'}")
    return path, rest


def read_recipe(path: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Its settings, and the environment variables of its section `env`.

    Raises ValueError in one line for what is not one mapping of names to values.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        content = yaml.load(text, Loader=_Loader)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = "" if mark is None else f" line {mark.line + 1}, column {mark.column + 1}"
        raise ValueError(f"{path}{where} is not YAML: {_what(error)}") from error
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError) as error:
        # a date such as 2024-99-99 is a ValueError, `!!int ""` an IndexError, `!!bool x` a KeyError
        raise ValueError(f"{path} is not YAML: {first_line(error)}") from error
    if not isinstance(content, dict):
        found = "nothing" if content is None else f"a {type(content).__name__}"
        raise ValueError(f"{path} must hold lines such as `epsilon: 0.05`, and holds {found}")
    if unnamed := [key for key in content if not isinstance(key, str)]:
        raise ValueError(f"{path}: {unnamed[0]!r} is no name of an option: put names in quotes")
    section = content.pop("env", {})
    if section is content:
        raise ValueError(f"{path}: env is an alias of the recipe itself")
    return content, _environment(section, path)


def _what(error: yaml.MarkedYAMLError) -> str:
    problem = error.problem or error.context or "unreadable"
    if "but found another document" in problem or "single document" in str(error.context):
        return "it holds two documents"
    if "'\\t'" in problem:
        return "a tab: indent with spaces"
    return problem.splitlines()[0]


def _environment(section: Any, path: str) -> dict[str, str]:
    if not isinstance(section, dict):
        raise ValueError(f"{path}: env must be a mapping of names to values")
    for name, value in section.items():
        if not isinstance(name, str) or not isinstance(value, str | int | float) or isinstance(value, bool):
            raise ValueError(f"{path}: env: {name}: {value!r} is not text: put it in quotes")
        if not name or set("=\0") & set(name) or "\0" in str(value):
            raise ValueError(f"{path}: env: no variable can be called {name!r} and hold {value!r}")
    return {name: str(value) for name, value in section.items()}
