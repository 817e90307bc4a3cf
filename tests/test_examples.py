"""Every example runs as it is printed, and the notebook says what it has saved."""

import contextlib
import io
import json
import runpy
from pathlib import Path

import matplotlib as mpl
import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """What an example writes goes where the test may write."""
    monkeypatch.chdir(tmp_path)


def run(name):
    return runpy.run_path(str(EXAMPLES / name))


def test_solve(capsys):
    names = run("solve.py")
    assert names["worst"].kl == pytest.approx(0.5)
    assert capsys.readouterr().out.count("top-weighted: #527") == 2


def test_train(capsys):
    names = run("train.py")
    assert [entry["step"] for entry in names["log"]] == [2, 4]
    assert all(float(entry["kl"]) == pytest.approx(0.05) for entry in names["log"])
    assert all(float(entry["max_weight"]) > 1 for entry in names["log"])
    weights = names["weights"]
    assert weights["sample_id"][:] == names["rows"]["sample_id"][:]
    assert sum(weights["n_q"]) == pytest.approx(len(names["rows"]))
    heaviest = max(weights, key=lambda sample: sample["n_q"])
    assert heaviest["log_likelihood"] == min(weights["log_likelihood"])
    assert str(heaviest) in capsys.readouterr().out
    assert Path("outputs/example-train/top_weighted.csv").is_file()


@pytest.mark.slow
def test_compare(capsys):
    comparison = run("compare.py")["comparison"]
    assert comparison.scores.models == ["before", "after"]
    sentences = [sentence for _, sentence in comparison.said()]
    assert all("after has a higher worst-case log-likelihood than before" in s for s in sentences)
    assert all(sentence in capsys.readouterr().out for sentence in sentences[:1])


def test_the_notebook_prints_what_it_has_saved():
    notebook = json.loads((EXAMPLES / "solve.ipynb").read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    names = {}
    with mpl.rc_context({"backend": "agg"}):
        for cell in cells:
            said = io.StringIO()
            with contextlib.redirect_stdout(said):
                exec(compile("".join(cell["source"]), "solve.ipynb", "exec"), names)
            saved = ["".join(output["text"]) for output in cell["outputs"] if output.get("name") == "stdout"]
            assert said.getvalue() == "".join(saved)
        figure = names["figure"]
        assert figure.axes[0].get_xlabel() == "radius ε, nats"
        names["plt"].close(figure)


def test_every_example_has_a_test():
    tested = Path(__file__).read_text(encoding="utf-8")
    examples = [path.name for path in EXAMPLES.iterdir() if path.is_file()]
    assert examples and all(f'"{name}"' in tested for name in examples)
