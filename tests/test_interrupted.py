"""What an interruption leaves: a model as it was, and no files that nobody reads."""

from types import SimpleNamespace

import pytest
from datasets import Dataset

import klball
from klball.data.rows import to_preferences
from klball.models.loading import REWARD, load_model
from klball.scan.gradient_norms import head_gradient_norms
from klball.scores import pairs, parts
from klball.scores.scorer import encode_for
from klball.studies import own_answers
from klball.training.families import FAMILIES
from klball.training.preference.comparators import GroupEG
from klball.training.resumption import Resumable
from klball.training.rl.rewards import VERIFIABLE
from klball.training.run import _remove_unfinished
from klball.training.sft.window import NEEDED_FILES
from klball.training.step import StepHook

ROWS = Dataset.from_list([{"question": f"What is {k}?", "answer": f"{k}"} for k in range(3)])


class Killed(BaseException):
    pass


def kill(*_):
    raise Killed


@pytest.mark.parametrize("family", ["sft", "dpo"])
def test_training_goes_on_in_training_mode(family, tmp_path):
    settings = dict(output_dir=str(tmp_path), bf16=False, use_cpu=True, report_to="none", epsilon=0.05)
    model, tokenizer = klball.load_model("klball/tiny")
    if family == "sft":
        config = klball.RobustSFTConfig(**settings)
        trainer = klball.RobustSFTTrainer(model, config, train_dataset=ROWS, processing_class=tokenizer)
        data, trainer._scorer = trainer.samples, lambda dataset: kill
    else:
        rows = klball.load_rows("doc-preferences", "train[:4]", form=to_preferences)
        config = klball.RobustDPOConfig(**settings)
        trainer = klball.RobustDPOTrainer(model, args=config, train_dataset=rows, processing_class=tokenizer)
        data, trainer.data_collator = trainer.train_dataset, kill
    trainer.model_wrapped = trainer.model.train()
    with pytest.raises(Killed):
        trainer.score_dataset(data)
    assert trainer.model.training


def test_gradient_norms_leave_no_parameter_frozen():
    model, tokenizer = klball.load_model("klball/tiny")
    with pytest.raises(Killed):
        head_gradient_norms(model, encode_for(model, tokenizer, ROWS, None), kill)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("host", ["01234567", "abcdef01"])
def test_no_temporary_file_of_a_killed_run_stays(host, tmp_path):
    (tmp_path / f".history.parquet.{host}-7").touch()
    _remove_unfinished(tmp_path, None, None)
    assert not [*tmp_path.iterdir()]


def score(model, tokenizer, output):
    klball.score(model, tokenizer, ROWS, output=output)


def rewards(model, tokenizer, output):
    model, tokenizer = load_model("klball/tiny", purpose=REWARD, trainable=True)
    model.score.weight.data.fill_(0.01)
    pair = {"prompt": "What?", "chosen": " This.", "rejected": " That."}
    pairs.reward_table(
        model, tokenizer, pairs.encode_pairs(Dataset.from_list([pair]), tokenizer), output=output
    )


def answers(model, tokenizer, output):
    prompts = Dataset.from_list([{"prompt": "1+1=", "answer": "2", "sample_id": "a"}])
    reward = VERIFIABLE["last-number"]()
    own_answers.answer_table(model, tokenizer, prompts, reward, max_new_tokens=4, output=output)


@pytest.mark.parametrize("table", [score, rewards, answers])
def test_a_kill_between_table_and_parts_leaves_no_parts_for_good(table, tmp_path, monkeypatch):
    model, tokenizer = klball.load_model("klball/tiny")
    output = tmp_path / "table.parquet"
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(parts, "remove_parts", kill)
        table(model, tokenizer, output)
    assert len([*tmp_path.iterdir()]) == 2
    table(model, tokenizer, output)
    assert [*tmp_path.iterdir()] == [output]


@pytest.mark.parametrize("objective", ["psft", "nll"])
def test_a_trainer_asks_of_a_checkpoint_what_the_command_asks(objective, tmp_path):
    """Else `train(True)` would go on from one that lacks the window."""
    model, tokenizer = klball.load_model("klball/tiny")
    config = klball.RobustSFTConfig(
        output_dir=str(tmp_path), bf16=False, use_cpu=True, report_to="none", objective=objective
    )
    trainer = klball.RobustSFTTrainer(model, config, train_dataset=ROWS, processing_class=tokenizer)
    assert trainer.checkpoint_files() == FAMILIES["sft"].files(config)
    assert (
        bool(trainer.checkpoint_files())
        == (objective == "psft")
        == (trainer.checkpoint_files() == NEEDED_FILES)
    )


def test_groups_and_critics_are_asked_for_too():
    trainer = SimpleNamespace(hooks=[GroupEG(0.5, ["a", "b"]), StepHook()])
    assert Resumable.checkpoint_files(trainer) == GroupEG.files
