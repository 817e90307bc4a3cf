"""What of TRL's options `klball train` cannot honour, said in one line before anything is loaded."""

import copy
import dataclasses
from importlib.util import find_spec
from typing import Any

import torch
from transformers import Trainer
from transformers.integrations import MLflowCallback, get_reporting_integration_callbacks
from transformers.utils.import_utils import is_liger_kernel_available
from trl import DatasetMixtureConfig, ModelConfig, RewardConfig, ScriptArguments

from klball.boundary import first_line
from klball.training.refusals import OF_LOGITS

OF_LORA = tuple(name for name in ModelConfig.__dataclass_fields__ if name.startswith(("lora_", "use_")))
OF_4BIT = ("bnb_4bit_quant_type", "use_bnb_nested_quant", "bnb_4bit_quant_storage")
OF_TESTING = ("eval_dataset", "test_fraction", "dataset_test_split")
OF_EVALUATION = (
    "load_best_model_at_end",
    "eval_steps",
    "eval_delay",
    "eval_on_start",
    "metric_for_best_model",
    "do_eval",
)
OF_ONE_SOURCE = ("dataset_name", "dataset_config", "dataset_train_split", "dataset_test_split")
NEVER = {  # option → why it would have no effect
    "ignore_bias_buffers": "TRL itself does not read it in SFT",
    "do_predict": "there is no prediction in training: use klball score",
    **OF_LOGITS,
    **dict.fromkeys(("bf16_full_eval", "fp16_full_eval"), "evaluation is in the dtype of training"),
}


def given(options: Any, *names: str) -> list[str]:
    """Which of these fields differ from their default."""
    defaults = {
        field.name: field.default_factory() if callable(field.default_factory) else field.default
        for field in dataclasses.fields(options)
    }
    return [name for name in names if name in defaults and getattr(options, name) != defaults[name]]


def refuse_without_effect(
    data: ScriptArguments, mixture: DatasetMixtureConfig, config: Any, model: ModelConfig
) -> None:
    """Raise ValueError naming an option that would be accepted and ignored."""
    if data.dataset_streaming or mixture.streaming:
        raise ValueError("streaming data has no fixed set of samples to weigh: leave out --dataset_streaming")
    for name, reason in NEVER.items():
        if given(data, name) or given(config, name):
            raise ValueError(f"--{name} has no effect here: {reason}")
    _refuse([] if config.fsdp else given(config, "fsdp_config"), "--fsdp")
    evaluates = str(getattr(config.eval_strategy, "value", config.eval_strategy)) != "no"
    if not evaluates:
        _refuse(given(data, *OF_TESTING) + given(config, *OF_EVALUATION), "--eval_strategy steps or epoch")
    _refuse([] if config.push_to_hub else given(config, "hub_model_id"), "--push_to_hub")
    if mixture.datasets:
        if idle := given(data, *OF_ONE_SOURCE):
            raise ValueError(
                f"--{idle[0]} has no effect on `datasets`: give them or one --dataset_name, not both"
            )
    else:
        _refuse(given(mixture, "test_split_size"), "a mixture of `datasets`")
    if model.load_in_4bit and model.load_in_8bit:
        raise ValueError("--load_in_4bit or --load_in_8bit, not both")
    if not model.load_in_4bit:
        _refuse(given(model, *OF_4BIT), "--load_in_4bit")
    task = "SEQ_CLS" if isinstance(config, RewardConfig) else "CAUSAL_LM"  # the default is the other's
    if model.lora_task_type not in ("CAUSAL_LM", task):
        raise ValueError(f"--lora_task_type {model.lora_task_type} is not what is trained here: {task}")
    if not model.use_peft:
        _refuse(given(model, *(name for name in OF_LORA if name not in OF_4BIT)), "--use_peft")


def _refuse(idle: list[str], needed: str) -> None:
    if idle:
        raise ValueError(f"--{idle[0]} has no effect without {needed}")


def refuse_missing_packages(config: Any, model: ModelConfig) -> None:
    """Raise ValueError naming a package that an option needs and that is not installed."""
    if config.use_liger_kernel and not is_liger_kernel_available():
        raise ValueError("--use_liger_kernel needs liger-kernel: pip install liger-kernel")
    if model.load_in_4bit or model.load_in_8bit:
        _refuse_unquantised(config, model, "--load_in_4bit" if model.load_in_4bit else "--load_in_8bit")
    reports: Any = config.report_to or []
    if None in reports:
        raise ValueError("report_to has no value: write none for no log but the terminal's")
    # one that cannot be made fails again, aloud, when it is deleted
    MLflowCallback._auto_end_run = False  # pyright: ignore[reportAttributeAccessIssue]
    try:
        for callback in get_reporting_integration_callbacks(config.report_to):
            callback()
    except (ImportError, RuntimeError, ValueError) as error:
        name = ", ".join(config.report_to or [])
        raise ValueError(f"--report_to {name}: {first_line(error)}") from error
    _refuse_optimizer(config)


def _refuse_unquantised(config: Any, model: ModelConfig, option: str) -> None:
    missing = []
    if find_spec("bitsandbytes") is None:
        missing.append("the package bitsandbytes")
    if not torch.accelerator.is_available():
        missing.append("an accelerator")
    elif config.use_cpu:
        missing.append("an accelerator: leave out --use_cpu")
    if missing:
        raise ValueError(f"{option} needs {' and '.join(missing)}")
    if model.dtype == "auto":
        raise ValueError(f"{option} needs a --dtype to compute in, float32, bfloat16 or float16, not auto")


def _refuse_optimizer(config: Any) -> None:
    optim = getattr(config.optim, "value", config.optim)
    try:
        made = Trainer.get_optimizer_cls_and_kwargs(config)
    except ImportError as error:
        raise ValueError(f"--optim {optim}: {first_line(error)}") from error
    except ValueError as error:
        if "model" in str(error):  # some can only be made with the model
            return
        raise ValueError(
            f"--optim {optim} with --optim_args {config.optim_args}: {first_line(error)}"
        ) from error
    plain = copy.copy(config)
    plain.optim_args = None
    if config.optim_args and made == Trainer.get_optimizer_cls_and_kwargs(plain):
        raise ValueError(f"--optim_args {config.optim_args} has no effect with --optim {optim}")
