"""Gemma Scope: JumpReLU SAEs and transcoders in `params.npz`. Read only."""

from __future__ import annotations

from pathlib import Path

from ..architectures import SparseCoder
from ._weights import assembled, log_of, read_npz

WEIGHTS = "params.npz"


def matches(path: Path) -> bool:
    """A folder with params.npz, or any .npz file."""
    return (path / WEIGHTS).is_file() or (path.suffix == ".npz" and path.is_file())


def load(path: Path) -> SparseCoder:
    """z = x W_enc + b_enc;  f = z · 1[z > θ];  f W_dec + b_dec: `jumprelu`, `jumprelu_transcoder` where the widths
    differ. A transcoder between equal widths has the very tensors of an SAE, and is computed the same as `jumprelu`.

    Raises:
        FormatError: pickled objects, or damage.
    """
    weights = read_npz(path if path.is_file() else path / WEIGHTS)
    d_in, d_sae = weights.sizes("W_enc", 2)
    _, d_out = weights.sizes("W_dec", 2)
    tensors = {
        "W_enc": weights.take_rows("W_enc", d_in, d_sae),
        "b_enc": weights.take("b_enc", d_sae),
        "log_theta": log_of(weights.take("threshold", d_sae)),
        "W_dec": weights.take("W_dec", d_sae, d_out),
        "b_dec": weights.take("b_dec", d_out),
    }
    weights.done("a Gemma Scope SAE")
    config = {"d_in": d_in, "d_sae": d_sae, "sparsity_coefficient": 0.0, "normalize_decoder": False}
    if d_out == d_in:
        return assembled(weights.file, "jumprelu", config, tensors)
    return assembled(weights.file, "jumprelu_transcoder", {**config, "d_target": d_out}, tensors)
