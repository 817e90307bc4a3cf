"""Two processes over gloo, forked after one import: `python launch.py SCRIPT [ARGUMENT …]`, as by torchrun.

What a script imports takes longer than what most of them do.
"""

import gc
import os
import runpy
import socket
import subprocess
import sys
import traceback
from pathlib import Path

HERE = Path(__file__).parent
PROCESSES = 2


def launched(script: str, *arguments: Path | str) -> None:
    """Run a script of this folder in two processes; fail with what they said where one of them fails."""
    done = subprocess.run(
        [sys.executable, HERE / "launch.py", HERE / script, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3_000:]


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def forked(rank: int, script: str) -> int:
    """The process that runs the script as one rank."""
    if child := os.fork():
        return child
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    try:
        runpy.run_path(script, run_name="__main__")
        code = 0
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # nothing of the parent's is closed twice


def wait(children: list[int]) -> int:
    """0 once all have ended well; 1 at the first that has not, and the others are ended."""
    for _ in children:
        child, status = os.wait()
        if status:
            for other in set(children) - {child}:
                os.kill(other, 9)
            return 1
    return 0


if __name__ == "__main__":
    script, *_ = sys.argv = sys.argv[1:]
    sys.path.insert(0, str(HERE))
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": str(PROCESSES),
        "LOCAL_WORLD_SIZE": str(PROCESSES),
        "OMP_NUM_THREADS": "1",
    }
    runpy.run_path(script, run_name="imported")
    gc.freeze()  # every training collects garbage, which would search all that was imported
    sys.exit(wait([forked(rank, script) for rank in range(PROCESSES)]))
