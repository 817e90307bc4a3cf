"""What no robust trainer supports, or could make sense of, said in one line."""

import logging
from dataclasses import fields
from inspect import signature
from types import NoneType
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from torch.utils.checkpoint import checkpoint
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    SchedulerType,
    TrainerCallback,
    get_scheduler,
)
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION
from trl import GRPOConfig, SFTConfig

from klball.models.causality import refuse_encoder
from klball.models.loading import causal_lm

logger = logging.getLogger(__name__)

OF_LOGITS = {  # settings of TRL's → why they would have no effect
    **dict.fromkeys(
        (
            "prediction_loss_only",
            "eval_accumulation_steps",
            "eval_do_concat_batches",
            "eval_use_gather_object",
        ),
        "evaluation keeps scores, not logits",
    ),
    **dict.fromkeys(
        ("include_for_metrics", "batch_eval_metrics", "label_names"), "evaluation has metrics of its own"
    ),
}
SPLIT = "context, sequence and tensor parallelism are not supported"
OF_MODULES = ("galore", "apollo")  # optimizers that take some modules otherwise
HEADS = ("classifier", "score")  # which PEFT writes into a configuration of a classifier that it uses
PROTOCOL = ("needs", "solve", "relaxed", "scaled", "summary")


def refuse_foreign_arguments(
    trainer: str, config: type, args: Any, positional: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Raise ValueError for arguments of another kind than TRL's trainers take."""
    if positional:
        raise ValueError(f"pass {trainer}'s arguments after `args` by keyword")
    if not isinstance(args, config):
        raise ValueError(f"args must be a {config.__name__}, not {type(args).__name__}")
    kinds = (PreTrainedTokenizerBase, ProcessorMixin, NoneType)
    if not isinstance(kwargs.get("processing_class"), kinds):
        raise ValueError(f"processing_class must be a loaded tokenizer, not {kwargs['processing_class']!r}")
    for callback in kwargs.get("callbacks") or ():
        if not isinstance(callback, TrainerCallback) and not isinstance(callback, type):
            raise ValueError(f"callbacks must be transformers.TrainerCallback objects, not {callback!r}")
    peft_config = kwargs.get("peft_config")
    if peft_config is not None and not isinstance(peft_config, PeftConfig):
        raise ValueError(f"peft_config must be a PeftConfig such as LoraConfig(), not {peft_config!r}")


def refuse_no_model(model: Any) -> None:
    """Raise ValueError for what is neither a model nor the name of one."""
    if not isinstance(model, str | PreTrainedModel | PeftModel):
        raise ValueError(f"model must be a model of transformers or its name, not {type(model).__name__}")


def refuse_no_set(ambiguity: Any) -> None:
    """Raise ValueError for what is given as an ambiguity set and is none."""
    if ambiguity is None:
        return
    methods = [getattr(ambiguity, name, None) for name in PROTOCOL if name != "needs"]
    if isinstance(ambiguity, type) or not hasattr(ambiguity, "needs") or not all(map(callable, methods)):
        what = ": give an object of that class" if isinstance(ambiguity, type) else ""
        raise ValueError(
            f"ambiguity={ambiguity!r} is no ambiguity set{what}: it needs {', '.join(PROTOCOL)} "
            "(docs/extending.md)"
        )
    needs = ambiguity.needs
    if not (isinstance(needs, tuple | list) and all(isinstance(name, str) for name in needs)):
        raise ValueError(f"ambiguity={ambiguity!r}: needs must be a tuple of names, not {needs!r:.40}")


def refuse_no_metric(name: str | None, known: tuple[str, ...], evaluation: Any) -> None:
    """Raise ValueError if an evaluation has no such metric; of several sets, one's name stands before it."""
    if isinstance(evaluation, dict):
        known = tuple(f"{part}_{metric}" for part in evaluation for metric in known)
    if name is not None and name.removeprefix("eval_") not in known:
        raise ValueError(f"metric_for_best_model={name!r} is none of {', '.join(known)}")


def refuse_bad_settings(args: Any) -> None:
    """Raise ValueError for what Transformers or PyTorch would refuse only when training has begun."""
    plain = {f.name: f.default_factory() if callable(f.default_factory) else f.default for f in fields(args)}
    for name, why in OF_LOGITS.items():
        if getattr(args, name) != plain[name]:
            raise ValueError(f"{name} has no effect here: {why}")
    if args.parallelism_config:
        raise ValueError(SPLIT)
    if args.load_best_model_at_end and args.eval_strategy == "no":
        raise ValueError("load_best_model_at_end has no effect without evaluations: set eval_strategy")
    if getattr(args, "enable_jit_checkpoint", False):
        raise ValueError("enable_jit_checkpoint is not supported, it saves within a step: set save_steps")
    if args.world_size > 1 and getattr(args.accelerator_config, "even_batches", True) is False:
        raise ValueError("even_batches=False is not supported: processes would wait for each other forever")
    _refuse_scheduler(args)
    _refuse_unknown_kwargs(args)
    for name, why in _idle(args).items():
        if name in plain and getattr(args, name) != plain[name]:
            logger.warning("%s=%r has no effect: %s", name, getattr(args, name), why)
    if getattr(args, "activation_offloading", False) and not torch.accelerator.is_available():
        raise ValueError("activation_offloading needs an accelerator, and there is none")


def _idle(args: Any) -> dict[str, str]:
    """Settings that say nothing beside the others, and why; scripts often have them, so a warning will do."""
    idle = {}
    if args.eval_strategy == "no":
        idle |= dict.fromkeys(("eval_steps", "eval_delay", "metric_for_best_model"), "set eval_strategy")
    if not isinstance(args, GRPOConfig):
        idle["per_device_eval_batch_size"] = "evaluation forms batches by their tokens"
        idle["length_column_name"] = "lengths are those of the tokens"
    if not args.gradient_checkpointing:
        idle["gradient_checkpointing_kwargs"] = "set gradient_checkpointing=True"
    if not args.use_liger_kernel:
        idle["liger_kernel_config"] = "set use_liger_kernel=True"
    if not any(name in str(args.optim).lower() for name in OF_MODULES):
        idle["optim_target_modules"] = "the optimizer does not read it"
    return idle


def _refuse_scheduler(args: Any) -> None:
    """Transformers makes it when training begins: too late to learn that it has no such setting."""
    given: dict[str, Any] = args.lr_scheduler_kwargs or {}  # pyright: ignore[reportAssignmentType]
    try:
        known = signature(TYPE_TO_SCHEDULER_FUNCTION[SchedulerType(args.lr_scheduler_type)]).parameters
        takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values())
        if not takes_any and (unknown := sorted({*given} - {*known})):
            raise ValueError(f"there is no setting {unknown[0]!r}")
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])
        get_scheduler(args.lr_scheduler_type, optimizer, 1, 2, scheduler_specific_kwargs=dict(given))
    except (TypeError, ValueError, AttributeError) as error:
        name = getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)
        raise ValueError(f"lr_scheduler_type={name!r} with lr_scheduler_kwargs={given}: {error}") from error


def _refuse_unknown_kwargs(args: Any) -> None:
    """What PyTorch would refuse in the first step."""
    known = {*signature(checkpoint).parameters, "preserve_rng_state"} - {"function", "args", "kwargs"}
    if isinstance(args, SFTConfig):
        known.add("selective")  # TRL's own
    if unknown := sorted({*(args.gradient_checkpointing_kwargs or {})} - known):
        raise ValueError(
            f"gradient_checkpointing_kwargs: {unknown[0]!r} is none of {', '.join(sorted(known))}"
        )
    if args.torch_compile and args.torch_compile_mode and args.torch_compile_backend == "inductor":
        try:
            torch._inductor.list_mode_options(args.torch_compile_mode)
        except RuntimeError as error:
            raise ValueError(f"torch_compile_mode: {error}") from error


def refuse_split_models(accelerator: Any) -> None:
    """Raise ValueError for context, sequence or tensor parallelism, which a launcher may ask for too."""
    config = accelerator.parallelism_config
    if any(getattr(config, f"{kind}_size", 1) > 1 for kind in ("cp", "sp", "tp")):
        raise ValueError(SPLIT)


def refuse_useless(model: torch.nn.Module, args: Any, rows: int, peft_config: Any) -> None:
    """Raise ValueError if training would change nothing, or not what was asked for."""
    _refuse_frozen(model)
    refuse_encoder(causal_lm(model))
    _refuse_quantised_on_cpu(model)
    _refuse_unmatched(model, peft_config)
    needed = args.train_batch_size * args.world_size
    if args.dataloader_drop_last and rows < needed:
        raise ValueError(f"dataloader_drop_last leaves nothing: a batch has {needed} rows, the data {rows}")


def _refuse_unmatched(model: torch.nn.Module, peft_config: Any) -> None:
    """Raise ValueError for a parameter or module that PEFT was to train and did not find: it only warns."""
    names: list[str] = getattr(getattr(model, "base_model", None), "targeted_parameter_names", [])
    for part in getattr(peft_config, "target_parameters", None) or []:
        if not any(f".{name}".endswith(f".{part}") for name in names):
            raise ValueError(f"target_parameters: the model has no parameter {part!r}")
    modules = {part for name, _ in model.named_modules() for part in name.split(".")}
    of_peft = HEADS if getattr(peft_config, "task_type", None) == "SEQ_CLS" else ()
    for part in getattr(peft_config, "modules_to_save", None) or []:
        if part.split(".")[-1] not in modules and part not in of_peft:
            raise ValueError(f"modules_to_save: the model has no module {part!r}")


def _refuse_quantised_on_cpu(model: Any) -> None:
    """There bitsandbytes packs the weights at the first scoring, after which they pass no gradient on."""
    quantised = getattr(model, "is_loaded_in_4bit", False) or getattr(model, "is_loaded_in_8bit", False)
    if quantised and next(model.parameters()).device.type == "cpu":
        raise ValueError("a model quantised by bitsandbytes needs an accelerator to be trained through")


def _refuse_frozen(model: torch.nn.Module) -> None:
    """PEFT loads adapters frozen."""
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError("no parameter of the model is trainable: load an adapter with is_trainable=True")
