"""Loading models: the embedded one, Hub names, local folders, with or without a PEFT adapter."""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from klball.robust.token_scores import LMHead

TINY = "klball/tiny"


def model_path(name: str) -> str:
    """Where a model lies: the package's own folder for `klball/tiny`, else the name itself."""
    if name != TINY and not (name.endswith("klball/tiny") and not Path(name).exists()):
        return name
    return str(files("klball") / "tiny")


def load_model(
    name: str, dtype: str = "float32", revision: str | None = None
) -> tuple[torch.nn.Module, PreTrainedTokenizerBase]:
    """The causal language model and tokenizer of that name, in evaluation mode.

    A folder with an adapter is loaded on top of the base model it names. `dtype` is a torch name or
    "auto". Raises ValueError in one line if the model cannot be reached.
    """
    path = model_path(name)
    adapter = Path(path) / "adapter_config.json"
    torch_dtype = dtype if dtype == "auto" else _torch_dtype(dtype)
    try:
        if adapter.is_file():
            from peft import PeftModel

            base = model_path(json.loads(adapter.read_text())["base_model_name_or_path"])
            model = AutoModelForCausalLM.from_pretrained(base, dtype=torch_dtype)
            model = PeftModel.from_pretrained(model, path)
            own = (Path(path) / "tokenizer_config.json").is_file()
            tokenizer = AutoTokenizer.from_pretrained(path if own else base)
        else:
            model = AutoModelForCausalLM.from_pretrained(path, dtype=torch_dtype, revision=revision)
            tokenizer = AutoTokenizer.from_pretrained(path, revision=revision)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"could not load model {name!r}: {str(error).splitlines()[0]}; give a local folder, a Hub "
            f"name that can be reached, or {TINY}"
        ) from error
    return model.eval(), tokenizer


def load_on_device(name: str, dtype: str = "float32", revision: str | None = None) -> tuple[Any, Any]:
    """`load_model`, on the accelerator where there is one."""
    model, tokenizer = load_model(name, dtype, revision)
    if torch.accelerator.is_available():
        model.to(torch.accelerator.current_accelerator())
    return model, tokenizer


def _torch_dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"no dtype {name!r}; use float32, bfloat16, float16 or auto")
    return dtype


def causal_lm(model: torch.nn.Module) -> PreTrainedModel:
    """The causal language model inside a PEFT or distributed wrapper."""
    while hasattr(model, "module"):
        model = model.module  # pyright: ignore[reportAssignmentType]
    if hasattr(model, "get_base_model"):
        model = model.get_base_model()  # pyright: ignore[reportCallIssue]
    assert isinstance(model, PreTrainedModel)
    return model


def lm_head(model: PreTrainedModel) -> LMHead | None:
    """How logits follow from hidden states, read off the model; None for an unusual head."""
    projection: Any = model.get_output_embeddings()
    kinds = (kind for kind in type(projection).__mro__ if not issubclass(kind, FSDPModule))
    if next(kinds) is not torch.nn.Linear:  # FSDP2 derives a class of its own from the module's
        return None
    config = model.config.get_text_config()
    scale = next(
        (
            value
            for name in ("logit_scale", "output_multiplier", "lm_head_multiplier")
            if (value := getattr(config, name, None)) is not None
        ),
        None,
    )
    scaling = getattr(config, "logits_scaling", None)
    if scale is None and scaling is not None:
        scale = scaling if config.model_type == "hyperclovax" else 1 / scaling
    softcap = getattr(config, "final_logit_softcapping", None)
    return LMHead(projection.weight, projection.bias, 1.0 if scale is None else scale, softcap)


def check_model(name: str) -> None:
    """Raise ValueError if there is no such model, or no base of an adapter; no weights are loaded."""
    from transformers import AutoConfig

    path = model_path(name)
    adapter = Path(path) / "adapter_config.json"
    try:
        if adapter.is_file():
            base = json.loads(adapter.read_text(encoding="utf-8")).get("base_model_name_or_path")
            if not base:
                raise ValueError(f"its {adapter.name} names no base model")
            path = model_path(base)
        AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"could not load model {name!r}: {str(error).splitlines()[0]}; give a local folder, a Hub "
            f"name that can be reached, or {TINY}"
        ) from error
