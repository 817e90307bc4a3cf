"""RobustSFTTrainer: TRL's SFTTrainer whose loss weighs samples as the worst case in a KL ball would."""

import copy
import logging
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from datasets import Dataset
from torch import Tensor
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl.trainer.utils import add_fused_lm_head

from klball.adversary.sets import AmbiguitySet
from klball.data.encoding import rendering_errors_named
from klball.models.loading import causal_lm
from klball.objectives.tokens import OBJECTIVES, PROXIMAL, Objective, objective_named
from klball.scores.perplexity import summary_of
from klball.scores.scorer import SCORE_COLUMNS, Scorer
from klball.training.accountant import HISTORY_FILE, Accountant
from klball.training.batches import INDEX, WithIndex, input_lengths
from klball.training.data import prepare_arguments
from klball.training.epochs import BeginTraining, draws, steps_an_epoch, within_epoch
from klball.training.fresh_scores import ScoreRows, fresh_scores
from klball.training.records import named_columns, sample_rows, step_metrics
from klball.training.resumption import ResumableTrainer
from klball.training.sft.config import RobustSFTConfig
from klball.training.sft.forward import BatchScores, SampleForward, token_sums
from klball.training.sft.packing import packed, refuse_crossing_attention
from klball.training.sft.proximal import ProximalWindow, without_dropout
from klball.training.sft.refusals import refuse_foreign_tokens, refuse_unsupported, refuse_useless
from klball.training.sft.samples import num_answer_tokens, numbered, refuse_nonfinite, warn_of_cut_rows
from klball.training.sharding import refuse_lost_parameters, sharded_scores, shards_parameters

logger = logging.getLogger(__name__)

FUSED_OUTPUTS = ("log_probs", "entropy", "is_top1", "mean_logits")


class RobustSFTTrainer(ResumableTrainer):
    """`trl.SFTTrainer` with the same arguments, data formats and callbacks, and an adversary.

    Per optimizer step, with (λ, β, μ) solved on the ledger of all samples' scores and then frozen:

        w_i = min(c, exp((μ − g_i − βC_i)/λ))                 g_i, C_i fresh and detached
        loss = Σ_i w_i · (1/T_i) Σ_t ℓ_t  /  samples in the step      normalization "sample"
               Σ_i w_i · Σ_t ℓ_t          /  tokens in the step       "token"
               Σ_i w_i · Σ_t ℓ_t          /  samples in the step      "sum" (scores summed too)

    so gradients do not depend on micro-batches, accumulation, padding, packing or the number of
    processes. `samples` has the prepared rows one by one, `train_dataset` what the loader draws: the
    same, or packs of them.
    `objective`: a callable from token log-probabilities (B, T) to token losses, instead of the
    configured one. `ambiguity`: an ambiguity set, instead of epsilon, gamma and max_weight.
    Raises ValueError for combinations that are not supported. Source: F. Deng, "Robust SFT".
    """

    _tag_names: ClassVar = ["klball", "robust-sft"]
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
        args = args or RobustSFTConfig(output_dir="robust-sft")
        refuse_unsupported(args, positional, kwargs, objective, ambiguity)
        args = copy.copy(args)
        self._row_format = prepare_arguments(model, args, kwargs)
        given_tokens = "input_ids" in kwargs["train_dataset"].column_names
        name = args.objective or args.loss_type
        proximal = objective is None and name == PROXIMAL
        self.objective = objective or objective_named("nll" if proximal else name)
        self.ambiguity = ambiguity or args.ambiguity_set()
        super().__init__(model, args, **kwargs)
        refuse_useless(self.model, args, len(self.train_dataset), kwargs.get("peft_config"))
        self.loss_is_scaled_for_ga = True  # normalised over the whole optimizer step, here
        if self.aux_loss_enabled:
            raise ValueError(
                "the router loss of mixture-of-experts is not supported: set router_aux_loss_coef=0.0"
            )
        inner = causal_lm(self.model)
        refuse_foreign_tokens(self.train_dataset, inner, self.processing_class, given_tokens)
        self.samples = numbered(self.train_dataset)
        self._needs_certainty = "certainty" in self.ambiguity.needs
        if self._needs_certainty:
            add_fused_lm_head(inner, outputs=FUSED_OUTPUTS)
        self.data_collator = WithIndex(self.data_collator)
        self._forward = SampleForward(inner, self._needs_certainty, args.certainty_gradient)
        self._window = None
        if proximal:
            self._window = ProximalWindow(args.psft_clip, args.psft_refresh, args.psft_warmup_steps)
        self._num_tokens = num_answer_tokens(self.samples)
        self.accountant = self._empty_accountant()
        self.train_dataset = self._rows_to_load()
        self._sharded = shards_parameters(self.accelerator, self._needs_certainty)
        if not self._sharded:
            self._check_forward(inner)
        self._step_rows: list[Tensor] = []
        self.scoring_seconds = {"initial": 0.0, "rescoring": 0.0}
        self.add_callback(BeginTraining(self))

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

    def _rows_to_load(self) -> Dataset:
        if not self.args.packing:
            return self.samples
        with self.accelerator.main_process_first():
            return packed(self.samples, self.args)

    def _check_forward(self, model: Any, exact: bool = True) -> None:
        probe = self.samples[0]["input_ids"]
        self._forward.check(model, probe, exact)
        if self._window is not None:
            without_dropout(model, self._forward, probe)
        if self.padding_free:
            refuse_crossing_attention(model, self._forward, self.data_collator, self.samples)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if INDEX not in self._signature_columns:
            self._signature_columns = [*self._signature_columns, INDEX]

    def _empty_accountant(self) -> Accountant:
        zeros = torch.zeros(len(self.samples), dtype=torch.float64)
        base_weights = self._num_tokens / self._num_tokens.sum()
        return Accountant(
            ambiguity=self.ambiguity,
            log_likelihood=zeros,
            certainty=zeros.clone() if self._needs_certainty else None,
            base_weights=base_weights if self.args.normalization == "token" else None,
            relax=self.args.on_infeasible == "relax",
            frozen=self.args.reweight == "static",
            draws=draws(self.args),
        )

    # --- the ledger ---------------------------------------------------------------------------

    def score_dataset(self, dataset: Dataset, title: str = "scoring") -> dict[str, Tensor]:
        """Fresh scores of prepared rows, in their order: float64 columns of the score table.

        A sharded model has no `certainty` column unless the ambiguity set needs it. Every process raises
        the same ValueError where a score is not finite.
        """
        quiet = bool(self.args.disable_tqdm) or not self.is_local_process_zero()
        absent = {"certainty"} if self._sharded and not self._needs_certainty else set()
        names = [name for name in SCORE_COLUMNS if name not in absent]
        was_training = self.model.training
        self.model.eval()
        columns = fresh_scores(self._scorer(dataset), dataset, names, self.accelerator, title, quiet)
        self.model.train(was_training)
        refuse_nonfinite(dataset, torch.arange(len(dataset)), columns, self.state.global_step)
        return columns

    def _scorer(self, dataset: Dataset) -> ScoreRows:
        if self._sharded:
            device = self.accelerator.device
            return partial(sharded_scores, self._forward, self.model_wrapped, self.data_collator, device)
        return Scorer(self.model, dataset[0]["input_ids"], self.accelerator.autocast).score

    def rescore(self, reason: str = "rescoring") -> None:
        """Rewrite the whole ledger with fresh scores; the time it takes is kept in `scoring_seconds`."""
        began = time.perf_counter()
        step = self.state.global_step
        when = "before the first step" if reason == "initial" else f"again after step {step}"
        logger.info("scoring %d rows %s …", len(self.samples), when)
        scores = self.score_dataset(self.samples, f"scoring {when}")
        g, c = scores["log_likelihood"], scores["certainty"] if self._needs_certainty else None
        if self.args.normalization == "sum":
            g, c = scores["sum_log_prob"], None if c is None else c * scores["num_tokens"]
        self.accountant.rewrite(g, c)
        self.scoring_seconds[reason] += time.perf_counter() - began

    def begin_training(self) -> None:
        """Fill the ledger: from the checkpoint that training resumes from, else by scoring all rows."""
        if self._sharded:  # now that the shards are in place
            refuse_lost_parameters(self.accelerator, self.optimizer)
            self._check_forward(self.model_wrapped, exact=not (self.args.bf16 or self.args.fp16))
        if self._resume_folder is not None:
            self.accountant.load(self._resume_folder, self.within_epoch())
            if self._window is not None:
                self._window.load(self._resume_folder)
        elif self.state.global_step == 0:
            self.accountant = self._empty_accountant()
            if self.ambiguity.needs:
                self.rescore("initial")

    def within_epoch(self) -> bool:
        """Whether training resumes in the middle of an epoch."""
        return within_epoch(self.args, self.state, len(self.train_dataset), self._resume_folder)

    def _rescore_is_due(self) -> bool:
        """Every `rescore_steps`; by default as often as the radius and the drift ask for."""
        if self.state.global_step == 0 or self.accountant.frozen or not self.ambiguity.needs:
            return False
        if self.args.rescore_steps is None:
            epoch = steps_an_epoch(self.args, len(self.train_dataset))
            return self.accountant.drift.demands_rescoring(epoch)
        return self.args.rescore_steps > 0 and self.state.global_step % self.args.rescore_steps == 0

    # --- one optimizer step -------------------------------------------------------------------

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """Fetch the whole step's batches, count its distinct samples over all ranks, freeze (λ, β)."""
        if self._window is not None:
            epoch_iterator = self._window.step_batches(
                *(epoch_iterator, num_batches, self.state.global_step, self.state.max_steps)
            )
            with self.compute_loss_context_manager():
                self._window.score_ahead(lambda batch: self._forward(self.model_wrapped, batch))
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if batches and INDEX in batches[0]:
            if self._rescore_is_due():
                self.accountant.rescores += 1
                self.rescore()
            self._begin_step()
            self._plan_step(batches, device)
        return batches, num_items

    def _begin_step(self) -> None:
        try:
            self.accountant.begin_step()
        except ValueError as error:
            error.args = (f"at optimizer step {self.state.global_step + 1}: {error}",)
            raise

    def _plan_step(self, batches: list[Any], device: torch.device) -> None:
        """Which rows count: one that `even_batches` repeats to fill the epoch's last step does not."""
        index = torch.cat([batch[INDEX] for batch in batches]).to(device)
        start, everyone = 0, index
        if self.accelerator.num_processes > 1:
            padded = self.accelerator.pad_across_processes(index, dim=0, pad_index=-1)
            start = self.accelerator.process_index * len(padded)
            everyone = self.accelerator.gather(padded)
        everyone = everyone.cpu()
        first = self.accountant.visit(everyone.tolist())
        keep = first[start : start + len(index)]
        self._keep = list(keep.split([len(batch[INDEX]) for batch in batches]))
        self._divisor = float(first.sum())
        if self.args.normalization == "token":
            self._divisor = float(self._num_tokens[everyone[first]].sum())
        self._remaining = len(batches)
        self._step_rows = []

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The weighted loss of one micro-batch, already divided by the step's total."""
        if INDEX not in inputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        index = inputs[INDEX]
        scores = self._forward(model, inputs)
        losses = self._token_losses(index, scores)
        if self.args.entropy_coef:  # a gradient of zeros would cost a pass over the vocabulary all the same
            losses = losses - self.args.entropy_coef * scores.entropy
        g = token_sums(scores.log_probs)
        c = None if scores.certainty is None else token_sums(scores.certainty)
        if self.args.normalization != "sum":
            answers = scores.num_tokens.cpu()
            g, c = g / answers, None if c is None else c / answers
        keep = self._keep[len(self._keep) - self._remaining]
        density = self.accountant.density(index.cpu(), g, c)
        if self.args.certainty_gradient and scores.certainty is not None:
            price = self.ambiguity.summary(self.accountant.solve())["beta"]
            losses = losses - price * scores.certainty
        losses = losses.masked_fill(~scores.mask, 0.0).sum(1)  # (B)
        if self.args.normalization == "sample":
            losses = losses / scores.num_tokens
        loss = ((density * keep).to(losses.dtype).to(losses.device) * losses).sum() / self._divisor
        ratios = [] if self._window is None else self._window.ratio_columns(index, scores)
        self._step_rows.append(sample_rows(index, keep, g, c, density, input_lengths(inputs), scores, ratios))
        # DDP averages gradients over ranks; the divisor already counts all of them
        return loss * self.accelerator.num_processes

    def _token_losses(self, index: Tensor, scores: BatchScores) -> Tensor:
        if self._window is not None:
            return self._window.losses(index, scores)
        losses = self.objective(scores.log_probs)
        if getattr(losses, "shape", None) != scores.log_probs.shape:
            raise ValueError(f"objective must return a tensor of a loss a token, not {losses!r:.60}")
        return losses

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        """TRL's step; after the last micro-batch the fresh scores of all ranks go to the ledger."""
        loss = super().training_step(model, inputs, *args, **kwargs)
        self._remaining -= 1
        if self._remaining == 0:
            self._finish_step()
        return loss

    def _finish_step(self) -> None:
        rows = torch.cat(self._step_rows)
        if self.accelerator.num_processes > 1:
            padded = self.accelerator.pad_across_processes(rows.to(self.accelerator.device), dim=0)
            rows = self.accelerator.gather(padded).cpu()
        everyone = named_columns(rows)
        index = everyone["index"].long()
        # only now do all processes know of it, and the optimizer has not moved yet
        finite = {"log-likelihood": everyone["log_likelihood"], "certainty": everyone["certainty"]}
        refuse_nonfinite(self.samples, index, finite, self.state.global_step + 1)
        columns = named_columns(rows[everyone["keep"] > 0])
        self.accountant.num_tokens += int(columns["num_inputs"].sum())
        step = {**self.accountant.summary(), **step_metrics(columns)}
        if self.objective is OBJECTIVES["dft-sequence"]:  # e^-100: beyond it the gradient is nothing
            step["underflow_fraction"] = float((columns["log_prob"] < -100).double().mean())
        self.accountant.history.append({"step": self.state.global_step + 1, **step})
        for name, value in step.items():
            self._metrics["train"][name].append(value)
        self._metrics["train"]["num_tokens"] = [self.accountant.num_tokens]
        certainty = columns["certainty"] if self._needs_certainty else None
        self.accountant.record(columns["index"].long(), columns["log_likelihood"], certainty)

    # --- evaluation and checkpoints -----------------------------------------------------------

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Metrics of the score table: `loss` is the mean NLL over all tokens, not a mean of batch means."""
        dataset: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(dataset, str):  # the name of one of several
            dataset = self.eval_dataset[dataset]  # pyright: ignore[reportArgumentType, reportOptionalSubscript, reportCallIssue]
        if dataset is None:
            raise ValueError("there is nothing to evaluate: give eval_dataset")
        if isinstance(dataset, dict):
            named = {k: k if eval_dataset is None else d for k, d in dataset.items()}
            parts = (self.evaluate(d, ignore_keys, f"{metric_key_prefix}_{k}") for k, d in named.items())
            return {name: value for part in parts for name, value in part.items()}
        if eval_dataset is not None and not isinstance(eval_dataset, str):
            rows = self._row_format(dataset, "eval_dataset")
            dataset = self._prepare_dataset(rows, self.processing_class, self.args, False, None, "eval")
        summary = summary_of(self.score_dataset(dataset))
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in summary.items()}
        self.model.eval()  # TRL's log keeps training and evaluation metrics apart by this
        self.log(metrics)
        self.model.train(self.is_in_train)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """Refused: it would gather logits that are never built."""
        raise ValueError("predict needs logits that are never built: use evaluate(rows) or klball.score")

    def train(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any
    ) -> Any:
        """TRL's train, from the beginning or a whole checkpoint; writes the history at its end."""
        output = super().train(resume_from_checkpoint, **kwargs)
        if self.args.should_save:
            Path(str(self.args.output_dir)).mkdir(parents=True, exist_ok=True)
            self.accountant.save_history(Path(str(self.args.output_dir)) / HISTORY_FILE)
        return output

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """The ledger goes first: TRL writes trainer_state.json last, and only that completes a checkpoint."""
        folder = Path(self._get_output_dir(trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        if self.args.should_save:
            self.accountant.save(folder)
        if self._window is not None:
            self._window.save(folder, self.accelerator.process_index)
            self.accelerator.wait_for_everyone()
        super()._save_checkpoint(model, trial)
