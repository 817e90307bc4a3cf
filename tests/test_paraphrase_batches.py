"""The makers that ask a model: the batch protocol with its mishaps, and folders that hold something else."""

import csv
import json
import sys
from collections import Counter

import pytest

from batch_server import BatchServer, Fate, jsonl, result
from klball.commands.paraphrase import main
from klball.data.paraphrase import quality
from klball.data.paraphrase.rounds import read_rounds


@pytest.fixture
def command(data, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    monkeypatch.setattr("time.sleep", lambda _: None)

    def step(*arguments, server=None, rounds=2):
        fixed = ["--dataset_name", data, "--rounds", rounds, "--output_dir", tmp_path / "out"]
        fixed += ["--maker", "openai-batch", "--model_name_or_path", "m", "--requests_per_file", 9]
        if server is not None:
            fixed += ["--base_url", server.url]
        main([str(a) for a in [*fixed, "--step", *arguments]], prog="klball paraphrase")

    step.folder = tmp_path / "out"
    return step


def accepted(folder):
    return [row["accepted"] for row in read_rounds(folder / "rounds.parquet").acceptance()]


def check_joined(folder):
    """Every accepted prompt is the wording of its own sample, whatever the order of the results."""
    rounds = read_rounds(folder / "rounds.parquet")
    for round_ in rounds.rounds:
        for row in rounds.table(round_).to_pylist():
            assert row["prompt"].endswith(row["original"]) and row["prompt"] != row["original"]
    everything = [row["prompt"] for r in rounds.rounds for row in rounds.table(r).to_pylist()]
    assert len(set(everything)) == len(everything)


def test_batches_from_submit_to_collect(command):
    with BatchServer(fates=[Fate(polls=2)]) as server:
        command("submit", server=server)
        command("status", server=server)
        with pytest.raises(ValueError, match="9 of 24 requests have no reply yet"):
            command("collect", server=server)
        command("collect", server=server)
    assert accepted(command.folder) == [12, 12] and set(server.asked.values()) == {1}
    check_joined(command.folder)
    with (command.folder / "acceptance.csv").open() as file:
        assert [row["accepted"] for row in csv.DictReader(file)] == ["12", "12"]
    command("collect", server=server)  # finished: the server, gone by now, is not asked


def test_only_what_is_missing_is_asked_again(command):
    fates = [Fate(failed=2), Fate("expired", expired=4), Fate("failed"), Fate(failed=1)]
    with BatchServer(fates=fates) as server:
        command("submit", server=server)
        with pytest.raises(ValueError, match="12 of 24 requests"):
            command("collect", server=server)
        command("submit", server=server)
        with pytest.raises(ValueError, match="1 of 24 requests"):
            command("collect", server=server)
        command("submit", server=server)
        command("collect", server=server)
    assert sorted(Counter(server.asked.values()).items()) == [(1, 12), (2, 11), (3, 1)]
    assert accepted(command.folder) == [12, 12]
    check_joined(command.folder)


def test_missing_replies_may_fall_back(command):
    with BatchServer(fates=[Fate(failed=2)]) as server:
        command("submit", server=server)
        command("collect", "--allow_missing", "true", server=server)
    rounds = read_rounds(command.folder / "rounds.parquet")
    assert accepted(command.folder) == [10, 12]
    fallen = [row for row in rounds.table(1).to_pylist() if not row["accepted"]]
    assert [(row["reason"], row["prompt"]) for row in fallen] == [
        (quality.NO_REPLY, r["original"]) for r in fallen
    ]


def test_errors_of_the_server_cost_no_second_batch(command):
    """A refused call is repeated; one that was carried out but answered 500 is found in the list."""
    with BatchServer(lost_answers=1) as server:
        server.http_500.update(
            {"POST /v1/files": 1, "GET /v1/files/file-0/content": 1, "GET /v1/batches/batch_0": 1}
        )
        command("submit", server=server)
        command("collect", server=server)
    assert set(server.asked.values()) == {1} and accepted(command.folder) == [12, 12]


def test_interrupted_submission_submits_nothing_twice(command, monkeypatch):
    """Killed after any of the writes of the state: the same step again brings each request once."""
    from klball.data.paraphrase.openai_batch import BatchFolder

    real, kills = BatchFolder.save, iter(range(1, 100))

    class Killed(BaseException):
        pass

    with BatchServer() as server:
        while True:
            left = [next(kills)]

            def save(self, left=left):
                left[0] -= 1
                if left[0] == 0:  # what the server did is lost to us
                    raise Killed
                real(self)

            monkeypatch.setattr(BatchFolder, "save", save)
            try:
                command("submit", server=server)
                break
            except Killed:
                continue
        monkeypatch.setattr(BatchFolder, "save", real)
        command("collect", server=server)
    assert set(server.asked.values()) == {1} and len(server.asked) == 24
    check_joined(command.folder)


def test_local_results_need_no_server(command, monkeypatch, tmp_path):
    """Request files as `vllm run-batch` takes them; its results, errors mixed in, from a file."""
    monkeypatch.delenv("OPENAI_API_KEY")
    command("requests")
    folder = command.folder / "batch"

    def run_batch(shard, name, failed=0):
        lines = [json.loads(line) for line in (folder / shard).read_text().splitlines()]
        rows = [result(line, 500 if i < failed else 200) for i, line in enumerate(lines)]
        (tmp_path / name).write_bytes(jsonl([*rows, result({"custom_id": "stranger"}, content="x")]))
        return tmp_path / name

    names = sorted(path.name for path in folder.glob("requests-*.jsonl"))
    assert names == ["requests-0001.jsonl", "requests-0002.jsonl", "requests-0003.jsonl"]
    with pytest.raises(ValueError, match="17 of 24"):
        command("collect", "--results", run_batch(names[0], "one.jsonl", failed=2))
    command("requests")
    assert len((folder / "requests-0004.jsonl").read_text().splitlines()) == 2
    outputs = [run_batch(name, "same.jsonl") for name in ("requests-0004.jsonl",)]
    with pytest.raises(ValueError, match="15 of 24"):
        command("collect", "--results", *outputs)
    command("collect", "--results", *(run_batch(n, f"o-{n}") for n in names[1:]))
    assert accepted(command.folder) == [12, 12]
    check_joined(command.folder)


def test_another_configuration_or_server_is_refused(command):
    with BatchServer() as server, BatchServer() as other:
        command("submit", server=server)
        with pytest.raises(ValueError, match="another configuration \\(different: rounds\\)"):
            command("submit", server=server, rounds=3)
        with pytest.raises(ValueError, match="was submitted to"):
            command("collect", server=other)


def test_unreachable_server_is_one_line(command):
    with pytest.raises(ValueError, match=r"the batch server: Connection error"), BatchServer() as server:
        server.url = "http://127.0.0.1:9/v1"
        command("submit", server=server)


def test_missing_extra_and_key_are_one_line(command, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(ValueError, match="set OPENAI_API_KEY"):
        command("submit")
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ValueError, match="pip install 'klball\\[openai\\]'"):
        command("submit")


# --- what else result files and folders hold ------------------------------------------------------


def test_results_of_strangers_do_not_change_what_rounds_are_made_from(command, tmp_path):
    command("requests")
    requests = sorted((command.folder / "batch").glob("requests-*"))
    lines = [json.loads(x) for p in requests for x in p.read_text().splitlines()]
    (tmp_path / "good.jsonl").write_bytes(jsonl([result(line) for line in lines]))
    (tmp_path / "foreign.jsonl").write_bytes(jsonl([result({**lines[0], "custom_id": "round-1-other"})]))
    command("collect", "--results", tmp_path / "good.jsonl")
    before = (command.folder / "rounds.parquet").read_bytes()
    command("collect", "--results", tmp_path / "good.jsonl", tmp_path / "foreign.jsonl")
    assert (command.folder / "rounds.parquet").read_bytes() == before


def test_a_step_that_was_refused_leaves_no_folder_behind(command, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(ValueError, match="OPENAI_API_KEY"):
        command("submit")
    assert not (command.folder / "batch" / "state.json").exists()


@pytest.mark.parametrize("what", ["junk in results", "unsubmitted file lost", "junk given"])
def test_a_folder_does_not_get_stuck(what, command, tmp_path, capsys):
    command("requests")
    folder = command.folder / "batch"
    lines = [json.loads(x) for p in sorted(folder.glob("requests-*")) for x in p.read_text().splitlines()]
    (folder / "results").mkdir(exist_ok=True)
    (tmp_path / "odd.jsonl").write_bytes(b"\0junk\n" + (folder / "requests-0001.jsonl").read_bytes())
    if what == "junk in results":
        (folder / "results" / "junk.jsonl").write_bytes(b"\xff\xfe\0\n{}\n")
        (folder / "results" / "folder.jsonl").mkdir()
    elif what == "unsubmitted file lost":
        (folder / "requests-0001.jsonl").unlink()
        command("requests")
        assert [json.loads(x)["custom_id"] for x in (folder / "requests-0004.jsonl").read_text().splitlines()]
    else:
        with pytest.raises(ValueError, match="holds no Batch result"):
            command("collect", "--results", tmp_path / "odd.jsonl")
    command("status")
    (tmp_path / "good.jsonl").write_bytes(jsonl([result(line) for line in lines]))
    command("collect", "--results", tmp_path / "good.jsonl")
    assert accepted(command.folder) == [12, 12]


@pytest.mark.parametrize(
    "content",
    [
        *("", "[]", "{", "null", "{}", '{"about": {}}', '{"about": {}, "shards": [{}]}'),
        *('{"about": 3, "shards": []}', '{"about": {}, "shards": [{"path": "x", "requests": 1, "y": 2}]}'),
        *('{"about": {}, "shards": 3}', '{"about": {}, "shards": [{"path": "../a.jsonl", "requests": 1}]}'),
    ],
)
def test_a_damaged_state_is_one_line_that_says_what_to_do(content, command):
    command("requests")
    state = command.folder / "batch" / "state.json"
    state.write_text(content)
    with pytest.raises(ValueError, match=r"state\.json is damaged .*: remove it to begin anew") as caught:
        command("status")
    assert "\n" not in str(caught.value)
    state.unlink()
    command("requests")


@pytest.mark.parametrize("batch_id", ["../../../escaped", "/tmp/escaped", "a/b", "..", "x" * 400, "é\0"])
def test_a_servers_id_names_no_other_place(batch_id, command, tmp_path):
    from types import SimpleNamespace as Namespace

    from klball.data.paraphrase.openai_batch import BatchFolder, Shard

    folder = BatchFolder(tmp_path / "out", {})
    folder.shards = [Shard("requests-0001.jsonl", 1, "f", batch_id, "http://h/")]
    before = set(tmp_path.rglob("*"))
    batch = Namespace(
        status="completed", request_counts=None, errors=None, output_file_id="o", error_file_id=""
    )
    client = Namespace(base_url="http://h/", batches=Namespace(retrieve=lambda _: batch))
    folder._download = lambda _client, _file, name: _write(folder.folder / "results" / name)
    folder.refresh(client, download=True)
    (written,) = set(tmp_path.rglob("*.jsonl")) - before
    assert written.parent == folder.folder / "results"


def _write(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{}\n")


def test_a_password_in_the_address_is_kept_nowhere(command, capsys):
    with BatchServer() as server:
        server.url = server.url.replace("http://", "http://user:pa55word@") + "?key=s3cret"
        try:
            command("submit", server=server)
        except ValueError as error:
            assert "pa55word" not in str(error)
        command("requests", server=server)
    kept = [p.read_text(errors="replace") for p in command.folder.rglob("*") if p.is_file()]
    assert kept and not any("pa55word" in text or "s3cret" in text for text in kept)
