"""Interrupted runs with damaged checkpoints or files: run again, they end the same."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .case import EITHER, REFUSED, WORKS, Case, command, fixture, good_rows, jsonl
from .fixtures import run_arguments

FILES = {
    "lora": (
        *(
            "adapter_model.safetensors",
            "adapter_config.json",
            "optimizer.pt",
            "scheduler.pt",
            "rng_state.pth",
        ),
        *(
            "trainer_state.json",
            "training_args.bin",
            "ledger.safetensors",
            "history.parquet",
            "tokenizer.json",
        ),
        *("tokenizer_config.json", "chat_template.jinja"),
    ),
    "full": (
        "model.safetensors",
        "config.json",
        "generation_config.json",
        "optimizer.pt",
        "ledger.safetensors",
    ),
    "psft": ("psft-window-0.safetensors", "ledger.safetensors"),
}
FINAL = {
    "lora": "adapter_model.safetensors",
    "full": "model.safetensors",
    "psft": "adapter_model.safetensors",
}
NEWEST = Path("out/checkpoint-4")


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "cut": _cut,
    "junk": lambda path: path.write_bytes(b"junk" * 99),
    "lost": Path.unlink,
    "a folder": _folder,
}


def cases() -> Iterator[Case]:
    """All of them."""
    for kind, names in FILES.items():
        for name in names:
            for damage, hurt in DAMAGE.items():
                yield Case(
                    f"train: checkpoint's {name} {damage} ({kind})",
                    "checkpoints",
                    WORKS,
                    run_arguments(kind),
                    _hurt(kind, name, hurt),
                    fixtures=(f"run-{kind}",),
                    check=_same(kind),
                )
    yield from _both()
    yield from _run_files()
    yield from _finished_outputs()


def interrupted(kind: str) -> None:
    """The finished run, without what is written last."""
    shutil.copy(fixture(f"run-{kind}") / "d.jsonl", "d.jsonl")
    shutil.copytree(fixture(f"run-{kind}") / "out", "out")
    for path in (Path("out/top_weighted.csv"), Path("out") / FINAL[kind]):
        path.unlink()


def _hurt(kind: str, name: str, hurt: Callable[[Path], Any], folders: tuple[str, ...] = ("4",)) -> Any:
    def prepare() -> None:
        interrupted(kind)
        for folder in folders:
            path = Path(f"out/checkpoint-{folder}") / name
            if "window" in name:  # PSFT's open window has its number in its name
                path = next(path.parent.glob("psft-window-*"), path)
            if path.exists():
                hurt(path)

    return prepare


def _same(kind: str) -> Callable[[], str | None]:
    """Weights and history are those of the run that nobody interrupted."""

    def check() -> str | None:
        import pyarrow.parquet as pq
        from safetensors.torch import load_file

        whole = fixture(f"run-{kind}") / "out"
        if not Path("out/top_weighted.csv").exists():
            return "the run is not finished"
        histories = [pq.read_table(folder / "history.parquet") for folder in (whole, Path("out"))]
        if not histories[0].equals(histories[1]):
            return "the history is another one"
        wanted, found = load_file(whole / FINAL[kind]), load_file(Path("out") / FINAL[kind])
        return None if all((wanted[k] == found[k]).all() for k in wanted) else "the weights are others"

    return check


def _both() -> Iterator[Case]:
    """No checkpoint is whole: begin again, or say so."""
    for name in ("optimizer.pt", "adapter_model.safetensors", "ledger.safetensors", "trainer_state.json"):
        for damage in ("cut", "lost"):
            prepare = _hurt("lora", name, DAMAGE[damage], ("2", "4"))
            yield Case(
                *(
                    f"train: all checkpoints' {name} {damage}",
                    "checkpoints",
                    EITHER,
                    run_arguments("lora"),
                    prepare,
                ),
                hints=("checkpoint",),
                fixtures=("run-lora",),
                check=_same("lora"),
            )


def _run_files() -> Iterator[Case]:
    """run.json, the folder itself, and checkpoints that are not the run's."""

    def run_json(content: bytes) -> Callable[[], Any]:
        return lambda: (interrupted("lora"), Path("out/run.json").write_bytes(content))

    def odd(*made: Callable[[], Any]) -> Callable[[], Any]:
        return lambda: (interrupted("lora"), *(make() for make in made))

    def other_rows() -> None:
        interrupted("lora")
        jsonl([{"question": row["question"], "answer": "Something else."} for row in good_rows(8)])

    def fewer_rows() -> None:
        interrupted("lora")
        jsonl(good_rows(7))

    def a_file() -> None:
        jsonl(good_rows(8))
        Path("out").write_text("x")

    state = NEWEST / "trainer_state.json"
    kinds: dict[str, tuple[Callable[[], Any], str]] = {
        "nothing damaged": (lambda: interrupted("lora"), WORKS),
        "run.json junk": (run_json(b"junk"), REFUSED),
        "run.json empty": (run_json(b""), REFUSED),
        "run.json is a list": (run_json(b"[]"), REFUSED),
        "run.json is null": (run_json(b"null"), REFUSED),
        "run.json is {}": (run_json(b"{}"), REFUSED),
        "run.json in latin-1": (run_json(b'{"\xe9": 1}'), REFUSED),
        "run.json in brackets": (run_json(b"[" * 100_000), REFUSED),
        "run.json a folder": (odd(lambda: _folder(Path("out/run.json"))), REFUSED),
        "run.json lost": (odd(lambda: Path("out/run.json").unlink()), EITHER),
        "a checkpoint with a word for a number": (odd(lambda: Path("out/checkpoint-best").mkdir()), WORKS),
        "a checkpoint that is a file": (odd(lambda: Path("out/checkpoint-9").write_text("x")), WORKS),
        "an empty newer checkpoint": (odd(lambda: Path("out/checkpoint-9").mkdir()), WORKS),
        "a checkpoint of a longer run": (odd(lambda: shutil.copytree(NEWEST, "out/checkpoint-9")), EITHER),
        "a link to nowhere": (odd(lambda: os.symlink("nowhere", "out/checkpoint-9")), WORKS),
        "state is a list": (odd(lambda: state.write_text("[]")), WORKS),
        "state is {}": (odd(lambda: state.write_text("{}")), WORKS),
        "state with step in words": (odd(lambda: state.write_text('{"global_step": "four"}')), WORKS),
        "state with a huge step": (odd(lambda: state.write_text('{"global_step": 1000000}')), EITHER),
        "the data changed": (other_rows, EITHER),
        "a row fewer": (fewer_rows, REFUSED),
        "the data lost": (odd(lambda: Path("d.jsonl").unlink()), REFUSED),
        "out is a file": (a_file, REFUSED),
    }
    for kind, (prepare, expected) in kinds.items():
        check = _same("lora") if expected == WORKS else None
        hints = ("run.json|another command",) if kind.startswith("run.json") else ()
        yield Case(
            *(f"train: {kind}", "checkpoints", expected, run_arguments("lora"), prepare),
            hints=hints,
            fixtures=("run-lora",),
            check=check,
        )
    for path in ("out/checkpoint-2", "out", "nowhere/checkpoint-9", "", "true"):
        arguments = [*run_arguments("lora"), "--resume_from_checkpoint", path]
        expected = REFUSED if path in ("nowhere/checkpoint-9", "") else EITHER
        yield Case(
            *(f"train: --resume_from_checkpoint {path!r}", "checkpoints", expected, arguments),
            prepare=lambda: interrupted("lora"),
            fixtures=("run-lora",),
        )


def _finished_outputs() -> Iterator[Case]:
    """Results of other commands that are damaged when the command runs again."""
    tables = {
        "score": ("score", "scores", "out/scores.parquet"),
        "paraphrase": ("paraphrase", "rounds", "out/rounds.parquet"),
        "evaluate": ("evaluate", "evaluate", "out/scores/*.parquet"),
        "compare": ("compare", "compare", "out/scores/*/*.parquet"),
        "scan": ("scan", "scan", "out/scores/base/*.parquet"),
    }
    for name, (asked, made, pattern) in tables.items():
        arguments = command(asked)
        if name == "paraphrase":
            arguments[arguments.index("--rounds") + 1] = "3"
        for damage, hurt in DAMAGE.items():

            def prepare(made: str = made, pattern: str = pattern, hurt: Any = hurt) -> None:
                shutil.copytree(fixture(made), ".", dirs_exist_ok=True)
                hurt(next(Path().glob(pattern)))

            wanted = WORKS if damage == "lost" else EITHER
            title = f"{name}: its own table {damage}"
            yield Case(title, "checkpoints", wanted, arguments, prepare, hints=("parquet",), fixtures=(made,))
        for content in ("junk", "[]"):

            def prepare(made: str = made, content: str = content) -> None:
                shutil.copytree(fixture(made), ".", dirs_exist_ok=True)
                Path("out/run.json").write_text(content)

            title = f"{name}: its run.json {json.dumps(content)}"
            yield Case(title, "checkpoints", EITHER, arguments, prepare, fixtures=(made,))
