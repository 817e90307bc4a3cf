"""The figure of the real chat model, from the first table of docs/results.md."""

import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

ROOT = Path(__file__).parents[1]
PERCENT = re.compile(r"([+−][\d.]+) % \[([+−][\d.]+), ([+−][\d.]+)\]")
SECTION = re.compile(r"## On a real chat model\n(.*?)\n## ", re.DOTALL)
COLUMNS = {0: "whole test set", 2: "own worst 5 %", 4: "GSM8K, not trained on"}
COLOUR = "#a03c00"


def changes() -> dict[str, np.ndarray]:
    """Arm → [columns, 3]: change, low, high in per cent of SFT's perplexity."""
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    found = SECTION.search(text)
    assert found is not None
    rows = {}
    for name, cells in re.findall(r"^\| ([^|]+) \|(.*)$", found[1], re.MULTILINE):
        numbers = PERCENT.findall(cells)
        if numbers:
            rows[name] = np.array([[float(n.replace("−", "-")) for n in part] for part in numbers])
    return rows


def main() -> None:
    rows = changes()
    at = np.arange(len(rows))[::-1]
    figure, axes = plt.subplots(1, len(COLUMNS), figsize=(16, 6.4), sharey=True, sharex=True)
    for panel, (column, title) in zip(axes, COLUMNS.items(), strict=True):
        value, low, high = np.array([row[column] for row in rows.values()]).T
        panel.axvline(0, color="black", linewidth=1.5)
        panel.errorbar(
            *(value, at),
            xerr=[value - low, high - value],
            fmt="o",
            markersize=11,
            linewidth=3,
            capsize=6,
            color=COLOUR,
        )
        panel.set_title(title, fontsize=20, loc="left", pad=12)
        panel.set_xticks([-1, 0, 1, 2, 3], ["−1 %", "SFT", "+1 %", "+2 %", "+3 %"])
        panel.tick_params(labelsize=17, length=0)
        panel.grid(axis="x", color="#dddddd")
        panel.spines[["top", "right", "left"]].set_visible(False)
    axes[0].set_yticks(at, list(rows))
    figure.supxlabel("perplexity against SFT; left is better; 95 % intervals over test rows", fontsize=18)
    figure.tight_layout()
    path = ROOT / "docs" / "figures" / "chat-model.png"
    figure.savefig(path, dpi=80)
    print(path)


if __name__ == "__main__":
    main()
