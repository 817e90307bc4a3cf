"""Local data files → rows, every text as it stands in the file.

JSON, CSV and text are read here and not by Arrow's readers, which guess types: `0042` would become 42,
`NA` nothing, a date a time stamp. So a number or true/false at the top of a JSON row is the text that the
file has there, and every CSV cell is text.
"""

import csv
import io
import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Features, Json, List, Value
from datasets.features.features import generate_from_arrow_type

from klball.boundary import first_line
from klball.files import LONGEST_CELL

logger = logging.getLogger(__name__)

KINDS = {
    **{".jsonl": "json", ".ndjson": "json", ".json": "json", ".csv": "csv", ".tsv": "csv"},
    **{".parquet": "parquet", ".txt": "text"},
}
COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
READABLE = f"{', '.join(KINDS)}, each also as {', '.join(COMPRESSIONS)}"
RENDERED = (
    *("messages", "conversations", "prompt", "completion", "chosen", "rejected"),
    *("tools", "chat_template_kwargs"),
)
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")

Row = dict[str, Any]


def suffix_of(path: Path) -> str:
    """The suffix that tells a data file's kind, in lower case and without that of a compression."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def read_files(paths: Sequence[Path]) -> Dataset:
    """The rows of data files, one file after the other.

    Raises ValueError for a file that is missing, empty or damaged, with the line where there is one.
    """
    for path in paths:
        if suffix_of(path) not in KINDS:
            raise ValueError(f"{path} is no data file that klball reads: those end in {READABLE}")
        if not path.is_file():
            raise ValueError(f"no data file {path}")
        if path.stat().st_size == 0:
            raise ValueError(f"{path} is empty")
    tables = [KINDS[suffix_of(path)] == "parquet" for path in paths]
    if all(tables):
        dataset = Dataset(_concatenated([_parquet(path) for path in paths]))
    elif any(tables):
        raise ValueError(f"{paths[0].parent} mixes Parquet with other files: give those of one kind")
    else:
        try:
            dataset = dataset_of([row for path in paths for row in _rows(path)])
        except RecursionError as error:
            raise ValueError(f"{paths[0]}: brackets are nested too deeply") from error
    if not len(dataset):
        raise ValueError(f"{paths[0]} has no rows")
    return dataset


def dataset_of(rows: Sequence[Row]) -> Dataset:
    """Rows of any keys as a data set that gives them back as they are; an absent key is None."""
    names = dict.fromkeys(name for row in rows for name in row)
    return dataset_of_columns({name: [row.get(name) for row in rows] for name in names})


def dataset_of_columns(columns: dict[str, list[Any]]) -> Dataset:
    """A data set that gives these values back as they are, in JSON where Arrow's types would not.

    Arrow fills absent keys with null, reorders keys and turns 1 beside 1.5 into 1.0: all of that would be
    rendered. Raises ValueError for text that UTF-8 cannot hold, and numbers that JSON columns round.
    """
    features = {name: _exact_feature(name, values) for name, values in columns.items()}
    stored = {name: _stored(values, features[name]) for name, values in columns.items()}
    return Dataset.from_dict(stored, features=Features(features))


def _stored(values: list[Any], feature: Any) -> list[Any]:
    """JSON as text, else `datasets` takes a string that looks like JSON for it."""
    if isinstance(feature, Json):
        return [None if value is None else json.dumps(value) for value in values]
    if isinstance(feature, List) and isinstance(feature.feature, Json):
        return [None if value is None else _stored(value, feature.feature) for value in values]
    return values


def _exact_feature(name: str, values: list[Any]) -> Any:
    try:
        array = pa.array(values)
        if all(isinstance(value, str | None) for value in values):
            return Value("string")
        if _written(array.to_pylist()) == _written(values):
            return generate_from_arrow_type(array.type)
    except (UnicodeEncodeError, pa.ArrowException, OverflowError):
        pass
    _refuse_half_characters(name, values)
    if name in RENDERED:
        _refuse_rounded(name, values)
    return List(Json()) if all(isinstance(value, list | None) for value in values) else Json()


def _written(values: list[Any]) -> str:
    return json.dumps(values, default=repr)


def _refuse_half_characters(name: str, values: list[Any]) -> None:
    for row, value in enumerate(values):
        try:
            json.dumps(value, ensure_ascii=False, default=repr).encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"row {row + 1} (counted from 1), {name}: half of a two-part character (a lone \\ud8xx); "
                "write the whole character"
            ) from error


def _refuse_rounded(name: str, values: list[Any]) -> None:
    exact = Json()
    for row, value in enumerate(values):
        if value is not None and not isinstance(value, str):
            again = exact.decode_example(exact.encode_example(value))
            if _written([again]) != _written([value]):
                raise ValueError(
                    f"row {row + 1} (counted from 1), {name}: a number with more than 10 decimals, which a "
                    "column of mixed structure does not hold; write it as text"
                )


def _rows(path: Path) -> list[Row]:
    text = file_text(path)
    suffix = suffix_of(path)
    if KINDS[suffix] == "json":
        return list(json_rows(text, path))
    if KINDS[suffix] == "csv":
        return list(csv_rows(text, path, "\t" if suffix == ".tsv" else ","))
    return [{"text": line} for line in text.replace("\r\n", "\n").split("\n") if line.strip()]


def _bytes(path: Path) -> bytes:
    try:
        with pa.input_stream(str(path), compression=COMPRESSIONS.get(path.suffix.lower())) as stream:
            return stream.read()
    except (OSError, pa.ArrowInvalid) as error:
        raise ValueError(f"could not read {path}: {first_line(error)}") from error


def file_text(path: Path) -> str:
    content = _bytes(path)
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ValueError(f"{path} is in UTF-16: save it as UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}, line {line}: not UTF-8: save the file as UTF-8") from error


def json_rows(text: str, path: Path, as_written: bool = True) -> Iterator[Row]:
    """One object a line, or one array of objects; as_written: numbers at their top are text.

    NaN and Infinity, which pandas and Python write for a missing value, are null; it is said once.
    """
    found: Counter[str] = Counter()
    yield from _json_rows(text, path, as_written, found)
    if found:
        first, times = next(iter(found)), found.total()
        more = f" ({times:,} times in this file)" if times > 1 else ""
        logger.warning("%s is not JSON, and is read as null%s", first, more)


def _json_rows(text: str, path: Path, as_written: bool, constants: Counter[str]) -> Iterator[Row]:
    if re.match(r"\s*\[", text):
        values = _loads(text, str(path), constants)
        as_text = cache(lambda: _loads(text, str(path), numbers=str))
        for index, value in enumerate(values):
            row = _object(value, f"{path}, row {index + 1}")
            yield _as_written(row, lambda index=index: as_text()[index]) if as_written else row
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            where = f"{path}, line {number}"
            row = _object(_loads(line, where, constants), where)
            if as_written:
                row = _as_written(row, lambda line=line, where=where: _loads(line, where, numbers=str))
            yield row


def _loads(
    text: str,
    where: str,
    constants: Counter[str] | None = None,
    numbers: Callable[[str], Any] | None = None,
) -> Any:
    """constants: counts what is no JSON, by name, with the place of the first."""

    def null(name: str) -> None:
        if constants is not None:
            constants[f"{where}: {name}" if not constants else next(iter(constants))] += 1

    try:
        return json.loads(text, parse_int=numbers, parse_float=numbers, parse_constant=null)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, " if error.lineno > 1 else ""
        raise ValueError(
            f"{where}: not JSON ({error.msg} at {place}character {error.colno}); a data file has one object "
            "a line, or is one array of objects"
        ) from error
    except RecursionError as error:
        raise ValueError(f"{where}: brackets are nested too deeply") from error
    except ValueError as error:  # an integer of thousands of digits
        raise ValueError(f"{where}: {error}") from error


def _object(value: Any, where: str) -> Row:
    if not isinstance(value, dict):
        raise ValueError(f"{where}: a row is an object with named columns, not {type(value).__name__}")
    return value


def _as_written(row: Row, as_text: Callable[[], Row]) -> Row:
    """Numbers, true and false become the text that the file has there."""
    scalars = [name for name, value in row.items() if isinstance(value, bool | int | float)]
    texts = as_text() if scalars else row
    written = {name: texts[name] for name in scalars}
    return {**row, **{name: x if isinstance(x, str) else json.dumps(x) for name, x in written.items()}}


def csv_rows(text: str, path: Path, delimiter: str) -> Iterator[Row]:
    csv.field_size_limit(LONGEST_CELL)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        if header and all(NUMBER.fullmatch(name) for name in header):
            line = delimiter.join(header)[:60]
            raise ValueError(f"{path} has no header, its first line is {line}: put the columns' names above")
        if repeated := sorted({name for name in header if header.count(name) > 1}):
            raise ValueError(f"{path} has two columns called {repeated[0]!r}")
        for cells in reader:
            if cells and len(cells) != len(header):
                raise ValueError(
                    f"{path}, line {reader.line_num}: {len(cells)} cells, but the header has {len(header)}"
                )
            if cells:
                yield dict(zip(header, cells, strict=True))
    except csv.Error as error:
        open_quote = "unexpected end" in str(error)
        said = (
            'a cell that begins with " never ends: write a quote inside a cell as ""' if open_quote else error
        )
        raise ValueError(f"{path}, line {reader.line_num}: {said}") from error


def _parquet(path: Path) -> pa.Table:
    compressed = path.suffix.lower() in COMPRESSIONS
    try:
        table = pq.read_table(pa.BufferReader(_bytes(path)) if compressed else str(path))
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"could not read {path}: {first_line(error)}") from error
    for index, field in enumerate(table.schema):
        try:
            Features.from_arrow_schema(pa.schema([field]))
        except ValueError as error:
            raise ValueError(
                f"{path}: column {field.name} is of a type that cannot be read: {error}"
            ) from error
        plain = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
        plain = pa.string() if pa.types.is_string_view(plain) else plain
        if plain != field.type:
            table = table.set_column(index, field.with_type(plain), table[index].cast(plain))
    return table


def _concatenated(tables: list[pa.Table]) -> pa.Table:
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        raise ValueError(f"the Parquet files do not fit together: {first_line(error)}") from error
