"""The figure of the real chat model, from the first tables of docs/results.md, one a seed."""

import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

ROOT = Path(__file__).parents[1]
PERCENT = re.compile(r"([+−][\d.]+) % \[([+−][\d.]+), ([+−][\d.]+)\]")
SECTION = re.compile(r"## On a real chat model\n(.*?)\n## ", re.DOTALL)
COLUMNS = {0: "whole test set", 2: "own worst 5 %", 4: "GSM8K, not trained on"}
SEEDS = (
    dict(color="#a03c00", fmt="o"),
    dict(color="#4060a0", fmt="s", markerfacecolor="white"),
    dict(color="#000000", fmt="^", markerfacecolor="#bbbbbb"),
)
APART = 0.26  # of a row


def changes() -> list[dict[str, np.ndarray]]:
    """Of every seed arm → [columns, 3]: change, low, high in per cent of SFT's perplexity."""
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    found = SECTION.search(text)
    assert found is not None
    tables = []
    for text in found[1].split("</div>")[: len(SEEDS)]:
        cells = {
            name: PERCENT.findall(row) for name, row in re.findall(r"^\| ([^|]+) \|(.*)$", text, re.MULTILINE)
        }
        tables.append({name: _numbers(found) for name, found in cells.items() if found})
    return tables


def _numbers(found: list[tuple[str, ...]]) -> np.ndarray:
    return np.array([[float(number.replace("−", "-")) for number in part] for part in found])


def main() -> None:
    tables = changes()
    arms = [*tables[0]]
    at = {name: len(arms) - 1 - k for k, name in enumerate(arms)}
    figure, axes = plt.subplots(1, len(COLUMNS), figsize=(16, 7), sharey=True, sharex=True)
    for panel, (column, title) in zip(axes, COLUMNS.items(), strict=True):
        panel.axvline(0, color="black", linewidth=1.5)
        for seed, (rows, look) in enumerate(zip(tables, SEEDS, strict=True)):
            value, low, high = np.array([row[column] for row in rows.values()]).T
            panel.errorbar(
                *(value, [at[name] - APART * seed for name in rows]),
                xerr=[value - low, high - value],
                markersize=10,
                linewidth=3,
                capsize=6,
                label=f"seed {seed}",
                **look,
            )
        panel.set_title(title, fontsize=20, loc="left", pad=12)
        panel.set_xticks([-2, -1, 0, 1, 2, 3], ["−2 %", "", "SFT", "", "+2 %", ""])
        panel.tick_params(labelsize=17, length=0)
        panel.grid(axis="x", color="#dddddd")
        panel.spines[["top", "right", "left"]].set_visible(False)
    axes[0].set_yticks([*at.values()], arms)
    figure.supxlabel("perplexity against SFT; left is better; 95 % intervals over test rows", fontsize=18)
    figure.tight_layout(rect=(0, 0, 1, 0.94))
    looks = axes[0].get_legend_handles_labels()
    figure.legend(*looks, fontsize=17, frameon=False, loc="upper right", ncols=len(SEEDS))
    path = ROOT / "docs" / "figures" / "chat-model.png"
    figure.savefig(path, dpi=80)
    print(path)


if __name__ == "__main__":
    main()
