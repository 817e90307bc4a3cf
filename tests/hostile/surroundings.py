"""Packages that are missing, disks that are full, terminals and locales that are odd."""

import os
import resource
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .case import EITHER, REFUSED, WORKS, Case, command, good_data, good_rows, jsonl
from .fixtures import run_arguments
from .flags import _scores

COMMANDS = ("score", "train", "evaluate", "scan", "paraphrase", "compare", "reproduce")
PACKAGES: dict[
    str, tuple[tuple[str, ...], tuple[str, ...]]
] = {  # what is asked → (flags, words of the answer)
    "bitsandbytes": (("--optim", "paged_adamw_8bit"), ("bitsandbytes|paged_adamw_8bit|optim",)),
    "bitsandbytes (adamw_8bit)": (("--optim", "adamw_8bit"), ("bitsandbytes|adamw_8bit|optim",)),
    "galore": (("--optim", "galore_adamw"), ("galore",)),
    "lomo": (("--optim", "lomo"), ("lomo",)),
    "grokadamw": (("--optim", "grokadamw"), ("grok",)),
    "schedule-free": (("--optim", "schedule_free_adamw"), ("schedule",)),
    "apollo": (("--optim", "apollo_adamw"), ("apollo",)),
    "torchao": (("--optim", "adamw_torch_4bit"), ("torchao",)),
    "tensorboard": (("--report_to", "tensorboard"), ("tensorboard",)),
    "wandb": (("--report_to", "wandb"), ("wandb",)),
    "mlflow": (("--report_to", "mlflow"), ("mlflow",)),
    "trackio": (("--report_to", "trackio"), ("trackio",)),
    "all reporters": (("--report_to", "tensorboard", "wandb"), ("tensorboard|wandb",)),
    "liger": (("--use_liger_kernel", "true"), ("liger",)),
    "deepspeed": (("--deepspeed", "ds.json"), ("deepspeed",)),
    "flash-attn": (("--attn_implementation", "flash_attention_2"), ("flash",)),
    "quantised loading": (("--load_in_4bit", "true"), ("bitsandbytes|quantis",)),
}


def cases() -> Iterator[Case]:
    """All of them."""
    for kind, (more, hints) in PACKAGES.items():
        prepare = _without(good_data)
        arguments = [*command("train"), *more]
        yield Case(f"train: without {kind}", "surroundings", REFUSED, arguments, prepare, hints=hints)
    yield Case(
        *("paraphrase: without openai", "surroundings", REFUSED),
        arguments=[
            *(*command("paraphrase"), "--maker", "openai-batch", "--step", "submit"),
            *("--model_name_or_path", "x"),
        ],
        prepare=_without(good_data, "openai"),
        hints=("openai",),
        environment={"OPENAI_API_KEY": "x"},
    )
    yield Case(
        *("paraphrase: without sentence-transformers", "surroundings", REFUSED),
        arguments=[*command("paraphrase"), "--similarity_model", "all-MiniLM-L6-v2"],
        prepare=good_data,
        hints=("similarity|sentence.transformers",),
    )
    yield from _full_disks()
    yield from _streams()
    yield from _processes()


def _without(prepare: Callable[[], Any], *packages: str) -> Callable[[], None]:
    """Packages that cannot be imported, whether or not they are installed here."""
    hidden = (
        *packages,
        "bitsandbytes",
        "tensorboard",
        "tensorboardX",
        "wandb",
        "mlflow",
        "liger_kernel",
        "deepspeed",
    )

    def block() -> None:
        prepare()
        Path("ds.json").write_text('{"train_micro_batch_size_per_gpu": 2}')
        for name in [name for name in sys.modules if name.split(".")[0] in packages]:
            del sys.modules[name]
        for name in hidden:
            sys.modules[name] = None  # pyright: ignore[reportArgumentType]

    return block


def _full_disks() -> Iterator[Case]:
    """No file may grow beyond a size, from the first byte to the middle of a checkpoint."""
    for name in COMMANDS:
        for size in (0, 100, 4_000, 50_000, 1_000_000):
            arguments = command(name)
            if name == "train":
                arguments = [*arguments, "--save_steps", "1"]
            title = f"{name}: files of {size} bytes at most"
            yield Case(title, "full disks", EITHER, arguments, good_data, file_size=size)
    for size in (100, 4_000, 20_000, 50_000):
        title = f"train: LoRA, files of {size} bytes at most"
        yield Case(
            title, "full disks", EITHER, run_arguments("lora"), lambda: jsonl(good_rows(8)), file_size=size
        )
    for name in COMMANDS:

        def prepare(name: str = name) -> None:
            """A first try on a full disk, in a process of its own; the second has room."""
            good_data()
            pid = os.fork()
            if pid == 0:
                quiet = os.open(os.devnull, os.O_WRONLY)
                os.dup2(quiet, 1)
                os.dup2(quiet, 2)
                resource.setrlimit(resource.RLIMIT_FSIZE, (4_000, 4_000))
                try:
                    from klball import cli

                    cli.main(command(name))
                finally:
                    os._exit(0)
            os.waitpid(pid, 0)

        title = f"{name}: again after a full disk"
        yield Case(title, "full disks", WORKS, command(name), prepare)


def _streams() -> Iterator[Case]:
    """Where output goes that cannot take it."""

    def closed(*numbers: int) -> Callable[[], Any]:
        """Nobody reads: the next write is EPIPE."""

        def close() -> None:
            from klball import cli

            for number in numbers:
                reading, writing = os.pipe()
                os.close(reading)
                os.dup2(writing, number)
            cli.main(["score", "--dataset_name", "d.jsonl", "--output_dir", "out"])

        return close

    def encoded(encoding: str, *arguments: str) -> Callable[[], Any]:
        def call() -> None:
            from klball import cli

            for stream in (sys.stdout, sys.stderr):
                stream.reconfigure(encoding=encoding)  # pyright: ignore[reportAttributeAccessIssue]
            cli.main(list(arguments))

        return call

    yield Case("score: nobody reads", "surroundings", EITHER, call=closed(1), prepare=good_data)
    for name in ("score", "solve", "evaluate", "paraphrase", "scan", "compare"):
        for encoding in ("ascii", "latin-1"):
            table = "out/scores.parquet" if name == "solve" else "d.jsonl"
            yield Case(
                *(f"{name}: terminal in {encoding}", "surroundings", WORKS),
                call=encoded(encoding, *command(name, table)),
                prepare=_scores if name == "solve" else good_data,
                fixtures=("scores",) if name == "solve" else (),
            )
    yield Case(
        *("refusal: terminal in ascii", "surroundings", REFUSED),
        call=encoded("ascii", "score", "--dataset_name", "γραμμές.jsonl"),
    )
    for name in ("score", "evaluate", "scan", "train"):
        for columns in ("1", "10", "0", "-3", "many", "100000"):
            yield Case(
                *(f"{name}: COLUMNS={columns}", "surroundings", WORKS, command(name), good_data),
                environment={"COLUMNS": columns},
            )


def _processes() -> Iterator[Case]:
    """Variables that say how this process was started."""
    kinds: dict[str, tuple[dict[str, str], str]] = {
        "RANK in words": ({"RANK": "first"}, EITHER),
        "RANK empty": ({"RANK": ""}, EITHER),
        "WORLD_SIZE in words": ({"WORLD_SIZE": "many"}, EITHER),
        "LOCAL_RANK in words": ({"LOCAL_RANK": "first"}, EITHER),
        "no HOME": ({"HOME": ""}, WORKS),
        "HOME that is not there": ({"HOME": "/nowhere"}, WORKS),
        "TMPDIR that is not there": ({"TMPDIR": "/nowhere"}, WORKS),
        "a Greek locale": ({"LC_ALL": "el_GR.ISO-8859-7"}, WORKS),
        "no terminal": ({"TERM": ""}, WORKS),
        "a dumb terminal": ({"TERM": "dumb"}, WORKS),
        "forced colours": ({"NO_COLOR": "1"}, WORKS),
    }
    for kind, (environment, expected) in kinds.items():
        for name in ("score", "train"):
            title = f"{name}: {kind}"
            yield Case(title, "surroundings", expected, command(name), good_data, environment=environment)
