"""Finished folders that cases damage: made once in a run, by the commands and by PEFT."""

import shlex
from importlib.resources import files
from pathlib import Path

from .case import command, good_data, good_rows, jsonl

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


FIXTURES = {
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
