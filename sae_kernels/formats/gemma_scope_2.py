"""Gemma Scope 2: JumpReLU SAEs, transcoders and cross-layer transcoders in safetensors. Read only."""

from __future__ import annotations

import re
from pathlib import Path

import safetensors
import torch

from ..architectures import SparseCoder
from ..errors import FormatError
from ._config import peek_json, read_json
from ._weights import Weights, assembled, log_of, read_safetensors

CONFIG, WEIGHTS = "config.json", "params.safetensors"
LAYER = re.compile(r"layer_(\d+)")
SIGNS = {"w_enc", "w_dec", "threshold"}  # lower case: nobody else's names


def matches(path: Path) -> bool:
    """A folder with params.safetensors; such a file of any name; a folder of one file a layer."""
    if path.is_file():
        return path.suffix == ".safetensors" and _is_ours(path)
    if (path / WEIGHTS).is_file() or peek_json(path / CONFIG).get("architecture") == "jump_relu":
        return True
    return bool(files := _layers(path)) and _is_ours(files[0])


def load(path: Path) -> SparseCoder:
    """`jumprelu`, or what maps an MLP's input to its output: `jumprelu_transcoder`, with a skip where the file has an
    affine_skip_connection. A folder of layers, params_layer_0.safetensors …, is a `clt`.

    Which of the two a file without skip and with equal widths is, config.json says (hf_hook_point_out); without one, an
    SAE: the two compute the same.

    Raises:
        FormatError: one layer of a cross-layer transcoder alone, or damage.
    """
    if path.is_dir() and not (path / WEIGHTS).is_file() and (files := _layers(path)):
        return _cross_layer(path, files)
    weights = read_safetensors(path if path.is_file() else path / WEIGHTS)
    keys = None
    if (config_file := weights.file.with_name(CONFIG)).is_file():
        keys = read_json(config_file)
        keys.choice("architecture", ("jump_relu",), "jump_relu")
    d_in, d_sae = weights.sizes("w_enc", 2)
    if len(shape := weights.shape("w_dec")) == 3:
        raise FormatError(
            f"{weights.file}: tensor 'w_dec' has shape {shape}: one layer of a cross-layer transcoder; "
            f"load the folder of all {shape[1]} layers, {weights.file.parent}"
        )
    _, d_out = weights.sizes("w_dec", 2)
    tensors = {
        "W_enc": weights.take_rows("w_enc", d_in, d_sae),
        "b_enc": weights.take("b_enc", d_sae),
        "log_theta": log_of(weights.take("threshold", d_sae)),
        "W_dec": weights.take("w_dec", d_sae, d_out),
        "b_dec": weights.take("b_dec", d_out),
    }
    skip = "affine_skip_connection" in weights
    if skip:
        tensors["W_skip"] = weights.take_rows("affine_skip_connection", d_in, d_out)
    weights.done("a Gemma Scope 2 coder")
    config = {"d_in": d_in, "d_sae": d_sae, "sparsity_coefficient": 0.0, "normalize_decoder": False}
    if skip or d_out != d_in or (keys is not None and "hf_hook_point_out" in keys):
        coder = assembled(weights.file, "jumprelu_transcoder", {**config, "d_target": d_out, "skip": skip}, tensors)
    else:
        coder = assembled(weights.file, "jumprelu", config, tensors)
    coder.metadata = {} if keys is None else keys.values
    return coder


def _cross_layer(path: Path, files: list[Path]) -> SparseCoder:
    layers = [read_safetensors(file) for file in files]
    count = len(layers)
    shape = layers[0].shape("w_dec")
    if len(shape) != 3 or shape[1] != count:
        raise FormatError(
            f"{files[0]}: tensor 'w_dec' has shape {shape}, expected (latents, {count}, features): "
            f"{path} holds {count} layers, {files[0].name} to {files[-1].name}"
        )
    d_in, n = layers[0].sizes("w_enc", 2)
    d_out = shape[2]
    skip = "affine_skip_connection" in layers[0]
    tensors: dict[str, torch.Tensor] = {}
    parts: dict[str, list[torch.Tensor]] = {"W_enc": [], "b_enc": [], "log_theta": [], "b_dec": [], "W_skip": []}
    for layer, weights in enumerate(layers):
        parts["W_enc"].append(weights.take("w_enc", d_in, n).mT)
        parts["b_enc"].append(weights.take("b_enc", n))
        parts["b_dec"].append(weights.take("b_dec", d_out))
        parts["log_theta"].append(log_of(weights.take("threshold", n)))
        if skip:
            parts["W_skip"].append(weights.take("affine_skip_connection", d_in, d_out).mT)
        tensors[f"W_dec_from.{layer}"] = _decoder(weights, layer, n, count, d_out)
        weights.done("a layer of a Gemma Scope 2 cross-layer transcoder")
    tensors.update({name: torch.cat(held) for name, held in parts.items() if held and name != "W_skip"})
    if skip:
        tensors["W_skip"] = torch.stack(parts["W_skip"])
    config = {"d_in": count * d_in, "d_sae": count * n, "d_target": count * d_out, "n_layers": count}
    return assembled(path, "clt", {**config, "sparsity_coefficient": 0.0, "skip": skip}, tensors)


def _decoder(weights: Weights, layer: int, n: int, count: int, d_out: int) -> torch.Tensor:
    """(n, (L − layer) · d_out): what latents write to their own layer and those behind it; to those before, nothing."""
    whole = weights.take("w_dec", n, count, d_out)
    if bool((whole[:, :layer] != 0).any()):
        raise FormatError(f"{weights.file}: tensor 'w_dec' writes to layers before {layer}, its own; expected zeros")
    return whole[:, layer:].reshape(n, (count - layer) * d_out)


def _layers(path: Path) -> list[Path]:
    """One file a layer, 0 to the last without a gap; [] otherwise."""
    if not path.is_dir():
        return []
    found = {int(match[1]): file for file in path.glob("*.safetensors") if (match := LAYER.search(file.stem))}
    return [found[i] for i in range(len(found))] if set(found) == set(range(len(found))) else []


def _is_ours(file: Path) -> bool:
    try:
        with safetensors.safe_open(file, framework="pt") as opened:
            return set(opened.keys()) >= SIGNS
    except (OSError, safetensors.SafetensorError):
        return False
