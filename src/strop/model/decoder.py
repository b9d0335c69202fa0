"""One decoder for the Llama family: Llama, Mistral, SmolLM, Qwen2 and Qwen3 by configuration.

It knows weights, positions and a key-value cache. It knows nothing of tokens' meaning, of
sampling or of losses. Module names are Hugging Face's, so checkpoints load and save by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from strop.errors import StropError

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
_NEEDED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")


@dataclass(frozen=True)
class Shape:
    """The numbers of a decoder, read from a Hugging Face `config.json`."""

    vocab: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    norm_eps: float
    rope_theta: float
    max_positions: int
    tied: bool
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> Shape:
        """Read a `config.json`. Raises StropError for an architecture this decoder is not."""
        family = config.get("model_type")
        if family not in FAMILIES:
            raise StropError(f"model_type {family!r} is not supported; use one of {', '.join(FAMILIES)}")
        rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
        if rope.get("rope_type", rope.get("type", "default")) != "default":
            raise StropError(f"RoPE scaling {rope.get('rope_type', rope.get('type'))!r} is not supported yet")
        window = config.get("sliding_window")
        if window and (family == "mistral" or config.get("use_sliding_window")):
            raise StropError("sliding-window attention is not supported yet; set sliding_window to null")
        if config.get("hidden_act", "silu") != "silu":
            raise StropError(f"activation {config['hidden_act']!r} is not supported; only silu")
        if missing := [key for key in _NEEDED if key not in config]:
            raise StropError(f"config.json has no {missing[0]!r}")
        heads = config["num_attention_heads"]
        bias = bool(config.get("attention_bias", False))
        return cls(
            vocab=config["vocab_size"],
            hidden=config["hidden_size"],
            intermediate=config["intermediate_size"],
            layers=config["num_hidden_layers"],
            heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or config["hidden_size"] // heads,
            norm_eps=config.get("rms_norm_eps", 1e-6),
            rope_theta=rope.get("rope_theta") or config.get("rope_theta", 10000.0),
            max_positions=config.get("max_position_embeddings", 2048),
            tied=bool(config.get("tie_word_embeddings", False)),
            qkv_bias=bias or family == "qwen2",
            output_bias=bias and family != "qwen2",
            mlp_bias=bool(config.get("mlp_bias", False)),
            qk_norm=family == "qwen3",
        )

    @property
    def matrix_parameters(self) -> int:
        """Parameters that multiply every token, the head included and the embedding lookup not."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.intermediate) + self.vocab * self.hidden

    def forward_flops(self, tokens: int, context: float) -> float:
        """FLOPs of `tokens` forward passes that attend to `context` tokens on average."""
        attention = 4 * self.layers * self.heads * self.head_dim * context
        return tokens * (2.0 * self.matrix_parameters + attention)


class KVCache:
    """Keys and values of `slots` sequences of up to `length` tokens, in static buffers.

    keys, values: [L, slots, kv_heads, length, head_dim].
    """

    def __init__(self, shape: Shape, slots: int, length: int, device: torch.device, dtype: torch.dtype):
        size = (shape.layers, slots, shape.kv_heads, length, shape.head_dim)
        self.keys = torch.zeros(size, device=device, dtype=dtype)
        self.values = torch.zeros(size, device=device, dtype=dtype)

    def write(self, layer: int, slots: Tensor, positions: Tensor, k: Tensor, v: Tensor) -> None:
        """Store k, v [B, kv_heads, T, head_dim] at `positions` [B, T] of `slots` [B]."""
        self.keys[layer, slots[:, None], :, positions] = k.transpose(1, 2).to(self.keys.dtype)
        self.values[layer, slots[:, None], :, positions] = v.transpose(1, 2).to(self.values.dtype)

    def read(self, layer: int, slots: Tensor | int, length: int) -> tuple[Tensor, Tensor]:
        """The first `length` entries: of the first n slots without a copy, or of listed ones."""
        if isinstance(slots, int):
            return self.keys[layer, :slots, :, :length], self.values[layer, :slots, :, :length]
        return self.keys[layer, slots, :, :length], self.values[layer, slots, :, :length]

    def copy(self, source: int, targets: list[int], length: int) -> None:
        """Fork: the first `length` entries of one slot into others."""
        for buffer in (self.keys, self.values):
            buffer[:, targets, :, :length] = buffer[:, source : source + 1, :, :length]


@dataclass(frozen=True)
class CacheView:
    """Which slots of a cache a forward pass reads and writes. `slots` is an int n for 0..n-1."""

    cache: KVCache
    slots: Tensor | int
    rows: Tensor  # int64 [B], the slots spelled out
    positions: Tensor  # int64 [B, T], where each token stands
    length: int  # longest context after this pass
    mask: Tensor  # bool [B, 1, T, length]

    @classmethod
    def at(cls, cache: KVCache, slots: Tensor | int, positions: Tensor, length: int) -> CacheView:
        rows = torch.arange(slots, device=positions.device) if isinstance(slots, int) else slots
        reach = torch.arange(length, device=positions.device)
        mask = (reach <= positions[:, :, None])[:, None]
        return cls(cache, slots, rows, positions, length, mask)


class RMSNorm(nn.Module):
    """Root-mean-square norm in fp32, scaled in the input's dtype (Zhang and Sennrich 2019)."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * F.rms_norm(x.float(), (x.shape[-1],), eps=self.eps).to(x.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding in the half-split layout. x [B, H, T, D]; cos, sin [B or 1, 1, T, D/2]."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Scaled dot-product attention, causal where no mask is given, grouped where k has fewer heads.

    On a CPU it runs in fp32 whatever the autocast: the bf16 kernel's backward is three times slower.
    """
    grouped = q.shape[1] != k.shape[1]
    if q.device.type != "cpu":
        k, v = k.to(q.dtype), v.to(q.dtype)
        return F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None, enable_gqa=grouped)
    with torch.autocast("cpu", enabled=False):
        q, k, v = q.float(), k.float(), v.float()
        return F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None, enable_gqa=grouped)


class Attention(nn.Module):
    def __init__(self, shape: Shape, layer: int):
        super().__init__()
        self.shape, self.layer = shape, layer
        width, kv_width = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        self.q_proj = nn.Linear(shape.hidden, width, bias=shape.qkv_bias)
        self.k_proj = nn.Linear(shape.hidden, kv_width, bias=shape.qkv_bias)
        self.v_proj = nn.Linear(shape.hidden, kv_width, bias=shape.qkv_bias)
        self.o_proj = nn.Linear(width, shape.hidden, bias=shape.output_bias)
        if shape.qk_norm:
            self.q_norm = RMSNorm(shape.head_dim, shape.norm_eps)
            self.k_norm = RMSNorm(shape.head_dim, shape.norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, view: CacheView | None) -> Tensor:
        batch, length, _ = x.shape
        q = self.q_proj(x).view(batch, length, -1, self.shape.head_dim)
        k = self.k_proj(x).view(batch, length, -1, self.shape.head_dim)
        v = self.v_proj(x).view(batch, length, -1, self.shape.head_dim).transpose(1, 2)
        if self.shape.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = rotate(q.transpose(1, 2), cos, sin), rotate(k.transpose(1, 2), cos, sin)
        mask = None
        if view is not None:
            view.cache.write(self.layer, view.rows, view.positions, k, v)
            k, v = view.cache.read(self.layer, view.slots, view.length)
            mask = view.mask
        out = attend(q, k, v, mask).transpose(1, 2).reshape(batch, length, -1)
        return self.o_proj(out.to(x.dtype))


class MLP(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden, shape.intermediate, bias=shape.mlp_bias)
        self.up_proj = nn.Linear(shape.hidden, shape.intermediate, bias=shape.mlp_bias)
        self.down_proj = nn.Linear(shape.intermediate, shape.hidden, bias=shape.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, shape: Shape, layer: int):
        super().__init__()
        self.self_attn = Attention(shape, layer)
        self.mlp = MLP(shape)
        self.input_layernorm = RMSNorm(shape.hidden, shape.norm_eps)
        self.post_attention_layernorm = RMSNorm(shape.hidden, shape.norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, view: CacheView | None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, view)
        return x + self.mlp(self.post_attention_layernorm(x))


class Trunk(nn.Module):
    """Embeddings, blocks and the final norm: everything below the head."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocab, shape.hidden)
        self.layers = nn.ModuleList(Block(shape, i) for i in range(shape.layers))
        self.norm = RMSNorm(shape.hidden, shape.norm_eps)


class Decoder(nn.Module):
    """A causal language model. `forward` ends at the final norm; `head` is applied by callers,
    on the positions they need, so that no [tokens, vocab] tensor is made in vain."""

    cos: Tensor
    sin: Tensor

    def __init__(self, shape: Shape):
        super().__init__()
        self.shape = shape
        self.model = Trunk(shape)
        self.lm_head = nn.Linear(shape.hidden, shape.vocab, bias=False)
        self.complete()

    def complete(self) -> None:
        """Tie the head and (re)make the rotary tables, fp32 [max_positions, head_dim / 2]: what
        no checkpoint holds, and what moving from the meta device loses."""
        if self.shape.tied:
            self.lm_head.weight = self.model.embed_tokens.weight
        half = torch.arange(0, self.shape.head_dim, 2, dtype=torch.float32) / self.shape.head_dim
        angles = torch.outer(torch.arange(self.shape.max_positions).float(), self.shape.rope_theta**-half)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    @property
    def device(self) -> torch.device:
        return self.lm_head.weight.device

    def forward(self, ids: Tensor, view: CacheView | None = None) -> Tensor:
        """Hidden states [B, T, D] after the final norm, for ids int64 [B, T].

        Without a view, rows are whole sequences from position 0, causal; padding goes to the
        right, where no real token sees it. With a view, tokens continue what its slots hold.
        """
        positions = torch.arange(ids.shape[1], device=ids.device)[None] if view is None else view.positions
        x = self.model.embed_tokens(ids)
        cos, sin = self.cos[positions][:, None].to(x.dtype), self.sin[positions][:, None].to(x.dtype)
        for block in self.model.layers:
            x = block(x, cos, sin, view)
        return self.model.norm(x)

    def init_weights(self, seed: int) -> None:
        """Normal(0, 0.02) matrices, the residual outputs scaled by 1/sqrt(2 L) (GPT-2's scheme)."""
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:
                nn.init.zeros_(parameter) if name.endswith("bias") else nn.init.ones_(parameter)
                continue
            residual = name.endswith(("o_proj.weight", "down_proj.weight"))
            std = 0.02 / (2 * self.shape.layers) ** 0.5 if residual else 0.02
            nn.init.normal_(parameter, std=std, generator=generator)
