"""Log-probabilities and entropies of chosen tokens, without a [tokens, vocab] tensor kept for backward."""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CHUNK_ELEMENTS = 1 << 24  # logits held at once: 64 MiB in fp32


def _chunk(hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    logits = (hidden @ weight.T).float() / temperature
    logprobs = logits.log_softmax(-1)
    return logprobs.gather(-1, targets[:, None])[:, 0], -(logprobs.exp() * logprobs).sum(-1)


def token_logprobs(hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Log-probs, entropies, fp32 [N], of hidden [N, D], weight [V, D], targets int64 [N]; logits are recomputed."""
    rows = max(1, CHUNK_ELEMENTS // weight.shape[0])
    if len(hidden) <= rows:
        return _chunk(hidden, weight, targets, temperature)
    chunks = zip(hidden.split(rows), targets.split(rows), strict=True)
    parts = [checkpoint(_chunk, h, weight, t, temperature, use_reentrant=False) for h, t in chunks]
    logprobs, entropies = zip(*parts, strict=True)
    return torch.cat(logprobs), torch.cat(entropies)


def token_kl(hidden: Tensor, weight: Tensor, ref_hidden: Tensor, ref_weight: Tensor) -> Tensor:
    """KL(p ‖ q) in nats, fp32 [N], Rao-Blackwell's estimate; hidden, ref_hidden [N, D]; weight, ref_weight [V, D]."""
    rows = max(1, CHUNK_ELEMENTS // weight.shape[0])
    parts = []
    for h, r in zip(hidden.split(rows), ref_hidden.split(rows), strict=True):
        p, q = (h @ weight.T).float().log_softmax(-1), (r @ ref_weight.T).float().log_softmax(-1)
        parts.append((p.exp() * (p - q)).sum(-1))
    return torch.cat(parts)
