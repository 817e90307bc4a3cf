"""GDPOTrainer: beliefs as often as people hold them, and under each the better answer."""

from typing import Any, ClassVar

import torch
from datasets import Dataset
from torch import Tensor
from trl import DPOTrainer

from klball.adversary.sets import AmbiguitySet
from klball.data.preferences import texts_of_pair
from klball.objectives.pairs import PAIR_LOSSES
from klball.training.batches import INDEX
from klball.training.checkpoints import located
from klball.training.evaluation import WORST_CASES
from klball.training.preference.belief_losses import belief_metrics, belief_terms
from klball.training.preference.beliefs import COLUMNS, BeliefCollator, encoded_beliefs, fits
from klball.training.preference.config import GDPOConfig
from klball.training.preference.forward import log_ratios, reference
from klball.training.preference.refusals import refuse_sharding, refuse_unfit_model, refuse_unsupported
from klball.training.preference.trainer import PreferenceTrainer, prepared_arguments, refuse_lost_rows
from klball.training.step import UnitBatch, wide


class GDPOTrainer(PreferenceTrainer, DPOTrainer):  # pyright: ignore[reportIncompatibleMethodOverride]
    """Group Distributional Preference Optimization (Yao et al., arXiv 2412.20299), with an adversary.

    Not the GDPO of NVIDIA, TRL and verl, Group reward-Decoupled normalization Policy Optimization, which
    normalises the rewards of GRPO (`multi_objective_aggregation` in TRL). Here an answer y says a belief b
    first, and beliefs shall come as often as people hold them. Of a question x, with the shares p*,

        L = KL(p* ‖ π(·|x)) − (1/T_b) log P(b|x) + ℓ(y_w, y_l | x, b),    π(b|x) = P(b|x) / Σ_b′ P(b′|x)

    P(b|x) is the probability of all T_b tokens of the belief with the `belief_end` that closes it, so
    π, normalised over the question's beliefs, is exact (the authors take one token, not normalised); ℓ is
    `loss_type`, of the texts alone, both under b. A row that names no belief has Σ_b p*_b of the second
    term, and a row without texts not the third.

    Rows: `prompt` (a text, or turns), `beliefs` (texts), `p_star` (shares that sum to 1); optional
    `belief`, one of them, and with it `chosen` and `rejected` (texts, or one assistant turn each), to
    which the belief is put in front. The adversary weighs (`over`):

        "belief"    atoms (x, b), base weight p*_b/n, score log π(b|x) − log p*_b: all 0 where π = p*. Each
                    carries its part of the three terms. No minimax value: the score is of the first.
        "question"  rows, score −L. "group": their groups, by `group_column`.

    Args:
        model: As in `trl.DPOTrainer`: a model or a name.
        ref_model: As there.
        args: A `GDPOConfig`.
        *positional: None are taken; they are here to be refused.
        ambiguity: An ambiguity set that needs the score, instead of the configured one.
        **kwargs: The other arguments of `trl.DPOTrainer`, but for data_collator.

    Raises:
        ValueError: A combination that is not supported, or a row that cannot be used.
    """

    _tag_names: ClassVar = ["klball", "gdpo"]
    columns: ClassVar = ("prompt", "beliefs", "p_star")
    metrics: ClassVar = (
        "loss",
        "belief_kl",
        "belief_nll",
        "text_dpo",
        "js_distance",
        "belief_accuracy",
        *WORST_CASES,
    )
    args: Any

    def __init__(
        self,
        model: Any,
        ref_model: Any = None,
        args: GDPOConfig | None = None,
        *positional: Any,
        ambiguity: AmbiguitySet | None = None,
        **kwargs: Any,
    ):
        model, ref_model = located(model), located(ref_model)
        args = args or GDPOConfig(output_dir="gdpo")
        if kwargs.get("data_collator") is not None:
            raise ValueError("data_collator is not supported: beliefs have their own")
        given = {**kwargs, "model": model, "ref_model": ref_model}
        refuse_unsupported(GDPOTrainer, GDPOConfig, args, positional, given, ambiguity)
        args, peft_config = prepared_arguments(args, kwargs, self.columns)
        self.given_rows = kwargs["train_dataset"]
        super().__init__(model, ref_model, args, **kwargs)
        refuse_unfit_model(self)
        tokenizer: Any = self.processing_class
        config = self.args
        self.data_collator = BeliefCollator(
            tokenizer.pad_token_id, config.max_length, config.pad_to_multiple_of
        )
        self._pair_loss = PAIR_LOSSES[self.args.loss_type[0]]
        self.init_units(ambiguity, peft_config)
        refuse_sharding(self)

    def _prepare_dataset(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, dataset: Any, processing_class: Any, args: Any, dataset_name: str
    ) -> Any:
        """Tokens of beliefs and texts; rows that `max_length` cannot hold are dropped, and counted."""
        encoded = encoded_beliefs(dataset, processing_class, args.belief_end, args.dataset_num_proc)
        limit = args.max_length
        prepared = encoded.filter(fits, fn_kwargs={"max_length": limit})
        cut = 0 if limit is None else sum(length > limit for length in _longest(prepared))
        refuse_lost_rows(dataset_name, len(dataset), len(prepared), limit, "their beliefs exceed", cut)
        return prepared

    def _set_signature_columns_if_needed(self) -> None:
        if self._signature_columns is None:
            self._signature_columns = list(COLUMNS)
        super()._set_signature_columns_if_needed()

    def row_lengths(self, rows: Dataset) -> list[int]:
        sequences = [len(beliefs) + 2 for beliefs in rows["belief_ids"]]
        return [count * length for count, length in zip(sequences, _longest(rows), strict=True)]

    def numbered_units(self, rows: Dataset) -> tuple[Dataset, Dataset]:
        """Rows, and over beliefs an atom for each that someone holds."""
        if self.args.unit != "belief":
            return super().numbered_units(rows)
        held = [(row, p) for row, shares in enumerate(rows["p_star"]) for p in shares if p > 0]
        atoms = rows.select([row for row, _ in held]).remove_columns("p_star")
        places: list[list[int]] = [[] for _ in rows]
        for atom, (row, _) in enumerate(held):
            places[row].append(atom)
        rows = rows.remove_columns(INDEX) if INDEX in rows.column_names else rows
        return rows.add_column(INDEX, places), atoms.add_column("p_star", [p for _, p in held])

    def texts_of(self, row: dict[str, Any], unit: int) -> dict[str, str]:
        """The belief of the unit, else that of the answers."""
        held = [belief for belief, share in zip(row["beliefs"], row["p_star"], strict=True) if share > 0]
        belief = held[unit] if self.args.unit == "belief" else row.get("belief") or ""
        answers = texts_of_pair(row)
        return {"prompt": answers.pop("prompt"), "belief": belief, **answers}

    def unit_sizes(self, samples: Dataset) -> Tensor | None:
        if self.args.unit != "belief":
            return None
        return torch.tensor(samples["p_star"][:], dtype=torch.float64)

    def unit_batch(self, model: Any, inputs: dict[str, Any]) -> UnitBatch:
        """Losses of questions or of their beliefs: the same terms, summed or not."""
        terms = belief_terms(model, inputs, self._of_texts)
        if self.args.unit == "belief":
            held = inputs["p_star"] > 0
            columns = {name: values[held] for name, values in terms.columns.items()}
            losses, score = terms.losses[held], terms.log_ratios[held]
        else:
            columns = {name: terms.summed(values) for name, values in terms.columns.items()}
            losses = terms.summed(terms.losses)
            score = -losses
        return UnitBatch(losses, {"score": score.detach().to(wide(losses.device))}, columns)

    def _of_texts(self, log_probs: Tensor, inputs: dict[str, Any]) -> Any:
        """ℓ and log-ratios of P pairs of texts, (P) each."""
        ratios = log_ratios(log_probs, reference(self, inputs), inputs)
        return self._pair_loss(ratios, self.beta, self.label_smoothing), ratios

    def step_metrics(self, columns: dict[str, Tensor]) -> dict[str, float]:
        return belief_metrics(columns, self.beta)


def _longest(rows: Dataset) -> list[int]:
    """Tokens of the longest sequence of every encoded row, [n]."""
    columns = (rows[name] for name in ("prompt_ids", "chosen_ids", "rejected_ids", "belief_ids"))
    return [len(p) + max(len(c), len(r), *map(len, b)) for p, c, r, b in zip(*columns, strict=True)]
