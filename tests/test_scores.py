"""Score tables and row formats against eager references."""

import copy
import json
import math
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tokenizers import AddedToken
from tokenizers.pre_tokenizers import PreTokenizer
from tokenizers.processors import TemplateProcessing

import klball
from conftest import small_qwen
from klball.data import builtin
from klball.data.rows import encode, load_rows, to_trl_format
from klball.models.loading import load_model
from klball.models.weights import weights_hash
from klball.scores import parts
from klball.scores.scorer import Scorer, batches_by_length
from klball.scores.tables import provenance


@pytest.fixture(scope="module")
def model():
    return load_model("klball/tiny")[0]


@pytest.fixture(scope="module")
def dataset():
    return load_rows("stdlib-docs", "test").select(range(40))


def eager_table(model, encoded):
    rows = []
    for row in encoded:
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])[1:]
        with torch.no_grad():
            z = model(input_ids=ids).logits[0, :-1][labels != -100].double()
        log_p = z.log_softmax(-1).gather(-1, labels[labels != -100][:, None])[:, 0]
        certainty = z.logsumexp(-1) - z.mean(-1) - math.log(z.shape[-1])
        rows.append((float(log_p.mean()), float(certainty.mean()), float(log_p.sum()), len(log_p)))
    return rows


def test_head_is_used_under_autocast_too(tokenizer):
    """float32 weights with bf16 autocast, TRL's default: the logits agree to what bf16 can hold."""
    model, probe = load_model("klball/tiny")[0], tokenizer("Return the name of the file.")["input_ids"]
    assert Scorer(model, probe, lambda: torch.autocast("cpu", torch.bfloat16)).head is not None
    model.lm_head.register_forward_hook(lambda module, args, output: output.flip(-1))
    assert Scorer(model, probe, lambda: torch.autocast("cpu", torch.bfloat16)).head is None


def test_text_rows_without_an_end_token(tokenizer):
    row = Dataset.from_list([{"text": "read the file"}])
    ids = encode(row, tokenizer)[0]["input_ids"]
    assert ids[-1] == tokenizer.eos_token_id
    endless = copy.deepcopy(tokenizer)
    endless.eos_token = None
    assert encode(row, endless)[0]["input_ids"] == ids[:-1]


def test_table_equals_eager_row_by_row(model, tokenizer, dataset):
    table = klball.score(model, tokenizer, dataset)
    for row, (g, c, total, count) in zip(table, eager_table(model, encode(dataset, tokenizer)), strict=True):
        assert row["log_likelihood"] == pytest.approx(g, abs=1e-5)
        assert row["certainty"] == pytest.approx(c, abs=1e-5)
        assert row["sum_log_prob"] == pytest.approx(total, abs=1e-3) and row["num_tokens"] == count
    assert table["num_bytes"] == [len(answer.encode()) for answer in dataset["answer"]]
    assert table["sample_id"] == dataset["id"]


def test_batch_size_and_order_do_not_matter(model, tokenizer, dataset):
    one = klball.score(model, tokenizer, dataset, tokens_per_batch=1)
    many = klball.score(model, tokenizer, dataset, tokens_per_batch=100_000)
    assert one["log_likelihood"] == pytest.approx(many["log_likelihood"], abs=1e-5)
    assert one["certainty"] == pytest.approx(many["certainty"], abs=1e-5)
    backwards = klball.score(model, tokenizer, dataset.select(range(39, -1, -1)))
    assert backwards["log_likelihood"][::-1] == pytest.approx(many["log_likelihood"], abs=1e-5)


def test_batches_keep_the_token_budget():
    lengths = [5, 100, 1, 40, 40, 7]
    batches = batches_by_length(lengths, tokens=80)
    assert sorted(i for batch in batches for i in batch) == list(range(6))
    assert all(max(lengths[i] for i in b) * len(b) <= 80 for b in batches if len(b) > 1)


def test_a_model_keeps_the_mode_it_had(model, tokenizer, dataset, tmp_path, monkeypatch):
    """Where the table is there already, and where scoring fails, training goes on with its dropout."""
    rows = dataset.select(range(4))
    try:
        model.train()
        for _ in range(2):
            klball.score(model, tokenizer, rows, output=tmp_path / "scores.parquet")
            assert model.training
        monkeypatch.setattr(Scorer, "score", None)
        with pytest.raises(TypeError):
            klball.score(model, tokenizer, rows)
        assert model.training
    finally:
        model.eval()


def test_killed_and_run_again_gives_the_same_bytes(model, tokenizer, dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "BATCHES_PER_PART", 1)
    settings = dict(tokens_per_batch=600)
    klball.score(model, tokenizer, dataset, output=tmp_path / "whole.parquet", **settings)
    original, calls = Scorer.score, 0

    def dies(self, rows):
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return original(self, rows)

    monkeypatch.setattr(Scorer, "score", dies)
    with pytest.raises(KeyboardInterrupt):
        klball.score(model, tokenizer, dataset, output=tmp_path / "killed.parquet", **settings)
    assert not (tmp_path / "killed.parquet").exists()
    before = calls
    klball.score(model, tokenizer, dataset, output=tmp_path / "killed.parquet", **settings)
    assert (tmp_path / "killed.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    batches = len(batches_by_length([len(x) for x in encode(dataset, tokenizer)["input_ids"]], 600))
    assert calls - before == batches - 3  # the three finished parts were not scored again
    assert list(tmp_path.glob("*.parts-*")) == []


def test_provenance_protects_a_finished_table(model, tokenizer, dataset, tmp_path):
    path = tmp_path / "t.parquet"
    klball.score(model, tokenizer, dataset, output=path)
    about = json.loads(pq.read_schema(path).metadata[b"klball"])
    assert {"model", "dtype", "tokenizer", "template", "max_length", "libraries"} <= set(about)
    assert about["num_logits"] == 4_096
    klball.score(model, tokenizer, dataset, output=path)  # the same again is a no-op
    with pytest.raises(ValueError, match="something else"):
        klball.score(model, tokenizer, dataset, output=path, max_length=20)
    other = small_qwen(len(tokenizer))
    with pytest.raises(ValueError, match="weights"):
        klball.score(other, tokenizer, dataset, output=path)


def test_truncated_rows_are_marked_and_empty_ones_null(model, tokenizer, dataset):
    table = klball.score(model, tokenizer, dataset, max_length=30)
    lengths = [len(x) for x in encode(dataset, tokenizer)["input_ids"]]
    assert table["truncated"] == [n > 30 for n in lengths] and any(table["truncated"])
    for row in table:
        assert (row["log_likelihood"] is None) == (row["num_tokens"] == 0)
    assert 0 in table["num_tokens"]


def test_rows_of_one_token_have_no_scores(model, tokenizer):
    rows = Dataset.from_list([{"input_ids": [5]}, {"input_ids": [5, 6, 7]}])
    table = klball.score(model, tokenizer, rows)
    assert table["log_likelihood"][0] is None and table["num_tokens"] == [0, 2]
    with pytest.raises(ValueError, match="no row has an answer token to score within 1 tokens"):
        klball.score(model, tokenizer, rows, max_length=1)


def test_adapter_and_unusual_head(model, tokenizer, dataset, tmp_path, caplog):
    torch.manual_seed(0)
    lora = LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"], task_type="CAUSAL_LM")
    adapted = get_peft_model(load_model("klball/tiny")[0], lora)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    table = klball.score(adapted, tokenizer, dataset)
    assert "full logits" in caplog.text  # loud
    expected = [row[0] for row in eager_table(adapted.eval(), encode(dataset, tokenizer))]
    assert table["log_likelihood"] == pytest.approx(expected, abs=1e-5)


def test_adapter_folder_loads_on_its_base(tokenizer, dataset, tmp_path):
    adapted = get_peft_model(
        load_model("klball/tiny")[0], LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    )
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    adapted.save_pretrained(tmp_path / "adapter")
    loaded, loaded_tokenizer = load_model(str(tmp_path / "adapter"))
    expected = klball.score(adapted, tokenizer, dataset)["log_likelihood"]
    assert klball.score(loaded, loaded_tokenizer, dataset)["log_likelihood"] == pytest.approx(
        expected, abs=1e-6
    )


# --- rows -------------------------------------------------------------------------------------

FORMATS = [
    {"question": "q w", "answer": "an answer"},
    {"instruction": "q", "input": "w", "output": "an answer"},
    {"instruction": "q w", "input": "", "response": "an answer"},
    {"prompt": "q w\n", "completion": "an answer"},
    {
        "prompt": [{"role": "user", "content": "q"}],
        "completion": [{"role": "assistant", "content": "an answer"}],
    },
    {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "an answer"}]},
    {
        "prompt": "q",
        "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "an answer"}],
    },
]


@pytest.mark.parametrize("row", FORMATS)
def test_only_the_answer_and_its_end_are_scored(row, tokenizer):
    encoded = encode(Dataset.from_list([row]), tokenizer)[0]
    kept = [label for label in encoded["labels"] if label != -100]
    assert tokenizer.decode(kept) == "an answer<|im_end|>"
    assert encoded["num_bytes"] == len("an answer") and not encoded["truncated"]


@pytest.mark.parametrize("row", FORMATS)
def test_tokens_and_labels_equal_those_of_trl(row, tokenizer, tmp_path):
    from gradient_grid import quiet

    data = to_trl_format(Dataset.from_list([row]), conversational=True)
    trainer = klball.RobustSFTTrainer(
        small_qwen(len(tokenizer)),
        klball.RobustSFTConfig(**quiet(str(tmp_path))),
        train_dataset=data,
        processing_class=tokenizer,
    )
    ours = encode(Dataset.from_list([row]), tokenizer)[0]
    assert trainer.train_dataset[0]["input_ids"] == ours["input_ids"]
    assert trainer.train_dataset[0]["labels"] == ours["labels"]


def test_weights_tell_models_apart_whatever_the_number_of_threads(model):
    before = weights_hash(model)
    torch.set_num_threads(2)
    try:
        assert weights_hash(model) == before
    finally:
        torch.set_num_threads(1)
    other = copy.deepcopy(model)
    with torch.no_grad():
        next(other.parameters()).view(-1)[3] += 1e-6
    assert weights_hash(other) != before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("changed", range(7))
def test_every_weight_counts_in_the_hash_of_an_odd_number_of_them(dtype, changed):
    numbers = torch.arange(8, dtype=dtype)
    module = torch.nn.ParameterDict({"p": torch.nn.Parameter(numbers[1:])})  # not at a whole word
    aligned = torch.nn.ParameterDict({"p": torch.nn.Parameter(numbers[1:].clone())})
    before = weights_hash(module)
    assert before == weights_hash(aligned)
    numbers[1 + changed] *= 1.01
    assert before != weights_hash(module)


def test_bad_rows_are_refused(tokenizer, tmp_path):
    with pytest.raises(ValueError, match="no known format"):
        encode(Dataset.from_list([{"a": "x"}]), tokenizer)
    with pytest.raises(ValueError, match="repeat"):
        encode(Dataset.from_list([{"id": 1, "text": "x"}, {"id": 1, "text": "y"}]), tokenizer)
    bare = load_model("klball/tiny")[1]
    bare.chat_template = None
    with pytest.raises(ValueError, match="--chat_template_path"):
        encode(Dataset.from_list([FORMATS[-1]]), bare)
    with pytest.raises(ValueError, match="no data file"):
        load_rows(str(tmp_path / "none.jsonl"))
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(ValueError, match="is empty"):
        load_rows(str(tmp_path / "empty.jsonl"))
    (tmp_path / "broken.jsonl").write_text('{"a": ')
    with pytest.raises(ValueError, match="line 1: not JSON"):
        load_rows(str(tmp_path / "broken.jsonl"))
    with pytest.raises(ValueError, match="could not load data set"):
        load_rows("no-such-owner/no-such-data")
    with pytest.raises(ValueError, match="could not load model"):
        load_model("no-such-owner/no-such-model")


# --- embedded data and model ------------------------------------------------------------------


def test_stdlib_docs_are_distinct_and_split_without_overlap():
    train, test = builtin.load_builtin("stdlib-docs", "train"), builtin.load_builtin("stdlib-docs", "test")
    assert len(test) >= 3_000 and len(train) >= 2_000
    for key in ("question", "answer", "id"):
        values = [" ".join(row[key].casefold().split()) for row in train + test]
        assert len(set(values)) == len(values)
    assert builtin.data_hash(train) == builtin.data_hash(reversed(train)) != builtin.data_hash(test)


def test_word_problems_are_deterministic_and_their_arithmetic_is_right():
    rows = builtin.load_builtin("word-problems", "test")
    assert rows == builtin.load_builtin("word-problems", "test")
    assert len({row["question"] for row in rows}) == len(rows) == 1_000
    for row in rows:
        for left, right in (part.split(" = ")[:2] for part in row["answer"].split(". ") if " = " in part):
            expression = "".join(ch for ch in left.replace(",", " ") if ch in "0123456789+-*/ ").strip()
            number = "".join(ch for ch in right.split()[0] if ch.isdigit())
            assert eval(expression.split("  ")[-1]) == int(number), row["answer"]


def test_the_embedded_model_has_learnt_language(model):
    folder = Path(klball.__file__).parent / "tiny"
    record = json.loads((folder / "settings.json").read_text())
    losses = record["held_out_nats_per_token"]
    assert losses["model"] < 0.7 * losses["bigram"] < losses["unigram"]
    assert sum(path.stat().st_size for path in folder.iterdir()) < 8_000_000
    assert 2e6 <= sum(p.numel() for p in model.parameters()) <= 3e6


def test_score_table_reader_refuses_other_files(tmp_path):
    shutil.copy(__file__, tmp_path / "x.parquet")
    with pytest.raises(ValueError, match="not a readable Parquet"):
        klball.read_scores(tmp_path / "x.parquet")


def test_a_tokenizer_of_which_answers_have_other_bytes_is_another(model, dataset):
    """Its vocabulary is the same: a step adds a token, or a token that had a text has none."""
    tokenizer = load_model("klball/tiny")[1]
    rows = encode(dataset.select(range(2)), tokenizer)[0]

    def of():
        return provenance(Scorer(model, [1, 2, 3]), tokenizer, rows, None, 1_000)["tokenizer"]

    before, backend = of(), tokenizer.backend_tokenizer
    tokenizer("A text that is cut.", truncation=True, max_length=3)  # is no other tokenizer
    tokenizer.pad_token = "<|im_start|>"  # nor this, which has no text as it is
    assert of() == before
    tokenizer.add_tokens([AddedToken("~", special=True, normalized=False)])
    assert of() not in (before, None)
    before = of()
    special = (tokenizer.eos_token, tokenizer.eos_token_id)
    backend.post_processor = TemplateProcessing(f"{special[0]} $A", special_tokens=[special])
    assert of() != before
    backend.pre_tokenizer = PreTokenizer.custom(object())  # cannot be written
    assert of() != before
