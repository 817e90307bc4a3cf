"""Shared fixtures: the embedded model and tiny models built in code. Nothing here needs a network."""

import gc
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from klball.evaluation.models import load_model


@pytest.fixture(scope="session", autouse=True)
def _fast_process():
    """Two pytest workers share two cores; and the garbage that every training collects is not in imports."""
    torch.set_num_threads(1)
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
