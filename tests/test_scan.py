"""What a scan measures, against closed forms, eager autograd in float64, and the model's own distribution."""

import copy
import csv
import math

import numpy as np
import pytest
import torch
from datasets import Dataset

from conftest import small_qwen
from gradient_grid import NUM_ROWS, rows
from klball.cli import main
from klball.data.rows import encode
from klball.objectives.tokens import OBJECTIVES, plain_objectives
from klball.report.figures import line_styles
from klball.scan.behaviour import own_answers, token_entropy
from klball.scan.forgetting import forgetting
from klball.scan.generation import distinct_n, encoded_prompts, sample_answers, self_bleu
from klball.scan.gradient_norms import head_gradient_norms
from klball.scan.implicit_rewards import (
    gradient_shares,
    gradient_weights,
    implicit_rewards,
    top_share,
)
from klball.scores.scorer import TOKENS
from klball.scores.tables import score
from klball.studies.summary import means

RNG = np.random.default_rng(5)


def random_answers(n=40, scale=1.0):
    return [list(-RNG.exponential(scale, size=RNG.integers(1, 12))) for _ in range(n)]


def test_implicit_rewards_are_those_of_the_definition():
    answers = random_answers(200, 0.3)
    token, sample = implicit_rewards(answers)
    w = np.sort([math.exp(-sum(row)) for row in answers])
    assert sample.top_share == pytest.approx(w[-2:].sum() / w.sum())  # 1 % of 200
    assert math.exp(sample.quantiles[0.5]) == pytest.approx(np.median(w), rel=0.05)
    assert token.quantiles[1.0] == pytest.approx(max(-min(row) for row in answers))


def test_implicit_rewards_beyond_the_range_of_floats():
    (_, sample) = implicit_rewards([[-900.0, -900.0], [-1.0], [-1799.0]])
    assert sample.quantiles[1.0] == 1800
    assert sample.top_share == pytest.approx(1 / (1 + math.exp(-1)))


@pytest.mark.parametrize("objective", plain_objectives())
def test_gradient_weights_are_half_the_l1_norm_in_the_logits(objective):
    logits = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 3, 6, 2, 2])
    log_p = logits.log_softmax(-1).gather(-1, labels[:, None])[:, 0]
    (gradient,) = torch.autograd.grad(OBJECTIVES[objective](log_p[None]).sum() / 5, logits)
    tokens, samples = gradient_weights([log_p.tolist()], objective, np.array([1.7]))
    assert tokens == pytest.approx((1.7 * gradient.abs().sum(-1) / 2).numpy())
    assert samples == pytest.approx([tokens.sum()])


def test_gradient_shares_rise_with_the_radius_and_even_weights_share_evenly():
    shares = gradient_shares(random_answers(300), [0.0, 0.5])
    nll = {s.epsilon: s for s in shares if s.objective == "nll"}
    assert nll[0.5].samples > nll[0.0].samples and nll[0.0].ess == pytest.approx(300)
    assert top_share(np.ones(500)) == pytest.approx(0.01)
    assert math.isnan(top_share(np.zeros(3)))


def test_head_gradient_norms_are_those_of_eager_autograd(tokenizer):
    model = small_qwen(len(tokenizer), tie_word_embeddings=False)
    encoded = encode(rows().select(range(4)), tokenizer)
    norms = head_gradient_norms(model, encoded)
    reference = copy.deepcopy(model).double()
    for k, row in enumerate(encoded):
        labels = torch.tensor(row["labels"])[1:]
        logits = reference(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1][labels != -100]
        log_p = logits.log_softmax(-1).gather(-1, labels[labels != -100][:, None])[:, 0]
        for name, objective in plain_objectives().items():
            loss = objective(log_p[None]).sum() / len(log_p)
            (gradient,) = torch.autograd.grad(loss, reference.lm_head.weight, retain_graph=True)
            assert norms[name][k] == pytest.approx(float(gradient.norm()), rel=1e-4, abs=1e-12)
    assert all(p.requires_grad for p in model.parameters())


def test_forgetting_is_the_token_mean_divergence(tokenizer):
    base, other = small_qwen(len(tokenizer)), small_qwen(len(tokenizer), seed=1)
    encoded = encode(rows(), tokenizer)
    total, count = 0.0, 0
    for row in encoded:
        keep = torch.tensor(row["labels"])[1:] != -100
        p, q = (
            copy.deepcopy(m)
            .double()(input_ids=torch.tensor([row["input_ids"]]))
            .logits[0, :-1][keep]
            .log_softmax(-1)
            for m in (base, other)
        )
        total, count = total + (p.exp() * (p - q)).sum().item(), count + int(keep.sum())
    assert forgetting(base, other, encoded) == pytest.approx(total / count, rel=1e-4)
    assert forgetting(base, copy.deepcopy(base), encoded) == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match="vocabulary"):
        forgetting(base, small_qwen(len(tokenizer) + 8), encoded)
    with torch.no_grad():
        other.model.norm.weight.fill_(math.inf)
    with pytest.raises(ValueError, match="not finite"):
        forgetting(base, other, encoded)


def test_own_answers_follow_the_model(tokenizer):
    """The first token of 1,500 samples against softmax; every answer ends at the end token or the limit."""
    model = small_qwen(len(tokenizer))
    encoded = encode(rows().select(range(1)), tokenizer)
    answers = sample_answers(model, tokenizer, encoded, max_new_tokens=3, samples=1_500, seed=1)
    start = next(i for i, x in enumerate(answers["labels"][0]) if x != -100)
    prompt = encoded[0]["input_ids"][:start]
    assert answers["input_ids"][7][:start] == prompt
    p = model(input_ids=torch.tensor([prompt])).logits[0, -1].softmax(-1).detach().numpy()
    first = np.bincount([row[start] for row in answers["input_ids"]], minlength=len(p)) / 1_500
    likely = np.argsort(-p)[:20]
    assert np.all(np.abs(first - p)[likely] < 5 * np.sqrt(p * (1 - p) / 1_500)[likely] + 1e-12)
    again = sample_answers(model, tokenizer, encoded, max_new_tokens=3, samples=1_500, seed=1)
    assert again["input_ids"][:] == answers["input_ids"][:]
    end = tokenizer.eos_token_id
    assert all(end not in row[start:-1] and len(row) - start <= 3 for row in answers["input_ids"])


def test_the_models_own_generation_settings_do_not_cut_anything_off(tokenizer):
    """Settings that `generate` would take over where ours are silent."""
    model, odd = small_qwen(len(tokenizer)), small_qwen(len(tokenizer))
    own = odd.generation_config
    own.min_p, own.min_new_tokens, own.no_repeat_ngram_size, own.typical_p = 0.5, 8, 1, 0.2
    encoded = encode(rows(), tokenizer)
    plain, same = (sample_answers(m, tokenizer, encoded, max_new_tokens=8) for m in (model, odd))
    assert plain["input_ids"][:] == same["input_ids"][:]
    assert odd.generation_config is own


def test_text_of_an_answer_ends_where_the_answer_does(tokenizer):
    """An end token that is no special token must not be repeated as padding."""
    model = small_qwen(len(tokenizer))
    end = tokenizer(" the")["input_ids"][0]
    encoded = encode(rows(), tokenizer)
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.eos_token = None
    with torch.no_grad():  # ends about every other answer early
        model.lm_head.weight[end] *= 4
    model.generation_config.eos_token_id = [end]
    answers = sample_answers(model, tokenizer, encoded, max_new_tokens=16)
    lengths = set()
    for row in answers:
        ids = [label for label in row["labels"] if label != -100]
        lengths.add(len(ids))
        assert row["text"] == tokenizer.decode(ids, skip_special_tokens=True)
    assert len(lengths) > 1


def test_prompts_without_room_or_answer_are_left_out_aloud(tokenizer, caplog):
    model = small_qwen(len(tokenizer), max_position_embeddings=20)
    encoded = encode(rows(), tokenizer)
    starts = [next(i for i, x in enumerate(labels) if x != -100) for labels in encoded["labels"]]
    room = 20 - sorted(starts)[10]
    kept = encoded_prompts(model, tokenizer, rows(), room)
    assert kept["sample_id"] == [
        i for i, s in zip(encoded["sample_id"], starts, strict=True) if s + room <= 20
    ]
    assert f"{NUM_ROWS - len(kept)} of {NUM_ROWS} prompts are left out" in caplog.text
    with pytest.raises(ValueError, match="no prompt leaves room"):
        encoded_prompts(model, tokenizer, rows(), 20)
    silent = Dataset.from_list([{"input_ids": [5, 6, 7], "labels": [-100] * 3}])
    with pytest.raises(ValueError, match="no prompt leaves room"):
        encoded_prompts(small_qwen(len(tokenizer)), tokenizer, silent, 4)


@pytest.mark.parametrize("change", ["model", "prompts", "max_new_tokens", "samples"])
def test_kept_answers_are_read_again_only_if_nothing_changed(change, tokenizer, tmp_path):
    prompts = encode(rows().select(range(3)), tokenizer)
    asked = dict(model=small_qwen(len(tokenizer)), prompts=prompts, max_new_tokens=4, samples=2)
    other = dict(
        model=small_qwen(len(tokenizer), seed=1),
        prompts=encode(rows().select(range(3, 6)), tokenizer),
        max_new_tokens=5,
        samples=3,
    )
    kept = dict(tokenizer=tokenizer, output=tmp_path / "answers.parquet")
    first = own_answers(**asked, **kept)
    written = kept["output"].stat().st_mtime_ns
    assert own_answers(**asked, **kept).to_list() == first.to_list()
    assert kept["output"].stat().st_mtime_ns == written
    changed = {**asked, change: other[change]}
    assert own_answers(**changed, **kept).to_list() == own_answers(**changed, tokenizer=tokenizer).to_list()
    assert kept["output"].stat().st_mtime_ns > written


def test_left_padding_does_not_change_what_follows_a_prompt(tokenizer):
    """The same prompt beside longer ones: nearly greedy sampling from a very sharp model must agree."""
    model = small_qwen(len(tokenizer), initializer_range=2.0)
    encoded = encode(rows().select(range(6)), tokenizer)
    together = sample_answers(model, tokenizer, encoded, max_new_tokens=4)
    assert together["sample_id"][:] == encoded["sample_id"][:]
    for i, row in enumerate(together):
        start = next(k for k, x in enumerate(row["labels"]) if x != -100)
        assert row["input_ids"][:start] == encoded[i]["input_ids"][:start]
        logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0]
        log_p = logits.log_softmax(-1)[range(start - 1, len(row["input_ids"]) - 1), row["input_ids"][start:]]
        assert float(log_p.mean()) > -3  # a wrong position or mask would make its own words improbable


def test_token_entropy_is_the_eager_mean(tokenizer):
    model = small_qwen(len(tokenizer))
    encoded = encode(rows(), tokenizer)
    values = []
    for row in encoded:
        keep = torch.tensor(row["labels"])[1:] != -100
        log_p = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1][keep].log_softmax(-1)
        values += (-(log_p.exp() * log_p).sum(-1)).tolist()
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    model.train()  # is no part of it, and stays
    assert token_entropy(model, encoded) == pytest.approx(np.mean(values), rel=1e-4) and model.training


def test_diversity():
    assert distinct_n(["a b a b", "a b"], 1) == pytest.approx(2 / 6)
    assert distinct_n(["a b a b", "a b"], 2) == pytest.approx(2 / 4)
    assert distinct_n([], 1) == 0
    same, different = "one two three four five", "six seven eight nine ten"
    assert self_bleu([[same, same, same]]) == pytest.approx(100)
    assert self_bleu([[same, different]]) < 5
    assert self_bleu([["", " "]]) == 100 and self_bleu([["", same]]) == 0
    with pytest.raises(ValueError, match="two samples"):
        self_bleu([["a"], ["b"]])


def test_score_tables_with_token_log_probs_add_up(tokenizer, tmp_path):
    model = small_qwen(len(tokenizer))
    table = score(model, tokenizer, rows(), output=tmp_path / "t.parquet", token_log_probs=True)
    for each, total, count in zip(table[TOKENS], table["sum_log_prob"], table["num_tokens"], strict=True):
        assert len(each) == count and sum(each) == pytest.approx(total, rel=1e-5)
    with pytest.raises(ValueError, match="columns"):  # not the same table as without the column
        score(model, tokenizer, rows(), output=tmp_path / "t.parquet")


def test_summary_is_mean_and_deviation_over_seeds():
    finals = [{"arm": "SFT", "seed": seed, "task_nll": seed, "gain": seed + 1.0} for seed in range(3)]
    (row,) = means(finals, ("arm",), ("task_nll", "gain"))
    assert row["task_nll"] == 1 and row["gain"] == 2 and row["gain_sd"] == pytest.approx(1)


def test_scan_command(tmp_path, capsys):
    rows().to_json(tmp_path / "data.jsonl")
    command = ["scan", "--dataset_name", str(tmp_path / "data.jsonl"), "--max_rows", "15"]
    command += ["--ood_names", str(tmp_path / "data.jsonl"), "--gradient_rows", "3", "--own_prompts", "3"]
    command += ["--own_samples", "2", "--own_tokens", "8", "--models", "klball/tiny"]
    command += ["--output_dir", str(tmp_path / "scan")]
    main(command)
    tables = {path.name: path.read_bytes() for path in (tmp_path / "scan").glob("*.csv")}
    assert set(tables) == {
        *("advice.csv", "dominating.csv", "gradient_norms.csv", "gradient_shares.csv"),
        *("implicit_rewards.csv", "models.csv", "profile.csv"),
    }
    with (tmp_path / "scan" / "models.csv").open() as file:
        base, same = csv.DictReader(file)
    assert float(same["gain"]) == 0 and abs(float(same["forgetting"])) < 1e-6
    assert base["self_bleu"] == same["self_bleu"]
    main(command)
    assert {path.name: path.read_bytes() for path in (tmp_path / "scan").glob("*.csv")} == tables
    assert not list(tmp_path.glob("*.parquet"))  # nothing beside the user's data
    assert float(same[f"nll_change_{tmp_path.name}-data.jsonl"]) == 0
    with pytest.raises(SystemExit) as caught:
        main(["1" if word == "2" else word for word in command])
    assert caught.value.code == 2 and "own_samples must be at least 2" in capsys.readouterr().err
    assert list((tmp_path / "scan" / "figures").glob("gain-*"))
    main([*command[:5], "--gradient_rows", "3", "--output_dir", str(tmp_path / "scan")])
    assert {path.name for path in (tmp_path / "scan").glob("*.csv")} == set(tables) - {"models.csv"}
    assert not list((tmp_path / "scan" / "figures").glob("gain-*"))


def test_scan_against_another_model_with_rows_too_long_to_answer(tokenizer, tmp_path, capsys):
    """Local files everywhere, a second model of other weights, and rows cut until no answer is left."""
    long = [
        {"prompt": "read " * 40 * (i % 3) + str(i) + "\n", "completion": f"the value {i}"} for i in range(12)
    ]
    Dataset.from_list(long).to_json(tmp_path / "data.jsonl")
    for seed in (0, 1):
        model = small_qwen(len(tokenizer), seed=seed, max_position_embeddings=64)
        model.save_pretrained(tmp_path / f"model-{seed}")
        tokenizer.save_pretrained(tmp_path / f"model-{seed}")
    command = ["scan", "--dataset_name", str(tmp_path / "data.jsonl"), "--gradient_rows", "12"]
    command += ["--ood_names", str(tmp_path / "data.jsonl"), "--own_prompts", "6", "--own_samples", "2"]
    command += ["--test_name", str(tmp_path / "data.jsonl"), "--own_tokens", "4"]
    command += ["--model_name_or_path", str(tmp_path / "model-0"), "--output_dir", str(tmp_path / "scan")]
    command += ["--models", str(tmp_path / "model-1")]
    main(command)
    with (tmp_path / "scan" / "models.csv").open() as file:
        _, other = csv.DictReader(file)
    assert float(other["forgetting"]) > 0.1
    with (tmp_path / "scan" / "gradient_norms.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 8
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        cut = [word.replace(str(tmp_path / "scan"), str(tmp_path / "cut")) for word in command]
        main([*cut, "--max_length", "1"])
    assert caught.value.code == 2 and "no row has an answer token" in capsys.readouterr().err


def test_eight_lines_of_a_figure_differ():
    styles = [str(style) for style, _ in zip(line_styles(), range(16), strict=False)]
    assert len(set(styles)) == 16
