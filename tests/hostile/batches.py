"""Results of Batch servers with foreign lines, and folders of batches that are damaged: none gets stuck."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .case import EITHER, REFUSED, WORKS, Case, good_data, good_rows, jsonl

ASK = (
    *(
        "paraphrase",
        "--dataset_name",
        "d.jsonl",
        "--maker",
        "openai-batch",
        "--model_name_or_path",
        "some-model",
    ),
    *("--rounds", "1", "--output_dir", "p"),
)
COLLECT = (*ASK, "--step", "collect", "--results", "res.jsonl", "--allow_missing", "true")
REWORDED = "Tell me about the number {i}, please."


def cases() -> Iterator[Case]:
    """All of them."""
    for kind, change in LINES.items():
        check = _others_are_used if kind not in ALL_LOST else None
        yield Case(f"collect: {kind}", "batch results", WORKS, COLLECT, _prepare(change), check=check)
    for kind, (content, expected) in FILES.items():
        prepare = _prepare(lambda results, content=content: content(_lines(results)))
        yield Case(f"collect: file {kind}", "batch results", expected, COLLECT, prepare)
    for kind, text in WRAPPED.items():
        prepare = _prepare(lambda results, text=text: _reworded(results, text))
        yield Case(f"collect: {kind}", "batch replies", WORKS, COLLECT, prepare, check=_unwrapped)
    for kind, (change, expected) in STATES.items():
        for step in ("collect", "status", "requests"):
            arguments = [*ASK, "--step", step, *(("--allow_missing", "true") if step == "collect" else ())]
            prepare = _state(change)
            hints = ("state.json",) if expected == REFUSED else ()
            yield Case(f"{step}: {kind}", "batch folders", expected, arguments, prepare, hints=hints)
    yield from _odd_folders()


def _requests() -> list[dict[str, Any]]:
    """Write the requests of four rows with the command; return them."""
    import contextlib
    import io

    from klball import cli

    good_data()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        cli.main([*ASK, "--step", "requests"])
    return [json.loads(line) for line in Path("p/batch/requests-0001.jsonl").read_text().splitlines()]


def _results() -> list[Any]:
    return [_result(request["custom_id"], REWORDED.format(i=i)) for i, request in enumerate(_requests())]


def _result(custom_id: Any, text: Any) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    body = {"id": "x", "object": "chat.completion", "choices": [choice]}
    return {"id": "b", "custom_id": custom_id, "response": {"status_code": 200, "body": body}, "error": None}


def _lines(results: list[Any]) -> bytes:
    return "".join(json.dumps(line) + "\n" for line in results).encode()


def _prepare(change: Callable[[list[Any]], Any]) -> Callable[[], None]:
    """Results with something changed; bytes are written as they are, None writes nothing."""

    def prepare() -> None:
        content = change(_results())
        if isinstance(content, list):
            content = b"".join(x if isinstance(x, bytes) else _lines([x]) for x in content)
        if content is not None:
            Path("res.jsonl").write_bytes(content)

    return prepare


def _third(change: Callable[[dict[str, Any]], Any]) -> Callable[[list[Any]], list[Any]]:
    """Another third result; the others stay."""
    return lambda results: [*results[:2], change(results[2]), *results[3:]]


def _set(*path: Any, value: Any) -> Callable[[list[Any]], list[Any]]:
    def change(result: dict[str, Any]) -> dict[str, Any]:
        inner: Any = result
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value
        return result

    return _third(change)


CHOICE = ("response", "body", "choices", 0)
MESSAGE = (*CHOICE, "message")
LINES: dict[str, Callable[[list[Any]], Any]] = {
    "as it should be": lambda results: results,
    "out of order": lambda results: results[::-1],
    "a line twice": lambda results: [*results, results[0]],
    "a stranger's line": lambda results: [*results, _result("round-1-stranger", "Hello.")],
    "half a line at the end": lambda results: [*results[:3], _lines(results[3:])[:-40]],
    "half a line in the middle": _third(lambda result: _lines([result])[:50] + b"\n"),
    "a line of text": _third(lambda result: b"Internal Server Error\n"),
    "an HTML line": _third(lambda result: b"<html>502</html>\n"),
    "a null line": _third(lambda result: None),
    "a list for a line": _third(lambda result: [1]),
    "a number for a line": _third(lambda result: 3),
    "an empty object": _third(lambda result: {}),
    "nested brackets": _third(lambda result: b"[" * 100_000 + b"\n"),
    "NUL bytes": _third(lambda result: b"\0" * 200 + b"\n"),
    "bytes that are no UTF-8": _third(lambda result: b'{"custom_id": "\xff"}\n'),
    "no custom_id": _third(lambda result: {k: v for k, v in result.items() if k != "custom_id"}),
    "null custom_id": _set("custom_id", value=None),
    "list for a custom_id": _set("custom_id", value=["a"]),
    "dict for a custom_id": _set("custom_id", value={"a": 1}),
    "number for a custom_id": _set("custom_id", value=7),
    "null response": _set("response", value=None),
    "response in words": _set("response", value="no"),
    "response in a list": _set("response", value=[1]),
    "no status code": _third(lambda r: {**r, "response": {"body": None}}),
    "status code in words": _set("response", "status_code", value="OK"),
    "HTTP 429": _set("response", "status_code", value=429),
    "null body": _set("response", "body", value=None),
    "body in words": _set("response", "body", value="no"),
    "body in a list": _set("response", "body", value=[1]),
    "empty choices": _set("response", "body", "choices", value=[]),
    "null choices": _set("response", "body", "choices", value=None),
    "choices in a dict": _set("response", "body", "choices", value={"a": 1}),
    "choices of words": _set("response", "body", "choices", value=["a"]),
    "null choice": _set("response", "body", "choices", value=[None]),
    "no message": _set(*CHOICE, value={"text": "old"}),
    "null message": _set(*MESSAGE, value=None),
    "message in words": _set(*MESSAGE, value="no"),
    "null content": _set(*MESSAGE, "content", value=None),
    "content in parts": _set(*MESSAGE, "content", value=[{"type": "text", "text": REWORDED.format(i=2)}]),
    "content of a number": _set(*MESSAGE, "content", value=3),
    "content of a dict": _set(*MESSAGE, "content", value={"text": "x"}),
    "empty content": _set(*MESSAGE, "content", value=""),
    "white space for content": _set(*MESSAGE, "content", value=" \n\t"),
    "a lone surrogate": _third(lambda r: _lines([r]).replace(b"Tell me", b"\\ud800 me")),
    "escapes in the content": _set(*MESSAGE, "content", value="\x1b[2J about the number 2 \x1b]0;x\x07"),
    "markup in the content": _set(*MESSAGE, "content", value="[/INST] what about the number 2?"),
    "a very long content": _set(*MESSAGE, "content", value="number 2 " * 100_000),
    "a refusal": _set(*MESSAGE, "refusal", value="I cannot."),
    "a refusal of a number": _set(*MESSAGE, "refusal", value=3),
    "a finish reason of a list": _set(*CHOICE, "finish_reason", value=[1]),
    "an error in words": _set("error", value="quota"),
    "an error in a dict": _set("error", value={"message": "quota [/b] \x1b[2J", "code": 1}),
    "an error in a list": _set("error", value=["quota"]),
    "only strangers": lambda results: [_result("a", "b")],
    "only errors": lambda results: [{**r, "error": {"message": "down"}, "response": None} for r in results],
}
ALL_LOST = ("only strangers", "only errors")
FILES: dict[str, tuple[Callable[[bytes], bytes | None], str]] = {
    "with a byte order mark": (lambda content: b"\xef\xbb\xbf" + content, WORKS),
    "with CRLF": (lambda content: content.replace(b"\n", b"\r\n"), WORKS),
    "with blank lines": (lambda content: content.replace(b"\n", b"\n\n"), WORKS),
    "without its last line end": (lambda content: content.strip(), WORKS),
    "that is empty": (lambda content: b"", EITHER),
    "in utf-16": (lambda content: content.decode().encode("utf-16"), EITHER),
    "of noise": (lambda content: bytes(range(256)) * 9, EITHER),
    "that is a JSON list": (lambda content: b"[" + b",".join(content.splitlines()) + b"]", EITHER),
    "that is not there": (lambda content: None, REFUSED),
    "packed": (lambda content: __import__("gzip").compress(content), EITHER),
}
WRAPPED = {
    "fence": "```\n{text}\n```",
    "fence with a language": "```text\n{text}\n```",
    "JSON": '{{"prompt": "{text}"}}',
    "JSON in a fence": '```json\n{{"rewritten_prompt": "{text}"}}\n```',
    "JSON list": '["{text}"]',
    "sure": "Sure! Here is the rewritten prompt:\n\n{text}",
    "certainly": "Certainly, here's a rephrased version:\n{text}",
    "of course": "Of course! Here is another way to put it: {text}",
    "bold label": "**Rewritten prompt:** {text}",
    "bold label on a line": "**Prompt**\n\n{text}",
    "heading": "### Rewritten prompt\n{text}",
    "label": "Prompt: {text}",
    "label in capitals": "REPHRASED: {text}",
    "quotes": '"{text}"',
    "guillemets": "«{text}»",
    "closing offer": "{text}\n\nLet me know if you would like another version!",
    "note": "{text}\n\n(Note: I kept the number.)",
    "choices": "1. {text}\n2. What is the number {i}?",
    "tags": "<prompt>{text}</prompt>",
    "thoughts": "<think>The number is {i}.</think>\n{text}",
    "open thoughts": "<think>The number is {i}. {text}",
    "answer beside it": "{text}\nAnswer: It is {i}.",
}


def _reworded(results: list[Any], wrapping: str) -> list[Any]:
    texts = [wrapping.format(text=REWORDED.format(i=i), i=i) for i in range(len(results))]
    return [_result(result["custom_id"], text) for result, text in zip(results, texts, strict=True)]


def _prompts() -> list[tuple[bool, str]]:
    import pyarrow.parquet as pq

    table = pq.read_table("p/rounds.parquet")
    return list(zip(table["accepted"].to_pylist(), table["prompt"].to_pylist(), strict=True))


def _others_are_used() -> str | None:
    """The replies to the other requests are accepted."""
    used = [prompt for accepted, prompt in _prompts() if accepted]
    wanted = {REWORDED.format(i=i) for i in (0, 1, 3)}
    lost = wanted - set(used)
    half = 1 if len(lost) == 1 and REWORDED.format(i=3) in lost else 0  # the cut last line's own
    return f"{len(lost)} good replies are not used" if len(lost) - half > 0 else None


def _unwrapped() -> str | None:
    """Each prompt is the bare rewording, or the original where the reply was rejected."""
    good = {REWORDED.format(i=i) for i in range(4)} | {row["question"] for row in good_rows()}
    odd = [prompt for _, prompt in _prompts() if prompt not in good]
    return f"a wrapping became a prompt: {odd[0]!r:.120}" if odd else None


def _drop(key: str) -> Callable[[Any], Any]:
    return lambda state: {k: v for k, v in state.items() if k != key}


def _shard(**values: Any) -> Callable[[Any], Any]:
    return lambda state: {**state, "shards": [{**state["shards"][0], **values}]}


STATES: dict[str, tuple[Callable[[Any], Any], str]] = {  # a dict is written as JSON, bytes as they are
    "state junk": (lambda state: b"junk", REFUSED),
    "state empty": (lambda state: b"", REFUSED),
    "state cut": (lambda state: json.dumps(state).encode()[:60], REFUSED),
    "state null": (lambda state: None, REFUSED),
    "state a list": (lambda state: [], REFUSED),
    "state {}": (lambda state: {}, REFUSED),
    "state in brackets": (lambda state: b"[" * 100_000, REFUSED),
    "state without about": (_drop("about"), REFUSED),
    "state without shards": (_drop("shards"), REFUSED),
    "shards null": (lambda state: {**state, "shards": None}, REFUSED),
    "shards of words": (lambda state: {**state, "shards": ["a"]}, REFUSED),
    "a shard without a path": (lambda state: {**state, "shards": [{"requests": 4}]}, REFUSED),
    "a shard with more keys": (_shard(wow=1), EITHER),
    "a shard of a lost file": (_shard(path="requests-0009.jsonl"), EITHER),
    "a shard outside the folder": (_shard(path="../../../escaped.jsonl"), EITHER),
    "a shard with a numeric path": (_shard(path=3), REFUSED),
    "a shard with requests in words": (_shard(requests="four"), EITHER),
    "about of another run": (lambda state: {**state, "about": {"maker": "x"}}, EITHER),
    "about in a list": (lambda state: {**state, "about": [1]}, REFUSED),
}


def _state(change: Callable[[Any], Any]) -> Callable[[], None]:
    def prepare() -> None:
        _requests()
        path = Path("p/batch/state.json")
        content = change(json.loads(path.read_text()))
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())

    return prepare


def _odd_folders() -> Iterator[Case]:
    """Downloaded results and request files that are odd, and steps that lack something."""

    def downloaded(content: bytes) -> Callable[[], None]:
        def prepare() -> None:
            results = _results()
            folder = Path("p/batch/results")
            folder.mkdir(parents=True)
            (folder / "batch_1-output.jsonl").write_bytes(content)
            (folder / "batch_2-output.jsonl").write_bytes(_lines(results))

        return prepare

    odd = {
        "junk": b"junk\n",
        "half": b'{"custom_id": "a',
        "empty": b"",
        "brackets": b"[" * 100_000,
        "null": b"null\n",
    }
    for kind, content in odd.items():
        arguments = [*ASK, "--step", "collect", "--allow_missing", "true"]
        prepare = downloaded(content)
        yield Case(
            f"collect: downloaded {kind}", "batch folders", WORKS, arguments, prepare, check=_others_are_used
        )

    def requests(content: bytes) -> Callable[[], None]:
        return lambda: (_requests(), Path("p/batch/requests-0001.jsonl").write_bytes(content))

    for kind, content in odd.items():
        yield Case(
            f"requests: requests {kind}",
            "batch folders",
            EITHER,
            [*ASK, "--step", "requests"],
            requests(content),
        )
    no_server = {"OPENAI_API_KEY": "x", "OPENAI_BASE_URL": "http://127.0.0.1:9/v1"}
    steps: dict[str, tuple[list[str], dict[str, str]]] = {
        "no key": (["--step", "submit"], {"OPENAI_API_KEY": ""}),
        "no server": (["--step", "submit"], no_server),
        "a server that is no URL": (["--step", "submit", "--base_url", "nowhere"], {"OPENAI_API_KEY": "x"}),
        "a server of another kind": (["--step", "submit", "--base_url", "ftp://a"], {"OPENAI_API_KEY": "x"}),
        "no step": ([], {}),
        "an unknown step": (["--step", "fly"], {}),
        "a missing result": (["--step", "collect", "--results", "none.jsonl"], {}),
        "a folder of results": (["--step", "collect", "--results", "."], {}),
        "nothing to collect": (["--step", "collect"], {}),
    }
    for kind, (more, environment) in steps.items():
        yield Case(
            *(f"steps: {kind}", "batch folders", REFUSED, [*ASK, *more], good_data),
            environment=environment,
        )
    no_prompt = [{"question": " ", "answer": "x"}] * 4
    yield Case(
        "requests: no prompts",
        "batch folders",
        REFUSED,
        [*ASK, "--step", "requests"],
        lambda: jsonl(no_prompt),
    )
