"""Normalisation of activations, and how it is folded into weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Affine:
    """x ↦ (x − mean) · scale, both (d,) float32: how activations are normalised before a coder sees them."""

    mean: Tensor
    scale: Tensor

    @classmethod
    def identity(cls, d: int) -> Affine:
        """Changes nothing."""
        return cls(torch.zeros(d), torch.ones(d))

    def apply(self, x: Tensor) -> Tensor:
        """Rows (…, d), normalised, in their dtype."""
        return (x - self.mean.to(x)) * self.scale.to(x)

    def invert(self, x: Tensor) -> Tensor:
        """Rows (…, d) as they were."""
        return x / self.scale.to(x) + self.mean.to(x)

    def common_scale(self) -> float | None:
        """The scale where it is one number for all features."""
        first = self.scale[:1]
        return float(first) if bool((self.scale == first).all()) else None

    def to(self, like: Tensor) -> Affine:
        """On the device of a tensor."""
        return Affine(self.mean.to(like.device), self.scale.to(like.device))


@torch.no_grad()
def fold_encoder(W_enc: Tensor, b_enc: Tensor, input: Affine) -> None:
    """W (s(x − μ)) + b = (W s) x + (b − W s μ), in place; for encoders that read x itself."""
    input = input.to(W_enc)
    W_enc.mul_(input.scale.to(W_enc.dtype))
    b_enc.sub_((W_enc.double() @ input.mean.double()).to(b_enc.dtype))


@torch.no_grad()
def fold_decoder(W_dec: Tensor, b_dec: Tensor, target: Affine) -> None:
    """(f W + b) / s + μ = f (W / s) + (b / s + μ), in place."""
    W_dec.div_(target.to(W_dec).scale.to(W_dec.dtype))
    b_dec.copy_(target.invert(b_dec))


@torch.no_grad()
def fold_autoencoder(W_enc: Tensor, W_dec: Tensor, b_dec: Tensor, input: Affine) -> None:
    """For encoders that read x − b_dec: s(x − μ) − b = s (x − (μ + b / s)), and the decoder's as above; in place.
    b_enc stays."""
    W_enc.mul_(input.to(W_enc).scale.to(W_enc.dtype))
    fold_decoder(W_dec, b_dec, input)


@torch.no_grad()
def fold_subtracting(W_enc: Tensor, b_enc: Tensor, W_dec: Tensor, b_dec: Tensor, input: Affine, target: Affine) -> None:
    """As `fold_autoencoder`, where input and target differ: W (x − b) + c = W x + (c − W b), folded and written back
    with the decoder's new bias; in place."""
    b_enc.sub_((W_enc.double() @ b_dec.double()).to(b_enc.dtype))
    fold_encoder(W_enc, b_enc, input)
    fold_decoder(W_dec, b_dec, target)
    b_enc.add_((W_enc.double() @ b_dec.double()).to(b_enc.dtype))


@torch.no_grad()
def rescale_latents(factor: float, encoder: tuple[Tensor, ...], W_dec: Tensor) -> None:
    """f ↦ factor · f, in place: every tensor that pre-acts are linear in (W_enc, b_enc, θ) times factor > 0, W_dec over
    it. A ReLU and a choice of the largest are the same afterwards; with factor = 1 / `common_scale` a folded decoder is
    back at the norms it was trained with."""
    for tensor in encoder:
        tensor.mul_(factor)
    W_dec.div_(factor)
