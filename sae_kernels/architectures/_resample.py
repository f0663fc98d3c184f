"""A new start for dead latents."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from ._rows import unit_rows

if TYPE_CHECKING:
    from ._base import SparseCoder

ENCODER_SCALE = 0.2  # of the living encoder rows' mean norm


def restart(coder: SparseCoder, latents: Tensor, x: Tensor, target: Tensor, living: Tensor) -> None:
    """W_enc_i ← 0.2 · s · û_i, W_dec_i ← v̂_i and b_enc_i ← 0, with u_i what the encoder reads of row i, v_i = y_i −
    b_dec, and s the mean norm of the living rows of W_enc (1 without any): a latent that answers to an input that is
    reconstructed badly, weakly enough not to disturb the others.

    Shapes:
        latents (n,) int64, x (n, d_in), target (n, d_out), living (d_sae,) bool
    What the encoder reads is `encoder_input(x)`. A coder without one reads x itself: of an autoencoder then u_i = x_i −
    b_dec all the same, and b_enc_i ← −W_enc_i · b_dec, so that the mean does not decide whether the latent is active.
    Every other (d_sae,) parameter named b_… is treated as b_enc. A row u_i or v_i of norm 0 leaves a row of zeros.

    Source: Bricken et al., Towards Monosemanticity (2023), appendix "Neuron resampling".
    """
    read = getattr(coder, "encoder_input", None)
    centred = read is None and not hasattr(coder.config, "d_target")
    inside = x - coder.b_dec if centred else x if read is None else read(x)
    norms = coder.W_enc[living].norm(dim=1)
    scale = norms.mean() if len(norms) else norms.new_ones(())
    rows = ENCODER_SCALE * scale * unit_rows(inside)
    start = -(rows @ coder.b_dec) if centred else rows.new_zeros(len(rows))
    coder.W_enc[latents] = rows.to(coder.W_enc.dtype)
    coder.W_dec[latents] = unit_rows(target - coder.b_dec).to(coder.W_dec.dtype)
    for name, bias in coder.named_parameters():
        if name.startswith("b_") and bias.shape == (coder.d_sae,) and name != "b_dec":
            bias[latents] = start.to(bias.dtype)
