"""The adversary's files say where they are derived; the sections exist, and no file goes without."""

import re
from pathlib import Path

import klball

ADVERSARY = Path(klball.__file__).parent / "adversary"
MATHEMATICS = Path(__file__).parents[1] / "docs" / "mathematics.md"
UNDERIVED = {"__init__.py", "inputs.py"}


def pointers(path: Path) -> list[str]:
    """The sections that a file names: what stands in quotes right after mathematics.md."""
    text = re.sub(r"\s+", " ", path.read_text())
    quotes = [re.match(r'(?:,| and| "[^"]+")+', rest) for rest in text.split("mathematics.md")[1:]]
    return [name for found in quotes if found for name in re.findall(r'"([^"]+)"', found.group())]


def test_every_file_points_to_a_section_that_exists():
    headings = set(re.findall(r"^## (.+)$", MATHEMATICS.read_text(), re.MULTILINE))
    for path in sorted(ADVERSARY.rglob("*.py")):
        named = pointers(path)
        assert named or path.name in UNDERIVED, f"{path.name} points nowhere"
        assert set(named) <= headings, f"{path.name}: {set(named) - headings}"
