"""circuit-tracer: `layer_i.safetensors` of a transcoder, `W_enc_i.safetensors` and `W_dec_i.safetensors` of a
cross-layer transcoder, with a `config.yaml`."""

from __future__ import annotations

import json
import re
from pathlib import Path

import safetensors
import torch
from torch import Tensor

from ..architectures import SparseCoder
from ..errors import FormatError
from ..files import atomic_directory, atomic_file
from ._saving import cannot_hold, config_of, parameters_of, threshold_of
from ._weights import Weights, assembled, log_of, read_safetensors, write_safetensors

NAME = "circuit_tracer"
CONFIG = "config.yaml"
THETA = "activation_function.threshold"
KINDS = {"clt": "cross_layer_transcoder"}  # all others: transcoder_set
HOOKS = {"clt": ("hook_resid_mid", "hook_mlp_out")}  # circuit-tracer's own default
DEFAULT_HOOKS = ("mlp.hook_in", "mlp.hook_out")
RELU = 0.0  # a threshold: what is positive stays


def matches(path: Path) -> bool:
    """A layer's file, or a folder of either kind."""
    if path.is_file():
        return path.suffix == ".safetensors" and _has(path, "W_enc", "W_dec", "b_enc")
    if (path / "W_enc_0.safetensors").is_file():
        return True
    files = _layers(path)
    return bool(files) and _has(files[0], "W_enc", "W_dec", "b_enc")


def load(path: Path) -> SparseCoder:
    """One layer's transcoder, ReLU as `transcoder`, JumpReLU as `jumprelu_transcoder`; or a `clt` (ReLU: θ = 0).

    Raises:
        FormatError: a folder of several transcoders (load one file), negative thresholds (which let negative acts
        pass), or damage.
    """
    if (path / "W_enc_0.safetensors").is_file():
        return _cross_layer(path)
    if path.is_dir():
        files = _layers(path)
        if len(files) != 1:
            shown = ", ".join(file.name for file in files[:4]) + (", …" if len(files) > 4 else "")
            raise FormatError(f"{path}: holds {len(files)} transcoders, {shown}; load one of these files")
        path = files[0]
    weights = read_safetensors(path)
    n, d_in = weights.sizes("W_enc", 2)
    _, d_out = weights.sizes("W_dec", 2)
    tensors = {
        "W_enc": weights.take("W_enc", n, d_in),
        "b_enc": weights.take("b_enc", n),
        "W_dec": weights.take("W_dec", n, d_out),
        "b_dec": weights.take("b_dec", d_out),
    }
    config = {"d_in": d_in, "d_sae": n, "d_target": d_out, "sparsity_coefficient": 0.0, "normalize_decoder": False}
    config["skip"] = "W_skip" in weights
    if config["skip"]:
        tensors["W_skip"] = weights.take("W_skip", d_out, d_in)
    if THETA not in weights:
        weights.done("a transcoder of circuit-tracer")
        return assembled(path, "transcoder", {**config, "activation": "relu"}, tensors)
    size = n if weights.shape(THETA) else 1
    theta = weights.take(THETA, *((n,) if size == n and weights.shape(THETA) else ())).expand(n)
    tensors["log_theta"] = log_of(_not_negative(path, THETA, theta))
    weights.done("a transcoder of circuit-tracer")
    return assembled(path, "jumprelu_transcoder", config, tensors)


def _cross_layer(path: Path) -> SparseCoder:
    count = len(list(path.glob("W_enc_*.safetensors")))
    tensors: dict[str, Tensor] = {}
    parts: dict[str, list[Tensor]] = {"W_enc": [], "b_enc": [], "log_theta": [], "b_dec": []}
    n = d_in = d_out = 0
    for i in range(count):
        encoder = read_safetensors(path / f"W_enc_{i}.safetensors")
        decoder = read_safetensors(path / f"W_dec_{i}.safetensors")
        if i == 0:
            n, d_in = encoder.sizes("W_enc_0", 2)
            _, _, d_out = decoder.sizes("W_dec_0", 3)
        parts["W_enc"].append(encoder.take(f"W_enc_{i}", n, d_in))
        parts["b_enc"].append(encoder.take(f"b_enc_{i}", n))
        parts["b_dec"].append(encoder.take(f"b_dec_{i}", d_out))
        name = f"threshold_{i}"
        theta = torch.full((n,), RELU)
        if name in encoder:
            theta = _not_negative(encoder.file, name, _flat(encoder, name, n))
        parts["log_theta"].append(log_of(theta))
        encoder.done("a cross-layer transcoder of circuit-tracer")
        tensors[f"W_dec_from.{i}"] = decoder.take(f"W_dec_{i}", n, count - i, d_out).reshape(n, (count - i) * d_out)
        decoder.done("a cross-layer transcoder of circuit-tracer")
    tensors.update({name: torch.cat(held) for name, held in parts.items()})
    config = {"d_in": count * d_in, "d_sae": count * n, "d_target": count * d_out, "n_layers": count}
    return assembled(path, "clt", {**config, "sparsity_coefficient": 0.0}, tensors)


def _flat(weights: Weights, name: str, n: int) -> Tensor:
    """(n,) or (1, n), as circuit-tracer writes what it holds as (layers, 1, n)."""
    shape = (1, n) if len(weights.shape(name)) == 2 else (n,)
    return weights.take(name, *shape).reshape(n)


def _not_negative(file: Path, name: str, theta: Tensor) -> Tensor:
    if bool((theta < 0).any()):
        raise FormatError(
            f"{file}: tensor {name!r} has {int((theta < 0).sum())} negative thresholds, which let negative acts pass; "
            "expected 0 or more"
        )
    return theta


def save(coder: SparseCoder, path: Path) -> None:
    """A folder with config.yaml and layer_0.safetensors, or, for a path that ends in .safetensors, that one layer's
    file, for a set of them; a `clt` as circuit-tracer's folder of W_enc_i and W_dec_i.

    `metadata`'s feature_input_hook, feature_output_hook, model_name and scan go into config.yaml.

    Raises:
        FormatError: an activation that its files do not have (top-k), a pre-bias, or a skip in a `clt`.
    """
    if coder.architecture == "clt":
        _save_cross_layer(coder, path)
        return
    theta = None
    if coder.architecture in ("transcoder", "skip_transcoder"):
        if (activation := config_of(coder, "activation")) != "relu":
            raise cannot_hold(NAME, coder, f"activation = {activation!r}; its files have ReLU and JumpReLU")
    elif coder.architecture == "jumprelu_transcoder":
        theta = threshold_of(NAME, coder)
    else:
        raise cannot_hold(NAME, coder, "it has transcoder, skip_transcoder, jumprelu_transcoder and clt")
    if config_of(coder, "subtract_b_dec"):
        raise cannot_hold(NAME, coder, "subtract_b_dec = True; its transcoders read x itself")
    if coder.d_out != coder.d_in:
        raise cannot_hold(NAME, coder, f"d_target = {coder.d_out}, it has no other than d_in = {coder.d_in}")
    tensors = parameters_of(coder)
    tensors.pop("log_theta", None)
    if theta is not None:
        tensors[THETA] = theta
    if path.suffix == ".safetensors":
        with atomic_file(path) as file:
            write_safetensors(tensors, file, path)
        return
    with atomic_directory(path) as folder:
        _write_config(coder, folder)
        write_safetensors(tensors, folder / "layer_0.safetensors", path / "layer_0.safetensors")


def _save_cross_layer(coder: SparseCoder, path: Path) -> None:
    if config_of(coder, "skip"):
        raise cannot_hold(NAME, coder, "skip = True; its files of cross-layer transcoders have none")
    if coder.d_out != coder.d_in:
        raise cannot_hold(NAME, coder, f"d_target = {coder.d_out}, it has no other than d_in = {coder.d_in}")
    own, count = parameters_of(coder), config_of(coder, "n_layers")
    n, d = coder.d_sae // count, coder.d_out // count
    theta = own["log_theta"].exp().to(coder.b_dec.dtype)
    relu = bool((theta == RELU).all())
    with atomic_directory(path) as folder:
        _write_config(coder, folder)
        for i in range(count):
            at = slice(i * n, (i + 1) * n)
            held = {f"W_enc_{i}": own["W_enc"][at], f"b_enc_{i}": own["b_enc"][at]}
            held[f"b_dec_{i}"] = own["b_dec"][i * d : (i + 1) * d]
            if not relu:
                held[f"threshold_{i}"] = theta[at]
            name = f"W_enc_{i}.safetensors"
            write_safetensors({key: t.clone() for key, t in held.items()}, folder / name, path / name)
            name = f"W_dec_{i}.safetensors"
            write_safetensors({f"W_dec_{i}": own[f"W_dec_from.{i}"].view(n, count - i, d)}, folder / name, path / name)


def _write_config(coder: SparseCoder, folder: Path) -> None:
    """JSON, which is YAML too."""
    reads, writes = HOOKS.get(coder.architecture, DEFAULT_HOOKS)
    config = {
        "model_kind": KINDS.get(coder.architecture, "transcoder_set"),
        "feature_input_hook": coder.metadata.get("feature_input_hook", reads),
        "feature_output_hook": coder.metadata.get("feature_output_hook", writes),
        "model_name": coder.metadata.get("model_name"),
        "scan": coder.metadata.get("scan"),
    }
    text = json.dumps({key: value for key, value in config.items() if value is not None}, indent=2)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")


def _layers(path: Path) -> list[Path]:
    if not path.is_dir():
        return []
    found = [(int(m[1]), f) for f in path.glob("layer_*.safetensors") if (m := re.fullmatch(r"layer_(\d+)", f.stem))]
    return [file for _, file in sorted(found)]


def _has(file: Path, *names: str) -> bool:
    try:
        with safetensors.safe_open(file, framework="pt") as opened:
            return set(opened.keys()) >= set(names)
    except (OSError, safetensors.SafetensorError):
        return False
