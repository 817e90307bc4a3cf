"""`klball solve`: a score table, ε and γ → λ, β, effective sample size, and the top-weighted samples."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from klball.adversary.dual import solve_dual
from klball.adversary.streaming import solve_dual_streamed
from klball.adversary.upweighting import radius_help, radius_in_words
from klball.commands.certified import certified_of, record
from klball.commands.elsewhere import asks_for_columns, show_solved, solve_elsewhere
from klball.commands.options import parse, refuse_ignored
from klball.commands.pairs import flips_sentence, solve_pairs
from klball.files import read_table
from klball.flags import REQUIRED, Certifying, ScoreColumns, option
from klball.scores.kinds import ANSWERED, PAIRED, SCORED, are_scores, kind_of
from klball.scores.own import check_column
from klball.scores.parquet import num_cut, refuse_rounds, score_files, stream_scores, top_weighted
from klball.scores.tables import read_items, read_provenance, read_scores
from klball.scores.tails import heaviest
from klball.terminal import say, show_table

EXAMPLE = "klball solve --scores outputs/score/scores.parquet --epsilon 0.1"


@dataclass(kw_only=True)
class Options(ScoreColumns, Certifying):
    """The table and the ambiguity set."""

    scores: str = option(
        REQUIRED,
        "What klball score or evaluate --generate wrote, or results of another tool: CSV, TSV, JSON lines, "
        "Parquet, samples of lm-eval, logs of Inspect; a file or a folder.",
    )
    epsilon: float = option(0.05, f"Radius of the KL ball, nats: {radius_help(0.05)}.")
    gamma: float | None = option(None, "Upper bound on the mean certainty, nats.")
    max_weight: float | None = option(None, "Largest weight relative to 1/n.")
    top: int = option(10, "How many top-weighted samples to show.")
    streamed: bool = option(
        False, "Read the table chunk by chunk, in constant memory; a folder of files will do too."
    )
    json: bool = option(False, "Print JSON instead of tables.")


NAMES = ("status", "lambda_", "beta", "kl", "certainty", "worst_case", "dual_value", "gap", "ess")

Answer = tuple[dict[str, Any], list[dict[str, Any]]]  # what to print: the solution, the top-weighted samples


def main(arguments: Sequence[str], prog: str) -> None:
    """Solve and print; rows without a score are left out and counted."""
    (options,) = parse([Options], arguments, prog, EXAMPLE)
    kind = _own_kind(options)
    found, sentence = (None, "") if kind is None else certified_of(kind, options)
    certified = record(found)
    if kind is None:
        refuse_ignored(options, ("gamma", "streamed"), "on scores from elsewhere")
        summary, top, (certified, sentence) = solve_elsewhere(options)
    elif kind == PAIRED:
        refuse_ignored(options, ("gamma", "streamed"), "on a pair table")
        summary, top = _of_pairs(options)
    elif kind == ANSWERED:
        refuse_ignored(options, ("gamma", "streamed"), "on a table of answers")
        summary, top = _of_answers(options)
    else:
        _refuse_several_models(options.scores)
        summary, top = _streamed(options) if options.streamed else _in_memory(options)
        if are_scores(options.scores):
            summary["rows_cut"] = _num_cut(options)
    if options.json:
        finite = {
            k: v if not isinstance(v, float) or math.isfinite(v) else str(v) for k, v in summary.items()
        }
        print(json.dumps({**finite, "certified": certified, "top": top}))
        return
    show_table(
        f"worst case in the ball of radius {options.epsilon} around {options.scores}",
        ("", "value"),
        [row for row in summary.items() if row[0] != "groups"],
    )
    show_solved(summary, f"ε = {options.epsilon:g}")
    score = next(iter(top[0].keys() - {"sample_id", "n_q"}), "") if top else ""
    header = ("sample_id", "n·q", score.replace("log_likelihood", "log-likelihood"))
    show_table("top-weighted samples", header, [tuple(t.values()) for t in top])
    say(f"{sentence}; {radius_in_words(options.epsilon, options.max_weight)}")
    if kind == PAIRED and options.epsilon > 0:
        say(flips_sentence())
    if rounds := summary.get("rounds"):
        say(f"every file is a round: they score the same samples, and scores are means over {rounds} rounds")
    if cut := summary.get("rows_cut"):
        what = "samples are cut at their end in some round" if rounds else "rows are cut at their end"
        say(f"{cut} of the {what}, and are in it; compare and evaluate leave them out")


def _num_cut(options: Options) -> int:
    """Samples of klball's own score tables whose answer lost its end, in whatever round; one, if streamed."""
    tables = score_files(options.scores)
    if options.streamed or len(tables) == 1:
        return num_cut(stream_scores(options.scores, certainty=False))
    ids = []
    for file in tables:
        table = read_table(file, columns=["sample_id", "truncated"])
        check_column(table, "truncated", file)
        ids.append(table.filter(table["truncated"].cast("bool")).select(["sample_id"]))
    return len(pa.concat_tables(ids, promote_options="permissive")["sample_id"].unique())


def _own_kind(options: Options) -> str | None:
    """Which of klball's own tables it is; None of scores from elsewhere, which options of columns are for."""
    if asks_for_columns(options):
        return None
    if Path(options.scores).suffix == ".parquet" and (kind := kind_of(options.scores)) is not None:
        return kind
    return SCORED if options.streamed or are_scores(options.scores) else None


def _of_pairs(options: Options) -> Answer:
    solution, n, left_out, mean, top = solve_pairs(options)
    summary = _summary(solution, n, left_out, mean_loss=mean)
    summary.pop("certainty")
    return summary | {name: -summary[name] for name in ("worst_case", "dual_value")}, top


def _of_answers(options: Options) -> Answer:
    table = read_scores(options.scores)[0].data.table
    rewards = table["log_likelihood"].to_numpy()
    solution = solve_dual(loss=-rewards, epsilon=options.epsilon, max_weight=options.max_weight)
    summary = _summary(solution, len(rewards), 0, mean_reward=float(rewards.mean()))
    summary.pop("certainty")
    top = heaviest(table["sample_id"], solution.weights, rewards, "reward", options.top)
    return summary, top


def _refuse_several_models(scores: str) -> None:
    """Raise ValueError for a folder with the tables of several models: their samples are not one set."""
    known = (read_provenance(path) for path in score_files(scores))
    models = {about["weights"]: str(about.get("model")) for about in known if "weights" in about}
    if len(models) > 1:
        names = ", ".join(sorted(models.values()))
        raise ValueError(f"{scores} holds tables of {len(models)} models ({names}): give one table")


def _in_memory(options: Options) -> Answer:
    scores, rounds = read_items(options.scores)
    table = scores.filter(scores["log_likelihood"].is_valid())
    left_out = len(scores) - len(table)
    g, c = (table[name].to_numpy() for name in ("log_likelihood", "certainty"))
    s = solve_dual(g, c, epsilon=options.epsilon, gamma=options.gamma, max_weight=options.max_weight)
    top = heaviest(table["sample_id"], s.weights, g, "log_likelihood", options.top)
    summary = _summary(s, len(g), left_out, mean_log_likelihood=float(g.mean()))
    return summary | ({"rounds": rounds} if rounds > 1 else {}), top


def _streamed(options: Options) -> Answer:
    if options.max_weight is not None:
        raise ValueError(
            "--max_weight is not supported with --streamed true: a cap needs the scores in memory"
        )
    parts = stream_scores(options.scores)
    refuse_rounds(options.scores)
    s = solve_dual_streamed(parts, epsilon=options.epsilon, gamma=options.gamma)
    left_out = sum(part.num_rows for part in parts) - s.num_rows
    return _summary(s, s.num_rows, left_out, mean_log_likelihood=s.mean), top_weighted(parts, s, options.top)


def _summary(solution: Any, n: int, left_out: int, **mean: float) -> dict[str, Any]:
    return {name: getattr(solution, name) for name in NAMES} | {"n": n, "rows_left_out": left_out, **mean}
