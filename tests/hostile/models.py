"""Model folders that are cut, foreign, incomplete or inconsistent."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .case import EITHER, REFUSED, TRAIN, WORKS, Case, good_data
from .fixtures import tiny

M = Path("m")
WEIGHTS, CONFIG, TOKENIZER = "model.safetensors", "config.json", "tokenizer.json"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935\nsize 5515984\n"
DEEP = b"[" * 100_000


def copy_tiny(name: str = "m") -> Path:
    """The embedded model in a folder of its own, and four rows."""
    good_data()
    shutil.copytree(tiny(), name)
    return Path(name)


def put(name: str, content: bytes) -> Callable[[], None]:
    """The model with a file that holds something else."""

    def prepare() -> None:
        (copy_tiny() / name).write_bytes(content)

    return prepare


def cut(name: str, share: float) -> Callable[[], None]:
    """The model with a file that ends early."""

    def prepare() -> None:
        path = copy_tiny() / name
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * share)])

    return prepare


def lose(*names: str) -> Callable[[], None]:
    """The model without these files."""

    def prepare() -> None:
        copy_tiny()
        for name in names:
            (M / name).unlink()

    return prepare


def config(remove: tuple[str, ...] = (), name: str = CONFIG, **values: Any) -> Callable[[], None]:
    """The model with other settings in a JSON file."""

    def prepare() -> None:
        path = copy_tiny() / name
        settings = {k: v for k, v in json.loads(path.read_text()).items() if k not in remove}
        path.write_text(json.dumps({**settings, **values}))

    return prepare


def weights(change: Callable[[dict[str, Any]], Any]) -> Callable[[], None]:
    """The model with other tensors."""

    def prepare() -> None:
        from safetensors.torch import load_file, save_file

        path = copy_tiny() / WEIGHTS
        tensors = load_file(path)
        change(tensors)
        save_file({k: v.contiguous() for k, v in tensors.items()}, path, metadata={"format": "pt"})

    return prepare


def _first(tensors: dict[str, Any], part: str) -> str:
    return next(name for name in tensors if part in name)


def _rename(tensors: dict[str, Any], prefix: str) -> None:
    for name in list(tensors):
        tensors[prefix + name] = tensors.pop(name)


def fill(value: float) -> Callable[[dict[str, Any]], None]:
    return lambda tensors: tensors[_first(tensors, "mlp")].view(-1)[:3].fill_(value)


def _transpose(tensors: dict[str, Any]) -> None:
    name = _first(tensors, "down_proj")
    tensors[name] = tensors[name].T.contiguous()


def _pickle(content: Any) -> Callable[[], None]:
    def prepare() -> None:
        import torch
        from safetensors.torch import load_file

        copy_tiny()
        tensors = load_file(M / WEIGHTS) if content is None else content
        (M / WEIGHTS).unlink()
        torch.save(tensors, M / "pytorch_model.bin")

    return prepare


class Harmful:
    """Unpickled, it would write a file."""

    def __reduce__(self) -> Any:
        return Path.write_text, (Path("../pwned"), "x")


def _index(weight_map: Any) -> Callable[[], None]:
    def prepare() -> None:
        copy_tiny()
        (M / WEIGHTS).rename(M / "model-00001-of-00002.safetensors")
        index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
        (M / "model.safetensors.index.json").write_text(json.dumps(index))

    return prepare


def _remote_code() -> None:
    config(auto_map={"AutoModelForCausalLM": "code.Model", "AutoConfig": "code.C"}, model_type="own")()
    (M / "code.py").write_text("open('../pwned', 'w').write('x')\nclass Model: pass\nclass C: pass\n")


def _template(text: str) -> Callable[[], None]:
    return put("chat_template.jinja", text.encode())


def _extra_token() -> None:
    path = copy_tiny() / TOKENIZER
    content = json.loads(path.read_text())
    about = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    content["added_tokens"].append({"id": 5000, "content": "about the", **about})
    path.write_text(json.dumps(content))


HEADER = (10**15).to_bytes(8, "little")
SAID = ("m\\b|'m'",)
FAULTS: dict[str, tuple[Callable[[], Any], str]] = {
    "weights cut": (cut(WEIGHTS, 0.5), REFUSED),
    "weights cut by a byte": (cut(WEIGHTS, 0.999999), REFUSED),
    "weights empty": (put(WEIGHTS, b""), REFUSED),
    "weights of 8 bytes": (put(WEIGHTS, b"\0" * 8), REFUSED),
    "weights with a huge header": (put(WEIGHTS, HEADER + b"{}"), REFUSED),
    "weights junk": (put(WEIGHTS, b"junk" * 999), REFUSED),
    "weights are an LFS pointer": (put(WEIGHTS, LFS), REFUSED),
    "weights are HTML": (put(WEIGHTS, b"<html>404</html>"), REFUSED),
    "weights lost": (lose(WEIGHTS), REFUSED),
    "weights are a folder": (lambda: (lose(WEIGHTS)(), (M / WEIGHTS).mkdir()), REFUSED),
    "weights link nowhere": (lambda: (lose(WEIGHTS)(), (M / WEIGHTS).symlink_to("none")), REFUSED),
    "pickle of tensors": (_pickle(None), EITHER),
    "pickle of objects": (_pickle({"a": object}), REFUSED),
    "pickle that acts": (_pickle({"a": Harmful()}), REFUSED),
    "pickle of a list": (_pickle([1, 2]), REFUSED),
    "a tensor missing": (weights(lambda t: t.pop(_first(t, "mlp"))), REFUSED),
    "the embedding missing": (weights(lambda t: t.pop(_first(t, "embed"))), REFUSED),
    "a norm missing": (weights(lambda t: t.pop(_first(t, "norm"))), REFUSED),
    "a tensor more": (
        weights(lambda t: t.update({"model.extra.weight": t[_first(t, "norm")].clone()})),
        EITHER,
    ),
    "no tensors": (weights(lambda t: t.clear()), REFUSED),
    "names with a prefix": (weights(lambda t: _rename(t, "wrapped.")), REFUSED),
    "a tensor transposed": (weights(_transpose), REFUSED),
    "NaN in the weights": (weights(fill(float("nan"))), REFUSED),
    "inf in the weights": (weights(fill(float("inf"))), REFUSED),
    "config lost": (lose(CONFIG), REFUSED),
    "config cut": (cut(CONFIG, 0.5), REFUSED),
    "config empty": (put(CONFIG, b""), REFUSED),
    "config is a list": (put(CONFIG, b"[]"), REFUSED),
    "config is null": (put(CONFIG, b"null"), REFUSED),
    "config is {}": (put(CONFIG, b"{}"), REFUSED),
    "config is a number": (put(CONFIG, b"3"), REFUSED),
    "config in utf-16": (put(CONFIG, "{}".encode("utf-16")), REFUSED),
    "config in brackets": (put(CONFIG, DEEP), REFUSED),
    "no model_type": (config(("model_type",)), REFUSED),
    "unknown model_type": (config(model_type="qwen99"), REFUSED),
    "null model_type": (config(model_type=None), REFUSED),
    "model_type bert": (config(model_type="bert"), REFUSED),
    "model_type llama": (config(model_type="llama", architectures=["LlamaForCausalLM"]), REFUSED),
    "model_type t5": (config(model_type="t5", architectures=["T5ForConditionalGeneration"]), REFUSED),
    "model_type vit": (config(model_type="vit"), REFUSED),
    "two layers more": (config(num_hidden_layers=7, layer_types=["full_attention"] * 7), REFUSED),
    "a layer fewer": (config(num_hidden_layers=1, layer_types=["full_attention"]), REFUSED),
    "no layers": (config(num_hidden_layers=0, layer_types=[]), REFUSED),
    "another hidden size": (config(hidden_size=64), REFUSED),
    "negative hidden size": (config(hidden_size=-4), REFUSED),
    "hidden size in words": (config(hidden_size="many"), REFUSED),
    "null hidden size": (config(hidden_size=None), REFUSED),
    "another intermediate size": (config(intermediate_size=24), REFUSED),
    "larger vocabulary": (config(vocab_size=9000), REFUSED),
    "smaller vocabulary": (config(vocab_size=100), REFUSED),
    "no heads": (config(num_attention_heads=0), REFUSED),
    "other heads": (config(num_attention_heads=3, num_key_value_heads=3), REFUSED),
    "unknown activation": (config(hidden_act="wow"), REFUSED),
    "unknown rope": (
        config(rope_parameters={"rope_type": "wow"}, rope_scaling={"rope_type": "wow"}),
        REFUSED,
    ),
    "untied without a head": (config(tie_word_embeddings=False), REFUSED),
    "no positions": (config(max_position_embeddings=0), REFUSED),
    "one position": (config(max_position_embeddings=1), REFUSED),
    "unknown dtype": (config(dtype="float99", torch_dtype="float99"), EITHER),
    "quantised with a missing package": (
        config(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
        REFUSED,
    ),
    "unknown quantisation": (config(quantization_config={"quant_method": "wow"}), REFUSED),
    "code of its own": (_remote_code, REFUSED),
    "index of a missing shard": (_index({"model.norm.weight": "model-00002-of-00002.safetensors"}), REFUSED),
    "index out of the folder": (_index({"model.norm.weight": "../../x.safetensors"}), REFUSED),
    "index of nothing": (_index({}), REFUSED),
    "index is a list": (_index([]), REFUSED),
    "tokenizer lost": (lose(TOKENIZER), REFUSED),
    "tokenizer and settings lost": (lose(TOKENIZER, "tokenizer_config.json"), REFUSED),
    "tokenizer cut": (cut(TOKENIZER, 0.5), REFUSED),
    "tokenizer empty": (put(TOKENIZER, b""), REFUSED),
    "tokenizer junk": (put(TOKENIZER, b"junk"), REFUSED),
    "tokenizer is {}": (put(TOKENIZER, b"{}"), REFUSED),
    "tokenizer in brackets": (put(TOKENIZER, DEEP), REFUSED),
    "tokenizer is an LFS pointer": (put(TOKENIZER, LFS), REFUSED),
    "tokenizer without a model": (config(("model",), TOKENIZER), REFUSED),
    "tokenizer larger than the embedding": (_extra_token, REFUSED),
    "tokenizer settings junk": (put("tokenizer_config.json", b"junk"), REFUSED),
    "tokenizer settings are a list": (put("tokenizer_config.json", b"[]"), REFUSED),
    "unknown tokenizer class": (config(name="tokenizer_config.json", tokenizer_class="Wow"), EITHER),
    "no template": (lose("chat_template.jinja"), WORKS),
    "empty template": (_template(""), EITHER),
    "template with a syntax error": (_template("{% for %}"), REFUSED),
    "template with an unknown filter": (_template("{{ messages | wow }}"), REFUSED),
    "template with an unknown name": (_template("{{ nobody.home }}"), REFUSED),
    "template that refuses": (_template("{{ raise_exception('roles must alternate') }}"), REFUSED),
    "template that says nothing": (_template("{# nothing #}"), REFUSED),
    "template that reads files": (_template("{% include '/etc/passwd' %}"), REFUSED),
    "template of the class's secrets": (_template("{{ ''.__class__.__mro__ }}"), EITHER),
    "template that counts for ever": (_template("{% for i in range(10**12) %}{% endfor %}"), REFUSED),
    "template not in UTF-8": (put("chat_template.jinja", b"\xff\xfe{{"), REFUSED),
    "generation settings junk": (put("generation_config.json", b"junk"), EITHER),
    "an empty folder": (lambda: (good_data(), M.mkdir()), REFUSED),
    "a file": (lambda: (good_data(), M.write_bytes(b"x")), REFUSED),
    "GGUF alone": (lambda: (good_data(), M.mkdir(), (M / "model.gguf").write_bytes(b"GGUF")), REFUSED),
    "a link to itself": (lambda: (good_data(), M.symlink_to("m")), REFUSED),
    "nothing there": (good_data, REFUSED),
}
LIKELY = (
    *("weights cut", "weights are an LFS pointer", "a tensor missing", "two layers more", "tokenizer lost"),
    *("config cut", "another hidden size", "NaN in the weights", "template that refuses", "nothing there"),
)
NAMES = {"": "no name", " ": "white space", "../..": "parents", "m" * 300: "300 letters", "a\0b": "NUL"}


def cases() -> Iterator[Case]:
    """All of them."""
    data = ("--dataset_name", "d.jsonl")
    for kind, (prepare, expected) in FAULTS.items():
        asks = {"score": ["score", "--model_name_or_path", "m", *data, "--output_dir", "out"]}
        if kind in LIKELY or "template" in kind or "config" in kind:
            asks["train"] = ["train", "--model_name_or_path", "m", *data, *TRAIN]
        for name, arguments in asks.items():
            hints = SAID if "template" not in kind and "in the weights" not in kind else ()
            hints = ("the model takes no more",) if kind in ("no positions", "one position") else hints
            yield Case(f"{name}: {kind}", "models", expected, arguments, prepare, hints=hints)
        if kind in LIKELY:
            yield from _as_second(kind, prepare, expected)
    for model, kind in NAMES.items():
        for name, more in (("score", ["--output_dir", "out"]), ("train", TRAIN)):
            arguments = [name, "--model_name_or_path", model, *data, *more]
            yield Case(f"{name}: model named {kind}", "models", REFUSED, arguments, good_data)


def _as_second(kind: str, prepare: Callable[[], Any], expected: str) -> Iterator[Case]:
    """The second model's fault is found before the first one's work."""
    two = ("--models", "a=klball/tiny", "b=m")
    small = ("--own_prompts", "2", "--own_samples", "2", "--own_tokens", "4", "--ood_names", "d.jsonl")
    asks = {
        "evaluate": ["evaluate", *two, "--datasets", "d.jsonl", "--output_dir", "out"],
        "compare": ["compare", *two, "--dataset_name", "d.jsonl", "--rounds", "3", "--output_dir", "out"],
        "scan": [
            *("scan", "--dataset_name", "d.jsonl", "--models", "m", "--output_dir", "out"),
            *("--test_name", "d.jsonl", *small),
        ],
    }
    for name, arguments in asks.items():
        yield Case(f"{name}: second model, {kind}", "models", expected, arguments, prepare)
