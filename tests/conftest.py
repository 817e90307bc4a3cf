"""Shared fixtures: the embedded model and tiny models built in code. Nothing here needs a network."""

import gc
import json
import os
import shutil

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["OMP_NUM_THREADS"] = "1"  # two pytest workers share two cores, their children too

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from klball.models.loading import load_model


@pytest.fixture(scope="session", autouse=True)
def _fast_process():
    """The garbage that every training collects is not in imports."""
    gc.freeze()


@pytest.fixture(scope="session")
def tokenizer():
    return load_model("klball/tiny")[1]


@pytest.fixture
def tiny_model(tokenizer):
    return small_qwen(len(tokenizer))


def small_qwen(vocabulary: int, seed: int = 0, **overrides) -> Qwen3ForCausalLM:
    """A randomly initialised Qwen3 of a few thousand parameters, sharp enough to have a spread of scores."""
    torch.manual_seed(seed)
    settings = dict(
        vocab_size=vocabulary,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        initializer_range=0.3,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=2,
    )
    model = Qwen3ForCausalLM(Qwen3Config(**{**settings, **overrides})).eval()
    with torch.no_grad():  # one strong direction makes the sharpness of predictions vary with the context
        model.model.embed_tokens.weight[:, 0] *= 6
    return model


@pytest.fixture
def data(tmp_path):
    """Twelve questions and answers in a file."""
    path = tmp_path / "rows.jsonl"
    rows = [{"question": f"What about the number {i}?", "answer": f"It is {i}."} for i in range(12)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def root(tmp_path_factory, tokenizer):
    """A model, 24 rows (6 steps an epoch: step 4 is inside it), and rows with another answer."""
    from small_runs import write_rows

    folder = tmp_path_factory.mktemp("runs")
    small_qwen(len(tokenizer)).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    rows = [{"question": f"What is {i}?", "answer": "the value of " + "a key " * (i % 7)} for i in range(24)]
    write_rows(folder / "rows.jsonl", rows)
    write_rows(folder / "other.jsonl", [*rows[:-1], {**rows[-1], "answer": "nothing"}])
    return folder


@pytest.fixture(scope="session")
def finished(root):
    """The folder of a whole run on them, which no test changes."""
    from small_runs import train

    train(root, root / "finished")
    return root / "finished"


@pytest.fixture
def stopped(finished, tmp_path):
    """That run as a kill before its last files leaves it."""
    from small_runs import unfinish

    shutil.copytree(finished, tmp_path / "run")
    return unfinish(tmp_path / "run")
