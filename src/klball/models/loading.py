"""Loading models: the embedded one, Hub names, local folders, with or without a PEFT adapter."""

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PeftConfig, PeftModel, PeftType
from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING
from torch.distributed.fsdp import FSDPModule
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.quantizers import AutoHfQuantizer
from transformers.utils.hub import has_file
from transformers.utils.peft_utils import find_adapter_config_file

from klball.files import name_of
from klball.models.causality import refuse_encoder
from klball.models.token_scores import LMHead
from klball.models.weights import (
    read_json_object,
    refuse_damaged_safetensors,
    refuse_missing_shards,
    whole_shape,
)

logger = logging.getLogger(__name__)

TINY = "klball/tiny"
LOCAL = ("./", "../", "/", "~")  # how names begin that no Hub has
TINY_FOLDER = str(files("klball") / "tiny")
GENERATES = ("CausalLM", "LMHead", "ConditionalGeneration")  # in the names of architectures that predict


class Purpose(NamedTuple):
    """What a model is loaded for: the class that reads it, and which architectures and adapters will do."""

    loader: Any
    what: str
    architectures: tuple[str, ...]
    task_types: tuple[str | None, ...]
    options: dict[str, Any]
    head: str | None
    """A parameter that a model to be trained need not have yet."""


CAUSAL = Purpose(AutoModelForCausalLM, "a causal language model", GENERATES, (None, "CAUSAL_LM"), {}, None)
REWARD = Purpose(
    *(AutoModelForSequenceClassification, "a reward model", (*GENERATES, "SequenceClassification")),
    *((None, "SEQ_CLS"), {"num_labels": 1}, "score.weight"),
)


def model_path(name: str) -> str:
    """Where a model lies: the package's own folder for `klball/tiny`, else the name itself."""
    path = Path(name).expanduser()
    if name == TINY or (name.endswith(TINY) and not path.exists()):
        return TINY_FOLDER
    return str(path) if path.exists() else name


def public_name(path: str) -> str:
    """How files that are shared call a model: never by the place where klball is installed."""
    return TINY if model_path(path) == TINY_FOLDER else path


def load_model(
    name: str | Path,
    dtype: str | torch.dtype = "float32",
    revision: str | None = None,
    *,
    trainable: bool = False,
    trust_remote_code: bool = False,
    purpose: Purpose = CAUSAL,
    **options: Any,
) -> tuple[torch.nn.Module, PreTrainedTokenizerBase]:
    """The causal language model, or reward model, and tokenizer of that name, in evaluation mode.

    An adapter is loaded on top of the base model it names, whose embeddings grow with the adapter's own
    tokenizer.

    Args:
        name: `klball/tiny`, a local folder, or a Hub name.
        dtype: Of torch, or its name, or "auto".
        revision: Of a Hub name.
        trainable: An adapter is to be trained further.
        trust_remote_code: As in `from_pretrained`.
        purpose: CAUSAL or REWARD. To be trained, a causal language model gets the head of a reward model.
        **options: For `from_pretrained` of the (base) model.

    Raises:
        ValueError: Something is not there, not whole, or does not fit: weights, configuration,
            tokenizer, base model.
    """
    name = name_of("a model", name)
    path = model_path(name)
    remote = dict(trust_remote_code=trust_remote_code)
    if "torch_dtype" in options:
        raise ValueError("torch_dtype is called dtype")
    kind = dtype if dtype == "auto" or isinstance(dtype, torch.dtype) else torch_dtype(dtype)
    options = {"dtype": kind, **remote, **purpose.options, **options}
    with _one_line(name):
        adapter = find_adapter_config_file(path, revision=revision)
    if adapter is None:
        model = _load_base(name, revision, options, purpose, new_head=trainable)
        tokenizer = _load_tokenizer(name, revision, remote)
        return _padded_like(model, tokenizer, purpose).eval(), tokenizer
    config = _adapter_config(name, Path(adapter), revision, purpose)
    base = str(config.base_model_name_or_path)
    model = _load_base(base, config.revision, options, purpose, new_head=True)  # an adapter brings it
    with _one_line(name):
        own = has_file(path, "tokenizer_config.json", revision=revision)
    tokenizer = _load_tokenizer(*((name, revision) if own else (base, config.revision)), remote)
    embeddings: Any = model.get_input_embeddings()
    if len(tokenizer) > whole_shape(embeddings.weight)[0]:  # as PEFT's AutoPeftModel does
        model.resize_token_embeddings(len(tokenizer))
    _padded_like(model, tokenizer, purpose)
    return _with_adapter(model, name, config, revision, trainable).eval(), tokenizer


def _padded_like(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, purpose: Purpose) -> Any:
    """A reward is read where a sequence's padding begins: the model has to know its token."""
    if purpose is REWARD:
        pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        model.config.get_text_config().pad_token_id = pad
    return model


def check_model(
    name: str, revision: str | None = None, trust_remote_code: bool = False, purpose: Purpose = CAUSAL
) -> None:
    """Raise ValueError where `load_model` would for all that can be seen without loading weights."""
    with _one_line(name):
        adapter = find_adapter_config_file(model_path(name), revision=revision)
    if adapter is None:
        _check_whole(name, revision, trust_remote_code, purpose)
        return
    base = _adapter_config(name, Path(adapter), revision, purpose)
    _check_weights(Path(model_path(name)))
    try:
        _check_whole(str(base.base_model_name_or_path), base.revision, trust_remote_code, purpose)
    except ValueError as error:
        raise ValueError(f"could not load model {name!r}: of its base: {error}") from error


def _check_whole(name: str, revision: str | None, trust_remote_code: bool, purpose: Purpose) -> None:
    check_base(name, revision, trust_remote_code, purpose)
    _load_tokenizer(name, revision, {"trust_remote_code": trust_remote_code})


def load_on_device(
    name: str, dtype: str = "float32", revision: str | None = None, purpose: Purpose = CAUSAL
) -> tuple[Any, Any]:
    """`load_model`, on this process's accelerator where there is one."""
    local = os.environ.get("LOCAL_RANK")  # a launcher's processes all begin on the first
    if local is not None and torch.accelerator.is_available():
        torch.accelerator.set_device_index(int(local) % torch.accelerator.device_count())
    model, tokenizer = load_model(name, dtype, revision, purpose=purpose)
    if torch.accelerator.is_available() and not getattr(model, "is_loaded_in_8bit", False):  # which is there
        model.to(torch.accelerator.current_accelerator())
    return model, tokenizer


def is_adapter(name: str, revision: str | None = None) -> bool:
    """Whether the name is that of a PEFT adapter."""
    with _one_line(name):
        return find_adapter_config_file(model_path(name), revision=revision) is not None


def adapter_base(name: str, revision: str | None = None) -> str | None:
    """The base model that an adapter names; None for a whole model."""
    with _one_line(name):
        path = find_adapter_config_file(model_path(name), revision=revision)
    return None if path is None else read_json_object(Path(path)).get("base_model_name_or_path")


def torch_dtype(name: str) -> torch.dtype:
    """The dtype of that name. Raises ValueError if there is none."""
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"no dtype {name!r}; use float32, bfloat16, float16, float64 or auto")
    return dtype


@contextmanager
def _one_line(name: str) -> Iterator[None]:
    """What the libraries raise about a model, a dozen kinds, as one ValueError with its name."""
    try:
        yield
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        reason = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
        if name.startswith(LOCAL) and not Path(name).expanduser().exists():
            reason = "there is no such folder"
        if "Weights only load failed" in str(error):
            reason = "its weights are pickled with other objects: save them as safetensors"
        if "trust_remote_code" in str(error):
            reason = (
                "it comes with code of its own: `klball train` runs it with --trust_remote_code; to score, "
                "load it in Python with trust_remote_code=True and pass it to klball.score"
            )
        raise ValueError(f"could not load model {name!r}: {reason.rstrip('.')}") from error


def _load_base(
    name: str, revision: str | None, options: dict[str, Any], purpose: Purpose, new_head: bool
) -> PreTrainedModel:
    check_base(name, revision, options["trust_remote_code"], purpose)
    with _one_line(name):
        loaded: Any = purpose.loader.from_pretrained(
            model_path(name), revision=revision, output_loading_info=True, **options
        )
    model, info = loaded
    if new_head:
        info["missing_keys"] = [key for key in info["missing_keys"] if key != purpose.head]
    _refuse_incomplete(name, model, info, purpose)
    if getattr(model.config, "_experts_implementation", None) and model.dtype == torch.float64:
        model.set_experts_implementation("eager")  # grouped products have no such kernel
    if purpose is CAUSAL:
        refuse_encoder(model)
    return model


def check_base(name: str, revision: str | None, trust_remote_code: bool, purpose: Purpose = CAUSAL) -> None:
    """Raise ValueError for all that is wrong with a whole model but its weights' names and shapes."""
    path = Path(model_path(name))
    if path.is_dir():
        if revision not in (None, "main"):
            raise ValueError(f"{name} is a folder, which has no revision {revision!r}")
        _check_folder(path)
    hint = "" if path.exists() else f"; give a local folder, a Hub name that can be reached, or {TINY}"
    try:
        with _one_line(name):
            config = AutoConfig.from_pretrained(
                model_path(name), revision=revision, trust_remote_code=trust_remote_code
            )
            _refuse_other_architectures(config, purpose)
            _refuse_unknown_quantisation(config)
    except ValueError as error:
        raise ValueError(f"{error}{hint}") from error


def _check_folder(folder: Path) -> None:
    if not (folder / "config.json").is_file() and (folder / "adapter_config.json").is_file():
        raise ValueError(f"{folder} is an adapter, not a whole model: merge it into its base first")
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} holds no model: it has neither config.json nor adapter_config.json")
    read_json_object(folder / "config.json")
    _check_weights(folder)


def _check_weights(folder: Path) -> None:
    """Raise ValueError if files of weights are missing or cut short. A Hub name has no folder."""
    files = sorted(folder.glob("*model*.safetensors"))
    if folder.is_dir() and not files and not any(folder.glob("*model*.bin")):
        raise ValueError(
            f"{folder} holds no weights: neither model.safetensors nor adapter_model.safetensors"
        )
    for path in files:
        refuse_damaged_safetensors(path)
    for index in folder.glob("*.safetensors.index.json"):
        refuse_missing_shards(index)


def _refuse_other_architectures(config: Any, purpose: Purpose) -> None:
    declared = config.architectures or []
    if config.is_encoder_decoder:
        raise ValueError(f"{config.model_type} is an encoder-decoder, not {purpose.what}")
    if getattr(config.get_text_config(), "num_hidden_layers", 1) == 0:
        raise ValueError("its config.json says that it has no layers")
    if declared and not any(word in name for name in declared for word in purpose.architectures):
        raise ValueError(f"{declared[0]} is not {purpose.what}")


def _refuse_unknown_quantisation(config: Any) -> None:
    """Transformers would take the quantised numbers for the weights."""
    asked = getattr(config, "quantization_config", None)
    if isinstance(asked, dict) and not AutoHfQuantizer.supports_quant_method(asked):
        raise ValueError(f"transformers does not know its quantisation {asked['quant_method']!r}")


def _refuse_incomplete(name: str, model: PreTrainedModel, info: dict[str, Any], purpose: Purpose) -> None:
    """Tensors that the files lack would be random; layers that the configuration lacks would be dropped."""
    absent = sorted({*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])})
    if absent == [purpose.head]:
        raise ValueError(
            f"could not load model {name!r}: it has no reward head: klball train --family reward trains one"
        )
    if absent:
        raise ValueError(f"could not load model {name!r}: its weights lack {_some(absent)}")
    layers = {layer for key in model.state_dict() if (layer := _layer(key))}
    dropped = sorted(key for key in info["unexpected_keys"] if _layer(key) in layers)
    if dropped:
        raise ValueError(f"could not load model {name!r}: its config.json has no place for {_some(dropped)}")
    if info["unexpected_keys"] and purpose is CAUSAL:
        logger.warning("%s: not used are %s", name, _some(sorted(info["unexpected_keys"])))


def _layer(key: str) -> str | None:
    """What a parameter of one of many layers begins with, whatever the layer's number."""
    match = re.match(r"(.*?)\.\d+\..*(weight|bias)$", key)
    return match and match[1]


def _some(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more tensors"


def _load_tokenizer(name: str, revision: str | None, remote: dict[str, Any]) -> PreTrainedTokenizerBase:
    path = model_path(name)
    with _one_line(name):
        tokenizer = AutoTokenizer.from_pretrained(path, revision=revision, **remote)
    needed = tokenizer.vocab_files_names.values()
    if Path(path).is_dir() and needed and not any((Path(path) / file).is_file() for file in needed):
        raise ValueError(f"{name} has no tokenizer ({' or '.join(needed)}): save it beside the model")
    return tokenizer


def _adapter_config(name: str, path: Path, revision: str | None, purpose: Purpose) -> PeftConfig:
    """The adapter's configuration, of a kind that can be put on such a model."""
    content = read_json_object(path)
    kind, base = content.get("peft_type"), content.get("base_model_name_or_path")
    if kind not in PEFT_TYPE_TO_CONFIG_MAPPING:
        raise ValueError(f"{path}: peft_type {kind!r} is none that the installed PEFT knows")
    if not isinstance(base, str) or not base:
        raise ValueError(f"{path}: base_model_name_or_path is {base!r}: write the base model's name there")
    if content.get("task_type") not in purpose.task_types:
        raise ValueError(f"{path}: task_type {content['task_type']!r} is not {purpose.task_types[-1]}")
    if "r" in content and not (isinstance(content["r"], int) and content["r"] > 0):
        raise ValueError(f"{path}: the rank r is {content['r']!r}")
    with _one_line(name):
        config = PeftConfig.from_pretrained(model_path(name), revision=revision)
    if config.is_prompt_learning:
        raise ValueError(f"{path}: prompt-learning adapters ({kind}) are not supported: use LoRA")
    return config


def _with_adapter(
    model: PreTrainedModel, name: str, config: PeftConfig, revision: str | None, trainable: bool
) -> PeftModel:
    path = model_path(name)
    _check_weights(Path(path))
    with _one_line(name):
        adapted = PeftModel.from_pretrained(
            model, path, config=config, is_trainable=trainable, revision=revision
        )
        # once more, since only this says which tensors were found
        result = adapted.load_adapter(path, "default", is_trainable=trainable, revision=revision)
    if result.missing_keys:
        raise ValueError(f"could not load adapter {name!r}: its weights lack {_some(result.missing_keys)}")
    # of this method's own tensors: PEFT itself writes embeddings that grew a second time
    prefix = PEFT_TYPE_TO_PREFIX_MAPPING.get(PeftType(config.peft_type), "")
    if dropped := [key for key in result.unexpected_keys if prefix in key]:
        raise ValueError(f"could not load adapter {name!r}: nothing in the model takes its {_some(dropped)}")
    return adapted


def causal_lm(model: torch.nn.Module) -> PreTrainedModel:
    """The causal language model inside a PEFT or distributed wrapper. Raises ValueError if there is none."""
    while hasattr(model, "module"):
        model = model.module  # pyright: ignore[reportAssignmentType]
    if hasattr(model, "get_base_model"):
        model = model.get_base_model()  # pyright: ignore[reportCallIssue]
    if not isinstance(model, PreTrainedModel):
        raise ValueError(f"{type(model).__name__} is no causal language model of transformers")
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
