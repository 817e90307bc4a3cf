"""A bigram policy over four tokens whose completions can be enumerated, and its rollouts by enumeration.

Every conditional probability is a multiple of a quarter, so sixteen completions hold each one as often as
its probability says: the mean over them is the exact expectation, without sampling.
"""

import os
from itertools import product

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from klball import RobustGRPOConfig, RobustGRPOTrainer

WORDS = ["<pad>", "<eos>", "x", "y", "a", "b", "c", "d"]  # the last four are prompts
PAD, EOS, X, Y, FIRST = 0, 1, 2, 3, 4
PROMPTS, G = 4, 16
ORDERS = [(1, 2, 1), (2, 1, 1), (1, 1, 2)]  # quarters of (eos, x, y)


def probabilities() -> torch.Tensor:
    """π(next | previous), [words, words]."""
    table = torch.full((len(WORDS), len(WORDS)), 1e-13, dtype=torch.float64)
    for previous in range(len(WORDS)):
        for token, quarters in zip((EOS, X, Y), ORDERS[previous % 3], strict=True):
            table[previous, token] = quarters / 4
    return table


def toy_model(noise: float = 0.0) -> Qwen3ForCausalLM:
    """The head alone decides: a scaled one-hot embedding comes out of the norm as it went in."""
    size = len(WORDS)
    config = Qwen3Config(
        vocab_size=size,
        hidden_size=size,
        intermediate_size=8,
        num_hidden_layers=0,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=8,
        rms_norm_eps=1e-12,
        tie_word_embeddings=False,
        pad_token_id=PAD,
        bos_token_id=None,
        eos_token_id=EOS,
    )
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(config).double()
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(torch.eye(size))
        table = probabilities().log()
        model.lm_head.weight.copy_((table + noise * torch.randn_like(table)).T / size**0.5)
    return model


def toy_tokenizer() -> PreTrainedTokenizerFast:
    inner = Tokenizer(models.WordLevel({word: k for k, word in enumerate(WORDS)}, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", padding_side="left"
    )


def completions_of(prompt: int, length: int = 2) -> list[list[int]]:
    """The sixteen completions, each as often as 16 π says."""
    table = (probabilities() * 4).round().long()
    found = []
    for first, second in product((EOS, X, Y), repeat=2):
        times = int(table[prompt, first] * table[first, second]) if first != EOS else 0
        found += [[first, second][:length]] * times
    return [[EOS]] * int(table[prompt, EOS] * 4) + found


def rollouts(length: int = 2):
    """TRL's `rollout_func`: completion k of a prompt is the k-th of its enumeration, on any process."""

    def generate(prompts, trainer):
        start = trainer.accelerator.process_index * len(prompts)
        ids = [WORDS.index(prompt) for prompt in prompts]
        completions = [completions_of(p, length)[(start + k) % G] for k, p in enumerate(ids)]
        return {"prompt_ids": [[p] for p in ids], "completion_ids": completions, "logprobs": None}

    return generate


def toy_reward(prompts, completion_ids, **columns):
    """Depends on the prompt and on every token, end included."""
    return [reward_of(WORDS.index(p), ids) for p, ids in zip(prompts, completion_ids, strict=True)]


def reward_of(prompt: int, ids: list[int]) -> float:
    return float(((prompt + 1) * sum((k + 1) * token for k, token in enumerate(ids))) % 5) / 4 + prompt / 8


class Gradients(TrainerCallback):
    """Records the gradient of every optimizer step, of what the policy is."""

    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        grads = [p.grad.detach().double().flatten() for p in model.parameters() if p.grad is not None]
        self.steps.append(torch.cat(grads).clone())


SETTINGS = dict(
    per_device_train_batch_size=PROMPTS * G,
    gradient_accumulation_steps=1,
    num_generations=G,
    max_completion_length=2,
    max_steps=1,
    learning_rate=0.0,
    report_to=[],
    bf16=False,
    gradient_checkpointing=False,
    use_cpu=True,
    save_strategy="no",
    disable_tqdm=True,
    max_grad_norm=0.0,
    shuffle_dataset=False,
    logging_steps=1,
    scale_rewards="none",
    loss_type="dr_grpo",
)


def prompts() -> Dataset:
    return Dataset.from_dict({"prompt": WORDS[FIRST:], "kind": ["one", "two", "one", "two"]})


ARGUMENTS = ("ambiguity", "reward_funcs", "train_dataset", "eval_dataset")  # not of the configuration


def toy_trainer(folder, model=None, stock=False, length=2, enumerated=True, **more):
    """(trainer, its gradients) of a run on the toy policy; stock: TRL's own."""
    extras = {k: more.pop(k) for k in ARGUMENTS if k in more}
    config = (GRPOConfig if stock else RobustGRPOConfig)(output_dir=str(folder), **(SETTINGS | more))
    recorder = Gradients()
    trainer = (GRPOTrainer if stock else RobustGRPOTrainer)(
        toy_model() if model is None else model,
        extras.pop("reward_funcs", toy_reward),
        config,
        train_dataset=extras.pop("train_dataset", prompts()),
        processing_class=toy_tokenizer(),
        callbacks=[recorder],
        rollout_func=rollouts(length) if enumerated else None,
        **extras,
    )
    return trainer, recorder
