"""Options from recipes and the command line: what cannot be meant is one line that names it."""

import dataclasses
import os
import re
import shlex
from dataclasses import MISSING, dataclass, field
from importlib import import_module
from inspect import get_annotations

import pytest
from trl import DatasetMixtureConfig, ModelConfig

from klball import cli
from klball.commands.flag_names import known_flags
from klball.commands.headings import HEADING_OF, HEADINGS
from klball.commands.options import OTHER_TITLE, Parser, parse
from klball.commands.train import Options as TrainOptions
from klball.training.sft.config import RobustSFTConfig

TRAIN = [TrainOptions, RobustSFTConfig, ModelConfig]


@dataclass
class Few:
    """One option of every kind."""

    rate: float = field(default=0.5, metadata={"help": "A rate, 5 % say."})
    count: int | None = field(default=None, metadata={"help": "A count."})
    name: str = field(default="a", metadata={"help": "A name."})
    longer_name: str | None = field(default=None, metadata={"help": "Another."})
    flag: bool = field(default=True, metadata={"help": "A flag."})
    values: list[float] = field(default_factory=lambda: [1.0], metadata={"help": "Values."})
    output_dir: str = field(default="out", metadata={"help": "A folder."})


def klball_classes(cls):
    return [base for base in cls.__mro__ if base.__module__.startswith("klball.")]


def own_classes(command):
    return klball_classes(import_module(cli.COMMANDS[command][0]).Options)


def refused(arguments, capsys):
    """The one line with which a command line is refused."""
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    error = capsys.readouterr().err.strip()
    assert caught.value.code == 2 and error.startswith("klball: error: ") and "\n" not in error
    return error


def sections(shown):
    """Heading → the options under it, in the order of the help."""
    found, title = {}, ""
    for line in shown.splitlines():
        if line.endswith(":") and not line.startswith(" "):
            title = line[:-1]
        elif line.startswith("  --"):
            found.setdefault(title, []).append(re.match(r"  --(\w+)", line)[1])
    return found


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_has_an_example_then_options_under_headings_and_those_of_trl_last(command, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main([command, "--help"])
    shown = capsys.readouterr().out
    assert caught.value.code == 0
    assert shown.split("\n\n")[1].startswith(f"example:\n  klball {command} ")
    groups = sections(shown)
    titles = list(groups)
    own = {name for cls in own_classes(command) for name in get_annotations(cls)}
    special = groups[f"options of klball {command}"]
    assert titles[0] == f"options of klball {command}" and 0 < len(special) < 13
    assert {name.removeprefix("no_") for name in special} <= own - {*HEADING_OF}
    others = groups.pop(OTHER_TITLE, [])
    assert own <= {name for names in groups.values() for name in names}
    assert all(HEADING_OF[name] == title for title in titles[1:-1] for name in groups[title])
    assert bool(others) == (command in ("train", "tune"))
    if others:
        assert titles[-1] == OTHER_TITLE and len(others) > 100 and not own & {*others}
        assert "epsilon" in groups["adversary"] and "adam_beta2" in others


def test_every_heading_has_options_that_are_there():
    known = {flag[2:] for module, _ in cli.COMMANDS.values() for flag in known_flags(module)}
    assert {*HEADING_OF} <= known
    assert sum(len(names.split()) for names in HEADINGS.values()) == len(HEADING_OF)  # none stands twice


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_the_example_of_every_command_is_understood(command):
    module = import_module(cli.COMMANDS[command][0])
    classes = [module.Options, *getattr(module, "ALSO", ()), *([RobustSFTConfig] * (command == "train"))]
    parse(classes, shlex.split(module.EXAMPLE)[2:], f"klball {command}")


@pytest.mark.slow
def test_the_examples_run_one_after_the_other(tmp_path, monkeypatch):
    """As they are printed, in an empty folder; reproduce takes minutes, and has tests of its own."""
    monkeypatch.chdir(tmp_path)
    order = ("train", "score", "solve", "evaluate", "scan", "paraphrase", "compare", "tune")
    assert {*order, "reproduce"} == {*cli.COMMANDS}
    for command in order:
        cli.main(shlex.split(import_module(cli.COMMANDS[command][0]).EXAMPLE)[1:])


def test_no_option_is_declared_twice():
    """In two classes' own bodies, with one type and one help: such an option belongs to klball.flags."""
    classes = {cls for command in cli.COMMANDS for cls in own_classes(command)}
    declared: dict[tuple, list[str]] = {}
    for cls in {*classes, *klball_classes(RobustSFTConfig)}:
        for name, kind in get_annotations(cls).items():
            options = cls.__dataclass_fields__.get(name)
            if options is not None:
                meaning = (name, str(kind), options.metadata.get("help"))
                declared.setdefault(meaning, []).append(cls.__module__)
    assert len(classes) > len(cli.COMMANDS)
    assert {name: where for (name, *_), where in declared.items() if len(where) > 1} == {}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--rat", "1"], "no option --rat: did you mean --rate?"),
        (["--rat=1"], "no option --rat: did you mean --rate?"),
        (["--longer", "x"], "no option --longer: did you mean --longer_name?"),
        (["--longer-nam", "x"], "did you mean --longer_name?"),
        (["--cuont", "1"], "no option --cuont: did you mean --count?"),
        (["--zzzzzz", "1"], "no option --zzzzzz; --help lists them"),
        (["--flag", "true", "stray"], "'stray' belongs to no option"),
        (["stray"], "'stray' belongs to no option"),
        (["--count", "x"], "--count: invalid int value: 'x'"),
        (["--count", "1.5"], "--count: invalid int value: '1.5'"),
        (["--flag", "perhaps"], "--flag: Truthy value expected"),
        (["--name"], "--name: expected one argument"),
        (["--rate", "nan"], "--rate must be a number, not nan"),
        (["--values", "1", "nan"], "--values must be a number, not nan"),
        (
            ["--values", "1", "--values", "2"],
            "--values is given twice, 1 and 2: give all its values after one",
        ),
        (["--config"], "--config needs a YAML file, got nothing"),
        (["--config="], "--config needs a YAML file, got nothing"),
        (["--config=nowhere.yaml"], "--config needs a YAML file, got nowhere.yaml"),
        (["--config", "a.yaml", "--config", "b.yaml"], "--config is given twice"),
    ],
)
def test_a_wrong_command_line_is_one_line(arguments, words):
    with pytest.raises(ValueError) as caught:
        parse([Few], arguments, "klball few")
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds nothing"),
        ("# only a comment\n", "holds nothing"),
        ("- a\n- b\n", "holds a list"),
        ("just words\n", "holds a str"),
        ("rate: 1\nrate: 2\n", "line 2, column 1 is not YAML: 'rate' is given twice"),
        ("rate: 1\n---\nrate: 2\n", "two documents"),
        ("a: [1,\n", "line 2, column 1 is not YAML"),
        ("rate:\n\t- 1\n", "a tab: indent with spaces"),
        ("rate: !!python/object:os.system {}\n", "is not YAML: could not determine a constructor"),
        ("rate: 'x\n", "is not YAML"),
        ("name: 2024-99-99\n", "is not YAML: month must be"),
        ("1: 2\n", "1 is no name of an option"),
        (f"name: b\ncount: {'9' * 5_000}\n", "line 2, column 8 is not YAML: Exceeds the limit"),
        ("null: 2\n", "None is no name of an option"),
        ("env:\n  '': x\n", "env: no variable can be called ''"),
        ("env:\n  'A=B': x\n", "env: no variable can be called 'A=B'"),
        ('env:\n  A: "x\\0"\n', "env: no variable can be called 'A'"),
        ('name: "a\\0b"\n', "--name: 'a\\x00b' is no UTF-8 text, or holds a NUL"),
        ("rat: 1\n", "no option 'rat': did you mean rate?"),
        ("longer-name: x\n", "no option 'longer-name': did you mean longer_name?"),
        ("help: true\n", "no option 'help'"),
        ("config: other.yaml\n", "no option 'config'"),
        ("max_steps: 010\n", "column 12 is not YAML: 010 would be octal: leave out the zero in front"),
        ("env:\n  OMP_NUM_THREADS: 01_0\n", "01_0 would be octal"),
        ("max_steps: 1:30\n", "1:30 would be a number of minutes: put text in quotes"),
        ("rate: [1, 2]\n", "rate: needs a number, not [1, 2]"),
        ("rate:\n", "rate: needs a number, and has no value"),
        ("rate: .nan\n", "rate must be a number, not nan"),
        ("rate: true\n", "rate: needs a number, not True"),
        ("rate: fast\n", "rate: needs a number, not 'fast'"),
        ("count: 1.5\n", "count: needs a whole number, not 1.5"),
        ("count: {a: 1}\n", "count: needs a whole number, not {'a': 1}"),
        ("name:\n", "name: needs text, and has no value"),
        ("name: 0042\n", "0042 would be octal: leave out the zero in front, or put text in quotes"),
        ("name: no\n", "name: needs text, not False (YAML reads it so: put text in quotes)"),
        ("name: 2024-01-01\n", "name: needs text, not datetime.date(2024, 1, 1)"),
        ("name: [a, b]\n", "name: needs text, not ['a', 'b']"),
        ("flag: 1\n", "flag: needs true or false, not 1"),
        ("flag: 'maybe'\n", "flag: needs true or false, not 'maybe'"),
        ("name: ''\n", "name: it is empty"),
        ("values: []\n", "values: the list is empty"),
        ("values: [1, x]\n", "values: needs a list, not [1, 'x']"),
        ("values: {a: 1}\n", "values: needs a list, not {'a': 1}"),
        ("&a\nname: b\nenv: *a\n", "env is an alias of the recipe itself"),
        ("env: [A]\n", "env must be a mapping"),
        ("env:\n  A:\n", "env: A: None is not text"),
        ("env:\n  A: true\n", "env: A: True is not text"),
        ("env:\n  1: x\n", "env: 1: 'x' is not text"),
        ("\x00", "is not YAML"),
        ('count: !!int ""\n', "is not YAML"),
        ("flag: !!bool x\n", "is not YAML"),
        ("[" * 5_000, "is not YAML"),
    ],
)
def test_a_wrong_recipe_is_one_line_that_names_the_key(text, words, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(ValueError) as caught:
        parse([Few], ["--config", str(path)], "klball few")
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_recipe_that_is_no_text_is_one_line(tmp_path, capsys):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    assert "is not UTF-8 text" in refused(["score", f"--config={path}"], capsys)


@pytest.mark.parametrize("flag", [lambda path: ["--config", path], lambda path: [f"--config={path}"]])
def test_a_recipe_and_the_command_line_give_the_same(flag, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("rate: 1e-3\ncount: 3\nname: b\nflag: false\nvalues: 2\n")
    (read,) = parse([Few], flag(str(path)), "klball few")
    given = ["--rate", "1e-3", "--count", "3", "--name", "b", "--flag", "false", "--values", "2"]
    assert (read,) == parse([Few], given, "klball few") and read != Few()
    (over,) = parse([Few], [*flag(str(path)), "--count", "4"], "klball few")
    assert over.count == 4 and over.rate == 1e-3


@pytest.mark.parametrize(("value", "flag"), [("true", False), ("false", True)])
def test_a_recipe_may_deny_a_flag(value, flag, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(f"no_flag: {value}\n")
    (read,) = parse([Few], ["--config", str(path)], "klball few")
    assert read.flag is flag
    assert parse([Few], ["--no_flag"], "klball few")[0].flag is False


def test_a_recipe_may_hold_a_mixture_of_data_sets(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("datasets:\n  - path: json\n    data_files: d.jsonl\n")
    (mixture,) = parse([DatasetMixtureConfig], ["--config", str(path)], "klball train")
    assert (mixture.datasets[0].path, mixture.datasets[0].data_files) == ("json", "d.jsonl")
    path.write_text("datasets:\n  - path: json\n    data_file: d.jsonl\n")
    with pytest.raises(ValueError, match="datasets: no key 'data_file': did you mean data_files"):
        parse([DatasetMixtureConfig], ["--config", str(path)], "klball train")


def test_every_default_of_train_is_a_value_that_a_recipe_may_give():
    fields = {field.name: field for cls in TRAIN for field in dataclasses.fields(cls) if field.init}
    given = {name: field.default for name, field in fields.items() if field.default is not MISSING}
    assert len(given) > 150
    assert Parser(TRAIN, "klball train").from_recipe(given, "recipe.yaml") == given


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("eval_strategy: no", "eval_strategy"),
        ("dtype: [a]", "dtype"),
        ("learning_rate: -1", "learning_rate"),
        ("learning_rate: [1]", "learning_rate"),
        ("lr_scheduler_type: sometimes", "sometimes"),
        ("optim: none_such", "none_such"),
        ("lr_scheduler_kwargs: '{bad'", "--lr_scheduler_kwargs: {bad is not JSON"),
        ("accelerator_config: {nonsense: 1}", "nonsense"),
        ("max_grad_norm: .nan", "max_grad_norm"),
        ("per_device_train_batch_size: 0", "per_device_train_batch_size"),
        ("lora_r: -1", "lora_r"),
        ("psft_clip: 0.5", "psft_clip"),
        ("gradient_accumulation_steps: -1", "gradient_accumulation_steps"),
        ("load_best_model_at_end: true", "load_best_model_at_end"),
    ],
)
def test_settings_that_training_cannot_have_are_one_line(text, name, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(ValueError) as caught:
        parse(TRAIN, ["--config", str(path), "--output_dir", str(tmp_path / "run")], "klball train")
    assert name in str(caught.value) and "\n" not in str(caught.value)


def test_the_environment_of_a_recipe_is_set_before_the_command_is_loaded(tmp_path, monkeypatch):
    path = tmp_path / "recipe.yaml"
    path.write_text("env:\n  KLBALL_TEST_OF_RECIPES: 7\n")
    seen = []
    monkeypatch.delenv("KLBALL_TEST_OF_RECIPES", raising=False)
    monkeypatch.setattr(cli, "import_module", lambda name: seen.append(os.environ["KLBALL_TEST_OF_RECIPES"]))
    monkeypatch.setattr(cli, "prepare_process", lambda: None)
    with pytest.raises(SystemExit):  # the command is not there
        cli.main(["score", "--config", str(path)])
    assert seen == ["7"]
    monkeypatch.delenv("KLBALL_TEST_OF_RECIPES")


@pytest.mark.parametrize(
    ("option", "value"),
    [("output_dir", "~/x"), ("name", "~/x"), ("longer_name", "LABEL=~/x"), ("name", "~")],
)
def test_the_home_folder_is_expanded_on_the_command_line_and_in_recipes(option, value, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / "recipe.yaml"
    path.write_text(f"{option}: '{value}'\n")
    expected = value.replace("~", str(tmp_path))
    for arguments in ([f"--{option}={value}"], [f"--{option}", value], ["--config", "~/recipe.yaml"]):
        assert getattr(parse([Few], arguments, "klball few")[0], option) == expected


def test_a_folder_has_one_name(tmp_path):
    assert {
        parse([Few], ["--output_dir", name], "klball few")[0].output_dir for name in ("o", "./o", "o/")
    } == {"o"}


@pytest.mark.parametrize(
    "words, said",
    [
        (["--rate", "1", "--rate", "2"], "--rate is given twice: 2 counts, not 1"),
        (["--rate=1", "--rate", "2"], "--rate is given twice: 2 counts, not 1"),
        (["--longer_name", "a", "--longer-name", "b"], "--longer_name is given twice: b counts, not a"),
        (["--flag", "--no_flag"], "--flag is given twice: --no_flag counts, not --flag"),
        (["--rate", "2", "--rate", "2"], None),
        (["--flag", "--flag"], None),
    ],
)
def test_of_an_option_given_twice_the_last_counts_aloud(words, said, caplog):
    (few,) = parse([Few], words, "klball few")
    assert (few.rate, few.longer_name, few.flag) != (0.5, None, True) or words[0] == "--flag"
    assert [record.getMessage() for record in caplog.records] == [said] * (said is not None)


def test_numbers_inside_keywords_are_numbers(tmp_path):
    """YAML 1.1 would have them as text, and a scheduler fail in its first step."""
    path = tmp_path / "recipe.yaml"
    path.write_text("lr_scheduler_kwargs: {min_lr: 1e-5, more: [{a: -2.5E+3}], name: 1e5x, step: 2}\n")
    (config,) = parse([RobustSFTConfig], ["--config", str(path)], "klball train", output_dir=str(tmp_path))
    assert config.lr_scheduler_kwargs == {
        "min_lr": 1e-5,
        "more": [{"a": -2500.0}],
        "name": "1e5x",
        "step": 2,
    }


@pytest.mark.parametrize("word", ["true", "false", "latest"])
def test_resumption_from_the_newest_is_asked_for_as_on_the_command_line(word, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(f"resume_from_checkpoint: {word}\n")
    (config,) = parse([RobustSFTConfig], ["--config", str(path)], "klball train", output_dir=str(tmp_path))
    assert config.resume_from_checkpoint == word
