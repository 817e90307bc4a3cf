"""RobustGRPOTrainer: TRL's GRPOTrainer whose advantages are weighed as the worst case over prompts would."""

import copy
import logging
from typing import Any, ClassVar

import torch
from accelerate.utils import gather
from datasets import Dataset, IterableDataset
from torch import Tensor
from trl import GRPOTrainer

from klball.adversary.sets import AmbiguitySet
from klball.data.conversations import text_of_turn
from klball.data.formats import RENDERING
from klball.data.ids import order_of, with_sample_ids
from klball.data.prompts import ANSWER, FINISHED, refuse_no_prompts, refuse_told
from klball.data.sources import as_dataset
from klball.data.texts import refuse_images
from klball.scores.scorer import longest_input
from klball.training.accountant import Accountant
from klball.training.accounted import Accounted
from klball.training.batches import INDEX
from klball.training.checkpoints import located
from klball.training.evaluation import WORST_CASES, each_set, named_sets
from klball.training.refusals import (
    refuse_bad_settings,
    refuse_foreign_arguments,
    refuse_no_model,
    refuse_no_set,
    refuse_split_models,
    refuse_useless,
)
from klball.training.returned import distinct
from klball.training.rl.config import RobustGRPOConfig
from klball.training.rl.critic import Critic, CriticSteps
from klball.training.rl.reward_ledger import RewardLedger, group_statistics
from klball.training.rl.reward_model import RewardModel
from klball.training.rl.rewards import numbered_names, refuse_no_rewards, refuse_unreadable, refusing_nan
from klball.training.rl.rollouts import RolloutBoundaries
from klball.training.rl.settings import refuse_even_weights
from klball.training.samples import groups_of, numbered
from klball.training.units import Units

logger = logging.getLogger(__name__)


PROMPTS_AT_ONCE = 1_000  # tokenised
OF_SETS = ("ambiguity", "radius", "alpha", "direction", "max_weight")
NOT_OF_PROMPTS = ("robust_loss", "rescores")
DRAWS = (  # what decides which prompts a batch of rollouts has, besides the data
    *("world_size", "train_batch_size", "gradient_accumulation_steps", "seed", "shuffle_dataset"),
    *("num_generations", "steps_per_generation", "num_iterations"),
)


class RobustGRPOTrainer(Accounted, GRPOTrainer):  # pyright: ignore[reportIncompatibleMethodOverride]
    """`trl.GRPOTrainer`, with its rewards, tools, environments and vLLM, and an adversary over the prompts.

        max_θ min_Q E_{x∼Q} E_{y∼π}[r] − β KL(π‖π_ref) + c·H        KL(Q‖F) ≤ radius, q ≤ max_weight · f

    The weight w = q/f of a prompt comes from the ledger of mean rewards as it was before the prompt's new
    completions, else weight and gradient would share their noise, and multiplies its advantages. For w ≥ 0
    every loss of TRL's is homogeneous in them, so this weighs the prompt's loss; KL and entropy stay as
    they are. A prompt not seen before has the weight 1.

    Args:
        model: As in `trl.GRPOTrainer`.
        reward_funcs: As there: functions, models, or names of models.
        args: A `RobustGRPOConfig`.
        ambiguity: An ambiguity set, instead of that of radius, max_weight and direction.
        **kwargs: The other arguments of `trl.GRPOTrainer`: train_dataset, processing_class, ….

    Raises:
        ValueError: A combination that is not supported, or a reward that is infinite.
    """

    _tag_names: ClassVar = ["klball", "robust-grpo"]
    entry: ClassVar = ("mean_reward", 1)
    # what TRL's own annotations leave open
    args: RobustGRPOConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    model: Any
    accelerator: Any

    def __init__(
        self,
        model: Any,
        reward_funcs: Any = None,
        args: RobustGRPOConfig | None = None,
        *,
        ambiguity: AmbiguitySet | None = None,
        **kwargs: Any,
    ):
        args = copy.copy(args or RobustGRPOConfig(output_dir="robust-grpo"))
        refuse_no_model(model := located(model))
        refuse_foreign_arguments("RobustGRPOTrainer", RobustGRPOConfig, args, (), kwargs)
        kwargs["train_dataset"] = as_dataset(kwargs.get("train_dataset"), "train_dataset")
        kwargs["eval_dataset"] = each_set(kwargs.get("eval_dataset"), _table)
        _refuse_unsupported(args, reward_funcs, kwargs, ambiguity)
        for line in args.departures():
            logger.warning(line)
        given = kwargs.pop("train_dataset")
        self.given_rows = with_sample_ids(given)
        self.samples = numbered(self.given_rows)
        self._order = order_of(self.samples)
        self._own_columns = {*self.samples.column_names} - {*given.column_names}
        peft_config = copy.deepcopy(kwargs.get("peft_config"))
        super().__init__(model, reward_funcs, args, train_dataset=self.samples, **kwargs)
        refuse_useless(self.model, self.args, len(self.samples), peft_config)
        self._refuse_long_prompts()
        for reward in self.reward_funcs:
            if isinstance(reward, RewardModel):
                reward.to(self.accelerator.device)
        self.reward_func_names = numbered_names(self.reward_func_names)
        named = zip(self.reward_func_names, self.reward_funcs, strict=True)
        self.reward_funcs = [refusing_nan(name, reward) for name, reward in named]
        self.ambiguity = ambiguity or args.ambiguity_set()
        self._units = Units(groups=groups_of(self.samples, args.group_column))
        if self.ambiguity.needs:
            refuse_even_weights(self.args, len(self.samples))
        refuse_split_models(self.accelerator)
        self.hooks = []
        self.accountant = self._empty_accountant()
        self.add_callback(RolloutBoundaries(self))
        self.critic = Critic(self.model, self.args, self.accelerator) if args.critic else None
        if self.critic is not None:
            self.hooks.append(self.critic)
            self.add_callback(CriticSteps(self.critic))

    def _refuse_long_prompts(self) -> None:
        """A model whose positions end within a completion says nothing, or fails in the middle of a run.

        What an environment asks is known only when it is reset.
        """
        if self.environment_factories is not None:
            return
        tokenizer: Any = self.processing_class
        limit, new = longest_input(self.model, tokenizer, None), self.args.max_completion_length
        if limit is None or new is None:
            return
        for start in range(0, len(self.samples), PROMPTS_AT_ONCE):
            prompts = self.samples[start : start + PROMPTS_AT_ONCE]["prompt"]
            lengths = [len(ids) for ids in self._tokenize_prompts(prompts)[0]]
            if max(lengths) + new > limit:
                row = start + lengths.index(max(lengths)) + 1
                raise ValueError(
                    f"train_dataset, row {row}: a prompt of {max(lengths)} tokens and "
                    f"max_completion_length = {new} exceed the {limit} tokens that the model holds: leave it "
                    "out, or lower max_completion_length"
                )

    def _empty_accountant(self) -> Accountant:
        over_groups = self.args.group_column is not None
        shrinkage = 0.0 if over_groups and self.args.shrinkage is None else self.args.shrinkage
        drawn = {name: getattr(self.args, name) for name in DRAWS}
        return Accountant(
            *(self.ambiguity, RewardLedger(len(self.samples), shrinkage), self._units),
            relax=False,
            draws=drawn,
            rows=self._order,
            family=self._tag_names[-1],
        )

    def texts_of(self, row: dict[str, Any], unit: int) -> dict[str, str]:
        """Prompt and right answer."""
        prompt = row.get("prompt", "")
        text = prompt if isinstance(prompt, str) else " / ".join(map(text_of_turn, prompt))
        return {"prompt": text, "answer": str(row.get(ANSWER, ""))}

    # --- where training goes on ---------------------------------------------------------------

    @property
    def rollout_position(self) -> int:
        """Micro-batches drawn from the open batch of rollouts; 0 where the next one is begun."""
        return self._step % self.args.steps_an_answer

    def kept_tensors(self) -> dict[str, Tensor]:
        """Where the checkpoint lies in its batch of rollouts, and what TRL steers the entropy by."""
        steering = [self.entropy_coef, self._last_world_entropy]
        return {
            "rollout_position": torch.tensor(self.rollout_position),
            "entropy_steering": torch.tensor(steering, dtype=torch.float64),
        }

    def begin_training(self) -> None:
        """Fill the ledger from the checkpoint that training resumes from; TRL would keep an open batch."""
        self._step, self._buffered_inputs = 0, None
        if self._resume_folder is not None:
            epoch = self.state.epoch or 0.0
            more = tuple(self.kept_tensors())
            kept = self.accountant.load(self._resume_folder, self._begun_epoch(), more=more)
            if kept["rollout_position"] and self.state.global_step < self.state.max_steps:
                raise ValueError(
                    f"{self._resume_folder} lies inside a batch of rollouts, where an earlier run ended: "
                    "resume from the checkpoint before it"
                )
            self.entropy_coef, self._last_world_entropy = kept["entropy_steering"].tolist()
            for hook in self.hooks:
                hook.load(self._resume_folder)
            self._redraw_epochs(int(epoch + 1e-9))
        elif self.state.global_step == 0:
            self.accountant = self._empty_accountant()

    def _redraw_epochs(self, count: int) -> None:
        """Each epoch draws its order from one generator, which begins anew in a resumed run."""
        for _ in range(count if self.shuffle_dataset else 0):
            torch.randperm(len(self.samples), generator=self._sampler.generator)

    def _get_train_sampler(self, dataset: Any = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        self._sampler: Any = super()._get_train_sampler(dataset)
        return self._sampler

    # --- one batch of rollouts ----------------------------------------------------------------

    def _calculate_rewards(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any
    ) -> Tensor:
        """TRL's rewards of all ranks' completions, (completions, functions), remembered.

        Reward functions get a column more: whether a completion ended, or was cut at the limit.
        """
        ends: list[Any] = [*self.eos_token_ids, self._tokenizer.pad_token_id]
        rows = [
            {**row, FINISHED: bool(ids) and ids[-1] in ends}
            for row, ids in zip(inputs, completion_ids_list, strict=True)
        ]
        self._rewards = super()._calculate_rewards(rows, prompts, completions, completion_ids_list)
        for name, reward, values in zip(
            self.reward_func_names, self.reward_funcs, self._rewards.unbind(1), strict=True
        ):
            lost = isinstance(reward, torch.nn.Module) and bool(values.isnan().any())
            if lost or bool(values.isinf().any()):
                what = "NaN" if lost else "infinite"
                raise ValueError(f"reward {name!r} is {what} at optimizer step {self.state.global_step + 1}")
        return self._rewards

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        """TRL's rollouts, whose advantages are weighed by what the ledger knew before them."""
        training = self.model.training
        rows = [{name: row[name] for name in row if name not in self._own_columns} for row in inputs]
        output = super()._generate_and_score_completions(rows)
        if not training:
            return output
        own = torch.tensor([row[INDEX] for row in inputs])
        if self.critic is not None:
            output.update(self._judged(output))
        self._begin_step()
        weights = self.accountant.units.density(self.accountant.ledger, self.accountant.unit_weights())
        advantages = output["advantages"]
        weight = weights[own].to(advantages)
        output["advantages"] = advantages * weight.view(-1, *[1] * (advantages.dim() - 1))
        self._show_advantages(output)
        self._finish_rollouts(own, weights)
        return output

    def _show_advantages(self, output: dict[str, Any]) -> None:
        """In the table of completions, those that train; where each token has its own, their mean."""
        used, mask = output["advantages"], output["completion_mask"]
        mean = used if used.dim() == 1 else (used * mask).sum(1) / mask.sum(1).clamp(min=1)
        shown, everyone = self._logs["advantages"], gather(mean).tolist()  # pyright: ignore
        for back in range(1, min(len(shown), len(everyone)) + 1):
            shown[-back] = everyone[-back]

    def _totals(self) -> Tensor:
        """The weighted sums of the rewards of all ranks' completions, NaN where none was given."""
        totals = (self._rewards * self.reward_weights.to(self._rewards.device)).nansum(1)
        return totals.masked_fill(self._rewards.isnan().all(1), torch.nan)

    def _judged(self, output: dict[str, Any]) -> dict[str, Tensor]:
        """The critic's advantages of this rank's completions, and what it learns from them."""
        assert self.critic is not None
        if "tool_mask" in output or "pixel_values" in output:
            raise ValueError("critic=True is for text without tools")
        size = len(output["completion_ids"])
        start = self.accelerator.process_index * size
        judged = self.critic.judge(output, self._totals()[start : start + size])
        mask = output["completion_mask"].bool() & judged["judged"][:, None]
        returns, left = judged["returns"][mask], (judged["returns"] - judged["values"])[mask]
        if len(returns) > 1 and returns.var() > 0:
            self._metrics["train"]["critic/explained"].append(float(1 - left.var() / returns.var()))
        return judged

    def _compute_loss(self, model: Any, inputs: Any) -> Tensor:
        """TRL's loss of the policy; the critic learns from the same micro-batch, by its own optimizer."""
        if self.critic is not None and self.model.training:
            loss = self.critic.accumulate(inputs, self.current_gradient_accumulation_steps)
            self._metrics["train"]["critic/loss"].append(loss)
        return super()._compute_loss(model, inputs)

    def _finish_rollouts(self, own: Tensor, weights: Tensor) -> None:
        """Enter the rewards of all ranks' prompts, and log what the adversary makes of the ledger."""
        everyone: Any = gather(own.to(self.accelerator.device))
        everyone = everyone.cpu().view(-1, self.num_generations)
        assert bool((everyone == everyone[:, :1]).all())  # a row a prompt
        fresh = group_statistics(self._totals().cpu().view(everyone.shape))
        scored = fresh["count"] > 0
        index, fresh = everyone[scored, 0], {name: values[scored] for name, values in fresh.items()}
        self.accountant.record(index, fresh)
        self._begin_step()
        used = weights[everyone[:, 0]]
        self._log_step(
            distinct(self._summary(), {"mean_weight": float(used.mean()), "max_weight": float(used.max())})
        )

    def _summary(self) -> dict[str, float]:
        """Of the adversary's answer, these rollouts included; TRL's own `kl` is to the reference."""
        ledger: Any = self.accountant.ledger
        summary = self.accountant.summary()
        summary["adversary_kl"] = summary.pop("kl")
        known, q = ledger.known, self.accountant.weights()
        base = self.accountant.units.base(len(ledger))
        scores, mass = ledger.scores()["score"], float(q[known].sum())
        report = {
            "known_prompts": float(known.double().mean()),
            "mean_reward": float((base * scores)[known].sum() / base[known].sum()) if mass else 0.0,
            "shrinkage": ledger.kappa,
        }
        if self.ambiguity.needs:
            report["worst_case_reward"] = -summary["robust_loss"]
            flat = known & (ledger.variance == 0)
            report["mass_without_gradient"] = float(q[flat].sum()) / mass if mass else 0.0
        own = {name: value for name, value in summary.items() if name not in NOT_OF_PROMPTS}
        if own.get("beta") == 0:  # a KL ball's, of the certainty; GRPO's beta is another
            del own["beta"]
        return distinct(own, report)


def _refuse_unsupported(args: Any, rewards: Any, kwargs: dict[str, Any], ambiguity: Any) -> None:
    refuse_no_set(ambiguity)
    refuse_bad_settings(args)
    refuse_no_rewards(rewards)
    _refuse_rows(args, rewards, kwargs)
    needs = getattr(ambiguity or args.ambiguity_set(), "needs", ())
    if not set(needs) <= {"score"}:
        raise ValueError(f"an ambiguity set over prompts can need their score alone, not {needs}")
    if str(args.metric_for_best_model).endswith(WORST_CASES):
        raise ValueError(
            f"metric_for_best_model={args.metric_for_best_model!r}: GRPO is evaluated by the rewards of new "
            "answers, which have no worst case; name eval_reward"
        )
    if args.group_column is not None and not needs:
        raise ValueError("group_column has no effect without an adversary: set a radius above 0")
    if ambiguity is not None and any(getattr(args, n) != getattr(type(args), n) for n in OF_SETS):
        raise ValueError("give the ambiguity set once: ambiguity= or radius, max_weight, …")
    if args.chat_template_kwargs and isinstance(kwargs["train_dataset"][0].get("prompt"), str):
        raise ValueError("chat_template_kwargs has no effect on prompts that are texts: give lists of turns")
    acts = kwargs.get("tools") or kwargs.get("environment_factory")
    if args.max_tool_calling_iterations is not None and not acts:
        raise ValueError("max_tool_calling_iterations has no effect without tools")


def _refuse_rows(args: Any, rewards: Any, kwargs: dict[str, Any]) -> None:
    dataset = kwargs["train_dataset"]
    if not len(dataset):
        raise ValueError("train_dataset has no rows")
    if len(dataset) < (prompts := int(args.generation_batch_size or 1) // int(args.num_generations or 1)):
        raise ValueError(
            f"a batch of rollouts takes {prompts} prompts, and train_dataset has {len(dataset)}: take fewer "
            "completions a batch"
        )
    for name, rows in [("train_dataset", dataset), *named_sets(kwargs.get("eval_dataset"))]:
        if isinstance(rows, Dataset):
            _refuse_columns(name, rows, bool(kwargs.get("environment_factory")))
            refuse_unreadable(rewards, name, rows)


def _table(rows: Any, name: str) -> Any:
    """TRL evaluates on streaming data, too."""
    return rows if isinstance(rows, IterableDataset) else as_dataset(rows, name)


def _refuse_columns(name: str, rows: Dataset, asked_by_environments: bool) -> None:
    refuse_told(rows.column_names)
    refuse_images(rows.column_names)
    if INDEX in rows.column_names:
        raise ValueError(f"{name}: {INDEX!r} is klball's own name for positions: rename the column")
    if unread := sorted(set(RENDERING).intersection(rows.column_names)):
        logger.warning(
            "%s: TRL asks prompts without the columns %s, which rewards alone see: give tools to the "
            "trainer, chat_template_kwargs in the configuration",
            *(name, ", ".join(unread)),
        )
    if "prompt" in rows.column_names:
        refuse_no_prompts(name, rows)
    elif not asked_by_environments:
        raise ValueError(f"{name} has no column 'prompt'; there are {', '.join(rows.column_names)}")
