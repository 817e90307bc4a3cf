"""`klball solve`, `evaluate` and `compare` on results that klball did not score, as a user runs them."""

import csv
import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import klball
from klball.cli import main
from klball.report.pages.parts import EACH
from test_scores_compared import bernoulli_worst

N = 300


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two models' accuracies and losses, with groups; two seeds of each; own tables; a table of answers."""
    root = tmp_path_factory.mktemp("scores")
    rng = np.random.default_rng(0)
    for model, rate in (("a", 0.6), ("b", 0.8)):
        right = (rng.random(N) < rate).astype(int)
        rows = [{"id": i, "correct": int(x), "lang": "de" if i % 3 else "fr"} for i, x in enumerate(right)]
        (root / f"{model}.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in rows[: N - (model == "b")])
        )
        loss = rng.gamma(2, 1 - rate / 2, N)
        (root / f"{model}.csv").write_text("id,loss\n" + "".join(f"{i},{x}\n" for i, x in enumerate(loss)))
        for seed in range(4):
            (root / f"seeds-{model}").mkdir(exist_ok=True)
            shifted = loss + rng.normal(0, 0.1, N)
            text = "id,loss\n" + "".join(f"{i},{x}\n" for i, x in enumerate(shifted))
            (root / f"seeds-{model}" / f"{seed}.csv").write_text(text)
        own = {
            "sample_id": [str(i) for i in range(N)],
            **dict.fromkeys(("log_likelihood", "sum_log_prob"), -loss),
            **dict.fromkeys(("certainty", "entropy"), 1 + rng.random(N)),
            **{"num_tokens": [1] * N, "num_bytes": [4] * N, "truncated": [False] * N},
        }
        pq.write_table(pa.table(own), root / f"own-{model}.parquet")
        answers = {**own, "log_likelihood": right.astype(float), "finished": [True] * N}
        answers["rewards"] = [[float(x)] for x in right]
        pq.write_table(pa.table(answers), root / f"answers-{model}.parquet")
    return root


def run(capsys, *words):
    capsys.readouterr()
    main([str(word) for word in words])
    return capsys.readouterr().out


def refused(capsys, *words):
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in words])
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and said.startswith("klball: error: ") and said.count("\n") == 1
    return said


def read_csv(path):
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


# --- solve --------------------------------------------------------------------------------------------


def test_solve_takes_a_csv_of_losses(folder, capsys):
    assert "--lower_is_better" in refused(capsys, "solve", "--scores", folder / "a.csv")
    words = ["solve", "--scores", folder / "a.csv", "--lower_is_better", "--epsilon", "0.1", "--json"]
    said = json.loads(run(capsys, *words))
    losses = [float(row["loss"]) for row in read_csv(folder / "a.csv")]
    solution = klball.solve_dual(loss=losses, epsilon=0.1)
    assert said["worst_case"] == pytest.approx(-solution.worst_case) and said["unit"] == "points of loss"
    assert said["mean"] == pytest.approx(np.mean(losses)) and said["n"] == N
    assert said["top"][0]["loss"] == pytest.approx(max(losses)) and said["top"][0]["n_q"] > 1
    capped = json.loads(run(capsys, *words, "--max_weight", "1.2"))
    assert capped["top"][0]["n_q"] == pytest.approx(1.2) and capped["worst_case"] < said["worst_case"]


def test_solve_says_what_the_worst_case_makes_of_groups(folder, capsys):
    words = ["solve", "--scores", folder / "a.jsonl", "--epsilon", "0.1"]
    said = json.loads(run(capsys, *words, "--group", "lang", "--json"))
    assert said["score"] == "correct" and said["unit"] == "accuracy"
    assert said["worst_case"] == pytest.approx(bernoulli_worst(said["mean"], 0.1))
    assert [g["group"] for g in said["groups"]] == ["de", "fr"]
    assert sum(g["q"] for g in said["groups"]) == pytest.approx(1)
    assert all(g["q_f"] == pytest.approx(g["q"] / g["f"]) for g in said["groups"])
    shown = run(capsys, *words, "--group", "lang")
    assert "share f" in shown and "the score is column correct" in shown


def test_solve_takes_sums_of_the_columns_of_its_own_tables(folder, capsys):
    words = ["solve", "--scores", folder / "own-a.parquet", "--json"]
    plain = json.loads(run(capsys, *words))
    chosen = json.loads(run(capsys, *words, "--score", "log_likelihood"))
    assert chosen["worst_case"] == pytest.approx(plain["worst_case"]) and chosen["unit"] == "nats per token"
    both = json.loads(run(capsys, *words, "--score", "log_likelihood + 0.1*certainty"))
    table = pq.read_table(folder / "own-a.parquet")
    total = table["log_likelihood"].to_numpy() + 0.1 * table["certainty"].to_numpy()
    assert both["worst_case"] == pytest.approx(klball.solve_dual(loss=-total, epsilon=0.05).worst_case)
    assert json.loads(run(capsys, *words[:2], folder / "answers-a.parquet", "--json"))["mean_reward"] > 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["a.csv", "--lower_is_better", "--gamma", "1"], "--gamma has no effect on scores from elsewhere"),
        (["a.jsonl", "--streamed"], "klball solve without --streamed"),
        (["own-a.parquet", "--score", "certainty", "--streamed"], "--streamed has no effect"),
        (["own-a.parquet", "--score", "log_likelihood", "--lower_is_better"], "more is better"),
        (["none.csv"], "there is no"),
        (["none.parquet"], "there is no"),
        (["a.csv", "--lower_is_better", "maybe"], "--lower_is_better"),
        (["seeds-a", "--lower_is_better", "--round", "seed"], "no column 'seed' for --round"),
    ],
)
def test_solve_refuses_in_a_line(words, said, folder, capsys):
    assert said in refused(capsys, "solve", "--scores", folder / words[0], *words[1:])


# --- evaluate -----------------------------------------------------------------------------------------


def evaluate(capsys, output, folder, suffix, *words):
    labels = [f"{model}={folder}/{suffix.format(model)}" for model in "ab"]
    said = run(capsys, "evaluate", "--scores", *labels, "--output_dir", output, *words)
    return said, {(row["model"], row["name"]): row for row in read_csv(output / "scores.csv")}


def test_evaluate_reports_means_tails_groups_and_worst_cases(folder, capsys, tmp_path):
    said, rows = evaluate(capsys, tmp_path, folder, "{}.jsonl", "--group", "lang")
    assert f"{N - 1} items; left out for all: 1 missing; higher is better" in said
    read = [json.loads(line) for line in (folder / "b.jsonl").read_text().splitlines()]
    for name, rows_of in (("mean", read), ("group fr", [row for row in read if row["lang"] == "fr"])):
        right = np.array([row["correct"] for row in rows_of])
        own = rows["b", name]
        assert float(own["value"]) == pytest.approx(right.mean()) and int(own["items"]) == len(right)
        assert 0 <= float(own["low"]) < right.mean() < float(own["high"]) <= 1
    difference = rows["b", "mean"]
    gap = float(difference["value"]) - float(rows["a", "mean"]["value"])
    assert float(difference["difference"]) == pytest.approx(gap) and float(difference["difference_low"]) > 0
    assert rows["a", "mean"]["difference"] == "" and rows["a", "cvar_0.01"]["low"] == ""
    profile = {(row["model"], float(row["epsilon"])): row for row in read_csv(tmp_path / "profiles.csv")}
    mean = float(rows["b", "mean"]["value"])
    assert float(profile["b", 0.1]["worst_case"]) == pytest.approx(bernoulli_worst(mean, 0.1))
    assert float(profile["b", 0.0]["worst_case"]) == pytest.approx(mean)
    page = (tmp_path / "report.html").read_text()
    assert (
        "b: the mean accuracy (correct) is" in page
        and "within ε = 0.1 nats" in page
        and "nats per token" not in page
        and EACH in page
    )
    assert (tmp_path / "profile-scores.svg").exists()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.suffix in (".csv", ".json")}
    evaluate(capsys, tmp_path, folder, "{}.jsonl", "--group", "lang")
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.name in before}


def test_losses_are_shown_as_losses(folder, capsys, tmp_path):
    said, rows = evaluate(capsys, tmp_path, folder, "{}.csv", "--lower_is_better", "--reference", "b")
    losses = {
        model: np.array([float(r["loss"]) for r in read_csv(folder / f"{model}.csv")]) for model in "ab"
    }
    assert "lower is better" in said and "loss, points" in said
    page = (tmp_path / "report.html").read_text()
    assert "−loss" not in page and "on the worst 5 % of each (15 rows, descriptive)" in page
    for model, own in losses.items():
        assert float(rows[model, "mean"]["value"]) == pytest.approx(own.mean())
        assert float(rows[model, "cvar_0.01"]["value"]) == pytest.approx(np.sort(own)[-3:].mean())
    hard = np.argsort(losses["b"])[-3:]
    assert float(rows["a", "hardest_1pct"]["value"]) == pytest.approx(losses["a"][hard].mean())
    own = rows["a", "mean"]
    gap = losses["a"].mean() - losses["b"].mean()
    assert float(own["difference"]) == pytest.approx(gap)
    assert float(own["difference_low"]) < gap < float(own["difference_high"])
    worst = [float(r["worst_case"]) for r in read_csv(tmp_path / "profiles.csv") if r["model"] == "a"]
    assert worst == sorted(worst) and worst[0] == pytest.approx(losses["a"].mean())


def test_every_pair_of_models_is_compared(folder, capsys, tmp_path):
    """b and c, of which neither is the reference, too."""
    words = [f"a={folder}/a.csv", f"b={folder}/b.csv", f"c={folder}/a.csv", "--lower_is_better"]
    said = run(capsys, "evaluate", "--scores", *words, "--output_dir", tmp_path)
    first, second = (said[said.index(f"difference to {base}") :] for base in "ab")
    losses = [np.array([float(r["loss"]) for r in read_csv(folder / f"{m}.csv")]).mean() for m in "ab"]
    gap = f"{losses[0] - losses[1]:.4g}".replace("-", "−")
    (line,) = [line for line in second.split("worst-case")[0].splitlines() if line.startswith("│ mean")]
    assert gap in line and "hardest" not in second.split("worst-case")[0] and "hardest" in first


@pytest.mark.slow
def test_own_tables_have_the_report_of_own_tables(folder, capsys, tmp_path):
    words = [f"{model}={folder}/own-{model}.parquet" for model in "ab"]
    said = run(capsys, "evaluate", "--scores", *words, "--output_dir", tmp_path)
    assert "ppl, token" in said and (tmp_path / "metrics.csv").exists()
    _, rows = evaluate(capsys, tmp_path / "c", folder, "own-{}.parquet", "--score", "certainty")
    assert 1 < float(rows["a", "mean"]["value"]) < 2
    _, rows = evaluate(capsys, tmp_path / "d", folder, "answers-{}.parquet")
    assert float(rows["a", "mean"]["value"]) < float(rows["b", "mean"]["value"]) <= 1


@pytest.mark.parametrize(
    ("command", "words", "said"),
    [
        ("evaluate", ["--score", "x"], "--score has no effect without --scores"),
        ("compare", ["--round", "x"], "--round has no effect without --scores"),
        ("evaluate", ["--scores", "a.csv", "--generate"], "--generate has no effect with --scores"),
        ("evaluate", ["--scores", "a.jsonl", "--reference", "z"], "is not among the scores"),
        ("compare", ["--scores", "a.jsonl"], "at least two --scores"),
        ("compare", ["--scores", "x=a.jsonl", "y=b.jsonl", "--max_rows", "9"], "--max_rows has no effect"),
        (
            "compare",
            ["--scores", "x=a.jsonl", "y=b.jsonl", "--gamma", "2"],
            "--gamma has no effect on scores",
        ),
        ("compare", ["--scores", "x=a.jsonl", "y=b.jsonl", "--epsilon", "0"], "--epsilon must be above 0"),
        ("evaluate", ["--scores", "x=bare.csv", "y=bare.csv"], "no column of ids: name it with --id COLUMN"),
    ],
)
def test_what_has_no_effect_or_no_meaning_is_refused(
    command, words, said, folder, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(folder)
    (folder / "bare.csv").write_text("judge\n1\n2\n")
    assert said in refused(capsys, command, *words, "--output_dir", tmp_path / "out")


# --- compare ------------------------------------------------------------------------------------------


def compare(capsys, output, folder, suffix, *words):
    labels = [f"{model}={folder}/{suffix.format(model)}" for model in "ab"]
    words = ("--output_dir", output, "--resamples", "40", *words)
    return run(capsys, "compare", "--scores", *labels, *words).replace("\n", " ")


def test_compare_on_files_alone(folder, capsys, tmp_path):
    said = compare(capsys, tmp_path, folder, "{}.jsonl", "--group", "lang")
    sentence = "b has a higher worst-case accuracy (correct) than a at ε = 0.1"
    assert sentence in said and "rows left out for all: 1 missing" in said
    plain, exact, average = (tmp_path / "verdicts.txt").read_text().splitlines()
    amount = r"\(by 0\.\d+ in accuracy\)"
    assert re.fullmatch(
        rf"b is better than a on average {amount}, for items like these 299\.",
        plain,
    )
    assert exact.startswith(f"ε = 0.1: {sentence}") and average.startswith(
        "On average b has a higher accuracy"
    )
    assert said.index("b is better than a") < said.index("groups, mean") < said.index(sentence)
    (row, other) = read_csv(tmp_path / "asked" / "rounds.csv")
    assert float(row["worst_case"]) == pytest.approx(bernoulli_worst(float(row["mean_score"]), 0.1))
    assert other["round"] == "all" and "beta" not in row and "mean_certainty" not in row
    groups = {(r["model"], r["name"]): r for r in read_csv(tmp_path / "groups.csv")}
    assert float(groups["b", "group fr"]["difference"]) > 0
    page = (tmp_path / "report.html").read_text()
    assert "self-certainty" not in page and "nats per token" not in page and "log-likelihood" not in page
    assert "Prompts are" not in page and "-0.0" not in (tmp_path / "profiles.csv").read_text()


def test_compare_over_rounds_of_a_folder(folder, capsys, tmp_path):
    said = compare(capsys, tmp_path, folder, "seeds-{}", "--lower_is_better", "--epsilon", "0.05")
    assert "every file is a round" in said and f"n = {N} samples × 4 rounds × 2 models" in said
    assert "b has a lower worst-case loss than a at ε = 0.05" in said and "points of loss" in said
    rows = read_csv(tmp_path / "asked" / "rounds.csv")
    assert [row["round"] for row in rows] == ["0", "1", "2", "3"] * 2
    losses = [float(row["loss"]) for row in read_csv(folder / "seeds-b" / "2.csv")]
    worst = klball.solve_dual(loss=losses, epsilon=0.05).worst_case
    assert float(rows[6]["worst_case"]) == pytest.approx(worst)
    paired = next(r for r in read_csv(tmp_path / "asked" / "tests.csv") if r["test"] == "paired_t")
    assert paired["rounds"] == "4" and paired["degenerate"] == ""
    rounds = {m: klball.scores_from(folder / f"seeds-{m}", lower_is_better=True) for m in "ab"}
    again = klball.compare_scores(klball.round_scores(rounds), 0.05, like_these="rounds like these 4")
    assert again.said()[0][1] in (tmp_path / "verdicts.txt").read_text()


def test_own_tables_are_compared_as_own_tables(folder, capsys, tmp_path):
    said = compare(capsys, tmp_path, folder, "own-{}.parquet", "--epsilon", "0.1")
    assert "nats per token" in said and "least γ − γ_min" in said
    assert "beta" in read_csv(tmp_path / "asked" / "rounds.csv")[0]


def test_help_lists_these_options_under_their_own_heading(capsys):
    for command in ("solve", "evaluate", "compare"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        own, _, elsewhere = capsys.readouterr().out.partition("\nscores from elsewhere (")
        assert "--scores" in own and "--lower_is_better" in elsewhere and "--lower_is_better" not in own


def test_what_is_certain_of_a_loss_is_in_its_own_numbers(folder, capsys):
    words = ("solve", "--scores", str(folder / "a.csv"), "--lower_is_better", "--bounds", "0", "30", "--json")
    found = json.loads(run(capsys, *words))
    certified = found["certified"]
    assert certified["bounds"] == [0, 30] and certified["mean"] == pytest.approx(found["mean"])
    assert certified["worst_case"] == pytest.approx(found["worst_case"]) and "lower" not in certified
    assert certified["worst_case"] < certified["upper"] <= 30


def test_a_profile_of_losses_says_what_is_certain_in_their_numbers(folder, capsys, tmp_path):
    words = ("--lower_is_better", "--bounds", "0", "30", "--output_dir", tmp_path / "o")
    said = run(capsys, "evaluate", "--scores", f"a={folder / 'a.csv'}", *words)
    rows = list(csv.DictReader((tmp_path / "o" / "profiles.csv").open()))
    least = {float(r["epsilon"]): float(r["certified"]) for r in rows if r["certified"]}
    worst = {float(r["epsilon"]): float(r["worst_case"]) for r in rows}
    assert all(worst[e] < most <= 30 for e, most in least.items())
    shown = [float(word) for word in said.split("≤ ")[1:] for word in word.split()[:1]]
    assert shown and all(
        most <= x <= most * 1.001 for x, most in zip(shown, sorted(least.values()), strict=True)
    )
    solved = run(capsys, "solve", "--scores", folder / "a.csv", *words[:4])
    assert "loss is at most" in " ".join(solved.split())


def test_a_folder_holds_what_its_last_run_made(folder, capsys, tmp_path):
    """Tables of a run before, of another ε, with groups or with more models, would stand beside the new."""
    compare(capsys, tmp_path, folder, "{}.csv", "--lower_is_better", "--epsilon", "1")
    assert (tmp_path / "wide" / "rounds.csv").exists()
    compare(capsys, tmp_path, folder, "{}.csv", "--lower_is_better", "--epsilon", "0.05")
    assert not (tmp_path / "wide").exists()
    compare(capsys, tmp_path, folder, "{}.jsonl", "--group", "lang")
    assert (tmp_path / "groups.csv").exists()
    compare(capsys, tmp_path, folder, "{}.jsonl", "--score", "correct")
    assert not (tmp_path / "groups.csv").exists()


def test_bounds_of_rewards_are_the_users(folder, capsys):
    """Rewards that are all 0 or 1 here may be lower elsewhere: then they are no accuracies."""
    answers = folder / "answers-b.parquet"
    own = json.loads(run(capsys, "solve", "--scores", answers, "--json", "true"))["certified"]
    wide = json.loads(run(capsys, "solve", "--scores", answers, "--json", "true", "--bounds", -1, 1))[
        "certified"
    ]
    assert (own["bounds"], wide["bounds"]) == ([0, 1], [-1, 1]) and wide["lower"] < own["lower"]
    assert "the reward is at least" in run(capsys, "solve", "--scores", answers, "--bounds", -1, 1)


def test_solve_says_how_many_rows_are_cut(folder, capsys, tmp_path):
    table = pq.read_table(folder / "own-a.parquet")
    place = table.column_names.index("truncated")
    cut = table.set_column(place, "truncated", pa.array([i < 3 for i in range(N)]))
    pq.write_table(cut, tmp_path / "cut.parquet")
    for more in ((), ("--streamed", "true")):
        said = run(capsys, "solve", "--scores", tmp_path / "cut.parquet", *more)
        assert "3 of the rows are cut at their end, and are in it" in said
        assert (
            json.loads(run(capsys, "solve", "--scores", tmp_path / "cut.parquet", "--json", "true", *more))[
                "rows_cut"
            ]
            == 3
        )
        assert "are cut" not in run(capsys, "solve", "--scores", folder / "own-a.parquet", *more)


def test_a_table_of_others_is_streamed_without_what_klball_writes(folder, capsys, tmp_path):
    table = pq.read_table(folder / "own-a.parquet")
    pq.write_table(table.select(["sample_id", "log_likelihood", "certainty"]), tmp_path / "few.parquet")
    said = run(capsys, "solve", "--scores", tmp_path / "few.parquet", "--streamed", "true")
    assert "are cut" not in said and "lambda_" in said


def test_a_table_that_lacks_what_klball_writes_is_read_as_one_from_elsewhere(folder, capsys, tmp_path):
    table = pq.read_table(folder / "own-a.parquet")
    pq.write_table(table.drop_columns(["entropy"]), tmp_path / "part.parquet")
    part, own = (
        json.loads(run(capsys, "solve", "--scores", path, "--json", "true"))["worst_case"]
        for path in (tmp_path / "part.parquet", folder / "own-a.parquet")
    )
    assert part == pytest.approx(own)
