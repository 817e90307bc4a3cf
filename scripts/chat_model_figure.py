"""The figure of the real chat model, from the first tables of docs/results.md: one a seed and size."""

import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

ROOT = Path(__file__).parents[1]
PERCENT = re.compile(r"([+−][\d.]+) % \[([+−][\d.]+), ([+−][\d.]+)\]")
SECTION = re.compile(r"## On a real chat model\n(.*?)\n## ", re.DOTALL)
PANELS = {
    "whole test set": "whole test set",
    "own worst 5 %": "own worst 5 %",
    "GSM8K": "GSM8K, not trained on",
}
LOOKS = {  # of the tables in their order
    "seed 0": dict(color="#a03c00", fmt="o"),
    "seed 1": dict(color="#4060a0", fmt="s", markerfacecolor="white"),
    "seed 2": dict(color="#000000", fmt="^", markerfacecolor="#bbbbbb"),
    "seed 1, 640 chats": dict(color="#4060a0", fmt="D", markerfacecolor="white"),
    "seed 2, 640 chats": dict(color="#000000", fmt="v", markerfacecolor="#bbbbbb"),
}
APART = 0.2  # of a row


def changes() -> dict[str, dict[str, dict[str, list[float]]]]:
    """Table → arm → column → change, low, high in per cent of SFT's perplexity."""
    found = SECTION.search((ROOT / "docs" / "results.md").read_text(encoding="utf-8"))
    assert found is not None
    return {name: _arms(text) for name, text in zip(LOOKS, found[1].split("</div>"), strict=False)}


def _arms(text: str) -> dict[str, dict[str, list[float]]]:
    lines = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("|")]
    header, _, *rows = [[cell.strip() for cell in line] for line in lines]
    columns = {panel: next(k for k, name in enumerate(header) if name.startswith(panel)) for panel in PANELS}
    cells = {row[0]: {panel: PERCENT.search(row[k]) for panel, k in columns.items()} for row in rows}
    return {
        arm: {
            panel: [float(n.replace("−", "-")) for n in cell.groups()] for panel, cell in own.items() if cell
        }
        for arm, own in cells.items()
        if all(own.values())
    }


def main() -> None:
    tables = changes()
    arms = [*tables["seed 0"]]
    at = {name: len(arms) - 1 - k for k, name in enumerate(arms)}
    figure, axes = plt.subplots(1, len(PANELS), figsize=(16, 9), sharey=True, sharex=True)
    for panel, (column, title) in zip(axes, PANELS.items(), strict=True):
        panel.axvline(0, color="black", linewidth=1.5)
        drawn = dict.fromkeys(arms, 0)
        for name, rows in tables.items():
            value, low, high = np.array([row[column] for row in rows.values()]).T
            panel.errorbar(
                *(value, [at[arm] - APART * drawn[arm] for arm in rows]),
                xerr=[value - low, high - value],
                markersize=9,
                linewidth=2.5,
                capsize=5,
                label=name,
                **LOOKS[name],
            )
            for arm in rows:
                drawn[arm] += 1
        panel.set_title(title, fontsize=20, loc="left", pad=12)
        panel.set_xticks([-2, -1, 0, 1, 2, 3], ["−2 %", "", "SFT", "", "+2 %", ""])
        panel.tick_params(labelsize=17, length=0)
        panel.grid(axis="x", color="#dddddd")
        panel.spines[["top", "right", "left"]].set_visible(False)
    axes[0].set_yticks([*at.values()], arms)
    figure.supxlabel("perplexity against SFT; left is better; 95 % intervals over test rows", fontsize=18)
    figure.tight_layout(rect=(0, 0, 1, 0.94))
    looks = axes[0].get_legend_handles_labels()
    figure.legend(*looks, fontsize=17, frameon=False, loc="upper right", ncols=len(LOOKS))
    path = ROOT / "docs" / "figures" / "chat-model.png"
    figure.savefig(path, dpi=80)
    print(path)


if __name__ == "__main__":
    main()
