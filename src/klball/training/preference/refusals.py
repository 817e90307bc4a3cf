"""What preference trainers do not support, said in one line before anything is loaded."""

import logging
from typing import Any

from datasets import Dataset
from peft.utils.other import TrainableTokensWrapper
from transformers import PreTrainedModel, ProcessorMixin
from trl import RewardConfig

from klball.data.preferences import CHOSEN, REJECTED, for_templates, refuse_margin, refuse_useless_pairs
from klball.data.sources import as_dataset
from klball.training.evaluation import named_sets
from klball.training.refusals import (
    refuse_bad_settings,
    refuse_foreign_arguments,
    refuse_no_metric,
    refuse_no_model,
    refuse_no_set,
)
from klball.training.sharding import shards_parameters

logger = logging.getLogger(__name__)

OF_SETS = ("ambiguity", "epsilon", "alpha", "direction", "max_weight", "comparator", "comparator_strength")
IMAGES = ("image", "images")


def refuse_unsupported(
    trainer: Any, config: type, args: Any, positional: tuple[Any, ...], kwargs: dict[str, Any], ambiguity: Any
) -> None:
    """Raise ValueError for an unsupported argument, dataset or combination."""
    refuse_foreign_arguments(trainer.__name__, config, args, positional, kwargs)
    refuse_no_set(ambiguity)
    refuse_no_model(kwargs["model"])
    reference = kwargs.get("ref_model")
    problems = {
        "compute_loss_func bypasses the weights: set loss_type": kwargs.get("compute_loss_func"),
        "compute_metrics needs logits that are never built: use evaluate or score_dataset": (
            kwargs.get("compute_metrics") or kwargs.get("preprocess_logits_for_metrics")
        ),
        f"ref_model must be a loaded model, not {reference!r:.40}": (
            reference is not None and not isinstance(reference, PreTrainedModel)
        ),
        "images are not supported: give a tokenizer as processing_class": isinstance(
            kwargs.get("processing_class"), ProcessorMixin
        ),
        "prompt-learning PEFT methods are not supported: use LoRA": getattr(
            kwargs.get("peft_config"), "is_prompt_learning", False
        ),
        "label_smoothing_factor is not supported: label_smoothing is DPO's": args.label_smoothing_factor > 0,
        "use_liger_kernel is not supported: set model_init_kwargs={'use_kernels': True}": (
            args.use_liger_kernel
        ),
        "bf16_full_eval and fp16_full_eval have no effect: evaluation is in the dtype of training": (
            args.bf16_full_eval or args.fp16_full_eval
        ),
        "dataloader_persistent_workers needs dataloader_num_workers": args.dataloader_persistent_workers
        and not args.dataloader_num_workers,
        "train_sampling_strategy='group_by_length' is not supported: pairs have several lengths": (
            args.train_sampling_strategy == "group_by_length"
        ),
        "an ambiguity set of preferences can need score, and nothing else": (
            not set(getattr(ambiguity or args.ambiguity_set(), "needs", ())) <= {"score"}
        ),
        "give the ambiguity set once: ambiguity= or epsilon, max_weight, …": ambiguity is not None
        and any(getattr(args, name, None) != getattr(config, name, None) for name in OF_SETS),
    }
    for message, present in problems.items():
        if present:
            raise ValueError(message)
    refuse_no_metric(args.metric_for_best_model, trainer.metrics, kwargs.get("eval_dataset"))
    refuse_bad_settings(args)
    if kwargs.get("train_dataset") is None:
        raise ValueError("train_dataset is required")
    sets = [("train_dataset", kwargs["train_dataset"]), *named_sets(kwargs.get("eval_dataset"))]
    for what, rows in sets:
        dataset = as_dataset(rows, what)
        columns = dataset.column_names
        if len(dataset) and (idle := for_templates(dataset)):
            logger.warning("%s: %s has no effect on rows that are texts", what, " and ".join(idle))
        if any(name in columns for name in IMAGES):
            raise ValueError(f"images are not supported: leave out their column of {what}")
        if not issubclass(config, RewardConfig):
            refuse_margin(columns)
        _refuse_useless(dataset, what)
    _refuse_unshared(args, kwargs)


def _refuse_useless(dataset: Dataset, what: str) -> None:
    if not {CHOSEN, REJECTED} <= {*dataset.column_names}:
        return
    try:
        refuse_useless_pairs((None, *both) for both in zip(dataset[CHOSEN], dataset[REJECTED], strict=True))
    except ValueError as error:
        raise ValueError(f"{what}, {error}") from None


def _refuse_unshared(args: Any, kwargs: dict[str, Any]) -> None:
    """TRL hands the reference's log-probabilities to other processes in a file beside the data's."""
    if not getattr(args, "precompute_ref_log_probs", False) or args.world_size == 1:
        return
    for name in ("train_dataset", "eval_dataset"):
        given = kwargs.get(name)
        for dataset in given.values() if isinstance(given, dict) else [given]:
            if dataset is not None and not getattr(dataset, "cache_files", None):
                raise ValueError(
                    f"precompute_ref_log_probs with several processes needs {name} on disk: save_to_disk and "
                    "load_from_disk it, or load it from a file with datasets"
                )


def refuse_unfit_model(trainer: Any) -> None:
    """Raise ValueError for a loss that is no sum over pairs, and a head that TRL's fused one cannot read."""
    if isinstance(trainer.model.get_output_embeddings(), TrainableTokensWrapper):
        raise ValueError(
            "trainable_token_indices is not supported where embeddings are tied: they are the LM head too"
        )
    if trainer.aux_loss_enabled:
        raise ValueError(
            "the router loss of mixture-of-experts is not supported: set router_aux_loss_coef=0.0"
        )


def refuse_other_task(peft_config: Any) -> None:
    """Raise ValueError for an adapter of a language model, which a reward model is not."""
    task = getattr(peft_config, "task_type", None)
    if task not in (None, "SEQ_CLS"):
        raise ValueError(
            f"a reward model is a classifier: set task_type='SEQ_CLS' in peft_config, not {task!r}"
        )


def refuse_untrained_head(model: Any) -> None:
    """Raise ValueError where PEFT leaves a reward head as it was initialised."""
    head = [p for name, p in model.named_parameters() if "score." in name or "classifier." in name]
    if head and not any(parameter.requires_grad for parameter in head):
        raise ValueError(
            "peft_config leaves the reward head as it was: set task_type='SEQ_CLS', or modules_to_save"
        )


def refuse_other_head(model: Any, args: Any) -> None:
    """Raise ValueError where TRL puts a quantised model's head into bf16, and its states stay float32."""
    states = model.get_input_embeddings().weight.dtype
    heads = {p.dtype for name, p in model.named_parameters() if "score." in name and p.requires_grad}
    if heads - {states} and not (args.bf16 or args.fp16):
        raise ValueError("a reward model over quantised weights has its head in bfloat16: it needs bf16=True")


def refuse_sharding(trainer: Any) -> None:
    """Raise ValueError where a process without texts in its batch would keep the others waiting."""
    if shards_parameters(trainer.accelerator, certainty=False):
        raise ValueError(
            "GDPO with parameters sharded by FSDP2 or ZeRO-3 is not supported: use DDP or ZeRO-2"
        )
