"""A local server that speaks OpenAI's files and batches protocol, with mishaps on demand."""

import json
import random
import threading
from collections import Counter
from dataclasses import dataclass, field
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

LETTERS = str.maketrans("0123456789", "ghijklmnop")


@dataclass
class Fate:
    """What happens to one batch: its first `failed` requests err, its last `expired` are never run."""

    status: str = "completed"
    failed: int = 0
    expired: int = 0
    polls: int = 0  # how often it is still in progress when asked


@dataclass
class BatchServer:
    """Answers every request with a new wording of its prompt, in shuffled order."""

    fates: list[Fate] = field(default_factory=list)  # of the coming batches; afterwards all goes well
    http_500: Counter[str] = field(default_factory=Counter)  # "POST /v1/files" → how often it fails first
    lost_answers: int = 0  # batches that are created although the client is told 500
    files: dict[str, bytes] = field(default_factory=dict)
    batches: dict[str, dict] = field(default_factory=dict)
    asked: Counter[str] = field(default_factory=Counter)  # custom_id → in how many batches

    def __enter__(self):
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                server.handle(self)

            do_POST = do_GET  # noqa: N815

            def log_message(self, format, *args):
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"
        return self

    def __exit__(self, *_):
        self._http.shutdown()
        self._http.server_close()

    def handle(self, http):  # noqa: PLR0911
        path = http.path.split("?")[0]
        body = http.rfile.read(int(http.headers.get("Content-Length") or 0))
        call = f"{http.command} {path}"
        if self.http_500[call] > 0:
            self.http_500[call] -= 1
            return self._send(http, 500, {"error": {"message": "try again"}})
        if call == "POST /v1/files":
            return self._send(http, 200, self._upload(http.headers["Content-Type"], body))
        if call == "POST /v1/batches":
            batch = self._create(json.loads(body))
            if self.lost_answers > 0:
                self.lost_answers -= 1
                return self._send(http, 500, {"error": {"message": "created, but you do not know"}})
            return self._send(http, 200, batch)
        if call == "GET /v1/batches":
            return self._send(
                http, 200, {"object": "list", "data": list(self.batches.values()), "has_more": False}
            )
        if path.startswith("/v1/batches/"):
            return self._send(http, 200, self._look(path.rsplit("/", 1)[1]))
        if path.startswith("/v1/files/") and path.endswith("/content"):
            return self._send(http, 200, self.files[path.split("/")[3]])
        return self._send(http, 404, {"error": {"message": f"no {path}"}})

    def _send(self, http, code, content):
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        http.send_response(code)
        http.send_header("Content-Type", "application/json")
        http.send_header("Content-Length", str(len(content)))
        http.end_headers()
        http.wfile.write(content)

    def _upload(self, content_type, body):
        form = message_from_bytes(b"Content-Type: " + content_type.encode() + b"\r\n\r\n" + body)
        parts = {p.get_param("name", header="content-disposition"): p for p in form.get_payload()}
        assert parts["purpose"].get_payload().strip() == "batch"
        return self._keep(parts["file"].get_payload(decode=True))

    def _keep(self, content):
        name = f"file-{len(self.files)}"
        self.files[name] = content
        return {
            "id": name,
            "object": "file",
            "bytes": len(content),
            "created_at": 0,
            "filename": "x.jsonl",
        } | {
            "purpose": "batch",
            "status": "processed",
        }

    def _create(self, asked):
        assert asked["endpoint"] == "/v1/chat/completions"
        assert asked["completion_window"] == "24h"
        lines = [json.loads(line) for line in self.files[asked["input_file_id"]].splitlines()]
        self.asked.update(line["custom_id"] for line in lines)
        fate = self.fates.pop(0) if self.fates else Fate()
        name = f"batch_{len(self.batches)}"
        self.batches[name] = {
            **{"id": name, "object": "batch", "created_at": 0, "status": "validating"},
            **asked,
            "request_counts": {"total": len(lines), "completed": 0, "failed": 0},
            "_fate": fate.__dict__,
        }
        return self.batches[name]

    def _look(self, name):
        batch = self.batches[name]
        fate = batch["_fate"]
        if fate["polls"] > 0:
            fate["polls"] -= 1
            return {**batch, "status": "in_progress"}
        if batch["status"] == "validating":
            self._finish(batch, fate)
        return batch

    def _finish(self, batch, fate):
        batch["status"] = fate["status"]
        if fate["status"] == "failed":
            batch["errors"] = {
                "object": "list",
                "data": [{"code": "token_limit", "message": "too many tokens"}],
            }
            return
        lines = [json.loads(line) for line in self.files[batch["input_file_id"]].splitlines()]
        lines = lines[: len(lines) - fate["expired"]]
        errors, answers = lines[: fate["failed"]], lines[fate["failed"] :]
        random.Random(0).shuffle(answers)
        batch["request_counts"] |= {"completed": len(answers), "failed": len(errors)}
        if errors:
            batch["error_file_id"] = self._keep(jsonl(result(line, 500) for line in errors))["id"]
        if answers:
            batch["output_file_id"] = self._keep(jsonl(result(line) for line in answers))["id"]


def result(line, status=200, content=None):
    """A result line as the Batch API writes it."""
    text = wording(line) if content is None and status == 200 else content
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
    body = {"choices": [choice]} if status == 200 else {"error": {"message": "the model stumbled"}}
    response = {"status_code": status, "request_id": "r", "body": body}
    return {"id": "b", "custom_id": line["custom_id"], "response": response, "error": None}


def wording(line):
    """New in every round and for every sample, with the prompt's numbers and code."""
    prompt = line["body"]["messages"][0]["content"].split("Prompt:\n", 1)[1]
    return f"Variant {line['custom_id'][-8:].translate(LETTERS)}: {prompt}"


def jsonl(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()
