"""The decoder against transformers, against padding and against its own cache."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from strop.errors import StropError
from strop.model.checkpoint import load_decoder, read_config
from strop.model.decoder import CacheView, KVCache, Shape

CASES = {
    "llama": ("llama", {}),
    "llama tied": ("llama", {"tie_word_embeddings": True}),
    "llama all heads": ("llama", {"num_key_value_heads": 4}),
    "llama one kv head": ("llama", {"num_key_value_heads": 1}),
    "llama biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama wide heads": ("llama", {"head_dim": 20}),
    "llama eps": ("llama", {"rms_norm_eps": 0.1}),
    "mistral": ("mistral", {}),
    "mistral narrow heads": ("mistral", {"head_dim": 6, "tie_word_embeddings": True}),
    "qwen2": ("qwen2", {}),
    "qwen2 tied": ("qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "qwen3 tied, biases": ("qwen3", {"tie_word_embeddings": True, "attention_bias": True}),
}


def random_ids(*size: int) -> torch.Tensor:
    return torch.randint(0, 350, size, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def logits(decoder, ids):
    return decoder.lm_head(decoder(ids))


@torch.no_grad()
def reference_logits(directory: Path, ids):
    return AutoModelForCausalLM.from_pretrained(directory)(ids).logits


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_transformers(random_checkpoint, case):
    family, overrides = CASES[case]
    directory = random_checkpoint(family, **overrides)
    ids = random_ids(2, 50)
    expected = reference_logits(directory, ids)
    assert expected.std() > 0.5  # flat logits would hide a mistake
    assert (logits(load_decoder(directory), ids) - expected).abs().max() <= 1e-4


def spelled(directory: Path, out: Path, **changes) -> Path:
    """The checkpoint with changed config keys; None leaves a key out."""
    out.mkdir()
    config = {k: v for k, v in {**read_config(directory), **changes}.items() if v is not None}
    (out / "config.json").write_text(json.dumps(config))
    (out / "model.safetensors").symlink_to(directory / "model.safetensors")
    return out


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_rope_theta_in_either_spelling(random_checkpoint, tmp_path, family):
    theta, ids = 50.0, random_ids(1, 50)
    new = random_checkpoint(family, rope_parameters={"rope_type": "default", "rope_theta": theta})
    old = spelled(new, tmp_path / "old", rope_parameters=None, rope_theta=theta)
    unsaid = spelled(new, tmp_path / "unsaid", rope_parameters=None)
    assert read_config(new)["rope_parameters"]["rope_theta"] == theta  # as transformers 5 writes it
    expected = reference_logits(new, ids)
    for directory in (new, old):
        assert (logits(load_decoder(directory), ids) - expected).abs().max() <= 1e-4
    assert Shape.from_hf(read_config(unsaid)).rope_theta == 10000.0
    assert (logits(load_decoder(unsaid), ids) - expected).abs().max() > 0.1


def test_padding_to_the_right_changes_no_row(random_checkpoint):
    decoder = load_decoder(random_checkpoint("qwen3"))
    rows = [random_ids(n) for n in (3, 17, 30)]
    padded = torch.zeros(3, 30, dtype=torch.int64)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = row
    together = logits(decoder, padded)
    for i, row in enumerate(rows):
        assert torch.allclose(together[i, : len(row)], logits(decoder, row[None])[0], atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@torch.no_grad()
def test_cached_decoding_equals_the_full_forward(random_checkpoint, family):
    """Two sequences of different progress, prefilled in slots out of order, then token by token."""
    decoder = load_decoder(random_checkpoint(family))
    ids, prompt = random_ids(2, 20), (4, 9)
    expected = decoder(ids)
    cache = KVCache(decoder.shape, 3, 32, decoder.device, torch.float32)
    for row, (slot, length) in enumerate(zip((1, 0), prompt, strict=True)):
        positions = torch.arange(length)[None]
        view = CacheView.at(cache, torch.tensor([slot]), positions, length)
        out = decoder(ids[row : row + 1, :length], view)
        assert torch.allclose(out[0], expected[row, :length], atol=1e-5)
    for step in range(11):
        at = torch.tensor([9 + step, 4 + step])[:, None]  # slot 0 holds row 1
        tokens = torch.stack([ids[1, 9 + step], ids[0, 4 + step]])[:, None]
        out = decoder(tokens, CacheView.at(cache, 2, at, int(at.max()) + 1))[:, 0]
        assert torch.allclose(out, torch.stack([expected[1, 9 + step], expected[0, 4 + step]]), atol=1e-5)


@torch.no_grad()
def test_a_forked_slot_goes_on_like_its_source(random_checkpoint):
    decoder = load_decoder(random_checkpoint("llama"))
    ids = random_ids(1, 12)
    cache = KVCache(decoder.shape, 3, 16, decoder.device, torch.float32)
    decoder(ids[:, :11], CacheView.at(cache, 1, torch.arange(11)[None], 11))
    cache.copy(0, [1, 2], 11)
    last = ids[:, 11:].expand(3, 1)
    out = decoder(last, CacheView.at(cache, 3, torch.full((3, 1), 11), 12))[:, 0]
    assert torch.allclose(out, decoder(ids)[:, -1].expand(3, -1), atol=1e-5)


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2'"),
        ({"model_type": None}, "model_type None"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "RoPE scaling 'llama3'"),
        ({"rope_parameters": None, "rope_scaling": {"type": "linear"}}, "RoPE scaling 'linear'"),
        ({"model_type": "mistral", "sliding_window": 64}, "sliding-window"),
        ({"model_type": "mistral", "max_position_embeddings": 4097}, "sliding-window"),  # 4096 where unsaid
        ({"model_type": "mistral", "max_position_embeddings": None}, "sliding-window"),  # 131072 where unsaid
        ({"model_type": "qwen2", "sliding_window": 64, "use_sliding_window": True}, "sliding-window"),
        ({"hidden_act": "gelu"}, "activation 'gelu'"),
        ({"hidden_size": None}, "no 'hidden_size'"),
    ],
)
def test_what_the_decoder_is_not_is_refused_in_one_line(random_checkpoint, tmp_path, changes, says):
    directory = spelled(random_checkpoint("llama"), tmp_path / "other", **changes)
    with pytest.raises(StropError, match=says) as raised:
        load_decoder(directory)
    assert "\n" not in str(raised.value)


def test_a_window_that_is_not_used_is_no_obstacle(random_checkpoint):
    config = read_config(random_checkpoint("qwen2")) | {"sliding_window": 64, "use_sliding_window": False}
    assert Shape.from_hf(config).layers == 2


@pytest.mark.parametrize("window", [None, 128, 4096])
def test_a_window_as_long_as_the_context_is_no_obstacle(random_checkpoint, window):
    assert Shape.from_hf(read_config(random_checkpoint("mistral")) | {"sliding_window": window}).max_positions == 128


DEFAULTED = ("num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings")


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_what_a_config_leaves_out_is_what_transformers_takes(family):
    said = {"vocab_size": 64, "hidden_size": 256, "intermediate_size": 64}
    said |= {"num_hidden_layers": 2, "num_attention_heads": 32, "sliding_window": None}
    theirs, ours = AutoConfig.for_model(family, **said), Shape.from_hf({"model_type": family, **said})
    expected = [getattr(theirs, name, None) for name in DEFAULTED]
    expected[1] = expected[1] or 8  # Qwen2Config has no head_dim; its model takes hidden / heads
    assert [ours.kv_heads, ours.head_dim, ours.max_positions, ours.norm_eps, ours.tied] == expected
    assert ours.rope_theta == theirs.rope_parameters["rope_theta"]


def test_a_row_longer_than_the_context_is_refused(random_checkpoint):
    decoder = load_decoder(random_checkpoint("llama"))
    assert decoder(random_ids(1, 128)).shape == (1, 128, 48)
    with pytest.raises(StropError, match="129 tokens; the model's context is 128"):
        decoder(random_ids(1, 129))


def test_flops_count_the_matrices_twice_and_the_attention(random_checkpoint):
    decoder = load_decoder(random_checkpoint("llama"))
    weights = [p for n, p in decoder.named_parameters() if p.dim() == 2 and "embed" not in n]
    assert decoder.shape.matrix_parameters == sum(p.numel() for p in weights)
    without, with_context = decoder.shape.forward_flops(10, 0), decoder.shape.forward_flops(10, 100)
    assert without == 20 * decoder.shape.matrix_parameters
    assert with_context - without == 10 * 4 * 2 * 48 * 100  # 4 per layer, width and token attended to
