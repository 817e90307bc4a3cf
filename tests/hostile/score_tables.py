"""Score tables with other columns, types and values than klball score writes."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .case import EITHER, REFUSED, WORKS, Case, fixture

NAN, INF = float("nan"), float("inf")
TABLE = "s.parquet"
LACKING = {  # kind → (columns that are lost, expected in memory and streamed)
    "no log_likelihood": (("log_likelihood",), REFUSED),
    "no certainty": (("certainty",), EITHER),
    "no sample_id": (("sample_id",), EITHER),
    "only scores": (("sample_id", "entropy", "sum_log_prob", "num_tokens", "num_bytes", "truncated"), EITHER),
}
VALUES: dict[str, tuple[str, Any, str]] = {  # kind → (column, its values or None for Arrow's null, expected)
    "null log_likelihood in one row": ("log_likelihood", [-1.0, None, -2.0, -3.0], WORKS),
    "null log_likelihood everywhere": ("log_likelihood", [None] * 4, REFUSED),
    "NaN log_likelihood": ("log_likelihood", [-1.0, NAN, -2.0, -3.0], REFUSED),
    "inf log_likelihood": ("log_likelihood", [-1.0, INF, -2.0, -3.0], REFUSED),
    "-inf log_likelihood": ("log_likelihood", [-1.0, -INF, -2.0, -3.0], REFUSED),
    "-1e308 log_likelihood": ("log_likelihood", [-1.0, -1e308, -2.0, -3.0], EITHER),
    "±1e308 log_likelihood": ("log_likelihood", [1e308, -1e308, -2.0, -3.0], EITHER),
    "subnormal log_likelihood": ("log_likelihood", [-1e-310, -2e-310, -3e-310, -4e-310], EITHER),
    "equal log_likelihood": ("log_likelihood", [-1.0] * 4, WORKS),
    "zero log_likelihood": ("log_likelihood", [0.0] * 4, WORKS),
    "positive log_likelihood": ("log_likelihood", [2.3, 1.2, 4.5, 0.7], REFUSED),
    "one positive log_likelihood": ("log_likelihood", [-2.3, 1e-9, -4.5, -0.7], EITHER),
    "a large offset": ("log_likelihood", [-1e8, -1e8 - 1, -1e8 - 2, -1e8 - 3], WORKS),
    "log_likelihood in words": ("log_likelihood", ["-1", "-2", "-3", "-4"], REFUSED),
    "whole log_likelihood": ("log_likelihood", [-1, -2, -3, -4], EITHER),
    "true log_likelihood": ("log_likelihood", [True, False, True, False], REFUSED),
    "lists of log_likelihood": ("log_likelihood", [[-1.0], [-2.0], [-3.0], [-4.0]], REFUSED),
    "bytes of log_likelihood": ("log_likelihood", [b"-1"] * 4, REFUSED),
    "null certainty in one row": ("certainty", [1.0, None, 2.0, 3.0], REFUSED),
    "null certainty everywhere": ("certainty", [None] * 4, EITHER),
    "NaN certainty": ("certainty", [1.0, NAN, 2.0, 3.0], REFUSED),
    "inf certainty": ("certainty", [1.0, INF, 2.0, 3.0], REFUSED),
    "negative certainty": ("certainty", [1.0, -1.0, 2.0, 3.0], EITHER),
    "1e308 certainty": ("certainty", [1.0, 1e308, 2.0, 3.0], EITHER),
    "certainty in words": ("certainty", ["1", "2", "3", "4"], REFUSED),
    "null sample_id": ("sample_id", ["a", None, "c", "d"], EITHER),
    "numeric sample_id": ("sample_id", [1, 2, 3, 4], EITHER),
    "repeated sample_id": ("sample_id", ["a", "a", "a", "a"], EITHER),
    "sample_id in lists": ("sample_id", [["a"], ["b"], ["c"], ["d"]], EITHER),
    "sample_id in bytes": ("sample_id", [b"a", b"\xff", b"c", b"d"], EITHER),
    "negative num_tokens": ("num_tokens", [-1, 0, 1, 2], EITHER),
    "num_tokens in words": ("num_tokens", ["a", "b", "c", "d"], EITHER),
    "null num_tokens": ("num_tokens", [None] * 4, EITHER),
}
ASKS = {
    "": (),
    "bounded ": ("--gamma", "100"),
    "capped ": ("--max_weight", "2"),
    "streamed ": ("--streamed", "true"),
}


def cases() -> Iterator[Case]:
    """All of them."""
    for kind, (columns, expected) in LACKING.items():
        yield from _solves(
            kind, lambda columns=columns: _write(lambda t: t.drop_columns(list(columns))), expected
        )
    for kind, (column, values, expected) in VALUES.items():
        hints = (column,) if expected == REFUSED else ()
        if kind == "null log_likelihood everywhere":
            hints = ("log_likelihood|no rows",)
        yield from _solves(kind, lambda c=column, v=values: _write(lambda t: _with(t, c, v)), expected, hints)
    for kind, (prepare, expected) in FILES.items():
        yield from _solves(kind, prepare, expected)
    for kind, (prepare, expected) in FOLDERS.items():
        yield from _solves(kind, prepare, expected, table="s")


def _solves(
    kind: str, prepare: Callable[[], Any], expected: str, hints: Any = (), table: str = TABLE
) -> Iterator[Case]:
    for ask, more in ASKS.items():
        if ask in ("bounded ", "capped ") and "log_likelihood" not in kind and "certainty" not in kind:
            continue
        wanted = (
            EITHER
            if kind in ("null certainty in one row", "NaN certainty", "inf certainty") and not ask
            else expected
        )
        if kind == "certainty in words" and ask in ("", "capped "):
            wanted = EITHER  # without a bound certainty is only reported
        yield Case(
            *(f"solve: {ask}{kind}", "score tables", wanted, ["solve", "--scores", table, *more]),
            prepare=prepare,
            hints=hints,
            fixtures=("scores",),
            check=(lambda ask=ask: _same_table(bool(ask))) if kind.startswith("a bit flipped") else None,
        )


def _same_table(streamed: bool) -> str | None:
    """A flipped bit is found, or changed nothing that is read."""
    import pyarrow.parquet as pq

    columns = ["log_likelihood", "certainty"] if streamed else None
    same = pq.ParquetFile(TABLE).read(columns).equals(pq.ParquetFile(_scores()).read(columns))
    return None if same else "other scores were solved"


def _scores() -> Path:
    return fixture("scores") / "out/scores.parquet"


def _table() -> Any:
    import pyarrow.parquet as pq

    return pq.read_table(_scores())


def _write(change: Callable[[Any], Any], path: str = TABLE) -> None:
    import pyarrow.parquet as pq

    Path(path).parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(change(_table()), path)


def _with(table: Any, column: str, values: list[Any]) -> Any:
    import pyarrow as pa

    kind = table.schema.field(column).type if all(v is None for v in values) else None
    return table.set_column(table.column_names.index(column), column, pa.array(values, kind))


def _cast(column: str, kind: str) -> Callable[[], None]:
    def prepare() -> None:
        import pyarrow as pa

        kinds = {"float32": pa.float32(), "float16": pa.float16(), "null": pa.null(), "int64": pa.int64()}
        types = {**kinds, "dictionary": pa.dictionary(pa.int32(), pa.string()), "view": pa.string_view()}

        def change(table: Any) -> Any:
            index = table.column_names.index(column)
            array = pa.nulls(len(table)) if kind == "null" else table[column].cast(types[kind])
            return table.set_column(index, column, array)

        _write(change)

    return prepare


def _bytes(change: Callable[[bytes], bytes]) -> Callable[[], None]:
    def prepare() -> None:
        Path(TABLE).write_bytes(change((fixture("scores") / "out/scores.parquet").read_bytes()))

    return prepare


def flipped(content: bytes, share: float) -> bytes:
    """A Parquet file with one bit changed, that share of the way through its pages."""
    footer = int.from_bytes(content[-8:-4], "little") + 8
    changed = bytearray(content)
    changed[4 + int((len(content) - footer - 4) * share)] ^= 0x10
    return bytes(changed)


def _flip_score() -> None:
    """A bit in the first log-likelihood itself."""
    import struct

    value = struct.pack("<d", _table()["log_likelihood"][0].as_py())

    def change(content: bytes) -> bytes:
        place = content.index(value) if value in content else len(content) // 3
        changed = bytearray(content)
        changed[place + 5] ^= 0x10
        return bytes(changed)

    _bytes(change)()


def _metadata(value: bytes | None) -> Callable[[], None]:
    return lambda: _write(lambda t: t.replace_schema_metadata(None if value is None else {"klball": value}))


def _foreign(path: str) -> None:
    import pyarrow as pa

    _write(lambda table: pa.table({"question": ["a"], "answer": ["b"]}), path)


def _folder(*made: Callable[[], Any]) -> Callable[[], None]:
    def prepare() -> None:
        _write(lambda table: table, "s/a.parquet")
        for make in made:
            make()

    return prepare


def _self_link() -> None:
    Path("s/loop").symlink_to(".")


FILES: dict[str, tuple[Callable[[], Any], str]] = {
    "as it should be": (_bytes(lambda content: content), WORKS),
    "float32 scores": (_cast("log_likelihood", "float32"), WORKS),
    "float16 scores": (_cast("log_likelihood", "float16"), EITHER),
    "scores of the null type": (_cast("log_likelihood", "null"), REFUSED),
    "certainty of the null type": (_cast("certainty", "null"), EITHER),
    "ids in a dictionary": (_cast("sample_id", "dictionary"), WORKS),
    "ids in a view": (_cast("sample_id", "view"), EITHER),
    "columns in another order": (lambda: _write(lambda t: t.select(t.column_names[::-1])), WORKS),
    "a column more": (lambda: _write(lambda t: t.append_column("more", t["sample_id"])), EITHER),
    "a column twice": (lambda: _write(lambda t: t.append_column("certainty", t["certainty"])), REFUSED),
    "capital columns": (
        lambda: _write(lambda t: t.rename_columns([c.upper() for c in t.column_names])),
        REFUSED,
    ),
    "no rows": (lambda: _write(lambda t: t.slice(0, 0)), REFUSED),
    "one row": (lambda: _write(lambda t: t.slice(0, 1)), WORKS),
    "no provenance": (_metadata(None), EITHER),
    "provenance junk": (_metadata(b"junk"), EITHER),
    "provenance a list": (_metadata(b"[]"), EITHER),
    "provenance in brackets": (_metadata(b"[" * 100_000), EITHER),
    "provenance that is no UTF-8": (_metadata(b"\xff\xfe"), EITHER),
    "empty": (_bytes(lambda content: b""), REFUSED),
    "cut": (_bytes(lambda content: content[: len(content) // 2]), REFUSED),
    "cut by a byte": (_bytes(lambda content: content[:-1]), REFUSED),
    "junk": (_bytes(lambda content: b"junk" * 99), REFUSED),
    "junk with magic": (_bytes(lambda content: b"PAR1" + b"junk" * 99 + b"PAR1"), REFUSED),
    "CSV": (_bytes(lambda content: b"sample_id,log_likelihood\na,-1\nb,-2\n"), EITHER),
    "JSON": (_bytes(lambda content: b'{"sample_id": "a", "log_likelihood": -1}\n'), EITHER),
    "a foreign table": (lambda: _foreign(TABLE), REFUSED),
    "not there": (lambda: None, REFUSED),
    "a bit of a score flipped": (_flip_score, REFUSED),
    **{
        f"a bit flipped at {share:.0%}": (_bytes(lambda c, share=share: flipped(c, share)), EITHER)
        for share in (0.02, 0.1, 0.2, 0.4, 0.6, 0.8, 0.95)
    },
}
FOLDERS: dict[str, tuple[Callable[[], Any], str]] = {
    "a folder of one": (_folder(), WORKS),
    "an empty folder": (lambda: Path("s").mkdir(), REFUSED),
    "a folder of other files": (lambda: (Path("s").mkdir(), Path("s/a.txt").write_text("x")), REFUSED),
    "a foreign table in the folder": (_folder(lambda: _foreign("s/b.parquet")), REFUSED),
    "junk in the folder": (_folder(lambda: Path("s/b.parquet").write_bytes(b"junk")), REFUSED),
    "an empty file in the folder": (_folder(lambda: Path("s/b.parquet").write_bytes(b"")), REFUSED),
    "a folder called like a table": (_folder(lambda: Path("s/b.parquet").mkdir()), EITHER),
    "a link to itself": (_folder(_self_link), EITHER),
    "a dangling link": (_folder(lambda: Path("s/b.parquet").symlink_to("none")), REFUSED),
    "parts that a kill left": (
        _folder(lambda: _write(lambda t: t, "s/b.parquet.parts-12345678/000000.parquet")),
        WORKS,
    ),
    "the same ids twice": (_folder(lambda: _write(lambda t: t, "s/b.parquet")), EITHER),
    "another type in the second file": (
        _folder(lambda: _write(lambda t: _with(t, "log_likelihood", ["a"] * 4), "s/b.parquet")),
        REFUSED,
    ),
    "NaN in the second file": (
        _folder(lambda: _write(lambda t: _with(t, "log_likelihood", [NAN] * 4), "s/b.parquet")),
        REFUSED,
    ),
}
