"""What ends in one line, what keeps its traceback, and what reaches the terminal."""

import errno
import logging
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub.errors import OfflineModeIsEnabled
from safetensors import SafetensorError

from klball import cli
from klball.adversary.dual import InfeasibleError, solve_dual


def of_module(name: str, source: str):
    """A function of that module, whose body is this source."""
    namespace = {"__name__": name, "error": None, "solve_dual": solve_dual}
    exec(f"def run():\n    {source}\n", namespace)
    return namespace["run"]


def within(name: str, called):
    """`called` from a constructor of that module, called by klball."""
    namespace = {"__name__": name, "called": called}
    exec("class Made:\n    def __init__(self):\n        called()\n", namespace)
    outer = {"__name__": "klball.commands.x", "Made": namespace["Made"]}
    exec("def run():\n    Made()\n", outer)
    return outer["run"]


def raising(error: BaseException):
    def run():
        raise error

    return run


def ended(run, monkeypatch, capsys) -> tuple[int, str]:
    """Exit code and stderr of a command that does this."""
    command = SimpleNamespace(main=lambda arguments, prog: run())
    monkeypatch.setattr(cli, "import_module", lambda name: command)
    monkeypatch.setattr(cli, "prepare_process", lambda: None)
    with pytest.raises(SystemExit) as caught:
        cli.main(["score"])
    return caught.value.code, capsys.readouterr().err.strip()


KLBALL = "klball.commands.x"
WRITER = "[enforce fail at inline_container.cc:672] . PytorchStreamWriter failed writing file data/0"
UNKNOWN_METRIC = "\"The `metric_for_best_model` training argument is set to 'eval_x', which is not found\""
ANSWERS = {
    "no network": (raising(OfflineModeIsEnabled("Cannot reach the Hub")), "Cannot reach the Hub"),
    "our refusal": (of_module(KLBALL, "raise ValueError('--x must be y')"), "--x must be y"),
    "from another error": (of_module(KLBALL, "raise ValueError('no') from KeyError('k')"), "no"),
    "infeasible": (lambda: solve_dual([-1.0, -2.0], [1.0, 1.0], epsilon=0.1, gamma=0.5), "γ"),
    "our refusal of numbers": (lambda: solve_dual([float("nan")], epsilon=0.1), "NaN"),
    "several lines": (of_module(KLBALL, "raise ValueError('\\nfirst\\nsecond')"), "first"),
    "no words": (of_module(KLBALL, "raise ValueError"), "ValueError"),
    "our OSError": (of_module(KLBALL, "raise OSError('the table is cut')"), "the table is cut"),
    "no permission": (raising(PermissionError(errno.EACCES, "Permission denied", "/x/y")), "/x/y"),
    "no file": (Path("/nowhere/at/all").read_text, "/nowhere/at/all"),
    "full disk": (raising(OSError(errno.ENOSPC, "No space left on device", "/x/part")), "make room"),
    "quota": (raising(OSError(errno.EDQUOT, "Disk quota exceeded", "/x/part")), "make room"),
    "full disk, safetensors": (
        raising(SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")),
        "make room",
    ),
    "full disk, torch.save": (raising(RuntimeError(WRITER)), "make room"),
    "full disk, told late": (
        of_module(KLBALL, f"raise RuntimeError('x') from OSError({errno.ENOSPC}, 'No space left')"),
        "make room",
    ),
    "out of memory": (raising(torch.OutOfMemoryError("CUDA out of memory")), "smaller batches"),
    "package": (
        raising(ModuleNotFoundError("No module named 'sentence_transformers'", name="sentence_transformers")),
        "pip install sentence-transformers",
    ),
    "bitsandbytes": (
        raising(ValueError("Trainer tried to use bnb but `bitsandbytes` is not installed!")),
        "pip install bitsandbytes",
    ),
    "tensorboard": (
        raising(RuntimeError("TensorBoardCallback requires tensorboard to be installed. Either update")),
        "pip install tensorboard",
    ),
    "wandb": (
        raising(RuntimeError("WandbCallback requires wandb to be installed. Run `pip install wandb`.")),
        "pip install wandb",
    ),
    "liger": (
        raising(ImportError("`use_liger_kernel` is `True` but liger-kernel >= 0.3.0 is not available.")),
        "pip install liger-kernel",
    ),
    "deepspeed": (
        raising(ImportError("Using `--deepspeed` requires deepspeed: it is not installed")),
        "pip install deepspeed",
    ),
    "metric": (raising(KeyError(UNKNOWN_METRIC)), "eval_x"),
    "a library's constructor": (
        within("peft.tuners.x", raising(ValueError("Target modules {'x'} not found"))),
        "Target modules",
    ),
}
FAULTS = {
    "missing key": of_module(KLBALL, "return {}['x']"),
    "index": of_module(KLBALL, "return [][0]"),
    "assertion": of_module(KLBALL, "assert False"),
    "type": of_module(KLBALL, "return 1 + 'x'"),
    "zero": of_module(KLBALL, "return 1 / 0"),
    "attribute": of_module(KLBALL, "return None.x"),
    "int of a word": of_module(KLBALL, "return int('x')"),
    "unpacking": of_module(KLBALL, "a, b = [1]"),
    "strict zip": of_module(KLBALL, "return list(zip([1], [], strict=True))"),
    "list.index": of_module(KLBALL, "return [].index(1)"),
    "bytes": of_module(KLBALL, "return b'\\xff'.decode()"),
    "a library's ValueError": of_module("transformers.x", "raise ValueError('deep inside')"),
    "a library's OSError": of_module("datasets.x", "raise OSError('deep inside')"),
    "a RuntimeError": of_module("torch.x", "raise RuntimeError('shapes')"),
    "our own module is missing": raising(ModuleNotFoundError("No module named 'klball.x'", name="klball.x")),
    "our own error inside a library's constructor": within("trl.x", of_module(KLBALL, "return int('x')")),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_an_answer_is_one_line(case, monkeypatch, capsys):
    run, words = ANSWERS[case]
    code, error = ended(run, monkeypatch, capsys)
    assert code == 2 and error.startswith("klball: error: ") and words in error and "\n" not in error


@pytest.mark.parametrize("case", FAULTS)
def test_a_fault_of_klball_keeps_its_traceback_behind_a_line(case, monkeypatch, capsys):
    code, error = ended(FAULTS[case], monkeypatch, capsys)
    first, second = error.splitlines()[:2]
    assert code == 1 and "please report it" in first and second.startswith("Traceback")


def test_the_traceback_of_an_answer_on_demand(monkeypatch, capsys):
    monkeypatch.setenv("KLBALL_TRACEBACK", "1")
    with pytest.raises(InfeasibleError):
        ended(ANSWERS["infeasible"][0], monkeypatch, capsys)


@pytest.mark.parametrize("wrapped", [False, True])
def test_an_interruption_is_one_line(wrapped, monkeypatch, capsys):
    def run():
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as error:
            if not wrapped:
                raise
            raise RuntimeError("Failed to import transformers") from error

    code, error = ended(run, monkeypatch, capsys)
    assert code == 130 and error == "interrupted; run the same command again to continue"


def test_an_interruption_during_the_imports():
    code = (  # a shell's background job ignores it
        "import signal, klball.cli; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "print('ready', flush=True); klball.cli.main(['train', '--help'])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.4)  # PyTorch takes longer
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert error.strip() == "interrupted; run the same command again to continue"


@pytest.fixture
def default_interruption():
    """pytest-xdist's workers have another handler."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interruption_that_an_import_swallows_is_one(monkeypatch, capsys, default_interruption):
    def swallow(name):
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        except KeyboardInterrupt:
            return types.SimpleNamespace(main=lambda *arguments, **named: print("went on"))

    monkeypatch.setattr(cli, "import_module", swallow)
    with pytest.raises(SystemExit) as ended_with:
        cli.main(["solve"])
    shown = capsys.readouterr()
    assert ended_with.value.code == 130 and "went on" not in shown.out
    assert shown.err.strip() == "interrupted; run the same command again to continue"


def test_an_error_line_shows_control_characters(monkeypatch, capsys):
    _, error = ended(of_module(KLBALL, r"raise ValueError('no file \x1b[2Jx\x07')"), monkeypatch, capsys)
    assert error == "klball: error: no file ␛[2Jx␇"


def test_who_reads_no_further_ends_the_command_quietly():
    code = "import sys; from klball import cli; sys.stdout.close = lambda: None\ncli.main(['--help'])"
    command = f'{sys.executable} -c "{code}" | true'
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr


def test_warnings_of_klball_show_control_characters(capsys):
    from klball.terminal import quieten

    quieten()
    logging.getLogger("klball.data").warning("row %s", "a\x1b]0;title\x07b [red]x[/red]")
    shown = capsys.readouterr().err
    assert "␛]0;title␇b" in shown and "[red]x[/red]" in shown and "\x1b" not in shown


def test_who_reads_no_further_has_the_files_all_the_same(tmp_path):
    code = f"""if True:
    from pathlib import Path
    from klball import cli, terminal
    def run(*_):
        terminal.say("a table")
        Path({str(tmp_path / "table.csv")!r}).touch()
    cli._run = run
    cli.main([])"""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-c", code], stdout=write, stderr=subprocess.PIPE, check=False)
    os.close(write)
    assert done.returncode == 141 and done.stderr == b"" and (tmp_path / "table.csv").exists()


def test_a_closed_output_is_one_that_nobody_reads(monkeypatch):
    """As of daemons: libraries ask it whether it is a terminal."""
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(cli, "_run", lambda *_: print(sys.stdout.isatty()))
    cli.main([])
