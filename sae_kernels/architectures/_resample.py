"""A new start for dead latents."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from ._rows import unit_rows

if TYPE_CHECKING:
    from ._base import SparseCoder

ENCODER_SCALE = 0.2  # of the living encoder rows' mean norm


def restart(coder: SparseCoder, latents: Tensor, x: Tensor, target: Tensor, living: Tensor) -> None:
    """W_enc_i ← 0.2 · s · û_i, W_dec_i ← v̂_i and b_enc_i ← 0, with v_i = y_i − b_dec, u_i the same of an autoencoder
    and x_i of a transcoder, and s the mean norm of the living rows of W_enc (1 without any): a latent that answers to
    an input that is reconstructed badly, weakly enough not to disturb the others.

    Shapes:
        latents (n,) int64, x (n, d_in), target (n, d_out), living (d_sae,) bool
    The encoder of an autoencoder may read x itself, not x − b_dec: then b_enc_i ← −W_enc_i · b_dec gives it the same
    pre-acts. Every other (d_sae,) parameter named b_… is treated as b_enc. A row u_i or v_i of norm 0 leaves its latent
    a row of zeros.

    Source: Bricken et al., Towards Monosemanticity (2023), appendix "Neuron resampling".
    """
    autoencoder = not hasattr(coder.config, "d_target")
    read = getattr(coder, "encoder_input", None)
    reads_x = read is None or bool((read(x) == x).all())
    norms = coder.W_enc[living].norm(dim=1)
    scale = norms.mean() if len(norms) else norms.new_ones(())
    rows = ENCODER_SCALE * scale * unit_rows(x - coder.b_dec if autoencoder else x)
    coder.W_enc[latents] = rows.to(coder.W_enc.dtype)
    coder.W_dec[latents] = unit_rows(target - coder.b_dec).to(coder.W_dec.dtype)
    start = -(rows @ coder.b_dec) if autoencoder and reads_x else rows.new_zeros(len(rows))
    for name, bias in coder.named_parameters():
        if name.startswith("b_") and bias.shape == (coder.d_sae,) and name != "b_dec":
            bias[latents] = start.to(bias.dtype)
