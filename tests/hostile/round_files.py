"""rounds.parquet that is cut, foreign or inconsistent, for klball compare."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from .case import EITHER, REFUSED, TWO, WORKS, Case, fixture
from .score_tables import flipped

COMPARE = ("compare", *TWO, "--rounds_path", "r.parquet", "--resamples", "0", "--output_dir", "out")


def cases() -> Iterator[Case]:
    """All of them."""
    for kind, (change, expected) in TABLES.items():
        prepare = _changed(change)
        hints = (
            ("r.parquet",) if expected == REFUSED and kind not in ("two rounds", "rounds in words") else ()
        )
        yield _case(kind, expected, prepare, hints)
    for kind, (content, expected) in BYTES.items():
        check = _same_rounds if kind.startswith("flipped") else None
        yield replace(_case(kind, expected, _bytes(content), ("r.parquet",)), check=check)
    for kind, (more, expected) in ASKS.items():
        prepare = _bytes(lambda content: content)
        yield Case(
            f"compare: {kind}", "rounds files", expected, [*COMPARE, *more], prepare, fixtures=("rounds",)
        )


def _case(kind: str, expected: str, prepare: Callable[[], None], hints: tuple[str, ...]) -> Case:
    return Case(
        f"compare: {kind}", "rounds files", expected, COMPARE, prepare, hints=hints, fixtures=("rounds",)
    )


def _bytes(change: Callable[[bytes], bytes]) -> Callable[[], None]:
    return lambda: Path("r.parquet").write_bytes(
        change((fixture("rounds") / "out/rounds.parquet").read_bytes())
    )


def _same_rounds() -> str | None:
    """A flipped bit is found, or changed nothing that is read."""
    import pyarrow.parquet as pq

    whole = pq.read_table(fixture("rounds") / "out/rounds.parquet")
    return None if pq.read_table("r.parquet").equals(whole) else "other rounds were compared"


def _changed(change: Callable[[Any], Any]) -> Callable[[], None]:
    def prepare() -> None:
        import pyarrow.parquet as pq

        table = pq.read_table(fixture("rounds") / "out/rounds.parquet")
        pq.write_table(change(table), "r.parquet")

    return prepare


def _set(column: str, values: Callable[[list[Any]], list[Any]]) -> Callable[[Any], Any]:
    """Other values in a column of the same type, or of another if they demand it."""

    def change(table: Any) -> Any:
        import pyarrow as pa

        field = table.schema.field(column)
        found = values(table[column].to_pylist())
        try:
            array = pa.array(found, field.type)
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            array = pa.array(found)
        return table.set_column(table.column_names.index(column), column, array)

    return change


def _fractions(table: Any) -> Any:
    import pyarrow.compute as pc

    place = table.column_names.index("round")
    return table.set_column(place, "round", pc.add(table["round"].cast("double"), 0.5))


def _one(column: str, value: Any, row: int = 5) -> Callable[[Any], Any]:
    return _set(column, lambda values: [*values[:row], value, *values[row + 1 :]])


def _all(column: str, value: Any) -> Callable[[Any], Any]:
    return _set(column, lambda values: [value] * len(values))


TABLES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "as it should be": (lambda table: table, WORKS),
    "no round": (lambda table: table.drop_columns(["round"]), REFUSED),
    "no prompt": (lambda table: table.drop_columns(["prompt"]), REFUSED),
    "no answer": (lambda table: table.drop_columns(["answer"]), REFUSED),
    "no sample_id": (lambda table: table.drop_columns(["sample_id"]), REFUSED),
    "no provenance": (lambda table: table.replace_schema_metadata(None), REFUSED),
    "provenance junk": (lambda table: table.replace_schema_metadata({"klball": b"junk"}), REFUSED),
    "provenance {}": (lambda table: table.replace_schema_metadata({"klball": b"{}"}), REFUSED),
    "provenance a list": (lambda table: table.replace_schema_metadata({"klball": b"[]"}), REFUSED),
    "no rows": (lambda table: table.slice(0, 0), REFUSED),
    "two rounds": (lambda table: table.slice(0, 8), REFUSED),
    "half a round": (lambda table: table.slice(0, 10), REFUSED),
    "a null prompt": (_one("prompt", None), REFUSED),
    "null prompts": (_all("prompt", None), REFUSED),
    "numeric prompts": (_all("prompt", 3), REFUSED),
    "lists for prompts": (_all("prompt", ["a"]), REFUSED),
    "bytes for prompts": (_all("prompt", b"\xff"), REFUSED),
    "an empty prompt": (_one("prompt", ""), EITHER),
    "a null answer": (_one("answer", None), REFUSED),
    "null answers": (_all("answer", None), REFUSED),
    "lists for answers": (_all("answer", ["a"]), REFUSED),
    "empty answers": (_all("answer", ""), EITHER),
    "answers that change with the round": (_one("answer", "Another one."), REFUSED),
    "a null id": (_one("sample_id", None), REFUSED),
    "an id twice": (_set("sample_id", lambda ids: [ids[0], *ids[:1], *ids[2:]]), REFUSED),
    "an id that changes": (_one("sample_id", "another"), REFUSED),
    "a null round": (_one("round", None), REFUSED),
    "rounds in words": (_all("round", "one"), REFUSED),
    "rounds in fractions": (_fractions, REFUSED),
    "negative rounds": (_set("round", lambda values: [-v for v in values]), EITHER),
    "rounds out of order": (lambda table: table.take(list(range(len(table)))[::-1]), EITHER),
    "null accepted": (_all("accepted", None), EITHER),
    "conversation junk": (_one("conversation", "junk"), REFUSED),
    "conversation {}": (_all("conversation", "{}"), EITHER),
    "conversation a list": (_all("conversation", "[]"), EITHER),
    "a column more": (lambda table: table.append_column("more", table["round"]), EITHER),
    "a column twice": (lambda table: table.append_column("round", table["round"]), REFUSED),
    "markup in prompts": (_all("prompt", "[/INST] \x1b[2J [red]"), EITHER),
}
BYTES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda content: b"", REFUSED),
    "cut": (lambda content: content[: len(content) // 2], REFUSED),
    "cut by a byte": (lambda content: content[:-1], REFUSED),
    "junk": (lambda content: b"junk" * 99, REFUSED),
    "JSON lines": (lambda content: b'{"round": 1, "prompt": "a", "answer": "b"}\n', REFUSED),
    "flipped at 5 %": (lambda content: flipped(content, 0.05), EITHER),
    "flipped at 20 %": (lambda content: flipped(content, 0.2), EITHER),
    "flipped at 40 %": (lambda content: flipped(content, 0.4), EITHER),
}
ASKS: dict[str, tuple[list[str], str]] = {
    "more rounds than the file has": (["--rounds", "9"], EITHER),
    "fewer rounds than a comparison needs": (["--rounds", "2"], REFUSED),
    "more rows than the file has": (["--max_rows", "900"], WORKS),
    "one row": (["--max_rows", "1"], REFUSED),
    "a bound that nobody meets": (["--gamma", "0.0001"], EITHER),
    "a radius of 300": (["--epsilon", "300"], EITHER),
    "a template that is not there": (["--chat_template_path", "none.jinja"], REFUSED),
    "nothing left after cutting": (["--max_length", "1"], REFUSED),
    "a job of none": (["--num_jobs", "0"], REFUSED),
    "a job out of range": (["--num_jobs", "2", "--job_index", "2"], REFUSED),
}
