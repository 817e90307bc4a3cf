"""The families of training, one entry each: what a run of `klball train` has to know of it."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset

from klball.data.encoding import require_template
from klball.data.formats import to_trl_format
from klball.data.preferences import to_belief_rows, to_preferences, visible
from klball.data.prompts import check_prompts
from klball.data.rows import with_sample_ids
from klball.models.loading import CAUSAL, REWARD, Purpose
from klball.objectives.tokens import OBJECTIVES
from klball.training.preference.comparators import GroupEG
from klball.training.preference.config import GDPOConfig, RobustDPOConfig, RobustRewardConfig
from klball.training.preference.dpo import RobustDPOTrainer
from klball.training.preference.gdpo import GDPOTrainer
from klball.training.preference.reward import RobustRewardTrainer
from klball.training.rl.family import (
    GRPORunConfig,
    files_of,
    models_of,
    prompt_rows,
    reward_functions,
)
from klball.training.rl.grpo import RobustGRPOTrainer
from klball.training.sft.config import RobustSFTConfig
from klball.training.sft.needs import checkpoint_files
from klball.training.sft.trainer import RobustSFTTrainer

LOADED = ("model_init_kwargs", "chat_template_path")  # in the model and the tokenizer when a trainer is made


@dataclass(frozen=True)
class Family:
    """One way to train: its classes and its rows."""

    config: Any
    trainer: Any
    data: str
    """The data set where none is named."""
    prepared: Callable[[Dataset, Any, Any], Dataset]
    """(rows, tokenizer, config) → rows as the trainer takes them."""
    form: Callable[[Dataset], Dataset] | None = None
    """For `load_rows`."""
    purpose: Purpose = CAUSAL
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Those of the configuration that the prepared rows have settled."""
    files: Callable[[Any], Mapping[str, tuple[str, ...]]] = lambda config: {}
    """Of a configuration: what a whole checkpoint holds besides the ledger."""
    arguments: Callable[[Any], Mapping[str, Any]] = lambda config: {}
    """Of a configuration: what the trainer takes besides."""
    models: Callable[[Any], Mapping[str, str]] = lambda config: {}
    """Of a configuration: other reward models that a run depends on: what one is → its name."""
    reference: bool = False
    """Whether the trainer takes `ref_model`, the model as it was at the start."""

    def settled(self, config: Any) -> Any:
        """The configuration for the trainer."""
        loaded = {name: None for name in LOADED if hasattr(config, name)}
        return dataclasses.replace(config, **loaded, **self.settings)


def _sft_rows(rows: Dataset, tokenizer: Any, config: RobustSFTConfig) -> Dataset:
    return to_trl_format(rows, bool(tokenizer.chat_template), config.dataset_text_field)


def _pairs(rows: Dataset, tokenizer: Any, config: Any) -> Dataset:
    return _visible(to_preferences(rows), tokenizer, config)


def _beliefs(rows: Dataset, tokenizer: Any, config: Any) -> Dataset:
    return _visible(to_belief_rows(rows), tokenizer, config)


def _visible(pairs: Dataset, tokenizer: Any, config: Any) -> Dataset:
    """Without what training may not see."""
    if isinstance(pairs[0]["prompt"], list):
        require_template(tokenizer)
    return visible(with_sample_ids(pairs), config.group_column)


def _files_of_groups(config: Any) -> Mapping[str, tuple[str, ...]]:
    return GroupEG.files if config.comparator == "group-eg" else {}


FAMILIES = {
    "sft": Family(
        config=RobustSFTConfig,
        trainer=RobustSFTTrainer,
        data="stdlib-docs",
        prepared=_sft_rows,
        settings={"dataset_text_field": "text"},
        files=lambda config: checkpoint_files(OBJECTIVES.get(config.objective or "")),
    ),
    "reward": Family(
        config=RobustRewardConfig,
        trainer=RobustRewardTrainer,
        data="doc-preferences",
        prepared=_pairs,
        form=to_preferences,
        purpose=REWARD,
        files=_files_of_groups,
    ),
    "dpo": Family(
        config=RobustDPOConfig,
        trainer=RobustDPOTrainer,
        data="doc-preferences",
        prepared=_pairs,
        form=to_preferences,
        files=_files_of_groups,
        reference=True,
    ),
    "gdpo": Family(
        config=GDPOConfig,
        trainer=GDPOTrainer,
        data="beliefs",
        prepared=_beliefs,
        form=to_belief_rows,
        reference=True,
    ),
    "grpo": Family(
        config=GRPORunConfig,
        trainer=RobustGRPOTrainer,
        data="word-problems",
        prepared=prompt_rows,
        form=check_prompts,
        files=files_of,
        arguments=reward_functions,
        models=models_of,
    ),
}


def family_of(config: Any) -> Family:
    """The family of a configuration. Raises ValueError if it is none's."""
    found = [family for family in FAMILIES.values() if type(config) is family.config]
    if not found:
        names = ", ".join(family.config.__name__ for family in FAMILIES.values())
        raise ValueError(f"{type(config).__name__} is the configuration of no family: those are {names}")
    return found[0]
