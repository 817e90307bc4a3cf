"""`klball scan`: what SFT would do to a model, and, given fine-tuned models, what it did."""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
from datasets import Dataset
from scipy import stats

from klball.adversary.dual import robust_profile, solve_dual
from klball.adversary.upweighting import radius_help
from klball.commands.earlier import remove_models
from klball.commands.labels import refuse_repeated
from klball.commands.options import DTYPES, distinct, one_of, parse, refuse_ignored
from klball.data.formats import MEANINGFUL
from klball.data.rows import is_one_table, load_rows, texts_of, to_trl_format
from klball.files import file_name, write_csv, write_run
from klball.flags import DataSet, Precision, option
from klball.models.loading import TINY, check_model, load_on_device
from klball.report.figures import plot_gain_against_forgetting, plot_profiles, plot_rewards
from klball.report.pages.scan import ScanResults, write_scan_page
from klball.scan.advice import advise
from klball.scan.behaviour import behaviour_of
from klball.scan.gradient_norms import head_gradient_norms
from klball.scan.implicit_rewards import gradient_shares, gradient_weights, implicit_rewards
from klball.scores.perplexity import RADII, ProfilePoint, profile_points, token_mean, token_nll
from klball.scores.scorer import TOKENS, encode_for
from klball.scores.tables import score
from klball.shown import in_words
from klball.studies.arms import base_answers, provenance_of
from klball.terminal import is_main, progress_bar, say, show_table

logger = logging.getLogger(__name__)

EXAMPLE = "klball scan --dataset_name word-problems --max_rows 100 --epsilons 0 0.05"
DOMINATING = 20
ADVISED = 0.5  # nats: the radius of the advice where --epsilons has none
OF_MODELS = (
    *("dataset_test_split", "test_name", "ood_names"),
    *("own_name", "own_prompts", "own_samples", "own_tokens"),
)

Rows = list[dict[str, Any]]


@dataclass
class Options(Precision, DataSet):
    """The model and the training set; optionally what fine-tuning made of the model."""

    model_name_or_path: str = option(TINY, "The model that SFT would start from.")
    dataset_train_split: str = option("train", "Split that SFT would train on.")
    dataset_test_split: str | None = option(
        None, "Split for --models: held-out rows of the task; default: test."
    )
    test_name: str | None = option(None, "Held-out data for --models, if not a split of the above.")
    max_rows: int = option(2_000, "Rows of each split, the first after a shuffle.")
    epsilons: list[float] = option([0.0, 0.05, 0.5], f"Radii, nats; {radius_help(0.05)}.")
    gradient_rows: int = option(64, "Rows whose gradient norms are computed.")
    models: list[str] = option([], "Fine-tuned models or adapters.")
    ood_names: list[str] = option(["word-problems"], "Other domains, for --models.")
    own_name: str | None = option(None, "Data with prompts for the models to answer; default: the test rows.")
    own_prompts: int = option(64, "Prompts that the models answer themselves.")
    own_samples: int = option(4, "Answers to each of them, at least 2.")
    own_tokens: int = option(64, "Their longest answer, tokens.")
    output_dir: str = option("outputs/scan", "Folder for tables and figures.")


def main(arguments: Sequence[str], prog: str) -> None:
    """Measure, print, and write CSV tables and figures; score tables on disk are used again."""
    (options,) = parse([Options], arguments, prog, EXAMPLE)
    _check(options)
    folder = Path(options.output_dir)
    rows = _rows(options, options.dataset_train_split)
    model, tokenizer = load_on_device(options.model_name_or_path, options.dtype)
    rows = to_trl_format(rows, conversational=bool(tokenizer.chat_template))
    table = _scored(model, tokenizer, rows, "base", "train", options)
    found = None
    if is_main():
        remove_models(folder, prog)
        write_run(folder, options, prog)
        found = _show_training_set(model, tokenizer, table, rows, options, folder)
    compared = _show_models(model, tokenizer, options, folder) if options.models else []
    if found is not None:
        write_scan_page(replace(found, models=compared), provenance_of(folder), folder)
        what = "tables as CSV, figures as SVG and PNG, report.html"
        show_table("written", ("folder", "what"), [(str(folder), what)])
        for sentence in found.advice:
            say(sentence)


def _check(options: Options) -> None:
    one_of(options, "dtype", DTYPES)
    distinct(options, "epsilons")
    refuse_repeated([*map(_label, options.models)], taken=["base"])
    refuse_repeated([*map(_label, options.ood_names)], taken=["train", "test"])
    if not options.models:
        refuse_ignored(options, OF_MODELS, "without --models")
    for name in (options.model_name_or_path, *options.models):
        check_model(name)


def _show_training_set(
    model: Any, tokenizer: Any, table: Dataset, rows: Dataset, options: Options, folder: Path
) -> ScanResults:
    rewards, shares = _show_rewards(table, options, folder)
    answered = _answered(rows, table)
    _show_gradient_norms(model, tokenizer, answered, options, folder)
    return ScanResults(
        rewards,
        shares,
        dominating=_show_dominating(table, rows, options, folder),
        profile=_show_profile(table, folder),
        models=[],
        advice=_advice(table, answered, options, folder),
        counts={"kept": len(table), "skipped": len(rows) - len(table), "truncated": sum(table["truncated"])},
    )


def _rows(options: Options, split: str | None, name: str | None = None) -> Dataset:
    own = name is None
    rows = load_rows(
        *(name or options.dataset_name, split, options.dataset_config if own else None),
        default="test",
        id_column=options.id_column if own else None,
    ).shuffle(seed=0)
    return rows.select(range(min(options.max_rows, len(rows))))


def _scored(model: Any, tokenizer: Any, rows: Dataset, label: str, data: str, options: Options) -> Dataset:
    """A score table with token log-probabilities, without the rows that have no answer token."""
    output = Path(options.output_dir) / "scores" / file_name(label) / f"{file_name(data)}.parquet"
    with progress_bar(f"{label}: scoring {data}") as progress:
        table = score(
            *(model, tokenizer, rows),
            max_length=options.max_length,
            output=output,
            progress=progress,
            token_log_probs=True,
        )
    answered = table.filter(lambda count: count > 0, input_columns="num_tokens")
    if len(answered) < len(table):
        logger.warning("%s: %d of %d rows have no answer token", data, len(table) - len(answered), len(table))
    return answered


def _answered(rows: Dataset, table: Dataset) -> Dataset:
    """The rows that are in a table of `_scored`."""
    known = set(table["sample_id"])
    return rows.filter(lambda i: i in known, input_columns="sample_id")


def _show_rewards(table: Dataset, options: Options, folder: Path) -> tuple[Rows, Rows]:
    log_probs = table[TOKENS][:]
    rewards = implicit_rewards(log_probs)
    flat = [
        {
            "unit": r.unit,
            **{f"q{100 * q:g}": v for q, v in r.quantiles.items()},
            "top_1pct_share": r.top_share,
        }
        for r in rewards
    ]
    write_csv(folder / "implicit_rewards.csv", flat)
    header = ("per", *(f"{100 * q:g} %" for q in rewards[0].quantiles), "held by top 1 %")
    body = [(r.unit, *r.quantiles.values(), f"{r.top_share:.1%}") for r in rewards]
    show_table(f"log implicit reward log 1/K, nats: quantiles over {len(table)} samples", header, body)
    shares = gradient_shares(log_probs, options.epsilons)
    share_rows = [asdict(share) for share in shares]
    write_csv(folder / "gradient_shares.csv", share_rows)
    header = ("objective", "ε", "top 1 % of tokens", "top 1 % of samples", "effective sample size")
    body = [(s.objective, s.epsilon, f"{s.tokens:.1%}", f"{s.samples:.1%}", round(s.ess, 1)) for s in shares]
    show_table("share of the gradient weight (psft at ratio 1: as nll)", header, body)
    plot_rewards(log_probs, folder / "figures" / "implicit-rewards")
    return flat, share_rows


def _show_gradient_norms(model: Any, tokenizer: Any, rows: Dataset, options: Options, folder: Path) -> None:
    rows = rows.select(range(min(options.gradient_rows, len(rows))))
    encoded = encode_for(model, tokenizer, rows, options.max_length)
    with progress_bar("gradient norms") as progress:
        norms = head_gradient_norms(model, encoded, progress)
    records = [
        {"sample_id": i, **{name: values[k] for name, values in norms.items()}}
        for k, i in enumerate(encoded["sample_id"])
    ]
    write_csv(folder / "gradient_norms.csv", records)
    body = []
    for name, values in norms.items():
        ranks = stats.rankdata(norms["nll"]), stats.rankdata(values)
        correlation = float(np.corrcoef(*ranks)[0, 1]) if np.ptp(ranks[1]) > 0 else "all equal"
        body.append((name, *map(float, np.quantile(values, (0.05, 0.5, 0.95, 1))), correlation))
    header = ("objective", "5 %", "median", "95 %", "largest", "rank correlation with nll")
    show_table(f"gradient norms of {len(encoded)} samples in the LM head, exact", header, body)


def _show_dominating(table: Dataset, rows: Dataset, options: Options, folder: Path) -> Rows:
    """The samples with the most gradient weight under plain SFT, and what the adversary makes of them."""
    log_probs = table[TOKENS][:]
    g = np.array(table["log_likelihood"])
    _, plain = gradient_weights(log_probs, "nll", np.ones(len(g)))
    solutions = {e: solve_dual(g, epsilon=e).weights * len(g) for e in options.epsilons if e > 0}
    robust = plain * (solutions[max(solutions)] if solutions else 1.0)
    row_of = {row["sample_id"]: row for row in rows.to_list()}
    records = []
    for i in np.argsort(-robust, kind="stable")[:DOMINATING].tolist():
        prompt, answer = texts_of(row_of[table["sample_id"][i]])
        weights = {f"n_q_{e:g}": float(q[i]) for e, q in solutions.items()}
        records.append(
            {
                "sample_id": table["sample_id"][i],
                "log_likelihood": float(g[i]),
                "log_implicit_reward": -float(table["sum_log_prob"][i]),
                "gradient_share": float(robust[i] / robust.sum()),
                **weights,
                "prompt": prompt,
                "answer": answer,
            }
        )
    write_csv(folder / "dominating.csv", records)
    header = ("share", "log-likelihood", "log reward", "prompt", "answer")
    body = [
        (
            f"{r['gradient_share']:.2%}",
            *(r["log_likelihood"], r["log_implicit_reward"]),
            *(shorten(r[text], 70, placeholder=" …") for text in ("prompt", "answer")),
        )
        for r in records[:8]
    ]
    radius = max(options.epsilons)
    show_table(f"samples with the most gradient weight, nll at ε = {radius:g}", header, body)
    return records


def _advice(table: Dataset, rows: Dataset, options: Options, folder: Path) -> list[str]:
    """What dominates and what to do about it, from the rows themselves; its rows go to advice.csv."""
    g, radius = np.array(table["log_likelihood"]), max(options.epsilons) or ADVISED
    prompts, answers = zip(*map(texts_of, rows.to_list()), strict=True)
    columns = {name: rows[name][:] for name in rows.column_names if name not in (*MEANINGFUL, "sample_id")}
    weights = solve_dual(g, epsilon=radius).weights * len(g)
    advice = advise(prompts, answers, np.array(table["num_tokens"]), weights, radius, columns)
    ids = table["sample_id"][:]
    texts = [{"prompt": prompts[row["row"]], "answer": answers[row["row"]]} for row in advice.rows]
    records = [
        {"sample_id": ids[row["row"]], "n_q": row["n_q"], "signs": row["signs"], **text}
        for row, text in zip(advice.rows, texts, strict=True)
    ]
    write_csv(folder / "advice.csv", records)
    return advice.sentences


def _show_profile(table: Dataset, folder: Path) -> list[ProfilePoint]:
    points = profile_points("train", "base", robust_profile(np.array(table["log_likelihood"]), RADII))
    write_csv(folder / "profile.csv", [asdict(point) for point in points])
    header = ("ε", "worst-case loss, nats/token", "λ", "effective sample size")
    show_table("robust profile", header, [(p.epsilon, p.robust_loss, p.lambda_, p.ess) for p in points])
    plot_profiles(points, folder / "figures")
    return points


def _show_models(base: Any, tokenizer: Any, options: Options, folder: Path) -> Rows:
    """Forgetting, entropy and diversity of every fine-tuned model against its gain on the task."""
    if (
        options.test_name is None
        and options.dataset_test_split is None
        and is_one_table(options.dataset_name)
    ):
        logger.warning("the gain is measured on the training rows: give held-out ones with --test_name")
    task = _rows(options, options.dataset_test_split, options.test_name)
    others = {_label(name): _rows(options, None, name) for name in options.ood_names}
    asked = task if options.own_name is None else _rows(options, None, options.own_name)
    prompts, written = base_answers(base, tokenizer, asked, options, folder / "base-answers.parquet")
    reference = {name: _scored(base, tokenizer, r, "base", name, options) for name, r in others.items()}
    before = _scored(base, tokenizer, task, "base", "test", options)
    records = []
    for label, path in (("base", options.model_name_or_path), *((_label(m), m) for m in options.models)):
        model, own_tokenizer = load_on_device(path, options.dtype)
        after = _scored(model, own_tokenizer, task, label, "test", options)
        with progress_bar(f"{label}: answering") as progress:
            behaviour = behaviour_of(
                *(base, model, own_tokenizer, prompts, written, options.own_tokens, options.own_samples),
                progress=progress,
            )
        record = {
            "arm": label,
            "gain": token_nll(before) - token_nll(after),
            **asdict(behaviour),
            "entropy": token_mean(after, "entropy"),
        }
        for name, rows in others.items():
            table = _scored(model, own_tokenizer, rows, label, name, options)
            record[f"nll_change_{name}"] = token_nll(table) - token_nll(reference[name])
        records.append(record)
    if not is_main():
        return records
    write_csv(folder / "models.csv", records)
    title = "gain on the task, forgetting, entropy, diversity (nats/token)"
    body = [(in_words(name), *(r[name] for r in records)) for name in records[0] if name != "arm"]
    show_table(title, ("", *(r["arm"] for r in records)), body)
    plot_gain_against_forgetting(records, folder / "figures" / "gain-against-forgetting")
    return records


def _label(path: str) -> str:
    """The last two parts of a path tell runs apart: seed-0/sft, checkpoint-160."""
    return "-".join([part for part in Path(path).parts if part not in ("/", "..")][-2:])
