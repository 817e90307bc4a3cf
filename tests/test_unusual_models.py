"""Models and settings that are less common: resumed, restored, referred to and copied as others are."""

import copy
from importlib import import_module
from types import SimpleNamespace

import pytest
import torch
import transformers
from accelerate.utils import ParallelismConfig
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import TrainerCallback

import klball
from conftest import small_qwen
from gradient_grid import quiet
from klball import RobustSFTConfig, RobustSFTTrainer
from klball.adversary.sets import CertaintyKLBall
from klball.models.loading import load_model
from klball.training.checkpoints import problem_of
from test_objectives import Drifted
from toy_policy import toy_trainer

TOKENIZER = load_model("klball/tiny")[1]
SMALL = dict(vocab_size=len(TOKENIZER), hidden_size=16, num_hidden_layers=2, num_attention_heads=2)


def neox(**other):
    torch.manual_seed(0)
    config = transformers.GPTNeoXConfig(
        **{**SMALL, **other}, intermediate_size=32, max_position_embeddings=256
    )
    return transformers.GPTNeoXForCausalLM(config)


def mixture():
    torch.manual_seed(0)
    experts = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)
    config = transformers.Qwen3MoeConfig(
        **SMALL, **experts, intermediate_size=32, num_key_value_heads=1, head_dim=8, decoder_sparse_step=1
    )
    return transformers.Qwen3MoeForCausalLM(config)


def qwen():
    return small_qwen(len(TOKENIZER))


MODELS = {"renamed head": neox, "experts saved one by one": mixture, "plain": qwen}


def rows(n=24):
    return Dataset.from_list(
        [{"question": f"What is {i}?", "answer": "the value of " + "a key " * (i % 7)} for i in range(n)]
    )


def trainer(folder, model=None, data=None, cls=RobustSFTTrainer, **given):
    names = (
        "objective",
        "ambiguity",
        "eval_dataset",
        "callbacks",
        "formatting_func",
        "data_collator",
        "peft_config",
    )
    arguments = {name: given.pop(name) for name in names if name in given}
    common = dict(optim="adamw_torch", learning_rate=0.01, per_device_train_batch_size=4, max_grad_norm=1.0)
    settings = quiet(str(folder), **common, router_aux_loss_coef=0.0, train_sampling_strategy="random")
    config = RobustSFTConfig(**{**settings, **given})
    data = rows() if data is None else data
    model = qwen() if model is None else model
    tokenizer = copy.deepcopy(TOKENIZER)
    return cls(model, config, train_dataset=data, processing_class=tokenizer, **arguments)


# --- names that differ between the model and its file -------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_the_best_model_is_the_one_that_was_evaluated_and_a_resumed_run_ends_alike(name, tmp_path):
    settings = dict(save_strategy="steps", save_steps=2, max_steps=6, learning_rate=0.3)
    evaluated = dict(eval_dataset=rows(8), eval_strategy="steps", eval_steps=2, load_best_model_at_end=True)
    best = trainer(tmp_path / "best", MODELS[name](), **settings, **evaluated)
    best.train()
    assert name == "plain" or best.state.best_global_step < 6
    assert best.evaluate()["eval_loss"] == pytest.approx(best.state.best_metric, abs=1e-5)
    whole = trainer(tmp_path / "whole", MODELS[name](), **settings)
    whole.train()
    resumed = trainer(tmp_path / "whole", MODELS[name](), **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    for (own, value), other in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(value, other), own


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path):
    trainer(tmp_path, neox(), save_strategy="steps", save_steps=2, max_steps=2).train()
    for model in (qwen(), mixture(), neox(hidden_size=32), neox(num_hidden_layers=3)):
        with pytest.raises(ValueError, match="is of another model"):
            trainer(tmp_path, model, max_steps=4).train(resume_from_checkpoint=True)


def test_an_adapter_may_have_a_name(tmp_path):
    def named():
        return get_peft_model(qwen(), LoraConfig(target_modules=["q_proj"]), adapter_name="mine")

    settings = dict(save_strategy="steps", save_steps=2, max_steps=4)
    whole = trainer(tmp_path, named(), **settings)
    whole.train()
    resumed = trainer(tmp_path, named(), **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    for value, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(value, other)
    for model in (adapted(), qwen()):
        with pytest.raises(ValueError, match=r"is of another model|holds an adapter"):
            trainer(tmp_path, model, max_steps=4).train(resume_from_checkpoint=True)
    file = tmp_path / "checkpoint-2" / "mine" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    assert "damaged" in str(problem_of(tmp_path / "checkpoint-2"))


def test_the_best_adapter_with_a_name_is_loaded(tmp_path):
    model = get_peft_model(qwen(), LoraConfig(target_modules=["q_proj"]), adapter_name="mine")
    settings = dict(
        save_strategy="steps", save_steps=1, max_steps=3, learning_rate=0.3, greater_is_better=True
    )
    evaluated = dict(eval_dataset=rows(8), eval_strategy="steps", eval_steps=1, load_best_model_at_end=True)
    own = trainer(tmp_path, model, **settings, **evaluated)
    own.train()
    assert own.evaluate()["eval_loss"] == pytest.approx(own.state.best_metric, abs=1e-5)


# --- objectives, sets and copies ----------------------------------------------------------------


class OwnLinear(torch.nn.Linear):
    """Which TRL's fused head does not know."""


def adapted():
    return get_peft_model(qwen(), LoraConfig(target_modules=["q_proj"], lora_dropout=0.0))


def test_the_reference_of_an_unusual_head_stays_where_training_began(tmp_path):
    model = qwen()
    model.lm_head.__class__ = OwnLinear
    drifted = Drifted()
    trainer(tmp_path, model, objective=drifted, max_steps=3, learning_rate=0.1).train()
    assert drifted.distances[0] < 1e-4 and min(drifted.distances[1:]) > 1e-2


def test_a_new_adapter_may_be_rounded(tmp_path):
    """By a third of a nat in some tokens, whatever row is looked at."""
    for first in range(0, 24, 3):
        model = get_peft_model(qwen().bfloat16(), LoraConfig(target_modules="all-linear", use_dora=True))
        trainer(tmp_path, model, rows().select([first, *range(8)]), objective=Drifted())


def test_an_adapter_that_was_trained_before_has_no_start_to_refer_to(tmp_path):
    model = adapted()
    trainer(tmp_path, model, max_steps=2, learning_rate=0.1).train()
    with pytest.raises(ValueError, match="without its adapter this model is not what training starts from"):
        trainer(tmp_path, model, objective=Drifted())


@pytest.mark.parametrize("direction", ["pessimistic", "optimistic"])
def test_the_certainty_moves_the_gradient_to_the_side_of_its_bound(direction, tmp_path):
    """d/dθ of E_Q[−g], whose Q bounds E_Q[C], by finite differences of the solved problem."""
    torch.manual_seed(0)
    g, dg, c, dc = torch.randn(4, 40, dtype=torch.float64)
    ball = CertaintyKLBall(0.3, 2.8, direction=direction)

    def solved(theta):
        scores = {"score": g + theta * dg, "certainty": 3 + 0.5 * c + theta * dc}
        return ball.solve(scores), scores

    def value(theta):
        solution, scores = solved(theta)
        return -float(solution.weights @ scores["score"])

    beta = ball.summary(solved(0.1)[0])["beta"]
    weights = solved(0.1)[0].weights
    expected = (value(0.1 + 1e-5) - value(0.1 - 1e-5)) / 2e-5
    settings = dict(epsilon=0.3, gamma=2.8, direction=direction, certainty_gradient=True)
    own = trainer(tmp_path, **settings)
    own.accountant.summary = lambda: {"beta": beta}

    class Scores:
        log_probs = torch.zeros(1, 1)
        certainty = torch.ones(1, 1)

    slope = own._token_losses(Scores(), {})  # of the loss, in C
    assert float(weights @ (-dg + float(slope) * dc)) == pytest.approx(expected, abs=1e-5)
    assert beta > 0.1


class Copies(TrainerCallback):
    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.model = copy.deepcopy(model)


def test_a_model_that_is_trained_with_gamma_can_be_copied(tmp_path):
    model = qwen()
    for _ in range(2):  # the second trainer finds the hook of the first
        own = trainer(tmp_path, model, gamma=50.0, max_steps=2, rescore_steps=0, callbacks=[Copies()])
        own.train()
        copy.deepcopy(own.model)


# --- data and settings that cannot be used ------------------------------------------------------


def test_a_formatting_function_keeps_the_groups(tmp_path):
    data = Dataset.from_list([{"q": f"row {i} of it", "source": "ab"[i % 2]} for i in range(8)])
    own = trainer(tmp_path, data=data, group_column="source", formatting_func=lambda row: row["q"])
    assert len(own._units.names) == 2


UNLABELLED = {"input_ids": [5, 6, 7], "labels": [-100] * 3}


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize(
    "row", [UNLABELLED, {"input_ids": [5, 6, 7], "labels": [5, -100, -100]}, {"text": TOKENIZER.eos_token}]
)
def test_rows_to_evaluate_on_have_something_to_score(row, named, tmp_path):
    evaluation = Dataset.from_list([row])
    own = {"a": evaluation} if named else evaluation
    where = "eval_dataset 'a'" if named else "eval_dataset"
    with pytest.raises(ValueError, match=f"{where}: .*no.* answer"):
        trainer(tmp_path, eval_dataset=own, max_length=None)
    with pytest.raises(ValueError, match=r"eval_dataset: .*no.* answer"):
        trainer(tmp_path, max_length=None).evaluate(evaluation)


def test_rows_that_were_prepared_before_are_evaluated_as_they_are(tmp_path):
    prepared = trainer(tmp_path).samples.select_columns(["input_ids", "labels"])
    settings = dict(dataset_kwargs={"skip_prepare_dataset": True}, max_length=8)
    own = trainer(tmp_path, data=prepared, eval_dataset=prepared, **settings)
    assert own.evaluate()["eval_loss"] == own.evaluate(prepared)["eval_loss"]
    with pytest.raises(ValueError, match="eval_dataset has no `labels`"):
        trainer(tmp_path, data=prepared, eval_dataset=prepared.remove_columns("labels"), **settings)


class NoMask:
    def __call__(self, examples):
        ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row["input_ids"]) for row in examples], True)
        return {"input_ids": ids, "labels": ids}


BEST = dict(load_best_model_at_end=True, eval_strategy="steps", save_strategy="steps", max_steps=2)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (dict(enable_jit_checkpoint=True), "enable_jit_checkpoint is not supported"),
        (dict(loss_type="dft", objective=lambda log_probs: -log_probs), "give the objective once"),
        (dict(data=rows().add_column("sample_index", [1, 2] * 12), group_column="sample_index"), "rename"),
        (dict(**BEST, eval_dataset={"a": rows(4)}), "'loss' is none of a_loss"),
        (dict(**BEST, eval_dataset=rows(4), metric_for_best_model="val_loss"), "'val_loss' is none of loss"),
    ],
)
def test_settings_without_sense_are_one_line(given, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        trainer(tmp_path, **given)


def test_a_collator_says_where_rows_end(tmp_path):
    with pytest.raises(ValueError, match="returns no attention_mask"):
        trainer(tmp_path, data_collator=NoMask()).train()


def test_the_best_of_several_sets_is_found_by_its_name(tmp_path):
    named = dict(eval_dataset={"a": rows(4)}, metric_for_best_model="a_loss")
    own = trainer(tmp_path, **named, eval_steps=1, save_steps=1, **BEST)
    own.train()
    assert own.state.best_metric is not None


@pytest.mark.parametrize("kind", ["tp_size", "cp_size"])
@pytest.mark.parametrize("family", ["sft", "grpo"])
def test_models_split_by_a_launcher_are_refused(family, kind, tmp_path, monkeypatch):
    """It says so on the accelerator only, once the constructor of Transformers is through."""
    accelerator = import_module(f"klball.training.{'robust' if family == 'sft' else 'rl.grpo'}")
    refuse, split = accelerator.refuse_split_models, ParallelismConfig(**{kind: 2})
    monkeypatch.setattr(
        accelerator, "refuse_split_models", lambda own: refuse(SimpleNamespace(parallelism_config=split))
    )
    with pytest.raises(ValueError, match="context, sequence and tensor parallelism"):
        trainer(tmp_path) if family == "sft" else toy_trainer(tmp_path, radius=0.0)
    refuse(SimpleNamespace(parallelism_config=ParallelismConfig()))


def test_processes_with_uneven_batches_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(RobustSFTConfig, "world_size", 2)
    with pytest.raises(ValueError, match="even_batches=False is not supported"):
        trainer(tmp_path, accelerator_config={"even_batches": False})


def test_a_forward_that_fails_keeps_no_graph(tmp_path, monkeypatch):
    """Out of memory in the head: a smaller batch is tried next."""
    own = trainer(tmp_path, gamma=50.0)
    batch = own.data_collator([own.samples[0]])

    def fail():
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(own.model, "get_output_embeddings", fail)
    with pytest.raises(RuntimeError):
        own._forward._fused_scores(own.model, {k: v for k, v in batch.items() if k != "sample_index"})
    assert own._forward.hidden is None and not own._forward._keeps


def test_experts_are_scored_in_float64_too(tmp_path):
    """The products that Transformers groups have no kernel of that type."""
    mixture().save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    exact, usual = (
        klball.score(*load_model(tmp_path, dtype), rows()).to_pandas()["sum_log_prob"]
        for dtype in ("float64", "float32")
    )
    assert exact.dtype == "float64" and 0 < abs(exact - usual).max() < 1e-4
