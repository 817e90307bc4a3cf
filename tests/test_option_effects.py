"""Every option of every command has an effect that can be seen, or is refused in one line."""

import dataclasses
import json
from importlib import import_module
from types import NoneType
from typing import get_args, get_type_hints

import pytest
from trl import ModelConfig

from klball import cli
from klball.commands.options import parse_options
from klball.files import write_table
from klball.training.bounds import BOUNDS
from klball.training.sft.config import RobustSFTConfig
from observed_commands import observed, rows, table
from option_cases import CASES, FIXED, IGNORED

COMMANDS = [name for name in cli.COMMANDS if name != "train"]


def fields(command: str) -> list[str]:
    return [f.name for f in dataclasses.fields(import_module(cli.COMMANDS[command][0]).Options)]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Words of the cases that stand for files."""
    folder = tmp_path_factory.mktemp("files")
    for name, count in (("scores", 12), ("other", 7)):
        write_table(table(None, None, rows().select(range(count))).data.table, folder / f"{name}.parquet")
    with pytest.MonkeyPatch.context() as patch:
        (folder / "rounds").mkdir()
        options = {**FIXED["paraphrase"], "rounds": 4, "max_rows": 6}
        observed("paraphrase", options, folder / "rounds", patch)
    (folder / "results.jsonl").write_text("")
    lines = [
        f"{i},{i if s == 1 else 8 - i},{i % 5}{s},{i}.5,{s},{i}-{s},{i % 2}" for i in range(9) for s in (1, 2)
    ]
    (folder / "seeds.csv").write_text("\n".join(["id,name,x,y,seed,unique,lang", *lines]))
    (folder / "recipe.yaml").write_text("train_rows: 4\n")
    return {
        "SCORES": str(folder / "scores.parquet"),
        "OTHER_SCORES": str(folder / "other.parquet"),
        "ROUNDS": str(folder / "rounds" / "rounds.parquet"),
        "RESULTS": str(folder / "results.jsonl"),
        "SEEDS": str(folder / "seeds.csv"),
        **{f"{label}=SEEDS": f"{label}={folder / 'seeds.csv'}" for label in "abc"},
        "RECIPE": str(folder / "recipe.yaml"),
    }


@pytest.fixture
def run(files, tmp_path, monkeypatch):
    count = iter(range(9))

    def run(command, *options):
        merged = {k: v for given in (FIXED[command], *options) for k, v in given.items()}
        if "rounds_path" in merged and command == "compare":
            merged.pop("rounds")
        for name in ("models", "datasets", "rounds"):
            if "scores" in merged and command != "solve" and name not in (options or [{}])[-1]:
                merged.pop(name, None)
        known = {
            k: [files.get(x, x) for x in v] if isinstance(v, list) else files.get(v, v)
            for k, v in merged.items()
        }
        folder = tmp_path / f"run-{next(count)}"
        try:
            return observed(command, known, folder, monkeypatch)
        except ValueError as error:
            return str(error)

    return run


@pytest.fixture(scope="module")
def seen():
    """What a command showed, by its name and options: runs repeat, and many options share the others."""
    return {}


@pytest.mark.parametrize("command", COMMANDS)
def test_no_option_lacks_a_case_and_runs_repeat(command, run):
    assert set(fields(command)) <= set(CASES[command])
    first = run(command)
    assert isinstance(first, list) and first == run(command)


@pytest.mark.parametrize(
    ("command", "name"), [(command, name) for command in COMMANDS for name in fields(command)]
)
def test_an_option_has_an_effect_or_is_refused(command, name, run, seen):
    before, changed, *refusal = CASES[command][name]
    found = run(command, before, {name: changed})
    if refusal:
        assert refusal[0] in found and "\n" not in found
        return
    others = json.dumps([command, before])
    if others not in seen:
        seen[others] = run(command, before)
    assert found != seen[others]
    assert not isinstance(found, str), found


@pytest.mark.parametrize(
    ("command", "case"), [(command, case) for command in IGNORED for case in IGNORED[command]], ids=str
)
def test_an_option_without_effect_beside_others_is_refused(command, case, run):
    before, name, value = case
    found = run(command, before, {name: value})
    assert isinstance(found, str) and f"--{name} has no effect" in found and "\n" not in found


def numbers(cls) -> list[str]:
    """Fields that hold a number or a list of them."""
    found = []
    for name, hint in get_type_hints(cls).items():
        kinds = {part for kind in (get_args(hint) or (hint,)) for part in (get_args(kind) or (kind,))}
        if kinds & {int, float} and not kinds - {int, float, list, NoneType, str}:
            found.append(name)
    return found


CLASSES = [*(import_module(cli.COMMANDS[c][0]).Options for c in COMMANDS), RobustSFTConfig, ModelConfig]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_defaults_pass_the_checks_of_options(command):
    words = [word for name, value in FIXED[command].items() for word in (f"--{name}", *_words(value))]
    parse_options([import_module(cli.COMMANDS[command][0]).Options], words, f"klball {command}")


def _words(value) -> list[str]:
    return [str(part) for part in (value if isinstance(value, list) else [value])]


def test_every_number_has_bounds():
    without = {name for cls in CLASSES for name in numbers(cls)} - set(BOUNDS)
    assert not without


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (command, name)
        for command in COMMANDS
        for name in numbers(import_module(cli.COMMANDS[command][0]).Options)
    ],
)
@pytest.mark.parametrize("value", ["nan", "-7", "inf"])
def test_an_impossible_number_is_refused(command, name, value, run):
    if name == "gamma" and value == "-7":
        return  # any finite bound is possible; whether rows meet it shows later
    found = run(command, {name: value})
    assert isinstance(found, str) and name in found and "\n" not in found


@pytest.mark.parametrize("name", [name for name in numbers(RobustSFTConfig) if name in BOUNDS])
def test_a_config_refuses_what_the_command_line_refuses(name, tmp_path):
    with pytest.raises(ValueError, match=f"{name} must be"):
        RobustSFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, **{name: float("nan")})


def test_every_setting_reaches_the_trainer(tmp_path, tiny_model, tokenizer):
    """What TRL's trainer does with its own settings is TRL's; that it gets them is ours."""
    from datasets import Dataset

    from klball.training.sft.trainer import RobustSFTTrainer

    config = RobustSFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to=[])
    before = json.dumps(config.to_dict(), default=str)
    data = Dataset.from_list([{"prompt": "a\n", "completion": "b"}] * 4)
    trainer = RobustSFTTrainer(tiny_model, config, train_dataset=data, processing_class=tokenizer)
    given, used = json.loads(before), json.loads(json.dumps(trainer.args.to_dict(), default=str))
    assert [name for name in given if given[name] != used[name]] == ["assistant_only_loss"]
