"""Options that are unknown, cut short, given twice, or whose word is none of those allowed."""

from collections.abc import Iterator, Sequence

from .case import EITHER, REFUSED, WORKS, Case, good_data
from .flags import _scores, base

COMMANDS = ("score", "train", "solve", "evaluate", "scan", "paraphrase", "compare", "reproduce")
SHORT = {  # a beginning of an option that is no option itself
    **{"score": "--max_len", "train": "--eps", "solve": "--eps", "evaluate": "--ref", "scan": "--max_r"},
    **{"paraphrase": "--temp", "compare": "--resam", "reproduce": "--epsil"},
}
WORDS: dict[str, dict[str, Sequence[str]]] = {  # command → option → values that are refused
    "score": {
        "dtype": ("float99", "", "int8", "Float32", "nan"),
        "chat_template_path": ("none.jinja", "", "d.jsonl", "/"),
        "dataset_split": ("", "train[", "train[:x]", "none"),
        "model_revision": (),
        "dataset_config": ("nonsense",),
    },
    "solve": {"streamed": ("maybe", "2"), "json": ("maybe",), "scores": ("", "none", "/", "d.jsonl")},
    "evaluate": {
        "dtype": ("float99",),
        "reference": ("nobody", ""),
        "models": ("=", "=klball/tiny", "a=", "", "a=nowhere"),
        "datasets": ("=", "a=", "=d.jsonl", "", "a=none.jsonl"),
    },
    "scan": {
        "dtype": ("float99",),
        "epsilons": ("a", "0.1,0.2"),
        "models": ("", "nowhere", "/"),
        "ood_names": (),
        "test_name": (),
    },
    "paraphrase": {
        "maker": ("nobody", "", "Templates"),
        "step": (),
        "similarity_model": ("nowhere/none",),
        "results": (),
    },
    "compare": {
        "gamma": ("some", "", "-inf"),
        "models": ("a=klball/tiny", "=", "a=", "=klball/tiny"),
        "rounds_path": ("none.parquet", "", "d.jsonl", "."),
        "dtype": ("float99",),
    },
    "reproduce": {
        "preset": ("huge", ""),
        "experiment": ("nothing", ""),
        "epsilons": ("a", "0.1,0.2"),
        "static": ("maybe",),
        "ood_name": ("none.jsonl", ""),
        "test_name": ("none.jsonl",),
        "model_name_or_path": ("nowhere", ""),
        "dtype": ("float99",),
        "chat_template_path": ("none.jinja",),
    },
    "train": {
        "objective": ("nothing", "", "NLL"),
        "reweight": ("sometimes", ""),
        "normalization": ("words", ""),
        "on_infeasible": ("weep", ""),
        "loss_type": ("nothing", ""),
        "lr_scheduler_type": ("nothing", ""),
        "lr_scheduler_kwargs": ("{", "[]", "3", '{"nonsense": 1}'),
        "optim": (
            "nothing",
            "",
            "adamw_bnb_8bit",
            "paged_adamw_8bit",
            "galore_adamw",
            "lomo",
            "schedule_free_adamw",
        ),
        "optim_args": ("nonsense", "nonsense=1"),
        "report_to": ("nothing", "tensorboard", "wandb", "mlflow", "comet_ml", "trackio", "swanlab"),
        "eval_strategy": ("sometimes", "steps"),
        "save_strategy": ("sometimes", "best"),
        "logging_strategy": ("sometimes",),
        "metric_for_best_model": (),
        "packing_strategy": ("nothing",),
        "truncation_mode": ("nothing", "keep_middle"),
        "model_init_kwargs": ("{", "[]", "3", '{"nonsense": 1}', '{"dtype": "float99"}'),
        "gradient_checkpointing_kwargs": ("{", "[]", '{"nonsense": 1}'),
        "accelerator_config": ("{", "none.json", '{"nonsense": 1}'),
        "dataset_kwargs": ("{", "[]"),
        "attn_implementation": ("nonsense_attention", "flash_attention_2", ""),
        "chat_template_path": ("none.jinja", "", "d.jsonl"),
        "dataset_train_split": ("", "train[", "train[:x]", "none", "train[9:3]"),
        "dataset_text_field": ("nothing",),
        "dataset_config": ("nonsense",),
        "eos_token": ("<|nothing|>", ""),
        "pad_token": ("<|nothing|>",),
        "dtype": ("float99", "int8"),
        "bf16": ("maybe",),
        "fsdp": ("nothing",),
        "fsdp_config": ("{", "none.json"),
        "deepspeed": ("none.json", "d.jsonl"),
        "debug": ("nothing",),
        "hub_strategy": ("nothing",),
        "train_sampling_strategy": ("nothing",),
        "dataloader_multiprocessing_context": ("nothing",),
        "ddp_backend": ("nothing",),
        "log_level": ("shout",),
        "include_num_input_tokens_seen": ("maybe",),
        "output_dir": ("", "d.jsonl", "d.jsonl/x", "/dev/null/x", "/proc/x"),
        "resume_from_checkpoint": ("nowhere", "d.jsonl"),
        "use_liger_kernel": ("true", "maybe"),
        "torch_compile_mode": ("nothing",),
        "torch_compile_backend": ("nothing",),
        "streamed": ("true",),
        "dataset_streaming": ("true",),
        "load_in_4bit": ("true",),
        "load_in_8bit": ("true",),
        "push_to_hub": ("true",),
        "fp16": ("true",),
        "tf32": ("true",),
        "label_names": (),
        "eval_packing": ("true",),
        "parallelism_config": ("{",),
        "trust_remote_code": ("maybe",),
    },
}
UNCLEAR = {  # may work: what the value means depends on the machine, or on what else is asked
    *(
        "--fp16=true",
        "--tf32=true",
        "--eval_strategy=steps",
        "--save_strategy=best",
        "--dataset_config=nonsense",
    ),
    *("--similarity_model=nowhere/none", "--ddp_backend=nothing", "--dataset_split=none", "--scores=/"),
    *("--eos_token=", "--debug=nothing", "--dataset_text_field=nothing", "--reference="),
}
PEFT = {
    "lora_target_modules": ("wow_proj", ""),
    "lora_task_type": ("WOW",),
    "lora_modules_to_save": ("wow",),
    "lora_target_parameters": ("wow",),
    "use_dora": ("maybe",),
}
PAIRS: dict[str, tuple[Sequence[str], str]] = {  # train: options that contradict each other, or need another
    "certainty_gradient without gamma": (("--certainty_gradient", "true"), REFUSED),
    "objective against loss_type": (("--objective", "psft", "--loss_type", "dft"), REFUSED),
    "best model without evaluation": (("--load_best_model_at_end", "true"), REFUSED),
    "evaluation without rows": (("--eval_strategy", "steps", "--eval_steps", "1"), REFUSED),
    "unknown metric": (
        (
            *(
                "--eval_strategy",
                "steps",
                "--eval_steps",
                "1",
                "--save_steps",
                "1",
                "--dataset_test_split",
                "train",
            ),
            *("--load_best_model_at_end", "true", "--metric_for_best_model", "wow"),
        ),
        REFUSED,
    ),
    "packing without a length": (("--packing", "true", "--max_length", "none"), REFUSED),
    "packing that cuts samples": (("--packing", "true", "--packing_strategy", "wrapped"), REFUSED),
    "label smoothing": (("--label_smoothing_factor", "0.1"), REFUSED),
    "warm-up longer than the run": (("--warmup_steps", "1000"), EITHER),
    "gamma far too small": (("--gamma", "-5", "--on_infeasible", "raise"), REFUSED),
    "radius above log n": (("--epsilon", "30"), EITHER),
    "LoRA options without LoRA": (("--lora_r", "3"), EITHER),
    "nothing left after cutting": (("--max_length", "2"), REFUSED),
    "psft options for another objective": (("--psft_clip", "0.3"), EITHER),
    "more processes than rows": (("--dataset_num_proc", "64"), EITHER),
    "workers without a queue": (("--dataloader_prefetch_factor", "2"), EITHER),
    "batch larger than the data": (("--per_device_train_batch_size", "64"), EITHER),
    "drop the only batch": (
        ("--per_device_train_batch_size", "64", "--dataloader_drop_last", "true"),
        REFUSED,
    ),
    "16-bit twice": (("--bf16", "true", "--fp16", "true"), REFUSED),
    "quantised twice": (("--load_in_4bit", "true", "--load_in_8bit", "true"), REFUSED),
    "completion and assistant loss": (("--assistant_only_loss", "true"), EITHER),
    "columns kept": (("--remove_unused_columns", "false"), EITHER),
    "find batch size": (("--auto_find_batch_size", "true"), EITHER),
    "persistent workers without workers": (("--dataloader_persistent_workers", "true"), EITHER),
    "eager stop": (("--max_steps", "0"), EITHER),
    "no epochs": (("--num_train_epochs", "0", "--max_steps", "-1"), EITHER),
}


def _case(title: str, name: str, more: Sequence[str], expected: str, hints: Sequence[str] = ()) -> Case:
    prepare = _scores if name == "solve" else good_data
    fixtures = ("scores",) if name == "solve" else ()
    arguments = [*base(name), *more]
    return Case(title, "other flags", expected, arguments, prepare, hints=hints, fixtures=fixtures)


def cases() -> Iterator[Case]:
    """All of them."""
    for name in COMMANDS:
        yield _case(f"{name}: --help", name, ["--help"], WORKS)
        yield _case(f"{name}: unknown option", name, ["--wow", "3"], REFUSED, ("wow",))
        yield _case(f"{name}: unknown switch", name, ["--wow"], REFUSED, ("wow",))
        yield _case(f"{name}: option cut short", name, [SHORT[name], "1"], REFUSED, (SHORT[name],))
        yield _case(f"{name}: option with one dash", name, ["-epsilon", "1"], REFUSED)
        yield _case(f"{name}: a word too many", name, ["wow"], EITHER if name == "train" else REFUSED)
        yield _case(f"{name}: markup for an option", name, ["--[/b]", "x"], REFUSED)
        yield _case(f"{name}: escape for an option", name, ["--a\x1b[2Jb", "x"], REFUSED)
        last = base(name)[-2] if name != "solve" else "--epsilon"
        yield _case(f"{name}: option without a value", name, [last], REFUSED, (last,))
        twice = ["--epsilon", "0.1", "--epsilon", "0.2"] if name in ("solve", "train") else base(name)[1:3]
        yield _case(f"{name}: option twice", name, twice, EITHER)
        for option, values in WORDS[name].items():
            for value in values:
                flag = f"--{option}={value}"
                expected = EITHER if flag in UNCLEAR else REFUSED
                yield _case(f"{name}: {flag}", name, [flag], expected, (option,) if option in STRICT else ())
    for option, values in PEFT.items():
        for value in values:
            flag = f"--{option}={value}"
            yield _case(f"train: --use_peft {flag}", "train", ["--use_peft", flag], REFUSED)
    for title, (more, expected) in PAIRS.items():
        yield _case(f"train: {title}", "train", more, expected)
    yield from _no_command()


STRICT = ("dtype", "objective", "reweight", "normalization", "on_infeasible", "preset", "experiment", "maker")


def _no_command() -> Iterator[Case]:
    words = ("", "fly", "--wow", "TRAIN", "train ", "[/b]", "\x1b[2J", "train\nscore", "-", "--config")
    for word in words:
        yield Case(f"command {word!r}", "other flags", REFUSED, [word], good_data)
    yield Case("no command", "other flags", WORKS, [], good_data)
    yield Case("--help", "other flags", WORKS, ["--help"], good_data)
    yield Case("--version", "other flags", WORKS, ["--version"], good_data)
