"""GDPO against enumeration: probabilities of whole beliefs, the three terms, both balls; and its rows."""

import copy
import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch.nn.functional import logsigmoid

from conftest import small_qwen
from gradient_grid import quiet, tokenizer
from klball import Empirical, GDPOConfig, GDPOTrainer, KLBall, solve_dual
from klball.studies.beliefs import js_distance
from klball.training.preference.belief_losses import _fit, log_shares
from klball.training.preference.beliefs import encoded_beliefs
from preference_grid import BELIEFS, NUM_ROWS, rows, trainer_for
from test_preference import flat_gradient
from test_trainer import small_gpt2

WHOLE = dict(per_device_train_batch_size=NUM_ROWS, max_steps=1, epsilon_warmup=0.0)


def log_prob(model, before: str, text: str) -> tuple[torch.Tensor, int]:
    """Of the tokens that follow `before`, one at a time: a product of conditional probabilities."""
    start, ids = len(tokenizer()(before)["input_ids"]), tokenizer()(before + text)["input_ids"]
    assert ids[:start] == tokenizer()(before)["input_ids"]
    total = torch.zeros((), dtype=torch.float64)
    for place in range(start, len(ids)):
        logits = model(input_ids=torch.tensor([ids[:place]])).logits[0, -1]
        total = total + logits.log_softmax(-1)[ids[place]]
    return total, len(ids) - start


def atoms_of(model, reference, row: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses of a question's beliefs, whose sum is the question's, and log π − log p*, (K) each."""
    found = [log_prob(model, row["prompt"], belief + "\n") for belief in row["beliefs"]]
    whole = torch.stack([value for value, _ in found])
    p = torch.tensor(row["p_star"], dtype=torch.float64)
    log_pi = whole - whole.exp().sum().log()
    losses = p * (p.log() - log_pi)
    named = row["beliefs"].index(row["belief"]) if row.get("belief") else None
    lengths = torch.tensor([length for _, length in found])
    share = p if named is None else torch.eye(len(p), dtype=torch.float64)[named]
    losses = losses - share * whole / lengths
    if named is not None and row.get("chosen"):
        before = row["prompt"] + row["belief"] + "\n"
        pairs = []
        for answer in (row["chosen"], row["rejected"]):
            text = answer + tokenizer().eos_token
            with torch.no_grad():
                there, _ = log_prob(reference, before, text)
            pairs.append(log_prob(model, before, text)[0] - there)
        losses = losses - share * logsigmoid(0.5 * (pairs[0] - pairs[1]))
    return losses, (log_pi - p.log()).detach()


def models():
    return small_gpt2(len(tokenizer())).double(), small_qwen(len(tokenizer()), seed=1).double()


def mixed_rows() -> Dataset:
    """Some name no belief, some have no texts."""
    data = rows("gdpo").to_list()
    for i, row in enumerate(data):
        if i % 3 == 0:
            row["chosen"] = row["rejected"] = None
        if i % 6 == 0:
            row["belief"] = None
    return Dataset.from_list(data)


def expected_gradient(data: Dataset, ball, over: str) -> torch.Tensor:
    model, reference = models()
    atoms = [atoms_of(model, reference, row) for row in data]
    if over == "belief":
        base = torch.cat([torch.tensor(row["p_star"], dtype=torch.float64) for row in data]) / len(data)
        ratios = torch.cat([ratio for _, ratio in atoms])
        density = ball.solve({"score": ratios}, base).weights / base
        loss = (density * torch.cat([losses for losses, _ in atoms])).sum() / len(data)
    else:
        losses = torch.stack([losses.sum() for losses, _ in atoms])
        loss = (ball.solve({"score": -losses.detach()}).weights * losses).sum()
    return flat_gradient(loss, model)


@pytest.mark.parametrize("over", ["belief", "question"])
@pytest.mark.parametrize("ball", [Empirical(), KLBall(0.3)], ids=str)
def test_the_gradient_is_that_of_the_enumerated_terms(ball, over, tmp_path):
    data = mixed_rows()
    case = dict(family="gdpo", ambiguity=ball, over=over)
    given = dict(model=small_gpt2(len(tokenizer())), data=data)
    trainer, recorder = trainer_for(case, "8x1", str(tmp_path), **given, **WHOLE)
    trainer.train()
    expected = expected_gradient(data, ball, over)
    assert (recorder.steps[0] - expected).norm() <= 1e-5 * expected.norm()


def test_the_terms_are_logged_apart_and_evaluated_over_all_rows(tmp_path):
    data = mixed_rows()
    found = []
    for over in ("belief", "question"):
        trainer, _ = trainer_for(dict(family="gdpo", epsilon=0.1, over=over), "8x1", str(tmp_path), data=data)
        found.append(trainer.evaluate(data))
    for name in ("loss", "belief_kl", "belief_nll", "text_dpo", "js_distance", "rewards/margins"):
        assert found[0][f"eval_{name}"] == pytest.approx(found[1][f"eval_{name}"], rel=1e-5)
    parts = sum(found[0][f"eval_{name}"] for name in ("belief_kl", "belief_nll", "text_dpo"))
    assert found[0]["eval_loss"] == pytest.approx(parts)
    model, reference = small_qwen(len(tokenizer())).double(), small_qwen(len(tokenizer()), seed=1).double()
    with torch.no_grad():
        atoms = [atoms_of(model, reference, row) for row in data]
    wanted = [float(losses.sum()) for losses, _ in atoms]
    assert found[0]["eval_loss"] == pytest.approx(sum(wanted) / len(data), rel=1e-5)
    distances, kls = [], []
    for row, (_, ratio) in zip(data, atoms, strict=True):
        p = torch.tensor(row["p_star"], dtype=torch.float64)
        pi = p * ratio.exp()
        middle = 0.5 * (p + pi)
        distances.append(math.sqrt(0.5 * float((p * (p / middle).log() + pi * (pi / middle).log()).sum())))
        kls.append(-float((p * ratio).sum()))
    assert found[0]["eval_js_distance"] == pytest.approx(sum(distances) / len(data), rel=1e-5)
    assert found[0]["eval_belief_kl"] == pytest.approx(sum(kls) / len(data), rel=1e-5)


def test_shares_are_normalised_row_by_row():
    rows_of = torch.tensor([0, 0, 1, 1, 1, 2, 2])
    values = torch.randn(7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 300
    wanted = torch.cat([values[rows_of == row].log_softmax(0) for row in range(3)])
    values.requires_grad_()
    found = log_shares(values, rows_of, 3)
    assert torch.allclose(found, wanted)
    assert torch.autograd.gradcheck(
        lambda x: log_shares(x, rows_of, 3), values.detach().div(300).requires_grad_()
    )


def test_weights_over_beliefs_start_from_the_shares(tmp_path):
    """And all of them are 1 where every belief is said as often as it is held."""
    trainer, _ = trainer_for(dict(family="gdpo", epsilon=0.4), "8x1", str(tmp_path))
    data = trainer.train_dataset
    base = torch.tensor([p for row in data["p_star"] for p in row], dtype=torch.float64) / NUM_ROWS
    assert torch.allclose(trainer.accountant.units.base(len(base)), base)
    score = trainer.score_units("now")["score"]
    trainer.accountant.rewrite({"score": score})
    wanted = solve_dual(score, epsilon=0.4, base_weights=base).weights
    assert torch.allclose(trainer.accountant.weights(), wanted, rtol=1e-6)
    trainer.accountant.rewrite({"score": torch.zeros_like(score)})
    assert torch.allclose(trainer.accountant.weights(), base)


@pytest.mark.parametrize("epsilon", [0.0, 0.3])
def test_beliefs_come_to_be_said_as_often_as_they_are_held(epsilon, tmp_path):
    """Two beliefs of as many tokens, so that all terms agree on where they end."""
    question = {"prompt": "read the file?\n", "beliefs": ["list", "the"], "p_star": [0.7, 0.3]}
    other = {"prompt": "write the name?\n", "beliefs": ["list", "the"], "p_star": [0.1, 0.9]}
    settings = dict(optim="adamw_torch", learning_rate=0.01, max_steps=150, logging_steps=150)
    trainer, _ = trainer_for(
        *(dict(family="gdpo", epsilon=epsilon), "8x1", str(tmp_path)),
        data=Dataset.from_list([question, other]),
        **settings,
    )
    ids = trainer.train_dataset["belief_ids"][0]
    assert len(ids[0]) == len(ids[1])
    before = trainer.evaluate(Dataset.from_list([question, other]))
    trainer.train()
    after = trainer.evaluate(Dataset.from_list([question, other]))
    assert before["eval_belief_kl"] > 0.1 and after["eval_belief_kl"] < 0.005
    assert after["eval_js_distance"] < 0.03 and after["eval_belief_accuracy"] == 1
    assert "eval_rewards/margins" not in after


def test_a_belief_that_nobody_holds_counts_in_the_denominator(tmp_path):
    data = [{"prompt": "read?\n", "beliefs": list(BELIEFS), "p_star": [0.0, 0.5, 0.5]}] * 8
    for over in ("belief", "question"):
        trainer, recorder = trainer_for(
            *(dict(family="gdpo", epsilon=0.2, over=over), "8x1", str(tmp_path)), data=Dataset.from_list(data)
        )
        model = small_qwen(len(tokenizer())).double()
        with torch.no_grad():
            whole = torch.stack([log_prob(model, "read?\n", b + "\n")[0] for b in BELIEFS])
        kl = -math.log(2) - 0.5 * float(whole.log_softmax(0)[1:].sum())
        assert trainer.evaluate(Dataset.from_list(data))["eval_belief_kl"] == pytest.approx(kl, rel=1e-5)
        trainer.train()
        assert all(bool(step.isfinite().all()) for step in recorder.steps)
        tokens = sum(
            len(row["prompt_ids"]) + len(ids) for row in trainer.train_dataset for ids in row["belief_ids"]
        )
        assert trainer.accountant.num_tokens == tokens
        assert trainer.texts_of(data[0], 0)["belief"] == (BELIEFS[1] if over == "belief" else "")


def test_chats_put_the_belief_before_the_answer(tmp_path):
    chat = [{"role": "user", "content": "Should we read it?"}]

    def said(text):
        return [{"role": "assistant", "content": text}]

    row = {"prompt": chat, "beliefs": ["yes", "no"], "p_star": [0.5, 0.5], "belief": "no"}
    row |= {"chosen": said("Because of the name."), "rejected": said("The key.")}
    trainer, recorder = trainer_for(
        dict(family="gdpo", epsilon=0.2), "8x1", str(tmp_path), data=Dataset.from_list([row] * 8)
    )
    encoded = trainer.train_dataset[0]
    decode = tokenizer().decode
    before = tokenizer().apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert decode(encoded["prompt_ids"]) == before
    assert [decode(ids) for ids in encoded["belief_ids"]] == ["yes\n", "no\n"]
    start = encoded["text_start"]
    assert decode(encoded["chosen_ids"][:start]) == "no\n" == decode(encoded["rejected_ids"][:start])
    assert decode(encoded["chosen_ids"][start:]).startswith("Because of the name.<|im_end|>")
    batch = trainer.data_collator([encoded])
    scored = [
        decode(ids[mask > 0]) for ids, mask in zip(batch["input_ids"], batch["completion_mask"], strict=True)
    ]
    assert (
        scored[0].startswith("Because")
        and scored[1].startswith("The key")
        and scored[2:] == ["yes\n", "no\n"]
    )
    trainer.train()
    assert recorder.steps[0].norm() > 0


THINKING = (  # as Qwen3's: what stands before an answer is not what asks for one
    "{% for m in messages %}{{ m.role }}:{% if m.role == 'assistant' %}{{ ' <think> ' }}{% endif %}"
    "{{ m.content }}{{ tools or '' }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% if fast %}{{ ' <think> ' }}{% endif %}{% endif %}"
)


def test_the_template_puts_the_belief_right_behind_the_prompt_or_is_refused():
    thinking = copy.deepcopy(tokenizer())
    thinking.chat_template = THINKING
    row = {**GOOD, "prompt": [{"role": "user", "content": "read?"}], "tools": '[{"name": "open"}]'}
    with pytest.raises(ValueError, match=r"^row 1 \(counted from 1\), belief: the chat template does not"):
        encoded_beliefs(Dataset.from_list([row]), thinking, "\n", None)
    data = Dataset.from_list([{**row, "chat_template_kwargs": {"fast": True}}])
    (encoded,) = encoded_beliefs(data, thinking, "\n", None)
    start = encoded["text_start"]
    before = thinking.decode(encoded["prompt_ids"] + encoded["chosen_ids"][:start])
    assert before == "user:read?[{'name': 'open'}]\nassistant: <think> no\n"
    assert thinking.decode(encoded["chosen_ids"][start:]).startswith("the name")


@pytest.mark.parametrize("p_star", [[0.25, 0.75, 0.0], [1.0, 0.0, 0.0], [0.2, 0.3, 0.5]])
def test_the_distance_to_the_shares_is_a_number_however_rare_a_belief(p_star):
    log_pi = torch.tensor([-0.5, -2.0, -300.0]).log_softmax(0)
    found = _fit(log_pi, torch.tensor(p_star), torch.zeros(3, dtype=torch.long), 1)
    wanted = js_distance(log_pi.double().exp().numpy(), np.array(p_star))
    assert float(found["js_distance"].sum()) == pytest.approx(wanted, rel=1e-5)
    assert float(found["belief_accuracy"].sum()) == (p_star[0] == max(p_star))


GOOD = {"prompt": "read?\n", "beliefs": ["yes", "no"], "p_star": [0.25, 0.75], "belief": "no"}
GOOD |= {"chosen": "the name", "rejected": "the key"}
BAD = [
    (dict(prompt=None), "prompt: is null"),
    (dict(beliefs=["yes"], p_star=[1.0]), "beliefs: is a list of 1, not a list of at least two texts"),
    (dict(beliefs=None), "beliefs: is null"),
    (dict(beliefs=["no", ""]), "beliefs: has an empty text, not a text with words"),
    (dict(beliefs=["no", "no"]), "beliefs: has one of them twice"),
    (dict(beliefs=["no", " "]), "beliefs: has an empty text"),
    (dict(chosen="so", rejected="so "), "the same answer as chosen"),
    (dict(beliefs=["no", "no\nwonder"]), "begins another: change belief_end"),
    (dict(p_star=[0.5, 0.25]), "p_star: sums to 0.75, not to 1"),
    (dict(p_star=[1.0]), "p_star: is a list of 1, not a share for each of 2 beliefs"),
    (dict(p_star=[1.5, -0.5]), "p_star: has float '1.5'"),
    (dict(p_star=[math.nan, 1.0]), "p_star: has float 'nan'"),
    (dict(belief="perhaps"), "belief: is 'perhaps', not one of yes, no"),
    (dict(p_star=[1.0, 0.0]), "which nobody holds"),
    (dict(belief=None), "belief: is missing"),
    (dict(rejected=None), "and rejected belong together"),
    (dict(chosen=""), "chosen: the answer is empty"),
]


@pytest.mark.parametrize(("change", "words"), BAD, ids=lambda value: str(value)[:40])
def test_a_row_that_cannot_be_used_is_named(change, words, tmp_path):
    data = Dataset.from_list([GOOD, {**GOOD, **change}, GOOD])
    with pytest.raises(ValueError) as caught:
        trainer_for(dict(family="gdpo", epsilon=0.2), "8x1", str(tmp_path), data=data)
    assert "row 2 (counted from 1)" in str(caught.value) and words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_its_own_collator_is_refused_another(tmp_path):
    with pytest.raises(ValueError, match="data_collator is not supported"):
        GDPOTrainer(
            small_qwen(len(tokenizer())),
            args=GDPOConfig(**quiet(str(tmp_path))),
            data_collator=list,
            train_dataset=rows("gdpo"),
            processing_class=tokenizer(),
        )


def test_groups_of_questions(tmp_path):
    trainer, _ = trainer_for(dict(family="gdpo", epsilon=0.2, group_column="source"), "8x1", str(tmp_path))
    trainer.train()
    table = trainer.accountant.group_rows()
    assert {row["group"] for row in table} == {"wiki", "forum", "notes"}
    assert sum(row["samples"] for row in table) == NUM_ROWS and sum(
        row["q"] for row in table
    ) == pytest.approx(1)
