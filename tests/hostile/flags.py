"""Command-line options with values that are no numbers, or numbers that nothing can be done with."""

from collections.abc import Iterator, Sequence

from .case import EITHER, REFUSED, Case, command, good_data

# Options of each command, and which of −1, 0 and inf are refused; the rest may work.
WHOLE: dict[str, dict[str, tuple[str, ...]]] = {
    "score": {"max_length": ("-1", "0"), "max_rows": ("-1", "0"), "tokens_per_batch": ("-1", "0")},
    "solve": {"top": ("-1",)},
    "evaluate": {"max_length": ("-1", "0"), "max_rows": ("-1", "0")},
    "scan": dict.fromkeys(
        ("max_rows", "gradient_rows", "own_prompts", "own_tokens", "max_length"), ("-1", "0")
    )
    | {"own_samples": ("-1",)},
    "paraphrase": dict.fromkeys(
        ("max_rows", "rounds", "requests_per_file", "max_new_tokens", "batch_size"), ("-1", "0")
    ),
    "compare": {
        **dict.fromkeys(("rounds", "max_rows", "max_length", "num_jobs"), ("-1", "0")),
        **{"resamples": ("-1",), "job_index": ("-1",)},
    },
    "reproduce": {
        **dict.fromkeys(("train_rows", "test_rows", "ood_rows", "seeds", "points"), ("-1", "0")),
        **dict.fromkeys(("per_device_train_batch_size", "gradient_accumulation_steps"), ("-1", "0")),
        **dict.fromkeys(("max_length", "lora_alpha"), ("-1", "0")),
        **dict.fromkeys(("lora_r", "own_prompts", "own_samples", "own_tokens"), ("-1",)),
    },
    "train": {
        **dict.fromkeys(("per_device_train_batch_size", "gradient_accumulation_steps"), ("-1", "0")),
        **dict.fromkeys(("max_length", "psft_refresh"), ("-1", "0")),
        **dict.fromkeys(("rescore_steps", "psft_warmup_steps", "dataloader_num_workers", "seed"), ("-1",)),
        **dict.fromkeys(("max_steps", "save_total_limit", "torch_empty_cache_steps", "data_seed"), ()),
        **dict.fromkeys(("per_device_eval_batch_size", "eval_accumulation_steps", "dataset_num_proc"), ()),
        **dict.fromkeys(("dataloader_prefetch_factor", "ddp_bucket_cap_mb", "ddp_timeout"), ()),
    },
}
REAL: dict[str, dict[str, tuple[str, ...]]] = {
    "solve": {"epsilon": ("-1", "inf", "1e400"), "gamma": ("inf",), "max_weight": ("-1", "0", "0.5", "inf")},
    "paraphrase": {"temperature": ("-1", "inf"), "min_similarity": ("-2", "2", "inf")},
    "compare": {"epsilon": ("-1", "0", "inf"), "gamma": ("inf", "1e400")},
    "scan": {"epsilons": ("-1", "inf")},
    "reproduce": {
        **{
            "epsilons": ("-1", "inf"),
            "num_train_epochs": ("-1", "0", "inf"),
            "warmup_ratio": ("-1", "2", "inf"),
        },
        **{"learning_rate": ("-1", "inf"), "adam_beta2": ("-1", "1", "2", "inf"), "weight_decay": ("inf",)},
    },
    "train": {
        **{"epsilon": ("-1", "inf", "1e400"), "gamma": ("inf",), "max_weight": ("-1", "0", "0.5", "inf")},
        **{"psft_clip": ("-1", "0"), "entropy_coef": ("inf",), "learning_rate": ("-1", "inf")},
        **{"adam_beta1": ("-1", "1", "2"), "adam_beta2": ("-1", "1", "2"), "adam_epsilon": ("-1",)},
        **{"weight_decay": ("inf",), "max_grad_norm": (), "num_train_epochs": (), "warmup_steps": ("-1",)},
        **{"logging_steps": ("-1",), "save_steps": ("-1",), "neftune_noise_alpha": ("inf",)},
        **{"label_smoothing_factor": ("1",), "lora_dropout": ("-1", "2", "inf"), "eval_delay": ()},
    },
}
PEFT = {"lora_r": ("-1", "0"), "lora_alpha": ("-1", "0")}
NO_WHOLE, NO_REAL = ("nan", "inf", "1e400", "2.5", "many", ""), ("nan", "many", "")


def cases() -> Iterator[Case]:
    """All of them."""
    for name, options in WHOLE.items():
        for option, refused in options.items():
            yield from _option(name, option, refused, NO_WHOLE, ("-1", "0"))
    for name, options in REAL.items():
        for option, refused in options.items():
            yield from _option(name, option, refused, NO_REAL, ("-1", "0", "inf"))
    for option, refused in PEFT.items():
        yield from _option("train", option, refused, NO_WHOLE, (), ("--use_peft",))


def base(name: str) -> list[str]:
    """The command on four good rows, or on a good score table."""
    return command(name, "out/scores.parquet" if name == "solve" else "d.jsonl")


def _option(
    name: str,
    option: str,
    refused: Sequence[str],
    nonsense: Sequence[str],
    more: Sequence[str],
    also: tuple[str, ...] = (),
) -> Iterator[Case]:
    likely = () if name == "reproduce" else more  # it takes long where it works
    values = dict.fromkeys((*likely, *refused), EITHER) | dict.fromkeys((*refused, *nonsense), REFUSED)
    for value, expected in values.items():
        arguments = _without(base(name), f"--{option}")
        yield Case(
            f"{name}: --{option}={value}",
            "numeric flags",
            expected,
            [*arguments, *also, f"--{option}={value}"],
            _scores if name == "solve" else good_data,
            hints=(option.replace("_", "[_ -]"),),
            fixtures=("scores",) if name == "solve" else (),
        )


def _without(arguments: list[str], option: str) -> list[str]:
    """The arguments without an option and its one value, so that the hostile one is the only one."""
    if option not in arguments:
        return arguments
    position = arguments.index(option)
    return arguments[:position] + arguments[position + 2 :]


def _scores() -> None:
    import shutil

    from .case import fixture

    shutil.copytree(fixture("scores"), ".", dirs_exist_ok=True)
