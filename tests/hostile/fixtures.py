"""Finished folders that cases damage: made once in a run, by the commands and by PEFT."""

import shlex
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

from .case import DATA, command, fixture, good_data, good_rows, jsonl

REWARD_MODEL = "run-reward"  # its `out`, which cases call `rm`
RUN = """--max_steps 4 --save_steps 2 --per_device_train_batch_size 2 --report_to none
    --lr_scheduler_type constant"""
LORA = "--use_peft --lora_r 2 --lora_target_modules q_proj v_proj --learning_rate 0.01"


def run_arguments(kind: str) -> list[str]:
    """The command that made the fixture `run-KIND`, to be given again."""
    settings = {
        "lora": LORA,
        "full": "--learning_rate 0.001",
        "psft": f"--objective psft --psft_refresh 2 {LORA}",
    }
    return shlex.split(
        f"train --dataset_name d.jsonl {RUN} --report_to none --output_dir out {settings[kind]}"
    )


WORDS = ("the value", "a key", "two keys", "no value at all")


def pair_rows(count: int = 4) -> list[dict[str, Any]]:
    """Preference pairs with nothing wrong, in two groups."""
    said = [[{"role": "assistant", "content": word}] for word in WORDS]
    return [
        {
            "prompt": [{"role": "user", "content": f"What is {i}?"}],
            "chosen": said[i % 4],
            "rejected": said[(i + 1) % 4],
            "field": "ab"[i % 2],
        }
        for i in range(count)
    ]


def belief_rows() -> list[dict[str, Any]]:
    """Questions with shares of three beliefs, and two answers under one of them."""
    return [
        {**row, "beliefs": ["Yes", "No", "Never"], "p_star": [0.5, 0.3, 0.2], "belief": "Yes", "group": "a"}
        for row in pair_rows()
    ]


def rows_of(kind: str, count: int = 4) -> list[dict[str, Any]]:
    """Good rows for a family."""
    makers: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "grpo": lambda: [{**row, "field": "ab"[i % 2]} for i, row in enumerate(good_rows(count))],
        "gdpo": belief_rows,
    }
    return makers.get(kind, lambda: pair_rows(count))()


OUT = ("--report_to", "none", "--logging_steps", "1", "--output_dir", "out")
STEPS = ("--max_steps", "2", "--per_device_train_batch_size", "2", *OUT)
# of GRPO: all prompts a batch, and each again, also if batches serve several steps
REVISITS = ("--max_steps", "5", "--per_device_train_batch_size", "8", *OUT)
ROLLOUTS = ("--num_generations", "2", "--max_completion_length", "4")


def family_command(kind: str, data: str = DATA) -> list[str]:
    """The least that `train --family KIND`, `score dpo` or `score reward` does with a data file."""
    named = ["--dataset_name", data]
    if kind == "score dpo":
        return ["score", "--family", "dpo", *named, "--reference_model", "klball/tiny", "--output_dir", "out"]
    if kind == "score reward":
        return ["score", "--family", "reward", *named, "--model_name_or_path", "rm", "--output_dir", "out"]
    steps = (*REVISITS, "--reward", "exact", *ROLLOUTS) if kind == "grpo" else STEPS
    return ["train", "--family", kind, *named, *steps]


def reward_model() -> None:
    """The finished reward model beside the case's rows."""
    Path("rm").symlink_to(fixture(REWARD_MODEL) / "out")


def _klball(*arguments: str) -> None:
    from klball import cli

    cli.main(list(arguments))


def _run(kind: str):
    def make() -> None:
        jsonl(good_rows(8))
        _klball(*run_arguments(kind))

    return make


def tiny() -> Path:
    """The folder of the embedded model."""
    return Path(str(files("klball"))) / "tiny"


def _adapter() -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(tiny(), dtype=torch.float32)
    settings = LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"])
    adapter = get_peft_model(model, settings)
    for name, weight in adapter.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
    adapter.save_pretrained("ad")


def _scores() -> None:
    good_data()
    _klball(*command("score"))


def _rounds() -> None:
    good_data()
    _klball("paraphrase", "--dataset_name", "d.jsonl", "--rounds", "3", "--output_dir", "out")


def _saved(command_name: str):
    def make() -> None:
        good_data()
        _klball(*command(command_name))

    return make


def _family(kind: str):
    def make() -> None:
        jsonl(rows_of(kind, 8))
        _klball(*family_command(kind), "--save_steps", "1")

    return make


FIXTURES = {
    **{f"run-{kind}": _family(kind) for kind in ("reward", "dpo", "gdpo", "grpo")},
    "run-lora": _run("lora"),
    "run-full": _run("full"),
    "run-psft": _run("psft"),
    "adapter": _adapter,
    "scores": _scores,
    "rounds": _rounds,
    "evaluate": _saved("evaluate"),
    "compare": _saved("compare"),
    "scan": _saved("scan"),
}
