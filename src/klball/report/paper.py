"""For papers: heat maps as SVG and PNG, and tables as LaTeX (booktabs)."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from klball.report.figures import STYLE, save
from klball.report.page import Cell

FULL_COLOUR = 4.0  # −log10 p with the last colour of a heat map, whatever the others are
ESCAPES = {
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{character: f"\\{character}" for character in "&%$#_{}"},
    **{"λ": r"$\lambda$", "β": r"$\beta$", "γ": r"$\gamma$", "ε": r"$\varepsilon$"},
    **{"−": "$-$", "±": r"$\pm$", "∞": r"$\infty$", "—": "---", "–": "--"},
}


def plot_p_values(matrix: np.ndarray, names: Sequence[str], title: str, path: Path) -> None:
    """A heat map of −log10 p [models, models] with the numbers in the cells, a dash where there is none."""
    with plt.rc_context({**STYLE, "axes.grid": False}):
        side = 2.5 + 0.8 * len(names)
        figure, axis = plt.subplots(figsize=(side + 1, side))
        image = axis.imshow(np.ma.masked_invalid(matrix), cmap="cividis", vmin=0, vmax=FULL_COLOUR)
        for (row, column), value in np.ndenumerate(matrix):
            dark = not math.isnan(value) and value < FULL_COLOUR / 2
            text = "–" if math.isnan(value) else f"{value:.3g}"
            axis.text(column, row, text, ha="center", va="center", color="white" if dark else "black")
        axis.set_xticks(range(len(names)), names, rotation=45, ha="right")
        axis.set_yticks(range(len(names)), names)
        figure.colorbar(image, label=f"−log10 p, {FULL_COLOUR:g} or more: full", extend="max")
        figure.suptitle(title)
        save(figure, path)


def latex_table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str], caption: str) -> str:
    """A booktabs table: the keys of `columns` under their headings, numbers with four digits to the right.

    Raises ValueError for no rows.
    """
    if not rows:
        raise ValueError(f"no rows for the table {caption!r}")
    numeric = {key: any(isinstance(row[key], int | float | Cell) for row in rows) for key in columns}
    alignment = "".join("r" if numeric[key] else "l" for key in columns)
    lines = [" & ".join(_latex(row[key]) for key in columns) + r" \\" for row in rows]
    return "\n".join(
        [
            *(r"\begin{table}", r"\centering", rf"\caption{{{_latex(caption)}}}"),
            *(rf"\begin{{tabular}}{{{alignment}}}", r"\toprule"),
            *(" & ".join(map(_latex, columns.values())) + r" \\", r"\midrule"),
            *lines,
            *(r"\bottomrule", r"\end{tabular}", r"\end{table}", ""),
        ]
    )


def _latex(value: Any) -> str:
    if isinstance(value, int):
        return f"${value}$"
    if isinstance(value, float):
        if math.isnan(value):
            return "--"
        if math.isinf(value):
            return r"$\infty$" if value > 0 else r"$-\infty$"
        mantissa, _, exponent = f"{value:.4g}".partition("e")
        return f"${mantissa}$" if not exponent else rf"${mantissa} \cdot 10^{{{int(exponent)}}}$"
    return "".join(ESCAPES.get(character, character) for character in str(value))
