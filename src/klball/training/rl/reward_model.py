"""A trained reward model as a reward function, reading texts exactly as it was trained to."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from klball.data.encoding import template_options
from klball.data.formats import RENDERING
from klball.models.weights import weights_hash
from klball.scores.pairs import rewards_of
from klball.training.rl.answers import text_of
from klball.training.rl.rewards import FINISHED


class RewardModel:
    """The scores of a model that `RobustRewardTrainer` or `trl.RewardTrainer` trained, as a reward function.

    Messages are rendered with the chat template; a plain text is prompt + completion + EOS, which TRL itself
    leaves out for a model among `reward_funcs`. A completion that was cut at the limit is scored as if it
    had ended there, less `cut_penalty`: of two answers that seem alike the finished one wins with odds
    e^cut_penalty.

    Args:
        model: A sequence classifier of one label.
        tokenizer: Its own.
        cut_penalty: In units of the reward, 0 or more.
        batch_size: Texts scored at once; rewards do not depend on it.

    Raises:
        ValueError: A model with more labels, or a tokenizer without what its texts need.
    """

    __name__ = "reward_model"

    def __init__(self, model: Any, tokenizer: Any, *, cut_penalty: float = 1.0, batch_size: int = 16):
        if not hasattr(model, "config"):
            raise ValueError(f"a reward model is a loaded sequence classifier, not {model!r:.60}")
        labels = getattr(model.config, "num_labels", None)
        if labels != 1:
            raise ValueError(
                f"a reward model has one label, not {labels}: train one with RobustRewardTrainer"
            )
        if not cut_penalty >= 0:
            raise ValueError(f"cut_penalty must be 0 or more, not {cut_penalty}")
        if tokenizer.eos_token is None:
            raise ValueError("the reward model's tokenizer has no end-of-text token")
        pad = model.config.get_text_config().pad_token_id
        if pad is None:
            raise ValueError(
                "the reward model's configuration has no pad_token_id: where a text ends is unknown"
            )
        self.model, self.tokenizer, self.pad = model.eval().requires_grad_(False), tokenizer, pad
        self.cut_penalty, self.batch_size = cut_penalty, batch_size

    def __repr__(self) -> str:
        """By the weights: what was made with one is not taken for what another would make."""
        return f"RewardModel({weights_hash(self.model)}, cut_penalty={self.cut_penalty})"

    def to(self, device: torch.device) -> "RewardModel":
        """Moves the model."""
        self.model.to(device)
        return self

    def __call__(
        self, prompts: Any, completions: Any, completion_ids: Any = None, **columns: Any
    ) -> list[float]:
        finished = columns.get(FINISHED) or [True] * len(completions)
        given = {name: columns[name] for name in RENDERING if columns.get(name)}
        rows = [{name: values[k] for name, values in given.items()} for k in range(len(prompts))]
        texts = zip(prompts, completions, rows, strict=True)
        ids = [self.ids_of(*text, place=place) for place, text in enumerate(texts)]
        rewards = self.scores(ids).tolist()
        return [r - self.cut_penalty * (not whole) for r, whole in zip(rewards, finished, strict=True)]

    def ids_of(
        self, prompt: Any, completion: Any, row: Mapping[str, Any] | None = None, place: int = 0
    ) -> list[int]:
        """The tokens of one text, as the reward model was trained on them; row: what its template reads."""
        if isinstance(prompt, str):
            text = prompt + text_of(completion)
            eos = self.tokenizer.eos_token
            return self.tokenizer(text if text.endswith(eos) else text + eos)["input_ids"]
        if self.tokenizer.chat_template is None:
            raise ValueError(
                "the reward model's tokenizer has no chat template, and the prompts are messages"
            )
        options = template_options(dict(row or {}), place=place)
        chat = self.tokenizer.apply_chat_template(prompt + completion, return_dict=True, **options)
        return chat["input_ids"]

    def scores(self, texts: list[list[int]]) -> Tensor:
        """Rewards of tokenised texts, (B), float32, on the CPU."""
        batches = (texts[start : start + self.batch_size] for start in range(0, len(texts), self.batch_size))
        return torch.cat([rewards_of(self.model, batch, self.pad) for batch in batches])
