"""The figure of README.md: what the adversary asks, and what training against it does.

Left, from the embedded model's own scores; right, from docs/results.md. Half a minute.
"""

import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import klball

ROOT = Path(__file__).parents[1]
PERCENT = re.compile(r"([+−][\d.]+) % \[([+−][\d.]+), ([+−][\d.]+)\]")
RADIUS = 0.5
CAPTIONS = (  # name, marker, colour, the point that it stands by, and how far off
    ("whole test set", "s", "#0072b2", 0, (-8, 22)),
    ("hardest 1 %", "o", "#a03c00", 1, (14, 18)),
)


def losses() -> np.ndarray:
    """Nats per answer token of klball/tiny on the test questions of stdlib-docs."""
    model, tokenizer = klball.load_model("klball/tiny")
    table = klball.score(model, tokenizer, klball.load_rows("stdlib-docs", "test"))
    return -np.array(table["log_likelihood"][:])


def changes() -> dict[float, list[tuple[float, ...]]]:
    """ε → (change, low, high) in per cent of SFT's perplexity: whole test set, hardest 1 %, out of domain."""
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    text = text.partition("## What robust training does to a model\n")[2].partition("\n## ")[0]
    rows = {}
    for radius, cells in re.findall(r"^\| ε = ([\d.]+) \|(.*)$", text, re.MULTILINE):
        found = PERCENT.findall(cells)
        rows[float(radius)] = [tuple(float(n.replace("−", "-")) for n in numbers) for numbers in found]
    return rows


def draw_question(axes: plt.Axes, loss: np.ndarray) -> None:
    worst = klball.solve_dual(loss=loss, epsilon=RADIUS)
    bins = np.linspace(1, 7, 25).tolist()
    axes.hist(loss, bins, weights=np.full(len(loss), 1 / len(loss)), color="#c8c8c8")
    axes.hist(loss, bins, weights=worst.weights, histtype="step", linewidth=3, color="#a03c00")
    axes.text(0.9, 0.125, "your data: every\nanswer counts\nthe same", fontsize=19, color="#555555")
    axes.text(5.12, 0.09, "the worst mixture\nwithin ε = .5", fontsize=19, color="#a03c00")
    axes.set(xlabel="loss of an answer, nats per token", ylabel="share of the weight", yticks=[])
    axes.set_title("The question: what if the hard ones came more often?", fontsize=20, loc="left", pad=16)


def draw_answer(axes: plt.Axes, rows: dict[float, list[tuple[float, ...]]]) -> None:
    at = list(rows)
    axes.axhline(0, color="black", linewidth=1.5)
    for k, (name, marker, colour, by, offset) in enumerate(CAPTIONS):
        value, low, high = np.array([row[k] for row in rows.values()]).T
        bars = [value - low, high - value]
        axes.errorbar(at, value, bars, marker=marker, markersize=13, linewidth=3, capsize=7, color=colour)
        place = (at[by], value[by])
        axes.annotate(name, place, offset, textcoords="offset points", fontsize=19, color=colour)
    axes.set(xlabel="radius ε, nats", xscale="log", xlim=(at[0] / 1.25, at[-1] * 1.2))
    axes.set_xticks(at, [f"{radius:g}" for radius in rows])
    axes.minorticks_off()
    axes.set_yticks([-20, -10, 0], ["−20 %", "−10 %", "SFT"])
    axes.set_title("The answer: perplexity against plain SFT", fontsize=20, loc="left", pad=16)


def main() -> None:
    plt.rcParams.update({"font.size": 19, "axes.spines.top": False, "axes.spines.right": False})
    figure, (left, right) = plt.subplots(1, 2, figsize=(16, 6.4), width_ratios=(1.15, 1))
    draw_question(left, losses())
    draw_answer(right, changes())
    figure.tight_layout(w_pad=3)
    path = ROOT / "docs" / "figures" / "tail-for-mean.png"
    figure.savefig(path, dpi=100, metadata={"Software": None})
    print(path)


if __name__ == "__main__":
    main()
