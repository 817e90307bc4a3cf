"""What an outsider's ambiguity set answers: it trains as klball's own do, or is one line."""

import copy
from dataclasses import dataclass, replace

import pytest
import torch
from datasets import Dataset

import klball
from gradient_grid import quiet
from guide import ReverseKLBall
from klball.models.loading import CAUSAL, REWARD, load_model
from test_returned import BELIEFS, PAIRS
from test_unusual_models import trainer
from toy_policy import toy_trainer


def of_family(family, folder, **given):
    """A trainer of pairs or beliefs on the embedded model, two steps of four."""
    of = {"dpo": "RobustDPO", "reward": "RobustReward", "gdpo": "GDPO"}[family]
    model, tokenizer = load_model(
        "klball/tiny", purpose=REWARD if family == "reward" else CAUSAL, trainable=True
    )
    settings = quiet(str(folder), per_device_train_batch_size=4, max_steps=2)
    config = getattr(klball, f"{of}Config")(**settings)
    data = Dataset.from_list(BELIEFS if family == "gdpo" else PAIRS)
    return getattr(klball, f"{of}Trainer")(
        model, args=config, train_dataset=data, processing_class=tokenizer, **given
    )


# --- the guide's set ----------------------------------------------------------------------------


@pytest.mark.parametrize("score", [-0.69, 0.0, 3.0])
def test_the_guides_set_weighs_equal_losses_alike(score):
    solution = ReverseKLBall(0.3).solve({"score": torch.full((3,), score, dtype=torch.float64)})
    assert torch.allclose(solution.weights, torch.full((3,), 1 / 3, dtype=torch.float64))
    fresh = {"score": torch.tensor([score, score - 5, score + 5]), "base": torch.full((3,), 1 / 3)}
    assert torch.allclose(solution.density(fresh), torch.ones(3))


@pytest.mark.parametrize("family", ["dpo", "reward", "gdpo", "grpo"])
def test_the_guides_set_trains_in_every_family(family, tmp_path):
    ball = ReverseKLBall(0.3)
    if family == "grpo":
        run, _ = toy_trainer(tmp_path, ambiguity=ball, max_steps=3)
    else:
        run = of_family(family, tmp_path, ambiguity=ball)
    run.train()
    history = run.accountant.history
    assert len(history) >= 2 and all(row["eta"] is not None for row in history)  # its summary, in the log


# --- what is no answer --------------------------------------------------------------------------


@dataclass(frozen=True)
class Careless:
    """A KL ball whose answer went wrong in one way."""

    slip: str
    needs: tuple[str, ...] = ("score",)

    def solve(self, scores, base_weights=None, *, start=None):
        solution = klball.KLBall(0.3).solve(scores, base_weights)
        return Slipped(solution, self.slip)

    def relaxed(self, error):
        raise error

    def scaled(self, share):
        return self

    def summary(self, solution):
        return {}


class Slipped:
    start = None

    def __init__(self, solution, slip):
        self.solution, self.slip = solution, slip

    def __getattr__(self, name):
        return getattr(self.solution, name)

    @property
    def weights(self):
        weights = self.solution.weights
        match self.slip:
            case "rounding":
                moved = weights.clone()
                moved[1] += moved[0] + 1e-17
                moved[0] = -1e-17
                return moved
            case "weights NaN":
                return weights * torch.nan
            case "weights of 2":
                return 2 * weights
            case "weights list":
                return [1.0]
        return weights

    def density(self, scores):
        right = self.solution.density(scores)
        wrong = {"NaN": right * torch.nan, "negative": -right, "bool": right > 0, "(B, 1)": right[:, None]}
        return {**wrong, "number": 1.0}.get(self.slip, right)


@pytest.mark.parametrize(
    ("slip", "message"),
    [
        ("NaN", "density is nan at step 1"),
        ("negative", r"density is -\d.* at step 1; q/f is finite and not negative"),
        ("bool", r"density must give a tensor \[4\] of floats"),
        ("(B, 1)", r"density must give a tensor \[4\] of floats"),
        ("number", r"density must give a tensor \[4\] of floats, not 1.0"),
        ("weights NaN", "weights must not be negative or NaN"),
        ("weights of 2", "weights must not be negative or NaN, and sum to 1"),
        ("weights list", r"weights must be a tensor \[24\] of floats"),
    ],
)
def test_an_answer_that_is_none_stops_before_the_model_moves(slip, message, tmp_path):
    run = trainer(tmp_path, max_steps=3, ambiguity=Careless(slip))
    before = copy.deepcopy(run.model.state_dict())
    with pytest.raises(ValueError, match=message) as error:
        run.train()
    assert "Careless" in str(error.value) and "\n" not in str(error.value)
    assert all(torch.equal(value, before[name]) for name, value in run.model.state_dict().items())


def test_weights_and_densities_may_be_off_by_rounding(tmp_path):
    run = trainer(tmp_path, max_steps=3, ambiguity=replace(Careless("rounding"), needs=["score"]))
    run.train()
    assert run.state.global_step == 3


@pytest.mark.parametrize("name", ["known_prompts", "reward", "rescores", "kl"])
def test_a_summary_takes_no_name_of_reinforcement_learning(name, tmp_path):
    class Summed(klball.KLBall):
        def summary(self, solution):
            return {name: 3.0}

    run, _ = toy_trainer(tmp_path, ambiguity=Summed(0.3), max_steps=3)
    with pytest.raises(ValueError, match=f"'{name}' is a name that is logged already"):
        run.train()


def test_weights_that_are_none_stop_reinforcement_learning_too(tmp_path):
    run, _ = toy_trainer(tmp_path, ambiguity=Careless("weights NaN"), max_steps=3)
    with pytest.raises(ValueError, match="weights must not be negative or NaN"):
        run.train()


@pytest.mark.parametrize(
    ("ambiguity", "message"),
    [
        (klball.KLBall, "is no ambiguity set: give an object of that class"),
        (replace(Careless(""), needs="score"), "needs must be a tuple of names, not 'score'"),
        (replace(Careless(""), needs=None), "needs must be a tuple of names, not None"),
    ],
)
def test_what_is_no_set_is_told_why(ambiguity, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, ambiguity=ambiguity)
    with pytest.raises(ValueError, match=message):
        toy_trainer(tmp_path, ambiguity=ambiguity)
