"""Pair tables agree with the trainers' own losses, resume, and are read by solve and evaluate."""

import csv
import json
import math
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset
from scipy import stats
from scipy.special import log_expit
from transformers import Qwen3ForSequenceClassification

from conftest import small_qwen
from klball import cli
from klball.adversary.dual import solve_dual
from klball.commands import pairs as commands
from klball.data.rows import to_preferences
from klball.models.loading import load_model
from klball.objectives.pairs import no_preference_radius
from klball.scores import pairs as module
from klball.scores import parts
from klball.scores.accuracy import columns_of, pair_report, value_of, worst_group
from klball.scores.certified import certified_worst_case
from klball.scores.pairs import dpo_table, encode_pairs, likelihoods, read_pairs, reward_table
from klball.training.preference.config import RobustDPOConfig, RobustRewardConfig
from klball.training.preference.dpo import RobustDPOTrainer
from klball.training.preference.reward import RobustRewardTrainer
from small_runs import write_rows
from test_families import pair_rows


@pytest.fixture(scope="module")
def rows():
    return Dataset.from_list(pair_rows(11))


def classifier(vocabulary):
    config = small_qwen(vocabulary).config
    config.num_labels = 1
    torch.manual_seed(3)
    return Qwen3ForSequenceClassification(config).eval()


def settings(tmp_path):
    return dict(output_dir=str(tmp_path / "t"), use_cpu=True, bf16=False, report_to=[], epsilon=0.0)


@pytest.fixture
def dpo(rows, tokenizer, tmp_path):
    """A pair table, and the trainer's own loss of every pair."""
    model, reference = (small_qwen(len(tokenizer), seed) for seed in (0, 1))
    pairs = encode_pairs(rows, tokenizer, "field")
    files = []
    for name, one in (("model", model), ("reference", reference)):
        files.append(tmp_path / f"{name}.parquet")
        likelihoods(one, tokenizer, pairs, files[-1])
    table = dpo_table(pairs, *files, 0.3, tmp_path / "scores.parquet")
    config = RobustDPOConfig(**settings(tmp_path), beta=0.3)
    data = to_preferences(rows)
    trainer = RobustDPOTrainer(model, reference, config, train_dataset=data, processing_class=tokenizer)
    return table, trainer.score_dataset(trainer.train_dataset)


def test_a_dpo_table_has_the_trainers_losses_and_log_probabilities(dpo):
    table, expected = dpo
    assert np.allclose(table["loss"], expected["loss"], rtol=1e-5)
    assert np.allclose(table["chosen_log_prob"], expected["chosen_log_prob"], rtol=1e-5)
    assert table["chosen_tokens"][:] == expected["chosen_tokens"].tolist()
    assert np.allclose(table["loss"], -log_expit(np.array(table["margin"])))
    assert table["accuracy"][:] == [margin > 0 for margin in table["margin"]]
    assert table["group"][:] == [row["field"] for row in pair_rows(11)]


def test_texts_are_tokenised_as_in_training(tokenizer, tmp_path):
    end = tokenizer.eos_token
    rows = [{"prompt": "a path?\n", "chosen": "the name", "rejected": f"no{end}"}] * 2
    data, config = Dataset.from_list(rows), RobustDPOConfig(**settings(tmp_path))
    models = [small_qwen(len(tokenizer), seed) for seed in (0, 1)]
    trainer = RobustDPOTrainer(*models, config, train_dataset=data, processing_class=tokenizer)
    trained, scored = trainer.train_dataset[0], encode_pairs(data, tokenizer).answers
    for name, row in (("chosen_ids", 0), ("rejected_ids", 2)):
        answer = [label for label in scored[row]["labels"] if label != -100]
        assert answer == trained[name] and scored[row]["input_ids"] == trained["prompt_ids"] + answer


@pytest.mark.parametrize("margin", [None, 0.7])
def test_a_reward_table_has_the_trainers_losses(margin, tokenizer, tmp_path):
    rows = Dataset.from_list(pair_rows(11, **({} if margin is None else {"margin": margin})))
    model = classifier(len(tokenizer))
    table = reward_table(model, tokenizer, encode_pairs(rows, tokenizer), output=tmp_path / "scores.parquet")
    config = RobustRewardConfig(**settings(tmp_path))
    trainer = RobustRewardTrainer(
        model, config, train_dataset=to_preferences(rows), processing_class=tokenizer
    )
    expected = trainer.score_dataset(trainer.train_dataset)
    assert np.allclose(table["loss"], expected["loss"], rtol=1e-5)
    assert np.allclose(table["chosen_reward"], expected["chosen"], rtol=1e-4, atol=1e-6)
    logged = trainer.step_metrics(expected)  # of which the margin asked for is no part
    assert np.mean(table["accuracy"]) == logged["accuracy"] > 0
    assert np.mean(table["margin"]) == pytest.approx(logged["margin"], rel=1e-4)


def test_killed_and_run_again_a_reward_table_is_the_same(rows, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "BATCHES_PER_PART", 1)
    model, pairs = classifier(len(tokenizer)), encode_pairs(rows, tokenizer)
    options = dict(tokens_per_batch=100)
    reward_table(model, tokenizer, pairs, output=tmp_path / "whole.parquet", **options)
    scored, original = [], module.rewards_of

    def dies(model, batch, *rest):
        scored.append(len(batch))
        if len(scored) == 3:
            raise KeyboardInterrupt
        return original(model, batch, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(module, "rewards_of", dies)
        with pytest.raises(KeyboardInterrupt):
            reward_table(model, tokenizer, pairs, output=tmp_path / "killed.parquet", **options)
        scored.append(0)  # the third has been: from here on none dies
        reward_table(model, tokenizer, pairs, output=tmp_path / "killed.parquet", **options)
    assert (tmp_path / "killed.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    assert sum(scored[4:]) == 22 - sum(scored[:2])
    with pytest.raises(ValueError, match=r"made from something else \(different: max_length\)"):
        reward_table(model, tokenizer, pairs, output=tmp_path / "whole.parquet", **options, max_length=9)


def test_cut_pairs_are_marked_and_those_cut_to_nothing_have_no_loss(rows, tokenizer, tmp_path):
    pairs = encode_pairs(rows, tokenizer)
    tokens = list(map(len, pairs.answers["input_ids"]))
    limit, rewards = min(tokens[11:]), tmp_path / "rewards.parquet"
    table = reward_table(classifier(len(tokenizer)), tokenizer, pairs, max_length=limit, output=rewards)
    cut = [max(both) > limit for both in zip(tokens[:11], tokens[11:], strict=True)]
    likelihoods(small_qwen(len(tokenizer)), tokenizer, pairs, tmp_path / "own.parquet", max_length=limit)
    own = dpo_table(pairs, *[tmp_path / "own.parquet"] * 2, 0.1, tmp_path / "dpo.parquet")
    assert table["truncated"][:] == own["truncated"][:] == cut and len({*cut}) == 2
    starts = [
        next(k for k, label in enumerate(labels) if label != -100) for labels in pairs.answers["labels"]
    ]
    long = Dataset.from_list(
        [*pair_rows(2), {**pair_rows(1)[0], "prompt": [{"role": "user", "content": "a " * 90}]}]
    )
    pairs = encode_pairs(long, tokenizer)
    model, limit = small_qwen(len(tokenizer)), max(starts) + 1
    for name in ("m", "r"):
        likelihoods(model, tokenizer, pairs, tmp_path / f"{name}.parquet", max_length=limit)
    table = dpo_table(pairs, tmp_path / "m.parquet", tmp_path / "r.parquet", 0.1, tmp_path / "s.parquet")
    assert table["truncated"][:] == [True, True, True]
    assert (
        table["loss"][2] is None
        and table["accuracy"][2] is None
        and table["loss"][0] == pytest.approx(math.log(2))
    )
    assert columns_of(table)[1] == 1


def test_a_reference_that_holds_less_of_an_answer_is_refused(rows, tokenizer, tmp_path):
    """Else the log-ratio would be of other tokens above than below."""
    pairs, model = encode_pairs(rows, tokenizer), small_qwen(len(tokenizer))
    longest = max(map(len, pairs.answers["input_ids"]))
    for name, limit in (("m", None), ("r", longest - 1)):
        likelihoods(model, tokenizer, pairs, tmp_path / f"{name}.parquet", max_length=limit)
    with pytest.raises(ValueError, match=r"of 'chosen .*' the model has scored \d+ tokens and its reference"):
        dpo_table(pairs, tmp_path / "m.parquet", tmp_path / "r.parquet", 0.1, tmp_path / "s.parquet")


@pytest.mark.parametrize(("name", "value"), [("loss", math.nan), ("loss", math.inf), ("margin", math.nan)])
def test_a_pair_whose_numbers_are_not_finite_is_named(name, value):
    columns = {"sample_id": ["a", "b"], "loss": [0.5, 0.7], "margin": [0.4, 0.0], "group": [None, None]}
    columns[name] = [0.5, value]
    with pytest.raises(ValueError, match=f"the pair 'b' has the {name} {value}"):
        columns_of(Dataset.from_dict(columns))


def test_the_report_is_of_everything_the_hardest_groups_and_the_worst_case():
    rng = np.random.default_rng(0)
    margin = rng.normal(0.5, 1, 400)
    group = np.where(np.arange(400) < 40, "few", "many")
    table = Dataset.from_dict(
        {
            "sample_id": [str(i) for i in range(400)],
            "margin": margin,
            "loss": -log_expit(margin),
            "accuracy": margin > 0,
            "group": group,
            "truncated": [False] * 400,
        }
    )
    columns, left_out = columns_of(table)
    report = pair_report(columns)
    loss, right = -log_expit(margin), (margin > 0).astype(float)
    assert left_out == 0
    assert value_of(report, "accuracy", "all") == pytest.approx(right.mean())
    assert value_of(report, "loss", "hardest 1 %") == pytest.approx(np.sort(loss)[-4:].mean())
    assert value_of(report, "loss", "worst 5 %") == pytest.approx(np.sort(loss)[-20:].mean())
    parts = [(row["part"], row["pairs"]) for row in report if row["metric"] == "loss"]
    assert parts[:3] == [("all", 400), ("worst 5 %", 20), ("hardest 1 %", 4)]
    assert value_of(report, "loss", "group few") == pytest.approx(loss[:40].mean())
    assert worst_group(report) == min(right[:40].mean(), right[40:].mean())
    for epsilon in (0.05, 0.5):
        worst = solve_dual(-loss, epsilon=epsilon)
        assert value_of(report, "loss", f"worst ε = {epsilon:g}") == pytest.approx(
            -worst.worst_case, rel=1e-6
        )
        wrong = 1 - value_of(report, "accuracy", f"worst ε = {epsilon:g}")
        base = 1 - right.mean()
        kl = wrong * math.log(wrong / base) + (1 - wrong) * math.log((1 - wrong) / (1 - base))
        assert kl == pytest.approx(epsilon, rel=1e-5)
    of_other = pair_report(columns, {**columns, "loss": -loss})  # whose hardest are these's easiest
    assert value_of(of_other, "loss", "hardest 1 %") == pytest.approx(np.sort(loss)[:4].mean())


def test_what_is_no_pair_table_is_refused(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(Dataset.from_dict({"loss": [1.0]}).data.table, path)
    with pytest.raises(ValueError, match="not a pair table: it lacks sample_id"):
        read_pairs(path)


# --- commands -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scored(root, tmp_path_factory):
    """Two pair tables made on the command line: of a model against another, and of itself against itself."""
    folder = tmp_path_factory.mktemp("scored")
    write_rows(folder / "pairs.jsonl", pair_rows(11))
    small_qwen(load_model("klball/tiny")[0].config.vocab_size, seed=5).save_pretrained(folder / "other")
    load_model("klball/tiny")[1].save_pretrained(folder / "other")
    for name, reference in (("one", "other"), ("same", root / "model")):
        cli.main(
            [
                *("score", "--family", "dpo", "--model_name_or_path", str(root / "model")),
                *(
                    "--reference_model",
                    str(folder / reference),
                    "--dataset_name",
                    str(folder / "pairs.jsonl"),
                ),
                *("--group_column", "field", "--output_dir", str(folder / name)),
            ]
        )
    return folder


def test_solve_reads_a_pair_table(scored, capsys):
    path = str(scored / "one" / "scores.parquet")
    losses = np.array(read_pairs(path)[0]["loss"])
    cli.main(["solve", "--scores", path, "--epsilon", "0.1", "--json", "true"])
    found = json.loads(capsys.readouterr().out)
    assert found["worst_case"] == pytest.approx(-solve_dual(-losses, epsilon=0.1).worst_case)
    assert found["mean_loss"] == pytest.approx(losses.mean()) and found["n"] == 11
    assert [row["loss"] for row in found["top"]] == sorted(losses, reverse=True)[:10]
    cli.main(["solve", "--scores", path])
    assert f"{no_preference_radius(0.2):.3f} at η = 0.2" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    "option", [["--gamma", "1"], ["--gamma", "0"], ["--streamed", "true"], ["--bounds", "0", "1"]]
)
def test_solve_refuses_what_a_pair_table_has_no_use_for(option, scored, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["solve", "--scores", str(scored / "one" / "scores.parquet"), *option])
    assert stop.value.code == 2
    assert f"{option[0]} has no effect on a pair table" in " ".join(capsys.readouterr().err.split())


def test_evaluate_compares_pair_tables(scored, tmp_path, capsys):
    tables = [f"{name}={scored / name / 'scores.parquet'}" for name in ("one", "same")]
    cli.main(["evaluate", "--pair_scores", *tables, "--output_dir", str(tmp_path)])
    with (tmp_path / "pairs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    parts = {row["part"] for row in rows}
    assert {"all", "hardest 1 %", "group a", "group b", "worst ε = 0.05"} <= parts
    same = {(r["metric"], r["part"]): float(r["value"]) for r in rows if r["model"] == "same"}
    assert same["loss", "all"] == pytest.approx(math.log(2)) and same["accuracy", "all"] == 0.5
    said = " ".join(capsys.readouterr().out.split())
    assert "hardest 1 % by one" in said and "on every mix of pairs within ε = 0.05 nats of yours" in said
    accuracy = columns_of(read_pairs(scored / "one" / "scores.parquet")[0])[0]["accuracy"]
    assert "difference to one on the same pairs [95 % interval, paired]" in said
    with (tmp_path / "differences.csv").open(newline="") as file:
        between = {(r["model"], r["against"], r["metric"], r["part"]): r for r in csv.DictReader(file)}
    row = between["same", "one", "accuracy", "all"]
    low, high = stats.ttest_1samp(0.5 - accuracy, 0).confidence_interval()
    assert [float(row[k]) for k in ("difference", "low", "high", "pairs")] == pytest.approx(
        [0.5 - accuracy.mean(), low, high, 11]
    )
    assert not between["same", "one", "loss", "worst 5 %"]["low"]  # of one pair
    (row,) = [
        r for r in rows if (r["model"], r["metric"], r["part"]) == ("one", "accuracy", "worst ε = 0.05")
    ]
    assert float(row["certified"]) == pytest.approx(certified_worst_case(accuracy, 0.05).lower, rel=1e-6)
    cli.main(["solve", "--scores", str(scored / "one" / "scores.parquet")])
    assert certified_worst_case(accuracy, 0.05).sentence("accuracy", "pairs") in " ".join(
        capsys.readouterr().out.split()
    )


def test_a_pair_table_of_another_beta_is_refused(root, scored, capsys):
    with pytest.raises(SystemExit):
        cli.main(
            [
                *("score", "--family", "dpo", "--model_name_or_path", str(root / "model"), "--beta", "0.2"),
                *("--reference_model", str(scored / "other"), "--dataset_name", str(scored / "pairs.jsonl")),
                *("--group_column", "field", "--output_dir", str(scored / "one")),
            ]
        )
    assert "different: beta" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("checkpoint", ["", "checkpoint-10"])
def test_the_reference_of_a_run_is_what_it_began_from(checkpoint, tmp_path, caplog):
    """Also where that is an adapter, whose base is another model."""
    model = tmp_path / checkpoint
    model.mkdir(exist_ok=True)

    def reference(asked=None):
        given = dict(model_name_or_path=str(model), model_revision=None, reference_model=asked, beta=0.1)
        return commands._reference(SimpleNamespace(**given))

    (model / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "base"}))
    assert reference() == ("base", None)
    began = {"model_name_or_path": "sft", "model_revision": "v2"}
    for family, expected in (("dpo", ("sft", "v2")), ("gdpo", ("sft", "v2")), ("sft", ("base", None))):
        (tmp_path / "run.json").write_text(json.dumps({"data": {"family": family}, "model": began}))
        assert reference() == expected
    assert reference("other") == ("other", None) and not caplog.records
    other_beta = {"data": {"family": "dpo"}, "model": began, "training": {"beta": 0.5}}
    (tmp_path / "run.json").write_text(json.dumps(other_beta))
    assert reference() == ("sft", "v2") and "was trained with beta 0.5" in caplog.text


def test_a_whole_model_needs_its_reference_named(root, scored, tmp_path, capsys):
    with pytest.raises(SystemExit):
        cli.main(
            [
                *("score", "--family", "dpo", "--model_name_or_path", str(root / "model")),
                *("--dataset_name", str(scored / "pairs.jsonl"), "--output_dir", str(tmp_path)),
            ]
        )
    assert "--reference_model" in capsys.readouterr().err


def table_of(path, losses, groups):
    """A pair table of a reward model, null where there is no loss."""
    n = len(losses)
    margins = [None if loss is None else -loss for loss in losses]
    columns = {"sample_id": [f"p{i}" for i in range(n)], "loss": losses, "margin": margins, "group": groups}
    accuracy = [None if loss is None else loss < 0 for loss in losses]
    rest = {
        "accuracy": accuracy,
        "truncated": [False] * n,
        "chosen_tokens": [1] * n,
        "rejected_tokens": [1] * n,
    }
    pq.write_table(pa.table({**columns, **rest}), path)
    return path


def test_pairs_that_one_table_has_no_loss_of_leave_for_all(tmp_path, capsys):
    a = table_of(tmp_path / "a.parquet", [0.5, -0.5, 1.0, -1.0, 0.25], ["x"] * 5)
    b = table_of(tmp_path / "b.parquet", [0.5, None, 1.0, -1.0, 0.25], ["x"] * 5)
    cli.main(["evaluate", "--pair_scores", f"a={a}", f"b={b}", "--output_dir", str(tmp_path / "out")])
    said = " ".join(capsys.readouterr().out.split())
    assert "b: 1 pair with an answer that was cut to nothing: no loss, and leave for all" in said
    with (tmp_path / "out" / "pairs.csv").open(newline="") as file:
        found = [row for row in csv.DictReader(file) if (row["metric"], row["part"]) == ("loss", "all")]
    assert [(row["pairs"], float(row["value"])) for row in found] == [("4", 0.1875)] * 2


def test_pair_tables_with_other_groups_are_refused(tmp_path, capsys):
    a = table_of(tmp_path / "a.parquet", [0.5, -0.5], [None, None])
    b = table_of(tmp_path / "b.parquet", [0.5, -0.5], ["x", "y"])
    words = ["evaluate", "--pair_scores", f"a={a}", f"b={b}", "--output_dir", str(tmp_path / "out")]
    with pytest.raises(SystemExit, match="2"):
        cli.main(words)
    assert "the pair tables of 'a' and 'b' have other groups" in capsys.readouterr().err
