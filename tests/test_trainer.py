"""RobustSFTTrainer against stock TRL, an eager reference, and finite differences."""

import math

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PromptTuningConfig
from transformers import GPT2Config, GPT2LMHeadModel
from trl import SFTConfig, SFTTrainer

from conftest import small_qwen
from gradient_grid import Gradients, quiet, rows, trainer_for
from klball import CertaintyKLBall, Empirical, KLBall, RobustSFTConfig, RobustSFTTrainer, solve_dual
from klball.data.rows import encode
from klball.models.token_scores import scores_from_logits


def eager_scores(model, encoded):
    """(g, C) of every row with gradients, one row at a time from full logits, in the model's dtype."""
    g, c = [], []
    for row in encoded:
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])[1:]
        logits = model(input_ids=ids).logits[0, :-1][labels != -100]
        scores = scores_from_logits(logits, labels[labels != -100])
        g.append(scores.log_prob.mean())
        c.append(scores.certainty.mean())
    return torch.stack(g), torch.stack(c)


def small_gpt2(vocabulary):
    """Unlike Qwen3, whose RMSNorm drops to float32, float64 all the way: smooth enough to differentiate."""
    torch.manual_seed(0)
    sizes = dict(n_embd=16, n_layer=2, n_head=2, n_positions=128, vocab_size=vocabulary)
    none = dict(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    config = GPT2Config(**sizes, **none, initializer_range=0.3, bos_token_id=None, eos_token_id=2)
    return GPT2LMHeadModel(config).eval()


def full_batch_gradient(ambiguity, tokenizer, tmp_path, factory=small_qwen, **more):
    model = factory(len(tokenizer))
    case = dict(objective="nll", ambiguity=ambiguity, **more)
    trainer, recorder = trainer_for(
        case, "8x1", str(tmp_path), model=model, per_device_train_batch_size=len(rows()), max_steps=1
    )
    trainer.train()
    return recorder.steps[0]


@pytest.mark.parametrize("ambiguity", [KLBall(0.05), KLBall(1.0), KLBall(0.5, max_weight=2), Empirical()])
def test_full_batch_gradient_is_the_eager_weighted_one(ambiguity, tokenizer, tmp_path):
    gradient = full_batch_gradient(ambiguity, tokenizer, tmp_path)
    reference = small_qwen(len(tokenizer)).double()
    g, _ = eager_scores(reference, encode(rows(), tokenizer))
    weights = ambiguity.solve({"score": g.detach()}).weights
    (-(weights * g).sum()).backward()
    expected = torch.cat([p.grad.flatten() for p in reference.parameters()])
    assert (gradient - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize("constrained", [False, True])
def test_gradient_is_that_of_the_robust_value(constrained, tokenizer, tmp_path):
    """Finite differences of L(θ), the dual re-solved at both ends; γ needs the exact gradient."""
    epsilon, gamma = 0.5, None
    if constrained:
        g, c = eager_scores(small_gpt2(len(tokenizer)).double(), encode(rows(), tokenizer))
        free = solve_dual(g, c, epsilon=epsilon)
        least = solve_dual(g, c, epsilon=epsilon, gamma=-1, throw=False).gamma_min
        gamma = 0.6 * least + 0.4 * free.certainty
    more = dict(gamma=gamma, certainty_gradient=constrained)
    ball = CertaintyKLBall(epsilon, gamma) if gamma is not None else KLBall(epsilon)
    gradient = full_batch_gradient(ball, tokenizer, tmp_path, factory=small_gpt2, **more)
    encoded = encode(rows(), tokenizer)
    model = small_gpt2(len(tokenizer)).double()
    parameters = list(model.parameters())
    start = [p.detach().clone() for p in parameters]
    direction = gradient / gradient.norm()
    step = 1e-5

    def value(distance):
        offset = 0
        with torch.no_grad():
            for p, origin in zip(parameters, start, strict=True):
                p.copy_(origin + distance * direction[offset : offset + p.numel()].view(p.shape))
                offset += p.numel()
            g, c = eager_scores(model, encoded)
        return -float(solve_dual(g, c, epsilon=epsilon, gamma=gamma).worst_case)

    slope = (value(step) - value(-step)) / (2 * step)
    # (λ, β) of a near-degenerate pair amplify the float32 rounding of C
    assert slope == pytest.approx(float(gradient.norm()), rel=5e-5 if constrained else 1e-5)


@pytest.mark.parametrize("objective", ["nll", "dft"])
def test_plain_token_average_equals_stock_trl(objective, tokenizer, tmp_path):
    settings = quiet(
        str(tmp_path), per_device_train_batch_size=4, gradient_accumulation_steps=2, logging_steps=1
    )
    stock = SFTTrainer(
        small_qwen(len(tokenizer)),
        SFTConfig(loss_type=objective, **settings),
        train_dataset=rows(),
        processing_class=tokenizer,
        callbacks=[recorded := Gradients()],
    )
    stock.train()
    case = dict(objective=objective, ambiguity=Empirical(), normalization="token", logging_steps=1)
    ours, recorder = trainer_for(case, "4x2", str(tmp_path))
    ours.train()
    for mine, theirs in zip(recorder.steps, recorded.steps, strict=True):
        assert (mine - theirs).norm() <= 1e-6 * theirs.norm()
    losses = [[log["loss"] for log in t.state.log_history if "loss" in log] for t in (ours, stock)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6) and len(losses[0]) == 3
    counts = [[log["num_tokens"] for log in t.state.log_history if "loss" in log] for t in (ours, stock)]
    assert counts[0][:2] == counts[1][:2]  # TRL counts no more than what is left of the last step's batches
    assert counts[0][2] == sum(len(ids) for ids in ours.samples["input_ids"])


def test_static_weights_stay_those_of_the_start(tokenizer, tmp_path):
    case = dict(objective="nll", ambiguity=KLBall(0.5), reweight="static")
    trainer, _ = trainer_for(case, "8x1", str(tmp_path), num_train_epochs=2)
    trainer.train()
    start, _ = eager_scores(small_qwen(len(tokenizer)).double(), encode(rows(), tokenizer))
    expected = solve_dual(start.detach(), epsilon=0.5)
    lambdas = {step["lambda"] for step in trainer.accountant.history}
    assert len(lambdas) == 1 and lambdas.pop() == pytest.approx(expected.lambda_, rel=1e-4)
    assert trainer.accountant.solution.weights.tolist() == pytest.approx(expected.weights.tolist(), rel=1e-4)


def test_live_entries_are_the_fresh_scores(tokenizer, tmp_path):
    trainer, _ = trainer_for(dict(objective="nll", ambiguity=KLBall(0.5)), "8x1", str(tmp_path))
    trainer.train()
    before, _ = eager_scores(small_qwen(len(tokenizer)), encode(rows(), tokenizer))
    ledger = trainer.accountant.ledger.scores()["score"]
    trainer.rescore()
    after = trainer.accountant.ledger.scores()["score"]
    # entries lie between the model that filled them and the model now, nearer to the latter
    assert (ledger - after).abs().mean() < 0.5 * (before - after).abs().mean()


def test_entropy_bonus_raises_entropy(tokenizer, tmp_path):
    """The gradient with the bonus minus the one without is −coef·∇H."""
    with_bonus = full_batch_gradient(Empirical(), tokenizer, tmp_path, entropy_coef=0.3)
    without = full_batch_gradient(Empirical(), tokenizer, tmp_path)
    model = small_qwen(len(tokenizer)).double()
    entropies = []
    for row in encode(rows(), tokenizer):
        labels = torch.tensor(row["labels"])[1:]
        log_p = (
            model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1][labels != -100].log_softmax(-1)
        )
        entropies.append(-(log_p.exp() * log_p).sum(-1).mean())
    torch.stack(entropies).mean().backward()
    slope = torch.cat([p.grad.flatten() for p in model.parameters()])
    assert (with_bonus - without + 0.3 * slope).norm() <= 1e-4 * (0.3 * slope).norm()


@pytest.mark.parametrize("coefficient", [0.0, 0.3])
def test_only_a_bonus_sends_a_gradient_into_the_entropy(coefficient, tokenizer, tmp_path):
    """Zeros would change nothing, but cost a pass over the vocabulary in every backward."""
    case = dict(objective="nll", ambiguity=KLBall(0.05), entropy_coef=coefficient)
    trainer, _ = trainer_for(case, "8x1", str(tmp_path), max_steps=1)
    forward, entropies = trainer._forward, []

    def kept(model, inputs):
        scores = forward(model, inputs)
        scores.entropy.retain_grad()
        entropies.append(scores.entropy)
        return scores

    trainer._forward = kept
    trainer.train()
    assert [entropy.grad is not None for entropy in entropies] == [coefficient > 0]


def test_infeasible_gamma_is_relaxed_or_raised(tokenizer, tmp_path, caplog):
    case = dict(objective="nll", ambiguity=CertaintyKLBall(0.1, 0.5))
    trainer, _ = trainer_for(case, "8x1", str(tmp_path))
    trainer.train()
    assert trainer.accountant.relaxed == 3 and caplog.text.count("has become infeasible") == 1
    strict, _ = trainer_for({**case, "on_infeasible": "raise"}, "8x1", str(tmp_path))
    with pytest.raises(ValueError, match=r"^at optimizer step 1: infeasible.*γ_min"):
        strict.train()


def test_callable_objective_is_used(tokenizer, tmp_path):
    class Twice:
        def __call__(self, log_probs):
            return -2 * log_probs

    settings = RobustSFTConfig(epsilon=0.0, **quiet(str(tmp_path), max_steps=1))
    trainer = RobustSFTTrainer(
        small_qwen(len(tokenizer)),
        settings,
        train_dataset=rows(),
        processing_class=tokenizer,
        objective=Twice(),
        callbacks=[recorder := Gradients()],
    )
    trainer.train()
    plain, recorded = trainer_for(dict(objective="nll", ambiguity=Empirical()), "8x1", str(tmp_path))
    plain.train()
    assert torch.allclose(recorder.steps[0], 2 * recorded.steps[0], rtol=1e-4, atol=1e-7)


def test_evaluation_is_a_token_mean_over_everything(tokenizer, tmp_path):
    trainer, _ = trainer_for(dict(objective="nll", ambiguity=Empirical()), "8x1", str(tmp_path))
    metrics = trainer.evaluate(rows())
    encoded = encode(rows(), tokenizer)
    g, _ = eager_scores(small_qwen(len(tokenizer)).double(), encoded)
    tokens = torch.tensor([sum(x != -100 for x in row["labels"][1:]) for row in encoded])
    expected = float(-(g * tokens).sum() / tokens.sum())
    assert metrics["eval_loss"] == pytest.approx(expected, rel=1e-5)
    assert metrics["eval_perplexity_sample"] == pytest.approx(math.exp(-float(g.mean())), rel=1e-5)


def test_messages_train_on_assistant_turns_only(tokenizer, tmp_path):
    turns = [
        {"role": "user", "content": "read the file"},
        {"role": "assistant", "content": "It reads."},
        {"role": "user", "content": "and then close"},
        {"role": "assistant", "content": "It closes the file."},
    ]
    data = Dataset.from_list([{"messages": turns}, {"messages": turns[:2]}])
    trainer = RobustSFTTrainer(
        small_qwen(len(tokenizer)),
        RobustSFTConfig(**quiet(str(tmp_path), max_steps=1)),
        train_dataset=data,
        processing_class=tokenizer,
    )
    kept = [label for label in trainer.train_dataset[0]["labels"] if label != -100]
    assert tokenizer.decode(kept) == "It reads.<|im_end|>It closes the file.<|im_end|>"
    trainer.train()


def test_cut_and_dropped_rows_are_counted(tokenizer, tmp_path, caplog):
    data = Dataset.from_list(
        [
            {"prompt": "a\n", "completion": "of the"},
            {"prompt": "a\n", "completion": "of the " * 30},
            {"prompt": "a file " * 40, "completion": "lost"},
        ]
    )
    trainer = RobustSFTTrainer(
        small_qwen(len(tokenizer)),
        RobustSFTConfig(**quiet(str(tmp_path), max_length=16)),
        train_dataset=data,
        processing_class=tokenizer,
    )
    assert len(trainer.train_dataset) == 2
    assert "2 of 3 rows are longer than max_length = 16: 1 cut, 1 dropped" in caplog.text


class Half:
    """Half of what a set needs."""

    needs = ("score",)

    def solve(self, scores, base_weights=None, *, start=None):
        return KLBall(0.1).solve(scores, base_weights)


class Curious(KLBall):
    needs = ("score", "length")


class Renamed(KLBall):
    """The same set."""


@pytest.mark.parametrize(
    ("settings", "arguments", "message"),
    [
        ({"packing": True, "packing_strategy": "bfd_split"}, {}, "never cuts samples"),
        ({"packing": True, "packing_strategy": "wrapped"}, {}, "never cuts samples"),
        ({"packing": True, "max_length": None}, {}, "max_length"),
        ({"packing": True, "eval_packing": True}, {}, "eval_packing"),
        ({"packing": True, "accelerator_config": {"dispatch_batches": True}}, {}, "dispatch_batches"),
        ({"padding_free": True}, {}, "max_length"),
        ({}, {"train_dataset": rows().add_column("seq_lengths", [[1]] * len(rows()))}, None),
        (
            {},
            {"train_dataset": Dataset.from_list([{"input_ids": [5, 6, 7], "seq_lengths": [2, 1]}])},
            "packed already",
        ),
        ({"label_smoothing_factor": 0.1}, {}, "label_smoothing"),
        ({"packing_strategy": "nothing"}, {}, "packing_strategy"),
        ({"dataloader_persistent_workers": True}, {}, "dataloader_num_workers"),
        ({"lr_scheduler_kwargs": {"nonsense": 1}}, {}, "lr_scheduler_kwargs"),
        ({"chat_template_path": "none.jinja"}, {}, "no chat template at"),
        ({"gradient_checkpointing_kwargs": {"nonsense": 1}}, {}, "gradient_checkpointing_kwargs"),
        ({"torch_compile_mode": "nothing"}, {}, "torch_compile_mode"),
        ({"dataloader_drop_last": True, "per_device_train_batch_size": 999}, {}, "dataloader_drop_last"),
        ({}, {"peft_config": LoraConfig(modules_to_save=["wow"], target_modules=["q_proj"])}, "'wow'"),
        ({}, {"objective": 3}, "objective must be a function"),
        ({}, {"processing_class": "klball/tiny"}, "processing_class must be"),
        ({}, {"callbacks": ["x"]}, "callbacks must be"),
        ({}, {"model": torch.nn.Linear(2, 2)}, "model must be a model of transformers"),
        ({}, {"model": "no/where"}, "could not load model 'no/where'"),
        ({}, {"peft_config": LoraConfig(target_parameters=["wow"], target_modules=["q_proj"])}, "'wow'"),
        ({}, {"compute_loss_func": print}, "compute_loss_func"),
        (
            {},
            {"peft_config": PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)},
            "prompt-learning",
        ),
        ({}, {"train_dataset": rows().to_iterable_dataset()}, "streaming"),
        ({}, {"train_dataset": rows().with_transform(lambda row: row)}, "with_transform"),
        ({}, {"train_dataset": rows().add_column("images", [0] * len(rows()))}, "images"),
        ({}, {"ambiguity": KLBall(0.1)}, None),
        ({"epsilon": 0.2}, {"ambiguity": KLBall(0.1)}, "once"),
        ({}, {"ambiguity": Half()}, "is no ambiguity set"),
        ({}, {"ambiguity": Curious(0.1)}, "can need score and certainty"),
        ({}, {"ambiguity": 0.1}, "is no ambiguity set"),
        ({}, {"ambiguity": Renamed(0.1)}, None),
        ({"gamma": 14.0, "_n_gpu": 2}, {}, "accelerate launch"),
        ({"_n_gpu": 2}, {"ambiguity": CertaintyKLBall(0.1, 14.0)}, "accelerate launch"),
        ({"objective": "dft"}, {"objective": torch.neg}, "once"),
        ({"objective": "psft"}, {"peft_config": LoraConfig(lora_dropout=0.1)}, "lora_dropout"),
        ({"objective": "psft", "neftune_noise_alpha": 1.0}, {}, "neftune"),
        ({"average_tokens_across_devices": False}, {}, "average_tokens"),
    ],
)
def test_unsupported_is_refused_in_one_line(settings, arguments, message, tokenizer, tmp_path):
    def build():
        config = RobustSFTConfig(
            **quiet(str(tmp_path), **{k: v for k, v in settings.items() if k != "_n_gpu"})
        )
        config._n_gpu = settings.get("_n_gpu", config.n_gpu)
        given = {"model": small_qwen(len(tokenizer)), "args": config, "train_dataset": rows()}
        return RobustSFTTrainer(**{**given, "processing_class": tokenizer, **arguments})

    if message is None:
        build()
        return
    with pytest.raises(ValueError, match=message) as caught:
        build()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epsilon": -1}, "epsilon"),
        ({"gamma": float("nan")}, "gamma"),
        ({"max_weight": 0.1}, "max_weight"),
        ({"reweight": "often"}, "reweight"),
        ({"normalization": "batch"}, "normalization"),
        ({"on_infeasible": "ignore"}, "on_infeasible"),
        ({"objective": "mse"}, "objective"),
        ({"objective": "nll", "loss_type": "dft"}, "contradicts"),
        ({"certainty_gradient": True}, "gamma"),
        ({"rescore_steps": -1}, "rescore_steps"),
        ({"psft_clip": 0.0}, "psft_clip"),
        ({"psft_refresh": 0}, "psft_refresh"),
    ],
)
def test_bad_configuration_is_refused(settings, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        RobustSFTConfig(**quiet(str(tmp_path), **settings))


def test_lora_trains_the_adapter_only(tokenizer, tmp_path):
    config = RobustSFTConfig(**quiet(str(tmp_path), max_steps=2))
    trainer = RobustSFTTrainer(
        small_qwen(len(tokenizer)),
        config,
        train_dataset=rows(),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    trainer.train()
    trained = [name for name, p in trainer.model.named_parameters() if p.requires_grad]
    assert trained and all("lora" in name for name in trained)
