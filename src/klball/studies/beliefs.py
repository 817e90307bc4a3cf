"""GDPO against DPO and SFT, on questions whose answers are known shares of groups of people.

What counts is π(b|x), the exact probability of whole beliefs, on held-out questions: its distance to p*, and
what is left of the belief that the smallest group holds.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from klball.data.builtin import Row, load_builtin
from klball.data.builtin.beliefs import MINORITY, belief_of
from klball.data.formats import IGNORED
from klball.data.readers import dataset_of
from klball.scores.tables import score
from klball.studies.arms import Options, first, load, num_steps, run_settings, start_of, table_path, train_run
from klball.training.preference.beliefs import encoded_beliefs
from klball.training.preference.config import GDPOConfig, RobustDPOConfig

DATA, END = "beliefs", "\n"


def run_beliefs(options: Options, folder: Path, seed: int) -> list[dict[str, Any]]:
    """Rows arm, seed, js_distance, minority_js, minority_share and minority_target of every arm."""
    given = first(Dataset.from_list(load_builtin(DATA, "train")), options.train_rows)
    train, test = given.to_list(), _questions(load_builtin(DATA, "test"))
    answers = Dataset.from_list(list(_answers(train)))
    start = start_of(options, folder, DATA, answers, "beliefs before preferences")
    found = [_measured("SFT", start, test, table_path(folder, "start", "beliefs"), seed, options)]
    radius = sorted(options.epsilons)[len(options.epsilons) // 2] or max(options.epsilons)
    arms: dict[str, tuple[Any, list[Row], dict[str, Any]]] = {
        "DPO": (RobustDPOConfig, _majority_pairs(train), {"epsilon": 0.0}),
        "GDPO": (GDPOConfig, train, {"epsilon": 0.0}),
    }
    if radius > 0:
        arms[f"GDPO, beliefs ε = {radius:g}"] = (GDPOConfig, train, {"epsilon": radius, "rescore_steps": 20})
    for label, (kind, rows, own) in arms.items():
        name = label.replace(", ", "-").replace(" = ", "-").replace(" ", "-")
        run = folder / f"seed-{seed}" / DATA / name
        steps = num_steps(len(rows), options)
        config = kind(**{**run_settings(run, steps, seed, options), "beta": options.beta, **own})
        train_run(config, Dataset.from_list(rows), start, f"beliefs, {label}", seed, options)
        output = table_path(folder, f"seed-{seed}/{DATA}", name)
        found.append(_measured(label, str(run), test, output, seed, options))
    return found


def _questions(rows: Sequence[Row]) -> list[Row]:
    """Each once."""
    return list({str(row["prompt"]): row for row in rows}.values())


def _answers(rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
    """For SFT: the belief, then the reason that fits it."""
    for row in rows:
        text = row["belief"] + END + row["chosen"][0]["content"]
        yield {
            "id": row["id"],
            "prompt": row["prompt"],
            "completion": [{"role": "assistant", "content": text}],
        }


def _majority_pairs(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """For DPO: of two beliefs with their reasons, the one that more of the group hold is chosen."""
    pairs = []
    for row in rows:
        beliefs, shares = row["beliefs"], row["p_star"]
        own = beliefs.index(row["belief"])
        other = beliefs.index(belief_of(row["rejected"][0]["content"], row["theme"]))
        texts = {own: row["chosen"], other: row["rejected"]}
        better, worse = sorted((own, other), key=lambda k: (-shares[k], k))
        said = {
            name: [{"role": "assistant", "content": beliefs[k] + END + texts[k][0]["content"]}]
            for name, k in (("chosen", better), ("rejected", worse))
        }
        pairs.append({"id": row["id"], "prompt": row["prompt"], **said})
    return pairs


def _measured(
    label: str, name: str, test: Sequence[Row], output: Path, seed: int, options: Options
) -> dict[str, Any]:
    model, tokenizer = load(name, options)
    encoded = encoded_beliefs(Dataset.from_list(list(test)), tokenizer, END, None)
    rows = [
        {"input_ids": row["prompt_ids"] + ids, "labels": [IGNORED] * len(row["prompt_ids"]) + ids}
        for row in encoded.to_list()
        for ids in row["belief_ids"]
    ]
    table = score(model, tokenizer, dataset_of(rows), max_length=options.max_length, output=output)
    ends = np.cumsum([len(row["beliefs"]) for row in test])
    log_probs = np.split(np.array(table["sum_log_prob"]), ends[:-1])
    return {"arm": label, "seed": seed, **distances(test, log_probs)}


def distances(test: Sequence[Row], log_probs: Sequence[np.ndarray]) -> dict[str, float]:
    """Mean √(Jensen–Shannon divergence), nats, of π and p*; and of the minority its favourite's share."""
    found, minority = [], []
    for row, values in zip(test, log_probs, strict=True):
        pi = np.exp(values - values.max())
        pi, p = pi / pi.sum(), np.array(row["p_star"])
        found.append(js_distance(pi, p))
        if row["group"] == MINORITY:
            minority.append((found[-1], pi[p.argmax()], p.max()))
    own, share, target = np.mean(minority, axis=0)
    return {
        "js_distance": float(np.mean(found)),
        "minority_js": float(own),
        "minority_share": float(share),
        "minority_target": float(target),
    }


def js_distance(p: np.ndarray, q: np.ndarray) -> float:
    """√(½ KL(p‖m) + ½ KL(q‖m)), m = ½(p + q), nats; 0 where rounding would have scipy's be NaN."""
    middle = (p + q) / 2
    both = [np.sum(one[one > 0] * np.log(one[one > 0] / middle[one > 0])) for one in (p, q)]
    return float(np.sqrt(max(0.0, sum(both) / 2)))
