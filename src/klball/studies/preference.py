"""The preference experiment: radius, direction and groups against flipped labels, and other people's weights.

The embedded model after a short SFT is the start and the reference. Every arm is an ordinary `klball train
--family dpo`, and every measure comes from an ordinary pair table on clean held-out pairs.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset

from klball.data.builtin import load_builtin
from klball.data.rows import load_rows, to_preferences
from klball.scores.accuracy import columns_of
from klball.scores.pairs import EncodedPairs, dpo_table, encode_pairs, likelihoods
from klball.scores.perplexity import token_nll
from klball.scores.tables import read_scores, score
from klball.studies.arms import START, Options, first, load, num_steps, run_settings, start_of, train_run
from klball.studies.beliefs import run_beliefs
from klball.studies.preference_summary import Outcome, outcome_of, report
from klball.terminal import is_main, progress_bar
from klball.training.preference.config import RobustDPOConfig

DATA, GROUP = "doc-preferences", "field"
COMPARED_AT = 0.2  # the rate of flips at which comparators run
RESCORE_STEPS = 20  # a scoring of all pairs costs as much as a fifth of an arm's steps


@dataclass(frozen=True)
class PairArm:
    """One way to train on pairs of which a share `flip` is flipped; settings: of RobustDPOConfig."""

    label: str
    kind: str
    flip: float
    epsilon: float
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> str:
        """Below the seed's."""
        name = "".join(c if c.isalnum() or c in ".-" else "-" for c in self.label)
        return f"flip-{self.flip:g}/{name}"


def arms_of(options: Options) -> list[PairArm]:
    """Every radius pessimistic over pairs, some optimistic, one over groups; at one rate the comparators."""
    radii = [epsilon for epsilon in options.epsilons if epsilon > 0]
    few = radii[len(radii) // 2 :: 2] or radii
    arms = []
    for flip in options.flips:
        arms.append(PairArm("DPO", "plain", flip, 0.0, {"epsilon": 0.0}))
        arms += [_ball("pairs", flip, epsilon) for epsilon in radii]
        arms += [_ball("optimistic", flip, epsilon, direction="optimistic") for epsilon in few]
        arms += [_ball("groups", flip, epsilon, group_column=GROUP) for epsilon in few[:1]]
    at = COMPARED_AT if COMPARED_AT in options.flips else options.flips[-1]
    return arms + comparators(options, at, few[0] if few else 0.05)


def _ball(kind: str, flip: float, epsilon: float, **more: Any) -> PairArm:
    settings = {"epsilon": epsilon, "rescore_steps": RESCORE_STEPS, **more}
    return PairArm(f"{kind} ε = {epsilon:g}", kind, flip, epsilon, settings)


def comparators(options: Options, flip: float, epsilon: float) -> list[PairArm]:
    """What others do about noise or groups, each at the same budget."""
    rate = {"loss_type": ["robust"], "label_smoothing": flip} if 0 < flip < 0.5 else {"loss_type": ["ipo"]}
    trim = {"comparator": "trim", "comparator_strength": min(0.5, flip or 0.1)}
    ball = {"epsilon": epsilon, "rescore_steps": RESCORE_STEPS}
    found = {
        "TRL robust" if flip else "IPO": {"epsilon": 0.0, **rate},
        "Dr. DPO": {"epsilon": 0.0, "comparator": "dr-dpo"},
        "KLDPO": {"epsilon": 0.0, "comparator": "kldpo"},
        "group EG": {"epsilon": 0.0, "comparator": "group-eg", "group_column": GROUP},
        f"trimmed, ε = {epsilon:g}": {**ball, **trim},
        f"capped, ε = {epsilon:g}": {**ball, "max_weight": 2.0},
        "lr/4": {"epsilon": 0.0, "learning_rate": options.learning_rate / 4},
    }
    return [PairArm(name, "comparator", flip, s["epsilon"], s) for name, s in found.items()]


def run(options: Options, folder: Path) -> Iterator[int]:
    """Train and measure what is not there yet; report after every seed, and yield it."""
    test = first(load_rows(DATA, "test", form=to_preferences), options.test_rows)
    other = first(
        load_rows(options.ood_name, options.ood_split, options.ood_config, default="test"), options.ood_rows
    )
    label = "stdlib-docs before preferences"
    start = start_of(options, folder, "stdlib-docs", sft_rows(options), label)
    measured = _Measured(options, folder, start, test, other)
    outcomes: list[Outcome] = []
    beliefs: list[dict[str, Any]] = []
    for seed in range(options.seeds):
        hardest = None
        for arm in sorted(arms_of(options), key=lambda arm: (arm.flip, arm.kind != "plain")):
            columns = columns_of(measured.after(arm, seed))[0]
            hardest = hardest or columns  # of plain DPO on clean labels, or the cleanest there are
            forgetting = measured.forgetting(arm, seed)
            outcomes.append(outcome_of(arm, seed, columns, hardest, forgetting, measured.run_of(arm, seed)))
        beliefs += run_beliefs(options, folder, seed)
        if is_main():
            report(outcomes, beliefs, folder)
        yield seed


def sft_rows(options: Options) -> Dataset:
    """Questions and answers for the start: of training's, so that some are in pairs as well."""
    rows = Dataset.from_list(load_builtin("stdlib-docs", "train")).shuffle(seed=1)
    return rows.select(range(min(len(rows), options.start_steps * options.per_device_train_batch_size)))


@dataclass
class _Measured:
    """The start's likelihoods, which every arm's are compared with."""

    options: Options
    folder: Path
    start: str
    test: Dataset
    other: Dataset

    def __post_init__(self) -> None:
        model, tokenizer = load(self.start, self.options)
        self.pairs: EncodedPairs = encode_pairs(self.test, tokenizer, GROUP)
        self._score(model, tokenizer, START)
        self.start_nll = token_nll(read_scores(self._path(START, "other"))[0])

    def run_of(self, arm: PairArm, seed: int) -> Path:
        """Where an arm is trained."""
        return self.folder / f"seed-{seed}" / arm.folder

    def after(self, arm: PairArm, seed: int) -> Dataset:
        """The pair table of an arm, trained and scored if it is not there yet."""
        run = self.run_of(arm, seed)
        name = DATA if arm.flip == 0 else f"{DATA}:flip={arm.flip:g}"
        rows = first(load_rows(name, "train", form=to_preferences), self.options.train_rows)
        settings = run_settings(run, num_steps(len(rows), self.options), seed, self.options)
        config = RobustDPOConfig(
            **{**settings, "beta": self.options.beta, "precompute_ref_log_probs": True, **arm.settings}
        )
        train_run(config, rows, self.start, f"flips {arm.flip:g}, {arm.label}", seed, self.options)
        place = f"seed-{seed}/{arm.folder}"
        model, tokenizer = load(str(run), self.options)
        self._score(model, tokenizer, place)
        paths = (self._path(place, "pairs"), self._path(START, "pairs"))
        return dpo_table(self.pairs, *paths, self.options.beta, self._path(place, "dpo"))

    def forgetting(self, arm: PairArm, seed: int) -> float:
        """Nats per token that other data have become less likely."""
        path = self._path(f"seed-{seed}/{arm.folder}", "other")
        return token_nll(read_scores(path)[0]) - self.start_nll

    def _score(self, model: Any, tokenizer: Any, place: str) -> None:
        options: dict[str, Any] = {"max_length": self.options.max_length}
        with progress_bar(f"{place}: scoring") as progress:
            likelihoods(
                model, tokenizer, self.pairs, self._path(place, "pairs"), progress=progress, **options
            )
            score(
                model, tokenizer, self.other, output=self._path(place, "other"), progress=progress, **options
            )

    def _path(self, place: str, name: str) -> Path:
        return self.folder / "scores" / place / f"{name}.parquet"
