"""Folders of models and adapters that lack something, or hold something else, are refused in one line."""

import json
import shutil

import pytest
import torch
from peft import IA3Config, LoraConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM

from conftest import small_qwen
from klball.models.loading import TINY_FOLDER, check_model, load_model, model_path, public_name
from klball.models.weights import weights_hash


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A whole model, an adapter for it, and an adapter with two tokens more."""
    root = tmp_path_factory.mktemp("models")
    tokenizer = load_model("klball/tiny")[1]
    model = small_qwen(len(tokenizer), tie_word_embeddings=False)
    model.save_pretrained(root / "model")
    tokenizer.save_pretrained(root / "model")
    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    base = load_model(str(root / "model"))[0]
    adapter = get_peft_model(base, lora)
    for name, weight in adapter.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    adapter.save_pretrained(root / "adapter")
    grown = load_model(str(root / "model"))
    grown[1].add_tokens(["<first>", "<second>"])
    grown[0].resize_token_embeddings(len(grown[1]))
    with_tokens = LoraConfig(
        r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", modules_to_save=["embed_tokens", "lm_head"]
    )
    get_peft_model(grown[0], with_tokens).save_pretrained(root / "tokens")
    grown[1].save_pretrained(root / "tokens")
    return root


def edit_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_weights(change, file="model.safetensors"):
    def edit(folder):
        weights = load_file(folder / file)
        save_file(change(weights), folder / file, metadata={"format": "pt"})

    return edit


def without(name):
    return lambda weights: {key: value for key, value in weights.items() if name not in key}


def renamed(old, new):
    return lambda weights: {key.replace(old, new): value for key, value in weights.items()}


def with_biases(weights):
    shapes = {key.replace("weight", "bias"): value for key, value in weights.items() if "q_proj" in key}
    return {**weights, **{key: torch.zeros(len(value)) for key, value in shapes.items()}}


def reshaped(name):
    return lambda weights: {k: v[..., :-1].contiguous() if name in k else v for k, v in weights.items()}


def config(**changes):
    return lambda folder: edit_json(folder / "config.json", **changes)


def adapter_config(**changes):
    return lambda folder: edit_json(folder / "adapter_config.json", **changes)


def of_itself(folder):
    edit_json(folder / "adapter_config.json", base_model_name_or_path=str(folder))


def cut(file, keep=0.5):
    def edit(folder):
        whole = (folder / file).read_bytes()
        (folder / file).write_bytes(whole[: int(len(whole) * keep)])

    return edit


def text(file, content):
    return lambda folder: (folder / file).write_text(content)


def gone(*files):
    return lambda folder: [(folder / file).unlink() for file in files]


def pickled(content):
    def edit(folder):
        (folder / "model.safetensors").unlink()
        torch.save(content, folder / "pytorch_model.bin")

    return edit


def sharded(folder):
    names = dict.fromkeys(load_file(folder / "model.safetensors"), "model-00002-of-00002.safetensors")
    (folder / "model.safetensors").unlink()
    save_file({"x": torch.zeros(1)}, folder / "model-00001-of-00002.safetensors")
    index = {"metadata": {}, "weight_map": names}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def masked_lm(folder):
    sizes = dict(vocab_size=4096, hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
    BertForMaskedLM(BertConfig(**sizes, intermediate_size=8)).save_pretrained(folder)


def prompt_tuning(folder):
    shutil.rmtree(folder)
    peft_config = PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
    get_peft_model(load_model(str(folder.parent / "model"))[0], peft_config).save_pretrained(folder)


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5515984\n"
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
MODELS = {  # what is wrong → (edit, what the line says)
    "a tensor is missing": (edit_weights(without("layers.1.mlp.up_proj")), "lack model.layers.1.mlp.up_proj"),
    "the head is missing": (edit_weights(without("lm_head")), "lack lm_head.weight"),
    "all names are others": (edit_weights(renamed("model.", "backbone.")), "more tensors"),
    "a tensor has another shape": (edit_weights(reshaped("0.mlp.down_proj")), "could not load model"),
    "more layers than weights": (
        config(num_hidden_layers=4, layer_types=["full_attention"] * 4),
        "lack model.layers.2",
    ),
    "fewer layers than weights": (
        config(num_hidden_layers=1, layer_types=["full_attention"]),
        "has no place for model.layers.1",
    ),
    "no layers": (config(num_hidden_layers=0, layer_types=[]), "could not load model"),
    "another hidden size": (config(hidden_size=24), "could not load model"),
    "another vocabulary": (config(vocab_size=99), "could not load model"),
    "no heads": (config(num_attention_heads=0), "could not load model"),
    "a null for a number": (config(hidden_size=None), "could not load model"),
    "model_type bert": (config(model_type="bert", architectures=None), "could not load model"),
    "an unknown model_type": (config(model_type="nothing"), "could not load model"),
    "an encoder-decoder": (config(is_encoder_decoder=True), "encoder-decoder"),
    "a classifier": (config(architectures=["Qwen3ForSequenceClassification"]), "not a causal language model"),
    "a masked language model": (masked_lm, "BertForMaskedLM is not a causal language model"),
    "config.json is a list": (text("config.json", "[]"), "config.json holds no JSON object"),
    "config.json is cut": (cut("config.json"), "config.json is not readable JSON"),
    "config.json is missing": (gone("config.json"), "neither config.json nor adapter_config.json"),
    "config.json is endless brackets": (
        text("config.json", "[" * 99_999),
        "config.json is not readable JSON",
    ),
    "an index that is a list": (
        text("model.safetensors.index.json", '{"weight_map": []}'),
        "index.json: weight_map is no object",
    ),
    "an unknown quantisation": (config(quantization_config={"quant_method": "wow"}), "quantisation 'wow'"),
    "norms that another architecture lacks": (
        config(model_type="llama", architectures=["LlamaForCausalLM"]),
        "has no place for model.layers.0.self_attn.k_norm.weight",
    ),
    "biases that config.json leaves out": (
        edit_weights(with_biases),
        "has no place for model.layers.0.self_attn.q_proj.bias",
    ),
    "weights are cut": (cut("model.safetensors"), "model.safetensors is damaged or cut short"),
    "weights are cut in the header": (cut("model.safetensors", 0.001), "model.safetensors is damaged"),
    "weights are empty": (text("model.safetensors", ""), "model.safetensors is damaged"),
    "weights are a Git LFS pointer": (
        text("model.safetensors", LFS),
        "model.safetensors is a Git LFS pointer",
    ),
    "weights are missing": (gone("model.safetensors"), "holds no weights"),
    "a pickle of objects": (pickled({"model": shutil.rmtree}), "could not load model"),
    "a shard is missing": (sharded, "lacks model-00002-of-00002.safetensors"),
    "no tokenizer": (gone(*TOKENIZER), "has no tokenizer"),
    "tokenizer.json is cut": (cut("tokenizer.json"), "could not load model"),
}
ADAPTER = "adapter_model.safetensors"
ADAPTERS = {
    "other names": (
        edit_weights(renamed("q_proj", "query"), ADAPTER),
        "could not load adapter",
    ),
    "a tensor is missing": (
        edit_weights(without("0.self_attn.v"), ADAPTER),
        "weights lack",
    ),
    "fewer modules than weights": (
        adapter_config(target_modules=["q_proj"]),
        "nothing in the model takes its",
    ),
    "another rank": (adapter_config(r=3), "size mismatch"),
    "a null rank": (adapter_config(r=None), "adapter_config.json: the rank r is None"),
    "a rank of 0": (adapter_config(r=0), "adapter_config.json: the rank r is 0"),
    "no base": (adapter_config(base_model_name_or_path=None), "adapter_config.json: base_model_name_or_path"),
    "a base that is not there": (adapter_config(base_model_name_or_path="no/where"), "load model 'no/where'"),
    "its own base": (of_itself, "is an adapter, not a whole model"),
    "another base": (adapter_config(base_model_name_or_path="klball/tiny"), "size mismatch"),
    "no kind": (adapter_config(peft_type=None), "adapter_config.json: peft_type None"),
    "an unknown kind": (adapter_config(peft_type="MAGIC"), "adapter_config.json: peft_type 'MAGIC'"),
    "another task": (adapter_config(task_type="SEQ_CLS"), "adapter_config.json: task_type 'SEQ_CLS'"),
    "modules that the base lacks": (adapter_config(target_modules=["c_attn"]), "c_attn"),
    "prompt tuning": (prompt_tuning, "prompt-learning"),
    "adapter_config.json is a list": (text("adapter_config.json", "[]"), "adapter_config.json holds no JSON"),
    "adapter_config.json is empty": (text("adapter_config.json", ""), "adapter_config.json is not readable"),
    "weights are cut": (cut("adapter_model.safetensors"), "adapter_model.safetensors is damaged"),
    "weights are a Git LFS pointer": (text("adapter_model.safetensors", LFS), "Git LFS pointer"),
    "weights are missing": (gone("adapter_model.safetensors"), "holds no weights"),
}
ONLY_BY_LOADING = {
    *("a tensor is missing", "the head is missing", "all names are others", "a tensor has another shape"),
    *("more layers than weights", "fewer layers than weights", "another hidden size", "another vocabulary"),
    *("no heads", "model_type bert", "a pickle of objects", "other names", "fewer modules than weights"),
    *("norms that another architecture lacks", "biases that config.json leaves out"),
    *("another rank", "another base", "modules that the base lacks"),
}
CASES = [("model", *case) for case in MODELS.items()] + [("adapter", *case) for case in ADAPTERS.items()]


@pytest.mark.parametrize(("kind", "what", "case"), CASES, ids=[f"{kind}: {what}" for kind, what, _ in CASES])
def test_damaged_folders_are_refused_in_one_line(kind, what, case, folders, tmp_path):
    edit, message = case
    shutil.copytree(folders / "model", tmp_path / "model")
    shutil.copytree(folders / "adapter", tmp_path / "adapter")
    load_model(str(tmp_path / kind))
    edit(tmp_path / kind)
    with pytest.raises(ValueError) as caught:
        load_model(str(tmp_path / kind))
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(("kind", "what"), [(kind, what) for kind, what, _ in CASES])
def test_what_can_be_seen_without_loading_is_seen_first(kind, what, folders, tmp_path):
    edit, message = (MODELS if kind == "model" else ADAPTERS)[what]
    shutil.copytree(folders / "model", tmp_path / "model")
    shutil.copytree(folders / "adapter", tmp_path / "adapter")
    check_model(str(tmp_path / kind))
    edit(tmp_path / kind)
    if what in ONLY_BY_LOADING:
        check_model(str(tmp_path / kind))
        return
    with pytest.raises(ValueError) as caught:
        check_model(str(tmp_path / kind))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_whole_folders_load(folders, tmp_path):
    """Also tied heads, other PEFT methods, and embeddings that an adapter's tokens made longer."""
    assert len(load_model(str(folders / "model"))[1]) == 4096
    small_qwen(4096).save_pretrained(tmp_path / "tied")
    load_model(str(folders / "model"))[1].save_pretrained(tmp_path / "tied")
    load_model(str(tmp_path / "tied"))
    ia3 = IA3Config(target_modules=["k_proj"], feedforward_modules=[], task_type="CAUSAL_LM")
    get_peft_model(load_model(str(folders / "model"))[0], ia3).save_pretrained(tmp_path / "ia3")
    load_model(str(tmp_path / "ia3"))
    model, tokenizer = load_model(str(folders / "tokens"))
    assert len(tokenizer) == 4098 and model.get_input_embeddings().weight.shape[0] == 4098
    trainable = load_model(str(folders / "adapter"), trainable=True)[0]
    assert {name.split(".")[-3] for name, p in trainable.named_parameters() if p.requires_grad} == {
        "lora_A",
        "lora_B",
    }


def test_a_folder_has_no_revision(folders):
    with pytest.raises(ValueError, match="has no revision 'v2'"):
        load_model(str(folders / "model"), revision="v2")


def test_the_hash_of_weights_sees_every_byte_and_its_place(folders):
    model = load_model(str(folders / "model"))[0]
    before = weights_hash(model)
    assert before == weights_hash(load_model(str(folders / "model"))[0])
    seen = {before}
    weight = model.get_input_embeddings().weight
    with torch.no_grad():
        weight[[5, 6]] = weight[[6, 5]]  # the sums over all rows are the same
        seen.add(weights_hash(model))
        weight[[5, 6]] = weight[[6, 5]]
        assert weights_hash(model) == before
        weight[7, 3] = torch.nextafter(weight[7, 3], torch.tensor(9.0))
        seen.add(weights_hash(model))
    seen.add(weights_hash(model.to(torch.bfloat16)))
    assert len(seen) == 4


def test_files_never_name_the_place_of_the_installation():
    assert public_name(TINY_FOLDER) == public_name("/elsewhere/site-packages/klball/tiny") == "klball/tiny"
    assert model_path("klball/tiny") == TINY_FOLDER and public_name("gpt2") == "gpt2"
