"""RobustSFTTrainer: TRL's SFTTrainer whose loss weighs samples as the worst case would."""

import copy
import logging
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import torch
from datasets import Dataset
from torch import Tensor
from trl import SFTTrainer
from trl.trainer.utils import add_fused_lm_head

from klball.adversary.sets import AmbiguitySet
from klball.data.encoding import rendering_errors_named, texts_of
from klball.data.marking import chat_template_of
from klball.models.loading import causal_lm
from klball.models.modes import evaluating
from klball.objectives.tokens import Objective, needs_of, objective_named
from klball.scores.perplexity import summary_of
from klball.scores.scorer import SCORE_COLUMNS, Scorer
from klball.training.batches import INDEX, input_lengths
from klball.training.checkpoints import located
from klball.training.evaluation import RowEvaluation, named_sets, refuse_metric_without_groups
from klball.training.refusals import refuse_useless
from klball.training.returned import distinct, kind, told
from klball.training.robust import RobustTrainer
from klball.training.samples import groups_of, numbered, refuse_nonfinite
from klball.training.sft.config import RobustSFTConfig
from klball.training.sft.data import prepare_arguments
from klball.training.sft.forward import BatchScores, SampleForward, token_sums
from klball.training.sft.fresh_scores import ScoreRows, fresh_scores, sharded_scores
from klball.training.sft.needs import Needed, Reference
from klball.training.sft.packing import packed, refuse_crossing_attention
from klball.training.sft.records import columns_of, metrics_of
from klball.training.sft.refusals import refuse_foreign_tokens, refuse_other_labels, refuse_unsupported
from klball.training.sft.samples import num_answer_tokens, warn_of_cut_rows
from klball.training.sft.window import OldLogProbs, without_dropout
from klball.training.sharding import holds_nothing, refuse_lost_parameters, shards_parameters
from klball.training.step import UnitBatch
from klball.training.units import Units

logger = logging.getLogger(__name__)

FUSED_OUTPUTS = ("log_probs", "entropy", "is_top1", "mean_logits")


class RobustSFTTrainer(RowEvaluation, RobustTrainer, SFTTrainer):  # pyright: ignore[reportIncompatibleMethodOverride]
    """`trl.SFTTrainer` with the same arguments, data formats and callbacks, and an adversary.

    Per optimizer step, with (λ, β, μ) solved on the ledger of all samples' scores and then frozen:

        w_i = min(c, exp((μ − g_i − βC_i)/λ))                 g_i, C_i fresh and detached
        loss = Σ_i w_i · (1/T_i) Σ_t ℓ_t  /  samples in the step      normalization "sample"
               Σ_i w_i · Σ_t ℓ_t          /  tokens in the step       "token"
               Σ_i w_i · Σ_t ℓ_t          /  samples in the step      "sum" (scores summed too)

    so gradients do not depend on micro-batches, accumulation, padding, packing or the number of
    processes. `samples` has the prepared rows one by one, `train_dataset` what the loader draws: the
    same, or packs of them. Source: F. Deng, "Robust SFT".

    Args:
        model: As in `trl.SFTTrainer`: a model or a name.
        args: A `RobustSFTConfig`.
        *positional: None are taken; they are here to be refused.
        objective: A callable from token log-probabilities (B, T) to token losses, instead of the
            configured one.
        ambiguity: An ambiguity set, instead of that of epsilon, gamma and max_weight.
        **kwargs: The other arguments of `trl.SFTTrainer`: train_dataset, processing_class, ….

    Raises:
        ValueError: A combination that is not supported.
    """

    _tag_names: ClassVar = ["klball", "robust-sft"]
    entry: ClassVar = ("log_likelihood", 1)
    # what TRL's own annotations leave open
    args: RobustSFTConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    train_dataset: Dataset  # pyright: ignore[reportIncompatibleVariableOverride]
    model: Any
    accelerator: Any

    def __init__(
        self,
        model: Any,
        args: RobustSFTConfig | None = None,
        *positional: Any,
        objective: Objective | None = None,
        ambiguity: AmbiguitySet | None = None,
        **kwargs: Any,
    ):
        model, args = located(model), args or RobustSFTConfig(output_dir="robust-sft")
        refuse_unsupported(args, positional, kwargs, objective, ambiguity)
        args = copy.copy(args)
        self._row_format, template = prepare_arguments(model, args, kwargs)
        self.given_rows = kwargs["train_dataset"]
        given_tokens = "input_ids" in self.given_rows.column_names
        self.objective = objective or objective_named(args.objective or str(args.loss_type), args)
        with chat_template_of(kwargs["processing_class"], template):
            super().__init__(model, args, **kwargs)
        self.chat_template = template or self.chat_template
        refuse_useless(self.model, args, len(self.train_dataset), kwargs.get("peft_config"))
        refuse_metric_without_groups(args, self.eval_dataset)
        for name, rows in named_sets(self.eval_dataset):
            num_answer_tokens(rows, name)
        if self.aux_loss_enabled:
            raise ValueError(
                "the router loss of mixture-of-experts is not supported: set router_aux_loss_coef=0.0"
            )
        inner = causal_lm(self.model)
        refuse_foreign_tokens(self.train_dataset, inner, self.processing_class, given_tokens)
        if kwargs.get("data_collator") is not None:
            refuse_other_labels(self.data_collator, self._rows_of_loader())
        samples = numbered(self.train_dataset)
        sizes = num_answer_tokens(samples)
        units = Units(sizes if args.normalization == "token" else None, groups_of(samples, args.group_column))
        self.init_adversary(samples, ambiguity or args.ambiguity_set(), units, args.on_infeasible == "relax")
        self.train_dataset = self._rows_to_load()
        self._init_forward(inner)

    def _init_forward(self, inner: Any) -> None:
        needs, args = needs_of(self.objective), self.args
        self._needs_certainty = "certainty" in (*self.ambiguity.needs, *needs)
        if self._needs_certainty:
            add_fused_lm_head(inner, outputs=FUSED_OUTPUTS)
        through = args.certainty_gradient or "certainty" in needs
        self._forward = SampleForward(inner, self._needs_certainty, through)
        window = None
        if "old_log_probs" in needs:
            window = OldLogProbs(
                *(args.psft_refresh, args.psft_warmup_steps, self._score_ahead),
                step=lambda: (self.state.global_step, self.state.max_steps),
            )
            self.hooks.append(window)
        reference = Reference(self.model, self._forward) if "reference_log_probs" in needs else None
        self._needed = Needed(self.objective, window, reference)
        self._sharded = shards_parameters(self.accelerator, self._needs_certainty)
        if reference is not None and not reference.adapted and holds_nothing(self.model):
            raise ValueError(
                "reference_log_probs needs a copy of the model, which ZeRO-3 holds in parts: use FSDP2 or an "
                "adapter"
            )
        if not self._sharded:
            self._check_forward(inner)
            if reference is not None:
                reference.refuse_trained_adapter(self._forward.probe(self.samples[0]["input_ids"]))

    # --- data ---------------------------------------------------------------------------------

    def _prepare_dataset(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, dataset: Any, processing_class: Any, args: Any, packing: bool, *rest: Any
    ) -> Any:
        """TRL's preparation without packing, in two steps, to count what `max_length` cuts or drops."""
        whole = copy.copy(args)
        whole.max_length, whole.shuffle_dataset = None, False
        with rendering_errors_named(dataset, processing_class, self.chat_template):
            tokenised: Any = super()._prepare_dataset(dataset, processing_class, whole, False, *rest)
        prepared: Any = super()._prepare_dataset(tokenised, processing_class, args, False, *rest)
        warn_of_cut_rows(rest[-1], tokenised, prepared, args.max_length)
        return prepared

    def _rows_of_loader(self) -> Dataset:
        """The training rows with what the collator will see of them."""
        if not self.args.remove_unused_columns:
            return self.train_dataset
        self._set_signature_columns_if_needed()
        seen = [name for name in self.train_dataset.column_names if name in self._signature_columns]
        return self.train_dataset.select_columns(seen)

    def _rows_to_load(self) -> Dataset:
        if not self.args.packing:
            return self.samples
        with self.accelerator.main_process_first():
            return packed(self.samples, self.args)

    def _check_forward(self, model: Any, exact: bool = True) -> None:
        probe = self.samples[0]["input_ids"]
        self._forward.check(model, probe, exact)
        if self.hooks:
            without_dropout(model, self._forward, probe)
        if self.padding_free:
            refuse_crossing_attention(model, self._forward, self.data_collator, self.samples)

    def texts_of(self, row: dict[str, Any], unit: int) -> dict[str, str]:
        return dict(zip(("prompt", "answer"), texts_of(row), strict=True))

    # --- the ledger ---------------------------------------------------------------------------

    def score_dataset(self, dataset: Dataset, title: str = "scoring") -> dict[str, Tensor]:
        """Fresh scores of prepared rows, in their order: float64 columns of the score table.

        A sharded model has no `certainty` column unless the ambiguity set needs it. Every process raises
        the same ValueError where a score is not finite.
        """
        absent = {"certainty"} if self._sharded and not self._needs_certainty else set()
        names = [name for name in SCORE_COLUMNS if name not in absent]
        with evaluating(self.model):
            columns = fresh_scores(
                self._scorer(dataset), dataset, names, self.accelerator, title, self.hides_progress
            )
        refuse_nonfinite(dataset, torch.arange(len(dataset)), columns, self.state.global_step)
        return columns

    def _scorer(self, dataset: Dataset) -> ScoreRows:
        if self._sharded:
            device = self.accelerator.device
            return partial(sharded_scores, self._forward, self.model_wrapped, self.data_collator, device)
        return Scorer(self.model, dataset[0]["input_ids"], self.accelerator.autocast).score

    def score_units(self, when: str) -> dict[str, Tensor]:
        """g and, where it is needed, C of all samples."""
        logger.info("scoring %d rows %s …", len(self.samples), when)
        return self._unit_scores(self.score_dataset(self.samples, f"scoring {when}"))

    def _unit_scores(self, table: dict[str, Tensor]) -> dict[str, Tensor]:
        scores = {"score": table["log_likelihood"]}
        if "certainty" in self.ambiguity.needs:
            scores["certainty"] = table["certainty"]
        if self.args.normalization == "sum":
            scores = {name: values * table["num_tokens"] for name, values in scores.items()}
            scores["score"] = table["sum_log_prob"]
        return scores

    def begin_training(self) -> None:
        """Fill the ledger, once a sharded model's shards are in place."""
        if self._sharded:
            refuse_lost_parameters(self.accelerator, self.optimizer)
            self._check_forward(self.model_wrapped, exact=not (self.args.bf16 or self.args.fp16))
        super().begin_training()

    # --- one micro-batch ----------------------------------------------------------------------

    def _score_ahead(self, batch: dict[str, Any]) -> BatchScores:
        with self.compute_loss_context_manager():
            return self._forward(self.model_wrapped, batch)

    def unit_batch(self, model: Any, inputs: dict[str, Any]) -> UnitBatch:
        """Losses, g and C of the samples, summed or averaged over their answers."""
        scores = self._forward(model, inputs)
        needed = self._needed(inputs[INDEX], inputs, scores)
        losses = self._token_losses(scores, needed).masked_fill(~scores.mask, 0.0).sum(1)  # (B)
        if self.args.normalization == "sample":
            losses = losses / scores.num_tokens
        found = {"score": token_sums(scores.log_probs)}
        if "certainty" in self.ambiguity.needs and scores.certainty is not None:
            found["certainty"] = token_sums(scores.certainty)
        if self.args.normalization != "sum":
            found = {name: values / scores.num_tokens for name, values in found.items()}
        extra: Mapping[str, Tensor] = {}
        if hasattr(self.objective, "columns"):
            extra = told(self.objective, "columns", scores.log_probs.detach(), **needed)
        return UnitBatch(losses, found, columns_of(scores, input_lengths(inputs), extra))

    def _token_losses(self, scores: BatchScores, needed: dict[str, Tensor]) -> Tensor:
        losses = self.objective(scores.log_probs, **needed)
        if getattr(losses, "shape", None) != scores.log_probs.shape:
            wanted = list(scores.log_probs.shape)
            raise ValueError(f"objective must return a loss a token, a tensor {wanted}, not {kind(losses)}")
        if self.args.entropy_coef:  # a gradient of zeros would cost a pass over the vocabulary all the same
            losses = losses - self.args.entropy_coef * scores.entropy
        if self.args.certainty_gradient and scores.certainty is not None:
            sign = -1.0 if self.args.direction == "optimistic" else 1.0  # β bounds a maximum there
            losses = losses - sign * self.accountant.summary()["beta"] * scores.certainty
        if scores.log_probs.requires_grad and not losses.requires_grad:
            raise ValueError("objective must return losses with a gradient: theirs is cut off")
        return losses

    def step_metrics(self, columns: dict[str, Tensor]) -> dict[str, float]:
        """Of the tokens, and what the objective itself has to say."""
        own = told(self.objective, "metrics", columns) if hasattr(self.objective, "metrics") else {}
        return distinct(metrics_of(columns), own)

    # --- evaluation ---------------------------------------------------------------------------

    def eval_rows(self, dataset: Any) -> Dataset:
        rows = self._row_format(dataset, "eval_dataset")
        if not self._skip_prepare_dataset:
            rows = self._prepare_dataset(rows, self.processing_class, self.args, False, None, "eval")
        num_answer_tokens(rows, "eval_dataset")
        return rows

    def eval_metrics(self, rows: Dataset) -> dict[str, float]:
        """Of the score table: `loss` is the mean NLL over all tokens; worst cases are of training's g."""
        table = self.score_dataset(rows)
        sizes = table["num_tokens"] if self.args.normalization == "token" else None
        return {**summary_of(table), **self.worst_cases(self._unit_scores(table), sizes, rows)}
