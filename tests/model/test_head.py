"""The chunked head gives what the whole head gives, values and gradients."""

import pytest
import torch

from strop.model import head
from strop.model.head import token_kl, token_logprobs

N, D, V = 23, 16, 50


@pytest.fixture
def tensors():
    g = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(N, D, generator=g), torch.randn(V, D, generator=g) * 0.7
    return hidden, weight, torch.randint(0, V, (N,), generator=g)


def direct(hidden, weight, targets, temperature):
    """By the definition, in fp64."""
    p = torch.softmax((hidden.double() @ weight.double().T) / temperature, -1)
    return p[torch.arange(len(p)), targets].log(), -(p * p.log()).sum(-1)


@pytest.mark.parametrize("rows", [1, 7, 22, 23, 100])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_logprobs_and_entropies_by_definition_whatever_the_chunks(monkeypatch, tensors, rows, temperature):
    monkeypatch.setattr(head, "CHUNK_ELEMENTS", rows * V)
    logprobs, entropy = token_logprobs(*tensors, temperature)
    expected_logprobs, expected_entropy = direct(*tensors, temperature)
    assert logprobs.dtype == entropy.dtype == torch.float32
    assert torch.allclose(logprobs.double(), expected_logprobs, atol=1e-5)
    assert torch.allclose(entropy.double(), expected_entropy, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 7])
def test_gradients_do_not_depend_on_the_chunks(monkeypatch, tensors, rows):
    hidden, weight, targets = tensors
    mix = torch.linspace(-1, 2, N)

    def gradients(dtype, forward):
        h, w = (t.detach().to(dtype).requires_grad_() for t in (hidden, weight))
        logprobs, entropy = forward(h, w, targets, 0.8)
        (mix * logprobs + 0.3 * mix.flip(0) * entropy).sum().backward()
        return h.grad, w.grad

    expected = gradients(torch.float64, direct)
    whole = gradients(torch.float32, token_logprobs)
    monkeypatch.setattr(head, "CHUNK_ELEMENTS", rows * V)
    chunked = gradients(torch.float32, token_logprobs)
    for a, b, truth in zip(whole, chunked, expected, strict=True):
        assert torch.allclose(a, b, atol=1e-5) and torch.allclose(a.double(), truth, atol=1e-4)
        assert truth.abs().max() > 0.1


def test_backward_keeps_no_logits_of_more_than_one_chunk(monkeypatch, tensors):
    hidden, weight, targets = tensors
    monkeypatch.setattr(head, "CHUNK_ELEMENTS", 5 * V)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        token_logprobs(hidden.requires_grad_(), weight.requires_grad_(), targets)
    assert max(saved) <= weight.numel() and sum(n == 5 * V for n in saved) == 0


def test_no_tokens_give_no_logprobs(tensors):
    hidden, weight, targets = tensors
    logprobs, entropy = token_logprobs(hidden[:0], weight, targets[:0])
    assert logprobs.shape == entropy.shape == (0,)


@pytest.mark.parametrize("rows", [1, 7, 100])
def test_kl_is_the_sum_over_the_vocabulary(monkeypatch, tensors, rows):
    monkeypatch.setattr(head, "CHUNK_ELEMENTS", rows * V)
    hidden, weight, _ = tensors
    g = torch.Generator().manual_seed(1)
    other, other_weight = torch.randn(N, D + 3, generator=g), torch.randn(V, D + 3, generator=g)
    p = torch.softmax(hidden.double() @ weight.double().T, -1)
    q = torch.softmax(other.double() @ other_weight.double().T, -1)
    kl = token_kl(hidden, weight, other, other_weight)
    assert kl.shape == (N,) and kl.dtype == torch.float32 and (kl > 0).all()
    assert torch.allclose(kl.double(), (p * (p / q).log()).sum(-1), atol=1e-4)
    assert token_kl(hidden, weight, hidden.clone(), weight.clone()).abs().max() == 0
    assert (token_kl(hidden, weight, hidden + 0.01, weight) >= -1e-6).all()
