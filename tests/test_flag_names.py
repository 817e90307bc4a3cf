"""Flags read from sources are those of the parser, and a typo is answered before anything is loaded."""

import resource
import subprocess
import sys
from importlib import import_module

import pytest

from klball import cli
from klball.commands.flag_names import ALWAYS, known_flags, refuse_unknown
from klball.commands.options import Parser
from klball.commands.train import options_of
from klball.training.families import FAMILIES

MODULES = {name: module for name, (module, _) in cli.COMMANDS.items()}
TRAIN = MODULES["train"]


def flags_of_the_parser(command):
    module = import_module(MODULES[command])
    also = getattr(module, "ALSO", ())
    several = [[options_of(name), family.config, *also] for name, family in FAMILIES.items()]
    for classes in several if command == "train" else [[module.Options, *also]]:
        yield from Parser(classes, "klball x")._option_string_actions


@pytest.mark.parametrize("command", MODULES)
def test_the_sources_say_what_the_parser_takes(command):
    known, flags = known_flags(MODULES[command]), {*flags_of_the_parser(command)} - ALWAYS
    assert flags <= known
    hidden = ("--no_", "--no-", "--_", "---")  # a base's default of true; fields that are no arguments
    assert not {flag for flag in known - flags if not flag.startswith(hidden)}


@pytest.mark.parametrize(
    ("command", "words", "refusal"),
    [
        ("train", ["--epsilonn", "1"], "no option --epsilonn: did you mean --epsilon?"),
        ("train", ["--learning-rat=1"], "no option --learning-rat: did you mean --learning_rate?"),
        ("train", ["--comparatr", "x"], "did you mean --comparator?"),  # of which family, it then says
        ("train", ["--family=grpo", "--bet", "1"], "did you mean --beta?"),
        ("train", ["--use_peft", "--lora_rr", "1"], "did you mean --lora_r?"),
        ("tune", ["--epsilon_s", "1"], "did you mean --epsilons?"),
        ("score", ["-dtype", "x"], "no option -dtype"),
        ("solve", ["--top", "3", "--epsilom", "1"], "did you mean --epsilon?"),
        ("reproduce", ["--no_halve"], "no option --no_halve"),
        (
            "train",
            ["--family=grpo", "--reward_funcs", "my.mod"],
            "for RobustGRPOTrainer(reward_funcs=…)",
        ),
        ("compare", ["--zzzzzz"], "; --help lists them"),
    ],
)
def test_a_typo_is_told_with_the_nearest_name(command, words, refusal):
    with pytest.raises(ValueError, match="no option") as caught:
        refuse_unknown(MODULES[command], words)
    assert refusal in str(caught.value)


@pytest.mark.parametrize(
    "words",
    [
        ["--family", "sft", "--over", "pair"],  # of another family: the command itself says so
        ["--learning_rate", "-1", "--adam_beta1", "-.5"],
        ["--run_name", "-x"],
        ["--run_name", "--a name"],
        ["--help"],
        ["-h"],
        ["--no_gradient_checkpointing", "--eval-dataset=x", "--test_name", "y"],
        ["stray"],
    ],
)
def test_what_may_be_meant_is_left_to_the_parser(words):
    refuse_unknown(TRAIN, words)


def test_a_recipe_is_looked_through_too(tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("family: dpo\nbeta: 0.1\n")
    refuse_unknown(TRAIN, ["--config", str(recipe)])
    recipe.write_text("family: dpo\nbets: 0.1\n")
    with pytest.raises(ValueError, match=r"r\.yaml: no option 'bets': did you mean beta\?"):
        refuse_unknown(TRAIN, ["--config", str(recipe)])


def test_sources_that_are_not_there_refuse_nothing(monkeypatch):
    from klball.commands import flag_names

    known_flags.cache_clear()
    monkeypatch.setattr(flag_names, "find_spec", lambda name: None)
    refuse_unknown(TRAIN, ["--epsilonn", "1"])
    known_flags.cache_clear()


@pytest.mark.parametrize("command", ["train", "compare"])
def test_a_typo_is_answered_at_once(command):
    def seconds():
        return resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime

    code = f"import sys; from klball.cli import main\ntry: main(['{command}', '--epsilonn', '1'])\n"
    code += "finally: print({'torch', 'trl', 'transformers', 'numpy'} & {*sys.modules})"
    before = seconds()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "did you mean --epsilon?" in done.stderr
    assert done.stdout == "set()\n" and seconds() - before < 1
