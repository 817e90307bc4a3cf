"""The rounds file: one row per round and sample, written round by round, resumable, with its provenance."""

import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset

from klball.data.paraphrase.quality import REASONS, QualityControl, Reply, Similarity, Verdict
from klball.data.paraphrase.samples import LAYOUTS, Sample, rows_of
from klball.files import (
    PROVENANCE,
    finished_part,
    json_digest,
    parts_folder,
    provenance_in,
    read_table,
    readable,
    refuse_other,
    remove_parts,
    versions,
    whole_file,
    with_provenance,
)
from klball.shown import Shown

SCHEMA = pa.schema(
    [
        ("round", pa.int64()),
        ("sample_id", pa.string()),
        ("original", pa.string()),
        ("candidate", pa.string()),
        ("prompt", pa.string()),
        ("accepted", pa.bool_()),
        ("reason", pa.string()),
        ("similarity", pa.float64()),
        ("maker", pa.string()),
        ("answer", pa.string()),
        ("conversation", pa.string()),
    ]
)

WORD_FOR_WORD = "word for word"  # a column of acceptance.csv
WRITTEN: dict[str, Any] = {"compression": "zstd", "write_page_checksum": True}
ROUNDS_COLUMNS = ("round", "sample_id", "original", "prompt", "accepted", "reason")
Replies = Callable[[int], Sequence[Reply]]  # round → a reply per sample, in the samples' order
Progress = Callable[[int, int], None]  # rounds done, rounds in all


@dataclass(frozen=True, repr=False)
class Rounds(Shown):
    """A rounds file: the same samples in every round, each with the prompt to use and its answer.

    number, samples: of it the first rounds, and of these the first samples; None: all.
    """

    shows = ("path",)  # a repr reads no file

    path: Path
    about: dict[str, Any]  # the provenance
    number: int | None = None
    samples: int | None = None

    @cached_property
    def rounds(self) -> list[int]:
        """The numbers of the rounds, ascending; the original data is none of them."""
        return sorted(set(self._columns["round"].to_pylist()))[: self.number]

    @cached_property
    def sample_ids(self) -> list[str]:
        """The samples' ids, in the order of every round."""
        return self.table(self.rounds[0])["sample_id"].to_pylist()

    def table(self, round_: int) -> pa.Table:
        """All columns of one round. Raises ValueError if there is no such round."""
        if round_ not in self.rounds:
            raise ValueError(
                f"{self.path} has no round {round_}; there are {self.rounds[0]} to {self.rounds[-1]}"
            )
        return read_table(self.path, filters=[("round", "==", round_)])[: self.samples]

    def dataset(self, round_: int) -> Dataset:
        """One round as rows that `klball.score` reads, in the layout of the original data, with `id`.

        Columns `question, answer`, `prompt, completion` or `messages` (or conversational `prompt`,
        `completion`); a rejected paraphrase is its original.
        """
        table = self.table(round_)
        ids, prompts, answers = (table[name].to_pylist() for name in ("sample_id", "prompt", "answer"))
        try:
            conversations = [None if c is None else json.loads(c) for c in table["conversation"].to_pylist()]
            return rows_of(self.about["layout"], ids, prompts, answers, conversations)
        except (ValueError, LookupError, TypeError) as error:
            raise ValueError(f"{self.path}: round {round_} holds a conversation that is not whole") from error

    def texts(self, items: Collection[str]) -> dict[str, dict[str, str]]:
        """Item → its original prompt and its answer."""
        table = self.table(self.rounds[0]).select(["sample_id", "original", "answer"]).to_pylist()
        return {
            row["sample_id"]: {"prompt": row["original"], "answer": row["answer"]}
            for row in table
            if row["sample_id"] in items
        }

    def acceptance(self) -> list[dict[str, Any]]:
        """Per round: rows, accepted, their share, how many were rejected for each of `REASONS`.

        `word for word`: of the accepted, those in which the original stands unchanged with something
        around it, such as a line put before it: another framing, but no other wording.
        """
        counts = self._counts
        rows = len(self.sample_ids)
        return [
            {
                "round": round_,
                "rows": rows,
                "accepted": counts[round_, ""],
                "share": counts[round_, ""] / rows,
                WORD_FOR_WORD: counts[round_, WORD_FOR_WORD],
                **{reason: counts[round_, reason] for reason in REASONS},
            }
            for round_ in self.rounds
        ]

    def like_these(self, rounds: int) -> str:
        """What a claim over rounds may speak of: rephrasings only where prompts were reworded."""
        accepted = sum(row["accepted"] for row in self.acceptance())
        framed = sum(row[WORD_FOR_WORD] for row in self.acceptance())
        if not framed:
            return f"rephrasings like these {rounds}" if accepted else f"{rounds} rounds of unchanged prompts"
        if framed == accepted:
            return f"framings like these {rounds}, a line before an unchanged prompt"
        share = f"{framed / accepted:.0%}".replace("%", " %")
        return f"rounds like these {rounds}, {share} of whose new prompts are the old ones behind a line"

    @cached_property
    def _counts(self) -> Counter[tuple[int, str]]:
        """(round, reason) → how many, and (round, WORD_FOR_WORD) → how many accepted hold their original."""
        counts: Counter[tuple[int, str]] = Counter()
        names = ("round", "reason", "original", "prompt")
        table = pa.concat_tables(self.table(r).select(names) for r in self.rounds)
        for round_, reason, original, prompt in zip(*(table[n].to_pylist() for n in names), strict=True):
            counts[round_, reason] += 1
            counts[round_, WORD_FOR_WORD] += not reason and holds_word_for_word(original, prompt)
        return counts

    @cached_property
    def _columns(self) -> pa.Table:
        return read_table(self.path, columns=list(ROUNDS_COLUMNS))

    def check(self) -> None:
        """Raise ValueError unless every round holds the same samples in the same order."""
        for name in (*ROUNDS_COLUMNS, "answer"):
            column = read_table(self.path, columns=[name])[name]
            if column.null_count:
                row = column.is_null().to_pylist().index(True)
                raise ValueError(
                    f"{self.path}: {name} of row {row} is null, not a text: make the rounds again"
                )
        ids = self._columns["sample_id"].to_pylist()
        size = len(ids) // max(len(self.rounds), 1)
        numbers = [round_ for round_ in self.rounds for _ in range(size)]
        if not ids or self._columns["round"].to_pylist() != numbers or ids != ids[:size] * len(self.rounds):
            raise ValueError(f"{self.path} does not hold the same samples in every round")
        told = zip(*(self._columns[n].to_pylist() for n in ROUNDS_COLUMNS[2:]), strict=True)
        for row, (original, prompt, accepted, reason) in enumerate(told):
            kept = accepted or prompt == original
            if accepted != (reason == "") or not kept or reason not in ("", *REASONS):
                raise ValueError(
                    f"{self.path}: row {row} says accepted = {accepted} and reason = {reason!r}: an accepted "
                    "prompt has no reason, a rejected one the original in its place and one of "
                    f"{', '.join(REASONS)}"
                )
        answers = read_table(self.path, columns=["answer"])["answer"].to_pylist()
        if answers != answers[:size] * len(self.rounds):
            raise ValueError(f"{self.path} does not hold the same answers in every round")


def read_rounds(path: str | Path) -> Rounds:
    """The rounds of a file that `klball paraphrase` made.

    Raises:
        ValueError: It is no such file, or not whole.
    """
    with readable(path):
        schema = pq.read_schema(path)
    missing = [name for name in SCHEMA.names if schema.names.count(name) != 1]
    if missing or PROVENANCE.encode() not in (schema.metadata or {}):
        raise ValueError(
            f"{path} is not a rounds file: it lacks (or repeats) {', '.join(missing) or 'its provenance'}"
        )
    for field in SCHEMA:
        found = schema.field(field.name).type
        if found != field.type and not (pa.types.is_string(field.type) and pa.types.is_large_string(found)):
            raise ValueError(f"{path} is not a rounds file: {field.name} is {found}, not {field.type}")
    about = provenance_in(path, schema)
    if about.get("layout") not in LAYOUTS:
        raise ValueError(f"{path} is not a rounds file: its provenance names no known layout")
    rounds = Rounds(Path(path), about)
    rounds.check()
    return rounds


def write_rounds(
    path: str | Path,
    samples: Sequence[Sample],
    layout: str,
    replies: Replies,
    *,
    rounds: int,
    maker: dict[str, Any],
    similarity: Similarity | None = None,
    progress: Progress | None = None,
) -> Rounds:
    """Judge the replies of rounds 1 to `rounds` and write what to use; a rejected one is its original.

    `maker` names the maker (key `maker`) and all that its replies depend on. Killed and run again, it
    continues after the last finished round. Raises ValueError if `path` was made from something else.
    """
    path = Path(path)
    about = provenance(samples, layout, rounds, maker)
    if not path.exists():
        try:
            _write(path, samples, replies, rounds, maker, similarity, about, progress)
        except FileNotFoundError:
            if not path.exists():  # else another job made the same rounds and has removed the parts
                raise
    finished = read_rounds(path)
    refuse_other(path, finished.about, about)
    remove_parts(path)  # which a kill may have left
    return finished


def _write(
    path: Path,
    samples: Sequence[Sample],
    replies: Replies,
    rounds: int,
    maker: dict[str, Any],
    similarity: Similarity | None,
    about: dict[str, Any],
    progress: Progress | None,
) -> None:
    folder = parts_folder(path, about)
    control = QualityControl(samples, similarity)
    for round_ in range(1, rounds + 1):
        part = folder / f"{round_:06d}.parquet"
        if (finished := finished_part(part)) is not None:
            control.remember(finished["candidate"].to_pylist())
        else:
            table = _table(round_, samples, control.judge(replies(round_)), maker["maker"])
            with whole_file(part) as temporary:
                pq.write_table(table, temporary, **WRITTEN)
        if progress is not None:
            progress(round_, rounds)
    schema = SCHEMA.with_metadata(with_provenance(about))
    with whole_file(path) as temporary, pq.ParquetWriter(temporary, schema, **WRITTEN) as writer:
        for round_ in range(1, rounds + 1):  # a row group a round: one round can be read alone
            part = folder / f"{round_:06d}.parquet"  # gone, FileNotFoundError, where another job was faster
            writer.write_table(pq.read_table(part).cast(schema))


def holds_word_for_word(original: str, prompt: str) -> bool:
    """Whether the original stands in a prompt as it is, with words around it."""
    text = original.strip()
    if not text or text == prompt.strip():
        return False
    edges = (r"(?<!\w)" if text[0].isalnum() else "", r"(?!\w)" if text[-1].isalnum() else "")
    return text in prompt and re.search(edges[0] + re.escape(text) + edges[1], prompt) is not None


def provenance(samples: Sequence[Sample], layout: str, rounds: int, maker: dict[str, Any]) -> dict[str, Any]:
    """What a rounds file depends on; two files with the same provenance are the same file."""
    contents = [(s.sample_id, s.prompt, s.answer, s.conversation) for s in samples]
    return {
        **maker,
        "rounds": rounds,
        "rows": len(samples),
        "layout": layout,
        "data": json_digest(contents),
        "libraries": versions("klball", "datasets", "pyarrow"),
    }


def _table(round_: int, samples: Sequence[Sample], verdicts: Sequence[Verdict], maker: str) -> pa.Table:
    rows = []
    for sample, verdict in zip(samples, verdicts, strict=True):
        accepted = not verdict.reason
        assert verdict.reason in ("", *REASONS)
        conversation = None if sample.conversation is None else json.dumps(sample.conversation, default=str)
        prompt = verdict.candidate if accepted else sample.prompt
        texts = {"original": sample.prompt, "candidate": verdict.candidate, "prompt": prompt}
        texts |= {"answer": sample.answer, "conversation": conversation}
        judged = {"accepted": accepted, "reason": verdict.reason, "similarity": verdict.similarity}
        rows.append({"round": round_, "sample_id": sample.sample_id, "maker": maker, **texts, **judged})
    return pa.Table.from_pylist(rows, schema=SCHEMA)
