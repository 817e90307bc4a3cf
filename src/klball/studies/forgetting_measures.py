"""What a model of the forgetting experiment is measured by, against the start that all arms share."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from klball.data.prompts import ANSWER, to_prompts
from klball.files import combined, json_digest
from klball.scan.behaviour import behaviour_from, own_answers
from klball.scan.forgetting import forgetting
from klball.scan.generation import end_tokens
from klball.scan.implicit_rewards import gradient_weights, implicit_rewards, top_share
from klball.scores.perplexity import token_nll
from klball.scores.scorer import TOKENS
from klball.scores.tables import score
from klball.studies.arms import OWN, START, Options, base_answers, kept, load, table_path
from klball.studies.own_answers import answer_table
from klball.terminal import progress_bar
from klball.training.identity import model_digest, row_digests
from klball.training.rl.rewards import FINISHED, Reward

TASK, HARD, OTHER = "test", "hard", "ood"


@dataclass(frozen=True)
class Measures:
    """One model. π₀ is the start, π the model; KL in nats per token, exact at each position.

    accuracy, hard_accuracy: greedy, on held-out rows of the task and on harder ones. sampled: share of right
    answers at temperature 1, on the task's prompts that models answer themselves. forgetting: by how much
    the true answers of the other data have become less likely, nats per token; hard_nll likewise, of the
    harder problems. kl_task, kl_other: KL(π₀‖π) on answers of π₀ to the task's and to other prompts;
    reverse_kl_…: KL(π‖π₀) on answers of π. entropy, distinct_2, self_bleu: of π's own answers to the task.
    reward_top, gradient_top: what the top 1 % of the tokens of the task's solutions hold of SFT's implicit
    reward 1/p at this model, and of SFT's gradient there.
    """

    accuracy: float
    sampled: float
    hard_accuracy: float
    hard_nll: float
    forgetting: float
    kl_task: float
    reverse_kl_task: float
    kl_other: float
    reverse_kl_other: float
    entropy: float
    distinct_2: float
    self_bleu: float
    reward_top: float
    gradient_top: float


MEASURES = tuple(Measures.__annotations__)


class Reference:
    """The start, what it answers, and how likely it finds true answers."""

    def __init__(
        self, options: Options, folder: Path, start: str, data: dict[str, Dataset], reward: Reward
    ) -> None:
        self.options, self.folder, self.data, self.reward = options, folder, data, reward
        self.model, tokenizer = load(start, options)
        chat = bool(tokenizer.chat_template)  # arms have the start's tokenizer
        self.problems = {name: to_prompts(data[name], chat) for name in (TASK, HARD)}
        self.right = dict(zip(self.problems[TASK]["sample_id"], self.problems[TASK][ANSWER], strict=True))
        self.answers = {
            name: base_answers(
                *(self.model, tokenizer, data[name], options), folder / "own" / START / f"{name}.parquet"
            )
            for name in (TASK, OTHER)
        }
        self.nll = {
            name: token_nll(self._scored(self.model, tokenizer, name, START)) for name in (HARD, OTHER)
        }
        self.asked = {
            "start": model_digest(start),
            "answers": json_digest([written["input_ids"][:] for _, written in self.answers.values()]),
            "data": combined(digest for rows in data.values() for digest in row_digests(rows)),
            "reward": repr(reward),
            "tokens": options.max_completion_length,
            **{name: getattr(options, name) for name in OWN},
        }

    def measures(self, path: str, place: str) -> dict[str, float]:
        """Of one model, kept in measures/PLACE.json."""
        asked = {**self.asked, "model": model_digest(path)}
        output = self.folder / "measures" / f"{place}.json"
        found = kept(output, asked, lambda: asdict(self._measured(*load(path, self.options), place)))
        return asdict(Measures(**found))  # a JSON file has another order

    def _measured(self, model: Any, tokenizer: Any, place: str) -> Measures:
        prompts, written = self.answers[TASK]
        others, written_of_others = self.answers[OTHER]
        own = self._own(model, tokenizer, prompts, place)
        own_of_others = self._own(model, tokenizer, others, place)
        behaviour = behaviour_from(self.model, model, written, own)
        log_probs = self._scored(model, tokenizer, TASK, place)[TOKENS][:]
        (of_tokens, _) = implicit_rewards(log_probs)
        return Measures(
            accuracy=self._accuracy(model, tokenizer, TASK, place),
            sampled=self._sampled(own, end_tokens(model, tokenizer)),
            hard_accuracy=self._accuracy(model, tokenizer, HARD, place),
            hard_nll=token_nll(self._scored(model, tokenizer, HARD, place)) - self.nll[HARD],
            forgetting=token_nll(self._scored(model, tokenizer, OTHER, place)) - self.nll[OTHER],
            kl_task=behaviour.forgetting,
            reverse_kl_task=forgetting(model, self.model, own),
            kl_other=forgetting(self.model, model, written_of_others),
            reverse_kl_other=forgetting(model, self.model, own_of_others),
            entropy=behaviour.own_entropy,
            distinct_2=behaviour.distinct_2,
            self_bleu=behaviour.self_bleu,
            reward_top=of_tokens.top_share,
            gradient_top=top_share(gradient_weights(log_probs, "nll", np.ones(len(log_probs)))[0]),
        )

    def _own(self, model: Any, tokenizer: Any, prompts: Dataset, place: str) -> Dataset:
        with progress_bar(f"{place}: answering") as progress:
            settings = (self.options.own_tokens, self.options.own_samples)
            return own_answers(model, tokenizer, prompts, *settings, progress=progress)

    def _accuracy(self, model: Any, tokenizer: Any, name: str, place: str) -> float:
        with progress_bar(f"{place}: problems of {name}", "prompts") as progress:
            table = answer_table(
                *(model, tokenizer, self.problems[name], self.reward),
                max_new_tokens=self.options.max_completion_length,
                output=self.folder / "answers" / place / f"{name}.parquet",
                progress=progress,
            )
        return float(np.mean(table["log_likelihood"][:]))

    def _sampled(self, own: Dataset, ends: list[int]) -> float:
        found = self.reward(
            prompts=None,
            completions=own["text"][:],
            completion_ids=None,
            **{ANSWER: [self.right[sample_id] for sample_id in own["sample_id"]]},
            **{FINISHED: [labels[-1] in ends for labels in own["labels"]]},
        )
        return float(np.mean(np.array(found, dtype=float)))

    def _scored(self, model: Any, tokenizer: Any, name: str, place: str) -> Dataset:
        with progress_bar(f"{place}: scoring {name}") as progress:
            return score(
                *(model, tokenizer, self.data[name]),
                max_length=self.options.max_length,
                output=table_path(self.folder, place, name),
                progress=progress,
                token_log_probs=name == TASK,
            )
