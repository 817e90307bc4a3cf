"""Train the embedded model `klball/tiny` from scratch on docstrings of installed scientific packages.

`make tiny-model` runs this: CPU only, two cores, under 40 minutes. Standard-library text is kept out
of the corpus, because the built-in data set `stdlib-docs` is made of it. Settings and the resulting
losses go to `settings.json` beside the weights.
"""

import argparse
import importlib.util
import itertools
import json
import math
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import torch
import transformers
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    Trainer,
    TrainingArguments,
    default_data_collator,
)

from klball.data.builtin import data_hash
from klball.data.builtin.stdlib_docs import distinct, docstring_pairs, stdlib_docs

PACKAGES = {  # import name → distribution
    **{"numpy": "numpy", "scipy": "scipy", "pandas": "pandas", "sklearn": "scikit-learn"},
    **{"statsmodels": "statsmodels", "skimage": "scikit-image", "xarray": "xarray"},
    **{"astropy": "astropy", "sympy": "sympy", "networkx": "networkx"},
    **{"matplotlib": "matplotlib", "torch": "torch"},
}
VOCABULARY = 4_096
BLOCK = 320  # tokens
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{%- if not loop.first %}{{- '\\n' }}{%- endif %}"
    "{{- '<|im_start|>' + message['role'] + '\\n' }}"
    "{%- if message['role'] == 'assistant' %}"
    "{% generation %}{{- message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{%- else %}{{- message['content'] + '<|im_end|>' }}{%- endif %}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '\\n<|im_start|>assistant\\n' }}{%- endif %}"
)


def corpus() -> tuple[list[str], list[str]]:
    """(training texts, held-out texts), rendered as chats, without any standard-library answer."""
    rows = []
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise SystemExit(f"{package} is not installed: pip install -e '.[tiny-model]'")
        rows += docstring_pairs(Path(spec.origin).parent, package)
    stdlib = stdlib_docs()
    kept = distinct([*stdlib, *rows])[len(stdlib) :]
    kept.sort(key=lambda row: row["id"])
    print(f"{len(rows)} docstrings, {len(kept)} distinct and not in the standard library")
    print(f"corpus hash {data_hash(kept)}")
    texts = [
        f"<|im_start|>user\n{row['question']}<|im_end|>\n<|im_start|>assistant\n{row['answer']}<|im_end|>"
        for row in kept
    ]
    return texts[1_000:], texts[:1_000]


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=SPECIAL,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        model_max_length=1_024,
        chat_template=CHAT_TEMPLATE,
    )


def blocks(token_lists: list[list[int]]) -> Dataset:
    """The texts end to end, cut into rows of `BLOCK` tokens."""
    stream = [token for tokens in token_lists for token in tokens]
    rows = [stream[i : i + BLOCK] for i in range(0, len(stream) - BLOCK + 1, BLOCK)]
    return Dataset.from_dict({"input_ids": rows, "labels": rows})


def baselines(train: list[list[int]], held_out: list[list[int]]) -> dict[str, float]:
    """Held-out nats per token of add-one unigrams, and of bigrams interpolated with them."""
    unigrams = Counter(token for tokens in train for token in tokens)
    bigrams = Counter(pair for tokens in train for pair in itertools.pairwise(tokens))
    total = sum(unigrams.values()) + VOCABULARY
    unigram_nll = bigram_nll = 0.0
    count = 0
    for tokens in held_out:
        for previous, token in itertools.pairwise(tokens):
            unigram = (unigrams[token] + 1) / total
            bigram = bigrams[previous, token] / max(unigrams[previous], 1)
            unigram_nll -= math.log(unigram)
            bigram_nll -= math.log(0.9 * bigram + 0.1 * unigram)
            count += 1
    return {"unigram": unigram_nll / count, "bigram": bigram_nll / count}


@torch.no_grad()
def model_nll(model: Qwen3ForCausalLM, held_out: list[list[int]]) -> float:
    total, count = 0.0, 0
    for tokens in held_out:
        ids = torch.tensor([tokens])
        logits = model(input_ids=ids).logits[0, :-1].float()
        total += torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
        count += len(tokens) - 1
    return total / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output_dir", type=Path, default=Path("src/klball/tiny"))
    parser.add_argument("--max_steps", type=int, default=2_600)
    parser.add_argument("--work_dir", type=Path, default=Path("outputs/tiny-model"))
    options = parser.parse_args()
    began = time.time()
    transformers.set_seed(0)

    train_texts, held_out_texts = corpus()
    tokenizer = train_tokenizer(train_texts)
    train = tokenizer(train_texts)["input_ids"]
    held_out = tokenizer(held_out_texts)["input_ids"]
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=5,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=1_024,
        rope_theta=10_000.0,  # pyright: ignore[reportCallIssue]
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen3ForCausalLM(config)
    settings = {
        "optim": "adamw_torch",
        "learning_rate": 4e-3,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 100,
        "max_steps": options.max_steps,
        "per_device_train_batch_size": 12,
        "weight_decay": 0.1,
        "adam_beta2": 0.95,
        "max_grad_norm": 1.0,
    }
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(options.work_dir),
            report_to=[],
            use_cpu=True,
            logging_steps=50,
            save_steps=500,
            save_total_limit=1,
            seed=0,
            **settings,
        ),
        train_dataset=blocks(train),
        data_collator=default_data_collator,
    )
    resumable = any(options.work_dir.glob("checkpoint-*/trainer_state.json"))
    trainer.train(resume_from_checkpoint=resumable or None)

    model.eval().to(torch.bfloat16)
    record = {
        "parameters": model.num_parameters(),
        "training_tokens": options.max_steps * 12 * BLOCK,
        "corpus": {name: version(name).partition("+")[0] for name in PACKAGES.values()},
        "settings": {**settings, "block": BLOCK},
        "held_out_nats_per_token": {"model": model_nll(model, held_out), **baselines(train, held_out)},
        "minutes": round((time.time() - began) / 60, 1),
    }
    model.save_pretrained(options.output_dir)
    tokenizer.save_pretrained(options.output_dir)
    (options.output_dir / "settings.json").write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
