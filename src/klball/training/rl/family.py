"""What `klball train --family grpo` adds to the trainer: which rewards, and how rows become prompts."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset

from klball.data.encoding import require_template
from klball.data.ids import with_sample_ids
from klball.data.preferences import visible
from klball.data.prompts import to_prompts
from klball.models.loading import REWARD, load_model
from klball.training.rl.config import RobustGRPOConfig
from klball.training.rl.critic import Critic
from klball.training.rl.reward_model import RewardModel
from klball.training.rl.rewards import VERIFIABLE, LengthPenalized, refuse_unknown_reward


@dataclass
class GRPORunConfig(RobustGRPOConfig):
    """The trainer's configuration and its rewards, by name. Raises ValueError for none, or an unknown one."""

    reward: str | None = field(
        default=None, metadata={"help": f"Verifiable reward of the column answer: {', '.join(VERIFIABLE)}."}
    )
    reward_model: str | None = field(
        default=None, metadata={"help": "A trained reward model, as a folder or a Hub name; may be added."}
    )
    cut_penalty: float = field(
        default=1.0, metadata={"help": "Of the reward model: less for a completion cut at the limit."}
    )
    length_penalty: float = field(
        default=0.0, metadata={"help": "Taken from the verifiable reward for every token of the completion."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reward is None and self.reward_model is None:
            raise ValueError(f"give --reward ({', '.join(VERIFIABLE)}) or --reward_model PATH")
        if self.reward is not None:
            refuse_unknown_reward("reward", self.reward)
        elif self.length_penalty:
            raise ValueError("length_penalty has no effect without --reward")
        if self.reward_model is None and self.cut_penalty != type(self).cut_penalty:
            raise ValueError("cut_penalty has no effect without --reward_model")


def reward_functions(config: GRPORunConfig) -> dict[str, list[Any]]:
    """The trainer's argument: the rewards of a configuration, which TRL adds up."""
    found: list[Any] = []
    if config.reward is not None:
        reward = VERIFIABLE[config.reward]()
        penalty = config.length_penalty
        found.append(LengthPenalized(reward, penalty) if penalty else reward)
    if config.reward_model is not None:
        model, tokenizer = load_model(
            config.reward_model, purpose=REWARD, trust_remote_code=config.trust_remote_code
        )
        found.append(RewardModel(model, tokenizer, cut_penalty=config.cut_penalty))
    return {"reward_funcs": found}


def models_of(config: GRPORunConfig) -> dict[str, str]:
    """What a run depends on beside the model it trains: what it is → name."""
    return {} if config.reward_model is None else {"reward model": config.reward_model}


def files_of(config: GRPORunConfig) -> Mapping[str, tuple[str, ...]]:
    """What a whole checkpoint holds besides the ledger."""
    return Critic.files if config.critic else {}


def prompt_rows(rows: Dataset, tokenizer: Any, config: GRPORunConfig) -> Dataset:
    """Prompts as the trainer takes them."""
    shown = visible(with_sample_ids(rows), config.group_column)
    prompts = to_prompts(shown, bool(tokenizer.chat_template))
    if isinstance(prompts[0]["prompt"], list):
        require_template(tokenizer)
    return prompts
