"""What a refused command leaves in its output folder: nothing."""

import json

import pytest

from klball.cli import main
from klball.commands.leftovers import no_leftovers
from small_runs import write_rows

ROWS, PAIRS = ("--dataset_name", "ROWS"), ("--dataset_name", "PAIRS")
OVER, EXACT = ("--over", "group"), ("--reward", "exact", "--max_completion_length", "4")
NOT_THERE = ("--group_column", "nothere")
LARGE = ("--per_device_train_batch_size", "64")
LORA = ("--use_peft", "--lora_target_modules", "nothere")


@pytest.fixture(scope="module")
def pairs(root):
    rows = [{"prompt": f"Is it {i}?", "chosen": " yes" * (1 + i % 3), "rejected": " no"} for i in range(8)]
    write_rows(root / "pairs.jsonl", rows)
    return root


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", *ROWS, *NOT_THERE], "no column 'nothere'"),
        (["train", *ROWS, *LORA], "not found in the base model"),
        (["train", *ROWS, "--max_length", "1"], "no row has an answer token"),
        (["train", *ROWS, "--lr_scheduler_kwargs", '{"a": 1}'], "there is no setting 'a'"),
        (["train", *ROWS, "--resume_from_checkpoint", "true"], "no whole checkpoint"),
        (["train", "--family", "dpo", *PAIRS, *NOT_THERE], "no column 'nothere'"),
        (["train", "--family", "dpo", *PAIRS, "--reweight", "static"], "would weigh all pairs alike"),
        (["train", "--family", "reward", *PAIRS, *NOT_THERE], "no column 'nothere'"),
        (["train", "--family", "gdpo", *OVER, *NOT_THERE], "no column 'nothere'"),
        (
            ["train", "--family", "grpo", *EXACT, *OVER, *NOT_THERE],
            "no column 'nothere'",
        ),
        (["tune", *ROWS, *NOT_THERE], "rows to train on: group_column: the data have no column 'nothere'"),
        (["tune", *ROWS, *LORA], "not found in the base model"),
        (["tune", *ROWS, "--max_length", "1"], "no row has an answer token"),
        (["tune", *ROWS, "--max_length", "15"], "no held-out row fits uncut in --max_length 15"),
        (["tune", *ROWS, "--lr_scheduler_kwargs", '{"a": 1}'], "there is no setting 'a'"),
        (["tune", *ROWS, "--on_infeasible", "raise"], "on_infeasible needs gamma"),
        (["tune", *ROWS, "--dataloader_drop_last", "true", *LARGE], "dataloader_drop_last leaves nothing"),
        (["score", *ROWS, "--max_length", "1"], "no row has an answer token"),
        (["score", "--family", "dpo", *PAIRS], "name the model that its DPO began from"),
        (["compare", *ROWS, "--models", "MODEL", "b=nowhere"], "could not load model 'nowhere'"),
        (["evaluate", "--datasets", "ROWS", "--max_length", "1"], "no row has an answer token"),
        (["scan", *ROWS, "--models", "nowhere"], "could not load model 'nowhere'"),
        (["reproduce", *ROWS, "--ood_name", "ROWS", "--variants", "group=nothere"], "no column 'nothere'"),
        (["reproduce", *ROWS, "--ood_name", "ROWS", "--variants", "cap=0.5"], "must be at least 1"),
        (["reproduce", *ROWS, "--ood_name", "ROWS", "--variants", "trim=1"], "trim must be"),
        (
            ["reproduce", *ROWS, "--ood_name", "ROWS", "--variants", "cup=3"],
            "is not one of lower, optimistic",
        ),
    ],
)
def test_a_refusal_leaves_nothing(words, said, pairs, tmp_path, capsys):
    places = {"ROWS": pairs / "rows.jsonl", "PAIRS": pairs / "pairs.jsonl", "MODEL": pairs / "model"}
    words = [str(places.get(word, word)) for word in words]
    if words[0] in ("train", "tune", "score"):
        words += ["--model_name_or_path", str(pairs / "model")]
    folder = tmp_path / "not" / "there"
    with pytest.raises(SystemExit) as caught:
        main([*words, "--output_dir", str(folder)])
    assert caught.value.code == 2 and said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_what_was_there_or_is_finished_stays(tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(ValueError, match="refused"), no_leftovers(tmp_path):
        (tmp_path / "run.json").write_text("{}")
        (tmp_path / "arms" / "a").mkdir(parents=True)
        raise ValueError("refused")
    assert {path.name for path in tmp_path.rglob("*")} == {"own", "mine.txt"}
    (tmp_path / "run.json").write_text(json.dumps({"of": "an earlier run"}))
    with pytest.raises(ValueError, match="refused"), no_leftovers(tmp_path):
        (tmp_path / "run.json").write_text("{}")
        raise ValueError("refused")
    assert json.loads((tmp_path / "run.json").read_text()) == {"of": "an earlier run"}
    with pytest.raises(ValueError, match="late"), no_leftovers(tmp_path / "new"):
        (tmp_path / "new" / "checkpoint-1").mkdir(parents=True)
        for place in ("run.json", "checkpoint-1/trainer_state.json"):
            (tmp_path / "new" / place).write_text("{}")
        raise ValueError("late")
    assert (tmp_path / "new" / "run.json").exists()
