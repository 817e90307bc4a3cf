"""`klball solve`: a score table, ε and γ → λ, β, effective sample size, and the top-weighted samples."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from klball.evaluation.tables import read_scores
from klball.experiments.command import parse, show_table
from klball.robust.dual import solve_dual


@dataclass
class Options:
    """The table and the ambiguity set."""

    scores: str = field(metadata={"help": "A Parquet score table, as klball score writes it."})
    epsilon: float = field(default=0.05, metadata={"help": "Radius of the KL ball, nats."})
    gamma: float | None = field(default=None, metadata={"help": "Upper bound on the mean certainty, nats."})
    max_weight: float | None = field(default=None, metadata={"help": "Largest weight relative to 1/n."})
    top: int = field(default=10, metadata={"help": "How many top-weighted samples to show."})
    json: bool = field(default=False, metadata={"help": "Print JSON instead of tables."})


def main(arguments: Sequence[str], prog: str) -> None:
    """Solve and print; rows without a score are left out and counted."""
    (options,) = parse([Options], arguments, prog)
    table, _ = read_scores(options.scores)
    usable = [i for i, g in enumerate(table["log_likelihood"]) if g is not None]
    left_out = len(table) - len(usable)
    table = table.select(usable)
    g, c = np.array(table["log_likelihood"]), np.array(table["certainty"])
    s = solve_dual(g, c, epsilon=options.epsilon, gamma=options.gamma, max_weight=options.max_weight)
    names = ("status", "lambda_", "beta", "kl", "certainty", "worst_case", "dual_value", "gap", "ess")
    summary: dict[str, Any] = {name: getattr(s, name) for name in names}
    summary |= {"n": len(g), "rows_left_out": left_out, "mean_log_likelihood": float(g.mean())}
    order = np.argsort(-s.weights, kind="stable")[: options.top]
    top = [
        {
            "sample_id": table["sample_id"][int(i)],
            "n_q": float(s.weights[i] * len(g)),
            "log_likelihood": float(g[i]),
        }
        for i in order
    ]
    if options.json:
        finite = {
            k: v if not isinstance(v, float) or math.isfinite(v) else str(v) for k, v in summary.items()
        }
        print(json.dumps({**finite, "top": top}))
        return
    show_table(
        f"worst case in the ball of radius {options.epsilon} around {options.scores}",
        ("", "value"),
        list(summary.items()),
    )
    show_table(
        "top-weighted samples", ("sample_id", "n·q", "log-likelihood"), [tuple(t.values()) for t in top]
    )
