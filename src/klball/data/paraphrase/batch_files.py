"""Batch JSONL, the one interchange format: requests for a rephrasing, and the replies found in results."""

import codecs
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from klball.data.paraphrase.quality import CUT_OFF, NO_PROMPT, NO_REPLY, REFUSED, WRAPPED, Reply
from klball.data.paraphrase.samples import Sample
from klball.data.paraphrase.unwrapping import unwrap
from klball.files import digest, whole_file

ENDPOINT = "/v1/chat/completions"
MOST_REQUESTS, MOST_BYTES = 50_000, 200_000_000  # of one Batch file, as documented

VOICES = (
    *("in plain words", "formally", "casually", "politely", "briefly, but leaving nothing out"),
    *("in more words, but adding nothing", "as a colleague would", "as a beginner would"),
    *("as one would in a letter", "as one would say it aloud", "matter-of-factly"),
)
SHAPES = (
    *("as a question", "as a request", "as an instruction", "with another order of its parts"),
    *("with other verbs", "with other nouns where that is safe", "with another beginning"),
    *("with sentences joined or split in another way", "with active and passive swapped where natural"),
)
STYLES = tuple(f"Put it {voice}, {shape}." for shape, voice in product(SHAPES, VOICES))

INSTRUCTION = (
    "Rewrite the prompt below in other words. Keep its meaning, its language, every number as digits, "
    "every name, and everything between backticks exactly as it is. {style} Do not answer the prompt. "
    "Reply with the rewritten prompt alone.\n\nPrompt:\n{prompt}"
)
CUSTOM_ID = re.compile(r'"custom_id"\s*:\s*"([^"\\]+)"')  # in a line that is no JSON


@dataclass(frozen=True)
class Asking:
    """What a chat model is asked with; `temperature` None leaves it to the server."""

    model: str
    temperature: float | None
    max_new_tokens: int

    def about(self) -> dict[str, Any]:
        """For the provenance: these settings and a hash of the wording."""
        wording = digest("".join((INSTRUCTION, *STYLES)))
        return {**asdict(self), "wording": wording}


def requests(samples: Sequence[Sample], rounds: Iterable[int], asking: Asking) -> Iterator[dict[str, Any]]:
    """One Batch request per round and sample that has a prompt, round by round."""
    for round_ in rounds:
        yield from (request(sample, round_, asking) for sample in samples if sample.prompt.strip())


def request(sample: Sample, round_: int, asking: Asking) -> dict[str, Any]:
    """A line of a Batch file. Its `custom_id` hashes all that was asked, so stale results never join."""
    style = STYLES[(round_ - 1) % len(STYLES)]
    content = INSTRUCTION.format(style=style, prompt=sample.prompt.strip())
    body: dict[str, Any] = {"model": asking.model, "messages": [{"role": "user", "content": content}]}
    body["max_completion_tokens"] = asking.max_new_tokens
    if asking.temperature is not None:
        body["temperature"] = asking.temperature
    body["seed"] = int(_hash(round_, sample.sample_id)[:7], 16)
    custom_id = f"round-{round_}-{_hash(sample.sample_id, body)}"
    return {"custom_id": custom_id, "method": "POST", "url": ENDPOINT, "body": body}


def _hash(*values: Any) -> str:
    return digest(json.dumps(values), 32)


def write_shards(
    lines: Iterable[dict[str, Any]],
    folder: Path,
    first: int = 1,
    most_requests: int = MOST_REQUESTS,
    most_bytes: int = MOST_BYTES,
) -> list[tuple[Path, int]]:
    """Requests as files requests-0001.jsonl, … within the limits: their paths and numbers of requests.

    Raises ValueError for a single request that is larger than `most_bytes`.
    """
    shards: list[tuple[Path, int]] = []
    for encoded in _portions(lines, most_requests, most_bytes):
        path = folder / f"requests-{first + len(shards):04d}.jsonl"
        with whole_file(path) as temporary:
            temporary.write_bytes(b"".join(encoded))
        shards.append((path, len(encoded)))
    return shards


def _portions(lines: Iterable[dict[str, Any]], most_requests: int, most_bytes: int) -> Iterator[list[bytes]]:
    portion, size = [], 0
    for line in lines:
        encoded = json.dumps(line, ensure_ascii=False).encode() + b"\n"
        if len(encoded) > most_bytes:
            raise ValueError(
                f"request {line['custom_id']} has {len(encoded)} bytes; a file may hold {most_bytes}"
            )
        if len(portion) == most_requests or size + len(encoded) > most_bytes:
            yield portion
            portion, size = [], 0
        portion.append(encoded)
        size += len(encoded)
    if portion:
        yield portion


def request_ids(path: Path) -> list[str]:
    """The custom ids of a request file. Raises ValueError if it is not as it was written."""
    try:
        with path.open(encoding="utf-8") as file:
            return [str(json.loads(line)["custom_id"]) for line in file]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: remove it, and its requests are written anew") from error


@dataclass
class Results:
    """What result files say: `replies` by custom id; `errors` of requests that were not answered.

    `foreign`: lines that belong to no request at all; `results`: those that are results.
    """

    replies: dict[str, Reply] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    foreign: int = 0
    results: int = 0

    def add(self, custom_id: str, reply: Reply) -> None:
        """The first answer to a request counts, but for one that is cut off or refused, or empty."""
        known = self.replies.get(custom_id)
        if known is None or (_failed(known) and not _failed(reply)):
            self.replies[custom_id] = reply


def _failed(reply: Reply) -> bool:
    return bool(reply.problem) or not reply.text


def read_results(paths: Iterable[Path]) -> Results:
    """Results joined by custom id, whatever their order or number, and whatever else is in the files.

    Output and error files alike, as OpenAI's Batch API and `vllm run-batch` write them. A line that is
    no result is an error of the id it names; if it names none it is counted as foreign.
    """
    results = Results()
    for path in paths:
        for line in _lines(path):
            _read_line(line, results)
    results.errors = {i: error for i, error in results.errors.items() if i not in results.replies}
    return results


def _lines(path: Path) -> Iterator[str]:
    """Lines that are not blank; bytes that are not in the file's encoding become lone surrogates."""
    with path.open("rb") as file:
        wide = file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # as PowerShell redirects
    errors = "replace" if wide else "surrogateescape"
    with path.open(encoding="utf-16" if wide else "utf-8-sig", errors=errors) as file:
        yield from (line for line in (line.strip("\0\ufeff \t\r\n") for line in file) if line)


def _read_line(line: str, results: Results) -> None:
    try:
        result = json.loads(line)
        custom_id = result["custom_id"]
    except (ValueError, KeyError, TypeError, RecursionError):
        result, found = {}, CUSTOM_ID.search(line)
        custom_id = found[1] if found else None
    if not isinstance(custom_id, str) or not _is_text(custom_id):
        results.foreign += 1
        return
    results.results += bool(result.get("response") or result.get("error"))
    outcome = _outcome(result) if result else "the line in the results is not whole"
    if isinstance(outcome, str):
        results.errors[custom_id] = outcome
    else:
        results.add(custom_id, outcome)


def _outcome(result: dict[str, Any]) -> Reply | str:
    """The reply, or what went wrong."""
    response = result.get("response") or {}
    try:
        body = response.get("body") or {}
        status = response.get("status_code", 200)
        error = result.get("error") or body.get("error")
        if error or status != 200 or not body:
            return _message(error or (f"HTTP {status}" if response else "no response in the results"))
        return _reply(body["choices"][0])
    except (ValueError, LookupError, TypeError, AttributeError):
        return "the response in the results holds no reply"


def _message(error: Any) -> str:
    inner = error.get("error", error) if isinstance(error, dict) else error
    return str(inner.get("message", inner)) if isinstance(inner, dict) else str(inner)


def _reply(choice: dict[str, Any]) -> Reply:
    message, finish = choice["message"], choice.get("finish_reason")
    text, refusal = _content(message.get("content")), _content(message.get("refusal"))
    if finish == "length":
        return Reply(text, CUT_OFF)
    if refusal or finish == "content_filter":
        return Reply(text or refusal, REFUSED)
    return Reply(text)


def _content(content: Any) -> str:
    """A text, or a list of parts that are texts. Raises TypeError or ValueError for anything else."""
    if isinstance(content, list):
        content = "".join(part["text"] for part in content)
    text = content or ""
    if not isinstance(text, str) or not _is_text(text):
        raise ValueError("not a text")
    return text


def _is_text(text: str) -> bool:
    """Whether a string holds no lone surrogates, which no file of ours can."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def reply_to(sample: Sample, round_: int, asking: Asking, replies: dict[str, Reply]) -> Reply:
    """The reply to a sample's request, unwrapped, with the white space around its prompt; or a reason."""
    if not sample.prompt.strip():
        return Reply(None, NO_PROMPT)
    reply = replies.get(request(sample, round_, asking)["custom_id"])
    if reply is None:
        return Reply(None, NO_REPLY)
    prompt = sample.prompt
    text, whole = unwrap(reply.text or "", prompt)
    head, tail = prompt[: len(prompt) - len(prompt.lstrip())], prompt[len(prompt.rstrip()) :]
    return Reply(head + text + tail if text else text, reply.problem or ("" if whole else WRAPPED))
