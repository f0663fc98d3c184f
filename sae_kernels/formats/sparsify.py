"""sparsify: a folder for each hook point, with `cfg.json` and `sae.safetensors`."""

from __future__ import annotations

from pathlib import Path

from ..architectures import SparseCoder
from ..errors import FormatError
from ..files import atomic_directory
from ._config import Keys, peek_json, read_json, write_json
from ._saving import cannot_hold, config_of, parameters_of
from ._weights import assembled, read_safetensors, write_safetensors

NAME = "sparsify"
CONFIG, WEIGHTS = "cfg.json", "sae.safetensors"
TRANSCODERS = ("transcoder", "skip_transcoder")


def matches(path: Path) -> bool:
    """A hook point's folder, or one that has several of them."""
    return (path / WEIGHTS).is_file() or "num_latents" in peek_json(path / CONFIG) or bool(_hook_points(path))


def load(path: Path) -> SparseCoder:
    """What `SparseCoder.load_from_disk` computes: `topk`, or with a skip or as a transcoder `transcoder`.

    Raises:
        FormatError: a folder of several hook points (naming them), groupmax, or damage.
    """
    if not (path / CONFIG).is_file() and (several := _hook_points(path)):
        raise FormatError(f"{path}: holds several coders; load one of {', '.join(several)}, e.g. {path / several[0]}")
    keys, weights = read_json(path / CONFIG), read_safetensors(path / WEIGHTS)
    keys.choice("activation", ("topk",), "topk")
    if keys.boolean("signed", False):  # of early versions: the choice by magnitude
        raise keys.refuse("signed", "expected false; there is no choice by magnitude here")
    d = keys.integer("d_in")
    n = _latents(keys, d)
    transcode, skip = keys.boolean("transcode", False), keys.boolean("skip_connection", False)
    tensors = {
        "W_enc": weights.take("encoder.weight", n, d),
        "b_enc": weights.take("encoder.bias", n),
        "W_dec": weights.take("W_dec", n, d),
        "b_dec": weights.take("b_dec", d),
    }
    if skip:
        tensors["W_skip"] = weights.take("W_skip", d, d)
    weights.done("a sparsify coder with this cfg.json")
    config = {
        "d_in": d,
        "d_sae": n,
        "k": keys.integer("k", 32),
        "multi_topk": keys.boolean("multi_topk", False),
        "normalize_decoder": keys.boolean("normalize_decoder", True) and not transcode,
        "subtract_b_dec": not transcode,
    }
    if transcode or skip:
        return assembled(weights.file, "transcoder", {**config, "skip": skip}, tensors)
    return assembled(weights.file, "topk", config, tensors)


def save(coder: SparseCoder, path: Path) -> None:
    """A folder that `SparseCoder.load_from_disk` reads and computes the same with.

    Raises:
        FormatError: an architecture without a top-k, or a target of another width.
    """
    if coder.architecture not in ("topk", *TRANSCODERS):
        raise cannot_hold(NAME, coder, "it has topk, transcoder and skip_transcoder")
    if config_of(coder, "activation", "topk") != "topk":
        raise cannot_hold(NAME, coder, f"activation = {config_of(coder, 'activation')!r}, it has topk alone")
    if coder.d_out != coder.d_in:
        raise cannot_hold(NAME, coder, f"d_target = {coder.d_out}, it has no other than d_in = {coder.d_in}")
    own = parameters_of(coder)
    tensors = {"encoder.weight": own["W_enc"], "encoder.bias": own["b_enc"], "W_dec": own["W_dec"]}
    tensors["b_dec"] = own["b_dec"]
    if "W_skip" in own:
        tensors["W_skip"] = own["W_skip"]
    config = {
        "activation": "topk",
        "expansion_factor": max(1, coder.d_sae // coder.d_in),
        "normalize_decoder": bool(config_of(coder, "normalize_decoder")),
        "num_latents": coder.d_sae,
        "k": config_of(coder, "k"),
        "multi_topk": bool(config_of(coder, "multi_topk")),
        "skip_connection": "W_skip" in own,
        "transcode": not config_of(coder, "subtract_b_dec"),
        "d_in": coder.d_in,
    }
    with atomic_directory(path) as folder:
        write_json(config, folder / CONFIG)
        write_safetensors(tensors, folder / WEIGHTS, path / WEIGHTS)


def _latents(keys: Keys, d: int) -> int:
    if keys.values.get("num_latents"):
        return keys.integer("num_latents")
    return d * keys.integer("expansion_factor", 32)


def _hook_points(path: Path) -> list[str]:
    if not path.is_dir():
        return []
    return sorted(f.parent.name for f in path.glob(f"*/{WEIGHTS}") if (f.parent / CONFIG).is_file())
