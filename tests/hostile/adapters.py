"""PEFT adapters that are damaged, or made for another base."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .case import EITHER, REFUSED, TRAIN, WORKS, Case, fixture, good_data
from .fixtures import tiny
from .models import DEEP, LFS

AD = Path("ad")
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def _copy() -> Path:
    good_data()
    shutil.copytree(fixture("adapter") / "ad", AD)
    return AD


def _put(name: str, content: bytes) -> Callable[[], Any]:
    return lambda: (_copy() / name).write_bytes(content)


def _cut(name: str) -> Callable[[], Any]:
    def prepare() -> None:
        path = _copy() / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return prepare


def _config(remove: str = "", **values: Any) -> Callable[[], Any]:
    def prepare() -> None:
        path = _copy() / CONFIG
        settings = json.loads(path.read_text())
        settings.pop(remove, None)
        path.write_text(json.dumps({**settings, **values}))

    return prepare


def _weights(change: Callable[[dict[str, Any]], Any]) -> Callable[[], Any]:
    def prepare() -> None:
        from safetensors.torch import load_file, save_file

        path = _copy() / WEIGHTS
        tensors = load_file(path)
        change(tensors)
        save_file({k: v.contiguous() for k, v in tensors.items()}, path)

    return prepare


def _rename(tensors: dict[str, Any], old: str, new: str) -> None:
    for name in list(tensors):
        tensors[name.replace(old, new)] = tensors.pop(name)


def _halve(tensors: dict[str, Any]) -> None:
    for name in sorted(tensors)[::2]:
        del tensors[name]


def _pickle(content: Any) -> Callable[[], Any]:
    def prepare() -> None:
        import torch
        from safetensors.torch import load_file

        _copy()
        tensors = load_file(AD / WEIGHTS) if content is None else content
        (AD / WEIGHTS).unlink()
        torch.save(tensors, AD / "adapter_model.bin")

    return prepare


def _other_base() -> None:
    """A base of half the width under the same adapter."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    _config(base_model_name_or_path="base")()
    settings = AutoConfig.from_pretrained(tiny())
    settings.hidden_size //= 2
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(settings).save_pretrained("base")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny() / name, "base")


def _added_tokens() -> None:
    """An adapter trained after two tokens were added, embeddings saved with it, as PEFT's docs show."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    good_data()
    tokenizer = AutoTokenizer.from_pretrained(tiny())
    tokenizer.add_tokens(["<one>", "<two>"])
    model = AutoModelForCausalLM.from_pretrained(tiny(), dtype=torch.float32)
    model.resize_token_embeddings(len(tokenizer))
    settings = LoraConfig(r=4, task_type="CAUSAL_LM", target_modules=["q_proj", "embed_tokens"])
    get_peft_model(model, settings).save_pretrained(AD)
    tokenizer.save_pretrained(AD)


def _prompt_tuning() -> None:
    from peft import PromptTuningConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    good_data()
    settings = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    get_peft_model(AutoModelForCausalLM.from_pretrained(tiny()), settings).save_pretrained(AD)


def _nan(tensors: dict[str, Any]) -> None:
    next(v for k, v in tensors.items() if "lora_B" in k).fill_(float("nan"))


FAULTS: dict[str, tuple[Callable[[], Any], str]] = {
    "as it should be": (_copy, WORKS),
    "no base": (_config("base_model_name_or_path"), REFUSED),
    "null base": (_config(base_model_name_or_path=None), REFUSED),
    "empty base": (_config(base_model_name_or_path=""), REFUSED),
    "numeric base": (_config(base_model_name_or_path=3), REFUSED),
    "base in a list": (_config(base_model_name_or_path=["klball/tiny"]), REFUSED),
    "base that is not there": (_config(base_model_name_or_path="/nowhere/base"), REFUSED),
    "base is the adapter": (_config(base_model_name_or_path="ad"), REFUSED),
    "base of another size": (_other_base, REFUSED),
    "no peft_type": (_config("peft_type"), REFUSED),
    "null peft_type": (_config(peft_type=None), REFUSED),
    "unknown peft_type": (_config(peft_type="WOW"), REFUSED),
    "another peft_type": (_config(peft_type="IA3"), REFUSED),
    "prompt tuning": (_prompt_tuning, REFUSED),
    "another rank": (_config(r=8), REFUSED),
    "rank 0": (_config(r=0), REFUSED),
    "negative rank": (_config(r=-4), REFUSED),
    "null rank": (_config(r=None), REFUSED),
    "rank in words": (_config(r="four"), REFUSED),
    "NaN alpha": (_config(lora_alpha=float("nan")), REFUSED),
    "alpha in words": (_config(lora_alpha="eight"), REFUSED),
    "unknown modules": (_config(target_modules=["wow_proj"]), REFUSED),
    "other modules": (_config(target_modules=["k_proj"]), REFUSED),
    "more modules": (_config(target_modules=["q_proj", "v_proj", "k_proj"]), REFUSED),
    "fewer modules": (_config(target_modules=["q_proj"]), REFUSED),
    "null modules": (_config(target_modules=None), EITHER),
    "no modules": (_config(target_modules=[]), REFUSED),
    "numeric modules": (_config(target_modules=3), REFUSED),
    "bad expression for modules": (_config(target_modules="(["), REFUSED),
    "modules to save that are not there": (_config(modules_to_save=["wow"]), EITHER),
    "rank pattern junk": (_config(rank_pattern="wow"), REFUSED),
    "task of classification": (_config(task_type="SEQ_CLS"), EITHER),
    "unknown task": (_config(task_type="WOW"), EITHER),
    "unknown settings": (_config(wow=3), EITHER),
    "DoRA without magnitudes": (_config(use_dora=True), REFUSED),
    "settings cut": (_cut(CONFIG), REFUSED),
    "settings empty": (_put(CONFIG, b""), REFUSED),
    "settings are {}": (_put(CONFIG, b"{}"), REFUSED),
    "settings are a list": (_put(CONFIG, b"[]"), REFUSED),
    "settings are null": (_put(CONFIG, b"null"), REFUSED),
    "settings in latin-1": (_put(CONFIG, b'{"a": "\xe9"}'), REFUSED),
    "settings in brackets": (_put(CONFIG, DEEP), REFUSED),
    "weights cut": (_cut(WEIGHTS), REFUSED),
    "weights empty": (_put(WEIGHTS, b""), REFUSED),
    "weights junk": (_put(WEIGHTS, b"junk" * 99), REFUSED),
    "weights are an LFS pointer": (_put(WEIGHTS, LFS), REFUSED),
    "weights lost": (lambda: Path.unlink(_copy() / WEIGHTS), REFUSED),
    "other names": (_weights(lambda t: _rename(t, "base_model.model", "other")), REFUSED),
    "names of another method": (_weights(lambda t: _rename(t, "lora_", "vera_")), REFUSED),
    "layers of a deeper model": (_weights(lambda t: _rename(t, "layers.0.", "layers.9.")), REFUSED),
    "half of the tensors": (_weights(_halve), REFUSED),
    "no tensors": (_weights(lambda t: t.clear()), REFUSED),
    "a tensor more": (_weights(lambda t: t.update(extra=next(iter(t.values())).clone())), EITHER),
    "tensors transposed": (_weights(lambda t: t.update({k: v.T for k, v in t.items()})), REFUSED),
    "NaN in the weights": (_weights(_nan), REFUSED),
    "pickle of tensors": (_pickle(None), EITHER),
    "pickle of objects": (_pickle({"a": object}), REFUSED),
    "added tokens": (_added_tokens, WORKS),
    "tokenizer junk": (lambda: (_copy() / "tokenizer_config.json").write_text("junk"), REFUSED),
    "tokenizer settings alone": (lambda: (_copy() / "tokenizer_config.json").write_text("{}"), EITHER),
    "merged model beside it": (
        lambda: (
            _copy(),
            shutil.copy(tiny() / "model.safetensors", AD),
            shutil.copy(tiny() / "config.json", AD),
        ),
        EITHER,
    ),
}


def cases() -> Iterator[Case]:
    """All of them."""
    asks = {"score": ["--output_dir", "out"], "train": list(TRAIN)}
    for kind, (prepare, expected) in FAULTS.items():
        for name, more in asks.items():
            if name == "train" and not any(
                word in kind for word in ("base", "names", "should", "rank", "added", "weights")
            ):
                continue
            arguments = [name, "--model_name_or_path", "ad", "--dataset_name", "d.jsonl", *more]
            check = _changed if kind == "as it should be" and name == "train" else None
            hints = () if "base" in kind or "NaN" in kind else ("ad\\b|'ad'",)
            yield Case(
                *(f"{name}: {kind}", "adapters", expected, arguments, prepare),
                hints=hints,
                fixtures=("adapter",),
                check=check,
            )
    for kind in ("as it should be", "other names", "weights cut", "null base"):
        prepare, expected = FAULTS[kind]
        arguments = [
            "evaluate",
            "--models",
            "b=klball/tiny",
            "a=ad",
            "--datasets",
            "d.jsonl",
            "--output_dir",
            "out",
        ]
        yield Case(f"evaluate: {kind}", "adapters", expected, arguments, prepare, fixtures=("adapter",))


def _changed() -> str | None:
    """An adapter that is trained on has moved."""
    from safetensors.torch import load_file

    if not Path("out", WEIGHTS).exists():
        return "no adapter was written"
    before, after = load_file(AD / WEIGHTS), load_file(Path("out", WEIGHTS))
    return "the adapter was not trained" if all((after[k] == v).all() for k, v in before.items()) else None
