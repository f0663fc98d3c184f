"""SAELens: a folder with `cfg.json` and `sae_weights.safetensors`, as of 6.0 and, for reading, before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..architectures import SparseCoder
from ..architectures.token_norm import TokenNorm
from ..errors import FormatError
from ..files import atomic_directory
from ._config import Keys, peek_json, read_json, write_json
from ._saving import cannot_hold, config_of, dtype_name, parameters_of, threshold_of
from ._weights import Weights, assembled, behind_norm, log_of, read_safetensors, write_safetensors

NAME = "sae_lens"
CONFIG, WEIGHTS, SCALE = "cfg.json", "sae_weights.safetensors", "activation_scaler.json"
VERSION = "6.0.0"  # the configuration's; what is older is read as flat
TRANSCODERS = ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder")
BATCHES = ("batchtopk", "matryoshka_batchtopk")
READABLE = ("standard", "gated", "jumprelu", "topk", *BATCHES, *TRANSCODERS)
WRITTEN = {
    "relu": "standard",
    "gated": "gated",
    "jumprelu": "jumprelu",
    "topk": "topk",
    "batch_topk": "jumprelu",
    "matryoshka": "jumprelu",
}
NORMS = {"layer_norm": "layer_norm", "constant_norm_rescale": "constant_norm"}  # of each token: theirs, ours
FLAT = {"hook_point": "hook_name", "hook_point_head_index": "hook_head_index", "activation_fn_str": "activation_fn"}
PROVENANCE = (
    *("model_name", "hook_name", "model_class_name", "hook_head_index", "context_size", "seqpos_slice", "prepend_bos"),
    *("model_from_pretrained_kwargs", "exclude_special_tokens", "neuronpedia_id", "dataset_path"),
    *("sae_lens_version", "sae_lens_training_version"),
)


def matches(path: Path) -> bool:
    """A folder with its weights file, or with a cfg.json that has a d_sae."""
    return (path / WEIGHTS).is_file() or "d_sae" in peek_json(path / CONFIG)


def load(path: Path) -> SparseCoder:
    """What `SAE.load_from_disk` computes, as one of our architectures: standard as relu, batchtopk as batch_topk.

    With `rescale_acts_by_decoder_norm`, decoder norms are folded into the encoder, as SAELens's own `fold_W_dec_norm`
    does: the same codes and reconstructions. `metadata` is kept on the coder. Training's settings are not in the file:
    λ is 0, decoder norms are free.

    Raises:
        FormatError: an architecture, a normalisation or an activation function that has no counterpart; or damage.
    """
    keys = read_json(path / CONFIG)
    if _before_6(keys.values):
        keys = Keys(keys.file, _modernised(keys))
    architecture = keys.choice("architecture", READABLE)
    keys.choice("reshape_activations", ("none", "hook_z"), "none")
    weights = read_safetensors(path / WEIGHTS)
    d_in, d_sae = keys.integer("d_in"), keys.integer("d_sae")
    tensors, config = _tensors(weights, keys, architecture, d_in, d_sae), {"d_in": d_in, "d_sae": d_sae}
    name = _architecture(weights, keys, architecture, tensors, config)
    weights.done(f"a SAELens SAE of architecture {architecture!r}")
    if (dtype := keys.dtype()) is not None:
        tensors = {key: t if key in ("log_theta", "threshold") else t.to(dtype) for key, t in tensors.items()}
    norm = _normalisation(path, keys, tensors, architecture)
    coder = assembled(weights.file, name, config, tensors)
    coder.metadata = keys.mapping("metadata")
    if keys.values.get("reshape_activations") == "hook_z":
        coder.metadata = {**coder.metadata, "reshape_activations": "hook_z"}
    return behind_norm(weights.file, coder, norm) if norm else coder


def _tensors(weights: Weights, keys: Keys, architecture: str, d_in: int, d_sae: int) -> dict[str, Tensor]:
    """Those every architecture has, by our names."""
    d_out = keys.integer("d_out") if architecture in TRANSCODERS else d_in
    tensors = {
        "W_enc": weights.take_rows("W_enc", d_in, d_sae),
        "W_dec": weights.take("W_dec", d_sae, d_out),
        "b_dec": weights.take("b_dec", d_out),
    }
    for name in ("b_gate", "b_mag", "r_mag") if architecture == "gated" else ("b_enc",):
        tensors[name] = weights.take(name, d_sae)
    if "skip" in architecture:
        tensors["W_skip"] = weights.take("W_skip", d_out, d_in)
    if "scaling_factor" in weights:  # of decoded acts, before 6.0
        scale = weights.take("scaling_factor", d_sae)
        if not torch.allclose(scale, torch.ones_like(scale)):
            if not keys.boolean("finetuning_scaling_factor", False):
                raise FormatError(
                    f"{weights.file}: tensor 'scaling_factor' is not 1 throughout, and {keys.file} has no "
                    "finetuning_scaling_factor = true"
                )
            tensors["W_dec"] = tensors["W_dec"] * scale[:, None]
    return tensors


def _architecture(
    weights: Weights, keys: Keys, architecture: str, tensors: dict[str, Tensor], config: dict[str, Any]
) -> str:
    """Our name of it; fills in the tensors and keys that it has of its own."""
    transcoder = architecture in TRANSCODERS
    subtract = keys.boolean("apply_b_dec_to_input", not transcoder)
    if not transcoder:
        config["subtract_b_dec"] = subtract
    elif subtract:
        raise keys.refuse("apply_b_dec_to_input", "expected false in a transcoder")
    if architecture in ("topk", *BATCHES):
        config.update(k=keys.integer("k", 100), normalize_decoder=False)
        if keys.boolean("rescale_acts_by_decoder_norm", architecture in BATCHES):
            _fold_norms(weights.file, tensors)
        if architecture == "topk":
            return "topk"
        tensors["threshold"] = weights.take("topk_threshold").float()
        if architecture == "batchtopk":
            return "batch_topk"
        widths = keys.values.get("matryoshka_widths")
        if not isinstance(widths, list):
            raise keys.refuse("matryoshka_widths", "expected a list")
        config["prefixes"] = [*widths, *([config["d_sae"]] if widths[-1:] != [config["d_sae"]] else [])]
        return "matryoshka"
    if transcoder:
        config.update(d_target=tensors["b_dec"].shape[0], skip="skip" in architecture)
    if "jumprelu" in architecture:
        config.update(sparsity_coefficient=0.0, normalize_decoder=False)
        if "log_threshold" in weights and "threshold" not in weights:  # of older checkpoints
            theta = weights.take("log_threshold", config["d_sae"]).float().exp()
        else:
            theta = weights.take("threshold", config["d_sae"])
        tensors["log_theta"] = log_of(theta if (dtype := keys.dtype()) is None else theta.to(dtype))
        return "jumprelu_transcoder" if transcoder else "jumprelu"
    config["sparsity_coefficient"] = 0.0
    if transcoder:
        config.update(activation="relu", normalize_decoder=False)
        return "skip_transcoder" if config["skip"] else "transcoder"
    if architecture == "gated":
        config["normalize_decoder"] = False
        return "gated"
    return "relu"


def _fold_norms(file: Path, tensors: dict[str, Tensor]) -> None:
    """W_enc and b_enc times ‖d_i‖, W_dec over it: the same products, the same choice among pre-acts times norms."""
    norms = tensors["W_dec"].norm(dim=1)
    if bool((norms == 0).any()):
        latent = int((norms == 0).nonzero()[0])
        raise FormatError(
            f"{file}: tensor 'W_dec', row {latent}, has norm 0, by which rescale_acts_by_decoder_norm = true divides"
        )
    tensors["W_enc"] = tensors["W_enc"] * norms[:, None]
    tensors["b_enc"] = tensors["b_enc"] * norms
    tensors["W_dec"] = tensors["W_dec"] / norms[:, None]


def _normalisation(path: Path, keys: Keys, tensors: dict[str, Tensor], architecture: str) -> str | None:
    """One factor for all activations is folded, where the folder has it; a normalisation of each token is returned by
    our name."""
    found = keys.choice("normalize_activations", ("none", "expected_average_only_in", *NORMS), "none")
    if found == "none":
        return None
    if architecture in TRANSCODERS:
        raise keys.refuse("normalize_activations", "expected none in a transcoder")
    if found in NORMS:
        return NORMS[found]
    scale = read_json(path / SCALE).values.get("scaling_factor") if (path / SCALE).is_file() else None
    if isinstance(scale, bool) or not isinstance(scale, (int, float)) or scale <= 0:
        raise keys.refuse(
            "normalize_activations",
            f"the factor is in no file of this folder ({SCALE} would have it): fold it with SAELens's "
            "fold_activation_norm_scaling_factor, or say none where activations are scaled before",
        )
    tensors["W_enc"] = tensors["W_enc"] * scale
    tensors["W_dec"] = tensors["W_dec"] / scale
    tensors["b_dec"] = tensors["b_dec"] / scale
    return None


def _before_6(values: dict[str, Any]) -> bool:
    metadata = values.get("metadata")
    version = values.get("sae_lens_version") or (metadata.get("sae_lens_version") if isinstance(metadata, dict) else "")
    major = str(version or "").partition(".")[0]
    return not major.isdigit() or int(major) < 6


def _modernised(keys: Keys) -> dict[str, Any]:
    """A flat configuration as 6.0 has it, with the defaults it had."""
    values = {FLAT.get(key, key): value for key, value in keys.values.items()}
    keys = Keys(keys.file, values)
    values.setdefault("architecture", "standard")
    values.setdefault("apply_b_dec_to_input", values["architecture"] not in TRANSCODERS)
    function = keys.choice("activation_fn", ("relu", "topk"), "relu")
    if function == "topk":
        values["k"] = Keys(keys.file, keys.mapping("activation_fn_kwargs")).integer("k")
        values["architecture"] = "topk"
    if isinstance(values.get("normalize_activations"), bool):
        values["normalize_activations"] = "expected_average_only_in" if values["normalize_activations"] else "none"
    if "hook_z" in str(values.get("hook_name", "")):
        values.setdefault("reshape_activations", "hook_z")
    kept = {key: values[key] for key in PROVENANCE if values.get(key) is not None}
    values["metadata"] = {**kept, **keys.mapping("metadata")}
    return values


def save(coder: SparseCoder, path: Path) -> None:
    """A folder that `SAE.load_from_disk` reads and computes the same with in eval mode; BatchTopK as jumprelu with its
    running threshold, as SAELens itself saves it.

    Raises:
        FormatError: SAELens has no such architecture.
    """
    norm, metadata = "none", dict(coder.metadata)
    if isinstance(coder, TokenNorm):
        norm = next(theirs for theirs, ours in NORMS.items() if ours == coder.config.norm)
        coder = coder.coder
        if coder.architecture not in WRITTEN:
            raise cannot_hold(NAME, coder, "a normalisation of each token; its transcoders have none")
    architecture, tensors = _written(coder)
    W_enc = tensors.pop("W_enc")
    reshape = metadata.pop("reshape_activations", "none")
    if _before_6({"metadata": metadata}):
        metadata["sae_lens_version"] = VERSION
    config = {
        "d_in": coder.d_in,
        "d_sae": coder.d_sae,
        "dtype": dtype_name(coder),
        "device": "cpu",
        "apply_b_dec_to_input": bool(config_of(coder, "subtract_b_dec", False)),
        "normalize_activations": norm,
        "reshape_activations": reshape,
        "metadata": metadata,
        "architecture": architecture,
    }
    if architecture == "topk":
        config.update(k=coder.config.to_dict()["k"], rescale_acts_by_decoder_norm=False)
    if architecture in TRANSCODERS:
        config["d_out"] = coder.d_out
    with atomic_directory(path) as folder:
        write_json(config, folder / CONFIG)
        write_safetensors({"W_enc": W_enc.mT, **tensors}, folder / WEIGHTS, path / WEIGHTS)


def _written(coder: SparseCoder) -> tuple[str, dict[str, Tensor]]:
    """SAELens's name of the architecture, and tensors by its names (W_enc still by rows)."""
    own = parameters_of(coder)
    log_theta, W_skip = own.pop("log_theta", None), own.get("W_skip")
    if log_theta is not None or coder.architecture in ("batch_topk", "matryoshka"):
        own["threshold"] = threshold_of(NAME, coder)
    skip = "" if W_skip is None else "skip_"
    if coder.architecture in WRITTEN:
        return WRITTEN[coder.architecture], own
    if coder.architecture == "jumprelu_transcoder":
        return f"jumprelu_{skip}transcoder", own
    if coder.architecture in ("transcoder", "skip_transcoder"):
        if config_of(coder, "activation") != "relu":
            raise cannot_hold(NAME, coder, "activation = 'topk'; SAELens's transcoders have ReLU or JumpReLU")
        if config_of(coder, "subtract_b_dec"):
            raise cannot_hold(NAME, coder, "subtract_b_dec = True; SAELens's transcoders read x itself")
        return f"{skip}transcoder", own
    raise cannot_hold(NAME, coder, f"architecture {coder.architecture!r}; it has {', '.join(READABLE)}")
