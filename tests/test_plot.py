"""klball.plot: the charts of the reports as matplotlib figures, of whatever a user has in hand."""

import re
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from datasets import Dataset
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

import klball
from klball.report.figures import COLOURS
from klball.scores.frontier import frontier_row

RNG = np.random.default_rng(0)
G = -RNG.gamma(2, 1, 400)
BETTER = G * np.where(np.quantile(G, 0.1) > G, 0.8, 1.1)


def table(g, **columns):
    n = len(g)
    numbers = {name: [3] * n for name in ("num_tokens", "num_bytes")}
    means = {name: list(g) for name in ("log_likelihood", "certainty", "entropy", "sum_log_prob")}
    ids = [str(i) for i in range(n)]
    return Dataset.from_dict({"sample_id": ids, **means, **numbers, "truncated": [False] * n, **columns})


def lines(figure, panel=0):
    return {line.get_label(): line.get_xydata()[:, 1] for line in figure.axes[panel].lines}


@pytest.mark.parametrize(
    "models",
    [
        {"a": table(G), "b": table(BETTER)},
        {"a": G, "b": BETTER},
        {"a": klball.robust_profile(G, [0, 0.1, 1]), "b": klball.robust_profile(BETTER, [0, 0.1, 1])},
        {"a": klball.scores_from(table(G)), "b": klball.scores_from(table(BETTER))},
    ],
    ids=["tables", "arrays", "profiles", "scores"],
)
def test_a_profile_draws_the_worst_case_of_every_model(models):
    figure = klball.plot.profile(models, data="my rows", epsilons=[0, 0.1, 1])
    assert isinstance(figure, Figure) and figure.axes[0].get_title() == "Robust profile on my rows"
    expected = {name: klball.robust_profile(g, [0, 0.1, 1]) for name, g in (("a", G), ("b", BETTER))}
    for name, profile in expected.items():
        assert lines(figure)[name] == pytest.approx(profile.robust_loss)
        assert lines(figure, 1)[name] == pytest.approx(profile.ess)


def test_one_model_needs_no_name():
    assert list(lines(klball.plot.profile(G))) == ["model"]


def test_a_frontier_is_against_the_first():
    figure = klball.plot.frontier({"plain": table(G), "robust": table(BETTER)})
    (axis,) = figure.axes
    row = frontier_row(-BETTER, -G, np.arange(len(G)))
    marks = {c.get_label(): c.lines[0].get_xydata()[0] for c in axis.containers} | lines(figure)
    found = next(p for name, p in marks.items() if name == "robust")
    assert found == pytest.approx([100 * (row["mean_ratio"] - 1), 100 * (row["cvar_ratio"] - 1)])
    assert found[0] > 0 > found[1] and axis.get_xlabel().endswith("against plain, %")


def test_a_comparison_draws_means_over_rounds():
    tables = {(m, r): table(g + 0.1 * k) for m, g in (("a", G), ("b", BETTER)) for k, r in enumerate("12")}
    compared = klball.compare_scores(klball.round_scores(tables), epsilon=0.1)
    figure = klball.plot.comparison(compared)
    expected = [p["robust_loss"] for p in compared.profiles if p["model"] == "b"]
    assert lines(figure)["b"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: klball.plot.profile({}), "there is no model to draw"),
        (
            lambda: klball.plot.profile(
                {"a": G, "b": klball.scores_from([{"id": 1, "correct": 0}, {"id": 2, "correct": 1}])}
            ),
            "one unit",
        ),
        (lambda: klball.plot.profile([0.5, 0.1]), "log"),
        (lambda: klball.plot.frontier({"a": table(G)}), "two models or more"),
        (lambda: klball.plot.frontier({"a": table(G), "b": table(G[1:])}), "other samples"),
        (lambda: klball.plot.frontier({"a": table(G), "b": G}), "b is no score table"),
        (lambda: klball.plot.profile(Dataset.from_dict({"x": [1]})), "model is no score table"),
    ],
)
def test_what_cannot_be_drawn_is_one_line(call, said):
    with pytest.raises(ValueError, match=said) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_figures_leave_pyplot_and_its_settings_alone():
    before = dict(mpl.rcParams)
    figure = klball.plot.profile(G)
    assert dict(mpl.rcParams) == before and figure.canvas.manager is None
    assert figure._repr_png_().startswith(b"\x89PNG")


def test_neighbours_are_told_apart_in_grey_and_text_is_legible_at_half_size():
    greys = [float(np.dot((0.299, 0.587, 0.114), to_rgb(colour))) for colour in COLOURS[:3]]
    assert min(np.diff(greys)) > 0.05  # and marker and dash differ beside it
    axis = klball.plot.profile({name: G - k for k, name in enumerate("abcd")}).axes[0]
    styles = {(line.get_linestyle(), line.get_marker()) for line in axis.lines}
    assert len(styles) == len(axis.lines) == 4
    sizes = [t.get_fontsize() for t in (axis.title, axis.xaxis.label, *axis.get_xticklabels())]
    assert min(sizes) / 2 >= 6  # points


@pytest.mark.slow
def test_the_example_of_the_guide(tmp_path, monkeypatch):
    guide = Path(__file__).parents[1] / "docs" / "report.md"
    block = re.search(r"## Figures in Python\n\n```python\n(.*?)```", guide.read_text(encoding="utf-8"), re.S)
    monkeypatch.chdir(tmp_path)
    fewer = block[1].replace("test[:60]", "test[:12]")
    assert fewer != block[1]
    exec(compile(fewer, str(guide), "exec"), {})
    assert {p.name for p in tmp_path.iterdir()} == {"profile.svg", "frontier.png", "comparison.svg"}
