"""A radius for the user's own data: arms at equal budget, compared on held-out rows, and one of them chosen.

Every arm is an ordinary run of `klball train`. With halving it stops at a share of its steps, with the
checkpoint that the same run goes on from if it is kept: what was trained at one rung is the beginning of what
the next one needs.
"""

import dataclasses
import gc
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from torch import Tensor
from trl import ModelConfig

from klball.data.encoding import load_chat_template
from klball.data.ids import group_names
from klball.data.rows import IGNORED
from klball.files import RUN_FILE, file_name
from klball.models.loading import load_on_device
from klball.models.token_scores import NonFiniteLogitError
from klball.report.pages.parts import BASE
from klball.report.pages.training import write_training_page
from klball.scores.frontier import frontier_row, groups_judged
from klball.scores.own import usable
from klball.scores.scorer import encode_for
from klball.scores.tables import score
from klball.scores.tails import hardest
from klball.studies.arms import Steps, table_path
from klball.studies.tuning_choice import kept, rungs_of
from klball.terminal import is_main, progress_bar
from klball.training.identity import settings_of
from klball.training.run import train
from klball.training.sft.config import RobustSFTConfig
from klball.training.stages import checkpoint_at, refuse_no_step

PLAIN = "ε = 0"
HELD_OUT, TEST = "held-out", "test"
OF_ADVERSARY = (  # settings that say nothing to ε = 0
    *("ambiguity", "direction", "max_weight", "trim", "epsilon_warmup", "group_column", "reweight"),
    *("rescore_steps", "gamma", "certainty_gradient", "on_infeasible"),
)


@dataclass(frozen=True)
class Arm:
    """One way to train; kind: "samples", "groups" or a cap, between which radii do not compare."""

    label: str
    kind: str
    epsilon: float
    settings: dict[str, Any]

    @property
    def folder(self) -> str:
        """Its name on disk."""
        return file_name(self.label.replace("ε = ", "eps-").replace(", ", "-").replace(" ", "-"))


def arms_of(epsilons: Sequence[float], caps: Sequence[float], group_column: str | None) -> list[Arm]:
    """ε = 0; every radius over samples; with every cap; and over groups where a column names them."""
    fields = {field.name: field.default for field in dataclasses.fields(RobustSFTConfig)}
    plain = {name: fields[name] for name in OF_ADVERSARY}
    arms = [Arm(PLAIN, "plain", 0.0, {"epsilon": 0.0, **plain})]
    kinds: list[tuple[str, dict[str, Any]]] = [("samples", {"max_weight": None, "group_column": None})]
    kinds += [(f"cap {cap:g}", {"max_weight": cap, "group_column": None}) for cap in caps]
    if group_column is not None:
        kinds.append(("groups", {"max_weight": None, "group_column": group_column}))
    for kind, settings in kinds:
        suffix = "" if kind == "samples" else f", {kind}"
        for epsilon in sorted({*epsilons} - {0.0}):
            arms.append(Arm(f"ε = {epsilon:g}{suffix}", kind, epsilon, {"epsilon": epsilon, **settings}))
    return arms


@dataclass(frozen=True)
class Study:
    """What is tuned. config: of every arm, but for what an arm sets; resolved: what its run.json says.

    start_scores: of the training rows before the first step, once an arm has made them.
    """

    train: Dataset
    held_out: Dataset
    test: Dataset | None
    config: RobustSFTConfig
    model: ModelConfig
    resolved: dict[str, Any]
    folder: Path
    epsilons: Sequence[float]
    caps: Sequence[float]
    max_cost: float
    halving: bool
    start_scores: dict[str, Tensor] = field(default_factory=dict, init=False)

    @cached_property
    def arms(self) -> list[Arm]:
        """ε = 0 first."""
        return arms_of(self.epsilons, self.caps, self.config.group_column)

    @property
    def tail(self) -> str:
        """The measure that robustness has to buy."""
        return "cvar" if self.config.group_column is None else "worst_group"

    def place_of(self, arm: Arm) -> Path:
        """The folder of an arm's run."""
        return self.folder / "arms" / arm.folder


def refuse_unusable(study: Study) -> None:
    """Raise ValueError for what an arm's settings or trainer refuse, before anything is scored or trained.

    One arm that is not begun stands for its kind.
    """
    settled = {arm.label: _config_of(study, arm) for arm in study.arms}
    for arm in {arm.kind: arm for arm in reversed(study.arms)}.values():
        if not (study.place_of(arm) / RUN_FILE).exists():
            train(study.train, settled[arm.label], dataclasses.replace(study.model), study.resolved, until=0)
            gc.collect()
    refuse_no_step(rungs_of(len(study.arms) - 1, study.halving)[0].share, most_steps(study))


def most_steps(study: Study) -> int:
    """The optimizer steps of a whole run, but for rows that leave it or are packed."""
    config = study.config
    if config.max_steps > 0:
        return config.max_steps
    batches = math.ceil(len(study.train) / (config.train_batch_size * config.world_size))
    return math.ceil(config.num_train_epochs * math.ceil(batches / config.gradient_accumulation_steps))


def _config_of(study: Study, arm: Arm) -> RobustSFTConfig:
    run = str(study.place_of(arm))
    return dataclasses.replace(study.config, output_dir=run, disable_tqdm=True, **arm.settings)


def rungs(study: Study) -> Iterator[list[dict[str, Any]]]:
    """The rows of every rung's arms, that of ε = 0 first, once all of them are trained and scored."""
    plain, *alive = study.arms
    base = scored(study, str(study.model.model_name_or_path), BASE, HELD_OUT)
    for rung in rungs_of(len(alive), study.halving):
        share = rung.share
        tables = {arm.label: _at(study, arm, share) for arm in (plain, *alive)}
        rows = [
            {"arm": arm.label, "kind": arm.kind, "epsilon": arm.epsilon, "share": share, **numbers}
            for arm, numbers in zip(
                (plain, *alive), compared(study, tables, base, study.held_out), strict=True
            )
        ]
        if share < 1:
            going_on = kept(rows[1:], len(alive) // 2, study.tail, study.max_cost)
            alive = [arm for arm in alive if arm.label in going_on]
        yield rows


def _at(study: Study, arm: Arm, share: float) -> Dataset:
    """The held-out scores of an arm trained to this share of its steps."""
    return scored(study, *trained(study, arm, share), HELD_OUT)


def trained(study: Study, arm: Arm, share: float) -> tuple[str, str]:
    """The folder of an arm's model at this share of the steps, trained if need be, and a name for it."""
    run, config = study.place_of(arm), _config_of(study, arm)
    resolved = {**study.resolved, "arm": arm.label, "training": settings_of(config)}
    part = "" if share == 1 else f" to {100 * share:g} % of the steps"
    with progress_bar(f"{arm.label}: training{part}", "steps") as progress:
        train(
            *(study.train, config, dataclasses.replace(study.model), resolved),
            callbacks=[Steps(progress)],
            until=share,
            start_scores=study.start_scores,
        )
    gc.collect()  # a trainer refers to itself: its model would stay beside the next one
    if share == 1:
        if is_main():
            write_training_page(run, f"Robust fine-tuning, {arm.label}")
        return whole(study, arm)
    checkpoint = checkpoint_at(run, share)
    if checkpoint is None:
        raise ValueError(
            f"{run} has no whole checkpoint at {100 * share:g} % of its steps: it was trained without a stop "
            "there; give --halving false, or another --output_dir"
        )
    return str(checkpoint), f"{arm.folder}/{checkpoint.name}"


def whole(study: Study, arm: Arm) -> tuple[str, str]:
    """The folder of an arm's model once it is trained to the end, and a name for it."""
    return str(study.place_of(arm)), f"{arm.folder}/whole"


def scored(study: Study, model_name: str, label: str, part: str) -> Dataset:
    """A score table on the held-out or the test rows, from disk where it is finished."""
    rows = study.test if part == TEST else study.held_out
    assert rows is not None
    revision = study.model.model_revision if label == BASE else None
    model, tokenizer = load_on_device(model_name, study.model.dtype or "auto", revision)
    load_chat_template(tokenizer, study.config.chat_template_path)
    output = table_path(study.folder, label, part)
    if label == BASE and not output.exists():
        _refuse_cut_rows(study, model, tokenizer)
    with progress_bar(f"{label}: scoring the {part} rows") as progress:
        try:
            return score(
                *(model, tokenizer, rows),
                max_length=study.config.max_length,
                output=output,
                progress=progress,
            )
        except NonFiniteLogitError as error:
            raise ValueError(f"{label}: {error}") from error


def _refuse_cut_rows(study: Study, model: Any, tokenizer: Any) -> None:
    """Raise ValueError where no row of a part could be compared: a table of it would be of no use."""
    limit = study.config.max_length
    for part, rows in ((HELD_OUT, study.held_out), (TEST, study.test)):
        if rows is None:
            continue
        encoded = encode_for(model, tokenizer, rows, limit)
        answered = [any(label != IGNORED for label in labels[1:]) for labels in encoded["labels"]]
        fit = ~np.array(encoded["truncated"][:]) & answered
        if not fit.any():
            raise ValueError(f"no {part} row fits uncut in --max_length {limit}, or in what the model takes")
        column = study.config.group_column if part == HELD_OUT else None
        if column and not groups_judged(groups_in(rows, study, fit)):
            raise ValueError(
                f"no group of {column!r} has 10 held-out rows that fit uncut in --max_length {limit}, or in "
                "what the model takes"
            )


def groups_in(rows: Dataset, study: Study, chosen: np.ndarray | None = None) -> list[str]:
    """The groups of rows, or of the `chosen` of them; none without a column."""
    if study.config.group_column is None:
        return []
    groups = map(str, group_names(rows, study.config.group_column))
    return list(groups if chosen is None else compress(groups, chosen))


def compared(study: Study, tables: dict[str, Dataset], base: Dataset, rows: Dataset) -> list[dict[str, Any]]:
    """`frontier_row` of all tables against the first, on rows that fit uncut; the base has the hardest."""
    fit = usable(base)
    if not fit.any():
        raise ValueError("no row that has an answer fits uncut in max_length: nothing to compare")
    named = groups_in(rows, study, fit) or None
    losses = [-np.array(table["log_likelihood"][:], dtype=float)[fit] for table in (base, *tables.values())]
    first, *others = losses
    hard = hardest(-first)
    return [{**frontier_row(loss, others[0], hard, named), "rows": len(loss)} for loss in others]
