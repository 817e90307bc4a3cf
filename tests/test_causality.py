"""A model that sees the tokens it is to predict is no causal language model, whatever its class is called."""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM, BertConfig, GPTNeoXConfig, RobertaConfig

import klball
from gradient_grid import quiet, rows
from klball import RobustDPOConfig, RobustDPOTrainer, RobustSFTConfig, RobustSFTTrainer, load_rows
from klball.data.rows import to_preferences
from klball.models.causality import refuse_looking_ahead
from klball.models.loading import load_model

SIZES = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)


def small(config, tokenizer, **settings):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config(vocab_size=len(tokenizer), **SIZES, **settings))


def use(model, how, tokenizer, folder):
    if how == "score":
        return klball.score(model, tokenizer, rows())
    if how == "prefer":
        config = RobustDPOConfig(**quiet(str(folder)), max_length=64)
        pairs = load_rows("doc-preferences", "train[:4]", form=to_preferences)
        told = dict(train_dataset=pairs, processing_class=tokenizer)
        return RobustDPOTrainer(model, copy.deepcopy(model), config, **told)
    if how == "train":
        config = RobustSFTConfig(**quiet(str(folder)), max_length=64)
        return RobustSFTTrainer(model, config, train_dataset=rows(), processing_class=tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return load_model(folder)


@pytest.mark.parametrize("how", ["score", "train", "prefer", "load"])
@pytest.mark.parametrize("config", [BertConfig, RobertaConfig])
def test_encoders_are_refused(config, how, tokenizer, tmp_path):
    with pytest.raises(ValueError, match="sees the tokens that it is to predict"):
        use(small(config, tokenizer), how, tokenizer, tmp_path)


@pytest.mark.parametrize("how", ["score", "train", "load"])
def test_decoders_are_not(how, tokenizer, tmp_path):
    use(small(BertConfig, tokenizer, is_decoder=True), how, tokenizer, tmp_path)
    use(small(GPTNeoXConfig, tokenizer), how, tokenizer, tmp_path)  # which reads one way without the word


def test_rounding_is_no_sight():
    def noisy(ids, size):
        return torch.ones(1, ids.shape[1], 5) + size * ids[0, -1]

    for size, ids in ((1e-5, [3, 2]), (1.0, [3])):
        refuse_looking_ahead("it", lambda ids, size=size: noisy(ids, size), torch.tensor([ids]))
    with pytest.raises(ValueError):
        refuse_looking_ahead("it", lambda ids: noisy(ids, 1e-3), torch.tensor([[3, 2]]))
