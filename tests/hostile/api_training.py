"""klball.score, RobustSFTConfig and RobustSFTTrainer with things that they cannot use."""

from collections.abc import Callable, Iterator
from typing import Any

from .api_dual import NUMBERS
from .case import EITHER, REFUSED, WORKS, Case, good_rows
from .fixtures import tiny
from .identity import TOKENS
from .rows import MESSAGES, MISSING, PAIRS, UNANSWERED

NAN, INF = float("nan"), float("inf")


def _rows(rows: Any = None) -> Any:
    from datasets import Dataset

    return Dataset.from_list(good_rows() if rows is None else rows)


def _tiny() -> tuple[Any, Any]:
    from klball.models.loading import load_model

    return load_model("klball/tiny")


def _score(dataset: Callable[[], Any] = _rows, model: Any = None, tokenizer: Any = None, **more: Any) -> Any:
    import klball

    own_model, own_tokenizer = _tiny()
    given = own_tokenizer if tokenizer is None else tokenizer
    table = klball.score(own_model if model is None else model, given, dataset(), **more)
    assert len(table) > 0


def _config(**settings: Any) -> Any:
    import klball

    small = {"output_dir": "out", "max_steps": 2, "per_device_train_batch_size": 2, "report_to": "none"}
    return klball.RobustSFTConfig(
        **{**small, "use_cpu": True, "bf16": False, "save_strategy": "no", **settings}
    )


def _train(dataset: Callable[[], Any] = _rows, config: dict[str, Any] | None = None, **more: Any) -> None:
    import klball

    model, tokenizer = _tiny()
    given = {"train_dataset": dataset(), "processing_class": tokenizer, **more}
    klball.RobustSFTTrainer(model, _config(**(config or {})), **given).train()


def _formatted(kind: str) -> Callable[[], Any]:
    return lambda: _rows().with_format(kind)


def _pairs() -> Any:
    return _rows([{"prompt": f"Count to {i}: ", "completion": "one, two"} for i in range(4)])


def _of(rows: Any) -> Callable[[], Any]:
    return lambda: _rows(rows)


def _streaming() -> Any:
    return _rows().to_iterable_dataset()


def _dict() -> Any:
    from datasets import DatasetDict

    return DatasetDict({"train": _rows()})


def _transformed() -> Any:
    return _rows().with_transform(lambda batch: batch)


DATASETS: dict[
    str, tuple[Callable[[], Any], str, str]
] = {  # kind → (data, expected of score, of the trainer)
    "question and answer": (_rows, WORKS, WORKS),
    "numpy format": (_formatted("numpy"), WORKS, WORKS),
    "torch format": (_formatted("torch"), WORKS, WORKS),
    "pandas format": (_formatted("pandas"), EITHER, EITHER),
    "arrow format": (_formatted("arrow"), EITHER, EITHER),
    "None": (lambda: None, REFUSED, REFUSED),
    "a list": (good_rows, EITHER, EITHER),
    "a path": (lambda: "d.jsonl", EITHER, EITHER),
    "a number": (lambda: 3, REFUSED, REFUSED),
    "a dict": (lambda: {"question": ["a"], "answer": ["b"]}, REFUSED, REFUSED),
    "a generator": (lambda: (row for row in good_rows()), REFUSED, REFUSED),
    "a frame": (lambda: __import__("pandas").DataFrame(good_rows()), EITHER, EITHER),
    "streaming": (_streaming, REFUSED, REFUSED),
    "splits": (_dict, REFUSED, REFUSED),
    "a transform": (_transformed, EITHER, REFUSED),
    "no rows": (lambda: _rows().select([]), REFUSED, REFUSED),
    "no columns": (lambda: _rows().select_columns([]), REFUSED, REFUSED),
    "one row": (lambda: _rows().select([0]), WORKS, WORKS),
    "unknown columns": (_of([{"foo": "a"}] * 4), REFUSED, REFUSED),
    "conversations": (
        _of([{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}] * 4),
        *(WORKS, WORKS),
    ),
    "null answers": (_of([{"question": "a", "answer": None}] * 4), REFUSED, REFUSED),
    "ids twice": (_of([{"id": "a", **row} for row in good_rows()]), EITHER, EITHER),
    "a column sample_index": (_of([{"sample_index": 7, **row} for row in good_rows()]), EITHER, EITHER),
    "packed rows": (_of([{"input_ids": [5, 6, 7, 8], "seq_lengths": [2, 2]}] * 4), REFUSED, REFUSED),
    "images": (_of([{"image": "a", **row} for row in good_rows()]), EITHER, REFUSED),
}
CONFIG: dict[str, tuple[str, ...]] = {
    "epsilon": (),
    "gamma": (),
    "max_weight": (),
    "psft_clip": (),
    "entropy_coef": ("-1",),
}
WHOLE = {"psft_refresh": (0, -1, 1.5), "psft_warmup_steps": (-1, 1.5), "rescore_steps": (-1, 1.5)}
WORDS = {
    **{name: ("nothing", "", 3, None, ["x"]) for name in ("reweight", "normalization", "on_infeasible")},
    "objective": ("nothing", "", 3, ["x"]),
    "certainty_gradient": ("maybe",),
    "max_length": (-1, 0, "many", NAN, 1.5),
    "learning_rate": (-1.0, NAN, INF, "fast"),
    "max_grad_norm": (NAN, "x"),
    "per_device_train_batch_size": (0, -1, 1.5, "two"),
    "gradient_accumulation_steps": (0, -1, 1.5),
    "warmup_steps": (-1, NAN),
    "num_train_epochs": (NAN,),
    "max_steps": (NAN, "two"),
    "packing_strategy": ("nothing",),
    "loss_type": ("nothing",),
    "optim": ("nothing",),
    "lr_scheduler_type": ("nothing",),
    "truncation_mode": ("nothing",),
    "eos_token": ("<|nothing|>",),
    "pad_token": ("<|nothing|>",),
    "chat_template_path": ("none.jinja",),
    "neftune_noise_alpha": (NAN, "x"),
    "model_init_kwargs": ("{", 3, []),
}


def _loss(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
    return outputs.logits.mean()


TRAINER: dict[str, tuple[Callable[[], Any], str]] = {
    "compute_loss_func": (lambda: _train(_pairs, compute_loss_func=_loss), REFUSED),
    "compute_metrics": (lambda: _train(_pairs, compute_metrics=lambda p: {}), REFUSED),
    "an unknown objective": (lambda: _train(_pairs, objective="nothing"), REFUSED),
    "a number for an objective": (lambda: _train(_pairs, objective=3), REFUSED),
    "an objective of another shape": (lambda: _train(_pairs, objective=lambda *a, **k: 0.0), EITHER),
    "an unknown set": (lambda: _train(_pairs, ambiguity="ball"), REFUSED),
    "an object for a set": (lambda: _train(_pairs, ambiguity=object()), REFUSED),
    "a set and a radius": (
        lambda: _train(_pairs, config={"epsilon": 0.3}, ambiguity=__import__("klball").KLBall(0.1)),
        REFUSED,
    ),
    "args of None": (lambda: _with_args(None), EITHER),
    "args in a dict": (lambda: _with_args({"output_dir": "out"}), REFUSED),
    "a model that is not there": (lambda: _with_model("nowhere"), REFUSED),
    "a number for a model": (lambda: _with_model(3), REFUSED),
    "None for a model": (lambda: _with_model(None), REFUSED),
    "a linear layer for a model": (lambda: _with_model(__import__("torch").nn.Linear(2, 2)), REFUSED),
    "a tokenizer in words": (lambda: _train(_pairs, processing_class="klball/tiny"), REFUSED),
    "evaluation on nothing": (
        lambda: _train(_pairs, config={"eval_strategy": "steps", "eval_steps": 1}),
        REFUSED,
    ),
    "evaluation on unknown columns": (
        lambda: _train(
            _pairs, config={"eval_strategy": "steps", "eval_steps": 1}, eval_dataset=_rows([{"foo": "a"}] * 2)
        ),
        REFUSED,
    ),
    "evaluation on null answers": (
        lambda: _train(
            _pairs,
            config={"eval_strategy": "steps", "eval_steps": 1},
            eval_dataset=_rows([{"question": "a", "answer": None}] * 2),
        ),
        REFUSED,
    ),
    "LoRA on unknown modules": (lambda: _train(_pairs, peft_config=_lora("wow_proj")), REFUSED),
    "LoRA in words": (lambda: _train(_pairs, peft_config="lora"), REFUSED),
    "callbacks of words": (lambda: _train(_pairs, callbacks=["x"]), EITHER),
    "a formatting function of None": (lambda: _train(_pairs, formatting_func=lambda row: None), REFUSED),
    "a checkpoint that is not there": (lambda: _resume("nowhere/checkpoint-9"), REFUSED),
    "a folder without checkpoints": (lambda: _resume(True), REFUSED),
    "a bound that nobody meets": (
        lambda: _train(_pairs, config={"gamma": -5.0, "on_infeasible": "raise"}),
        REFUSED,
    ),
    "nothing left after cutting": (lambda: _train(_pairs, config={"max_length": 2}), REFUSED),
}


def _lora(module: str) -> Any:
    from peft import LoraConfig

    return LoraConfig(r=2, target_modules=[module])


def _foreign_args() -> None:
    from trl import SFTConfig

    _with_args(SFTConfig(output_dir="out", use_cpu=True, bf16=False, report_to="none"))


def _with_args(args: Any) -> None:
    import klball

    model, tokenizer = _tiny()
    klball.RobustSFTTrainer(model, args, train_dataset=_pairs(), processing_class=tokenizer)


def _with_model(model: Any) -> None:
    import klball

    tokenizer = _tiny()[1]
    klball.RobustSFTTrainer(model, _config(), train_dataset=_pairs(), processing_class=tokenizer).train()


def _resume(path: Any) -> None:
    import klball

    model, tokenizer = _tiny()
    trainer = klball.RobustSFTTrainer(model, _config(), train_dataset=_pairs(), processing_class=tokenizer)
    trainer.train(resume_from_checkpoint=path)


SCORE: dict[str, tuple[Callable[[], Any], str]] = {
    "a name for a model": (lambda: _score(model="klball/tiny"), EITHER),
    "a path for a model": (lambda: _score(model=tiny()), EITHER),
    "a number for a model": (lambda: _score(model=3), REFUSED),
    "a layer for a model": (lambda: _score(model=__import__("torch").nn.Linear(2, 2)), REFUSED),
    "a name for a tokenizer": (lambda: _score(tokenizer="klball/tiny"), EITHER),
    "a number for a tokenizer": (lambda: _score(tokenizer=3), REFUSED),
    **{
        f"max_length {v!r}": (lambda v=v: _score(max_length=v), REFUSED) for v in (0, -1, 1, "many", NAN, 2.5)
    },
    **{
        f"tokens_per_batch {v!r}": (lambda v=v: _score(tokens_per_batch=v), REFUSED)
        for v in (0, -1, "x", NAN)
    },
    "output that is a folder": (lambda: _score(output="."), REFUSED),
    "output below a file": (lambda: _score(output="/dev/null/x.parquet"), REFUSED),
    "output that is a number": (lambda: _score(output=3), REFUSED),
}


TRAINER["args of TRL"] = (_foreign_args, REFUSED)


def cases() -> Iterator[Case]:
    """All of them."""

    def case(title: str, group: str, expected: str, call: Callable[[], Any], *hints: str) -> Case:
        return Case(title, f"API: {group}", expected, call=call, hints=hints)

    for kind, (make, of_score, of_trainer) in DATASETS.items():
        yield case(f"score: {kind}", "score", of_score, lambda make=make: _score(make))
        yield case(f"trainer: {kind}", "trainer", of_trainer, lambda make=make: _train(make))
    yield from _odd_rows(case)
    for kind, (call, expected) in SCORE.items():
        yield case(f"score: {kind}", "score", expected, call)
    for kind, (call, expected) in TRAINER.items():
        yield case(f"trainer: {kind}", "trainer", expected, call)
    for name in CONFIG:
        for kind, value in NUMBERS.items():
            expected = WORKS if value is None and name in ("gamma", "max_weight") else REFUSED
            if kind in ("True", "a numeric word") or (kind == "-1" and name in ("gamma", "entropy_coef")):
                expected = EITHER
            yield case(
                f"config: {name} {kind}", "config", expected, lambda n=name, v=value: _config(**{n: v}), name
            )
    for name, values in {**WHOLE, **WORDS}.items():
        for value in values:
            call = lambda n=name, v=value: _use(n, v)  # noqa: E731
            yield case(f"config: {name} {value!r}", "config", REFUSED, call)


def _use(name: str, value: Any) -> None:
    """A setting that the config lets pass may be refused by the trainer, before it has trained."""
    _train(_pairs, config={name: value})


def _odd_rows(case: Callable[..., Case]) -> Iterator[Case]:
    """The commands' odd chats, pairs and tokens in a data set of the user's own."""
    for kind, (value, expected) in MESSAGES.items():
        if value is MISSING or kind in UNANSWERED:
            continue
        rows = [{"messages": value}] * 4
        yield case(f"trainer: messages {kind}", "trainer", expected, lambda r=rows: _train(_of(r)))
    for kind, (prompt, completion, expected) in PAIRS.items():
        rows = [{"prompt": prompt, "completion": completion}] * 4
        yield case(f"trainer: pair {kind}", "trainer", expected, lambda r=rows: _train(_of(r)))
    for kind, (row, expected) in TOKENS.items():
        wanted = EITHER if kind in ("beyond 64 bits", "no label", "one token") else expected
        yield case(f"trainer: tokens {kind}", "trainer", wanted, lambda r=[row] * 4: _train(_of(r)))
