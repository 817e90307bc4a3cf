"""A ball over groups: its problem by enumeration, its gradient, the worst group, and what a run leaves."""

import csv
import math

import pytest
import torch

from gradient_grid import rows, tokenizer, trainer_for
from klball import CVaR, Empirical, KLBall, RobustSFTConfig, solve_dual
from klball.data.rows import encode
from ledgers import accountant_of
from small_runs import train, write_rows
from test_trainer import eager_scores, full_batch_gradient, small_gpt2

TINY = ("--model_name_or_path", "klball/tiny")


def random_ledger(seed: int, weighted: bool):
    generator = torch.Generator().manual_seed(seed)
    n = int(torch.randint(5, 40, (1,), generator=generator))
    g = torch.randn(n, dtype=torch.float64, generator=generator) - 5
    base = torch.rand(n, dtype=torch.float64, generator=generator) + 0.1 if weighted else None
    groups = [f"g{int(k)}" for k in torch.randint(1 + n // 4, (n,), generator=generator)]
    return g, base, groups


def means_by_hand(g, base, groups):
    f = (torch.ones_like(g) if base is None else base).tolist()
    names = list(dict.fromkeys(groups))
    mass = {k: sum(w for w, group in zip(f, groups, strict=True) if group == k) for k in names}
    score = {
        k: sum(w * s for w, s, group in zip(f, g.tolist(), groups, strict=True) if group == k) / mass[k]
        for k in names
    }
    share = torch.tensor([mass[k] / sum(f) for k in names], dtype=torch.float64)
    return names, torch.tensor([score[k] for k in names], dtype=torch.float64), share


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_groups_are_weighed_by_their_means(seed, weighted):
    g, base, groups = random_ledger(seed, weighted)
    names, score, share = means_by_hand(g, base, groups)
    accountant = accountant_of(KLBall(0.2), g, None, base, groups)
    expected = solve_dual(score, epsilon=0.2, base_weights=share).weights
    density = accountant.density(torch.arange(len(g)), {"score": g + 5})  # a fresh score decides nothing
    wanted = [float(expected[names.index(k)] / share[names.index(k)]) for k in groups]
    assert density.tolist() == pytest.approx(wanted, rel=1e-9)
    assert float(accountant.weights().sum()) == pytest.approx(1)
    table = {row["group"]: row for row in accountant.group_rows()}
    assert sum(row["q"] for row in table.values()) == pytest.approx(1)
    assert [table[k]["score"] for k in names] == pytest.approx(score.tolist())
    assert [table[k]["samples"] for k in names] == [groups.count(k) for k in names]


def test_the_worst_group_has_all_weight_from_minus_log_of_its_share_on():
    g = torch.tensor([-1.0] * 9 + [-3.0], dtype=torch.float64)
    groups = ["many"] * 9 + ["few"]
    for slack, all_of_it in ((1e-6, True), (-1e-2, False)):
        accountant = accountant_of(KLBall(-math.log(0.1) + slack), g, groups=groups)
        few = accountant.group_rows()[1]
        assert (few["q"] == 1) == all_of_it and 0.99 < few["q"] <= 1
        assert few["density"] == pytest.approx(few["q"] / 0.1)


def test_what_has_no_entry_yet_weighs_one():
    accountant = accountant_of(KLBall(0.5), torch.tensor([-1.0, -2.0, -3.0, -9.0]).double())
    accountant.ledger.known = torch.tensor([True, True, True, False])
    accountant.solution = None
    weights = solve_dual([-1.0, -2.0, -3.0], epsilon=0.5).weights
    density = accountant.density(torch.arange(4), {"score": torch.zeros(4, dtype=torch.float64)})
    assert density.tolist() == pytest.approx([*(3 * weights).tolist(), 1.0])
    assert float(accountant.weights().sum()) == pytest.approx(1)
    accountant.record(torch.tensor([3]), {"score": torch.tensor([-9.0]).double()})
    assert accountant.ledger.complete
    accountant.ledger.known[:] = False
    accountant.begin_step()
    assert accountant.density(torch.arange(4), {"score": torch.zeros(4).double()}).tolist() == [1.0] * 4


@pytest.mark.parametrize("ball", [KLBall(0.3), CVaR(0.5), KLBall(0.3, direction="optimistic")], ids=str)
def test_gradient_is_that_of_the_weighted_groups(ball, tmp_path):
    data = rows()
    ours = full_batch_gradient(ball, tokenizer(), tmp_path, factory=small_gpt2, group_column="source")
    model = small_gpt2(len(tokenizer())).double()
    g, _ = eager_scores(model, encode(data, tokenizer()))
    names, score, share = means_by_hand(g.detach(), None, data["source"])
    q = ball.solve({"score": score}, share).weights
    density = torch.tensor([float(q[names.index(k)] / share[names.index(k)]) for k in data["source"]])
    loss = -(density.double() * g).mean()
    expected = torch.cat([p.flatten() for p in torch.autograd.grad(loss, list(model.parameters()))])
    assert (ours - expected).norm() <= 1e-5 * expected.norm()


def test_the_radius_grows_from_nothing(tmp_path):
    case = dict(objective="nll", ambiguity=KLBall(0.5), epsilon_warmup=0.5)
    trainer, _ = trainer_for(case, "4x1", str(tmp_path))
    trainer.train()
    history = trainer.accountant.history
    steps = math.ceil(0.5 * len(history))
    assert len(history) == 6
    wanted = [0.5 * min(1, step / steps) for step in range(len(history))]
    assert [row["kl"] for row in history] == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (dict(epsilon_warmup=0.1, reweight="static"), "needs reweight='live'"),
        (dict(epsilon_warmup=0.1, epsilon=0.0), "a radius above 0"),
        (dict(epsilon_warmup=1.5), "from 0 to 1"),
    ],
)
def test_a_warmup_without_effect_is_refused(settings, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        RobustSFTConfig(output_dir=str(tmp_path), bf16=False, use_cpu=True, **settings)


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [("nothing", None, "no column 'nothing'"), ("source", None, "row 3"), ("source", 0.5, "row 3")],
)
def test_a_group_that_is_none_is_refused_in_one_line(column, value, words, tmp_path):
    data = rows().to_list()
    if column == "source":
        for i, row in enumerate(data):
            row["source"] = value if i == 2 else (1.5 if isinstance(value, float) else "a")
        words = "row 1" if isinstance(value, float) else words
    from datasets import Dataset

    case = dict(objective="nll", ambiguity=KLBall(0.1), group_column=column)
    with pytest.raises(ValueError, match=words):
        trainer_for(case, "8x1", str(tmp_path), data=Dataset.from_list(data))


def test_groups_need_a_ball(tmp_path):
    case = dict(objective="nll", ambiguity=Empirical(), group_column="source")
    with pytest.raises(ValueError, match="group_column has no effect"):
        trainer_for(case, "8x1", str(tmp_path))


def test_the_command_leaves_a_table_of_groups(tmp_path, capsys):
    data = [
        {"question": f"q {i}", "answer": "the value " + "of it " * (i % 4), "source": "ab"[i % 3 == 0]}
        for i in range(12)
    ]
    write_rows(tmp_path / "rows.jsonl", data)
    train(tmp_path, tmp_path / "out", "--group_column", "source", "--epsilon", "0.1", *TINY)
    table = list(csv.DictReader((tmp_path / "out" / "groups.csv").open()))
    assert {row["group"]: int(row["samples"]) for row in table} == {"a": 8, "b": 4}
    assert sum(float(row["q"]) for row in table) == pytest.approx(1)
    assert "groups" in capsys.readouterr().out
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Groups as the adversary weighs them" in page and "The group" in page and "the value" in page


def test_a_common_shift_asks_for_no_rescoring_of_groups():
    g = torch.tensor([-1.0, -1.1, -1.3, -2.0] * 8, dtype=torch.float64)
    for groups, expected in ((None, True), (["a", "b"] * 16, False)):
        accountant = accountant_of(KLBall(0.01), g, groups=groups)
        for step in range(6):
            accountant.begin_step()
            accountant.record(torch.arange(4 * step, 4 * step + 4), {"score": g[:4] + 0.5 * step})
        assert accountant.ledger.drift.demands_rescoring(60, groups is not None) is expected
