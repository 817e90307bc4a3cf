"""For every option of every command: a changed value with its effect, or the words of its refusal.

field → (other options first, the changed value) or (…, …, the refusal). `OUT` is the command's folder and
FIXED what every run of the command has. A field without a case fails the test of its command.
"""

from typing import Any

Case = tuple[Any, ...]

LOCAL = {"maker": "model", "model_name_or_path": "m"}
BATCH = {"maker": "openai-batch", "model_name_or_path": "m", "step": "requests"}
OF_MODELS = {"models": ["klball/tiny"]}
OBJECTIVES = {"experiment": "objectives"}
PREFERENCE = {"experiment": "preference"}
FORGETTING = {"experiment": "forgetting", "test_rows": 12}
DPO = {"family": "dpo"}
ANSWERS = {"generate": "true", "reward": "last-number"}
SAMPLES = {**ANSWERS, "samples": 2}
BOUNDED = {"bounds": [-9.0, 0.0]}
LEARNT = {"generate": "true", "reward_model": "r"}

FIXED: dict[str, dict[str, Any]] = {
    "score": {"output_dir": "OUT"},
    "solve": {"scores": "SCORES"},
    "evaluate": {"output_dir": "OUT", "datasets": ["a"], "models": ["m", "n"]},
    "scan": {"output_dir": "OUT"},
    "paraphrase": {"output_dir": "OUT", "rounds": 3},
    "compare": {"output_dir": "OUT", "models": ["a=m", "b=n"], "rounds": 3},
    "tune": {},
    "reproduce": {"output_dir": "OUT", "train_rows": 8, "test_rows": 8, "epsilons": [0.0, 0.1]},
}
DATA: dict[str, Case] = {
    "dataset_name": ({}, "word-problems"),
    "dataset_split": ({}, "train"),
    "dataset_config": ({}, "german"),
    "id_column": ({}, "answer"),
    "max_rows": ({}, 5),
}
MODEL: dict[str, Case] = {
    "model_name_or_path": ({}, "other"),
    "dtype": ({}, "bfloat16"),
    "max_length": ({}, 7),
    "chat_template_path": ({}, "template.jinja"),
}
SEEDED = {"scores": ["SEEDS"], "score": "x", "round": "seed"}
PAIR = {**SEEDED, "scores": ["a=SEEDS", "b=SEEDS"]}
OF_COLUMNS: dict[str, Case] = {
    "score": (SEEDED, "x + 0.1*y"),
    "lower_is_better": (SEEDED, "true"),
    "id": (SEEDED, "name"),
    "group": (SEEDED, "lang"),
    "cluster": (SEEDED, "lang"),
    "round": ({**SEEDED, "id": "unique"}, "file"),
}
WIDE = {"scores": ["SEEDS"], "round": "seed", "model_columns": ["x", "y"]}
SEVERAL_MODELS: dict[str, Case] = {
    "model_column": ({"scores": ["SEEDS"], "score": "x"}, "seed"),
    "model_columns": ({"scores": ["SEEDS"], "round": "seed"}, ["x", "y"]),
}
CASES: dict[str, dict[str, Case]] = {
    "score": {
        **DATA,
        **MODEL,
        "model_revision": ({"model_name_or_path": "other"}, "v2"),
        "tokens_per_batch": ({}, 99),
        "family": ({}, "dpo"),
        "reference_model": (DPO, "other"),
        "beta": (DPO, 0.3),
        "group_column": (DPO, "field"),
        "output_dir": ({}, "OUT2"),
    },
    "solve": {
        "scores": ({}, "OTHER_SCORES"),
        "epsilon": ({}, 0.3),
        "gamma": ({}, 2.05),
        "max_weight": ({}, 1.5),
        "top": ({}, 3),
        "streamed": ({"max_weight": 2}, "true", "--max_weight is not supported with --streamed"),
        "json": ({}, "true"),
        "confidence": (BOUNDED, 0.8),
        "bounds": ({}, [-9.0, 0.0]),
        **OF_COLUMNS,
    },
    "evaluate": {
        **OF_COLUMNS,
        "scores": (SEEDED, ["a=SEEDS"]),
        **SEVERAL_MODELS,
        **{name: DATA[name] for name in ("dataset_split", "id_column", "max_rows")},
        **{name: MODEL[name] for name in ("dtype", "max_length", "chat_template_path")},
        "models": ({}, ["m", "o"]),
        "datasets": ({}, ["b"]),
        "pair_scores": ({}, ["PAIRS"], "has no effect with --pair_scores"),
        "reference": ({}, "n"),
        "generate": ({"reward": "last-number"}, "true"),
        "reward": (ANSWERS, "exact"),
        "reward_model": (LEARNT, "s"),
        "samples": (ANSWERS, 2),
        "pass_at": (SAMPLES, [1, 2]),
        "max_new_tokens": (ANSWERS, 9),
        "answer_seed": (ANSWERS, 9),
        "confidence": (ANSWERS, 0.8),
        "bounds": (LEARNT, [0.0, 2.0]),
        "group_column": (ANSWERS, "question"),
        "output_dir": ({}, "OUT2"),
    },
    "scan": {
        **{name: DATA[name] for name in ("dataset_name", "dataset_config", "id_column", "max_rows")},
        **{name: MODEL[name] for name in ("model_name_or_path", "dtype", "max_length", "chat_template_path")},
        "dataset_train_split": ({}, "other"),
        "dataset_test_split": (OF_MODELS, "other"),
        "test_name": (OF_MODELS, "word-problems"),
        "epsilons": ({}, [0.2]),
        "gradient_rows": ({}, 5),
        "models": ({}, ["m"]),
        "ood_names": (OF_MODELS, ["stdlib-docs"]),
        "own_name": (OF_MODELS, "stdlib-docs"),
        "own_prompts": (OF_MODELS, 5),
        "own_samples": (OF_MODELS, 5),
        "own_tokens": (OF_MODELS, 5),
        "output_dir": ({}, "OUT2"),
    },
    "paraphrase": {
        **DATA,
        "rounds": ({}, 4),
        "maker": ({"model_name_or_path": "m", "maker": "model"}, "openai-batch", "needs --step"),
        "model_name_or_path": (LOCAL, "other"),
        "step": (BATCH, "submit"),
        "base_url": ({**BATCH, "step": "submit"}, "http://host/v1"),
        "results": ({**BATCH, "step": "collect"}, ["RESULTS"]),
        "allow_missing": ({**BATCH, "step": "collect"}, "true"),
        "requests_per_file": (BATCH, 5),
        "temperature": (BATCH, 0.3),
        "max_new_tokens": (BATCH, 9),
        "batch_size": (LOCAL, 3),
        "dtype": (LOCAL, "bfloat16"),
        "similarity_model": ({}, "all-MiniLM-L6-v2"),
        "min_similarity": ({"similarity_model": "all-MiniLM-L6-v2"}, 0.99999),
        "output_dir": ({}, "OUT2"),
    },
    "compare": {
        **{
            name: ({**before, "scores": ["a=SEEDS", "b=SEEDS"]}, *after)
            for name, (before, *after) in OF_COLUMNS.items()
        },
        "scores": (PAIR, ["a=SEEDS", "c=SEEDS"]),
        **SEVERAL_MODELS,
        **DATA,
        **{name: MODEL[name] for name in ("dtype", "max_length", "chat_template_path")},
        "models": ({}, ["a=m", "c=n"]),
        "rounds_path": ({}, "ROUNDS"),
        "rounds": ({}, 4),
        "epsilon": ({}, 0.3),
        "gamma": ({}, "14.5"),
        "resamples": ({}, 47),
        "num_jobs": ({}, 2),
        "job_index": ({"num_jobs": 2}, 1),
        "output_dir": ({}, "OUT2"),
    },
    "tune": {
        **{name: DATA[name] for name in ("dataset_name", "dataset_config", "id_column")},
        "dataset_train_split": ({}, "other"),
        "dataset_test_split": ({}, "other"),
        "eval_dataset": ({}, "word-problems"),
        "eval_fraction": ({}, 0.5),
        "test_fraction": ({}, 0.3),
        "epsilons": ({}, [0.2]),
        "caps": ({}, [2.0]),
        "max_cost": ({}, 0.3),
        "halving": ({}, "false"),
    },
    "reproduce": {
        **{name: MODEL[name] for name in ("model_name_or_path", "dtype", "max_length", "chat_template_path")},
        "dataset_name": DATA["dataset_name"],
        "id_column": DATA["id_column"],
        "dataset_train_split": ({}, "other"),
        "dataset_test_split": ({}, "other"),
        "test_name": ({}, "word-problems"),
        "experiment": ({}, "objectives"),
        "preset": ({}, "paper"),
        "train_rows": ({}, 5),
        "test_rows": ({}, 5),
        "ood_name": ({}, "stdlib-docs"),
        "ood_config": ({}, "german"),
        "ood_split": ({}, "other"),
        "ood_rows": ({}, 5),
        "epsilons": ({}, [0.0, 0.2]),
        "seeds": ({}, 2),
        "static": ({}, "true"),
        "variants": ({}, "optimistic"),
        "points": ({"train_rows": 12, "per_device_train_batch_size": 1}, 3),
        "learning_rate": ({}, 0.1),
        "per_device_train_batch_size": ({}, 2),
        "gradient_accumulation_steps": ({}, 2),
        "num_train_epochs": ({}, 9),
        "warmup_ratio": ({}, 0.2),
        "weight_decay": ({}, 0.2),
        "adam_beta2": ({}, 0.2),
        "lora_r": ({}, 2),
        "lora_alpha": ({}, 2),
        "flips": (PREFERENCE, [0.0, 0.2]),
        "beta": (PREFERENCE, 0.3),
        "start_steps": (PREFERENCE, 7),
        "start_learning_rate": (PREFERENCE, 0.3),
        "dataset_config": ({}, "german"),
        "start_names": (FORGETTING, ["one", "two"]),
        "hard_name": (FORGETTING, "other"),
        "hard_config": (FORGETTING, "german"),
        "pairs_name": (FORGETTING, "other"),
        "num_generations": (FORGETTING, 3),
        "max_completion_length": (FORGETTING, 9),
        "rl_learning_rate": (FORGETTING, 0.3),
        "own_name": (OBJECTIVES, "word-problems"),
        "own_prompts": (OBJECTIVES, 3),
        "own_samples": (OBJECTIVES, 3),
        "own_tokens": (OBJECTIVES, 3),
        "num_jobs": ({}, 2),
        "job_index": ({"num_jobs": 2}, 1),
        "output_dir": ({}, "OUT2"),
    },
}
# what would have no effect beside other options: command → (other options, the option, its value)
IGNORED: dict[str, list[Case]] = {
    "score": [
        ({}, "model_revision", "v2"),
        *(
            ({}, name, value)
            for name, value in (("reference_model", "x"), ("beta", 0.3), ("group_column", "x"))
        ),
        ({"family": "reward"}, "beta", 0.3),
        ({"family": "reward"}, "reference_model", "x"),
    ],
    "evaluate": [
        *(({}, name, 7) for name in ("samples", "pass_at", "max_new_tokens", "answer_seed")),
        *(({}, name, "x") for name in ("reward", "reward_model", "group_column")),
        (ANSWERS, "reference", "m"),
        (ANSWERS, "max_length", 7),
        *(
            (SEEDED, name, "x")
            for name in ("models", "datasets", "dataset_split", "id_column", "pair_scores")
        ),
        *((SEEDED, name, 7) for name in ("max_rows", "max_length", "samples")),
        *((SEEDED, "generate", "true"), (SEEDED, "dtype", "bfloat16")),
        *(({}, name, "x") for name in ("score", "id", "group", "round", "model_column", "model_columns")),
        *((WIDE, name, "x") for name in ("score", "model_column")),
        ({}, "lower_is_better", "true"),
    ],
    "scan": [({}, name, 7) for name in ("own_prompts", "own_samples", "own_tokens")]
    + [({}, name, "word-problems") for name in ("test_name", "own_name", "dataset_test_split")]
    + [({}, "ood_names", ["stdlib-docs"])],
    "paraphrase": [
        *(({}, name, 7) for name in ("requests_per_file", "temperature", "max_new_tokens", "batch_size")),
        *(({}, name, "x") for name in ("model_name_or_path", "step", "base_url", "results")),
        ({}, "allow_missing", "true"),
        ({}, "dtype", "float32"),
        ({}, "min_similarity", 0.5),
        (LOCAL, "step", "submit"),
        (LOCAL, "base_url", "http://host"),
        (LOCAL, "requests_per_file", 7),
        (LOCAL, "allow_missing", "true"),
        (LOCAL, "results", "x"),
        (BATCH, "batch_size", 7),
        (BATCH, "dtype", "float32"),
        (BATCH, "results", "x"),
        ({**BATCH, "step": "collect", "results": "x"}, "base_url", "http://host"),
    ],
    "solve": [(SEEDED, "gamma", 2.05), (SEEDED, "streamed", "true")],
    "compare": [
        *(
            (PAIR, name, "x")
            for name in ("models", "rounds_path", "dataset_name", "dataset_split", "id_column")
        ),
        *((PAIR, name, 4) for name in ("rounds", "max_rows", "max_length", "num_jobs")),
        *((PAIR, "gamma", "2"), (PAIR, "dtype", "bfloat16"), (PAIR, "dataset_config", "x")),
        *(({}, name, "x") for name in ("score", "id", "group", "round", "model_column", "model_columns")),
        *((WIDE, name, "x") for name in ("score", "model_column")),
        ({}, "lower_is_better", "true"),
    ]
    + [
        ({"rounds_path": "ROUNDS"}, name, "x") for name in ("dataset_name", "dataset_split", "dataset_config")
    ],
    "tune": [
        ({"eval_dataset": "x"}, "eval_fraction", 0.3),
        ({"dataset_test_split": "x"}, "eval_fraction", 0.3),
    ],
    "reproduce": [
        *(({}, name, 7) for name in ("own_prompts", "own_samples", "own_tokens")),
        ({}, "own_name", "x"),
        *(({}, name, 0.3) for name in ("flips", "beta", "start_learning_rate")),
        ({}, "start_steps", 7),
        *((PREFERENCE, name, 7) for name in ("points", "own_prompts")),
        *((PREFERENCE, name, "x") for name in ("dataset_name", "test_name", "dataset_test_split")),
        (PREFERENCE, "static", "true"),
        *((PREFERENCE, name, "x") for name in ("dataset_config", "hard_name", "pairs_name")),
        *(
            (FORGETTING, name, value)
            for name, value in (("flips", 0.3), ("static", "true"), ("own_name", "x"))
        ),
        *(({}, name, 3) for name in ("num_generations", "max_completion_length")),
        ({}, "start_names", ["x"]),
        ({**FORGETTING, "start_steps": 0}, "start_names", ["x"]),
        ({**PREFERENCE, "start_steps": 0}, "start_learning_rate", 0.3),
        (OBJECTIVES, "rl_learning_rate", 0.3),
        (OBJECTIVES, "beta", 0.3),
        (OBJECTIVES, "static", "true"),
        *((experiment, "variants", "optimistic") for experiment in (OBJECTIVES, PREFERENCE, FORGETTING)),
        (OBJECTIVES, "points", 3),
        *((experiment, "num_jobs", 2) for experiment in (PREFERENCE, FORGETTING)),
        ({"lora_r": 0}, "lora_alpha", 3),
        ({"config": "RECIPE"}, "preset", "paper"),
        ({"config": "RECIPE"}, "preset", "tiny"),
    ],
}
