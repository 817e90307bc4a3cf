"""One writer of whole files, one digest, one check of what a file was made from, one list of versions."""

import ast
import hashlib
import json
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash

import klball.files
from klball.files import (
    combined,
    differences,
    digest,
    file_digest,
    json_digest,
    parts_folder,
    provenance_in,
    refuse_other,
    remove_parts,
    versions,
    write_json,
    write_table,
)

SOURCE = Path(klball.files.__file__).parent
OWNED = {"hashlib", "xxhash", "os.replace", "os.rename", "importlib.metadata"}
ELSEWHERE = {  # why it is not files.py's
    "training/identity.py": {"xxhash"},  # a digest of 16 bytes a row, to look rows up by
}


def used(path):
    """Which of `OWNED` a module imports or calls."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield str(node.module)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield f"{node.value.id}.{node.attr}"


def test_only_one_module_hashes_replaces_files_and_lists_versions():
    found = {p.relative_to(SOURCE).as_posix(): OWNED & set(used(p)) for p in SOURCE.rglob("*.py")}
    assert found.pop("files.py") == OWNED - {"os.rename"}
    assert {name: own for name, own in found.items() if own} == ELSEWHERE


def test_digests_are_those_that_files_on_disk_hold(tmp_path):
    text = "λ \udce9 x"
    plain = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
    assert digest(text) == plain[:16] and digest(text, 64) == plain
    assert digest(b"\x00\xff") == hashlib.sha256(b"\x00\xff").hexdigest()[:16]
    value = {"b": [1, None, 2.5], "a": "é", "path": tmp_path}
    written = json.dumps({"a": "é", "b": [1, None, 2.5], "path": str(tmp_path)})
    assert json_digest(value) == hashlib.sha256(written.encode()).hexdigest()[:16]
    parts = [b"ab", b"", b"c" * 9_000]
    assert combined(parts) == xxhash.xxh3_128(b"".join(parts)).hexdigest()[:16]
    (tmp_path / "x").write_bytes(b"y" * (klball.files.BLOCK + 3))
    assert file_digest(tmp_path / "x") == combined([b"y" * (klball.files.BLOCK + 3)])


CHANGES = [
    ({"rows": 3}, ["rows"]),
    ({"rows": 2, "extra": None}, []),
    ({"libraries": {"torch": "2"}}, ["libraries"]),
    ({"model": "b"}, []),  # found elsewhere
    ({"data": "x", "rows": 9}, ["data", "rows"]),
]


@pytest.mark.parametrize(("change", "names"), CHANGES)
def test_a_finished_file_of_something_else_is_refused_by_what_differs(change, names, tmp_path):
    recorded = {"model": "a", "rows": 2, "path": "p", "libraries": {"torch": "1"}}
    wanted = {**recorded, "path": Path("p"), **change}
    assert differences(recorded, wanted, {"model"}) == names
    if not names:
        refuse_other(tmp_path / "t", recorded, wanted, {"model"})
        return
    with pytest.raises(ValueError) as caught:
        refuse_other(tmp_path / "t", recorded, wanted, {"model"})
    assert f"made from something else (different: {', '.join(names)})" in str(caught.value)


def test_a_table_keeps_what_it_was_made_from_and_its_parts_are_its_own(tmp_path):
    path = tmp_path / "t[1].parquet"
    about = {"rows": 2, "folder": tmp_path}
    parts = parts_folder(path, about)
    assert parts == parts_folder(path, {"folder": str(tmp_path), "rows": 2})
    assert parts != parts_folder(path, {**about, "rows": 3})
    write_table(pa.table({"a": [1]}), parts / "000000.parquet")
    write_table(pa.table({"a": [1, 2]}), path, about)
    other = tmp_path / "t1.parquet.parts-0"
    other.mkdir()
    remove_parts(path)
    assert sorted(tmp_path.iterdir()) == [other, path]
    assert provenance_in(path, pq.read_schema(path)) == {"rows": 2, "folder": str(tmp_path)}
    assert provenance_in(path, pa.schema([])) == {}
    for damaged in ("", "[]", "{", "[" * 100_000):
        with pytest.raises(ValueError, match="provenance is no JSON"):
            provenance_in(path, pa.schema([], {"klball": damaged}))


def test_processes_of_two_containers_never_write_to_one_name(monkeypatch):
    """They share the machine's name, and each has a process 1."""
    assert klball.files._here() == klball.files.HOST
    monkeypatch.setattr("os.readlink", lambda path: "pid:[1]")
    other = klball.files._here()
    monkeypatch.setattr("os.readlink", lambda path: "pid:[2]")
    assert len({other, klball.files._here(), klball.files.HOST}) == 3


def test_versions_are_listed_once_and_written_whole(tmp_path):
    everything = versions()
    assert set(everything) == {"python", *klball.files.LIBRARIES}
    assert versions("torch") == {"torch": everything["torch"]}
    write_json(tmp_path / "new" / "run.json", {"b": tmp_path, "a": everything})
    found = klball.files.read_json_object(tmp_path / "new" / "run.json")
    assert found == {"a": everything, "b": str(tmp_path)}
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["run.json"]


def test_the_source_tree_has_a_version_without_being_installed(monkeypatch):
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(klball.files, "version", missing)
    assert versions("klball") == {"klball": klball.__version__}
