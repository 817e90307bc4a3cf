"""Commands in which everything heavy is replaced by a recorder: what reaches it is what an option does."""

import contextlib
import dataclasses
import io
import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset

from klball import cli
from klball.data.paraphrase.quality import Similarity
from klball.files import write_table
from klball.scan.behaviour import Behaviour
from klball.scores.parts import Cache
from klball.scores.tables import SCHEMA, TOKENS_FIELD

ROWS = 12


class Reached(BaseException):
    """Nothing after this matters to an option."""


class Recorder:
    """Calls of the replaced functions, as plain values; `folder` stands for the command's own."""

    def __init__(self, folder: Path):
        self.folder, self.calls = folder, []

    def note(self, name: str, *values: Any) -> None:
        text = json.dumps([name, *map(_plain, values)], sort_keys=True, default=str)
        self.calls.append(text.replace(str(self.folder), "OUT"))

    def __call__(self, name: str, result: Any = None, *, last: bool = False) -> Callable[..., Any]:
        def replacement(*arguments: Any, **named: Any) -> Any:
            self.note(name, arguments, named)
            if last:
                raise Reached
            return result(*arguments, **named) if callable(result) else result

        return replacement


def _plain(value: Any) -> Any:
    if isinstance(value, Dataset):
        return value.to_list()
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items() if k not in ("progress", "callbacks")}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, np.ndarray | Cache):
        return value.folder if isinstance(value, Cache) else value.tolist()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain(value.to_dict() if hasattr(value, "to_dict") else dataclasses.asdict(value))
    return (
        value
        if isinstance(value, str | int | float | None | Path | SimpleNamespace)
        else type(value).__name__
    )


def rows(*arguments: Any, **named: Any) -> Dataset:
    return Dataset.from_list(
        [
            {"sample_id": str(i), "question": f"What is number {i}?", "answer": f"It is {i} of {ROWS}."}
            for i in range(ROWS)
        ]
    )


def table(model: Any, tokenizer: Any, dataset: Dataset, *, output: Any = None, **named: Any) -> Dataset:
    """A score table of these rows, in memory and where `output` says."""
    n = len(dataset)
    g = [-1.0 - 0.1 * i for i in range(n)]
    ids = dataset["sample_id"] if "sample_id" in dataset.column_names else [str(i) for i in range(n)]
    columns = {
        "sample_id": list(ids),
        "log_likelihood": g,
        "certainty": [2.0 + 0.01 * i for i in range(n)],
        "entropy": [1.0] * n,
        "sum_log_prob": [2 * x for x in g],
        "num_tokens": [2] * n,
        "num_bytes": [8] * n,
        "truncated": [False] * n,
        "token_log_probs": [[x, x] for x in g],
    }
    content = pa.table(columns, schema=SCHEMA.append(TOKENS_FIELD))
    if output is not None:
        write_table(content, output.path({"ids": ids}) if isinstance(output, Cache) else Path(output))
    return Dataset(content)


def model(*arguments: Any, **named: Any) -> tuple[Any, Any]:
    return SimpleNamespace(name="model"), SimpleNamespace(chat_template="x", get_vocab=dict)


def behaviour(*arguments: Any, **named: Any) -> Behaviour:
    return Behaviour(0.1, 1.0, 0.5, 0.5, 10.0)


def encoded(*arguments: Any) -> Dataset:
    return Dataset.from_dict({"sample_id": [str(i) for i in range(len(arguments[2]))]})


def answers(*arguments: Any, **named: Any) -> Dataset:
    ids = [[i] for i in range(ROWS)]
    made = rows().add_column("input_ids", ids).add_column("labels", ids)
    return made.add_column("text", ["It is 7."] * ROWS)


def answered(model: Any, tokenizer: Any, prompts: Dataset, *arguments: Any, **named: Any) -> Dataset:
    n, samples = len(prompts), named.get("samples", 0)
    columns = {"rewards": [[1.0] * (1 + samples)] * n, "lengths": [[1] * (1 + samples)] * n}
    columns |= {"samples": [["7"] * samples] * n, "log_likelihood": [1.0] * n, "finished": [True] * n}
    return Dataset.from_dict({**columns, **dict.fromkeys(("group", "sample_id"), prompts["sample_id"][:])})


def norms(model: Any, dataset: Dataset, progress: Any) -> dict[str, np.ndarray]:
    return {"nll": np.arange(1.0, 1 + len(dataset)), "dft": np.arange(2.0, 2 + len(dataset))}


def trained(dataset: Dataset, config: Any, *arguments: Any, **named: Any) -> None:
    steps = range(int(config.save_steps), config.max_steps + 1, int(config.save_steps))
    for step in (*steps, config.max_steps):
        (Path(config.output_dir) / f"checkpoint-{step}").mkdir(parents=True, exist_ok=True)


LOADING = {"load_rows": rows, "load_chat_template": None, "check_model": None, "load_on_device": model}
REPLACED: dict[str, dict[str, dict[str, Any]]] = {
    "score": {
        "commands.options": {"load_rows": rows},
        "commands.score": {**LOADING, "score": table},
        "commands.pairs": {
            **{**LOADING, "load": model, "adapter_base": lambda *names: "base"},
            **{"encode_pairs": lambda *given: "pairs", "likelihoods": None, "show_report": None},
            **{"dpo_table": None, "reward_table": None},
        },
        "studies.arms": LOADING,
    },
    "solve": {},
    "evaluate": {
        "commands.options": {"load_rows": rows},
        "commands.evaluate": {**LOADING, "score": table, "robustness_report": Reached},
        "commands.elsewhere": {"item_report": Reached, "robustness_report": Reached},
        "commands.answers": {
            **{**LOADING, "load": model, "answer_table": answered, "answer_report": Reached},
            "RewardModel": None,
        },
        "studies.arms": LOADING,
    },
    "scan": {
        "commands.scan": {
            **{**LOADING, "score": table, "encode_for": encoded, "head_gradient_norms": norms},
            **{"behaviour_of": behaviour},
            **{"plot_rewards": None, "plot_profiles": None, "plot_gain_against_forgetting": None},
            **{"write_scan_page": None, "provenance_of": None, "write_csv": None},
        },
        "studies.arms": {"encoded_prompts": rows, "own_answers": answers},
    },
    "paraphrase": {
        "commands.options": {"load_rows": rows},
        "commands.paraphrase": {
            "connect": Reached,
            "sentence_similarity": lambda name, least: Similarity(
                lambda texts: [[1.0, 0.1 * len(t)] for t in texts], least
            ),
        },
    },
    "compare": {
        "commands.compare": {**LOADING, "score": table, "compare_scores": Reached},
        "studies.arms": LOADING,
    },
    "tune": {
        "commands.training_data": {"load_rows": rows},
        "commands.tune": {
            "check_model": None,
            **{"refuse_training_rows": None, "num_shared": lambda rows, others: 0},
            "write_run": None,
            "tune": Reached,
        },
    },
    "reproduce": {
        "studies.arms": {
            **{**LOADING, "score": table, "train": trained},
            **{"encoded_prompts": rows, "own_answers": answers, "refuse_training_rows": None},
        },
        "studies.robustness": {"_report": None, "_show_so_far": None},
        "studies.preference": {
            **{"load_rows": rows, "sft_rows": rows, "load": model, "encode_pairs": None, "likelihoods": None},
            **{"score": None, "token_nll": lambda table: 1.0, "read_scores": lambda path: (None, None)},
            **{"dpo_table": None, "columns_of": lambda table: ({}, 0), "outcome_of": None},
            **{"run_beliefs": lambda *given: [], "report": None},
        },
        "studies.head_to_head": {"load_rows": rows, "_report": None, "behaviour_of": behaviour},
        "studies.forgetting": {
            **{"load_rows": rows, "load": model, "answer_table": answered, "report": None},
        },
        "studies.forgetting_measures": {
            **{"load": model, "own_answers": answers, "score": table, "answer_table": answered},
            **{"behaviour_from": behaviour, "forgetting": lambda *models: 0.1, "end_tokens": lambda *m: [1]},
            **{"model_digest": lambda path: path},
        },
    },
}


def observed(command: str, options: dict[str, Any], folder: Path, monkeypatch: Any) -> list[str]:
    """All that the command with these options does: calls, what it prints, and files; a refusal is raised."""
    recorder = Recorder(folder)
    for module_name, replaced in REPLACED[command].items():
        module = import_module(f"klball.{module_name}")
        for name, result in replaced.items():
            if hasattr(module, name):
                last = result is Reached
                monkeypatch.setattr(module, name, recorder(name, None if last else result, last=last))
    for name in ("local_model.answer_locally", "openai_batch.BatchFolder.add_results"):
        monkeypatch.setattr(f"klball.data.paraphrase.{name}", recorder(name, last=True))
    monkeypatch.setattr("klball.models.loading.load_model", recorder("load_model", model))
    if command == "paraphrase":  # of a model that is not there
        monkeypatch.setattr("klball.models.weights.weights_hash", lambda model: "")
    words = [word for name, value in options.items() for word in (f"--{name}", *_words(value, folder))]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(Reached):
        import_module(cli.COMMANDS[command][0]).main(words, f"klball {command}")
    if command == "solve":  # the others print what has passed a recorder, with paths that the width breaks
        recorder.note("printed", printed.getvalue())
    for path in sorted(folder.rglob("*.jsonl")):
        recorder.note("file", str(path), path.read_text())
    for path in sorted(folder.rglob("acceptance.csv")):
        recorder.note("file", str(path), path.read_text())
    return recorder.calls


def _words(value: Any, folder: Path) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [str(part).replace("OUT", str(folder)) for part in values]
