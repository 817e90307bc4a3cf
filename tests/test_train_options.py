"""`klball train`: every option of TRL's classes has its effect, or is refused in one line."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from trl import DatasetMixtureConfig, ModelConfig

from conftest import small_qwen
from klball.commands import train as command
from klball.commands import training_options
from klball.models.loading import load_model
from klball.scores.perplexity import summary_of
from klball.training import run as training_run
from klball.training.evaluation import WORST_CASES
from klball.training.families import family_of
from klball.training.sft.config import RobustSFTConfig
from klball.training.sft.refusals import METRICS, refuse_unsupported


class ReachedError(Exception):
    """The trainer was about to be made."""


@pytest.fixture
def asked(monkeypatch, tmp_path, tokenizer):
    """What the trainer is given for some arguments; DATA, TEST and MODEL stand for files made here."""
    question = [{"question": f"What about {i}?", "answer": f"It is {i}."} for i in range(8)]
    files = {"DATA": question[:6], "TEST": question[6:], "TEXT": [{"body": f"The {i}."} for i in range(4)]}
    files["OTHER"] = [{"question": "And more?", "answer": "No."}]
    for name, rows in files.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    small_qwen(len(tokenizer)).save_pretrained(tmp_path / "MODEL")
    tokenizer.save_pretrained(tmp_path / "MODEL")
    names = {name: str(tmp_path / f"{name}.jsonl") for name in files} | {"MODEL": str(tmp_path / "MODEL")}

    def stop(model, args, **arguments):
        raise ReachedError(SimpleNamespace(model=model, config=args, **arguments))

    def run(*arguments, dataset="DATA", yaml=None):
        given = [] if dataset is None else ["--dataset_name", dataset]
        if yaml is not None:
            (tmp_path / "c.yaml").write_text(yaml.format(**names))
            given = ["--config", str(tmp_path / "c.yaml")]
        words = [names.get(word, word) for word in (*given, *arguments)]
        stopped = lambda config: replace(family_of(config), trainer=stop)  # noqa: E731
        monkeypatch.setattr(training_run, "family_of", stopped)
        with pytest.raises(ReachedError) as caught:
            command.main([*words, "--output_dir", str(tmp_path / "out")], "klball train")
        return caught.value.args[0]

    return run


def width(t):
    return t.model.config.hidden_size


def lora(name):
    return lambda t: getattr(t.peft_config, name)


PEFT = ["--use_peft", "--lora_target_modules", "q_proj", "v_proj"]
EVALUATED = ["--eval_strategy", "steps", "--eval_steps", "1"]
# option → (arguments before, the option, what changes in what the trainer is given) or (…, the refusal)
OF_MODEL = {
    "model_name_or_path": ([], ["MODEL"], width),
    "model_revision": (["--model_name_or_path", "MODEL"], ["v2"], "has no revision 'v2'"),
    "dtype": ([], ["bfloat16"], lambda t: next(t.model.parameters()).dtype),
    "attn_implementation": ([], ["eager"], lambda t: t.model.config._attn_implementation),
    "use_peft": ([], [], lambda t: t.peft_config is not None),
    "lora_r": (PEFT, ["3"], lora("r")),
    "lora_alpha": (PEFT, ["3"], lora("lora_alpha")),
    "lora_dropout": (PEFT, ["0.3"], lora("lora_dropout")),
    "lora_target_modules": (["--use_peft"], ["k_proj"], lora("target_modules")),
    "lora_target_parameters": (PEFT, ["mlp.up_proj"], lora("target_parameters")),
    "lora_modules_to_save": (PEFT, ["lm_head"], lora("modules_to_save")),
    "lora_task_type": (PEFT, ["SEQ_CLS"], "is not what is trained here: CAUSAL_LM"),
    "use_rslora": (PEFT, [], lora("use_rslora")),
    "use_dora": (PEFT, [], lora("use_dora")),
    "load_in_8bit": (PEFT, [], "needs the package bitsandbytes"),
    "load_in_4bit": (PEFT, [], "needs the package bitsandbytes"),
    "bnb_4bit_quant_type": ([], ["fp4"], "has no effect without --load_in_4bit"),
    "use_bnb_nested_quant": ([], [], "has no effect without --load_in_4bit"),
    "bnb_4bit_quant_storage": ([], ["uint8"], "has no effect without --load_in_4bit"),
}
OF_DATA = {
    "family": ([], ["dpo"], "need the column 'chosen'"),
    "dataset_name": ([], ["OTHER"], lambda t: len(t.train_dataset)),
    "dataset_config": (None, ["german"], "could not load data set 'no/where'"),
    "dataset_train_split": ([], ["train[:2]"], lambda t: len(t.train_dataset)),
    "dataset_test_split": (
        [*EVALUATED, "--dataset_train_split", "train[:4]"],
        ["train[4:]"],
        lambda t: t.eval_dataset["prompt"][0][0]["content"],
    ),
    "dataset_streaming": ([], [], "streaming data has no fixed set"),
    "ignore_bias_buffers": ([], [], "--ignore_bias_buffers has no effect"),
    "eval_dataset": (EVALUATED, ["TEST"], lambda t: len(t.eval_dataset)),
    "test_fraction": (EVALUATED, ["0.4"], lambda t: (len(t.train_dataset), len(t.eval_dataset or []))),
    "id_column": ([], ["question"], lambda t: t.train_dataset["sample_id"][0]),
}
OF_MIXTURE = {
    "datasets": None,  # in YAML only: below
    "streaming": ([], [], "streaming data has no fixed set"),
    "test_split_size": ([], ["0.5"], "has no effect without a mixture"),
}
TAKEN = {  # of SFTConfig, what the command itself must see to
    "model_init_kwargs": ([], ['{"attention_dropout": 0.5}'], lambda t: t.model.config.attention_dropout),
    "chat_template_path": ([], ["nowhere"], "no chat template"),
    "dataset_text_field": (None, ["body"], lambda t: t.train_dataset["text"][0]),
    "eval_steps": ([], ["3"], "has no effect without --eval_strategy"),
    "eval_delay": ([], ["3"], "has no effect without --eval_strategy"),
    "eval_on_start": ([], [], "has no effect without --eval_strategy"),
    "do_eval": ([], [], "has no effect without --eval_strategy"),
    "metric_for_best_model": ([], ["loss"], "has no effect without --eval_strategy"),
    "eval_strategy": ([], ["steps"], "needs test rows"),
    "do_predict": ([], [], "--do_predict has no effect"),
    "prediction_loss_only": ([], [], "--prediction_loss_only has no effect"),
    "eval_accumulation_steps": ([], ["3"], "--eval_accumulation_steps has no effect"),
    "bf16_full_eval": ([], [], "--bf16_full_eval has no effect"),
    "fp16_full_eval": ([], [], "--fp16_full_eval has no effect"),
    "eval_do_concat_batches": ([], ["false"], "--eval_do_concat_batches has no effect"),
    "eval_use_gather_object": ([], [], "--eval_use_gather_object has no effect"),
    "include_for_metrics": ([], ["inputs"], "--include_for_metrics has no effect"),
    "batch_eval_metrics": ([], [], "--batch_eval_metrics has no effect"),
    "label_names": ([], ["x"], "--label_names has no effect"),
    "resume_from_checkpoint": ([], ["/nowhere/checkpoint-9"], "there is no checkpoint /nowhere/checkpoint-9"),
    "use_liger_kernel": ([], [], "needs liger-kernel"),
    "optim": ([], ["paged_adamw_8bit"], "bitsandbytes"),
    "report_to": ([], ["wandb"], "--report_to wandb"),
}
CASES = {**OF_MODEL, **OF_DATA, **OF_MIXTURE, **TAKEN}


def test_no_option_lacks_a_case():
    classes = (ModelConfig, command.Options, DatasetMixtureConfig)
    for cases, of in zip((OF_MODEL, OF_DATA, OF_MIXTURE), classes, strict=True):
        assert set(cases) == set(of.__dataclass_fields__)
    assert set(training_options.NEVER) <= set(CASES)


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name] is not None])
def test_an_option_has_its_effect_or_is_refused(name, asked):
    before, values, outcome = CASES[name]
    dataset = {"dataset_name": None, "dataset_config": "no/where", "dataset_text_field": "TEXT"}
    chosen = dataset.get(name, "DATA")
    before = before or []
    if isinstance(outcome, str):
        with pytest.raises(ValueError) as caught:
            asked(*before, f"--{name}", *values, dataset=chosen)
        assert outcome in str(caught.value) and "\n" not in str(caught.value)
        return
    changed = outcome(asked(*before, f"--{name}", *values, dataset=chosen))
    try:
        usual = outcome(asked(*before, dataset=chosen if name != "dataset_name" else "DATA"))
    except ValueError:
        usual = None
    assert changed != usual


@pytest.mark.parametrize("name", [n for n in OF_MODEL if n.startswith(("lora_", "use_rs", "use_do"))])
def test_lora_settings_need_lora(name, asked):
    _, values, _ = OF_MODEL[name]
    with pytest.raises(ValueError, match=r"is not what is trained|has no effect without --use_peft"):
        asked(f"--{name}", *values)


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        (["--load_in_8bit"], {"load_in_8bit": True}),
        (["--load_in_4bit"], {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}),
        (["--load_in_4bit", "--bnb_4bit_quant_type", "fp4"], {"bnb_4bit_quant_type": "fp4"}),
        (["--load_in_4bit", "--use_bnb_nested_quant"], {"bnb_4bit_use_double_quant": True}),
        (
            ["--load_in_4bit", "--bnb_4bit_quant_storage", "float16"],
            {"bnb_4bit_quant_storage": torch.float16},
        ),
    ],
)
def test_quantisation_reaches_the_loader(option, expected, asked, monkeypatch):
    """As if bitsandbytes and an accelerator were there."""
    given = {}

    def load(name, **settings):
        given.update(settings)
        return load_model(name)

    monkeypatch.setattr(training_options, "find_spec", lambda name: name)
    monkeypatch.setattr(training_run, "load_model", load)
    with pytest.raises(ValueError, match="needs an accelerator"):
        asked(*PEFT, *option)
    monkeypatch.setattr(training_options.torch.accelerator, "is_available", lambda: True)
    with pytest.raises(ValueError, match="add --use_peft"):
        asked(*option, "--bf16", "false")
    asked(*PEFT, *option, "--bf16", "false")
    quantization = given["quantization_config"]
    assert {name: getattr(quantization, name) for name in expected} == expected
    assert given["trainable"]


def test_remote_code_runs_when_it_is_trusted_only(asked, tmp_path, tokenizer):
    folder = tmp_path / "remote"
    small_qwen(len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    names = {"AutoConfig": "configuration.OwnConfig", "AutoModelForCausalLM": "modelling.OwnForCausalLM"}
    config |= {"model_type": "own", "auto_map": names, "architectures": ["OwnForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "configuration.py").write_text(
        "from transformers import Qwen3Config\nclass OwnConfig(Qwen3Config):\n    model_type = 'own'\n"
    )
    (folder / "modelling.py").write_text(
        "from transformers import Qwen3ForCausalLM\nfrom .configuration import OwnConfig\n"
        "class OwnForCausalLM(Qwen3ForCausalLM):\n    config_class = OwnConfig\n"
    )
    with pytest.raises(ValueError, match="--trust_remote_code"):
        asked("--model_name_or_path", str(folder))
    given = asked("--model_name_or_path", str(folder), "--trust_remote_code")
    assert type(given.model).__name__ == "OwnForCausalLM"


def test_evaluation_is_on_rows_that_are_not_trained_on(asked):
    rows = asked(*EVALUATED, "--test_name", "TEST")
    assert len(rows.train_dataset) == 6 and len(rows.eval_dataset) == 2
    halves = ["--dataset_train_split", "train[:50%]", "--dataset_test_split", "train[50%:]"]
    rows = asked(*EVALUATED, *halves)
    assert len(rows.train_dataset) == len(rows.eval_dataset) == 3
    for same in (["--test_name", "DATA"], ["--dataset_test_split", "train[:2]"]):
        with pytest.raises(ValueError, match="is also trained on"):
            asked(*EVALUATED, *same)
    with pytest.raises(ValueError, match="has no effect without --eval_strategy"):
        asked("--test_name", "TEST")


def test_a_share_of_the_rows_is_held_out(asked):
    held = [asked(*EVALUATED, "--test_fraction", "0.4", "--seed", seed) for seed in "0012"]
    prompts = [[row[-1]["content"] for row in t.eval_dataset["prompt"]] for t in held]
    assert prompts[0] == prompts[1] and len({str(found) for found in prompts}) > 1
    for t, out in zip(held, prompts, strict=True):
        assert len(out) == 2 and not {*out} & {row[-1]["content"] for row in t.train_dataset["prompt"]}
    assert (
        len(asked(*EVALUATED, "--test_fraction", "0.4", yaml=MIXTURE + "eval_strategy: epoch\n").eval_dataset)
        == 2
    )
    for more in (["--eval_dataset", "TEST"], ["--dataset_test_split", "train"]):
        with pytest.raises(ValueError, match=r"given twice: .*--test_fraction"):
            asked(*EVALUATED, "--test_fraction", "0.4", *more)
    with pytest.raises(ValueError, match="holds out no prompt"):
        asked(*EVALUATED, "--test_fraction", "0.1")


def test_a_flag_of_earlier_days_works_in_a_recipe_too(asked):
    recipe = "dataset_name: {DATA}\neval_strategy: epoch\n"
    assert len(asked(yaml=recipe + "test_name: {TEST}\n").eval_dataset) == 2
    with pytest.raises(ValueError, match="test_name and eval_dataset are one option"):
        asked(yaml=recipe + "eval_dataset: {DATA}\ntest_name: {TEST}\n")


@pytest.mark.parametrize(
    ("metric", "greater"),
    [
        ("loss", False),
        ("eval_cvar", False),
        ("eval_robust_loss", False),
        ("perplexity_sample", False),
        ("eval_x_own_hardest_1pct", False),
        ("entropy", True),
    ],
)
def test_the_best_model_is_the_one_with_the_lower_loss(metric, greater, tmp_path):
    """Of every metric but `loss` Transformers would take the greatest."""
    settings = dict(output_dir=str(tmp_path), metric_for_best_model=metric, use_cpu=True, bf16=False)
    assert RobustSFTConfig(**settings).greater_is_better is greater
    assert RobustSFTConfig(**settings, greater_is_better=True).greater_is_better is True


MIXTURE = """
datasets:
  - {{path: json, data_files: {DATA}, split: "train[:4]"}}
  - {{path: json, data_files: {TEST}}}
"""


def test_mixtures_of_trl(asked):
    assert len(asked(yaml=MIXTURE).train_dataset) == 6
    assert asked("--id_column", "question", yaml=MIXTURE).train_dataset["sample_id"][0].startswith("What")
    held_out = [asked(*EVALUATED, yaml=MIXTURE + "test_split_size: 2\n") for _ in range(2)]
    assert [(len(t.train_dataset), len(t.eval_dataset)) for t in held_out] == [(4, 2), (4, 2)]
    assert held_out[0].eval_dataset["prompt"] == held_out[1].eval_dataset["prompt"]
    for more, message in {
        "dataset_name: stdlib-docs": "dataset_name has no effect on",
        "id_column: x": "no column 'x'",
        "hub_model_id: me/x": "hub_model_id has no effect without --push_to_hub",
        "streaming: true": "streaming",
        "eval_strategy: epoch": "needs test rows",
        "dataset_config: x": "dataset_config has no effect on",
    }.items():
        with pytest.raises(ValueError, match=message):
            asked(yaml=f"{MIXTURE}{more}\n")
    entries = {"path: json, data_files: no.jsonl": "entry 1", "data_files: {DATA}": "an entry has no path"}
    entries |= {
        f"path: json, data_files: {{DATA}}, {more}": message
        for more, message in {
            "fraction: 0": "fraction must be a number above 0",
            "fraction: .nan": "fraction",
            "fraction: half": "datasets: fraction needs a number, not 'half'",
            "split: null": "datasets: split needs text, and has no value",
            "columns: 3": "datasets: columns needs a list",
            "data_files: 3": "twice",
        }.items()
    }
    for entry, message in entries.items():
        with pytest.raises(ValueError, match=message):
            asked(yaml=f"datasets:\n  - {{{{{entry}}}}}\n")
    with pytest.raises(ValueError, match="test_split_size: "):
        asked(*EVALUATED, yaml=MIXTURE + "test_split_size: 20\n")


def test_the_metric_of_the_best_model_is_known_before_training(tmp_path):
    scores = {name: torch.ones(2) for name in ("log_likelihood", "sum_log_prob", "num_tokens")}
    known = summary_of({**scores, "entropy": torch.ones(2), "certainty": torch.ones(2)})
    assert set(METRICS) == {*known, *WORST_CASES}
    for metric in ("loss", "eval_perplexity_token", "eval_german_entropy", "eval_cvar", "accuracy"):
        config = RobustSFTConfig(output_dir=str(tmp_path), metric_for_best_model=metric, use_cpu=True)
        rows = Dataset.from_list([{"text": "x"}])
        arguments = {"train_dataset": rows, "eval_dataset": {"german": rows} if "german" in metric else rows}
        if metric != "accuracy":
            refuse_unsupported(config, (), arguments, None, None)
            continue
        with pytest.raises(ValueError, match="'accuracy' is none of loss, "):
            refuse_unsupported(config, (), arguments, None, None)


def test_a_column_of_texts_that_is_not_read_is_refused(asked):
    with pytest.raises(ValueError, match=r"dataset_text_field: rows with .* are not read by 'body'"):
        asked("--dataset_text_field", "body")
    with pytest.raises(ValueError, match=r"dataset_text_field: rows with .* are not read by 'body'"):
        texts = ["--dataset_name", "TEXT", "--dataset_text_field", "body"]
        asked(*texts, "--eval_strategy", "steps", "--eval_dataset", "TEST")
