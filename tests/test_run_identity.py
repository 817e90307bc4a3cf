"""The same run under other names, places and logs; another with other settings, rows or weights."""

import json
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

from conftest import small_qwen
from klball import RobustSFTConfig, RobustSFTTrainer
from klball.commands import train as command
from klball.models.loading import TINY_FOLDER, load_model
from klball.training.identity import INDIFFERENT, model_digest
from small_runs import PEFT, contents, train

SAME = [
    ["--logging_steps", "2"],
    ["--run_name", "second"],
    ["--dataloader_num_workers", "1", "--dataloader_prefetch_factor", "2"],
    ["--log_level", "error", "--disable_tqdm", "false"],
    ["--save_total_limit", "9"],
    ["--hub_token", "hf_secret", "--push_to_hub", "false"],
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
    assert not INDIFFERENT - known


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
        "": "remove it, and go on in another --output_dir with --resume_from_checkpoint .*checkpoint-4",
    }.items():
        (stopped / "run.json").write_text(content)
        with pytest.raises(ValueError, match=message):
            train(root, stopped)


def test_a_model_is_not_trained_in_its_own_folder(root):
    with pytest.raises(ValueError, match="holds the model to train"):
        train(root, root / "model")


def test_an_emptied_record_without_checkpoints_is_removed_to_begin_anew(root, tmp_path):
    (tmp_path / "run.json").touch()
    with pytest.raises(ValueError, match=r"run.json is not readable JSON: .*: remove it to begin anew"):
        train(root, tmp_path)


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


def test_an_adapter_is_the_same_in_whatever_order_peft_lists_its_modules(tmp_path):
    """It writes sets, whose order is another in every process."""
    settings = {"target_modules": ["q_proj", "v_proj"], "r": 8}
    digests = []
    for modules in (["q_proj", "v_proj"], ["v_proj", "q_proj"], ["q_proj"]):
        (tmp_path / "adapter_config.json").write_text(json.dumps(settings | {"target_modules": modules}))
        digests.append(model_digest(str(tmp_path)))
    assert digests[0] == digests[1] != digests[2]


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
