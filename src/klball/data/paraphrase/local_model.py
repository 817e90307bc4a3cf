"""A Transformers model as maker: it answers Batch requests on this machine, in the Batch result format."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase

TEMPERATURE = 0.7


class SeededSampling(LogitsProcessor):
    """Adds Gumbel noise, each row from its own generator: arg max z/τ + G is a draw from softmax(z/τ).

    Greedy decoding then samples, and a row's draw does not depend on the rows beside it.
    """

    def __init__(self, seeds: Sequence[int], temperature: float):
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.temperature = temperature

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Scores (B, V) with the noise of this step."""
        if self.temperature == 0:
            return scores
        shape = scores.shape[-1]
        noise = torch.stack([torch.empty(shape).exponential_(generator=g) for g in self.generators])
        return scores.float() / self.temperature - noise.log().to(scores.device)


def answer_locally(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[dict[str, Any]],
    output: Path,
    batch_size: int = 16,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write a Batch result line for every request to `output`, in order, continuing where it ends.

    Each request is sampled with its own seed and beside the same others, so that a run continues as if it
    had not been interrupted; with another batch size, rounding in low precision can change a draw.
    Without a chat template the first line of the continuation is the reply.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    done = _finished(output, len(requests), batch_size)
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    with output.open("a", encoding="utf-8") as file:
        for start in range(done, len(requests), batch_size):
            batch = requests[start : start + batch_size]
            for request, (text, finish) in zip(batch, _generate(model, tokenizer, batch), strict=True):
                file.write(json.dumps(_result(request, text, finish), ensure_ascii=False) + "\n")
            file.flush()
            if progress is not None:
                progress(start + len(batch), len(requests))


def _finished(output: Path, requests: int, batch_size: int) -> int:
    """How many requests are answered, after removing what a kill left of an unfinished batch."""
    if not output.exists():
        return 0
    lines = output.read_bytes().splitlines(keepends=True)
    whole = [line for line in lines if line.endswith(b"\n")]
    if len(whole) < requests:
        whole = whole[: len(whole) // batch_size * batch_size]
    with output.open("rb+") as file:
        file.truncate(sum(map(len, whole)))
    return len(whole)


@torch.no_grad()
def _generate(model: Any, tokenizer: Any, batch: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """(text, finish reason) per request; "length" if the model had to stop, or could not begin."""
    bodies = [request["body"] for request in batch]
    new_tokens = bodies[0]["max_completion_tokens"]
    chat = bool(tokenizer.chat_template)
    prompts = [_prompt(tokenizer, body["messages"][0]["content"], chat) for body in bodies]
    encoded = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=not chat)
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    room = new_tokens if limit is None else min(new_tokens, limit - encoded["input_ids"].shape[1])
    if room < new_tokens and len(batch) > 1:  # a long prompt must not shorten its neighbours' answers
        return [_generate(model, tokenizer, [request])[0] for request in batch]
    if room <= 0:
        return [("", "length")]
    sampling = SeededSampling([b["seed"] for b in bodies], bodies[0].get("temperature", TEMPERATURE))
    stop = {} if chat else {"stop_strings": ["\n"], "tokenizer": tokenizer}
    tokens = model.generate(
        input_ids=encoded["input_ids"].to(model.device),
        attention_mask=encoded["attention_mask"].to(model.device),
        max_new_tokens=room,
        do_sample=False,
        logits_processor=LogitsProcessorList([sampling]),
        pad_token_id=tokenizer.pad_token_id,
        **stop,
    )
    new = tokens[:, encoded["input_ids"].shape[1] :].tolist()
    return [_finish(model, tokenizer, ids, chat) for ids in new]


def _prompt(tokenizer: Any, content: str, chat: bool) -> str:
    if not chat:
        return content + "\n\nRewritten prompt:"
    return tokenizer.apply_chat_template(
        [{"role": "user", "content": content}],
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=False,  # templates that know no thoughts ignore it
    )


def _finish(model: PreTrainedModel, tokenizer: Any, ids: list[int], chat: bool) -> tuple[str, str]:
    ends = getattr(model.generation_config, "eos_token_id", None)
    ends = set(ends if isinstance(ends, list) else [ends]) | {tokenizer.eos_token_id}
    stopped = bool(ends.intersection(ids))
    text = tokenizer.decode(ids, skip_special_tokens=True)
    if not chat:
        text, newline, _ = text.partition("\n")
        stopped = stopped or bool(newline)
    return text.strip(), "stop" if stopped else "length"


def _result(request: dict[str, Any], text: str, finish: str) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
    body = {"object": "chat.completion", "model": request["body"]["model"], "choices": [choice]}
    response = {"status_code": 200, "request_id": request["custom_id"], "body": body}
    return {
        "id": request["custom_id"],
        "custom_id": request["custom_id"],
        "response": response,
        "error": None,
    }
