"""Trainers of the families used as they should not be: refused in one line, and what is left is right."""

import json

import pytest
import torch
from datasets import Dataset
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from klball import RobustDPOTrainer
from klball.data.ids import group_names
from klball.scores.accuracy import columns_of, pair_report
from klball.training.preference.forward import reference
from preference_grid import NUM_ROWS, rows, trainer_for

# --- another family's ------------------------------------------------------------------------------


def checkpoint(family, folder):
    trainer, _ = trainer_for(
        dict(family=family, epsilon=0.1), "8x1", str(folder), save_strategy="steps", save_steps=1
    )
    trainer.train()
    return folder / "checkpoint-1"


def test_a_checkpoint_of_another_family_is_refused(tmp_path):
    """Its ledger has as many rows, and scores of another kind."""
    found = checkpoint("dpo", tmp_path / "dpo")
    ledger = found / "ledger.safetensors"
    with safe_open(ledger, "pt") as file:
        about = json.loads(file.metadata()["draws"])
    trainer, _ = trainer_for(dict(family="dpo", epsilon=0.1), "8x1", str(tmp_path / "again"))
    other = {"draws": json.dumps({**about, "family": "robust-sft"})}
    save_file(load_file(ledger), ledger, metadata=other)
    with pytest.raises(ValueError, match="of another family, robust-sft, not robust-dpo"):
        trainer.train(resume_from_checkpoint=str(found))
    save_file(load_file(ledger), ledger, metadata={"draws": json.dumps(about)})
    trainer.train(resume_from_checkpoint=str(found))
    assert trainer.state.global_step == 3


@pytest.mark.parametrize("family", ["dpo", "reward"])
@pytest.mark.parametrize("where", ["train_dataset", "eval_dataset"])
@pytest.mark.parametrize("turns", [False, True])
@pytest.mark.parametrize(
    ("answers", "said"),
    [(("x", "x "), "rejected: the same answer as chosen"), (("x", " "), "rejected: the answer is empty")],
)
def test_pairs_without_a_difference_are_refused(answers, said, turns, where, family, tmp_path):
    def row(chosen, rejected):
        texts = {"prompt": "a", "chosen": chosen, "rejected": rejected}
        return {
            k: [{"role": "user" if k == "prompt" else "assistant", "content": v}] if turns else v
            for k, v in texts.items()
        }

    good, bad = Dataset.from_list([row("y", "z")] * 3), Dataset.from_list([row("y", "z"), row(*answers)])
    data = {"train_dataset": (bad, good), "eval_dataset": (good, bad)}[where]
    with pytest.raises(ValueError, match=rf"^{where}, row 2 \(counted from 1\), {said}"):
        trainer_for(
            dict(family=family, epsilon=0.1), "8x1", str(tmp_path), data=data[0], eval_dataset=data[1]
        )


# --- columns ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["dpo", "gdpo"])
def test_a_margin_is_refused_where_it_has_no_effect(family, tmp_path):
    data = rows(family).add_column("margin", [0.5] * len(rows(family)))
    with pytest.raises(ValueError, match="column margin has no effect"):
        trainer_for(dict(family=family), "8x1", str(tmp_path), data=data)


@pytest.mark.parametrize(
    ("groups", "said"),
    [
        (["a"] * NUM_ROWS, "all rows have 'a' in 'kind': one group leaves nothing to weigh"),
        ([3] * NUM_ROWS, "all rows have 3 in 'kind'"),
        (["a", None] * (NUM_ROWS // 2), "row 2 has None in 'kind'"),
        ([0.5] * NUM_ROWS, "row 1 has 0.5 in 'kind'"),
        ([["a"]] * NUM_ROWS, "row 1 has"),
    ],
)
@pytest.mark.parametrize("family", ["dpo", "reward"])
def test_groups_that_say_nothing_are_refused(groups, said, family, tmp_path):
    data = rows(family).add_column("kind", groups)
    with pytest.raises(ValueError, match=said):
        trainer_for(dict(family=family, group_column="kind"), "8x1", str(tmp_path), data=data)


def test_a_group_may_be_called_none():
    names = ["None", "None", None, None]
    columns = {"sample_id": list("abcd"), "loss": [1.0, 2, 3, 4], "margin": [1.0, -1, 1, -1], "group": names}
    report = pair_report(columns_of(Dataset.from_dict(columns))[0])
    parts = {row["part"]: row["value"] for row in report if row["metric"] == "loss"}
    assert {part: value for part, value in parts.items() if "group" in part} == {"group None": 1.5}
    with pytest.raises(ValueError, match="row 3 has None"):
        group_names(Dataset.from_dict(columns), "group")


# --- the reference ---------------------------------------------------------------------------------


def test_noise_in_training_does_not_reach_the_reference_of_an_adapter(tmp_path):
    case = dict(family="dpo", epsilon=0.0, lora=True)
    trainer, _ = trainer_for(case, "8x1", str(tmp_path), neftune_noise_alpha=50.0, learning_rate=0.0)
    seen = []
    original = RobustDPOTrainer.compute_ref_log_probs

    def watched(self, model, inputs):
        seen.append((inputs, original(self, model, inputs)))
        return seen[-1][1]

    trainer.compute_ref_log_probs = watched.__get__(trainer)
    trainer.train()
    inputs, noted = seen[-1]
    assert torch.equal(reference(trainer, inputs), torch.cat(noted))
