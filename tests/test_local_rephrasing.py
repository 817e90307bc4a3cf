"""The maker that asks a local model."""

import pytest
import torch
from datasets import Dataset

from conftest import small_qwen
from klball.commands.paraphrase import main
from klball.data.paraphrase import batch_files, local_model, quality
from klball.data.paraphrase.quality import Reply
from klball.data.paraphrase.samples import Sample

TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {% if m['role'] == 'assistant' %}{% generation %}"
    "{{ m['content'] }}{% endgeneration %}{% else %}{{ m['content'] }}{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def samples(*prompts):
    return [Sample(str(i), prompt, f"answer {i}") for i, prompt in enumerate(prompts)]


def test_seeded_sampling_draws_from_the_softmax():
    scores = torch.tensor([[0.0, 1.0, 2.0, -1.0]])
    n, temperature = 4_000, 0.7
    sampling = local_model.SeededSampling(range(n), temperature)
    drawn = sampling(torch.zeros(n, 1), scores.expand(n, -1)).argmax(1).bincount(minlength=4) / n
    expected = torch.softmax(scores[0] / temperature, 0)
    assert (drawn - expected).abs().max() < 4 * (expected * (1 - expected) / n).sqrt().max()


@pytest.mark.parametrize("template", [None, TEMPLATE])
def test_local_model_resumes_as_if_never_interrupted(template, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", template)
    model = small_qwen(len(tokenizer), max_position_embeddings=128)
    prompts = ["Say it", "What is `x`?", "long " * 200, "Count to 3"]
    lines = list(batch_files.requests(samples(*prompts), [1, 2], batch_files.Asking("m", 0.9, 6)))
    whole, broken = tmp_path / "whole.jsonl", tmp_path / "broken.jsonl"
    local_model.answer_locally(model, tokenizer, lines, whole, batch_size=3)
    content = whole.read_bytes()
    broken.write_bytes(b"".join(content.splitlines(keepends=True)[:5]))
    assert local_model._finished(broken, len(lines), 3) == 3  # low precision: the same rows beside each other
    for batch_size, kept in ((3, len(content) // 2), (3, len(content)), (2, len(content) - 9), (3, 0)):
        broken.write_bytes(content[:kept])
        local_model.answer_locally(model, tokenizer, lines, broken, batch_size=batch_size)
        assert broken.read_bytes() == content
    replies = batch_files.read_results([whole]).replies
    assert len(replies) == 8
    assert replies[lines[2]["custom_id"]] == Reply("", quality.CUT_OFF)
    assert replies[lines[0]["custom_id"]] != replies[lines[4]["custom_id"]]


def test_a_prompt_near_the_models_limit_does_not_shorten_its_neighbours_replies(tokenizer, tmp_path):
    model = small_qwen(len(tokenizer), max_position_embeddings=128)
    asking = batch_files.Asking("m", 0.9, 6)
    words, room = 1, 128
    while room > 3:  # so many that a reply of six tokens no longer fits
        words += 1
        (line,) = batch_files.requests(samples("long " * words), [1], asking)
        room = 128 - len(
            tokenizer(local_model._prompt(tokenizer, line["body"]["messages"][0]["content"], False))[
                "input_ids"
            ]
        )
    lines = list(batch_files.requests(samples("Say it", "long " * words), [1], asking))
    files = [tmp_path / f"{size}.jsonl" for size in (1, 2)]
    for size, file in enumerate(files, 1):
        local_model.answer_locally(model, tokenizer, lines, file, batch_size=size)
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.fixture
def rephrase(tokenizer, tmp_path):
    """`klball paraphrase --maker model` with a model in a folder, some of whose weights are moved."""
    rows = [{"prompt": f"What is {k} and 1?", "completion": str(k + 1)} for k in range(2)]
    Dataset.from_list(rows).to_json(tmp_path / "rows.jsonl")

    def step(name, moved):
        model = small_qwen(len(tokenizer))
        model.lm_head.weight.data += moved
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        arguments = ["--dataset_name", tmp_path / "rows.jsonl", "--rounds", 2, "--maker", "model"]
        arguments += ["--output_dir", tmp_path / "out", "--max_new_tokens", 4]
        main([*map(str, arguments), "--model_name_or_path", str(tmp_path / name)], "klball paraphrase")

    return step


def test_another_model_in_the_same_folder_is_another_maker(rephrase):
    rephrase("m", 0)
    rephrase("m", 0)
    with pytest.raises(ValueError, match=r"another configuration .*weights"):
        rephrase("m", 1)


def test_a_model_that_is_not_there_leaves_nothing_behind(rephrase, tmp_path):
    (tmp_path / "typo").mkdir()
    with pytest.raises(ValueError, match="typo"):
        main_arguments = ["--dataset_name", tmp_path / "rows.jsonl", "--maker", "model", "--rounds", 1]
        main_arguments += ["--model_name_or_path", tmp_path / "typo", "--output_dir", tmp_path / "out"]
        main([*map(str, main_arguments)], "klball paraphrase")
    rephrase("m", 0)
