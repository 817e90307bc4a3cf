"""Score tables → the robustness report: perplexity on everything, on the hardest 1 %, out of domain."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from datasets import Dataset
from torch import Tensor

from klball.robust.dual import robust_profile

HARDEST = 0.01
CVAR_LEVELS = (0.01, 0.05, 0.1, 0.25)
RADII = (0.0, 0.01, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 3.0)
RESAMPLES = 1_000


@dataclass(frozen=True)
class Metric:
    """One number of the report, with a 95 % bootstrap interval over samples.

    `ratio` compares it with the reference model's on the same resamples (paired); 1 for the reference.
    """

    data: str
    model: str
    name: str
    value: float
    low: float
    high: float
    ratio: float
    ratio_low: float
    ratio_high: float


@dataclass(frozen=True)
class ProfilePoint:
    """A point of ε ↦ L_ε: the worst-case loss (nats), λ = dL/dε, and the effective sample size."""

    data: str
    model: str
    epsilon: float
    robust_loss: float
    lambda_: float
    ess: float


@dataclass(frozen=True)
class RobustnessReport:
    """Metrics and profiles of several models, and how many rows each data set kept and lost."""

    reference: str
    metrics: list[Metric]
    profiles: list[ProfilePoint]
    rows: dict[str, dict[str, int]]

    def value(self, data: str, model: str, name: str) -> Metric:
        """The metric of that name."""
        return next(m for m in self.metrics if (m.data, m.model, m.name) == (data, model, name))

    def records(self) -> list[dict[str, object]]:
        """The metrics as plain rows, for CSV and Parquet."""
        return [asdict(metric) for metric in self.metrics]


def robustness_report(
    tables: dict[str, dict[str, Dataset]], reference: str, resamples: int = RESAMPLES
) -> RobustnessReport:
    """Compare models on the same rows: tables[data][model] is a score table.

    perplexity_token = exp(−Σ log p / Σ T); perplexity_sample = exp(−mean g); bits_per_byte =
    −Σ log p / (ln 2 · Σ bytes), the only one comparable across tokenizers; hardest_1pct: exp(−mean g)
    of the 1 % lowest g under the reference model, the same rows for every model; own_hardest_1pct:
    under the model itself; cvar_α: mean −g of the model's own worst share α, nats.
    Rows that any model cut or could not score leave the report for all models.
    Raises ValueError for tables of different samples.
    """
    metrics: list[Metric] = []
    profiles: list[ProfilePoint] = []
    rows: dict[str, dict[str, int]] = {}
    for data, of_model in tables.items():
        if reference not in of_model:
            raise ValueError(f"the reference model {reference!r} has no scores on {data!r}")
        columns, rows[data] = _common_rows(data, of_model)
        metrics += _metrics(data, columns, reference, resamples)
        for model, scores in columns.items():
            profile = robust_profile(scores["log_likelihood"], RADII)
            profiles += [
                ProfilePoint(data, model, *point)
                for point in zip(
                    profile.epsilon, profile.robust_loss, profile.lambda_, profile.ess, strict=True
                )
            ]
    return RobustnessReport(reference, metrics, profiles, rows)


Columns = dict[str, np.ndarray]


def _common_rows(data: str, of_model: dict[str, Dataset]) -> tuple[dict[str, Columns], dict[str, int]]:
    """The usable rows of every model, and the counts of kept, cut and unscored ones."""
    ids = {model: table["sample_id"][:] for model, table in of_model.items()}
    first = next(iter(ids.values()))
    for model, own in ids.items():
        if own != first:
            raise ValueError(
                f"on {data!r} the score table of {model!r} is of other samples: score them again"
            )
    cut: Any = np.logical_or.reduce([np.array(t["truncated"][:]) for t in of_model.values()])
    empty: Any = np.logical_or.reduce([np.array(t["num_tokens"][:]) == 0 for t in of_model.values()])
    keep = ~(cut | empty)
    if not keep.any():
        raise ValueError(f"no row of {data!r} fits in every model uncut: nothing to compare")
    names = ("log_likelihood", "certainty", "entropy", "sum_log_prob", "num_tokens", "num_bytes")
    columns = {
        model: {name: np.array(table[name][:], dtype=float)[keep] for name in names}
        for model, table in of_model.items()
    }
    count = {"kept": int(keep.sum()), "truncated": int(cut.sum()), "unscored": int((empty & ~cut).sum())}
    return columns, count


def _metrics(data: str, columns: dict[str, Columns], reference: str, resamples: int) -> list[Metric]:
    rng = np.random.default_rng(0)
    n = len(columns[reference]["log_likelihood"])
    hard = hardest(columns[reference]["log_likelihood"])
    # multinomial counts: each row one bootstrap resample, shared by all models, so ratios are paired
    counts = np.vstack([np.ones(n), rng.multinomial(n, np.full(n, 1 / n), size=resamples)])
    hard_counts = np.vstack(
        [np.ones(len(hard)), rng.multinomial(len(hard), [1 / len(hard)] * len(hard), resamples)]
    )
    with np.errstate(divide="ignore"):  # a resample of empty answers alone has no bits per byte
        values = {m: _statistics(c, counts, hard, hard_counts) for m, c in columns.items()}
    metrics = []
    for model, statistics in values.items():
        for name, draws in statistics.items():
            with np.errstate(invalid="ignore"):
                ratio = draws / values[reference][name]
            low, high = _interval(draws[1:])
            ratio_low, ratio_high = _interval(ratio[1:])
            numbers = (draws[0], low, high, ratio[0], ratio_low, ratio_high)
            metrics.append(Metric(data, model, name, *map(float, numbers)))
    return metrics


def _interval(draws: np.ndarray) -> np.ndarray:
    """The 2.5 and 97.5 % quantiles of the draws that are numbers."""
    return np.quantile(draws[np.isfinite(draws)], (0.025, 0.975))


def _statistics(
    c: Columns, counts: np.ndarray, hard: np.ndarray, hard_counts: np.ndarray
) -> dict[str, np.ndarray]:
    """Each statistic on the data (first entry) and on every resample."""
    g, n = c["log_likelihood"], counts.sum(axis=1)
    tokens, log_prob = counts @ c["num_tokens"], counts @ c["sum_log_prob"]
    statistics = {
        "perplexity_token": np.exp(-log_prob / tokens),
        "perplexity_sample": np.exp(-(counts @ g) / n),
        "bits_per_byte": -log_prob / math.log(2) / (counts @ c["num_bytes"]),
        "hardest_1pct": np.exp(-(hard_counts @ g[hard]) / len(hard)),
        "certainty": (counts @ c["certainty"]) / n,
        "entropy": (counts @ c["entropy"]) / n,
    }
    order = np.argsort(g, kind="stable")
    sorted_counts, sorted_g = counts[:, order], g[order]
    for level in CVAR_LEVELS:
        statistics[f"cvar_{level:g}"] = _cvar(sorted_counts, sorted_g, level)
    statistics["own_hardest_1pct"] = np.exp(_cvar(sorted_counts, sorted_g, HARDEST))
    return statistics


def _cvar(sorted_counts: np.ndarray, sorted_g: np.ndarray, level: float) -> np.ndarray:
    """Mean −g of the worst `level` of the mass; the boundary sample counts in part."""
    mass = level * sorted_counts.sum(axis=1, keepdims=True)
    taken = np.diff(np.minimum(np.cumsum(sorted_counts, axis=1), mass), axis=1, prepend=0.0)
    return -(taken @ sorted_g) / mass[:, 0]


def hardest(log_likelihood: np.ndarray | Sequence[float], share: float = HARDEST) -> np.ndarray:
    """Row indices of the `share` lowest log-likelihoods, at least one."""
    g = np.asarray(log_likelihood, dtype=float)
    return np.argsort(g, kind="stable")[: max(1, math.ceil(share * len(g)))]


def summary_of(scores: dict[str, Tensor]) -> dict[str, float]:
    """What a training run logs of an evaluation set: token NLL, log-likelihood, its tail, perplexity."""
    g = scores["log_likelihood"].numpy()
    nll = float(-scores["sum_log_prob"].sum() / scores["num_tokens"].sum())
    return {
        "loss": nll,
        "perplexity_token": math.exp(nll),
        "perplexity_sample": math.exp(-float(g.mean())),
        "own_hardest_1pct": math.exp(-float(g[hardest(g)].mean())),
        **{name: float(scores[name].mean()) for name in ("entropy", "certainty") if name in scores},
    }


def token_nll(table: Dataset) -> float:
    """−Σ log p / Σ T of a score table, nats per token."""
    return -sum(x for x in table["sum_log_prob"] if x is not None) / sum(table["num_tokens"])


def token_mean(table: Dataset, column: str) -> float:
    """A column of means over tokens (entropy, certainty), averaged over all tokens of the table."""
    pairs = zip(table[column], table["num_tokens"], strict=True)
    return sum(x * n for x, n in pairs if n) / sum(table["num_tokens"])
