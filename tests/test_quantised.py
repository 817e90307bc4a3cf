"""QLoRA: what is missing is said in one line, models are placed as by TRL, weights are told apart."""

from importlib.util import find_spec

import pytest
import torch
import transformers
import trl
from accelerate import DistributedType, PartialState
from datasets import Dataset
from peft import LoraConfig
from trl import ModelConfig, get_peft_config, get_quantization_config

from conftest import small_qwen
from gradient_grid import quiet, tokenizer
from gradient_grid import rows as sft_rows
from klball import RobustRewardConfig, RobustRewardTrainer, RobustSFTConfig, RobustSFTTrainer, cli
from klball.commands import training_options
from klball.files import combined
from klball.models.weights import weights_hash
from klball.training.preference.dpo import _same_weights
from klball.training.run import load_for_training
from preference_grid import reward_model, rows

COMPUTE = "a --dtype to compute in, float32, bfloat16 or float16, not auto"
QLORA = ["train", "--load_in_4bit", "true", "--use_peft", "true"]
THERE = torch.accelerator.is_available() and find_spec("bitsandbytes") is not None


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as caught:
        cli.main([*arguments])
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


@pytest.mark.parametrize("option", ["--load_in_4bit", "--load_in_8bit"])
@pytest.mark.parametrize(
    ("packages", "accelerator", "more", "said"),
    [
        ((), False, (), "the package bitsandbytes and an accelerator"),
        ((), True, (), "the package bitsandbytes"),
        (("bitsandbytes",), False, (), "an accelerator"),
        (("bitsandbytes",), True, ("--use_cpu", "true"), "an accelerator: leave out --use_cpu"),
        (
            ("bitsandbytes",),
            True,
            ("--dtype", "auto"),
            COMPUTE,
        ),
    ],
)
def test_what_is_missing_is_said(option, packages, accelerator, more, said, monkeypatch, capsys, data):
    monkeypatch.setattr(training_options, "find_spec", lambda name: name if name in packages else None)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: accelerator)
    words = [option, "true", "--use_peft", "true", "--bf16", "false", "--dataset_name", str(data)]
    assert refused(capsys, "train", *words, *more) == f"klball: error: {option} needs {said}"


class LoadedError(Exception):
    """A model was about to be loaded."""


@pytest.mark.parametrize("asked", [{}, {"dtype": "bfloat16"}, {"attn_implementation": "eager"}], ids=str)
@pytest.mark.parametrize(
    ("device", "spread", "expected"),
    [("cuda", "NO", "auto"), ("cuda", "MULTI_GPU", None), ("cuda", "DEEPSPEED", None), ("cpu", "NO", None)],
)
def test_a_model_is_placed_as_trl_places_it(asked, device, spread, expected, tmp_path, monkeypatch):
    small_qwen(len(tokenizer())).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    options = ModelConfig(str(tmp_path), load_in_4bit=True, use_peft=True, use_bnb_nested_quant=True, **asked)
    config = RobustSFTConfig(**quiet(str(tmp_path / "out")))
    # as trl/scripts/sft.py has it
    script = dict(revision=options.model_revision, trust_remote_code=False, dtype=options.dtype)
    script["attn_implementation"] = options.attn_implementation
    stock = trl.SFTConfig(str(tmp_path / "out"), use_cpu=True, bf16=False, model_init_kwargs=script)
    given = []

    def load(*args, **settings):
        given.append(settings)
        raise LoadedError

    for loader in (transformers.AutoModelForCausalLM, transformers.Qwen3ForCausalLM):
        monkeypatch.setattr(loader, "from_pretrained", load)
    monkeypatch.setitem(PartialState._shared_state, "device", torch.device(device))
    monkeypatch.setitem(PartialState._shared_state, "distributed_type", DistributedType(spread))
    with pytest.raises(LoadedError):
        trl.SFTTrainer(
            str(tmp_path),
            args=stock,
            train_dataset=Dataset.from_list([{"text": "a"}]),
            quantization_config=get_quantization_config(options),
            peft_config=get_peft_config(options),
        )
    with pytest.raises(ValueError, match="could not load model"):
        load_for_training(config, options)
    theirs, ours = ({**one, "quantization_config": one["quantization_config"].to_dict()} for one in given)
    assert theirs["device_map"] == expected
    theirs = {name: value for name, value in theirs.items() if name != "revision" and value is not None}
    names = {*theirs, "device_map"}
    assert {n: ours.get(n) for n in names} == {n: theirs.get(n) for n in names}


class Scaled(torch.nn.Linear):
    """Keeps what its weights are multiplied by as bitsandbytes does: beside them, in the state alone."""

    scale = 1.0

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight.absmax"] = torch.tensor([self.scale])


def test_weights_that_differ_in_their_scale_are_others():
    one, other = torch.nn.Sequential(Scaled(2, 2)), torch.nn.Sequential(Scaled(2, 2))
    other.load_state_dict(one.state_dict(), strict=False)
    assert weights_hash(one) == weights_hash(other) and _same_weights(one, other)
    other[0].scale = 2.0
    assert weights_hash(one) != weights_hash(other) and not _same_weights(one, other)


def test_the_hash_of_other_models_is_that_of_their_parameters():
    """Tied ones once, buffers not: tables that are there stay valid."""
    model = small_qwen(32)
    assert any(True for _ in model.named_buffers()) and model.config.tie_word_embeddings
    parts = []
    for name, value in model.named_parameters():
        parts += [f"{name}{tuple(value.shape)}{value.dtype}".encode(), value.detach().numpy().tobytes()]
    assert weights_hash(model) == combined(parts)


def test_a_quantised_model_on_a_cpu_is_refused_in_python(tmp_path):
    model = small_qwen(len(tokenizer()))
    model.is_loaded_in_4bit = True
    arguments = dict(train_dataset=sft_rows(), processing_class=tokenizer(), peft_config=LoraConfig())
    with pytest.raises(ValueError, match="quantised by bitsandbytes needs an accelerator"):
        RobustSFTTrainer(model, RobustSFTConfig(**quiet(str(tmp_path))), **arguments)


def test_a_reward_head_in_bf16_needs_bf16(tmp_path, monkeypatch):
    monkeypatch.setattr("klball.training.refusals._refuse_quantised_on_cpu", lambda model: None)
    arguments = dict(train_dataset=rows(), processing_class=tokenizer())
    for settings in ({}, {"bf16": True}):
        model = reward_model()
        model.is_loaded_in_4bit = True
        config = RobustRewardConfig(**{**quiet(str(tmp_path)), "max_steps": 1, **settings})
        lora = LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj"])
        if settings:
            RobustRewardTrainer(model, config, peft_config=lora, **arguments)
            continue
        with pytest.raises(ValueError, match="head in bfloat16: it needs bf16=True"):
            RobustRewardTrainer(model, config, peft_config=lora, **arguments)


@pytest.mark.slow
@pytest.mark.skipif(not THERE, reason="needs bitsandbytes and an accelerator")
@pytest.mark.parametrize("family", ["sft", "dpo", "reward", "gdpo"])
def test_qlora_learns(family, tmp_path):
    """On the machine that it is for."""
    short = ["--max_steps", "3", "--per_device_train_batch_size", "4", "--logging_steps", "1"]
    words = [*short, "--dataset_train_split", "train[:24]", "--report_to", "none", "--learning_rate", "1e-3"]
    folder = tmp_path / family
    cli.main([*QLORA, "--family", family, *words, "--output_dir", str(folder)])
    from safetensors.torch import load_file

    adapter = load_file(folder / "adapter_model.safetensors")
    of_b = [value for name, value in adapter.items() if "lora_B" in name]
    assert of_b and all(bool(value.abs().max() > 0) for value in of_b)  # they begin at 0
    assert (folder / "top_weighted.csv").exists()
