"""Files of lm-evaluation-harness and Inspect: small ones written here, and real ones made by the tools."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

import klball
from klball.models.loading import TINY, load_model, model_path

TIME = "2026-01-02T03-04-05.678901"


def sample(doc_id, filter_name="none", **metrics):
    """A row of a samples file, as lm-eval 0.4 writes it."""
    return {
        "doc_id": doc_id,
        "doc": {"question": f"{doc_id} + 1?", "subject": "even" if doc_id % 2 == 0 else "odd"},
        "target": "1",
        "arguments": {"gen_args_0": {"arg_0": f"Q: {doc_id} + 1?", "arg_1": " 1"}},
        "resps": [["text"]],
        "filtered_resps": ["text"],
        "filter": filter_name,
        "metrics": list(metrics),
        "doc_hash": f"{doc_id:064x}"[::-1],
        **metrics,
    }


def choices(doc_id, *log_probs, right=1):
    row = sample(doc_id, acc=float(np.argmax(log_probs) == right))
    return {**row, "target": str(right), "resps": [[[str(x), "False"]] for x in log_probs]}


def write_samples(folder, task, rows, time=TIME, higher=None, model="m"):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"samples_{task}_{time}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    totals = {"results": {}, "configs": {}, "higher_is_better": {task: higher or {}}, "model_name": model}
    (folder / f"results_{time}.json").write_text(json.dumps(totals))
    return path


def test_filters_are_columns_and_the_first_is_taken_and_said(tmp_path):
    rows = [sample(k, name, exact_match=float(k < 2)) for name in ("strict", "loose") for k in range(3)]
    rows[-1]["exact_match"] = 1.0
    path = write_samples(tmp_path, "sums", rows)
    scores = klball.scores_from(path)
    assert scores.values.tolist() == [1, 1, 0] and scores.name == "exact_match,strict"
    assert "one of exact_match,strict, exact_match,loose (--score)" in scores.notes[0]
    assert klball.scores_from(path, score="exact_match,loose").values.tolist() == [1, 1, 1]
    both = klball.scores_from(path, score="0.5*'exact_match,strict' + 0.5*'exact_match,loose'")
    assert both.values.tolist() == [1, 1, 0.5] and both.sample_ids == scores.sample_ids
    assert klball.scores_from(path, group="doc.subject").groups == ["even", "odd", "even"]
    assert scores.texts_of({scores.sample_ids[1]}) == {
        scores.sample_ids[1]: {"prompt": "Q: 1 + 1?", "answer": "1"}
    }


def test_log_likelihoods_of_choices(tmp_path):
    path = write_samples(
        tmp_path, "mc", [choices(0, -1.0, -2.0, -3.0), choices(1, -9.0, -0.5, -4.0, right=2)]
    )
    assert klball.scores_from(path).values.tolist() == [0, 0]
    likelihood = klball.scores_from(path, score="log_likelihood")
    assert likelihood.values.tolist() == [-2.0, -4.0]
    assert (likelihood.measure.noun, likelihood.measure.unit) == ("log-likelihood", "nats")
    relative = klball.scores_from(path, score="choice_log_prob").values
    odds = np.exp([[-1.0, -2, -3], [-9, -0.5, -4]])
    np.testing.assert_allclose(relative, np.log([odds[0, 1] / odds[0].sum(), odds[1, 2] / odds[1].sum()]))


def test_choices_that_were_also_scored_without_their_question(tmp_path):
    """acc_mutual_info: lm-eval appends log P(choice) to log P(choice | question)."""

    def row(doc_id, *log_probs):
        of_row = {**choices(doc_id, *log_probs), "acc": float(log_probs[1] > log_probs[0])}
        return {**of_row, "metrics": ["acc", "acc_mutual_info"], "acc_mutual_info": 1.0}

    path = write_samples(tmp_path, "mi", [row(0, -3.0, -2.0, -9.0, -1.0), row(1, -1.0, -4.0, -0.5, -7.0)])
    assert klball.scores_from(path, score="log_likelihood").values.tolist() == [-2.0, -4.0]
    assert klball.scores_from(path, score="num_choices").values.tolist() == [2, 2]
    assert klball.scores_from(path, score="choice").values.tolist() == [1, 0]
    relative = klball.scores_from(path, score="choice_log_prob").values
    np.testing.assert_allclose(relative, -np.log1p(np.exp([-1.0, 3.0])))
    assert klball.scores_from(path, score="acc_mutual_info").measure.unit == "accuracy"
    path = write_samples(tmp_path / "odd", "mi", [row(0, -3.0, -2.0, -9.0)])
    with pytest.raises(ValueError, match=r"row 1 \(counted from 1\): acc_mutual_info needs every choice"):
        klball.scores_from(path)


def test_what_lm_eval_calls_a_perplexity_of_a_sample_is_a_log_likelihood(tmp_path):
    rows = [{**sample(k, perplexity=-2.0 - k, acc=1), "resps": [[[-2.0 - k, True]]]} for k in range(2)]
    path = write_samples(tmp_path, "ll", rows, higher={"perplexity": False, "acc": True})
    assert klball.scores_from(path, score="log_likelihood").values.tolist() == [-2, -3]
    with pytest.raises(ValueError, match="no column 'perplexity'"):
        klball.scores_from(path, score="perplexity")
    whole = [{**sample(0, word_perplexity=[-12.0, 3], byte_perplexity=[-12.0, 16]), "resps": [["-12.0"]]}]
    path = write_samples(tmp_path, "roll", whole, higher={"word_perplexity": False})
    assert klball.scores_from(path).values.tolist() == [-12.0]
    per_byte = klball.scores_from(path, score="log_likelihood_per_byte")
    assert per_byte.values.tolist() == [-0.75] and per_byte.measure.unit == "nats per byte"


def test_the_results_beside_them_say_which_metric_is_better_lower(tmp_path):
    path = write_samples(tmp_path, "t", [sample(0, bias=0.5), sample(1, bias=0.25)], higher={"bias": False})
    scores = klball.scores_from(path)
    assert scores.values.tolist() == [-0.5, -0.25] and scores.measure.loss
    other = write_samples(tmp_path / "x", "t", [sample(0, bias=0.5)], higher={"bias": True})
    assert klball.scores_from(other).values.tolist() == [0.5]
    unsaid = write_samples(tmp_path / "y", "t", [sample(0, bias=0.5)], higher={"bias": None})
    assert klball.scores_from(unsaid).values.tolist() == [0.5]  # of a metric whose task says nothing
    for score, flag in (("bias", False), ("0.5*bias", None), ("-bias", True)):
        with pytest.raises(ValueError, match="lower_is_better"):
            klball.scores_from(path, score=score, lower_is_better=flag)


def test_a_folder_is_one_model_with_its_tasks_and_runs(tmp_path):
    for task in ("one", "two"):
        write_samples(tmp_path / "m", task, [sample(k, acc=float(k)) for k in range(2)])
    both = klball.scores_from(tmp_path)
    assert both.sample_ids[0].startswith("one/0-") and both.groups == ["one", "one", "two", "two"]
    assert both.round_names == ["all"]
    by_task = klball.scores_from(tmp_path, round="task")
    assert by_task.round_names == ["one", "two"] and len(set(by_task.sample_ids)) == 2
    write_samples(tmp_path / "m", "one", [sample(k, acc=1.0) for k in range(2)], TIME.replace("05.", "06."))
    (tmp_path / "m" / f"samples_two_{TIME}.jsonl").unlink()
    runs = klball.scores_from(tmp_path)
    assert runs.round_names == ["run 1", "run 2"] and runs.per_item().values.tolist() == [0.5, 1.0]


def test_tasks_with_other_metrics_and_other_rounds_are_one_accuracy(tmp_path):
    """Accuracies of tasks that have no metric in common; two runs of one and one of the other."""
    for k, time in enumerate((TIME, TIME.replace("05.", "06."))):
        write_samples(tmp_path, "one", [sample(i, acc=float(i <= k)) for i in range(3)], time)
    write_samples(tmp_path, "two", [sample(i, exact_match=float(i)) for i in range(2)])
    both = klball.scores_from(tmp_path)
    assert both.values.tolist() == [1, 0.5, 0, 0, 1] and both.groups == ["one"] * 3 + ["two"] * 2
    assert both.name == "accuracy" == both.measure.noun and both.round_names == ["all"]
    assert "each task's own accuracy (one: acc; two: exact_match)" in both.notes[0]
    assert both.notes[-1] == "rounds differ by task (one: 2; two: 1): a score is the mean over its task's"
    assert klball.scores_from(tmp_path, score="acc").round_names == ["run 1", "run 2"]
    assert klball.round_scores({"a": both, "b": both}).log_likelihood.shape == (2, 1, 5)
    write_samples(tmp_path, "one", [sample(i, acc=1.0) for i in range(2)], TIME.replace("05.", "06."))
    with pytest.raises(ValueError, match=r"share 2 of their 3 items, .* keep the runs that you mean"):
        klball.scores_from(tmp_path)  # a trial of a few documents is no round


def test_a_column_in_quotes_is_that_column(tmp_path):
    """With its direction and its unit."""
    rows = [sample(k, name, wer=k / 2, exact_match=1.0) for name in ("x", "y") for k in range(2)]
    path = write_samples(tmp_path, "t", rows, higher={"wer": False})
    for score in ("wer,x", "'wer,x'", " 'wer,x'", "1*'wer,x'"):
        assert klball.scores_from(path, score=score).values.tolist() == [0, -0.5]
        assert klball.scores_from(path, score=score).measure.loss
    assert klball.scores_from(path, score="'exact_match,y'").measure.unit == "accuracy"


def test_folders_of_several_models_and_of_no_common_metric_are_refused(tmp_path):
    write_samples(tmp_path / "a", "t", [sample(0, acc=1.0)], model="a")
    write_samples(tmp_path / "b", "t", [sample(0, acc=1.0)], model="org/b")
    with pytest.raises(ValueError, match=rf"2 models \(a, org/b\).*--scores a={tmp_path}/a b={tmp_path}/b"):
        klball.scores_from(tmp_path)
    write_samples(tmp_path / "a", "u", [sample(0, f1=0.5)], model="a")
    with pytest.raises(ValueError, match=r"no score in common \(t: acc; u: f1\)"):
        klball.scores_from(tmp_path / "a")
    chosen = klball.scores_from(tmp_path / "a", score="f1")
    assert chosen.values.tolist() == [0.5] and chosen.notes == ("tasks without f1, left out: t",)
    assert repr(chosen) == "Scores(1 items: f1, points)"


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([sample(0, acc=1.0), sample(0, acc=1.0)], "row 2 .* document 0-00000000 again"),
        ([sample(0, acc=1.0), {"doc_id": 1}], "row 2 .* no row of lm-eval's samples"),
        ([sample(0, acc=1.0), sample(1, acc=None)], "row 2 .* acc: the score is missing"),
        ([sample(0, acc=1.0), sample(1, acc="yes")], "row 2 .* acc: the text 'yes' is no number"),
        ([sample(0)], "no metric that is a number"),
    ],
)
def test_rows_that_lm_eval_would_not_write(rows, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        klball.scores_from(write_samples(tmp_path, "t", rows))


# --- Inspect ------------------------------------------------------------------------------------------


def inspect_log(samples, status="success"):
    """A log in JSON, as Inspect 0.3 writes it."""
    about = {
        "created": "2026-01-02T03:04:05+00:00",
        "task": "sums",
        "dataset": {},
        "model": "org/m",
        "config": {},
    }
    rows = [
        {"id": i, "epoch": e, "input": f"{i}?", "target": "1", "messages": [], "output": {}, "scores": scores}
        | {"metadata": {"kind": "even" if i % 2 == 0 else "odd"}}
        for i, e, scores in samples
    ]
    return json.dumps({"version": 2, "status": status, "eval": about, "samples": rows}, indent=2)


def test_without_inspect_ai_a_line_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "inspect_ai", None)
    monkeypatch.setitem(sys.modules, "inspect_ai.log", None)
    for name, content in (("x.json", inspect_log([]).encode()), ("x.eval", b"PK\3\4 an archive")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=r"not installed: pip install 'klball\[inspect\]'"):
            klball.scores_from(tmp_path / name)


def test_samples_without_a_score_leave_by_the_ids_asked_for(tmp_path):
    """A sample that lacks a score in one model's log and its like in the other's are one item, not two."""
    pytest.importorskip("inspect_ai.log", reason="needs klball[inspect]")
    match = {"match": {"value": "C"}}
    for model, lacking in (("a", 1), ("b", 2)):
        found = [(i, 1, {} if i == lacking else match) for i in range(5)]
        (tmp_path / f"{model}.json").write_text(inspect_log(found))
    for column, items in ((None, ["sums/0", "sums/3", "sums/4"]), ("id", ["0", "3", "4"])):
        models = {m: klball.scores_from(tmp_path / f"{m}.json", id=column) for m in "ab"}
        scores = klball.round_scores(models)
        assert [i.partition("-")[0] for i in scores.sample_ids] == items
        assert {why: count for why, count in scores.left_out.items() if count} == {"unscored": 2}


def test_scorers_and_epochs_of_an_inspect_log(tmp_path):
    pytest.importorskip("inspect_ai.log", reason="needs klball[inspect]")
    found = [
        *(
            (i, e, {"match": {"value": "CIPN"[i]}, "two": {"value": {"a": i + e, "b": True}}})
            for i in range(4)
            for e in (1, 2)
        ),
        (4, 1, {}),
    ]
    (tmp_path / "log.json").write_text(inspect_log(found))
    scores = klball.scores_from(tmp_path / "log.json")
    assert scores.round_names == ["1", "2"] and [*scores.lacking.values()] == ["unscored"]
    assert [i.partition("-")[0] for i in (*scores.lacking, *scores.sample_ids[::2])] == [
        f"sums/{k}" for k in (4, 0, 1, 2, 3)
    ]
    assert scores.per_item().values.tolist() == [1, 0, 0.5, 0] and scores.measure.unit == "accuracy"
    assert "one of match, two.a, two.b (--score)" in " ".join(scores.notes)
    lengths = klball.scores_from(tmp_path / "log.json", score="two.a", group="metadata.kind").per_item()
    assert lengths.values.tolist() == [1.5, 2.5, 3.5, 4.5] and lengths.measure.unit == "points of two.a"
    assert lengths.groups == ["even", "odd"] * 2 and lengths.texts_of({(last := lengths.sample_ids[3])})[
        last
    ] == {
        "prompt": "3?",
        "answer": "1",
    }
    (tmp_path / "broken.json").write_text(inspect_log(found[:3], "error"))
    assert klball.scores_from(tmp_path).values.tolist() == scores.values.tolist()  # without the broken one
    assert len(klball.scores_from(tmp_path / "broken.json")) == 3
    (tmp_path / "log.json").write_text(inspect_log(found[:3], "cancelled"))
    with pytest.raises(ValueError, match="ended with status cancelled"):
        klball.scores_from(tmp_path)
    (tmp_path / "log.json").write_text(inspect_log([(0, 1, {})], "error"))
    with pytest.raises(ValueError, match=r"\(status error\) has no sample with a score"):
        klball.scores_from(tmp_path / "log.json")
    odd = [(0, "Yes"), (1, "0.5"), (2, float("nan")), (3, "no"), (4, 1)]
    log = inspect_log([(i, 1, {"a": {"value": x}, "correct": {"value": i % 2}}) for i, x in odd])
    log = log.replace('"model": "org/m"', '"model": "hf/local", "model_args": {"model_path": "org/m"}')
    (tmp_path / "log.json").write_text(log)
    words = klball.scores_from(tmp_path / "log.json")
    assert words.values.tolist() == [1, 0.5, 0, 1] and [*words.lacking.values()] == ["unscored"]
    right = klball.scores_from(tmp_path / "log.json", score="correct")
    assert len(right) == 5 and right.measure.unit == "accuracy" and not right.lacking
    (tmp_path / "other.json").write_text(log.replace('"org/m"', '"org/tuned"'))
    with pytest.raises(ValueError, match=r"2 models \(org/m, org/tuned\)"):  # of local ones by their paths
        klball.scores_from(tmp_path)
    (tmp_path / "other.json").unlink()
    (tmp_path / "log.json").write_text(log.replace('"Yes"', '"maybe"'))
    with pytest.raises(ValueError, match=r"row 1 .*'maybe' is no number"):
        klball.scores_from(tmp_path / "log.json")
    (tmp_path / "log.eval").write_bytes(b"PK\3\4 an archive that is none")
    with pytest.raises(ValueError, match="cannot be read as a log of Inspect"):
        klball.scores_from(tmp_path / "log.eval")


# --- what the tools themselves write ------------------------------------------------------------------

TASKS = {
    "tiny_mc": """
output_type: multiple_choice
doc_to_choice: choices
doc_to_target: 0
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
""",
    "tiny_gen": """
output_type: generate_until
doc_to_target: answer
generation_kwargs: {until: ["."], max_gen_toks: 6, do_sample: false}
filter_list:
  - {name: strict, filter: [{function: regex, regex_pattern: "^ (.)"}, {function: take_first}]}
  - {name: loose, filter: [{function: regex, regex_pattern: "(.)"}, {function: take_first}]}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
""",
    "tiny_ll": """
output_type: loglikelihood
doc_to_target: " {{answer}}"
metric_list: [{metric: perplexity, aggregation: perplexity, higher_is_better: false}]
""",
}


@pytest.fixture(scope="module")
def lm_eval_folder(tmp_path_factory):
    """Samples of lm-eval with the embedded model on eight questions."""
    pytest.importorskip("lm_eval", reason="needs klball[bench]")
    folder = tmp_path_factory.mktemp("lm-eval")
    docs = [{"question": f"{i} + 1 =", "answer": f"{i + 1}", "choices": [f"{i + 1}", "no"]} for i in range(8)]
    (folder / "docs.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    (folder / "tasks").mkdir()
    for task, text in TASKS.items():
        head = f"task: {task}\ndataset_path: json\ndoc_to_text: '{{{{question}}}}'\ntest_split: test\n"
        head += f"dataset_kwargs: {{data_files: {{test: {folder / 'docs.jsonl'}}}}}\n"
        (folder / "tasks" / f"{task}.yaml").write_text(head + text)
    command = [sys.executable, "-m", "lm_eval", "--model", "hf", "--device", "cpu", "--log_samples"]
    command += ["--model_args", f"pretrained={model_path(TINY)},dtype=float32", "--batch_size", "4"]
    command += ["--tasks", ",".join(TASKS), "--include_path", str(folder / "tasks")]
    environment = {**os.environ, "HF_DATASETS_CACHE": str(folder / "cache")}
    done = subprocess.run(
        [*command, "--output_path", str(folder / "out")],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


@pytest.mark.slow
def test_samples_of_lm_eval_are_read_as_it_totals_them(lm_eval_folder):
    (totals,) = (lm_eval_folder / "out").rglob("results_*.json")
    results = json.loads(totals.read_text())["results"]
    for task, metric, score in (
        ("tiny_mc", "acc,none", "acc"),
        ("tiny_gen", "exact_match,strict", "exact_match,strict"),
        ("tiny_gen", "exact_match,loose", "exact_match,loose"),
        ("tiny_ll", "perplexity,none", "log_likelihood"),
    ):
        (path,) = (lm_eval_folder / "out").rglob(f"samples_{task}_*.jsonl")
        mean = klball.scores_from(path, score=score).values.mean()
        assert (np.exp(-mean) if task == "tiny_ll" else mean) == pytest.approx(results[task][metric])
    relative = klball.scores_from(
        next((lm_eval_folder / "out").rglob("samples_tiny_mc_*")), score="choice_log_prob"
    )
    assert relative.values.max() <= 0


@pytest.mark.slow
def test_logs_of_inspect_are_read_as_it_totals_them(tmp_path):
    pytest.importorskip("inspect_ai", reason="needs klball[inspect]")
    from inspect_ai import Task, eval
    from inspect_ai.dataset import Sample
    from inspect_ai.model import GenerateConfig, ModelAPI, ModelOutput, get_model, modelapi
    from inspect_ai.scorer import f1, includes
    from inspect_ai.solver import generate

    model, tokenizer = load_model(TINY)

    @modelapi(name="klball")
    class Embedded(ModelAPI):
        def __init__(self, model_name, base_url=None, api_key=None, config=None, **_):
            super().__init__(model_name, base_url, api_key, [], config or GenerateConfig())

        async def generate(self, input, tools, tool_choice, config):
            ids = tokenizer(input[-1].text, return_tensors="pt")
            made = model.generate(**ids, max_new_tokens=4, do_sample=False)
            text = tokenizer.decode(made[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
            return ModelOutput.from_content(self.model_name, text)

    rows = [Sample(input=f"Count: {i}, {i + 1},", target=str(i + 2)[0], id=i) for i in range(4)]
    task = Task(dataset=rows, solver=generate(), scorer=[includes(), f1()], name="count")
    for kind in ("eval", "json"):
        (log,) = eval(
            *(task, get_model("klball/tiny")),
            epochs=2,
            log_dir=str(tmp_path / kind),
            log_format=kind,
            display="none",
        )
        assert log.status == "success"
        for scorer, metric in zip(log.results.scores, ("accuracy", "mean"), strict=True):
            scores = klball.scores_from(tmp_path / kind, score=scorer.name)
            assert scores.round_names == ["1", "2"] and len(scores) == 8
            assert scores.per_item().values.mean() == pytest.approx(scorer.metrics[metric].value)
