"""The makers that ask a model: Batch files, the batch protocol with its mishaps."""

import csv
import json
import sys
from collections import Counter

import pytest

from batch_server import BatchServer, Fate, jsonl, result
from klball.commands.paraphrase import main
from klball.data.paraphrase import batch_files, quality
from klball.data.paraphrase.quality import Reply
from klball.data.paraphrase.rounds import read_rounds
from klball.data.paraphrase.samples import Sample

ROUNDS = 99


def samples(*prompts):
    return [Sample(str(i), prompt, f"answer {i}") for i, prompt in enumerate(prompts)]


# --- batch files --------------------------------------------------------------------------------

ASKING = batch_files.Asking("m", None, 50)


def test_shards_keep_both_limits(tmp_path):
    lines = list(batch_files.requests(samples(*(f"Prompt {'é' * i}" for i in range(10))), [1, 2], ASKING))
    sizes = [len(json.dumps(line, ensure_ascii=False).encode()) + 1 for line in lines]
    shards = batch_files.write_shards(lines, tmp_path, most_requests=6, most_bytes=sum(sizes[:5]))
    read = [json.loads(line) for path, _ in shards for line in path.read_text("utf-8").splitlines()]
    assert read == lines
    assert all(n <= 6 and path.stat().st_size <= sum(sizes[:5]) for path, n in shards)
    assert shards[0][1] == 5
    ids = [line["custom_id"] for line in lines]
    assert len(set(ids)) == 20 and max(map(len, ids)) <= 64
    assert {line["url"] for line in lines} == {"/v1/chat/completions"}
    with pytest.raises(ValueError, match="a file may hold"):
        batch_files.write_shards(lines, tmp_path, most_bytes=10)
    assert len(set(batch_files.STYLES)) == ROUNDS


def test_results_of_every_kind(tmp_path):
    """OpenAI's and vLLM's lines; the first answer counts; a later error does not undo it."""
    line = [{"custom_id": name} for name in "abcdefg"]
    cut = result(line[2], content="unfini")
    cut["response"]["body"]["choices"][0]["finish_reason"] = "length"
    refused = result(line[3], content="")
    refused["response"]["body"]["choices"][0]["message"] = {"content": None, "refusal": "No."}
    vllm = {"id": "v", "custom_id": "e", "response": {"status_code": 400, "request_id": "r", "body": None}}
    rows = [
        *(result(line[0], content='<think>hm "x"</think>\n"Say it."'), result(line[0], content="Later")),
        *(result(line[1], 500), result(line[1], content="Second try"), cut, refused),
        {**vllm, "error": {"error": {"message": "too long"}}},
        {
            "id": "x",
            "custom_id": "f",
            "response": None,
            "error": {"code": "batch_expired", "message": "expired"},
        },
        result(line[6], content="Rewritten prompt: “Go” or “stop”"),
    ]
    path = tmp_path / "r.jsonl"
    path.write_bytes(jsonl(rows))
    results = batch_files.read_results([path])
    assert results.replies == {
        **{
            "a": Reply('<think>hm "x"</think>\n"Say it."'),
            "b": Reply("Second try"),
            "c": Reply("unfini", quality.CUT_OFF),
        },
        **{"d": Reply("No.", quality.REFUSED), "g": Reply("Rewritten prompt: “Go” or “stop”")},
    }
    assert results.errors == {"e": "too long", "f": "expired"}


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

GOOD = {"custom_id": "a"}
ODD_LINES = {  # a line → the ids that are in error because of it; None: the line is foreign
    "empty choices": ({**GOOD, "response": {"status_code": 200, "body": {"choices": []}}}, ["a"]),
    "no choices": ({**GOOD, "response": {"status_code": 200, "body": {"id": "c"}}}, ["a"]),
    "choices null": ({**GOOD, "response": {"status_code": 200, "body": {"choices": None}}}, ["a"]),
    "choice a text": ({**GOOD, "response": {"status_code": 200, "body": {"choices": ["x"]}}}, ["a"]),
    "body a text": ({**GOOD, "response": {"status_code": 200, "body": "x"}}, ["a"]),
    "response a list": ({**GOOD, "response": [1]}, ["a"]),
    "content a number": (result(GOOD, content=7), ["a"]),
    "content an image": (result(GOOD, content=[{"type": "image_url", "image_url": "x"}]), ["a"]),
    "lone surrogate": (result(GOOD, content="\ud800"), ["a"]),
    "error a text": ({**GOOD, "response": None, "error": "bad"}, ["a"]),
    "error within": ({**GOOD, "response": {"status_code": 200, "body": {"error": {"message": "m"}}}}, ["a"]),
    "only an id": (GOOD, ["a"]),
    "half a line": (json.dumps(result(GOOD, content="x"))[:-30], ["a"]),
    "a request": ({**GOOD, "method": "POST", "url": "/v1", "body": {}}, ["a"]),
    "not UTF-8": (json.dumps(result(GOOD, content="XX")).encode().replace(b"XX", b"\xff"), ["a"]),
    "id a list": ({**result(GOOD, content="x"), "custom_id": ["a"]}, None),
    "id a number": ({**result(GOOD, content="x"), "custom_id": 7}, None),
    "id null": ({**result(GOOD, content="x"), "custom_id": None}, None),
    "no id": ({"response": {}}, None),
    "a list": ([1], None),
    "a number": ("7", None),
    "no JSON": ("Traceback (most recent call last):", None),
    "NUL": (b"\0\0\0{", None),
    "deep": ("[" * 100_000, None),
    "long number": ("9" * 5_000, None),
}


@pytest.mark.parametrize("name", ODD_LINES)
def test_an_odd_line_costs_no_other(name, tmp_path):
    line, wrong = ODD_LINES[name]
    line = line if isinstance(line, str | bytes) else json.dumps(line)
    line = line if isinstance(line, bytes) else line.encode()
    whole = [json.dumps(result({"custom_id": i}, content="Well.")).encode() for i in "bc"]
    path = tmp_path / "r.jsonl"
    path.write_bytes(whole[0] + b"\n" + line + b"\n\n" + whole[1])
    results = batch_files.read_results([path])
    assert results.replies == {"b": Reply("Well."), "c": Reply("Well.")}
    assert list(results.errors) == (wrong or []) and results.foreign == (wrong is None)
    for last in (line, line + b"\n"):  # also as the last line, and where the good answer comes later
        path.write_bytes(b"\n".join([*whole, json.dumps(result(GOOD, content="Late.")).encode(), last]))
        assert set(batch_files.read_results([path]).replies) == {"a", "b", "c"}


@pytest.mark.parametrize(
    ("encoding", "ending"), [("utf-8-sig", "\r\n"), ("utf-8", "\r\n"), ("utf-16", "\r\n"), ("utf-8", "\r")]
)
def test_encodings_of_result_files(encoding, ending, tmp_path):
    rows = [result({"custom_id": i}, content=[{"type": "text", "text": "Wéll"}, {"text": "."}]) for i in "ab"]
    text = ending.join(json.dumps(row, ensure_ascii=False) for row in rows) + ending
    (tmp_path / "r.jsonl").write_bytes(text.encode(encoding))
    results = batch_files.read_results([tmp_path / "r.jsonl"])
    assert results.replies == {"a": Reply("Wéll."), "b": Reply("Wéll.")} and results.foreign == 0


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


def test_a_good_answer_beats_one_cut_off(tmp_path):
    cut, refused = result(GOOD, content="unfini"), result(GOOD, content="")
    cut["response"]["body"]["choices"][0]["finish_reason"] = "length"
    refused["response"]["body"]["choices"][0]["message"] = {"content": None, "refusal": "No."}
    for first in (cut, refused, result(GOOD, content="")):
        for rows in ([first, result(GOOD, content="Whole.")], [result(GOOD, content="Whole."), first]):
            (tmp_path / "r.jsonl").write_bytes(jsonl(rows))
            assert batch_files.read_results([tmp_path / "r.jsonl"]).replies == {"a": Reply("Whole.")}


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
