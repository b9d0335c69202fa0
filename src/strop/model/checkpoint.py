"""Hugging Face model directories in and out: config.json and safetensors, by Hugging Face's names."""

from __future__ import annotations

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

BUNDLED = Path(__file__).parent.parent / "assets"


def locate(name: str | Path) -> Path:
    """The directory of a model: a bundled name, a path, or a hub id (downloaded, safetensors only)."""
    if (BUNDLED / str(name) / "config.json").exists():
        return BUNDLED / str(name)
    path = Path(name)
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
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise StropError(f"{name}: no such directory here, and the hub says: {reason}") from error


def read_config(directory: Path) -> dict[str, Any]:
    """A model directory's config.json. Raises StropError where there is none or it is not JSON."""
    path = directory / "config.json"
    if not path.exists():
        raise StropError(f"{directory}: no config.json, so this is not a Hugging Face model directory")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise StropError(f"{path}:{error.lineno}: not JSON: {error.msg}") from error
    except UnicodeDecodeError as error:
        raise StropError(f"{path}: not UTF-8 text: {error.reason}") from error
    if not isinstance(config, dict):
        raise StropError(f"{path}: must be a JSON object, not {type(config).__name__}")
    return config


def read_tensors(directory: Path) -> dict[str, torch.Tensor]:
    """All weights of a directory, one file or sharded. Raises StropError where there are none."""
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise StropError(f"{directory}: no *.safetensors weights (other formats are not read)")
    tensors: dict[str, torch.Tensor] = {}
    for file in files:
        try:
            tensors |= load_file(file)
        except SafetensorError as error:
            raise StropError(f"{file}: unreadable safetensors: {error}") from error
    return tensors


def load_decoder(directory: Path, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Decoder:
    """Build the decoder that config.json describes and give it the directory's weights."""
    shape = Shape.from_hf(read_config(directory))
    tensors = read_tensors(directory)
    with torch.device("meta"):
        decoder = Decoder(shape)
    decoder.to_empty(device=device).to(dtype)
    decoder.complete()
    decoder.to(device)
    assign(decoder, tensors, directory)
    return decoder.eval()


def assign(decoder: Decoder, tensors: Mapping[str, torch.Tensor], source: str | Path) -> None:
    """Copy tensors into the decoder by name. Raises StropError on a missing or misshapen one."""
    own = dict(decoder.named_parameters())
    if missing := sorted(set(own) - set(tensors)):
        raise StropError(f"{source}: {len(missing)} weights are missing, first {missing[0]}")
    for name, parameter in own.items():  # all of them first: an error must leave no half-new model
        if tensors[name].shape != parameter.shape:
            shapes = f"{list(tensors[name].shape)}, config.json says {list(parameter.shape)}"
            raise StropError(f"{source}: {name} has shape {shapes}")
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(tensors[name])


def save_decoder(decoder: Decoder, config: Mapping[str, Any], directory: Path, dtype: torch.dtype) -> None:
    """Write config.json and model.safetensors; a tied head is written once, as Hugging Face does."""
    directory.mkdir(parents=True, exist_ok=True)
    names = {"torch_dtype": None, "dtype": str(dtype).removeprefix("torch.")}
    merged = {k: v for k, v in {**config, **names}.items() if v is not None}
    (directory / "config.json").write_text(json.dumps(merged, indent=2) + "\n")
    tensors = {n: p.detach().to("cpu", dtype).contiguous() for n, p in decoder.named_parameters()}
    partial = directory / "model.safetensors.partial"
    save_file(tensors, partial, metadata={"format": "pt"})
    partial.chmod(0o644)  # safetensors writes for the owner alone
    os.replace(partial, directory / "model.safetensors")
