"""Items and runs of other tools: what pairs, what is a round, and what is refused rather than averaged."""

import json

import numpy as np
import pytest

import klball
from klball.comparison.rounds import round_scores
from test_tool_logs import TIME, choices, inspect_log, sample, write_samples

LATER = TIME.replace("05.", "06.")


def numeral_choices(doc_id, right, texts, log_probs, accurate=True):
    """Choices that are numbers: lm-eval's target is the right one's text, which is a place of another."""
    row = choices(doc_id, *log_probs, right=texts.index(right))
    asked = {f"gen_args_{k}": {"arg_0": "How many?", "arg_1": f" {text}"} for k, text in enumerate(texts)}
    row |= {"target": right, "arguments": asked}
    return row if accurate else {k: v for k, v in row.items() if k != "acc"} | {"metrics": ["f1"], "f1": 0.5}


def write_runs(folder, *settings):
    for time, (arguments, shots, items) in zip((TIME, LATER), settings, strict=True):
        write_samples(folder, "t", [sample(k, acc=float(k > 1)) for k in range(items)], time)
        path = folder / f"results_{time}.json"
        totals = {"config": {"model_args": arguments}, "n-shot": {"t": shots}}
        path.write_text(json.dumps(json.loads(path.read_text()) | totals))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ([("revision=1", 0, 4), ("revision=2", 0, 4)], r"other settings \(revision=1, 0-shot; revision=2"),
        ([({"revision": 1}, 0, 4), ({"revision": 2}, 0, 4)], "other settings"),
        ([("m", 0, 4), ("m", 8, 4)], r"other settings \(m, 0-shot; m, 8-shot\)"),
        ([("m", 0, 2), ("m", 0, 4)], "share 2 of their 4 items"),
    ],
)
def test_runs_of_other_things_are_no_rounds(settings, said, tmp_path):
    write_runs(tmp_path, *settings)
    with pytest.raises(ValueError, match=said):
        klball.scores_from(tmp_path)
    assert len(klball.scores_from(tmp_path, round="file").round_names) == 2


def test_runs_with_the_same_settings_are_rounds(tmp_path):
    write_runs(tmp_path, ("m", 0, 3), ("m", 0, 3))
    assert klball.scores_from(tmp_path).round_names == ["run 1", "run 2"]


def test_a_model_with_more_tasks_is_compared_on_those_of_both(tmp_path):
    for model, tasks in (("a", "xy"), ("b", "x")):
        for task in tasks:
            write_samples(tmp_path / model, task, [sample(k, acc=float(k > 1)) for k in range(4)])
    read = {model: klball.scores_from(tmp_path / model) for model in "ab"}
    scores = round_scores(read)
    assert len(scores.sample_ids) == 4 and all(item.startswith("x/") for item in scores.sample_ids)
    assert scores.left_out["missing"] == 4


@pytest.mark.parametrize("accurate", [True, False])
def test_choices_that_are_numbers_are_named_by_their_text(accurate, tmp_path):
    texts = [["2", "0", "1"], ["0", "2", "1"]]
    rows = [
        numeral_choices(0, "2", texts[0], [-1.0, -2.0, -4.0], accurate),
        numeral_choices(1, "0", texts[1], [-2.0, -1.0, -4.0], accurate),
    ]
    path = write_samples(tmp_path, "t", rows)
    if accurate:
        assert klball.scores_from(path, score="log_likelihood").values.tolist() == [-1.0, -2.0]
        chosen = klball.scores_from(path, score="choice_log_prob").values
        expected = [row - np.log(np.exp([-1.0, -2, -4]).sum()) for row in (-1.0, -2.0)]
        np.testing.assert_allclose(chosen, expected)
    else:
        with pytest.raises(ValueError, match="no column 'log_likelihood'"):  # 2 may be a place or a text
            klball.scores_from(path, score="log_likelihood")
        assert klball.scores_from(path, score="choice").values.tolist() == [0, 1]


def test_an_accuracy_that_fits_no_choice_leaves_the_right_one_unknown(tmp_path):
    rows = [{**choices(0, -1.0, -2.0, right=1), "acc": 1.0}, choices(1, -1.0, -2.0)]
    with pytest.raises(ValueError, match="no column 'choice_log_prob'"):
        klball.scores_from(write_samples(tmp_path, "t", rows), score="choice_log_prob")


def test_rows_before_metrics_and_filters_were_named(tmp_path):
    def old(doc_id, **metrics):
        return {k: v for k, v in sample(doc_id, **metrics).items() if k not in ("filter", "metrics")}

    rows = [old(k, acc=float(k == f), acc_norm=1.0) for f in range(2) for k in range(3)]
    path = write_samples(tmp_path, "t", rows)
    assert klball.scores_from(path).name == "acc,filter 1"
    assert klball.scores_from(path, score="acc,filter 2").values.tolist() == [0, 1, 0]
    one = write_samples(tmp_path / "one", "t", rows[:3])
    assert klball.scores_from(one).name == "acc"


def test_metrics_that_are_lists_are_no_scores(tmp_path):
    rows = [{**choices(k, -1.0, -2.0), "metrics": ["mcc", "acc"], "mcc": [1, 0]} for k in range(2)]
    scores = klball.scores_from(write_samples(tmp_path, "t", rows))
    assert scores.name == "acc" and "one of acc, log_likelihood, choice_log_prob" in scores.notes[0]


# --- Inspect ------------------------------------------------------------------------------------------


def inspect_file(path, inputs, task="sums", arguments=None, epochs=1):
    pytest.importorskip("inspect_ai")
    samples = [(k + 1, e + 1, {"match": {"value": "C"}}) for k in range(len(inputs)) for e in range(epochs)]
    log = json.loads(inspect_log(samples))
    log["eval"] |= {"task": task, "task_args": arguments or {}}
    for row in log["samples"]:
        row["input"] = inputs[row["id"] - 1]
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(log))
    return path


def test_an_item_is_its_question_and_no_place(tmp_path):
    """Inspect numbers samples by their place; the next log may have shuffled them, or be of another task."""
    base = klball.scores_from(inspect_file(tmp_path / "a.json", ["1?", "2?", "3?"]))
    other = klball.scores_from(inspect_file(tmp_path / "b.json", ["3?", "2?", "1?"]))
    assert len(round_scores({"a": base, "b": other}).sample_ids) == 1
    with pytest.raises(ValueError, match="no item has a score of every model"):
        moved = inspect_file(tmp_path / "c.json", ["1?", "2?", "3?"], task="other")
        round_scores({"a": base, "b": klball.scores_from(moved)})
    assert klball.scores_from(tmp_path / "b.json", id="id").sample_ids == ["1", "2", "3"]


def test_parts_of_a_task_are_no_rounds(tmp_path):
    inspect_file(tmp_path / "p" / "a.json", ["1?", "2?"], arguments={"part": 1})
    inspect_file(tmp_path / "p" / "b.json", ["3?", "4?"], arguments={"part": 2})
    assert len(klball.scores_from(tmp_path / "p").per_item()) == 4
    inspect_file(tmp_path / "p" / "b.json", ["1?", "2?"], arguments={"part": 2})
    with pytest.raises(ValueError, match=r"other settings \(part 1; part 2\)"):
        klball.scores_from(tmp_path / "p")


def test_other_numbers_of_epochs_say_what_to_do(tmp_path):
    one = klball.scores_from(inspect_file(tmp_path / "a.json", ["1?"]))
    three = klball.scores_from(inspect_file(tmp_path / "b.json", ["1?"], epochs=3))
    with pytest.raises(ValueError, match=r"'a' has 1, 'b' has 3.*klball evaluate"):
        round_scores({"a": one, "b": three})
