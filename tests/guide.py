"""The ambiguity set of docs/extending.md, as it is printed there."""

import re
from pathlib import Path
from typing import Any

GUIDE = Path(__file__).parent.parent / "docs" / "extending.md"


def _names() -> dict[str, Any]:
    first = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)[0]
    names: dict[str, Any] = {"__name__": __name__}
    exec(compile(first, str(GUIDE), "exec"), names)
    return names


ReverseKLBall = _names()["ReverseKLBall"]
