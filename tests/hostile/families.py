"""`klball train` and `score` of the other families: settings and groups that mean nothing to them."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from .case import EITHER, REFUSED, WORKS, Case, jsonl
from .fixtures import family_command, pair_rows, reward_model, rows_of

TRAINED = ("reward", "dpo", "gdpo", "grpo")


def cases() -> Iterator[Case]:
    """All of them."""
    for make in (_options, _groups):
        yield from make()


def family_case(
    kind: str,
    title: str,
    expected: str,
    more: Sequence[str] = (),
    *,
    rows: list[Any] | None = None,
    prepare: Callable[[], Any] = lambda: None,
    **about: Any,
) -> Case:
    """A family's command with more options, on good rows or on these."""

    def write() -> None:
        jsonl(rows_of(kind) if rows is None else rows)
        prepare()

    given = [word for word in more if word.startswith("--")]
    arguments = family_command(kind)
    for option in given:
        if option in arguments:
            place = arguments.index(option)
            del arguments[place : place + 2]
    return Case(f"{kind}: {title}", "families", expected, [*arguments, *more], write, **about)


OPTIONS: dict[str, tuple[tuple[str, ...], str, tuple[str, ...]]] = {
    # what is asked of each family → (flags, expected, words of the answer)
    "no epochs": (("--num_train_epochs", "0", "--max_steps", "-1"), REFUSED, ("num_train_epochs",)),
    "a tenth of an epoch": (("--num_train_epochs", "0.1", "--max_steps", "-1"), WORKS, ()),
    "a batch beyond the data": (("--per_device_train_batch_size", "64"), EITHER, ()),
    "an odd batch": (("--per_device_train_batch_size", "3"), EITHER, ()),
    "batches that are dropped": (
        ("--per_device_train_batch_size", "64", "--dataloader_drop_last", "true"),
        REFUSED,
        ("drop_last|rollouts",),
    ),
    "workers": (("--dataloader_num_workers", "1"), WORKS, ()),
    "seed beyond 32 bits": (("--seed", "4294967296"), REFUSED, ("seed",)),
    "largest seed": (("--seed", "4294967295"), WORKS, ()),
    "a weight below 1": (("--max_weight", "0.5"), REFUSED, ("max_weight",)),
    "a weight of 1": (("--max_weight", "1"), EITHER, ()),
    "a weight of NaN": (("--max_weight", "nan"), REFUSED, ("max_weight",)),
    "an unknown direction": (("--direction", "upwards"), REFUSED, ("direction",)),
    "cvar without alpha": (("--ambiguity", "cvar"), REFUSED, ("alpha",)),
    "alpha without cvar": (("--alpha", "0.5"), REFUSED, ("alpha",)),
    "cvar": (("--ambiguity", "cvar", "--alpha", "0.5"), EITHER, ()),
    "chi2": (("--ambiguity", "chi2"), WORKS, ()),
    "an unknown set": (("--ambiguity", "wasserstein"), REFUSED, ("ambiguity",)),
    "streaming": (("--dataset_streaming", "true"), REFUSED, ("streaming",)),
    "sequences grouped by length": (("--train_sampling_strategy", "group_by_length"), EITHER, ()),
    "an unknown order of rows": (("--train_sampling_strategy", "backwards"), REFUSED, ("train_sampling",)),
    "an unknown loss": (("--loss_type", "nothing"), REFUSED, ("loss_type",)),
    "Liger": (("--use_liger_kernel", "true"), REFUSED, ("liger",)),
    "smoothed labels": (("--label_smoothing_factor", "0.1"), REFUSED, ("label_smoothing_factor",)),
    "tokens across devices": (
        ("--average_tokens_across_devices", "false"),
        REFUSED,
        ("average_tokens_across_devices",),
    ),
    "evaluation in half precision": (("--bf16_full_eval", "true"), REFUSED, ("bf16_full_eval",)),
    "an unknown metric": (("--metric_for_best_model", "beauty"), REFUSED, ("metric|eval_strategy",)),
    "an unknown optimizer": (("--optim", "sgdd"), REFUSED, ("sgdd|optim",)),
    "an unknown schedule": (("--lr_scheduler_type", "zigzag"), REFUSED, ("scheduler|zigzag",)),
    "a setting that the schedule lacks": (
        ("--lr_scheduler_kwargs", '{"wow": 1}'),
        REFUSED,
        ("lr_scheduler",),
    ),
    "an unknown padding token": (("--pad_token", "<|nothing|>"), REFUSED, ("nothing|pad_token",)),
    "an unknown end": (("--eos_token", "<|nothing|>"), REFUSED, ("nothing|eos_token",)),
    "a template that is not there": (("--chat_template_path", "no.jinja"), REFUSED, ("no.jinja",)),
    "a learning rate of NaN": (("--learning_rate", "nan"), REFUSED, ("learning_rate",)),
    "a learning rate that explodes": (
        ("--learning_rate", "1e30", "--max_steps", "3", "--lr_scheduler_type", "constant"),
        EITHER,
        (),
    ),
    "noise": (("--neftune_noise_alpha", "5"), EITHER, ()),
    "offloaded activations": (("--activation_offloading", "true"), EITHER, ("activation_offloading",)),
    "a router that is not there": (("--router_aux_loss_coef", "0.1"), REFUSED, ("router",)),
    "no checkpointing of activations": (("--gradient_checkpointing", "false"), WORKS, ()),
    "columns of rows removed": (("--remove_unused_columns", "true"), EITHER, ()),
    "LoRA": (("--use_peft", "--lora_r", "2", "--lora_target_modules", "q_proj"), WORKS, ()),
    "LoRA on unknown modules": (
        ("--use_peft", "--lora_target_modules", "wow_proj"),
        REFUSED,
        ("wow_proj|target_modules",),
    ),
    "LoRA of classifiers": (
        ("--use_peft", "--lora_target_modules", "q_proj", "--lora_task_type", "SEQ_CLS"),
        EITHER,
        ("lora_task_type",),
    ),
    "LoRA of translators": (
        ("--use_peft", "--lora_target_modules", "q_proj", "--lora_task_type", "SEQ_2_SEQ_LM"),
        REFUSED,
        ("lora_task_type",),
    ),
    "LoRA's rank alone": (("--lora_r", "2"), REFUSED, ("use_peft",)),
    "the best model": (
        ("--load_best_model_at_end", "true", "--save_strategy", "steps", "--save_steps", "1"),
        REFUSED,
        ("",),
    ),
}
OF_ONE: dict[str, dict[str, tuple[tuple[str, ...], str, tuple[str, ...]]]] = {
    "dpo": {
        **{
            f"loss {name}": (("--loss_type", name), REFUSED, ("loss_type",))
            for name in ("sft", "aot", "exo_pair", "bco_pair", "discopop")
        },
        "two losses": (("--loss_type", "sigmoid", "ipo"), REFUSED, ("loss_type",)),
        "no beta": (("--beta", "0"), REFUSED, ("beta",)),
        "a rate of flips alone": (("--label_smoothing", "0.1"), REFUSED, ("label_smoothing",)),
        "a rate of flips of a half": (
            ("--loss_type", "robust", "--label_smoothing", "0.5"),
            REFUSED,
            ("label_smoothing",),
        ),
        "precomputed reference": (("--precompute_ref_log_probs", "true"), WORKS, ()),
        "its batch alone": (("--precompute_ref_batch_size", "2"), REFUSED, ("precompute_ref_log_probs",)),
        "a comparator beside a ball": (("--comparator", "kldpo"), REFUSED, ("epsilon",)),
        "a comparator of groups without": (
            ("--comparator", "group-eg", "--epsilon", "0"),
            REFUSED,
            ("group_column",),
        ),
        "a comparator's strength alone": (("--comparator_strength", "2"), REFUSED, ("comparator",)),
        "all trimmed away": (("--comparator", "trim", "--comparator_strength", "0.99"), EITHER, ()),
        "a moving reference": (("--sync_ref_model", "true"), REFUSED, ("sync_ref_model",)),
    },
    "reward": {
        "centring by NaN": (("--center_rewards_coefficient", "nan"), REFUSED, ("center_rewards",)),
        "centring": (("--center_rewards_coefficient", "0.01"), WORKS, ()),
    },
    "gdpo": {
        "no end of a belief": (("--belief_end", ""), REFUSED, ("belief_end",)),
        "over pairs": (("--over", "pair"), REFUSED, ("over",)),
        "a precomputed reference": (("--precompute_ref_log_probs", "true"), REFUSED, ("precompute",)),
        "a comparator": (("--comparator", "kldpo"), REFUSED, ("comparator",)),
    },
    "grpo": {
        "no reward": (("--reward", ""), REFUSED, ("reward",)),
        "an unknown reward": (("--reward", "beauty"), REFUSED, ("reward",)),
        "a reward of numbers on words": (("--reward", "choice"), REFUSED, ("answer",)),
        "the margin's penalty alone": (("--cut_penalty", "2"), REFUSED, ("cut_penalty",)),
        "a negative penalty": (("--length_penalty", "-1"), REFUSED, ("length_penalty",)),
        "one completion": (("--num_generations", "1"), REFUSED, ("num_generations",)),
        "no completions": (("--num_generations", "0"), REFUSED, ("num_generations",)),
        "completions that do not fill a batch": (("--num_generations", "5"), REFUSED, ("generat",)),
        "no tokens": (("--max_completion_length", "0"), REFUSED, ("max_completion_length",)),
        "no iterations": (("--num_iterations", "0"), REFUSED, ("num_iterations",)),
        "cold": (("--temperature", "0"), REFUSED, ("temperature",)),
        "colder": (("--temperature", "-1"), REFUSED, ("temperature",)),
        "nothing of the mass": (("--top_p", "0"), REFUSED, ("top_p",)),
        "weights for two rewards": (("--reward_weights", "1", "2"), REFUSED, ("reward",)),
        "a weight for one": (("--reward_weights", "2"), WORKS, ()),
        "the clip of another": (("--epsilon_high", "-1"), REFUSED, ("epsilon_high",)),
        "a moving reference": (("--sync_ref_model", "true", "--beta", "0.1"), REFUSED, ("sync_ref_model",)),
        "a reference": (("--beta", "0.1"), WORKS, ()),
        "steered entropy": (("--use_adaptive_entropy", "true"), WORKS, ()),
        "vLLM": (("--use_vllm", "true"), REFUSED, ("vllm",)),
        "vLLM's port alone": (("--vllm_server_port", "9"), REFUSED, ("use_vllm",)),
        "an unknown preset": (("--preset", "trpo"), REFUSED, ("preset",)),
        "PPO": (("--preset", "ppo"), WORKS, ()),
        "a critic": (("--critic", "true"), WORKS, ()),
        "a critic with LoRA": (("--critic", "true", "--use_peft"), REFUSED, ("critic",)),
        "a critic's rate alone": (("--critic_learning_rate", "1"), REFUSED, ("critic",)),
        "generation's settings of nothing": (("--generation_kwargs", '{"wow": 1}'), EITHER, ("wow",)),
        "generation's settings in words": (("--generation_kwargs", "wow"), REFUSED, ("generation_kwargs",)),
        "template settings": (("--chat_template_kwargs", '{"enable_thinking": false}'), WORKS, ()),
        "an unknown scale": (("--scale_rewards", "none of these"), REFUSED, ("scale_rewards",)),
        "an unknown level of ratios": (
            ("--importance_sampling_level", "letter"),
            REFUSED,
            ("importance_sampling_level",),
        ),
        "an unknown sum of rewards": (
            ("--multi_objective_aggregation", "wow"),
            REFUSED,
            ("multi_objective_aggregation",),
        ),
    },
}


def _options() -> Iterator[Case]:
    known = {"loss_type": ("dpo", "gdpo", "grpo"), "eos_token": ("reward",), "pad_token": ("reward", "dpo")}
    for title, (more, expected, hints) in OPTIONS.items():
        for kind in TRAINED:
            wanted = expected
            if kind == "grpo":
                wanted = {"cvar": EITHER, "a tenth of an epoch": REFUSED}.get(title, expected)
            unknown = kind not in known.get(more[0][2:], TRAINED)
            yield family_case(kind, title, wanted, more, hints=() if unknown else hints)
    for kind, options in OF_ONE.items():
        for title, (more, expected, hints) in options.items():
            yield family_case(kind, title, expected, more, hints=hints)
    for kind in TRAINED:
        radius = "--radius" if kind == "grpo" else "--epsilon"
        for value in ("-1", "nan", "inf", "much", ""):
            hints = (radius[2:],)
            yield family_case(kind, f"a radius of {value!r}", REFUSED, (f"{radius}={value}",), hints=hints)
        yield family_case(kind, "no radius", WORKS, (radius, "0"))
        yield family_case(kind, "an endless radius", EITHER, (radius, "1e6"))


def _groups() -> Iterator[Case]:
    over = ("--group_column", "field")
    for kind in TRAINED:
        more = (*over, "--over", "group")
        good = rows_of(kind)
        two = [{**row, "field": "ab"[i % 2]} for i, row in enumerate(good)]
        kinds: dict[str, tuple[list[Any], str]] = {
            "two groups": (two, WORKS),
            "one group": ([{**row, "field": "a"} for row in good], REFUSED),
            "a group of null": ([*two[:3], {**two[3], "field": None}], REFUSED),
            "groups of null": ([{**row, "field": None} for row in good], REFUSED),
            "groups of numbers": ([{**row, "field": i % 2} for i, row in enumerate(good)], WORKS),
            "groups of half numbers": ([{**row, "field": i / 2} for i, row in enumerate(good)], EITHER),
            "a group of NaN": ([*two[:3], {**two[3], "field": float("nan")}], REFUSED),
            "groups of NaN": ([{**row, "field": float("nan")} for row in good], REFUSED),
            "groups of lists": ([{**row, "field": ["a"]} for row in good], REFUSED),
            "a group a row": ([{**row, "field": str(i)} for i, row in enumerate(good)], WORKS),
            "no such column": ([{k: v for k, v in row.items() if k != "field"} for row in good], REFUSED),
        }
        for title, (rows, expected) in kinds.items():
            yield family_case(kind, title, expected, more, rows=rows, hints=("field",))
        yield family_case(
            kind, "groups without a column", REFUSED, ("--over", "group"), hints=("group_column",)
        )
        radius = "--radius" if kind == "grpo" else "--epsilon"
        without = (*more, radius, "0")
        yield family_case(
            kind, "groups without a radius", REFUSED, without, rows=two, hints=("group_column",)
        )
    for kind in ("score dpo", "score reward"):
        rows = [{**row, "field": None} for row in pair_rows()]
        about: dict[str, Any] = {"fixtures": ("run-reward",)} if kind == "score reward" else {}
        prepare = reward_model if kind == "score reward" else lambda: None
        for title, given, expected in (
            ("groups of null", rows, REFUSED),
            ("one group", [{**row, "field": "a"} for row in rows], WORKS),
        ):
            yield family_case(
                kind, title, expected, over, rows=given, hints=("field",), prepare=prepare, **about
            )
        yield family_case(
            kind, "no such column", REFUSED, ("--group_column", "wow"), prepare=prepare, **about
        )
