"""`python -m tests.hostile.run [--class X] [--only NAME]`: how many bad inputs are answered well."""

import argparse
import json
import re
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .case import Case, verdict
from .catalogue import catalogue
from .running import import_everything, run_cases

LAST_LINES = 6


def failures_of(cases: Sequence[Case], work: Path, jobs: int = 1, watch: Any = None) -> list[dict[str, Any]]:
    """The cases that were not answered well: name, class, what is wrong, exit code, the end of stderr."""
    failures = []
    for done, (case, answer) in enumerate(run_cases(cases, work, jobs), start=1):
        wrong = verdict(case, answer)
        if wrong:
            end = [line[:400] for line in answer.err.splitlines() if line.strip()][-LAST_LINES:]
            about = {"name": case.name, "class": case.group, "expected": case.expected, "wrong": wrong}
            command = " ".join(case.arguments)[:300]
            failures.append({**about, "code": answer.code, "stderr": end, "command": command})
        if watch is not None:
            watch(done, case, answer, wrong)
    return failures


def select(
    cases: Iterable[Case], group: str | None = None, only: str | None = None, every: int = 1
) -> list[Case]:
    """Each k-th case of a class (or of several, by a regular expression) among those whose name matches."""
    asked = [
        case
        for case in cases
        if (group is None or re.fullmatch(group, case.group)) and (only is None or re.search(only, case.name))
    ]
    place: Counter[str] = Counter()
    chosen = []
    for case in asked:
        if place[case.group] % every == 0:
            chosen.append(case)
        place[case.group] += 1
    return chosen


def sample(cases: Iterable[Case], count: int) -> list[Case]:
    """A few cheap cases of each class, from its beginning to its end."""
    by_class: defaultdict[str, list[Case]] = defaultdict(list)
    for case in cases:
        if not case.fixtures and case.arguments[:1] not in (["reproduce"], ["compare"], ["scan"]):
            by_class[case.group].append(case)
    return [case for own in by_class.values() for case in own[:: max(1, len(own) // count)][:count]]


def main() -> None:
    """Run, print a table by class, and write a JSON file with every failure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--class", dest="group", help="regular expression of the whole class name")
    parser.add_argument("--only", help="regular expression to be found in the case's name")
    parser.add_argument("--every", type=int, default=1, help="run each K-th case of a class")
    parser.add_argument("--sample", type=int, help="run so many cheap cases of each class")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--json", default="hostile.json", help="where failures are written")
    parser.add_argument("--list", action="store_true", help="print the names and run nothing")
    options = parser.parse_args()
    cases = select(catalogue(), options.group, options.only, options.every)
    if options.sample:
        cases = sample(cases, options.sample)
    if options.list:
        print("\n".join(f"{case.group}\t{case.expected}\t{case.name}" for case in cases))
        return
    import_everything()
    slowest: list[tuple[float, str]] = []

    def watch(done: int, case: Case, answer: Any, wrong: str) -> None:
        slowest.append((answer.seconds, case.name))
        if options.only:
            print(f"{case.name}: {answer.code} {wrong or 'well'}\n{answer.out[-2000:]}{answer.err[-3000:]}")
        elif wrong or done % 100 == 0:
            told = f" [{case.group}] {case.name}: {wrong}" if wrong else ""
            print(f"{done} of {len(cases)}{told}", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory(prefix="hostile-") as work:
        failures = failures_of(cases, Path(work), options.jobs, watch)
    slow = [f"{seconds:.1f} s {name}" for seconds, name in sorted(slowest, reverse=True)[:10]]
    Path(options.json).write_text(json.dumps({"failures": failures, "slowest": slow}, indent=1) + "\n")
    _print(cases, failures)
    sys.exit(bool(failures))


def _print(cases: Sequence[Case], failures: Sequence[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("class", "cases", "answered well", "not", title="malformed and awkward inputs")
    for column in table.columns[1:]:
        column.justify = "right"
    asked, failed = Counter(case.group for case in cases), Counter(f["class"] for f in failures)
    for group in asked:
        table.add_row(group, str(asked[group]), str(asked[group] - failed[group]), str(failed[group]))
    table.add_section()
    table.add_row("all", str(len(cases)), str(len(cases) - len(failures)), str(len(failures)))
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
