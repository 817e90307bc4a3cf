"""Batches on a server that speaks OpenAI's files and batches protocol: submit, look, collect, in any rhythm.

A folder holds the request files, the results and `state.json`, which is written after every step that
the server has taken. Whoever is interrupted runs the same step again; nothing is submitted twice.
"""

import json
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from klball.boundary import first_line
from klball.data.paraphrase.batch_files import (
    ENDPOINT,
    MOST_REQUESTS,
    Results,
    read_results,
    request_ids,
    write_shards,
)
from klball.files import differences, digest, file_name, whole_file, without_secrets, write_json

ENDED = ("completed", "failed", "expired", "cancelled")
SHARD_NAME = re.compile(r"requests-\d+\.jsonl")
CREDENTIALS = re.compile(r"//[^/@\s]*@")
ATTEMPTS = 3  # at creating a batch, with a look at the server's list in between


@dataclass
class Shard:
    """A request file and what became of it; `done` once its results, if any, lie in the folder."""

    path: str
    requests: int
    file_id: str | None = None
    batch_id: str | None = None
    server: str | None = None
    status: str = "not submitted"
    completed: int = 0
    failed: int = 0
    problem: str = ""
    done: bool = False


class BatchFolder:
    """The requests and results of one configuration, `about`; ValueError if the folder has another's."""

    def __init__(self, folder: Path, about: dict[str, Any]):
        self.folder, self.about = folder, about
        self.shards: list[Shard] = []
        if not self._state.exists():
            return
        known, self.shards = _read_state(self._state)
        if changed := differences(known, about):
            raise ValueError(
                f"{folder} holds requests of another configuration (different: {', '.join(changed)}); "
                "choose another output"
            )

    @property
    def _state(self) -> Path:
        return self.folder / "state.json"

    def save(self) -> None:
        """Write down whose requests and results these are, and how far they have come."""
        content = {"about": self.about, "shards": [asdict(shard) for shard in self.shards]}
        write_json(self._state, content)

    def results(self) -> Results:
        """All results in the folder."""
        found = (self.folder / "results").glob("*.jsonl")
        return read_results(sorted(path for path in found if path.is_file()))

    def write_missing(self, lines: Iterable[dict[str, Any]], most_requests: int = MOST_REQUESTS) -> int:
        """Write files for requests neither answered nor in a file still open; returns how many."""
        covered = set(self.results().replies)
        for shard in (s for s in self.shards if not s.done):
            covered.update(self._ids_of(shard))
        missing = (line for line in lines if line["custom_id"] not in covered)
        written = write_shards(missing, self.folder, len(self.shards) + 1, most_requests)
        self.shards += [Shard(path.name, count) for path, count in written]
        self.save()
        return sum(count for _, count in written)

    def _ids_of(self, shard: Shard) -> list[str]:
        """The ids in a request file; those of a lost file that was not submitted are asked anew."""
        path = self.folder / shard.path
        if path.exists():
            return request_ids(path)
        if shard.batch_id is not None:
            raise ValueError(f"{path} is gone, but its batch is not collected yet: --step collect first")
        shard.status, shard.done = "file lost", True
        return []

    def submit(self, client: Any) -> int:
        """Upload and start every request file that has no batch yet; returns how many were started."""
        started = 0
        for shard in (s for s in self.shards if s.batch_id is None and not s.done):
            file_id, resumed = shard.file_id, shard.file_id is not None
            if file_id is None:
                with (self.folder / shard.path).open("rb") as file:
                    file_id = shard.file_id = client.files.create(file=file, purpose="batch").id
                shard.server = without_secrets(str(client.base_url))
                self.save()
            self._check_server(shard, client)
            shard.batch_id = _create_once(client, file_id, resumed)
            shard.status = "submitted"
            self.save()
            started += 1
        return started

    def refresh(self, client: Any, download: bool) -> None:
        """Ask how the batches are doing; with `download`, fetch the files of those that ended."""
        for shard in (s for s in self.shards if s.batch_id is not None and not s.done):
            self._check_server(shard, client)
            batch = client.batches.retrieve(shard.batch_id)
            shard.status = batch.status
            if batch.request_counts is not None:
                shard.completed, shard.failed = batch.request_counts.completed, batch.request_counts.failed
            if batch.errors is not None and batch.errors.data:
                shard.problem = str(batch.errors.data[0].message)
            if download and batch.status in ENDED:
                for kind, file_id in (("output", batch.output_file_id), ("errors", batch.error_file_id)):
                    if file_id:
                        self._download(client, file_id, f"{file_name(str(shard.batch_id))}-{kind}.jsonl")
                shard.done = True
            self.save()

    def add_results(self, paths: Iterable[Path]) -> None:
        """Take over local result files, such as those of `vllm run-batch`; their request files are done."""
        for path in paths:
            if not read_results([path]).results:
                raise ValueError(
                    f"{path} holds no Batch result: no line has a custom_id and a response or error"
                )
            content = path.read_bytes()
            name = f"local-{digest(content)}.jsonl"
            with whole_file(self.folder / "results" / name) as temporary:
                temporary.write_bytes(content)
        results = self.results()
        known = {*results.replies, *results.errors}
        for shard in (s for s in self.shards if s.batch_id is None):
            if not shard.done and known.intersection(self._ids_of(shard)):
                shard.status, shard.done = "local results", True
        self.save()

    def _download(self, client: Any, file_id: str, name: str) -> None:
        with (
            whole_file(self.folder / "results" / name) as temporary,
            client.files.with_streaming_response.content(file_id) as response,
        ):
            response.stream_to_file(temporary)

    def _check_server(self, shard: Shard, client: Any) -> None:
        ours, here = without_secrets(shard.server), without_secrets(str(client.base_url))
        if ours != here:
            raise ValueError(f"{shard.path} was submitted to {ours}, not to {here}: give that base_url")


def _read_state(path: Path) -> tuple[dict[str, Any], list[Shard]]:
    """What the folder is about, and its request files. Raises ValueError for a file that was not ours."""
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        about, shards = dict(state["about"]), [Shard(**shard) for shard in state["shards"]]
        if not all(SHARD_NAME.fullmatch(shard.path) for shard in shards):
            raise ValueError("the name of a request file")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{path} is damaged ({first_line(error)}): remove it to begin anew with "
            "the replies in results/; batches that still run on a server are then not collected"
        ) from error
    return about, shards


def connect(base_url: str | None) -> Any:
    """The official client. Raises ValueError if the package or the key is missing."""
    try:
        import openai
    except ImportError as error:
        raise ValueError("the maker openai-batch needs an extra: pip install 'klball[openai]'") from error
    try:
        return openai.OpenAI(base_url=base_url)
    except openai.OpenAIError as error:
        raise ValueError(
            "set OPENAI_API_KEY (to any word for a server of your own that asks for none)"
        ) from error


@contextmanager
def server_errors() -> Iterator[None]:
    """Turns what the client raises into a ValueError of one line."""
    import openai

    try:
        yield
    except openai.OpenAIError as error:
        cause = f" ({error.__cause__})" if error.__cause__ else ""
        said = CREDENTIALS.sub("//", " ".join(f"{error}{cause}".split()))
        raise ValueError(f"the batch server: {said}; run the same step again to continue") from error


def _create_once(client: Any, file_id: str, resumed: bool) -> str:
    """The batch of an uploaded file. Creating is not idempotent: after a doubt the server's list decides."""
    import openai

    patient, hasty = client, client.with_options(max_retries=0)
    for attempt in range(ATTEMPTS):
        if resumed or attempt:
            found = next((b.id for b in patient.batches.list(limit=100) if b.input_file_id == file_id), None)
            if found is not None:
                return found
        try:
            return hasty.batches.create(input_file_id=file_id, endpoint=ENDPOINT, completion_window="24h").id
        except (openai.APIConnectionError, openai.InternalServerError):
            if attempt == ATTEMPTS - 1:
                raise
            time.sleep(0.5 * 2**attempt)
    raise AssertionError
