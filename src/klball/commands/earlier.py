"""What an earlier run of a command left in its folder, where the next writes less or under other names."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from klball.commands.labels import labelled
from klball.comparison.analysis import SOURCE_TESTS
from klball.files import RUN_FILE, file_name, read_json_object
from klball.report.pages.parts import REPORT_FILE

DRAWN = (".svg", ".png")
OF_REPORT = ("metrics.csv", "profiles.csv", "ratios.csv", REPORT_FILE)
OF_WAY = {  # option that says in which way models were evaluated → its files; tables of scores stay
    "scores": OF_REPORT,  # and scores.csv
    "pair_scores": ("pairs.csv", "differences.csv"),
    "generate": ("answers.csv", "differences.csv"),
    "models": OF_REPORT,
}
OF_ASKED = [f"p-{test}-{quantity}" for test, quantity in SOURCE_TESTS]
OF_ANALYSIS = ("rounds", "summary", "verdicts", "effects", "tests", "spreads", "items", "joint")
OF_COMPARISON = [
    *("acceptance.csv", "groups.csv", "latex/summary.tex"),
    *(f"{at}/{name}.csv" for at in ("asked", "wide") for name in (*OF_ANALYSIS, *OF_ASKED)),
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


def comparison_before(folder: Path, prog: str) -> dict[Path, tuple[int, int]]:
    """The files of `klball compare` before that not every comparison writes, and marks that tell new ones.

    To be asked before this run writes its own run.json.
    """
    paths = [folder / name for name in OF_COMPARISON] if _options_before(folder, prog) else []
    return {path: mark for path in paths if (mark := _mark(path)) is not None}


def remove_unwritten(before: Mapping[Path, tuple[int, int]]) -> None:
    """Of these files those that no job has written since, and the folders that are empty without them."""
    for path, mark in before.items():
        if _mark(path) == mark:
            path.unlink(missing_ok=True)
            with suppress(OSError):  # other files are in it
                path.parent.rmdir()


def _mark(path: Path) -> tuple[int, int] | None:
    with suppress(OSError):
        found = path.stat()
        return found.st_ino, found.st_mtime_ns
    return None


def remove_models(folder: Path, prog: str) -> None:
    """The files of a `klball scan --models` before."""
    if _options_before(folder, prog).get("models"):
        _remove(folder, ["models.csv", *(f"figures/gain-against-forgetting{suffix}" for suffix in DRAWN)])


def _remove(folder: Path, names: Iterable[str]) -> None:
    for name in names:
        (folder / name).unlink(missing_ok=True)
