"""The trainers of preferences and of reinforcement learning with things that they cannot use."""

from collections.abc import Callable, Iterator
from typing import Any

from .case import EITHER, REFUSED, WORKS, Case
from .fixtures import belief_rows, pair_rows

NAN, INF = float("nan"), float("inf")
SMALL = {
    **{"output_dir": "out", "max_steps": 2, "per_device_train_batch_size": 2, "report_to": "none"},
    **{"use_cpu": True, "bf16": False, "save_strategy": "no"},
}
ROLLOUTS = {"num_generations": 2, "max_completion_length": 4, "max_steps": 9}
TRAINERS = {
    "dpo": ("RobustDPOTrainer", "RobustDPOConfig"),
    "reward": ("RobustRewardTrainer", "RobustRewardConfig"),
    "gdpo": ("GDPOTrainer", "GDPOConfig"),
    "grpo": ("RobustGRPOTrainer", "RobustGRPOConfig"),
}


def _rows(kind: str) -> list[dict[str, Any]]:
    if kind == "grpo":
        return [{"prompt": row["prompt"], "answer": "3"} for row in pair_rows()]
    return belief_rows() if kind == "gdpo" else pair_rows()


def _data(kind: str) -> Any:
    from datasets import Dataset

    return Dataset.from_list(_rows(kind))


def _length(completions: Any, **columns: Any) -> list[float]:
    return [float(len(str(completion))) for completion in completions]


def _model(kind: str) -> tuple[Any, Any]:
    from transformers.utils import logging

    from klball.models.loading import CAUSAL, REWARD, load_model

    logging.set_verbosity_error()  # of the head that is new
    return load_model("klball/tiny", purpose=REWARD if kind == "reward" else CAUSAL, trainable=True)


def _train(kind: str, config: dict[str, Any] | None = None, **more: Any) -> None:
    """Two steps; what `more` says goes before the good arguments."""
    import klball

    trainer, settings = (getattr(klball, name) for name in TRAINERS[kind])
    model, tokenizer = _model(kind)
    good: dict[str, Any] = {"model": model, "processing_class": tokenizer, "train_dataset": None}
    if "train_dataset" not in more:
        good["train_dataset"] = _data(kind)
    if kind == "grpo":
        good["reward_funcs"] = _length
    given = SMALL | (ROLLOUTS if kind == "grpo" else {}) | (config or {})
    good["args"] = settings(**given)
    trainer(**{**good, **more}).train()


def _frame(kind: str) -> Any:
    import pandas

    return pandas.DataFrame(_rows(kind))


def _splits(kind: str) -> Any:
    from datasets import DatasetDict

    return DatasetDict({"train": _data(kind)})


def _unknown(kind: str) -> Any:
    return _data(kind).select_columns(["prompt"]).rename_column("prompt", "x")


def _same_model(kind: str) -> None:
    model = _model(kind)[0]
    _train(kind, model=model, ref_model=model)


DATASETS: dict[str, tuple[Callable[[str], Any], str]] = {
    "as it should be": (_data, WORKS),
    "numpy format": (lambda kind: _data(kind).with_format("numpy"), EITHER),
    "torch format": (lambda kind: _data(kind).with_format("torch"), EITHER),
    "pandas format": (lambda kind: _data(kind).with_format("pandas"), EITHER),
    "arrow format": (lambda kind: _data(kind).with_format("arrow"), EITHER),
    "None": (lambda kind: None, REFUSED),
    "a list": (_rows, EITHER),
    "a path": (lambda kind: "d.jsonl", EITHER),
    "a number": (lambda kind: 3, REFUSED),
    "a generator": (lambda kind: (row for row in _rows(kind)), REFUSED),
    "a frame": (_frame, EITHER),
    "streaming": (lambda kind: _data(kind).to_iterable_dataset(), REFUSED),
    "splits": (_splits, REFUSED),
    "a transform": (lambda kind: _data(kind).with_transform(lambda batch: batch), EITHER),
    "no rows": (lambda kind: _data(kind).select([]), REFUSED),
    "no columns": (lambda kind: _data(kind).select_columns([]), REFUSED),
    "one row": (lambda kind: _data(kind).select([0]), WORKS),
    "unknown columns": (_unknown, REFUSED),
    "a shuffled view": (lambda kind: _data(kind).shuffle(seed=0), WORKS),
    "the same id twice": (lambda kind: _data(kind).add_column("id", ["a"] * 4), EITHER),
}
ARGUMENTS: dict[str, tuple[Callable[[str], dict[str, Any]], str]] = {
    "no arguments": (lambda kind: {"args": None, "train_dataset": None}, REFUSED),
    "arguments in a dict": (lambda kind: {"args": {"output_dir": "out"}}, REFUSED),
    "arguments of SFT": (lambda kind: {"args": _sft()}, REFUSED),
    "no model": (lambda kind: {"model": None}, REFUSED),
    "a number for a model": (lambda kind: {"model": 3}, REFUSED),
    "a model that is not there": (lambda kind: {"model": "./nowhere"}, REFUSED),
    "a layer for a model": (lambda kind: {"model": __import__("torch").nn.Linear(2, 2)}, REFUSED),
    "a tokenizer in words": (lambda kind: {"processing_class": "klball/tiny"}, REFUSED),
    "LoRA in words": (lambda kind: {"peft_config": "lora"}, REFUSED),
    "callbacks in words": (lambda kind: {"callbacks": ["x"]}, REFUSED),
    "a number for a set": (lambda kind: {"ambiguity": 3}, REFUSED),
    "a set beside a radius": (
        lambda kind: {
            "ambiguity": __import__("klball").KLBall(0.1),
            "config": {"radius" if kind == "grpo" else "epsilon": 0.3},
        },
        REFUSED,
    ),
    "a set that needs certainty": (
        lambda kind: {"ambiguity": __import__("klball").CertaintyKLBall(0.1, 5.0)},
        REFUSED,
    ),
    "evaluation without rows": (
        lambda kind: {"config": {"eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 2}},
        REFUSED,
    ),
    "evaluation on a stream": (
        lambda kind: {
            "eval_dataset": _data(kind).to_iterable_dataset(),
            "config": {"eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 2},
        },
        EITHER,
    ),
    "evaluation on unknown columns": (
        lambda kind: {
            "eval_dataset": _unknown(kind),
            "config": {"eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 2},
        },
        REFUSED,
    ),
    "two evaluation sets": (
        lambda kind: {
            "eval_dataset": {"a": _data(kind), "b": _data(kind)},
            "config": {"eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 2},
        },
        WORKS,
    ),
}


def _sft() -> Any:
    from klball import RobustSFTConfig

    return RobustSFTConfig(**SMALL)


def _causal() -> Any:
    return _model("dpo")[0]


def _says(value: Any) -> Callable[..., Any]:
    def reward(completions: Any, **columns: Any) -> Any:
        return value(completions) if callable(value) else value

    return reward


async def _later(completions: Any, **columns: Any) -> list[float]:
    return [1.0] * len(completions)


REWARDS: dict[str, tuple[Callable[[], Any], str]] = {
    "numbers": (lambda: _length, WORKS),
    "coroutines": (lambda: _later, WORKS),
    "None": (lambda: None, REFUSED),
    "no functions": (lambda: [], REFUSED),
    "a number": (lambda: 3, REFUSED),
    "a number among functions": (lambda: [_length, 3], REFUSED),
    "a path that is not there": (lambda: "./nowhere", REFUSED),
    "a language model": (_causal, REFUSED),
    "rewards of NaN": (lambda: _says(lambda c: [NAN] * len(c)), REFUSED),
    "one reward of NaN": (lambda: _says(lambda c: [NAN, *[0.0] * (len(c) - 1)]), REFUSED),
    "endless rewards": (lambda: _says(lambda c: [INF] * len(c)), REFUSED),
    "no rewards": (lambda: _says(lambda c: [None] * len(c)), EITHER),
    "one reward too few": (lambda: _says(lambda c: [0.0] * (len(c) - 1)), REFUSED),
    "one reward too many": (lambda: _says(lambda c: [0.0] * (len(c) + 1)), REFUSED),
    "no list": (lambda: _says(0.5), REFUSED),
    "nothing": (lambda: _says(None), REFUSED),
    "words": (lambda: _says(lambda c: ["good"] * len(c)), REFUSED),
    "truths": (lambda: _says(lambda c: [True] * len(c)), WORKS),
    "lists": (lambda: _says(lambda c: [[0.5]] * len(c)), REFUSED),
    "tensors": (lambda: _says(lambda c: __import__("torch").ones(len(c))), WORKS),
    "arrays": (lambda: _says(lambda c: __import__("numpy").ones(len(c))), WORKS),
    "a reward without its column": (lambda: __import__("klball").ExactMatch("solution"), REFUSED),
    "a reward of letters": (lambda: __import__("klball").MultipleChoice(), REFUSED),
}


def cases() -> Iterator[Case]:
    """All of them."""

    def case(title: str, expected: str, call: Callable[[], Any], *hints: str) -> Case:
        return Case(title, "API: families", expected, call=call, hints=hints)

    for kind in TRAINERS:
        for title, (make, expected) in DATASETS.items():
            call = lambda kind=kind, make=make: _train(kind, train_dataset=make(kind))  # noqa: E731
            yield case(f"{kind}: {title}", expected, call)
        for title, (given, expected) in ARGUMENTS.items():
            call = lambda kind=kind, given=given: _train(kind, **given(kind))  # noqa: E731
            yield case(f"{kind}: {title}", expected, call)
    for title, (make, expected) in REWARDS.items():
        yield case(f"grpo: rewards, {title}", expected, lambda make=make: _train("grpo", reward_funcs=make()))
    for kind in ("dpo", "gdpo"):
        for title, value in (("a name", "klball/tiny"), ("a number", 3), ("a list", [])):
            call = lambda kind=kind, value=value: _train(kind, ref_model=value)  # noqa: E731
            yield case(f"{kind}: a reference that is {title}", REFUSED, call)
        yield case(
            f"{kind}: the model for its own reference",
            REFUSED,
            lambda kind=kind: _same_model(kind),
        )
