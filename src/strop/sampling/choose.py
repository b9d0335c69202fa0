"""Draw one token per row from logits: its request's seed and position decide, never what else is in the batch."""

import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # 2^64 / golden ratio, as a signed int64


def _mix(x: Tensor) -> Tensor:
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014) on wrapping int64."""
    x = (x ^ ((x >> 30) & ((1 << 34) - 1))) * -4658895280553007687
    x = (x ^ ((x >> 27) & ((1 << 37) - 1))) * -7723592293110705685
    return x ^ ((x >> 31) & ((1 << 33) - 1))


def uniforms(seeds: Tensor, positions: Tensor) -> Tensor:
    """One number in (0, 1) for each (seed, position), fp32 [B], from int64 [B] both."""
    # The finaliser maps 0 to 0, so seed 0 must not reach it as 0.
    bits = _mix(_mix((seeds + 1) * _GOLDEN) + (positions + 1) * _GOLDEN)
    # 23 bits, so that adding a half is exact in fp32 and 1.0 itself never comes out.
    return (((bits >> 41) & ((1 << 23) - 1)).float() + 0.5) / (1 << 23)


def nucleus(logprobs: Tensor, top_p: Tensor) -> Tensor:
    """Log-probs [B, V] of the smallest set whose mass reaches top_p [B] (Holtzman et al. 2020); the others −inf."""
    ordered, index = logprobs.sort(dim=-1, descending=True)
    before = ordered.exp().cumsum(-1) - ordered.exp()
    kept = ordered.masked_fill(before >= top_p[:, None], -torch.inf)
    return torch.full_like(logprobs, -torch.inf).scatter(-1, index, kept).log_softmax(-1)


def choose(
    logits: Tensor, temperature: Tensor, top_p: Tensor | None, uniform: Tensor
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Tokens int64 [B], the model's log-probs [B] at the temperature (1 where greedy), and the filtered distribution's,
    None without top_p. logits fp32 [B, V]; temperature, top_p, uniform [B]. torch.multinomial is 30 times slower."""
    greedy = temperature == 0
    logprobs = (logits / temperature.masked_fill(greedy, 1.0)[:, None]).log_softmax(-1)
    # A row that filters nothing draws the same token whoever else filters.
    drawn_from = logprobs if top_p is None else torch.where((top_p < 1)[:, None], nucleus(logprobs, top_p), logprobs)
    cdf = drawn_from.exp().cumsum(-1)
    tokens = torch.searchsorted(cdf, (uniform * cdf[:, -1])[:, None], right=True)[:, 0]
    # Rounding can land a hair past the end of the mass; fall back to the last token that adds any.
    last = (cdf >= cdf[:, -1:]).int().argmax(-1)
    tokens = torch.where(greedy, logits.argmax(-1), torch.minimum(tokens, last))
    model, behavior = (x.gather(-1, tokens[:, None])[:, 0] for x in (logprobs, drawn_from))
    return tokens, model, None if top_p is None else torch.where(greedy, model, behavior)
