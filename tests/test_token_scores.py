"""Token scores by tiles of the LM head against eager references."""

import math

import pytest
import torch

from klball.models import token_scores as ts
from klball.models.token_scores import LMHead, token_scores


def eager(hidden, head, labels):
    """The docstring's equivalent, all in float64."""
    z = hidden.double() @ head.weight.double().T
    if head.bias is not None:
        z = z + head.bias.double()
    z = z * head.scale
    if head.softcap is not None:
        z = head.softcap * torch.tanh(z / head.softcap)
    log_p = z.log_softmax(-1)
    certainty = z.logsumexp(-1) - z.mean(-1) - math.log(z.shape[-1])
    return log_p.gather(-1, labels[:, None])[:, 0], certainty, -(log_p.exp() * log_p).sum(-1)


def naive(hidden, head, labels):
    """The same in the given dtype: the error anyone would accept."""
    z = hidden @ head.weight.T
    if head.bias is not None:
        z = z + head.bias
    z = z * head.scale
    if head.softcap is not None:
        z = head.softcap * torch.tanh(z / head.softcap)
    log_p = z.float().log_softmax(-1)
    certainty = z.float().logsumexp(-1) - z.float().mean(-1) - math.log(z.shape[-1])
    return log_p.gather(-1, labels[:, None])[:, 0], certainty, -(log_p.exp() * log_p).sum(-1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("n", "width", "vocabulary"), [(1, 3, 2), (7, 16, 1_001), (1_030, 8, 257), (5, 32, 20_000)]
)
@pytest.mark.parametrize(
    ("bias", "scale", "softcap"), [(False, 1.0, None), (True, 0.25, None), (True, 1.5, 30.0)]
)
def test_token_scores_equal_float64_eager(dtype, n, width, vocabulary, bias, scale, softcap):
    generator = torch.Generator().manual_seed(n + vocabulary)
    hidden = torch.randn(n, width, generator=generator).to(dtype)
    weight = torch.randn(vocabulary, width, generator=generator).to(dtype)
    head = LMHead(
        weight, torch.randn(vocabulary, generator=generator).to(dtype) if bias else None, scale, softcap
    )
    labels = torch.randint(vocabulary, (n,), generator=generator)
    ours = token_scores(hidden, head, labels)
    references = zip(
        (ours.log_prob, ours.certainty, ours.entropy),
        eager(hidden, head, labels),
        naive(hidden, head, labels),
        strict=True,
    )
    for mine, exact, plain in references:
        floor = 1e-12 if dtype == torch.float64 else 2e-5
        assert (mine.double() - exact).abs().max() <= 1.5 * (plain.double() - exact).abs().max() + floor
        assert mine.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_bf16_products_are_summed_in_float32_and_the_setting_is_put_back():
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 256, generator=generator).bfloat16() for n in (64, 9_000))
    before = torch.backends.mkldnn.matmul.fp32_precision
    z = LMHead(weight).logits(hidden)
    exact = hidden.double() @ weight.double().T
    assert (z - exact).abs().max() < 2e-4 < (hidden @ weight.T - exact).abs().max()
    assert torch.backends.mkldnn.matmul.fp32_precision == before


def test_no_tensor_of_all_logits_is_held(monkeypatch):
    largest = 0
    original = LMHead.logits

    def watched(self, *args):
        nonlocal largest
        z = original(self, *args)
        largest = max(largest, z.numel())
        return z

    monkeypatch.setattr(LMHead, "logits", watched)
    n, vocabulary = 3_000, 20_000
    token_scores(torch.randn(n, 4), LMHead(torch.randn(vocabulary, 4)), torch.zeros(n, dtype=torch.long))
    assert largest == ts.TOKENS_PER_TILE * ts.LOGITS_PER_TILE < n * vocabulary / 6


def test_infinite_logits_are_an_error():
    head = LMHead(torch.randn(5, 2), torch.tensor([0, 0, 0, 0, -math.inf]))
    with pytest.raises(ValueError, match="NaN or infinite logit"):
        token_scores(torch.randn(3, 2), head, torch.zeros(3, dtype=torch.long))


def test_autocast_leaves_the_head_in_float32():
    hidden, head = torch.randn(9, 16), LMHead(torch.randn(300, 16))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = head.logits(hidden)
    assert logits.shape == (9, 300)
    assert (logits.float() - head.logits(hidden)).abs().max() < 0.2
