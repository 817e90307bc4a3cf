"""Batch files: requests within both limits, and results of which an odd line costs no other."""

import json

import pytest

from batch_server import jsonl, result
from klball.data.paraphrase import batch_files, quality
from klball.data.paraphrase.quality import Reply
from test_paraphrase import ROUNDS, samples

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


def test_a_good_answer_beats_one_cut_off(tmp_path):
    cut, refused = result(GOOD, content="unfini"), result(GOOD, content="")
    cut["response"]["body"]["choices"][0]["finish_reason"] = "length"
    refused["response"]["body"]["choices"][0]["message"] = {"content": None, "refusal": "No."}
    for first in (cut, refused, result(GOOD, content="")):
        for rows in ([first, result(GOOD, content="Whole.")], [result(GOOD, content="Whole."), first]):
            (tmp_path / "r.jsonl").write_bytes(jsonl(rows))
            assert batch_files.read_results([tmp_path / "r.jsonl"]).replies == {"a": Reply("Whole.")}
