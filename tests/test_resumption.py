"""Training that was stopped or damaged goes on to the same result, or says why not."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from safetensors.torch import load_file, save_file

from klball.training.checkpoints import NEEDED, newest_complete, problem_of
from klball.training.sft.window import NEEDED_FILES
from small_runs import FINAL, PEFT, SETTINGS, contents, train, unfinish, write_rows


@pytest.mark.parametrize("objective", ["nll", "psft"])
def test_a_run_killed_after_its_last_checkpoint_takes_no_step_more(objective, root, tmp_path):
    train(root, tmp_path / "run", "--objective", objective)
    expected = contents(tmp_path / "run")
    unfinish(tmp_path / "run")
    train(root, tmp_path / "run", "--objective", objective)
    assert contents(tmp_path / "run") == expected
    assert not (tmp_path / "run" / "checkpoint-5").exists()


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def junk(path):
    path.write_bytes(b"\x80junk" * 9)


def empty(path):
    path.write_bytes(b"")


def gone(path):
    path.unlink()


def a_folder(path):
    path.unlink()
    path.mkdir()


FILES = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "model.safetensors", "ledger.safetensors")
READ = (*FILES, "history.parquet", "trainer_state.json")
DAMAGES = [(f, d) for f in READ for d in (cut, junk, empty, gone, a_folder)]


@pytest.mark.parametrize(("file", "damage"), DAMAGES, ids=[f"{d.__name__} {f}" for f, d in DAMAGES])
def test_every_damage_is_seen(file, damage, stopped):
    assert problem_of(stopped / "checkpoint-4") is None
    damage(stopped / "checkpoint-4" / file)
    problem = problem_of(stopped / "checkpoint-4")
    assert problem is not None and "\n" not in problem
    assert newest_complete(stopped) == str(stopped / "checkpoint-2")


@pytest.mark.parametrize("state", ["{}", '{"global_step": 9999, "train_batch_size": 2}', "[" * 99_999])
def test_a_state_of_another_step_is_no_state(state, stopped):
    (stopped / "checkpoint-4" / "trainer_state.json").write_text(state)
    assert "trainer_state.json is damaged" in str(problem_of(stopped / "checkpoint-4"))


def test_a_checkpoint_without_the_window_of_psft_is_not_resumed_by_psft(stopped):
    assert newest_complete(stopped) == str(stopped / "checkpoint-4")
    assert newest_complete(stopped, NEEDED_FILES) is None
    (stopped / "checkpoint-2" / "psft-window-0.safetensors").write_bytes(
        (stopped / "checkpoint-2" / "ledger.safetensors").read_bytes()
    )
    assert newest_complete(stopped, NEEDED_FILES) == str(stopped / "checkpoint-2")


def test_a_file_called_like_a_checkpoint_is_none(stopped):
    (stopped / "checkpoint-9").write_text("")
    assert newest_complete(stopped) == str(stopped / "checkpoint-4")


@pytest.mark.parametrize("file", ["optimizer.pt", "trainer_state.json"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(file, root, stopped, finished, caplog):
    cut(stopped / "checkpoint-4" / file)
    train(root, stopped)
    assert "checkpoint-4 is passed over" in caplog.text
    assert contents(stopped) == contents(finished)


def test_without_a_whole_checkpoint_the_run_begins_anew_and_says_so(root, stopped, finished, caplog):
    junk(stopped / "checkpoint-4" / "ledger.safetensors")
    junk(stopped / "checkpoint-2" / "rng_state.pth")
    train(root, stopped)
    assert "starting from the beginning" in caplog.text
    assert contents(stopped) == contents(finished)


def test_checkpoints_of_models_alone_are_not_resumed(root, tmp_path, caplog):
    train(root, tmp_path / "run", "--save_only_model", "true")
    expected = contents(tmp_path / "run")
    unfinish(tmp_path / "run")
    train(root, tmp_path / "run", "--save_only_model", "true")
    assert "no optimizer state (as with --save_only_model)" in caplog.text
    assert contents(tmp_path / "run") == expected


def test_what_a_resumption_needs_is_what_a_checkpoint_has(finished):
    names = {path.name for path in (finished / "checkpoint-4").iterdir()}
    assert set(READ) <= names
    assert all(any((finished / "checkpoint-4").glob(name) for name in names) for names in NEEDED.values())


def test_a_moved_run_remembers_its_best_checkpoint(root, tmp_path):
    """By the largest loss, that of step 2."""
    best = [
        "--load_best_model_at_end",
        "true",
        "--metric_for_best_model",
        "loss",
        "--greater_is_better",
        "true",
    ]
    best += ["--eval_strategy", "steps", "--eval_steps", "2", "--test_name", str(root / "test.jsonl")]
    write_rows(root / "test.jsonl", [{"question": "What is 30?", "answer": "the value of a key"}])
    train(root, tmp_path / "run", *best)
    whole = (tmp_path / "run" / "model.safetensors").read_bytes()
    assert whole == (tmp_path / "run" / "checkpoint-2" / "model.safetensors").read_bytes()
    unfinish(tmp_path / "run").rename(tmp_path / "moved")
    train(root, tmp_path / "moved", *best)
    assert (tmp_path / "moved" / "model.safetensors").read_bytes() == whole


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["cvar", "eval_robust_loss"])
def test_the_best_model_is_the_one_with_the_best_tail(metric, root, tmp_path):
    """With a learning rate that ruins the model, the first is."""
    best = ["--load_best_model_at_end", "true", "--metric_for_best_model", metric, "--learning_rate", "0.5"]
    train(
        root,
        tmp_path / "run",
        *best,
        "--eval_strategy",
        "steps",
        "--eval_steps",
        "2",
        "--test_fraction",
        "0.3",
    )
    state = json.loads((tmp_path / "run" / "checkpoint-4" / "trainer_state.json").read_text())
    name = f"eval_{metric.removeprefix('eval_')}"
    values = {entry["step"]: entry[name] for entry in state["log_history"] if name in entry}
    least = min(values, key=lambda step: values[step])
    assert len(set(values.values())) == 2 and state["best_metric"] == values[least]
    whole = (tmp_path / "run" / "model.safetensors").read_bytes()
    assert whole == (tmp_path / "run" / f"checkpoint-{least}" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("name", ["save", "serialize_file"])
def test_a_disk_that_is_full_in_a_checkpoint_leaves_a_run_that_goes_on(
    name, root, finished, tmp_path, monkeypatch
):
    """torch and safetensors leave the half of a file and raise errors of their own."""
    module = torch if name == "save" else safetensors.torch
    write = getattr(module, name)

    def full(content, path, *arguments, **more):
        write(content, path, *arguments, **more)
        if "checkpoint-4" in str(path):
            cut(Path(path))
            raise RuntimeError("No space left on device")

    monkeypatch.setattr(module, name, full)
    with pytest.raises(RuntimeError, match="No space left"):
        train(root, tmp_path / "run")
    monkeypatch.undo()
    train(root, tmp_path / "run")
    assert contents(tmp_path / "run") == contents(finished)


def test_resumption_from_a_checkpoint_that_is_named(root, finished, tmp_path, caplog):
    start = ["--resume_from_checkpoint", str(finished / "checkpoint-2")]
    train(root, tmp_path / "run", *start)
    for name in FINAL:
        assert (tmp_path / "run" / name).read_bytes() == (finished / name).read_bytes()
    assert not (tmp_path / "run" / "checkpoint-2").exists()
    unfinish(tmp_path / "run")
    train(root, tmp_path / "run", *start)  # its own checkpoint-4 goes first
    assert (tmp_path / "run" / FINAL[0]).read_bytes() == (finished / FINAL[0]).read_bytes()
    with pytest.raises(ValueError, match="on other starting checkpoint"):
        train(root, tmp_path / "run", "--resume_from_checkpoint", str(finished / "checkpoint-4"))
    longer = ["--max_steps", "6", "--resume_from_checkpoint", str(finished / "checkpoint-4")]
    train(root, tmp_path / "longer", *longer)
    assert (tmp_path / "longer" / "checkpoint-6").exists()


def test_an_edited_chat_template_is_another_run(root, tmp_path):
    """The path alone was compared: half of the steps would be of rows that read otherwise."""
    template, text = (
        tmp_path / "chat.jinja",
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}",
    )
    template.write_text(text)
    given = ["--chat_template_path", str(template)]
    train(root, tmp_path / "run", *given)
    template.write_text(text.replace(": ", " says "))
    for end in (lambda: None, lambda: unfinish(tmp_path / "run")):
        end()
        with pytest.raises(ValueError, match="on other chat template"):
            train(root, tmp_path / "run", *given)
    template.write_text(text)
    train(root, tmp_path / "run", *given)


def test_a_checkpoint_that_was_renamed_within_its_run_is_resumed(root, finished, tmp_path):
    shutil.copytree(finished / "checkpoint-2", tmp_path / "run" / "best")
    train(root, tmp_path / "run", "--resume_from_checkpoint", str(tmp_path / "run" / "best"))
    assert (tmp_path / "run" / FINAL[0]).read_bytes() == (finished / FINAL[0]).read_bytes()


def test_checkpoints_that_cannot_be_begun_from_are_refused(root, finished, stopped, tmp_path):
    def refused(message, checkpoint, *more, **names):
        with pytest.raises(ValueError, match=message) as caught:
            train(root, tmp_path / "new", *more, "--resume_from_checkpoint", str(checkpoint), **names)
        assert "\n" not in str(caught.value)

    refused("there is no checkpoint", tmp_path / "nowhere")
    refused("has no whole checkpoint", "latest")
    refused("has no whole checkpoint", "True")
    refused("is of a run on other data", finished / "checkpoint-2", rows="other.jsonl")
    refused("it was not finished", root / "model")
    refused(
        "holds a whole model",
        finished / "checkpoint-2",
        *PEFT,
    )
    gone(stopped / "checkpoint-4" / "optimizer.pt")
    refused("no optimizer state", stopped / "checkpoint-4")
    weights = load_file(stopped / "checkpoint-2" / "model.safetensors")
    narrow = {name: weight[..., :-1].contiguous() for name, weight in weights.items()}
    save_file(narrow, stopped / "checkpoint-2" / "model.safetensors")
    refused("is of another model: .* does not fit", stopped / "checkpoint-2")


@pytest.mark.parametrize("word", ["true", "latest"])
def test_resumption_from_the_newest(word, root, stopped, finished):
    train(root, stopped, "--resume_from_checkpoint", word)
    assert contents(stopped) == contents(finished)


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--objective", "psft", *PEFT]])
def test_kills_at_every_third_write_end_alike(more, root, tmp_path):
    script = Path(__file__).with_name("kills.py")
    names = ["--model_name_or_path", str(root / "model"), "--dataset_name", str(root / "rows.jsonl")]
    arguments = ["train", *names, *SETTINGS, *more, "--output_dir", str(tmp_path / "run")]
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "run"), "3", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout.splitlines()[-1])
    assert outcome["kills"] > 25 and outcome["identical"] == outcome["kills"], outcome["others"]


@pytest.mark.parametrize("best", [False, True])
def test_what_a_kill_leaves_of_files_and_old_checkpoints_goes(best, root, tmp_path):
    """A kill while the final model is written, or while an old checkpoint is deleted, which makes it new."""
    more = ["--save_steps", "1", "--save_total_limit", "2"]
    if best:  # of falling losses, in which case it is an old checkpoint that is kept
        more += ["--eval_strategy", "steps", "--eval_steps", "1", "--eval_dataset", str(root / "other.jsonl")]
        more += ["--metric_for_best_model", "eval_loss", "--greater_is_better", "true"]
    folder = tmp_path / "run"
    train(root, folder, *more)
    whole = contents(folder)
    assert [(folder / f"checkpoint-{k}").exists() for k in range(1, 5)] == [best, False, not best, True]
    unfinish(folder)
    shutil.copytree(folder / "checkpoint-4", folder / "checkpoint-2")
    (folder / "checkpoint-2" / "trainer_state.json").unlink()
    (folder / ".tmpAbC123").touch()
    (folder / ".tmpfolder").mkdir()
    shutil.copytree(folder / "checkpoint-4", folder / "checkpoint-4-copy")  # the user's own
    train(root, folder, *more)
    shutil.rmtree(folder / "checkpoint-4-copy")
    assert contents(folder) == whole
