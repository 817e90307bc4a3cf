"""Score tables → the robustness report: perplexity on everything, on the hardest 1 %, out of domain."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
from datasets import Dataset
from scipy import stats
from torch import Tensor

from klball.adversary.dual import RobustProfile, robust_profile
from klball.files import without_nan
from klball.scores.own import check_answers
from klball.scores.tails import (
    CVAR,
    CVAR_LEVELS,
    HARDEST,
    LEAST,
    cvar,
    hardest,
    influence,
    mean_interval,
    own_tail,
    paired_cvar,
    paired_interval,
    tail_interval,
    tail_size,
)

RADII = (0.0, 0.01, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 3.0)
RESAMPLES = 1_000


@dataclass(frozen=True)
class Metric:
    """One number of the report, with a 95 % interval over samples; NaN where fewer than 4 decide.

    Means have bootstrap intervals, tails those of klball.scores.tails. `ratio` compares with the
    reference model on the same samples (paired); 1 for the reference.
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


def profile_points(data: str, model: str, profile: RobustProfile) -> list[ProfilePoint]:
    """A profile as points, one a radius."""
    columns = (profile.epsilon, profile.robust_loss, profile.lambda_, profile.ess)
    return [ProfilePoint(data, model, *point) for point in zip(*columns, strict=True)]


@dataclass(frozen=True)
class Ratio:
    """A metric of one model over that of another, on the same samples: paired, with a 95 % interval."""

    data: str
    model: str
    against: str
    name: str
    ratio: float
    low: float
    high: float


@dataclass(frozen=True)
class RobustnessReport:
    """Metrics and profiles of several models, and how many rows each data set kept and lost.

    ratios: of every pair of models, the later one over the earlier.
    """

    reference: str
    metrics: list[Metric]
    profiles: list[ProfilePoint]
    rows: dict[str, dict[str, int]]
    ratios: list[Ratio] = field(default_factory=list)

    def value(self, data: str, model: str, name: str) -> Metric:
        """The metric of that name."""
        return next(m for m in self.metrics if (m.data, m.model, m.name) == (data, model, name))

    def records(self) -> list[dict[str, object]]:
        """The metrics as plain rows, for CSV and Parquet; None for no number."""
        return plain_rows(self.metrics)


def plain_rows(found: Sequence[Any]) -> list[dict[str, object]]:
    """Metrics or ratios as plain rows; None for no number."""
    return without_nan(asdict(one) for one in found)


def robustness_report(
    tables: dict[str, dict[str, Dataset]],
    reference: str,
    resamples: int = RESAMPLES,
    groups: Mapping[str, Sequence[str | int]] | None = None,
) -> RobustnessReport:
    """Compare models on the same rows: tables[data][model] is a score table.

    perplexity_token = exp(−Σ log p / Σ T); perplexity_sample = exp(−mean g); bits_per_byte =
    −Σ log p / (ln 2 · Σ bytes), the only one comparable across tokenizers; hardest_1pct: exp(−mean g)
    of the 1 % lowest g under the reference model, the same rows for every model; own_hardest_1pct and
    worst_5pct: exp of the mean loss of the model's own worst 1 and 5 %; cvar_α: that of a share α, in
    nats; worst_group, where `groups` has the rows' groups: the largest perplexity_sample of a group, each
    model's own.
    Rows that any model cut or could not score leave the report for all models.
    Raises ValueError for tables of different samples.
    """
    metrics: list[Metric] = []
    ratios: list[Ratio] = []
    profiles: list[ProfilePoint] = []
    rows: dict[str, dict[str, int]] = {}
    for data, of_model in tables.items():
        if reference not in of_model:
            raise ValueError(f"the reference model {reference!r} has no scores on {data!r}")
        columns, rows[data] = common_rows(data, of_model, (groups or {}).get(data))
        draws = _draws(columns, resamples)
        hard = hardest(columns[reference]["log_likelihood"])
        for model in columns:
            found = _compared(model, reference, columns, draws, hard)
            metrics += [Metric(data, model, name, *map(float, numbers)) for name, numbers in found.items()]
        for base, model in combinations(columns, 2):
            found = _compared(model, base, columns, draws, hard)
            ratios += [
                Ratio(data, model, base, name, *map(float, numbers[3:])) for name, numbers in found.items()
            ]
        for model, scores in columns.items():
            profiles += profile_points(data, model, robust_profile(scores["log_likelihood"], RADII))
    return RobustnessReport(reference, metrics, profiles, rows, ratios)


Columns = dict[str, np.ndarray]
GROUP = "group"


def common_rows(
    data: str, of_model: dict[str, Dataset], groups: Sequence[str | int] | None = None
) -> tuple[dict[str, Columns], dict[str, int]]:
    """The usable rows of every model, and the counts of kept, cut and unscored ones."""
    for model, table in of_model.items():
        check_answers(table, f"the score table of {model!r} on {data!r}")
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
    if groups is not None:
        for own in columns.values():
            own[GROUP] = np.unique(np.array(groups)[keep], return_inverse=True)[1]
    count = {"kept": int(keep.sum()), "truncated": int(cut.sum()), "unscored": int((empty & ~cut).sum())}
    return columns, count


def _compared(
    model: str, base: str, columns: dict[str, Columns], draws: dict[str, Any], hard: np.ndarray
) -> "dict[str, Numbers]":
    """Every metric of a model, and its ratio to another's. hard: rows that the reference chose for all."""
    g, other = columns[model]["log_likelihood"], columns[base]["log_likelihood"]
    return {
        **{name: _of_draws(draws[model][name], draws[base][name], len(other)) for name in draws[model]},
        "hardest_1pct": _of_hardest(g, other, hard),
        **{f"cvar_{level:g}": _of_cvar(g, other, level) for level in CVAR_LEVELS},
        "own_hardest_1pct": _of_own(g, other, HARDEST),
        "worst_5pct": _of_own(g, other, CVAR),
    }


Numbers = tuple[float, float, float, float, float, float]  # value, low, high, ratio, its low, its high


def _draws(columns: dict[str, Columns], resamples: int) -> dict[str, dict[str, np.ndarray]]:
    """Each mean over samples on the data (first entry) and on every bootstrap resample.

    A resample is shared by all models, so that ratios are paired.
    """
    n = len(next(iter(columns.values()))["log_likelihood"])
    rng = np.random.default_rng(0)
    counts = np.vstack([np.ones(n), rng.multinomial(n, np.full(n, 1 / n), size=resamples)])
    return {model: _statistics(own, counts) for model, own in columns.items()}


def _statistics(c: Columns, counts: np.ndarray) -> dict[str, np.ndarray]:
    g, n = c["log_likelihood"], counts.sum(axis=1)
    tokens, log_prob, num_bytes = (counts @ c[name] for name in ("num_tokens", "sum_log_prob", "num_bytes"))
    with np.errstate(divide="ignore"):
        bits = -log_prob / math.log(2) / num_bytes
    found = {
        "perplexity_token": np.exp(-log_prob / tokens),
        "perplexity_sample": np.exp(-(counts @ g) / n),
        "bits_per_byte": np.where(num_bytes > 0, bits, np.nan),  # answers without a text, such as tool calls
        "certainty": (counts @ c["certainty"]) / n,
        "entropy": (counts @ c["entropy"]) / n,
    }
    if GROUP in c:
        member = np.eye(int(c[GROUP].max()) + 1)[c[GROUP]]
        with np.errstate(invalid="ignore"):  # a group that a resample lacks
            found["worst_group"] = np.exp(-np.nanmin((counts * g) @ member / (counts @ member), axis=1))
        if np.bincount(c[GROUP].astype(int)).min() < LEAST:  # such a group may be the worst
            found["worst_group"][1:] = np.nan
    return found


def _of_draws(draws: np.ndarray, reference: np.ndarray, n: int) -> Numbers:
    """Percentile intervals, at the quantiles that make them as wide as t intervals; none from too few."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = draws / reference
    return (draws[0], *_percentiles(draws[1:], n), ratio[0], *_percentiles(ratio[1:], n))


def _percentiles(draws: np.ndarray, n: int) -> tuple[float, float]:
    known = draws[np.isfinite(draws)]
    if n < LEAST or len(known) == 0:
        return math.nan, math.nan
    level = stats.norm.cdf(-stats.t.ppf(0.975, n - 1) * math.sqrt(n / (n - 1)))
    low, high = np.quantile(known, (level, 1 - level))
    return float(low), float(high)


def _of_hardest(g: np.ndarray, reference: np.ndarray, hard: np.ndarray) -> Numbers:
    """exp(−mean g) of the reference's tail; its edge here is what as many samples beyond it have."""
    beyond = np.argsort(reference, kind="stable")[len(hard) : 2 * len(hard)]
    edge = -g[beyond].mean() if len(beyond) else math.nan
    low, high = tail_interval(-g[hard], edge, HARDEST, -g[hard].mean())
    difference = reference[hard] - g[hard]
    bounds = mean_interval(difference)
    return tuple(map(exp_or_inf, (-g[hard].mean(), low, high, difference.mean(), *bounds)))  # pyright: ignore[reportReturnType]


def _of_own(g: np.ndarray, reference: np.ndarray, level: float) -> Numbers:
    """exp of the mean loss of each model's own worst share."""
    value, (difference, effect) = cvar(-g, level), paired_cvar(-g, -reference, level)
    bounds = paired_interval(effect, level, difference)
    numbers = (value, *own_tail(-g, level, value), difference, *bounds)
    return tuple(map(exp_or_inf, numbers))  # pyright: ignore[reportReturnType]


def _of_cvar(g: np.ndarray, reference: np.ndarray, level: float) -> Numbers:
    value, base = cvar(-g, level), cvar(-reference, level)
    interval = own_tail(-g, level, value)
    if not (value > 0 and base > 0):  # no loss at all: there is no ratio
        return (value, *interval, math.nan, math.nan, math.nan)
    effect = influence(-g, level) / value - influence(-reference, level) / base
    low, high = paired_interval(effect, level, math.log(value / base))
    return (value, *interval, value / base, exp_or_inf(low), exp_or_inf(high))


def exp_or_inf(value: float) -> float:
    """exp, infinite where it overflows, without a warning."""
    with np.errstate(over="ignore"):
        return float(np.exp(value))


def summary_of(scores: dict[str, Tensor]) -> dict[str, float]:
    """What a training run logs of an evaluation set: token NLL, log-likelihood, its tail, perplexity."""
    g = scores["log_likelihood"].numpy()
    nll = float(-scores["sum_log_prob"].sum() / scores["num_tokens"].sum())
    return {
        "loss": nll,
        "perplexity_token": exp_or_inf(nll),
        "perplexity_sample": exp_or_inf(-float(g.mean())),
        "own_hardest_1pct": exp_or_inf(cvar(-g, HARDEST)),
        **{name: float(scores[name].mean()) for name in ("entropy", "certainty") if name in scores},
    }


def decided_by(name: str, rows: int) -> int:
    """How many of `rows` samples a metric rests on: those of the tail, where it is one."""
    share = {"hardest_1pct": HARDEST, "own_hardest_1pct": HARDEST, "worst_5pct": CVAR}
    share |= {f"cvar_{x:g}": x for x in CVAR_LEVELS}
    return tail_size(share[name], rows) if name in share else rows


def token_nll(table: Dataset) -> float:
    """−Σ log p / Σ T of a score table, nats per token."""
    return -sum(x for x in table["sum_log_prob"] if x is not None) / sum(table["num_tokens"])


def token_mean(table: Dataset, column: str) -> float:
    """A column of means over tokens (entropy, certainty), averaged over all tokens of the table."""
    pairs = zip(table[column], table["num_tokens"], strict=True)
    return sum(x * n for x, n in pairs if n) / sum(table["num_tokens"])
