"""What two processes over gloo say of a score that is not finite on one of them, a checkpoint, a score table.

Run by test_processes.py in two by `launch.py`: `two_processes.py FOLDER`.
"""

import dataclasses
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from gradient_grid import CASES, trainer_for
from klball import RobustSFTTrainer, cli
from klball.models.token_scores import NonFiniteLogitError
from klball.scores.scorer import Scorer

RANK = int(os.environ.get("RANK", "0"))
SICK = 5  # the row that cannot be scored
SCORED = 40  # rows
SAVING = dict(save_strategy="steps", save_steps=1, per_device_train_batch_size=2)


def sick_forward(run: RobustSFTTrainer, field: str) -> None:
    """NaN in one field of the scores of the first row that the second process trains on."""
    forward = run._forward

    def sick(model, inputs):
        scores = forward(model, inputs)
        values = getattr(scores, field).clone()
        values[0] = torch.nan if RANK == 1 else values[0]
        return dataclasses.replace(scores, **{field: values})

    run._forward = sick


def sick_scoring(run: RobustSFTTrainer) -> None:
    """No finite logit for one row, which the first process scores: 22 rows are one batch."""
    ids, score = run.samples[SICK]["input_ids"], Scorer.score

    def sick(scorer, rows):
        if RANK == 0 and any(row["input_ids"] == ids for row in rows):
            raise NonFiniteLogitError("a NaN or infinite logit")
        return score(scorer, rows)

    run._scorer = lambda dataset: lambda rows: sick(Scorer(run.model, ids), rows)


FAULTS: dict[str, tuple[str, Callable]] = {
    "log-likelihood": ("nll-ball-sample", lambda run: sick_forward(run, "log_probs")),
    "certainty": ("nll-certainty-sample", lambda run: sick_forward(run, "certainty")),
    "scoring": ("nll-ball-sample", sick_scoring),
}


def message(case: str, make_sick: Callable) -> str:
    with tempfile.TemporaryDirectory() as folder:
        run, _ = trainer_for(CASES[case], "two processes", folder)
        make_sick(run)
        try:
            run.train()
        except ValueError as error:
            return str(error)
    return ""


if __name__ == "__main__":
    torch.set_num_threads(1)
    target = Path(sys.argv[1])
    said = {name: message(*fault) for name, fault in FAULTS.items()}
    (target / f"said-{RANK}.json").write_text(json.dumps(said))
    saved, _ = trainer_for(CASES["nll-ball-sample"], "4x1", str(target / "run"), **SAVING)
    saved.train()
    cli.main(["score", "--max_rows", str(SCORED), "--output_dir", str(target / "scored")])
