"""One decoder for the Llama family: Llama, Mistral, SmolLM, Qwen2 and Qwen3 by config, under Hugging Face's names."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from strop.errors import StropError

_QWEN = {"num_key_value_heads": 32, "max_position_embeddings": 32768, "sliding_window": 4096}
# By family, what transformers takes a key to be that config.json leaves out.
DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {"max_position_embeddings": 2048},
    "mistral": {"num_key_value_heads": 8, "max_position_embeddings": 131072, "sliding_window": 4096},
    "qwen2": _QWEN,
    "qwen3": {**_QWEN, "head_dim": 128},
}
NEEDED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")


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
    def from_hf(cls, config: Mapping[str, Any]) -> Self:
        """Read a `config.json`. Raises StropError for an architecture this decoder is not."""
        family = config.get("model_type")
        if family not in DEFAULTS:
            raise StropError(f"model_type {family!r} is not supported; use one of {', '.join(DEFAULTS)}")
        if missing := [key for key in NEEDED if key not in config]:
            raise StropError(f"config.json has no {missing[0]!r}")
        config = {**DEFAULTS[family], **config}
        rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
        if (rope_type := rope.get("rope_type", rope.get("type", "default"))) != "default":
            raise StropError(f"RoPE scaling {rope_type!r} is not supported yet")
        context = config["max_position_embeddings"]
        slides = family == "mistral" or config.get("use_sliding_window")
        if slides and (config.get("sliding_window") or context) < context:
            raise StropError("sliding-window attention is not supported yet; set sliding_window to null")
        if config.get("hidden_act", "silu") != "silu":
            raise StropError(f"activation {config['hidden_act']!r} is not supported; only silu")
        heads, bias = config["num_attention_heads"], bool(config.get("attention_bias"))
        return cls(
            vocab=config["vocab_size"], hidden=config["hidden_size"], intermediate=config["intermediate_size"],
            layers=config["num_hidden_layers"], heads=heads, kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or config["hidden_size"] // heads, max_positions=context,
            rope_theta=rope.get("rope_theta") or config.get("rope_theta", 10000.0),
            norm_eps=config.get("rms_norm_eps", 1e-6), tied=bool(config.get("tie_word_embeddings")),
            qkv_bias=bias or family == "qwen2", output_bias=bias and family != "qwen2",
            mlp_bias=bool(config.get("mlp_bias")), qk_norm=family == "qwen3",
        )  # fmt: skip

    @property
    def matrix_parameters(self) -> int:
        """Parameters that multiply every token, the head included and the embedding lookup not."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.intermediate) + self.vocab * self.hidden

    def forward_flops(self, tokens: int, context: float) -> float:
        """FLOPs of `tokens` forward passes that attend to `context` tokens on average."""
        return tokens * (2.0 * self.matrix_parameters + 4 * self.layers * self.heads * self.head_dim * context)


class KVCache:
    """Keys and values of sequences in static buffers [layers, slots, kv_heads, length, head_dim]."""

    def __init__(self, shape: Shape, slots: int, length: int, device: torch.device, dtype: torch.dtype):
        self.slots, size = slots, (shape.layers, slots, shape.kv_heads, length, shape.head_dim)
        self.keys, self.values = (torch.zeros(size, device=device, dtype=dtype) for _ in range(2))

    def copy(self, source: int, targets: list[int], length: int) -> None:
        """Fork: the first `length` entries of one slot into others."""
        for buffer in (self.keys, self.values):
            buffer[:, targets, :, :length] = buffer[:, source : source + 1, :, :length]


@dataclass(frozen=True)
class CacheView:
    """Which slots of a cache a forward pass reads and writes, and where."""

    cache: KVCache
    slots: Tensor | slice  # a slice is read without a copy
    rows: Tensor  # int64 [B], the slots spelled out
    positions: Tensor  # int64 [B, T], where each token stands
    length: int  # longest context after this pass
    mask: Tensor  # bool [B, 1, T, length]

    @classmethod
    def at(cls, cache: KVCache, slots: Tensor | int, positions: Tensor, length: int) -> Self:
        """A view of the listed slots, or of the first n where `slots` is a number n."""
        rows = torch.arange(slots, device=positions.device) if isinstance(slots, int) else slots
        mask = (torch.arange(length, device=positions.device) <= positions[:, :, None])[:, None]
        return cls(cache, slice(slots) if isinstance(slots, int) else slots, rows, positions, length, mask)

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store a layer's k, v [B, kv_heads, T, head_dim]; return all that its slots then hold, up to `length`."""
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        keys[self.rows[:, None], :, self.positions] = k.transpose(1, 2).to(keys.dtype)
        values[self.rows[:, None], :, self.positions] = v.transpose(1, 2).to(values.dtype)
        return keys[self.slots, :, : self.length], values[self.slots, :, : self.length]


class RMSNorm(nn.Module):
    """Root-mean-square norm in fp32, scaled in the input's dtype (Zhang and Sennrich 2019)."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), eps

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * F.rms_norm(x.float(), (x.shape[-1],), eps=self.eps).to(x.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding in the half-split layout. x [B, H, T, D]; cos, sin [B or 1, 1, T, D/2]."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Scaled dot-product attention, causal without a mask. In fp32 on a CPU: bf16's backward is three times slower."""
    dtype = torch.float32 if q.device.type == "cpu" else q.dtype
    q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    with torch.autocast("cpu", enabled=False):
        grouped = q.shape[1] != k.shape[1]
        return F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None, enable_gqa=grouped)


class Attention(nn.Module):
    def __init__(self, shape: Shape, layer: int):
        super().__init__()
        self.shape, self.layer = shape, layer
        width, kv_width = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        self.q_proj = nn.Linear(shape.hidden, width, bias=shape.qkv_bias)
        self.k_proj, self.v_proj = (nn.Linear(shape.hidden, kv_width, bias=shape.qkv_bias) for _ in range(2))
        self.o_proj = nn.Linear(width, shape.hidden, bias=shape.output_bias)
        self.q_norm = RMSNorm(shape.head_dim, shape.norm_eps) if shape.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(shape.head_dim, shape.norm_eps) if shape.qk_norm else nn.Identity()

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, view: CacheView | None) -> Tensor:
        heads = (*x.shape[:2], -1, self.shape.head_dim)
        q, k, v = (project(x).view(heads) for project in (self.q_proj, self.k_proj, self.v_proj))
        q, k, v = self.q_norm(q).transpose(1, 2), self.k_norm(k).transpose(1, 2), v.transpose(1, 2)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if view is not None:
            k, v = view.update(self.layer, k, v)
        out = attend(q, k, v, None if view is None else view.mask).transpose(1, 2).flatten(2)
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
        self.self_attn, self.mlp = Attention(shape, layer), MLP(shape)
        self.input_layernorm, self.post_attention_layernorm = (RMSNorm(shape.hidden, shape.norm_eps) for _ in range(2))

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
    """A causal language model. `forward` ends at the final norm; callers apply `lm_head` where they need it."""

    cos: Tensor
    sin: Tensor

    def __init__(self, shape: Shape):
        super().__init__()
        self.autocast: torch.dtype | None = None  # what to compute in, where not in the weights' own dtype
        self.shape, self.model = shape, Trunk(shape)
        self.lm_head = nn.Linear(shape.hidden, shape.vocab, bias=False)
        self.complete()

    def complete(self) -> None:
        """Tie the head and make the rotary tables, fp32 [max_positions, head_dim / 2]: no checkpoint holds them."""
        if self.shape.tied:
            self.lm_head.weight = self.model.embed_tokens.weight
        half = torch.arange(0, self.shape.head_dim, 2, dtype=torch.float32) / self.shape.head_dim
        angles = torch.outer(torch.arange(self.shape.max_positions).float(), self.shape.rope_theta**-half)
        for name, table in (("cos", angles.cos()), ("sin", angles.sin())):
            self.register_buffer(name, table.to(self.device), persistent=False)

    @property
    def device(self) -> torch.device:
        return self.lm_head.weight.device

    def precision(self) -> torch.autocast:
        """The autocast context that sampling, scoring and training share."""
        return torch.autocast(self.device.type, dtype=self.autocast, enabled=self.autocast is not None)

    def forward(self, ids: Tensor, view: CacheView | None = None) -> Tensor:
        """Hidden states [B, T, D] after the final norm, for ids int64 [B, T]: rows from position 0, padded to the
        right, or with a view what continues its slots. Raises StropError for a row longer than the context."""
        length = ids.shape[1] if view is None else view.length
        if length > self.shape.max_positions:
            raise StropError(f"a row has {length} tokens; the model's context is {self.shape.max_positions}")
        positions = torch.arange(length, device=ids.device)[None] if view is None else view.positions
        x = self.model.embed_tokens(ids)
        cos, sin = self.cos[positions][:, None].to(x.dtype), self.sin[positions][:, None].to(x.dtype)
        for block in self.model.layers:
            x = block(x, cos, sin, view)
        return self.model.norm(x)

    def init_weights(self, seed: int) -> None:
        """Normal(0, 0.02) matrices, the residual outputs scaled by 1/sqrt(2 L) (GPT-2's scheme)."""
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                std = 0.02 / (2 * self.shape.layers) ** 0.5 if residual else 0.02
                nn.init.normal_(parameter, std=std, generator=generator)
            else:
                nn.init.constant_(parameter, 0.0 if name.endswith("bias") else 1.0)
