"""Batch JSONL, the one interchange format: requests for a rephrasing, and the replies found in results."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

from klball.data.paraphrase.quality import CUT_OFF, NO_PROMPT, NO_REPLY, REFUSED, Reply
from klball.data.paraphrase.rounds import whole_file
from klball.data.paraphrase.samples import Sample

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
THOUGHTS = re.compile(r"^\s*<think>.*?</think>", re.DOTALL)
LABEL = re.compile(r"^(?:rewritten|rephrased|reworded) prompt:\s*", re.IGNORECASE)


@dataclass(frozen=True)
class Asking:
    """What a chat model is asked with; `temperature` None leaves it to the server."""

    model: str
    temperature: float | None
    max_new_tokens: int

    def about(self) -> dict[str, Any]:
        """For the provenance: these settings and a hash of the wording."""
        wording = hashlib.sha256("".join((INSTRUCTION, *STYLES)).encode()).hexdigest()[:16]
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
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:32]


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
    """The custom ids of a request file."""
    with path.open(encoding="utf-8") as file:
        return [json.loads(line)["custom_id"] for line in file]


@dataclass
class Results:
    """What result files say: `replies` by custom id; `errors` of requests that were not answered."""

    replies: dict[str, Reply]
    errors: dict[str, str]


def read_results(paths: Iterable[Path]) -> Results:
    """Results joined by custom id, whatever their order or number; the first answer to a request counts.

    Output and error files alike, as OpenAI's Batch API and `vllm run-batch` write them. Raises ValueError
    for a line that is not a result.
    """
    results = Results({}, {})
    for path in paths:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    _read_line(line, f"{path}:{number}", results)
    results.errors = {i: error for i, error in results.errors.items() if i not in results.replies}
    return results


def _read_line(line: str, where: str, results: Results) -> None:
    try:
        result = json.loads(line)
        custom_id, response = result["custom_id"], result.get("response") or {}
        answered = (
            not result.get("error") and response.get("status_code", 200) == 200 and response.get("body")
        )
        if not answered:
            body = response.get("body")
            error = result.get("error") or (body or {}).get("error") or f"HTTP {response.get('status_code')}"
            results.errors[custom_id] = _message(error)
            return
        reply = _reply(response["body"]["choices"][0])
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"{where} is not a line of Batch results") from error
    results.replies.setdefault(custom_id, reply)


def _message(error: Any) -> str:
    inner = error.get("error", error) if isinstance(error, dict) else error
    return str(inner.get("message", inner)) if isinstance(inner, dict) else str(inner)


def _reply(choice: dict[str, Any]) -> Reply:
    message = choice["message"]
    text = clean(message.get("content") or "")
    if choice.get("finish_reason") == "length":
        return Reply(text, CUT_OFF)
    if message.get("refusal") or choice.get("finish_reason") == "content_filter":
        return Reply(text or message.get("refusal"), REFUSED)
    return Reply(text)


def clean(text: str) -> str:
    """A reply without its thoughts, a label before it, or one pair of quotes around all of it."""
    text = LABEL.sub("", THOUGHTS.sub("", text).strip())
    for left, right in ('""', "“”"):
        inner = text[1:-1]
        if (
            len(text) > 1
            and text[0] == left
            and text[-1] == right
            and left not in inner
            and right not in inner
        ):
            return inner.strip()
    return text


def reply_to(sample: Sample, round_: int, asking: Asking, replies: dict[str, Reply]) -> Reply:
    """The reply to a sample's request, the white space around its prompt restored; a reason if none came."""
    if not sample.prompt.strip():
        return Reply(None, NO_PROMPT)
    reply = replies.get(request(sample, round_, asking)["custom_id"])
    if reply is None:
        return Reply(None, NO_REPLY)
    prompt = sample.prompt
    head, tail = prompt[: len(prompt) - len(prompt.lstrip())], prompt[len(prompt.rstrip()) :]
    return Reply(head + reply.text + tail if reply.text else reply.text, reply.problem)
