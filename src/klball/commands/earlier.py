"""What an earlier run of a command left in its folder, where the next writes less or under other names."""

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from klball.commands.labels import labelled
from klball.comparison.analysis import SOURCE_TESTS
from klball.files import RUN_FILE, file_name, read_json_object
from klball.report.pages.parts import REPORT_FILE
from klball.scores.parts import TABLES_FILE

DRAWN = (".svg", ".png")
OF_REPORT = ("metrics.csv", "profiles.csv", "ratios.csv", REPORT_FILE)
OF_WAY = {  # option that says in which way models were evaluated → the files of it
    "scores": OF_REPORT,  # and scores.csv
    "pair_scores": ("pairs.csv", "differences.csv"),
    "generate": ("answers.csv", "differences.csv", TABLES_FILE),
    "models": (*OF_REPORT, TABLES_FILE),
}
OF_ASKED = [f"p-{test}-{quantity}" for test, quantity in SOURCE_TESTS]
OF_COMPARISON = [
    *("acceptance.csv", "groups.csv", "asked/*.csv", "wide/*.csv", "latex/summary.tex"),
    *(f"latex/{name}.tex" for name in (*OF_ASKED, "effects-asked", "effects-wide")),
    *(f"figures/{name}{suffix}" for name in (*OF_ASKED, "multipliers") for suffix in DRAWN),
]


def _options_before(folder: Path, prog: str) -> dict[str, Any]:
    """Those of the run of the same command whose results are in a folder; none where there is none."""
    with suppress(ValueError):
        run = read_json_object(folder / RUN_FILE)
        if run.get("command") == prog and isinstance(run.get("options"), dict):
            return run["options"]
    return {}


def remove_evaluation(folder: Path, prog: str) -> None:
    """The files of `klball evaluate` before, of whatever models, data and way; not tables of scores."""
    before = _options_before(folder, prog)
    way = next((name for name in OF_WAY if before.get(name)), None)
    if way is None:
        return
    names = [*OF_WAY[way]]
    if way == "scores" and not (folder / "metrics.csv").exists():  # which own tables have, and no scores.csv
        names.append("scores.csv")
    data = {"scores": ["scores"], "models": labelled(before.get("datasets", []))}.get(way, ())
    _remove(folder, [*names, *(f"profile-{file_name(label)}{suffix}" for label in data for suffix in DRAWN)])


def remove_comparison(folder: Path) -> None:
    """The files of `klball compare` before that not every comparison writes, or writes anew."""
    _remove(folder, OF_COMPARISON)


def remove_models(folder: Path, prog: str) -> None:
    """The files of a `klball scan --models` before."""
    if _options_before(folder, prog).get("models"):
        _remove(folder, ["models.csv", *(f"figures/gain-against-forgetting{suffix}" for suffix in DRAWN)])


def _remove(folder: Path, patterns: Iterable[str]) -> None:
    """Files of these names, and the folders that are empty without them."""
    for pattern in patterns:
        for path in folder.glob(pattern):
            path.unlink()
            if path.parent != folder:
                with suppress(OSError):  # somebody else's files are in it
                    path.parent.rmdir()
