"""Hugging Face model directories in and out: config.json and safetensors, by Hugging Face's names."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from strop.errors import StropError
from strop.model.decoder import Decoder, Shape

AUTOCAST = {"float32": None, "bfloat16": torch.bfloat16}
BUNDLED = Path(__file__).parent.parent / "assets"


def locate(name: str | Path) -> Path:
    """The directory of a model: a bundled name, a path, or a hub id (downloaded, safetensors only)."""
    path = BUNDLED / name if (BUNDLED / name / "config.json").exists() else Path(name)
    if path.is_dir():
        return path
    if path.exists():
        raise StropError(f"{path}: is a file; give the model's directory")
    if str(name).count("/") != 1 or str(name).startswith((".", "/", "~")):
        raise StropError(f"{name}: no such model directory; give a path, a hub id (org/name) or strop-nano")
    from huggingface_hub import snapshot_download

    try:
        patterns = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
        return Path(snapshot_download(str(name), allow_patterns=patterns))
    except Exception as error:  # the hub raises a dozen kinds: name, login, network, offline
        reason = str(error).split("\n")[0] or type(error).__name__
        raise StropError(f"{name}: no such directory here, and the hub says: {reason}") from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that must hold an object. Raises StropError where it does not."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # not JSON, or not UTF-8
        raise StropError(f"{path}: not JSON: {error}") from error
    if not isinstance(value, dict):
        raise StropError(f"{path}: must be a JSON object, not {type(value).__name__}")
    return value


def read_config(directory: Path) -> dict[str, Any]:
    """A model directory's config.json. Raises StropError where there is none or it is not JSON."""
    if not (directory / "config.json").exists():
        raise StropError(f"{directory}: no config.json, so this is not a Hugging Face model directory")
    return read_json(directory / "config.json")


def read_tensors(directory: Path) -> dict[str, torch.Tensor]:
    """Weights: model.safetensors, else the shards of its index, else every *.safetensors. StropError for none."""
    names = {path.name for path in directory.glob("*.safetensors")}
    if "model.safetensors" in names:
        names = {"model.safetensors"}
    elif (index := directory / "model.safetensors.index.json").exists():
        names = set(read_json(index).get("weight_map", {}).values())
    if not names:
        raise StropError(f"{directory}: no *.safetensors weights (other formats are not read)")
    tensors: dict[str, torch.Tensor] = {}
    for file in (directory / name for name in sorted(names)):
        try:
            tensors |= load_file(file)
        except (OSError, SafetensorError) as error:
            raise StropError(f"{file}: unreadable safetensors: {error}") from error
    return tensors


def load_decoder(directory: Path, device: str = "cpu", dtype: str = "float32") -> Decoder:
    """A directory's decoder, weights fp32; `dtype` bfloat16 computes under autocast. Raises StropError for others."""
    if dtype not in AUTOCAST:
        raise StropError(f"dtype {dtype!r} is not supported; use {' or '.join(AUTOCAST)}")
    shape, tensors = Shape.from_hf(read_config(directory)), read_tensors(directory)
    with torch.device("meta"):
        decoder = Decoder(shape)
    decoder.to_empty(device=device)
    decoder.complete()
    decoder.autocast = AUTOCAST[dtype]
    assign(decoder, tensors, directory)
    return decoder.eval()


def assign(decoder: Decoder, tensors: Mapping[str, torch.Tensor], source: str | Path) -> None:
    """Copy tensors in by name. Raises StropError, before any is copied, for a missing, unexpected or misshapen one."""
    own = dict(decoder.named_parameters())
    extra = {name for name in tensors.keys() - own.keys() if not name.endswith("rotary_emb.inv_freq")}
    if decoder.shape.tied:
        extra.discard("lm_head.weight")
    for what, names in (("missing", own.keys() - tensors.keys()), ("unexpected", extra)):
        if names:
            raise StropError(f"{source}: {len(names)} weights are {what}, first {min(names)}")
    for name, parameter in own.items():
        if tensors[name].shape != parameter.shape:
            shapes = f"{list(tensors[name].shape)}, config.json says {list(parameter.shape)}"
            raise StropError(f"{source}: {name} has shape {shapes}")
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(tensors[name])


def save_decoder(decoder: Decoder, config: Mapping[str, Any], directory: Path, dtype: torch.dtype) -> None:
    """Write config.json and model.safetensors; a tied head is written once, as Hugging Face does."""
    directory.mkdir(parents=True, exist_ok=True)
    written = {k: v for k, v in config.items() if k != "torch_dtype"} | {"dtype": str(dtype).removeprefix("torch.")}
    (directory / "config.json").write_text(json.dumps(written, indent=2) + "\n")
    tensors = {n: p.detach().to("cpu", dtype).contiguous() for n, p in decoder.named_parameters()}
    partial = directory / "model.safetensors.partial"
    save_file(tensors, partial, metadata={"format": "pt"})
    partial.chmod(0o644)  # safetensors writes for the owner alone
    os.replace(partial, directory / "model.safetensors")
