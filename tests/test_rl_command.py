"""`klball train --family grpo`: verifiable and learnt rewards, killed and finished, refused in one line."""

import csv
import shutil

import pytest

from klball.cli import main
from small_runs import train, unfinish, write_rows
from test_rl_reward_model import small_reward_model

FAMILY = ["--family", "grpo", "--num_generations", "4", "--max_completion_length", "6", "--radius", "0.2"]
TWICE = ["--num_iterations", "2", "--shrinkage", "0", "--per_device_train_batch_size", "8"]
VERIFIED = [*FAMILY, "--reward", "exact"]


@pytest.fixture(scope="module")
def prompts(root, tokenizer):
    """A reward model and rows: a question whose answer is easily hit or missed, in two groups."""
    small_reward_model(tokenizer).save_pretrained(root / "reward")
    tokenizer.save_pretrained(root / "reward")
    rows = [{"question": f"What is {i}?", "answer": str(i), "kind": str(i % 2)} for i in range(3)]
    write_rows(root / "prompts.jsonl", rows)
    return root


def run(prompts, folder, *more, rows="prompts.jsonl"):
    train(prompts, folder, *more, rows=rows)
    return folder


@pytest.mark.parametrize("learnt", [False, True])
def test_a_killed_run_is_finished_to_the_byte(learnt, prompts, tmp_path):
    kind = [*FAMILY, "--reward_model", str(prompts / "reward"), *TWICE] if learnt else VERIFIED
    whole = run(prompts, tmp_path / "whole", *kind)
    killed = shutil.copytree(whole, tmp_path / "killed")
    shutil.rmtree(unfinish(killed) / "checkpoint-4")
    run(prompts, killed, *kind)
    for name in ("model.safetensors", "history.parquet", "top_weighted.csv"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name
    with (whole / "top_weighted.csv").open() as file:
        top = list(csv.DictReader(file))
    assert set(top[0]) == {"sample_id", "n_q", "mean_reward", "prompt", "answer"}
    weights = [float(row["n_q"]) for row in top]
    assert weights == sorted(weights, reverse=True)
    if learnt:
        assert weights[0] > 1 > weights[-1]


def test_groups_are_told_at_the_end(prompts, tmp_path):
    over = ["--over", "group", "--group_column", "kind"]
    folder = run(prompts, tmp_path, *FAMILY, "--reward_model", str(prompts / "reward"), *over)
    with (folder / "groups.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["group"] for row in rows} == {"0", "1"} and "mean_reward" in rows[0]


def test_pairs_are_prompts_and_what_is_known_of_their_labels_is_shown_at_the_end(prompts, tmp_path):
    """RLHF on the pairs of its reward model: rewards may not see which are flipped, and people may."""
    pairs = [
        {"prompt": f"What is {i}?", "chosen": f"It is {i}.", "rejected": "No.", "flipped": i == 1}
        for i in range(3)
    ]
    write_rows(prompts / "pairs.jsonl", pairs)
    kind = [*FAMILY, "--reward_model", str(prompts / "reward")]
    folder = run(prompts, tmp_path, *kind, rows="pairs.jsonl")
    with (folder / "top_weighted.csv").open() as file:
        shown = {row["prompt"]: row["flipped"] for row in csv.DictReader(file)}
    assert shown == {f"What is {i}?": str(i == 1).lower() for i in range(3)}
    over = ["--over", "group", "--group_column", "flipped"]
    with pytest.raises(ValueError, match="'flipped' is about the labels: training may not see it"):
        run(prompts, tmp_path / "groups", *kind, *over, rows="pairs.jsonl")


def test_another_reward_model_is_another_run(prompts, tmp_path, tokenizer):
    shutil.copytree(prompts / "reward", tmp_path / "reward")
    kind = [*FAMILY, "--reward_model", str(tmp_path / "reward")]
    run(prompts, tmp_path / "run", *kind)
    unfinish(tmp_path / "run")
    small_reward_model(tokenizer, intermediate_size=16).save_pretrained(tmp_path / "reward")
    with pytest.raises(ValueError, match="reward model"):
        run(prompts, tmp_path / "run", *kind)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (FAMILY, "give --reward"),
        ([*FAMILY, "--reward", "best"], "reward must be one of"),
        ([*FAMILY, "--reward", "mine.py"], "functions of your own are for RobustGRPOTrainer(reward_funcs=…)"),
        (
            [*VERIFIED, "--over", "group", "--group_column", "nosuch"],
            "no column 'nosuch'; there are question, answer, kind",
        ),
        ([*FAMILY, "--reward_model", "nowhere"], "nowhere"),
        ([*VERIFIED, "--cut_penalty", "2"], "cut_penalty has no effect without --reward_model"),
        ([*FAMILY, "--reward_model", "nowhere", "--length_penalty", "1"], "length_penalty has no effect"),
        ([*VERIFIED, "--rescore_steps", "2"], "rescore_steps has no effect"),
        ([*VERIFIED, "--max_length", "2"], "max_length"),
        (["--reward", "exact"], "--reward is an option of --family grpo"),
        ([*VERIFIED, "--objective", "psft"], "--objective is an option of --family sft"),
    ],
)
def test_refusals_are_one_line(words, said, prompts, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        main(
            ["train", *words, "--dataset_name", str(prompts / "prompts.jsonl"), "--output_dir", str(tmp_path)]
        )
    assert caught.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert said in error and "Traceback" not in error


def test_a_reward_without_answers_is_refused(prompts, tmp_path):
    write_rows(prompts / "bare.jsonl", [{"prompt": f"What is {i}?"} for i in range(3)])
    with pytest.raises(ValueError, match="needs a column 'answer'"):
        run(prompts, tmp_path, *VERIFIED, rows="bare.jsonl")
