"""A small run of `klball train`, in this process: what the tests of resumption and identity share."""

import json
import shlex

from klball.commands import train as command

FINAL = ("model.safetensors", "history.parquet", "top_weighted.csv")
PEFT = shlex.split("--use_peft --lora_target_modules q_proj v_proj")
SETTINGS = shlex.split("""
    --max_steps 4 --save_steps 2 --per_device_train_batch_size 4 --lr_scheduler_type constant
    --learning_rate 0.01 --report_to none --logging_steps 1 --disable_tqdm true --gradient_checkpointing false
""")


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def train(root, folder, *more, model="model", rows="rows.jsonl"):
    """Run the command; what `more` says goes before the settings above."""
    given = ["--model_name_or_path", str(root / model), "--dataset_name", str(root / rows), *SETTINGS, *more]
    options: dict[str, list[str]] = {}
    for word in [*given, "--output_dir", str(folder)]:
        if word.startswith("--"):
            options[word] = values = [word]
        else:
            values.append(word)
    command.main([word for words in options.values() for word in words], "klball train")


def unfinish(folder):
    for name in FINAL:
        (folder / name).unlink(missing_ok=True)
    return folder


def contents(folder):
    """Every file's bytes, but for those that name the folder, and tokens counted since a resumption."""
    files = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
    naming = ("training_args.bin", "run.json", "README.md", "report.html")
    read = {str(name): path.read_bytes() for name, path in files.items() if name.name not in naming}
    for name in [name for name in read if name.endswith("trainer_state.json")]:
        state = json.loads(read[name])
        for entry in state["log_history"]:
            entry.pop("num_tokens", None)
        read[name] = state
    return read
