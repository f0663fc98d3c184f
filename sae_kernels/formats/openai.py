"""OpenAI's sparse_autoencoder: one `.pt` file of a state dict."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..architectures import SparseCoder
from ..architectures.token_norm import TokenNorm
from ..errors import FormatError
from ..files import atomic_file
from ._saving import cannot_hold, config_of, parameters_of
from ._weights import Weights, assembled, behind_norm, read_torch

NAME = "openai"
STATISTICS = ("stats_last_nonzero", "latents_activation_frequency", "latents_mean_square")  # of training; not used
SIGNS = {"pre_bias", "latent_bias", "encoder.weight"}


def matches(path: Path) -> bool:
    """A .pt file whose dict has a pre_bias and a latent_bias."""
    if not (path.is_file() and path.suffix in (".pt", ".pth")):
        return False
    try:
        return set(read_torch(path)) >= SIGNS
    except FormatError:
        return False


def load(path: Path) -> SparseCoder:
    """What `Autoencoder.from_state_dict` makes of it: with activation TopK a `topk` behind a layer norm of each token,
    as that function supposes, else `relu`.

    Raises:
        FormatError: an activation other than these, tied weights, a pickle of anything but tensors and plain values,
        or damage.
    """
    held = read_torch(path)
    activation, state = held.pop("activation", "ReLU"), held.pop("activation_state_dict", {})
    for name in STATISTICS:
        held.pop(name, None)
    weights = Weights(path, held)
    n, d = weights.sizes("encoder.weight", 2)
    tensors = {
        "W_enc": weights.take("encoder.weight", n, d),
        "b_enc": weights.take("latent_bias", n),
        "W_dec": weights.take_rows("decoder.weight", d, n),
        "b_dec": weights.take("pre_bias", d),
    }
    weights.done("an OpenAI autoencoder")
    config: dict[str, Any] = {"d_in": d, "d_sae": n, "subtract_b_dec": True}
    if activation == "ReLU":
        return assembled(path, "relu", {**config, "sparsity_coefficient": 0.0}, tensors)
    if activation != "TopK":
        raise FormatError(f"{path}: activation = {activation!r}, expected ReLU or TopK")
    after = state.get("postact_fn", "ReLU")
    if after != "ReLU":
        raise FormatError(f"{path}: activation_state_dict.postact_fn = {after!r}, expected ReLU")
    k = Weights(path, {"activation_state_dict.k": state.get("k")}).take_integer("activation_state_dict.k")
    coder = assembled(path, "topk", {**config, "k": k, "normalize_decoder": False}, tensors)
    return behind_norm(path, coder, "layer_norm")


def save(coder: SparseCoder, path: Path) -> None:
    """A file that `Autoencoder.from_state_dict` reads and computes the same with.

    Raises:
        FormatError: all but `relu` and `topk` behind a layer norm, which that function gives every top-k.
    """
    norm = coder.config.norm if isinstance(coder, TokenNorm) else None
    if isinstance(coder, TokenNorm):
        coder = coder.coder
    if (coder.architecture, norm) not in (("relu", None), ("topk", "layer_norm")):
        behind = f" behind {norm}" if norm else " without a layer norm"
        raise cannot_hold(NAME, coder, f"{coder.architecture}{behind}; it has relu, and topk behind layer_norm")
    if not config_of(coder, "subtract_b_dec"):
        raise cannot_hold(NAME, coder, "subtract_b_dec = False; it subtracts pre_bias")
    if path.is_dir():
        raise FormatError(f"{path}: is a folder, expected a file to write, e.g. {path / 'autoencoder.pt'}")
    own = {name: tensor.detach().cpu() for name, tensor in parameters_of(coder).items()}
    held: dict[str, Any] = {
        "pre_bias": own["b_dec"].clone(),
        "latent_bias": own["b_enc"].clone(),
        "encoder.weight": own["W_enc"].contiguous().clone(),
        "decoder.weight": own["W_dec"].mT.contiguous().clone(),
        "stats_last_nonzero": torch.zeros(coder.d_sae, dtype=torch.int64),
        "latents_activation_frequency": torch.ones(coder.d_sae),
        "latents_mean_square": torch.zeros(coder.d_sae),
        "activation": "ReLU" if norm is None else "TopK",
    }
    held["activation_state_dict"] = {} if norm is None else {"k": config_of(coder, "k"), "postact_fn": "ReLU"}
    with atomic_file(path) as file:
        torch.save(held, file)
