"""Options of a command, from a recipe and the command line; what cannot be meant is refused in one line."""

import dataclasses
import inspect
import json
import logging
import os
import re
from argparse import ArgumentDefaultsHelpFormatter, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

import torch
from datasets import Dataset
from trl import TrlParser

from klball.commands.flag_names import did_you_mean
from klball.commands.headings import HEADING_OF, HEADINGS
from klball.commands.recipe import read_recipe, split_config
from klball.data.rows import first_rows, load_rows
from klball.files import refuse_foreign_folder
from klball.terminal import quieten
from klball.training.bounds import check_bounds

logger = logging.getLogger(__name__)

OTHER_TITLE = "options of TRL and Transformers"
DTYPES = ("float32", "bfloat16", "float16", "float64", "auto")
EXPONENTIAL = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")  # text in YAML 1.1
FAULTS = (ValueError, TypeError, KeyError, ImportError, OSError, RuntimeError)  # of a library's own checks


def parse(
    classes: Sequence[Any], arguments: Sequence[str], prog: str, example: str = "", **defaults: Any
) -> tuple[Any, ...]:
    """The dataclasses filled from `--config FILE.yaml` and the command line; see `parse_options`.

    `example` begins the help; `defaults` replace those of the classes. Raises ValueError also for an
    `--output_dir` that holds what another command wrote.
    """
    quieten()
    parsed = parse_options(classes, arguments, prog, example, **defaults)
    for options in parsed:
        if getattr(options, "output_dir", None):
            refuse_foreign_folder(Path(options.output_dir), prog)
    return parsed


def parse_options(
    classes: Sequence[Any], arguments: Sequence[str], prog: str, example: str = "", **defaults: Any
) -> tuple[Any, ...]:
    """The dataclasses filled from `--config FILE.yaml` and the command line, by TRL's own parser.

    `example` begins the help; `defaults` replace those of the classes. `~` stands for the home folder in
    every value. Raises ValueError in one line for anything unknown, abbreviated, of a wrong type, or NaN.
    """
    path, arguments = split_config(arguments)
    parser = Parser(classes, prog, example)
    if not torch.accelerator.is_available():
        parser.set_defaults_with_config(use_cpu=True, bf16=False)
    parser.set_defaults_with_config(**defaults)
    if path is not None:
        settings, _ = read_recipe(path)
        parser.set_defaults_with_config(**parser.from_recipe(settings, path))
    return parser.parse(arguments)


class _EntryError(ValueError):
    """The one reason for which no other type is tried."""


class _Formatter(ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter):
    """Shows defaults, and leaves the lines of the example as they are."""


class Parser(TrlParser):
    """TRL's parser, which refuses in one line, shows klball's options first, and takes no abbreviation."""

    def __init__(self, classes: Sequence[Any], prog: str, example: str = ""):
        super().__init__(
            classes,
            prog=prog,
            usage=f"{prog} [--config recipe.yaml] [options]",
            description=f"example:\n  {example}" if example else None,
            formatter_class=_Formatter,
            allow_abbrev=False,
        )
        self.types = {name: kind for c in classes for name, kind in get_type_hints(c).items()}
        self._group_own(classes)

    def _group_own(self, classes: Sequence[Any]) -> None:
        """klball's options under their headings, before the hundreds that come from TRL."""
        own = {name for c in classes for name in _own_fields(c)}
        special = f"options of {self.prog}"
        titles = (special, *HEADINGS, OTHER_TITLE)
        groups = {title: self.add_argument_group(title) for title in titles}
        for action in list(self._optionals._group_actions):
            if action.dest == "help":
                continue
            mine = action.dest in own
            if mine and self.types[action.dest] == bool | None:  # as of plain bools, the flag alone is true
                action.nargs, action.const = "?", True
            if mine and action.help:  # writers of klball's help need not know argparse's signs
                action.help = re.sub(r"%(?!\()", "%%", action.help.replace("%%", "%"))
            self._optionals._group_actions.remove(action)
            title = HEADING_OF.get(action.dest, special) if mine else OTHER_TITLE
            groups[title]._group_actions.append(action)

    def from_recipe(self, settings: dict[str, Any], path: str) -> dict[str, Any]:
        """The recipe's values as the command line would give them. Raises ValueError naming a bad key."""
        flags = {flag[2:]: action.dest for action in self._actions for flag in action.option_strings}
        known = {name: dest for name, dest in flags.items() if "-" not in name and dest != "help"}
        denying = {flag[2:] for a in self._actions if a.const is False for flag in a.option_strings}
        found = {}
        for name, value in settings.items():
            if name not in known:
                raise ValueError(f"{path}: no option {name!r}{did_you_mean(name, known)}")
            option = known[name]
            word = option == "resume_from_checkpoint" and isinstance(value, bool)  # text on the command line
            if option in found:
                raise ValueError(f"{path}: {name} and {option} are one option: give it once")
            try:
                converted = _converted(str(value).lower() if word else value, self.types[option])
                found[option] = self._checked(option, converted is not True if name in denying else converted)
            except ValueError as error:
                raise ValueError(f"{path}: {name}: {_one_line(error)}") from error
        return found

    def _checked(self, name: str, value: Any) -> Any:
        """What argparse checks on the command line holds for a recipe too."""
        action = next(a for a in self._actions if a.dest == name)
        if value == [] and (action.default != [] or name == "datasets"):
            raise ValueError("the list is empty")
        if value == "" and action.default != "" and list not in map(_origin, self._kinds(name)):
            raise ValueError("it is empty: leave it out, or give a value")
        for one in value if isinstance(value, list) else [value]:
            if action.choices is not None and one is not None and one not in action.choices:
                raise ValueError(f"{one!r} is none of {', '.join(map(str, action.choices))}")
        return value

    def parse(self, arguments: Sequence[str]) -> tuple[Any, ...]:
        """The dataclasses; raises ValueError in one line, also where their own checks refuse."""
        self._tell_repeated(arguments)
        try:
            return self.parse_args_into_dataclasses(list(arguments), look_for_args_file=False)
        except FAULTS as error:
            raise ValueError(_one_line(error)) from error

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Namespace, list[str]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Argparse's, with `~` expanded and impossible numbers refused before a dataclass sees them."""
        namespace, rest = super().parse_known_args(args, namespace)
        if rest:
            self._refuse_unknown(rest)
        for name, value in vars(namespace).items():
            if value == "" and self.get_default(name) != "":
                raise ValueError(f"--{name} is empty: leave it out, or give a value")
            _refuse_no_text(name, value)
            setattr(namespace, name, _expanded(name, value))
            if isinstance(value, str) and dict in map(_origin, self._kinds(name)):
                self._refuse_bad_json(name, value)
        numbers = {  # without compare's gamma, which may be a word
            name: value
            for name, value in vars(namespace).items()
            if str not in self._kinds(name) and not (value is None and NoneType in self._kinds(name))
        }
        check_bounds(numbers, prefix="--")
        return namespace, rest

    def _kinds(self, name: str) -> tuple[Any, ...]:
        return get_args(self.types[name]) or (self.types[name],)

    def _refuse_bad_json(self, name: str, value: str) -> None:
        """Some take the path of a file instead of a mapping in JSON; the `kwargs` do not."""
        if not value.startswith("{"):
            if name.endswith("kwargs"):
                raise ValueError(f"--{name} needs a mapping such as '{{\"name\": 1}}', not {value}")
            return
        try:
            json.loads(value)
        except ValueError as error:
            raise ValueError(f"--{name}: {value} is not JSON: {error}") from error

    def _refuse_unknown(self, rest: Sequence[str]) -> NoReturn:
        flags = [word.partition("=")[0] for word in rest if word.startswith("-")]
        if not flags:
            raise ValueError(f"{rest[0]!r} belongs to no option")
        known = {*self._option_string_actions} - {"--help", "-h"}
        raise ValueError(f"no option {flags[0]}{did_you_mean(flags[0], known)}")

    def error(self, message: str) -> NoReturn:
        """One line in place of argparse's usage, which has 160."""
        raise ValueError(re.sub(r"^argument (--\w+)\S*: ", r"\1: ", message))

    def _tell_repeated(self, arguments: Sequence[str]) -> None:
        """As everywhere the last one counts, but not without a word; a list's values come after one flag."""
        seen: dict[str, str] = {}
        for word, following in pairwise([*arguments, ""]):
            flag, sign, value = word.partition("=")
            action = self._option_string_actions.get(flag)
            if action is None:
                continue
            value = value if sign else following if following[:2] not in ("", "--") else flag
            before = seen.get(action.dest)
            if before is not None and action.nargs == "+":
                raise ValueError(
                    f"--{action.dest} is given twice, {before} and {value}: give all its values after one"
                )
            if before not in (None, value):
                logger.warning("--%s is given twice: %s counts, not %s", action.dest, value, before)
            seen[action.dest] = value


def refuse_ignored(options: Any, names: Sequence[str], why: str) -> None:
    """Raise ValueError if one of these options was changed: it has no effect here."""
    for field in dataclasses.fields(options):
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        if field.name in names and getattr(options, field.name) != default:
            raise ValueError(f"--{field.name} has no effect {why}: leave it out")


def one_of(options: Any, name: str, allowed: Sequence[str]) -> None:
    """Raise ValueError if the option is none of these."""
    value = getattr(options, name)
    if value not in allowed:
        raise ValueError(f"--{name} must be one of {', '.join(allowed)}, not {value!r}")


def asked_rows(
    options: Any, name: str | None = None, form: Callable[[Dataset], Dataset] | None = None
) -> Dataset:
    """The first --max_rows of the data set that the options name, or of another; form: as for `load_rows`."""
    config = getattr(options, "dataset_config", None)
    rows = load_rows(
        *(name or options.dataset_name, options.dataset_split, config),
        default="test",
        id_column=options.id_column,
        form=form,
    )
    return first_rows(rows, options.max_rows)


def job_of(options: Any) -> None:
    """Raise ValueError if there is no such job."""
    if not 0 <= options.job_index < options.num_jobs:
        raise ValueError(f"--job_index must be between 0 and {options.num_jobs - 1}, not {options.job_index}")


def distinct(options: Any, name: str) -> None:
    """Raise ValueError if a value of this list is given twice; numbers to the six digits that names have."""
    values = [value if isinstance(value, str) else f"{value:g}" for value in getattr(options, name)]
    repeated = next((value for value in values if values.count(value) > 1), None)
    if repeated is not None:
        raise ValueError(f"--{name} has {repeated} twice (numbers are told apart by six digits)")


def _own_fields(cls: Any) -> Iterator[str]:
    """Fields that a class of klball declares, redeclared ones included."""
    for base in cls.__mro__:
        if base.__module__.split(".")[0] not in ("trl", "transformers", "builtins"):
            yield from inspect.get_annotations(base)


def _one_line(error: BaseException) -> str:
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return " ".join(text.split()) or type(error).__name__


def _refuse_no_text(name: str, value: Any) -> None:
    """Names of files that Python holds and most libraries do not take."""
    for text in value if isinstance(value, list) else [value]:
        if isinstance(text, str) and ("\0" in text or text.encode(errors="replace").decode() != text):
            raise ValueError(f"--{name}: {text!r} is no UTF-8 text, or holds a NUL")


def _expanded(name: str, value: Any) -> Any:
    """`~/x` and `LABEL=~/x` with the home folder; `./out/` and `out` are one folder."""
    if isinstance(value, list):
        return [_expanded(name, part) for part in value]
    if not isinstance(value, str):
        return value
    label, sign, path = value.rpartition("=")
    if path == "~" or path.startswith("~/"):
        value = label + sign + os.path.expanduser(path)
    return str(Path(value)) if name == "output_dir" and value else value


def _converted(value: Any, wanted: Any) -> Any:
    """A YAML value as its option's type; ValueError says what was expected."""
    kinds = list(get_args(wanted)) if get_origin(wanted) in (Union, UnionType) else [wanted]
    for kind in kinds:
        try:
            return _as_kind(value, kind)
        except _EntryError:
            raise
        except (ValueError, TypeError):
            continue
    if value is None:
        raise ValueError(f"needs {_in_words(kinds)}, and has no value")
    text = " (YAML reads it so: put text in quotes)" if str in kinds else ""
    raise ValueError(f"needs {_in_words(kinds)}, not {value!r}{text}")


def _origin(kind: Any) -> Any:
    return get_origin(kind) or kind


def _as_kind(value: Any, kind: Any) -> Any:
    origin = _origin(kind)
    if origin is list:
        (inner,) = get_args(kind) or (Any,)
        return [_as_kind(part, inner) for part in (value if isinstance(value, list) else [value])]
    if kind in (int, float) and isinstance(value, str):  # YAML 1.1 reads 1e-3 as text
        return kind(value)
    if origin is dict and isinstance(value, dict):
        return _with_numbers(value)
    if dataclasses.is_dataclass(kind) and isinstance(value, dict):  # an entry of TRL's list of data sets
        return _entry(value, kind)
    if origin is Literal:
        fits = value in get_args(kind)
    elif kind is float:
        fits = isinstance(value, int | float) and not isinstance(value, bool)
    elif kind is int:
        fits = isinstance(value, int) and not isinstance(value, bool)
    else:
        fits = kind is Any or isinstance(value, origin)
    if not fits:
        raise ValueError
    return value


def _with_numbers(value: Any) -> Any:
    """Keywords of a library as YAML 1.2 reads them: 1e-3, at any depth, is a number."""
    if isinstance(value, dict):
        return {key: _with_numbers(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_with_numbers(one) for one in value]
    return float(value) if isinstance(value, str) and EXPONENTIAL.fullmatch(value) else value


def _entry(value: dict[str, Any], kind: Any) -> dict[str, Any]:
    known, types = kind.__dataclass_fields__, get_type_hints(kind)
    for key in value:
        if key not in known:
            raise _EntryError(f"no key {key!r}{did_you_mean(str(key), known)}")
    for field in known.values():
        if field.default is dataclasses.MISSING and value.get(field.name) is None:
            raise _EntryError(f"an entry has no {field.name}: {value}")
    found = {}
    for key, one in value.items():
        try:
            found[key] = _converted(one, types[key])
        except ValueError as error:
            raise _EntryError(f"{key} {error}") from error
    return found


def _in_words(kinds: Sequence[Any]) -> str:
    names = {str: "text", int: "a whole number", float: "a number", bool: "true or false", dict: "a mapping"}
    found = []
    for kind in kinds:
        origin = _origin(kind)
        if origin is list:
            found.append("a list")
        elif origin is not NoneType and origin in names:
            found.append(names[origin])
    return " or ".join(dict.fromkeys(found)) or "another value"
