"""Every case in a forked child of a process that has imported everything: half a second each, well apart."""

import gc
import os
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import NoReturn

from .case import PROBLEM, Answer, Case
from .fixtures import FIXTURES

TIME_LIMIT = 60  # seconds
MEMORY_LIMIT = 16 << 30  # bytes of address space
NOT_PREPARED = 97


def import_everything() -> None:
    """What the commands import, once, on one thread and without a network."""
    for name, value in (
        ("OMP_NUM_THREADS", "1"),
        ("HF_HUB_OFFLINE", "1"),
        ("TOKENIZERS_PARALLELISM", "false"),
    ):
        os.environ[name] = value
    import torch

    import klball
    from klball import cli

    torch.set_num_threads(1)
    for module, _ in cli.COMMANDS.values():
        import_module(module)
    for name in klball.__all__:
        getattr(klball, name)
    gc.collect()
    gc.freeze()


def run_cases(cases: Sequence[Case], work: Path, jobs: int = 1) -> Iterator[tuple[Case, Answer]]:
    """The answers, as they come; folders of `work` are removed when a case is done."""
    os.environ["HOSTILE_FIXTURES"] = str(work / "fixtures")
    for name in sorted({name for case in cases for name in case.fixtures}):
        _make_fixture(name, work)
    waiting, running = list(enumerate(cases))[::-1], {}
    while waiting or running:
        while waiting and len(running) < jobs:
            index, case = waiting.pop()
            folder = work / f"{index:05d}"
            running[_start(case, folder)] = (case, folder, time.monotonic())
        for pid in list(running):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                case, folder, began = running.pop(pid)
                _end_group(pid)
                yield case, _collect(folder, os.waitstatus_to_exitcode(status), time.monotonic() - began)
        time.sleep(0.003)


def _make_fixture(name: str, work: Path) -> None:
    folder = work / "fixtures" / name
    if folder.exists():
        return
    folder.mkdir(parents=True)
    case = Case(name, "fixture", "works", call=FIXTURES[name])
    pid = _start(case, work / f"fixture-{name}", folder)
    status = os.waitpid(pid, 0)[1]
    answer = _collect(work / f"fixture-{name}", os.waitstatus_to_exitcode(status), 0.0)
    if answer.code != 0:
        print(f"fixture {name} could not be made:\n{answer.err[-1500:]}", file=sys.stderr)


def _start(case: Case, folder: Path, inside: Path | None = None) -> int:
    """Fork; the child works in `folder`/in (or `inside`) and ends with the command's exit code."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "in").mkdir(parents=True)
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        _child(case, folder, inside or folder / "in")
    return pid


def _child(case: Case, folder: Path, inside: Path) -> NoReturn:
    code, writers = NOT_PREPARED, []
    try:
        os.setpgid(0, 0)
        signal.alarm(TIME_LIMIT)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.environ["HF_DATASETS_CACHE"] = str(folder / "cache")
        _use_cache(folder / "cache")
        os.chdir(inside)
        _silence()
        case.prepare()
        writers = _redirect(folder, case.file_size is not None)
        os.environ.update(case.environment)
        if case.file_size is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (case.file_size, case.file_size))
        code = _answer(case.call or (lambda: _command(case.arguments)))
        if code == 0 and case.check is not None:
            (folder / PROBLEM).write_text(case.check() or "")
    except BaseException:
        (folder / PROBLEM).write_text(f"prepare: {traceback.format_exc()}")
    finally:
        os.closerange(1, 3)
        for writer in writers:
            os.waitpid(writer, 0)
        os._exit(code)


def _command(arguments: Sequence[str]) -> None:
    from klball import cli

    cli.main(list(arguments))


def _answer(call: Callable[[], object]) -> int:
    """The exit code; a ValueError or OSError of the API counts as the refusal that commands make of it."""
    try:
        call()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except (ValueError, OSError) as error:
        if isinstance(error, UnicodeError):
            traceback.print_exc()
            code = 1
        else:
            print(f"\nklball: error: {error}", file=sys.stderr)  # a bar may not have ended its line
            code = 2
    except BaseException:
        traceback.print_exc()
        code = 1
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            code = code or 1
    return code


def _silence() -> None:
    """What is said while the input is written is no part of the answer."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)


def _redirect(folder: Path, limited: bool) -> list[int]:
    """Both streams into files; new objects too, since pytest puts its own in their place.

    Where files are `limited`, through pipes and processes that write them, whose ids are returned.
    """
    writers = []
    for name, number, errors in (("out", 1, "strict"), ("err", 2, "backslashreplace")):
        file = os.open(folder / name, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        if limited:
            writer, file = _through_a_pipe(file)
            writers.append(writer)
        os.dup2(file, number)
        os.close(file)
        stream = open(number, "w", encoding="utf-8", errors=errors, closefd=False)  # noqa: SIM115
        setattr(sys, {1: "stdout", 2: "stderr"}[number], stream)
    return writers


def _through_a_pipe(file: int) -> tuple[int, int]:
    """A process that copies a pipe into the file, and the pipe's end to write to."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(writing)
        while content := os.read(reading, 1 << 16):
            os.write(file, content)
        os._exit(0)
    os.close(reading)
    os.close(file)
    return pid, writing


def _use_cache(folder: Path) -> None:
    """`datasets` reads its environment at import, so a case's own cache has to be set in the module."""
    import datasets

    datasets.config.HF_DATASETS_CACHE = folder


def _collect(folder: Path, code: int, seconds: float) -> Answer:
    def text(name: str) -> str:
        path = folder / name
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    known = {"in", "out", "err", "cache", PROBLEM}
    strangers = sorted(path.name for path in folder.iterdir() if path.name not in known)
    answer = Answer(code, text("out"), text("err"), text(PROBLEM), strangers, seconds)
    shutil.rmtree(folder, ignore_errors=True)
    return answer


def _end_group(pid: int) -> None:
    """Nothing that a case started outlives it."""
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
