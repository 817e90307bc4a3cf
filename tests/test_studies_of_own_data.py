"""Studies of a user's own files: splits by prompt, nothing tested that was trained on, what a report says."""

import dataclasses
from types import SimpleNamespace

import pytest
from datasets import Dataset
from peft import LoraConfig, get_peft_model

from conftest import small_qwen
from klball.cli import main
from klball.commands import tune as tune_command
from klball.commands.reproduce import EXPERIMENTS, _parse
from klball.data.splitting import prompts_of
from klball.models.loading import load_model
from klball.report.pages.reproduction import _where
from klball.scan.behaviour import Behaviour
from klball.scores.perplexity import token_mean, token_nll
from klball.scores.tables import score
from klball.studies import forgetting_measures, head_to_head, robustness
from klball.studies.arms import data_of, refuse_unusable
from klball.studies.forgetting import task_data
from klball.training.identity import num_shared, refuse_training_rows
from small_runs import write_rows
from test_robustness_study import options

PROG = "klball reproduce"


def parsed(*arguments):
    return _parse(list(map(str, arguments)), PROG)


@pytest.fixture
def files(tmp_path):
    rows = [
        {"question": f"What is {i % 10}?", "answer": f"It is {i}.", "kind": "ab"[i % 2]} for i in range(40)
    ]
    write_rows(tmp_path / "rows.jsonl", rows)
    write_rows(tmp_path / "ood.jsonl", [{"question": f"Where is {i}?", "answer": "There."} for i in range(8)])
    return tmp_path


def of(files, *more):
    return parsed("--dataset_name", files / "rows.jsonl", "--ood_name", files / "ood.jsonl", *more)


def test_a_single_file_is_split_by_its_prompts(files):
    data = data_of(dataclasses.replace(of(files), train_rows=None, test_rows=None, ood_rows=None))
    train, test = (set(prompts_of(data[name])) for name in ("train", "test"))
    assert not train & test and len(train | test) == 10 and len(data["test"]) == 8


@pytest.mark.parametrize("option", ["--test_name", "--ood_name"])
def test_rows_that_are_all_trained_on_are_no_test(option, files):
    given = of(files, "--test_name", files / "ood.jsonl", option, files / "rows.jsonl")
    with pytest.raises(ValueError, match=f"also trained on: give others, with {option}"):
        data_of(given)


def test_what_chooses_nothing_shares_no_row_with_what_chooses(files, monkeypatch):
    monkeypatch.setattr(tune_command, "tune", lambda study: pytest.fail("was tuned"))
    words = ["--dataset_name", str(files / "rows.jsonl"), "--test_fraction", "0.2"]
    words += ["--eval_dataset", str(files / "rows.jsonl"), "--output_dir", str(files / "out")]
    with pytest.raises(ValueError, match="8 of the 40 rows to choose by are among the test rows"):
        tune_command.main(words, "klball tune")


def test_the_report_has_words_for_every_measure():
    assert all(map(_where, [*robustness.MEASURES, "worst_group"]))


def test_rows_that_are_cut_are_in_no_mean(files, monkeypatch):
    """As they are in no tail beside it."""
    model, tokenizer = load_model("klball/tiny")
    rows = [{"prompt": "Say it.", "completion": " word" * n} for n in (3, 4, 60)]
    table = score(model, tokenizer, Dataset.from_list(rows), max_length=40)
    assert table["truncated"][:] == [False, False, True]
    whole = score(model, tokenizer, Dataset.from_list(rows[:2]))
    tables = {"test": table, "ood": table}
    reference = head_to_head._Reference(None, None, None, tables, options())  # pyright: ignore
    monkeypatch.setattr(head_to_head._Reference, "_behaviour", lambda *_: Behaviour(0, 0, 0, 0, 0))
    found = reference.outcome("arm", 0, tables, "", files)
    assert found.task_nll == found.other_nll == pytest.approx(token_nll(whole))
    assert found.entropy == pytest.approx(token_mean(whole, "entropy")) and found.gain == 0
    reference.tables = {**tables, "ood": table.select([2])}
    with pytest.raises(ValueError, match="'ood' fits in every model uncut"):
        reference.outcome("arm", 0, reference.tables, "", files)


def test_radii_that_share_a_folder_and_robust_arms_without_a_radius_are_refused(files):
    words = ("--epsilons", "0.1234567", "0.1234568")
    for experiment in ("robustness", "preference"):
        with pytest.raises(ValueError, match=r"0.123457 twice.*six digits"):
            parsed("--experiment", experiment, *words)
    tuned = ("--dataset_name", str(files / "rows.jsonl"), *words, "--output_dir", str(files / "out"))
    with pytest.raises(ValueError, match=r"0.123457 twice.*six digits"):
        tune_command.main(tuned, "klball tune")
    with pytest.raises(ValueError, match="no radius above 0"):
        head_to_head.arms_of(options(epsilons=(0.0,)))


def test_what_training_would_refuse_is_refused_before_anything_is_scored(files):
    holes = Dataset.from_list([{"prompt": "a", "completion": "b", "kind": k} for k in ("x", None)])
    given = options("group=kind")
    arms = robustness.arms_of(given)
    with pytest.raises(ValueError, match=r"rows to train on, in their shuffled order: .*row 2"):
        refuse_unusable(arms, holes, files, given)
    adapted = get_peft_model(small_qwen(64), LoraConfig(r=2, target_modules="all-linear"))
    adapted.save_pretrained(files / "adapter")
    for experiment in EXPERIMENTS:
        words = ("--experiment", experiment, "--model_name_or_path", files / "adapter")
        with pytest.raises(ValueError, match=r"is an adapter.* give --lora_r 0"):
            parsed(*words, "--lora_r", "8")
        assert parsed(*words, "--lora_r", "0").lora_r == 0


def test_too_few_prompts_to_split_are_refused_in_words_of_the_study(files):
    write_rows(files / "rows.jsonl", [{"question": "What?", "answer": f"{i}."} for i in range(9)])
    with pytest.raises(ValueError, match=r"rows.jsonl: of 9 rows, 2 to be held out.* as --test_name"):
        data_of(of(files))


def test_a_row_is_known_by_what_both_data_say(caplog):
    train = Dataset.from_list([{"id": i, "question": f"{i}?", "answer": "a", "kind": "x"} for i in range(6)])
    others = train.select(range(3)).remove_columns(["id", "kind"]).add_column("source", ["y"] * 3)
    with pytest.raises(ValueError, match="--test_name"):
        refuse_training_rows(train, test_name=others)
    told = train.select(range(3)).remove_columns("answer").add_column("messages", [[], [], []])
    assert num_shared(train, told) == num_shared(train, told.remove_columns("messages")) == 0
    refuse_training_rows(train.select([0, 4, 5]), ood_name=others)
    assert "1 of 3 rows of --ood_name" in caplog.text


def test_harder_problems_are_none_that_were_trained_on(tmp_path):
    rows = [{"question": f"What is {i} + 1?", "answer": f"#### {i + 1}"} for i in range(40)]
    name, other = tmp_path / "rows.jsonl", tmp_path / "other.jsonl"
    write_rows(name, rows[10:])
    write_rows(other, rows[:10])
    words = ("--experiment", "forgetting", "--dataset_name", name, "--hard_name", name, "--test_name", other)
    with pytest.raises(ValueError, match="also trained on: give others, with --hard_name"):
        task_data(dataclasses.replace(parsed(*words), train_rows=None, test_rows=5))


def test_what_is_kept_of_a_model_is_of_these_answers(files, monkeypatch):
    """Accuracies of other answers under the same ids are others."""
    of = forgetting_measures
    monkeypatch.setattr(of, "load", lambda *_: (None, SimpleNamespace(chat_template=None)))
    monkeypatch.setattr(of, "base_answers", lambda *_: (None, {"input_ids": []}))
    monkeypatch.setattr(of, "token_nll", lambda _: 0.0)
    monkeypatch.setattr(of, "model_digest", str)
    monkeypatch.setattr(of.Reference, "_scored", lambda *_: None)

    def asked(answer):
        rows = Dataset.from_list([{"sample_id": "0", "question": "Which?", "answer": answer}])
        data = dict.fromkeys((of.TASK, of.HARD, of.OTHER), rows)
        return of.Reference(options(), files, "start", data, None).asked  # pyright: ignore

    assert asked("2") == asked("2") != asked("7")


@pytest.mark.parametrize("experiment", ["robustness", "objectives", "forgetting"])
def test_a_preset_says_nothing_of_where_in_other_data(experiment, files):
    plain = parsed("--experiment", experiment, "--preset", "paper")
    names = {"dataset_name": "rows.jsonl", "ood_name": "ood.jsonl"}
    words = [word for name, file in names.items() for word in (f"--{name}", files / file)]
    own = parsed("--experiment", experiment, "--preset", "paper", *words)
    assert (own.dataset_config, own.dataset_train_split, own.ood_config) == (None, "train", None)
    assert own.learning_rate == plain.learning_rate
    named = parsed("--experiment", experiment, "--preset", "paper", *words, "--ood_split", "validation")
    assert named.ood_split == "validation"
    same = (word for name in names for word in (f"--{name}", getattr(plain, name)))
    assert parsed("--experiment", experiment, "--preset", "paper", *same) == plain
    embedded = parsed("--experiment", experiment, "--preset", "paper", "--ood_name", options().ood_name)
    assert embedded.ood_config is None and embedded.dataset_train_split == plain.dataset_train_split
    other = parsed("--experiment", experiment, "--preset", "paper", "--model_name_or_path", "klball/tiny")
    assert other.chat_template_path is None


def test_a_start_that_is_not_trained_needs_no_data():
    assert parsed("--experiment", "forgetting", "--preset", "tiny", "--start_steps", "0").start_steps == 0
    with pytest.raises(ValueError, match="start_names has no effect"):
        parsed("--experiment", "forgetting", "--start_steps", "0", "--start_names", "word-problems")


def test_groups_whose_rows_are_all_cut_are_not_judged(tmp_path, capsys):
    """The worst group of those that are left is no worst group."""
    rows = [
        {"question": f"What is {i}?", "answer": "long " * 80 if i % 2 else "It.", "kind": "ab"[i % 2]}
        for i in range(60)
    ]
    write_rows(tmp_path / "rows.jsonl", rows)
    words = ["tune", "--dataset_name", str(tmp_path / "rows.jsonl"), "--group_column", "kind"]
    words += ["--epsilons", "0.1", "--max_steps", "2", "--eval_fraction", "0.5", "--max_length", "40"]
    words += ["--report_to", "none", "--per_device_train_batch_size", "2"]
    main([*words, "--output_dir", str(tmp_path / "out")])
    assert "Not judged, with fewer than 10 held-out rows: b" in " ".join(capsys.readouterr().out.split())
    ids = [
        {"input_ids": [9 + i, 6], "labels": [-100, 6 if i % 3 == 0 else -100], "kind": "ab"[i % 2]}
        for i in range(60)
    ]
    for others in (
        [row | {"kind": f"{k % 4}"} for k, row in enumerate(rows)],
        ids,
    ):  # cut, or without a label
        write_rows(tmp_path / "rows.jsonl", others)
        with pytest.raises(SystemExit):
            main([*words, "--output_dir", str(tmp_path / "other")])
        assert "no group of 'kind' has 10 held-out rows that fit uncut" in capsys.readouterr().err
