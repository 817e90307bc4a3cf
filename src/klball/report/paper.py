"""For papers: tables as LaTeX (booktabs)."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from klball.report.page import Cell

ESCAPES = {
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{character: f"\\{character}" for character in "&%$#_{}"},
    **{"λ": r"$\lambda$", "β": r"$\beta$", "γ": r"$\gamma$", "ε": r"$\varepsilon$"},
    **{"−": "$-$", "±": r"$\pm$", "∞": r"$\infty$", "—": "---", "–": "--"},
}


def latex_table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str], caption: str) -> str:
    """A booktabs table: the keys of `columns` under their headings, numbers with four digits to the right."""
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
