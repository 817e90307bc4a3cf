"""The ledger: a step's re-solving in passes of `torch.exp`, and memory, on drifting synthetic scores."""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from table import Row, row, table

BATCH, STEPS = 256, 6
PACE, NOISE = 1e-3, 0.02  # nats by which the model moves in a step, and its noise on one sample
EPSILON, GAMMA = 0.05, 15.0


def measure(quick: bool) -> list[Row]:
    """One process for each size and ball, whose peak memory is that of nothing else."""
    rows = []
    for power in (5, 6, 7) if quick else (5, 6, 7, 8):
        for ball in ("KLBall", "CertaintyKLBall"):
            command = [sys.executable, __file__, "--power", str(power), "--ball", ball]
            done = subprocess.run(command, env=dict(os.environ), capture_output=True, text=True, check=True)
            rows += [Row(**fields) for fields in json.loads(done.stdout)]
    return rows


def resident() -> dict[str, int]:
    """Bytes of this process: VmRSS now and VmHWM, its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return {name: 1024 * int(fields[name].split()[0]) for name in ("VmRSS", "VmHWM")}


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def measured_here(power: int, name: str) -> list[Row]:
    """Steps of a fresh batch each: `record` and `begin_step`, and one `torch.exp` pass between them."""
    import torch

    from klball import CertaintyKLBall, KLBall
    from klball.training.accountant import Accountant
    from klball.training.ledger import Ledger
    from klball.training.units import Units

    n, case = 10**power, f"n = 1e{power}, {name}"
    ball = KLBall(EPSILON) if name == "KLBall" else CertaintyKLBall(EPSILON, GAMMA)
    generator = torch.Generator().manual_seed(0)
    before = resident()["VmRSS"]
    g = -torch.randn(n, dtype=torch.float64, generator=generator).exp_()
    c = None
    if "certainty" in ball.needs:
        c = torch.randn(n, dtype=torch.float64, generator=generator).add_(14).sub_(g, alpha=0.5)
    ledger = Ledger(n, ("score",) if c is None else ("score", "certainty"))
    ledger.entries = {"score": g} if c is None else {"score": g, "certainty": c}
    ledger.known.fill_(True)
    accountant = Accountant(ball, ledger, Units())
    stored = resident()["VmRSS"] - before
    accountant.begin_step()
    first = resident()["VmHWM"] - before
    reset_peak()
    seconds, passes = [], []
    for _ in range(STEPS):
        index = torch.randint(n, (BATCH,), generator=generator)
        noise = NOISE * torch.randn(BATCH, dtype=torch.float64, generator=generator)
        fresh = g[index] + ledger.drift.shift[0] + PACE + noise
        scores = {"score": fresh}
        if c is not None:
            scores["certainty"] = c[index] + ledger.drift.shift[1] + PACE + noise
        began = time.perf_counter()
        accountant.record(index, scores)
        accountant.begin_step()
        seconds.append(time.perf_counter() - began)
        passes.append(accountant.solve().dual.num_passes)  # pyright: ignore[reportAttributeAccessIssue]
    peak = resident()["VmHWM"] - before
    unit = exp_seconds(n)
    return [
        row("ledger", case, "re-solve and record, passes of torch.exp", np.array(seconds) / unit),
        row("ledger", case, "passes over the ledger a step", passes, "≤ 2"),
        row("ledger", case, "re-solve and record, ms (this machine)", 1e3 * np.array(seconds)),
        row("ledger", case, "bytes a sample, stored", [stored / n]),
        row("ledger", case, "bytes a sample, peak of a step", [peak / n]),
        row("ledger", case, "bytes a sample, peak of the first solve", [first / n]),
    ]


def exp_seconds(n: int) -> float:
    """One pass of torch.exp over n touched elements, from 1e7 on by parts of 1e7."""
    import torch

    part = torch.zeros(min(n, 10**7), dtype=torch.float64)
    out = torch.exp(part)
    times = []
    for _ in range(7):
        began = time.perf_counter()
        torch.exp(part, out=out)
        times.append(time.perf_counter() - began)
    return float(np.median(times)) * n / len(part)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--power", type=int, help="measure here, at 10^power samples, and print JSON")
    parser.add_argument("--ball", default="KLBall", choices=("KLBall", "CertaintyKLBall"))
    options = parser.parse_args()
    if options.power:
        print(json.dumps([vars(r) for r in measured_here(options.power, options.ball)]))
    else:
        print(table(measure(options.quick)))


if __name__ == "__main__":
    main()
