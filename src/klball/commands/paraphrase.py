"""`klball paraphrase`: a data set → rounds of the same samples, prompts reworded, answers unchanged."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from klball.commands.options import DTYPES, asked_rows, one_of, parse, refuse_ignored
from klball.data.paraphrase.batch_files import MOST_REQUESTS, Asking, Results, reply_to, requests
from klball.data.paraphrase.openai_batch import BatchFolder, connect, server_errors
from klball.data.paraphrase.quality import REASONS, Reply, sentence_similarity
from klball.data.paraphrase.rounds import WORD_FOR_WORD, Rounds, provenance, write_rounds
from klball.data.paraphrase.samples import Sample, samples_of
from klball.data.paraphrase.templates import QUESTIONS, kind_of, most_rounds, reword, templates
from klball.files import json_digest, write_csv, write_run
from klball.flags import DataSet, Split, option
from klball.terminal import progress_bar, say, show_table

EXAMPLE = "klball paraphrase --dataset_name word-problems --max_rows 50 --rounds 20"
BATCH = ("step", "base_url", "results", "allow_missing", "requests_per_file")
MODEL = ("model_name_or_path", "temperature", "max_new_tokens")
MAKERS = {  # and the options that only they use; those of a batch are for all its steps together
    "templates": (),
    "openai-batch": (*MODEL, *BATCH),
    "model": (*MODEL, "batch_size", "dtype"),
}
STEPS = ("requests", "submit", "status", "collect")


@dataclass
class Options(Split, DataSet):
    """What to rephrase, who does it, and where the rounds go."""

    max_rows: int | None = option(None, "Use the first rows only.")
    rounds: int = option(99, "How many rounds; they are numbered from 1.")
    maker: str = option(
        "templates", "templates (offline, deterministic), openai-batch, or model (a local one)."
    )
    model_name_or_path: str | None = option(
        None, "Model that rephrases: its name on the server, or a local or Hub one."
    )
    step: str | None = option(None, "Of openai-batch: requests (files only), submit, status or collect.")
    base_url: str | None = option(None, "Server of openai-batch; default: OPENAI_BASE_URL, else OpenAI's.")
    results: list[str] = option(
        [], "For collect: local result files, as `vllm run-batch` writes; no server is asked."
    )
    allow_missing: bool = option(
        False, "For collect: requests without a reply keep their original prompt, flagged."
    )
    requests_per_file: int = option(MOST_REQUESTS, "Requests of one Batch file; at most 50,000, and 200 MB.")
    temperature: float | None = option(None, "Default: the server's own; .7 for a local model.")
    max_new_tokens: int = option(1_024, "Longest reply, in tokens.")
    batch_size: int = option(16, "Prompts a local model rephrases at once.")
    dtype: str = option("auto", "Of a local model: float32, bfloat16, or auto.")
    similarity_model: str | None = option(
        None, "A sentence-transformers model that compares meanings, such as all-MiniLM-L6-v2."
    )
    min_similarity: float = option(0.8, "Cosine below which a paraphrase is rejected.")
    output_dir: str = option("outputs/paraphrase", "Folder for rounds.parquet.")


def main(arguments: Sequence[str], prog: str) -> None:
    """Make the rounds, or take one step of a batch; write `rounds.parquet`, `acceptance.csv`, `run.json`."""
    (options,) = parse([Options], arguments, prog, EXAMPLE)
    _check(options)
    similarity = None
    if options.similarity_model is not None:
        similarity = sentence_similarity(options.similarity_model, options.min_similarity)
    samples, layout = samples_of(asked_rows(options))
    make = {"templates": _by_templates, "model": _by_model, "openai-batch": _by_batches}[options.maker]
    made = make(options, samples, layout)
    if made is None:
        write_run(Path(options.output_dir), options, prog)
        return
    maker, replies = made
    if similarity is not None:
        about = {"weights": similarity.weights, "threshold": similarity.threshold}
        maker["similarity"] = {"model": options.similarity_model, **about}
    output = Path(options.output_dir) / "rounds.parquet"
    with progress_bar("Judging", "rounds") as progress:
        rounds = write_rounds(
            *(output, samples, layout, replies),
            rounds=options.rounds,
            maker=maker,
            similarity=similarity,
            progress=progress,
        )
    write_run(output.parent, options, prog)
    _report(rounds, options)


def _check(options: Options) -> None:
    one_of(options, "maker", tuple(MAKERS))
    one_of(options, "dtype", DTYPES)
    used = {name for names in MAKERS.values() for name in names} - set(MAKERS[options.maker])
    refuse_ignored(options, sorted(used), f"with --maker {options.maker}")
    if options.step != "collect":
        refuse_ignored(options, ["results"], "without --step collect")
    if options.results:
        refuse_ignored(options, ["base_url"], "with --results: no server is asked")
    if options.similarity_model is None:
        refuse_ignored(options, ["min_similarity"], "without --similarity_model")
    if options.requests_per_file > MOST_REQUESTS:
        raise ValueError(f"--requests_per_file may be {MOST_REQUESTS} at most")
    if options.maker != "templates" and options.model_name_or_path is None:
        raise ValueError(f"the maker {options.maker} needs --model_name_or_path")
    if options.maker != "openai-batch" and options.step is not None:
        raise ValueError(f"--step {options.step} is of the maker openai-batch, not of {options.maker}")
    if options.maker == "openai-batch" and options.step not in STEPS:
        raise ValueError(f"the maker openai-batch needs --step, one of {', '.join(STEPS)}")


Made = tuple[dict[str, Any], Callable[[int], Sequence[Reply]]]  # provenance of the maker, its replies


def _by_templates(options: Options, samples: Sequence[Sample], layout: str) -> Made:
    return template_replies(samples, options.rounds)


def template_replies(samples: Sequence[Sample], rounds: int) -> Made:
    """The provenance and the replies of the offline maker. Raises ValueError for too many rounds."""
    most = most_rounds(sample.prompt.strip() for sample in samples)
    if rounds > most:
        raise ValueError(f"the templates make {most} different rounds of these prompts, not {rounds}")
    wording = json_digest([templates(kind) for kind in (*QUESTIONS, "other")])
    unknown = sum(kind_of(sample.prompt.strip()) == "other" for sample in samples)
    maker = {"maker": "templates", "wording": wording, "only_framed": unknown}
    return maker, lambda round_: [Reply(reword(sample.prompt, round_)) for sample in samples]


def _by_model(options: Options, samples: Sequence[Sample], layout: str) -> Made:
    from klball.data.paraphrase.local_model import answer_locally
    from klball.models.loading import load_on_device
    from klball.models.weights import weights_hash

    model, tokenizer = load_on_device(_asking(options).model, options.dtype)
    of_model = {
        "weights": weights_hash(model),
        "tokenizer": json_digest([tokenizer.get_vocab(), str(tokenizer.chat_template)]),
        "dtype": options.dtype,
    }
    folder = BatchFolder(Path(options.output_dir) / "model", {**_about(options, samples, layout), **of_model})
    folder.save()  # before the first answer: whose they are
    lines = list(_requests(options, samples, "Preparing"))
    with progress_bar("Rephrasing", "prompts") as progress:
        output = folder.folder / "results" / "model.jsonl"
        answer_locally(model, tokenizer, lines, output, options.batch_size, progress)
    return _from_results(options, samples, folder.results(), {line["custom_id"] for line in lines}, of_model)


def _by_batches(options: Options, samples: Sequence[Sample], layout: str) -> Made | None:
    folder = BatchFolder(Path(options.output_dir) / "batch", _about(options, samples, layout))

    def write_missing() -> int:
        return folder.write_missing(_requests(options, samples, "Writing"), options.requests_per_file)

    if options.step == "requests":
        say(f"{write_missing()} requests written; the files lie in {folder.folder}")
    elif options.step == "submit":
        client = connect(options.base_url)
        with server_errors():
            folder.refresh(client, download=True)
            write_missing()
            say(f"{folder.submit(client)} batches submitted")
    elif options.results:
        folder.add_results([_existing(path) for path in options.results])
    elif any(shard.batch_id and not shard.done for shard in folder.shards):
        client = connect(options.base_url)
        with server_errors():
            folder.refresh(client, download=options.step == "collect")
    _show(folder)
    if options.step != "collect":
        return None
    results = folder.results()
    ids = {line["custom_id"] for line in _requests(options, samples, "Joining")}
    _require_replies(options, results, ids)
    return _from_results(options, samples, results, ids, {})


def _asking(options: Options) -> Asking:
    assert options.model_name_or_path is not None
    return Asking(options.model_name_or_path, options.temperature, options.max_new_tokens)


def _requests(options: Options, samples: Sequence[Sample], title: str) -> Iterator[dict[str, Any]]:
    """All requests, with a progress bar: there may be hundreds of thousands."""
    with progress_bar(title, "requests") as progress:
        lines = requests(samples, range(1, options.rounds + 1), _asking(options))
        for done, line in enumerate(lines, start=1):
            if done % 1_000 == 0:
                progress(done, options.rounds * len(samples))
            yield line


def _about(options: Options, samples: Sequence[Sample], layout: str) -> dict[str, Any]:
    about = provenance(samples, layout, options.rounds, {"maker": options.maker, **_asking(options).about()})
    return {key: value for key, value in about.items() if key != "libraries"}


def _from_results(
    options: Options, samples: Sequence[Sample], results: Results, ids: set[str], of_model: dict[str, str]
) -> Made:
    asking = _asking(options)
    own = sorted((i, reply.text, reply.problem) for i, reply in results.replies.items() if i in ids)
    maker = {"maker": options.maker, **asking.about(), **of_model, "replies": json_digest(own)}
    return maker, lambda round_: [reply_to(sample, round_, asking, results.replies) for sample in samples]


def _require_replies(options: Options, results: Results, ids: set[str]) -> None:
    missing = len(ids - set(results.replies))
    strangers = len({*results.replies, *results.errors} - ids)
    if results.foreign:
        say(f"{results.foreign} lines of the results are no Batch results and were left out")
    if strangers:
        say(f"{strangers} results belong to no request of this configuration and were left out")
    errors = (error for custom_id, error in results.errors.items() if custom_id in ids)
    for message, count in Counter(errors).most_common(3):
        say(f"{count} {'request' if count == 1 else 'requests'} failed: {message}")
    if missing and not options.allow_missing:
        raise ValueError(
            f"{missing} of {len(ids)} requests have no reply yet: collect again later, --step submit asks "
            "again for what failed, --allow_missing keeps their original prompts"
        )


def _existing(path: str) -> Path:
    if not Path(path).is_file():
        raise ValueError(f"no results file {path}")
    return Path(path)


def _show(folder: BatchFolder) -> None:
    header = ("file", "requests", "status", "answered", "failed", "batch")
    rows = [(s.path, s.requests, s.status, s.completed, s.failed, s.batch_id or "") for s in folder.shards]
    show_table(f"Batches in {folder.folder}", header, rows)
    for shard in folder.shards:
        if shard.problem:
            say(f"{shard.path}: {shard.problem}")


def _report(rounds: Rounds, options: Options) -> None:
    acceptance = rounds.acceptance()
    write_csv(Path(options.output_dir) / "acceptance.csv", acceptance)
    seen = [reason for reason in REASONS if any(row[reason] for row in acceptance)]
    framed = sum(row[WORD_FOR_WORD] for row in acceptance)
    counted = ["accepted", *([WORD_FOR_WORD] if framed else []), "rows"]
    header = ("round", *counted[:-1], "of", "share", *seen)
    counts: list[tuple[Any, list[int]]] = [
        (r["round"], [r[k] for k in (*counted, *seen)]) for r in acceptance
    ]
    counts.append(("all", [sum(column) for column in zip(*(numbers for _, numbers in counts), strict=True)]))
    at = len(counted)
    table = [(name, *n[:at], f"{n[0] / n[at - 1]:.1%}", *n[at:]) for name, n in counts]
    show_table(f"{options.dataset_name} in {len(acceptance)} rounds → {rounds.path}", header, table)
    if framed:
        total, accepted = counts[-1][1][counted.index("rows")], counts[-1][1][0]
        say(
            f"{framed} of {accepted} accepted prompts ({framed / accepted:.1%}) hold the original word for "
            "word, with a line put before it or words around it: they test framing, not wording. "
            f"{accepted - framed} of {total} are reworded"
        )
