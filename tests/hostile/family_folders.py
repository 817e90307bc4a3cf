"""Models, folders, checkpoints and test rows of the wrong kind, for the other families."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .case import DATA, EITHER, REFUSED, WORKS, Case, fixture, good_rows, jsonl
from .families import TRAINED, family_case
from .fixtures import family_command, pair_rows, reward_model, rows_of, run_arguments, tiny


def cases() -> Iterator[Case]:
    """All of them."""
    for make in (_models, _folders, _resumptions, _evaluations):
        yield from make()


def _headless() -> None:
    shutil.copytree(tiny(), "headless")


def _two_labels() -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    AutoModelForSequenceClassification.from_pretrained(tiny(), num_labels=2).save_pretrained("two")
    AutoTokenizer.from_pretrained(tiny()).save_pretrained("two")


def _nan_head() -> None:
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(fixture("run-reward") / "out", "sick")
    weights = load_file("sick/model.safetensors")
    weights["score.weight"] = torch.full_like(weights["score.weight"], float("nan"))
    save_file(weights, "sick/model.safetensors", metadata={"format": "pt"})


def _link(name: str, at: str) -> Callable[[], Any]:
    return lambda: Path(at).symlink_to(fixture(name) / "out")


def _file() -> None:
    Path("file").write_text("{}")


def _models() -> Iterator[Case]:
    """Reward models, bases and references of the wrong kind."""
    rewards: dict[str, tuple[Callable[[], Any], str, str, tuple[str, ...]]] = {
        "as it should be": (_link("run-reward", "rm"), "rm", WORKS, ("run-reward",)),
        "without a head": (_headless, "headless", REFUSED, ()),
        "the embedded model": (lambda: None, "klball/tiny", REFUSED, ()),
        "of two labels": (_two_labels, "two", REFUSED, ()),
        "of NaN": (_nan_head, "sick", REFUSED, ("run-reward",)),
        "a DPO folder": (_link("run-dpo", "po"), "po", REFUSED, ("run-dpo",)),
        "no path": (lambda: None, "nowhere", REFUSED, ()),
        "an empty path": (lambda: None, "", REFUSED, ()),
        "an empty folder": (lambda: Path("empty").mkdir(), "empty", REFUSED, ()),
        "a file": (_file, "file", REFUSED, ()),
        "an adapter of a language model": (
            lambda: Path("ad").symlink_to(fixture("adapter") / "ad"),
            "ad",
            REFUSED,
            ("adapter",),
        ),
    }
    for title, (prepare, name, expected, fixtures) in rewards.items():
        about: dict[str, Any] = {"prepare": prepare, "fixtures": fixtures}
        alone = [word for word in family_command("grpo") if word not in ("--reward", "exact")]
        case = family_case("grpo", f"reward model {title}", expected, **about)
        yield Case(
            *(case.name, case.group, case.expected, [*alone, "--reward_model", name], case.prepare),
            fixtures=fixtures,
        )
        yield family_case(
            "score reward", f"a model {title}", expected, ("--model_name_or_path", name), **about
        )
        generate = ["evaluate", "--generate", "true", "--reward_model", name, "--datasets", DATA]
        short = ["--max_new_tokens", "2", "--output_dir", "out"]
        yield Case(
            f"evaluate: reward model {title}",
            "families",
            expected,
            [*generate, *short],
            case.prepare,
            fixtures=fixtures,
        )
    adapter = ("--model_name_or_path", "ad")
    link = {"prepare": lambda: Path("ad").symlink_to(fixture("adapter") / "ad"), "fixtures": ("adapter",)}
    for kind in TRAINED:
        expected = REFUSED if kind == "reward" else WORKS
        yield family_case(kind, "an adapter for a base", expected, adapter, **link)
        yield family_case(kind, "an adapter on an adapter", REFUSED, (*adapter, "--use_peft"), **link)
        yield family_case(kind, "a base that is not there", REFUSED, ("--model_name_or_path", "nowhere"))
        trained = {"prepare": _link("run-reward", "rm"), "fixtures": ("run-reward",)}
        expected = WORKS if kind == "reward" else REFUSED
        yield family_case(
            kind, "a reward model for a base", expected, ("--model_name_or_path", "rm"), **trained
        )
    yield family_case("score dpo", "an adapter", WORKS, adapter, **link)
    for title, name in (("not there", "nowhere"), ("empty", ""), ("a reward model", "rm")):
        trained = {"prepare": _link("run-reward", "rm"), "fixtures": ("run-reward",)}
        yield family_case(
            "score dpo", f"a reference {title}", REFUSED, ("--reference_model", name), **trained
        )
    for option in ("--reference_model", "--beta"):
        reward = {"prepare": reward_model, "fixtures": ("run-reward",)}
        yield family_case(
            "score reward", f"{option} that it has no use for", REFUSED, (option, "1"), **reward
        )
    yield family_case("score dpo", "no beta", REFUSED, ("--beta", "0"))
    for value in ("nan", "-1", "inf"):
        yield family_case("score dpo", f"a beta of {value}", REFUSED, (f"--beta={value}",), hints=("beta",))


def _copied(name: str) -> Callable[[], Any]:
    return lambda: shutil.copytree(fixture(name) / "out", "out")


def _folders() -> Iterator[Case]:
    """Output folders of others, and of the same run."""
    for kind in TRAINED:
        rows = rows_of(kind, 8)
        own = (f"run-{kind}",)
        saving = ("--save_steps", "1")
        yield family_case(
            kind, "the same run again", WORKS, saving, rows=rows, prepare=_copied(own[0]), fixtures=own
        )
        yield family_case(
            *(kind, "the same run on other rows", REFUSED, saving),
            rows=rows[::-1],
            prepare=_copied(own[0]),
            fixtures=own,
            hints=("data",),
        )
        yield family_case(
            *(kind, "the same run with another seed", REFUSED, (*saving, "--seed", "7")),
            rows=rows,
            prepare=_copied(own[0]),
            fixtures=own,
            hints=("seed",),
        )

        def unfinished(name: str = own[0]) -> None:
            _copied(name)()
            for file in ("top_weighted.csv", "history.parquet", "model.safetensors"):
                Path("out", file).unlink()
            shutil.rmtree("out/checkpoint-2")

        yield family_case(
            kind, "the same run, killed", WORKS, saving, rows=rows, prepare=unfinished, fixtures=own
        )
        other = "run-dpo" if kind != "dpo" else "run-reward"
        yield family_case(
            kind, "a folder of another family", REFUSED, prepare=_copied(other), fixtures=(other,)
        )
        yield family_case(
            kind, "a folder of fine-tuning", REFUSED, prepare=_copied("run-full"), fixtures=("run-full",)
        )

        def sealed() -> None:
            Path("out").mkdir()
            Path("out").chmod(0o500)

        yield family_case(kind, "a folder that is read-only", EITHER, prepare=sealed)
        yield family_case(kind, "a file for a folder", REFUSED, prepare=lambda: Path("out").write_text(""))
        for size in (0, 4_000, 1_000_000):
            yield family_case(kind, f"files of {size} bytes at most", EITHER, saving, file_size=size)


def _resumptions() -> Iterator[Case]:
    """--resume_from_checkpoint of something else."""
    for kind in TRAINED:
        for other in (*(k for k in TRAINED if k != kind), "full"):
            name = f"run-{other}"
            yield family_case(
                kind,
                f"from a checkpoint of {other}",
                REFUSED,
                ("--resume_from_checkpoint", "there/checkpoint-1", "--save_steps", "1"),
                rows=rows_of(kind, 8),
                prepare=_link(name, "there"),
                fixtures=(name,),
            )
        own = f"run-{kind}"
        given = ("--resume_from_checkpoint", "there/checkpoint-1", "--save_steps", "1")
        about: dict[str, Any] = {"prepare": _link(own, "there"), "fixtures": (own,)}
        yield family_case(kind, "from its own checkpoint", WORKS, given, rows=rows_of(kind, 8), **about)
        if kind != "gdpo":
            fewer = rows_of(kind, 8)[:6]
            yield family_case(kind, "from a checkpoint of more rows", REFUSED, given, rows=fewer, **about)
        yield family_case(kind, "from nowhere", REFUSED, ("--resume_from_checkpoint", "nowhere"))
    arguments = [*run_arguments("full"), "--resume_from_checkpoint", "there/checkpoint-1"]
    yield Case(
        *("sft: from a checkpoint of dpo", "families", REFUSED, arguments),
        prepare=lambda: (jsonl(good_rows(8)), _link("run-dpo", "there")()),
        fixtures=("run-dpo",),
    )


def _evaluations() -> Iterator[Case]:
    """--eval_strategy and test rows."""
    each = ("--eval_strategy", "steps", "--eval_steps", "1")
    for kind in TRAINED:
        test = rows_of(kind)
        for row in test:
            row["prompt" if kind != "grpo" else "question"] = (
                [{"role": "user", "content": "Another?"}] if kind != "grpo" else "Another?"
            )
        named = (*each, "--test_name", "t.jsonl", "--per_device_eval_batch_size", "2")
        kinds: dict[str, tuple[Callable[[], Any], tuple[str, ...], str]] = {
            "rows that are held out": (lambda rows=test: jsonl(rows, "t.jsonl"), named, WORKS),
            "no rows": (lambda: None, each, REFUSED),
            "the rows of training": (
                lambda kind=kind: jsonl(rows_of(kind), "t.jsonl"),
                named,
                REFUSED,
            ),
            "rows of another family": (
                lambda kind=kind: jsonl(pair_rows() if kind == "gdpo" else good_rows(), "t.jsonl"),
                named,
                EITHER if kind == "grpo" else REFUSED,
            ),
            "an empty file": (lambda: Path("t.jsonl").write_text(""), named, REFUSED),
            "an unknown metric": (
                lambda rows=test: jsonl(rows, "t.jsonl"),
                (
                    *(*named, "--metric_for_best_model", "beauty", "--load_best_model_at_end", "true"),
                    *("--save_strategy", "steps", "--save_steps", "1"),
                ),
                REFUSED,
            ),
            "the best model": (
                lambda rows=test: jsonl(rows, "t.jsonl"),
                (*named, "--load_best_model_at_end", "true", "--save_strategy", "steps", "--save_steps", "1"),
                WORKS,
            ),
            "a set without rows of its own": (lambda: None, ("--test_name", "t.jsonl"), REFUSED),
        }
        for title, (prepare, more, expected) in kinds.items():
            yield family_case(kind, f"evaluated on {title}", expected, more, prepare=prepare)
