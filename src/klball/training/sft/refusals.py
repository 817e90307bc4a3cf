"""What RobustSFTTrainer does not support, said in one line before anything is loaded."""

from typing import Any

from datasets import Dataset
from transformers import PreTrainedModel

from klball.data.formats import refuse_unknown_tokens
from klball.data.sources import as_dataset
from klball.models.loading import check_base
from klball.objectives.tokens import NEEDS, OBJECTIVES, needs_of
from klball.training.evaluation import WORST_CASES
from klball.training.refusals import (
    refuse_bad_settings,
    refuse_foreign_arguments,
    refuse_no_metric,
    refuse_no_model,
    refuse_no_set,
)
from klball.training.sft.config import RobustSFTConfig

OF_SETS = ("ambiguity", "epsilon", "alpha", "direction", "trim", "gamma", "max_weight")
SCORES = ("score", "certainty")
METRICS = (
    *("loss", "perplexity_token", "perplexity_sample", "own_hardest_1pct", "entropy", "certainty"),
    *WORST_CASES,
)
PROBED = 8  # rows, each alone


def refuse_unsupported(
    args: Any, positional: tuple[Any, ...], kwargs: dict[str, Any], objective: Any, ambiguity: Any
) -> None:
    """Raise ValueError for an unsupported argument, dataset or combination."""
    refuse_foreign_arguments("RobustSFTTrainer", RobustSFTConfig, args, positional, kwargs)
    _refuse_arguments(args, kwargs, objective, ambiguity)
    refuse_unknown_needs(objective)
    refuse_bad_settings(args)
    _refuse_data(kwargs.get("train_dataset"))


def _refuse_arguments(args: RobustSFTConfig, kwargs: dict[str, Any], objective: Any, ambiguity: Any) -> None:
    refuse_no_set(ambiguity)
    problems = {
        **_unsupported(args, kwargs),
        **_of_objective(args, kwargs.get("peft_config"), objective),
        **_of_set(args, ambiguity),
        **_of_packing(args),
    }
    for message, present in problems.items():
        if present:
            raise ValueError(message)
    refuse_no_metric(args.metric_for_best_model, METRICS, kwargs.get("eval_dataset"))


def _unsupported(args: RobustSFTConfig, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Message → whether it applies; so the functions below."""
    bypasses = "compute_loss_func bypasses the sample weights: pass objective= instead"
    metrics = "compute_metrics needs logits that are never built: use klball.score"
    logits = "preprocess_logits_for_metrics needs logits that are never built"
    ranks = "average_tokens_across_devices=False would make gradients depend on the number of processes"
    full = "bf16_full_eval and fp16_full_eval have no effect: evaluation is in the dtype of training"
    return {
        bypasses: kwargs.get("compute_loss_func"),
        metrics: kwargs.get("compute_metrics"),
        logits: kwargs.get("preprocess_logits_for_metrics"),
        "dataset_kwargs: nothing but skip_prepare_dataset is read": (
            {*(args.dataset_kwargs or {})} - {"skip_prepare_dataset"}
        ),
        "label_smoothing_factor is not supported": args.label_smoothing_factor > 0,
        "dataloader_persistent_workers needs dataloader_num_workers": (
            args.dataloader_persistent_workers and not args.dataloader_num_workers
        ),
        "prompt-learning PEFT methods are not supported: use LoRA": (
            getattr(kwargs.get("peft_config"), "is_prompt_learning", False)
        ),
        ranks: not args.average_tokens_across_devices,
        full: args.bf16_full_eval or args.fp16_full_eval,
    }


def _of_objective(args: RobustSFTConfig, peft_config: Any, objective: Any) -> dict[str, Any]:
    needs = needs_of(objective or OBJECTIVES.get(args.objective or str(args.loss_type)))
    proximal = "old_log_probs" in needs
    of_window = ("psft_refresh", "psft_warmup_steps")
    ahead = any(getattr(args, name) != getattr(RobustSFTConfig, name) for name in of_window)
    noise = "psft needs a model without randomness: set neftune_noise_alpha to None"
    dropout = "psft needs lora_dropout=0: with dropout the ratio is not 1 before the model has moved"
    return {
        "psft_refresh and psft_warmup_steps need an objective with old_log_probs, such as psft": (
            ahead and not proximal
        ),
        "objective must be a function of log-probabilities, or a name in RobustSFTConfig": (
            objective is not None and not callable(objective)
        ),
        f"objective={objective!r:.60} is a class: give an object of it": isinstance(objective, type),
        noise: proximal and args.neftune_noise_alpha,
        dropout: proximal and getattr(peft_config, "lora_dropout", 0.0),
        "give the objective once: objective= or RobustSFTConfig(objective=..., loss_type=...)": (
            objective and (args.objective or args.loss_type != "nll")
        ),
    }


def _of_set(args: RobustSFTConfig, ambiguity: Any) -> dict[str, Any]:
    needs = getattr(ambiguity or args.ambiguity_set(), "needs", ())
    asked = any(getattr(args, name) != getattr(RobustSFTConfig, name) for name in OF_SETS)
    return {
        f"an ambiguity set can need {' and '.join(SCORES)}, not {needs}": not set(needs) <= set(SCORES),
        "on_infeasible needs gamma: without it every weight is feasible": (
            args.on_infeasible != "relax" and args.gamma is None and ambiguity is None
        ),
        "gamma needs a process for each GPU: start with `accelerate launch`": (
            "certainty" in needs and args.n_gpu > 1
        ),
        "give the ambiguity set once: ambiguity= or epsilon, trim, gamma and max_weight": (
            ambiguity is not None and asked
        ),
    }


def _of_packing(args: RobustSFTConfig) -> dict[str, Any]:
    flat = args.packing or args.padding_free
    dealt = getattr(args.accelerator_config, "dispatch_batches", None)
    return {
        f"packing_strategy={args.packing_strategy!r} is not supported: only 'bfd' never cuts samples": (
            args.packing_strategy != "bfd"
        ),
        "packing needs max_length, the length of a pack": args.packing and args.max_length is None,
        "packing and padding_free need a process for each GPU: start with `accelerate launch`": (
            flat and args.n_gpu > 1
        ),
        "packing and padding_free need dispatch_batches=False: one row cannot be dealt out": flat and dealt,
        "eval_packing is not supported: evaluation scores every sample on its own": args.eval_packing,
    }


def refuse_unknown_needs(objective: Any) -> None:
    """Raise ValueError for a need that nobody can fill."""
    if unknown := [name for name in needs_of(objective) if name not in NEEDS]:
        raise ValueError(f"an objective can need {', '.join(NEEDS)}, not {unknown[0]!r}")


def refuse_foreign_tokens(
    rows: Dataset, model: PreTrainedModel, processing_class: Any, given_tokens: bool
) -> None:
    """Raise ValueError for tokens that the model does not have: of the data's, or of the tokenizer's own."""
    vocabulary = model.config.get_text_config().vocab_size
    tokenizer: Any = getattr(processing_class, "tokenizer", processing_class)
    if given_tokens or len(tokenizer) > vocabulary:
        refuse_unknown_tokens(rows, vocabulary)


def refuse_other_model(model: Any, args: RobustSFTConfig) -> None:
    """Raise ValueError for what is neither a language model nor the name of one."""
    refuse_no_model(model)
    if isinstance(model, str):
        settings: Any = args.model_init_kwargs or {}
        check_base(model, settings.get("revision"), args.trust_remote_code)


def refuse_other_labels(collator: Any, rows: Dataset) -> None:
    """Raise ValueError for a collator whose answers are not the rows': scores and evaluation are of those."""
    for place in range(min(len(rows), PROBED)):
        row = rows[place]
        batch = collator([dict(row)])  # a collator may take columns out
        if "attention_mask" not in batch:
            return  # is refused where it is used
        labels = batch["labels"][batch["attention_mask"].bool()].tolist()
        if labels[1:] != list(row["labels"])[1:]:
            raise ValueError(
                "data_collator gives other labels than the rows have, of which the adversary's scores and "
                "the evaluation are: mark the answers in the rows (completion_mask, assistant_masks, labels)"
            )


def _refuse_data(dataset: Any) -> None:
    if dataset is None:
        raise ValueError("train_dataset is required")
    if {"input_ids", "seq_lengths"} <= {*as_dataset(dataset, "train_dataset").column_names}:
        raise ValueError("the data set is packed already: give one sample a row, and packing=True")
