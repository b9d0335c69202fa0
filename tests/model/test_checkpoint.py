"""Hugging Face directories in and out, and one line for each that is broken."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from strop.errors import StropError
from strop.model.checkpoint import assign, load_decoder, locate, read_config, save_decoder

IDS = torch.arange(5, 45)[None]


@torch.no_grad()
def reference_logits(directory: Path) -> torch.Tensor:
    return AutoModelForCausalLM.from_pretrained(directory)(IDS).logits


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
@torch.no_grad()
def test_load_and_save_keep_the_model(random_checkpoint, tmp_path, family, tied):
    source = random_checkpoint(family, tie_word_embeddings=tied)
    decoder = load_decoder(source)
    save_decoder(decoder, read_config(source), tmp_path / "out", torch.float32)
    assert torch.equal(reference_logits(tmp_path / "out"), reference_logits(source))
    again = load_decoder(tmp_path / "out")
    assert torch.equal(again(IDS), decoder(IDS))
    saved = load_file(tmp_path / "out" / "model.safetensors")
    assert saved.keys() == load_file(source / "model.safetensors").keys()
    assert ("lm_head.weight" in saved) is not tied
    assert (again.lm_head.weight is again.model.embed_tokens.weight) is tied


def test_saving_in_bfloat16_rounds_and_says_so(random_checkpoint, tmp_path):
    source = random_checkpoint("llama")
    decoder = load_decoder(source)
    save_decoder(decoder, {**read_config(source), "torch_dtype": "float32"}, tmp_path, torch.bfloat16)
    config = read_config(tmp_path)
    assert config["dtype"] == "bfloat16" and "torch_dtype" not in config
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    rounded = dict(load_decoder(tmp_path).named_parameters())
    for name, parameter in decoder.named_parameters():
        assert rounded[name].dtype == torch.float32
        assert torch.equal(rounded[name], parameter.bfloat16().float())


@torch.no_grad()
def test_sharded_weights(random_checkpoint, tmp_path):
    source = random_checkpoint("qwen2")
    AutoModelForCausalLM.from_pretrained(source).save_pretrained(tmp_path, max_shard_size="60KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    save_file({"model.norm.weight": torch.zeros(48)}, tmp_path / "zz.safetensors")  # no shard: the index has it not
    assert torch.equal(load_decoder(tmp_path)(IDS), load_decoder(source)(IDS))
    (shard := min(tmp_path.glob("model-*.safetensors"))).unlink()
    with pytest.raises(StropError, match=f"{shard}: unreadable safetensors"):
        load_decoder(tmp_path)


@torch.no_grad()
def test_weights_beside_model_safetensors_are_not_read(random_checkpoint, tmp_path):
    source = random_checkpoint("llama")
    directory = shutil.copytree(source, tmp_path / "model")
    save_file({"lora": torch.zeros(2)}, directory / "adapter_model.safetensors")
    assert torch.equal(load_decoder(directory)(IDS), load_decoder(source)(IDS))


@pytest.mark.parametrize("name", ["model.layers.0.self_attn.rotary_emb.inv_freq", "lm_head.weight"])
def test_old_rotary_tables_and_a_tied_heads_copy_are_passed_over(random_checkpoint, tmp_path, name):
    directory = shutil.copytree(random_checkpoint("llama", tie_word_embeddings=True), tmp_path / "model")
    add(name)(directory)
    load_decoder(directory)


def test_a_window_that_is_off_stays_off(random_checkpoint, tmp_path):
    """Null is not the same as absent: an absent window is 4096 tokens."""
    source = random_checkpoint("mistral")
    save_decoder(load_decoder(source), {**read_config(source), "sliding_window": None}, tmp_path, torch.float32)
    assert read_config(tmp_path)["sliding_window"] is None


def test_assign_takes_new_weights_by_name_and_changes_nothing_on_error(random_checkpoint):
    decoder = load_decoder(random_checkpoint("llama"))
    before = {n: p.detach().clone() for n, p in decoder.named_parameters()}
    assign(decoder, {n: p + 1 for n, p in before.items()}, "test")
    assert all(torch.equal(p, before[n] + 1) for n, p in decoder.named_parameters())
    with pytest.raises(StropError, match="test: 1 weights are missing, first model.norm.weight"):
        assign(decoder, {n: p for n, p in before.items() if n != "model.norm.weight"}, "test")
    with pytest.raises(StropError, match="norm.weight has shape"):
        assign(decoder, {**before, "model.norm.weight": torch.zeros(3)}, "test")
    assert all(torch.equal(p, before[n] + 1) for n, p in decoder.named_parameters())


def drop_one_weight(directory: Path) -> None:
    path = directory / "model.safetensors"
    save_file({n: t for n, t in load_file(path).items() if "layers.1.mlp.up" not in n}, path)


def misshape(directory: Path) -> None:
    path = directory / "model.safetensors"
    save_file({**load_file(path), "model.norm.weight": torch.ones(7)}, path)


def add(name: str):
    def change(directory: Path) -> None:
        path = directory / "model.safetensors"
        save_file({**load_file(path), name: torch.ones(7)}, path)

    return change


def truncate(directory: Path) -> None:
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


BROKEN = {
    "no config": (lambda d: (d / "config.json").unlink(), "no config.json"),
    "config not JSON": (lambda d: (d / "config.json").write_text('{\n"a": 1,\n!'), "config.json: not JSON: .* line 3"),
    "config not text": (lambda d: (d / "config.json").write_bytes(b"\xff\xfe\x00"), "config.json: not JSON: 'utf-8'"),
    "config a list": (lambda d: (d / "config.json").write_text("[1]"), "must be a JSON object, not list"),
    "no weights": (lambda d: (d / "model.safetensors").unlink(), "no \\*.safetensors weights"),
    "a weight missing": (drop_one_weight, "1 weights are missing, first model.layers.1.mlp.up_proj.weight"),
    "a weight misshapen": (misshape, r"model.norm.weight has shape \[7\], config.json says \[48\]"),
    "a weight too many": (add("model.layers.2.mlp.up_proj.weight"), "1 weights are unexpected, first model.layers.2"),
    "weights cut short": (truncate, "unreadable safetensors"),
    "weights garbage": (lambda d: (d / "model.safetensors").write_bytes(b"?" * 99), "unreadable safetensors"),
    "weights empty": (lambda d: (d / "model.safetensors").write_bytes(b""), "unreadable safetensors"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_directory_gives_one_line_that_names_it(random_checkpoint, tmp_path, case):
    directory = shutil.copytree(random_checkpoint("llama"), tmp_path / "model")
    breaks, says = BROKEN[case]
    breaks(directory)
    with pytest.raises(StropError, match=says) as raised:
        load_decoder(directory)
    assert "\n" not in str(raised.value) and str(directory) in str(raised.value)


def test_an_empty_directory_is_no_model(tmp_path):
    with pytest.raises(StropError, match="not a Hugging Face model directory"):
        load_decoder(tmp_path)


@pytest.mark.parametrize("name", ["no-such-model", "./no/such", "/no/such", "a/b/c", "some-org/some-model"])
def test_a_model_that_is_not_there_gives_one_line(name):
    with pytest.raises(StropError, match="no such") as raised:
        locate(name)
    assert "\n" not in str(raised.value) and name in str(raised.value)


def test_locate_takes_a_directory_and_not_a_file(tmp_path):
    assert locate(tmp_path) == locate(str(tmp_path)) == tmp_path
    (tmp_path / "weights.bin").touch()
    with pytest.raises(StropError, match="give the model's directory"):
        locate(tmp_path / "weights.bin")
