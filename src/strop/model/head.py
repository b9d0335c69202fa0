"""Log-probabilities and entropies of chosen tokens, without a [tokens, vocab] tensor kept for backward."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CHUNK_ELEMENTS = 1 << 24  # logits held at once: 64 MiB in fp32


def _chunk(hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    logits = (hidden @ weight.T).float() / temperature
    logprobs = logits.log_softmax(-1)
    entropy = -(logprobs.exp() * logprobs).sum(-1)
    return logprobs.gather(-1, targets[:, None])[:, 0], entropy


def token_logprobs(hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Log-probability of each target and entropy of its distribution, both fp32 [N].

    hidden [N, D], weight [V, D], targets int64 [N]. The head runs in chunks; where there is more than one, backward
    recomputes their logits instead of storing them.
    """
    rows = max(1, CHUNK_ELEMENTS // weight.shape[0])
    if len(hidden) <= rows:
        return _chunk(hidden, weight, targets, temperature)
    chunks = zip(hidden.split(rows), targets.split(rows), strict=True)
    parts = [checkpoint(_chunk, h, weight, t, temperature, use_reentrant=False) for h, t in chunks]
    logprobs, entropies = zip(*parts, strict=True)
    return torch.cat(logprobs), torch.cat(entropies)


def token_kl(hidden: Tensor, weight: Tensor, ref_hidden: Tensor, ref_weight: Tensor) -> Tensor:
    """KL(p ‖ q) over the whole vocabulary at each position, in nats, fp32 [N].

    hidden, ref_hidden [N, D]; weight, ref_weight [V, D]. Summed along a sample from p this is the Rao-Blackwellised
    estimate of the sequence KL: unbiased, and of lower variance than k1.
    """
    rows = max(1, CHUNK_ELEMENTS // weight.shape[0])
    parts = []
    for h, r in zip(hidden.split(rows), ref_hidden.split(rows), strict=True):
        p, q = (h @ weight.T).float().log_softmax(-1), (r @ ref_weight.T).float().log_softmax(-1)
        parts.append((p.exp() * (p - q)).sum(-1))
    return torch.cat(parts)
