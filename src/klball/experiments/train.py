"""`klball train`: one robust fine-tuning run, resumable at any moment."""

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PrinterCallback
from trl import ModelConfig, ScriptArguments, get_peft_config, get_quantization_config

from klball.data.rows import load_chat_template, load_rows, texts_of, to_trl_format, with_sample_ids
from klball.evaluation.models import TINY, load_model
from klball.experiments.command import console, is_main, parse, show_table, versions, write_csv
from klball.robust.ambiguity import Empirical
from klball.robust.objectives import PROXIMAL
from klball.training.checkpoints import check_same_run, newest_complete, write_json
from klball.training.config import RobustSFTConfig
from klball.training.sharding import save_whole_model
from klball.training.trainer import RobustSFTTrainer

TOP = 20
RUN_FILE = "run.json"
DONE_FILE = "top_weighted.csv"


@dataclasses.dataclass
class Options(ScriptArguments):
    """TRL's script arguments, with the embedded data set as the default."""

    dataset_name: str | None = dataclasses.field(
        default="stdlib-docs", metadata={"help": "Built-in name, local file or Hub name."}
    )
    id_column: str | None = dataclasses.field(
        default=None,
        metadata={"help": "Column of the rows' ids; none numbers them; default: sample_id, else id."},
    )


def main(arguments: Sequence[str], prog: str) -> None:
    """Train, or finish what an interrupted run of the same command began."""
    classes = [Options, RobustSFTConfig, ModelConfig]
    options, config, model_options = parse(classes, arguments, prog)
    if config.objective == PROXIMAL:  # TRL's default of .05 is for the others; what was asked for stays
        _, _, model_options = parse(classes, arguments, prog, lora_dropout=0.0)
    model_options.model_name_or_path = model_options.model_name_or_path or TINY
    if options.dataset_streaming:
        raise ValueError("streaming data has no fixed set of samples to weigh: leave out --dataset_streaming")
    resolved = {
        "data": dataclasses.asdict(options),
        "model": dataclasses.asdict(model_options),
        "training": config.to_dict(),
        "versions": versions(),
    }
    # where logs go says nothing about the result
    for name in ("logging_dir", "resume_from_checkpoint", "local_rank"):
        resolved["training"].pop(name, None)
    reading = {"id_column": options.id_column, "text_field": config.dataset_text_field}
    name, of = options.dataset_name, options.dataset_config
    dataset = load_rows(name, options.dataset_train_split, of, **reading)
    evaluation = None
    if str(config.eval_strategy) not in ("no", "IntervalStrategy.NO"):
        evaluation = load_rows(name, options.dataset_test_split, of, **reading)
    train(dataset, config, model_options, resolved, evaluation)


def train(
    dataset: Dataset,
    config: RobustSFTConfig,
    model_options: ModelConfig,
    resolved: dict[str, Any],
    evaluation: Dataset | None = None,
    callbacks: Sequence[Any] = (),
) -> None:
    """Run to the end: model, history and top-weighted samples in `config.output_dir`.

    Resumes from the newest complete checkpoint if the folder's `run.json` is `resolved`, and raises
    ValueError if it is another run's.
    """
    folder = Path(str(config.output_dir))
    started = check_same_run(folder / RUN_FILE, resolved)
    if started and (folder / DONE_FILE).exists():
        if is_main():
            console.print(f"{folder} already holds this run, finished")
        return
    model, tokenizer = _load(config, model_options)
    template = config.chat_template_path
    load_chat_template(tokenizer, template)
    field, chat = config.dataset_text_field, bool(tokenizer.chat_template)
    rows = to_trl_format(with_sample_ids(dataset), chat, field)
    trainer = RobustSFTTrainer(
        model,
        dataclasses.replace(config, chat_template_path=None),
        train_dataset=rows,
        eval_dataset=None if evaluation is None else to_trl_format(evaluation, chat, field),
        processing_class=tokenizer,
        peft_config=get_peft_config(model_options),
        callbacks=list(callbacks),
    )
    if is_main():  # only now: settings that the trainer refuses leave no run behind
        write_json(folder / RUN_FILE, resolved)
    if callbacks:  # they show the progress; the figures are in the history
        trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=_continue(folder) if started else None)
    save_whole_model(trainer, str(folder))
    _report_top_weighted(trainer, rows, folder)


def _load(config: RobustSFTConfig, options: ModelConfig) -> tuple[Any, Any]:
    assert options.model_name_or_path is not None
    if get_quantization_config(options) is not None:
        raise ValueError(
            "quantised loading is not supported by `klball train`: use RobustSFTTrainer in Python"
        )
    return load_model(options.model_name_or_path, str(options.dtype or "float32"), options.model_revision)


def _continue(folder: Path) -> str | None:
    """The newest complete checkpoint; folders that a kill left incomplete are removed."""
    newest = newest_complete(folder)
    for path in folder.glob("checkpoint-*"):
        incomplete = newest is None or int(path.name.rpartition("-")[2]) > int(newest.rpartition("-")[2])
        if incomplete and is_main():
            shutil.rmtree(path)
    return newest


def _report_top_weighted(trainer: RobustSFTTrainer, rows: Dataset, folder: Path) -> None:
    """Which samples the adversary weighs most at the end: rare, hard, or mislabelled?"""
    live = trainer.args.reweight == "live" and not isinstance(trainer.ambiguity, Empirical)
    if live and trainer.args.rescore_steps != 0:
        trainer.rescore()  # drift is not hardness: stale entries must not lead the list
    if not is_main():
        return
    accountant = trainer.accountant
    weights = accountant.weights()
    g, _ = accountant.scores()
    n = len(g)
    text_of: dict[str, Any] = {row["sample_id"]: row for row in rows.to_list()}
    ids = trainer.samples["sample_id"]
    top = []
    for index in torch.argsort(-weights, stable=True)[:TOP].tolist():
        prompt, answer = texts_of(text_of[ids[index]])
        weight, score = float(weights[index]) * n, float(g[index])
        top.append(
            {
                "sample_id": ids[index],
                "n_q": weight,
                "log_likelihood": score,
                "prompt": prompt,
                "answer": answer,
            }
        )
    write_csv(folder / DONE_FILE, top)
    if live:
        header = ("n·q", "log-likelihood", "prompt", "answer")
        body = [(t["n_q"], t["log_likelihood"], t["prompt"][:70], t["answer"][:90]) for t in top[:8]]
        show_table(f"top-weighted samples (all {len(top)} in {folder / DONE_FILE})", header, body)
