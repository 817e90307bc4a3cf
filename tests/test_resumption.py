"""Training that was stopped, damaged, moved or changed: the same result, or a line that says why not."""

import json
import logging
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from conftest import small_qwen
from klball import RobustSFTConfig, RobustSFTTrainer
from klball.evaluation.models import TINY_FOLDER, load_model
from klball.experiments import train as command
from klball.training.checkpoints import NEEDED, newest_complete, problem_of
from klball.training.identity import INDIFFERENT, model_digest

FINAL = ("model.safetensors", "history.parquet", "top_weighted.csv")
SETTINGS = shlex.split("""
    --max_steps 4 --save_steps 2 --per_device_train_batch_size 4 --lr_scheduler_type constant
    --learning_rate 0.01 --report_to none --logging_steps 1 --disable_tqdm true --gradient_checkpointing false
""")


@pytest.fixture(scope="module")
def root(tmp_path_factory, tokenizer):
    """A model, 24 rows (6 steps an epoch: step 4 is inside it), and rows with another answer."""
    folder = tmp_path_factory.mktemp("resumption")
    small_qwen(len(tokenizer)).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    rows = [{"question": f"What is {i}?", "answer": "the value of " + "a key " * (i % 7)} for i in range(24)]
    write_rows(folder / "rows.jsonl", rows)
    write_rows(folder / "other.jsonl", [*rows[:-1], {**rows[-1], "answer": "nothing"}])
    return folder


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def train(root, folder, *more, model="model", rows="rows.jsonl"):
    """Run the command; what `more` says goes before the settings above."""
    given = ["--model_name_or_path", str(root / model), "--dataset_name", str(root / rows), *SETTINGS, *more]
    options: dict[str, list[str]] = {}
    for word in [*given, "--output_dir", str(folder)]:
        if word.startswith("--"):
            options[word] = values = [word]
        else:
            values.append(word)
    command.main([word for words in options.values() for word in words], "klball train")


@pytest.fixture(scope="module")
def finished(root):
    train(root, root / "finished")
    return root / "finished"


@pytest.fixture
def stopped(finished, tmp_path):
    """The run as a kill before the last files leaves it, and what it would have become."""
    shutil.copytree(finished, tmp_path / "run")
    return unfinish(tmp_path / "run")


def unfinish(folder):
    for name in FINAL:
        (folder / name).unlink(missing_ok=True)
    return folder


def contents(folder):
    """Every file's bytes, but for those that name the folder, and tokens counted since a resumption."""
    files = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
    naming = ("training_args.bin", "run.json", "README.md")
    read = {str(name): path.read_bytes() for name, path in files.items() if name.name not in naming}
    for name in [name for name in read if name.endswith("trainer_state.json")]:
        state = json.loads(read[name])
        for entry in state["log_history"]:
            entry.pop("num_tokens", None)
        read[name] = state
    return read


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


PEFT = shlex.split("--use_peft --lora_target_modules q_proj v_proj")
FILES = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "model.safetensors", "ledger.safetensors")
READ = (*FILES, "history.parquet", "trainer_state.json")
DAMAGES = [(f, d) for f in READ for d in (cut, junk, empty, gone)]


@pytest.mark.parametrize(("file", "damage"), DAMAGES, ids=[f"{d.__name__} {f}" for f, d in DAMAGES])
def test_every_damage_is_seen(file, damage, stopped):
    assert problem_of(stopped / "checkpoint-4") is None
    damage(stopped / "checkpoint-4" / file)
    problem = problem_of(stopped / "checkpoint-4")
    assert problem is not None and "\n" not in problem
    assert newest_complete(stopped) == str(stopped / "checkpoint-2")


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


SAME = [
    ["--logging_steps", "2"],
    ["--run_name", "second"],
    ["--dataloader_num_workers", "1", "--dataloader_prefetch_factor", "2"],
    ["--log_level", "error", "--disable_tqdm", "false"],
    ["--save_total_limit", "9"],
    ["--hub_model_id", "me/mine", "--hub_token", "hf_secret", "--push_to_hub", "false"],
    ["--report_to", "none"],
    ["--ddp_timeout", "60"],
]
OTHERS = {
    "learning_rate 0.01 → 0.02": ["--learning_rate", "0.02"],
    "max_steps 4 → 8": ["--max_steps", "8"],
    "eos_token null → <|user|>": ["--eos_token", "<|user|>"],
    "pad_token null → <|user|>": ["--pad_token", "<|user|>"],
    "epsilon 0.05 → 0.2": ["--epsilon", "0.2"],
    "seed 42 → 1": ["--seed", "1"],
    "dtype float32 → bfloat16": ["--dtype", "bfloat16"],
    "attn_implementation null → eager": ["--attn_implementation", "eager"],
    "use_peft false → true": PEFT,
}


@pytest.mark.parametrize("more", SAME, ids=lambda more: more[0])
def test_settings_that_say_nothing_about_the_result_make_no_other_run(more, root, finished, capsys):
    train(root, finished, *more)
    assert "already holds this run, finished" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("said", OTHERS)
def test_the_setting_that_differs_is_named_with_both_values(said, root, finished):
    with pytest.raises(ValueError) as caught:
        train(root, finished, *OTHERS[said])
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_settings_without_a_say_are_settings():
    known = {*RobustSFTConfig.__dataclass_fields__, *command.Options.__dataclass_fields__}
    known |= {*command.ModelConfig.__dataclass_fields__, *command.DatasetMixtureConfig.__dataclass_fields__}
    assert INDIFFERENT - known <= {"logging_dir"}


@pytest.mark.parametrize("state", ["finished", "half-way"])
@pytest.mark.parametrize("change", ["rows", "model"])
def test_changed_rows_or_weights_are_noticed(state, change, root, stopped, finished, tmp_path, tokenizer):
    folder = finished if state == "finished" else stopped
    small_qwen(len(tokenizer), seed=1).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    other = {"rows": {"rows": "other.jsonl"}, "model": {"model": tmp_path / "model"}}[change]
    with pytest.raises(ValueError, match=f"on other {'data' if change == 'rows' else 'model'}"):
        train(root, folder, **other)


def test_names_are_not_identity(root, finished, tmp_path, monkeypatch, capsys):
    """A moved folder, moved rows, a moved model, ~ and ./ are the same run."""
    shutil.copytree(root, tmp_path / "moved")
    train(tmp_path / "moved", tmp_path / "moved" / "finished")
    monkeypatch.setenv("HOME", str(tmp_path))
    train(tmp_path / "moved", "~/moved/finished")
    monkeypatch.chdir(tmp_path / "moved")
    train(Path("."), "./finished")
    train(Path("~/moved"), "finished")
    assert capsys.readouterr().out.count("already holds") == 4


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


def test_folders_of_others_are_refused(root, stopped, tmp_path):
    recorded = (stopped / "run.json").read_text()
    (stopped / "run.json").unlink()
    with pytest.raises(ValueError, match=r"that this command did not begin \(no run.json\)"):
        train(root, stopped)
    for content, message in {
        json.dumps({"command": "klball score", "options": {}}): "holds the results of .?klball score",
        json.dumps({"options": {}}): "holds the results of another command",
        "[]": "run.json holds no JSON object",
        recorded[:99]: "run.json is not readable JSON",
    }.items():
        (stopped / "run.json").write_text(content)
        with pytest.raises(ValueError, match=message):
            train(root, stopped)


def test_a_model_is_not_trained_in_its_own_folder(root):
    with pytest.raises(ValueError, match="holds the model to train"):
        train(root, root / "model")


def test_a_run_that_never_began_does_not_block_its_folder(root, finished, tmp_path):
    (tmp_path / "run").mkdir()
    recorded = json.loads((finished / "run.json").read_text())
    recorded["training"]["learning_rate"] = 1.0
    (tmp_path / "run" / "run.json").write_text(json.dumps(recorded))
    train(root, tmp_path / "run")
    assert contents(tmp_path / "run") == contents(finished)
    for packages in (["--optim", "paged_adamw_8bit"], ["--report_to", "wandb"], ["--use_liger_kernel"]):
        with pytest.raises(ValueError):
            train(root, tmp_path / "none", *packages)
    assert not (tmp_path / "none").exists()


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


def test_shared_files_name_neither_token_nor_installation(root, tmp_path):
    folder = tmp_path / "run"
    lora = [*PEFT, *shlex.split("--max_steps 1 --save_steps 1 --hub_token hf_secret")]
    train(root, folder, *lora, "--model_name_or_path", "klball/tiny")
    for path in (path for path in folder.rglob("*") if path.is_file()):
        content = path.read_bytes()
        assert b"hf_secret" not in content and TINY_FOLDER.encode() not in content, path
    adapter = json.loads((folder / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == "klball/tiny"
    load_model(str(folder))


def test_the_trainer_keeps_the_token_for_uploads(tmp_path, tokenizer):
    config = RobustSFTConfig(output_dir=str(tmp_path), hub_token="hf_secret", use_cpu=True, bf16=False)
    rows = Dataset.from_list([{"prompt": "a", "completion": "b"}])
    trainer = RobustSFTTrainer(
        small_qwen(len(tokenizer)), config, train_dataset=rows, processing_class=tokenizer
    )
    trainer.save_model(str(tmp_path))
    assert trainer.args.hub_token == "hf_secret"
    assert b"hf_secret" not in (tmp_path / "training_args.bin").read_bytes()


def adapter(root, folder, tokenizer):
    model = get_peft_model(load_model(str(root / "model"))[0], LoraConfig(r=2, target_modules=["q_proj"]))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("checkpointing", ["true", "false"])
def test_an_adapter_is_trained_further(checkpointing, root, tmp_path, tokenizer):
    start = adapter(root, tmp_path / "adapter", tokenizer)
    train(root, tmp_path / "run", "--gradient_checkpointing", checkpointing, model=start)
    before, after = (load_file(f / "adapter_model.safetensors") for f in (start, tmp_path / "run"))
    assert before.keys() == after.keys() and all((before[name] != after[name]).any() for name in before)
    assert not (tmp_path / "run" / "model.safetensors").exists()
    load_model(str(tmp_path / "run"))
    with pytest.raises(ValueError, match="is an adapter: leave out --use_peft"):
        train(root, tmp_path / "two", *PEFT, model=start)


def test_a_frozen_model_is_refused_by_the_trainer(root, tmp_path, tokenizer):
    frozen, _ = load_model(str(adapter(root, tmp_path / "adapter", tokenizer)))
    rows = Dataset.from_list([{"prompt": "a", "completion": "b"}])
    config = RobustSFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to=[])
    with pytest.raises(ValueError, match="no parameter of the model is trainable"):
        RobustSFTTrainer(frozen, config, train_dataset=rows, processing_class=tokenizer)


def test_a_digest_of_a_model_is_of_its_files_and_its_base(root, tmp_path, tokenizer):
    start = adapter(root, tmp_path / "adapter", tokenizer)
    before = model_digest(str(start))
    shutil.copytree(start, tmp_path / "copy")
    assert model_digest(str(tmp_path / "copy")) == before
    config = json.loads((start / "adapter_config.json").read_text())
    (start / "adapter_config.json").write_text(
        json.dumps({**config, "base_model_name_or_path": "klball/tiny"})
    )
    assert model_digest(str(start)) != before


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--objective", "psft", *PEFT]])
def test_kills_at_every_third_write_end_alike(more, root, tmp_path):
    script = Path(__file__).with_name("kills.py")
    names = ["--model_name_or_path", str(root / "model"), "--dataset_name", str(root / "rows.jsonl")]
    arguments = ["train", *names, *SETTINGS, *more, "--output_dir", str(tmp_path / "run")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "run"), "3", *arguments],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout.splitlines()[-1])
    logging.getLogger(__name__).info("%s", outcome)
    assert outcome["kills"] > 25 and outcome["identical"] == outcome["kills"], outcome["others"]
